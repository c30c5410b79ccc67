//! From descriptors to the pieces of a buffer, whatever the guest wrote: what every layout needs for it.
//!
//! Each descriptor is loaded once, as a whole, and only the copy is looked at. Every index is checked against the table it
//! indexes, every walk ends after as many steps as its table has entries and at [`MAX_CHAIN`](super::MAX_CHAIN), and every
//! address is looked up with its length.

use vswitch_packet::VirtioNetHdr;

use super::layout::Buffer;
use super::{ChainError, MAX_CHAIN, MAX_FRAME};
use crate::memory::{GuestAddr, GuestMemory, Span, Unmapped, Window};

/// Bytes of a descriptor, in either layout.
pub(super) const DESCRIPTOR: usize = 16;

impl From<Unmapped> for ChainError {
    fn from(Unmapped: Unmapped) -> Self {
        Self::Unmapped
    }
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// The guest wrote, we read.
    Transmit,
    /// We write.
    Receive,
}

/// A preallocated list of spans, of a fixed capacity.
pub(super) struct Spans {
    list: Vec<Span>,
    capacity: usize,
}

impl Spans {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            list: Vec::with_capacity(capacity),
            capacity,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    #[inline]
    pub(super) fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[Span] {
        &self.list
    }

    #[inline]
    pub(super) fn as_mut_slice(&mut self) -> &mut [Span] {
        &mut self.list
    }

    /// Never grows: false if full.
    #[inline]
    pub(super) fn push(&mut self, span: Span) -> bool {
        let room = self.list.len() < self.capacity;
        if room {
            self.list.push(span);
        }
        room
    }
}

/// Words of a descriptor in a table in one contiguous range: a ring's own, or an indirect one.
#[derive(Clone, Copy)]
pub(super) struct Table {
    span: Span,
    entries: u16,
}

impl Table {
    /// `None` if the range is too short, or not aligned for word loads.
    #[inline]
    pub(super) fn new(span: Span, entries: u16) -> Option<Self> {
        let fits = span.len() >= usize::from(entries) * DESCRIPTOR;
        (fits && span.as_ptr().addr().is_multiple_of(8)).then_some(Self { span, entries })
    }

    #[inline]
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Loads a descriptor, each of its two words once.
    ///
    /// # Safety
    ///
    /// `index` is below [`entries`](Self::entries), and the table is still mapped.
    #[inline]
    pub(super) unsafe fn load(&self, index: u16) -> [u64; 2] {
        debug_assert!(index < self.entries);
        // SAFETY: the index is within the table by the caller's word, the table within the span by `new`, and aligned.
        unsafe {
            let at = self.span.as_ptr().cast::<u64>().add(usize::from(index) * 2);
            [at.read_volatile(), at.add(1).read_volatile()].map(u64::from_le)
        }
    }
}

/// A table that a descriptor refers to.
pub(super) struct IndirectTable {
    addr: GuestAddr,
    entries: u16,
    /// If it is aligned and in one piece, as every sane one is.
    table: Option<Table>,
}

impl IndirectTable {
    #[inline]
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Loads a descriptor, each byte of it once. `index` is below [`entries`](Self::entries).
    #[inline]
    pub(super) fn load(&self, walk: &mut Walk<'_>, index: u16) -> Result<[u64; 2], ChainError> {
        walk.walked += 1;
        match &self.table {
            // SAFETY: the caller keeps the index in range; the memory is held with the ring.
            Some(table) if index < self.entries => Ok(unsafe { table.load(index) }),
            _ => self.load_scattered(walk, index),
        }
    }

    /// An entry of a table that is misaligned or straddles regions, byte by byte.
    #[cold]
    fn load_scattered(&self, walk: &Walk<'_>, index: u16) -> Result<[u64; 2], ChainError> {
        let mut bytes = [0; DESCRIPTOR];
        let offset = u64::from(index) * DESCRIPTOR as u64;
        let addr = self
            .addr
            .0
            .checked_add(offset)
            .ok_or(ChainError::Unmapped)?;
        let mut done = 0;
        walk.memory
            .resolve_each::<ChainError>(GuestAddr(addr), bytes.len(), |span| {
                for at in 0..span.len() {
                    // SAFETY: within the span; the memory is held with the ring. Volatile, so once.
                    bytes[done] = unsafe { span.as_ptr().add(at).read_volatile() };
                    done += 1;
                }
                Ok(())
            })?;
        let both = u128::from_le_bytes(bytes);
        Ok([both as u64, (both >> 64) as u64])
    }
}

/// What a walk needs, borrowed from its ring.
pub(super) struct Walk<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) window: &'a mut Window,
    pub(super) direction: Direction,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub(super) indirect: bool,
    /// Descriptors loaded so far.
    pub(super) walked: usize,
}

impl Walk<'_> {
    /// The range as one piece, if it goes the right way, is not empty and lies within one region.
    #[inline]
    pub(super) fn simple(&mut self, buffer: Buffer) -> Option<Span> {
        let right = (self.direction == Direction::Receive) == buffer.writable;
        let len = buffer.len as usize;
        if !right || len == 0 || len > MAX_FRAME && self.direction == Direction::Transmit {
            return None;
        }
        self.memory
            .resolve(self.window, GuestAddr(buffer.addr), len)
    }

    /// Appends a descriptor's pieces and adds its bytes to `total`.
    #[inline]
    pub(super) fn add(
        &mut self,
        buffer: Buffer,
        spans: &mut Spans,
        total: &mut usize,
    ) -> Result<(), ChainError> {
        match (self.direction, buffer.writable) {
            (Direction::Transmit, true) => return Err(ChainError::Writable),
            (Direction::Receive, false) => return Err(ChainError::ReadOnly),
            _ => {}
        }
        let len = buffer.len as usize;
        if len == 0 {
            return Ok(());
        }
        *total += len;
        if self.direction == Direction::Transmit && *total > MAX_FRAME + VirtioNetHdr::LEN {
            return Err(ChainError::TooLong);
        }
        let addr = GuestAddr(buffer.addr);
        if let Some(span) = self.memory.resolve(self.window, addr, len) {
            return spans
                .push(span)
                .then_some(())
                .ok_or(ChainError::TooManyPieces);
        }
        self.memory.resolve_each(addr, len, |span| {
            spans
                .push(span)
                .then_some(())
                .ok_or(ChainError::TooManyPieces)
        })
    }

    /// The table of `bytes` bytes at `addr`, if it may be one.
    #[inline]
    pub(super) fn table(&mut self, addr: u64, bytes: u32) -> Result<IndirectTable, ChainError> {
        let bytes = bytes as usize;
        let entries = bytes / DESCRIPTOR;
        if !bytes.is_multiple_of(DESCRIPTOR) || entries == 0 || entries > MAX_CHAIN.into() {
            return Err(ChainError::IndirectLength);
        }
        let (addr, entries) = (GuestAddr(addr), entries as u16);
        let table = self
            .memory
            .resolve(self.window, addr, bytes)
            .and_then(|span| Table::new(span, entries));
        Ok(IndirectTable {
            addr,
            entries,
            table,
        })
    }
}
