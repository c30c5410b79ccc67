//! The findings in words: tables, costs, and whether targets are met.

use super::policy::{Modulo, Ours, Policy};
use super::{Case, FLOWS, Medians, PHASES, Report, Sample, Steering, WORK_NS};
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::columns;
use crate::stats::Summary;

impl Case {
    fn of(&self, name: &str, figure: impl Fn(&Sample) -> f64) -> Option<Summary> {
        let (_, samples) = self.samples.iter().find(|(known, _)| known == name)?;
        Summary::of(samples.iter().map(figure))
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |(name, samples): &(String, Vec<Sample>)| {
            let us = |figure: fn(&Sample) -> f64| {
                self.of(name, figure)
                    .map_or(String::new(), |of| format!("{:.3}", of.figure / 1e3))
            };
            let moved = self.of(name, |sample| sample.moved_percent);
            let sum = |figure: fn(&Sample) -> u64| samples.iter().map(figure).sum::<u64>();
            vec![
                self.label.clone(),
                name.clone(),
                us(|sample| sample.p50_ns),
                us(|sample| sample.p99_ns),
                moved.map_or(String::new(), |of| format!("{:.1}", of.figure)),
                sum(|sample| sample.reordered).to_string(),
                sum(|sample| sample.lost).to_string(),
                us(|sample| sample.cold_ns),
                sum(|sample| sample.cold_lost).to_string(),
            ]
        };
        self.samples.iter().map(row).collect()
    }

    /// Whether the targets are met.
    fn verdicts(&self) -> Vec<String> {
        let ratio = |figure: fn(&Sample) -> f64| {
            let (ours, theirs) = (self.of(Ours::NAME, figure)?, self.of(Modulo::NAME, figure)?);
            Some(100.0 * (ours.figure / theirs.figure - 1.0))
        };
        let p99 = ratio(|sample| sample.p99_ns).map(|percent| {
            let said = format!(
                "{}: p99 {percent:+.1} % against modulo, wanted {:+.0} %",
                self.label, -self.wanted
            );
            judged(&said, percent <= -self.wanted)
        });
        let cold = ratio(|sample| sample.cold_ns).map(|percent| {
            let said = format!(
                "{}: mean at cold start {percent:+.1} % against modulo, wanted at most +2 %",
                self.label
            );
            judged(&said, percent <= 2.0)
        });
        p99.into_iter().chain(cold).collect()
    }
}

fn judged(said: &str, met: bool) -> String {
    let word = if met { "met" } else { "NOT met" };
    format!("{said}: {word}.\n")
}

impl Report {
    /// The median over rounds of a cost of steering.
    fn steering(&self, figure: impl Fn(&Steering) -> f64) -> f64 {
        Summary::of(self.steering.iter().map(figure)).map_or(0.0, |of| of.figure)
    }

    fn state(&self, figure: impl Fn(&Medians) -> f64) -> f64 {
        Summary::of(self.state.iter().map(figure)).map_or(0.0, |of| of.figure)
    }

    fn costs(&self) -> String {
        let disturbed: u64 = self.state.iter().map(|of| of.disturbed).sum();
        let first = |figure: fn(&Steering) -> f64| self.steering(figure);
        let churned = self.steering.first().map_or(0, |of| of.churned);
        format!(
            "State of 256 B, ns: here {:.0}, fetched from another target {:.0}, new {:.0} ({disturbed} samples not counted). All by one\n\
             thread: what another core's cache and its answer would add to a fetch is not in it.\n\
             Steering, ns: hash {:.1} (64 bits {:.1}), select and note {:.1}, beside pins {:.1}, pinned {:.1}; hash, select and \
             note {:.1}, with pins {:.1}.\n\
             modulo {:.1}; Calisto's table {:.1} with {FLOWS} flows in it, new flows {:.1}.\n\
             {churned} flows come and go, {FLOWS} at a time, one in eight learned: {:.1} ns in the first tenth, {:.1} in the last.\n",
            self.state(|of| of.hit_ns),
            self.state(|of| of.moved_ns),
            self.state(|of| of.fresh_ns),
            first(|of| of.hash),
            first(|of| of.hash64),
            first(|of| of.select),
            first(|of| of.select_unpinned),
            first(|of| of.select_pinned),
            first(|of| of.whole),
            first(|of| of.whole_pins),
            first(|of| of.modulo),
            first(|of| of.calisto),
            first(|of| of.calisto_new),
            first(|of| of.churn.0),
            first(|of| of.churn.1),
        )
    }

