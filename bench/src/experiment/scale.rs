//! `scale`: two workers against one, each driving its guests itself ([`Mesh`]): guests in pairs, and all to all.
//!
//! Contestants are the same mesh with a worker on one CPU and with a worker on each of two, so that the ratio is what the
//! second worker gives. Beside them bare movers between pairs, with one thread and two: what the machine gives when
//! threads share nothing.

use super::plan::{Plan, pick};
use super::{Heading, Session, watched};
use crate::contestant::Rings;
use crate::generator::{Load, Timing};
use crate::interference::Limits;
use crate::report::{Case, Measure, Report};
use crate::rounds::{Schedule, in_turn};
use crate::sample::Detail;
use crate::selfdriven::{Clock, FLOWS, Hot, Mesh, Moment, Path, Shares, Talk};
use crate::{Options, Result};

const SIZES: [usize; 2] = [64, 1500];

const TIMING: Timing = Timing {
    warm_ms: 100,
    window_ms: 800,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 60,
    window_ms: 400,
};
const HEADING: Heading = Heading {
    experiment: "scale",
    title: "self-driven rings of four guests, two workers against one, frames per second with guests' work",
    unit: "Mpps",
};
const MEASURES: [Measure; 4] = [
    Measure::median("", "Mpps"),
    Measure::median("forwarding alone", "Mpps of it"),
    Measure::plain("forwarding", "cycles"),
    Measure::plain("lost", "%"),
];
/// Who takes part, with one thread or two. The first is compared.
const FIELD: [(&str, Path, usize, &str); 4] = [
    (
        "two",
        Path::Switch,
        2,
        "the switch, a worker on each of the CPUs",
    ),
    (
        "one",
        Path::Switch,
        1,
        "the switch, one worker that has all guests",
    ),
    (
        "movers",
        Path::Mover,
        2,
        "bare movers, a thread on each of the CPUs",
    ),
    (
        "mover",
        Path::Mover,
        1,
        "bare movers, one thread that has all guests",
    ),
];

/// Who takes part where one queue is hot; both drive the same guests on the same CPUs.
const HOT_FIELD: [(&str, Path, usize, &str); 3] = [
    (
        "shared",
        Path::Switch,
        2,
        "the switch, the hot queue's owner helped by the worker on the other CPU",
    ),
    (
        "alone",
        Path::Switch,
        2,
        "the switch, the hot queue's owner alone; the other CPU drives two of the receivers",
    ),
    (
        "one",
        Path::Switch,
        1,
        "the switch, one worker that has all guests",
    ),
];

/// What the second worker has to give.
fn bar(talk: Talk) -> f64 {
    match talk {
        Talk::Disjoint => 1.95,
        Talk::All => 1.8,
        Talk::Hot => 1.5,
    }
}

fn tag(talk: Talk) -> &'static str {
    match talk {
        Talk::Disjoint => "disjoint",
        Talk::All => "all",
        Talk::Hot => "hot",
    }
}

fn label(talk: Talk, len: usize) -> String {
    match talk {
        Talk::Disjoint => format!("{len} B, in pairs"),
        Talk::All => format!("{len} B, all to all"),
        Talk::Hot => format!("{len} B, one hot queue"),
    }
}

