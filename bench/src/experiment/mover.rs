//! `mover`: the bare mover alone, by frame size. It is the limit that everything is held against, so it
//! must not be the generator that limits it: what that costs by itself is measured with it.

use super::plan::{Plan, pick};
use super::session::Field;
use super::{Heading, Session, in_turn, slice};
use crate::contestant::{Rings, between_guests};
use crate::cpu::Pinned;
use crate::generator::{Costs, Load, Timing};
use crate::interference::Limits;
use crate::probe::Class;
use crate::report::{Case, Measure, Report};
use crate::rounds::Schedule;
use crate::sample::Detail;
use crate::{Options, Result};

const SIZES: [usize; 9] = [64, 128, 256, 512, 1024, 1280, 1500, 1518, 9000];
const QUICK_SIZES: [usize; 2] = [64, 1500];
const FLOWS: u32 = 1024;
/// What the mover has to reach where the CPUs share a cache, or generator and machine are too slow for
/// figures of fast switches to mean anything: bytes, Mpps.
const BAR: [(usize, f64); 2] = [(64, 60.0), (1500, 25.0)];

const TIMING: Timing = Timing {
    warm_ms: 200,
    window_ms: 1000,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 100,
    window_ms: 300,
};
const HEADING: Heading = Heading {
    experiment: "mover",
    title: "one copy from ring to ring and nothing else, one direction, 1024 flows: the limit",
    unit: "Mpps",
};
const MEASURES: [Measure; 5] = [
    Measure::plain("", "Mpps"),
    Measure::plain("generator by itself", "Mpps"),
    Measure::plain("generator: send", "ns"),
    Measure::plain("generator: receive", "ns"),
    Measure::plain("move on the generator's CPU", "ns"),
];

/// Measures all sizes.
pub fn run(options: &Options) -> Result<Report> {
    let quick = options.quick && options.cases.is_empty();
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let plan = |len: &usize| Plan::of_size(Load::new(*len, FLOWS));
    let plans = pick(sizes.iter().map(plan).collect(), &options.cases)?;
    let schedule = Schedule::new(options.rounds_or(7, 5));
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    let session = Session::open(options, schedule, timing, Limits::default())?;
    let setup = session.setup((Rings::Split, true));
    let mut field = Field::of_mover(setup)?;
    let mut report = session.report(&HEADING);
    field.enter(&mut report, setup);
    let (mut wire, [mut there, _back]) = between_guests(setup)?;

    for plan in plans {
        eprintln!("{}", plan.label());
        let samples = schedule.rounds(|round| {
            let one = in_turn(round, &mut field.contestants, |_, contestant| {
                let limits = Some(session.settings.limits);
                let (counted, conditions) = slice(
                    contestant.as_mut(),
                    session.placement,
                    limits,
                    |wire, watcher| plan.load.slice(wire, timing, |edge| watcher.edge(edge)),
                )?;
                let alone = {
                    let _pinned = Pinned::to(session.placement.generator)?;
                    plan.load.alone(&mut wire, timing, |max| there.run(max))?
                };
                let values = values(counted.mpps(), &alone);
                Ok::<_, crate::Error>(conditions.sample(round, values, Detail::Rate(counted)))
            })?;
            Ok::<_, crate::Error>(vec![one])
        })?;
        let of_case = samples.into_iter().next().unwrap_or_default();
        let case = Case::new(
            plan.label(),
            plan.load,
            plan.rings,
            &MEASURES,
            &field.names(),
            of_case,
        );
        report.remarks.extend(verdict(&case));
        report.cases.push(case);
    }
    Ok(report)
}

/// In the order of the measures.
fn values(mpps: f64, alone: &Costs) -> Vec<f64> {
    vec![
        mpps,
        alone.mpps(),
        alone.send_ns,
        alone.receive_ns,
        alone.move_ns,
    ]
}

/// Whether the bar is reached, where there is one for this size and the class it is meant for was seen.
fn verdict(case: &Case) -> Option<String> {
    let (_, bar) = BAR.iter().find(|(len, _)| *len == case.load.frame_len)?;
    let row = case.rows.first()?;
    let shared = row.results.iter().find(|r| r.class == Class::Shared);
    let Some(summary) = shared.and_then(|result| result.summaries.values().next()) else {
        return Some(format!(
            "{}: whether {bar} Mpps are reached is not known, the CPUs shared no cache.",
            case.label
        ));
    };
    let reached = if summary.figure >= *bar {
        "reached"
    } else {
        "NOT reached"
    };
    Some(format!(
        "{}: {bar} Mpps with a shared cache are {reached}: {:.1} ({:.1} to {:.1}).",
        case.label, summary.figure, summary.min, summary.max
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{SHARED, SPLIT, sample};

    #[test]
    fn the_bar_is_judged_where_it_applies() {
        let case = |len, mpps, class| {
            let samples = vec![vec![sample(0, mpps, class, true)]];
            let (load, names) = (Load::new(len, 1), ["mover".to_owned()]);
            let label = format!("{len} B");
            verdict(&Case::new(
                label,
                load,
                Rings::Split,
                &MEASURES[..1],
                &names,
                samples,
            ))
        };
        assert!(case(64, 61.0, SHARED).unwrap().contains("are reached"));
        assert!(case(64, 59.0, SHARED).unwrap().contains("NOT reached"));
        assert!(case(1500, 26.0, SHARED).unwrap().contains("are reached"));
        assert!(case(64, 61.0, SPLIT).unwrap().contains("not known"));
        assert_eq!(case(128, 61.0, SHARED), None);
    }
}
