//! The split ring: where its fields lie, and touching each exactly once.
//!
//! Virtio 1.2, section 2.7. Three parts: the descriptor table, written by the driver; the available ring, written by the
//! driver too; the used ring, written by us. All fields are little endian. A part is bound once, as a pointer
//! that travels with its validated length, and after that every access is within it by masking the index.

use std::sync::atomic::{AtomicU16, Ordering};

use vswitch_coalesce::GuestAsks;

use super::chain::{DESCRIPTOR, Spans, Table, Walk};
use super::layout::{Base, Buffer, Chain, Layout, Position, RingAddresses, find_part};
use super::{ChainError, MAX_CHAIN, RingError};
use crate::memory::{GuestMemory, LINE, Span, prefetch_write};

/// Largest ring of the split layout.
pub(crate) const MAX_SIZE: u16 = 32_768;

const AVAIL_HEADER: usize = 4;
const USED_HEADER: usize = 4;
const USED_ELEMENT: usize = 8;

/// `VRING_DESC_F_NEXT`
const F_NEXT: u16 = 1;
/// `VRING_DESC_F_WRITE`
const F_WRITE: u16 = 2;
/// `VRING_DESC_F_INDIRECT`
const F_INDIRECT: u16 = 4;
/// `VRING_AVAIL_F_NO_INTERRUPT`
const F_NO_INTERRUPT: u16 = 1;
/// `VRING_USED_F_NO_NOTIFY`
const F_NO_NOTIFY: u16 = 1;

/// A part of a ring that cannot be used where it is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PartError {
    /// Not in shared memory, or not all of it in one region.
    #[error("the {part} at front-end address {addr:#x} is not within one shared memory region")]
    Unmapped {
        /// Which one.
        part: &'static str,
        /// Where it should be.
        addr: u64,
    },
    /// Not at a multiple of its alignment.
    #[error("the {part} at front-end address {addr:#x} is not aligned as virtio asks")]
    Misaligned {
        /// Which one.
        part: &'static str,
        /// Where it should be.
        addr: u64,
    },
}

/// One descriptor, copied out.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    buffer: Buffer,
    flags: u16,
    next: u16,
}

impl From<[u64; 2]> for Descriptor {
    #[inline]
    fn from([addr, rest]: [u64; 2]) -> Self {
        let flags = (rest >> 32) as u16;
        Self {
            buffer: Buffer {
                addr,
                len: rest as u32,
                writable: flags & F_WRITE != 0,
            },
            flags,
            next: (rest >> 48) as u16,
        }
    }
}

/// A split ring, bound to mapped memory.
///
/// Its methods are safe because [`SplitRing::bind`] is given the table that keeps the parts mapped by whoever also keeps
/// that table for as long as the ring: [`core`](super::core) does.
///
/// Who writes which line: the driver the descriptor table and the available ring, we the used ring. The available index
/// is loaded only when what was seen of it last is used up, or a burst could not be filled; the used index is stored once
/// a burst.
pub(crate) struct SplitRing {
    descriptors: Table,
    available: Span,
    used: Span,
    size: u16,
    event_idx: bool,
    /// The available index as last read.
    seen: u16,
}

