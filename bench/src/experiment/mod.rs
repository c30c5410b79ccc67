//! What is measured. An experiment plans its cases and returns a report; taking turns, probing and
//! judging slices is the same for all of them and lies here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Result;
use crate::contestant::Contestant;
use crate::cpu::{Pinned, Placement};
use crate::generator::{Edge, Load, Timing, Wire};
use crate::interference::{Interference, Limits, Watch, this_thread};
use crate::probe::{self, Class};
use crate::report::Report;
use crate::rounds::in_turn;
use crate::sample::{Detail, Sample};
use plan::{Plan, by_setup};
use session::{Field, Heading, Session};

pub mod affinity;
pub mod cycles;
pub mod guest_interrupts;
mod hosts;
pub mod idle;
pub mod interrupts;
pub mod latency;
pub mod memory;
pub mod mover;
pub mod ndr;
mod plan;
pub mod pvp;
pub mod scale;
mod session;
pub mod steer_sim;
pub mod tcp;
pub mod vvp;

/// What the machine did while one contestant had its slice.
#[derive(Clone, Debug)]
struct Conditions {
    bounce_ns: (f64, f64),
    class: (Class, Class),
    interference: Interference,
    discarded: Option<String>,
}

impl Conditions {
    /// A sample taken under these conditions.
    fn sample(self, round: u32, values: Vec<f64>, detail: Detail) -> Sample {
        Sample {
            round,
            values,
            bounce_ns: self.bounce_ns,
            class: self.class,
            interference: self.interference,
            discarded: self.discarded,
            detail,
        }
    }

    /// Does not count for this reason, unless there is one already.
    fn discard(&mut self, reason: impl FnOnce() -> String) {
        self.discarded.get_or_insert_with(reason);
    }
}

/// Watches over the windows of a slice.
struct Watcher {
    placement: Placement,
    tasks: Vec<PathBuf>,
    open: Option<(Watch, Instant)>,
    /// The last window.
    last: (Interference, Duration),
    /// All of them.
    total: (Interference, Duration),
}

impl Watcher {
    fn edge(&mut self, edge: Edge) {
        match edge {
            Edge::Opens => {
                let watch = Watch::start(self.placement, self.tasks.clone());
                self.open = Some((watch, Instant::now()));
            }
            Edge::IsOver => {
                if let Some((watch, at)) = self.open.take() {
                    let lasted = at.elapsed();
                    self.last = (watch.since(), lasted);
                    self.total.0.add(&self.last.0);
                    self.total.1 += lasted;
                }
            }
        }
    }

    /// Whether the last window was as undisturbed as that.
    fn undisturbed(&self, limits: Limits) -> bool {
        limits.verdict(&self.last.0, self.last.1).is_none()
    }
}

/// Lets a contestant run while `work` uses its guests, which tells the watcher of its windows. Without
/// limits, who asks judges for itself whether it was disturbed.
fn slice<T>(
    contestant: &mut dyn Contestant,
    placement: Placement,
    limits: Option<Limits>,
    work: impl FnOnce(&mut Wire, &mut Watcher) -> Result<T>,
) -> Result<(T, Conditions)> {
    watched(placement, limits, |watcher| {
        let _pinned = Pinned::to(placement.generator)?;
        contestant.resume()?;
        watcher.tasks = contestant.tasks();
        watcher.tasks.push(this_thread());
        let result = work(contestant.wire(), watcher);
        let value = result.map_err(|error| contestant.explain(error))?;
        contestant.stop()?;
        Ok(value)
    })
}

/// Does `work` between two probes. It tells the watcher of its windows, and before of the threads that have to be
/// watched.
fn watched<T>(
    placement: Placement,
    limits: Option<Limits>,
    work: impl FnOnce(&mut Watcher) -> Result<T>,
) -> Result<(T, Conditions)> {
    let before = probe::bounce(placement)?;
    let mut watcher = Watcher {
        placement,
        tasks: Vec::new(),
        open: None,
        last: Default::default(),
        total: Default::default(),
    };
    let value = work(&mut watcher)?;
    let after = probe::bounce(placement)?;

    let (interference, window) = watcher.total;
    let class = (Class::of(before), Class::of(after));
    let moved = (class.0 != class.1).then(|| "the CPUs were moved".to_owned());
    let disturbed = || limits?.verdict(&interference, window);
    let conditions = Conditions {
        bounce_ns: (before, after),
        class,
        interference,
        discarded: moved.or_else(disturbed),
    };
    Ok((value, conditions))
}

/// As many frames as get through: one slice, its figure in Mpps.
fn rate_slice(
    contestant: &mut dyn Contestant,
    placement: Placement,
    limits: Limits,
    load: Load,
    timing: Timing,
    round: u32,
) -> Result<Sample> {
    let (counted, conditions) = slice(contestant, placement, Some(limits), |wire, watcher| {
        load.slice(wire, timing, |edge| watcher.edge(edge))
    })?;
    Ok(conditions.sample(round, vec![counted.mpps()], Detail::Rate(counted)))
}

/// The same, again if it was disturbed, at most three times in all.
fn undisturbed_rate(mut take: impl FnMut() -> Result<Sample>) -> Result<Sample> {
    let mut sample = take()?;
    for _ in 1..3 {
        if sample.discarded.is_none() {
            break;
        }
        sample = take()?;
    }
    Ok(sample)
}

/// Starts contestants for each setup that the plans need, and lets `measure` fill the report with its
/// cases. The switch has to take part in the first setup; where it cannot in a further one, those cases
/// are left out.
fn over_setups(
    session: &Session<'_>,
    heading: &Heading,
    plans: Vec<Plan>,
    mut measure: impl FnMut(&mut Field, Plan, &mut Report) -> Result<()>,
) -> Result<Report> {
    let program = session::program(session.options)?;
    let mut report = session.report(heading);
    for (number, group) in by_setup(plans).into_iter().enumerate() {
        let Some(first) = group.first() else { continue };
        let setup = session.setup(first.setup());
        let mut field = match Field::start(session.options, &program, setup) {
            Ok(field) => field,
            Err(reason) if number > 0 => {
                let said = session::said(setup);
                report.skipped.push(format!("{said}vswitch: {reason}"));
                continue;
            }
            Err(reason) => return Err(reason),
        };
        field.enter(&mut report, setup);
        for plan in group {
            eprintln!("{}", plan.label());
            measure(&mut field, plan, &mut report)?;
        }
    }
    Ok(report)
}
