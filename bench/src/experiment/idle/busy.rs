//! What not polling costs where there is something to do: the first frame after silence, a tenth of the highest rate,
//! and the highest rate; `busy-poll` adaptive, always and never, the same program otherwise.
//!
//! A tenth of the highest rate is offered in two ways. Evenly, a worker that forwards ten million frames a second has
//! one to do every microsecond, which is shorter than any sleep. In trains as fast as they go, a tenth of the time,
//! the same frames leave it milliseconds of silence.

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
const FIRST: u32 = 40;
const QUICK_FIRST: u32 = 15;
/// Part of the highest rate.
pub(super) const PART: f64 = 0.1;
/// Trains: a tenth of the time.
const TRAINS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(9));
const TIMING: Timing = Timing {
    warm_ms: 100,
    window_ms: 1000,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 50,
    window_ms: 400,
};

/// Who takes part; the first is compared with the others.
const MANNERS: [Idle; 3] = [Idle::Adaptive, Idle::Polls, Idle::Sleeps];
/// Who only wakes a thread.
pub(super) const WAKE_UP: &str = "wake-up";
/// Place of the one that always polls, whose highest rate the others are offered a part of.
const POLLS: usize = 1;

const FIRST_MEASURES: [Measure; 2] = [
    Measure::quantile("p50", 0.5),
    Measure::quantile("p99", 0.99),
];
const PART_MEASURES: [Measure; 2] = [Measure::median("CPU", "%"), Measure::plain("lost", "part")];
const FULL_MEASURES: [Measure; 1] = [Measure::median("", "Mpps")];

/// The cases, in the order of the report.
const LABELS: [&str; 4] = [
    "first frame after 20 ms of silence",
    "a tenth of the highest rate, evenly",
    "a tenth of the highest rate, 1 ms of 10",
    "as fast as it goes",
];

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
    };
    let cases = schedule.rounds(|round| {
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
    let measures: [&[Measure]; 4] = [
        &FIRST_MEASURES,
        &PART_MEASURES,
        &PART_MEASURES,
        &FULL_MEASURES,
    ];
    let cases = LABELS.iter().zip(measures).zip(cases);
    let case = |((label, measures), samples): ((&&str, &[Measure]), _)| {
        let label = (*label).to_owned();
        Case::new(label, ground.load, Rings::Split, measures, &names, samples)
    };
    let mut report = Report {
        experiment: "idle".into(),
        title: "busy-poll adaptive, always and never".into(),
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
        cases: cases.map(case).collect(),
        remarks: Vec::new(),
    };
    report.remarks = verdict::of_load(&report);
    Ok(report)
}

/// What all slices have in common.
struct Ground {
    placement: Placement,
    limits: Limits,
    timing: Timing,
    load: Load,
    first: u32,
}

impl Ground {
    /// A slice of everybody in each case.
    fn round(&self, switches: &mut [Switch], round: u32) -> Result<Vec<Vec<Sample>>> {
        let mut firsts = in_turn(round, switches, |_, switch| self.first(switch, round))?;
        firsts.push(self.wake_up(round)?);
        let full = in_turn(round, switches, |_, switch| {
            undisturbed_rate(|| {
                let (limits, timing) = (self.limits, self.timing);
                rate_slice(switch, self.placement, limits, self.load, timing, round)
            })
        })?;
        let highest = full[POLLS].values.first().copied().unwrap_or_default();
        let (load, timing) = (self.load, self.timing);
        let evenly = in_turn(round, switches, |_, switch| {
            self.used(switch, round, |wire, edge| {
                load.paced(wire, PART * highest * 1e6, timing, None, edge)
            })
        })?;
        let trains = in_turn(round, switches, |_, switch| {
            self.used(switch, round, |wire, edge| {
                load.trains(wire, TRAINS, timing, edge)
            })
        })?;
        Ok(vec![firsts, evenly, trains, full])
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

    /// A load, and the processor time of the switch meanwhile.
    fn used(
        &self,
        switch: &mut Switch,
        round: u32,
        offer: impl FnOnce(&mut Wire, &mut dyn FnMut(Edge)) -> Result<Paced>,
    ) -> Result<Sample> {
        let pid = switch.pid();
        let work = |wire: &mut Wire, watcher: &mut Watcher| {
            let mut clocks = Vec::new();
            let mut edge = |edge| {
                // The clock is read outside of what the watcher sees.
                if edge == Edge::Opens {
                    clocks.push(CpuClock::read(pid));
                }
                watcher.edge(edge);
                if edge == Edge::IsOver {
                    clocks.push(CpuClock::read(pid));
                }
            };
            let paced = offer(wire, &mut edge)?;
            Ok((paced, CpuUse::between(clocks)?))
        };
        let ((paced, cpu), conditions) = slice(switch, self.placement, Some(self.limits), work)?;
        let values = vec![cpu.percent, paced.loss()];
        Ok(conditions.sample(round, values, Detail::Used { paced, cpu }))
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
