//! Queues on a virtual clock.
//!
//! Packets come at random times at a given mean rate, whether or not earlier ones are done. Each target serves its own queue in
//! order, one packet at a time. How long it takes is drawn from what was measured ([`Costs`]): for a flow whose state it
//! has, for one whose state another target has, for one that is new. A queue has room for 1,024 packets.

use std::collections::VecDeque;

use serde::Serialize;
use vswitch_flowtable::{FlowHash, Micros, Position, Target};

use super::policy::{Policy, TARGETS};
use super::state::Costs;
use crate::histogram::Histogram;

/// Packets that a target's queue has room for.
const ROOM: usize = 1024;
/// Which flow numbers hash to what: any bijection that spreads.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// A flow's state is nowhere yet.
const NOWHERE: u8 = u8::MAX;

/// The hash of flow `n`.
#[inline]
pub(super) fn hash(n: u32) -> FlowHash {
    let mut mixed = (u64::from(n) + 1).wrapping_mul(SPREAD);
    mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    FlowHash(mixed ^ mixed >> 32)
}

/// Random numbers, the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SPREAD);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Under `limit`.
    #[inline]
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    /// One of these, or 0 if there is none.
    #[inline]
    fn of(&mut self, values: &[u32]) -> u64 {
        let at = self.below(values.len() as u32) as usize;
        values.get(at).map_or(0, |value| u64::from(*value))
    }

    /// A time until the next of events that come `mean` apart and know nothing of each other.
    #[inline]
    fn gap(&mut self, mean: f64) -> u64 {
        let uniform = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        (-uniform.ln() * mean) as u64
    }
}

/// What waits at targets.
#[derive(Debug, Default)]
pub(super) struct Queues {
    all: [Queue; TARGETS as usize],
}

#[derive(Debug, Default)]
struct Queue {
    /// When each packet under way will be done.
    departures: VecDeque<u64>,
    /// Position of the next.
    next: u16,
    /// When the last one is done, in ns.
    free: u64,
}

impl Queues {
    /// Whether a target is done with what it was given at this position.
    #[inline]
    pub(super) fn completed(&self, target: Target, position: Position) -> bool {
        self.all.get(usize::from(target.0)).is_none_or(|queue| {
            usize::from(queue.next.wrapping_sub(position.0)) > queue.departures.len()
        })
    }

    /// What was done by now is done.
    #[inline]
    fn pass(&mut self, now: u64) {
        for queue in &mut self.all {
            while queue.departures.front().is_some_and(|done| *done <= now) {
                queue.departures.pop_front();
            }
        }
    }
}

/// Where flows are, and what became of their packets.
struct Flow {
    owner: u8,
    last_departure: u64,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outcome {
    /// From arrival to the end of service, in ns.
    #[serde(skip)]
    pub(super) latency: Histogram,
    pub(super) packets: u64,
    /// There was no room.
    pub(super) lost: u64,
    /// Done before an earlier packet of the same flow.
    pub(super) reordered: u64,
    /// Packets whose flow's state was at another target.
    pub(super) moved: u64,
}

/// A policy at work.
pub(super) struct Run<'c, P> {
    policy: P,
    queues: Queues,
    flows: Vec<Flow>,
    costs: &'c Costs,
    /// What every packet costs besides its state, work and steering, in ns: a flow's first, and later ones.
    overhead: (u64, u64),
    /// Mean ns between packets.
    gap: f64,
    now: u64,
    random: Random,
}

impl<'c, P: Policy> Run<'c, P> {
    /// Nothing has come yet; so many flows will, at `rate` packets a second. Besides what its state takes a packet
    /// takes `overhead` ns: the first of a flow, and later ones.
    pub(super) fn new(
        policy: P,
        costs: &'c Costs,
        flows: u32,
        overhead: (u64, u64),
        rate: f64,
        seed: u64,
    ) -> Self {
        let flow = |_| Flow {
            owner: NOWHERE,
            last_departure: 0,
        };
        Self {
            policy,
            queues: Queues::default(),
            flows: (0..flows).map(flow).collect(),
            costs,
            overhead,
            gap: 1e9 / rate,
            now: 0,
            random: Random(seed),
        }
    }

