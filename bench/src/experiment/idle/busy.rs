//! What not polling costs where there is something to do: the first frame after silence, parts of the highest rate,
//! requests, and the highest rate; `busy-poll` adaptive, always and never, and adaptive with short sleeps allowed
//! (`max-sleep-usecs`), the same program otherwise.
//!
//! A tenth of the highest rate is offered in two ways. Evenly, a worker that forwards ten million frames a second has
//! one to do every microsecond, which is shorter than any sleep that waits for a kick. In trains as fast as they go, a
//! tenth of the time, the same frames leave it milliseconds of silence.

use std::path::Path;
use std::time::Duration;

use crate::contestant::host::Idle;
use crate::contestant::{Contestant, Near, Rings, Setup, Switch};
use crate::cpu::{Placement, favour_self};
use crate::cputime::{CpuClock, CpuUse};
use crate::generator::{Edge, FEATURES, Load, Paced, RING_SIZE, Timing, Wire};
use crate::histogram::Histogram;
use crate::interference::Limits;
use crate::machine::Notes;
use crate::report::{Case, Measure, Report, Settings};
use crate::rounds::{Schedule, in_turn};
use crate::sample::{Detail, Sample};
use crate::{Options, Result, wake};

use super::super::{Conditions, Watcher, rate_slice, slice, undisturbed_rate, watched};
use super::verdict;

/// Length of every frame, bytes, and flows.
const LOAD: (usize, u32) = (64, 16);
/// Nothing happens for so long before a first frame.
const SILENCE: Duration = Duration::from_millis(20);
/// First frames of a slice.
const FIRST: u32 = 100;
const QUICK_FIRST: u32 = 30;
/// Trains: a tenth of the time.
const TRAINS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(9));
/// Slices of the highest rate in a round: it is to be known within a percent.
const FULL: u32 = 4;
const TIMING: Timing = Timing {
    warm_ms: 100,
    window_ms: 1000,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 50,
    window_ms: 400,
};

/// Who takes part; the first is compared with the others.
const MANNERS: [Idle; 5] = [
    Idle::Adaptive,
    Idle::Polls,
    Idle::Sleeps,
    Idle::Naps,
    Idle::LongNaps,
];
/// Who only wakes a thread.
pub(super) const WAKE_UP: &str = "wake-up";
/// Place of the one that always polls, whose highest rate the others are offered a part of.
const POLLS: usize = 1;

const TIMES: [Measure; 2] = [
    Measure::quantile("p50", 0.5),
    Measure::quantile("p99", 0.99),
];
const PART: [Measure; 4] = [
    Measure::median("CPU", "%"),
    TIMES[0],
    TIMES[1],
    Measure::plain("lost", "part"),
];
const ALONE: [Measure; 3] = [TIMES[0], TIMES[1], Measure::median("CPU", "%")];
const USED: [Measure; 2] = [Measure::median("CPU", "%"), Measure::plain("lost", "part")];
const RATE: [Measure; 1] = [Measure::median("", "Mpps")];

/// What picks cases.
pub(super) const TAGS: [&str; 4] = ["first", "full", "parts", "requests"];

/// A load.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum What {
    /// Single frames after silence.
    First,
    /// As many frames as get through.
    Full,
    /// A part of that, evenly.
    Part(f64),
    /// A tenth of the time all of it.
    Trains,
    /// A frame when the one before has arrived.
    OneByOne,
}

impl What {
    /// All of them, in the order in which they are measured.
    pub(super) const ALL: [Self; 7] = [
        Self::First,
        Self::Full,
        Self::Part(0.01),
        Self::Part(0.1),
        Self::Part(0.5),
        Self::Trains,
        Self::OneByOne,
    ];

