//! Every shape of buffer a guest can offer, and what must come of it.

use super::*;
use crate::features::{
    ANY_LAYOUT, NET_MRG_RXBUF, RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, mask,
};
use crate::ring::RxRing;
use crate::testing::{Guest, INDIRECT, NEXT, Queue, WRITE, count, setup};
use proptest::prelude::*;

const PLAIN: u64 = mask(VERSION_1) | mask(RING_INDIRECT_DESC);
const MERGED: u64 = PLAIN | mask(NET_MRG_RXBUF);
const BUFFERS: u64 = 0x10_000;

struct Bench {
    guest: Guest,
    queue: Queue,
    ring: RxRing,
}

impl Bench {
    fn new(features: u64) -> Self {
        let guest = Guest::new(0x20_0000);
        let queue = Queue::new(0x1000, 256);
        let ring = RxRing::start(setup(&guest.memory(&[]), &queue, features)).unwrap();
        Self { guest, queue, ring }
    }

    /// Offers a chain from descriptor `head` on, of pieces of these lengths, each in memory of its own.
    fn offer(&mut self, head: u16, lens: &[u32]) {
        for (index, len) in lens.iter().enumerate() {
            let at = head + index as u16;
            let more = if index + 1 < lens.len() { NEXT } else { 0 };
            self.queue
                .descriptor(&self.guest, at, address(at), *len, WRITE | more, at + 1);
        }
        self.queue.offer(&self.guest, head);
    }

    fn put(&mut self, frame: &[u8]) -> Result<(), RxError> {
        let (head, tail) = frame.split_at(frame.len().min(50));
        let (one, two) = head.split_at(head.len().min(14));
        let (left, right) = tail.split_at(tail.len() / 3);
        let pieces = [Piece::from(left), Piece::from(right)];
        let mut burst = self.ring.begin(1).unwrap();
        let put = burst.put(&header(), &[one, two], Pieces::from_slice(&pieces));
        burst.finish();
        put
    }

    /// The same frame, cut elsewhere, with the sum of its bytes from `from` on put in front of it.
    fn put_summed(&mut self, frame: &[u8], head: usize, cut: usize) -> Result<(), RxError> {
        let (head, tail) = frame.split_at(head.min(frame.len()));
        let (left, right) = tail.split_at(cut.min(tail.len()));
        let pieces = [Piece::from(left), Piece::from(right)];
        let mut head = [&[0; 2], head].concat();
        let mut sum = Sum::new();
        sum.add(&head);
        let mut burst = self.ring.begin(1).unwrap();
        let tail = Pieces::from_slice(&pieces);
        let put = burst.put_summed(&header(), &mut head, tail, sum, |head, sum| {
            head[..2].copy_from_slice(&sum.to_field().to_be_bytes());
        });
        burst.finish();
        put
    }

    /// What the guest finds in the buffers of `used`, of one-piece chains.
    fn received(&self, used: &[(u32, u32)]) -> Vec<u8> {
        used.iter()
            .flat_map(|(head, len)| self.guest.read(address(*head as u16), *len as usize))
            .collect()
    }
}

fn address(descriptor: u16) -> u64 {
    BUFFERS + u64::from(descriptor) * 0x1000
}

fn header() -> VirtioNetHdr {
    VirtioNetHdr {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0xdead,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 11 + at / 256) as u8).collect()
}

fn wire(buffers: u16, frame: &[u8]) -> Vec<u8> {
    let header = VirtioNetHdr {
        num_buffers: buffers,
        ..header()
    };
    [&header.to_bytes()[..], frame].concat()
}

#[test]
fn one_buffer_takes_one_frame() {
    for features in [PLAIN, MERGED] {
        let mut bench = Bench::new(features);
        bench.offer(4, &[2048]);
        let frame = pattern(1000);
        assert_eq!(bench.put(&frame), Ok(()));
        let used = bench.queue.take_used(&bench.guest);
        assert_eq!(used, [(4, 1012)]);
        assert_eq!(bench.received(&used), wire(1, &frame));
        assert_eq!(bench.put(&frame), Err(RxError::Full));
    }
}

