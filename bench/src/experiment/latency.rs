//! `latency`: how long frames are on their way from guest to guest.
//!
//! One at a time first, which is a closed loop: the next frame waits for the one before. Then in an open
//! loop, frames being offered at a rate whatever comes of them: at parts of each contestant's own highest
//! rate, and at the same rate for all. A round measures the highest rates first, so that parts are of
//! what holds at that moment. A slice is many short windows, and percentiles are those of all frames of
//! the windows in which nobody was preempted: a preemption is longer than all that is measured here.

use std::time::{Duration, Instant};

use crate::contestant::Contestant;
use crate::generator::{Load, Paced, Timing};
use crate::histogram::Histogram;
use crate::interference::Limits;
use crate::probe::Class;
use crate::report::{Case, Measure, Report};
use crate::rounds::{Schedule, in_turn};
use crate::sample::{Detail, Sample};
use crate::{Options, Result};

use super::plan::{Plan, pick};
use super::session::Field;
use super::{Heading, Session, over_setups, rate_slice, slice, undisturbed_rate};

const SIZES: [usize; 2] = [64, 1500];
const QUICK_SIZES: [usize; 1] = [64];
const FLOWS: u32 = 1024;
/// Parts of its own highest rate that each contestant is offered.
const PARTS: [f64; 3] = [0.1, 0.5, 0.9];
/// Whose highest rate all are offered a part of, and how much of it.
const COMMON: (&str, f64) = ("ovs", 0.6);
/// Part of what was due that a generator may fail to offer in a window.
const SLIPPED: f64 = 1e-3;
/// A window: short enough for many to be free of any preemption, long enough for queues to settle.
const WINDOW: Timing = Timing {
    warm_ms: 2,
    window_ms: 10,
};
/// Windows that have to count for a slice to count.
const WINDOWS: u32 = 5;

const TIMING: Timing = Timing {
    warm_ms: 100,
    window_ms: 500,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 50,
    window_ms: 200,
};
const HEADING: Heading = Heading {
    experiment: "latency",
    title: "guest to switch to guest, one worker, one direction: time from guest to guest, less is better",
    unit: "us",
};
const HIGHEST: [Measure; 1] = [Measure::median("", "Mpps")];
const MEASURES: [Measure; 4] = [
    Measure::quantile("p50", 0.5),
    Measure::quantile("p99", 0.99),
    Measure::quantile("p99.9", 0.999),
    Measure::plain("lost", "part"),
];

/// What frames are offered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Offer {
    /// One at a time.
    One,
    /// A part of the contestant's own highest rate.
    Own(f64),
    /// A part of the highest rate of the contestant in this place.
    Of(usize, f64),
}

impl Offer {
    /// All of them, for these contestants.
    fn all(names: &[String]) -> Vec<Self> {
        let mut all = vec![Self::One];
        all.extend(PARTS.map(Self::Own));
        let common = names.iter().position(|name| name == COMMON.0);
        all.extend(common.map(|index| Self::Of(index, COMMON.1)));
        all
    }

    fn label(self, names: &[String]) -> String {
        match self {
            Self::One => "1 in flight (closed)".into(),
            Self::Own(part) => format!("{part} of own rate"),
            Self::Of(index, part) => {
                let whose = names.get(index).map_or("?", String::as_str);
                format!("{part} of the rate of {whose}")
            }
        }
    }
}

/// Measures all sizes.
pub fn run(options: &Options) -> Result<Report> {
    let quick = options.quick && options.cases.is_empty();
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let plan = |len: &usize| Plan::of_size(Load::new(*len, FLOWS));
    let plans = pick(sizes.iter().map(plan).collect(), &options.cases)?;
    let schedule = Schedule::new(options.rounds_or(5, 3));
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    let session = Session::open(options, schedule, timing, Limits::strict())?;
    over_setups(&session, &HEADING, plans, |field, plan, report| {
        let names = field.names();
        let offers = Offer::all(&names);
        let samples = schedule.rounds(|round| one_round(&session, field, &plan, &offers, round))?;
        let labels = offers.iter().map(|offer| offer.label(&names));
        let labels = std::iter::once("highest rate".to_owned()).chain(labels);
        for (number, (label, samples)) in labels.zip(samples).enumerate() {
            let label = format!("{}: {label}", plan.label());
            let measures: &[Measure] = if number == 0 { &HIGHEST } else { &MEASURES };
            let case = Case::new(label, plan.load, plan.rings, measures, &names, samples);
            report.cases.push(case);
        }
        if offers.len() == 1 + PARTS.len() {
            report.remarks.push(format!(
                "Nobody is called {}, so there is no rate that is the same for all.",
                COMMON.0
            ));
        }
        Ok(())
    })
}

