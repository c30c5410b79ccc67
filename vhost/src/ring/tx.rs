//! Guest to switch.
//!
//! Of each frame header and head are copied out. What is decided and what is sent is that copy; the rest of a frame, its
//! tail, is copied once, from here to where it goes. Chains of one descriptor were looked up a burst before, and the cache
//! asked for their first lines; a few more are, after every few frames. All others are walked as they come.

use std::marker::PhantomData;

use arrayvec::ArrayVec;
use vswitch_packet::VirtioNetHdr;

use super::ahead::{Ready, STEP};
use super::chain::{Direction, Spans};
use super::core::{Core, Setup};
use super::layout::Layout;
use super::lent::{Lending, Lent};
use super::packed::PackedRing;
use super::split::SplitRing;
use super::{ChainError, HEAD_LEN, MAX_BURST, MAX_CHAIN, MAX_FRAME, RingError};
use crate::memory::{Piece, Pieces, Span, copy_short};

/// Pieces that all frames of a burst may have together, and so also one alone.
pub(super) const MAX_PIECES: usize = 4_096;

/// So much of a head is enough if the frame asks for no offload: Ethernet, tags, the longest IPv4 header or IPv6 with an
/// extension, and ports.
pub const PLAIN_HEAD_LEN: usize = 96;

/// A worker's room for one burst: the snapshots of header and head, and the pieces of the tails. Nothing is allocated
/// after it is made.
pub struct TxScratch {
    pub(super) spans: Spans,
    pub(super) frames: ArrayVec<Frame, MAX_BURST>,
    pub(super) snapshots: Box<[Snapshot; MAX_BURST]>,
    header_len: usize,
}

/// Header and head of a frame. What is read of either soon was written by as few, wide, aligned stores as can be: a load
/// that needs parts of two stores waits until both have reached the cache, and all older ones before them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Snapshot {
    pub(super) head: [u8; HEAD_LEN],
    /// 12 bytes, or 10 and two of zero.
    pub(super) header: [u8; VirtioNetHdr::LEN],
}

/// A number that lies anywhere.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Word<T>(T);

impl Snapshot {
    pub(super) const EMPTY: Self = Self {
        header: [0; VirtioNetHdr::LEN],
        head: [0; HEAD_LEN],
    };
}

/// A taken frame: where its tail is, and how much of it is in the snapshot.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    /// If the chain was one piece: what is behind the head.
    pub(super) tail: Span,
    /// Bytes of the frame.
    pub(super) len: u32,
    pub(super) head_len: u16,
    /// Its spans in the list, at most [`MAX_PIECES`], if the chain was of any other kind.
    pub(super) first: u16,
    pub(super) end: u16,
    pub(super) state: State,
}

/// What became of its chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// One piece.
    Simple,
    /// A run of the list of spans.
    Gathered,
    /// Malformed.
    Bad(ChainError),
}

impl TxScratch {
    /// Room for one burst, about 75 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            spans: Spans::new(MAX_PIECES),
            frames: ArrayVec::new(),
            snapshots: Box::new([Snapshot::EMPTY; MAX_BURST]),
            header_len: VirtioNetHdr::LEN,
        }
    }

    #[inline]
    fn clear(&mut self, header_len: usize) {
        self.frames.clear();
        self.spans.truncate(0);
        self.header_len = header_len;
    }

    /// Adds a chain of one piece: copies header and head out, and leaves the tail.
    ///
    /// # Safety
    ///
    /// The span is mapped.
    #[inline(always)]
    unsafe fn take_simple(&mut self, span: Span) {
        let (at, header_len) = (self.frames.len(), self.header_len);
        let Some(snapshot) = self.snapshots.get_mut(at) else {
            return;
        };
        let mut frame = Frame::new(span, State::Simple);
        match frame_len(span.len(), header_len) {
            Ok(len) => {
                frame.len = len as u32;
                // SAFETY: by the caller's word; the length is the span's.
                frame.head_len =
                    unsafe { snapshot.take_simple(&mut frame.tail, header_len, len) } as u16;
            }
            Err(error) => frame.state = State::Bad(error),
        }
        self.frames.push(frame);
    }

    /// Adds a chain of any kind, whose spans are those from `first` on.
    fn push(&mut self, first: usize, bytes: Result<usize, ChainError>) {
        let state = bytes.map_or_else(State::Bad, |_| State::Gathered);
        self.frames.push(Frame {
            len: bytes.unwrap_or(0) as u32,
            first: first as u16,
            end: self.spans.len() as u16,
            ..Frame::new(Span::EMPTY, state)
        });
    }

    /// Copies header and head out of the frames that [`push`](Self::push) added, from number `from` on.
    ///
    /// # Safety
    ///
    /// The frames' spans are mapped.
    unsafe fn gather(&mut self, from: usize) {
        let header_len = self.header_len;
        let spans = self.spans.as_mut_slice();
        let frames = self.frames.iter_mut().zip(self.snapshots.iter_mut());
        for (frame, snapshot) in frames.skip(from) {
            if frame.state != State::Gathered {
                continue;
            }
            match frame_len(frame.len as usize, header_len) {
                Ok(len) => {
                    frame.len = len as u32;
                    let chain = &mut spans[usize::from(frame.first)..usize::from(frame.end)];
                    // SAFETY: mapped, by the caller's word.
                    frame.head_len =
                        unsafe { snapshot.take_gathered(chain, header_len, len, &mut frame.first) }
                            as u16;
                }
                Err(error) => frame.state = State::Bad(error),
            }
        }
    }
}

