//! Frames that outlive the borrow of their ring.
//!
//! A [`TxBurst`] borrows ring and scratch, so one thread writes all of it before the next is taken. One that was taken with
//! [`TxRing::lend`](super::TxRing::lend) can in part be kept: a [`Lent`] holds copies of frames' heads, their tails' places
//! and the guest's memory for itself, so that several can be on their way at once, and another thread can read them. The
//! guest has the whole burst back at [`TxRing::repay`](super::TxRing::repay), which wants it for itself, oldest first.
//!
//! Lines that one processor writes and another reads are the cost of it, a few hundred cycles each where they are waited
//! for. So most frames are two of them, and the scratch stays with the one who takes.
//!
//! Split rings only: used entries of a packed ring are its descriptors, whose first is written last, for a whole burst.

use std::sync::Arc;

use vswitch_packet::VirtioNetHdr;

use super::chain::Spans;
use super::layout::Position;
use super::tx::{Frame, MAX_PIECES, Snapshot, State};
use super::{ChainError, MAX_BURST, PLAIN_HEAD_LEN, TxBurst, TxFrame};
use crate::memory::{GuestMemory, Piece, Pieces, Span};

/// See the module's page.
pub struct Lent {
    /// Which frames are there, a bit each, and which of them are kept in full.
    kept: u32,
    full: u32,
    /// What spans were resolved in.
    memory: Option<Arc<GuestMemory>>,
    /// Where the ring stood before the burst and stands behind it, until that is given back.
    place: Option<(Position, Position)>,
    plain: Box<[Plain; MAX_BURST]>,
    /// Those that ask for an offload, or whose chain was not one piece.
    frames: Box<[Frame; MAX_BURST]>,
    snapshots: Box<[Snapshot; MAX_BURST]>,
    spans: Spans,
}

/// A frame whose chain was one piece and that asks for no offload: two lines.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Plain {
    head: [u8; PLAIN_HEAD_LEN],
    tail: Span,
    header: [u8; VirtioNetHdr::LEN],
    len: u32,
}

/// A burst just taken, parts of which can be kept.
pub struct Lending<'r> {
    pub(super) burst: TxBurst<'r>,
    pub(super) lent: &'r mut Lent,
}

impl<'r> Lending<'r> {
    /// All its frames.
    #[inline]
    #[must_use]
    pub fn burst(&self) -> &TxBurst<'r> {
        &self.burst
    }

    /// Keeps these frames, a bit each, under the numbers that they have in the burst. Malformed ones are not kept.
    #[inline]
    pub fn keep(&mut self, frames: u32) {
        let scratch = self.burst.scratch;
        let mut left = frames & !self.lent.kept;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            if let (Some(frame), Some(snapshot)) =
                (scratch.frames.get(index), scratch.snapshots.get(index))
            {
                self.lent.keep(index, frame, snapshot, &scratch.spans);
            }
        }
    }
}

impl std::fmt::Debug for Lending<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lending")
            .field("frames", &self.burst.len())
            .finish_non_exhaustive()
    }
}

impl Lent {
    /// Room for a burst, about 90 KiB.
    #[must_use]
    pub fn new() -> Self {
        let plain = Plain {
            head: [0; PLAIN_HEAD_LEN],
            tail: Span::EMPTY,
            header: [0; VirtioNetHdr::LEN],
            len: 0,
        };
        Self {
            kept: 0,
            full: 0,
            memory: None,
            place: None,
            plain: Box::new([plain; MAX_BURST]),
            frames: Box::new([Frame::new(Span::EMPTY, State::Simple); MAX_BURST]),
            snapshots: Box::new([Snapshot::EMPTY; MAX_BURST]),
            spans: Spans::new(MAX_PIECES),
        }
    }

