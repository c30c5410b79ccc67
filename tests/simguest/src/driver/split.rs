//! One split virtqueue, driver side (virtio 1.2, 2.7).

mod lockstep;

use std::sync::atomic::{Ordering, fence};

use crate::memory::Desc;

use super::DeviceFault;
use super::parts::RingParts;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A guest-physical range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A buffer that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// Head descriptor.
    pub id: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// Whether an event index asks for a notification when an index went from `old` to `new` (virtio 1.2, 2.7.7.1 and
/// 2.7.10: the event lies in the half-open range just passed).
#[inline]
#[must_use]
pub fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// What the driver remembers of a descriptor.
#[derive(Clone, Copy, Default)]
struct Private {
    /// Bytes the device may write into the chain headed by this.
    room: u32,
    /// Descriptors of the chain headed by this; 0 while it is not the head of a chain in flight.
    descs: u16,
    /// The next one of the chain, which the device could overwrite in the shared table.
    next: u16,
}

/// The driver's state of one ring.
///
/// As long as every chain is one descriptor and the device uses them in order, entry `i` of the available ring always
/// names descriptor `i`. The ring then runs in *lockstep*: which descriptors are free or in flight follows from the
/// indices alone, and neither the FIFO nor `private` is kept. The first chain or used entry that does not fit fills them
/// in and ends that, until the next reset.
#[derive(Debug)]
pub struct Split {
    parts: RingParts,
    event_idx: bool,
    mask: u16,
    lockstep: bool,
    /// Every entry of the available ring has been written once.
    lapped: bool,
    /// Free descriptors, a FIFO of `free_count` from `free_at`.
    free: Vec<u16>,
    free_at: u16,
    free_count: u16,
    private: Vec<Private>,
    chains: u16,
    /// What was last written to the shared ring, so that equal values are not written again.
    desc_written: Vec<Desc>,
    avail_written: Vec<u16>,
    /// Next index to fill; what the device may see; where the last kick decision was taken.
    avail: u16,
    published: u16,
    decided: u16,
    /// Next used entry to take; the used index last seen.
    last_used: u16,
    seen_used: u16,
}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.descs)
    }
}

impl Split {
    /// A ring at rest.
    pub fn new(parts: RingParts, event_idx: bool) -> Self {
        let n = usize::from(parts.size);
        let mut ring = Self {
            event_idx,
            mask: parts.size - 1,
            lockstep: true,
            lapped: false,
            free: vec![0; n],
            free_at: 0,
            free_count: 0,
            private: vec![Private::default(); n],
            chains: 0,
            desc_written: vec![Desc::default(); n],
            avail_written: vec![0; n],
            avail: 0,
            published: 0,
            decided: 0,
            last_used: 0,
            seen_used: 0,
            parts,
        };
        ring.reset();
        ring
    }

    /// Everything back to the state after a device reset, shared memory included.
    pub fn reset(&mut self) {
        self.parts.clear();
        (self.lockstep, self.lapped) = (true, false);
        for (i, free) in self.free.iter_mut().enumerate() {
            *free = i as u16;
        }
        (self.free_at, self.free_count) = (0, self.parts.size);
        self.private.fill(Private::default());
        self.desc_written.fill(Desc::default());
        self.avail_written.fill(0);
        self.chains = 0;
        (self.avail, self.published, self.decided) = (0, 0, 0);
        (self.last_used, self.seen_used) = (0, 0);
    }

    /// Where the ring lies.
    pub fn parts(&self) -> &RingParts {
        &self.parts
    }
    /// Entries.
    #[inline]
    pub fn size(&self) -> u16 {
        self.parts.size
    }
    /// Free descriptors.
    #[inline]
    pub fn free(&self) -> u16 {
        if self.lockstep {
            self.parts.size - self.chains()
        } else {
            self.free_count
        }
    }
    /// Chains the device has (or will have with the next publish).
    #[inline]
    pub fn chains(&self) -> u16 {
        if self.lockstep {
            self.avail.wrapping_sub(self.last_used)
        } else {
            self.chains
        }
    }
    /// The descriptor that the next chain will have as its head.
    #[inline]
    pub fn next_head(&self) -> Option<u16> {
        if self.free() == 0 {
            return None;
        }
        let head = if self.lockstep {
            self.avail & self.mask
        } else {
            self.free[usize::from(self.free_at)]
        };
        Some(head)
    }

