//! From a descriptor's index to the pieces of its buffer, whatever the guest wrote.
//!
//! Each descriptor is loaded once, as a whole, and only the copy is looked at. Every index is checked against the table it
//! indexes, every walk ends after as many steps as its table has entries and at [`MAX_CHAIN`], and every address is looked
//! up with its length.

use super::split::{Descriptor, F_INDIRECT, F_NEXT, F_WRITE, SplitRing, Table};
use super::{ChainError, MAX_CHAIN, MAX_FRAME};
use vswitch_packet::VirtioNetHdr;

use crate::memory::{GuestAddr, GuestMemory, Span, Unmapped, Window};

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
    fn push(&mut self, span: Span) -> bool {
        let room = self.list.len() < self.capacity;
        if room {
            self.list.push(span);
        }
        room
    }
}

/// What a walk needs, borrowed from its ring.
pub(super) struct Walker<'a> {
    pub(super) ring: &'a SplitRing,
    pub(super) memory: &'a GuestMemory,
    pub(super) window: &'a mut Window,
    pub(super) direction: Direction,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub(super) indirect: bool,
    /// Descriptors loaded so far.
    pub(super) walked: usize,
}

impl Walker<'_> {
    /// Appends the pieces of the chain that begins at `head`, which is below the ring's size, and says how many bytes they
    /// are. After an error, what was appended is to be cut off again.
    #[inline]
    pub(super) fn walk(&mut self, head: u16, spans: &mut Spans) -> Result<usize, ChainError> {
        let table = self.ring.descriptors();
        let (mut index, mut total) = (head, 0);
        for _ in 0..table.entries().min(MAX_CHAIN) {
            // SAFETY: `head` is below the size by contract, `next` is checked below; the ring's memory is held with it.
            let descriptor = unsafe { table.load(index) };
            self.walked += 1;
            if descriptor.flags & F_INDIRECT != 0 {
                if !self.indirect || descriptor.flags & F_NEXT != 0 {
                    return Err(ChainError::IndirectMisplaced);
                }
                return self.walk_indirect(descriptor, spans, total);
            }
            self.add(descriptor, spans, &mut total)?;
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

    #[inline]
    fn walk_indirect(
        &mut self,
        descriptor: Descriptor,
        spans: &mut Spans,
        mut total: usize,
    ) -> Result<usize, ChainError> {
        let bytes = descriptor.len as usize;
        let entries = bytes / Table::BYTES_PER_ENTRY;
        if !bytes.is_multiple_of(Table::BYTES_PER_ENTRY)
            || entries == 0
            || entries > MAX_CHAIN.into()
        {
            return Err(ChainError::IndirectLength);
        }
        let entries = entries as u16;
        let addr = GuestAddr(descriptor.addr);
        let table = self
            .memory
            .resolve(self.window, addr, bytes)
            .and_then(|span| Table::new(span, entries));
        let mut index = 0;
        for _ in 0..entries {
            let descriptor = match &table {
                // SAFETY: the index is 0 or was checked below; the memory is held with the ring.
                Some(table) => unsafe { table.load(index) },
                None => self.load_scattered(addr, index)?,
            };
            self.walked += 1;
            if descriptor.flags & F_INDIRECT != 0 {
                return Err(ChainError::IndirectMisplaced);
            }
            self.add(descriptor, spans, &mut total)?;
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

    /// An entry of an indirect table that is misaligned or straddles regions, byte by byte.
    #[cold]
    fn load_scattered(&self, table: GuestAddr, index: u16) -> Result<Descriptor, ChainError> {
        let mut bytes = [0; Table::BYTES_PER_ENTRY];
        let offset = u64::from(index) * bytes.len() as u64;
        let addr = table.0.checked_add(offset).ok_or(ChainError::Unmapped)?;
        let mut done = 0;
        self.memory
            .resolve_each::<ChainError>(GuestAddr(addr), bytes.len(), |span| {
                for at in 0..span.len() {
                    // SAFETY: within the span; the memory is held with the ring. Volatile, so once.
                    bytes[done] = unsafe { span.as_ptr().add(at).read_volatile() };
                    done += 1;
                }
                Ok(())
            })?;
        Ok(Descriptor::from_bytes(bytes))
    }

    #[inline]
    fn add(
        &mut self,
        descriptor: Descriptor,
        spans: &mut Spans,
        total: &mut usize,
    ) -> Result<(), ChainError> {
        match (self.direction, descriptor.flags & F_WRITE != 0) {
            (Direction::Transmit, true) => return Err(ChainError::Writable),
            (Direction::Receive, false) => return Err(ChainError::ReadOnly),
            _ => {}
        }
        let len = descriptor.len as usize;
        if len == 0 {
            return Ok(());
        }
        *total += len;
        if self.direction == Direction::Transmit && *total > MAX_FRAME + VirtioNetHdr::LEN {
            return Err(ChainError::TooLong);
        }
        let addr = GuestAddr(descriptor.addr);
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
}
