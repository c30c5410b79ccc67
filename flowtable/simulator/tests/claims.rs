//! The claims about steering, on short traces. The bench command `steer-sim` runs the long ones.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use vswitch_flowtable::scale::Settings;
use vswitch_steer_sim::outcome::{Bound, Cause};
use vswitch_steer_sim::trace::Phase;
use vswitch_steer_sim::{Oracle, Order, Ours, Outcome, RssPlusPlus, Static, Trace, run};

fn zipf(workers: u16, zipf: f64, millis: u64) -> Trace {
    let mut trace = Trace::zipf().unwrap();
    (trace.workers, trace.zipf, trace.millis) = (workers, zipf, millis);
    trace
}

fn elephants(millis: u64) -> Trace {
    let mut trace = Trace::elephants().unwrap();
    trace.millis = millis;
    trace
}

fn on_off() -> Trace {
    let mut trace = Trace::on_off().unwrap();
    let phase = |millis, load| Phase { millis, load };
    trace.workers = 4;
    trace.phases = vec![
        phase(60, 0.1),
        phase(60, 0.6),
        phase(120, 0.0),
        phase(60, 0.5),
    ];
    trace.millis = 300;
    trace
}

fn assert_sound(outcome: &Outcome) {
    assert_eq!(outcome.reordered, 0);
    assert_eq!(outcome.delays.count() + outcome.dropped, outcome.packets);
}

/// Largest load at most 1.10 of the bound within ten looks, and then fewer than 1 % of the buckets move.
#[test]
fn skewed_load_is_even_within_ten_looks() {
    for (workers, exponent, millis) in [(4, 0.8, 160), (4, 1.3, 200), (8, 1.1, 130), (16, 1.0, 130)]
    {
        let trace = zipf(workers, exponent, millis);
        let bound = Bound::of(&trace);
        let fixed = run(&trace, &mut Static, Order::Kept);
        let outcome = run(&trace, &mut Ours::balancing(workers), Order::Gated);
        assert_sound(&outcome);
        let [settled, _] = outcome.settles(&bound, 1.1);
        assert!(
            settled.is_some_and(|looks| looks <= 10),
            "{settled:?} of {:?}",
            outcome.looks
        );
        let later = outcome.looks.iter().skip(10);
        assert!(later.clone().all(|look| look.moves * 100 < outcome.entries));
        let most = fixed
            .samples
            .iter()
            .map(|look| look.largest)
            .fold(0.0, f64::max);
        let ours = outcome.samples.iter().skip(5).map(|look| look.largest);
        assert!(ours.fold(0.0, f64::max) <= most, "worse than no policy");
    }
}

/// The 95th percentile at 90 % load is at most a fourteenth of a static table's, and a multiple of what an oracle gets.
///
/// And only so: moves that wait until the old worker has completed the bucket's last packet never come for a bucket that
/// always has one in a full ring, and the rebalancer gains hardly anything. Waiting at the new worker does not have that.
#[test]
fn delay_against_a_static_table() {
    let trace = elephants(400);
    let fixed = run(&trace, &mut Static, Order::Kept);
    let [waiting, ours] =
        [Order::Kept, Order::Gated].map(|order| run(&trace, &mut Ours::balancing(8), order));
    let oracle = run(&trace, &mut Oracle::default(), Order::Gated);
    for outcome in [&fixed, &waiting, &ours, &oracle] {
        assert_sound(outcome);
    }
    for quantile in [0.9, 0.95] {
        let [fixed_ns, ours_ns, oracle_ns] =
            [&fixed, &ours, &oracle].map(|outcome| outcome.delays.quantile(quantile));
        assert!(fixed_ns >= 14 * ours_ns, "{fixed_ns} by {ours_ns} ns");
        assert!(
            ours_ns <= 4 * oracle_ns,
            "{ours_ns} by the oracle's {oracle_ns} ns"
        );
    }
    assert!(ours.dropped < fixed.dropped / 10);
    let [fixed_ns, waiting_ns] = [&fixed, &waiting].map(|outcome| outcome.delays.quantile(0.9));
    assert!(waiting_ns > fixed_ns / 2 && waiting.dropped > fixed.dropped / 2);
    // Static: what came stays. Ours: somebody moves something.
    let came = |outcome: &Outcome| outcome.late.of(Cause::Came) as f64 / outcome.packets as f64;
    assert!(came(&fixed) > 0.05 && came(&ours) < 0.01);
}

/// The same with seeds, workers and exponents that are not those of the description.
#[test]
fn delay_is_short_elsewhere_too() {
    for (workers, exponent, seed) in [(4, 0.9, 3), (16, 0.9, 2)] {
        let mut trace = elephants(100).over(workers);
        (trace.zipf, trace.seed) = (exponent, seed);
        let fixed = run(&trace, &mut Static, Order::Kept);
        let ours = run(&trace, &mut Ours::balancing(workers), Order::Gated);
        assert_sound(&ours);
        let [fixed_ns, ours_ns] = [&fixed, &ours].map(|outcome| outcome.delays.quantile(0.95));
        assert!(
            fixed_ns >= 10 * ours_ns,
            "{workers} workers: {fixed_ns} by {ours_ns} ns"
        );
    }
}

/// What order costs is needed: without it, moves reorder, and the check sees it.
#[test]
fn moves_at_once_reorder() {
    let trace = elephants(60);
    let outcome = run(&trace, &mut Ours::balancing(8), Order::AtOnce);
    assert!(outcome.reordered > 0);
    assert_eq!(outcome.delays.count() + outcome.dropped, outcome.packets);
    for order in [Order::Kept, Order::Gated] {
        assert_sound(&run(&trace, &mut RssPlusPlus::new(true), order));
    }
}

/// Workers follow the load, down to none; nothing is reordered by their coming and going.
#[test]
fn workers_come_and_go_with_the_load() {
    let trace = on_off();
    for order in [Order::Kept, Order::Gated] {
        let outcome = run(&trace, &mut Ours::scaling(4, Settings::default()), order);
        assert_sound(&outcome);
        assert!(outcome.awake < 3.5, "{} awake in the mean", outcome.awake);
        let awake = |millis: u64| outcome.samples[(millis / 10 - 1) as usize].awake;
        assert!(
            awake(60) <= 2 && awake(120) >= 3,
            "{} {}",
            awake(60),
            awake(120)
        );
        assert_eq!(awake(240), 0, "asleep after a silence");
        assert!(awake(300) >= 2);
    }
}

/// The same seed gives the same run.
#[test]
fn runs_repeat() {
    let outcome = || {
        run(
            &on_off(),
            &mut Ours::scaling(4, Settings::default()),
            Order::Gated,
        )
    };
    let (one, other) = (outcome(), outcome());
    assert_eq!(one.looks, other.looks);
    assert_eq!(one.samples, other.samples);
    assert_eq!(
        (one.packets, one.dropped, one.moved),
        (other.packets, other.dropped, other.moved)
    );
    assert!(one.delays.steps().eq(other.delays.steps()));
}
