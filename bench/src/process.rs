//! A contestant in a process of its own: its own session, stopped and resumed, gone with us.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cpu::favour_session;
use crate::{Error, Result};

/// Lines of a log that an error shows.
const LAST_LINES: usize = 12;
/// How long a stopped process may take to stand still.
const STOP_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program, its output to a log in `dir`. Its standard input stays open and empty, which
    /// is what programs with a prompt need to stay.
    pub(crate) fn start(
        name: &'static str,
        dir: &Path,
        program: &Path,
        args: &[String],
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).map_err(Error::io(format!("create {}", log.display())))?;
        let copy = file
            .try_clone()
            .map_err(Error::io("duplicate a descriptor"))?;
        // Both helpers become the program, so that the process id is the program's. The kernel kills
        // it when we die, however we do.
        let child = Command::new("setsid")
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .map_err(Error::io("start setsid (Debian package util-linux)"))?;
        Ok(Self { name, child, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it priority; to be called when it has surely made its session.
    pub(crate) fn favour(&self) {
        favour_session(self.pid());
    }

    /// Stops it and waits until it stands still.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let until = Instant::now() + STOP_LIMIT;
        while !self.stands_still() {
            if Instant::now() > until {
                return Err(self.complain("does not stop"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it run on; an error if it has ended.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self
            .child
            .try_wait()
            .map_err(Error::io("wait for a child"))?
        {
            return Err(self.complain(&format!("ended with {status}")));
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        pid.map_or(Ok(()), |pid| kill_process(pid, signal))
            .map_err(Error::io(format!("signal {}", self.name)))
    }

    fn stands_still(&self) -> bool {
        let threads = crate::interference::threads_of(self.pid());
        threads.iter().all(|task| {
            let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
            // The name before it is in brackets and may hold anything.
            let state = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with('T'));
            state.unwrap_or(true)
        })
    }

    /// An error with the end of this process's log, unless the log has nothing to add.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::SplitOnly => error,
            Error::Held(_) | Error::Silent(_) => {
                self.complain(&format!("{error}; its threads: {}", self.threads()))
            }
            error => self.complain(&error.to_string()),
        }
    }

    /// Its threads: whether each sleeps (`S`) or wants to run, and its times, milliseconds. Who is kept from its processor
    /// holds on to frames, too.
    fn threads(&self) -> String {
        let thread = |task: std::path::PathBuf| {
            let read = |file| std::fs::read_to_string(task.join(file)).ok();
            let stat = read("stat")?;
            let state = stat.rsplit_once(") ")?.1.chars().next()?;
            let times = read("schedstat")?;
            let mut ms = times
                .split(' ')
                .map(|ns| ns.parse::<u64>().unwrap_or_default() / 1_000_000);
            let (ran, kept) = (ms.next()?, ms.next()?);
            Some(format!(
                "{} {state} ran {ran} kept {kept}",
                read("comm")?.trim()
            ))
        };
        let threads = crate::interference::threads_of(self.pid());
        let threads: Vec<_> = threads.into_iter().filter_map(thread).collect();
        threads.join(", ")
    }

    /// An error about this process, with the end of its log.
    pub(crate) fn complain(&self, what: &str) -> Error {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        Error::Contestant {
            whom: self.name.into(),
            what: what.into(),
            log: lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that is gone. A stopped one is killed as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_means_no_processor_time() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-c", "while :; do :; done"].map(String::from);
        let mut busy = Process::start("busy", dir.path(), Path::new("/bin/sh"), &args).unwrap();
        let used = |busy: &Process| {
            let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", busy.pid())).unwrap();
            stat.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let held = busy.explain(Error::Held(5)).to_string();
        assert!(
            held.contains("its threads: ") && held.contains(" kept "),
            "{held}"
        );
        busy.stop().unwrap();
        let before = used(&busy);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(used(&busy), before);
        busy.resume().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while used(&busy) == before {
            assert!(Instant::now() < until, "it does not run on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn one_that_ended_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-c", "echo out of luck; exit 3"].map(String::from);
        let mut gone = Process::start("gone", dir.path(), Path::new("/bin/sh"), &args).unwrap();
        gone.child.wait().unwrap();
        let error = gone.resume().unwrap_err().to_string();
        assert!(
            error.contains("gone") && error.contains("3") && error.contains("out of luck"),
            "{error}"
        );
    }
}
