//! `ndr`: the highest rate at which a contestant loses nothing (RFC 2544, section 26.1), or next to
//! nothing, and a soak below it.
//!
//! All contestants search at once: each in turn makes one trial of its own next rate, until none has any
//! left. That is a round. A trial without loss counts whatever the machine did; one with loss only if
//! nothing disturbed it.

use crate::contestant::Contestant;
use crate::generator::{Load, Paced, Timing};
use crate::interference::Limits;
use crate::report::{Case, Measure, Report};
use crate::rounds::{Schedule, in_turn};
use crate::sample::{Detail, Sample, Trial};
use crate::{Error, Options, Result};
use search::{Outcome, Search};

use super::plan::{Plan, pick};
use super::session::Field;
use super::{Conditions, Heading, Session, over_setups, rate_slice, slice, undisturbed_rate};

mod search;

const SIZES: [usize; 2] = [64, 1500];
const QUICK_SIZES: [usize; 1] = [64];
const FLOWS: u32 = 1024;

/// Of the slices that find the highest rate.
const TIMING: Timing = Timing {
    warm_ms: 50,
    window_ms: 500,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 50,
    window_ms: 300,
};
/// Of trials. Short, so that most of them are free of the moments in which a virtual CPU stands still: a ring of 1024 holds
/// 50 us of the rates in question, and nothing tells of a stall that is not much longer. A loss of 1e-5 is still
/// ten frames of them.
const TRIAL: Timing = Timing {
    warm_ms: 20,
    window_ms: 50,
};
/// To what part of the highest rate a search goes.
const RESOLUTION: f64 = 0.01;
const QUICK_RESOLUTION: f64 = 0.05;
/// Part of the rate without loss that a soak offers, and how long, seconds.
const SOAK: f64 = 0.9;
const SOAK_SECONDS: u32 = 10;
const QUICK_SOAK_SECONDS: u32 = 2;
/// Part of what was due that a generator may fail to offer for a trial to say something. While it stands
/// still nothing is offered, and no more is on its way than rings hold, so that this loses nothing.
const SLIPPED: f64 = 0.02;

const HEADING: Heading = Heading {
    experiment: "ndr",
    title: "guest to switch to guest, one worker, one direction: highest rates without loss",
    unit: "Mpps",
};
const MEASURES: [Measure; 4] = [
    Measure::median("highest rate", "Mpps"),
    Measure::median("no loss", "Mpps"),
    Measure::median("loss to 1e-5", "Mpps"),
    Measure::plain("no loss", "of highest"),
];
const SOAKED: [Measure; 2] = [
    Measure::plain("offered", "Mpps of a soak"),
    Measure::plain("lost", "part"),
];

/// Measures all sizes.
pub fn run(options: &Options) -> Result<Report> {
    let quick = options.quick && options.cases.is_empty();
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let plan = |len: &usize| Plan::of_size(Load::new(*len, FLOWS));
    let plans = pick(sizes.iter().map(plan).collect(), &options.cases)?;
    let wanted = options.rounds_or(5, 1);
    let schedule = Schedule {
        wanted,
        limit: wanted.saturating_mul(2),
    };
    let (timing, resolution, seconds) = if options.quick {
        (QUICK_TIMING, QUICK_RESOLUTION, QUICK_SOAK_SECONDS)
    } else {
        (TIMING, RESOLUTION, SOAK_SECONDS)
    };
    let session = Session::open(options, schedule, timing, Limits::for_losses())?;
    over_setups(&session, &HEADING, plans, |field, plan, report| {
        let names = field.names();
        let samples = schedule.rounds(|round| {
            Ok::<_, Error>(vec![one_round(
                &session, field, plan.load, resolution, round,
            )?])
        })?;
        let samples = samples.into_iter().next().unwrap_or_default();
        let case = Case::new(
            plan.label(),
            plan.load,
            plan.rings,
            &MEASURES,
            &names,
            samples,
        );
        let soaked = soak(&session, field, &case, options.soak.unwrap_or(seconds))?;
        report.remarks.extend(remarks(&soaked));
        report.cases.extend([case, soaked]);
        Ok(())
    })
}

