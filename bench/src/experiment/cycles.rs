//! `cycles`: what the switch takes for a frame, step by step, on one thread that drives the guests as well
//! ([`Single`]). Only what the switch does is timed.

use super::plan::{Plan, pick};
use super::{Heading, Session, watched};
use crate::contestant::Rings;
use crate::cpu::Pinned;
use crate::generator::{Load, Timing};
use crate::interference::{Limits, this_thread};
use crate::report::{Case, Measure, Report};
use crate::rounds::{Schedule, in_turn};
use crate::sample::{Detail, Sample};
use crate::selfdriven::{Clock, Single, Spent};
use crate::stats::Summary;
use crate::{Options, Result};

const SIZES: [usize; 3] = [64, 256, 1500];
const QUICK_SIZES: [usize; 2] = [64, 1500];
const MANY_FLOWS: u32 = 65_536;
const MANY_MACS: u16 = 4096;
/// Between one address and many, at the smallest size.
const MORE_MACS: [u16; 2] = [64, 1024];
/// Most cycles that a frame of 64 bytes may take, one address, split rings.
const BAR: f64 = 60.0;
/// How much more many addresses may take.
const MACS_BAR: f64 = 1.15;

const TIMING: Timing = Timing {
    warm_ms: 100,
    window_ms: 600,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 50,
    window_ms: 250,
};
const HEADING: Heading = Heading {
    experiment: "cycles",
    title: "self-driven rings on one thread, cycles of the time stamp counter for a frame",
    unit: "cycles/frame",
};
const MEASURES: [Measure; 7] = [
    Measure::median("whole", "cycles/frame"),
    Measure::plain("whole", "ns"),
    Measure::plain("take", "cycles"),
    Measure::plain("decide, group", "cycles"),
    Measure::plain("deliver", "cycles"),
    Measure::plain("complete", "cycles"),
    Measure::plain("all steps", "cycles"),
];

/// Every case there is.
fn plans() -> Vec<Plan> {
    let each = |rings: Rings| {
        SIZES.into_iter().flat_map(move |len| {
            let loads = [
                (format!("{len}B"), Load::new(len, 1)),
                ("flows".into(), Load::new(len, MANY_FLOWS)),
                ("macs".into(), Load::new(len, 1).macs(MANY_MACS)),
            ];
            let plan = move |(tag, load): (String, Load)| match rings {
                Rings::Split => Plan::tagged(&tag, load),
                Rings::Packed => Plan::packed(load),
            };
            loads.map(plan)
        })
    };
    let more = MORE_MACS.map(|macs| Plan::tagged("macs", Load::new(SIZES[0], 1).macs(macs)));
    each(Rings::Split)
        .chain(more)
        .chain(each(Rings::Packed))
        .collect()
}

/// The cases asked for; of those that nobody asked for, a quick run has the corners.
fn wanted(options: &Options) -> Result<Vec<Plan>> {
    let mut plans = pick(plans(), &options.cases)?;
    if options.quick && options.cases.is_empty() {
        plans.retain(|plan| {
            let Load {
                frame_len, macs, ..
            } = plan.load;
            QUICK_SIZES.contains(&frame_len) && !MORE_MACS.contains(&macs)
        });
    }
    Ok(plans)
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let plans = wanted(options)?;
    let schedule = Schedule::new(options.rounds_or(7, 5));
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    let session = Session::open(options, schedule, timing, Limits::default())?;
    let (placement, limits) = (session.placement, session.settings.limits);
    let clock = {
        let _pinned = Pinned::to(placement.worker)?;
        Clock::new()?
    };
    let mut report = session.report(&HEADING);
    report.contestants = vec![
        (
            "vswitch".into(),
            "its rings and its forwarding, compiled into the bench with it".into(),
        ),
        (
            "mover".into(),
            "one copy from ring to ring, no switching, on the same thread".into(),
        ),
    ];
    let names: Vec<String> = report
        .contestants
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    for plan in plans {
        eprintln!("{}", plan.label());
        let mut both = [
            Single::switch(plan.rings, plan.load.macs, &clock)?,
            Single::mover(plan.rings, placement, &clock)?,
        ];
        let samples = schedule.rounds(|round| {
            let taken = in_turn(round, &mut both, |_, single| {
                let (spent, conditions) = watched(placement, Some(limits), |watcher| {
                    let _pinned = Pinned::to(placement.worker)?;
                    watcher.tasks = vec![this_thread()];
                    single.slice(&plan.load, timing, |edge| watcher.edge(edge))
                })?;
                Ok::<Sample, crate::Error>(conditions.sample(
                    round,
                    values(&spent),
                    Detail::Cycles(spent),
                ))
            })?;
            Ok::<_, crate::Error>(vec![taken])
        })?;
        let of_case = samples.into_iter().next().unwrap_or_default();
        let case = Case::new(
            plan.label(),
            plan.load,
            plan.rings,
            &MEASURES,
            &names,
            of_case,
        );
        report.cases.push(case);
    }
    report.remarks = remarks(&report.cases, &clock, placement.worker);
    Ok(report)
}

/// In the order of the measures. Who has no steps has no figures for them.
fn values(spent: &Spent) -> Vec<f64> {
    let mut values = vec![spent.whole, spent.whole / spent.ghz];
    if let Some(steps) = spent.steps {
        values.extend(steps);
        values.push(steps.iter().sum());
    }
    values
}

