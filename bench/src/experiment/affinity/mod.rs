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
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::{Head, columns};
use crate::stats::Summary;
use crate::{Options, Result};
use model::{Outcome, Run};
use policy::{Calisto, Modulo, Ours, Policy};
use state::Costs;
pub use state::Medians;
pub use steering::Steering;

mod model;
mod policy;
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

impl Case {
    fn of(&self, name: &str, figure: impl Fn(&Sample) -> f64) -> Option<Summary> {
        let (_, samples) = self.samples.iter().find(|(known, _)| known == name)?;
        Summary::of(samples.iter().map(figure))
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |(name, samples): &(String, Vec<Sample>)| {
            let us = |figure: fn(&Sample) -> f64| {
                self.of(name, figure)
                    .map_or(String::new(), |of| format!("{:.3}", of.figure / 1e3))
            };
            let moved = self.of(name, |sample| sample.moved_percent);
            let sum = |figure: fn(&Sample) -> u64| samples.iter().map(figure).sum::<u64>();
            vec![
                self.label.clone(),
                name.clone(),
                us(|sample| sample.p50_ns),
                us(|sample| sample.p99_ns),
                moved.map_or(String::new(), |of| format!("{:.1}", of.figure)),
                sum(|sample| sample.reordered).to_string(),
                sum(|sample| sample.lost).to_string(),
                us(|sample| sample.cold_ns),
                sum(|sample| sample.cold_lost).to_string(),
            ]
        };
        self.samples.iter().map(row).collect()
    }

    /// Whether the targets are met.
    fn verdicts(&self) -> Vec<String> {
        let ratio = |figure: fn(&Sample) -> f64| {
            let (ours, theirs) = (self.of(Ours::NAME, figure)?, self.of(Modulo::NAME, figure)?);
            Some(100.0 * (ours.figure / theirs.figure - 1.0))
        };
        let p99 = ratio(|sample| sample.p99_ns).map(|percent| {
            let said = format!(
                "{}: p99 {percent:+.1} % against modulo, wanted {:+.0} %",
                self.label, -self.wanted
            );
            judged(&said, percent <= -self.wanted)
        });
        let cold = ratio(|sample| sample.cold_ns).map(|percent| {
            let said = format!(
                "{}: mean at cold start {percent:+.1} % against modulo, wanted at most +2 %",
                self.label
            );
            judged(&said, percent <= 2.0)
        });
        p99.into_iter().chain(cold).collect()
    }
}

fn judged(said: &str, met: bool) -> String {
    let word = if met { "met" } else { "NOT met" };
    format!("{said}: {word}.\n")
}

impl Report {
    /// The median over rounds of a cost of steering.
    fn steering(&self, figure: impl Fn(&Steering) -> f64) -> f64 {
        Summary::of(self.steering.iter().map(figure)).map_or(0.0, |of| of.figure)
    }

    fn state(&self, figure: impl Fn(&Medians) -> f64) -> f64 {
        Summary::of(self.state.iter().map(figure)).map_or(0.0, |of| of.figure)
    }

    fn costs(&self) -> String {
        let disturbed: u64 = self.state.iter().map(|of| of.disturbed).sum();
        let first = |figure: fn(&Steering) -> f64| self.steering(figure);
        let churned = self.steering.first().map_or(0, |of| of.churned);
        format!(
            "State of 256 B, ns: here {:.0}, fetched from another target {:.0}, new {:.0} ({disturbed} samples not counted).\n\
             Steering, ns: hash {:.1} (64 bits {:.1}), select and note {:.1}, beside pins {:.1}, pinned {:.1}; hash, select and \
             note {:.1}, with pins {:.1}.\n\
             modulo {:.1}; Calisto's table {:.1} with {FLOWS} flows in it, new flows {:.1}.\n\
             {churned} flows come and go, {FLOWS} at a time, one in eight learned: {:.1} ns in the first tenth, {:.1} in the last.\n",
            self.state(|of| of.hit_ns),
            self.state(|of| of.moved_ns),
            self.state(|of| of.fresh_ns),
            first(|of| of.hash),
            first(|of| of.hash64),
            first(|of| of.select),
            first(|of| of.select_unpinned),
            first(|of| of.select_pinned),
            first(|of| of.whole),
            first(|of| of.whole_pins),
            first(|of| of.modulo),
            first(|of| of.calisto),
            first(|of| of.calisto_new),
            first(|of| of.churn.0),
            first(|of| of.churn.1),
        )
    }

