//! `idle`: processor time that a switch uses while its guests send nothing, and what it costs not to poll when they do.
//!
//! All contestants are started with the same number of guests and stopped. In turn each is let go, given a moment to
//! come to rest, and watched for a while by what the kernel counts. The second part is the switch alone, in all manners
//! of `busy-poll`: see [`busy`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{hosts, session};
use crate::contestant::host::{Host, Idle, Kind};
use crate::contestant::ovs::Settings;
use crate::cputime::{CpuClock, CpuUse};
use crate::lock::Lock;
use crate::machine::Notes;
use crate::report::chart::Chart;
use crate::report::head::{Head, columns};
use crate::report::verdict::Verdict;
use crate::report::{Findings, Report as Load, table};
use crate::rounds::order;
use crate::stats::Summary;
use crate::{Error, Options, Result};

mod busy;
mod verdict;

/// The switch as shipped.
const OURS: &str = "vswitch";
/// What picks the first part.
const SILENT: &str = "silent";
/// Guests attached.
const GUESTS: [usize; 2] = [2, 16];
/// How long a contestant gets to come to rest.
const SETTLE: Duration = Duration::from_secs(1);
/// How long it is watched.
const WATCH: Duration = Duration::from_secs(10);
const QUICK_WATCH: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// By number of guests.
    pub cases: Vec<Case>,
    /// Of what silent guests cost.
    pub verdict: Verdict,
    /// The switch with something to do.
    pub busy: Load,
}

/// All contestants with so many guests.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// How many.
    pub guests: usize,
    /// By contestant, in the order of the rounds.
    pub samples: BTreeMap<String, Vec<CpuUse>>,
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, false);
    let program: PathBuf = session::program(options)?;
    // The same program for both parts, built once.
    let options = &Options {
        vswitchd: Some(program.clone()),
        ..options.clone()
    };
    let kinds = hosts::kinds(
        options,
        &[Idle::Adaptive, Idle::Polls],
        &[Kind::Ovs(Settings::DEFAULT), Kind::Testpmd],
    )?;
    let watch = if options.quick { QUICK_WATCH } else { WATCH };
    let mut field = hosts::Field::default();
    let mut cases = Vec::new();
    let wanted = &options.cases;
    let known = |tag: &String| tag == SILENT || busy::TAGS.contains(&tag.as_str());
    if let Some(tag) = wanted.iter().find(|tag| !known(tag)) {
        let tags = busy::TAGS.join(", ");
        return Err(Error::Usage(format!(
            "there is no case {tag}; there are {SILENT}, {tags}"
        )));
    }
    let silent = wanted.is_empty() || wanted.iter().any(|tag| tag == SILENT);
    for guests in GUESTS.into_iter().filter(|_| silent) {
        eprintln!("{guests} guests");
        let mut running = field.start(&kinds, guests, placement)?;
        let mut samples: BTreeMap<String, Vec<CpuUse>> = BTreeMap::new();
        for round in 0..options.rounds_or(7, 5) {
            for index in order(round, running.len()) {
                let one = &mut running[index];
                let used = watched(&mut one.host, watch)?;
                samples.entry(one.name.into()).or_default().push(used);
            }
        }
        cases.push(Case { guests, samples });
    }
    let title = format!(
        "CPU used while guests are attached and silent, {} x {} s",
        options.rounds_or(7, 5),
        watch.as_secs()
    );
    Ok(Report {
        verdict: verdict::of_silence(&cases),
        cases,
        busy: busy::run(options, &program, placement, machine.clone())?,
        head: field.head("idle", title, machine),
    })
}

/// A stopped contestant's turn.
fn watched(host: &mut Host, watch: Duration) -> Result<CpuUse> {
    host.resume()?;
    std::thread::sleep(SETTLE);
    let before = CpuClock::read(host.pid())?;
    std::thread::sleep(watch);
    let after = CpuClock::read(host.pid())?;
    host.stop()?;
    Ok(after.since(&before))
}

