//! What one target keeps of its flows: 256 bytes each, found by an index of its own.
//!
//! The index is a table with linear probing, at most half full, from which entries leave without a trace (what stood behind
//! them moves up): a table that only marks them would have to be rebuilt in the middle of a run. Room for all is there
//! beforehand, pages included.

use std::hint::black_box;

use super::flows::hash;

/// Words of a flow's state.
pub(super) const WORDS: usize = 256 / 8;
const WORDS_PER_LINE: usize = 64 / 8;
/// No flow has this number.
const EMPTY: u32 = u32::MAX;

/// A flow's state: four cache lines. The first word is the number after that of its last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub(super) struct State(pub(super) [u64; WORDS]);

impl State {
    /// Of a flow that had no packet yet.
    pub(super) const NEW: Self = Self([0; WORDS]);
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    flow: u32,
    slot: u32,
}

/// One target's flows.
#[derive(Debug)]
pub(super) struct Store {
    /// A power of two.
    index: Box<[Entry]>,
    slots: Vec<State>,
    free: Vec<u32>,
    flows: usize,
}

impl Store {
    /// With room for so many flows; more than that make it slower and larger.
    pub(super) fn with_room(flows: usize) -> Self {
        let vacant = Entry {
            flow: EMPTY,
            slot: 0,
        };
        // Written once, so that the pages are there.
        let mut slots = vec![State([1; WORDS]); flows];
        slots.clear();
        Self {
            index: vec![vacant; (2 * flows).next_power_of_two().max(8)].into_boxed_slice(),
            slots,
            free: Vec::with_capacity(flows),
            flows: 0,
        }
    }

    /// Nothing is kept any more.
    pub(super) fn clear(&mut self) {
        self.index.iter_mut().for_each(|entry| entry.flow = EMPTY);
        self.slots.clear();
        self.free.clear();
        self.flows = 0;
    }

    /// Where a flow would stand if nobody stood there. Steering looks at the low bits of the hash.
    #[inline]
    fn home(&self, flow: u32) -> usize {
        hash(flow).tag() as usize & (self.index.len() - 1)
    }

    #[inline]
    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.index.len() - 1)
    }

    /// Where the flow stands, or the vacant place where it could.
    #[inline]
    fn find(&self, flow: u32) -> (usize, Entry) {
        let mut place = self.home(flow);
        loop {
            let entry = self.index[place];
            if entry.flow == flow || entry.flow == EMPTY {
                return (place, entry);
            }
            place = self.after(place);
        }
    }

    /// Keeps a flow that is not kept yet.
    pub(super) fn enter(&mut self, flow: u32, state: &State) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = *state;
                slot
            }
            None => {
                self.slots.push(*state);
                self.slots.len() as u32 - 1
            }
        };
        self.flows += 1;
        if 2 * self.flows > self.index.len() {
            self.grow();
        }
        let (place, _) = self.find(flow);
        self.index[place] = Entry { flow, slot };
    }

    fn grow(&mut self) {
        let vacant = Entry {
            flow: EMPTY,
            slot: 0,
        };
        let doubled = vec![vacant; 2 * self.index.len()].into_boxed_slice();
        let before = std::mem::replace(&mut self.index, doubled);
        for entry in before.iter().filter(|entry| entry.flow != EMPTY) {
            let (place, _) = self.find(entry.flow);
            self.index[place] = *entry;
        }
    }

    /// Takes a flow out, if it is here. What it returns stays as it is until another flow enters.
    pub(super) fn leave(&mut self, flow: u32) -> Option<&State> {
        let (mut hole, entry) = self.find(flow);
        if entry.flow == EMPTY {
            return None;
        }
        let mut next = self.after(hole);
        while self.index[next].flow != EMPTY {
            // It may move up unless its home lies behind the hole.
            let mask = self.index.len() - 1;
            let home = self.home(self.index[next].flow);
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(hole) & mask {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.index[hole].flow = EMPTY;
        self.flows -= 1;
        self.free.push(entry.slot);
        self.slots.get(entry.slot as usize)
    }

    /// A packet with this number: every line of the state is read and written. Tells whether a later packet of the flow was
    /// here before; `None` if the flow is not here.
    #[inline]
    pub(super) fn touch(&mut self, flow: u32, number: u64) -> Option<bool> {
        let (_, entry) = self.find(flow);
        if entry.flow == EMPTY {
            return None;
        }
        let State(words) = self.slots.get_mut(entry.slot as usize)?;
        let late = words[0] > number;
        words[0] = words[0].max(number + 1);
        for word in words.iter_mut().step_by(WORDS_PER_LINE).skip(1) {
            *word = black_box(*word + 1);
        }
        Some(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn states_move_whole() {
        let (mut here, mut there) = (Store::with_room(4), Store::with_room(4));
        here.enter(7, &State::NEW);
        assert_eq!(here.touch(7, 0), Some(false));
        assert_eq!((here.touch(7, 5), there.touch(7, 6)), (Some(false), None));
        there.enter(7, here.leave(7).unwrap());
        assert_eq!(here.leave(7), None);
        assert_eq!(here.touch(7, 6), None);
        assert_eq!(there.touch(7, 4), Some(true));
        assert_eq!(there.slots[0].0[WORDS_PER_LINE], 3);
    }

    proptest! {
        /// Against a map: nobody is lost when others leave, and slots do not become more than flows were there at once.
        #[test]
        fn as_a_map(steps in prop::collection::vec((any::<bool>(), 0u32..40), 1..400)) {
            let mut store = Store::with_room(4);
            let mut model: HashMap<u32, u64> = HashMap::new();
            let mut most = 0;
            for (number, (leaves, flow)) in steps.into_iter().enumerate() {
                if leaves {
                    let state = store.leave(flow).copied();
                    prop_assert_eq!(state.map(|state| state.0[0]), model.remove(&flow));
                } else {
                    let number = number as u64;
                    if store.touch(flow, number).is_none() {
                        prop_assert!(!model.contains_key(&flow));
                        store.enter(flow, &State::NEW);
                        store.touch(flow, number);
                    }
                    model.insert(flow, number + 1);
                }
                most = most.max(model.len());
                prop_assert!(store.slots.len() <= most && store.flows == model.len());
            }
        }
    }
}