/// Every case there is, with a plan that picks it.
fn plans(options: &Options) -> Result<Vec<(Talk, Plan)>> {
    let mut wanted = Vec::new();
    for talk in [Talk::Disjoint, Talk::All, Talk::Hot] {
        let plan = |len| Plan::tagged(tag(talk), Load::new(len, FLOWS));
        wanted.extend(SIZES.map(|len| (talk, plan(len))));
    }
    let known = wanted.iter().map(|(_, plan)| plan.clone()).collect();
    let picked = pick(known, &options.cases)?;
    wanted.retain(|(_, plan)| picked.contains(plan));
    Ok(wanted)
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let plans = plans(options)?;
    let schedule = Schedule::new(options.rounds_or(7, 5));
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    let session = Session::open(options, schedule, timing, Limits::default())?;
    let (placement, limits) = (session.placement, session.settings.limits);
    let clock = Clock::new()?;
    let mut report = session.report(&HEADING);
    let mut contestants = FIELD.to_vec();
    contestants.extend(&HOT_FIELD[..2]);
    report.contestants = contestants
        .iter()
        .map(|(name, _, _, about)| ((*name).into(), (*about).into()))
        .collect();
    for (talk, plan) in plans {
        let label = label(talk, plan.load.frame_len);
        eprintln!("{label}");
        let mesh = |path| Mesh::new(path, talk, plan.load.frame_len, placement, &clock);
        let mut meshes = vec![mesh(Path::Switch)?];
        if talk == Talk::Disjoint {
            // Movers cannot choose between receivers.
            meshes.push(mesh(Path::Mover)?);
        }
        let mesh_of = |path| usize::from(path == Path::Mover);
        let mut field = match talk {
            Talk::Hot => HOT_FIELD.to_vec(),
            _ => FIELD.to_vec(),
        };
        field.retain(|(_, path, ..)| mesh_of(*path) < meshes.len());
        let names: Vec<String> = field.iter().map(|(name, ..)| (*name).into()).collect();
        let samples = schedule.rounds(|round| {
            let taken = in_turn(round, &mut field, |_, (name, path, workers, _)| {
                let hot = match *name {
                    "shared" => Hot::Shared,
                    _ => Hot::Alone,
                };
                let mesh = &mut meshes[mesh_of(*path)];
                let (shares, conditions) = watched(placement, Some(limits), |watcher| {
                    let cpus = [placement.worker, placement.generator];
                    mesh.slice(&cpus[..*workers], hot, timing, |moment| match moment {
                        Moment::Started(tasks) => watcher.tasks = tasks,
                        Moment::Window(edge) => watcher.edge(edge),
                    })
                })?;
                let values = values(talk, &shares);
                Ok::<_, crate::Error>(conditions.sample(round, values, Detail::Workers(shares)))
            })?;
            Ok::<_, crate::Error>(vec![taken])
        })?;
        let of_case = samples.into_iter().next().unwrap_or_default();
        let case = Case::new(label, plan.load, Rings::Split, &MEASURES, &names, of_case);
        report.remarks.extend(verdicts(&case, talk));
        report.cases.push(case);
    }
    report.remarks.push(
        "Workers drive their guests themselves, so with two of them guests' lines stay with their CPU in pairs, and move \
         between CPUs all to all; with one worker they never do."
            .into(),
    );
    Ok(report)
}

/// In the order of the measures.
fn values(talk: Talk, shares: &Shares) -> Vec<f64> {
    vec![
        shares.mpps(),
        match talk {
            Talk::Disjoint | Talk::All => shares.forwarding_mpps(),
            Talk::Hot => shares.forwarding_together_mpps(),
        },
        shares.cycles(),
        shares.lost_percent(),
    ]
}

/// Whether the second worker gives what it has to, and what a second mover gives.
fn verdicts(case: &Case, talk: Talk) -> Vec<String> {
    let row = |number: usize| case.rows.get(number)?.results.first();
    let against = match talk {
        Talk::Disjoint | Talk::All => "one",
        Talk::Hot => "alone",
    };
    let ratio = |number| Some(row(number)?.ratios.get(against)?.of_figures);
    let (Some(all), Some(alone)) = (ratio(0), ratio(1)) else {
        return vec![format!("{}: not known.", case.label)];
    };
    let bar = bar(talk);
    let word = if all >= bar { "reached" } else { "NOT reached" };
    let mut said = format!(
        "{}: {bar} times with a second worker are {word}: {all:.2} times, {alone:.2} times of forwarding alone",
        case.label
    );
    let movers = |name| row(0).and_then(|result| Some(result.summaries.get(name)?.figure));
    said += &match (movers("movers"), movers("mover")) {
        (Some(two), Some(one)) => format!("; {:.2} times for bare movers.", two / one),
        _ => ".".into(),
    };
    vec![said]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{SHARED, sample};
    use crate::sample::Sample;

    fn case(two: f64, movers: bool) -> Case {
        let slices = |figures: [f64; 2]| {
            let sample = Sample {
                values: figures.to_vec(),
                ..sample(0, 0.0, SHARED, true)
            };
            vec![sample]
        };
        let mut names = vec!["two".to_owned(), "one".to_owned()];
        let mut samples = vec![slices([two, 3.0 * two]), slices([10.0, 20.0])];
        if movers {
            names.extend(["movers".to_owned(), "mover".to_owned()]);
            samples.extend([slices([38.0, 0.0]), slices([20.0, 0.0])]);
        }
        let load = Load::new(64, FLOWS);
        Case::new(
            "64 B".into(),
            load,
            Rings::Split,
            &MEASURES[..2],
            &names,
            samples,
        )
    }

    #[test]
    fn the_second_worker_is_judged() {
        let said = verdicts(&case(19.5, true), Talk::Disjoint);
        let wanted = "64 B: 1.95 times with a second worker are reached: 1.95 times, 2.92 times of forwarding alone; \
                      1.90 times for bare movers.";
        assert_eq!(said, [wanted]);
        let said = verdicts(&case(17.9, false), Talk::All).concat();
        assert!(
            said.contains("1.8 times with a second worker are NOT reached: 1.79"),
            "{said}"
        );
        assert!(!said.contains("movers"), "{said}");
    }
}
