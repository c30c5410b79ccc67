//! `tcp`: two Linux guests with one NIC each, one TCP connection in each direction, and ping.
//!
//! Segmentation and checksums are left to the NIC, as Linux does by default. Every contestant has a pair of guests of
//! its own, booted once; in its turn the pair runs, in all others it stands still. Guests, QEMU and contestant share
//! the machine's CPUs as they come, without priorities.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::hosts;
use crate::contestant::host::{Idle, Kind};
use crate::contestant::ovs::Settings;
use crate::contestant::pair::{Direction, Pair};
use crate::cpu::Placement;
use crate::interference::{Limits, Watch};
use crate::lock::Lock;
use crate::machine::Notes;
use crate::probe::{self, Class};
use crate::report::chart::Chart;
use crate::report::head::{Head, columns};
use crate::report::{ClassResult, Findings, Measure, Row, sum_up};
use crate::rounds::order;
use crate::sample::{Detail, Sample};
use crate::stats::Summary;
use crate::{Options, Peer, Result};

/// Length of a stream, seconds.
const SECONDS: u32 = 5;
const QUICK_SECONDS: u32 = 2;
/// Pings of a turn.
const PINGS: u32 = 50;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// When a turn does not count; delays and preemptions are not looked at.
    pub limits: Limits,
    /// All turns by contestant.
    pub turns: BTreeMap<String, Vec<Sample>>,
    /// The figures, by class of turns.
    pub figures: Vec<Row>,
}

/// A turn's figures.
const MEASURES: [Measure; 3] = [
    Measure::median("TCP forth", "Gbit/s"),
    Measure::median("TCP back", "Gbit/s"),
    Measure::median("ping p50", "us"),
];

/// Measures all contestants.
pub fn run(options: &Options) -> Result<Report> {
    // Without guests there is nothing to wait for.
    vswitch_tests::machine::need_guests()?;
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, false);
    let kinds = hosts::kinds(
        options,
        &[Idle::Adaptive, Idle::Polls],
        &[Kind::Ovs(Settings::TSO)],
    )?;
    let seconds = if options.quick {
        QUICK_SECONDS
    } else {
        SECONDS
    };
    let limits = Limits::default();
    let mut field = hosts::Field::default();
    let mut pairs = start(&mut field, &kinds, options, placement)?;
    let mut turns = vec![Vec::new(); pairs.len()];
    for round in 0..options.rounds_or(7, 5) {
        eprintln!("round {}", round + 1);
        for index in order(round, pairs.len()) {
            let pair = &mut pairs[index];
            let taken = turn(pair, seconds, placement, limits, round);
            turns[index].push(taken.map_err(|error| pair.explain(error))?);
        }
    }
    let title = format!(
        "TCP and ping between two Linux guests ({}), one NIC each, {} x {seconds} s",
        if vswitch_tests::machine::kvm() {
            "KVM"
        } else {
            "emulated"
        },
        options.rounds_or(7, 5)
    );
    let head = field.head("tcp", title, machine);
    let names = head.names();
    Ok(Report {
        figures: sum_up(&MEASURES, &names, &turns),
        turns: names.into_iter().zip(turns).collect(),
        limits,
        head,
    })
}

/// Boots everybody's guests; they stand still.
fn start(
    field: &mut hosts::Field,
    kinds: &[Kind],
    options: &Options,
    placement: Placement,
) -> Result<Vec<Pair>> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut add = |name: &'static str, boot: &dyn Fn() -> Result<Pair>| -> Result<()> {
        eprintln!("booting guests: {name}");
        let booted = boot().and_then(|mut pair| pair.stop().map(|()| pair));
        match booted {
            Ok(pair) => {
                field.takes_part(name, pair.about());
                pairs.push(pair);
            }
            Err(error) if pairs.is_empty() => return Err(error),
            Err(error) => field.is_left_out(&format!("{name}: {error}")),
        }
        Ok(())
    };
    for kind in kinds {
        let name = kind.name();
        add(name, &|| Pair::on_host(name, kind.start(2, placement)?))?;
    }
    if options.wants(Peer::Bridge) {
        add("bridge", &|| Pair::on_bridge("bridge"))?;
    }
    Ok(pairs)
}

fn turn(
    pair: &mut Pair,
    seconds: u32,
    placement: Placement,
    limits: Limits,
    round: u32,
) -> Result<Sample> {
    let before = probe::bounce(placement)?;
    pair.resume()?;
    let (watch, started) = (Watch::start(placement, Vec::new()), Instant::now());
    let forth = pair.stream(Direction::Forth, seconds)?;
    let back = pair.stream(Direction::Back, seconds)?;
    let ping_us: Vec<f64> = pair.ping(PINGS)?.iter().map(|ms| ms * 1e3).collect();
    let (interference, window) = (watch.since(), started.elapsed());
    pair.stop()?;
    let after = probe::bounce(placement)?;
    let class = (Class::of(before), Class::of(after));
    let moved = (class.0 != class.1).then(|| "the CPUs were moved".to_owned());
    let ping = Summary::of(ping_us.iter().copied()).map(|times| times.figure);
    Ok(Sample {
        round,
        values: [forth / 1e9, back / 1e9].into_iter().chain(ping).collect(),
        bounce_ns: (before, after),
        class,
        interference,
        discarded: moved.or_else(|| limits.verdict(&interference, window)),
        detail: Detail::Streams {
            seconds: window.as_secs_f64(),
            ping_us,
        },
    })
}

