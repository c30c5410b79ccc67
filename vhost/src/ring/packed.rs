//! The packed ring: where its fields lie, and touching each exactly once.
//!
//! Virtio 1.2, section 2.8. One ring of descriptors, which the driver fills with chains in consecutive slots and we
//! overwrite with what we used, one slot for each chain; and two structures of four bytes in which each side says when it
//! wants to hear from the other. Which lap a slot was written in is told by two of its flags, against a wrap counter that
//! flips at the end of each turn ([`Place`]). All fields are little endian.
//!
//! A descriptor is touched as two words: the address; then length, id and flags in one. The second word says whether the
//! rest counts, so it is loaded with acquire and stored with release ordering. What is given back is kept on our side until
//! it is published, and then written with the first slot last: a driver takes slots in order, so it sees a burst whole or
//! not at all. A switch that dies between bursts leaves nothing half way. One that is killed in the few stores of publishing,
//! or in a burst of more than [`KEPT`] slots, which is written as it goes, can leave later slots used before the first: no
//! successor can tell where such a ring stands, so it stays down until its driver resets it.

mod locate;
mod place;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use vswitch_coalesce::GuestAsks;

use super::chain::{DESCRIPTOR, Spans, Table, Walk};
use super::layout::{Base, Buffer, Chain, Layout, Position, RingAddresses, find_part};
use super::split::PartError;
use super::{ChainError, MAX_CHAIN, RingError};
use crate::memory::{GuestMemory, LINE, Span, prefetch_write};
use place::Place;

/// Largest ring of the packed layout.
pub(crate) const MAX_SIZE: u16 = 32_768;

/// `VIRTQ_DESC_F_NEXT`
const F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
const F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
const F_INDIRECT: u16 = 4;

/// Bytes of an event suppression structure.
const EVENT: usize = 4;
/// `RING_EVENT_FLAGS_ENABLE`
const EVENT_ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`
const EVENT_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`
const EVENT_DESC: u16 = 2;

/// Used descriptors kept back at most: those of a receive burst whose every frame is merged, in all likelihood.
const KEPT: usize = 512;

/// One descriptor, copied out.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    buffer: Buffer,
    id: u16,
    flags: u16,
}

impl From<[u64; 2]> for Descriptor {
    #[inline]
    fn from([addr, rest]: [u64; 2]) -> Self {
        let flags = (rest >> 48) as u16;
        Self {
            buffer: Buffer {
                addr,
                len: rest as u32,
                writable: flags & F_WRITE != 0,
            },
            id: (rest >> 32) as u16,
            flags,
        }
    }
}

/// A packed ring, bound to mapped memory.
///
/// Its methods are safe because [`PackedRing::bind`] is given the table that keeps the parts mapped by whoever also keeps
/// that table for as long as the ring: [`core`](super::core) does.
///
/// Who writes which line: both sides write every slot in turn; the driver writes the first event structure, we the second.
pub(crate) struct PackedRing {
    slots: Span,
    table: Table,
    driver: Span,
    device: Span,
    size: u16,
    event_idx: bool,
    /// Used descriptors not shown yet, in ring order: slot and second word. Never grows beyond [`KEPT`].
    kept: Vec<(u16, u64)>,
}

impl PackedRing {
    /// The second word of a slot, which is below the size.
    #[inline]
    fn word(&self, slot: u16) -> &AtomicU64 {
        debug_assert!(slot < self.size);
        let offset = usize::from(slot) * DESCRIPTOR + 8;
        // SAFETY: places keep their slots below the size, and the ring has that many descriptors, 16 bytes aligned and
        // mapped as `bind` says. All access to these words on our side is of 64 bits, atomic or volatile.
        unsafe { AtomicU64::from_ptr(self.slots.as_ptr().add(offset).cast()) }
    }

    /// Flags of a slot; what the driver wrote before them is visible after.
    #[inline]
    fn flags(&self, slot: u16) -> u16 {
        (u64::from_le(self.word(slot).load(Ordering::Acquire)) >> 48) as u16
    }