/// A contestant's search, and what it has given so far.
struct Ongoing {
    search: Search,
    highest: f64,
    conditions: Conditions,
    trials: Vec<Trial>,
}

/// One search of each contestant, all at once.
fn one_round(
    session: &Session<'_>,
    field: &mut Field,
    load: Load,
    resolution: f64,
    round: u32,
) -> Result<Vec<Sample>> {
    let (placement, timing) = (session.placement, session.settings.timing);
    let mut searches = in_turn(round, &mut field.contestants, |_, contestant| {
        let highest = undisturbed_rate(|| {
            let limits = Limits::default();
            rate_slice(contestant.as_mut(), placement, limits, load, timing, round)
        })?;
        Ok::<_, Error>(Ongoing::after(&highest, resolution))
    })?;
    let mut step = round;
    while searches
        .iter()
        .any(|ongoing| ongoing.search.next().is_some())
    {
        in_turn(step, &mut field.contestants, |index, contestant| {
            let ongoing = &mut searches[index];
            match ongoing.search.next() {
                Some(rate) => ongoing.try_rate(session, contestant.as_mut(), load, rate),
                None => Ok(()),
            }
        })?;
        step += 1;
    }
    Ok(searches.into_iter().map(|s| s.sample(round)).collect())
}

impl Ongoing {
    /// Begins with the highest rate that a slice gave.
    fn after(highest: &Sample, resolution: f64) -> Self {
        let mpps = highest.values.first().copied().unwrap_or_default();
        Self {
            search: Search::new(mpps * 1e6, resolution),
            highest: mpps,
            conditions: Conditions {
                bounce_ns: highest.bounce_ns,
                class: highest.class,
                interference: highest.interference,
                discarded: highest.discarded.clone(),
            },
            trials: Vec::new(),
        }
    }

    fn try_rate(
        &mut self,
        session: &Session<'_>,
        contestant: &mut dyn Contestant,
        load: Load,
        rate: f64,
    ) -> Result<()> {
        let (paced, mut conditions) = slice(
            contestant,
            session.placement,
            Some(session.settings.limits),
            |wire, watcher| load.paced(wire, rate, TRIAL, None, |e| watcher.edge(e)),
        )?;
        let elsewhere = conditions.class != self.conditions.class;
        if elsewhere {
            conditions.discard(|| "other cache class than the highest rate".into());
        }
        self.search.note(outcome(&paced, &conditions, elsewhere));
        self.trials.push(Trial {
            rate,
            paced,
            interference: conditions.interference,
            discarded: conditions.discarded,
        });
        Ok(())
    }

    fn sample(mut self, round: u32) -> Sample {
        if self.search.given_up() {
            let discard = || "too many disturbed trials".to_owned();
            self.conditions.discard(discard);
        }
        let [none, little] = self.search.found().map(|rate| rate / 1e6);
        let part = if self.highest > 0.0 {
            none / self.highest
        } else {
            0.0
        };
        let values = vec![self.highest, none, little, part];
        self.conditions
            .sample(round, values, Detail::Search(self.trials))
    }
}

/// What a trial says.
fn outcome(paced: &Paced, conditions: &Conditions, elsewhere: bool) -> Outcome {
    let slipped = paced.slipped as f64 > SLIPPED * paced.offered as f64;
    if elsewhere {
        return Outcome::Elsewhere;
    }
    if slipped {
        return Outcome::Nothing;
    }
    Outcome::Lost {
        part: paced.loss(),
        disturbed: conditions.discarded.is_some(),
    }
}

