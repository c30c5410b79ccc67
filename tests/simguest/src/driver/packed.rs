//! One packed virtqueue, driver side (virtio 1.2, 2.8).
//!
//! There is one ring of descriptors. The driver writes chains into consecutive slots, the device writes what it used
//! into the slots it has passed, one for each chain, and skips the rest of the chain's. Which lap a slot was written in
//! is told by two of its flags, AVAIL and USED, against a counter of each side that flips at every turn ([`Place`]).
//!
//! A descriptor is touched as two words. Address first; then length, id and flags together, with release ordering. The
//! second word of a burst's first slot is held back until [`Packed::publish`]: the device, which takes slots in order,
//! sees nothing of the burst before it is whole.

mod back;
mod fifo;
mod place;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use fifo::Fifo;
pub use place::{PackedDesc, Place, event};

use super::parts::RingParts;
use super::split::{Piece, Used, passed};

/// What the driver remembers of a buffer id.
#[derive(Clone, Copy, Default, Debug)]
struct Private {
    /// Where the chain's only descriptor points.
    addr: u64,
    /// Bytes the device may write into it.
    room: u32,
    /// Slots the chain takes.
    descs: u16,
    /// The device has it.
    out: bool,
}

/// The driver's state of one ring.
#[derive(Debug)]
pub struct Packed {
    parts: RingParts,
    event_idx: bool,
    in_order: bool,
    /// Every chain since the reset was one direct descriptor.
    plain: bool,
    /// Free buffer ids, a FIFO.
    ids: Fifo<u16>,
    private: Vec<Private>,
    /// The id of the chain that begins in a slot.
    chain_at: Vec<u16>,
    /// Next slot to fill; the one up to which the device may look.
    avail: Place,
    published: Place,
    /// The word held back, and its slot.
    held: Option<(u16, u64)>,
    /// Slots that are nobody's.
    free: u16,
    /// Chains added and not taken back; of those, not published yet.
    chains: u16,
    unpublished: u16,
    /// Slots published since the last kick decision, at most the ring's size.
    undecided: u16,
    /// Where the device writes next, as far as it was followed.
    used: Place,
    /// What it gave back and nobody took yet.
    got: Fifo<Used>,
}

impl Packed {
    /// A ring at rest.
    pub fn new(parts: RingParts, event_idx: bool, in_order: bool) -> Self {
        let n = usize::from(parts.size);
        let mut ring = Self {
            event_idx,
            in_order,
            plain: true,
            ids: Fifo::new(n, 0),
            private: vec![Private::default(); n],
            chain_at: vec![0; n],
            avail: Place::START,
            published: Place::START,
            held: None,
            free: 0,
            chains: 0,
            unpublished: 0,
            undecided: 0,
            used: Place::START,
            got: Fifo::new(n, Used { id: 0, len: 0 }),
            parts,
        };
        ring.reset();
        ring
    }

    /// Everything back to the state after a device reset, shared memory included.
    pub fn reset(&mut self) {
        self.parts.clear();
        self.plain = true;
        self.ids.clear();
        (0..self.parts.size).for_each(|id| self.ids.push(id));
        self.private.fill(Private::default());
        self.got.clear();
        self.held = None;
        (self.free, self.chains) = (self.parts.size, 0);
        (self.unpublished, self.undecided) = (0, 0);
        (self.avail, self.published, self.used) = (Place::START, Place::START, Place::START);
    }

