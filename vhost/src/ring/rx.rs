//! Switch to guest.
//!
//! Buffers of one descriptor are looked up, and their lines asked for, a burst ahead; for frames that leave something to
//! offloads only a few ahead. A frame that fits the next one is written at once; any other, and any whose checksum is taken
//! on the way, first collects as many buffers as it needs, so that the header can say how many, and is then written once.
//! Whether the guest sees it at once or with the rest of its burst is decided by [`Filling::finish`].

use vswitch_packet::{Sum, VirtioNetHdr};

use super::ahead::{Ready, STEP};
use super::chain::{Direction, Spans};
use super::core::{Core, Setup};
use super::layout::Layout;
use super::queue::Sink;
use super::{ChainError, HEAD_LEN, MAX_BURST, MAX_CHAIN, RingError};
use crate::features;
use crate::memory::{Piece, Pieces, Span, copy_short};

/// Receive chains that one frame may be merged from. It also ends with the chain that makes it [`MAX_CHAIN`] descriptors.
pub const MAX_CHAINS: usize = 256;

/// Pieces that the chains of one frame may have together.
const MAX_PIECES: usize = 4_096;

/// Descriptors that a burst may cost, give or take one frame's: a guest that strings many together must not hold up those
/// who send to it, and the frames of others behind theirs.
const MAX_WALKED: usize = 4 * MAX_CHAIN as usize;

/// What the guest at the other end of a receive queue can take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxFeatures {
    /// A frame may lie in several buffers.
    pub mergeable: bool,
    /// A frame may lack its checksum.
    pub csum: bool,
    /// A frame may be a TCP over IPv4 segmentation request.
    pub tso4: bool,
    /// A frame may be a TCP over IPv6 segmentation request.
    pub tso6: bool,
    /// A segmentation request may carry CWR.
    pub ecn: bool,
}

impl RxFeatures {
    fn new(virtio: u64) -> Self {
        let has = |bit| features::has(virtio, bit);
        // Segments lack their checksums, so a guest that takes no such frame takes no segments (virtio 1.2, section 5.1.3.1).
        let csum = has(features::NET_GUEST_CSUM);
        Self {
            mergeable: has(features::NET_MRG_RXBUF),
            csum,
            tso4: csum && has(features::NET_GUEST_TSO4),
            tso6: csum && has(features::NET_GUEST_TSO6),
            ecn: csum && has(features::NET_GUEST_ECN),
        }
    }
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum RxError {
    /// Too few buffers on offer, also at a second look, or the burst has cost too many descriptors already. Nothing was
    /// used up.
    #[error("the guest offers too few receive buffers")]
    Full,
    /// The guest's buffers cannot hold a frame of this length. Nothing was used up.
    #[error("the guest's receive buffers are too small for the frame")]
    TooBig,
    /// A buffer was malformed, or too short for the header; it went back with length 0.
    #[error("the guest offers a malformed receive buffer: {0}")]
    Malformed(ChainError),
}

/// A receive queue of one layout.
pub(super) struct Receive<L> {
    pub(super) core: Core<L>,
    pub(super) accepts: RxFeatures,
    spans: Spans,
    /// At most [`MAX_CHAINS`], which is reserved.
    chains: Vec<Collected>,
}

/// A collected chain and what it holds.
#[derive(Clone, Copy)]
struct Collected {
    id: u16,
    entries: u16,
    room: usize,
}

impl<L: Layout> Receive<L> {
    pub(super) fn start(setup: Setup) -> Result<Self, RingError> {
        let accepts = RxFeatures::new(setup.features);
        Ok(Self {
            core: Core::start(setup, Direction::Receive)?,
            accepts,
            spans: Spans::new(MAX_PIECES),
            chains: Vec::with_capacity(MAX_CHAINS),
        })
    }

    /// See [`RxRing::begin`](super::RxRing::begin).
    #[inline]
    pub(super) fn begin(&mut self, by: u16, expected: usize) -> Result<Filling<'_, L>, RingError> {
        let core = &mut self.core;
        core.check()?;
        let expected = expected.clamp(1, MAX_BURST);
        let reach = core.ahead.turn(by);
        if reach == 0 {
            core.ring.prefetch_used(core.next, expected as u16);
        }
        let limit = expected + reach;
        if core.ahead.len() < limit {
            core.look(limit)?;
        }
        core.look_ahead(STEP, fetch);
        Ok(Filling {
            ring: self,
            limit: if reach == 0 { limit } else { usize::MAX },
            taken: 0,
            effort: Effort::default(),
        })
    }

