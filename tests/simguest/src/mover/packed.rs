//! The mover's end of a packed ring.

use std::collections::VecDeque;

use crate::driver::{Packed, PackedDesc, Place, RingParts, event, passed};
use crate::features::virtio;
use crate::memory::Desc;

/// Descriptors in a cache line.
const SLOTS_IN_LINE: u16 = 4;

/// A chain that was seen and not given back yet.
#[derive(Clone, Copy, Debug)]
struct Seen {
    place: Place,
    first: PackedDesc,
    /// Buffer id.
    id: u16,
    /// Slots it takes.
    descs: u16,
}

/// Where the device stands in a packed ring.
#[derive(Debug)]
pub(super) struct PackedEnd {
    parts: RingParts,
    event_idx: bool,
    /// Next slot to look at.
    look: Place,
    seen: VecDeque<Seen>,
    /// Used descriptors not shown yet: where, and the second word.
    back: Vec<(u16, u64)>,
    /// Next slot to write, if everything in `back` is; slots since the driver's wish was last asked.
    used: Place,
    unasked: u16,
}

impl PackedEnd {
    pub(super) fn new(ring: &Packed, features: u64) -> Self {
        let parts = ring.parts().clone();
        parts.used.store_release(1, event::DISABLE);
        Self {
            event_idx: features & virtio::EVENT_IDX != 0,
            look: ring.used_place(),
            seen: VecDeque::with_capacity(usize::from(parts.size)),
            back: Vec::with_capacity(usize::from(parts.size)),
            used: ring.used_place(),
            unasked: 0,
            parts,
        }
    }

    /// Chains known to be available.
    #[inline]
    pub(super) fn known(&self) -> u16 {
        self.seen.len() as u16
    }

    /// Chains available; looks only if fewer than `wanted` are known.
    #[inline]
    pub(super) fn available(&mut self, wanted: u16) -> u16 {
        if self.known() < wanted {
            self.look();
        }
        self.known()
    }

    fn look(&mut self) {
        let size = self.parts.size;
        let mut slots = 0;
        while slots < size {
            let first = self.load(self.look, 0);
            if !self.look.is_available(first.flags) {
                return;
            }
            if self.look.slot.is_multiple_of(SLOTS_IN_LINE) {
                // It is to be written when the chain is given back.
                let at = 2 * usize::from(self.look.slot);
                self.parts.desc_words.window().prefetch_write(at);
            }
            let (mut last, mut descs) = (first, 1);
            while last.flags & PackedDesc::NEXT != 0 && descs < size {
                last = self.load(self.look, descs);
                descs += 1;
            }
            self.seen.push_back(Seen {
                place: self.look,
                first,
                id: last.id,
                descs,
            });
            self.look = self.look.ahead(descs, size);
            slots += descs;
        }
    }

    #[inline(always)]
    fn load(&self, place: Place, ahead: u16) -> PackedDesc {
        let at = 2 * usize::from(place.ahead(ahead, self.parts.size).slot);
        let rest = self.parts.desc_words.load_acquire(at + 1);
        PackedDesc::from_words([self.parts.desc_words.load(at), rest])
    }

    /// The first descriptor of the chain `ahead`, which must be known, and the chain's id.
    #[inline(always)]
    pub(super) fn first(&self, ahead: u16) -> (u16, Desc) {
        let seen = &self.seen[usize::from(ahead)];
        (seen.id, plain(seen.first))
    }

    /// The chain `ahead`, which must be known, as descriptors; returns its id.
    pub(super) fn chain(&self, ahead: u16, chain: &mut Vec<Desc>) -> u16 {
        let seen = &self.seen[usize::from(ahead)];
        if seen.first.flags & PackedDesc::INDIRECT == 0 {
            chain.extend((0..seen.descs).map(|n| plain(self.load(seen.place, n))));
            return seen.id;
        }
        let start = (seen.first.addr - self.parts.tables_guest) as usize / PackedDesc::SIZE;
        let words = &self.parts.table_words;
        chain.extend((0..seen.first.len as usize / PackedDesc::SIZE).map(|n| {
            let at = 2 * (start + n);
            plain(PackedDesc::from_words([words.load(at), words.load(at + 1)]))
        }));
        seen.id
    }

    /// Gives the oldest chain back.
    #[inline]
    pub(super) fn give_back(&mut self, len: u32) {
        let Some(seen) = self.seen.pop_front() else {
            return;
        };
        let write = if len > 0 { PackedDesc::WRITE } else { 0 };
        let used = PackedDesc {
            addr: 0,
            len,
            id: seen.id,
            flags: self.used.used() | write,
        };
        self.back.push((self.used.slot, used.to_words()[1]));
        self.used = self.used.ahead(seen.descs, self.parts.size);
        self.unasked = self.unasked.saturating_add(seen.descs);
    }

    /// Shows what was given back, the first of it last.
    pub(super) fn publish(&mut self) {
        let Some((&first, rest)) = self.back.split_first() else {
            return;
        };
        for &(slot, word) in rest.iter().chain([&first]) {
            let at = 2 * usize::from(slot) + 1;
            self.parts.desc_words.store_release(at, word);
        }
        self.back.clear();
    }

    /// Whether nothing has been published since [`PackedEnd::wish`].
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        self.unasked == 0
    }

    /// Whether the driver wants a call for what was published since this was last asked; None if it wants none at all.
    pub(super) fn wish(&mut self) -> Option<bool> {
        let slots = std::mem::take(&mut self.unasked).min(self.parts.size);
        match self.parts.avail.load_acquire(1) {
            event::DISABLE => None,
            event::DESC if self.event_idx => {
                let wanted = Place::from_bits(self.parts.avail.load(0));
                let event = wanted.against(self.used, self.parts.size);
                let new = self.used.slot;
                Some(passed(event, new.wrapping_sub(slots), new))
            }
            _ => Some(true),
        }
    }
}

/// Without its lap, in the form of a split ring's.
fn plain(desc: PackedDesc) -> Desc {
    Desc {
        addr: desc.addr,
        len: desc.len,
        flags: desc.flags & (PackedDesc::NEXT | PackedDesc::WRITE | PackedDesc::INDIRECT),
        next: 0,
    }
}
