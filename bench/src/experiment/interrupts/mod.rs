//! `interrupts`: every rule for when to call a guest, as a configuration of the same program, over load.
//!
//! The guest is the one of [`napi`](crate::napi): it sleeps, is interrupted at a cost, polls like Linux. What is compared
//! is its processor time and the switch's for a frame, interrupts, and how long frames are on their way. Two fields of
//! contestants: with `busy-poll: adaptive`, as shipped, where processor time is the question, and with `always` where
//! somebody waits for the frames, so that waking the worker does not hide what the rule adds.

use std::path::Path;

use serde::Serialize;

use super::{hosts, session, watched};
use crate::contestant::host::Idle;
use crate::contestant::moderated::{Moderated, Rule};
use crate::cpu::{Pinned, Placement, favour_self};
use crate::cputime::{CpuClock, CpuUse};
use crate::generator::Edge;
use crate::interference::{Limits, this_thread};
use crate::lock::Lock;
use crate::machine::Notes;
use crate::napi::{Costs, Seen, Spans, Traffic};
use crate::report::head::Head;
use crate::report::verdict::Verdict;
use crate::report::{Measure, Row, sum_up};
use crate::rounds::{Schedule, in_turn};
use crate::sample::{Detail, Sample};
use crate::{Error, Options, Result};

mod loads;
mod show;
mod verdict;

pub use loads::Load;

/// What is measured of a slice, in this order.
pub(super) const MEASURES: [Measure; 8] = [
    Measure::median("guest and worker", "ns/frame"),
    Measure::median("guest", "ns/frame"),
    Measure::median("worker", "ns/frame"),
    Measure::plain("interrupts", "per frame"),
    Measure::quantile("delay p50", 0.5),
    Measure::quantile("delay p99", 0.99),
    Measure::plain("received", "kpps"),
    Measure::plain("mean delay", "us"),
];
/// Places in it.
pub(super) const CPU: usize = 0;
pub(super) const GUEST: usize = 1;
pub(super) const INTERRUPTS: usize = 3;
pub(super) const P99: usize = 5;
pub(super) const RECEIVED: usize = 6;
pub(super) const MEAN: usize = 7;

/// The switch's default, which is compared with all others.
pub(super) const OURS: &str = Rule::DEFAULT.name;
const POLICIES: [Rule; 5] = [
    Rule::of("per-packet"),
    Rule::of("per-burst"),
    Rule::of("vpp"),
    Rule::of("spdk"),
    Rule::of("dim"),
];
/// Static settings among which each load's best is sought.
const STATICS: [Rule; 9] = [
    Rule::fixed("4us", 4, 0),
    Rule::fixed("8us", 8, 0),
    Rule::fixed("16us", 16, 0),
    Rule::fixed("32us", 32, 0),
    Rule::fixed("64us", 64, 0),
    Rule::fixed("64us/32", 64, 32),
    Rule::fixed("128us", 128, 0),
    Rule::fixed("256us", 256, 0),
    Rule::fixed("256us/32", 256, 32),
];
const QUICK_STATICS: [Rule; 3] = [
    Rule::fixed("16us", 16, 0),
    Rule::fixed("64us", 64, 0),
    Rule::fixed("256us", 256, 0),
];

/// When a slice does not count, and a window's times. A worker that is woken waits for its CPU to wake up as well, so waiting
/// says nothing here.
const SLICE: Limits = Limits {
    steal: 0.03,
    delay: f64::INFINITY,
    preempted: 200.0,
};
const WINDOW: Limits = Limits {
    steal: 0.0,
    preempted: 0.0,
    ..SLICE
};

const SPANS: Spans = Spans {
    warm_ms: 40,
    window_ms: 20,
    windows: 25,
};
const QUICK_SPANS: Spans = Spans {
    warm_ms: 20,
    window_ms: 20,
    windows: 8,
};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// The contestants that are static settings.
    pub statics: Vec<String>,
    /// When a slice does not count.
    pub limits: Limits,
    /// Lengths of slices.
    pub spans: Spans,
    /// One load at one cost each.
    pub cases: Vec<Case>,
    /// Whether the targets are met.
    pub verdicts: Vec<Verdict>,
}

/// One load, at one cost of an interrupt.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What arrived.
    pub load: Load,
    /// What things cost the guest.
    pub costs: Costs,
    /// The figures.
    pub rows: Vec<Row>,
    /// All slices, by contestant.
    pub samples: Vec<Vec<Sample>>,
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, favour_self());
    let program = session::program(options)?;
    let mut field = hosts::Field::default();
    let rules = rules(options, &program, placement, &mut field)?;
    let ground = Ground {
        placement,
        limits: Limits::default(),
        spans: if options.quick { QUICK_SPANS } else { SPANS },
        schedule: Schedule::new(options.rounds_or(5, 2)),
    };
    let names: Vec<String> = rules.iter().map(|rule| rule.name.to_owned()).collect();
    let mut cases = Vec::new();
    for (idle, loads) in loads::by_field(options)? {
        if loads.is_empty() {
            continue;
        }
        let start = |rule: &Rule| Moderated::start(*rule, &program, idle, placement);
        let mut switches = rules.iter().map(start).collect::<Result<Vec<_>>>()?;
        for (load, costs) in loads {
            let traffic = load.traffic;
            eprintln!(
                "{}, interrupts {} us",
                traffic.label(),
                costs.interrupt_ns / 1000
            );
            let samples = ground.measure(&mut switches, traffic, costs)?;
            cases.push(Case {
                load,
                costs,
                rows: sum_up(&MEASURES, &names, &samples),
                samples,
            });
        }
    }
    let statics = rules.iter().filter(|rule| rule.is_static());
    let statics: Vec<String> = statics.map(|rule| rule.name.to_owned()).collect();
    Ok(Report {
        verdicts: verdict::all(&cases, &statics),
        statics,
        limits: ground.limits,
        spans: ground.spans,
        cases,
        head: field.head(
            "interrupts",
            "rules for when a guest is interrupted, by load and by what an interrupt costs".into(),
            machine,
        ),
    })
}