    /// Frame `index` of the burst, if it was kept; else there is none.
    ///
    /// # Errors
    ///
    /// It was not kept.
    #[inline(always)]
    pub fn frame(&self, index: usize) -> Result<TxFrame<'_>, ChainError> {
        let at = index % MAX_BURST;
        if index >= MAX_BURST || self.kept >> at & 1 == 0 {
            return Err(ChainError::Empty);
        }
        if self.full >> at & 1 != 0 {
            return self.full_frame(at);
        }
        let plain = &self.plain[at];
        let len = plain.len as usize;
        let head_len = len.min(PLAIN_HEAD_LEN);
        // SAFETY: resolved in the memory that is held beside it for as long as it counts as kept.
        let pieces = unsafe { Piece::from_spans(std::slice::from_ref(&plain.tail)) };
        Ok(TxFrame {
            header: VirtioNetHdr::from_bytes(&plain.header),
            head: &plain.head[..head_len],
            tail: Pieces::with_len(pieces, len - head_len),
            len: plain.len,
        })
    }

    #[inline(never)]
    fn full_frame(&self, at: usize) -> Result<TxFrame<'_>, ChainError> {
        let (frame, snapshot) = (&self.frames[at], &self.snapshots[at]);
        let spans = match frame.state {
            State::Simple => std::slice::from_ref(&frame.tail),
            State::Gathered => {
                &self.spans.as_slice()[usize::from(frame.first)..usize::from(frame.end)]
            }
            State::Bad(error) => return Err(error),
        };
        // SAFETY: as in `frame`.
        let pieces = unsafe { Piece::from_spans(spans) };
        let head_len = usize::from(frame.head_len);
        Ok(TxFrame {
            header: VirtioNetHdr::from_bytes(&snapshot.header),
            head: &snapshot.head[..head_len],
            tail: Pieces::with_len(pieces, frame.len as usize - head_len),
            len: frame.len,
        })
    }

    /// Frames that were kept.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.count_ones() as usize
    }

    /// Whether none was.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept == 0
    }

    #[inline]
    pub(super) fn place(&self) -> Option<(Position, Position)> {
        self.place
    }

    /// Of another burst, nothing of which is kept yet.
    #[inline]
    pub(super) fn begin(&mut self, memory: &Arc<GuestMemory>, place: (Position, Position)) {
        (self.memory, self.place) = (Some(Arc::clone(memory)), Some(place));
    }

    /// Nothing is in it any more: neither frames nor a hold on memory.
    #[inline]
    pub(super) fn clear(&mut self) {
        (self.kept, self.full) = (0, 0);
        (self.memory, self.place) = (None, None);
        self.spans.truncate(0);
    }

    /// Keeps a frame that was resolved in the memory it holds.
    #[inline(always)]
    fn keep(&mut self, at: usize, frame: &Frame, snapshot: &Snapshot, spans: &Spans) {
        let head_len = (frame.len as usize).min(PLAIN_HEAD_LEN);
        if frame.state == State::Simple && usize::from(frame.head_len) == head_len {
            if let (Some(plain), Some(head)) = (
                self.plain.get_mut(at),
                snapshot.head.first_chunk::<PLAIN_HEAD_LEN>(),
            ) {
                // Whole, whatever is behind a shorter head: a length that the compiler knows.
                plain.head = *head;
                (plain.tail, plain.len) = (frame.tail, frame.len);
                plain.header = snapshot.header;
                self.kept |= 1 << at;
            }
        } else {
            self.keep_full(at, frame, snapshot, spans);
        }
    }

    #[inline(never)]
    fn keep_full(&mut self, at: usize, frame: &Frame, snapshot: &Snapshot, spans: &Spans) {
        let (Some(to), Some(head)) = (self.frames.get_mut(at), self.snapshots.get_mut(at)) else {
            return;
        };
        let first = self.spans.len();
        match frame.state {
            State::Simple => {}
            State::Gathered => {
                let run = usize::from(frame.first)..usize::from(frame.end);
                let run = spans.as_slice().get(run).unwrap_or_default();
                // As many fit as do in the scratch.
                if !run.iter().all(|span| self.spans.push(*span)) {
                    return;
                }
            }
            State::Bad(_) => return,
        }
        *to = Frame {
            first: first as u16,
            end: self.spans.len() as u16,
            ..*frame
        };
        *head = *snapshot;
        self.kept |= 1 << at;
        self.full |= 1 << at;
    }
}

