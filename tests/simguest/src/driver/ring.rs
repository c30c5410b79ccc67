//! A ring of either layout, as the queues see it.

use crate::features::virtio;
use crate::memory::{Memory, MemoryError};

use super::DeviceFault;
use super::packed::Packed;
use super::parts::RingParts;
use super::split::{Piece, Split, Used};

/// One ring of the layout negotiated. Whatever runs per frame decides between the two once per burst.
#[derive(Debug)]
pub enum Ring {
    /// Descriptor table, available ring, used ring.
    Split(Split),
    /// One ring of descriptors that goes both ways.
    Packed(Packed),
}

/// How far [`Ring::take_run`] goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Buffers to be taken at most.
    pub(super) count: u16,
    /// Buffers that [`Ring::pending`] counted.
    pub(super) known: u16,
    /// How many of these are fetched before the one at hand.
    pub(super) ahead: u16,
}

impl Span {
    /// Returns how many `each` said yes to.
    #[inline(always)]
    fn look(
        self,
        fetched: &mut u16,
        soon: impl Fn(u16),
        next: impl Fn(u16) -> Option<Used>,
        mut each: impl FnMut(Used) -> bool,
    ) -> u16 {
        let (mut run, mut told) = (0, *fetched);
        while run < self.count {
            while told < self.known && told <= run + self.ahead {
                soon(told);
                told += 1;
            }
            match next(run) {
                Some(used) if each(used) => run += 1,
                _ => break,
            }
        }
        *fetched = told;
        run
    }
}

macro_rules! either {
    ($self:ident, $ring:ident => $body:expr) => {
        match $self {
            Ring::Split($ring) => $body,
            Ring::Packed($ring) => $body,
        }
    };
}

impl Ring {
    /// Lays a ring out in guest memory: packed if that was negotiated.
    pub fn new(
        memory: &Memory,
        size: u16,
        table_len: u16,
        features: u64,
    ) -> Result<Self, MemoryError> {
        let has = |feature: u64| features & feature != 0;
        let event_idx = has(virtio::EVENT_IDX);
        if has(virtio::RING_PACKED) {
            let parts = RingParts::packed(memory, size, table_len)?;
            let in_order = has(virtio::IN_ORDER);
            return Ok(Self::Packed(Packed::new(parts, event_idx, in_order)));
        }
        let parts = RingParts::new(memory, size, table_len)?;
        Ok(Self::Split(Split::new(parts, event_idx)))
    }

    /// The ring, if it is a packed one.
    pub fn as_packed(&self) -> Option<&Packed> {
        match self {
            Self::Split(_) => None,
            Self::Packed(ring) => Some(ring),
        }
    }

