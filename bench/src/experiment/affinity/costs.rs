//! What steps of a packet's way take: samples from real threads ([`live`](super::live)), which the replay draws from.

use serde::Serialize;

use crate::stats::Summary;

/// Longer than any of this can take: the machine was busy elsewhere.
const DISTURBED_NS: u64 = 20_000;
/// Samples kept of each kind.
const KEPT: usize = 100_000;

/// Samples of one kind, in ns.
pub(super) type Samples = Vec<u32>;

/// What was timed.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    /// A packet whose state is here: found, read and written.
    pub(super) hit: Samples,
    /// One whose flow is new: entered, read and written.
    pub(super) fresh: Samples,
    /// One whose state is on the other CPU: looked for in vain, its owner found and asked.
    pub(super) ask: Samples,
    /// The owner, asked for a state: taken out and sent.
    pub(super) give: Samples,
    /// The state has come: entered, read and written.
    pub(super) take: Samples,
    /// One whose state is at another target of the same CPU: taken out there, entered here, read and written.
    pub(super) local: Samples,
    /// From sending a message until its receiver begins with it.
    pub(super) wire: Samples,
    /// From asking until the state has come.
    pub(super) trip: Samples,
    /// Not counted: the machine was busy elsewhere.
    pub(super) disturbed: u64,
    /// What it takes to read the clock, subtracted.
    pub(super) clock_ns: u64,
}

/// The same in short: medians and 99th percentiles, in ns.
#[derive(Clone, Debug, Serialize)]
pub struct Medians {
    /// By kind, in the order of [`KINDS`].
    pub steps: Vec<(f64, f64)>,
    /// Samples not counted.
    pub disturbed: u64,
}

/// What the kinds are called, the replay's first.
pub(super) const KINDS: [&str; 8] = [
    "state here",
    "new flow",
    "ask",
    "give",
    "take",
    "message",
    "round trip",
    "same CPU",
];

impl Costs {
    pub(super) fn new(clock_ns: u64) -> Self {
        Self {
            clock_ns,
            ..Self::default()
        }
    }

    /// Counts a sample that had the clock read at both ends.
    #[inline]
    pub(super) fn count(&mut self, ns: u64, of: impl FnOnce(&mut Self) -> &mut Samples) {
        if ns > DISTURBED_NS {
            self.disturbed += 1;
            return;
        }
        let net = ns.saturating_sub(self.clock_ns) as u32;
        let samples = of(self);
        if samples.len() < KEPT {
            samples.push(net);
        }
    }

    fn all(&self) -> [&Samples; KINDS.len()] {
        [
            &self.hit,
            &self.fresh,
            &self.ask,
            &self.give,
            &self.take,
            &self.wire,
            &self.trip,
            &self.local,
        ]
    }

    fn all_mut(&mut self) -> [&mut Samples; KINDS.len()] {
        [
            &mut self.hit,
            &mut self.fresh,
            &mut self.ask,
            &mut self.give,
            &mut self.take,
            &mut self.wire,
            &mut self.trip,
            &mut self.local,
        ]
    }

    /// Adds what another has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.all_mut().into_iter().zip(other.all()) {
            mine.extend(theirs);
        }
        self.disturbed += other.disturbed;
    }

    pub(super) fn medians(&self) -> Medians {
        Medians {
            steps: self.all().map(|samples| at(samples)).to_vec(),
            disturbed: self.disturbed,
        }
    }

    /// The mean of hits.
    pub(super) fn mean_hit(&self) -> f64 {
        let sum: f64 = self.hit.iter().map(|ns| f64::from(*ns)).sum();
        sum / (self.hit.len().max(1) as f64)
    }
}

/// Median and 99th percentile.
fn at(samples: &[u32]) -> (f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let high = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0);
    let median = Summary::of(sorted.iter().map(|ns| f64::from(*ns)));
    (median.map_or(0.0, |of| of.figure), f64::from(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_and_disturbances_are_left_out() {
        let mut costs = Costs::new(20);
        for ns in [120, 10, DISTURBED_NS + 1, 320] {
            costs.count(ns, |costs| &mut costs.hit);
        }
        assert_eq!(
            (costs.hit.as_slice(), costs.disturbed),
            (&[100, 0, 300][..], 1)
        );
        let mut both = costs.clone();
        both.merge(&costs);
        assert_eq!((both.hit.len(), both.disturbed), (6, 2));
        assert_eq!(both.medians().steps[0], (100.0, 300.0));
        assert!((costs.mean_hit() - 400.0 / 3.0).abs() < 1e-9);
    }
}
