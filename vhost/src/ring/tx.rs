//! Guest to switch.
//!
//! A burst is taken in two passes: the first copies out descriptors, looks buffers up and asks the cache for their first
//! lines; the second, when those have arrived, copies each frame's header and head. What is decided and what is sent is
//! that copy; the rest of a frame, its tail, is copied once, from here to where it goes.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_packet::VirtioNetHdr;

use super::chain::{Direction, Spans, Walker};
use super::core::{Core, Setup};
use super::{ChainError, HEAD_LEN, MAX_BURST, MAX_CHAIN, MAX_FRAME, QueuePair, RingError};
use crate::memory::{GuestMemory, Piece, Pieces};

/// Pieces that all frames of a burst may have together, and so also one alone.
const MAX_PIECES: usize = 4_096;

/// Where a head begins in its snapshot; the header, 10 or 12 bytes, ends there.
const HEAD_AT: usize = 16;

/// A worker's room for one burst: the snapshots of header and head, and the pieces of the tails. Nothing is allocated
/// after it is made.
pub struct TxScratch {
    spans: Spans,
    frames: ArrayVec<Result<Frame, ChainError>, MAX_BURST>,
    snapshots: Box<[[u8; HEAD_AT + HEAD_LEN]; MAX_BURST]>,
}

/// A taken frame: which pieces, and how much of it is in the snapshot.
#[derive(Clone, Copy)]
struct Frame {
    first: usize,
    end: usize,
    /// Of the chain at first, header included; of the frame once its head is out.
    len: usize,
    head_len: usize,
    header: VirtioNetHdr,
}

impl TxScratch {
    /// Room for one burst, about 75 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            spans: Spans::new(MAX_PIECES),
            frames: ArrayVec::new(),
            snapshots: Box::new([[0; HEAD_AT + HEAD_LEN]; MAX_BURST]),
        }
    }

    /// Copies header and head of frame `index` out, and leaves its tail in its pieces.
    ///
    /// # Safety
    ///
    /// The frame's spans are mapped.
    #[inline]
    unsafe fn snapshot(&mut self, index: usize, header_len: usize) -> Result<Frame, ChainError> {
        let (Some(slot), Some(snapshot)) = (self.frames.get(index), self.snapshots.get_mut(index))
        else {
            return Err(ChainError::Empty);
        };
        let mut frame = (*slot)?;
        match frame.len.checked_sub(header_len) {
            None => return Err(ChainError::Short),
            Some(0) => return Err(ChainError::Empty),
            Some(len) if len > MAX_FRAME => return Err(ChainError::TooLong),
            Some(len) => frame.len = len,
        }
        frame.head_len = frame.len.min(HEAD_LEN);
        let begin = HEAD_AT - header_len;
        let mut to = &mut snapshot[begin..HEAD_AT + frame.head_len];
        for span in &mut self.spans.as_mut_slice()[frame.first..frame.end] {
            // SAFETY: mapped, by the caller's word.
            let count = unsafe { span.read(to) };
            to = &mut to[count..];
            if to.is_empty() {
                *span = span.skip(count);
                break;
            }
            frame.first += 1;
        }
        let mut header = [0; VirtioNetHdr::LEN];
        header[..header_len].copy_from_slice(&snapshot[begin..HEAD_AT]);
        frame.header = VirtioNetHdr::from_bytes(&header);
        Ok(frame)
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
    /// Our copy of the first [`HEAD_LEN`] bytes, or of all of them.
    pub head: &'r [u8],
    /// The rest, in the guest's memory.
    pub tail: Pieces<'r>,
    /// Bytes of the frame, head and tail, 1 to [`MAX_FRAME`].
    pub len: u32,
}

/// Frames taken together. They are the guest's again at [`TxRing::complete`], which cannot be called before this is gone.
pub struct TxBurst<'r> {
    scratch: &'r TxScratch,
    _ring: PhantomData<&'r mut TxRing>,
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
        let (Some(slot), Some(snapshot)) =
            (scratch.frames.get(index), scratch.snapshots.get(index))
        else {
            return Err(ChainError::Empty);
        };
        let frame = (*slot)?;
        let spans = &scratch.spans.as_slice()[frame.first..frame.end];
        // SAFETY: the spans were resolved in the ring's memory, which the ring holds while the burst borrows it.
        let pieces: &'r [Piece<'r>] = unsafe { Piece::from_spans(spans) };
        Ok(TxFrame {
            header: frame.header,
            head: &snapshot[HEAD_AT..HEAD_AT + frame.head_len],
            tail: Pieces::with_len(pieces, frame.len - frame.head_len),
            // At most MAX_FRAME.
            len: frame.len as u32,
        })
    }

    /// Every chain in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<TxFrame<'r>, ChainError>> {
        (0..self.len()).map(|index| self.frame(index))
    }
}

/// A transmit queue, started. Owned by exactly one worker at a time.
pub struct TxRing {
    core: Core,
}

