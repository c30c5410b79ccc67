//! What it costs a target to have a flow's state, to fetch it from another, and to begin with it: measured in real memory.
//!
//! Every target has a store of its own: an index from flow to slot, and slots of 256 bytes, of which each packet reads and
//! writes every cache line. A flow that has moved is looked for in vain, taken out of the old target's index, copied over
//! and entered here. Room for all is there beforehand. One thread does all of it, on one CPU: what the other core would take to answer, and the fetching of
//! lines that lie modified in its cache, are not part of the figure. So moves cost more in reality than here.
//!
//! Packets are timed one by one; what the clock itself takes is subtracted.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;
use vswitch_flowtable::Target;

use super::model::{Random, hash};
use super::policy::{Modulo, Policy, Spread};
use crate::stats::Summary;

/// Longer than any of this can take: the machine was busy elsewhere.
const DISTURBED_NS: u64 = 20_000;
const WORDS: usize = 256 / 8;
const WORDS_PER_LINE: usize = 64 / 8;

/// A flow's state: four cache lines.
#[derive(Clone)]
#[repr(align(64))]
struct State([u64; WORDS]);

/// Samples in ns.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    /// The state is here.
    pub(super) hit: Vec<u32>,
    /// The state is at another target.
    pub(super) moved: Vec<u32>,
    /// The flow is new.
    pub(super) fresh: Vec<u32>,
    /// Not counted: the machine was busy elsewhere.
    pub(super) disturbed: u64,
    /// What reading the clock takes; subtracted.
    pub(super) clock_ns: u64,
}

/// The same in short: medians.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Medians {
    /// The state is here.
    pub hit_ns: f64,
    /// The state is at another target.
    pub moved_ns: f64,
    /// The flow is new.
    pub fresh_ns: f64,
    /// Samples not counted.
    pub disturbed: u64,
}

impl Costs {
    pub(super) fn medians(&self) -> Medians {
        let median = |samples: &[u32]| {
            let all = samples.iter().map(|ns| f64::from(*ns));
            Summary::of(all).map_or(0.0, |summary| summary.figure)
        };
        Medians {
            hit_ns: median(&self.hit),
            moved_ns: median(&self.moved),
            fresh_ns: median(&self.fresh),
            disturbed: self.disturbed,
        }
    }

    /// The mean of hits.
    pub(super) fn mean_hit(&self) -> f64 {
        let sum: f64 = self.hit.iter().map(|ns| f64::from(*ns)).sum();
        sum / (self.hit.len().max(1) as f64)
    }
}

/// One target's.
#[derive(Default)]
struct Store {
    index: HashMap<u32, u32, BuildHasherDefault<Spread>>,
    slots: Vec<State>,
    free: Vec<u32>,
}

impl Store {
    /// With room for so many flows, whose pages are there.
    fn with_room(flows: usize) -> Self {
        let mut slots = vec![State([1; WORDS]); flows];
        slots.clear();
        let mut index = HashMap::default();
        index.reserve(flows);
        Self {
            index,
            slots,
            free: Vec::with_capacity(flows),
        }
    }

    fn enter(&mut self, flow: u32, state: State) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = state;
                slot
            }
            None => {
                self.slots.push(state);
                self.slots.len() as u32 - 1
            }
        };
        self.index.insert(flow, slot);
    }

    fn leave(&mut self, flow: u32) -> Option<State> {
        let slot = self.index.remove(&flow)?;
        self.free.push(slot);
        self.slots.get(slot as usize).cloned()
    }

    /// A packet: every line of the state is read and written.
    fn touch(&mut self, flow: u32) -> bool {
        let Some(slot) = self.index.get(&flow) else {
            return false;
        };
        let Some(State(words)) = self.slots.get_mut(*slot as usize) else {
            return false;
        };
        for word in words.iter_mut().step_by(WORDS_PER_LINE) {
            *word = black_box(*word + 1);
        }
        true
    }
}