impl SplitRing {
    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// A 16-bit field of a part, to be touched atomically.
    ///
    /// # Safety
    ///
    /// `offset` is even and below the part's length.
    #[inline]
    unsafe fn field(part: &Span, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset + 2 <= part.len());
        // SAFETY: within the part by the caller's word and aligned, as parts are; mapped as `bind` says. All access to
        // these words on our side is atomic.
        unsafe { AtomicU16::from_ptr(part.as_ptr().add(offset).cast()) }
    }

    /// How far the driver has offered buffers. What it wrote before is visible after.
    #[inline]
    fn available_index(&self) -> u16 {
        // SAFETY: a fixed offset in the available ring's header.
        u16::from_le(unsafe { Self::field(&self.available, 2) }.load(Ordering::Acquire))
    }

    /// The descriptor that begins the chain offered at `index`.
    #[inline]
    fn head(&self, index: u16) -> u16 {
        let offset = AVAIL_HEADER + self.slot(index) * 2;
        // SAFETY: the position is below the size, and the ring has that many entries after its header.
        u16::from_le(unsafe { Self::field(&self.available, offset) }.load(Ordering::Relaxed))
    }

    /// Whether the driver asked not to be interrupted (without `EVENT_IDX`).
    #[inline]
    fn interrupts_suppressed(&self) -> bool {
        // SAFETY: a fixed offset in the available ring's header.
        let flags = unsafe { Self::field(&self.available, 0) }.load(Ordering::Relaxed);
        u16::from_le(flags) & F_NO_INTERRUPT != 0
    }

    /// The used entry after which the driver wants to be interrupted (with `EVENT_IDX`).
    #[inline]
    fn used_event(&self) -> u16 {
        let offset = AVAIL_HEADER + usize::from(self.size) * 2;
        // SAFETY: the two bytes after the available ring's entries belong to it.
        u16::from_le(unsafe { Self::field(&self.available, offset) }.load(Ordering::Relaxed))
    }

    /// What the guest's memory says about how far buffers were given back.
    fn used_index(&self) -> u16 {
        // SAFETY: a fixed offset in the used ring's header.
        u16::from_le(unsafe { Self::field(&self.used, 2) }.load(Ordering::Relaxed))
    }

    /// Writes a used entry, both fields with one store; nobody looks at it before the index is stored.
    #[inline]
    fn set_used(&self, index: u16, head: u16, len: u32) {
        let offset = USED_HEADER + self.slot(index) * USED_ELEMENT;
        debug_assert!(offset + USED_ELEMENT <= self.used.len());
        // SAFETY: the position is below the size, and the ring has that many entries after its header. Plain and unaligned: an entry is 4 bytes aligned.
        unsafe {
            let entry = self.used.as_ptr().add(offset).cast::<u64>();
            entry.write_unaligned((u64::from(head) | u64::from(len) << 32).to_le());
        }
    }

    /// Stores the used index: everything before it is the guest's again.
    #[inline]
    fn set_used_index(&self, index: u16) {
        // SAFETY: a fixed offset in the used ring's header.
        unsafe { Self::field(&self.used, 2) }.store(index.to_le(), Ordering::Release);
    }

    /// Asks for kicks or declines them (without `EVENT_IDX`).
    #[inline]
    fn set_kicks_declined(&self, declined: bool) {
        let flags = if declined { F_NO_NOTIFY } else { 0 };
        // SAFETY: a fixed offset in the used ring's header.
        unsafe { Self::field(&self.used, 0) }.store(flags.to_le(), Ordering::Relaxed);
    }

    /// The available entry after which we want a kick (with `EVENT_IDX`).
    #[inline]
    fn set_available_event(&self, index: u16) {
        let offset = USED_HEADER + usize::from(self.size) * USED_ELEMENT;
        // SAFETY: the two bytes after the used ring's entries belong to it.
        unsafe { Self::field(&self.used, offset) }.store(index.to_le(), Ordering::Relaxed);
    }
}

