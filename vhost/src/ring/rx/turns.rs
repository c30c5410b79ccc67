//! One receive ring that several workers fill by turns.

use proptest::prelude::*;

use super::*;
use crate::features::{VERSION_1, mask};
use crate::ring::RxRing;
use crate::ring::queue::Delivery;
use crate::testing::{Guest, Queue, WRITE, setup};

const SIZE: u16 = 64;
const BUFFERS: u64 = 0x10_000;
const LEN: u32 = 256;

/// Frames with numbers for their content, put one after the other.
struct Numbered<'a> {
    first: u16,
    count: u16,
    put: &'a mut Vec<u16>,
}

impl Delivery for Numbered<'_> {
    fn run<S: Sink>(self, sink: &mut S) {
        for number in self.first..self.first + self.count {
            let bytes = frame(number);
            let (head, tail) = bytes.split_at(60);
            let pieces = [Piece::from(tail)];
            if sink.put_plain(head, Pieces::from_slice(&pieces)).is_ok() {
                self.put.push(number);
            }
        }
    }
}

fn frame(number: u16) -> [u8; 100] {
    let mut bytes = [number as u8; 100];
    bytes[..2].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn address(head: u16) -> u64 {
    BUFFERS + u64::from(head) * 0x1000
}

/// What happens in a turn.
#[derive(Clone, Debug)]
struct Turn {
    by: u16,
    /// Frames announced, and frames that come.
    expected: u16,
    count: u16,
    /// Buffers that the guest offers afterwards, at most.
    offered: usize,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let by = prop_oneof![4 => 0..1u16, 2 => 1..2u16, 1 => 2..5u16];
    let turn =
        (by, 0..40u16, 0..40u16, 0..70usize).prop_map(|(by, expected, count, offered)| Turn {
            by,
            expected,
            count,
            offered,
        });
    prop::collection::vec(turn, 1..80)
}

proptest! {
    #[test]
    fn whoever_fills_a_ring_frames_lie_in_the_order_in_which_they_were_put(turns in turns()) {
        let guest = Guest::new(0x10_0000);
        let mut queue = Queue::new(0x1000, SIZE);
        let mut ring = RxRing::start(setup(&guest.memory(&[]), &queue, mask(VERSION_1))).unwrap();
        let mut free: Vec<u16> = (0..SIZE).collect();
        let (mut first, mut put, mut seen) = (0u16, Vec::new(), Vec::new());
        for Turn { by, expected, count, offered } in turns {
            let room = usize::from(SIZE) - free.len();
            let before = put.len();
            let frames = Numbered { first, count, put: &mut put };
            ring.fill(by, expected.into(), frames).unwrap();
            first += count;
            // No buffer on offer is overlooked, whoever resolved it.
            prop_assert_eq!(put.len() - before, usize::from(count).min(room));
            for (head, len) in queue.take_used(&guest) {
                let head = head as u16;
                let bytes = guest.read(address(head), len as usize);
                let frame_of = &bytes[VirtioNetHdr::LEN..];
                let number = u16::from_le_bytes([frame_of[0], frame_of[1]]);
                prop_assert_eq!(frame_of, &frame(number)[..]);
                seen.push(number);
                free.push(head);
            }
            prop_assert_eq!(&seen, &put);
            let again = offered.min(free.len());
            for head in free.drain(..again) {
                queue.descriptor(&guest, head, address(head), LEN, WRITE, 0);
                queue.offer(&guest, head);
            }
        }
    }
}
