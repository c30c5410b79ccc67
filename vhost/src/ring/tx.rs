//! Guest to switch.
//!
//! A burst is taken in passes: descriptors are copied out and buffers looked up, and the cache is asked for their first
//! lines, a burst ahead if they are simple; then, when those have arrived, each frame's header and head are copied. What is
//! decided and what is sent is that copy; the rest of a frame, its tail, is copied once, from here to where it goes.

use std::marker::PhantomData;

use arrayvec::ArrayVec;
use vswitch_packet::VirtioNetHdr;

use super::ahead::Ready;
use super::chain::{Direction, Spans};
use super::core::{Core, Setup};
use super::layout::Layout;
use super::{ChainError, HEAD_LEN, MAX_BURST, MAX_CHAIN, MAX_FRAME, RingError};
use crate::memory::{Piece, Pieces, Span, copy_short};

/// Pieces that all frames of a burst may have together, and so also one alone.
const MAX_PIECES: usize = 4_096;

/// Lines of a buffer asked for ahead: header and head.
const HEAD_LINES: usize = 2;

/// Where a head begins in its snapshot; the header, 10 or 12 bytes, ends there.
const HEAD_AT: usize = 16;

/// So much of a head is enough if the frame asks for no offload: Ethernet, tags, the longest IPv4 header or IPv6 with an
/// extension, and ports.
pub const PLAIN_HEAD_LEN: usize = 96;

/// A worker's room for one burst: the snapshots of header and head, and the pieces of the tails. Nothing is allocated
/// after it is made.
pub struct TxScratch {
    spans: Spans,
    frames: ArrayVec<Frame, MAX_BURST>,
    snapshots: Box<[Snapshot; MAX_BURST]>,
    header_len: usize,
}

/// Header and head of a frame.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Snapshot([u8; HEAD_AT + HEAD_LEN]);

/// A taken frame: which pieces, and how much of it is in the snapshot.
#[derive(Clone, Copy)]
struct Frame {
    /// Of the chain at first, header included; of the frame once its head is out.
    len: u32,
    /// Its spans, at most [`MAX_PIECES`].
    first: u16,
    end: u16,
    head_len: u16,
    error: Option<ChainError>,
}

