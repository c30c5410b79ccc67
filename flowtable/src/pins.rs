//! Flows that go elsewhere than their bucket says: pins.
//!
//! The virtio specification wants the packets of a flow that a guest sends on transmit queue X to arrive on receive queue X
//! (5.1.6.5.6, "Automatic receive steering in multiqueue mode"). [`Pins::learn`] sees what a guest sends and pins flows for
//! which the table says otherwise, from a flow's second packet on, so that scans cost nothing. Both directions of a flow
//! have the same hash. One `Pins` per port is shared by all workers; a pin only says where a flow belongs, and each
//! worker's [`View`](crate::View) moves it there in order.
//!
//! # How it works
//!
//! 4,096 pins in sets of four; a set is one cache line. A pin is two words: the flow's 64-bit hash, which identifies it (two
//! of a million flows share one with a chance of 2^-24), and a word of target, generation, stamp and state.
//!
//! ```text
//! 63       48 47       32 31                    2 1     0
//! |  target  | generation | tick of the last use  | state |        state: free, claimed, live
//! ```
//!
//! Every change is one compare-and-swap of that word. Whoever replaces a pin first claims the word, then writes the hash,
//! then the new word; so a reader that finds its hash between two equal live words has read that pin's. The generation counts
//! the pins that a slot has had.
//!
//! A pin leaves when it is idle, and only then: 3 s after the last packet that used it its slot may be taken or swept, and
//! a packet that comes before that keeps it. One that came to say what its bucket says is removed by the view, under
//! the same rule of order by which it moves. A set whose four pins are all in use refuses a fifth; that is counted, and the
//! flow stays with its bucket.
//!
//! Cost: a lookup reads one line, and nothing while no flow is pinned; it never allocates, inserts or fails. It writes once per
//! 64 ms and flow. Size: 64 KiB and 4 KiB for what was seen once.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::clock::{Micros, TICK};
use crate::hash::FlowHash;
use crate::indirection::Target;

/// Pins per port.
pub const CAPACITY: usize = SETS * WAYS;
/// Sets of pins.
pub const SETS: usize = 1024;
const WAYS: usize = 4;
/// A pin that was not used for so long may leave.
pub const EXPIRY_MICROS: u64 = 3_000_000;
/// How old a stamp gets before a lookup renews it, in ticks.
const RENEW: u64 = 64;
/// How old a stamp must be for the last use to be surely that long ago.
const EXPIRY: u64 = EXPIRY_MICROS.div_ceil(TICK) + RENEW + 1;
/// Hashes remembered as seen once, in sets of [`WAYS`].
const SEEN: usize = 1024;

/// A pin as a lookup found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pin {
    slot: u16,
    word: Word,
}

impl Pin {
    /// Where the flow belongs.
    #[inline]
    #[must_use]
    pub const fn target(&self) -> Target {
        self.word.target()
    }

    /// Which of the pins it is.
    #[inline]
    pub(crate) const fn slot(&self) -> u16 {
        self.slot
    }

    /// Which of the pins that this slot had; never 0.
    #[inline]
    pub(crate) const fn generation(&self) -> u16 {
        self.word.generation()
    }
}

/// What came of a packet that a guest sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// The table, or a pin, says the same already.
    Agrees,
    /// The first packet of its flow: the next one makes a pin.
    Seen,
    /// There is a new pin.
    Pinned,
    /// The flow's pin has a new target.
    Retargeted,
    /// The set is full of pins in use: the flow stays with its bucket.
    Refused,
}

/// All pins of a port.
#[derive(Debug)]
pub struct Pins {
    sets: Box<[Set]>,
    /// By their hash, flows of which one packet was seen that wanted a pin.
    seen: Box<[Seen]>,
    /// Words that are claimed or live.
    used: AtomicUsize,
    refused: AtomicU64,
}

#[derive(Default, Debug)]
#[repr(align(64))]
struct Set {
    ways: [Way; WAYS],
}

/// Tags of flows, the newest first.
#[derive(Default, Debug)]
#[repr(align(16))]
struct Seen {
    tags: [AtomicU32; WAYS],
}

#[derive(Default, Debug)]
struct Way {
    hash: AtomicU64,
    word: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Claimed,
    Live,
}

/// Target, generation, stamp and state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Word(u64);

impl Word {
    const TICKS: u64 = (1 << 30) - 1;

