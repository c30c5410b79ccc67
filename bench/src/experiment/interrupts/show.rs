//! Tables and plots of rules over load.

use std::path::Path;

use super::{CPU, Case, INTERRUPTS, MEASURES, P99, Report};
use crate::Result;
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::columns;
use crate::report::lines::{self, Panel};

impl Case {
    /// Its heading, and a line for each contestant.
    fn table(&self, names: &[String]) -> String {
        let mut heading = vec!["rule".to_owned()];
        heading.extend(MEASURES.map(|m| format!("{}, {}", m.name, m.unit)));
        heading.push("slices".into());
        let result = self.rows.first().and_then(|row| row.results.first());
        let line = |name: &String| {
            let count = result?.summaries.get(name)?.count;
            let mut line = vec![name.clone()];
            for (number, measure) in MEASURES.iter().enumerate() {
                let digits = match measure.unit {
                    "per frame" => 4,
                    "ns/frame" => 0,
                    _ => 1,
                };
                let figure = self.figure(number, name);
                line.push(figure.map_or("-".into(), |figure| format!("{figure:.digits$}")));
            }
            line.push(count.to_string());
            Some(line)
        };
        let mut rows = vec![heading];
        rows.extend(names.iter().filter_map(line));
        let class = result.map_or("no slice counts", |result| result.class.name());
        format!(
            "{}; an interrupt {} us, a frame {} ns; caches: {class}\n{}",
            self.load.traffic.label(),
            self.costs.interrupt_ns as f64 / 1e3,
            self.costs.frame_ns,
            columns(&rows, 1)
        )
    }
}

impl Report {
    /// Lines over the rates of bulk: one panel for each figure and cost of an interrupt.
    fn panels(&self) -> Vec<Panel> {
        let mut costs: Vec<u64> = self.cases.iter().map(|c| c.costs.interrupt_ns).collect();
        costs.sort_unstable();
        costs.dedup();
        let shown: Vec<String> = self
            .head
            .names()
            .into_iter()
            .filter(|name| !self.statics.contains(name))
            .collect();
        let panel = |cost: u64, measure: usize| {
            let line = |name: &String| {
                let cases = self.cases.iter().filter(|c| c.costs.interrupt_ns == cost);
                let point =
                    |case: &Case| Some((case.load.traffic.kpps()?, case.figure(measure, name)?));
                (name.clone(), cases.filter_map(point).collect())
            };
            let Some(what) = MEASURES.get(measure) else {
                return Panel {
                    title: String::new(),
                    axes: [String::new(), String::new()],
                    log: false,
                    lines: Vec::new(),
                };
            };
            Panel {
                title: format!("{}, interrupts of {} us", what.name, cost / 1000),
                axes: ["thousands of frames a second".into(), what.unit.into()],
                log: true,
                lines: shown.iter().map(line).collect(),
            }
        };
        let of_cost = |cost| [INTERRUPTS, CPU, P99].map(|measure| panel(cost, measure));
        costs.into_iter().flat_map(of_cost).collect()
    }

    /// Slices that do not count.
    fn discarded(&self) -> String {
        let all = self
            .cases
            .iter()
            .flat_map(|case| case.samples.iter().flatten());
        let bad = all.clone().filter(|s| s.counts_for().is_none()).count();
        format!(
            "{bad} of {} slices do not count: disturbed, or the CPUs were moved meanwhile.\n",
            all.count()
        )
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        let names = self.head.names();
        let placement = self.head.machine.placement;
        let mut text = self.head.render();
        for case in &self.cases {
            text += &case.table(&names);
            text.push('\n');
        }
        text += &format!(
            "Shared: the guest, whose processor's time is simulated by the clock, and the load are one thread on CPU {}; the \
             worker has CPU {}.\nOf interrupts the guest pays all that is configured; the worker pays a write to a descriptor \
             that wakes nobody.\nWith requests, delays are theirs and the worker always polls; otherwise it sleeps when idle, \
             and its time is all it was awake.\n",
            placement.generator, placement.worker
        );
        text += &self.discarded();
        for verdict in &self.verdicts {
            text += &verdict.line();
            text.push('\n');
        }
        text + &self.head.not_measured()
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let group = |case: &Case| {
            let result = case.rows.first().and_then(|row| row.results.first());
            let bar = |name| result.and_then(|r| r.summaries.get(name)).copied();
            (case.load.traffic.label(), names.iter().map(bar).collect())
        };
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "ns of guest and worker a frame".into(),
            groups: self.cases.iter().map(group).collect(),
            names,
        }
    }

    fn plot(&self, path: &Path) -> Result<()> {
        match self.panels() {
            panels
                if panels
                    .iter()
                    .any(|p| p.lines.iter().any(|l| !l.1.is_empty())) =>
            {
                lines::write(&panels, path)
            }
            // No load has a rate of bulk alone.
            _ => self.chart().write(path),
        }
    }
}