impl Case {
    /// Median, smallest and largest of a figure of one contestant.
    fn of(&self, name: &str, figure: impl Fn(&CpuUse) -> f64) -> Option<Summary> {
        Summary::of(self.samples.get(name)?.iter().map(figure))
    }

    fn rows(&self, names: &[(String, String)]) -> Vec<Vec<String>> {
        let row = |name: &String| {
            let percent = self.of(name, |used| used.percent)?;
            let ticks = self.of(name, |used| used.ticks_percent)?;
            let sleeps = self.of(name, |used| used.sleeps_per_second)?;
            Some(vec![
                name.clone(),
                self.guests.to_string(),
                format!("{:.2}", percent.figure),
                format!("{:.2} to {:.2}", percent.min, percent.max),
                format!("{:.1}", ticks.figure),
                format!("{:.1}", sleeps.figure),
            ])
        };
        names.iter().filter_map(|(name, _)| row(name)).collect()
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        let heading = ["", "guests", "CPU %", "range", "by ticks %", "sleeps/s"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        let cases = self.cases.iter();
        rows.extend(cases.flat_map(|case| case.rows(&self.head.contestants)));
        format!(
            "{}{}\nMedians; percent of one CPU, all threads of the process. Sleeps are voluntary context switches.\n{}\n{}\n\
             {}, frames of 64 bytes; CPU is that of all threads of the process\n{}",
            self.head.render(),
            columns(&rows, 1),
            self.verdict.line(),
            self.head.not_measured(),
            self.busy.title,
            table::body(&self.busy)
        )
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let group = |case: &Case| {
            let bars = names.iter().map(|name| case.of(name, |used| used.percent));
            (format!("{} guests", case.guests), bars.collect())
        };
        let load = |case: &crate::report::Case| {
            let row = case.rows.iter().find(|row| row.measure.unit == "%")?;
            let result = row.results.first();
            let bar = |name| result.and_then(|r| r.summaries.get(name)).copied();
            Some((case.label.clone(), names.iter().map(bar).collect()))
        };
        let mut groups: Vec<_> = self.cases.iter().map(group).collect();
        groups.extend(self.busy.cases.iter().filter_map(load));
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "% of a CPU".into(),
            groups,
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_by_contestant_and_number_of_guests() {
        let used = |percent| CpuUse {
            seconds: 2.0,
            percent,
            ticks_percent: percent + 1.0,
            sleeps_per_second: 10.0 * percent,
        };
        let samples = [
            ("vswitch".to_owned(), [0.5, 0.1, 0.2].map(used).to_vec()),
            ("testpmd".to_owned(), vec![used(100.0)]),
        ];
        let machine = crate::report::testing::report().machine;
        let mut field = hosts::Field::default();
        field.takes_part("vswitch", "");
        field.takes_part("testpmd", "");
        field.takes_part("absent", "");
        let report = Report {
            head: field.head("idle", "nothing".into(), machine),
            cases: vec![Case {
                guests: 16,
                samples: samples.into(),
            }],
            verdict: Verdict::at_most("it is quiet", Some(0.2), 1.0, " %"),
            busy: crate::report::testing::report(),
        };
        let text = report.text();
        assert!(text.contains("met: it is quiet (0.20 %)") && text.contains("All is well."));
        let row = |name: &str| {
            let first = text.split("\nMedians").next().unwrap_or_default();
            let mut rows = first.lines().filter(|line| line.starts_with(name));
            let last = rows.next_back().unwrap_or_default();
            last.split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            row("vswitch"),
            ["vswitch", "16", "0.20", "0.10", "to", "0.50", "1.2", "2.0"]
        );
        assert_eq!(row("testpmd")[2], "100.00");
        assert_eq!(row("absent").len(), 1, "only its description");
        let chart = report.chart();
        assert_eq!(chart.groups[0].1[0].map(|bar| bar.max), Some(0.5));
        assert_eq!(chart.groups[0].1[2], None);
    }
}