    /// Where the ring lies.
    pub fn parts(&self) -> &RingParts {
        &self.parts
    }
    /// Entries.
    pub fn size(&self) -> u16 {
        self.parts.size
    }
    /// Free slots.
    #[inline]
    pub fn free(&self) -> u16 {
        self.free
    }
    /// Chains the device has (or will have with the next publish).
    #[inline]
    pub fn chains(&self) -> u16 {
        self.chains
    }
    /// The slot that the next chain will begin in.
    pub fn avail_place(&self) -> Place {
        self.avail
    }
    /// Where the device writes its next used descriptor, as far as it was followed.
    pub fn used_place(&self) -> Place {
        self.used
    }
    /// The id that the next chain will have.
    #[inline]
    #[must_use]
    pub fn next_head(&self) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        self.ids.first()
    }
    /// Whether every chain since the reset was one direct descriptor.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.plain
    }

    // --- driver to device --------------------------------------------------------------------------------------

    /// Writes one descriptor into the next slot.
    #[inline(always)]
    fn write(&mut self, id: u16, piece: Piece, flags: u16) {
        let slot = self.avail.slot;
        let flags = flags | self.avail.available();
        let [addr, rest] = PackedDesc {
            addr: piece.addr,
            len: piece.len,
            id,
            flags,
        }
        .to_words();
        self.parts.desc_words.store(2 * usize::from(slot), addr);
        if self.held.is_none() {
            self.held = Some((slot, rest));
        } else {
            let at = 2 * usize::from(slot) + 1;
            self.parts.desc_words.store_release(at, rest);
        }
        self.avail = self.avail.ahead(1, self.parts.size);
        self.free -= 1;
    }

    #[inline(always)]
    fn begin(&mut self, private: Private) -> Option<u16> {
        let id = self.ids.pop()?;
        *self.private.get_mut(usize::from(id))? = private;
        *self.chain_at.get_mut(usize::from(self.avail.slot))? = id;
        self.chains += 1;
        self.unpublished += 1;
        Some(id)
    }

    /// Adds a chain of one descriptor. None if the ring is full.
    #[inline(always)]
    pub fn add_one(&mut self, piece: Piece, writable: bool) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        let id = self.begin(Private {
            addr: piece.addr,
            room: if writable { piece.len } else { 0 },
            descs: 1,
            out: true,
        })?;
        self.write(id, piece, write_flag(writable));
        Some(id)
    }

    /// Adds a chain of consecutive descriptors; None if too few are free.
    pub fn add(&mut self, pieces: &[Piece], writable: bool) -> Option<u16> {
        let count = pieces.len();
        if count == 0 || count > usize::from(self.free) {
            return None;
        }
        self.plain = false;
        let id = self.begin(Private {
            addr: 0,
            room: room(pieces, writable),
            descs: count as u16,
            out: true,
        })?;
        for (i, piece) in pieces.iter().enumerate() {
            let next = if i + 1 < count { PackedDesc::NEXT } else { 0 };
            // Only the last descriptor's id counts (virtio 1.2, 2.8.6).
            let shown = if i + 1 < count { !id } else { id };
            self.write(shown, *piece, write_flag(writable) | next);
        }
        Some(id)
    }

    /// Adds a chain in the indirect table of its id, taking one descriptor; None if the ring is full or the table too
    /// short.
    pub fn add_indirect(&mut self, pieces: &[Piece], writable: bool) -> Option<u16> {
        let table_len = usize::from(self.parts.table_len);
        if pieces.is_empty() || pieces.len() > table_len || self.free == 0 {
            return None;
        }
        self.plain = false;
        let id = self.begin(Private {
            addr: 0,
            room: room(pieces, writable),
            descs: 1,
            out: true,
        })?;
        let start = usize::from(id) * table_len;
        for (i, piece) in pieces.iter().enumerate() {
            // Of a table's flags only WRITE is looked at, ids are reserved (virtio 1.2, 2.8.8).
            let words = PackedDesc {
                addr: piece.addr,
                len: piece.len,
                id: 0,
                flags: write_flag(writable),
            }
            .to_words();
            let at = 2 * (start + i);
            self.parts.table_words.store(at, words[0]);
            self.parts.table_words.store(at + 1, words[1]);
        }
        let table = Piece {
            addr: self.parts.tables_guest + (start * PackedDesc::SIZE) as u64,
            len: (pieces.len() * PackedDesc::SIZE) as u32,
        };
        self.write(id, table, PackedDesc::INDIRECT);
        Some(id)
    }

    /// Adds `count` chains of one descriptor each for the device to read, which `fill` prepares. There must be room.
    #[inline(always)]
    pub(super) fn add_run(&mut self, count: u16, mut fill: impl FnMut(u16) -> Piece) {
        debug_assert!(self.free >= count, "a run needs room");
        for _ in 0..count {
            let Some(id) = self.next_head() else { return };
            self.add_one(fill(id), false);
        }
    }

    /// On a plain ring: makes the `count` buffers just taken available once more as they are. Only right while no others
    /// are free, or these would overtake them; false if that is so.
    #[inline(always)]
    pub(super) fn recycle(&mut self, count: u16) -> bool {
        let right = self.plain && self.free == count;
        if right {
            for _ in 0..count {
                let Some(Private { addr, room, .. }) = self.next_private() else {
                    break;
                };
                self.add_one(Piece { addr, len: room }, true);
            }
        }
        right
    }

    #[inline(always)]
    fn next_private(&self) -> Option<Private> {
        self.private.get(usize::from(self.ids.first()?)).copied()
    }

    /// Makes everything added so far visible to the device. Returns whether there was anything.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let Some((slot, word)) = self.held.take() else {
            return false;
        };
        let at = 2 * usize::from(slot) + 1;
        self.parts.desc_words.store_release(at, word);
        let slots = self.published.distance(self.avail, self.parts.size);
        self.undecided = self.undecided.saturating_add(slots).min(self.parts.size);
        self.published = self.avail;
        self.unpublished = 0;
        true
    }

    /// Whether the device wants a kick for what was published since the last time this was asked.
    #[inline]
    pub fn wants_kick(&mut self) -> bool {
        // What was published must be visible before we look whether the device sleeps.
        fence(Ordering::SeqCst);
        let slots = std::mem::take(&mut self.undecided);
        match self.parts.used.load_acquire(1) {
            event::DISABLE => false,
            event::DESC if self.event_idx => {
                let wanted = Place::from_bits(self.parts.used.load(0));
                let event = wanted.against(self.published, self.parts.size);
                let new = self.published.slot;
                passed(event, new.wrapping_sub(slots), new)
            }
            _ => true,
        }
    }
}

fn write_flag(writable: bool) -> u16 {
    if writable { PackedDesc::WRITE } else { 0 }
}

fn room(pieces: &[Piece], writable: bool) -> u32 {
    if writable {
        pieces.iter().map(|p| p.len).sum()
    } else {
        0
    }
}