impl Frame {
    #[inline(always)]
    pub(super) fn new(tail: Span, state: State) -> Self {
        Self {
            tail,
            len: 0,
            head_len: 0,
            first: 0,
            end: 0,
            state,
        }
    }
}

/// What is behind the header in a chain of so many bytes.
#[inline(always)]
fn frame_len(bytes: usize, header_len: usize) -> Result<usize, ChainError> {
    match bytes.checked_sub(header_len) {
        None => Err(ChainError::Short),
        Some(0) => Err(ChainError::Empty),
        Some(len) if len > MAX_FRAME => Err(ChainError::TooLong),
        Some(len) => Ok(len),
    }
}

impl Snapshot {
    /// Fills it from a chain of one piece; says how much of the head there is and takes it off the piece. The chain has
    /// `len` bytes behind its header.
    ///
    /// # Safety
    ///
    /// The span is mapped and has `header_len + len` bytes.
    #[inline]
    unsafe fn take_simple(&mut self, span: &mut Span, header_len: usize, len: usize) -> usize {
        let first = len.min(PLAIN_HEAD_LEN);
        let (from, to) = (span.as_ptr(), self.head.as_mut_ptr());
        // SAFETY: so much is in the span, and in the snapshot.
        unsafe {
            self.take_header(from, header_len);
            copy_short(from.add(header_len), to, first);
        }
        let mut head_len = first;
        if self.asks_for_offload() && len > first {
            head_len = len.min(HEAD_LEN);
            // SAFETY: as above; these are the bytes after those.
            unsafe {
                copy_short(
                    from.add(header_len + first),
                    to.add(first),
                    head_len - first,
                );
            };
        }
        *span = span.skip(header_len + head_len);
        head_len
    }

    /// Fills it from a chain of any pieces, and leaves in `first` which one the tail begins in.
    ///
    /// # Safety
    ///
    /// The spans are mapped.
    unsafe fn take_gathered(
        &mut self,
        chain: &mut [Span],
        header_len: usize,
        len: usize,
        first: &mut u16,
    ) -> usize {
        let head_len = len.min(HEAD_LEN);
        let mut both = [0; VirtioNetHdr::LEN + HEAD_LEN];
        let mut to = &mut both[..header_len + head_len];
        for span in chain {
            // SAFETY: mapped, by the caller's word.
            let count = unsafe { span.read(to) };
            to = &mut to[count..];
            if to.is_empty() {
                *span = span.skip(count);
                break;
            }
            *first += 1;
        }
        let (header, head) = both.split_at(header_len);
        self.header = [0; VirtioNetHdr::LEN];
        self.header[..header_len].copy_from_slice(header);
        self.head[..head_len].copy_from_slice(&head[..head_len]);
        head_len
    }

    /// # Safety
    ///
    /// `header_len` bytes, 10 or 12, are mapped at `from`.
    #[inline(always)]
    unsafe fn take_header(&mut self, from: *const u8, header_len: usize) {
        // SAFETY: by the caller's word; the last two bytes of twelve only if they are there.
        unsafe {
            // Volatile: decided upon soon, so not to be loaded again. Each one load, wherever it lies.
            let Word(low) = from.cast::<Word<u64>>().read_volatile();
            let Word(middle) = from.add(8).cast::<Word<u16>>().read_volatile();
            let mut high = u32::from(middle);
            if header_len == VirtioNetHdr::LEN {
                let Word(last) = from.add(10).cast::<Word<u16>>().read_volatile();
                high |= u32::from(last) << 16;
            }
            self.header[..8].copy_from_slice(&low.to_ne_bytes());
            self.header[8..].copy_from_slice(&high.to_ne_bytes());
        }
    }