/// A figure's rows of the table, class by class.
fn lines(figure: &Row, names: &[String]) -> Vec<Vec<String>> {
    let what = format!("{}, {}", figure.measure.name, figure.measure.unit);
    if figure.results.is_empty() {
        return vec![vec![what, "no turn counts".into()]];
    }
    let row = |result: &ClassResult, name: &String| {
        let summary = result.summaries.get(name)?;
        let ratio = result.ratios.get(name).map(|ratio| {
            let spread = ratio
                .spread
                .map(|(min, max)| format!(" ({min:.2} to {max:.2})"));
            format!("{:.2}{}", ratio.of_figures, spread.unwrap_or_default())
        });
        let digits = if summary.figure < 100.0 { 2 } else { 0 };
        Some(vec![
            what.clone(),
            name.clone(),
            result.class.name().into(),
            format!("{:.digits$}", summary.figure),
            format!("{:.digits$} to {:.digits$}", summary.min, summary.max),
            ratio.unwrap_or_default(),
            summary.count.to_string(),
        ])
    };
    let results = figure.results.iter();
    let rows = results.flat_map(|result| names.iter().filter_map(move |name| row(result, name)));
    rows.collect()
}

impl Findings for Report {
    fn text(&self) -> String {
        let names = self.head.names();
        let last = format!("{} / it", names.first().map_or("", String::as_str));
        let heading = ["", "", "cache", "median", "range", &last, "turns"];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.figures.iter().flat_map(|figure| lines(figure, &names)));
        let all = self.turns.values().flatten();
        let discarded = all.clone().filter(|turn| turn.discarded.is_some()).count();
        let remark = match discarded {
            0 => String::new(),
            _ => format!(
                "{discarded} of {} turns do not count: the host took CPUs away or moved them.\n",
                all.count()
            ),
        };
        format!(
            "{}{}\nRatios of medians, and the range of ratios by round. Of ping, less is better.\n{remark}{}",
            self.head.render(),
            columns(&rows, 3),
            self.head.not_measured()
        )
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let streams = self.figures.iter().filter(|f| f.measure.unit == "Gbit/s");
        let group = |figure: &Row| {
            let result = figure.results.first();
            let bar = |name| {
                result
                    .and_then(|result| result.summaries.get(name))
                    .copied()
            };
            (
                figure.measure.name.to_owned(),
                names.iter().map(bar).collect(),
            )
        };
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "Gbit/s".into(),
            groups: streams.map(group).collect(),
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interference::Interference;

    fn turn(round: u32, forth: f64, discarded: bool) -> Sample {
        let detail = Detail::Streams {
            seconds: 5.0,
            ping_us: vec![300.0],
        };
        Sample {
            round,
            values: vec![forth, forth / 2.0, 300.0],
            bounce_ns: (80.0, 80.0),
            class: (Class::Shared, Class::Shared),
            interference: Interference::default(),
            discarded: discarded.then(|| "noise".into()),
            detail,
        }
    }

    fn report(ours: Vec<Sample>) -> Report {
        let names = ["vswitch", "bridge"].map(String::from);
        let turns = [ours, vec![turn(0, 2.0, false), turn(1, 4.0, false)]];
        let mut field = hosts::Field::default();
        for name in &names {
            field.takes_part(name, "");
        }
        let machine = crate::report::testing::report().machine;
        Report {
            head: field.head("tcp", "streams".into(), machine),
            limits: Limits::default(),
            figures: sum_up(&MEASURES, &names, &turns),
            turns: names.into_iter().zip(turns).collect(),
        }
    }

    fn row(text: &str, what: &str, name: &str) -> Vec<String> {
        let mut rows = text
            .lines()
            .filter(|l| l.starts_with(what) && l.contains(name));
        let row = rows.next().unwrap_or_default();
        row.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn figures_are_compared_in_their_round() {
        let report = report(vec![
            turn(0, 4.0, false),
            turn(1, 6.0, false),
            turn(2, 99.0, true),
        ]);
        let text = report.text();
        assert_eq!(
            row(&text, "TCP forth", "vswitch")[4..6],
            ["shared", "5.00"].map(String::from)[..]
        );
        let theirs = row(&text, "TCP back", "bridge").join(" ");
        assert!(
            theirs.ends_with("shared 1.50 1.00 to 2.00 1.67 (1.50 to 2.00) 2"),
            "{theirs}"
        );
        assert_eq!(
            row(&text, "ping", "vswitch")[5],
            "300",
            "the median of a turn's pings"
        );
        assert!(text.contains("1 of 5 turns do not count"));
        let chart = report.chart();
        assert_eq!(chart.groups.len(), 2, "only what is in Gbit/s");
        assert_eq!(chart.groups[0].1[1].map(|bar| bar.max), Some(4.0));
    }

    #[test]
    fn without_a_turn_of_ours_nothing_is_said() {
        let text = report(vec![turn(0, 4.0, true)]).text();
        assert!(text.contains("TCP forth, Gbit/s  no turn counts"), "{text}");
    }
}
