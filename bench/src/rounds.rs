//! Who is measured when, and when there is enough.
//!
//! Figures taken minutes apart differ by more than contestants do, so contestants take turns, a slice
//! each, and the order rotates so that nobody is always first. Slices that were disturbed or fell
//! into another cache class do not count, so rounds go on until every contestant has enough of one
//! class, or the limit is reached and there is less.

use serde::Serialize;

use crate::probe::Class;
use crate::sample::Sample;

/// How long to go on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Schedule {
    /// Samples wanted of each contestant in one class.
    pub wanted: u32,
    /// Rounds at most.
    pub limit: u32,
}

impl Schedule {
    /// So many samples, in at most three times as many rounds.
    pub fn new(wanted: u32) -> Self {
        Self {
            wanted,
            limit: wanted.saturating_mul(3),
        }
    }

    /// Makes rounds until there is enough. A round gives a sample of each contestant in each of some
    /// cases; the outcome is by case, contestant and round.
    pub fn rounds<E>(
        &self,
        mut round: impl FnMut(u32) -> Result<Vec<Vec<Sample>>, E>,
    ) -> Result<Vec<Vec<Vec<Sample>>>, E> {
        let mut cases: Vec<Vec<Vec<Sample>>> = Vec::new();
        for number in 0..self.limit {
            for (case, samples) in round(number)?.into_iter().enumerate() {
                if cases.len() == case {
                    cases.push(vec![Vec::new(); samples.len()]);
                }
                for (all, sample) in cases[case].iter_mut().zip(samples) {
                    all.push(sample);
                }
            }
            if cases.iter().all(|samples| enough(samples, self.wanted)) {
                break;
            }
        }
        Ok(cases)
    }
}

/// Everybody once, another first each time; the outcomes are in the order of the contestants.
pub fn in_turn<C, T, E>(
    round: u32,
    contestants: &mut [C],
    mut slice: impl FnMut(usize, &mut C) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let mut taken = Vec::with_capacity(contestants.len());
    for index in order(round, contestants.len()) {
        taken.push((index, slice(index, &mut contestants[index])?));
    }
    taken.sort_by_key(|(index, _)| *index);
    Ok(taken.into_iter().map(|(_, value)| value).collect())
}

/// The order of a round.
pub(crate) fn order(round: u32, contestants: usize) -> impl Iterator<Item = usize> {
    (0..contestants).map(move |place| (place + round as usize) % contestants)
}

fn enough(samples: &[Vec<Sample>], wanted: u32) -> bool {
    let count = |samples: &[Sample], class| {
        let counted = samples.iter().filter(|s| s.counts_for() == Some(class));
        counted.count()
    };
    [Class::Shared, Class::Split]
        .into_iter()
        .any(|class| samples.iter().all(|s| count(s, class) >= wanted as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{SHARED, SPLIT, sample};
    use proptest::prelude::*;

    #[test]
    fn turns_rotate_and_outcomes_do_not() {
        let mut turns = String::new();
        for round in 0..3 {
            let taken = in_turn(round, &mut ["a", "b", "c"], |index, name| {
                turns += name;
                Ok::<_, ()>(index)
            });
            assert_eq!(taken.unwrap(), [0, 1, 2]);
        }
        assert_eq!(turns, "abcbcacab");
    }

    #[test]
    fn rounds_go_on_until_one_class_is_full_for_all() {
        // Every other round of "b" falls into another class, "c" is always disturbed.
        let count = |names: &[&str]| {
            let schedule = Schedule {
                wanted: 3,
                limit: 9,
            };
            let round = |round| {
                let one = |name: &&str| {
                    let away = *name == "b" && round % 2 == 1;
                    let class = if away { SPLIT } else { SHARED };
                    sample(round, 1.0, class, *name != "c")
                };
                Ok::<_, ()>(vec![names.iter().map(one).collect()])
            };
            schedule.rounds(round).unwrap()[0][0].len()
        };
        assert_eq!(count(&["a"]), 3);
        assert_eq!(count(&["a", "b"]), 5);
        assert_eq!(count(&["a", "c"]), 9);
    }

    #[test]
    fn every_case_has_to_be_full() {
        let round = |round| {
            let of = |good| vec![sample(round, 1.0, SHARED, good)];
            Ok::<_, ()>(vec![of(true), of(round > 1)])
        };
        let cases = Schedule::new(2).rounds(round).unwrap();
        assert_eq!((cases.len(), cases[0][0].len()), (2, 4));
        assert!(cases[1][0].iter().map(|s| s.round).eq(0..4));
    }

    #[test]
    fn an_error_ends_the_run() {
        let error = Schedule::new(3).rounds(|_| Err("gone")).unwrap_err();
        assert_eq!(error, "gone");
    }

    proptest! {
        #[test]
        fn everybody_has_one_turn_a_round(round in any::<u32>(), count in 1usize..20) {
            let mut turns: Vec<_> = order(round, count).collect();
            prop_assert_eq!(turns[0], round as usize % count);
            turns.sort_unstable();
            prop_assert!(turns.into_iter().eq(0..count));
        }
    }
}
