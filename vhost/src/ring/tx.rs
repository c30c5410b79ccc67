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

/// Header and head of a frame. What is read of either soon was written by as few, wide, aligned stores as can be: a load
/// that needs parts of two stores waits until both have reached the cache, and all older ones before them.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Snapshot {
    /// 12 bytes, or 10 and two of zero.
    header: [u8; VirtioNetHdr::LEN],
    head: [u8; HEAD_LEN],
}

impl Snapshot {
    const EMPTY: Self = Self {
        header: [0; VirtioNetHdr::LEN],
        head: [0; HEAD_LEN],
    };
}

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
            let low = from.cast::<[u8; 8]>().read();
            let mut high = u32::from(from.add(8).cast::<u16>().read_unaligned());
            if header_len == VirtioNetHdr::LEN {
                high |= u32::from(from.add(10).cast::<u16>().read_unaligned()) << 16;
            }
            self.header[..8].copy_from_slice(&low);
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
    #[inline(always)]
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
        let core = &mut self.core;
        core.check()?;
        core.publish();
        scratch.clear(core.header_len);

        let max = max.min(MAX_BURST);
        if core.ahead.len() < max {
            core.look(max)?;
            core.look_ahead(max, fetch);
        }
        let ready = core.ahead.len().min(max);
        for ahead in 0..ready {
            if let Some(Ready { span, id }) = core.ahead.get(ahead) {
                // There is room: this is the first of the burst, which is shorter than the list.
                scratch.spans.push(span);
                scratch.push(ahead, Ok(span.len()));
                core.give_back_ahead(ahead, id, 0);
            }
        }
        core.pass_ahead(ready);
        let mut walked = 0;
        while scratch.frames.len() < max
            && walked < usize::from(MAX_CHAIN)
            && core.ahead.len() == 0
            && core.ring.sees(core.next)
        {
            if let Walked::Later = self::walk(core, scratch, &mut walked)? {
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
