//! Medians and ratios, nothing that assumes a distribution.

use serde::Serialize;

/// A set of samples in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one, or between the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

/// One contestant's figure in parts of another's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Of the medians.
    pub of_medians: f64,
    /// The smallest and the largest ratio of two samples of the same round, if there is a round in
    /// which both count.
    pub spread: Option<(f64, f64)>,
}

impl Summary {
    /// Of any number of samples but none.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min,
            max,
            count: sorted.len(),
        })
    }
}

impl Ratio {
    /// Of samples that carry the number of their round, at most one per round on each side.
    pub fn of(ours: &[(u32, f64)], theirs: &[(u32, f64)]) -> Option<Self> {
        let median = |samples: &[(u32, f64)]| Summary::of(samples.iter().map(|s| s.1));
        let (our, their) = (median(ours)?.median, median(theirs)?.median);
        let pairs = ours.iter().filter_map(|(round, value)| {
            let same = theirs.iter().find(|(other, _)| other == round)?;
            Some(value / same.1)
        });
        Some(Self {
            of_medians: our / their,
            spread: Summary::of(pairs).map(|pairs| (pairs.min, pairs.max)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn medians() {
        assert_eq!(Summary::of([]), None);
        let odd = Summary::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (odd.median, odd.min, odd.max, odd.count),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn ratios_pair_rounds() {
        let ours = [(0, 10.0), (1, 30.0), (3, 20.0)];
        let theirs = [(0, 10.0), (2, 5.0), (3, 5.0)];
        let ratio = Ratio::of(&ours, &theirs).unwrap();
        assert_eq!(
            ratio,
            Ratio {
                of_medians: 4.0,
                spread: Some((1.0, 4.0))
            }
        );
        assert_eq!(Ratio::of(&ours, &[(9, 1.0)]).unwrap().spread, None);
        assert_eq!(Ratio::of(&ours, &[]), None);
    }

    proptest! {
        #[test]
        fn half_of_the_samples_lie_on_each_side(samples in prop::collection::vec(0.0..1e9, 1..50)) {
            let summary = Summary::of(samples.iter().copied()).unwrap();
            let below = samples.iter().filter(|s| **s <= summary.median).count();
            let above = samples.iter().filter(|s| **s >= summary.median).count();
            prop_assert!(2 * below >= samples.len() && 2 * above >= samples.len());
            prop_assert!(summary.min <= summary.median && summary.median <= summary.max);
        }
    }
}
