//! Medians and ratios, nothing that assumes a distribution.

use serde::Serialize;

/// A set of samples in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What stands for all of them: their median, the middle one or between the two in the middle, unless
    /// something better is known ([`Summary::with`]).
    pub figure: f64,
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
    /// Of the figures.
    pub of_figures: f64,
    /// The smallest and the largest ratio of two samples of the same round, if there is a round in
    /// which both count.
    pub spread: Option<(f64, f64)>,
    /// Their median: what drifts from round to round is not in it.
    pub paired: Option<f64>,
}

impl Summary {
    /// Of any number of samples but none.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let figure = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            figure,
            min,
            max,
            count: sorted.len(),
        })
    }

    /// With another figure than the median.
    #[must_use]
    pub fn with(self, figure: f64) -> Self {
        Self { figure, ..self }
    }
}

impl Ratio {
    /// Of two figures, and of the samples behind them that carry the number of their round, at most one
    /// per round on each side. None if theirs is nothing.
    pub fn of(
        (our, ours): (f64, &[(u32, f64)]),
        (their, theirs): (f64, &[(u32, f64)]),
    ) -> Option<Self> {
        let pairs = ours.iter().filter_map(|(round, value)| {
            let same = theirs.iter().find(|(other, _)| other == round)?;
            (same.1 > 0.0).then(|| value / same.1)
        });
        let pairs = Summary::of(pairs);
        (their > 0.0).then(|| Self {
            of_figures: our / their,
            spread: pairs.map(|pairs| (pairs.min, pairs.max)),
            paired: pairs.map(|pairs| pairs.figure),
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
            (odd.figure, odd.min, odd.max, odd.count),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).unwrap().figure, 2.5);
        assert_eq!(odd.with(9.0).figure, 9.0);
    }

    #[test]
    fn ratios_pair_rounds() {
        let ours = [(0, 10.0), (1, 30.0), (3, 20.0)];
        let theirs = [(0, 10.0), (2, 5.0), (3, 5.0)];
        let ratio = Ratio::of((20.0, &ours), (5.0, &theirs)).unwrap();
        assert_eq!(
            ratio,
            Ratio {
                of_figures: 4.0,
                spread: Some((1.0, 4.0)),
                paired: Some(2.5),
            }
        );
        let other_round = Ratio::of((20.0, &ours), (1.0, &[(9, 1.0)])).unwrap();
        assert_eq!(other_round.spread, None);
        assert_eq!(Ratio::of((20.0, &ours), (0.0, &[(0, 0.0)])), None);
    }

    proptest! {
        #[test]
        fn half_of_the_samples_lie_on_each_side(samples in prop::collection::vec(0.0..1e9, 1..50)) {
            let summary = Summary::of(samples.iter().copied()).unwrap();
            let below = samples.iter().filter(|s| **s <= summary.figure).count();
            let above = samples.iter().filter(|s| **s >= summary.figure).count();
            prop_assert!(2 * below >= samples.len() && 2 * above >= samples.len());
            prop_assert!(summary.min <= summary.figure && summary.figure <= summary.max);
        }
    }
}
