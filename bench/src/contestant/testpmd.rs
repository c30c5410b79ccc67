//! DPDK's testpmd with two vhost ports: forwards from one to the other without looking at a frame.
//!
//! It is the least that a switch built on DPDK's vhost library pays.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{Contestant, Guests, Setup, sockets};
use crate::cpu::Placement;
use crate::generator::Wire;
use crate::interference::threads_of;
use crate::process::Process;
use crate::{Error, Result, machine};

const PROGRAM: &str = "dpdk-testpmd";
const PACKAGE: &str = "dpdk-dev";
/// Its memory, MiB, and the hugepages of 2 MiB that takes.
const MEMORY: u64 = 512;
pub(super) const HUGEPAGES: u64 = MEMORY / 2;

/// A running testpmd.
pub struct Testpmd {
    // Dropped in this order: guests hang up, testpmd ends, its folder goes.
    guests: Guests,
    process: Process,
    _dir: TempDir,
    hugepages: bool,
}

impl Testpmd {
    /// Starts testpmd and connects two guests. It takes hugepages if there are enough.
    pub fn start(setup: Setup) -> Result<Self> {
        let program = program()?;
        let hugepages = machine::free_hugepages() >= HUGEPAGES;
        let dir = TempDir::with_prefix("vswitch-bench").map_err(Error::io("make a folder"))?;
        let args = arguments(&sockets(dir.path()), setup.placement, hugepages);
        let process = Process::start("testpmd", dir.path(), &program, &args)?;
        let guests = Guests::connect(setup, &sockets(dir.path()), false)
            .map_err(|error| process.explain(error))?;
        process.favour();
        Ok(Self {
            guests,
            process,
            _dir: dir,
            hugepages,
        })
    }
}

/// The program, if it is installed.
pub(super) fn program() -> Result<PathBuf> {
    machine::find_program(PROGRAM).ok_or(Error::Missing {
        program: PROGRAM,
        package: PACKAGE,
    })
}

/// What describes it: version and how it forwards.
pub(super) fn version() -> String {
    let version = machine::package_version(PACKAGE).unwrap_or_else(|| "unknown".into());
    format!("testpmd of {PACKAGE} {version}, vhost ports, io forwarding")
}

/// The arguments that make a vhost port of each socket, on which testpmd listens.
pub(super) fn ports(sockets: &[PathBuf]) -> impl Iterator<Item = String> {
    sockets.iter().enumerate().flat_map(|(number, socket)| {
        let device = format!("net_vhost{number},iface={}", socket.display());
        ["--vdev".into(), device]
    })
}

fn arguments(sockets: &[PathBuf; 2], placement: Placement, hugepages: bool) -> Vec<String> {
    let Placement { generator, worker } = placement;
    let memory: &[&str] = if hugepages {
        &["--in-memory"]
    } else {
        &["--no-huge", "--no-shconf", "--iova-mode=va"]
    };
    let mut args: Vec<String> = memory.iter().map(ToString::to_string).collect();
    args.extend(["--no-pci", "--no-telemetry", "-m"].map(String::from));
    args.extend([
        MEMORY.to_string(),
        "--lcores".into(),
        format!("0@{generator},1@{worker}"),
    ]);
    args.extend(ports(sockets));
    let own = [
        "--",
        "-i",
        "--auto-start",
        "--forward-mode=io",
        "--no-mlockall",
    ];
    args.extend(own.map(String::from));
    args.push("--total-num-mbufs=32768".into());
    args
}

impl Contestant for Testpmd {
    fn name(&self) -> &'static str {
        "testpmd"
    }

    fn describe(&self) -> String {
        let memory = if self.hugepages {
            "hugepages"
        } else {
            "no hugepages"
        };
        format!("{}, {memory}", version())
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

    #[test]
    fn memory_flags_that_exclude_each_other_are_not_mixed() {
        let placement = Placement {
            generator: 2,
            worker: 5,
        };
        let sockets = sockets(std::path::Path::new("/d"));
        for hugepages in [false, true] {
            let args = arguments(&sockets, placement, hugepages);
            let has = |flag: &str| args.iter().any(|arg| arg == flag);
            assert_eq!(
                (has("--in-memory"), has("--no-huge")),
                (hugepages, !hugepages)
            );
            assert!(has("0@2,1@5") && has("net_vhost1,iface=/d/b.sock"));
        }
    }
}