    /// A slot, which is below the size, as a descriptor.
    #[inline]
    fn load(&self, slot: u16) -> Descriptor {
        debug_assert!(slot < self.size);
        // SAFETY: places keep their slots below the size; the ring's memory is held with it.
        Descriptor::from(unsafe { self.table.load(slot) })
    }

    /// A 16-bit field of an event suppression structure: 0 the place, 1 the flags.
    #[inline]
    fn event_field(part: &Span, field: usize) -> &AtomicU16 {
        debug_assert!(field < 2);
        // SAFETY: a fixed offset in a part of four bytes, aligned to as many and mapped as `bind` says. All access to
        // these words on our side is atomic.
        unsafe { AtomicU16::from_ptr(part.as_ptr().add(field * 2).cast()) }
    }

    #[inline]
    fn place(&self, at: Position) -> Place {
        Place::from_bits(at.0)
    }

    /// Writes everything kept back, the first of it last.
    #[inline]
    fn flush(&mut self) {
        if let Some((first, rest)) = self.kept.split_first() {
            for (slot, word) in rest {
                self.word(*slot).store(word.to_le(), Ordering::Relaxed);
            }
            let (slot, word) = first;
            self.word(*slot).store(word.to_le(), Ordering::Release);
        }
        self.kept.clear();
    }

    /// Adds one descriptor of a chain to its pieces.
    #[inline]
    fn add(
        descriptor: Descriptor,
        walk: &mut Walk<'_>,
        spans: &mut Spans,
        total: &mut usize,
    ) -> Result<(), ChainError> {
        if descriptor.flags & F_INDIRECT == 0 {
            return walk.add(descriptor.buffer, spans, total);
        }
        if !walk.indirect || descriptor.flags & F_NEXT != 0 {
            return Err(ChainError::IndirectMisplaced);
        }
        let table = walk.table(descriptor.buffer.addr, descriptor.buffer.len)?;
        for index in 0..table.entries() {
            // All of its flags but WRITE are reserved, its ids too: its entries follow each other.
            let descriptor = Descriptor::from(table.load(walk, index)?);
            walk.add(descriptor.buffer, spans, total)?;
        }
        Ok(())
    }
}

