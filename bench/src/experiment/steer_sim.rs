//! `steer-sim`: the rebalancer and the scaler in a simulation, against a static table and RSS++'s constants.
//!
//! Nothing is measured here but the time that one decision takes, a median of microseconds that needs no quiet machine: the
//! rest runs on a virtual clock and gives the same figures everywhere. So it does not take the lock. The model, and what it leaves out, is in `vswitch-steer-sim`.
//!
//! Ours runs twice. *Waiting*: a bucket goes to its new worker when the old one has completed the last packet it was given
//! for it. *Gated*: it goes at once, and the new worker takes nothing behind its first packet until then. RSS++ keeps order
//! as gated does. Targets that are missed stand in the table as missed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use vswitch_flowtable::balance::{self, Balancer, ItemLoad, Node, Worker, WorkerRoom};
use vswitch_flowtable::scale::Settings;
use vswitch_steer_sim::outcome::Bound;
use vswitch_steer_sim::{
    Look, Oracle, Order, Ours, Outcome, Policy, RssPlusPlus, Static, Trace, run as simulate,
};

use crate::machine::Notes;
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::{Head, columns};
use crate::report::lines::{self, Panel};
use crate::stats::Summary;
use crate::{Error, Options, Result};

/// Looks within which a load must be even, and the factor of the bound that counts as even.
const LOOKS: usize = 10;
const EVEN: f64 = 1.10;
/// Part of the buckets that may move at a look after that.
const FEW: f64 = 0.01;
/// How many times longer the static table's delay must be, and at which quantile.
const TIMES: f64 = 14.0;
/// Part of the workers that must be saved.
const SAVED: f64 = 0.25;
/// Time for a decision on 1,024 items and 16 workers.
const DECISION_US: f64 = 50.0;

const NAMES: [(&str, &str); 6] = [
    ("static", "the table as it is made, for ever"),
    (
        "rss++",
        "128 entries, every 100 ms, target load 0.8, threshold 0.02; as read from the paper",
    ),
    (
        "waiting",
        "ours; a move waits until the old worker has completed the bucket's packets",
    ),
    ("gated", "ours; the new worker waits for the old one"),
    (
        "gated-25",
        "the same, parking a worker only when it was busy for less than a quarter, as the switch does",
    ),
    (
        "oracle",
        "knows every bucket's true rate, every 100 us; no switch can. What steering whole buckets by rates gives at best",
    ),
];

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// How even the load becomes.
    pub balance: Vec<Balance>,
    /// How long packets take at 90 % load.
    pub delay: Vec<Delay>,
    /// How many workers are awake.
    pub scale: Vec<Run>,
    /// Time of a decision on 1,024 items and 16 workers: median and longest, in us.
    pub decision_us: (f64, f64),
    /// What should be, and is or is not.
    pub claims: Vec<Claim>,
}

/// A number of workers and an exponent, over all seeds; the worst of them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Balance {
    /// Workers.
    pub workers: u16,
    /// Exponent of Zipf's law.
    pub zipf: f64,
    /// What whole flows allow.
    pub bound: Bound,
    /// Looks until the largest load stays within 1.10 of the bound; none if it does not.
    pub settled: Option<usize>,
    /// The same without the workers that the largest flows have for themselves.
    pub settled_rest: Option<usize>,
    /// Largest load by the bound, of all looks after the tenth, at least of the last.
    pub after: f64,
    /// The same for the static table, of all its samples.
    pub fixed: f64,
    /// Most buckets moved at a look after the tenth, as part of all.
    pub moves: f64,
    /// Packets reordered.
    pub reordered: u64,
}

/// All policies at an exponent.
#[derive(Clone, Debug, Serialize)]
pub struct Delay {
    /// Workers.
    pub workers: u16,
    /// Exponent of Zipf's law.
    pub zipf: f64,
    /// The largest flow that is no elephant, in workers.
    pub largest_flow: f64,
    /// By policy.
    pub runs: Vec<Run>,
}

/// What a policy gave.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Whose.
    pub name: String,
    /// Delays in us, by quantile; of the first seed, as all but what says otherwise.
    pub us: BTreeMap<String, f64>,
    /// Part of the packets dropped.
    pub dropped: f64,
    /// Packets reordered.
    pub reordered: u64,
    /// Buckets moved.
    pub moved: u64,
    /// Workers awake in the mean.
    pub awake: f64,
    /// Its 95th percentile by seed, in us.
    pub p95_by_seed: Vec<f64>,
    /// Workers awake by seed.
    pub awake_by_seed: Vec<f64>,
    /// Part of the packets of all seeds that were late, by cause: see `vswitch_steer_sim::outcome::Cause`.
    pub late: [f64; 6],
    /// Every 10 ms.
    pub samples: Vec<Look>,
    /// Delay in us, and the part of the packets that had at most that.
    pub cdf: Vec<(f64, f64)>,
}

