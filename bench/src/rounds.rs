//! Who is measured when, and when there is enough.
//!
//! Figures taken minutes apart differ by more than contestants do, so contestants take turns, a slice
//! each, and the order rotates so that nobody is always first. Slices that were disturbed or fell
//! into another cache class do not count, so rounds go on until every contestant has enough of one
//! class, or the limit is reached and there is less.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::interference::Interference;
use crate::probe::Class;
use crate::stats::{Ratio, Summary};

/// One slice.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Which round it belongs to.
    pub round: u32,
    /// The figure, in the report's unit.
    pub value: f64,
    /// Frames that arrived in the window.
    pub frames: u64,
    /// Frames that were sent and will not arrive, in the window.
    pub lost: u64,
    /// Length of the window, seconds.
    pub seconds: f64,
    /// Part of its turns in which the generator had nothing to do but wait for the contestant.
    pub generator_idle: f64,
    /// What the probe said before and after, nanoseconds a bounce.
    pub bounce_ns: (f64, f64),
    /// The class of that, before and after; they differ where the host moved a CPU meanwhile.
    pub class: (Class, Class),
    /// What disturbed it.
    pub interference: Interference,
    /// Why it does not count, if it does not.
    pub discarded: Option<String>,
}

impl Sample {
    /// Its class, if it counts.
    pub fn counts_for(&self) -> Option<Class> {
        (self.discarded.is_none() && self.class.0 == self.class.1).then_some(self.class.0)
    }
}

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

    /// Lets contestants take turns; returns the samples of each, in the order of the rounds.
    pub fn run<C, E>(
        &self,
        contestants: &mut [C],
        mut slice: impl FnMut(u32, &mut C) -> Result<Sample, E>,
    ) -> Result<Vec<Vec<Sample>>, E> {
        let mut samples = vec![Vec::new(); contestants.len()];
        for round in 0..self.limit {
            for index in order(round, contestants.len()) {
                samples[index].push(slice(round, &mut contestants[index])?);
            }
            if enough(&samples, self.wanted) {
                break;
            }
        }
        Ok(samples)
    }
}

/// The order of a round: everybody once, another first each time.
fn order(round: u32, contestants: usize) -> impl Iterator<Item = usize> {
    (0..contestants).map(move |place| (place + round as usize) % contestants)
}

fn enough(samples: &[Vec<Sample>], wanted: u32) -> bool {
    [Class::Shared, Class::Split].into_iter().any(|class| {
        samples
            .iter()
            .all(|samples| of_class(samples, class).len() >= wanted as usize)
    })
}

/// Round and value of the samples that count for a class.
fn of_class(samples: &[Sample], class: Class) -> Vec<(u32, f64)> {
    let counted = samples.iter().filter(|s| s.counts_for() == Some(class));
    counted.map(|s| (s.round, s.value)).collect()
}

/// What came out for one class of slices.
#[derive(Clone, Debug, Serialize)]
pub struct ClassResult {
    /// The class.
    pub class: Class,
    /// By contestant.
    pub summaries: BTreeMap<String, Summary>,
    /// The first contestant in parts of each other one.
    pub ratios: BTreeMap<String, Ratio>,
}