/// The highest rates of all, then each offer, everybody in turn.
fn one_round(
    session: &Session<'_>,
    field: &mut Field,
    plan: &Plan,
    offers: &[Offer],
    round: u32,
) -> Result<Vec<Vec<Sample>>> {
    let settings = session.settings;
    let highest = in_turn(round, &mut field.contestants, |_, contestant| {
        undisturbed_rate(|| {
            let (contestant, limits) = (contestant.as_mut(), Limits::default());
            let (placement, timing) = (session.placement, settings.timing);
            rate_slice(contestant, placement, limits, plan.load, timing, round)
        })
    })?;
    let mut cases = vec![Vec::new()];
    for (turn, offer) in (round..).zip(offers) {
        let samples = in_turn(turn, &mut field.contestants, |index, contestant| {
            let rate = match *offer {
                Offer::One => None,
                Offer::Own(part) => Some(part_of(&highest[index], part)),
                Offer::Of(whose, part) => Some(part_of(&highest[whose], part)),
            };
            one_slice(session, contestant.as_mut(), plan.load, rate, round)
        })?;
        cases.push(samples);
    }
    cases[0] = highest;
    Ok(cases)
}

/// A rate in frames per second, and the class that it is known for, if it counts.
fn part_of(highest: &Sample, part: f64) -> (f64, Option<Class>) {
    let mpps = highest.values.first().copied().unwrap_or_default();
    (part * mpps * 1e6, highest.counts_for())
}

/// Frames at a rate, or one at a time, with their times: short windows, of which those count in which
/// nothing disturbed anybody.
fn one_slice(
    session: &Session<'_>,
    contestant: &mut dyn Contestant,
    load: Load,
    rate: Option<(f64, Option<Class>)>,
    round: u32,
) -> Result<Sample> {
    let limits = session.settings.limits;
    let time = Duration::from_millis(session.settings.timing.window_ms);
    let (windows, mut conditions) = slice(contestant, session.placement, None, |wire, watcher| {
        let mut windows = Windows::default();
        let mut began = None;
        while began.is_none_or(|began: Instant| began.elapsed() < time) {
            let mut latency = Histogram::default();
            let edge = |edge| watcher.edge(edge);
            let paced = match rate {
                None => load.one_by_one(wire, WINDOW, &mut latency, edge)?,
                Some((rate, _)) => load.paced(wire, rate, WINDOW, Some(&mut latency), edge)?,
            };
            // The first window only warms up.
            if began.is_some() {
                windows.add(&paced, &latency, watcher.undisturbed(limits));
            }
            began.get_or_insert_with(Instant::now);
        }
        Ok(windows)
    })?;
    if let Some((_, class)) = rate
        && class != Some(conditions.class.0)
    {
        conditions.discard(|| "its rate is not known for this cache class".into());
    }
    let Windows {
        histogram,
        paced,
        counted,
        all,
    } = windows;
    if counted < WINDOWS {
        conditions.discard(|| format!("{counted} of {all} windows were undisturbed"));
    }
    let mut values = [0.5, 0.99, 0.999]
        .map(|q| histogram.quantile(q) as f64 / 1e3)
        .to_vec();
    values.push(paced.loss());
    let detail = Detail::Latency {
        paced,
        windows: (counted, all),
        histogram,
    };
    Ok(conditions.sample(round, values, detail))
}

/// The windows of a slice, those together that count.
#[derive(Default)]
struct Windows {
    histogram: Histogram,
    paced: Paced,
    counted: u32,
    all: u32,
}

impl Windows {
    fn add(&mut self, paced: &Paced, latency: &Histogram, undisturbed: bool) {
        self.all += 1;
        let slipped = paced.slipped as f64 > SLIPPED * paced.offered as f64;
        if undisturbed && !slipped {
            self.counted += 1;
            self.paced.add(paced);
            self.histogram.merge(latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{SHARED, sample};

    #[test]
    fn everybody_is_offered_the_same_if_ovs_takes_part() {
        let names = ["vswitch", "ovs"].map(String::from);
        let offers = Offer::all(&names);
        assert_eq!(offers.last(), Some(&Offer::Of(1, 0.6)));
        let labels: Vec<_> = offers.iter().map(|offer| offer.label(&names)).collect();
        assert_eq!(
            labels,
            [
                "1 in flight (closed)",
                "0.1 of own rate",
                "0.5 of own rate",
                "0.9 of own rate",
                "0.6 of the rate of ovs"
            ]
        );
        assert_eq!(Offer::all(&names[..1]).len(), 4);
    }

    #[test]
    fn disturbed_windows_are_left_out() {
        let (mut windows, mut latency) = (Windows::default(), Histogram::default());
        latency.record(500);
        let paced = |slipped| Paced {
            offered: 1000,
            received: 999,
            slipped,
            ..Paced::default()
        };
        windows.add(&paced(0), &latency, true);
        windows.add(&paced(1), &latency, true);
        windows.add(&paced(2), &latency, true);
        windows.add(&paced(0), &latency, false);
        assert_eq!((windows.counted, windows.all), (2, 4));
        assert_eq!((windows.paced.lost(), windows.histogram.count()), (2, 2));
    }

    #[test]
    fn a_rate_is_known_for_a_class_only_if_it_counts() {
        let good = part_of(&sample(0, 8.0, SHARED, true), 0.5);
        assert_eq!(good, (4e6, Some(Class::Shared)));
        assert_eq!(part_of(&sample(0, 8.0, SHARED, false), 0.5).1, None);
    }
}
