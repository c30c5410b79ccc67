//! One driver's half for both layouts: chains go out with a number of ours and come back in order.

use std::collections::VecDeque;

use super::Piece;
use crate::features::{RING_PACKED, mask};
use crate::ring::{Base, RingAddresses};
use crate::testing::{Guest, INDIRECT, NEXT, PackedQueue, Queue};

/// The driver of one ring. `id` is a number of the test's own choice, of those that are out each once.
pub(super) trait Driver: Sized {
    /// What to negotiate for this layout.
    const FEATURES: u64;
    /// Where a descriptor has its flags; its address is at 0, its length at 8 in either layout.
    const FLAGS: u64;

    /// As it is after `count` buffers of one descriptor went through it.
    fn starting_at(guest: &Guest, at: u64, size: u16, count: u64) -> Self;
    fn addresses(&self) -> RingAddresses;
    fn size(&self) -> u16;
    /// Bytes of all its parts.
    fn bytes(&self) -> u64;
    /// Where the ring stands, as far as this driver has seen.
    fn base(&self) -> Base;
    /// Descriptors that are not out.
    fn free(&self) -> u64;
    /// Offers a chain; says where its first descriptor lies.
    fn offer(&mut self, guest: &Guest, id: u16, chain: &[Piece]) -> u64;
    /// Offers a chain in an indirect table at `table`; says where the descriptor that names it lies.
    fn offer_table(&mut self, guest: &Guest, id: u16, table: u64, chain: &[Piece]) -> u64;
    /// What came back since the last time: ids and lengths. Panics unless in order.
    fn take_used(&mut self, guest: &Guest) -> Vec<(u16, u32)>;
    /// Offers a chain that never ends, of buffers of this kind.
    fn offer_endless(&mut self, guest: &Guest, piece: Piece);
    /// Offers one buffer more than the ring has descriptors, or what comes closest.
    fn offer_too_many(&mut self, guest: &Guest);
}

/// See [`Queue`].
pub(super) struct Split {
    queue: Queue,
    /// The next descriptor to use; they are used in turn.
    next: u64,
    /// Chains that are out: head, id, descriptors.
    out: VecDeque<(u16, u16, u64)>,
}

impl Split {
    fn index(&self, at: u64) -> u16 {
        (at % u64::from(self.queue.size)) as u16
    }
}

impl Driver for Split {
    const FEATURES: u64 = 0;
    const FLAGS: u64 = 12;

    fn starting_at(guest: &Guest, at: u64, size: u16, count: u64) -> Self {
        Self {
            queue: Queue::starting_at(guest, at, size, count as u16),
            next: count,
            out: VecDeque::new(),
        }
    }

    fn addresses(&self) -> RingAddresses {
        self.queue.addresses()
    }

    fn size(&self) -> u16 {
        self.queue.size
    }

    fn bytes(&self) -> u64 {
        self.queue.used() - self.queue.at + 6 + 8 * u64::from(self.queue.size)
    }

    fn base(&self) -> Base {
        Base::Claimed(self.queue.seen.into())
    }

    fn free(&self) -> u64 {
        let out: u64 = self.out.iter().map(|(_, _, count)| count).sum();
        u64::from(self.queue.size) - out
    }

    fn offer(&mut self, guest: &Guest, id: u16, chain: &[Piece]) -> u64 {
        let first = self.next;
        for (number, &(addr, len, flags)) in chain.iter().enumerate() {
            let here = self.index(first + number as u64);
            let next = self.index(first + number as u64 + 1);
            let more = if number + 1 < chain.len() { NEXT } else { 0 };
            self.queue
                .descriptor(guest, here, addr, len, flags | more, next);
        }
        self.next += chain.len() as u64;
        let head = self.index(first);
        self.out.push_back((head, id, chain.len() as u64));
        self.queue.offer(guest, head);
        self.queue.at + 16 * u64::from(head)
    }

    fn offer_table(&mut self, guest: &Guest, id: u16, table: u64, chain: &[Piece]) -> u64 {
        for (number, &(addr, len, flags)) in chain.iter().enumerate() {
            let more = if number + 1 < chain.len() { NEXT } else { 0 };
            let (at, next) = (table + 16 * number as u64, number as u16 + 1);
            guest.descriptor(at, addr, len, flags | more, next);
        }
        self.offer(guest, id, &[(table, 16 * chain.len() as u32, INDIRECT)])
    }

    fn take_used(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let used = self.queue.take_used(guest);
        let known = used.into_iter().map(|(head, len)| {
            let (expected, id, _) = self.out.pop_front().expect("a chain that is out");
            assert_eq!(head, u32::from(expected), "out of order");
            (id, len)
        });
        known.collect()
    }

    fn offer_endless(&mut self, guest: &Guest, (addr, len, flags): Piece) {
        for at in 0..self.queue.size {
            let next = (at + 1) % self.queue.size;
            self.queue
                .descriptor(guest, at, addr, len, flags | NEXT, next);
        }
        let head = self.index(self.next);
        self.out.push_back((head, u16::MAX, 0));
        self.queue.offer(guest, head);
    }

    fn offer_too_many(&mut self, guest: &Guest) {
        let index = self.queue.seen.wrapping_add(self.queue.size + 1);
        guest.write_u16(self.queue.available() + 2, index);
    }
}

/// See [`PackedQueue`].
pub(super) struct Packed {
    queue: PackedQueue,
    out: VecDeque<u16>,
}

impl Driver for Packed {
    const FEATURES: u64 = mask(RING_PACKED);
    const FLAGS: u64 = 14;

    fn starting_at(guest: &Guest, at: u64, size: u16, count: u64) -> Self {
        Self {
            queue: PackedQueue::starting_at(guest, at, size, count),
            out: VecDeque::new(),
        }
    }

    fn addresses(&self) -> RingAddresses {
        self.queue.addresses()
    }

    fn size(&self) -> u16 {
        self.queue.size
    }

    fn bytes(&self) -> u64 {
        self.queue.device() + 4 - self.queue.at
    }

    fn base(&self) -> Base {
        Base::Known(self.queue.base(self.queue.seen))
    }

    fn free(&self) -> u64 {
        self.queue.free()
    }

    fn offer(&mut self, guest: &Guest, id: u16, chain: &[Piece]) -> u64 {
        let at = self.queue.slot(self.queue.offered);
        self.queue.offer(guest, id, chain);
        self.out.push_back(id);
        at
    }

    fn offer_table(&mut self, guest: &Guest, id: u16, table: u64, chain: &[Piece]) -> u64 {
        let at = self.queue.slot(self.queue.offered);
        self.queue.offer_table(guest, id, table, chain);
        self.out.push_back(id);
        at
    }

    fn take_used(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let used = self.queue.take_used(guest);
        let known = used.into_iter().map(|(id, len, _)| {
            assert_eq!(self.out.pop_front(), Some(id), "out of order");
            (id, len)
        });
        known.collect()
    }

    fn offer_endless(&mut self, guest: &Guest, (addr, len, flags): Piece) {
        let size = u64::from(self.queue.size);
        for position in (self.queue.offered..self.queue.offered + size).rev() {
            let at = self.queue.slot(position);
            let lap = if self.queue.wrap(position) {
                1 << 7
            } else {
                1 << 15
            };
            guest.descriptor(at, addr, len, 0, flags | NEXT | lap);
        }
    }

    /// There is no index to lie with: every slot is on offer, in this lap.
    fn offer_too_many(&mut self, guest: &Guest) {
        self.offer_endless(guest, (u64::MAX, u32::MAX, 0));
    }
}