/// The rules that the program knows; the others are noted.
fn rules(
    options: &Options,
    program: &Path,
    placement: Placement,
    field: &mut hosts::Field,
) -> Result<Vec<Rule>> {
    let statics: &[Rule] = if options.quick {
        &QUICK_STATICS
    } else {
        &STATICS
    };
    let mut known = Vec::new();
    for rule in [Rule::DEFAULT].iter().chain(&POLICIES).chain(statics) {
        match Moderated::start(*rule, program, Idle::Adaptive, placement) {
            Ok(_) => {
                field.takes_part(rule.name, &rule.about(program));
                known.push(*rule);
            }
            Err(error) if known.is_empty() => return Err(error),
            Err(error) => field.is_left_out(&format!("{}: {error}", rule.name)),
        }
    }
    Ok(known)
}

/// What all slices have in common.
struct Ground {
    placement: Placement,
    limits: Limits,
    spans: Spans,
    schedule: Schedule,
}

impl Ground {
    /// Rounds of one case.
    fn measure(
        &self,
        switches: &mut [Moderated],
        traffic: Traffic,
        costs: Costs,
    ) -> Result<Vec<Vec<Sample>>> {
        let cases = self.schedule.rounds(|round| {
            let samples = in_turn(round, switches, |_, switch| {
                self.slice(switch, traffic, costs, round)
            });
            Ok::<_, Error>(vec![samples?])
        })?;
        Ok(cases.into_iter().next().unwrap_or_default())
    }

    fn slice(
        &self,
        switch: &mut Moderated,
        traffic: Traffic,
        costs: Costs,
        round: u32,
    ) -> Result<Sample> {
        let ((seen, cpu), mut conditions) =
            watched(self.placement, Some(self.limits), |watcher| {
                let _pinned = Pinned::to(self.placement.generator)?;
                switch.resume()?;
                watcher.tasks = switch.tasks();
                watcher.tasks.push(this_thread());
                let pid = switch.pid();
                let mut clocks = Vec::new();
                let window = |edge| {
                    if edge == Edge::Opens && clocks.is_empty() {
                        clocks.push(CpuClock::read(pid));
                    }
                    watcher.edge(edge);
                    if edge == Edge::IsOver {
                        clocks.truncate(1);
                        clocks.push(CpuClock::read(pid));
                    }
                    edge == Edge::Opens || watcher.undisturbed(WINDOW)
                };
                // The same arrivals for everybody, others in each round.
                let seed = u64::from(round) + 1;
                let seen = traffic.slice(switch.wire(), costs, self.spans, seed, window);
                let seen = seen.map_err(|error| switch.explain(error))?;
                switch.stop()?;
                Ok((seen, CpuUse::between(clocks)?))
            })?;
        if seen.windows.0 == 0 {
            conditions.discard(|| format!("none of {} windows was undisturbed", seen.windows.1));
        }
        let values = values(&seen, &cpu);
        let seen = Box::new(seen);
        Ok(conditions.sample(round, values, Detail::Interrupted { seen, cpu }))
    }
}

/// By [`MEASURES`].
fn values(seen: &Seen, cpu: &CpuUse) -> Vec<f64> {
    let frames = seen.received.max(1) as f64;
    let worker = cpu.percent / 100.0 * cpu.seconds * 1e9 / frames;
    let delay = seen.waited_for();
    vec![
        seen.guest_ns() + worker,
        seen.guest_ns(),
        worker,
        seen.interrupts_per_frame(),
        delay.quantile(0.5) as f64 / 1e3,
        delay.quantile(0.99) as f64 / 1e3,
        seen.received as f64 / seen.seconds / 1e3,
        delay.mean() / 1e3,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_is_counted_by_frame() {
        let seen = Seen {
            seconds: 0.5,
            received: 1000,
            busy_ns: 2_000_000,
            interrupts: 100,
            ..Seen::default()
        };
        let cpu = CpuUse {
            seconds: 0.5,
            percent: 10.0,
            ticks_percent: 0.0,
            sleeps_per_second: 0.0,
        };
        let values = values(&seen, &cpu);
        assert_eq!(values.len(), MEASURES.len());
        assert_eq!(values[..3], [52_000.0, 2000.0, 50_000.0]);
        assert_eq!((values[INTERRUPTS], values[RECEIVED]), (0.1, 2.0));
    }
}
