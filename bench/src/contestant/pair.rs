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

    /// Round trips one right after the other, as many as `count`: the mean time of one, milliseconds.
    pub fn ping_pong(&mut self, count: u32) -> Result<f64> {
        let command = format!("ping -A -q -c {count} {}", ADDRESSES[1]);
        let output = self.guests[0].run(&command)?;
        mean(&output).ok_or_else(|| {
            let what = format!("ping makes no sense: {output}");
            vswitch_tests::Error::Failed(what).into()
        })
    }

    /// What both guests' kernels have counted so far.
    pub fn counters(&mut self) -> Result<[Counters; 2]> {
        let [a, b] = &mut self.guests;
        let read = |guest: &mut Guest| -> Result<Counters> {
            let interrupts = guest.run("cat /proc/interrupts")?;
            let stat = guest.run("head -n 1 /proc/stat")?;
            Ok(Counters::parse(&interrupts, &stat))
        };
        Ok([read(a)?, read(b)?])
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

/// What a guest's kernel counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Interrupts of receive queues.
    pub input: u64,
    /// Interrupts of transmit queues.
    pub output: u64,
    /// Time its processor was not idle, hundredths of a second.
    pub busy: u64,
    /// All its processor's time, hundredths of a second.
    pub time: u64,
}

impl Counters {
    /// From `/proc/interrupts` and the first line of `/proc/stat`.
    fn parse(interrupts: &str, stat: &str) -> Self {
        let of = |queue: &str| -> u64 {
            let lines = interrupts.lines().filter(|line| {
                let name = line.split_whitespace().next_back();
                name.is_some_and(|name| name.starts_with("virtio") && name.contains(queue))
            });
            // A number for each processor, between the interrupt's own and its description.
            let numbers = lines.flat_map(|line| {
                let words = line.split_whitespace().skip(1);
                words.map_while(|word| word.parse::<u64>().ok())
            });
            numbers.sum()
        };
        let times: Vec<u64> = stat
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|time| time.parse().ok())
            .collect();
        let time: u64 = times.iter().sum();
        // Idle, and idle with something to wait for; what the host took is not the guest's either.
        let idle: u64 = [3, 4, 7].iter().filter_map(|place| times.get(*place)).sum();
        Self {
            input: of("-input."),
            output: of("-output."),
            busy: time - idle,
            time,
        }
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            input: self.input.saturating_sub(earlier.input),
            output: self.output.saturating_sub(earlier.output),
            busy: self.busy.saturating_sub(earlier.busy),
            time: self.time.saturating_sub(earlier.time),
        }
    }
}

/// The mean in the last line of what `ping` prints, milliseconds.
fn mean(output: &str) -> Option<f64> {
    let line = output.lines().find(|line| line.contains("min/avg/max"))?;
    let (_, times) = line.split_once('=')?;
    times.trim().split('/').nth(1)?.parse().ok()
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
        assert_eq!((mean(output), mean("no answer")), (Some(6.2), None));
    }

    #[test]
    fn counters_are_read_as_the_guest_writes_them() {
        let interrupts = "           CPU0       CPU1\n  1:  9  9   IO-APIC   1-edge      i8042\n \
             25:        100          1  PCI-MSIX-0000:00:03.0   1-edge      virtio0-input.0\n \
             26:         20          2  PCI-MSIX-0000:00:03.0   2-edge      virtio0-output.0\n \
             27:          3          0  PCI-MSIX-0000:00:04.0   1-edge      virtio1-input.0\n";
        let counters = Counters::parse(interrupts, "cpu  1 2 4 100 50 8 16 200 0 0");
        assert_eq!((counters.input, counters.output), (104, 22));
        assert_eq!((counters.busy, counters.time), (31, 381));
        let since = counters.since(Counters {
            input: 100,
            ..counters
        });
        assert_eq!((since.input, since.busy), (4, 0));
        assert_eq!(Counters::parse("", ""), Counters::default());
    }

    #[test]
    fn offloads_are_read() {
        let features = "Features for eth0:\nrx-checksumming: on [fixed]\ntx-checksumming: on\n\
             tcp-segmentation-offload: off\n\ttx-tcp-segmentation: off [fixed]\n";
        assert_eq!(offloads(features), "TSO off, checksum offload on");
        assert_eq!(offloads(""), "TSO unknown, checksum offload unknown");
    }
}
