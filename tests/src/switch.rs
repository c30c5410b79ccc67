//! The switch under test: the daemon of this build, in a process of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vswitch_api::rpc::{Counters, CountersParams, Method, NoParams, PortStatus, Status, methods};

use crate::account::account;
use crate::control::Control;
use crate::error::{Error, Result, tail};
use crate::machine;
use crate::process::{LOOK_AGAIN, Process};
use crate::run_dir::RunDir;

/// How long the daemon may take to answer after its start, to end after SIGTERM, and to have its books in order, where the
/// machine is slow and has other things to do.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const BOOKS_LIMIT: Duration = Duration::from_secs(60);

/// A running `vswitchd`.
///
/// At the drop it is stopped with SIGTERM; if it does not end by that, with status 0 and without having panicked, or if
/// it has ended before, the test fails.
#[derive(Debug)]
pub struct Switch<'d> {
    dir: &'d RunDir,
    process: Option<Process>,
    starts: u32,
}

impl<'d> Switch<'d> {
    /// Starts the daemon with a configuration, in which `$RUN` stands for the run directory, and waits until it answers.
    /// The control socket is added; ports' sockets should be in `$RUN`.
    pub fn start(dir: &'d RunDir, config: &str) -> Result<Self> {
        let mut switch = Self {
            dir,
            process: None,
            starts: 0,
        };
        switch.write_config(config)?;
        switch.start_again()?;
        Ok(switch)
    }

    /// Replaces the configuration file; the daemon reads it at the next start, or at [`Switch::reload`].
    pub fn write_config(&self, config: &str) -> Result<()> {
        let run = self.dir.path().display().to_string();
        let text =
            format!("control: {{ socket: $RUN/control.sock }}\n{config}").replace("$RUN", &run);
        // The daemon may be reading it just now, as it was asked to before: it reads the one or the other, not a part.
        let (new, file) = (self.dir.join("vswitch.yaml.new"), self.config_file());
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, file))
            .map_err(Error::io("write the configuration"))
    }

    /// Starts the daemon after [`Switch::kill`] or [`Switch::stop`].
    pub fn start_again(&mut self) -> Result<()> {
        let program = machine::built_programs()?.join("vswitchd");
        self.starts += 1;
        let name = format!("vswitchd-{}", self.starts);
        let mut process = Process::start(
            self.dir,
            &name,
            program,
            ["--config".into(), self.config_file()],
        )?;
        let started = Instant::now();
        loop {
            let answer = Control::connect(&self.control_socket())
                .and_then(|mut control| control.call::<methods::GetVersion>(&NoParams {}));
            if answer.is_ok() {
                break;
            }
            if let Some(status) = process.ended()? {
                return Err(Error::Failed(format!(
                    "vswitchd ended at its start: {status}\n{}",
                    process.log()
                )));
            }
            if started.elapsed() > START_LIMIT {
                return Err(Error::Timeout {
                    whom: name,
                    what: "answering on the control socket".into(),
                    limit: START_LIMIT,
                    so_far: tail(&process.log(), 10),
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.process = Some(process);
        Ok(())
    }

    /// Kills the daemon without a warning.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            self.complain_about(&mut process);
            process.kill();
        }
    }

    /// Stops the daemon with SIGTERM.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        if !self.complain_about(&mut process) {
            return;
        }
        match process
            .signal(Signal::TERM)
            .and_then(|()| process.wait(STOP_LIMIT))
        {
            Ok(status) if status.success() => {}
            Ok(status) => self
                .dir
                .complain(format!("{} ended on SIGTERM with {status}", process.name())),
            Err(error) => self.dir.complain(format!(
                "{} did not stop on SIGTERM: {error}",
                process.name()
            )),
        }
        self.complain_about_panics(&process);
    }

    /// Has the daemon read its configuration file again.
    pub fn reload(&self) -> Result<()> {
        self.process()?.signal(Signal::HUP)
    }

    /// A new control connection.
    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.control_socket())
    }

    /// Calls one method on a connection of its own.
    pub fn call<M: Method>(&self, params: &M::Params) -> Result<M::Result> {
        self.control()?.call::<M>(params)
    }

    /// How everything is.
    pub fn show(&self) -> Result<Status> {
        self.call::<methods::Show>(&NoParams {})
    }

    /// How one port is.
    pub fn port(&self, name: &str) -> Result<PortStatus> {
        let ports = self.show()?.ports;
        ports
            .into_iter()
            .find(|p| p.name == name)
            .ok_or_else(|| Error::Failed(format!("there is no port {name}")))
    }

    /// Where every frame went.
    pub fn counters(&self) -> Result<Counters> {
        self.call::<methods::GetCounters>(&CountersParams::default())
    }

    /// Checks that every frame is accounted for, and returns the counters. Waits for frames that still move.
    pub fn accounted(&self) -> Result<Counters> {
        self.until("the books to balance", BOOKS_LIMIT, || {
            let counters = self.counters()?;
            account(&counters)?;
            Ok(counters)
        })
    }

    /// Waits until a port is up.
    pub fn wait_up(&self, port: &str, limit: Duration) -> Result<PortStatus> {
        self.until(&format!("{port} to come up"), limit, || {
            let status = self.port(port)?;
            if status.link.state == vswitch_api::rpc::LinkState::Up {
                Ok(status)
            } else {
                Err(Error::Failed(format!(
                    "{port} is {:?}: {:?}",
                    status.link.state, status.link.reason
                )))
            }
        })
    }

    /// Tries until it succeeds, and fails with the last error after `limit`.
    pub fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        attempt: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(error) if started.elapsed() > limit => {
                    return Err(Error::Failed(format!(
                        "waited {limit:?} for {what}: {error}"
                    )));
                }
                Err(_) => std::thread::sleep(LOOK_AGAIN * 5),
            }
        }
    }

    /// Runs `vswitchctl` and returns what it prints.
    pub fn vswitchctl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(machine::built_programs()?.join("vswitchctl"))
            .arg("--socket")
            .arg(self.control_socket())
            .args(args)
            .output()
            .map_err(Error::io("run vswitchctl"))?;
        if !output.status.success() {
            return Err(Error::Command {
                whom: "vswitchctl".into(),
                command: args.join(" "),
                status: output.status.code().unwrap_or(-1),
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The running daemon.
    pub fn process(&self) -> Result<&Process> {
        self.process
            .as_ref()
            .ok_or_else(|| Error::Failed("the switch is not running".into()))
    }

    /// Path of the control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("vswitch.yaml")
    }

    /// Whether it still runs; if not, that is a fault.
    fn complain_about(&self, process: &mut Process) -> bool {
        self.complain_about_panics(process);
        match process.ended() {
            Ok(None) => true,
            Ok(Some(status)) => {
                self.dir
                    .complain(format!("{} ended by itself: {status}", process.name()));
                false
            }
            Err(error) => {
                self.dir.complain(error.to_string());
                false
            }
        }
    }

    fn complain_about_panics(&self, process: &Process) {
        if let Some(line) = process
            .log()
            .lines()
            .find(|line| line.contains("panicked at"))
        {
            self.dir
                .complain(format!("{} panicked: {line}", process.name()));
        }
    }
}

impl Drop for Switch<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
