//! Tables and plots.

use std::path::Path;

use vswitch_steer_sim::Look;

use super::claims::{EVEN, LOOKS};
use super::{Balance, Delay, Report, Run};
use crate::Result;
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::columns;
use crate::report::lines::{self, Panel};
use crate::stats::Summary;

impl Run {
    fn row(&self, case: String) -> Vec<String> {
        let us = |name: &str| {
            self.us
                .get(name)
                .map_or(String::new(), |us| format!("{us:.0}"))
        };
        vec![
            case,
            self.name.clone(),
            us("p50"),
            us("p95"),
            us("p99"),
            format!("{:.2}", self.dropped * 100.0),
            self.reordered.to_string(),
            self.moved.to_string(),
            format!("{:.2}", self.awake),
        ]
    }
}

fn looks(count: Option<usize>) -> String {
    count.map_or("never".into(), |count| count.to_string())
}

impl Balance {
    fn row(&self) -> Vec<String> {
        vec![
            self.workers.to_string(),
            self.zipf.to_string(),
            format!("{:.2}", self.bound.largest),
            format!("{:.2}", self.fixed),
            format!("{:.3}", self.after),
            looks(self.settled),
            looks(self.settled_rest),
            format!("{:.2}", self.moves * 100.0),
        ]
    }
}

fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>, left: usize) -> String {
    let mut all = vec![heading.iter().map(|cell| (*cell).to_owned()).collect()];
    all.extend(rows);
    columns(&all, left)
}

/// In the order of `vswitch_steer_sim::outcome::Cause`.
const CAUSES: [&str; 8] = [
    "", "", "came", "uneven", "draining", "waiting", "full", "chance",
];

const RUN: [&str; 9] = [
    "",
    "",
    "p50",
    "p95",
    "p99",
    "dropped %",
    "reordered",
    "moved",
    "awake",
];

impl Findings for Report {
    fn text(&self) -> String {
        let balance = table(
            &[
                "workers", "zipf", "bound", "static", "ours", "looks", "rest", "moves %",
            ],
            self.balance.iter().map(Balance::row),
            0,
        );
        let delay = self.delay.iter().flat_map(|case| {
            let name = format!(
                "{} workers, zipf {}, largest flow {:.2}",
                case.workers, case.zipf, case.largest_flow
            );
            case.runs.iter().map(move |run| run.row(name.clone()))
        });
        let late = self.delay.iter().flat_map(|case| {
            let name = format!("{} workers, zipf {}", case.workers, case.zipf);
            case.runs.iter().map(move |run| {
                let mut row = vec![name.clone(), run.name.clone()];
                row.extend(run.late.map(|part| format!("{:.2}", part * 100.0)));
                row
            })
        });
        let scale = self.scale.iter().map(|run| run.row("on/off".into()));
        let claims = self.claims.iter().map(|claim| {
            let met = if claim.met { "met" } else { "MISSED" };
            vec![claim.text.clone(), claim.found.clone(), met.into()]
        });
        format!(
            "{}Largest load by the bound, max(mean, largest flow), in workers; looks until it stays within {EVEN:.2}; rest: \
             without the\nworkers that the largest flows fill; most buckets moved at a look after the {LOOKS}th.\n{balance}\n\
             Delay in us, rings of 1,024; of the first seed.\n{}\nLate packets (a fourteenth of a full ring's delay), %, all seeds.\n{}\n{}\nA decision: {:.1} us, at most {:.1}.\n{}",
            self.head.render(),
            table(&RUN, delay, 2),
            table(&CAUSES, late, 2),
            table(&RUN, scale, 2),
            self.decision_us.0,
            self.decision_us.1,
            columns(&claims.collect::<Vec<_>>(), 2),
        )
    }

    fn chart(&self) -> Chart {
        let names: Vec<String> = self.head.names();
        let group = |case: &Delay| {
            let bar = |name: &String| {
                let run = case.runs.iter().find(|run| run.name == *name)?;
                Summary::of([run.p95()])
            };
            (
                format!("{} workers, zipf {}", case.workers, case.zipf),
                names.iter().map(bar).collect(),
            )
        };
        Chart {
            title: format!("{}: 95th percentile of the delay", self.head.experiment),
            unit: "us".into(),
            groups: self.delay.iter().map(group).collect(),
            names,
        }
    }

    /// Load over time, delays, workers awake over time.
    fn plot(&self, path: &Path) -> Result<()> {
        let over_time = |run: &Run, of: fn(&Look) -> f64| {
            let points = run
                .samples
                .iter()
                .map(|look| (look.at as f64 / 1e6, of(look)));
            (run.name.clone(), points.collect())
        };
        let shown = self.delay.first();
        let runs = shown.map_or(&[][..], |case| &case.runs);
        let axes = |x: &str, y: &str| [x.to_owned(), y.to_owned()];
        let panels = [
            Panel {
                title: "Largest load of a worker at 90 %, elephants coming and going".into(),
                axes: axes("ms", "load"),
                log: false,
                lines: runs
                    .iter()
                    .map(|run| over_time(run, |look| look.largest))
                    .collect(),
            },
            Panel {
                title: "Delay: part of the packets by at most".into(),
                axes: axes("us", "part"),
                log: true,
                lines: runs
                    .iter()
                    .map(|run| (run.name.clone(), run.cdf.clone()))
                    .collect(),
            },
            Panel {
                title: "Workers awake, load on and off".into(),
                axes: axes("ms", "workers"),
                log: false,
                lines: self
                    .scale
                    .iter()
                    .map(|run| over_time(run, |look| f64::from(look.awake)))
                    .collect(),
            },
        ];
        lines::write(&panels, path)
    }
}