/// Measures with so many flows, on the CPU this thread is on.
pub(super) fn measure(flows: u32, samples: u32, seed: u64) -> Costs {
    let mut costs = Costs {
        clock_ns: clock_ns(),
        ..Costs::default()
    };
    let mut random = Random(seed);
    let mut stores: Vec<Store> = (0..5)
        .map(|_| Store::with_room(flows as usize / 3))
        .collect();
    let (four, five) = (Modulo::new(4), Modulo::new(5));
    let mut at: Vec<Target> = (0..flows).map(|flow| four.settled(hash(flow))).collect();
    // In any order, as flows come: slots beside each other belong to flows that have nothing to do with each other.
    let mut order: Vec<u32> = (0..flows).collect();
    shuffle(&mut order, &mut random);
    for (number, flow) in order.iter().enumerate() {
        let store = &mut stores[usize::from(at[*flow as usize].0)];
        let time = timed(|| {
            store.enter(*flow, State([0; WORDS]));
            store.touch(*flow)
        });
        // The last ones, when the stores have their size.
        if number + samples as usize >= order.len() {
            costs.count(time, |costs| &mut costs.fresh);
        }
    }
    for _ in 0..samples {
        let flow = random.below(flows);
        let store = &mut stores[usize::from(at[flow as usize].0)];
        let time = timed(|| store.touch(flow));
        costs.count(time, |costs| &mut costs.hit);
    }
    // Whoever a packet comes for goes where five targets have it. Each flow once, and in another order than they came in:
    // memory that is walked through from end to end is fetched ahead.
    shuffle(&mut order, &mut random);
    for flow in order.iter().copied() {
        let (from, to) = (at[flow as usize], five.settled(hash(flow)));
        if from == to {
            continue;
        }
        if costs.moved.len() >= samples as usize {
            break;
        }
        let time = timed(|| {
            let known = stores[usize::from(to.0)].touch(flow);
            if let (false, Some(state)) = (known, stores[usize::from(from.0)].leave(flow)) {
                stores[usize::from(to.0)].enter(flow, state);
            }
            stores[usize::from(to.0)].touch(flow)
        });
        at[flow as usize] = to;
        costs.count(time, |costs| &mut costs.moved);
    }
    costs
}

impl Costs {
    fn count(&mut self, ns: u64, samples: impl FnOnce(&mut Self) -> &mut Vec<u32>) {
        if ns > DISTURBED_NS {
            self.disturbed += 1;
        } else {
            let net = ns.saturating_sub(self.clock_ns);
            samples(self).push(net as u32);
        }
    }
}

/// Any order (Fisher and Yates).
fn shuffle(order: &mut [u32], random: &mut Random) {
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u32 + 1) as usize);
    }
}

fn timed(work: impl FnOnce() -> bool) -> u64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_nanos() as u64
}

/// What it takes to read the clock twice: the median of many.
fn clock_ns() -> u64 {
    let reads = (0..10_001).map(|_| timed(|| true) as f64);
    Summary::of(reads).map_or(0, |summary| summary.figure as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_move_whole() {
        let (mut here, mut there) = (Store::default(), Store::default());
        here.enter(7, State([0; WORDS]));
        assert!(here.touch(7) && here.touch(7) && !there.touch(7));
        let state = here.leave(7).unwrap();
        there.enter(7, state);
        assert!(there.touch(7) && !here.touch(7));
        assert_eq!(there.slots[0].0[WORDS_PER_LINE], 3);
        here.enter(8, State([5; WORDS]));
        assert_eq!((here.slots.len(), here.slots[0].0[0]), (1, 5));
    }

    #[test]
    fn every_kind_is_measured() {
        let costs = measure(2000, 500, 1);
        assert!(costs.hit.len() + costs.disturbed as usize >= 500);
        assert!(costs.moved.len() > 400 && costs.fresh.len() > 400);
        assert!(costs.mean_hit() < DISTURBED_NS as f64);
    }
}