/// A claim.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// What should be.
    pub text: String,
    /// What is.
    pub found: String,
    /// Whether that is enough.
    pub met: bool,
}

impl Run {
    fn of(name: &str, outcome: Outcome) -> Self {
        let quantile = |part| outcome.delays.quantile(part) as f64 / 1000.0;
        let parts = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
        let mut sum = 0;
        let all = outcome.delays.count().max(1) as f64;
        let cdf = outcome.delays.steps().map(|(ns, count)| {
            sum += count;
            (ns as f64 / 1000.0, sum as f64 / all)
        });
        Self {
            name: name.into(),
            us: parts
                .map(|(name, part)| (name.into(), quantile(part)))
                .into(),
            dropped: outcome.dropped as f64 / outcome.packets.max(1) as f64,
            reordered: outcome.reordered,
            moved: outcome.moved,
            awake: outcome.awake,
            cdf: cdf.collect(),
            p95_by_seed: vec![quantile(0.95)],
            awake_by_seed: vec![outcome.awake],
            late: outcome
                .late
                .0
                .map(|count| count as f64 / outcome.packets.max(1) as f64),
            samples: outcome.samples,
        }
    }

    /// The first of these, which are of as many seeds, with what is told of all.
    fn over_seeds(all: Vec<Self>) -> Option<Self> {
        let count = all.len() as f64;
        all.into_iter()
            .reduce(|mut first, next| {
                first.p95_by_seed.extend(next.p95_by_seed);
                first.awake_by_seed.extend(next.awake_by_seed);
                first.reordered += next.reordered;
                for (sum, late) in first.late.iter_mut().zip(next.late) {
                    *sum += late;
                }
                first
            })
            .map(|mut first| {
                first.late = first.late.map(|sum| sum / count);
                first
            })
    }

