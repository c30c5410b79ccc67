//! What is run: traces, policies, seeds; and a decision by the clock.

use std::time::{Duration, Instant};

use vswitch_flowtable::balance::{self, Balancer, ItemLoad, Node, Worker, WorkerRoom};
use vswitch_flowtable::scale::Settings;
use vswitch_steer_sim::outcome::Bound;
use vswitch_steer_sim::{Oracle, Order, Ours, Policy, RssPlusPlus, Static, Trace, run as simulate};

use super::claims::{EVEN, LOOKS};
use super::{Balance, Delay, Run};
use crate::{Error, Result};

fn trace(read: std::result::Result<Trace, impl std::fmt::Display>) -> Result<Trace> {
    read.map_err(|error| Error::Usage(error.to_string()))
}

pub(super) fn balance(quick: bool) -> Result<Vec<Balance>> {
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

pub(super) fn balance_case(trace: &mut Trace, seeds: u64) -> Balance {
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

pub(super) fn delay(quick: bool) -> Result<Vec<Delay>> {
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

pub(super) fn scale(quick: bool) -> Result<Vec<Run>> {
    eprintln!("workers over time");
    let mut trace = trace(Trace::on_off())?;
    Ok(seeded(&mut trace, if quick { 1 } else { 3 }, true))
}

pub(super) type Contestant = (&'static str, Box<dyn Policy>, Order);

pub(super) fn policies(trace: &Trace, scaling: bool) -> Vec<Contestant> {
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
pub(super) fn decision_us() -> (f64, f64) {
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