    #[inline(always)]
    fn take_free(&mut self) -> u16 {
        let id = self.free[usize::from(self.free_at)];
        self.free_at = (self.free_at + 1) & self.mask;
        self.free_count -= 1;
        id
    }

    #[inline(always)]
    fn give_free(&mut self, id: u16) {
        let at = self.free_at.wrapping_add(self.free_count) & self.mask;
        self.free[usize::from(at)] = id;
        self.free_count += 1;
    }

    #[inline(always)]
    fn write_desc(&mut self, id: u16, desc: Desc) {
        let written = &mut self.desc_written[usize::from(id)];
        if *written != desc {
            *written = desc;
            self.parts.desc.store(usize::from(id), desc);
        }
    }

    fn offer(&mut self, head: u16, descs: u16, room: u32) {
        let private = &mut self.private[usize::from(head)];
        (private.descs, private.room) = (descs, room);
        self.chains += 1;
        self.write_avail(head);
    }

    #[inline(always)]
    fn write_avail(&mut self, head: u16) {
        let at = self.avail & self.mask;
        let written = &mut self.avail_written[usize::from(at)];
        if *written != head || !self.lapped {
            *written = head;
            self.parts.set_avail_entry(at, head);
            self.lapped |= at == self.mask;
        }
        self.avail = self.avail.wrapping_add(1);
    }

    /// Adds a chain of one descriptor. None if the ring is full.
    #[inline(always)]
    pub fn add_one(&mut self, piece: Piece, writable: bool) -> Option<u16> {
        let head = self.next_head()?;
        let flags = if writable { Desc::WRITE } else { 0 };
        self.write_desc(
            head,
            Desc {
                addr: piece.addr,
                len: piece.len,
                flags,
                next: 0,
            },
        );
        if self.lockstep {
            self.write_avail(head);
        } else {
            self.take_free();
            self.offer(head, 1, if writable { piece.len } else { 0 });
        }
        Some(head)
    }

    /// Adds a chain; None if too few descriptors are free.
    pub fn add(&mut self, pieces: &[Piece], writable: bool) -> Option<u16> {
        let count = pieces.len();
        if count == 0 || count > usize::from(self.free()) {
            return None;
        }
        if self.lockstep {
            self.leave_lockstep();
        }
        let head = self.free[usize::from(self.free_at)];
        for (i, piece) in pieces.iter().enumerate() {
            let id = self.take_free();
            let next = (i + 1 < count).then(|| self.free[usize::from(self.free_at)]);
            let desc = chained(*piece, writable, next);
            self.private[usize::from(id)].next = desc.next;
            self.write_desc(id, desc);
        }
        self.offer(head, count as u16, room(pieces, writable));
        Some(head)
    }

    /// Adds a chain in the indirect table of its head, taking one descriptor; None if the ring is full or the table too
    /// short.
    pub fn add_indirect(&mut self, pieces: &[Piece], writable: bool) -> Option<u16> {
        let table_len = usize::from(self.parts.table_len);
        if pieces.is_empty() || pieces.len() > table_len || self.free() == 0 {
            return None;
        }
        if self.lockstep {
            self.leave_lockstep();
        }
        let head = self.take_free();
        let start = usize::from(head) * table_len;
        for (i, piece) in pieces.iter().enumerate() {
            let next = (i + 1 < pieces.len()).then_some((i + 1) as u16);
            self.parts
                .tables
                .store(start + i, chained(*piece, writable, next));
        }
        let addr = self.parts.tables_guest + (start * Desc::SIZE) as u64;
        let len = (pieces.len() * Desc::SIZE) as u32;
        self.write_desc(
            head,
            Desc {
                addr,
                len,
                flags: Desc::INDIRECT,
                next: 0,
            },
        );
        self.offer(head, 1, room(pieces, writable));
        Some(head)
    }

