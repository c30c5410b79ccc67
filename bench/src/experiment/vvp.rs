//! `vvp`: guest to switch to guest, as many frames per second as get through.

use super::plan::{Plan, pick};
use super::{Heading, Session, in_turn, over_setups, rate_slice};
use crate::generator::{Load, Timing};
use crate::interference::Limits;
use crate::report::{Case, Measure, Report};
use crate::rounds::Schedule;
use crate::{Options, Result};

/// The sizes of RFC 2544, section 9.1, the largest without offloads that usually is sent, and jumbo.
const SIZES: [usize; 9] = [64, 128, 256, 512, 1024, 1280, 1500, 1518, 9000];
/// Where other things than the size are varied, and what a quick run has.
const CORNERS: [usize; 2] = [64, 1500];
const FLOWS: [u32; 2] = [1, 1024];
const MANY_FLOWS: [u32; 2] = [65_536, 1 << 20];
const MANY_MACS: u16 = 1024;

const TIMING: Timing = Timing {
    warm_ms: 200,
    window_ms: 1000,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 150,
    window_ms: 500,
};
const HEADING: Heading = Heading {
    experiment: "vvp",
    title: "guest to switch to guest, one worker, frames per second",
    unit: "Mpps",
};
const MEASURES: [Measure; 1] = [Measure::median("", "Mpps")];

/// Every case there is.
fn plans() -> Vec<Plan> {
    let sizes = SIZES
        .iter()
        .flat_map(|&len| FLOWS.map(|f| Load::new(len, f)));
    let sizes = sizes.chain(FLOWS.map(Load::imix)).map(Plan::of_size);
    let corners = |make: fn(usize) -> Vec<Plan>| CORNERS.into_iter().flat_map(make);
    let flows = corners(|len| {
        let plan = |flows| Plan::tagged("flows", Load::new(len, flows));
        MANY_FLOWS.map(plan).to_vec()
    });
    let macs = corners(|len| {
        let load = Load::new(len, MANY_MACS.into()).macs(MANY_MACS);
        vec![Plan::tagged("macs", load)]
    });
    let directions = corners(|len| {
        let plan = |flows| Plan::tagged("directions", Load::new(len, flows).both());
        FLOWS.map(plan).to_vec()
    });
    let touch = corners(|len| vec![Plan::tagged("touch", Load::new(len, 1024).touch())]);
    let packed = corners(|len| FLOWS.map(|f| Plan::packed(Load::new(len, f))).to_vec());
    let rest = flows.chain(macs).chain(directions).chain(touch);
    sizes.chain(rest).chain(packed).collect()
}

/// The cases asked for; of those that nobody asked for, a quick run has the corners.
fn wanted(options: &Options) -> Result<Vec<Plan>> {
    let mut plans = pick(plans(), &options.cases)?;
    if options.quick && options.cases.is_empty() {
        let corner = |plan: &Plan| CORNERS.iter().any(|len| plan.tag == format!("{len}B"));
        plans.retain(corner);
    }
    Ok(plans)
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let plans = wanted(options)?;
    measure(&open(options)?, &HEADING, plans)
}

/// A session of the length asked for.
pub(super) fn open(options: &Options) -> Result<Session<'_>> {
    let schedule = Schedule::new(options.rounds_or(7, 5));
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    Session::open(options, schedule, timing, Limits::default())
}

/// Measures these cases, in frames per second.
pub(super) fn measure(
    session: &Session<'_>,
    heading: &Heading,
    plans: Vec<Plan>,
) -> Result<Report> {
    let (schedule, timing) = (session.settings.schedule, session.settings.timing);
    over_setups(session, heading, plans, |field, plan, report| {
        let names = field.names();
        let limits = session.settings.limits;
        let samples = schedule.rounds(|round| {
            let one = in_turn(round, &mut field.contestants, |_, contestant| {
                let contestant = contestant.as_mut();
                rate_slice(
                    contestant,
                    session.placement,
                    limits,
                    plan.load,
                    timing,
                    round,
                )
            })?;
            Ok::<_, crate::Error>(vec![one])
        })?;
        let of_case = samples.into_iter().next().unwrap_or_default();
        report.cases.push(Case::new(
            plan.label(),
            plan.load,
            plan.rings,
            &MEASURES,
            &names,
            of_case,
        ));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn labels(args: &[&str]) -> Vec<String> {
        let options = Options::try_parse_from([&["bench", "vvp"], args].concat()).unwrap();
        let plans = wanted(&options).unwrap();
        plans.iter().map(Plan::label).collect()
    }

    #[test]
    fn quick_is_the_corners() {
        assert_eq!(
            labels(&["--quick"]),
            [
                "64 B, 1 flow",
                "64 B, 1024 flows",
                "1500 B, 1 flow",
                "1500 B, 1024 flows"
            ]
        );
    }

    #[test]
    fn every_case_is_there_once() {
        let all = labels(&[]);
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), unique.len()), (36, 36));
        for case in [
            "64 B, 1 Mi flows",
            "1500 B, 65536 flows",
            "64 B, 1024 flows, 1024 MACs",
            "64 B, 1 flow, both directions",
            "1500 B, 1024 flows, payload touched",
            "64 B, 1 flow, packed rings",
            "IMIX, 1024 flows",
            "9000 B, 1 flow",
        ] {
            assert!(all.iter().any(|label| label == case), "{case}");
        }
        assert_eq!(labels(&["--cases", "macs", "--quick"]).len(), 2);
    }
}