impl TxScratch {
    /// Room for one burst, about 75 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            spans: Spans::new(MAX_PIECES),
            frames: ArrayVec::new(),
            snapshots: Box::new([Snapshot([0; HEAD_AT + HEAD_LEN]); MAX_BURST]),
            header_len: VirtioNetHdr::LEN,
        }
    }

    #[inline]
    fn clear(&mut self, header_len: usize) {
        self.frames.clear();
        self.spans.truncate(0);
        self.header_len = header_len;
    }

    /// Adds a chain whose spans are those from `first` on.
    #[inline]
    fn push(&mut self, first: usize, bytes: Result<usize, ChainError>) {
        let (len, error) = match bytes {
            Ok(len) => (len as u32, None),
            Err(error) => (0, Some(error)),
        };
        self.frames.push(Frame {
            len,
            first: first as u16,
            end: self.spans.len() as u16,
            head_len: 0,
            error,
        });
    }

    /// Copies header and head of every frame out, and leaves its tail in its pieces.
    ///
    /// # Safety
    ///
    /// The frames' spans are mapped.
    #[inline]
    unsafe fn snapshot_all(&mut self) {
        let header_len = self.header_len;
        let spans = self.spans.as_mut_slice();
        for (frame, snapshot) in self.frames.iter_mut().zip(self.snapshots.iter_mut()) {
            if frame.error.is_some() {
                continue;
            }
            let len = match (frame.len as usize).checked_sub(header_len) {
                None => Err(ChainError::Short),
                Some(0) => Err(ChainError::Empty),
                Some(len) if len > MAX_FRAME => Err(ChainError::TooLong),
                Some(len) => Ok(len),
            };
            let (len, pieces) = match len {
                Ok(len) => (len, usize::from(frame.first)..usize::from(frame.end)),
                Err(error) => {
                    frame.error = Some(error);
                    continue;
                }
            };
            frame.len = len as u32;
            let chain = &mut spans[pieces];
            // SAFETY: mapped, by the caller's word.
            frame.head_len = unsafe {
                match chain {
                    [only] => snapshot.take_simple(only, header_len, len),
                    _ => snapshot.take_gathered(chain, header_len, len, &mut frame.first),
                }
            } as u16;
        }
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
        let begin = HEAD_AT - header_len;
        let first = len.min(PLAIN_HEAD_LEN);
        let to = self.0.as_mut_ptr();
        // SAFETY: so much is in the span, and in the snapshot.
        unsafe { copy_short(span.as_ptr(), to.add(begin), header_len + first) };
        let mut head_len = first;
        if self.asks_for_offload(header_len) && len > first {
            head_len = len.min(HEAD_LEN);
            // SAFETY: as above; these are the bytes after those.
            unsafe {
                let from = span.as_ptr().add(header_len + first);
                copy_short(from, to.add(HEAD_AT + first), head_len - first);
            }
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
        let mut to = &mut self.0[HEAD_AT - header_len..HEAD_AT + head_len];
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
        head_len
    }

    /// Flags or segmentation type are set.
    #[inline]
    fn asks_for_offload(&self, header_len: usize) -> bool {
        let begin = HEAD_AT - header_len;
        self.0[begin] | self.0[begin + 1] != 0
    }

    #[inline]
    fn header(&self, header_len: usize) -> VirtioNetHdr {
        let mut bytes = [0; VirtioNetHdr::LEN];
        let begin = HEAD_AT - header_len;
        bytes.copy_from_slice(&self.0[begin..begin + VirtioNetHdr::LEN]);
        if header_len < VirtioNetHdr::LEN {
            // It ends before num_buffers; those bytes are the frame's.
            bytes[header_len..].fill(0);
        }
        VirtioNetHdr::from_bytes(&bytes)
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
    scratch: &'r TxScratch,
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

    /// Frame `index`, below [`len`](Self::len); beyond it there are only empty ones.
    ///
    /// # Errors
    ///
    /// What was wrong with its chain; it goes back with the others.
    #[inline]
    pub fn frame(&self, index: usize) -> Result<TxFrame<'r>, ChainError> {
        let scratch = self.scratch;
        let (Some(frame), Some(snapshot)) =
            (scratch.frames.get(index), scratch.snapshots.get(index))
        else {
            return Err(ChainError::Empty);
        };
        if let Some(error) = frame.error {
            return Err(error);
        }
        let spans = &scratch.spans.as_slice()[usize::from(frame.first)..usize::from(frame.end)];
        // SAFETY: the spans were resolved in the ring's memory, which the ring holds while the burst borrows it.
        let pieces: &'r [Piece<'r>] = unsafe { Piece::from_spans(spans) };
        let head_len = usize::from(frame.head_len);
        Ok(TxFrame {
            header: snapshot.header(scratch.header_len),
            head: &snapshot.0[HEAD_AT..HEAD_AT + head_len],
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
        let core = &mut self.core;
        core.check()?;
        core.publish();
        scratch.clear(core.header_len);

        let max = max.min(MAX_BURST);
        if core.ahead.len() < max {
            core.look(max)?;
            core.look_ahead(max, fetch);
        }
        let mut walked = 0;
        while scratch.frames.len() < max && walked < usize::from(MAX_CHAIN) {
            if let Some(Ready { span, id }) = core.ahead.pop() {
                let first = scratch.spans.len();
                if !scratch.spans.push(span) {
                    break;
                }
                scratch.push(first, Ok(span.len()));
                core.give_back(id, 1, 0);
            } else if !core.ring.sees(core.next) {
                break;
            } else if let Walked::Later = self::walk(core, scratch, &mut walked)? {
                break;
            }
        }
        // SAFETY: the spans were resolved in the memory that the ring holds.
        unsafe { scratch.snapshot_all() };
        core.ring.prefetch_used(core.next, MAX_BURST as u16);
        core.look_ahead(MAX_BURST, fetch);
        Ok(TxBurst {
            scratch,
            _ring: PhantomData,
        })
    }
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
                span.prefetch_read(1);
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
    ready.span.prefetch_read(HEAD_LINES);
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
