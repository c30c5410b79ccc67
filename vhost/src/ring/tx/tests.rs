//! A transmit ring and the guest's side of it.

use std::sync::Arc;

use super::*;
use crate::event::Event;
use crate::features::{ANY_LAYOUT, RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, mask};
use crate::ring::TxRing;
use crate::testing::{Guest, INDIRECT, NEXT, Queue, WRITE, count, setup};

mod chains;
mod ring;
mod stops;

const MODERN: u64 = mask(VERSION_1) | mask(RING_INDIRECT_DESC);
const EVENT: u64 = MODERN | mask(RING_EVENT_IDX);
const BUFFERS: u64 = 0x10_000;

struct Bench {
    guest: Guest,
    queue: Queue,
    ring: TxRing,
    scratch: TxScratch,
}

impl Bench {
    fn new(features: u64, size: u16, cuts: &[u64]) -> Self {
        let guest = Guest::new(0x10_0000);
        let queue = Queue::new(0x1000, size);
        Self::with(guest, queue, features, cuts)
    }

    fn with(guest: Guest, queue: Queue, features: u64, cuts: &[u64]) -> Self {
        let ring = TxRing::start(setup(&guest.memory(cuts), &queue, features)).unwrap();
        Self {
            guest,
            queue,
            ring,
            scratch: TxScratch::new(),
        }
    }

    fn call(&self) -> Arc<Event> {
        // Only tests look at it, so it is found by way of the ring.
        self.ring.call_for_tests()
    }

    /// Takes, copies everything out, completes.
    fn drain(&mut self) -> Vec<Result<(VirtioNetHdr, Vec<u8>), ChainError>> {
        let mut frames = Vec::new();
        loop {
            let burst = self.ring.take(&mut self.scratch, MAX_BURST).unwrap();
            if burst.is_empty() {
                break;
            }
            frames.extend(
                burst
                    .iter()
                    .map(|frame| frame.map(|frame| (frame.header, whole(frame)))),
            );
            self.ring.complete();
        }
        frames
    }

    /// Writes a chain of buffers of these contents from descriptor `first` on, without offering it.
    fn chain(&self, first: u16, mut at: u64, cuts: &[&[u8]]) {
        for (index, cut) in cuts.iter().enumerate() {
            self.guest.write(at, cut);
            let here = first + index as u16;
            let more = if index + 1 < cuts.len() { NEXT } else { 0 };
            self.queue
                .descriptor(&self.guest, here, at, cut.len() as u32, more, here + 1);
            at += cut.len() as u64;
        }
    }

    fn send(&mut self, head: u16, cuts: &[&[u8]]) {
        self.chain(head, BUFFERS + u64::from(head) * 0x1000, cuts);
        self.queue.offer(&self.guest, head);
    }
}

fn whole(frame: TxFrame<'_>) -> Vec<u8> {
    let mut bytes = frame.head.to_vec();
    let asks = frame.header.flags | frame.header.gso_type != 0;
    let least = if asks { HEAD_LEN } else { PLAIN_HEAD_LEN };
    assert!((least.min(frame.len as usize)..=HEAD_LEN).contains(&bytes.len()));
    let mut tail = vec![0; frame.tail.len()];
    assert_eq!(frame.tail.copy_to(0, &mut tail), tail.len());
    bytes.extend(tail);
    assert_eq!(bytes.len(), frame.len as usize);
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn header() -> [u8; 12] {
    [1, 4, 66, 0, 200, 5, 34, 0, 16, 0, 9, 9]
}