/// Sums up, class by class, the one with the most samples first. A class counts if the first
/// contestant has samples in it.
pub fn sum_up(names: &[String], samples: &[Vec<Sample>]) -> Vec<ClassResult> {
    let Some((first, others)) = names.split_first() else {
        return Vec::new();
    };
    let mut results = Vec::new();
    for class in [Class::Shared, Class::Split] {
        let counted: BTreeMap<_, _> = names
            .iter()
            .zip(samples)
            .map(|(name, s)| (name, of_class(s, class)))
            .collect();
        let ours = &counted[first];
        if ours.is_empty() {
            continue;
        }
        let summary = |name| {
            Some((
                String::clone(name),
                Summary::of(counted.get(name)?.iter().map(|s| s.1))?,
            ))
        };
        let ratio = |name| Some((String::clone(name), Ratio::of(ours, counted.get(name)?)?));
        results.push(ClassResult {
            class,
            summaries: names.iter().filter_map(summary).collect(),
            ratios: others.iter().filter_map(ratio).collect(),
        });
    }
    let size = |result: &ClassResult| result.summaries.values().map(|s| s.count).sum::<usize>();
    results.sort_by_key(|result| std::cmp::Reverse(size(result)));
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(round: u32, value: f64, class: (Class, Class), good: bool) -> Sample {
        Sample {
            round,
            value,
            frames: 1,
            lost: 0,
            seconds: 1.0,
            generator_idle: 0.5,
            bounce_ns: (80.0, 80.0),
            class,
            interference: Interference::default(),
            discarded: (!good).then(|| "noise".into()),
        }
    }

    const SHARED: (Class, Class) = (Class::Shared, Class::Shared);
    const SPLIT: (Class, Class) = (Class::Split, Class::Split);
    const MOVED: (Class, Class) = (Class::Shared, Class::Split);

    #[test]
    fn turns_rotate() {
        let mut turns = Vec::new();
        let schedule = Schedule {
            wanted: 3,
            limit: 9,
        };
        let samples = schedule
            .run(&mut ["a", "b", "c"], |round, name| {
                turns.push(*name);
                Ok::<_, ()>(sample(round, 1.0, SHARED, true))
            })
            .unwrap();
        assert_eq!(turns.concat(), "abcbcacab");
        assert!(samples.iter().all(|s| s.iter().map(|s| s.round).eq(0..3)));
    }

    #[test]
    fn rounds_go_on_until_one_class_is_full_for_all() {
        // Every other round of "b" falls into another class, "c" is always disturbed.
        let class = |round, name: &str| {
            if name == "b" && round % 2 == 1 {
                SPLIT
            } else {
                SHARED
            }
        };
        let count = |names: &mut [&str]| {
            let slice = |round, name: &mut &str| {
                Ok::<_, ()>(sample(round, 1.0, class(round, name), *name != "c"))
            };
            Schedule {
                wanted: 3,
                limit: 9,
            }
            .run(names, slice)
            .unwrap()[0]
                .len()
        };
        assert_eq!(count(&mut ["a"]), 3);
        assert_eq!(count(&mut ["a", "b"]), 5);
        assert_eq!(count(&mut ["a", "c"]), 9);
    }

    #[test]
    fn an_error_ends_the_run() {
        let slice = |_, _: &mut ()| Err::<Sample, _>("gone");
        assert_eq!(Schedule::new(3).run(&mut [()], slice).unwrap_err(), "gone");
    }

    #[test]
    fn classes_are_not_mixed() {
        let ours = vec![
            sample(0, 30.0, SHARED, true),
            sample(1, 10.0, SPLIT, true),
            sample(2, 32.0, SHARED, true),
            sample(3, 99.0, MOVED, true),
            sample(4, 1.0, SHARED, false),
        ];
        let peer = vec![sample(0, 15.0, SHARED, true), sample(1, 10.0, SPLIT, true)];
        let results = sum_up(&["us".into(), "peer".into()], &[ours, peer]);
        assert_eq!(results.len(), 2);
        assert_eq!(
            (results[0].class, results[0].summaries["us"].median),
            (Class::Shared, 31.0)
        );
        assert_eq!(results[0].summaries["us"].count, 2);
        assert_eq!(results[0].ratios["peer"].spread, Some((2.0, 2.0)));
        assert_eq!(results[1].ratios["peer"].of_medians, 1.0);
    }

    #[test]
    fn without_samples_of_ours_there_is_nothing_to_say() {
        let peer = vec![sample(0, 15.0, SHARED, true)];
        assert!(sum_up(&["us".into(), "peer".into()], &[Vec::new(), peer]).is_empty());
        assert!(sum_up(&[], &[]).is_empty());
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
