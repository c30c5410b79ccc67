//! `affinity`: what it costs when flows change their target, with 700,000 of them and 4, 5, 8, 5 and 4 targets in turn.
//!
//! Three ways to steer: modulo, as in Shenango; Calisto's hash table as its paper has it; the switch's own. Every target keeps
//! 256 bytes of state a flow in a table of its own, which each packet reads and writes; targets share nothing, so a flow's
//! state goes from table to table when the flow does. That is done twice:
//!
//! - for real ([`live`]): eight targets on two CPUs, a thread each, real tables, messages and clocks. Half of the moves stay on
//!   a CPU there, and four to eight targets share what two CPUs can do.
//! - replayed ([`replay`]): eight targets on a CPU each, on a virtual clock, with times drawn from what the real threads took.
//!
//! Two kinds of load: rates of the paper, at which targets are idle most of the time, so that what is seen is the cost of one
//! packet alone; and half of what four targets can do, where packets wait for one another.
//!
//! Beside it what steering itself costs ([`steering`]), order over very many packets ([`order`]), and ten million flows that
//! come and go ([`churn`]).

use serde::Serialize;

use crate::cpu::favour_self;
use crate::lock::Lock;
use crate::machine::Notes;
use crate::report::head::Head;
use crate::{Error, Options, Result};
pub use churn::Churn;
pub use costs::Medians;
pub use order::Order;
use policy::{Calisto, Modulo, Ours, Policy};
use rounds::Bench;
pub use steering::Steering;

mod churn;
mod costs;
mod flows;
mod live;
mod order;
mod policy;
mod replay;
mod report;
mod ring;
mod rounds;
mod steering;
mod store;
mod window;

/// Flows alive.
const FLOWS: u32 = 700_000;
/// Targets in turn.
const PHASES: [u16; 5] = [4, 5, 8, 5, 4];
/// Rates of the paper, in packets a second.
const RATES: [f64; 3] = [8e3, 11e3, 14e3];
/// Part of what four targets can do.
const LOAD: f64 = 0.5;
/// What a packet costs besides its state and steering, in ns: about what the switch spends on a frame.
const WORK_NS: u64 = 100;
/// Packets that a queue has room for.
const QUEUE: usize = 1024;
/// Messages that a ring between two CPUs has room for: few, so that it stays in the cache.
const MESSAGES: usize = 64;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// How.
    pub settings: Settings,
    /// Part of the flows that change their target at each step of the cycle: by who steers.
    pub moved: Vec<(String, Vec<f64>)>,
    /// What the machine was like, by round.
    pub rounds: Vec<Round>,
    /// Eight targets on two CPUs, by load.
    pub live: Vec<Case>,
    /// Eight targets on as many, on a virtual clock, by load.
    pub replay: Vec<Case>,
    /// Order, watched for long.
    pub order: Vec<Order>,
    /// Flows that come and go.
    pub churn: Option<Churn>,
}

/// Lengths of things.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settings {
    /// How long each number of targets lasts, in seconds, on two CPUs.
    pub phase_seconds: f64,
    /// Packets with each number of targets, replayed.
    pub phase_packets: u64,
    /// A packet's work, ns.
    pub work_ns: u64,
}

/// What a round was measured on, and what steps took in it.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Nanoseconds that a cache line takes from CPU to CPU, before and after.
    pub bounce_ns: (f64, f64),
    /// Packets a second that four targets on the two CPUs can do.
    pub capacity: f64,
    /// Times of steps at the paper's rates.
    pub idle: Medians,
    /// And at half load.
    pub busy: Medians,
    /// Costs of steering.
    pub steering: Steering,
}

/// All who steer, under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What tables call it.
    pub label: String,
    /// What the switch's 99th percentile is to be under modulo's, in percent.
    pub wanted: f64,
    /// By who steers, and by round.
    pub samples: Vec<(String, Vec<Sample>)>,
}

