//! The switch itself: `vswitchd` with one polling worker and two guests on a learning bridge.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::host::Idle;
use super::{Contestant, Guests, Near, Setup, sockets};
use crate::generator::Wire;
use crate::interference::threads_of;
use crate::process::Process;
use crate::{Error, Result, machine};

/// A running `vswitchd`.
pub struct Switch {
    name: &'static str,
    // Dropped in this order: guests hang up, the daemon ends, its folder goes.
    guests: Guests,
    process: Process,
    _dir: TempDir,
    version: String,
    idle: Idle,
}

/// The workspace's `vswitchd`, built now with the release profile unless it is up to date.
pub fn built() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let asked_for = [
        "build",
        "--release",
        "--package",
        "vswitch",
        "--bin",
        "vswitchd",
    ];
    let output = Command::new(cargo)
        .args(asked_for)
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(Error::io(
            "run cargo; --vswitchd FILE measures a program that is there",
        ))?;
    if !output.status.success() {
        return Err(Error::Build(format!(
            "cargo {} ended with {}",
            asked_for.join(" "),
            output.status
        )));
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| Error::Build("cargo names no program".into()))
}

/// DPDK's memory where there is a NIC, MiB, and the hugepages of 2 MiB that takes.
const MEMORY: u64 = 128;
const HUGEPAGES: u64 = MEMORY / 2;

/// The program that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    messages
        .filter_map(|message: serde_json::Value| Some(message.get("executable")?.as_str()?.into()))
        .next_back()
}

impl Switch {
    /// Starts `program` and connects two guests, one of them by a NIC if asked to.
    pub fn start(name: &'static str, program: &Path, setup: Setup) -> Result<Self> {
        Self::with(name, program, setup, Idle::Polls)
    }

    /// The same with a worker that does this when there is nothing to do.
    pub fn with(name: &'static str, program: &Path, setup: Setup, idle: Idle) -> Result<Self> {
        let dir = TempDir::with_prefix("vswitch-bench").map_err(Error::io("make a folder"))?;
        let config = dir.path().join("vswitch.yaml");
        let hugepages = machine::free_hugepages() >= HUGEPAGES;
        let text = configuration(dir.path(), setup, hugepages, idle);
        std::fs::write(&config, text).map_err(Error::io("write a configuration"))?;
        let args = ["--config".to_owned(), config.display().to_string()];
        let process = Process::start(name, dir.path(), program, &args)?;
        let guests = Guests::connect(setup, &sockets(dir.path()), true)
            .map_err(|error| process.explain(error))?;
        process.favour();
        let version = machine::output(program, &["--version"]).unwrap_or_default();
        Ok(Self {
            name,
            guests,
            process,
            _dir: dir,
            version,
            idle,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn configuration(dir: &Path, setup: Setup, hugepages: bool, idle: Idle) -> String {
    let core = setup.placement.worker;
    let [a, b] = sockets(dir);
    let (dpdk, a) = match setup.near {
        Near::Guest => (
            String::new(),
            format!("vhost-user: {{ socket: {} }}", a.display()),
        ),
        Near::Nic => (
            format!("dpdk: {{ memory: {MEMORY}, hugepages: {hugepages} }}\n"),
            format!("dpdk: {{ device: \"{}\" }}", Near::device(&a)),
        ),
    };
    format!(
        "control: {{ socket: {dir}/control.sock }}\n\
         workers: [ {{ core: {core}, busy-poll: {idle} }} ]\n\
         bridges: {{ br0: {{ mtu: 9000 }} }}\n\
         {dpdk}ports:\n  a: {{ {a} }}\n  b: {{ vhost-user: {{ socket: {b} }} }}\n",
        dir = dir.display(),
        idle = idle.value(),
        b = b.display(),
    )
}

impl Contestant for Switch {
    fn name(&self) -> &'static str {
        self.name
    }

    fn describe(&self) -> String {
        format!(
            "{}, MAC learning on, one worker, {}",
            self.version,
            self.idle.name()
        )
    }

    fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    fn wire(&mut self) -> &mut Wire {
        &mut self.guests.wire
    }

    fn tasks(&self) -> Vec<PathBuf> {
        threads_of(self.process.pid())
    }

    fn explain(&mut self, error: Error) -> Error {
        self.process.explain(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Rings;
    use crate::cpu::Placement;

    #[test]
    fn cargo_says_what_it_built() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnoise\n\
             {\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/vswitchd\"}\n\
             {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some("/t/release/vswitchd".into()));
        assert_eq!(executable(""), None);
    }

    #[test]
    fn the_configuration_names_core_and_sockets() {
        let setup = |near| Setup {
            placement: Placement {
                generator: 1,
                worker: 3,
            },
            rings: Rings::Split,
            jumbo: false,
            near,
        };
        let text = configuration(Path::new("/d"), setup(Near::Guest), false, Idle::Polls);
        assert!(
            text.contains("core: 3") && text.contains("/d/a.sock") && text.contains("/d/b.sock")
        );
        assert!(text.contains("busy-poll: always") && !text.contains("dpdk"));
        let text = configuration(Path::new("/d"), setup(Near::Nic), true, Idle::Adaptive);
        assert!(text.contains("device: \"net_vhost0,iface=/d/a.sock\""));
        assert!(text.contains("hugepages: true") && text.contains("busy-poll: adaptive"));
    }
}
