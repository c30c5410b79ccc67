//! The command line.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::cpu::Placement;
use crate::{Error, Result};

/// Measures the switch against its peers, interleaved, in one run.
///
/// Takes the machine-wide lock for measurements and needs two CPUs to itself: run nothing else
/// meanwhile. Absolute figures hold for this machine on this day; compare the ratios.
#[derive(Parser, Debug, Clone)]
#[command(name = "vswitch-bench", version)]
pub struct Options {
    /// What to measure.
    #[arg(value_name = "NAME")]
    pub what: What,
    /// Fewer cases, fewer and shorter slices: a minute or two instead of ten or more.
    #[arg(long)]
    pub quick: bool,
    /// Write machine notes and every raw sample to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a plot to this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Whom to measure against, separated by commas. One that is not installed, or has no part in the experiment, is
    /// left out.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "ovs,ovs-flows,testpmd,mover,bridge"
    )]
    pub peers: Vec<Peer>,
    /// Only these cases, separated by commas: frame sizes (64B, 1500B, ...) and, where an experiment has
    /// them, imix, flows, macs, directions, touch, packed, disjoint, all, hot; in `interrupts` poisson, on-off,
    /// requests, mixed, flood; in `affinity` latency, order, churn; in `idle` silent,
    /// first, full, parts, requests [default: all].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cases: Vec<String>,
    /// How long `ndr` offers 90 % of the rate without loss, in seconds [default: 10; with --quick: 2].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub soak: Option<u32>,
    /// Packets over which `affinity` watches their order [default: 100000000; with --quick: 5000000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub packets: Option<u64>,
    /// Undisturbed slices (searches, for `ndr`) wanted of each contestant in each case [default: 7, for
    /// `ndr` and `latency` 5; with --quick: 5, 1 and 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// CPU of the generator and CPU of the contestants [default: the first two allowed].
    #[arg(long, value_name = "GENERATOR,WORKER", value_delimiter = ',')]
    pub cpus: Option<Vec<usize>>,
    /// Measure this program instead of the workspace's, which is built first.
    #[arg(long, value_name = "FILE")]
    pub vswitchd: Option<PathBuf>,
    /// Measure another build of vswitchd in the same run: what a change gives.
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
}

/// An experiment.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Show the experiments.
    List,
    /// Guest to switch to guest: frames per second by size, flows, addresses, directions, ring layout.
    Vvp,
    /// NIC to switch to guest and back: the same with a DPDK port on one side, both directions at once.
    Pvp,
    /// The bare mover by frame size: the limit, and what the generator itself costs.
    Mover,
    /// The highest rate without loss (RFC 2544, section 26.1), and a soak at 90 % of it.
    Ndr,
    /// How long frames take: one at a time, and at parts of the highest rate.
    Latency,
    /// Linux guest to switch to Linux guest: TCP with large segments, and ping, beside a kernel bridge and OVS.
    Tcp,
    /// Memory of the switch by number of ports, guest memory not counted.
    Memory,
    /// Processor time of the switch while its guests are silent, and what sleeping costs when they are not.
    Idle,
    /// Every rule for when a guest is interrupted: CPU, interrupts and delay over load, with a simulated guest that sleeps.
    Interrupts,
    /// The same with Linux guests: interrupts by their own count, their CPU, TCP and round trips.
    GuestInterrupts,
    /// Cycles that the switch takes for a frame, step by step, on one thread with its guests.
    Cycles,
    /// Two workers against one: guests in pairs, and all to all.
    Scale,
    /// Flows that change their target: latency, order and cost of steering beside modulo and a table of flows.
    Affinity,
    /// Rebalancing and scaling of up to 64 workers, simulated: load, delay, workers awake against a static table and RSS++.
    SteerSim,
}

/// Who the switch is measured against.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Open vSwitch on DPDK, learning addresses (package openvswitch-switch-dpdk).
    Ovs,
    /// The same with OpenFlow rules from port to port.
    OvsFlows,
    /// DPDK's testpmd between two vhost ports, io mode: forwards without looking (package dpdk-dev).
    Testpmd,
    /// One copy from ring to ring in our own process, no switching: the limit.
    Mover,
    /// The kernel's bridge with tap devices; only where guests are real.
    Bridge,
    /// Nobody.
    None,
}

impl Options {
    /// Undisturbed slices wanted of each contestant, by default so many in a full and in a quick run.
    pub fn rounds_or(&self, full: u32, quick: u32) -> u32 {
        self.rounds.unwrap_or(if self.quick { quick } else { full })
    }

    /// Whether a peer is to take part.
    pub fn wants(&self, peer: Peer) -> bool {
        self.peers.contains(&peer)
    }

    /// Which CPUs are used.
    pub fn placement(&self) -> Result<Placement> {
        match self.cpus.as_deref() {
            None => Placement::first_two(),
            Some(&[generator, worker]) => Placement::new(generator, worker),
            Some(_) => Err(Error::Usage(
                "--cpus takes two numbers: the generator's CPU and the contestants'".into(),
            )),
        }
    }
}

/// The experiments with their descriptions, a line each.
pub(crate) fn list() -> String {
    let mut text = String::new();
    for what in What::value_variants() {
        if let (Some(value), true) = (what.to_possible_value(), *what != What::List) {
            let help = value
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:16} {help}", value.get_name());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let names = list();
        let names = names.lines().filter_map(|line| line.split(' ').next());
        assert!(names.eq([
            "vvp",
            "pvp",
            "mover",
            "ndr",
            "latency",
            "tcp",
            "memory",
            "idle",
            "interrupts",
            "guest-interrupts",
            "cycles",
            "scale",
            "affinity",
            "steer-sim"
        ]));
    }

    #[test]
    fn peers_and_cpus() {
        let parse =
            |args: &[&str]| Options::try_parse_from([&["vswitch-bench", "vvp"], args].concat());
        let options = parse(&["--peers", "mover", "--cpus", "1,0", "--quick"]).unwrap();
        assert!(options.wants(Peer::Mover) && !options.wants(Peer::Testpmd));
        assert_eq!(options.rounds_or(7, 5), 5);
        assert!(parse(&["--cpus", "1"]).unwrap().placement().is_err());
        assert!(parse(&["--peers", "moover"]).is_err());
        assert!(parse(&["--rounds", "0"]).is_err());
        let options = parse(&["--cases", "64B,flows", "--rounds", "2"]).unwrap();
        assert_eq!((options.cases.len(), options.rounds_or(7, 5)), (2, 2));
    }
}
