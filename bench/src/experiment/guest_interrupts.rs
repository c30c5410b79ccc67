//! `guest-interrupts`: what rules for calling a guest do to real Linux guests: interrupts by their own count, their
//! processor's time, TCP, and round trips.
//!
//! As in [`tcp`](super::tcp), every contestant has a pair of guests of its own, booted once; in its turn the pair runs, in all
//! others it stands still. Contestants are one program with different rules.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::{hosts, session};
use crate::contestant::host::Kind;
use crate::contestant::moderated::Rule;
use crate::contestant::pair::{Counters, Direction, Pair};
use crate::cpu::Placement;
use crate::interference::{Limits, Watch};
use crate::lock::Lock;
use crate::machine::Notes;
use crate::probe::{self, Class};
use crate::report::chart::Chart;
use crate::report::head::{Head, columns};
use crate::report::verdict::Verdict;
use crate::report::{ClassResult, Findings, Measure, Row, sum_up};
use crate::rounds::order;
use crate::sample::{Detail, Sample};
use crate::stats::Summary;
use crate::{Options, Result};

/// Length of a stream, seconds, round trips one right after the other, and pings 20 ms apart, of a turn.
const FULL: Turn = Turn {
    seconds: 5,
    round_trips: 2000,
    pings: 50,
};
const QUICK: Turn = Turn {
    seconds: 3,
    round_trips: 500,
    pings: 30,
};
/// Who is compared: the switch's default first, then what everybody does.
const RULES: [Rule; 3] = [Rule::DEFAULT, Rule::of("per-burst"), Rule::of("per-packet")];
const QUICK_RULES: [Rule; 2] = [Rule::DEFAULT, Rule::of("per-burst")];
const OURS: &str = Rule::DEFAULT.name;
const PER_BURST: &str = "per-burst";
/// What interrupts may be of those with a call per burst; throughput and round trips are to be no worse, to 2 %.
const HALF: f64 = 0.5;
const EQUAL: f64 = 0.02;

const MEASURES: [Measure; 7] = [
    Measure::median("TCP", "Gbit/s"),
    Measure::median("receiver's interrupts", "per Gbit"),
    Measure::median("sender's interrupts", "per Gbit"),
    Measure::median("receiver's CPU", "s/Gbit"),
    Measure::median("round trip", "us"),
    Measure::median("interrupts of a round trip", "both guests"),
    Measure::median("ping p50", "us"),
];
/// Places in it.
const TCP: usize = 0;
const INTERRUPTS: usize = 1;
const ROUND_TRIP: usize = 4;
const PING: usize = 6;

/// What a turn consists of.
#[derive(Clone, Copy, Debug, Serialize)]
struct Turn {
    seconds: u32,
    round_trips: u32,
    pings: u32,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// When a turn does not count.
    pub limits: Limits,
    /// All turns by contestant.
    pub turns: BTreeMap<String, Vec<Sample>>,
    /// The figures, by class of turns.
    pub figures: Vec<Row>,
    /// Whether the targets are met.
    pub verdicts: Vec<Verdict>,
}

/// Measures all contestants.
pub fn run(options: &Options) -> Result<Report> {
    // Without guests there is nothing to wait for.
    vswitch_tests::machine::need_guests()?;
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, false);
    let program = session::program(options)?;
    let rules: &[Rule] = if options.quick { &QUICK_RULES } else { &RULES };
    let turn = if options.quick { QUICK } else { FULL };
    let (limits, rounds) = (Limits::default(), options.rounds_or(7, 3));
    let mut field = hosts::Field::default();
    let mut pairs: Vec<Pair> = Vec::new();
    for rule in rules {
        eprintln!("booting guests: {}", rule.name);
        let kind = Kind::Moderated(program.clone(), *rule);
        let host = kind.start(2, placement);
        let booted = host.and_then(|host| Pair::on_host(rule.name, host));
        match booted.and_then(|mut pair| pair.stop().map(|()| pair)) {
            Ok(pair) => {
                field.takes_part(rule.name, pair.about());
                pairs.push(pair);
            }
            Err(error) if pairs.is_empty() => return Err(error),
            Err(error) => field.is_left_out(&format!("{}: {error}", rule.name)),
        }
    }
    let mut turns = vec![Vec::new(); pairs.len()];
    for round in 0..rounds {
        eprintln!("round {}", round + 1);
        for index in order(round, pairs.len()) {
            let pair = &mut pairs[index];
            let taken = one_turn(pair, turn, placement, limits, round);
            turns[index].push(taken.map_err(|error| pair.explain(error))?);
        }
    }
    let guests = if vswitch_tests::machine::kvm() {
        "KVM"
    } else {
        "emulated"
    };
    let title = format!(
        "two Linux guests ({guests}), {rounds} x {} s of TCP, {} round trips, {} pings",
        turn.seconds, turn.round_trips, turn.pings
    );
    let head = field.head("guest-interrupts", title, machine);
    let names = head.names();
    let figures = sum_up(&MEASURES, &names, &turns);
    Ok(Report {
        verdicts: verdicts(&figures),
        figures,
        turns: names.into_iter().zip(turns).collect(),
        limits,
        head,
    })
}