    /// Collects chains until they hold `needed` bytes. On success as many of those resolved ahead as were collected are
    /// the caller's to take away; else nothing was used up, or all of them were.
    fn collect(&mut self, needed: usize, effort: &mut Effort) -> Result<(), RxError> {
        if effort.is_spent() {
            return Err(RxError::Full);
        }
        self.chains.clear();
        self.spans.truncate(0);
        let core = &mut self.core;
        let (mut at, mut room, before) = (core.next, 0, effort.walked);
        loop {
            let number = self.chains.len();
            let least = if number == 0 { core.header_len + 1 } else { 1 };
            let chain = if let Some(Ready { span, id }) = core.ahead.get(number) {
                effort.walked += 1;
                let bytes = if self.spans.push(span) {
                    Ok(span.len())
                } else {
                    Err(ChainError::TooManyPieces)
                };
                super::layout::Chain {
                    id,
                    entries: 1,
                    bytes,
                }
            } else {
                if !core.ring.sees(at) {
                    if effort.looked {
                        return Err(RxError::Full);
                    }
                    effort.looked = true;
                    // A ring that breaks here is as good as full, and says so at the next burst.
                    core.look(usize::from(u16::MAX))
                        .map_err(|_| RxError::Full)?;
                    if !core.ring.sees(at) {
                        return Err(RxError::Full);
                    }
                }
                core.walk(at, &mut effort.walked, &mut self.spans)
                    .map_err(|error| {
                        core.break_with(error);
                        RxError::Full
                    })?
            };
            let bytes = chain.bytes.and_then(|more| {
                if more < least {
                    Err(ChainError::Short)
                } else {
                    Ok(more)
                }
            });
            let (id, entries) = (chain.id, chain.entries);
            match bytes {
                Ok(more) => {
                    room += more;
                    self.chains.push(Collected {
                        id,
                        entries,
                        room: more,
                    });
                }
                Err(ChainError::TooManyPieces) if number > 0 => return Err(RxError::TooBig),
                Err(error) => {
                    // In order, or the ring could not resume: what was collected before goes back too.
                    core.ahead.skip(number + 1);
                    for chain in self.chains.drain(..) {
                        core.give_back(chain.id, chain.entries, 0);
                    }
                    core.give_back(id, entries, 0);
                    return Err(RxError::Malformed(error));
                }
            }
            if room >= needed {
                return Ok(());
            }
            let walked = effort.walked - before;
            let spent = self.chains.len() == MAX_CHAINS || walked >= usize::from(MAX_CHAIN);
            if spent || !self.accepts.mergeable {
                return Err(RxError::TooBig);
            }
            at = core.ring.advance(at, entries);
        }
    }

    /// Gives the collected chains back with the `needed` bytes that were written to them.
    #[inline]
    fn return_collected(&mut self, needed: usize) {
        self.core.ahead.skip(self.chains.len());
        let mut left = needed;
        for chain in &self.chains {
            let used = left.min(chain.room);
            left -= used;
            // As in `put`.
            self.core.give_back(chain.id, chain.entries, used as u32);
        }
    }
}

#[inline]
fn fetch(ready: &Ready) {
    ready.span.prefetch_write();
}

impl<L> std::fmt::Debug for Receive<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receive")
            .field("pair", &self.core.pair)
            .field("next", &self.core.next)
            .finish_non_exhaustive()
    }
}

/// Frames delivered together.
pub(super) struct Filling<'r, L: Layout> {
    ring: &'r mut Receive<L>,
    /// How many buffers to resolve ahead at most.
    limit: usize,
    /// Buffers used of those resolved ahead. Kept here, and so in a register, until something else has to know.
    taken: usize,
    effort: Effort,
}

/// What a burst has cost where frames did not fit the next buffer.
#[derive(Default)]
struct Effort {
    /// It was looked in vain for more buffers in this burst.
    looked: bool,
    /// Descriptors looked at.
    walked: usize,
}

impl Effort {
    #[inline]
    fn is_spent(&self) -> bool {
        self.walked >= MAX_WALKED
    }
}

