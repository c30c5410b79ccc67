//! A child process that never outlives its value: killed at the drop, or by the kernel when the test runner dies.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result, tail};
use crate::run_dir::RunDir;

/// How often something is looked at again that cannot be waited for.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Where a child's standard streams go. Standard error always goes to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Nothing to read, output to the log.
    Logged,
    /// Input and output are pipes to us.
    Driven,
}

impl Process {
    /// Starts `program`; what it prints goes to `NAME.log` in `dir`, after what is there already.
    pub fn start<A: AsRef<OsStr>>(
        dir: &RunDir,
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        Self::start_with(dir, name, program, args, Streams::Logged)
    }

    pub(crate) fn start_with<A: AsRef<OsStr>>(
        dir: &RunDir,
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
        streams: Streams,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = open_log(&log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program.as_ref())
            .args(args);
        command.stderr(
            file.try_clone()
                .map_err(Error::io("duplicate a file descriptor"))?,
        );
        match streams {
            Streams::Logged => command.stdin(Stdio::null()).stdout(file),
            Streams::Driven => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
        };
        let child = command
            .spawn()
            .map_err(Error::io(format!("start {}", program.as_ref().display())))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// The pipes of a driven process; `None` the second time.
    pub(crate) fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(Error::io(format!("wait for {}", self.name)))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let sent = pid.map_or(Err(rustix::io::Errno::SRCH), |pid| {
            kill_process(pid, signal)
        });
        sent.map_err(|e| Error::io(format!("signal {}", self.name))(e.into()))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                return Err(Error::Timeout {
                    whom: self.name.clone(),
                    what: "ending".into(),
                    limit,
                    so_far: tail(&self.log(), 10),
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Kills it, at once and for certain.
    pub fn kill(&mut self) {
        // Both fail only for a process that is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Processor time that its threads have used, of those that still live.
    pub fn cpu_time(&self) -> Result<Duration> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.id()));
        let mut nanoseconds = 0;
        let entries =
            std::fs::read_dir(&tasks).map_err(Error::io(format!("read {}", tasks.display())))?;
        for task in entries.flatten() {
            // A thread that ended meanwhile has nothing to read any more.
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

impl Process {
    /// Watches it rest: the share of a core that it used until that was less than `share`, or ten times over if it did not
    /// get there. What it still had to do, and what the processor's other users do to its time, happens once and
    /// weighs less and less; what rest costs goes on.
    pub fn rest(&self, watched: Duration, share: f64) -> Result<f64> {
        let (before, started) = (self.cpu_time()?, Instant::now());
        loop {
            std::thread::sleep(watched);
            let used = self.cpu_time()?.saturating_sub(before);
            let took = started.elapsed();
            let of_it = used.as_secs_f64() / took.as_secs_f64();
            if of_it < share || took > watched * 10 {
                return Ok(of_it);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io(format!("open {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_lands_in_the_log_and_the_status_is_told() {
        let dir = RunDir::new().unwrap();
        let mut process = Process::start(
            &dir,
            "talker",
            "sh",
            ["-c", "echo out; echo err >&2; exit 3"],
        )
        .unwrap();
        let status = process.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(process.log(), "out\nerr\n");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = RunDir::new().unwrap();
        let process = Process::start(&dir, "sleeper", "sleep", ["1000"]).unwrap();
        let proc_dir = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(proc_dir.exists());
        drop(process);
        assert!(!proc_dir.exists());
    }

    #[test]
    fn who_rests_is_seen_to_and_who_does_not_as_well() {
        let dir = RunDir::new().unwrap();
        let look = Duration::from_millis(100);
        let sleeper = Process::start(&dir, "sleeper", "sleep", ["1000"]).unwrap();
        assert!(sleeper.rest(look, 0.5).unwrap() < 0.5);
        let busy = ["-c", "while :; do :; done"];
        let busy = Process::start(&dir, "busy", "sh", busy).unwrap();
        while busy.cpu_time().unwrap().is_zero() {
            std::thread::sleep(LOOK_AGAIN);
        }
        assert!(busy.rest(look, 0.001).unwrap() > 0.001);
    }

    #[test]
    fn waiting_has_a_limit() {
        let dir = RunDir::new().unwrap();
        let mut process = Process::start(&dir, "sleeper", "sleep", ["1000"]).unwrap();
        assert!(matches!(
            process.wait(Duration::from_millis(50)),
            Err(Error::Timeout { .. })
        ));
    }
}
