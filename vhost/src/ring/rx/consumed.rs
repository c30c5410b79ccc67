//! What a guest lets us know of how far it is.

use super::*;
use crate::features::{RING_EVENT_IDX, RING_PACKED, VERSION_1, mask};
use crate::ring::RxRing;
use crate::testing::{Guest, PackedQueue, Queue, WRITE, setup, setup_at};

const PLAIN: u64 = mask(VERSION_1);
const EVENT: u64 = PLAIN | mask(RING_EVENT_IDX);
const SIZE: u16 = 8;
const BUFFER: u64 = 0x10_000;

/// A split ring of eight, all of which are on offer.
struct Split {
    guest: Guest,
    queue: Queue,
    ring: RxRing,
}

impl Split {
    fn new(features: u64) -> Self {
        let guest = Guest::new(0x20_000);
        let mut queue = Queue::new(0x1000, SIZE);
        let ring = RxRing::start(setup(&guest.memory(&[]), &queue, features)).unwrap();
        for head in 0..SIZE {
            queue.descriptor(&guest, head, BUFFER, 2000, WRITE, 0);
            queue.offer(&guest, head);
        }
        Self { guest, queue, ring }
    }

    /// Delivers frames; the position behind them.
    fn deliver(&mut self, frames: usize) -> u16 {
        deliver(&mut self.ring, frames)
    }

    /// The guest deals with everything, offers `again` of it anew, and says nothing.
    fn poll(&mut self, again: usize) {
        let used = self.queue.take_used(&self.guest);
        for (head, _) in used.iter().take(again) {
            self.queue.offer(&self.guest, *head as u16);
        }
    }

    /// It stops polling: it is to be called for what comes next.
    fn arm(&self) {
        self.queue.set_used_event(&self.guest, self.queue.seen);
    }
}

fn deliver(ring: &mut RxRing, frames: usize) -> u16 {
    let header = VirtioNetHdr::default();
    let mut burst = ring.begin(frames).unwrap();
    for _ in 0..frames {
        burst
            .put(&header, &[&[7; 60]], Pieces::from_slice(&[]))
            .unwrap();
    }
    burst.finish();
    ring.signal().unwrap();
    ring.published()
}

#[test]
fn an_event_index_says_where_the_guest_is() {
    let mut split = Split::new(EVENT);
    split.arm();
    let (first, second) = (split.deliver(1), split.deliver(2));
    assert!(!split.ring.consumed(first) && !split.ring.consumed(second));
    split.queue.set_used_event(&split.guest, 1);
    assert!(split.ring.consumed(first) && !split.ring.consumed(second));
    split.poll(0);
    assert!(!split.ring.consumed(second), "nobody was told");
    split.arm();
    assert!(split.ring.consumed(second));
    assert!(split.ring.consumed(first), "what lies behind it");
}

#[test]
fn an_event_of_zero_says_nothing() {
    let mut split = Split::new(EVENT);
    // The index that it stands for is passed in earnest.
    let position = split.deliver(0);
    split.queue.set_used_event(&split.guest, 0);
    assert_eq!(position, 0);
    split.deliver(1);
    assert!(!split.ring.consumed(1));
    // And when the count comes round, too.
    for _ in 0..65_536 / 4 - 1 {
        split.poll(8);
        split.deliver(4);
    }
    split.poll(8);
    let position = split.deliver(3);
    assert_eq!(position, 0);
    split.poll(0);
    assert!(!split.ring.consumed(position));
}

/// An event that is left behind while the guest polls seems to be where the guest is whenever the count comes round.
#[test]
fn an_event_left_behind_says_nothing_when_the_count_comes_round() {
    let mut split = Split::new(EVENT);
    split.deliver(3);
    split.poll(8);
    split.arm();
    split.deliver(1);
    for _ in 0..65_536 / 4 - 1 {
        split.poll(8);
        split.deliver(4);
    }
    split.poll(8);
    // Three of the four are before the event, and none has been looked at.
    assert_eq!(split.ring.published(), 0);
    let position = split.deliver(3);
    assert_eq!(position, 3);
    assert!(!split.ring.consumed(position));
    split.poll(8);
    split.arm();
    assert!(split.ring.consumed(position), "the same event in earnest");
}

#[test]
fn what_is_offered_anew_was_dealt_with() {
    for features in [PLAIN, EVENT] {
        let mut split = Split::new(features);
        let (first, last) = (split.deliver(1), split.deliver(3));
        assert!(!split.ring.consumed(first));
        split.poll(1);
        assert!(split.ring.consumed(first) && !split.ring.consumed(last));
        split.poll(0);
        assert!(!split.ring.consumed(last));
    }
}

#[test]
fn a_ring_size_later_everything_was_dealt_with() {
    let mut split = Split::new(PLAIN);
    let position = split.deliver(8);
    assert!(!split.ring.consumed(position));
    split.poll(7);
    assert!(!split.ring.consumed(position));
    split.deliver(7);
    split.poll(1);
    assert!(split.ring.consumed(position));
    // From before the ring was.
    assert!(split.ring.consumed(position.wrapping_sub(20_000)));
}

/// More than the ring holds is on offer, if one believes it: the guest's own flows get no order from that, and nobody harm.
#[test]
fn an_index_that_lies_says_nothing() {
    let mut split = Split::new(PLAIN);
    let position = split.deliver(2);
    for offered in [9, 20, 0x8000, 0xffff] {
        let at = split.queue.available() + 2;
        split.guest.write_u16(at, offered + split.queue.seen);
        assert!(
            !split.ring.consumed(position) || offered == 9,
            "{offered} are offered"
        );
    }
}

#[test]
fn a_packed_ring_tells_by_what_is_offered_anew() {
    for size in [5u16, 8] {
        let guest = Guest::new(0x20_000);
        let mut queue = PackedQueue::starting_at(&guest, 0x1000, size, 3);
        let offer = |queue: &mut PackedQueue, id| queue.offer(&guest, id, &[(BUFFER, 2000, WRITE)]);
        let memory = guest.memory(&[]);
        let ring = setup_at(&memory, queue.addresses(), size, EVENT | mask(RING_PACKED));
        let base = crate::ring::layout::Base::Claimed(queue.base(queue.seen));
        let mut ring = RxRing::start(crate::ring::Setup { base, ..ring }).unwrap();
        for id in 0..size {
            offer(&mut queue, id);
        }
        for round in 0..4 * size {
            let (first, last) = (deliver(&mut ring, 1), deliver(&mut ring, 2));
            let consumed = |position| ring.consumed(position);
            assert!(!consumed(first) && !consumed(last), "round {round}");
            let used = queue.take_used(&guest);
            assert!(!consumed(first), "nothing is offered anew");
            offer(&mut queue, used[0].0);
            assert!(consumed(first) && !consumed(last), "round {round}");
            offer(&mut queue, used[1].0);
            assert!(!consumed(last));
            offer(&mut queue, used[2].0);
            assert!(consumed(last) && consumed(first), "round {round}");
        }
    }
}
