//! Two real Linux guests with a way between them: a contestant's two ports, or a kernel bridge.
//!
//! Guests are booted once. They stand still with their way, and so cost nothing, except in their turn: QEMU stops them,
//! clock included, and a process that serves them is stopped after them.

use std::time::Duration;

use vswitch_packet::MacAddr;
use vswitch_tests::{Guest, GuestSpec, KernelBridge, Nic, Role, RunDir, iperf};

use super::host::{Host, Listener};
use crate::{Error, Result};

/// Where the guests are, and under what address.
const ADDRESSES: [&str; 2] = ["10.76.0.1", "10.76.0.2"];
/// How long the first ping may take: guests have booted, the contestant has connected.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Between two pings.
const PING_SECONDS: &str = "0.02";

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The first guest to the second.
    Forth,
    /// The second guest to the first.
    Back,
}

/// A way with its guests.
pub struct Pair {
    name: &'static str,
    about: String,
    // Dropped in this order: guests, what is between them, their folder.
    guests: [Guest; 2],
    way: Way,
    _dir: RunDir,
}

/// What is between the guests.
enum Way {
    Host(Box<Host>),
    Kernel { _bridge: KernelBridge },
}

impl Pair {
    /// Boots two guests on a contestant's two ports.
    pub fn on_host(name: &'static str, host: Host) -> Result<Self> {
        let role = match host.listener() {
            Listener::Contestant => Role::Client,
            Listener::Guest => Role::Server,
        };
        let [a, b] = host.sockets() else {
            return Err(Error::Usage("two guests take two ports".into()));
        };
        let nics = [(a, 1), (b, 2)].map(|(socket, n)| Nic::vhost_user(socket, role, mac(n)));
        let about = host.about().to_owned();
        Self::boot(name, &about, nics, Way::Host(Box::new(host)))
    }

    /// Boots two guests on tap devices in a kernel bridge.
    pub fn on_bridge(name: &'static str) -> Result<Self> {
        let mut bridge = KernelBridge::new()?;
        let nics = [
            Nic::tap(bridge.tap()?, mac(1)),
            Nic::tap(bridge.tap()?, mac(2)),
        ];
        let about = "kernel bridge between tap devices, served by QEMU";
        Self::boot(name, about, nics, Way::Kernel { _bridge: bridge })
    }

    fn boot(name: &'static str, about: &str, nics: [Nic; 2], way: Way) -> Result<Self> {
        let dir = RunDir::new()?;
        let [a, b] = nics;
        let spec = |n: usize, nic| {
            let address = format!("{}/24", ADDRESSES[n]);
            GuestSpec::new(format!("{name}-{}", n + 1)).nic(nic, &address)
        };
        let mut guests = Guest::boot_all(&dir, [&spec(0, a), &spec(1, b)])?;
        guests[0].wait_for_answer(ADDRESSES[1], ANSWER_LIMIT)?;
        let offloads = offloads(&guests[0].run("ethtool -k eth0")?);
        Ok(Self {
            name,
            about: format!("{about}; guests: {offloads}"),
            guests,
            way,
            _dir: dir,
        })
    }

    /// What tables call the way.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What exactly the way is, and what its guests leave to it.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Stops guests and way.
    pub fn stop(&mut self) -> Result<()> {
        for guest in &self.guests {
            guest.pause()?;
        }
        match &mut self.way {
            Way::Host(host) => host.stop(),
            Way::Kernel { .. } => Ok(()),
        }
    }

    /// Lets both run on, and waits until the guests reach each other.
    pub fn resume(&mut self) -> Result<()> {
        if let Way::Host(host) = &mut self.way {
            host.resume()?;
        }
        for guest in &self.guests {
            guest.resume()?;
        }
        Ok(self.guests[0].wait_for_answer(ADDRESSES[1], ANSWER_LIMIT)?)
    }

    /// One TCP connection for so many seconds; returns what arrived, payload bits per second.
    pub fn stream(&mut self, direction: Direction, seconds: u32) -> Result<f64> {
        let options = match direction {
            Direction::Forth => "",
            Direction::Back => "-R",
        };
        let [a, b] = &mut self.guests;
        Ok(iperf(a, b, ADDRESSES[1], seconds, options)?.bits_per_second)
    }

    /// Round trip times, milliseconds, one after the other.
    pub fn ping(&mut self, count: u32) -> Result<Vec<f64>> {
        let command = format!("ping -i {PING_SECONDS} -c {count} {}", ADDRESSES[1]);
        let output = self.guests[0].run(&command)?;
        let times = times(&output);
        if times.is_empty() {
            let what = format!("ping makes no sense: {output}");
            return Err(vswitch_tests::Error::Failed(what).into());
        }
        Ok(times)
    }

    /// Says more about an error: what the way's log has to tell.
    pub fn explain(&self, error: Error) -> Error {
        match &self.way {
            Way::Host(host) => host.explain(&error),
            Way::Kernel { .. } => error,
        }
    }
}

fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0x76, 0, n])
}

/// Which of a NIC's offloads are on, from what `ethtool -k` prints.
fn offloads(features: &str) -> String {
    let state = |feature: &str| {
        let value = features.lines().find_map(|line| {
            let (name, value) = line.trim().split_once(':')?;
            (name == feature).then(|| value.trim())
        });
        match value {
            Some(value) if value.starts_with("on") => "on",
            Some(_) => "off",
            None => "unknown",
        }
    };
    format!(
        "TSO {}, checksum offload {}",
        state("tcp-segmentation-offload"),
        state("tx-checksumming")
    )
}

/// The times in what `ping` prints, milliseconds.
fn times(output: &str) -> Vec<f64> {
    let time = |line: &str| {
        let (_, rest) = line.split_once(" time=")?;
        rest.strip_suffix(" ms")?.parse().ok()
    };
    output.lines().filter_map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_read() {
        let output = "PING 10.0.0.2 (10.0.0.2): 56 data bytes\n\
             64 bytes from 10.0.0.2: seq=0 ttl=64 time=0.354 ms\n\
             64 bytes from 10.0.0.2: seq=1 ttl=64 time=12.100 ms\n\n\
             round-trip min/avg/max = 0.354/6.2/12.1 ms";
        assert_eq!(times(output), [0.354, 12.1]);
        assert!(times("ping: bad address").is_empty());
    }

    #[test]
    fn offloads_are_read() {
        let features = "Features for eth0:\nrx-checksumming: on [fixed]\ntx-checksumming: on\n\
             tcp-segmentation-offload: off\n\ttx-tcp-segmentation: off [fixed]\n";
        assert_eq!(offloads(features), "TSO off, checksum offload on");
        assert_eq!(offloads(""), "TSO unknown, checksum offload unknown");
    }
}
