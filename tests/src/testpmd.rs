//! DPDK's testpmd as a guest: its virtio-user driver on a vhost-user socket, driven at its prompt.

use std::path::Path;
use std::time::Duration;

use vswitch_packet::MacAddr;

use crate::console::Console;
use crate::error::{Error, Result};
use crate::guest::Role;
use crate::machine;
use crate::process::{Process, Streams};
use crate::run_dir::RunDir;

const PROMPT: &str = "testpmd> ";
const START_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A running testpmd. Killed at the drop.
pub struct TestPmd {
    process: Process,
    console: Console,
}

/// A port's counts, by testpmd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PmdStats {
    /// Frames that came out of the switch.
    pub received: u64,
    /// Frames that went into the switch.
    pub sent: u64,
}

impl TestPmd {
    /// Starts testpmd with one virtio-user port on `socket`, in the given role, and waits for the prompt. `options` are
    /// more of the driver's, such as `queues=2` or `packed_vq=0`. It needs no hugepages: memory is shared by memfd.
    pub fn start(
        dir: &RunDir,
        name: &str,
        socket: &Path,
        role: Role,
        mac: MacAddr,
        options: &[&str],
    ) -> Result<Self> {
        machine::need_program("dpdk-testpmd", "dpdk-dev")?;
        let mut device = format!("net_virtio_user0,path={},mac={mac}", socket.display());
        if role == Role::Server {
            device.push_str(",server=1");
        }
        for option in options {
            device.push(',');
            device.push_str(option);
        }
        let prefix = format!("{name}-{}", std::process::id());
        let args = [
            "dpdk-testpmd",
            "--vdev",
            &device,
            "--no-pci",
            "--no-telemetry",
            "--no-huge",
            "-m",
            "256",
            "--file-prefix",
            &prefix,
            "--lcores",
            "0@0,1@0",
            "--",
            "-i",
            "--total-num-mbufs=4096",
            "--no-mlockall",
        ];
        let mut process = Process::start_with(
            dir,
            name,
            "stdbuf",
            ["-o0"].iter().chain(&args),
            Streams::Driven,
        )?;
        let pipes = process
            .take_pipes()
            .ok_or_else(|| Error::Failed("testpmd without pipes".into()))?;
        let mut console = Console::new(name, pipes, &dir.join(format!("{name}-console.log")))?;
        console.wait_for_text(PROMPT, START_LIMIT)?;
        Ok(Self { process, console })
    }

    /// Runs a command at the prompt and returns what it prints.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.console.skip_to_now();
        self.console.write(&format!("{command}\n"))?;
        self.console.wait_for_text(PROMPT, COMMAND_LIMIT)
    }

    /// The port's counts.
    pub fn stats(&mut self) -> Result<PmdStats> {
        let text = self.run("show port stats 0")?;
        parse_stats(&text)
            .ok_or_else(|| Error::Failed(format!("testpmd's counts make no sense:\n{text}")))
    }

    /// Whether the port's link is up.
    pub fn link_up(&mut self) -> Result<bool> {
        Ok(self.run("show port info 0")?.contains("Link status: up"))
    }

    /// Kills it without a warning.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn parse_stats(text: &str) -> Option<PmdStats> {
    let number = |label: &str| {
        text.split_once(label)?
            .1
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    Some(PmdStats {
        received: number("RX-packets:")?,
        sent: number("TX-packets:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let text = "  ##### NIC statistics for port 0  #####\n  RX-packets: 12         RX-missed: 0   RX-bytes:  7\n  \
                    RX-errors: 0\n  TX-packets: 34         TX-errors: 0          TX-bytes:  8\n";
        assert_eq!(
            parse_stats(text),
            Some(PmdStats {
                received: 12,
                sent: 34
            })
        );
        assert_eq!(parse_stats("Invalid port"), None);
    }
}
