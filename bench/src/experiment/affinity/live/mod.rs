//! Eight targets on two real CPUs, a thread each, that share nothing but rings.
//!
//! ```text
//! CPU 0: packets fall due --> steered by the policy --+--> ring --> targets 0, 2, 4, 6
//!                                                     |                 | ^  messages: ask, give
//! CPU 1:                                              +--> ring --> targets 1, 3, 5, 7
//! ```
//!
//! Every target has its own table of flows ([`store`](super::store)). A packet whose flow is not in it waits aside while its target asks
//! the owner; the owner takes the state out of its table and sends it, 256 bytes in a message. Between targets of one CPU
//! that is done without messages. Who the owner is stands in a directory that all may read, an octet per flow, and whoever gives
//! a state away writes it. A real system would have to find the owner as well, at a cost that is not in here.
//!
//! Packets fall due at random times at a given mean rate, whether or not earlier ones are done, and a packet's latency runs
//! from when it was due until its work is done. One that finds no room in the ring of its target's CPU is lost. Latencies
//! count where both threads ran ([`calm`]).

use std::sync::atomic::{AtomicU8, Ordering::*};
use std::time::Instant;

use vswitch_flowtable::{Position, Target};

use super::costs::Costs;
use super::flows::Random;
use super::policy::{Policy, Progress, TARGETS, passed};
use super::ring::{Line, Sender, ring};
use super::{MESSAGES, QUEUE};
use crate::cpu::{Pinned, Placement};
use crate::histogram::Histogram;
use crate::stats::Summary;
use crate::{Error, Result};
use core::{Core, MESSAGE, PACKET, Tally};
use entry::Entry;

mod calm;
mod core;
mod entry;
mod seat;

/// Threads, on a CPU each.
pub(super) const CPUS: usize = 2;
/// A flow's state is nowhere yet.
const NOWHERE: u8 = u8::MAX;

/// Time since some moment, the same for both threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
    /// What it takes to read it.
    pub(super) cost_ns: u64,
}

impl Clock {
    pub(super) fn new() -> Self {
        let start = Instant::now();
        let read = |_| {
            let before = Instant::now();
            before.elapsed().as_nanos() as f64
        };
        let cost = Summary::of((0..10_001).map(read));
        Self {
            start,
            cost_ns: cost.map_or(0, |of| of.figure as u64),
        }
    }

    /// Nanoseconds.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// A packet on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// When it fell due.
    due: u64,
    /// How many came before it.
    number: u64,
    flow: u32,
}

/// What both CPUs see.
#[derive(Debug)]
pub(super) struct Shared {
    /// Who has the state, by flow.
    directory: Box<[AtomicU8]>,
    /// Packets done, by target.
    done: [Line; TARGETS as usize],
    over: Line,
}

impl Shared {
    #[inline]
    fn owner(&self, flow: u32) -> &AtomicU8 {
        &self.directory[flow as usize]
    }

    #[inline]
    fn finished(&self, target: u8, done: u64) {
        self.done[usize::from(target)].0.store(done, Release);
    }

    #[inline]
    fn done(&self, target: u16) -> u64 {
        self.done[usize::from(target)].0.load(Acquire)
    }
}

/// How far targets have come, seen from where packets are steered.
struct Seen<'s> {
    queued: &'s [u64; TARGETS as usize],
    shared: &'s Shared,
}

impl Progress for Seen<'_> {
    #[inline]
    fn completed(&self, target: Target, position: Position) -> bool {
        let queued = self.queued[usize::from(target.0)];
        passed(queued, self.shared.done(target.0), position)
    }
}

/// What comes, and how fast.
#[derive(Clone, Debug)]
pub(super) struct Drive<'o> {
    /// Numbers of targets in turn.
    pub(super) phases: &'o [u16],
    /// Packets with each.
    pub(super) packets: u64,
    /// These flows in this order; without, any.
    pub(super) order: Option<&'o [u32]>,
    /// Packets a second; without, as many as there is room for, and none is lost.
    pub(super) rate: Option<f64>,
    /// How many times as long as it took to grow a queue drains, at most.
    pub(super) drain: u64,
}

impl Drive<'_> {
    /// Packets in all phases.
    pub(super) fn all(&self) -> u64 {
        self.packets * self.phases.len() as u64
    }
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) latency: Histogram,
    /// That came, and that were done.
    pub(super) packets: u64,
    pub(super) done: u64,
    /// For want of room, while both threads ran.
    pub(super) lost: u64,
    pub(super) reordered: u64,
    /// Packets that had to fetch their flow's state from the other CPU, and from a target of the same.
    pub(super) fetched: [u64; 2],
    /// Asked for a state where it was not.
    pub(super) gone: u64,
    pub(super) costs: Costs,
    /// From the first packet to the last.
    pub(super) seconds: f64,
    /// Windows of half a millisecond that count for latencies and losses, and all.
    pub(super) windows: (usize, usize),
}

/// Targets, and everything between them.
#[derive(Debug)]
pub(super) struct Live {
    flows: u32,
    shared: Shared,
    cores: [Core; CPUS],
    entrances: [Sender<PACKET>; CPUS],
    /// Packets given to each target so far.
    queued: [u64; TARGETS as usize],
    clock: Clock,
    placement: Placement,
    random: Random,
    numbers: u64,
}

