//! The forwarding database of one bridge: which port a MAC address lives behind, per VLAN.
//!
//! # Theory of operation
//!
//! One table of fixed capacity, allocated when the bridge is made. Workers read it without locks; one writer, the main
//! thread, changes it. A MAC address has two candidate buckets of four entries each, one cache line a bucket, chosen by
//! a keyed hash (guests choose their MAC addresses, so an unkeyed hash would let one guest overfill a bucket).
//!
//! An entry is two words, `key` and `value`. The writer changes a slot's owner as *clear key, store value, store key*;
//! a reader loads *key, value, key* and takes the value only if both keys are the one it wants. Words are stored with
//! `Release` and loaded with `Acquire`, so a reader that sees the new value also sees the cleared key.
//!
//! Readers write one thing only: the time stamp of an entry, and only when the coarse second has changed.
//!
//! Entries name a port by index and incarnation. A port that is removed leaves entries that nobody believes any more.
//!
//! # Limits
//!
//! At most `limit` entries. A full table evicts from the port that holds the most, so a guest that invents addresses
//! pushes out its own and nobody else's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswitch_packet::MacAddr;

use super::{PortIndex, PortRef, Vid};

const WAYS: usize = 4;
const OCCUPIED: u64 = 1 << 63;
const STATIC: u64 = 1 << 63;

/// A second of the daemon's own clock; ages are differences of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct CoarseSecond(pub u32);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(u64);