impl Layout for PackedRing {
    unsafe fn bind(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, PartError> {
        debug_assert!(size > 0 && size <= MAX_SIZE);
        let part = "packed descriptor ring";
        let bytes = usize::from(size) * DESCRIPTOR;
        let slots = find_part(memory, part, addresses.descriptors, (bytes, 16))?;
        let table = Table::new(slots, size).ok_or(PartError::Misaligned {
            part,
            addr: addresses.descriptors.0,
        })?;
        let event = |part, addr| find_part(memory, part, addr, (EVENT, 4));
        Ok(Self {
            slots,
            table,
            driver: event("driver event suppression structure", addresses.available)?,
            device: event("device event suppression structure", addresses.used)?,
            size,
            event_idx,
            kept: Vec::with_capacity(KEPT),
        })
    }

    #[inline]
    fn size(&self) -> u16 {
        self.size
    }

    fn start(&mut self, base: Base, indirect: bool) -> Result<Position, RingError> {
        self.kept.clear();
        let place = locate::locate(self.size, base, indirect, |slot| self.flags(slot))?;
        Ok(Position(place.bits()))
    }

    fn resume(&mut self, _at: Position) {
        self.kept.clear();
    }

    /// Next available and next used slot, which are the same: what was taken has been given back.
    fn base(&self, at: Position) -> u32 {
        u32::from(at.0) | u32::from(at.0) << 16
    }

    #[inline]
    fn advance(&self, from: Position, entries: u16) -> Position {
        Position(self.place(from).ahead(entries, self.size).bits())
    }

    #[inline]
    fn look(&mut self, _at: Position, _enough: u16) -> Result<(), RingError> {
        // Each slot says by itself whether it is on offer.
        Ok(())
    }

    #[inline]
    fn sees(&self, at: Position) -> bool {
        let place = self.place(at);
        place.is_available(self.flags(place.slot))
    }

    #[inline]
    fn has_work(&self, at: Position) -> bool {
        self.sees(at)
    }

    #[inline]
    fn single(&self, at: Position) -> Option<(u16, Buffer)> {
        let descriptor = self.load(self.place(at).slot);
        (descriptor.flags & (F_NEXT | F_INDIRECT) == 0)
            .then_some((descriptor.id, descriptor.buffer))
    }

    #[inline]
    fn walk(
        &self,
        at: Position,
        walk: &mut Walk<'_>,
        spans: &mut Spans,
    ) -> Result<Chain, RingError> {
        let (mut place, mut total) = (self.place(at), 0);
        let limit = self.size.min(MAX_CHAIN);
        let mut error = None;
        for entries in 1..=limit {
            let descriptor = self.load(place.slot);
            walk.walked += 1;
            // A chain that is no good is still followed, to where the next one begins.
            if error.is_none() {
                error = Self::add(descriptor, walk, spans, &mut total).err();
            }
            if descriptor.flags & F_NEXT == 0 {
                return Ok(Chain {
                    id: descriptor.id,
                    entries,
                    bytes: error.map_or(Ok(total), Err),
                });
            }
            place = place.ahead(1, self.size);
        }
        let slot = self.place(at).slot;
        Err(RingError::Endless { slot, limit })
    }

    #[inline]
    fn give_back(&mut self, at: Position, id: u16, _entries: u16, len: u32) {
        let place = self.place(at);
        // The length counts only beside the flag.
        let written = if len > 0 { F_WRITE } else { 0 };
        let flags = place.used() | written;
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        if self.kept.len() < KEPT {
            self.kept.push((place.slot, word));
        } else {
            // Behind one that is kept back nobody sees it yet.
            self.word(place.slot).store(word.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn prefetch_used(&self, at: Position, count: u16) {
        let place = self.place(at);
        for ahead in (0..count.min(self.size)).step_by(LINE / DESCRIPTOR) {
            let slot = place.ahead(ahead, self.size).slot;
            let offset = usize::from(slot) * DESCRIPTOR;
            prefetch_write(self.slots.as_ptr().wrapping_add(offset));
        }
    }

    #[inline]
    fn publish(&mut self, _at: Position) {
        self.flush();
    }

    #[inline]
    fn asks(&self, at: Position, published: u16) -> GuestAsks {
        let flags = Self::event_field(&self.driver, 1).load(Ordering::Acquire);
        match u16::from_le(flags) {
            EVENT_DESC if self.event_idx => {
                let event = Self::event_field(&self.driver, 0).load(Ordering::Relaxed);
                let next = self.place(at).bits();
                GuestAsks::packed(u16::from_le(event), next, self.size, published)
            }
            flags => GuestAsks::Flags {
                suppressed: flags == EVENT_DISABLE,
            },
        }
    }

    /// One look at the last of them: what is on offer is so without gaps.
    #[inline]
    fn room(&self, at: Position, enough: u16) -> u16 {
        let last = self.advance(at, enough.saturating_sub(1));
        if self.sees(last) {
            enough.max(self.size / 2)
        } else {
            enough / 2
        }
    }

    fn ask_for_kicks(&self, at: Position) {
        let flags = if self.event_idx {
            Self::event_field(&self.device, 0).store(at.0.to_le(), Ordering::Relaxed);
            EVENT_DESC
        } else {
            EVENT_ENABLE
        };
        Self::event_field(&self.device, 1).store(flags.to_le(), Ordering::Release);
    }

    fn decline_kicks(&self, _at: Position) {
        Self::event_field(&self.device, 1).store(EVENT_DISABLE.to_le(), Ordering::Relaxed);
    }
}
