//! `affinity`: what it costs when flows change their target, with 700,000 of them and 4, 5, 8, 5 and 4 targets in turn.
//!
//! Three ways to steer: modulo, as in Shenango; Calisto's hash table as its paper has it; the switch's own. What a packet
//! costs is measured in real memory: with its flow's state at the target, at another, or nowhere yet ([`state`]), and the
//! steering itself ([`steering`]). Latencies come from queues on a virtual clock that serve with costs drawn from those samples
//! ([`model`]). A shortcoming of that: no core's speed depends on what others do.
//!
//! Two kinds of load: rates of the paper, and parts of what four targets can do. At the paper's rates these targets are idle
//! most of the time, so the figure there is the cost of one packet alone.

use serde::Serialize;

use crate::cpu::Pinned;
use crate::lock::Lock;
use crate::machine::Notes;
use crate::report::head::Head;
use crate::{Options, Result};
use model::{Outcome, Run};
use policy::{Calisto, Modulo, Ours, Policy};
use state::Costs;
pub use state::Medians;
pub use steering::Steering;

mod model;
mod policy;
mod report;
mod state;
mod steering;

/// Flows alive.
const FLOWS: u32 = 700_000;
/// Targets in turn.
const PHASES: [u16; 5] = [4, 5, 8, 5, 4];
/// Rates of the paper, in packets a second.
const RATES: [f64; 3] = [8e3, 11e3, 14e3];
/// Parts of what four targets can do.
const LOADS: [f64; 1] = [0.5];
/// The load under which order is watched.
const SOAK_LOAD: f64 = 0.9;
/// What a packet costs besides its state and steering, in ns: about what the switch spends on a frame.
const WORK_NS: u64 = 100;
/// Packets with one number of targets while order is watched.
const SOAK_PHASE: u64 = 1_000_000;
/// Samples of every kind of cost.
const SAMPLES: u32 = 200_000;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// Median costs of state, by round.
    pub state: Vec<Medians>,
    /// Costs of steering, by round.
    pub steering: Vec<Steering>,
    /// Part of the flows that change their target at each step of the cycle: by who steers.
    pub moved: Vec<(String, Vec<f64>)>,
    /// By load.
    pub cases: Vec<Case>,
    /// Order, watched for long.
    pub soak: Soak,
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
    /// Median latency over the cycle, in ns.
    pub p50_ns: f64,
    /// And its 99th percentile.
    pub p99_ns: f64,
    /// Packets that had to fetch their flow's state, in percent.
    pub moved_percent: f64,
    /// Packets done before an earlier one of the same flow.
    pub reordered: u64,
    /// Packets that found no room in the queue.
    pub lost: u64,
    /// Mean latency of the first packets of all flows, in ns.
    pub cold_ns: f64,
    /// First packets that found no room.
    pub cold_lost: u64,
}

/// The switch's steering at 90 % load through many cycles.
#[derive(Clone, Debug, Serialize)]
pub struct Soak {
    /// Packets.
    pub packets: u64,
    /// Done before an earlier one of the same flow.
    pub reordered: u64,
    /// Not done at all.
    pub lost: u64,
    /// Packets whose flow had moved.
    pub moved: u64,
    /// Buckets moved because of 10 ms without a packet, though the last one was still waiting.
    pub weak_moves: u64,
}