impl TxRing {
    pub(crate) fn start(setup: Setup) -> Result<Self, RingError> {
        Core::start(setup).map(|core| Self { core })
    }

    /// Takes up to `max` frames, at most [`MAX_BURST`]; what was taken before is completed first.
    ///
    /// # Errors
    ///
    /// The ring has stopped, now or before. Its session is told and will come to fetch it; there is nothing to do here.
    #[inline]
    pub fn take<'r>(
        &'r mut self,
        scratch: &'r mut TxScratch,
        max: usize,
    ) -> Result<TxBurst<'r>, RingError> {
        let core = &mut self.core;
        core.check()?;
        core.publish();
        scratch.frames.clear();
        scratch.spans.truncate(0);

        let max = max.min(MAX_BURST);
        let mut on_offer = usize::from(core.seen());
        if on_offer < max {
            on_offer = usize::from(core.look()?);
        }
        let mut walked = 0;
        while scratch.frames.len() < max.min(on_offer) && walked < usize::from(MAX_CHAIN) {
            let head = match core.head(0) {
                Ok(head) => head,
                // Whatever was taken is served before the ring stops.
                Err(_) if !scratch.frames.is_empty() => break,
                Err(error) => return Err(core.break_with(error)),
            };
            let first = scratch.spans.len();
            let mut walker = Walker {
                ring: &core.ring,
                memory: &core.memory,
                window: &mut core.window,
                direction: Direction::Transmit,
                indirect: core.indirect,
                walked,
            };
            let chain = walker.walk(head, &mut scratch.spans);
            walked = walker.walked;
            let frame = match chain {
                Ok(len) => {
                    for span in scratch.spans.as_slice()[first..].iter().take(2) {
                        prefetch(span.as_ptr());
                    }
                    Ok(Frame {
                        first,
                        end: scratch.spans.len(),
                        len,
                        head_len: 0,
                        header: VirtioNetHdr::default(),
                    })
                }
                Err(error) => {
                    scratch.spans.truncate(first);
                    if error == ChainError::TooManyPieces && first > 0 {
                        // With the room to itself it may do.
                        break;
                    }
                    Err(error)
                }
            };
            scratch.frames.push(frame);
            core.give_back(head, 0);
        }
        let header_len = core.header_len;
        for index in 0..scratch.frames.len() {
            // SAFETY: the spans were resolved just now, in the memory that the ring holds.
            scratch.frames[index] = unsafe { scratch.snapshot(index, header_len) };
        }
        Ok(TxBurst {
            scratch,
            _ring: PhantomData,
        })
    }

    /// Gives all taken frames back to the guest; false if there were none.
    #[inline]
    pub fn complete(&mut self) -> bool {
        self.core.publish() > 0
    }

    /// Calls the guest if it wants to hear of what was completed; true if it was called.
    ///
    /// # Errors
    ///
    /// The call could not be written; it is tried again at the next completion.
    #[inline]
    pub fn signal(&mut self) -> io::Result<bool> {
        self.core.notify()
    }

    /// Asks the guest for a kick at its next frame; true if one is waiting already, and then the ring is to be
    /// [disarmed](Self::disarm) and served.
    pub fn arm(&mut self) -> bool {
        self.core.arm()
    }

    /// Tells the guest that no kick is needed.
    pub fn disarm(&mut self) {
        self.core.disarm();
    }

    /// Whether a frame is waiting.
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.core.has_work()
    }

    /// What becomes readable at a kick; `None` if the guest sends none, and the ring must be polled.
    #[must_use]
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.core.kick()
    }

    /// Takes a kick back, so that the descriptor is readable only at the next. Never sleeps.
    pub fn drain_kick(&self) {
        self.core.drain_kick();
    }

    /// Whether the queue is enabled. Frames of one that is not are to be taken and discarded.
    #[inline]
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.core.enabled
    }

    /// Descriptors of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.core.ring.size()
    }

    /// Which queue this is.
    #[inline]
    #[must_use]
    pub fn queue_pair(&self) -> QueuePair {
        self.core.pair
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.core.enabled = enabled;
    }

    pub(crate) fn set_call(&mut self, call: Option<Arc<OwnedFd>>) {
        self.core.set_call(call);
    }

    pub(crate) fn set_kick(&mut self, kick: Option<Arc<OwnedFd>>) {
        self.core.set_kick(kick);
    }

    pub(crate) fn rebind(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        self.core.rebind(memory)
    }

    pub(crate) fn error(&self) -> Option<RingError> {
        self.core.error()
    }

    /// Gives everything back and says where the ring stands.
    pub(crate) fn settle(&mut self) -> u16 {
        self.core.publish();
        self.core.next
    }
}

impl std::fmt::Debug for TxRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TxRing")
            .field("pair", &self.core.pair)
            .field("next", &self.core.next)
            .finish_non_exhaustive()
    }
}

/// Asks the cache for the line at `at`, without waiting.
#[inline]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint and accesses nothing, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests;
