//! The driver's half of a packed ring (virtio 1.2, 2.8), as simple as can be: it keeps the two sides' positions as counts
//! of descriptors since the beginning and derives slot and wrap counter from them.

use std::collections::HashMap;

use super::{Guest, INDIRECT, NEXT, USER};
use crate::memory::UserAddr;
use crate::ring::RingAddresses;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A packed ring in a guest's memory, seen by its driver.
#[derive(Clone)]
pub(crate) struct PackedQueue {
    pub(crate) at: u64,
    pub(crate) size: u16,
    /// Descriptors offered, and seen back, since the beginning.
    pub(crate) offered: u64,
    pub(crate) seen: u64,
    /// Descriptors of the chains that are out, by id.
    out: HashMap<u16, u64>,
}

/// One that came back: id, length, flags.
pub(crate) type Used = (u16, u32, u16);

impl PackedQueue {
    pub(crate) fn new(at: u64, size: u16) -> Self {
        Self {
            at,
            size,
            offered: 0,
            seen: 0,
            out: HashMap::new(),
        }
    }

    /// As it is after `count` single descriptors went through it.
    pub(crate) fn starting_at(guest: &Guest, at: u64, size: u16, count: u64) -> Self {
        let mut queue = Self::new(at, size);
        (queue.offered, queue.seen) = (count, count);
        for position in count.saturating_sub(size.into())..count {
            let flags = if queue.wrap(position) {
                AVAIL | USED
            } else {
                0
            };
            guest.write_u16(queue.slot(position) + 14, flags);
        }
        queue
    }

    pub(crate) fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: UserAddr(USER + self.at),
            available: UserAddr(USER + self.driver()),
            used: UserAddr(USER + self.device()),
        }
    }

    pub(crate) fn driver(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    pub(crate) fn device(&self) -> u64 {
        self.driver() + 4
    }

    /// Where a descriptor lies.
    pub(crate) fn slot(&self, position: u64) -> u64 {
        self.at + 16 * (position % u64::from(self.size))
    }

    /// The wrap counter in the lap of a descriptor.
    pub(crate) fn wrap(&self, position: u64) -> bool {
        (position / u64::from(self.size)).is_multiple_of(2)
    }

    /// Slot and wrap counter as one word.
    pub(crate) fn bits(&self, position: u64) -> u16 {
        (position % u64::from(self.size)) as u16 | u16::from(self.wrap(position)) << 15
    }

    /// The same as both halves of a ring's base.
    pub(crate) fn base(&self, position: u64) -> u32 {
        u32::from(self.bits(position)) * 0x1_0001
    }

    pub(crate) fn free(&self) -> u64 {
        u64::from(self.size) - (self.offered - self.seen)
    }

    /// Offers a chain of (address, length, flags without NEXT): id in the last descriptor, flags of the first last.
    pub(crate) fn offer(&mut self, guest: &Guest, id: u16, chain: &[(u64, u32, u16)]) {
        let first = self.offered;
        for (index, &(addr, len, flags)) in chain.iter().enumerate().rev() {
            let (position, last) = (first + index as u64, index + 1 == chain.len());
            let lap = if self.wrap(position) { AVAIL } else { USED };
            let at = self.slot(position);
            guest.write(at, &addr.to_le_bytes());
            guest.write(at + 8, &len.to_le_bytes());
            guest.write_u16(at + 12, if last { id } else { 0xdead });
            guest.write_u16(at + 14, flags | lap | if last { 0 } else { NEXT });
        }
        self.offered += chain.len() as u64;
        self.out.insert(id, chain.len() as u64);
    }

    /// Offers one descriptor that names the table at `table`, which is written first.
    pub(crate) fn offer_table(
        &mut self,
        guest: &Guest,
        id: u16,
        table: u64,
        chain: &[(u64, u32, u16)],
    ) {
        for (index, &(addr, len, flags)) in chain.iter().enumerate() {
            let at = table + 16 * index as u64;
            guest.write(at, &addr.to_le_bytes());
            guest.write(at + 8, &len.to_le_bytes());
            // Reserved: the id, and all flags but WRITE.
            guest.write_u16(at + 12, 0xbeef);
            guest.write_u16(at + 14, flags | NEXT | INDIRECT | AVAIL);
        }
        self.offer(guest, id, &[(table, 16 * chain.len() as u32, INDIRECT)]);
    }

    /// What came back since the last time.
    pub(crate) fn take_used(&mut self, guest: &Guest) -> Vec<Used> {
        let mut entries = Vec::new();
        while self.seen < self.offered {
            let (at, wrap) = (self.slot(self.seen), self.wrap(self.seen));
            let flags = guest.read_u16(at + 14);
            if (flags & AVAIL != 0, flags & USED != 0) != (wrap, wrap) {
                break;
            }
            let id = guest.read_u16(at + 12);
            let count = self.out.remove(&id).expect("an id that is out");
            entries.push((id, guest.read_u32(at + 8), flags & !(AVAIL | USED)));
            self.seen += count;
        }
        entries
    }

    /// Asks for calls: 0 always, 1 never, 2 when the descriptor at a position is used.
    pub(crate) fn ask(&self, guest: &Guest, flags: u16, position: u64) {
        guest.write_u16(self.driver(), self.bits(position));
        guest.write_u16(self.driver() + 2, flags);
    }

    /// What the device asks for: place and flags.
    pub(crate) fn asked(&self, guest: &Guest) -> (u16, u16) {
        (
            guest.read_u16(self.device()),
            guest.read_u16(self.device() + 2),
        )
    }
}
