//! What the engine asks of a ring's layout: [split](super::split) or [packed](super::packed).
//!
//! The engine ([`core`](super::core), [`tx`](super::tx), [`rx`](super::rx)) thinks in chains and [`Position`]s. A layout
//! knows where those are in memory: how the guest offers a chain, how it is given back, and how the two sides ask for, or
//! decline, notifications. It loads every field of the guest's exactly once each time it is asked, into a value of ours,
//! and judges only that value.
//!
//! Buffers are given back in the order in which they were taken, so one position serves both directions of the traffic.

use vswitch_coalesce::GuestAsks;

use super::chain::{Spans, Walk};
use super::split::PartError;
use super::{ChainError, RingError};
use crate::memory::{GuestMemory, Span, UserAddr};

/// Where the front-end says a ring's parts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RingAddresses {
    /// The descriptor table, or the packed ring itself.
    pub(crate) descriptors: UserAddr,
    /// The available ring, or the driver's event suppression.
    pub(crate) available: UserAddr,
    /// The used ring, or the device's event suppression.
    pub(crate) used: UserAddr,
}

/// A place in a ring, as its layout counts: a free-running index if split; if packed the index of a descriptor, and in bit
/// 15 the wrap counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position(pub(crate) u16);

/// Where a ring stands, as front-ends say it: an index if split; if packed two [`Position`]s, the lower one where buffers
/// are taken, the upper one where they are given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Base {
    /// We left it there ourselves.
    Known(u32),
    /// So the front-end says.
    Claimed(u32),
}

impl Base {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Known(bits) | Self::Claimed(bits) => bits,
        }
    }
}

/// One descriptor, copied out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    /// Guest address.
    pub(crate) addr: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// The device may write to it, and not read it.
    pub(crate) writable: bool,
}

/// A chain that was walked to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// What goes into the used entry.
    pub(crate) id: u16,
    /// By how much the position moves on.
    pub(crate) entries: u16,
    /// Bytes of its buffers, or what is wrong with it.
    pub(crate) bytes: Result<usize, ChainError>,
}

/// See the module's page.
pub(crate) trait Layout: Sized {
    /// Finds the parts in guest memory. `size` was checked by the session.
    ///
    /// # Safety
    ///
    /// `memory` outlives the ring.
    unsafe fn bind(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: u16,
        event_idx: bool,
    ) -> Result<Self, PartError>;

    /// Descriptors.
    fn size(&self) -> u16;

    /// Where the ring stands, told where it is said to, and whether indirect descriptors were negotiated.
    fn start(&mut self, base: Base, indirect: bool) -> Result<Position, RingError>;

    /// The ring stands at `at`, as it did before it was bound anew.
    fn resume(&mut self, at: Position);

    /// What a front-end is told if the ring stands at `at`.
    fn base(&self, at: Position) -> u32;

    /// `from`, moved on by so many entries.
    fn advance(&self, from: Position, entries: u16) -> Position;

    /// Learns what is on offer, if that takes a look of its own; the ring stands at `at`. Worth while if fewer than
    /// `enough` chains are known to be.
    fn look(&mut self, at: Position, enough: u16) -> Result<(), RingError>;

    /// Whether a chain is on offer at `at`, as far as is known without a look.
    fn sees(&self, at: Position) -> bool;

    /// Whether a chain is on offer at `at` now.
    fn has_work(&self, at: Position) -> bool;

    /// The chain on offer at `at` if it is a single, direct descriptor: what goes into its used entry, and the descriptor.
    /// `None` if it is anything else, or malformed: [`walk`](Self::walk) knows.
    fn single(&self, at: Position) -> Option<(u16, Buffer)>;

    /// Walks the chain on offer at `at` and appends its pieces to `spans`; after an error, what was appended is to be cut
    /// off again.
    fn walk(
        &self,
        at: Position,
        walk: &mut Walk<'_>,
        spans: &mut Spans,
    ) -> Result<Chain, RingError>;

    /// Writes the used entry of the chain at `at`. Nobody looks at it before [`publish`](Self::publish).
    fn give_back(&mut self, at: Position, id: u16, entries: u16, len: u32);

    /// Asks the cache for the lines of the next used entries from `at` on, to be written.
    fn prefetch_used(&self, at: Position, count: u16);

    /// Shows the guest everything given back; the ring stands at `at` now.
    fn publish(&mut self, at: Position);

    /// Whether the guest wants a call. `at` is where the ring stands, `published` a free-running count of entries
    /// published until there, in which an event is expressed.
    fn asks(&self, at: Position, published: u16) -> GuestAsks;

    /// Entries on offer from `at` on, for those who need to know only whether there are `enough`: a guess beyond that.
    fn room(&self, at: Position, enough: u16) -> u16;

    /// Entries given back until `at` that the guest has not offered anew, if the layout can tell: at most so many has it
    /// yet to look at.
    fn not_offered_anew(&self, _at: Position) -> Option<u16> {
        None
    }

    /// Asks for a kick at the next chain, which will be at `at`.
    fn ask_for_kicks(&self, at: Position);

    /// Declines kicks; the ring stands at `at`.
    fn decline_kicks(&self, at: Position);
}

/// Finds a part of a ring, which has a length and an alignment, in guest memory.
pub(super) fn find_part(
    memory: &GuestMemory,
    part: &'static str,
    addr: UserAddr,
    (len, align): (usize, u64),
) -> Result<Span, PartError> {
    let span = memory
        .resolve_user(addr, len)
        .ok_or(PartError::Unmapped { part, addr: addr.0 })?;
    // What counts is where it is mapped: a front-end's region may begin anywhere.
    if !addr.0.is_multiple_of(align) || !(span.as_ptr().addr() as u64).is_multiple_of(align) {
        return Err(PartError::Misaligned { part, addr: addr.0 });
    }
    Ok(span)
}