    const fn new(target: Target, generation: u16, tick: u64, state: State) -> Self {
        Self(
            (target.0 as u64) << 48
                | (generation as u64) << 32
                | (tick & Self::TICKS) << 2
                | state as u64,
        )
    }

    const fn target(self) -> Target {
        Target((self.0 >> 48) as u16)
    }

    const fn generation(self) -> u16 {
        (self.0 >> 32) as u16
    }

    const fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Free,
            1 => State::Claimed,
            _ => State::Live,
        }
    }

    /// Ticks since the last use; 0 if another worker, whose clock was read later, has just used it. Wraps after twelve days.
    const fn age(self, tick: u64) -> u64 {
        let age = tick.wrapping_sub(self.0 >> 2) & Self::TICKS;
        if age > Self::TICKS / 2 { 0 } else { age }
    }

    const fn at(self, tick: u64) -> Self {
        Self::new(self.target(), self.generation(), tick, self.state())
    }

    const fn to(self, target: Target) -> Self {
        Self(self.0 & !(0xffff << 48) | (target.0 as u64) << 48)
    }

    const fn is(self, state: State) -> Self {
        Self(self.0 & !3 | state as u64)
    }

    /// The generation after this one, without 0.
    const fn next(self) -> u16 {
        match self.generation().wrapping_add(1) {
            0 => 1,
            generation => generation,
        }
    }
}

impl Way {
    /// The word, if it is a live pin of this flow.
    #[inline]
    fn pin(&self, hash: FlowHash) -> Option<Word> {
        if self.hash.load(Ordering::Relaxed) != hash.0 {
            return None;
        }
        let word = self.word.load(Ordering::Acquire);
        let same = self.hash.load(Ordering::Acquire) == hash.0
            && self.word.load(Ordering::Relaxed) == word;
        let word = Word(word);
        (same && word.state() == State::Live).then_some(word)
    }

    #[inline]
    fn swap(&self, from: Word, to: Word) -> bool {
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        self.word
            .compare_exchange(from.0, to.0, order.0, order.1)
            .is_ok()
    }
}