    /// What picks it.
    fn tag(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Full => "full",
            Self::Part(_) | Self::Trains => "parts",
            Self::OneByOne => "requests",
        }
    }

    /// Those asked for; parts want to know of what.
    fn picked(wanted: &[String]) -> Vec<Self> {
        let named = |tag: &str| wanted.iter().any(|wanted| wanted == tag);
        let picked = |what: &Self| {
            wanted.is_empty()
                || named(what.tag())
                || (*what == Self::Full && named(Self::Trains.tag()))
        };
        Self::ALL.into_iter().filter(picked).collect()
    }

    pub(super) fn label(self) -> String {
        match self {
            Self::First => "first frame after 20 ms of silence".into(),
            Self::Full => "as fast as it goes".into(),
            Self::Part(part) => format!("{:.0} % of the highest rate, evenly", part * 100.0),
            Self::Trains => "10 % of the highest rate, 1 ms of 10".into(),
            Self::OneByOne => "one frame at a time".into(),
        }
    }

    fn measures(self) -> &'static [Measure] {
        match self {
            Self::First => &TIMES,
            Self::Full => &RATE,
            Self::Part(_) => &PART,
            Self::Trains => &USED,
            Self::OneByOne => &ALONE,
        }
    }
}

/// Measures all of them. The lock is taken.
pub(super) fn run(
    options: &Options,
    program: &Path,
    placement: Placement,
    machine: Notes,
) -> Result<Report> {
    favour_self();
    let schedule = Schedule::new(options.rounds_or(7, 3));
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    let first = if options.quick { QUICK_FIRST } else { FIRST };
    let limits = Limits::default();
    let setup = Setup {
        placement,
        rings: Rings::Split,
        jumbo: false,
        near: Near::Guest,
    };
    let mut switches = Vec::new();
    for idle in MANNERS {
        let mut switch = Switch::with(idle.switch(), program, setup, idle)?;
        switch.stop()?;
        switches.push(switch);
    }
    let ground = Ground {
        placement,
        limits,
        timing,
        load: Load::new(LOAD.0, LOAD.1),
        first,
        cases: What::picked(&options.cases),
    };
    let mut cases = schedule.rounds(|round| {
        eprintln!("busy-poll, round {}", round + 1);
        ground.round(&mut switches, round)
    })?;
    let mut contestants: Vec<(String, String)> = switches
        .iter()
        .map(|s| (s.name().to_owned(), s.describe()))
        .collect();
    contestants.push((
        WAKE_UP.into(),
        "no switch: a thread that slept in epoll on the worker's CPU, woken by an event descriptor"
            .into(),
    ));
    let names: Vec<String> = contestants.iter().map(|(name, _)| name.clone()).collect();
    merge_full(&ground.cases, &mut cases);
    let case = |(what, samples): (&What, Vec<Vec<Sample>>)| {
        let (load, measures) = (ground.load, what.measures());
        Case::new(what.label(), load, Rings::Split, measures, &names, samples)
    };
    let cases = ground.cases.iter().zip(cases).map(case).collect();
    let mut report = Report {
        experiment: "idle".into(),
        title: "busy-poll adaptive, always and never, and short sleeps allowed".into(),
        unit: "%".into(),
        machine,
        settings: Settings {
            schedule,
            timing,
            limits,
            ring_size: RING_SIZE,
            features: FEATURES,
        },
        contestants,
        skipped: Vec::new(),
        cases,
        remarks: Vec::new(),
    };
    report.remarks = verdict::of_load(&report);
    Ok(report)
}

/// Makes one case of those that are all of the highest rate.
fn merge_full(picked: &[What], cases: &mut Vec<Vec<Vec<Sample>>>) {
    let at = picked.iter().position(|what| *what == What::Full);
    let Some(first) = at else { return };
    for _ in 1..FULL {
        let more = cases.remove(first + 1);
        for (all, samples) in cases[first].iter_mut().zip(more) {
            all.extend(samples);
        }
    }
}

/// What all slices have in common.
struct Ground {
    placement: Placement,
    limits: Limits,
    timing: Timing,
    load: Load,
    first: u32,
    cases: Vec<What>,
}