    /// Flags or segmentation type are set.
    #[inline(always)]
    fn asks_for_offload(&self) -> bool {
        self.header[0] | self.header[1] != 0
    }
}

impl Default for TxScratch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for TxScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TxScratch").finish_non_exhaustive()
    }
}

/// A frame that a guest sent.
#[derive(Clone, Copy, Debug)]
pub struct TxFrame<'r> {
    /// The offload request in front of it. `num_buffers` means nothing here.
    pub header: VirtioNetHdr,
    /// Our copy of the first bytes: all of them, or at least [`PLAIN_HEAD_LEN`], and [`HEAD_LEN`] if it asks for an offload.
    pub head: &'r [u8],
    /// The rest, in the guest's memory.
    pub tail: Pieces<'r>,
    /// Bytes of the frame, head and tail, 1 to [`MAX_FRAME`].
    pub len: u32,
}

/// Frames taken together. They are the guest's again at [`complete`](super::TxRing::complete), which cannot be called
/// before this is gone.
pub struct TxBurst<'r> {
    pub(super) scratch: &'r TxScratch,
    drained: bool,
    _ring: PhantomData<&'r mut ()>,
}

impl<'r> TxBurst<'r> {
    /// Chains taken, malformed ones included.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.scratch.frames.len()
    }

    /// Whether nothing was on offer.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scratch.frames.is_empty()
    }

    /// Whether the guest had nothing more on offer, as far as was seen when the burst was taken.
    #[inline]
    #[must_use]
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Frame `index`, below [`len`](Self::len); beyond it there are only empty ones.
    ///
    /// # Errors
    ///
    /// What was wrong with its chain; it goes back with the others.
    #[inline(always)]
    pub fn frame(&self, index: usize) -> Result<TxFrame<'r>, ChainError> {
        let scratch = self.scratch;
        let (Some(frame), Some(snapshot)) =
            (scratch.frames.get(index), scratch.snapshots.get(index))
        else {
            return Err(ChainError::Empty);
        };
        let spans: &'r [Span] = match frame.state {
            State::Simple => std::slice::from_ref(&frame.tail),
            State::Gathered => {
                &scratch.spans.as_slice()[usize::from(frame.first)..usize::from(frame.end)]
            }
            State::Bad(error) => return Err(error),
        };
        // SAFETY: the spans were resolved in the ring's memory, which the ring holds while the burst borrows it.
        let pieces: &'r [Piece<'r>] = unsafe { Piece::from_spans(spans) };
        let head_len = usize::from(frame.head_len);
        Ok(TxFrame {
            header: VirtioNetHdr::from_bytes(&snapshot.header),
            head: &snapshot.head[..head_len],
            tail: Pieces::with_len(pieces, frame.len as usize - head_len),
            len: frame.len,
        })
    }

    /// Every chain in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<TxFrame<'r>, ChainError>> {
        (0..self.len()).map(|index| self.frame(index))
    }
}

/// A transmit queue of one layout.
pub(super) struct Transmit<L> {
    pub(super) core: Core<L>,
}

/// What came of walking the next chain.
enum Walked {
    Taken,
    /// Not in this burst.
    Later,
}

impl<L: Layout> Transmit<L> {
    pub(super) fn start(setup: Setup) -> Result<Self, RingError> {
        Core::start(setup, Direction::Transmit).map(|core| Self { core })
    }

