//! Buffers of a queue: a slot for each descriptor, and a few large ones for frames that do not fit.

use crate::memory::{Block, Memory, MemoryError, View};

use super::split::Piece;

/// Where slots lie in an arena, by the descriptor they belong to.
///
/// Neighbours in the ring lie pages apart, in no order that a processor could guess, as a guest's buffers do once they
/// have been in use for a while. In order of address, the processor that reads frames would fetch the next ones ahead,
/// and take them away from the one that is writing them: that costs more than half of the speed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    lead: usize,
    stride: usize,
    mask: usize,
    step: usize,
}

impl Places {
    /// Offset of a slot in the arena.
    #[inline(always)]
    pub(super) fn at(self, head: u16) -> usize {
        (usize::from(head).wrapping_mul(self.step) & self.mask) * self.stride + self.lead
    }
}

/// One slot per head descriptor, and a stack of large slots borrowed by heads.
#[derive(Debug)]
pub(super) struct Arena {
    slots: Block,
    places: Places,
    large: Vec<Block>,
    free_large: Vec<usize>,
    borrowed: Vec<Option<usize>>,
}

impl Arena {
    /// `count` slots of `room` bytes (or more: a packed ring's size need not be a power of two), `large` slots of
    /// `large_size` bytes. Slots begin so that what follows a header of `header` bytes begins a cache line, and are an
    /// odd number of lines apart.
    pub(super) fn new(
        memory: &Memory,
        count: u16,
        room: u32,
        header: u32,
        large: usize,
        large_size: u32,
    ) -> Result<Self, MemoryError> {
        // An odd number of cache lines, or the first lines of all buffers would share a few sets of the cache.
        let lead = 64 - header;
        let stride = ((room.max(64) + lead).div_ceil(64) | 1) * 64;
        let places = usize::from(count).next_power_of_two();
        let slots = memory.alloc(places * stride as usize, 4096)?;
        let large: Vec<_> = (0..large)
            .map(|_| memory.alloc(large_size as usize, 64))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            slots,
            places: Places {
                lead: lead as usize,
                stride: stride as usize,
                mask: places - 1,
                // Odd, so that every slot has its turn.
                step: (places * 3 / 8) | 1,
            },
            free_large: (0..large.len()).collect(),
            large,
            borrowed: vec![None; usize::from(count)],
        })
    }

    /// Storage of at least `need` bytes for the chain headed by `head`: its guest address and where it lies.
    pub(super) fn take(&mut self, head: u16, need: u32) -> Option<(u64, View<u8>)> {
        if need <= self.room() {
            let start = self.slot_offset(head);
            let view = self.slots.view.slice(start, self.room() as usize);
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
            .max(self.room() as usize)
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

    /// Guest-physical address of the first byte of all slots.
    #[inline]
    pub(super) fn guest(&self) -> u64 {
        self.slots.guest
    }

    /// Guest-physical address of a slot.
    #[inline]
    pub(super) fn slot_guest(&self, head: u16) -> u64 {
        self.slots.guest + self.slot_offset(head) as u64
    }

    /// Offset of a slot in [`Arena::slots`].
    #[inline]
    pub(super) fn slot_offset(&self, head: u16) -> usize {
        self.places.at(head)
    }

    /// Where slots lie.
    #[inline]
    pub(super) fn places(&self) -> Places {
        self.places
    }

    /// Bytes of a slot that can be used.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        (self.places.stride - self.places.lead) as u32
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Layout;

    #[test]
    fn every_descriptor_has_a_slot_of_its_own_and_frames_begin_a_line() {
        let memory = Memory::new(&Layout::single(8 << 20)).unwrap();
        for (count, room, header) in [(1, 64, 12), (2, 100, 10), (256, 2048, 12), (1000, 2048, 10)]
        {
            let arena = Arena::new(&memory, count, room, header, 0, 0).unwrap();
            let mut places: Vec<_> = (0..count).map(|head| arena.slot_offset(head)).collect();
            let line = |at: &usize| (at + header as usize).is_multiple_of(64);
            assert!(places.iter().all(line) && arena.room() >= room);
            let far = |pair: &[usize]| pair[0].abs_diff(pair[1]) > 4096;
            assert!(count < 256 || places.windows(2).all(far));
            places.sort_unstable();
            assert!(
                places
                    .windows(2)
                    .all(|pair| pair[1] - pair[0] >= arena.room() as usize)
            );
            assert!(
                places
                    .iter()
                    .all(|at| at + arena.room() as usize <= arena.slots().len())
            );
        }
    }
}
