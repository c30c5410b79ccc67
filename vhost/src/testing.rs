//! The driver's half, for tests: a guest whose memory is written through its file, and rings of both layouts in it.
//!
//! It shares no code with the ring engine, and no mapping: it reads and writes the file.

mod packed;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::event::Event;
use crate::memory::{GuestAddr, GuestMemory, Region, RegionSpec, UserAddr};
pub(crate) use packed::PackedQueue;

use crate::ring::{Base, QueuePair, RingAddresses, Setup, Trouble};

/// The front-end's address of guest address 0.
pub(crate) const USER: u64 = 0x7f00_0000_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A guest's memory.
pub(crate) struct Guest {
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl Guest {
    pub(crate) fn new(size: u64) -> Self {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(size).unwrap();
        Self { file, size }
    }

    pub(crate) fn spec(&self, start: u64, end: u64) -> RegionSpec {
        RegionSpec {
            guest: GuestAddr(start),
            size: end - start,
            user: UserAddr(USER + start),
            offset: start,
        }
    }

    /// Mapped as regions that meet at `cuts`.
    pub(crate) fn memory(&self, cuts: &[u64]) -> Arc<GuestMemory> {
        let mut memory = GuestMemory::empty();
        let mut start = 0;
        for end in cuts.iter().copied().chain([self.size]) {
            let region = Region::map(self.spec(start, end), &self.file).unwrap();
            memory = memory.with(Arc::new(region)).unwrap();
            start = end;
        }
        Arc::new(memory)
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, addr).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, addr).unwrap();
        bytes
    }

    pub(crate) fn read_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().unwrap())
    }

    pub(crate) fn read_u32(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.read(addr, 4).try_into().unwrap())
    }

    pub(crate) fn write_u16(&self, addr: u64, value: u16) {
        self.write(addr, &value.to_le_bytes());
    }

    pub(crate) fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write_u16(at + 12, flags);
        self.write_u16(at + 14, next);
    }
}

/// A split ring in a guest's memory, seen by its driver.
pub(crate) struct Queue {
    pub(crate) at: u64,
    pub(crate) size: u16,
    pub(crate) offered: u16,
    pub(crate) seen: u16,
}

impl Queue {
    pub(crate) fn new(at: u64, size: u16) -> Self {
        Self {
            at,
            size,
            offered: 0,
            seen: 0,
        }
    }

    pub(crate) fn starting_at(guest: &Guest, at: u64, size: u16, index: u16) -> Self {
        let queue = Self {
            at,
            size,
            offered: index,
            seen: index,
        };
        guest.write_u16(queue.available() + 2, index);
        guest.write_u16(queue.used() + 2, index);
        queue
    }

    pub(crate) fn available(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    pub(crate) fn used(&self) -> u64 {
        (self.available() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    pub(crate) fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: UserAddr(USER + self.at),
            available: UserAddr(USER + self.available()),
            used: UserAddr(USER + self.used()),
        }
    }

    pub(crate) fn descriptor(
        &self,
        guest: &Guest,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        guest.descriptor(self.at + 16 * u64::from(index), addr, len, flags, next);
    }

    pub(crate) fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.offered % self.size);
        guest.write_u16(self.available() + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
        guest.write_u16(self.available() + 2, self.offered);
    }

    pub(crate) fn used_index(&self, guest: &Guest) -> u16 {
        guest.read_u16(self.used() + 2)
    }

    /// What came back since the last time.
    pub(crate) fn take_used(&mut self, guest: &Guest) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        while self.seen != self.used_index(guest) {
            let at = self.used() + 4 + 8 * u64::from(self.seen % self.size);
            entries.push((guest.read_u32(at), guest.read_u32(at + 4)));
            self.seen = self.seen.wrapping_add(1);
        }
        entries
    }

    pub(crate) fn set_used_event(&self, guest: &Guest, index: u16) {
        guest.write_u16(self.available() + 4 + 2 * u64::from(self.size), index);
    }

    pub(crate) fn set_no_interrupt(&self, guest: &Guest, on: bool) {
        guest.write_u16(self.available(), u16::from(on));
    }

    pub(crate) fn available_event(&self, guest: &Guest) -> u16 {
        guest.read_u16(self.used() + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn used_flags(&self, guest: &Guest) -> u16 {
        guest.read_u16(self.used())
    }
}

pub(crate) fn event() -> Arc<Event> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    Arc::new(Event::from(fd))
}

/// How often an eventfd was written since the last look.
pub(crate) fn count(fd: impl AsFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

/// A set-up with a fresh call and kick descriptor.
pub(crate) fn setup(memory: &Arc<GuestMemory>, queue: &Queue, features: u64) -> Setup {
    setup_at(memory, queue.addresses(), queue.size, features)
}

/// The same for a ring of any layout.
pub(crate) fn setup_at(
    memory: &Arc<GuestMemory>,
    addresses: RingAddresses,
    size: u16,
    features: u64,
) -> Setup {
    Setup {
        pair: QueuePair(0),
        memory: Arc::clone(memory),
        addresses,
        size,
        base: Base::Claimed(0),
        features,
        kick: Some(event()),
        call: Some(event()),
        enabled: true,
        trouble: Trouble::new().unwrap(),
    }
}