fn remarks(cases: &[Case], clock: &Clock, cpu: usize) -> Vec<String> {
    let mut remarks = vec![
        format!(
            "Everything runs on CPU {cpu}, guests too, so lines come from its own caches; where a cache is shared says \
             only what else could happen."
        ),
        format!(
            "Reading the counter takes {} cycles; what that makes for a frame is subtracted: of the whole once in 256 \
             frames, of each step once in 32.",
            clock.cost()
        ),
        "The whole is timed in other turns than the steps, and is the figure. Readings overlap with what is around them, \
         so a step shorter than a reading may come out as nothing, and the sum of the steps below the whole."
            .into(),
    ];
    let mut rates: Vec<f64> = cases
        .iter()
        .flat_map(|case| case.samples.values().flatten())
        .filter_map(|sample| match &sample.detail {
            Detail::Cycles(spent) => Some(spent.ghz),
            _ => None,
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    if let (Some(first), Some(last)) = (rates.first(), rates.last()) {
        remarks.push(format!(
            "The counter ran at {first:.4} to {last:.4} cycles a nanosecond, whatever the core's own clock did."
        ));
    }
    remarks.extend(cases.iter().filter_map(verdict));
    remarks.extend(cases.iter().filter_map(|many| {
        let one = |case: &&Case| {
            let same = case.load.frame_len == many.load.frame_len && case.rings == many.rings;
            same && case.load == Load::new(case.load.frame_len, 1)
        };
        macs_verdict(cases.iter().find(one)?, many)
    }));
    remarks
}

/// The switch's whole, in the class that there is most of.
fn whole(case: &Case) -> Option<Summary> {
    let result = case.rows.first()?.results.first()?;
    result.summaries.get("vswitch").copied()
}

fn word(reached: bool) -> &'static str {
    if reached { "reached" } else { "NOT reached" }
}

/// Whether the bar is reached, where there is one.
fn verdict(case: &Case) -> Option<String> {
    if case.load != Load::new(64, 1) || case.rings != Rings::Split {
        return None;
    }
    let cycles = whole(case)?;
    Some(format!(
        "{}: at most {BAR:.0} cycles for a frame are {}: {:.1} ({:.1} to {:.1}).",
        case.label,
        word(cycles.figure <= BAR),
        cycles.figure,
        cycles.min,
        cycles.max
    ))
}

/// Whether many addresses cost as little as they may, in parts of one address.
fn macs_verdict(one: &Case, many: &Case) -> Option<String> {
    if many.load.macs != MANY_MACS {
        return None;
    }
    let (many_of, one_of) = (whole(many)?, whole(one)?);
    let ratio = many_of.figure / one_of.figure;
    let (least, most) = (many_of.min / one_of.max, many_of.max / one_of.min);
    Some(format!(
        "{}: at most {MACS_BAR} times the cycles of one address are {}: {ratio:.2} times ({least:.2} to {most:.2}).",
        many.label,
        word(ratio <= MACS_BAR)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{SHARED, sample};

    fn case(load: Load, rings: Rings, cycles: f64) -> Case {
        let names = ["vswitch".to_owned(), "mover".to_owned()];
        let samples = vec![
            vec![sample(0, cycles, SHARED, true)],
            vec![sample(0, 1.0, SHARED, true)],
        ];
        let plan = match rings {
            Rings::Split => Plan::of_size(load),
            Rings::Packed => Plan::packed(load),
        };
        Case::new(plan.label(), load, rings, &MEASURES[..1], &names, samples)
    }

    #[test]
    fn bars_are_judged_where_they_apply() {
        let plain = Load::new(64, 1);
        let at = |cycles| verdict(&case(plain, Rings::Split, cycles));
        assert!(at(60.0).unwrap().contains("are reached"));
        assert!(at(61.0).unwrap().contains("NOT reached"));
        assert_eq!(verdict(&case(plain, Rings::Packed, 1.0)), None);
        assert_eq!(verdict(&case(Load::new(64, 2), Rings::Split, 1.0)), None);
        let cases = [
            case(plain, Rings::Split, 50.0),
            case(plain, Rings::Packed, 100.0),
            case(plain.macs(MANY_MACS), Rings::Split, 60.0),
            case(plain.macs(MANY_MACS), Rings::Packed, 110.0),
            case(plain.macs(64), Rings::Packed, 500.0),
        ];
        let said = remarks(&cases, &Clock::new().unwrap(), 1).join("\n");
        assert!(said.contains("NOT reached: 1.20 times"), "{said}");
        assert!(said.contains("are reached: 1.10 times"), "{said}");
        assert!(!said.contains("64 MACs"), "{said}");
    }

    #[test]
    fn a_step_is_a_figure_of_its_own() {
        let mut spent = Spent {
            whole: 50.0,
            ghz: 2.5,
            ..Spent::default()
        };
        assert_eq!(values(&spent), [50.0, 20.0]);
        spent.steps = Some([10.0, 20.0, 15.0, 6.0]);
        assert_eq!(values(&spent), [50.0, 20.0, 10.0, 20.0, 15.0, 6.0, 51.0]);
        assert_eq!(values(&spent).len(), MEASURES.len());
    }

    #[test]
    fn cases_go_by_size_flows_addresses_and_layout() {
        let tags: Vec<_> = plans().into_iter().map(|plan| plan.tag).collect();
        assert_eq!(tags.len(), 20);
        assert_eq!(tags.iter().filter(|tag| *tag == "packed").count(), 9);
        assert_eq!(tags.iter().filter(|tag| *tag == "macs").count(), 5);
    }
}