impl Ground {
    /// A slice of everybody in each case; of the highest rate several, one case after the other.
    fn round(&self, switches: &mut [Switch], round: u32) -> Result<Vec<Vec<Sample>>> {
        let mut cases = Vec::new();
        let mut highest = 0.0;
        for what in &self.cases {
            match *what {
                What::First => {
                    let mut firsts = in_turn(round, switches, |_, s| self.first(s, round))?;
                    firsts.push(self.wake_up(round)?);
                    cases.push(firsts);
                }
                What::Full => {
                    for turn in 0..FULL {
                        cases.push(self.full(switches, round * FULL + turn)?);
                    }
                    let last = cases.last().and_then(|samples| samples.get(POLLS));
                    let value = last.and_then(|sample| sample.values.first());
                    highest = value.copied().unwrap_or_default() * 1e6;
                }
                load => {
                    let used = |_, s: &mut Switch| self.used(s, round, load, highest);
                    cases.push(in_turn(round, switches, used)?);
                }
            }
        }
        Ok(cases)
    }

    fn full(&self, switches: &mut [Switch], turn: u32) -> Result<Vec<Sample>> {
        in_turn(turn, switches, |_, switch| {
            undisturbed_rate(|| {
                let (limits, timing) = (self.limits, self.timing);
                rate_slice(switch, self.placement, limits, self.load, timing, turn)
            })
        })
    }

    fn first(&self, switch: &mut Switch, round: u32) -> Result<Sample> {
        let ((histogram, paced), conditions) = slice(
            switch,
            self.placement,
            Some(self.limits),
            |wire, watcher| {
                let (mut latency, edge) = (Histogram::default(), |edge| watcher.edge(edge));
                let paced =
                    self.load
                        .after_silence(wire, SILENCE, self.first, &mut latency, edge)?;
                Ok((latency, paced))
            },
        )?;
        Ok(times(conditions, round, paced, histogram))
    }

    /// What waking somebody costs, without a switch.
    fn wake_up(&self, round: u32) -> Result<Sample> {
        let (histogram, conditions) = watched(self.placement, Some(self.limits), |_| {
            wake::cost(self.placement, SILENCE, self.first)
        })?;
        Ok(times(conditions, round, Paced::default(), histogram))
    }

    /// A load, how long its frames take unless they come in trains, and the processor time of the switch meanwhile.
    fn used(&self, switch: &mut Switch, round: u32, what: What, highest: f64) -> Result<Sample> {
        let pid = switch.pid();
        let (load, timing) = (self.load, self.timing);
        let work = |wire: &mut Wire, watcher: &mut Watcher| {
            let (mut clocks, mut latency) = (Vec::new(), Histogram::default());
            let edge = |edge| {
                // The clock is read outside of what the watcher sees.
                if edge == Edge::Opens {
                    clocks.push(CpuClock::read(pid));
                }
                watcher.edge(edge);
                if edge == Edge::IsOver {
                    clocks.push(CpuClock::read(pid));
                }
            };
            let paced = match what {
                What::Part(part) => {
                    load.paced(wire, part * highest, timing, Some(&mut latency), edge)?
                }
                What::Trains => load.trains(wire, TRAINS, timing, edge)?,
                _ => load.one_by_one(wire, timing, &mut latency, edge)?,
            };
            Ok((paced, CpuUse::between(clocks)?, latency))
        };
        let ((paced, cpu, histogram), conditions) =
            slice(switch, self.placement, Some(self.limits), work)?;
        let time = |q| histogram.quantile(q) as f64 / 1e3;
        let values = match what {
            What::Trains => vec![cpu.percent, paced.loss()],
            What::OneByOne => vec![time(0.5), time(0.99), cpu.percent],
            _ => vec![cpu.percent, time(0.5), time(0.99), paced.loss()],
        };
        let detail = Detail::Used {
            paced,
            cpu,
            histogram,
        };
        Ok(conditions.sample(round, values, detail))
    }
}

fn times(conditions: Conditions, round: u32, paced: Paced, histogram: Histogram) -> Sample {
    let values = [0.5, 0.99].map(|q| histogram.quantile(q) as f64 / 1e3);
    let detail = Detail::Latency {
        paced,
        windows: (1, 1),
        histogram,
    };
    conditions.sample(round, values.to_vec(), detail)
}
