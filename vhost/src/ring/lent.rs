//! Bursts that outlive the borrow of their ring.
//!
//! A [`TxBurst`] borrows ring and scratch, so one thread writes all of it before the next is taken. A [`Lent`] burst is
//! taken with [`TxRing::lend`](super::TxRing::lend) and holds the guest's memory for itself: several can be on their way
//! at once, and another thread may read them. The guest has its buffers back at [`TxRing::repay`](super::TxRing::repay),
//! which wants the burst for itself, oldest first.
//!
//! Split rings only: used entries of a packed ring are its descriptors, whose first is written last, for a whole burst.

use std::sync::Arc;

use super::TxScratch;
use super::layout::Position;
use super::tx::TxBurst;
use crate::memory::GuestMemory;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Lent {
    pub(super) scratch: TxScratch,
    /// What the frames' spans were resolved in.
    pub(super) memory: Option<Arc<GuestMemory>>,
    /// Where the ring stood before it and stands behind it, until it is given back.
    pub(super) place: Option<(Position, Position)>,
}

impl Lent {
    /// Room for one burst, as a [`TxScratch`] has it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The frames; none before the first burst was lent, or after the last was given back.
    #[inline]
    #[must_use]
    pub fn burst(&self) -> TxBurst<'_> {
        TxBurst::of_lent(self)
    }

    /// Nothing is in it any more: neither frames nor a hold on memory.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.scratch.clear(0);
        (self.memory, self.place) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{RING_PACKED, VERSION_1, mask};
    use crate::ring::{MAX_BURST, TxRing};
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

    /// The numbers of the frames, whose every byte is looked at.
    fn numbers(lent: &Lent) -> Vec<u8> {
        let frames = lent.burst();
        let number = |frame: crate::TxFrame<'_>| {
            let mut tail = vec![0; frame.tail.len()];
            assert_eq!(frame.tail.copy_to(0, &mut tail), tail.len());
            let first = frame.head[0];
            assert!(frame.head.iter().chain(&tail).all(|byte| *byte == first));
            assert_eq!(u64::from(frame.len), LEN);
            first
        };
        frames.iter().map(|frame| number(frame.unwrap())).collect()
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
        let counts = all
            .each_mut()
            .map(|lent| ring.lend(lent, MAX_BURST).unwrap());
        assert_eq!(counts, [32, 32, 6, 0]);
        assert_eq!(sender.queue.used_index(&sender.guest), 0);
        let [first, second, third, none] = &mut all;
        assert!(!ring.repay(second) && !ring.repay(third) && !ring.repay(none));
        assert_eq!(numbers(second), (32..64).collect::<Vec<_>>());
        assert!(ring.repay(first));
        assert_eq!(sender.queue.used_index(&sender.guest), 32);
        assert!(!ring.repay(first) && first.burst().is_empty());
        assert!(ring.signal().unwrap() && count(&call) == 1);
        assert!(ring.repay(second) && ring.repay(third));
        let back: Vec<_> = sender.queue.take_used(&sender.guest);
        assert_eq!(back, (0..70).map(|head| (head, 0)).collect::<Vec<_>>());
        // From here on the ring is as any.
        sender.send();
        assert_eq!(ring.lend(first, MAX_BURST), Ok(1));
        assert!(ring.repay(first) && !ring.complete());
    }

    #[test]
    fn frames_stay_readable_when_the_ring_is_gone() {
        let mut sender = Sender::new(8);
        sender.send();
        let (mut ring, mut lent) = (sender.ring(), Lent::new());
        assert_eq!(ring.lend(&mut lent, MAX_BURST), Ok(1));
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
        assert_eq!(ring.lend(&mut lent, MAX_BURST), Ok(0));
        assert_eq!(Arc::strong_count(&memory), held);
        sender.send();
        assert_eq!(ring.lend(&mut lent, MAX_BURST), Ok(1));
        assert_eq!(Arc::strong_count(&memory), held + 1);
        assert!(ring.repay(&mut lent));
        assert_eq!(Arc::strong_count(&memory), held);
    }

    #[test]
    fn packed_rings_lend_nothing() {
        let mut sender = Sender::new(8);
        let setup = setup(
            &sender.guest.memory(&[]),
            &sender.queue,
            MODERN | mask(RING_PACKED),
        );
        let (mut ring, mut lent) = (TxRing::start(setup).unwrap(), Lent::new());
        sender.send();
        assert!(!ring.lends());
        assert_eq!(ring.lend(&mut lent, MAX_BURST), Ok(0));
        assert!(lent.burst().is_empty() && !ring.repay(&mut lent));
    }

    #[test]
    fn two_threads_read_one_burst() {
        let mut sender = Sender::new(64);
        (0..32).for_each(|_| sender.send());
        let (mut ring, mut lent) = (sender.ring(), Lent::new());
        assert_eq!(ring.lend(&mut lent, MAX_BURST), Ok(32));
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
                        if ring.lend(lent, 3).unwrap() > 0 {
                            seen.extend(numbers(lent));
                            lent_at += 1;
                        }
                    }
                    2 if repaid_at < lent_at => {
                        let lent = &mut pool[repaid_at % 4];
                        back += lent.burst().len() as u16;
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