    fn verdicts(&self) -> String {
        let ours = self.moved.iter().find(|(name, _)| name == Ours::NAME);
        let part = ours.and_then(|(_, steps)| steps.first()).copied();
        let part = 100.0 * part.unwrap_or(1.0);
        let select = self.steering(|of| of.select);
        let slower = self.steering(|of| 100.0 * (of.churn.1 / of.churn.0 - 1.0));
        let mut text = [
            judged(
                &format!("4 to 5 targets: {part:.1} % of flows move, wanted at most 21 %"),
                part <= 21.0,
            ),
            judged(
                &format!("steering: {select:.1} ns a packet, wanted at most 4"),
                select <= 4.0,
            ),
            judged(
                &format!("flows that come and go: {slower:+.1} % from first to last, wanted at most +10 %"),
                slower <= 10.0,
            ),
            judged(
                &format!(
                    "order at 90 % load: {} of {} packets, wanted 0 (of 10^8)",
                    self.soak.reordered, self.soak.packets
                ),
                self.soak.reordered == 0,
            ),
        ]
        .concat();
        for case in &self.cases {
            text += &case.verdicts().concat();
        }
        text
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        let heading = [
            "load", "", "p50 us", "p99 us", "moved %", "late", "lost", "cold us", "lost",
        ];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.cases.iter().flat_map(Case::rows));
        let steps = PHASES.windows(2).map(|p| format!("{}-{}", p[0], p[1]));
        let mut moved = vec![
            [String::from("flows moved, %")]
                .into_iter()
                .chain(steps)
                .collect(),
        ];
        moved.extend(self.moved.iter().map(|(name, parts)| {
            let parts = parts.iter().map(|part| format!("{:.1}", 100.0 * part));
            [name.clone()].into_iter().chain(parts).collect::<Vec<_>>()
        }));
        format!(
            "{}{}\n{}\n{}\nMedians over rounds, counts over all. Latency on a virtual clock with measured costs and {WORK_NS} ns of \
             work, hashing not included; cold: the first packet\nof every flow, mean. moved: packets whose flow's state was at another target; late: \
             done before an earlier one of the flow.\nOrder was watched at 90 % load: {} packets, {} late, {} lost, {} of moved \
             flows, {} buckets moved by idleness.\n\n{}",
            self.head.render(),
            columns(&rows, 2),
            columns(&moved, 1),
            self.costs(),
            self.soak.packets,
            self.soak.reordered,
            self.soak.lost,
            self.soak.moved,
            self.soak.weak_moves,
            self.verdicts(),
        )
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let group = |case: &Case| {
            let bars = names.iter().map(|name| case.of(name, |s| s.p99_ns / 1e3));
            (case.label.clone(), bars.collect())
        };
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "p99, us".into(),
            groups: self.cases.iter().map(group).collect(),
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::*;

    fn sample(p99_ns: f64, cold_ns: f64) -> Sample {
        Sample {
            rate: 8e3,
            p50_ns: 100.0,
            p99_ns,
            moved_percent: 1.0,
            reordered: 0,
            lost: 0,
            cold_ns,
            cold_lost: 0,
        }
    }

    #[test]
    fn targets_are_judged_as_they_fall() {
        let mut case = cases().remove(0);
        case.samples[0].1.push(sample(800.0, 100.0));
        case.samples[1].1.push(sample(1000.0, 100.0));
        let verdicts = case.verdicts().concat();
        assert!(
            verdicts.contains("p99 -20.0 % against modulo, wanted -15 %: met"),
            "{verdicts}"
        );
        case.samples[0].1[0] = sample(900.0, 103.0);
        let verdicts = case.verdicts().concat();
        assert_eq!(verdicts.matches("NOT met").count(), 2, "{verdicts}");
        assert_eq!(case.rows().len(), 3);
    }
}