    /// Makes everything added so far visible to the device. Returns whether there was anything.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.avail == self.published {
            return false;
        }
        self.published = self.avail;
        self.parts.set_avail_idx(self.avail);
        true
    }

    /// Whether the device wants a kick for what was published since the last time this was asked.
    #[inline]
    pub fn wants_kick(&mut self) -> bool {
        // The published index must be visible before we look whether the device sleeps.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.decided, self.published);
        if self.event_idx {
            passed(self.parts.avail_event(), old, self.published)
        } else {
            self.parts.used_flags() & NO_NOTIFY == 0
        }
    }

    /// Used entries that are there and not yet taken. Looks at the shared index only if fewer than `wanted` are known.
    #[inline]
    pub fn pending(&mut self, wanted: u16) -> Result<u16, DeviceFault> {
        let known = self.seen_used.wrapping_sub(self.last_used);
        if known >= wanted {
            return Ok(known);
        }
        let used = self.parts.used_idx();
        let count = used.wrapping_sub(self.last_used);
        let out = self
            .chains()
            .wrapping_sub(self.avail.wrapping_sub(self.published));
        if count > out {
            return Err(DeviceFault::UsedIndex {
                used,
                last: self.last_used,
                out,
            });
        }
        self.seen_used = used;
        Ok(count)
    }

    /// Looks at the used entry `ahead` of the next one, which [`Split::pending`] must have counted.
    pub fn peek(&mut self, ahead: u16) -> Result<Used, DeviceFault> {
        if self.lockstep {
            self.leave_lockstep();
        }
        let (id, len) = self.parts.used_entry(self.last_used.wrapping_add(ahead));
        match self.private.get(id as usize) {
            Some(private) if private.descs > 0 && len <= private.room => {
                Ok(Used { id: id as u16, len })
            }
            other => Err(self.fault(ahead, id, len, other)),
        }
    }

    #[cold]
    fn fault(&self, ahead: u16, id: u32, len: u32, private: Option<&Private>) -> DeviceFault {
        let at = self.last_used.wrapping_add(ahead);
        match private {
            Some(Private {
                room, descs: 1.., ..
            }) => DeviceFault::UsedLen {
                at,
                len,
                room: *room,
            },
            _ => DeviceFault::UsedId { at, id },
        }
    }

    /// Takes the next used entry and frees its descriptors.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>, DeviceFault> {
        if self.pending(1)? == 0 {
            return Ok(None);
        }
        if let Some(used) = self.expected(0) {
            self.advance(1);
            return Ok(Some(used));
        }
        let used = self.peek(0)?;
        self.retire(used.id);
        Ok(Some(used))
    }

    fn retire(&mut self, head: u16) {
        self.last_used = self.last_used.wrapping_add(1);
        self.chains -= 1;
        let private = &mut self.private[usize::from(head)];
        let (descs, mut next) = (private.descs, private.next);
        private.descs = 0;
        self.give_free(head);
        for _ in 1..descs {
            self.give_free(next);
            next = self.private[usize::from(next)].next;
        }
    }

    /// Asks for an interrupt after `ahead` more buffers; returns true if more than that came back meanwhile, so that
    /// sleeping would be wrong.
    pub fn arm(&mut self, ahead: u16) -> Result<bool, DeviceFault> {
        if self.event_idx {
            self.parts
                .set_used_event(self.last_used.wrapping_add(ahead));
        } else {
            self.parts.set_avail_flags(0);
        }
        fence(Ordering::SeqCst);
        Ok(self.pending(u16::MAX)? > ahead)
    }

    /// Asks for no interrupts. With event indices the last one is left where it is, as Linux does.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.parts.set_avail_flags(NO_INTERRUPT);
        }
    }
}

fn chained(piece: Piece, writable: bool, next: Option<u16>) -> Desc {
    let mut flags = if writable { Desc::WRITE } else { 0 };
    if next.is_some() {
        flags |= Desc::NEXT;
    }
    Desc {
        addr: piece.addr,
        len: piece.len,
        flags,
        next: next.unwrap_or(0),
    }
}