    /// One packet of every flow, the first.
    pub(super) fn first_packets(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        (0..self.flows.len() as u32).for_each(|flow| self.packet(flow, &mut outcome));
        outcome
    }

    /// So many packets of any flows, with each of these numbers of targets in turn.
    pub(super) fn cycle(&mut self, phases: &[u16], packets: u64) -> Outcome {
        let mut outcome = Outcome::default();
        for active in phases {
            self.policy.activate(*active);
            for _ in 0..packets {
                let flow = self.random.below(self.flows.len() as u32);
                self.packet(flow, &mut outcome);
            }
        }
        outcome
    }

    pub(super) fn weak_moves(&self) -> u64 {
        self.policy.weak_moves()
    }

    #[inline]
    fn packet(&mut self, number: u32, outcome: &mut Outcome) {
        self.now += self.random.gap(self.gap);
        self.queues.pass(self.now);
        let now = Micros(self.now / 1000);
        let (target, selection) = self.policy.select(hash(number), now, &self.queues);
        let (Some(queue), Some(flow)) = (
            self.queues.all.get_mut(usize::from(target.0)),
            self.flows.get_mut(number as usize),
        ) else {
            return;
        };
        outcome.packets += 1;
        if queue.departures.len() >= ROOM {
            outcome.lost += 1;
            return;
        }
        let (first, later) = self.overhead;
        let (overhead, state) = match flow.owner {
            NOWHERE => (first, &self.costs.fresh),
            owner if u16::from(owner) == target.0 => (later, &self.costs.hit),
            _ => {
                outcome.moved += 1;
                (later, &self.costs.moved)
            }
        };
        let service = overhead + self.random.of(state);
        let departure = self.now.max(queue.free) + service;
        queue.free = departure;
        queue.departures.push_back(departure);
        let position = Position(queue.next);
        queue.next = queue.next.wrapping_add(1);
        if let Some(selection) = selection {
            self.policy.sent(selection, position, now);
        }
        outcome.reordered += u64::from(departure < flow.last_departure);
        flow.last_departure = flow.last_departure.max(departure);
        flow.owner = target.0 as u8;
        outcome.latency.record(departure - self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{Modulo, Ours};
    use super::*;

    fn costs() -> Costs {
        Costs {
            hit: vec![100],
            moved: vec![400],
            fresh: vec![200],
            ..Costs::default()
        }
    }

    #[test]
    fn an_empty_system_takes_what_service_takes() {
        let costs = costs();
        let mut run = Run::new(Modulo::new(4), &costs, 1000, (50, 50), 1000.0, 1);
        let cold = run.first_packets();
        assert_eq!((cold.packets, cold.lost, cold.moved), (1000, 0, 0));
        assert_eq!(cold.latency.min(), 250);
        let warm = run.cycle(&[4], 1000);
        assert_eq!((warm.latency.min(), warm.moved), (150, 0));
        assert!(run.cycle(&[5], 1000).moved > 0);
    }

    /// Under a load where queues are long, modulo reorders when targets change, which shows that the model can tell; ours
    /// does not.
    #[test]
    fn order_is_told_and_kept() {
        let costs = costs();
        let rate = 0.95 * 4.0 * 1e9 / 150.0;
        let phases = [4, 5, 8, 5, 4];
        let mut modulo = Run::new(Modulo::new(4), &costs, 50, (50, 50), rate, 1);
        assert!(modulo.cycle(&phases.repeat(20), 2000).reordered > 0);
        let mut ours = Run::new(Ours::new(4), &costs, 50, (50, 50), rate, 1);
        let outcome = ours.cycle(&phases.repeat(20), 2000);
        assert!(outcome.moved > 0, "{outcome:?}");
        assert_eq!((outcome.reordered, ours.weak_moves()), (0, 0));
    }

    #[test]
    fn what_finds_no_room_is_lost() {
        let costs = costs();
        let mut run = Run::new(Modulo::new(4), &costs, 100, (50, 50), 1e9, 1);
        let outcome = run.cycle(&[4], 20_000);
        assert!(outcome.lost > 10_000);
        assert_eq!(outcome.latency.count() + outcome.lost, outcome.packets);
    }
}