impl<L: Layout> Sink for Filling<'_, L> {
    /// See [`RxBurst::put`](super::RxBurst::put).
    #[inline(never)]
    fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), RxError> {
        let core = &mut self.ring.core;
        let len = parts.iter().map(|part| part.len()).sum::<usize>() + tail.len();
        let needed = core.header_len + len;
        match core.ahead.get(self.taken) {
            Some(Ready { span, id }) if span.len() >= needed => {
                let header = with_buffers(header, 1);
                // SAFETY: the span was resolved in the memory that the ring holds and has room for all of it; `tail` is
                // mapped for its lifetime.
                unsafe { write_whole(span, header, core.header_len, parts, tail) };
                // Frames are shorter than 4 GiB by far: parts and tail come from frames.
                core.give_back_ahead(self.taken, id, needed as u32);
                self.taken += 1;
                Ok(())
            }
            _ => {
                self.pass();
                put_merged(self.ring, header, parts, tail, needed, &mut self.effort)
            }
        }
    }

    /// See [`RxBurst::put_plain`](super::RxBurst::put_plain).
    #[inline(always)]
    fn put_plain(&mut self, head: &[u8], tail: Pieces<'_>) -> Result<(), RxError> {
        let core = &mut self.ring.core;
        if self.taken.is_multiple_of(STEP) {
            core.look_ahead(self.limit.min(self.taken + MAX_BURST), fetch);
        }
        let header_len = core.header_len;
        let needed = header_len + head.len() + tail.len();
        match core.ahead.get(self.taken) {
            Some(Ready { span, id }) if span.len() >= needed && head.len() <= HEAD_LEN => {
                let to = span.as_ptr();
                // SAFETY: the span was resolved in the memory that the ring holds and has room for all of it.
                unsafe {
                    to.cast::<u64>().write_unaligned(0);
                    if header_len == VirtioNetHdr::LEN {
                        // num_buffers is 1.
                        to.add(8)
                            .cast::<u32>()
                            .write_unaligned((1u32 << 16).to_le());
                    } else {
                        to.add(8).cast::<u16>().write_unaligned(0);
                    }
                    copy_short(head.as_ptr(), to.add(header_len), head.len());
                }
                if !tail.is_empty() {
                    append(span.skip(header_len + head.len()), tail);
                }
                core.give_back_ahead(self.taken, id, needed as u32);
                self.taken += 1;
                Ok(())
            }
            _ => {
                self.pass();
                let header = VirtioNetHdr::default();
                put_merged(self.ring, &header, &[head], tail, needed, &mut self.effort)
            }
        }
    }

    fn put_summed(
        &mut self,
        header: &VirtioNetHdr,
        head: &mut [u8],
        tail: Pieces<'_>,
        sum: Sum,
        finish: impl FnOnce(&mut [u8], Sum),
    ) -> Result<(), RxError> {
        self.sum_and_put(header, head, tail, sum, finish)
    }

    /// See [`RxBurst::is_full`](super::RxBurst::is_full).
    #[inline]
    fn is_full(&mut self) -> bool {
        self.pass();
        let core = &mut self.ring.core;
        if core.ahead.len() < STEP {
            core.look_ahead(2 * STEP, fetch);
        }
        if core.ahead.len() > 0 {
            return false;
        }
        if self.effort.is_spent() {
            return true;
        }
        if core.ring.sees(core.next) {
            return false;
        }
        if !self.effort.looked {
            self.effort.looked = true;
            // A ring that turns out broken here says so at its next use.
            let _ = core.look(1);
        }
        !core.ring.sees(core.next)
    }
}

impl<L: Layout> Filling<'_, L> {
    /// Lets the ring know how far it is.
    #[inline]
    fn pass(&mut self) {
        self.ring.core.pass_ahead(self.taken);
        self.taken = 0;
    }

    /// See [`RxBurst::finish`](super::RxBurst::finish).
    #[inline]
    pub(super) fn finish(mut self) -> u16 {
        self.conclude()
    }

    /// Publishes what was written. Once more does nothing.
    #[inline]
    fn conclude(&mut self) -> u16 {
        self.pass();
        let core = &mut self.ring.core;
        let count = core.publish();
        if count > 0 && self.limit == usize::MAX {
            core.ring.prefetch_used(core.next, MAX_BURST as u16);
        }
        count
    }
}

impl<L: Layout> Drop for Filling<'_, L> {
    /// A burst that is merely dropped has been delivered all the same: its frames are in the guest's buffers.
    #[inline]
    fn drop(&mut self) {
        self.conclude();
    }
}