impl Default for Lent {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent")
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{RING_PACKED, VERSION_1, mask};
    use crate::ring::{Base, TxRing, TxScratch};
    use crate::testing::{Guest, Queue, count, setup};
    use proptest::prelude::*;

    const MODERN: u64 = mask(VERSION_1);
    const BUFFERS: u64 = 0x10_000;
    const LEN: u64 = 1500;

    /// A guest that offers buffers by turns, each filled with the number of its frame.
    struct Sender {
        guest: Guest,
        queue: Queue,
        sent: u16,
    }

    impl Sender {
        fn new(size: u16) -> Self {
            Self {
                guest: Guest::new(0x10_0000),
                queue: Queue::new(0x1000, size),
                sent: 0,
            }
        }

        fn ring(&self) -> TxRing {
            TxRing::start(setup(&self.guest.memory(&[]), &self.queue, MODERN)).unwrap()
        }

        fn send(&mut self) {
            let head = self.sent % self.queue.size;
            let at = BUFFERS + u64::from(head) * 0x800;
            self.guest.write(at, &[0; 12]);
            self.guest.write(at + 12, &[self.sent as u8; LEN as usize]);
            let (guest, len) = (&self.guest, LEN as u32 + 12);
            self.queue.descriptor(guest, head, at, len, 0, 0);
            self.queue.offer(guest, head);
            self.sent += 1;
        }
    }

    /// Lends everything there is, up to so much; says how many frames.
    fn lend(ring: &mut TxRing, lent: &mut Lent, max: usize) -> usize {
        let mut scratch = TxScratch::new();
        let mut lending = ring.lend(&mut scratch, lent, max).unwrap();
        lending.keep(u32::MAX);
        lending.burst().len()
    }