impl Key {
    fn new(vid: Vid, mac: MacAddr) -> Self {
        Self::of_number(vid, mac.to_u64())
    }
    #[inline(always)]
    fn of_number(vid: Vid, mac: u64) -> Self {
        Key(OCCUPIED | u64::from(vid.0) << 48 | mac)
    }
    fn vid(self) -> Vid {
        Vid((self.0 >> 48) as u16 & 0xfff)
    }
    fn mac(self) -> MacAddr {
        let b = self.0.to_be_bytes();
        MacAddr([b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

/// What an entry says: port (16 bits), its incarnation (15 bits), last seen (32 bits), static (1 bit).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value(u64);

impl Value {
    fn new(port: PortRef, stamp: CoarseSecond, is_static: bool) -> Self {
        let flag = if is_static { STATIC } else { 0 };
        Value(
            flag | u64::from(port.incarnation & 0x7fff) << 48
                | u64::from(port.index.0) << 32
                | u64::from(stamp.0),
        )
    }
    fn port(self) -> PortRef {
        PortRef {
            index: PortIndex((self.0 >> 32) as u16),
            incarnation: (self.0 >> 48) as u16 & 0x7fff,
        }
    }
    fn stamp(self) -> CoarseSecond {
        CoarseSecond(self.0 as u32)
    }
    fn stamped(self, now: CoarseSecond) -> Self {
        Value(self.0 & !u64::from(u32::MAX) | u64::from(now.0))
    }
    fn is_static(self) -> bool {
        self.0 & STATIC != 0
    }
}

#[repr(align(64))]
#[derive(Default)]
struct Bucket {
    keys: [AtomicU64; WAYS],
    values: [AtomicU64; WAYS],
}

/// The half that workers read.
pub struct Fdb {
    buckets: Box<[Bucket]>,
    mask: usize,
    seed: [u64; 2],
    version: AtomicU32,
}

impl Fdb {
    fn new(limit: usize, seed: [u64; 2]) -> Self {
        // Half full at the limit, and never tiny: the emptier of two buckets of four then practically always has room.
        let count = (limit * 2 / WAYS).next_power_of_two().max(256);
        Fdb {
            buckets: (0..count).map(|_| Bucket::default()).collect(),
            mask: count - 1,
            seed: [seed[0], seed[1] | 1],
            version: AtomicU32::new(0),
        }
    }

    /// A number that changes whenever what the table says does. Of what was looked up after it was loaded, nothing is
    /// older than it.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Folded multiply with secret operands: four cycles, and nobody outside can aim at a bucket.
    #[inline]
    fn buckets_of(&self, key: Key) -> [usize; 2] {
        let product = u128::from(key.0 ^ self.seed[0]) * u128::from(self.seed[1]);
        let h = (product as u64) ^ (product >> 64) as u64;
        let h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [
            (h >> 40) as usize & self.mask,
            (h >> 16) as usize & self.mask,
        ]
    }

    #[inline]
    fn find(&self, key: Key) -> Option<(&AtomicU64, Value)> {
        for b in self.buckets_of(key) {
            let bucket = self.buckets.get(b)?;
            for (k, v) in bucket.keys.iter().zip(&bucket.values) {
                if k.load(Ordering::Acquire) == key.0 {
                    let value = v.load(Ordering::Acquire);
                    if k.load(Ordering::Relaxed) == key.0 {
                        return Some((v, Value(value)));
                    }
                }
            }
        }
        None
    }

    /// The port behind `mac` on `vid`, if known. The caller checks that the incarnation is still the port's.
    #[inline]
    pub fn lookup(&self, vid: Vid, mac: MacAddr) -> Option<PortRef> {
        self.lookup_number(vid, mac.to_u64())
    }

    /// The same for an address as a number.
    #[inline]
    pub fn lookup_number(&self, vid: Vid, mac: u64) -> Option<PortRef> {
        self.find(Key::of_number(vid, mac)).map(|(_, v)| v.port())
    }

    /// Notes that `mac` was seen on `port`. True if the table already says so (its age is refreshed); false if the
    /// writer has to be told.
    #[inline]
    pub fn seen(&self, vid: Vid, mac: MacAddr, port: PortRef, now: CoarseSecond) -> bool {
        self.seen_number(vid, mac.to_u64(), port, now)
    }

    /// The same for an address as a number.
    #[inline]
    pub fn seen_number(&self, vid: Vid, mac: u64, port: PortRef, now: CoarseSecond) -> bool {
        let Some((slot, value)) = self.find(Key::of_number(vid, mac)) else {
            return false;
        };
        if value.port() != port {
            // A static entry is not moved by traffic: there is nothing to tell.
            return value.is_static();
        }
        if value.stamp() != now && !value.is_static() {
            // Losing this race to the writer is right: its word is newer.
            let _ = slot.compare_exchange(
                value.0,
                value.stamped(now).0,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        true
    }
}

/// What became of an address that was offered to the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// A new entry.
    New,
    /// The address was behind another port until now.
    Moved {
        /// Where it was.
        from: PortRef,
    },
    /// Already known there.
    Known,
    /// A static entry says otherwise, or the table cannot take it.
    Refused,
}

/// An entry as people see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The address.
    pub mac: MacAddr,
    /// The VLAN it was seen on; 0 is the untagged segment.
    pub vid: Vid,
    /// The port it is behind.
    pub port: PortRef,
    /// When it was last seen.
    pub seen: CoarseSecond,
    /// Put there by a person; neither ages nor moves.
    pub is_static: bool,
}

/// The half that the main thread writes.
pub struct FdbWriter {
    table: Arc<Fdb>,
    limit: usize,
    len: usize,
    per_port: HashMap<PortRef, usize>,
    hand: usize,
    /// Entries thrown out because the table was full.
    pub evictions: u64,
    /// Addresses that changed ports.
    pub moves: u64,
}

impl FdbWriter {
    /// An empty table for at most `limit` addresses, hashed with `seed`.
    pub fn new(limit: usize, seed: [u64; 2]) -> Self {
        FdbWriter {
            table: Arc::new(Fdb::new(limit, seed)),
            limit,
            len: 0,
            per_port: HashMap::new(),
            hand: 0,
            evictions: 0,
            moves: 0,
        }
    }

    /// The readers' half.
    pub fn table(&self) -> Arc<Fdb> {
        Arc::clone(&self.table)
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries it may hold.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes up an address seen on `port`, or set there by a person (`is_static`, which overrides what is known).
    pub fn insert(
        &mut self,
        vid: Vid,
        mac: MacAddr,
        port: PortRef,
        now: CoarseSecond,
        is_static: bool,
    ) -> Learned {
        let key = Key::new(vid, mac);
        let value = Value::new(port, now, is_static);
        if let Some((slot, old)) = self.table.find(key) {
            if old.is_static() && !is_static {
                return Learned::Refused;
            }
            slot.store(value.0, Ordering::Release);
            if old.port() == port && old.is_static() == is_static {
                return Learned::Known;
            }
            self.changed();
            if old.port() == port {
                return Learned::Known;
            }
            self.moves += 1;
            self.forget_count(old.port());
            *self.per_port.entry(port).or_default() += 1;
            return Learned::Moved { from: old.port() };
        }
        if self.len >= self.limit && !self.evict() {
            return Learned::Refused;
        }
        let table = Arc::clone(&self.table);
        let candidates = table
            .buckets_of(key)
            .into_iter()
            .filter_map(|b| table.buckets.get(b));
        let free = |b: &&Bucket| {
            b.keys
                .iter()
                .filter(|k| k.load(Ordering::Relaxed) == 0)
                .count()
        };
        let slots = candidates
            .max_by_key(free)
            .map(|b| b.keys.iter().zip(&b.values));
        let Some((k, v)) = slots.and_then(|mut s| s.find(|(k, _)| k.load(Ordering::Relaxed) == 0))
        else {
            return Learned::Refused;
        };
        v.store(value.0, Ordering::Release);
        k.store(key.0, Ordering::Release);
        self.changed();
        self.len += 1;
        *self.per_port.entry(port).or_default() += 1;
        Learned::New
    }

    /// Removes one entry; false if it was not there.
    pub fn remove(&mut self, vid: Vid, mac: MacAddr) -> bool {
        self.retain(|e| e.vid != vid || e.mac != mac) > 0
    }

    /// Keeps the entries that `keep` accepts; returns how many went.
    pub fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) -> usize {
        let table = Arc::clone(&self.table);
        let before = self.len;
        for bucket in &table.buckets {
            for (k, v) in bucket.keys.iter().zip(&bucket.values) {
                if let Some(entry) = entry_of(k, v)
                    && !keep(&entry)
                {
                    k.store(0, Ordering::Release);
                    self.len -= 1;
                    self.forget_count(entry.port);
                }
            }
        }
        if self.len != before {
            self.changed();
        }
        before - self.len
    }

    /// Removes what was not seen for `ageing` seconds, and what names a port that `alive` does not know.
    pub fn age(
        &mut self,
        now: CoarseSecond,
        ageing: u32,
        alive: impl Fn(PortRef) -> bool,
    ) -> usize {
        self.retain(|e| alive(e.port) && (e.is_static || now.0.saturating_sub(e.seen.0) < ageing))
    }

    /// All entries, in no order.
    pub fn entries(&self) -> Vec<Entry> {
        let slots = self
            .table
            .buckets
            .iter()
            .flat_map(|b| b.keys.iter().zip(&b.values));
        slots.filter_map(|(k, v)| entry_of(k, v)).collect()
    }

    /// Tells readers that what they remember of the table may be wrong. After the change: who sees the new number sees it.
    fn changed(&mut self) {
        self.table.version.fetch_add(1, Ordering::Release);
    }

    fn forget_count(&mut self, port: PortRef) {
        if let Some(n) = self.per_port.get_mut(&port) {
            *n -= 1;
            if *n == 0 {
                self.per_port.remove(&port);
            }
        }
    }

    /// Makes room for one: the next dynamic entry, clockwise, of the port that holds most.
    fn evict(&mut self) -> bool {
        let mut ports: Vec<_> = self.per_port.iter().map(|(p, n)| (*n, *p)).collect();
        ports.sort_unstable_by(|a, b| b.cmp(a));
        let table = Arc::clone(&self.table);
        for (_, port) in ports {
            for step in 0..table.buckets.len() {
                let at = (self.hand + step) & table.mask;
                let Some(bucket) = table.buckets.get(at) else {
                    continue;
                };
                for (k, v) in bucket.keys.iter().zip(&bucket.values) {
                    if entry_of(k, v).is_some_and(|e| e.port == port && !e.is_static) {
                        k.store(0, Ordering::Release);
                        self.hand = at + 1;
                        self.len -= 1;
                        self.evictions += 1;
                        self.changed();
                        self.forget_count(port);
                        return true;
                    }
                }
            }
        }
        false
    }
}

fn entry_of(key: &AtomicU64, value: &AtomicU64) -> Option<Entry> {
    let key = Key(key.load(Ordering::Acquire));
    if key.0 == 0 {
        return None;
    }
    let value = Value(value.load(Ordering::Acquire));
    Some(Entry {
        mac: key.mac(),
        vid: key.vid(),
        port: value.port(),
        seen: value.stamp(),
        is_static: value.is_static(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mac(n: u64) -> MacAddr {
        let b = n.to_be_bytes();
        MacAddr([2, b[3], b[4], b[5], b[6], b[7]])
    }
    fn port(n: u16) -> PortRef {
        PortRef {
            index: PortIndex(n),
            incarnation: 1,
        }
    }
    const NOW: CoarseSecond = CoarseSecond(1000);
    const V: Vid = Vid(7);

    #[test]
    fn learns_moves_and_ages() {
        let mut w = FdbWriter::new(16, [1, 2]);
        let t = w.table();
        assert_eq!(t.lookup(V, mac(1)), None);
        assert_eq!(w.insert(V, mac(1), port(1), NOW, false), Learned::New);
        assert_eq!(t.lookup(V, mac(1)), Some(port(1)));
        assert_eq!(t.lookup(Vid(8), mac(1)), None, "VLANs are apart");
        assert_eq!(
            w.insert(V, mac(1), port(2), NOW, false),
            Learned::Moved { from: port(1) }
        );
        assert!(
            !t.seen(V, mac(1), port(1), NOW),
            "a move is the writer's to decide"
        );
        assert!(t.seen(V, mac(1), port(2), CoarseSecond(1200)));
        assert_eq!(
            w.age(CoarseSecond(1400), 300, |_| true),
            0,
            "seeing it kept it young"
        );
        assert_eq!(w.age(CoarseSecond(1500), 300, |_| true), 1);
        assert!(w.is_empty() && t.lookup(V, mac(1)).is_none());
    }

    #[test]
    fn static_entries_neither_move_nor_age() {
        let mut w = FdbWriter::new(16, [1, 2]);
        w.insert(V, mac(1), port(1), NOW, true);
        assert_eq!(w.insert(V, mac(1), port(2), NOW, false), Learned::Refused);
        assert!(
            w.table().seen(V, mac(1), port(2), NOW),
            "traffic has nothing to report"
        );
        assert_eq!(w.age(CoarseSecond(u32::MAX), 1, |_| true), 0);
        assert_eq!(
            w.age(NOW, 1, |p| p != port(1)),
            1,
            "but they go with their port"
        );
    }

    #[test]
    fn a_flood_of_addresses_pushes_out_its_own() {
        let mut w = FdbWriter::new(64, [3, 5]);
        for n in 0..8 {
            w.insert(V, mac(n), port(1), NOW, false);
        }
        for n in 100..10_000 {
            assert_ne!(w.insert(V, mac(n), port(2), NOW, false), Learned::Refused);
        }
        assert_eq!(w.len(), 64);
        assert!((0..8).all(|n| w.table().lookup(V, mac(n)) == Some(port(1))));
        assert_eq!(w.evictions, 9900 - 56);
    }

    #[test]
    fn a_reader_never_sees_one_address_with_anothers_port() {
        let mut w = FdbWriter::new(8, [9, 11]);
        let t = w.table();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for n in 0..64 {
                        if let Some(p) = t.lookup(V, mac(n)) {
                            assert_eq!(u64::from(p.index.0), n);
                        }
                    }
                }
            });
            for round in 0..200_000u64 {
                let n = round % 64;
                w.insert(V, mac(n), port(n as u16), NOW, false);
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(ops in prop::collection::vec((0u64..40, 0u16..4, any::<bool>()), 0..300)) {
            let mut w = FdbWriter::new(1024, [77, 99]);
            let mut model = HashMap::new();
            for (m, p, remove) in ops {
                if remove {
                    prop_assert_eq!(w.remove(V, mac(m)), model.remove(&m).is_some());
                } else {
                    w.insert(V, mac(m), port(p), NOW, false);
                    model.insert(m, p);
                }
            }
            prop_assert_eq!(w.len(), model.len());
            for m in 0..40 {
                prop_assert_eq!(w.table().lookup(V, mac(m)), model.get(&m).map(|p| port(*p)));
            }
        }
    }
}
