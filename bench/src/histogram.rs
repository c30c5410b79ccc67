//! A log-linear histogram: counts of whole numbers by size, with a bounded relative error.

use serde::Serialize;

/// Parts that each power of two is cut into, as a power of two: values are right to 1/64.
const BITS: u32 = 6;
const PARTS: usize = 1 << BITS;
const BUCKETS: usize = (u64::BITS - BITS + 1) as usize * PARTS;

/// How often which values were seen. Values under 64 are exact, others right to 1.6 %; the extremes are
/// exact.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Histogram {
    #[serde(skip)]
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

/// Which bucket a value belongs to.
#[inline]
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - BITS).saturating_sub((value | 1).leading_zeros() + 1);
    // The value without the bits cut off is under 2 * PARTS, and not under PARTS if any were.
    shift as usize * PARTS + (value >> shift) as usize
}

/// The highest value in a bucket.
fn top(bucket: usize) -> u64 {
    let shift = (bucket / PARTS).saturating_sub(1);
    let part = (bucket - shift * PARTS) as u64;
    (part << shift) | ((1 << shift) - 1)
}

impl Histogram {
    /// Counts a value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        let pairs = self.counts.iter_mut().zip(&other.counts);
        pairs.for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest; 0 if there is none.
    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// The largest; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean; 0 if there is no value.
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        self.sum as f64 / self.count as f64
    }

    /// The value that the part `q` (0 to 1) of all values does not exceed; 0 if there is none.
    pub fn quantile(&self, q: f64) -> u64 {
        let wanted = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, |bucket| top(bucket).clamp(self.min(), self.max))
    }

    /// Every value seen, as the highest of its bucket and how often, smallest first.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let all = self.counts.iter().enumerate();
        all.filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (top(bucket), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_values_are_exact() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.min()), (0, 0));
        (1..=100).for_each(|value| histogram.record(value));
        assert_eq!(histogram.quantile(0.5), 50);
        assert_eq!((histogram.min(), histogram.max()), (1, 100));
        assert_eq!(histogram.quantile(1.0), 100);
        assert_eq!((histogram.mean(), histogram.count()), (50.5, 100));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_values_that_are_close(value in any::<u64>()) {
            let at = bucket(value);
            prop_assert!(at < BUCKETS);
            prop_assert!(top(at) >= value);
            prop_assert!(top(at) - value <= value / PARTS as u64);
            prop_assert!(at == 0 || top(at - 1) < value);
        }

        #[test]
        fn merged_is_as_if_counted_together(
            a in prop::collection::vec(any::<u64>(), 0..50),
            b in prop::collection::vec(any::<u64>(), 0..50),
        ) {
            let of = |values: &[&[u64]]| {
                let mut histogram = Histogram::default();
                values.concat().iter().for_each(|v| histogram.record(*v));
                histogram
            };
            let mut merged = of(&[&a]);
            merged.merge(&of(&[&b]));
            prop_assert_eq!(merged, of(&[&a, &b]));
        }
    }
}