    fn p95(&self) -> f64 {
        self.us.get("p95").copied().unwrap_or(f64::NAN)
    }

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

/// Runs all.
pub fn run(options: &Options) -> Result<Report> {
    let machine = Notes::take(options.placement()?, false);
    let quick = options.quick;
    let balance = balance_cases(quick)?;
    let delay = delay_cases(quick)?;
    let scale = scale_runs(quick)?;
    let decision_us = decision_us();
    let claims = claims(&balance, &delay, &scale, decision_us.0);
    let head = Head {
        experiment: "steer-sim".into(),
        title: "steering of flows to workers, simulated".into(),
        machine,
        contestants: NAMES
            .map(|(name, about)| (name.into(), about.into()))
            .to_vec(),
        skipped: Vec::new(),
    };
    Ok(Report {
        head,
        balance,
        delay,
        scale,
        decision_us,
        claims,
    })
}

fn trace(read: std::result::Result<Trace, impl std::fmt::Display>) -> Result<Trace> {
    read.map_err(|error| Error::Usage(error.to_string()))
}

fn balance_cases(quick: bool) -> Result<Vec<Balance>> {
    let (workers, exponents, seeds): (&[u16], &[f64], u64) = match quick {
        true => (&[4, 16], &[0.8, 1.3], 1),
        false => (&[4, 8, 16, 64], &[0.8, 1.0, 1.1, 1.3], 3),
    };
    let mut cases = Vec::new();
    for &workers in workers {
        for &zipf in exponents {
            eprintln!("balance: {workers} workers, exponent {zipf}");
            let mut trace = trace(Trace::zipf())?;
            (trace.workers, trace.zipf) = (workers, zipf);
            cases.push(balance_case(&mut trace, seeds));
        }
    }
    Ok(cases)
}

fn balance_case(trace: &mut Trace, seeds: u64) -> Balance {
    let bound = Bound::of(trace);
    let mut case = Balance {
        workers: trace.workers,
        zipf: trace.zipf,
        bound,
        settled: Some(0),
        settled_rest: Some(0),
        after: 0.0,
        fixed: 0.0,
        moves: 0.0,
        reordered: 0,
    };
    let worst = |one: Option<usize>, other: Option<usize>| Some(one?.max(other?));
    for seed in 1..=seeds {
        trace.seed = seed;
        let ours = simulate(trace, &mut Ours::balancing(trace.workers), Order::Gated);
        let [settled, rest] = ours.settles(&bound, EVEN);
        case.settled = worst(case.settled, settled);
        case.settled_rest = worst(case.settled_rest, rest);
        // Where the period has grown long, the last look is there to judge by.
        let later = LOOKS.min(ours.looks.len().saturating_sub(1));
        for look in &ours.looks[later..] {
            case.after = case.after.max(look.largest / bound.largest);
            case.moves = case.moves.max(look.moves as f64 / ours.entries as f64);
        }
        case.reordered += ours.reordered;
    }
    // A table that does not change shows all it has in a few samples.
    trace.millis = 50;
    let fixed = simulate(trace, &mut Static, Order::Kept);
    let samples = fixed.samples.iter().map(|look| look.largest);
    case.fixed = samples.fold(0.0, f64::max) / bound.largest;
    case
}

/// Workers, exponent, milliseconds, and how many seeds.
const DELAY_CASES: [(u16, f64, u64, u64); 7] = [
    (8, 1.0, 4000, 5),
    (8, 0.8, 4000, 3),
    (8, 0.9, 4000, 3),
    (8, 1.1, 2000, 3),
    (4, 0.9, 4000, 5),
    (16, 0.9, 2000, 5),
    (64, 0.8, 500, 3),
];

fn delay_cases(quick: bool) -> Result<Vec<Delay>> {
    let cases = match quick {
        true => &[(8, 1.0, 1500, 1)][..],
        false => &DELAY_CASES,
    };
    cases
        .iter()
        .map(|&(workers, zipf, millis, seeds)| {
            let mut trace = trace(Trace::elephants())?.over(workers);
            (trace.zipf, trace.millis) = (zipf, millis);
            eprintln!("delay: {workers} workers, exponent {zipf}");
            Ok(Delay {
                workers,
                zipf,
                largest_flow: trace.flow_loads().first().copied().unwrap_or(0.0),
                runs: seeded(&mut trace, seeds, false),
            })
        })
        .collect()
}

/// All policies over a trace with these seeds.
fn seeded(trace: &mut Trace, seeds: u64, scaling: bool) -> Vec<Run> {
    let mut by_policy: Vec<Vec<Run>> = Vec::new();
    for seed in 1..=seeds {
        trace.seed = seed;
        let runs = policies(trace, scaling).into_iter();
        for (place, (name, mut policy, order)) in runs.enumerate() {
            let run = Run::of(name, simulate(trace, policy.as_mut(), order));
            match by_policy.get_mut(place) {
                Some(all) => all.push(run),
                None => by_policy.push(vec![run]),
            }
        }
    }
    by_policy.into_iter().filter_map(Run::over_seeds).collect()
}

fn scale_runs(quick: bool) -> Result<Vec<Run>> {
    eprintln!("workers over time");
    let mut trace = trace(Trace::on_off())?;
    Ok(seeded(&mut trace, if quick { 1 } else { 3 }, true))
}

type Contestant = (&'static str, Box<dyn Policy>, Order);

fn policies(trace: &Trace, scaling: bool) -> Vec<Contestant> {
    let ours = |settings: Settings| match scaling {
        true => Box::new(Ours::scaling(trace.workers, settings)),
        false => Box::new(Ours::balancing(trace.workers)),
    };
    let reluctant = Settings {
        idle: 0.25,
        ..Settings::default()
    };
    let mut all: Vec<Contestant> = vec![
        ("static", Box::new(Static), Order::Kept),
        ("rss++", Box::new(RssPlusPlus::new(scaling)), Order::Gated),
        ("waiting", ours(Settings::default()), Order::Kept),
        ("gated", ours(Settings::default()), Order::Gated),
    ];
    if scaling {
        all.push(("gated-25", ours(reluctant), Order::Gated));
    } else {
        all.push(("oracle", Box::new(Oracle::default()), Order::Gated));
    }
    all
}

/// Decides about 1,024 items on 16 workers, skewed, as often as gives a median.
fn decision_us() -> (f64, f64) {
    let room = WorkerRoom {
        capacity: 1_000_000,
        takes: true,
        node: Node(0),
    };
    let mut taken = Vec::new();
    for round in 0..200u64 {
        let item = |number: u64| ItemLoad {
            worker: Worker((number % 16) as u16),
            // Zipf's law over places that no order has put there.
            load: 80_000 / (1 + (number + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1024),
            node: None,
        };
        let items: Vec<_> = (0..1024).map(item).collect();
        let mut balancer = Balancer::new(1024, 16, balance::Settings::default());
        let at = Instant::now();
        let moves = balancer.plan(&items, &[room; 16]).moves.len();
        let lasted: Duration = at.elapsed();
        if moves > 0 {
            taken.push(lasted.as_secs_f64() * 1e6);
        }
    }
    taken.sort_by(f64::total_cmp);
    let at = |place: usize| taken.get(place).copied().unwrap_or(f64::NAN);
    (at(taken.len() / 2), at(taken.len().saturating_sub(1)))
}

fn claims(balance: &[Balance], delay: &[Delay], scale: &[Run], decision_us: f64) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut claim = |text: String, found: String, met: bool| {
        claims.push(Claim { text, found, met });
    };
    let even = |case: &&Balance| case.settled.is_some_and(|looks| looks <= LOOKS);
    let count = balance.iter().filter(even).count();
    claim(
        format!("largest load <= {EVEN:.2} x max(mean, largest flow) within {LOOKS} looks"),
        format!("{count} of {} cases", balance.len()),
        count == balance.len(),
    );
    let few = balance.iter().filter(|case| case.moves < FEW).count();
    claim(
        "then fewer than 1 % of the buckets move at a look".into(),
        format!("{few} of {} cases", balance.len()),
        few == balance.len(),
    );
    for case in delay {
        let times = |name: &str| {
            let find = |name: &str| case.runs.iter().find(|run| run.name == name);
            let pair = find("static").into_iter().zip(find(name));
            let ratios =
                pair.flat_map(|(fixed, run)| fixed.p95_by_seed.iter().zip(&run.p95_by_seed));
            let mut ratios: Vec<f64> = ratios.map(|(fixed, own)| fixed / own).collect();
            ratios.sort_by(f64::total_cmp);
            let at = |place: usize| ratios.get(place).copied().unwrap_or(f64::NAN);
            (
                at(0),
                at(ratios.len() / 2),
                at(ratios.len().saturating_sub(1)),
            )
        };
        let oracle = times("oracle").1;
        for name in ["waiting", "gated"] {
            let (least, median, most) = times(name);
            claim(
                format!(
                    "p95 at 90 % load, {} workers, exponent {}, {name}: {TIMES:.0} times shorter than static, with every seed",
                    case.workers, case.zipf
                ),
                format!(
                    "{least:.1} to {most:.1} times, median {median:.1}; the oracle {oracle:.1}"
                ),
                least >= TIMES,
            );
        }
    }
    let all = scale.iter().find(|run| run.name == "static");
    for run in scale.iter().filter(|run| run.name != "static") {
        let sum = |run: &Run| run.awake_by_seed.iter().sum::<f64>();
        let saved = 1.0 - sum(run) / all.map_or(f64::NAN, sum);
        claim(
            format!(
                "workers awake over the on/off trace, {}: 25 % fewer",
                run.name
            ),
            format!("{:.0} % fewer, p95 {:.0} us", saved * 100.0, run.p95()),
            saved >= SAVED,
        );
    }
    let reordered = balance.iter().map(|case| case.reordered).sum::<u64>()
        + delay
            .iter()
            .flat_map(|case| &case.runs)
            .map(|run| run.reordered)
            .sum::<u64>()
        + scale.iter().map(|run| run.reordered).sum::<u64>();
    claim(
        "no packet reordered".into(),
        format!("{reordered} reordered"),
        reordered == 0,
    );
    claim(
        format!("decision on 1,024 items and 16 workers < {DECISION_US:.0} us, median"),
        format!("{decision_us:.1} us"),
        decision_us < DECISION_US,
    );
    claims
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut trace = Trace::elephants().unwrap();
        (trace.workers, trace.millis, trace.flows) = (4, 30, 1000);
        let runs: Vec<_> = policies(&trace, false)
            .into_iter()
            .map(|(name, mut policy, order)| {
                Run::of(name, simulate(&trace, policy.as_mut(), order))
            })
            .collect();
        let mut even = Trace::zipf().unwrap();
        (even.workers, even.millis) = (4, 30);
        let balance = vec![balance_case(&mut even, 1)];
        let delay = vec![Delay {
            workers: 4,
            zipf: 1.0,
            largest_flow: 0.5,
            runs: runs.clone(),
        }];
        Report {
            head: Head {
                experiment: "steer-sim".into(),
                title: "simulated".into(),
                machine: crate::report::testing::report().machine,
                contestants: NAMES
                    .map(|(name, about)| (name.into(), about.into()))
                    .to_vec(),
                skipped: Vec::new(),
            },
            claims: claims(&balance, &delay, &runs, 60.0),
            balance,
            delay,
            scale: runs,
            decision_us: (60.0, 70.0),
        }
    }

    #[test]
    fn what_is_missed_is_said() {
        let text = report().text();
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        let decision = line("decision on 1,024");
        assert!(
            decision.contains("60.0 us") && decision.ends_with("MISSED"),
            "{decision}"
        );
        assert!(line("no packet reordered").ends_with("met"));
        // Nobody parks a worker where nothing scales.
        assert!(line("workers awake over the on/off trace, gated").ends_with("MISSED"));
    }

    #[test]
    fn the_plot_has_three_panels() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steer.svg");
        report().plot(&path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["Largest load", "Delay", "Workers awake", "rss++", "gated"] {
            assert!(svg.contains(text), "{text} is not in the plot");
        }
    }
}