    fn verdicts(&self) -> String {
        let ours = self.moved.iter().find(|(name, _)| name == Ours::NAME);
        let part = ours.and_then(|(_, steps)| steps.first()).copied();
        let part = 100.0 * part.unwrap_or(1.0);
        let select = self.steering(|of| of.select);
        let slower = self.steering(|of| 100.0 * (of.churn.1 / of.churn.0 - 1.0));
        let mut text = [
            judged(
                &format!("4 to 5 targets: {part:.1} % of flows move, wanted at most 21 %"),
                part <= 21.0,
            ),
            judged(
                &format!("steering: {select:.1} ns a packet, wanted at most 4"),
                select <= 4.0,
            ),
            judged(
                &format!("flows that come and go: {slower:+.1} % from first to last, wanted at most +10 %"),
                slower <= 10.0,
            ),
            judged(
                &format!(
                    "order at 90 % load: {} of {} packets, wanted 0 (of 10^8)",
                    self.soak.reordered, self.soak.packets
                ),
                self.soak.reordered == 0,
            ),
        ]
        .concat();
        for case in &self.cases {
            text += &case.verdicts().concat();
        }
        text
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        let heading = [
            "load", "", "p50 us", "p99 us", "moved %", "late", "lost", "cold us", "lost",
        ];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.cases.iter().flat_map(Case::rows));
        let steps = PHASES.windows(2).map(|p| format!("{}-{}", p[0], p[1]));
        let mut moved = vec![
            [String::from("flows moved, %")]
                .into_iter()
                .chain(steps)
                .collect(),
        ];
        moved.extend(self.moved.iter().map(|(name, parts)| {
            let parts = parts.iter().map(|part| format!("{:.1}", 100.0 * part));
            [name.clone()].into_iter().chain(parts).collect::<Vec<_>>()
        }));
        format!(
            "{}{}\n{}\n{}\nMedians over rounds, counts over all. Latency on a virtual clock with measured costs and {WORK_NS} ns of \
             work; cold: the first packet\nof every flow, mean. moved: packets whose flow's state was at another target; late: \
             done before an earlier one of the flow.\nOrder was watched at 90 % load: {} packets, {} late, {} lost, {} of moved \
             flows, {} buckets moved by idleness.\n\n{}",
            self.head.render(),
            columns(&rows, 2),
            columns(&moved, 1),
            self.costs(),
            self.soak.packets,
            self.soak.reordered,
            self.soak.lost,
            self.soak.moved,
            self.soak.weak_moves,
            self.verdicts(),
        )
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let group = |case: &Case| {
            let bars = names.iter().map(|name| case.of(name, |s| s.p99_ns / 1e3));
            (case.label.clone(), bars.collect())
        };
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "p99, us".into(),
            groups: self.cases.iter().map(group).collect(),
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(p99_ns: f64, cold_ns: f64) -> Sample {
        Sample {
            rate: 8e3,
            p50_ns: 100.0,
            p99_ns,
            moved_percent: 1.0,
            reordered: 0,
            lost: 0,
            cold_ns,
            cold_lost: 0,
        }
    }

    #[test]
    fn targets_are_judged_as_they_fall() {
        let mut case = cases().remove(0);
        case.samples[0].1.push(sample(800.0, 100.0));
        case.samples[1].1.push(sample(1000.0, 100.0));
        let verdicts = case.verdicts().concat();
        assert!(
            verdicts.contains("p99 -20.0 % against modulo, wanted -15 %: met"),
            "{verdicts}"
        );
        case.samples[0].1[0] = sample(900.0, 103.0);
        let verdicts = case.verdicts().concat();
        assert_eq!(verdicts.matches("NOT met").count(), 2, "{verdicts}");
        assert_eq!(case.rows().len(), 3);
    }

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
