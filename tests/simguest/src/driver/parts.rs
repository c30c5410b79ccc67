//! Where a ring lies in guest memory, word by word (virtio 1.2, 2.7.1 and 2.8.10).

use crate::frontend::RingAddresses;
use crate::memory::{Block, Desc, Memory, MemoryError, View, Window};

const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 1;
const AVAIL_RING: usize = 2;
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 1;
/// Bytes of an event suppression structure (virtio 1.2, 2.8.14).
const EVENT_BYTES: usize = 4;

/// Where a ring lies, with windows to its words. Cloning aliases: a test can break a ring behind its driver's back.
///
/// The fields are named after a split ring's parts. A packed ring has its descriptors in `desc`, the driver's event
/// suppression structure where the available ring would be, the device's in place of the used ring; `desc_words` and
/// `table_words` are how its descriptors are touched.
#[derive(Clone, Debug)]
pub struct RingParts {
    /// Number of entries, a power of two in a split ring.
    pub size: u16,
    /// Descriptor table.
    pub desc: View<Desc>,
    /// The same as words, two for each: the address; length, id and flags (from low to high) of a packed descriptor.
    pub desc_words: View<u64>,
    /// Guest-physical address of the descriptor table.
    pub desc_guest: u64,
    /// Available ring as words: flags, idx, entries, used_event.
    pub avail: View<u16>,
    /// Used ring as words: flags, idx, (entries), avail_event as the last one.
    pub used: View<u16>,
    /// Used entries: id, len, id, len, ...
    pub used_elems: View<u32>,
    used_bytes: View<u8>,
    /// Indirect tables, `table_len` descriptors for each head.
    pub tables: View<Desc>,
    /// The same as words, like `desc_words`.
    pub table_words: View<u64>,
    /// Guest-physical address of the first table.
    pub tables_guest: u64,
    /// Descriptors in each table.
    pub table_len: u16,
}

impl RingParts {
    /// Lays a split ring of `size` entries out in guest memory; sizes are rounded up to a power of two.
    pub fn new(memory: &Memory, size: u16, table_len: u16) -> Result<Self, MemoryError> {
        let size = size.clamp(1, 1 << 15).next_power_of_two();
        let n = usize::from(size);
        Self::lay_out(memory, size, table_len, (6 + 2 * n, 6 + 8 * n))
    }

    /// Lays a packed ring of `size` entries, any number up to 32,768, out in guest memory.
    pub fn packed(memory: &Memory, size: u16, table_len: u16) -> Result<Self, MemoryError> {
        let size = size.clamp(1, 1 << 15);
        Self::lay_out(memory, size, table_len, (EVENT_BYTES, EVENT_BYTES))
    }

    fn lay_out(
        memory: &Memory,
        size: u16,
        table_len: u16,
        (avail_bytes, used_bytes): (usize, usize),
    ) -> Result<Self, MemoryError> {
        let n = usize::from(size);
        let table_len = table_len.max(1);
        let in_tables = n * usize::from(table_len);
        let entries = used_bytes.saturating_sub(6);
        let desc = memory.alloc(n * Desc::SIZE, 4096)?;
        let avail = memory.alloc(avail_bytes, 4096)?;
        let used = memory.alloc(used_bytes, 4096)?;
        let tables = memory.alloc(in_tables * Desc::SIZE, 4096)?;
        Ok(Self {
            size,
            desc: typed(&desc, 0, n)?,
            desc_words: typed(&desc, 0, 2 * n)?,
            desc_guest: desc.guest,
            avail: typed(&avail, 0, avail_bytes / 2)?,
            used: typed(&used, 0, used_bytes / 2)?,
            used_elems: typed(&used, 4, entries / 4)?,
            used_bytes: used.view.slice(4, entries),
            tables: typed(&tables, 0, in_tables)?,
            table_words: typed(&tables, 0, 2 * in_tables)?,
            tables_guest: tables.guest,
            table_len,
        })
    }

    /// For SET_VRING_ADDR.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            desc: self.desc.address(),
            avail: self.avail.address(),
            used: self.used.address(),
        }
    }

    /// The driver's published index.
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        self.avail.load_acquire(AVAIL_IDX)
    }
    /// Overwrites the driver's published index.
    #[inline]
    pub fn set_avail_idx(&self, value: u16) {
        self.avail.store_release(AVAIL_IDX, value);
    }
    /// The driver's flags.
    #[inline]
    pub fn avail_flags(&self) -> u16 {
        self.avail.load(AVAIL_FLAGS)
    }
    /// Overwrites the driver's flags.
    pub fn set_avail_flags(&self, value: u16) {
        self.avail.store(AVAIL_FLAGS, value);
    }
    /// Entry of the available ring at a free-running index.
    #[inline]
    pub fn avail_entry(&self, index: u16) -> u16 {
        self.avail
            .load(AVAIL_RING + usize::from(index & (self.size - 1)))
    }
    /// Overwrites an entry of the available ring.
    #[inline]
    pub fn set_avail_entry(&self, index: u16, head: u16) {
        self.avail
            .store(AVAIL_RING + usize::from(index & (self.size - 1)), head);
    }
    /// What the driver wrote as used_event.
    #[inline]
    pub fn used_event(&self) -> u16 {
        self.avail.load(AVAIL_RING + usize::from(self.size))
    }
    /// Overwrites used_event.
    pub fn set_used_event(&self, value: u16) {
        self.avail.store(AVAIL_RING + usize::from(self.size), value);
    }
    /// The device's published index: where a ring resumes after the device died.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        self.used.load_acquire(USED_IDX)
    }
    /// Overwrites the device's index.
    #[inline]
    pub fn set_used_idx(&self, value: u16) {
        self.used.store_release(USED_IDX, value);
    }
    /// The device's flags.
    #[inline]
    pub fn used_flags(&self) -> u16 {
        self.used.load(USED_FLAGS)
    }
    /// Overwrites the device's flags.
    pub fn set_used_flags(&self, value: u16) {
        self.used.store(USED_FLAGS, value);
    }
    /// What the device wrote as avail_event.
    #[inline]
    pub fn avail_event(&self) -> u16 {
        self.used.load(2 + 4 * usize::from(self.size))
    }
    /// Overwrites avail_event.
    pub fn set_avail_event(&self, value: u16) {
        self.used.store(2 + 4 * usize::from(self.size), value);
    }
    /// Entry of the used ring: id and length, in one read.
    #[inline(always)]
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let word = self
            .used_bytes
            .load_u64(8 * usize::from(index & (self.size - 1)));
        (word as u32, (word >> 32) as u32)
    }
    /// Overwrites an entry of the used ring.
    #[inline]
    pub fn set_used_entry(&self, index: u16, id: u32, len: u32) {
        let word = u64::from(len) << 32 | u64::from(id);
        self.used_bytes
            .store_u64(8 * usize::from(index & (self.size - 1)), word);
    }

    /// The used entries as bytes, eight for each.
    #[inline(always)]
    pub(crate) fn used_window(&self) -> Window<'_, u8> {
        self.used_bytes.window()
    }

    pub(super) fn clear(&self) {
        (0..self.desc.len()).for_each(|i| self.desc.store(i, Desc::default()));
        (0..self.avail.len()).for_each(|i| self.avail.store(i, 0));
        (0..self.used.len()).for_each(|i| self.used.store(i, 0));
    }
}

fn typed<T: crate::memory::Plain>(
    block: &Block,
    offset: usize,
    len: usize,
) -> Result<View<T>, MemoryError> {
    block.view.cast(offset, len).ok_or(MemoryError::Exhausted {
        bytes: len,
        regions: 0,
    })
}
