//! Talking to a program by its standard streams: everything it says is logged and kept, to be waited for.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, tail};
use crate::process::open_log;

/// What has been said so far, and whether more can come.
#[derive(Default)]
struct Said {
    text: String,
    ended: bool,
}

/// Both directions of a program's standard streams.
pub(crate) struct Console {
    whom: String,
    input: ChildStdin,
    said: Arc<(Mutex<Said>, Condvar)>,
    /// Everything before this was looked at.
    seen: usize,
}

impl Console {
    /// Takes over the pipes. A thread reads until the program closes its side.
    pub(crate) fn new(whom: &str, pipes: (ChildStdin, ChildStdout), log: &Path) -> Result<Self> {
        let (input, mut output) = pipes;
        let said: Arc<(Mutex<Said>, Condvar)> = Arc::default();
        let mut log = open_log(log)?;
        let shared = Arc::clone(&said);
        std::thread::Builder::new()
            .name(format!("console of {whom}"))
            .spawn(move || {
                let mut buffer = [0; 4096];
                loop {
                    let read = output.read(&mut buffer).unwrap_or(0);
                    // The log is for people; the test goes on without it.
                    let _ = log.write_all(&buffer[..read]);
                    let mut said = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                    said.text
                        .push_str(&String::from_utf8_lossy(&buffer[..read]));
                    said.ended = read == 0;
                    shared.1.notify_all();
                    if said.ended {
                        return;
                    }
                }
            })
            .map_err(Error::io("start a thread"))?;
        Ok(Self {
            whom: whom.to_owned(),
            input,
            said,
            seen: 0,
        })
    }

    /// Writes as it is.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        self.input
            .write_all(text.as_bytes())
            .and_then(|()| self.input.flush())
            .map_err(Error::io(format!("write to the console of {}", self.whom)))
    }

    /// Forgets what was said so far.
    pub(crate) fn skip_to_now(&mut self) {
        self.seen = self
            .said
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .text
            .len();
    }

    /// Waits for `find` to find its end in what was said since the last match; it gets that text and returns what it
    /// made of it together with the bytes it has used.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<(T, usize)>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let new = said.text.get(self.seen..).unwrap_or_default();
            if let Some((found, used)) = find(new) {
                self.seen += used;
                return Ok(found);
            }
            if said.ended {
                let last = tail(new, 10);
                return Err(Error::Failed(format!(
                    "{} ended while {what} was awaited:\n{last}",
                    self.whom
                )));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout {
                    whom: self.whom.clone(),
                    what: what.to_owned(),
                    limit,
                    so_far: tail(new, 10),
                });
            }
            said = self
                .said
                .1
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for a piece of text and returns what stands before it.
    pub(crate) fn wait_for_text(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.wait_for(&format!("“{text}”"), limit, |new| {
            new.find(text)
                .map(|at| (new[..at].to_owned(), at + text.len()))
        })
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit status.
    pub(crate) status: i32,
    /// What it printed.
    pub(crate) output: String,
}

/// A shell line that runs `command` and marks the end of its output with `mark` and the status. The mark is taken apart
/// in the line, so that a console that echoes is not taken for an answer.
pub(crate) fn marked(command: &str, mark: u64) -> String {
    format!("{{ {command}\n}} </dev/null 2>&1; printf '\\n@%s-{mark}:%s@\\n' end $?\n")
}

/// Finds the end of a [`marked`] command in `text`.
pub(crate) fn find_marked(text: &str, mark: u64) -> Option<(Ended, usize)> {
    let start = format!("\n@end-{mark}:");
    let at = text.find(&start)?;
    let rest = &text[at + start.len()..];
    let (status, _) = rest.split_once("@\n")?;
    let used = at + start.len() + status.len() + 2;
    Some((
        Ended {
            status: status.parse().ok()?,
            output: text[..at].trim_end_matches('\n').to_owned(),
        },
        used,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Process, Streams};
    use crate::run_dir::RunDir;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(dir: &RunDir) -> (Process, Console) {
        let mut process =
            Process::start_with(dir, "shell", "sh", [""; 0], Streams::Driven).unwrap();
        let console = Console::new(
            "shell",
            process.take_pipes().unwrap(),
            &dir.join("console.log"),
        )
        .unwrap();
        (process, console)
    }

    fn run(console: &mut Console, command: &str, mark: u64) -> Ended {
        console.write(&marked(command, mark)).unwrap();
        console
            .wait_for(command, LIMIT, |text| find_marked(text, mark))
            .unwrap()
    }

    #[test]
    fn commands_answer_with_output_and_status() {
        let dir = RunDir::new().unwrap();
        let (_process, mut console) = shell(&dir);
        assert_eq!(
            run(&mut console, "printf 'no newline'", 1),
            Ended {
                status: 0,
                output: "no newline".into()
            }
        );
        assert_eq!(
            run(&mut console, "echo a; echo b >&2; false", 2),
            Ended {
                status: 1,
                output: "a\nb".into()
            }
        );
        assert_eq!(
            run(&mut console, "cat; (exit 7)", 3),
            Ended {
                status: 7,
                output: String::new()
            }
        );
        assert!(
            std::fs::read_to_string(dir.join("console.log"))
                .unwrap()
                .contains("no newline")
        );
    }

    #[test]
    fn an_echoed_line_is_not_an_answer() {
        assert_eq!(find_marked(&marked("true", 5), 5), None);
        assert_eq!(
            find_marked("\n@end-5:0", 5),
            None,
            "the mark is not complete yet"
        );
        assert!(find_marked("\n@end-4:0@\n", 5).is_none());
    }

    #[test]
    fn a_silent_program_times_out_and_a_dead_one_is_noticed() {
        let dir = RunDir::new().unwrap();
        let (mut process, mut console) = shell(&dir);
        let silent = console.wait_for_text("nothing", Duration::from_millis(50));
        assert!(matches!(silent, Err(Error::Timeout { .. })));
        process.kill();
        let dead = console.wait_for_text("nothing", LIMIT);
        assert!(matches!(dead, Err(Error::Failed(_))), "{dead:?}");
    }
}
