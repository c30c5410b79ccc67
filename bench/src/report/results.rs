//! From samples to figures: one class of slices at a time, and the first contestant in parts of each
//! other one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::histogram::Histogram;
use crate::probe::Class;
use crate::sample::Sample;
use crate::stats::{Ratio, Summary};

/// What a row of figures is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// What distinguishes it from the case's other rows; empty if there are none.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// How samples become a figure.
    pub figure: Figure,
    /// Whether one contestant's figure in parts of another's means something.
    pub ratios: bool,
}

/// How samples become a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Figure {
    /// The median of the samples' values.
    Median,
    /// A quantile of all latencies together, in microseconds.
    Quantile(f64),
}

/// One figure of a case, all contestants.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub measure: Measure,
    /// By class of samples, the fullest first; empty if no sample of the first contestant counts.
    pub results: Vec<ClassResult>,
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

impl Measure {
    /// The median of values in a unit, compared by ratios.
    pub const fn median(name: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            unit,
            figure: Figure::Median,
            ratios: true,
        }
    }

    /// The same without ratios.
    pub const fn plain(name: &'static str, unit: &'static str) -> Self {
        Self {
            ratios: false,
            ..Self::median(name, unit)
        }
    }

    /// A quantile of latencies.
    pub const fn quantile(name: &'static str, q: f64) -> Self {
        Self {
            figure: Figure::Quantile(q),
            ..Self::median(name, "us")
        }
    }
}

/// Sums up, class by class, the one with the most samples first. `samples` are by contestant; a class
/// counts if the first contestant has samples in it.
pub fn sum_up(measures: &[Measure], names: &[String], samples: &[Vec<Sample>]) -> Vec<Row> {
    let row = |(number, measure): (usize, &Measure)| {
        let classes = [Class::Shared, Class::Split].into_iter();
        let mut results: Vec<_> = classes
            .filter_map(|class| of_class(class, number, measure, names, samples))
            .collect();
        let size = |result: &ClassResult| result.summaries.values().map(|s| s.count).sum::<usize>();
        results.sort_by_key(|result| std::cmp::Reverse(size(result)));
        Row {
            measure: *measure,
            results,
        }
    };
    measures.iter().enumerate().map(row).collect()
}

fn of_class(
    class: Class,
    number: usize,
    measure: &Measure,
    names: &[String],
    samples: &[Vec<Sample>],
) -> Option<ClassResult> {
    let mut counted = BTreeMap::new();
    for (name, samples) in names.iter().zip(samples) {
        let of_class = |s: &&Sample| s.counts_for() == Some(class);
        let samples: Vec<&Sample> = samples.iter().filter(of_class).collect();
        let value = |s: &&Sample| Some((s.round, *s.values.get(number)?));
        let values: Vec<(u32, f64)> = samples.iter().filter_map(value).collect();
        if let Some(summary) = Summary::of(values.iter().map(|v| v.1)) {
            let summary = match measure.figure {
                Figure::Median => summary,
                Figure::Quantile(q) => summary.with(quantile(q, &samples)),
            };
            counted.insert(name.clone(), (summary, values));
        }
    }
    let (first, others) = names.split_first()?;
    let (our, ours) = counted.get(first)?;
    let ratio = |name: &String| {
        let (their, theirs) = counted.get(name)?;
        let ratio = Ratio::of((our.figure, ours), (their.figure, theirs))?;
        Some((name.clone(), ratio))
    };
    let compared = others.iter().filter(|_| measure.ratios);
    Some(ClassResult {
        class,
        ratios: compared.filter_map(ratio).collect(),
        summaries: counted
            .iter()
            .map(|(name, (summary, _))| (name.clone(), *summary))
            .collect(),
    })
}

/// Of all latencies of these samples together, microseconds.
fn quantile(q: f64, samples: &[&Sample]) -> f64 {
    let mut all = Histogram::default();
    let each = samples.iter().filter_map(|sample| sample.histogram());
    each.for_each(|histogram| all.merge(histogram));
    all.quantile(q) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Paced;
    use crate::report::testing::{SHARED, SPLIT, sample};
    use crate::sample::Detail;

    const MPPS: [Measure; 1] = [Measure::median("", "Mpps")];

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn classes_are_not_mixed() {
        let ours = vec![
            sample(0, 30.0, SHARED, true),
            sample(1, 10.0, SPLIT, true),
            sample(2, 32.0, SHARED, true),
            sample(3, 99.0, (Class::Shared, Class::Split), true),
            sample(4, 1.0, SHARED, false),
        ];
        let peer = vec![sample(0, 15.0, SHARED, true), sample(1, 10.0, SPLIT, true)];
        let rows = sum_up(&MPPS, &names(&["us", "peer"]), &[ours, peer]);
        let results = &rows[0].results;
        assert_eq!((rows.len(), results.len()), (1, 2));
        let us = results[0].summaries["us"];
        assert_eq!(
            (results[0].class, us.figure, us.count),
            (Class::Shared, 31.0, 2)
        );
        assert_eq!(results[0].ratios["peer"].spread, Some((2.0, 2.0)));
        assert_eq!(results[1].ratios["peer"].of_figures, 1.0);
    }

    #[test]
    fn without_samples_of_ours_there_is_nothing_to_say() {
        let peer = vec![sample(0, 15.0, SHARED, true)];
        let rows = sum_up(&MPPS, &names(&["us", "peer"]), &[Vec::new(), peer]);
        assert!(rows[0].results.is_empty());
        assert!(sum_up(&MPPS, &[], &[])[0].results.is_empty());
    }

    #[test]
    fn percentiles_are_those_of_all_slices_together() {
        // 99 frames of 1 us in one slice, 1 of 9 us in another: the median of medians would be 5 us.
        let slice = |round, ns: u64, count, good| {
            let mut histogram = Histogram::default();
            (0..count).for_each(|_| histogram.record(ns));
            let detail = Detail::Latency {
                paced: Paced::default(),
                windows: (1, 1),
                histogram,
            };
            Sample {
                detail,
                ..sample(round, ns as f64 / 1e3, SHARED, good)
            }
        };
        let ours = vec![
            slice(0, 1000, 99, true),
            slice(1, 9000, 1, true),
            slice(2, 70_000, 500, false),
        ];
        let measures = [
            Measure::quantile("p50", 0.5),
            Measure {
                ratios: false,
                ..Measure::quantile("p50", 0.5)
            },
        ];
        let theirs = vec![slice(0, 2000, 10, true)];
        let rows = sum_up(&measures, &names(&["us", "peer"]), &[ours, theirs]);
        let result = &rows[0].results[0];
        let us = result.summaries["us"];
        assert!((us.figure - 1.0).abs() < 0.02, "{us:?}");
        assert_eq!((us.min, us.max, us.count), (1.0, 9.0, 2));
        assert!((result.ratios["peer"].of_figures - 0.5).abs() < 0.02);
        // The second row has no value in these samples.
        assert!(rows[1].results.is_empty());
    }
}