#[test]
fn a_legacy_header_has_no_buffer_count() {
    let mut bench = Bench::new(mask(ANY_LAYOUT));
    bench.offer(0, &[10, 2048]);
    let frame = pattern(100);
    assert_eq!(bench.put(&frame), Ok(()));
    assert_eq!(bench.queue.take_used(&bench.guest), [(0, 110)]);
    assert_eq!(bench.guest.read(address(0), 10), wire(0, &[])[..10]);
    assert_eq!(bench.guest.read(address(1), 100), frame);
}

#[test]
fn a_long_frame_is_merged_and_the_header_counts() {
    let mut bench = Bench::new(MERGED);
    for head in 0..50 {
        bench.offer(head, &[1500]);
    }
    let frame = pattern(65_000);
    assert_eq!(bench.put(&frame), Ok(()));
    let used = bench.queue.take_used(&bench.guest);
    assert_eq!(used.len(), 44);
    assert!(used[..43].iter().all(|(_, len)| *len == 1500));
    assert_eq!(bench.received(&used), wire(44, &frame));
    // Six are left, and stay if they do not do.
    assert_eq!(bench.put(&frame), Err(RxError::Full));
    assert_eq!(bench.put(&pattern(6 * 1500 - 12)), Ok(()));
    assert_eq!(bench.queue.take_used(&bench.guest).len(), 6);
}

#[test]
fn without_merging_what_does_not_fit_costs_no_buffer() {
    let mut bench = Bench::new(PLAIN);
    bench.offer(0, &[12, 100]);
    assert_eq!(bench.put(&pattern(101)), Err(RxError::TooBig));
    assert_eq!(bench.queue.take_used(&bench.guest), []);
    assert_eq!(bench.put(&pattern(100)), Ok(()));
    assert_eq!(bench.queue.take_used(&bench.guest), [(0, 112)]);
}

#[test]
fn more_chains_than_a_frame_may_have_is_too_big() {
    let mut bench = Bench::new(MERGED);
    let memory = bench.guest.memory(&[]);
    bench.queue = Queue::new(0x8000, 1024);
    bench.ring = RxRing::start(setup(&memory, &bench.queue, MERGED)).unwrap();
    for head in 0..300 {
        bench
            .queue
            .descriptor(&bench.guest, head, BUFFERS, 20, WRITE, 0);
        bench.queue.offer(&bench.guest, head);
    }
    assert_eq!(bench.put(&pattern(20 * MAX_CHAINS)), Err(RxError::TooBig));
    assert_eq!(bench.put(&pattern(20 * MAX_CHAINS - 12)), Ok(()));
    assert_eq!(bench.queue.take_used(&bench.guest).len(), MAX_CHAINS);
}

/// Receive buffers of 0 to header-1 bytes, and of the header alone.
#[test]
fn runt_buffers_are_returned_empty_and_the_next_frame_passes() {
    for features in [PLAIN, MERGED] {
        for len in 0..=12u32 {
            for cut in 0..=len {
                let mut bench = Bench::new(features);
                bench.offer(0, &[cut, len - cut]);
                bench.offer(2, &[2000]);
                let frame = pattern(60);
                assert_eq!(
                    bench.put(&frame),
                    Err(RxError::Malformed(ChainError::Short))
                );
                assert_eq!(bench.put(&frame), Ok(()));
                assert_eq!(bench.queue.take_used(&bench.guest), [(0, 0), (2, 72)]);
            }
        }
    }
}

#[test]
fn a_malformed_chain_in_the_middle_returns_what_was_collected() {
    let mut bench = Bench::new(MERGED);
    bench.offer(0, &[100]);
    bench
        .queue
        .descriptor(&bench.guest, 1, u64::MAX - 50, 100, WRITE, 0);
    bench.queue.offer(&bench.guest, 1);
    bench.offer(2, &[500]);
    let frame = pattern(300);
    assert_eq!(
        bench.put(&frame),
        Err(RxError::Malformed(ChainError::Unmapped))
    );
    assert_eq!(bench.put(&frame), Ok(()));
    assert_eq!(
        bench.queue.take_used(&bench.guest),
        [(0, 0), (1, 0), (2, 312)]
    );
}