/// Delivers a frame that takes more than the next buffer, or a buffer of more than one piece.
#[inline(never)]
fn put_merged<L: Layout>(
    ring: &mut Receive<L>,
    header: &VirtioNetHdr,
    parts: &[&[u8]],
    tail: Pieces<'_>,
    needed: usize,
    effort: &mut Effort,
) -> Result<(), RxError> {
    ring.collect(needed, effort)?;
    // At most MAX_CHAINS.
    let header = with_buffers(header, ring.chains.len() as u16);
    let mut writer = Writer::new(ring.spans.as_slice());
    // SAFETY: the spans were resolved in the memory that the ring holds; `tail` is mapped for its lifetime.
    unsafe {
        writer.write(&header[..ring.core.header_len]);
        for part in parts {
            writer.write(part);
        }
        for piece in tail.iter() {
            writer.copy(piece);
        }
    }
    ring.return_collected(needed);
    Ok(())
}

/// Writes a tail into the rest of a buffer, as far as there is room, which there is.
#[inline(never)]
fn append(mut to: Span, tail: Pieces<'_>) {
    for piece in tail.iter() {
        // SAFETY: the span was resolved in the memory that the ring holds; a piece is mapped for its lifetime.
        to = to.skip(unsafe { to.copy_from(piece) });
    }
}

#[inline(always)]
fn with_buffers(header: &VirtioNetHdr, num_buffers: u16) -> [u8; VirtioNetHdr::LEN] {
    VirtioNetHdr {
        num_buffers,
        ..*header
    }
    .to_bytes()
}

/// Writes a frame into one buffer.
///
/// # Safety
///
/// The span is mapped and has room for all of it.
#[inline(always)]
unsafe fn write_whole(
    span: Span,
    header: [u8; VirtioNetHdr::LEN],
    header_len: usize,
    parts: &[&[u8]],
    tail: Pieces<'_>,
) {
    // Two words in registers: reading the bytes back from where they were put together one by one would have to wait.
    let [b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11] = header;
    let low = u64::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    // SAFETY: there is room, by the caller's word, and each step moves on by what it wrote.
    unsafe {
        span.as_ptr().cast::<u64>().write_unaligned(low);
        let high = span.as_ptr().add(8);
        if header_len == VirtioNetHdr::LEN {
            let word = u32::from_ne_bytes([b8, b9, b10, b11]);
            high.cast::<u32>().write_unaligned(word);
        } else {
            high.cast::<u16>()
                .write_unaligned(u16::from_ne_bytes([b8, b9]));
        }
        let mut to = span.skip(header_len);
        for part in parts {
            to = to.write_head(part);
        }
        for piece in tail.iter() {
            to = to.skip(to.copy_from(piece));
        }
    }
}

/// Writes front to back over spans that are known to have room.
struct Writer<'a> {
    spans: std::slice::Iter<'a, Span>,
    room: Option<Span>,
}

impl<'a> Writer<'a> {
    #[inline]
    fn new(spans: &'a [Span]) -> Self {
        Self {
            spans: spans.iter(),
            room: None,
        }
    }

    /// Leaves the next `count` bytes as they are.
    #[inline]
    fn skip(&mut self, mut count: usize) {
        while count > 0 {
            let Some(span) = self.room() else { return };
            self.room = Some(span.skip(count));
            count -= count.min(span.len());
        }
    }

    #[inline]
    fn room(&mut self) -> Option<Span> {
        match self.room {
            Some(span) if span.len() > 0 => Some(span),
            _ => self.spans.next().copied(),
        }
    }

    /// # Safety
    ///
    /// The spans are mapped.
    #[inline]
    unsafe fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(span) = self.room() else { return };
            // SAFETY: mapped, by the caller's word.
            let count = unsafe { span.write(bytes) };
            bytes = &bytes[count..];
            self.room = Some(span.skip(count));
        }
    }

    /// # Safety
    ///
    /// The spans are mapped.
    #[inline]
    unsafe fn copy(&mut self, piece: Piece<'_>) {
        let mut done = 0;
        while done < piece.len() {
            let Some(span) = self.room() else { return };
            // SAFETY: mapped, by the caller's word, and the piece by its lifetime.
            let count = unsafe { span.copy_from(piece.tail(done)) };
            done += count;
            self.room = Some(span.skip(count));
        }
    }

    /// # Safety
    ///
    /// The spans are mapped.
    #[inline]
    unsafe fn copy_summing(&mut self, piece: Piece<'_>, sum: &mut Sum) {
        let mut done = 0;
        while done < piece.len() {
            let Some(span) = self.room() else { return };
            // SAFETY: mapped, by the caller's word, and the piece by its lifetime.
            let count = unsafe { span.copy_summing(piece.tail(done), sum) };
            done += count;
            self.room = Some(span.skip(count));
        }
    }
}

mod summed;

#[cfg(test)]
mod consumed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod turns;