    /// Everything back to the state after a device reset, shared memory included.
    pub fn reset(&mut self) {
        either!(self, ring => ring.reset());
    }
    /// Where the ring lies.
    pub fn parts(&self) -> &RingParts {
        either!(self, ring => ring.parts())
    }
    /// Entries.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }
    /// Free descriptors.
    #[inline]
    pub fn free(&self) -> u16 {
        either!(self, ring => ring.free())
    }
    /// Chains the device has (or will have with the next publish).
    #[inline]
    pub fn chains(&self) -> u16 {
        either!(self, ring => ring.chains())
    }
    /// What names the next chain when it comes back: its head descriptor in a split ring, its buffer id in a packed one.
    #[inline]
    #[must_use]
    pub fn next_head(&self) -> Option<u16> {
        either!(self, ring => ring.next_head())
    }
    /// Adds a chain of one descriptor. None if the ring is full.
    #[inline]
    pub fn add_one(&mut self, piece: Piece, writable: bool) -> Option<u16> {
        either!(self, ring => ring.add_one(piece, writable))
    }
    /// Adds a chain; None if too few descriptors are free.
    pub fn add(&mut self, pieces: &[Piece], writable: bool) -> Option<u16> {
        either!(self, ring => ring.add(pieces, writable))
    }
    /// Adds a chain in an indirect table, taking one descriptor; None if the ring is full or the table too short.
    pub fn add_indirect(&mut self, pieces: &[Piece], writable: bool) -> Option<u16> {
        either!(self, ring => ring.add_indirect(pieces, writable))
    }
    /// Makes everything added so far visible to the device. Returns whether there was anything.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }
    /// Whether the device wants a kick for what was published since the last time this was asked.
    #[inline]
    pub fn wants_kick(&mut self) -> bool {
        either!(self, ring => ring.wants_kick())
    }
    /// Buffers that came back and were not taken yet, at least `wanted` of them if so many are there.
    #[inline]
    pub fn pending(&mut self, wanted: u16) -> Result<u16, DeviceFault> {
        either!(self, ring => ring.pending(wanted))
    }
    /// Looks at the buffer `ahead` of the next one, which [`Ring::pending`] must have counted.
    pub fn peek(&mut self, ahead: u16) -> Result<Used, DeviceFault> {
        either!(self, ring => ring.peek(ahead))
    }
    /// Takes the next buffer that came back and frees its descriptors.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>, DeviceFault> {
        either!(self, ring => ring.pop())
    }
    /// Asks for an interrupt after `ahead` more buffers; returns true if more than that came back meanwhile, so that
    /// sleeping would be wrong.
    pub fn arm(&mut self, ahead: u16) -> Result<bool, DeviceFault> {
        either!(self, ring => ring.arm(ahead))
    }
    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        either!(self, ring => ring.disarm());
    }

    // --- the short ways of bursts ------------------------------------------------------------------------------

    /// The buffer `ahead` if it can be told cheaply; else [`Ring::peek`] tells.
    #[inline]
    pub(super) fn expected(&self, ahead: u16) -> Option<Used> {
        match self {
            Self::Split(ring) => ring.expected(ahead),
            Self::Packed(_) => None,
        }
    }

    /// How many of the next `count` buffers may be taken with [`Ring::advance`], nobody asking which they are.
    #[inline]
    pub(super) fn expected_run(&self, count: u16) -> u16 {
        match self {
            Self::Split(ring) => ring.expected_run(count),
            // They were validated when they were counted.
            Self::Packed(_) => count,
        }
    }

    /// Takes `count` buffers that were looked at.
    #[inline]
    pub(super) fn advance(&mut self, count: u16) {
        either!(self, ring => ring.advance(count));
    }

    /// Adds `count` chains of one descriptor each for the device to read, which `fill` prepares. There must be room.
    #[inline(always)]
    pub(super) fn add_run(&mut self, count: u16, fill: impl FnMut(u16) -> Piece) {
        either!(self, ring => ring.add_run(count, fill));
    }

    /// Whether every chain so far was one plain descriptor and the ring's short ways are open.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Self::Split(ring) => ring.in_lockstep(),
            Self::Packed(ring) => ring.is_plain(),
        }
    }

    /// The buffer `ahead`, which [`Ring::pending`] must have counted, if the ring stays plain: worth fetching early.
    #[inline(always)]
    pub(super) fn likely(&self, ahead: u16) -> u16 {
        match self {
            Self::Split(ring) => ring.likely(ahead),
            Self::Packed(ring) => ring.got(ahead).map_or(0, |used| used.id),
        }
    }

    /// On a plain ring whose buffers have `room` bytes: shows the buffers that came back to `each`, until it says no, and
    /// takes those it said yes to. `soon` is told of each in advance, for the cache; `fetched` of those not taken yet it
    /// has been told of before, and afterwards.
    #[inline(always)]
    pub(super) fn take_run(
        &mut self,
        span: Span,
        fetched: &mut u16,
        room: u32,
        soon: impl Fn(u16),
        each: impl FnMut(Used) -> bool,
    ) -> u16 {
        let run = match self {
            Self::Split(ring) => {
                let entries = ring.parts().used_window();
                let likely = |ahead| soon(ring.likely(ahead));
                span.look(
                    fetched,
                    likely,
                    |ahead| ring.expected_in(entries, ahead, room),
                    each,
                )
            }
            Self::Packed(ring) => {
                let likely = |ahead| {
                    if let Some(used) = ring.got(ahead) {
                        soon(used.id);
                    }
                };
                span.look(fetched, likely, |ahead| ring.got(ahead), each)
            }
        };
        *fetched = fetched.saturating_sub(run);
        self.advance(run);
        run
    }

    /// On a plain ring: makes the `count` buffers just taken available once more as they are. Only right while no others
    /// are free, or these would overtake them; false if that is so.
    #[inline(always)]
    pub(super) fn recycle(&mut self, count: u16) -> bool {
        either!(self, ring => ring.recycle(count))
    }
}