fn room(pieces: &[Piece], writable: bool) -> u32 {
    if writable {
        pieces.iter().map(|p| p.len).sum()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Layout, Memory};

    fn ring(size: u16, event_idx: bool) -> Split {
        let memory = Memory::new(&Layout::single(1 << 20)).unwrap();
        Split::new(RingParts::new(&memory, size, 8).unwrap(), event_idx)
    }

    const PIECE: Piece = Piece {
        addr: 0x1000,
        len: 100,
    };

    /// Plays the device: gives the oldest `count` published chains back.
    fn complete(ring: &Split, count: u16, len: u32) {
        let parts = ring.parts();
        for _ in 0..count {
            let used = parts.used_idx();
            parts.set_used_entry(used, u32::from(parts.avail_entry(used)), len);
            parts.set_used_idx(used.wrapping_add(1));
        }
    }

    #[test]
    fn layout_on_the_wire() {
        let mut ring = ring(4, false);
        ring.add(
            &[
                PIECE,
                Piece {
                    addr: 0x2000,
                    len: 7,
                },
            ],
            true,
        )
        .unwrap();
        ring.publish();
        let parts = ring.parts();
        let flags = Desc::WRITE | Desc::NEXT;
        assert_eq!(
            parts.desc.load(0),
            Desc {
                addr: 0x1000,
                len: 100,
                flags,
                next: 1
            }
        );
        let flags = Desc::WRITE;
        assert_eq!(
            parts.desc.load(1),
            Desc {
                addr: 0x2000,
                len: 7,
                flags,
                next: 0
            }
        );
        assert_eq!((parts.avail.load(1), parts.avail.load(2)), (1, 0));
        let (at, used) = (parts.addresses(), parts.used.address());
        assert_eq!(at.used, used);
        assert_eq!(parts.used_elems.address(), used + 4);
        assert_eq!(parts.avail.len(), 2 + 4 + 1);
    }

    #[test]
    fn laps_over_the_index_wrap() {
        let mut ring = ring(8, true);
        for round in 0..20_000u32 {
            let count = round % 8 + 1;
            for _ in 0..count {
                ring.add_one(PIECE, false).unwrap();
            }
            assert!(ring.publish());
            complete(&ring, count as u16, 0);
            for _ in 0..count {
                assert!(ring.pop().unwrap().is_some());
            }
            assert_eq!(ring.pop().unwrap(), None);
            assert_eq!(ring.free(), 8);
        }
    }

    #[test]
    fn a_device_that_lies_is_caught() {
        let mut ring = ring(8, false);
        ring.add_one(PIECE, true).unwrap();
        ring.publish();
        ring.parts().set_used_idx(2);
        assert!(matches!(
            ring.pop(),
            Err(DeviceFault::UsedIndex {
                used: 2,
                last: 0,
                out: 1
            })
        ));
        ring.parts().set_used_idx(1);
        ring.parts().set_used_entry(0, 5, 0);
        assert!(matches!(
            ring.pop(),
            Err(DeviceFault::UsedId { at: 0, id: 5 })
        ));
        ring.parts().set_used_entry(0, 70_000, 0);
        assert!(matches!(
            ring.pop(),
            Err(DeviceFault::UsedId { at: 0, id: 70_000 })
        ));
        ring.parts().set_used_entry(0, 0, 101);
        assert!(matches!(
            ring.pop(),
            Err(DeviceFault::UsedLen {
                at: 0,
                len: 101,
                room: 100
            })
        ));
        ring.parts().set_used_entry(0, 0, 100);
        assert_eq!(ring.pop(), Ok(Some(Used { id: 0, len: 100 })));
    }

    #[test]
    fn kicks_as_the_device_asks() {
        let mut flags = ring(8, false);
        flags.add_one(PIECE, false).unwrap();
        flags.publish();
        assert!(flags.wants_kick());
        flags.parts().set_used_flags(NO_NOTIFY);
        assert!(!flags.wants_kick());

        let mut events = ring(8, true);
        events.parts().set_avail_event(1);
        let asked: Vec<_> = (0..4)
            .map(|_| {
                events.add_one(PIECE, false).unwrap();
                events.publish();
                events.wants_kick()
            })
            .collect();
        assert_eq!(asked, [false, true, false, false]);
    }

    #[test]
    fn arming_looks_again() {
        for event_idx in [false, true] {
            let mut ring = ring(8, event_idx);
            ring.add_one(PIECE, false).unwrap();
            ring.add_one(PIECE, false).unwrap();
            ring.publish();
            assert!(!ring.arm(0).unwrap());
            complete(&ring, 1, 0);
            assert!(ring.arm(0).unwrap());
            assert!(!ring.arm(1).unwrap());
            complete(&ring, 1, 0);
            assert!(ring.arm(1).unwrap());
        }
    }

    #[test]
    fn indirect_takes_one_descriptor() {
        let mut ring = ring(2, false);
        assert_eq!(ring.add(&[PIECE; 3], false), None);
        let head = ring.add_indirect(&[PIECE; 3], false).unwrap();
        assert_eq!(ring.free(), 1);
        let desc = ring.parts().desc.load(usize::from(head));
        assert_eq!((desc.len, desc.flags), (48, Desc::INDIRECT));
        assert_eq!(desc.addr, ring.parts().tables_guest);
        assert_eq!(ring.parts().tables.load(1).next, 2);
        assert_eq!(ring.parts().tables.load(2).flags, 0);
    }
}
