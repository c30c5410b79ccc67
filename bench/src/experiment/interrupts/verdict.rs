//! Whether the switch's default rule is as good as it wants to be, at each cost of an interrupt.

use crate::napi::Traffic;
use crate::report::verdict::Verdict;

use super::{CPU, Case, GUEST, INTERRUPTS, MEAN, OURS, P99, RECEIVED};

/// Rates at which moderation has to pay, frames a second, and what it may take of one call per frame.
const MIDDLE: std::ops::RangeInclusive<f64> = 5e4..=5e5;
const HALF: f64 = 0.5;
/// How far from the best static setting.
const CLOSE: f64 = 0.02;
/// What requests may wait longer than with a call per burst, microseconds.
const ADDED: f64 = 2.0;
/// What requests beside bulk may take of what they take alone.
const BESIDE: f64 = 1.2;
/// Interrupts per frame that are none, in a flood.
const NONE: f64 = 1e-3;

/// The worst figure of several loads, and which load that was.
type Worst = Option<(f64, String)>;

fn worst(figures: impl Iterator<Item = (f64, String)>) -> Worst {
    figures.max_by(|a, b| a.0.total_cmp(&b.0))
}

fn judged(claim: String, worst: Worst, limit: f64, unit: &str) -> Verdict {
    let at = worst.as_ref().map_or(String::new(), |(_, at)| at.clone());
    Verdict::at_most(claim, worst.map(|(figure, _)| figure), limit, unit).and(at)
}

impl Case {
    /// A figure of one contestant in the class with most slices.
    pub(super) fn figure(&self, measure: usize, name: &str) -> Option<f64> {
        let result = self.rows.get(measure)?.results.first()?;
        Some(result.summaries.get(name)?.figure)
    }

    fn ratio(&self, measure: usize, name: &str) -> Option<(f64, String)> {
        let ratio = self.figure(measure, OURS)? / self.figure(measure, name)?;
        ratio
            .is_finite()
            .then(|| (ratio, self.load.traffic.label()))
    }
}

/// All of them.
pub(super) fn all(cases: &[Case], statics: &[String]) -> Vec<Verdict> {
    let mut costs: Vec<u64> = cases.iter().map(|case| case.costs.interrupt_ns).collect();
    costs.sort_unstable();
    costs.dedup();
    let of_cost = |cost: u64| {
        let cases: Vec<&Case> = cases
            .iter()
            .filter(|c| c.costs.interrupt_ns == cost)
            .collect();
        let with = |claim: &str| format!("interrupts of {} us: {claim}", cost / 1000);
        [
            half(
                &cases,
                CPU,
                with(
                    "guest and worker take at most half of one call per frame's time, 50 to 500 kpps",
                ),
            ),
            half(&cases, GUEST, with("the guest alone does")),
            best(
                &cases,
                statics,
                with("CPU within 2 % of the best static setting that delays no more, every load"),
            ),
            requests(
                &cases,
                with("requests take at most 2 us longer than with a call per burst, p99"),
            ),
            beside(
                &cases,
                with("requests beside bulk take at most 1.2 times what they take alone, p99"),
            ),
            quiet(&cases, with("a flooded guest is not interrupted")),
            equal(
                &cases,
                with("a flooded guest gets as much under every rule, to 2 %"),
            ),
        ]
    };
    costs.into_iter().flat_map(of_cost).collect()
}

fn half(cases: &[&Case], measure: usize, claim: String) -> Verdict {
    let middle = cases.iter().filter(|case| match case.load.traffic {
        Traffic::Poisson { rate } | Traffic::OnOff { rate } => MIDDLE.contains(&rate),
        _ => false,
    });
    let found = worst(middle.filter_map(|case| case.ratio(measure, "per-packet")));
    judged(claim, found, HALF, " of it at worst")
}

/// Settings that delay more than ours buy their calls with something ours does not take.
fn best(cases: &[&Case], statics: &[String], claim: String) -> Verdict {
    let beyond = |case: &&Case| {
        let (ours, mean) = (case.figure(CPU, OURS)?, case.figure(MEAN, OURS)?);
        let per_burst = "per-burst".to_owned();
        let allowed = statics.iter().chain([&per_burst]).filter_map(|name| {
            let as_soon = case.figure(MEAN, name)? <= mean;
            as_soon.then_some((case.figure(CPU, name)?, name))
        });
        let (best, name) = allowed.min_by(|a, b| a.0.total_cmp(&b.0))?;
        let what = format!("{} against {name}", case.load.traffic.label());
        Some(((ours / best - 1.0) * 100.0, what))
    };
    let found = worst(cases.iter().filter_map(beyond));
    judged(claim, found, CLOSE * 100.0, " % at worst")
}

fn requests(cases: &[&Case], claim: String) -> Verdict {
    let alone = cases.iter().filter(|case| {
        let traffic = case.load.traffic;
        matches!(traffic, Traffic::Requests { .. } | Traffic::Closed { .. })
    });
    let added = |case: &&Case| {
        let added = case.figure(P99, OURS)? - case.figure(P99, "per-burst")?;
        Some((added, case.load.traffic.label()))
    };
    judged(claim, worst(alone.filter_map(added)), ADDED, " us at worst")
}

