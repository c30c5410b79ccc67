//! A cache from a flow's full key to what was decided about it.
//!
//! It belongs to one worker. Sets of four: a line of tags, stamps and generations, and the entries beside. A hit compares the
//! whole key, so a wrong answer is impossible; the hash only says where to look.
//!
//! [`FlowCache::lookup_batch`] looks a burst up in two passes: the first finds the candidates and loads a word of each
//! entry, so that the misses of a burst overlap; the second compares keys.
//!
//! The capacity is fixed. A new flow takes a slot that is empty or invalid, else that of the oldest entry of its set that is
//! idle; where all four are in use it is not kept, and counted. Changing what decisions were made from takes one call
//! that invalidates everything ([`FlowCache::invalidate`]) and costs an increment.
//!
//! Size: 16 bytes and an entry per slot. Nothing is allocated after [`FlowCache::new`].

use std::hint::black_box;

use crate::clock::Micros;
use crate::hash::FlowHash;

const WAYS: usize = 4;
/// The most slots: 2^24.
pub const MAX_CAPACITY: usize = 1 << 24;

/// Decisions by flow. `K` is a flow's full key and `V` what was decided.
#[derive(Debug)]
pub struct FlowCache<K, V> {
    /// A power of two.
    sets: Box<[Set]>,
    /// Four for each set.
    entries: Box<[Option<(K, V)>]>,
    /// What is of another is invalid. Never 0.
    generation: u32,
    /// Ticks without a hit until a flow is idle.
    idle: u32,
    refused: u64,
}

/// What is known of four entries without looking at them.
#[derive(Clone, Copy, Default, Debug)]
#[repr(align(64))]
struct Set {
    tags: [u32; WAYS],
    /// Tick of the last hit; wraps after fifty days.
    stamps: [u32; WAYS],
    generations: [u32; WAYS],
}

impl Set {
    /// The way that may hold a flow of this tag.
    #[inline]
    fn find(&self, tag: u32, generation: u32) -> Option<usize> {
        (0..WAYS).find(|&way| self.tags[way] == tag && self.generations[way] == generation)
    }
}

impl<K: Copy + Eq, V: Copy> FlowCache<K, V> {
    /// With at least this many slots, rounded up to a power of two between 4 and [`MAX_CAPACITY`]. An entry without a hit
    /// for `idle_micros`, at most a month, may be replaced.
    #[must_use]
    pub fn new(capacity: usize, idle_micros: u64) -> Self {
        let capacity = capacity.clamp(WAYS, MAX_CAPACITY).next_power_of_two();
        let idle = Micros(idle_micros).tick() + 1;
        Self {
            sets: vec![Set::default(); capacity / WAYS].into_boxed_slice(),
            entries: vec![None; capacity].into_boxed_slice(),
            generation: 1,
            idle: idle.min(u64::from(u32::MAX / 2)) as u32,
            refused: 0,
        }
    }

    /// The set of a hash, by its low half; tags are the high one.
    #[inline]
    fn set(&self, hash: FlowHash) -> usize {
        hash.low() as usize & (self.sets.len() - 1)
    }

    /// What was decided about a flow. A hit counts as use.
    #[inline]
    pub fn lookup(&mut self, hash: FlowHash, key: &K, now: Micros) -> Option<V> {
        let set = self.set(hash);
        let way = self.sets.get(set)?.find(hash.tag(), self.generation)?;
        self.hit(set, way, key, now)
    }

    /// What was decided about several, in `found`: as many as the shortest of the three has.
    pub fn lookup_batch(
        &mut self,
        hashes: &[FlowHash],
        keys: &[K],
        now: Micros,
        found: &mut [Option<V>],
    ) {
        const BATCH: usize = 32;
        let batches = hashes.chunks(BATCH).zip(keys.chunks(BATCH));
        for ((hashes, keys), found) in batches.zip(found.chunks_mut(BATCH)) {
            let mut ways = [None; BATCH];
            for (way, hash) in ways.iter_mut().zip(hashes) {
                let set = self.set(*hash);
                *way = self.sets[set].find(hash.tag(), self.generation);
                if let Some(way) = *way {
                    // A load that nobody waits for: the line is on its way when the second pass needs it.
                    black_box(self.entries[set * WAYS + way].is_some());
                }
            }
            let all = hashes.iter().zip(keys).zip(found).zip(ways);
            for (((hash, key), found), way) in all {
                *found = way.and_then(|way| self.hit(self.set(*hash), way, key, now));
            }
        }
    }

    #[inline]
    fn hit(&mut self, set: usize, way: usize, key: &K, now: Micros) -> Option<V> {
        let (kept, value) = (*self.entries.get(set * WAYS + way)?)?;
        if kept != *key {
            return None;
        }
        let stamp = &mut self.sets.get_mut(set)?.stamps[way];
        *stamp = now.tick() as u32;
        Some(value)
    }