impl Seen {
    /// Whether this one was seen lately. If not it was now, and the oldest is forgotten; so a few flows that take turns do
    /// not forget each other. Workers that do this at once may lose one of theirs, which is seen again.
    fn again(&self, tag: u32) -> bool {
        let tags = &self.tags;
        if tags.iter().any(|seen| seen.load(Ordering::Relaxed) == tag) {
            return true;
        }
        for (newer, older) in tags.iter().zip(&tags[1..]).rev() {
            older.store(newer.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        tags[0].store(tag, Ordering::Relaxed);
        false
    }
}

impl Default for Pins {
    fn default() -> Self {
        Self::new()
    }
}

impl Pins {
    /// No pin yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            sets: (0..SETS).map(|_| Set::default()).collect(),
            seen: (0..SEEN / WAYS).map(|_| Seen::default()).collect(),
            used: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The set of a flow, from other bits than its bucket: flows of one bucket spread over all sets.
    #[inline]
    fn set(&self, hash: FlowHash) -> (usize, &[Way]) {
        let number = hash.tag() as usize % SETS;
        (number, self.sets.get(number).map_or(&[], |set| &set.ways))
    }

    /// The pin of a flow that is about to get a packet, which counts as its use.
    #[inline]
    pub fn lookup(&self, hash: FlowHash, now: Micros) -> Option<Pin> {
        if self.used.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let tick = now.tick();
        let (set, ways) = self.set(hash);
        for (number, way) in ways.iter().enumerate() {
            // Who changes the word meanwhile renews it, gives it a target, or takes it away: each time look again.
            while let Some(word) = way.pin(hash) {
                let fresh = match word.age(tick) < RENEW {
                    true => word,
                    false => word.at(tick),
                };
                if fresh == word || way.swap(word, fresh) {
                    return Some(Pin {
                        slot: (set * WAYS + number) as u16,
                        word: fresh,
                    });
                }
            }
        }
        None
    }

    /// A guest sent a packet of this flow on the pair of `queue`, and the table steers the flow to `says`.
    pub fn learn(&self, hash: FlowHash, queue: Target, says: Target, now: Micros) -> Learned {
        if let Some(learned) = self.retarget(hash, queue) {
            return learned;
        }
        if queue == says {
            return Learned::Agrees;
        }
        if let Some(seen) = self.seen.get(hash.low() as usize % (SEEN / WAYS))
            && !seen.again(hash.tag() | 1)
        {
            return Learned::Seen;
        }
        self.insert(hash, queue, now)
    }

    /// Pins a flow at once, or gives its pin another target.
    pub fn pin(&self, hash: FlowHash, target: Target, now: Micros) -> Learned {
        match self.retarget(hash, target) {
            Some(learned) => learned,
            None => self.insert(hash, target, now),
        }
    }

    /// Gives the flow's pin a target, if it has a pin.
    fn retarget(&self, hash: FlowHash, target: Target) -> Option<Learned> {
        if self.used.load(Ordering::Relaxed) == 0 {
            return None;
        }
        for way in self.set(hash).1 {
            while let Some(word) = way.pin(hash) {
                if word.target() == target {
                    return Some(Learned::Agrees);
                }
                if way.swap(word, word.to(target)) {
                    return Some(Learned::Retargeted);
                }
            }
        }
        None
    }

    /// Makes a pin in a free slot, or in that of the oldest that is idle.
    fn insert(&self, hash: FlowHash, target: Target, now: Micros) -> Learned {
        let tick = now.tick();
        let (_, ways) = self.set(hash);
        // A slot can be lost to another worker; then there is another, or none.
        for _ in 0..WAYS {
            let words = ways
                .iter()
                .map(|way| (way, Word(way.word.load(Ordering::Acquire))));
            let best = words
                .filter_map(|(way, word)| match word.state() {
                    State::Free => Some((u64::MAX, way, word)),
                    State::Live if word.age(tick) >= EXPIRY => Some((word.age(tick), way, word)),
                    State::Live | State::Claimed => None,
                })
                .max_by_key(|(age, ..)| *age);
            let Some((_, way, word)) = best else { break };
            if way.swap(word, word.is(State::Claimed)) {
                if word.state() == State::Free {
                    self.used.fetch_add(1, Ordering::Relaxed);
                }
                way.hash.store(hash.0, Ordering::Release);
                let live = Word::new(target, word.next(), tick, State::Live);
                way.word.store(live.0, Ordering::Release);
                return Learned::Pinned;
            }
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Learned::Refused
    }

    /// Takes a pin away, unless it has changed since it was looked up; tells whether it is gone.
    pub(crate) fn remove(&self, pin: &Pin) -> bool {
        let (set, number) = (usize::from(pin.slot) / WAYS, usize::from(pin.slot) % WAYS);
        let way = self.sets.get(set).and_then(|set| set.ways.get(number));
        way.is_some_and(|way| self.free(way, pin.word))
    }

    fn free(&self, way: &Way, word: Word) -> bool {
        let freed = way.swap(word, word.is(State::Free));
        if freed {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
        freed
    }

    /// Takes away the pins in these sets, numbered from 0 to [`SETS`], that are idle; returns how many. For housekeeping:
    /// who has no pins pays nothing for them.
    pub fn sweep(&self, sets: std::ops::Range<usize>, now: Micros) -> usize {
        let sets = self.sets.get(sets).unwrap_or_default();
        self.free_where(sets, |word| word.age(now.tick()) >= EXPIRY)
    }

    /// Takes away all pins to a target that is lost; returns how many.
    pub fn forget(&self, target: Target) -> usize {
        self.free_where(&self.sets, |word| word.target() == target)
    }

    fn free_where(&self, sets: &[Set], which: impl Fn(Word) -> bool) -> usize {
        let ways = sets.iter().flat_map(|set| &set.ways);
        ways.filter(|way| {
            let word = Word(way.word.load(Ordering::Acquire));
            word.state() == State::Live && which(word) && self.free(way, word)
        })
        .count()
    }

    /// Gives every pin the target that its flow would have without; then views remove it in order. Returns how many changed.
    pub fn release(&self, says: impl Fn(FlowHash) -> Option<Target>) -> usize {
        let ways = self.sets.iter().flat_map(|set| &set.ways);
        ways.filter(|way| {
            let hash = FlowHash(way.hash.load(Ordering::Acquire));
            let Some(target) = says(hash) else {
                return false;
            };
            way.pin(hash)
                .is_some_and(|word| word.target() != target && way.swap(word, word.to(target)))
        })
        .count()
    }

    /// How many there are, idle ones that were not swept included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many pins were refused because their set was full of those in use.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