fn beside(cases: &[&Case], claim: String) -> Verdict {
    let times = |case: &&Case| {
        let Traffic::Mixed { requests, .. } = case.load.traffic else {
            return None;
        };
        let same = Traffic::Requests { rate: requests };
        let alone = cases.iter().find(|other| other.load.traffic == same)?;
        let times = case.figure(P99, OURS)? / alone.figure(P99, OURS)?;
        Some((times, case.load.traffic.label()))
    };
    judged(
        claim,
        worst(cases.iter().filter_map(times)),
        BESIDE,
        " times",
    )
}

fn flood<'a>(cases: &[&'a Case]) -> Option<&'a Case> {
    cases
        .iter()
        .find(|case| case.load.traffic == Traffic::Flood)
        .copied()
}

fn quiet(cases: &[&Case], claim: String) -> Verdict {
    let interrupts = flood(cases).and_then(|case| case.figure(INTERRUPTS, OURS));
    Verdict::at_most(claim, interrupts, NONE, " interrupts a frame")
}

fn equal(cases: &[&Case], claim: String) -> Verdict {
    let result = flood(cases).and_then(|case| case.rows.get(RECEIVED)?.results.first());
    let figures = result.map(|result| {
        let all = result.summaries.values().map(|summary| summary.figure);
        let least = all.clone().fold(f64::INFINITY, f64::min);
        (all.fold(0.0, f64::max) / least - 1.0) * 100.0
    });
    Verdict::at_most(claim, figures, CLOSE * 100.0, " %")
}

#[cfg(test)]
mod tests {
    use super::super::{Load, MEASURES};
    use super::*;
    use crate::interference::Interference;
    use crate::napi::{Costs, Seen};
    use crate::report::sum_up;
    use crate::report::testing::SHARED;
    use crate::sample::{Detail, Sample};

    /// Contestants with these figures: CPU, interrupts per frame, p99, received, mean delay.
    fn case(traffic: Traffic, who: &[(&str, [f64; 5])]) -> Case {
        let slice = |[cpu, interrupts, p99, received, mean]: [f64; 5]| {
            let mut seen = Seen::default();
            seen.delays[0].record((p99 * 1e3) as u64);
            let cpu_use = crate::cputime::CpuUse {
                seconds: 1.0,
                percent: 1.0,
                ticks_percent: 1.0,
                sleeps_per_second: 0.0,
            };
            vec![Sample {
                round: 0,
                values: vec![cpu, cpu, 0.0, interrupts, p99, p99, received, mean],
                bounce_ns: (80.0, 80.0),
                class: SHARED,
                interference: Interference::default(),
                discarded: None,
                detail: Detail::Interrupted {
                    seen: Box::new(seen),
                    cpu: cpu_use,
                },
            }]
        };
        let names: Vec<String> = who.iter().map(|(name, _)| (*name).to_owned()).collect();
        let samples: Vec<_> = who.iter().map(|(_, figures)| slice(*figures)).collect();
        Case {
            load: Load { tag: "x", traffic },
            costs: Costs {
                interrupt_ns: 5000,
                frame_ns: 300,
            },
            rows: sum_up(&MEASURES, &names, &samples),
            samples,
        }
    }

    #[test]
    fn each_target_is_judged_by_its_worst_load() {
        let poisson = |rate, ours| {
            let who = [
                (OURS, [ours, 0.1, 30.0, 100.0, 20.0]),
                ("per-packet", [1000.0, 1.0, 5.0, 100.0, 2.0]),
                ("16us", [400.0, 0.1, 20.0, 100.0, 15.0]),
                ("256us", [100.0, 0.1, 300.0, 100.0, 130.0]),
            ];
            case(Traffic::Poisson { rate }, &who)
        };
        let one = |traffic, ours, burst| {
            let who = [
                (OURS, [1.0, 0.0, ours, 100.0, 1.0]),
                ("per-burst", [1.0, 0.0, burst, 101.0, 2.0]),
            ];
            case(traffic, &who)
        };
        let mixed = Traffic::Mixed {
            bulk: 1e5,
            requests: 5e3,
        };
        let mut cases = vec![
            poisson(1e5, 400.0),
            poisson(1e3, 407.0),
            one(Traffic::Requests { rate: 5e3 }, 11.0, 9.5),
            one(mixed, 13.0, 13.0),
            one(Traffic::Flood, 50.0, 50.0),
        ];
        let statics = ["16us", "256us"].map(String::from);
        let words = |cases: &[Case]| -> Vec<Option<bool>> {
            all(cases, &statics)
                .iter()
                .map(|verdict| verdict.met)
                .collect()
        };
        assert_eq!(
            words(&cases),
            [Some(true); 7],
            "{:?}",
            all(&cases, &statics)
        );
        cases.push(poisson(2e5, 600.0));
        cases.push(one(Traffic::Closed { connections: 1 }, 12.5, 10.0));
        let found = words(&cases);
        assert_eq!(found[..4], [Some(false); 4]);
        assert_eq!(found[4..], [Some(true); 3]);
        assert!(words(&[]).is_empty());
        assert_eq!(words(&cases[4..5])[0], None);
    }
}
