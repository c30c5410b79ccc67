//! `steer-sim`: the rebalancer and the scaler in a simulation, against a static table and RSS++'s constants.
//!
//! Nothing is measured here but the time that one decision takes, a median of microseconds that needs no quiet machine: the
//! rest runs on a virtual clock and gives the same figures everywhere. So it does not take the lock. The model, and what it leaves out, is in `vswitch-steer-sim`.
//!
//! Ours runs twice. *Waiting*: a bucket goes to its new worker when the old one has completed the last packet it was given
//! for it. *Gated*: it goes at once, and the new worker takes nothing behind its first packet until then. RSS++ keeps order
//! as gated does. Targets that are missed stand in the table as missed.

mod cases;
mod claims;
mod found;
mod render;

pub use claims::Claim;
pub use found::{Balance, Delay, Report, Run};

use crate::machine::Notes;
use crate::report::head::Head;
use crate::{Options, Result};

const NAMES: [(&str, &str); 6] = [
    ("static", "the table as it is made, for ever"),
    (
        "rss++",
        "128 entries, every 100 ms, target load 0.8, threshold 0.02; as read from the paper",
    ),
    (
        "waiting",
        "ours; a move waits until the old worker has completed the bucket's packets",
    ),
    ("gated", "ours; the new worker waits for the old one"),
    (
        "gated-25",
        "the same, parking a worker only when it was busy for less than a quarter, as the switch does",
    ),
    (
        "oracle",
        "knows every bucket's true rate, every 100 us; no switch can. What steering whole buckets by rates gives at best",
    ),
];

/// Runs all.
pub fn run(options: &Options) -> Result<Report> {
    let machine = Notes::take(options.placement()?, false);
    let quick = options.quick;
    let balance = cases::balance(quick)?;
    let delay = cases::delay(quick)?;
    let scale = cases::scale(quick)?;
    let decision_us = cases::decision_us();
    let claims = claims::claims(&balance, &delay, &scale, decision_us.0);
    let head = Head {
        experiment: "steer-sim".into(),
        title: "steering of flows to workers, simulated".into(),
        machine,
        contestants: NAMES
            .map(|(name, about)| (name.into(), about.into()))
            .to_vec(),
        skipped: Vec::new(),
    };
    Ok(Report {
        head,
        balance,
        delay,
        scale,
        decision_us,
        claims,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Findings;
    use vswitch_steer_sim::{Trace, run as simulate};

    fn report() -> Report {
        let mut trace = Trace::elephants().unwrap();
        (trace.workers, trace.millis, trace.flows) = (4, 30, 1000);
        let runs: Vec<_> = cases::policies(&trace, false)
            .into_iter()
            .map(|(name, mut policy, order)| {
                Run::of(name, simulate(&trace, policy.as_mut(), order))
            })
            .collect();
        let mut even = Trace::zipf().unwrap();
        (even.workers, even.millis) = (4, 30);
        let balance = vec![cases::balance_case(&mut even, 1)];
        let delay = vec![Delay {
            workers: 4,
            zipf: 1.0,
            largest_flow: 0.5,
            runs: runs.clone(),
        }];
        Report {
            head: Head {
                experiment: "steer-sim".into(),
                title: "simulated".into(),
                machine: crate::report::testing::report().machine,
                contestants: NAMES
                    .map(|(name, about)| (name.into(), about.into()))
                    .to_vec(),
                skipped: Vec::new(),
            },
            claims: claims::claims(&balance, &delay, &runs, 60.0),
            balance,
            delay,
            scale: runs,
            decision_us: (60.0, 70.0),
        }
    }

    #[test]
    fn what_is_missed_is_said() {
        let text = report().text();
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        let decision = line("decision on 1,024");
        assert!(
            decision.contains("60.0 us") && decision.ends_with("MISSED"),
            "{decision}"
        );
        assert!(line("no packet reordered").ends_with("met"));
        // Nobody parks a worker where nothing scales.
        assert!(line("workers awake over the on/off trace, gated").ends_with("MISSED"));
    }

    #[test]
    fn the_plot_has_three_panels() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steer.svg");
        report().plot(&path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["Largest load", "Delay", "Workers awake", "rss++", "gated"] {
            assert!(svg.contains(text), "{text} is not in the plot");
        }
    }
}