fn one_turn(
    pair: &mut Pair,
    turn: Turn,
    placement: Placement,
    limits: Limits,
    round: u32,
) -> Result<Sample> {
    let before = probe::bounce(placement)?;
    pair.resume()?;
    let (watch, started) = (Watch::start(placement, Vec::new()), Instant::now());
    let idle = pair.counters()?;
    let rate = pair.stream(Direction::Forth, turn.seconds)?;
    let streamed = since(pair.counters()?, idle);
    let between = pair.counters()?;
    let round_trip_us = pair.ping_pong(turn.round_trips)? * 1e3;
    let answered = since(pair.counters()?, between);
    let ping_us: Vec<f64> = pair.ping(turn.pings)?.iter().map(|ms| ms * 1e3).collect();
    let (interference, window) = (watch.since(), started.elapsed());
    pair.stop()?;
    let after = probe::bounce(placement)?;
    let class = (Class::of(before), Class::of(after));
    let moved = (class.0 != class.1).then(|| "the CPUs were moved".to_owned());
    let gbit = rate / 1e9 * f64::from(turn.seconds);
    let [sender, receiver] = streamed;
    let interrupts = |counters: Counters| (counters.input + counters.output) as f64;
    let ping = Summary::of(ping_us.iter().copied()).map(|times| times.figure);
    let figures = [
        rate / 1e9,
        interrupts(receiver) / gbit,
        interrupts(sender) / gbit,
        receiver.busy as f64 / 100.0 / gbit,
        round_trip_us,
        answered.into_iter().map(interrupts).sum::<f64>() / f64::from(turn.round_trips),
    ];
    Ok(Sample {
        round,
        values: figures.into_iter().chain(ping).collect(),
        bounce_ns: (before, after),
        class,
        interference,
        discarded: moved.or_else(|| limits.verdict(&interference, window)),
        detail: Detail::Counted {
            streamed,
            answered,
            ping_us,
        },
    })
}

fn since(now: [Counters; 2], earlier: [Counters; 2]) -> [Counters; 2] {
    [now[0].since(earlier[0]), now[1].since(earlier[1])]
}