impl Live {
    /// Nothing has come yet; so many flows will.
    pub(super) fn new(flows: u32, placement: Placement) -> Self {
        let clock = Clock::new();
        // An even share at four targets, twice.
        let room = flows as usize / 2;
        let (to_first, first_in) = ring::<PACKET>(QUEUE);
        let (to_second, second_in) = ring::<PACKET>(QUEUE);
        let (first_out, second_box) = ring::<MESSAGE>(MESSAGES);
        let (second_out, first_box) = ring::<MESSAGE>(MESSAGES);
        let shared = Shared {
            directory: (0..flows).map(|_| AtomicU8::new(NOWHERE)).collect(),
            done: Default::default(),
            over: Line::default(),
        };
        let cores = [
            Core::new(0, room, first_in, (first_box, first_out), clock),
            Core::new(1, room, second_in, (second_box, second_out), clock),
        ];
        Self {
            flows,
            shared,
            cores,
            entrances: [to_first, to_second],
            queued: [0; TARGETS as usize],
            clock,
            placement,
            random: Random(1),
            numbers: 0,
        }
    }

    /// No flow is known any more; flows come in the order that this seed gives.
    pub(super) fn clear(&mut self, seed: u64) {
        self.cores.iter_mut().for_each(Core::clear);
        let all = self.shared.directory.iter();
        all.for_each(|owner| owner.store(NOWHERE, Relaxed));
        self.random = Random(seed);
    }

    /// Lets packets come, steered by `policy`, and waits until all are done.
    pub(super) fn run<P: Policy + Send>(
        &mut self,
        policy: &mut P,
        drive: &Drive<'_>,
    ) -> Result<Outcome> {
        self.shared.over.0.store(0, Relaxed);
        let (shared, clock, placement) = (&self.shared, self.clock, self.placement);
        let [first, second] = &mut self.cores;
        let mut entry = Entry::new(
            policy,
            drive,
            self.flows,
            &mut self.entrances,
            &mut self.queued,
            (&mut self.random, &mut self.numbers),
        );
        let (ours, theirs) = std::thread::scope(|scope| {
            let other = scope.spawn(move || -> Result<Tally> {
                let _pinned = Pinned::to(placement.worker)?;
                second.count(drive.all());
                while shared.over.0.load(Relaxed) == 0 {
                    second.turn(shared);
                }
                Ok(second.count(0))
            });
            let mut run = || -> Result<Tally> {
                let _pinned = Pinned::to(placement.generator)?;
                first.count(drive.all());
                entry.begin(clock.now());
                while !entry.turn(clock.now(), shared) && !other.is_finished() {
                    first.turn(shared);
                }
                Ok(first.count(0))
            };
            let ours = run();
            shared.over.0.store(1, Relaxed);
            let theirs = other.join().unwrap_or_else(|_| {
                Err(Error::Usage(
                    "a thread of the bench's own has failed".into(),
                ))
            });
            (ours, theirs)
        });
        let (mut outcome, losses) = entry.outcome();
        let (ours, theirs) = (ours?, theirs?);
        let mut diaries = vec![losses];
        for tally in [ours, theirs] {
            outcome.reordered += tally.reordered;
            outcome.gone += tally.gone;
            outcome.costs.merge(&tally.costs);
            let both = outcome.fetched.iter_mut().zip(tally.fetched);
            both.for_each(|(sum, more)| *sum += more);
            diaries.push(tally.diary);
        }
        let counted = calm::counted(&diaries, drive.drain);
        outcome.latency = counted.latency;
        outcome.lost = counted.lost;
        outcome.windows = counted.windows;
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::super::flows::shuffled;
    use super::super::policy::{Modulo, Ours};
    use super::*;

    const FLOWS: u32 = 2000;

    fn ran<P: Policy + Send>(phases: &[u16]) -> Option<Outcome> {
        let mut live = Live::new(FLOWS, Placement::first_two().ok()?);
        let mut policy = P::new(4);
        let order = shuffled(FLOWS, &mut Random(1));
        let first = Drive {
            phases: &[4],
            packets: u64::from(FLOWS),
            order: Some(&order),
            rate: None,
            drain: 4,
        };
        let cold = live.run(&mut policy, &first).unwrap();
        assert_eq!(
            (cold.packets, cold.done),
            (u64::from(FLOWS), u64::from(FLOWS))
        );
        assert_eq!(cold.fetched, [0; 2]);
        let then = Drive {
            phases,
            packets: 3000,
            order: None,
            rate: None,
            drain: 4,
        };
        let outcome = live.run(&mut policy, &then).unwrap();
        assert_eq!(outcome.packets, outcome.done);
        assert!(outcome.latency.count() <= outcome.done);
        let states: usize = live
            .shared
            .directory
            .iter()
            .filter(|at| at.load(Relaxed) < 8)
            .count();
        assert_eq!(states, FLOWS as usize);
        Some(outcome)
    }

    #[test]
    fn states_follow_their_flows_and_packets_stay_in_order() {
        let Some(outcome) = ran::<Ours>(&[4, 5, 8, 5, 4].repeat(3)) else {
            return;
        };
        assert_eq!(outcome.packets, 45_000);
        assert!(outcome.fetched.iter().all(|n| *n > 100), "{outcome:?}");
        assert_eq!((outcome.reordered, outcome.gone), (0, 0));
    }

    #[test]
    fn nobody_fetches_while_targets_stay() {
        let Some(outcome) = ran::<Modulo>(&[4]) else {
            return;
        };
        assert_eq!(outcome.fetched, [0; 2]);
    }

    #[test]
    fn modulo_comes_through_as_well() {
        let Some(outcome) = ran::<Modulo>(&[4, 5, 8, 5, 4].repeat(3)) else {
            return;
        };
        assert!(outcome.fetched.iter().all(|n| *n > 1000), "{outcome:?}");
    }
}