    /// Keeps what was decided about a flow, in place of what was before; false, and counted, if all slots it could have are
    /// in use.
    pub fn insert(&mut self, hash: FlowHash, key: K, value: V, now: Micros) -> bool {
        let (number, tick) = (self.set(hash), now.tick() as u32);
        let Some(set) = self.sets.get_mut(number) else {
            return false;
        };
        let valid = |way: usize| set.generations[way] == self.generation;
        let age = |way: usize| tick.wrapping_sub(set.stamps[way]);
        // Of flows with the same tag only one is kept, so that the first candidate is the only one.
        let way = set
            .find(hash.tag(), self.generation)
            .or_else(|| (0..WAYS).find(|way| !valid(*way)))
            .or_else(|| {
                let idle = (0..WAYS).filter(|way| age(*way) >= self.idle);
                idle.max_by_key(|way| age(*way))
            });
        let Some(way) = way else {
            self.refused += 1;
            return false;
        };
        set.tags[way] = hash.tag();
        set.stamps[way] = tick;
        set.generations[way] = self.generation;
        self.entries[number * WAYS + way] = Some((key, value));
        true
    }

    /// Nothing of what is kept holds any more.
    pub fn invalidate(&mut self) {
        self.generation = match self.generation.checked_add(1) {
            Some(next) => next,
            None => {
                self.sets.fill(Set::default());
                1
            }
        };
    }

    /// How many flows there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// How many were not kept because there was no room.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const IDLE: u64 = 1_000_000;
    const START: Micros = Micros(1 << 40);

    /// Key `n`; the hash has collisions in set and tag.
    fn hash(n: u16) -> FlowHash {
        FlowHash(u64::from(n / 4) << 32 | u64::from(n % 4))
    }

    #[test]
    fn a_set_is_a_cache_line_and_sizes_are_bounded() {
        assert_eq!(size_of::<Set>(), 64);
        assert_eq!(FlowCache::<u16, u16>::new(0, IDLE).capacity(), 4);
        assert_eq!(FlowCache::<u16, u16>::new(1000, IDLE).capacity(), 1024);
    }

    #[test]
    fn everything_ends_at_once_also_when_generations_wrap() {
        let mut cache = FlowCache::new(64, IDLE);
        for generation in [1, u32::MAX] {
            cache.generation = generation;
            assert!(cache.insert(hash(1), 1u16, 10u16, START));
            assert_eq!(cache.lookup(hash(1), &1, START), Some(10));
            cache.invalidate();
            assert_eq!(cache.lookup(hash(1), &1, START), None);
        }
        assert_eq!(cache.generation, 1);
    }

    #[test]
    fn only_the_idle_are_replaced_the_oldest_first() {
        let mut cache = FlowCache::new(4, IDLE);
        let flow = |n: u64| FlowHash(n << 32);
        for n in 0..4 {
            assert!(cache.insert(flow(n), n, (), START.after(n * 10_000)));
        }
        assert!(!cache.insert(flow(4), 4, (), START.after(IDLE)));
        assert_eq!(cache.refused(), 1);
        let later = START.after(2 * IDLE);
        assert!(cache.lookup(flow(0), &0, later).is_some());
        assert!(cache.insert(flow(4), 4, (), later));
        assert!(cache.lookup(flow(1), &1, later).is_none());
        assert!(
            [0, 2, 3, 4]
                .iter()
                .all(|n| cache.lookup(flow(*n), n, later).is_some())
        );
    }

    proptest! {
        /// Against a map: never a value that was not the last one inserted for that key in this generation; what is
        /// missing was idle, refused, or lost its place to a flow of the same tag; bursts find what single lookups find.
        #[test]
        fn as_a_map_that_may_forget(
            steps in prop::collection::vec((0u8..16, 0u16..64, any::<u16>()), 1..300),
        ) {
            let mut cache = FlowCache::new(8, IDLE);
            let mut model: HashMap<u16, (u16, Micros)> = HashMap::new();
            let mut now = START;
            for (what, key, value) in steps {
                match what {
                    0 => {
                        cache.invalidate();
                        model.clear();
                    }
                    1..=3 => now = now.after(u64::from(value) * 10),
                    4..=8 => {
                        let set = |key: u16| hash(key).low() % 2;
                        if cache.insert(hash(key), key, value, now) {
                            model.retain(|other, _| hash(*other).tag() != hash(key).tag() || set(*other) != set(key));
                            model.insert(key, (value, now));
                        } else {
                            let used = model.iter().filter(|(other, (_, used))| {
                                set(**other) == set(key) && now.0 - used.0 < IDLE + 3 * 1024
                            });
                            prop_assert!(used.count() >= WAYS);
                            prop_assert!(!model.contains_key(&key) || cache.lookup(hash(key), &key, now).is_none());
                            model.remove(&key);
                        }
                    }
                    9 => {
                        let keys: Vec<u16> = (0..64).collect();
                        let hashes: Vec<FlowHash> = keys.iter().map(|key| hash(*key)).collect();
                        let mut found = vec![None; 64];
                        cache.lookup_batch(&hashes, &keys, now, &mut found);
                        for (key, found) in keys.iter().zip(found) {
                            prop_assert_eq!(found, cache.lookup(hash(*key), key, now));
                            if found.is_some() {
                                let known = model.get_mut(key).unwrap();
                                known.1 = now;
                            }
                        }
                    }
                    _ => match (cache.lookup(hash(key), &key, now), model.get_mut(&key)) {
                        (Some(found), Some((last, used))) => {
                            prop_assert_eq!(found, *last);
                            *used = now;
                        }
                        (Some(_), None) => prop_assert!(false, "nobody inserted it"),
                        (None, Some((_, used))) => {
                            prop_assert!(now.0 - used.0 >= IDLE);
                            model.remove(&key);
                        }
                        (None, None) => {}
                    },
                }
            }
        }
    }
}