    /// The numbers of the frames, whose every byte is looked at.
    fn numbers(lent: &Lent) -> Vec<u8> {
        let number = |frame: TxFrame<'_>| {
            let mut tail = vec![0; frame.tail.len()];
            assert_eq!(frame.tail.copy_to(0, &mut tail), tail.len());
            let first = frame.head[0];
            assert!(frame.head.iter().chain(&tail).all(|byte| *byte == first));
            assert_eq!(u64::from(frame.len), LEN);
            first
        };
        let kept = (0..MAX_BURST + 1).filter_map(|index| lent.frame(index).ok());
        kept.map(number).collect()
    }

    #[test]
    fn bursts_are_given_back_oldest_first() {
        let mut sender = Sender::new(128);
        let mut ring = sender.ring();
        let call = ring.call_for_tests();
        count(&call);
        assert!(ring.lends());
        (0..70).for_each(|_| sender.send());
        let mut all = [Lent::new(), Lent::new(), Lent::new(), Lent::new()];
        let counts = all.each_mut().map(|lent| lend(&mut ring, lent, MAX_BURST));
        assert_eq!(counts, [32, 32, 6, 0]);
        assert_eq!(sender.queue.used_index(&sender.guest), 0);
        let [first, second, third, none] = &mut all;
        assert!(!ring.repay(second) && !ring.repay(third) && !ring.repay(none));
        assert_eq!(numbers(second), (32..64).collect::<Vec<_>>());
        assert!(ring.repay(first));
        assert_eq!(sender.queue.used_index(&sender.guest), 32);
        assert!(!ring.repay(first) && first.is_empty());
        assert!(ring.signal().unwrap() && count(&call) == 1);
        assert!(ring.repay(second) && ring.repay(third));
        let back: Vec<_> = sender.queue.take_used(&sender.guest);
        assert_eq!(back, (0..70).map(|head| (head, 0)).collect::<Vec<_>>());
        // From here on the ring is as any.
        sender.send();
        assert_eq!(lend(&mut ring, first, MAX_BURST), 1);
        assert!(ring.repay(first) && !ring.complete());
    }

    #[test]
    fn frames_stay_readable_when_the_ring_is_gone() {
        let mut sender = Sender::new(8);
        sender.send();
        let (mut ring, mut lent) = (sender.ring(), Lent::new());
        assert_eq!(lend(&mut ring, &mut lent, MAX_BURST), 1);
        drop(ring);
        assert_eq!(numbers(&lent), [0]);
    }

    #[test]
    fn a_burst_given_back_or_never_lent_holds_no_memory() {
        let mut sender = Sender::new(8);
        let memory = sender.guest.memory(&[]);
        let setup = setup(&memory, &sender.queue, MODERN);
        let (mut ring, mut lent) = (TxRing::start(setup).unwrap(), Lent::new());
        let held = Arc::strong_count(&memory);
        assert_eq!(lend(&mut ring, &mut lent, MAX_BURST), 0);
        assert_eq!(Arc::strong_count(&memory), held);
        sender.send();
        assert_eq!(lend(&mut ring, &mut lent, MAX_BURST), 1);
        assert_eq!(Arc::strong_count(&memory), held + 1);
        assert!(ring.repay(&mut lent));
        assert_eq!(Arc::strong_count(&memory), held);
    }

    #[test]
    fn packed_rings_lend_nothing() {
        let Sender { guest, queue, .. } = Sender::new(8);
        let mut setup = setup(&guest.memory(&[]), &queue, MODERN | mask(RING_PACKED));
        setup.base = Base::Claimed(0x8000_8000);
        let (mut ring, mut lent) = (TxRing::start(setup).unwrap(), Lent::new());
        // A descriptor's last two fields are its id and its flags (virtio 1.2, section 2.8.13); AVAIL is bit 7.
        queue.descriptor(&guest, 0, BUFFERS, LEN as u32, 5, 1 << 7);
        assert!(!ring.lends());
        assert_eq!(lend(&mut ring, &mut lent, MAX_BURST), 0);
        assert!(lent.is_empty() && !ring.repay(&mut lent));
        let mut scratch = TxScratch::new();
        assert_eq!(ring.take(&mut scratch, MAX_BURST).unwrap().len(), 1);
    }

    #[test]
    fn two_threads_read_one_burst() {
        let mut sender = Sender::new(64);
        (0..32).for_each(|_| sender.send());
        let (mut ring, mut lent) = (sender.ring(), Lent::new());
        assert_eq!(lend(&mut ring, &mut lent, MAX_BURST), 32);
        let lent = &lent;
        std::thread::scope(|scope| {
            let read = [scope.spawn(|| numbers(lent)), scope.spawn(|| numbers(lent))];
            for read in read {
                assert_eq!(read.join().unwrap(), (0..32).collect::<Vec<_>>());
            }
        });
    }

    proptest! {
        /// Whatever is sent, lent and given back in between, every frame is seen once, in order, and comes back once.
        #[test]
        fn every_frame_is_lent_once_and_comes_back(steps in prop::collection::vec(0..3u8, 1..200)) {
            let mut sender = Sender::new(16);
            let mut ring = sender.ring();
            let mut pool: Vec<Lent> = (0..4).map(|_| Lent::new()).collect();
            let (mut lent_at, mut repaid_at) = (0, 0);
            let (mut seen, mut back) = (Vec::new(), 0);
            for step in steps {
                match step {
                    0 if sender.sent - back < 16 => sender.send(),
                    1 if lent_at - repaid_at < 4 => {
                        let lent = &mut pool[lent_at % 4];
                        if lend(&mut ring, lent, 3) > 0 {
                            seen.extend(numbers(lent));
                            lent_at += 1;
                        }
                    }
                    2 if repaid_at < lent_at => {
                        let lent = &mut pool[repaid_at % 4];
                        back += lent.len() as u16;
                        prop_assert!(ring.repay(lent));
                        repaid_at += 1;
                    }
                    _ => {}
                }
                prop_assert_eq!(sender.queue.used_index(&sender.guest), back);
            }
            let expected: Vec<u8> = (0..seen.len()).map(|n| n as u8).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