impl Layout for SplitRing {
    unsafe fn bind(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, PartError> {
        debug_assert!(size.is_power_of_two() && size <= MAX_SIZE);
        let entries = usize::from(size);
        let find = |part, addr, len, align| find_part(memory, part, addr, (len, align));
        let descriptors = find(
            "descriptor table",
            addresses.descriptors,
            entries * DESCRIPTOR,
            16,
        )?;
        let available = find(
            "available ring",
            addresses.available,
            AVAIL_HEADER + entries * 2 + 2,
            2,
        )?;
        let used = find(
            "used ring",
            addresses.used,
            USED_HEADER + entries * USED_ELEMENT + 2,
            4,
        )?;
        let descriptors = Table::new(descriptors, size).ok_or(PartError::Misaligned {
            part: "descriptor table",
            addr: addresses.descriptors.0,
        })?;
        Ok(Self {
            descriptors,
            available,
            used,
            size,
            event_idx,
            seen: 0,
        })
    }

    #[inline]
    fn size(&self) -> u16 {
        self.size
    }

    /// Whatever the front-end says: the guest's used index is where we stopped, after a crash of ours too.
    fn start(&mut self, _base: Base, _indirect: bool) -> Result<Position, RingError> {
        self.seen = self.used_index();
        Ok(Position(self.seen))
    }

    fn resume(&mut self, at: Position) {
        self.seen = at.0;
    }

    fn base(&self, at: Position) -> u32 {
        at.0.into()
    }

    #[inline]
    fn advance(&self, from: Position, entries: u16) -> Position {
        Position(from.0.wrapping_add(entries))
    }

    #[inline]
    fn look(&mut self, at: Position, enough: u16) -> Result<(), RingError> {
        if self.seen.wrapping_sub(at.0) >= enough {
            return Ok(());
        }
        let available = self.available_index();
        let offered = available.wrapping_sub(at.0);
        // What was seen once stays on offer until we give it back: chains may have been resolved up to there.
        if offered > self.size || offered < self.seen.wrapping_sub(at.0) {
            return Err(RingError::AvailableIndex {
                available,
                next: at.0,
                size: self.size,
            });
        }
        self.seen = available;
        Ok(())
    }

    #[inline]
    fn sees(&self, at: Position) -> bool {
        self.seen != at.0
    }

    #[inline]
    fn has_work(&self, at: Position) -> bool {
        self.available_index() != at.0
    }

    #[inline]
    fn single(&self, at: Position) -> Option<(u16, Buffer)> {
        let head = self.head(at.0);
        if head >= self.size {
            return None;
        }
        // SAFETY: the head is below the size; the ring's memory is held with it.
        let descriptor = Descriptor::from(unsafe { self.descriptors.load(head) });
        (descriptor.flags & (F_NEXT | F_INDIRECT) == 0).then_some((head, descriptor.buffer))
    }

    #[inline]
    fn walk(
        &self,
        at: Position,
        walk: &mut Walk<'_>,
        spans: &mut Spans,
    ) -> Result<Chain, RingError> {
        let (head, size) = (self.head(at.0), self.size);
        if head >= size {
            return Err(RingError::Head { head, size });
        }
        Ok(Chain {
            id: head,
            entries: 1,
            bytes: self.follow(head, walk, spans),
        })
    }

    #[inline]
    fn give_back(&mut self, at: Position, id: u16, _entries: u16, len: u32) {
        self.set_used(at.0, id, len);
    }

    #[inline]
    fn prefetch_used(&self, at: Position, count: u16) {
        let entry = |index: u16| {
            let offset = USED_HEADER + self.slot(index) * USED_ELEMENT;
            self.used.as_ptr().wrapping_add(offset)
        };
        for index in (0..count).step_by(LINE / USED_ELEMENT) {
            prefetch_write(entry(at.0.wrapping_add(index)));
        }
    }

    #[inline]
    fn publish(&mut self, at: Position) {
        self.set_used_index(at.0);
    }

    fn not_offered_anew(&self, at: Position) -> Option<u16> {
        let offered = self.available_index().wrapping_sub(at.0);
        self.size.checked_sub(offered)
    }

    #[inline]
    fn asks(&self, _at: Position, _published: u16) -> GuestAsks {
        if self.event_idx {
            GuestAsks::Event(self.used_event())
        } else {
            GuestAsks::Flags {
                suppressed: self.interrupts_suppressed(),
            }
        }
    }

    #[inline]
    fn room(&self, at: Position, enough: u16) -> u16 {
        let seen = self.seen.wrapping_sub(at.0);
        if seen >= enough {
            return seen;
        }
        // Not to be relied on: a ring whose index lies is found out when buffers are taken.
        self.available_index().wrapping_sub(at.0).min(self.size)
    }

    fn ask_for_kicks(&self, at: Position) {
        if self.event_idx {
            self.set_available_event(at.0);
        } else {
            self.set_kicks_declined(false);
        }
    }

    fn decline_kicks(&self, at: Position) {
        if self.event_idx {
            // An event already passed: it comes round again after 65,535 buffers.
            self.set_available_event(at.0.wrapping_sub(1));
        } else {
            self.set_kicks_declined(true);
        }
    }
}

impl SplitRing {
    /// The chain that begins at `head`, which is below the size.
    #[inline]
    fn follow(
        &self,
        head: u16,
        walk: &mut Walk<'_>,
        spans: &mut Spans,
    ) -> Result<usize, ChainError> {
        let entries = self.descriptors.entries();
        let (mut index, mut total) = (head, 0);
        for _ in 0..entries.min(MAX_CHAIN) {
            // SAFETY: `head` is below the size by contract, `next` is checked below; the ring's memory is held with it.
            let descriptor = Descriptor::from(unsafe { self.descriptors.load(index) });
            walk.walked += 1;
            if descriptor.flags & F_INDIRECT != 0 {
                if !walk.indirect || descriptor.flags & F_NEXT != 0 {
                    return Err(ChainError::IndirectMisplaced);
                }
                return follow_indirect(descriptor.buffer, walk, spans, total);
            }
            walk.add(descriptor.buffer, spans, &mut total)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(total);
            }
            index = descriptor.next;
            if index >= entries {
                return Err(ChainError::NextOutOfRange);
            }
        }
        Err(ChainError::Loop)
    }
}

