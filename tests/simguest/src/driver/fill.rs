//! Buffers of a queue: a slot for each descriptor, and a few large ones for frames that do not fit.

use crate::memory::{Block, Memory, MemoryError, View};

use super::split::Piece;

/// One slot per head descriptor, and a stack of large slots borrowed by heads.
#[derive(Debug)]
pub(super) struct Arena {
    slots: Block,
    stride: u32,
    large: Vec<Block>,
    free_large: Vec<usize>,
    borrowed: Vec<Option<usize>>,
}

impl Arena {
    /// `count` slots of `stride` bytes (rounded up to an odd number of cache lines), `large` slots of `large_size` bytes.
    pub(super) fn new(
        memory: &Memory,
        count: u16,
        stride: u32,
        large: usize,
        large_size: u32,
    ) -> Result<Self, MemoryError> {
        // An odd number of cache lines, or the first lines of all buffers would share a few sets of the cache.
        let stride = (stride.max(64).div_ceil(64) | 1) * 64;
        let slots = memory.alloc(usize::from(count) * stride as usize, 4096)?;
        let large: Vec<_> = (0..large)
            .map(|_| memory.alloc(large_size as usize, 64))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            slots,
            stride,
            free_large: (0..large.len()).collect(),
            large,
            borrowed: vec![None; usize::from(count)],
        })
    }

    /// Storage of at least `need` bytes for the chain headed by `head`: its guest address and where it lies.
    pub(super) fn take(&mut self, head: u16, need: u32) -> Option<(u64, View<u8>)> {
        if need <= self.stride {
            let start = usize::from(head) * self.stride as usize;
            let view = self.slots.view.slice(start, self.stride as usize);
            return Some((self.slots.guest + start as u64, view));
        }
        let at = self.free_large.pop()?;
        if (self.large[at].view.len() as u64) < u64::from(need) {
            self.free_large.push(at);
            return None;
        }
        self.borrowed[usize::from(head)] = Some(at);
        Some((self.large[at].guest, self.large[at].view.clone()))
    }

    /// Most bytes a chain can hold.
    pub(super) fn capacity(&self) -> usize {
        self.large
            .iter()
            .map(|b| b.view.len())
            .max()
            .unwrap_or(0)
            .max(self.stride as usize)
    }

    /// The chain headed by `head` came back.
    pub(super) fn give_back(&mut self, head: u16) {
        if let Some(at) = self.borrowed[usize::from(head)].take() {
            self.free_large.push(at);
        }
    }

    /// Whether any large slot is out.
    #[inline]
    pub(super) fn any_borrowed(&self) -> bool {
        self.free_large.len() != self.large.len()
    }

    /// All slots, one after the other.
    #[inline]
    pub(super) fn slots(&self) -> &View<u8> {
        &self.slots.view
    }

    /// Guest-physical address of a slot.
    #[inline]
    pub(super) fn slot_guest(&self, head: u16) -> u64 {
        self.slots.guest + u64::from(head) * u64::from(self.stride)
    }

    /// Offset of a slot in [`Arena::slots`].
    #[inline]
    pub(super) fn slot_offset(&self, head: u16) -> usize {
        usize::from(head) * self.stride as usize
    }

    /// Bytes of a slot.
    pub(super) fn stride(&self) -> u32 {
        self.stride
    }

    /// Forgets what is borrowed.
    pub(super) fn reset(&mut self) {
        self.borrowed.fill(None);
        self.free_large = (0..self.large.len()).collect();
    }
}

/// Writes `bytes` (given in parts) into pieces that lie in `storage`, which starts at guest address `base`.
pub(super) fn scatter(storage: &View<u8>, base: u64, pieces: &[Piece], parts: &[&[u8]]) {
    let mut pieces = pieces.iter().copied();
    let mut room = Piece { addr: base, len: 0 };
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            while room.len == 0 {
                match pieces.next() {
                    Some(piece) => room = piece,
                    None => return,
                }
            }
            let count = rest.len().min(room.len as usize);
            storage.copy_in((room.addr - base) as usize, &rest[..count]);
            room = Piece {
                addr: room.addr + count as u64,
                len: room.len - count as u32,
            };
            rest = &rest[count..];
        }
    }
}