    /// See [`TxRing::take`](super::TxRing::take).
    #[inline]
    pub(super) fn take<'r>(
        &'r mut self,
        scratch: &'r mut TxScratch,
        max: usize,
    ) -> Result<TxBurst<'r>, RingError> {
        self.core.check()?;
        self.core.publish();
        let drained = self.collect(scratch, max)?;
        Ok(TxBurst {
            scratch,
            drained,
            _ring: PhantomData,
        })
    }

    /// Takes the next frames and writes their used entries; says whether the guest had nothing more on offer.
    /// One piece of code for bursts that are lent and those that are not, or what it calls would not be part of either.
    #[inline(never)]
    fn collect(&mut self, scratch: &mut TxScratch, max: usize) -> Result<bool, RingError> {
        let core = &mut self.core;
        scratch.clear(core.header_len);
        let max = max.min(MAX_BURST);
        if core.ahead.len() < 2 * max {
            core.look(2 * max)?;
        }
        let mut ready = 0;
        for ahead in 0..max {
            if ahead.is_multiple_of(STEP) {
                core.look_ahead(ahead + MAX_BURST, fetch);
                ready = core.ahead.len().min(max);
            }
            if ahead == ready {
                break;
            }
            if let Some(Ready { span, id }) = core.ahead.get(ahead) {
                // SAFETY: resolved in the memory that the ring holds.
                unsafe { scratch.take_simple(span) };
                core.give_back_ahead(ahead, id, 0);
            }
        }
        core.pass_ahead(ready);
        if ready < max && core.ring.sees(core.next) {
            take_chains(core, scratch, max)?;
            // SAFETY: as above.
            unsafe { scratch.gather(ready) };
        }
        core.ring.prefetch_used(core.next, MAX_BURST as u16);
        Ok(core.ahead.len() == 0 && !core.ring.sees(core.next))
    }
}

impl Transmit<PackedRing> {
    /// Takes nothing.
    pub(super) fn lend_none<'r>(
        &'r mut self,
        scratch: &'r mut TxScratch,
        lent: &'r mut Lent,
    ) -> Result<Lending<'r>, RingError> {
        lent.clear();
        self.core.check()?;
        scratch.clear(self.core.header_len);
        let burst = TxBurst {
            scratch,
            drained: true,
            _ring: PhantomData,
        };
        Ok(Lending { burst, lent })
    }
}

impl Transmit<SplitRing> {
    /// See [`TxRing::lend`](super::TxRing::lend).
    #[inline(never)]
    pub(super) fn lend<'r>(
        &'r mut self,
        scratch: &'r mut TxScratch,
        lent: &'r mut Lent,
        max: usize,
    ) -> Result<Lending<'r>, RingError> {
        lent.clear();
        self.core.check()?;
        let first = self.core.next;
        let drained = self.collect(scratch, max)?;
        if self.core.next != first {
            lent.begin(self.core.memory(), (first, self.core.next));
        }
        let burst = TxBurst {
            scratch,
            drained,
            _ring: PhantomData,
        };
        Ok(Lending { burst, lent })
    }

    /// See [`TxRing::repay`](super::TxRing::repay).
    #[inline]
    pub(super) fn repay(&mut self, lent: &mut Lent) -> bool {
        // Of a split ring a position is a count of entries.
        let oldest = lent
            .place()
            .filter(|(first, _)| first.0 == self.core.published());
        let Some((first, end)) = oldest else {
            return false;
        };
        lent.clear();
        self.core.publish_some(end, end.0.wrapping_sub(first.0));
        true
    }
}

/// Takes chains of any kind until the burst has `max`, or has loaded enough descriptors.
#[inline(never)]
fn take_chains<L: Layout>(
    core: &mut Core<L>,
    scratch: &mut TxScratch,
    max: usize,
) -> Result<(), RingError> {
    let mut walked = 0;
    while scratch.frames.len() < max && walked < usize::from(MAX_CHAIN) && core.ring.sees(core.next)
    {
        if let Walked::Later = self::walk(core, scratch, &mut walked)? {
            break;
        }
    }
    Ok(())
}

/// Takes a chain of any kind.
#[inline]
fn walk<L: Layout>(
    core: &mut Core<L>,
    scratch: &mut TxScratch,
    walked: &mut usize,
) -> Result<Walked, RingError> {
    let first = scratch.spans.len();
    let chain = match core.walk(core.next, walked, &mut scratch.spans) {
        Ok(chain) => chain,
        // Whatever was taken is served before the ring stops.
        Err(_) if !scratch.frames.is_empty() => return Ok(Walked::Later),
        Err(error) => return Err(core.break_with(error)),
    };
    match chain.bytes {
        Ok(_) => {
            for span in scratch.spans.as_slice()[first..].iter().take(2) {
                span.prefetch_read();
            }
        }
        Err(error) => {
            scratch.spans.truncate(first);
            if error == ChainError::TooManyPieces && first > 0 {
                // With the room to itself it may do.
                return Ok(Walked::Later);
            }
        }
    }
    scratch.push(first, chain.bytes);
    core.give_back(chain.id, chain.entries, 0);
    Ok(Walked::Taken)
}

#[inline]
fn fetch(ready: &Ready) {
    ready.span.prefetch_read();
}

impl<L> std::fmt::Debug for Transmit<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transmit")
            .field("pair", &self.core.pair)
            .field("next", &self.core.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
