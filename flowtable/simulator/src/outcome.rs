//! What a run gave.

use serde::Serialize;

use crate::trace::Trace;

/// Parts of each power of two, as a power of two: delays are right to 1/32.
const BITS: u32 = 5;

/// How often which delay was seen, in ns.
#[derive(Clone, Debug, Default)]
pub struct Delays {
    counts: Vec<u64>,
    count: u64,
}

impl Delays {
    pub(crate) fn record(&mut self, delay: u64) {
        let power = (u64::BITS - delay.leading_zeros()).saturating_sub(BITS + 1);
        let place = ((u64::from(power) << BITS) + (delay >> power)) as usize;
        if place >= self.counts.len() {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
        self.count += 1;
    }

    /// How many.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The delay that this part of the packets did not exceed, in ns; 0 of none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> u64 {
        let mut left = (part * self.count as f64).ceil() as u64;
        for (delay, count) in self.steps() {
            if left <= count {
                return delay;
            }
            left -= count;
        }
        0
    }

    /// Delays with their counts, from the shortest.
    pub fn steps(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.counts.iter().enumerate();
        counts
            .filter(|(_, count)| **count > 0)
            .map(|(place, count)| {
                let place = place as u64;
                let power = (place >> BITS).saturating_sub(1);
                // The upper end of what falls here.
                let delay = ((place - (power << BITS) + 1) << power) - 1;
                (delay, *count)
            })
    }
}

/// The loads at a look, as parts of a worker, over the time since the last.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Look {
    /// When, in ns.
    pub at: u64,
    /// Of the worker given most.
    pub largest: f64,
    /// Of all, awake or not.
    pub mean: f64,
    /// Of the worker given most, those aside that the largest flows take for themselves.
    pub largest_of_rest: f64,
    /// Workers that were awake.
    pub awake: u16,
    /// Buckets that the policy moved then.
    pub moves: usize,
}

/// What the worker of a late packet suffered from. Late is a delay of a fourteenth of a full ring's or more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// An elephant came and overloads it until somebody moves something.
    Came,
    /// It is overloaded though others have room.
    Uneven,
    /// It is no longer overloaded, but has not caught up.
    Draining,
    /// It waits for another worker, to keep order.
    Waiting,
    /// All workers together have hardly any room.
    Full,
    /// Nothing: packets come at random.
    Chance,
}

/// Late packets, dropped ones among them, by [`Cause`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Late(pub [u64; 6]);

impl Late {
    /// Those by this cause.
    #[must_use]
    pub const fn of(&self, cause: Cause) -> u64 {
        self.0[cause as usize]
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whose.
    pub policy: &'static str,
    /// Packets that came.
    pub packets: u64,
    /// Of them, those that found the ring full.
    pub dropped: u64,
    /// Those that were completed after a later one of their flow.
    pub reordered: u64,
    /// Buckets that went to another worker.
    pub moved: u64,
    /// Entries of the table.
    pub entries: usize,
    /// Of packets that were not dropped.
    pub delays: Delays,
    /// The policy's own looks, the extra ones not among them.
    pub looks: Vec<Look>,
    /// One every 10 ms.
    pub samples: Vec<Look>,
    /// Workers awake, in the mean.
    pub awake: f64,
    /// Why packets were late.
    pub late: Late,
}

impl Outcome {
    /// After how many looks the largest load stays within this factor of the bound, of all workers and of those that
    /// remain when the largest flows have one each; none if it is above at the last look.
    #[must_use]
    pub fn settles(&self, bound: &Bound, factor: f64) -> [Option<usize>; 2] {
        let after = |of: fn(&Look) -> f64, bound: f64| {
            let within = |look: &Look| of(look) <= factor * bound;
            let settled = self
                .looks
                .iter()
                .rev()
                .take_while(|look| within(look))
                .count();
            (settled > 0).then(|| self.looks.len() - settled)
        };
        [
            after(|look| look.largest, bound.largest),
            after(|look| look.largest_of_rest, bound.largest_of_rest),
        ]
    }
}

/// What is possible at best when whole flows are steered.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Bound {
    /// The mean load, or the largest flow's if that is more.
    pub largest: f64,
    /// Workers that flows take for themselves, because each is larger than the mean of what the others have.
    pub alone: usize,
    /// The same as `largest` for the workers and flows that remain.
    pub largest_of_rest: f64,
}

impl Bound {
    /// Of a trace whose load does not change.
    #[must_use]
    pub fn of(trace: &Trace) -> Self {
        let flows = trace.flow_loads();
        let workers = usize::from(trace.workers);
        let mut left: f64 = flows.iter().sum();
        let largest = (left / workers as f64).max(flows[0]);
        let mut alone = 0;
        while alone + 1 < workers
            && flows
                .get(alone)
                .is_some_and(|flow| *flow > left / (workers - alone) as f64)
        {
            left -= flows[alone];
            alone += 1;
        }
        let mean = left / (workers - alone) as f64;
        Self {
            largest,
            alone,
            largest_of_rest: mean.max(flows.get(alone).copied().unwrap_or(0.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_part() {
        let mut delays = Delays::default();
        (1..=100_000).for_each(|delay| delays.record(delay));
        for part in [0.001, 0.5, 0.95, 0.99, 1.0] {
            let (seen, exact) = (delays.quantile(part) as f64, part * 100_000.0);
            assert!(
                seen >= exact && seen <= exact * 1.04 + 1.0,
                "{seen} for {exact}"
            );
        }
        assert_eq!(delays.steps().map(|(_, count)| count).sum::<u64>(), 100_000);
        assert_eq!(Delays::default().quantile(0.5), 0);
    }

    #[test]
    fn settled_is_from_when_on_it_stays() {
        let look = |largest| Look {
            at: 0,
            largest,
            mean: 0.5,
            largest_of_rest: 0.6,
            awake: 1,
            moves: 0,
        };
        let bound = Bound {
            largest: 0.6,
            alone: 0,
            largest_of_rest: 0.5,
        };
        let outcome = Outcome {
            policy: "",
            packets: 0,
            dropped: 0,
            reordered: 0,
            moved: 0,
            entries: 0,
            delays: Delays::default(),
            looks: [0.9, 0.6, 0.7, 0.65, 0.6].map(look).to_vec(),
            samples: Vec::new(),
            awake: 1.0,
            late: Late::default(),
        };
        assert_eq!(outcome.settles(&bound, 1.1), [Some(3), None]);
    }

    #[test]
    fn flows_above_the_mean_stand_alone() {
        let mut trace = Trace::zipf().unwrap();
        (trace.workers, trace.flows, trace.load) = (4, 3, 0.55);
        // Weights 1, 1/4, 1/9 of 1.361 share 2.2.
        trace.zipf = 2.0;
        let bound = Bound::of(&trace);
        assert_eq!(bound.alone, 3);
        assert!((bound.largest - 2.2 / 1.3611).abs() < 1e-3);
        assert!(bound.largest_of_rest < 1e-9);
        trace.flows = 100_000;
        trace.zipf = 0.8;
        let bound = Bound::of(&trace);
        assert_eq!((bound.alone, bound.largest), (0, bound.largest_of_rest));
        assert!((bound.largest - 0.55).abs() < 1e-9);
    }
}
