//! What nobody can do: knows every bucket's true rate at once.

use super::{Change, Policy, View};

/// Evens the load out every 100 us by the true rates, which no policy of a switch has: what steering whole buckets gives at
/// best, as far as a greedy search finds it. It does not look at queues.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    last: u64,
}

const EVERY: u64 = 100_000;
/// An imbalance that is left alone.
const LEFT: f64 = 0.002;

impl Policy for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn due(&self) -> Option<u64> {
        Some(self.last + EVERY)
    }

    fn knows(&self) -> bool {
        true
    }

    fn plan(&mut self, view: &View<'_>, parked: &mut [bool], changes: &mut Vec<Change>) {
        self.last = view.now;
        let share = |bucket: usize| view.loads[bucket] as f64 / view.elapsed as f64;
        let mut owners = view.owners.to_vec();
        let mut loads = vec![0.0; parked.len()];
        for (bucket, owner) in owners.iter().enumerate() {
            loads[usize::from(*owner)] += share(bucket);
        }
        let mut aside = parked.to_vec();
        loop {
            let inside = || (0..loads.len()).filter(|one| !aside[*one]);
            let by = |one: &usize, other: &usize| loads[*one].total_cmp(&loads[*other]);
            let (Some(from), Some(to)) = (inside().max_by(by), inside().min_by(by)) else {
                break;
            };
            let mean = inside().map(|one| loads[one]).sum::<f64>() / inside().count() as f64;
            if loads[from] - mean <= LEFT {
                break;
            }
            // The one that leaves the lower maximum of the two; of equals the larger.
            let own = (0..owners.len()).filter(|bucket| usize::from(owners[*bucket]) == from);
            let after = |bucket: usize| {
                let load = share(bucket);
                (loads[from] - load).max(loads[to] + load)
            };
            let best = own.min_by(|one, other| after(*one).total_cmp(&after(*other)));
            let better = best.filter(|best| after(*best) < loads[from] - LEFT / 2.0);
            let Some(bucket) = better else {
                aside[from] = true;
                continue;
            };
            loads[from] -= share(bucket);
            loads[to] += share(bucket);
            owners[bucket] = to as u16;
        }
        let moved = owners.iter().zip(view.owners).enumerate();
        let moved = moved.filter(|(_, (now, before))| now != before);
        changes.extend(moved.map(|(bucket, (now, _))| (bucket, *now)));
    }
}
