//! The split ring: where its fields lie, and touching each exactly once.
//!
//! Virtio 1.2, section 2.7. Three parts: the descriptor table, written by the driver; the available ring, written by the
//! driver too; the used ring, written by us. All fields are little endian. A part is bound once, as a pointer
//! that travels with its validated length, and after that every access is within it by masking the index.

use std::sync::atomic::{AtomicU16, Ordering};

use crate::memory::{GuestMemory, Span, UserAddr};

/// Largest ring of the split layout.
pub(crate) const MAX_SIZE: u16 = 32_768;

const AVAIL_HEADER: usize = 4;
const USED_HEADER: usize = 4;
const USED_ELEMENT: usize = 8;
const DESCRIPTOR: usize = 16;

/// `VRING_DESC_F_NEXT`
pub(crate) const F_NEXT: u16 = 1;
/// `VRING_DESC_F_WRITE`
pub(crate) const F_WRITE: u16 = 2;
/// `VRING_DESC_F_INDIRECT`
pub(crate) const F_INDIRECT: u16 = 4;
/// `VRING_AVAIL_F_NO_INTERRUPT`
const F_NO_INTERRUPT: u16 = 1;
/// `VRING_USED_F_NO_NOTIFY`
const F_NO_NOTIFY: u16 = 1;

/// Where the front-end says a ring's parts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: UserAddr,
    pub(crate) available: UserAddr,
    pub(crate) used: UserAddr,
}

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
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    #[inline]
    fn from_words(words: [u64; 2]) -> Self {
        let [addr, rest] = words.map(u64::from_le);
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    pub(crate) fn from_bytes(bytes: [u8; DESCRIPTOR]) -> Self {
        let (addr, rest) = (
            u128::from_le_bytes(bytes) as u64,
            u128::from_le_bytes(bytes) >> 64,
        );
        Self::from_words([addr.to_le(), (rest as u64).to_le()])
    }
}

/// A table of descriptors in one contiguous range: a ring's own, or an indirect one.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    span: Span,
    entries: u16,
}

impl Table {
    pub(crate) const BYTES_PER_ENTRY: usize = DESCRIPTOR;

    /// `None` if the range is not aligned for word loads.
    #[inline]
    pub(crate) fn new(span: Span, entries: u16) -> Option<Self> {
        let fits = span.len() >= usize::from(entries) * DESCRIPTOR;
        (fits && span.as_ptr().addr().is_multiple_of(8)).then_some(Self { span, entries })
    }

    #[inline]
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Loads a descriptor, every field once.
    ///
    /// # Safety
    ///
    /// `index` is below [`entries`](Self::entries), and the table is still mapped.
    #[inline]
    pub(crate) unsafe fn load(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.entries);
        // SAFETY: the index is within the table by the caller's word, the table within the span by `new`, and aligned.
        let words = unsafe {
            let at = self.span.as_ptr().cast::<u64>().add(usize::from(index) * 2);
            [at.read_volatile(), at.add(1).read_volatile()]
        };
        Descriptor::from_words(words)
    }
}

/// A split ring, bound to mapped memory.
///
/// Its methods are safe because [`SplitRing::bind`] is given the table that keeps the parts mapped by whoever also keeps
/// that table for as long as the ring: [`core`](super::core) does.
pub(crate) struct SplitRing {
    descriptors: Table,
    available: Span,
    used: Span,
    size: u16,
}