/// One cycle of one way to steer.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Packets a second.
    pub rate: f64,
    /// Mean latency over the cycle, in ns.
    pub mean_ns: f64,
    /// Percentiles of it: 50, 90, 99.
    pub percentiles_ns: [f64; 3],
    /// Packets.
    pub packets: u64,
    /// Packets that had to fetch their flow's state, in percent.
    pub fetched_percent: f64,
    /// Packets done after a later one of the same flow.
    pub reordered: u64,
    /// Packets that found no room in the queue.
    pub lost: u64,
    /// Mean latency of the first packets of all flows, in ns, where that was measured.
    pub cold_ns: Option<f64>,
    /// Windows of half a millisecond that count, because both threads ran all the time, in percent; the clock of a replay is its own.
    pub calm_percent: Option<f64>,
    /// Why it does not count, if it does not.
    pub discarded: Option<String>,
}

/// What is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    latency: bool,
    order: bool,
    churn: bool,
}

impl Parts {
    fn of(names: &[String]) -> Result<Self> {
        let all = names.is_empty();
        let known = ["latency", "order", "churn"];
        if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
            let known = known.join(", ");
            return Err(Error::Usage(format!(
                "--cases {name}: here there are {known}"
            )));
        }
        let has = |name: &str| all || names.iter().any(|given| given == name);
        Ok(Self {
            latency: has("latency"),
            order: has("order"),
            churn: has("churn"),
        })
    }
}

/// Measures everything, or what is asked for.
pub fn run(options: &Options) -> Result<Report> {
    let parts = Parts::of(&options.cases)?;
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, favour_self());
    let settings = match options.quick {
        true => Settings::of(0.3, 400_000),
        false => Settings::of(0.5, 2_000_000),
    };
    let watched = options.packets.unwrap_or(match options.quick {
        true => 5_000_000,
        false => 100_000_000,
    });
    let mut report = Report {
        head: Head {
            experiment: "affinity".into(),
            title: format!("{FLOWS} flows, {PHASES:?} targets in turn"),
            machine,
            contestants: vec![about::<Ours>(), about::<Modulo>(), about::<Calisto>()],
            skipped: Vec::new(),
        },
        settings,
        moved: vec![steps::<Ours>(), steps::<Modulo>(), steps::<Calisto>()],
        rounds: Vec::new(),
        live: cases(),
        replay: cases(),
        order: Vec::new(),
        churn: None,
    };
    if parts.latency || parts.order {
        let mut bench = Bench::new(placement, settings);
        if parts.latency {
            for round in 0..options.rounds_or(5, 3) {
                bench.round(round, &mut report)?;
            }
        }
        if parts.order {
            report.order = order::measure(&mut bench, watched)?;
        }
    }
    if parts.churn {
        let _pinned = crate::cpu::Pinned::to(placement.worker)?;
        let distinct = if options.quick { 2_000_000 } else { 10_000_000 };
        eprintln!("{distinct} flows come and go");
        report.churn = Some(churn::measure(FLOWS, distinct)?);
    }
    Ok(report)
}

impl Settings {
    fn of(phase_seconds: f64, phase_packets: u64) -> Self {
        Self {
            phase_seconds,
            phase_packets,
            work_ns: WORK_NS,
        }
    }
}

fn about<P: Policy>() -> (String, String) {
    (P::NAME.into(), P::ABOUT.into())
}

/// The part of flows moved by each change of the cycle.
fn steps<P: Policy>() -> (String, Vec<f64>) {
    let pairs = PHASES.windows(2);
    let parts = pairs.map(|pair| policy::moved::<P>(pair[0], pair[1], FLOWS));
    (P::NAME.into(), parts.collect())
}

fn cases() -> Vec<Case> {
    let names = [Ours::NAME, Modulo::NAME, Calisto::NAME];
    let case = |label: String, wanted| Case {
        label,
        wanted,
        samples: names.map(|name| (name.to_owned(), Vec::new())).to_vec(),
    };
    let rates = RATES.map(|rate| case(format!("{} kpps", rate / 1e3), 15.0));
    let half = case(format!("{} % load", LOAD * 100.0), 25.0);
    rates.into_iter().chain([half]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_picked_by_name() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Parts::of(&names)
        };
        let all = of(&[]).unwrap();
        assert!(all.latency && all.order && all.churn);
        let one = of(&["churn"]).unwrap();
        assert!(!one.latency && !one.order && one.churn);
        assert!(of(&["64B"]).is_err());
        assert_eq!(cases().len(), RATES.len() + 1);
    }
}