/// Measures everything.
pub fn run(options: &Options) -> Result<Report> {
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, false);
    let _pinned = Pinned::to(placement.worker)?;
    let (packets, distinct) = match options.quick {
        true => (400_000, 2_000_000),
        false => (2_000_000, 10_000_000),
    };
    let soak_packets = options.packets.unwrap_or(match options.quick {
        true => 5_000_000,
        false => 100_000_000,
    });
    let mut report = Report {
        head: Head {
            experiment: "affinity".into(),
            title: format!("{FLOWS} flows, {PHASES:?} targets in turn, {packets} packets each"),
            machine,
            contestants: vec![about::<Ours>(), about::<Modulo>(), about::<Calisto>()],
            skipped: Vec::new(),
        },
        state: Vec::new(),
        steering: Vec::new(),
        moved: vec![steps::<Ours>(), steps::<Modulo>(), steps::<Calisto>()],
        cases: cases(),
        soak: Soak {
            packets: 0,
            reordered: 0,
            lost: 0,
            moved: 0,
            weak_moves: 0,
        },
    };
    for round in 0..options.rounds_or(5, 3) {
        eprintln!("round {}: costs", round + 1);
        let costs = state::measure(FLOWS, SAMPLES, u64::from(round) + 1);
        let steering = steering::measure(FLOWS, distinct);
        for (number, case) in report.cases.iter_mut().enumerate() {
            eprintln!("round {}: {}", round + 1, case.label);
            let rate = rate(number, &costs);
            let seed = u64::from(round) << 8 | number as u64;
            let work = |ns: f64| WORK_NS + ns.round() as u64;
            let overheads = [
                (work(steering.select), work(steering.select)),
                (work(steering.modulo), work(steering.modulo)),
                (work(steering.calisto_new), work(steering.calisto)),
            ];
            let samples = [
                cycle::<Ours>(&costs, overheads[0], rate, seed, packets),
                cycle::<Modulo>(&costs, overheads[1], rate, seed, packets),
                cycle::<Calisto>(&costs, overheads[2], rate, seed, packets),
            ];
            for ((_, all), sample) in case.samples.iter_mut().zip(samples) {
                all.push(sample);
            }
        }
        report.state.push(costs.medians());
        report.steering.push(steering);
        if round == 0 {
            eprintln!("order of {soak_packets} packets");
            report.soak = soak(&costs, soak_packets);
        }
    }
    Ok(report)
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
    let loads = LOADS.map(|load| case(format!("{} % load", load * 100.0), 25.0));
    rates.into_iter().chain(loads).collect()
}

/// The rate of a case, in packets a second.
fn rate(case: usize, costs: &Costs) -> f64 {
    let rates = RATES.into_iter();
    let all: Vec<f64> = rates
        .chain(LOADS.map(|load| load * capacity(costs)))
        .collect();
    all.get(case).copied().unwrap_or(RATES[0])
}

/// What four targets can do when no flow moves and steering costs nothing, in packets a second.
fn capacity(costs: &Costs) -> f64 {
    4e9 / (WORK_NS as f64 + costs.mean_hit())
}

fn cycle<P: Policy>(
    costs: &Costs,
    overhead: (u64, u64),
    rate: f64,
    seed: u64,
    packets: u64,
) -> Sample {
    let mut run = Run::new(P::new(PHASES[0]), costs, FLOWS, overhead, rate, seed);
    let cold = run.first_packets();
    let warm = run.cycle(&PHASES, packets);
    sample(rate, &cold, &warm)
}

fn sample(rate: f64, cold: &Outcome, warm: &Outcome) -> Sample {
    Sample {
        rate,
        p50_ns: warm.latency.quantile(0.5) as f64,
        p99_ns: warm.latency.quantile(0.99) as f64,
        moved_percent: 100.0 * warm.moved as f64 / warm.packets.max(1) as f64,
        reordered: cold.reordered + warm.reordered,
        lost: warm.lost,
        cold_ns: cold.latency.mean(),
        cold_lost: cold.lost,
    }
}

fn soak(costs: &Costs, packets: u64) -> Soak {
    let rate = SOAK_LOAD * capacity(costs);
    let overhead = (WORK_NS, WORK_NS);
    let mut run = Run::new(Ours::new(PHASES[0]), costs, FLOWS, overhead, rate, 7);
    let cycle = SOAK_PHASE.min(packets.div_ceil(PHASES.len() as u64));
    let mut soak = Soak {
        packets: 0,
        reordered: 0,
        lost: 0,
        moved: 0,
        weak_moves: 0,
    };
    while soak.packets < packets {
        let outcome = run.cycle(&PHASES, cycle);
        soak.packets += outcome.packets;
        soak.reordered += outcome.reordered;
        soak.lost += outcome.lost;
        soak.moved += outcome.moved;
    }
    soak.weak_moves = run.weak_moves();
    soak
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_parts_of_what_four_can_do() {
        let costs = Costs {
            hit: vec![300],
            ..Costs::default()
        };
        assert_eq!(capacity(&costs), 1e7);
        assert_eq!(rate(3, &costs), 5e6);
        assert_eq!(rate(0, &costs), 8e3);
        assert_eq!(cases().len(), RATES.len() + LOADS.len());
    }
}
