//! `vvp`: guest to switch to guest, one direction, as many frames per second as get through.

use crate::contestant::Near;
use crate::generator::{FEATURES, Load, RING_SIZE, Timing};
use crate::interference::Limits;
use crate::lock::Lock;
use crate::machine::Notes;
use crate::report::{Case, Report, Settings};
use crate::rounds::{Schedule, sum_up};
use crate::{Options, Result};

/// The sizes of RFC 2544, section 9.1.
const SIZES: [usize; 7] = [64, 128, 256, 512, 1024, 1280, 1518];
const QUICK_SIZES: [usize; 2] = [64, 1500];
const FLOWS: [u32; 2] = [1, 1024];

const TIMING: Timing = Timing {
    warm_ms: 200,
    window_ms: 1000,
};
const QUICK_TIMING: Timing = Timing {
    warm_ms: 150,
    window_ms: 500,
};

fn loads(quick: bool) -> Vec<Load> {
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let load = |&frame_len: &usize| FLOWS.map(|flows| Load::new(frame_len, flows));
    sizes.iter().flat_map(load).collect()
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let title = "guest to switch to guest, one worker, one direction";
    measure(options, ("vvp", title), Near::Guest, &loads(options.quick))
}

/// Measures these loads, in frames per second.
pub(super) fn measure(
    options: &Options,
    (experiment, title): (&str, &str),
    near: Near,
    loads: &[Load],
) -> Result<Report> {
    let _lock = Lock::take()?;
    let mut field = super::Field::start(options, near)?;
    let placement = field.placement;
    let timing = if options.quick { QUICK_TIMING } else { TIMING };
    let settings = Settings {
        schedule: Schedule::new(options.rounds()),
        timing,
        limits: Limits::default(),
        ring_size: RING_SIZE,
        features: FEATURES,
    };
    let names: Vec<String> = field
        .contestants
        .iter()
        .map(|c| c.name().to_owned())
        .collect();
    let mut report = Report {
        experiment: experiment.into(),
        title: title.into(),
        unit: "Mpps".into(),
        machine: Notes::take(placement, field.favoured),
        settings,
        contestants: field
            .contestants
            .iter()
            .map(|c| (c.name().into(), c.describe()))
            .collect(),
        skipped: field.skipped.clone(),
        cases: Vec::new(),
    };
    for &load in loads {
        eprintln!("{} bytes, {} flows", load.frame_len, load.flows);
        let samples = settings
            .schedule
            .run(&mut field.contestants, |round, contestant| {
                super::slice(
                    contestant.as_mut(),
                    placement,
                    load,
                    timing,
                    settings.limits,
                    round,
                )
            })?;
        report.cases.push(Case {
            load,
            results: sum_up(&names, &samples),
            samples: names.iter().cloned().zip(samples).collect(),
        });
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_is_the_corners() {
        assert_eq!(loads(true).len(), 4);
        assert_eq!(loads(false).len(), 14);
        assert!(loads(true).contains(&Load::new(64, 1024)));
    }
}