#[inline]
fn follow_indirect(
    buffer: Buffer,
    walk: &mut Walk<'_>,
    spans: &mut Spans,
    mut total: usize,
) -> Result<usize, ChainError> {
    let table = walk.table(buffer.addr, buffer.len)?;
    let mut index = 0;
    for _ in 0..table.entries() {
        let descriptor = Descriptor::from(table.load(walk, index)?);
        if descriptor.flags & F_INDIRECT != 0 {
            return Err(ChainError::IndirectMisplaced);
        }
        walk.add(descriptor.buffer, spans, &mut total)?;
        if descriptor.flags & F_NEXT == 0 {
            return Ok(total);
        }
        index = descriptor.next;
        if index >= table.entries() {
            return Err(ChainError::NextOutOfRange);
        }
    }
    Err(ChainError::Loop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestAddr, Region, RegionSpec, UserAddr};
    use std::sync::Arc;

    const USER: u64 = 0x5000_0000;

    fn memory(user: u64) -> GuestMemory {
        let fd = rustix::fs::memfd_create("split", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 0x20_0000).unwrap();
        let spec = RegionSpec {
            guest: GuestAddr(0),
            size: 0x20_0000,
            user: UserAddr(user),
            offset: 0,
        };
        let region = Region::map(spec, &fd).map(Arc::new).unwrap();
        GuestMemory::empty().with(region).unwrap()
    }

    fn addresses(descriptors: u64, available: u64, used: u64) -> RingAddresses {
        RingAddresses {
            descriptors: UserAddr(USER + descriptors),
            available: UserAddr(USER + available),
            used: UserAddr(USER + used),
        }
    }

    fn bind(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: u16,
    ) -> Result<SplitRing, PartError> {
        // SAFETY: every test keeps its memory until its ring is gone.
        unsafe { SplitRing::bind(memory, addresses, size, true) }
    }

    #[test]
    fn every_part_must_lie_within_memory_to_its_last_byte() {
        let memory = memory(USER);
        let end = 0x20_0000;
        for size in [2u16, 256, MAX_SIZE] {
            let n = u64::from(size);
            let last = [end - 16 * n, end - (6 + 2 * n), (end - (6 + 8 * n)) & !3];
            assert!(bind(&memory, addresses(last[0], 0, 0), size).is_ok());
            assert!(bind(&memory, addresses(0, last[1], 0), size).is_ok());
            assert!(bind(&memory, addresses(0, 0, last[2]), size).is_ok());
            let unmapped = |addresses| {
                matches!(
                    bind(&memory, addresses, size),
                    Err(PartError::Unmapped { .. })
                )
            };
            assert!(unmapped(addresses(last[0] + 16, 0, 0)));
            assert!(unmapped(addresses(0, last[1] + 2, 0)));
            assert!(unmapped(addresses(0, 0, last[2] + 4)));
            assert!(unmapped(addresses(u64::MAX - USER - 15, 0, 0)));
        }
    }

    #[test]
    fn misaligned_parts_are_refused() {
        let misaligned = |memory: &GuestMemory, addresses| {
            matches!(
                bind(memory, addresses, 4),
                Err(PartError::Misaligned { .. })
            )
        };
        let even = memory(USER);
        assert!(misaligned(&even, addresses(8, 0, 0)));
        assert!(misaligned(&even, addresses(0, 1, 0)));
        assert!(misaligned(&even, addresses(0, 0, 2)));
        // Aligned for the front-end, not where it is mapped.
        assert!(misaligned(&memory(USER - 8), addresses(0, 0, 0)));
    }

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let memory = memory(USER);
        let ring = bind(&memory, addresses(0, 0x1000, 0x2000), 4).unwrap();
        ring.set_used(5, 3, 77);
        ring.set_used_index(0x1234);
        ring.set_kicks_declined(true);
        ring.set_available_event(0xabcd);
        let mut used = [0; 6 + 8 * 4];
        memory.read(GuestAddr(0x2000), &mut used).unwrap();
        assert_eq!(used[..4], [1, 0, 0x34, 0x12]);
        assert_eq!(used[12..20], [3, 0, 0, 0, 77, 0, 0, 0]);
        assert_eq!(used[36..], [0xcd, 0xab]);
        assert_eq!(ring.used_index(), 0x1234);

        let descriptor = Descriptor::from([0x8000_0000_0000_0011, 0x0009_0006_0000_0201]);
        assert_eq!(descriptor.buffer.addr, 0x8000_0000_0000_0011);
        assert_eq!(descriptor.buffer.len, 0x201);
        assert!(descriptor.buffer.writable);
        assert_eq!((descriptor.flags, descriptor.next), (6, 9));
    }
}