#[test]
fn bad_buffers_are_named() {
    let mut bench = Bench::new(MERGED);
    let put = |bench: &mut Bench, addr, len, flags, next| {
        bench
            .queue
            .descriptor(&bench.guest, 0, addr, len, flags, next);
        bench.queue.offer(&bench.guest, 0);
        bench.put(&pattern(60)).unwrap_err()
    };
    let end = bench.guest.size;
    use ChainError as C;
    for (addr, len, flags, next, error) in [
        (BUFFERS, 100, 0, 0, C::ReadOnly),
        (BUFFERS, 100, NEXT, 0, C::ReadOnly),
        (BUFFERS, 100, WRITE | NEXT, 0, C::Loop),
        (BUFFERS, 100, WRITE | NEXT, 256, C::NextOutOfRange),
        (end - 99, 100, WRITE, 0, C::Unmapped),
        (u64::MAX, 100, WRITE, 0, C::Unmapped),
        (BUFFERS, 100, INDIRECT, 0, C::IndirectLength),
    ] {
        assert_eq!(
            put(&mut bench, addr, len, flags, next),
            RxError::Malformed(error)
        );
    }
    // The same in a table of its own, which is followed.
    bench.guest.descriptor(0x8000, BUFFERS, 50, WRITE | NEXT, 1);
    bench.guest.descriptor(0x8010, BUFFERS + 50, 500, WRITE, 0);
    bench
        .queue
        .descriptor(&bench.guest, 0, 0x8000, 32, INDIRECT, 0);
    bench.queue.offer(&bench.guest, 0);
    let frame = pattern(400);
    assert_eq!(bench.put(&frame), Ok(()));
    assert_eq!(bench.guest.read(BUFFERS, 412), wire(1, &frame));
}

#[test]
fn a_burst_is_published_once_at_its_end() {
    let mut bench = Bench::new(PLAIN);
    for head in 0..8 {
        bench.offer(head, &[500]);
    }
    let mut burst = bench.ring.begin(1).unwrap();
    for _ in 0..5 {
        burst
            .put(&header(), &[&pattern(60)], Pieces::empty())
            .unwrap();
    }
    assert_eq!(bench.queue.used_index(&bench.guest), 0);
    assert_eq!(burst.finish(), 5);
    assert_eq!(bench.queue.used_index(&bench.guest), 5);
    assert_eq!(bench.ring.begin(1).unwrap().finish(), 0);
}

#[test]
fn buffers_offered_during_a_burst_are_found_once() {
    let mut bench = Bench::new(PLAIN);
    bench.offer(0, &[500]);
    let mut burst = bench.ring.begin(1).unwrap();
    assert_eq!(
        burst.put(&header(), &[&pattern(60)], Pieces::empty()),
        Ok(())
    );
    assert_eq!(
        burst.put(&header(), &[&pattern(60)], Pieces::empty()),
        Err(RxError::Full)
    );
    burst.finish();
    bench.offer(1, &[500]);
    assert_eq!(bench.put(&pattern(60)), Ok(()));
}

#[test]
fn indices_that_lie_stop_the_ring() {
    let mut bench = Bench::new(PLAIN);
    bench.guest.write_u16(bench.queue.available() + 2, 65_535);
    assert!(matches!(
        bench.ring.begin(1),
        Err(RingError::AvailableIndex { .. })
    ));
    assert!(bench.ring.error().is_some());

    let mut bench = Bench::new(PLAIN);
    bench.queue.offer(&bench.guest, 256);
    assert_eq!(bench.put(&pattern(60)), Err(RxError::Full));
    assert!(matches!(
        bench.ring.begin(1),
        Err(RingError::Head {
            head: 256,
            size: 256
        })
    ));

    // In the middle of collecting, too.
    let mut bench = Bench::new(MERGED);
    bench.offer(0, &[100]);
    let mut burst = bench.ring.begin(1).unwrap();
    bench.guest.write_u16(bench.queue.available() + 2, 1000);
    let put = burst.put(&header(), &[&pattern(300)], Pieces::empty());
    assert_eq!(put, Err(RxError::Full));
    burst.finish();
    assert!(bench.ring.begin(1).is_err());
}

