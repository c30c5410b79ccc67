//! Order over very many packets, steered by the switch's own, while targets come and go all the time.

use serde::Serialize;

use super::live::Drive;
use super::policy::{Modulo, Ours, Policy};
use super::replay::{self, Overhead};
use super::rounds::{Bench, Timed, capacity};
use super::{FLOWS, LOAD, PHASES, RATES};
use crate::Result;

/// Packets with one number of targets.
const PHASE: u64 = 1_000_000;
/// The replay's load; real threads have [`LOAD`], as five of eight targets may share a CPU.
const REPLAY_LOAD: f64 = 0.9;
/// How long steps are timed at each load, in seconds with one number of targets.
const TIMED: f64 = 0.2;

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Order {
    /// Where.
    pub label: String,
    /// Packets that came.
    pub packets: u64,
    /// Done after a later one of the same flow.
    pub reordered: u64,
    /// Not done at all.
    pub lost: u64,
    /// Packets whose flow's state was elsewhere.
    pub fetched: u64,
}

impl Order {
    fn of(label: &str) -> Self {
        Self {
            label: label.into(),
            packets: 0,
            reordered: 0,
            lost: 0,
            fetched: 0,
        }
    }
}

/// At least so many packets, by real threads and replayed.
pub(super) fn measure(bench: &mut Bench, packets: u64) -> Result<Vec<Order>> {
    let phase = PHASE.min(packets.div_ceil(PHASES.len() as u64));
    let full = bench.capacity()?;
    let timed = timed(bench, full)?;
    eprintln!("order of {packets} packets: two CPUs");
    let live = live(bench, LOAD * full, phase, packets)?;
    eprintln!("order of {packets} packets: replay");
    let replayed = replayed(&timed.busy, phase, packets);
    Ok(vec![live, replayed])
}

/// Times of steps while modulo moves as much as it does.
fn timed(bench: &mut Bench, full: f64) -> Result<Timed> {
    bench.live.clear(1);
    let mut policy = Modulo::new(PHASES[0]);
    let cold = bench.settle(&mut policy)?;
    let idle = bench.cycle(&mut policy, RATES[0], TIMED)?.costs;
    let mut busy = bench.cycle(&mut policy, LOAD * full, TIMED)?.costs;
    busy.fresh = cold.costs.fresh;
    busy.wire.clone_from(&idle.wire);
    Ok(Timed { idle, busy })
}

fn live(bench: &mut Bench, rate: f64, phase: u64, packets: u64) -> Result<Order> {
    bench.live.clear(2);
    let mut policy = Ours::new(PHASES[0]);
    bench.settle(&mut policy)?;
    let mut order = Order::of("two CPUs");
    while order.packets < packets {
        let drive = Drive {
            phases: &PHASES,
            packets: phase,
            order: None,
            rate: Some(rate),
            drain: 0,
        };
        let outcome = bench.live.run(&mut policy, &drive)?;
        order.packets += outcome.packets;
        order.reordered += outcome.reordered;
        order.lost += outcome.packets - outcome.done;
        order.fetched += outcome.fetched.iter().sum::<u64>();
    }
    Ok(order)
}

fn replayed(costs: &super::costs::Costs, phase: u64, packets: u64) -> Order {
    let rate = REPLAY_LOAD * capacity(costs);
    let policy = Ours::new(PHASES[0]);
    let mut run = replay::Run::new(policy, costs, FLOWS, Overhead::default(), rate, 7);
    let mut order = Order::of("eight CPUs, replayed");
    while order.packets < packets {
        let outcome = run.cycle(&PHASES, phase);
        order.packets += outcome.packets;
        order.reordered += outcome.reordered;
        order.lost += outcome.lost;
        order.fetched += outcome.fetched;
    }
    order
}