/// Of the class with most turns.
fn verdicts(figures: &[Row]) -> Vec<Verdict> {
    let ratio = |place: usize| {
        let result = figures.get(place)?.results.first()?;
        result.ratios.get(PER_BURST)
    };
    let judged = |claim: &str, place: usize, limit: f64, inverse: bool| {
        let found = ratio(place).map(|ratio| match inverse {
            true => 1.0 / ratio.of_figures,
            false => ratio.of_figures,
        });
        let spread = ratio(place).and_then(|ratio| ratio.spread);
        let spread = spread.map_or(String::new(), |(min, max)| {
            format!("ratios {min:.2} to {max:.2} by round")
        });
        Verdict::at_most(claim, found, limit, "").and(spread)
    };
    vec![
        judged(
            "the receiver's interrupts per Gbit are at most half of those with a call per burst",
            INTERRUPTS,
            HALF,
            false,
        ),
        judged(
            "TCP is no slower, to 2 % (per-burst / ours)",
            TCP,
            1.0 + EQUAL,
            true,
        ),
        judged(
            "round trips are no longer, to 2 %",
            ROUND_TRIP,
            1.0 + EQUAL,
            false,
        ),
        judged(
            "pings 20 ms apart take no longer, to 2 %",
            PING,
            1.0 + EQUAL,
            false,
        ),
    ]
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
            let spread = ratio.spread;
            let spread = spread.map(|(min, max)| format!(" ({min:.2} to {max:.2})"));
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
        let heading = [
            "",
            "",
            "cache",
            "median",
            "range",
            &format!("{OURS} / it"),
            "turns",
        ];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.figures.iter().flat_map(|figure| lines(figure, &names)));
        let all = self.turns.values().flatten();
        let discarded = all.clone().filter(|turn| turn.discarded.is_some()).count();
        let verdicts = self.verdicts.iter().map(|verdict| verdict.line() + "\n");
        format!(
            "{}{}\nRatios of medians, and the range of ratios by round. Interrupts are those of virtio queues in the guests' \
             /proc/interrupts,\nCPU is time not idle in /proc/stat, idle time before and after the stream included. Guests, QEMU \
             and worker share the CPUs.\n{discarded} of {} turns do not count.\n{}{}",
            self.head.render(),
            columns(&rows, 3),
            all.count(),
            verdicts.collect::<String>(),
            self.head.not_measured()
        )
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let shown = self.figures.iter().filter(|f| f.measure.unit == "per Gbit");
        let group = |figure: &Row| {
            let result = figure.results.first();
            let bar = |name| result.and_then(|r| r.summaries.get(name)).copied();
            let bars = names.iter().map(bar).collect();
            (figure.measure.name.to_owned(), bars)
        };
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "interrupts per Gbit".into(),
            groups: shown.map(group).collect(),
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interference::Interference;
    use crate::report::testing::SHARED;

    fn turn(values: [f64; 7]) -> Vec<Sample> {
        vec![Sample {
            round: 0,
            values: values.to_vec(),
            bounce_ns: (80.0, 80.0),
            class: SHARED,
            interference: Interference::default(),
            discarded: None,
            detail: Detail::Counted {
                streamed: Default::default(),
                answered: Default::default(),
                ping_us: Vec::new(),
            },
        }]
    }

    fn words(ours: [f64; 7]) -> Vec<Option<bool>> {
        let names = [OURS, PER_BURST].map(String::from);
        let theirs = turn([4.0, 1000.0, 10.0, 0.5, 300.0, 4.0, 400.0]);
        let figures = sum_up(&MEASURES, &names, &[turn(ours), theirs]);
        verdicts(&figures)
            .iter()
            .map(|verdict| verdict.met)
            .collect()
    }

    #[test]
    fn more_and_faster_is_better_only_for_streams() {
        let good = words([4.0, 499.0, 10.0, 0.5, 303.0, 4.0, 401.0]);
        assert_eq!(good, [Some(true); 4]);
        let bad = words([3.9, 501.0, 10.0, 0.5, 307.0, 4.0, 409.0]);
        assert_eq!(bad, [Some(false); 4]);
        assert_eq!(verdicts(&[])[0].met, None);
    }

    #[test]
    fn a_report_tells_ratios_and_verdicts() {
        let names = [OURS, PER_BURST].map(String::from);
        let turns = [
            turn([4.0, 400.0, 10.0, 0.5, 300.0, 4.0, 400.0]),
            turn([4.0, 1000.0, 10.0, 0.5, 300.0, 4.0, 400.0]),
        ];
        let figures = sum_up(&MEASURES, &names, &turns);
        let mut field = hosts::Field::default();
        names.iter().for_each(|name| field.takes_part(name, ""));
        let machine = crate::report::testing::report().machine;
        let report = Report {
            head: field.head("guest-interrupts", "streams".into(), machine),
            limits: Limits::default(),
            verdicts: verdicts(&figures),
            figures,
            turns: names.into_iter().zip(turns).collect(),
        };
        let text = report.text();
        assert!(
            text.contains("0.40 (0.40 to 0.40)") && text.contains("\nmet: "),
            "{text}"
        );
        assert_eq!(report.chart().groups.len(), 2);
    }
}