/// Offers each contestant a part of its rate without loss for a longer time.
fn soak(session: &Session<'_>, field: &mut Field, case: &Case, seconds: u32) -> Result<Case> {
    let timing = Timing {
        window_ms: u64::from(seconds) * 1000,
        ..session.settings.timing
    };
    let names = field.names();
    let samples = in_turn(0, &mut field.contestants, |_, contestant| {
        let results = case.rows.get(1).and_then(|row| row.results.first());
        let found = results.and_then(|r| r.summaries.get(contestant.name()));
        let rate = SOAK * 1e6 * found.map_or(0.0, |summary| summary.figure);
        if rate <= 0.0 {
            return Ok(Vec::new());
        }
        let limits = Some(session.settings.limits);
        let (paced, conditions) = slice(
            contestant.as_mut(),
            session.placement,
            limits,
            |wire, watcher| {
                case.load
                    .paced(wire, rate, timing, None, |e| watcher.edge(e))
            },
        )?;
        let values = vec![paced.offered_rate() / 1e6, paced.loss()];
        Ok::<_, Error>(vec![conditions.sample(0, values, Detail::Offered(paced))])
    })?;
    let label = format!("{}, {seconds} s at {SOAK} of no loss", case.label);
    let (load, rings) = (case.load, case.rings);
    Ok(Case::new(label, load, rings, &SOAKED, &names, samples))
}

/// How each soak went, disturbed ones too.
fn remarks(soaked: &Case) -> Vec<String> {
    let told = soaked.samples.iter().map(|(name, samples)| {
        let Some(Sample {
            detail: Detail::Offered(paced),
            discarded,
            ..
        }) = samples.first()
        else {
            return format!("{}: {name} was not soaked, it has no rate.", soaked.label);
        };
        let disturbed = discarded.as_ref();
        let disturbed = disturbed.map_or(String::new(), |why| format!("; disturbed: {why}"));
        format!(
            "{}: {name} lost {} of {}{disturbed}.",
            soaked.label,
            paced.lost(),
            paced.offered
        )
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Rings;
    use crate::report::testing::{SHARED, SPLIT, sample};

    fn paced(offered: u64, received: u64, slipped: u64) -> Paced {
        Paced {
            offered,
            received,
            slipped,
            ..Paced::default()
        }
    }

    #[test]
    fn a_search_knows_its_class_and_reports_in_mpps() {
        let mut ongoing = Ongoing::after(&sample(3, 8.0, SHARED, true), 0.01);
        assert_eq!(ongoing.search.next(), Some(8e6));
        let conditions = ongoing.conditions.clone();
        let good = outcome(&paced(1000, 1000, 0), &conditions, false);
        ongoing.search.note(good);
        let sample = ongoing.sample(3);
        assert_eq!(sample.values, [8.0, 8.0, 8.0, 1.0]);
        assert_eq!((sample.round, sample.class), (3, SHARED));
        assert!(sample.discarded.is_none());
    }

    #[test]
    fn what_was_not_offered_says_nothing() {
        let mut conditions = Ongoing::after(&sample(0, 8.0, SPLIT, true), 0.01).conditions;
        let lost = |disturbed| Outcome::Lost {
            part: 0.1,
            disturbed,
        };
        assert_eq!(
            outcome(&paced(1000, 900, 1), &conditions, false),
            lost(false)
        );
        assert_eq!(
            outcome(&paced(1000, 1000, 21), &conditions, false),
            Outcome::Nothing
        );
        assert_eq!(
            outcome(&paced(1000, 1000, 0), &conditions, true),
            Outcome::Elsewhere
        );
        conditions.discard(|| "noise".into());
        assert_eq!(
            outcome(&paced(1000, 900, 0), &conditions, false),
            lost(true)
        );
    }

    #[test]
    fn soaks_are_told_one_by_one() {
        let soak = Sample {
            values: vec![1.0, 0.01],
            detail: Detail::Offered(paced(200, 198, 0)),
            ..sample(0, 1.0, SHARED, false)
        };
        let names = ["a", "b"].map(String::from);
        let case = Case::new(
            "x".into(),
            Load::new(64, 1),
            Rings::Split,
            &SOAKED,
            &names,
            vec![vec![soak], Vec::new()],
        );
        assert_eq!(
            remarks(&case),
            [
                "x: a lost 2 of 200; disturbed: 30 ms stolen by the host.",
                "x: b was not soaked, it has no rate."
            ]
        );
    }
}