impl SplitRing {
    /// Finds the parts in guest memory. `size` is a power of two from 2 to [`MAX_SIZE`].
    ///
    /// # Safety
    ///
    /// `memory` outlives the ring.
    pub(crate) unsafe fn bind(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: u16,
    ) -> Result<Self, PartError> {
        debug_assert!(size.is_power_of_two() && size <= MAX_SIZE);
        let entries = usize::from(size);
        let find = |part, addr: UserAddr, len, align| {
            let span = memory
                .resolve_user(addr, len)
                .ok_or(PartError::Unmapped { part, addr: addr.0 })?;
            // What counts is where it is mapped: a front-end's region may begin anywhere.
            if !addr.0.is_multiple_of(align) || !(span.as_ptr().addr() as u64).is_multiple_of(align)
            {
                return Err(PartError::Misaligned { part, addr: addr.0 });
            }
            Ok(span)
        };
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
        })
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(crate) fn descriptors(&self) -> Table {
        self.descriptors
    }

    #[inline]
    fn position(&self, index: u16) -> usize {
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
    pub(crate) fn available_index(&self) -> u16 {
        // SAFETY: a fixed offset in the available ring's header.
        u16::from_le(unsafe { Self::field(&self.available, 2) }.load(Ordering::Acquire))
    }

    /// The descriptor that begins the chain offered at `index`.
    #[inline]
    pub(crate) fn head(&self, index: u16) -> u16 {
        let offset = AVAIL_HEADER + self.position(index) * 2;
        // SAFETY: the position is below the size, and the ring has that many entries after its header.
        u16::from_le(unsafe { Self::field(&self.available, offset) }.load(Ordering::Relaxed))
    }

    /// Whether the driver asked not to be interrupted (without `EVENT_IDX`).
    #[inline]
    pub(crate) fn interrupts_suppressed(&self) -> bool {
        // SAFETY: a fixed offset in the available ring's header.
        let flags = unsafe { Self::field(&self.available, 0) }.load(Ordering::Relaxed);
        u16::from_le(flags) & F_NO_INTERRUPT != 0
    }

    /// The used entry after which the driver wants to be interrupted (with `EVENT_IDX`).
    #[inline]
    pub(crate) fn used_event(&self) -> u16 {
        let offset = AVAIL_HEADER + usize::from(self.size) * 2;
        // SAFETY: the two bytes after the available ring's entries belong to it.
        u16::from_le(unsafe { Self::field(&self.available, offset) }.load(Ordering::Relaxed))
    }

    /// What the guest's memory says about how far buffers were given back.
    pub(crate) fn used_index(&self) -> u16 {
        // SAFETY: a fixed offset in the used ring's header.
        u16::from_le(unsafe { Self::field(&self.used, 2) }.load(Ordering::Relaxed))
    }

    /// Writes a used entry; nobody looks at it before [`publish`](Self::publish).
    #[inline]
    pub(crate) fn set_used(&self, index: u16, head: u16, len: u32) {
        let offset = USED_HEADER + self.position(index) * USED_ELEMENT;
        debug_assert!(offset + USED_ELEMENT <= self.used.len());
        // SAFETY: the position is below the size, and the ring has that many entries after its header, 4 bytes aligned.
        unsafe {
            let entry = self.used.as_ptr().add(offset).cast::<u32>();
            entry.write_volatile(u32::from(head).to_le());
            entry.add(1).write_volatile(len.to_le());
        }
    }

    /// Stores the used index: everything before it is the guest's again.
    #[inline]
    pub(crate) fn publish(&self, index: u16) {
        // SAFETY: a fixed offset in the used ring's header.
        unsafe { Self::field(&self.used, 2) }.store(index.to_le(), Ordering::Release);
    }

    /// Asks for kicks or declines them (without `EVENT_IDX`).
    #[inline]
    pub(crate) fn set_kicks_declined(&self, declined: bool) {
        let flags = if declined { F_NO_NOTIFY } else { 0 };
        // SAFETY: a fixed offset in the used ring's header.
        unsafe { Self::field(&self.used, 0) }.store(flags.to_le(), Ordering::Relaxed);
    }

    /// The available entry after which we want a kick (with `EVENT_IDX`).
    #[inline]
    pub(crate) fn set_available_event(&self, index: u16) {
        let offset = USED_HEADER + usize::from(self.size) * USED_ELEMENT;
        // SAFETY: the two bytes after the used ring's entries belong to it.
        unsafe { Self::field(&self.used, offset) }.store(index.to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestAddr, Region, RegionSpec};
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
        unsafe { SplitRing::bind(memory, addresses, size) }
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
        ring.publish(0x1234);
        ring.set_kicks_declined(true);
        ring.set_available_event(0xabcd);
        let mut used = [0; 6 + 8 * 4];
        memory.read(GuestAddr(0x2000), &mut used).unwrap();
        assert_eq!(used[..4], [1, 0, 0x34, 0x12]);
        assert_eq!(used[12..20], [3, 0, 0, 0, 77, 0, 0, 0]);
        assert_eq!(used[36..], [0xcd, 0xab]);
        assert_eq!(ring.used_index(), 0x1234);

        let bytes = [0x11, 0, 0, 0, 0, 0, 0, 0x80, 1, 2, 0, 0, 5, 0, 9, 0];
        let descriptor = Descriptor::from_bytes(bytes);
        assert_eq!(descriptor.addr, 0x8000_0000_0000_0011);
        assert_eq!(descriptor.len, 0x201);
        assert_eq!((descriptor.flags, descriptor.next), (5, 9));
    }
}