#[test]
fn calls_are_made_after_finish_and_only_if_wanted() {
    let mut bench = Bench::new(PLAIN | mask(RING_EVENT_IDX));
    let call = bench.ring.call_for_tests();
    count(&call);
    let mut deliver = |event: u16| {
        bench.queue.set_used_event(&bench.guest, event);
        bench.offer(0, &[500]);
        bench.put(&pattern(60)).unwrap();
        let called = bench.ring.signal().unwrap();
        assert!(!bench.ring.signal().unwrap());
        assert_eq!(count(&call), u64::from(called));
        called
    };
    assert_eq!(
        [deliver(9), deliver(9), deliver(2), deliver(2)],
        [true, false, true, false]
    );
}

#[test]
fn what_the_guest_accepts_is_what_it_acknowledged() {
    let all = features::offered(features::Switches::default());
    let accepts = RxFeatures::new(all);
    assert!(accepts.mergeable && accepts.csum && accepts.tso4 && accepts.tso6 && accepts.ecn);
    assert_eq!(RxFeatures::new(PLAIN), RxFeatures::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// However buffers and frames are cut, the guest reads back what was sent, in order, and nothing goes missing.
    #[test]
    fn any_buffers_carry_any_frames(
        chains in prop::collection::vec(prop::collection::vec(1u32..400, 1..4), 1..60),
        frames in prop::collection::vec(1usize..1500, 1..20),
    ) {
        let mut bench = Bench::new(MERGED);
        let mut pieces_of = std::collections::HashMap::new();
        let mut at = 0;
        for chain in &chains {
            if at as usize + chain.len() > 256 { break }
            bench.offer(at, chain);
            pieces_of.insert(u32::from(at), chain.clone());
            at += chain.len() as u16;
        }
        for (index, len) in frames.iter().enumerate() {
            let frame: Vec<u8> = pattern(*len).iter().map(|byte| byte ^ index as u8).collect();
            let put = bench.put(&frame);
            let used = bench.queue.take_used(&bench.guest);
            match put {
                Err(RxError::Full) => prop_assert!(used.is_empty()),
                Err(RxError::Malformed(ChainError::Short)) => {
                    prop_assert!(used.iter().all(|(_, len)| *len == 0));
                    prop_assert!(pieces_of[&used[0].0].iter().sum::<u32>() <= 12);
                }
                Err(other) => prop_assert!(false, "{other}"),
                Ok(()) => {
                    let mut read = Vec::new();
                    for (head, len) in &used {
                        let mut left = *len;
                        for (index, piece) in pieces_of[head].iter().enumerate() {
                            let here = left.min(*piece);
                            read.extend(bench.guest.read(address(*head as u16 + index as u16), here as usize));
                            left -= here;
                        }
                        prop_assert_eq!(left, 0);
                    }
                    prop_assert_eq!(read, wire(used.len() as u16, &frame));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn a_frame_summed_on_its_way_is_whole_and_so_is_its_sum(
        len in 0usize..5000,
        head in 0usize..200,
        cut in 0usize..3000,
        room in 13u32..2000,
    ) {
        let mut bench = Bench::new(MERGED);
        let count = (len + 14).div_ceil(room as usize).max(1);
        prop_assume!(count <= 250);
        // One more than it takes: that one must stay.
        for at in 0..=count as u16 {
            bench.offer(at, &[room]);
        }
        let frame = pattern(len);
        prop_assert_eq!(bench.put_summed(&frame, head, cut), Ok(()));
        let used = bench.queue.take_used(&bench.guest);
        prop_assert_eq!(used.len(), count);
        let mut sum = Sum::new();
        sum.add(&frame);
        let whole = [&sum.to_field().to_be_bytes()[..], &frame].concat();
        prop_assert_eq!(bench.received(&used), wire(count as u16, &whole));
    }
}

#[test]
fn what_cannot_be_delivered_with_a_sum_costs_no_buffer() {
    let mut bench = Bench::new(PLAIN);
    bench.offer(0, &[10, 4, 100]);
    assert_eq!(bench.put_summed(&pattern(101), 20, 7), Err(RxError::TooBig));
    assert_eq!(bench.queue.take_used(&bench.guest), []);
    assert_eq!(bench.put_summed(&pattern(100), 20, 7), Ok(()));
    assert_eq!(bench.queue.take_used(&bench.guest), [(0, 114)]);
    assert_eq!(bench.put_summed(&pattern(100), 20, 7), Err(RxError::Full));
}
