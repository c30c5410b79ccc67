//! What comes out of the runs.

use std::collections::BTreeMap;

use serde::Serialize;
use vswitch_steer_sim::outcome::Bound;
use vswitch_steer_sim::{Look, Outcome};

use super::Claim;
use crate::report::head::Head;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// How even the load becomes.
    pub balance: Vec<Balance>,
    /// How long packets take at 90 % load.
    pub delay: Vec<Delay>,
    /// How many workers are awake.
    pub scale: Vec<Run>,
    /// Time of a decision on 1,024 items and 16 workers: median and longest, in us.
    pub decision_us: (f64, f64),
    /// What should be, and is or is not.
    pub claims: Vec<Claim>,
}

/// A number of workers and an exponent, over all seeds; the worst of them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Balance {
    /// Workers.
    pub workers: u16,
    /// Exponent of Zipf's law.
    pub zipf: f64,
    /// What whole flows allow.
    pub bound: Bound,
    /// Looks until the largest load stays within 1.10 of the bound; none if it does not.
    pub settled: Option<usize>,
    /// The same without the workers that the largest flows have for themselves.
    pub settled_rest: Option<usize>,
    /// Largest load by the bound, of all looks after the tenth, at least of the last.
    pub after: f64,
    /// The same for the static table, of all its samples.
    pub fixed: f64,
    /// Most buckets moved at a look after the tenth, as part of all.
    pub moves: f64,
    /// Packets reordered.
    pub reordered: u64,
}

/// All policies at an exponent.
#[derive(Clone, Debug, Serialize)]
pub struct Delay {
    /// Workers.
    pub workers: u16,
    /// Exponent of Zipf's law.
    pub zipf: f64,
    /// The largest flow that is no elephant, in workers.
    pub largest_flow: f64,
    /// By policy.
    pub runs: Vec<Run>,
}

/// What a policy gave.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Whose.
    pub name: String,
    /// Delays in us, by quantile; of the first seed, as all but what says otherwise.
    pub us: BTreeMap<String, f64>,
    /// Part of the packets dropped.
    pub dropped: f64,
    /// Packets reordered.
    pub reordered: u64,
    /// Buckets moved.
    pub moved: u64,
    /// Workers awake in the mean.
    pub awake: f64,
    /// Its 95th percentile by seed, in us.
    pub p95_by_seed: Vec<f64>,
    /// Workers awake by seed.
    pub awake_by_seed: Vec<f64>,
    /// Part of the packets of all seeds that were late, by cause: see `vswitch_steer_sim::outcome::Cause`.
    pub late: [f64; 6],
    /// Every 10 ms.
    pub samples: Vec<Look>,
    /// Delay in us, and the part of the packets that had at most that.
    pub cdf: Vec<(f64, f64)>,
}

impl Run {
    pub(super) fn of(name: &str, outcome: Outcome) -> Self {
        let quantile = |part| outcome.delays.quantile(part) as f64 / 1000.0;
        let parts = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
        let mut sum = 0;
        let all = outcome.delays.count().max(1) as f64;
        let cdf = outcome.delays.steps().map(|(ns, count)| {
            sum += count;
            (ns as f64 / 1000.0, sum as f64 / all)
        });
        Self {
            name: name.into(),
            us: parts
                .map(|(name, part)| (name.into(), quantile(part)))
                .into(),
            dropped: outcome.dropped as f64 / outcome.packets.max(1) as f64,
            reordered: outcome.reordered,
            moved: outcome.moved,
            awake: outcome.awake,
            cdf: cdf.collect(),
            p95_by_seed: vec![quantile(0.95)],
            awake_by_seed: vec![outcome.awake],
            late: outcome
                .late
                .0
                .map(|count| count as f64 / outcome.packets.max(1) as f64),
            samples: outcome.samples,
        }
    }

    /// The first of these, which are of as many seeds, with what is told of all.
    pub(super) fn over_seeds(all: Vec<Self>) -> Option<Self> {
        let count = all.len() as f64;
        all.into_iter()
            .reduce(|mut first, next| {
                first.p95_by_seed.extend(next.p95_by_seed);
                first.awake_by_seed.extend(next.awake_by_seed);
                first.reordered += next.reordered;
                for (sum, late) in first.late.iter_mut().zip(next.late) {
                    *sum += late;
                }
                first
            })
            .map(|mut first| {
                first.late = first.late.map(|sum| sum / count);
                first
            })
    }

    pub(super) fn p95(&self) -> f64 {
        self.us.get("p95").copied().unwrap_or(f64::NAN)
    }
}
