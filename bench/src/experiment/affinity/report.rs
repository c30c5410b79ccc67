//! The findings in words: tables, costs, and whether targets are met.

use super::costs::KINDS;
use super::policy::{Modulo, Ours, Policy};
use super::{Case, Churn, FLOWS, Order, PHASES, Report, Round, Sample, Steering};
use crate::probe::Class;
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::columns;
use crate::stats::Summary;

impl Case {
    fn samples(&self, name: &str) -> &[Sample] {
        let found = self.samples.iter().find(|(known, _)| known == name);
        found.map_or(&[], |(_, samples)| samples)
    }

    /// Over the rounds that count.
    fn of(&self, name: &str, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Summary> {
        let counted = self.samples(name).iter().filter(|s| s.discarded.is_none());
        Summary::of(counted.filter_map(figure))
    }

    /// A figure in parts of modulo's of the same round, less one, in percent: the host may have moved the CPUs between
    /// rounds.
    fn against(&self, name: &str, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Summary> {
        let pairs = self.samples(name).iter().zip(self.samples(Modulo::NAME));
        let counted = pairs.filter(|(a, b)| a.discarded.is_none() && b.discarded.is_none());
        Summary::of(
            counted
                .filter_map(|(ours, theirs)| Some(100.0 * (figure(ours)? / figure(theirs)? - 1.0))),
        )
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |(name, samples): &(String, Vec<Sample>)| {
            let us = |figure: &dyn Fn(&Sample) -> Option<f64>| {
                let of = self.of(name, figure);
                of.map_or(String::from("-"), |of| format!("{:.3}", of.figure / 1e3))
            };
            let sum = |figure: fn(&Sample) -> u64| samples.iter().map(figure).sum::<u64>();
            let part = self.of(name, |sample| Some(sample.fetched_percent));
            let ratio = self.against(name, |sample| Some(sample.percentiles_ns[2]));
            let calm = self.of(name, |sample| sample.calm_percent);
            let counted = samples.iter().filter(|s| s.discarded.is_none()).count();
            vec![
                self.label.clone(),
                name.clone(),
                us(&|sample| Some(sample.mean_ns)),
                us(&|sample| Some(sample.percentiles_ns[0])),
                us(&|sample| Some(sample.percentiles_ns[1])),
                us(&|sample| Some(sample.percentiles_ns[2])),
                ratio.map_or(String::new(), |r| {
                    format!("{:+.1} ({:+.1} to {:+.1})", r.figure, r.min, r.max)
                }),
                part.map_or(String::new(), |of| format!("{:.1}", of.figure)),
                sum(|sample| sample.reordered).to_string(),
                sum(|sample| sample.lost).to_string(),
                us(&|sample| sample.cold_ns),
                format!("{counted}/{}", samples.len()),
                calm.map_or(String::new(), |of| format!("{:.0}", of.figure)),
            ]
        };
        self.samples.iter().map(row).collect()
    }

    /// Whether the targets are met.
    fn verdicts(&self, place: &str) -> String {
        let name = Ours::NAME;
        let label = format!("{place}, {}", self.label);
        let p99 = self.against(name, |sample| Some(sample.percentiles_ns[2]));
        let p99 = p99.map(|percent| {
            let percent = percent.figure;
            let said = format!(
                "{label}: p99 {percent:+.1} % against modulo, wanted {:+.0} %",
                -self.wanted
            );
            judged(&said, percent <= -self.wanted)
        });
        let cold = self.against(name, |sample| sample.cold_ns).map(|percent| {
            let percent = percent.figure;
            let said = format!(
                "{label}: mean at cold start {percent:+.1} % against modulo, wanted at most +2 %"
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

impl Churn {
    fn text(&self) -> String {
        let heading = [
            "tenth",
            "ns/packet",
            "found %",
            "refused %",
            "pinned",
            "pins refused",
            "MiB",
        ];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.parts.iter().enumerate().map(|(number, part)| {
            vec![
                (number + 1).to_string(),
                format!("{:.1}", part.ns),
                format!("{:.2}", part.found_percent),
                format!("{:.4}", part.refused_percent),
                part.pinned.to_string(),
                part.pins_refused.to_string(),
                format!("{:.1}", part.resident_kib as f64 / 1024.0),
            ]
        }));
        format!(
            "{} flows come and go, {} at a time, {} packets; one flow in eight is learned to belong elsewhere. Cache, pins and view; at \
             most {} pins of {} at once.\n{}\n",
            self.distinct,
            self.alive,
            self.packets,
            self.pins.0,
            self.pins.1,
            columns(&rows, 0)
        )
    }

    fn verdicts(&self) -> String {
        let (slower, grown) = (self.slower_percent(), self.grown_kib());
        [
            judged(
                &format!("flows that come and go: {} packets failed, wanted 0", self.failed),
                self.failed == 0,
            ),
            judged(
                &format!("flows that come and go: {grown:+} KiB from the first tenth to the last, wanted at most +1024"),
                grown <= 1024,
            ),
            judged(
                &format!("flows that come and go: {slower:+.1} % from the second tenth to the last, wanted at most +10 %"),
                slower <= 10.0,
            ),
        ]
        .concat()
    }
}

impl Order {
    fn text(&self) -> String {
        format!(
            "Order, {}: {} packets, {} late, {} lost, {} fetched their state.\n",
            self.label, self.packets, self.reordered, self.lost, self.fetched
        )
    }

    fn verdict(&self) -> String {
        let said = format!(
            "order, {}: {} of {} packets late, wanted 0 (of 10^8)",
            self.label, self.reordered, self.packets
        );
        judged(&said, self.reordered == 0)
    }
}

impl Report {
    /// The median over rounds.
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        Summary::of(self.rounds.iter().map(figure)).map_or(0.0, |of| of.figure)
    }

    fn steps(&self) -> String {
        let mut rows = vec![
            ["ns, median (p99)"]
                .into_iter()
                .chain(KINDS)
                .map(String::from)
                .collect::<Vec<_>>(),
        ];
        for (label, busy) in [("at the paper's rates", false), ("at half load", true)] {
            let at = |kind: usize, high: bool| {
                self.median(|round| {
                    let medians = if busy { &round.busy } else { &round.idle };
                    let step = medians.steps.get(kind).copied().unwrap_or_default();
                    if high { step.1 } else { step.0 }
                })
            };
            let cells = (0..KINDS.len())
                .map(|kind| format!("{:.0} ({:.0})", at(kind, false), at(kind, true)));
            rows.push([String::from(label)].into_iter().chain(cells).collect());
        }
        columns(&rows, 1)
    }

    fn costs(&self) -> String {
        if self.rounds.is_empty() {
            return String::new();
        }
        let steering = |figure: fn(&Steering) -> f64| self.median(|round| figure(&round.steering));
        let bounces = self.rounds.iter().map(|round| {
            let (before, after) = round.bounce_ns;
            format!(
                "{before:.0} ({})",
                Class::of(f64::midpoint(before, after)).name()
            )
        });
        let capacity = self.median(|round| round.capacity);
        format!(
            "What steps took on the two CPUs, state 256 B a flow:\n{}A line takes from CPU to CPU, ns, by round: {}. Four targets on \
             the two CPUs do {:.2} Mpps.\n\
             Steering, ns: hash {:.1} (64 bits {:.1}), select and note {:.1}, beside pins {:.1}, pinned {:.1}; hash, select and \
             note {:.1}, with pins {:.1};\nmodulo {:.1}; Calisto's table {:.1} with {FLOWS} flows in it, new flows {:.1}.\n",
            self.steps(),
            bounces.collect::<Vec<_>>().join(", "),
            capacity / 1e6,
            steering(|of| of.hash),
            steering(|of| of.hash64),
            steering(|of| of.select),
            steering(|of| of.select_unpinned),
            steering(|of| of.select_pinned),
            steering(|of| of.whole),
            steering(|of| of.whole_pins),
            steering(|of| of.modulo),
            steering(|of| of.calisto),
            steering(|of| of.calisto_new),
        )
    }

    fn places(&self) -> [(&'static str, &Vec<Case>); 2] {
        [("two CPUs", &self.live), ("replay", &self.replay)]
    }

    fn table(&self) -> String {
        if self.rounds.is_empty() {
            return String::new();
        }
        let heading = [
            "load",
            "",
            "mean us",
            "p50",
            "p90",
            "p99",
            "p99 to modulo, %",
            "fetched %",
            "late",
            "lost",
            "cold us",
            "count",
            "calm %",
        ];
        let mut text = String::new();
        for (place, cases) in self.places() {
            let mut rows = vec![heading.map(String::from).to_vec()];
            rows.extend(cases.iter().flat_map(Case::rows));
            text += &match place {
                "replay" => format!(
                    "Eight targets on as many CPUs, on a virtual clock, with the times below; {} packets with each number of targets:\n",
                    self.settings.phase_packets
                ),
                _ => format!(
                    "Eight targets on two CPUs, real threads; {} s with each number of targets:\n",
                    self.settings.phase_seconds
                ),
            };
            text += &columns(&rows, 2);
            text.push('\n');
        }
        text += &format!(
            "Medians over rounds, counts over all. Latency: from when a packet was due until its {} ns of work are done. cold: the first\n\
             packet of every flow, mean (on two CPUs at half load). fetched: packets whose flow's state was at another target. late: done\n\
             after a later one of the flow. calm: windows of 0.5 ms in which both threads ran all the time; latencies and losses of others do\n\
             not count.\n\n",
            self.settings.work_ns
        );
        text
    }

    fn moves(&self) -> String {
        let steps = PHASES.windows(2).map(|p| format!("{}-{}", p[0], p[1]));
        let first = [String::from("flows moved, %")];
        let mut rows = vec![first.into_iter().chain(steps).collect::<Vec<_>>()];
        rows.extend(self.moved.iter().map(|(name, parts)| {
            let parts = parts.iter().map(|part| format!("{:.1}", 100.0 * part));
            [name.clone()].into_iter().chain(parts).collect()
        }));
        columns(&rows, 1)
    }

    fn verdicts(&self) -> String {
        let ours = self.moved.iter().find(|(name, _)| name == Ours::NAME);
        let part = ours.and_then(|(_, steps)| steps.first()).copied();
        let part = 100.0 * part.unwrap_or(1.0);
        let mut text = judged(
            &format!("4 to 5 targets: {part:.1} % of flows move, wanted at most 21 %"),
            part <= 21.0,
        );
        if !self.rounds.is_empty() {
            let select = self.median(|round| round.steering.select);
            text += &judged(
                &format!("steering: {select:.1} ns a packet, wanted at most 4"),
                select <= 4.0,
            );
        }
        for (place, cases) in self.places() {
            text.extend(cases.iter().map(|case| case.verdicts(place)));
        }
        text.extend(self.order.iter().map(Order::verdict));
        text.extend(self.churn.iter().map(Churn::verdicts));
        text
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        let mut text = self.head.render();
        text += &self.table();
        text += &self.moves();
        text.push('\n');
        text += &self.costs();
        text.push('\n');
        text.extend(self.order.iter().map(Order::text));
        text.extend(self.churn.iter().map(Churn::text));
        text.push('\n');
        text + &self.verdicts()
    }

    /// 99th percentiles in parts of modulo's, as loads differ by far more than ways to steer.
    fn chart(&self) -> Chart {
        let names = self.head.names();
        let group = |place: &str, case: &Case| {
            let bars = names.iter().map(|name| {
                let part = case.against(name, |sample| Some(sample.percentiles_ns[2]))?;
                let of = |percent: f64| 1.0 + percent / 100.0;
                Some(Summary {
                    figure: of(part.figure),
                    min: of(part.min),
                    max: of(part.max),
                    count: part.count,
                })
            });
            (format!("{place}, {}", case.label), bars.collect())
        };
        let groups = self.places().into_iter();
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "p99, parts of modulo's".into(),
            groups: groups
                .flat_map(|(place, cases)| cases.iter().map(move |case| group(place, case)))
                .collect(),
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cases, churn::Part};
    use super::*;

    fn sample(p99_ns: f64, cold_ns: f64) -> Sample {
        Sample {
            rate: 8e3,
            mean_ns: 100.0,
            percentiles_ns: [100.0, 200.0, p99_ns],
            packets: 1000,
            fetched_percent: 1.0,
            reordered: 0,
            lost: 0,
            cold_ns: Some(cold_ns),
            calm_percent: Some(90.0),
            discarded: None,
        }
    }

    #[test]
    fn targets_are_judged_as_they_fall() {
        let mut case = cases().remove(0);
        case.samples[0].1.push(sample(800.0, 100.0));
        case.samples[1].1.push(sample(1000.0, 100.0));
        let verdicts = case.verdicts("replay");
        assert!(
            verdicts.contains("p99 -20.0 % against modulo, wanted -15 %: met"),
            "{verdicts}"
        );
        case.samples[0].1[0] = sample(900.0, 103.0);
        let verdicts = case.verdicts("replay");
        assert_eq!(verdicts.matches("NOT met").count(), 2, "{verdicts}");
        assert_eq!(case.rows().len(), 3);
    }

    /// Rounds are compared with themselves, and not where either was disturbed.
    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut case = cases().remove(0);
        let mut disturbed = sample(10.0, 1.0);
        disturbed.discarded = Some("10 ms stolen by the host".into());
        case.samples[0].1 = vec![sample(500.0, 1.0), disturbed, sample(2000.0, 1.0)];
        case.samples[1].1 = [1000.0, 1000.0, 4000.0]
            .map(|p99| sample(p99, 1.0))
            .to_vec();
        let ratio = case
            .against(Ours::NAME, |s| Some(s.percentiles_ns[2]))
            .unwrap();
        assert_eq!((ratio.figure, ratio.count), (-50.0, 2));
        assert!(case.rows()[0].contains(&"2/3".to_owned()));
    }

    #[test]
    fn churn_is_judged_by_its_tenths() {
        let part = |ns, resident_kib| Part {
            ns,
            resident_kib,
            ..Part::default()
        };
        let mut churn = Churn {
            distinct: 100,
            alive: 10,
            packets: 400,
            parts: vec![part(50.0, 1000), part(100.0, 1000), part(109.0, 2000)],
            failed: 0,
            pins: (5, 10),
        };
        assert!(!churn.verdicts().contains("NOT"), "{}", churn.verdicts());
        churn.parts[2] = part(112.0, 3000);
        churn.failed = 1;
        assert_eq!(churn.verdicts().matches("NOT met").count(), 3);
        assert_eq!(churn.text().lines().count(), 6);
    }
}
