//! Every shape of chain a guest can send, and what must come of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::*;
use crate::features::{ANY_LAYOUT, RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, mask};
use crate::ring::TxRing;
use crate::testing::{Guest, INDIRECT, NEXT, Queue, WRITE, count, setup};
use proptest::prelude::*;

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

    fn call(&self) -> Arc<OwnedFd> {
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

#[test]
fn header_and_frame_arrive_however_the_chain_is_cut() {
    let mut bench = Bench::new(MODERN, 256, &[]);
    let frame = pattern(300);
    let bytes = [&header()[..], &frame].concat();
    for first in 0..=bytes.len() {
        for second in [
            first,
            first + 1,
            first + 11,
            first + 12,
            first + 192,
            bytes.len(),
        ] {
            let second = second.min(bytes.len());
            let cuts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            bench.send(0, &cuts);
            let frames = bench.drain();
            let (header, read) = frames[0].clone().unwrap();
            assert_eq!(read, frame);
            assert_eq!(header, VirtioNetHdr::from_bytes(&self::header()));
            assert_eq!(bench.queue.take_used(&bench.guest), [(0, 0)]);
        }
    }
    let one_by_one: Vec<&[u8]> = bytes[..200].chunks(1).collect();
    bench.send(0, &one_by_one);
    assert_eq!(bench.drain()[0].clone().unwrap().1, &frame[..188]);
}

#[test]
fn a_legacy_header_is_two_bytes_shorter() {
    let mut bench = Bench::new(mask(ANY_LAYOUT), 8, &[]);
    let frame = pattern(60);
    bench.send(0, &[&header()[..10], &frame]);
    let (header, read) = bench.drain().remove(0).unwrap();
    assert_eq!(read, frame);
    assert_eq!(header.csum_offset, 16);
    assert_eq!(header.num_buffers, 0);
}

#[test]
fn chains_of_header_or_less_are_named_and_returned() {
    for len in 0..=12 {
        for cut in 0..=len {
            let mut bench = Bench::new(MODERN, 8, &[]);
            let bytes = header();
            bench.send(3, &[&bytes[..cut], &bytes[cut..len]]);
            let expected = if len < 12 {
                ChainError::Short
            } else {
                ChainError::Empty
            };
            assert_eq!(bench.drain(), [Err(expected)]);
            assert_eq!(bench.queue.take_used(&bench.guest), [(3, 0)]);
        }
    }
}

#[test]
fn the_longest_frame_passes_and_one_byte_more_does_not() {
    for (len, fits) in [(MAX_FRAME, true), (MAX_FRAME + 1, false)] {
        let mut bench = Bench::new(MODERN, 8, &[]);
        let frame = pattern(len);
        bench.send(0, &[&header(), &frame]);
        let read = bench.drain().remove(0);
        assert_eq!(
            read.map(|(_, read)| read == frame),
            if fits {
                Ok(true)
            } else {
                Err(ChainError::TooLong)
            }
        );
    }
}

#[test]
fn a_buffer_over_two_regions_is_one_frame_and_past_the_end_is_none() {
    let cut = BUFFERS + 100;
    let mut bench = Bench::new(MODERN, 8, &[cut]);
    let frame = pattern(1000);
    bench.send(0, &[&[&header()[..], &frame].concat()]);
    assert_eq!(bench.drain()[0].clone().unwrap().1, frame);

    let end = bench.guest.size;
    for (addr, len) in [
        (end - 100, 101),
        (end, 1),
        (u64::MAX, 1),
        (u64::MAX - 10, 100),
        (1 << 40, 60),
    ] {
        bench.queue.descriptor(&bench.guest, 0, addr, len, 0, 0);
        bench.queue.offer(&bench.guest, 0);
        assert_eq!(
            bench.drain(),
            [Err(ChainError::Unmapped)],
            "{addr:#x} {len}"
        );
    }
}

#[test]
fn a_gap_between_regions_is_not_read_over() {
    let guest = Guest::new(0x10_0000);
    let mut queue = Queue::new(0x1000, 8);
    let memory = guest.memory(&[0x2_0000, 0x3_0000]);
    let gap = memory
        .without(guest.spec(0x2_0000, 0x3_0000))
        .map(Arc::new)
        .unwrap();
    let mut ring = TxRing::start(setup(&gap, &queue, MODERN)).unwrap();
    let mut scratch = TxScratch::new();
    for (addr, len) in [(0x1_fff0, 0x20), (0x2_0000, 0x20), (0x1_fff0, 0x1_0020)] {
        queue.descriptor(&guest, 0, addr, len, 0, 0);
        queue.offer(&guest, 0);
        let burst = ring.take(&mut scratch, 32).unwrap();
        assert_eq!(burst.frame(0).unwrap_err(), ChainError::Unmapped);
    }
}

/// Zero-length and unmapped descriptors among good ones, in a full burst.
#[test]
fn one_bad_chain_costs_only_itself() {
    let mut bench = Bench::new(MODERN, 256, &[]);
    let frame = pattern(60);
    for index in 0..32u16 {
        let at = index * 4;
        match index % 4 {
            0 => bench.send(at, &[b"", &header(), b"", &frame]),
            1 => {
                bench
                    .queue
                    .descriptor(&bench.guest, at, u64::MAX - 4, 60, 0, 0);
                bench.queue.offer(&bench.guest, at);
            }
            2 => {
                bench.queue.descriptor(&bench.guest, at, u64::MAX, 0, 0, 0);
                bench.queue.offer(&bench.guest, at);
            }
            _ => bench.send(at, &[&header(), &frame]),
        }
    }
    let burst = bench.ring.take(&mut bench.scratch, 32).unwrap();
    assert_eq!(burst.len(), 32);
    for (index, read) in burst.iter().enumerate() {
        match index % 4 {
            1 => assert_eq!(read.unwrap_err(), ChainError::Unmapped),
            2 => assert_eq!(read.unwrap_err(), ChainError::Short),
            _ => assert_eq!(whole(read.unwrap()), frame),
        }
    }
    assert!(bench.ring.complete());
    let used = bench.queue.take_used(&bench.guest);
    assert_eq!(
        used,
        (0..32).map(|index| (index * 4, 0)).collect::<Vec<_>>()
    );
}

#[test]
fn loops_and_wild_next_indices_end() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    let offer = |bench: &mut Bench, entries: &[(u16, u16)]| {
        for (index, (flags, next)) in entries.iter().enumerate() {
            bench
                .queue
                .descriptor(&bench.guest, index as u16, BUFFERS, 16, *flags, *next);
        }
        bench.queue.offer(&bench.guest, 0);
        bench.drain()
    };
    assert_eq!(offer(&mut bench, &[(NEXT, 0)]), [Err(ChainError::Loop)]);
    assert_eq!(
        offer(&mut bench, &[(NEXT, 1), (NEXT, 0)]),
        [Err(ChainError::Loop)]
    );
    for next in [8, 9, u16::MAX] {
        assert_eq!(
            offer(&mut bench, &[(NEXT, next)]),
            [Err(ChainError::NextOutOfRange)]
        );
    }
    assert_eq!(
        offer(&mut bench, &[(WRITE, 0)]),
        [Err(ChainError::Writable)]
    );
    // As long as the ring is legal.
    let longest: Vec<_> = (0..8)
        .map(|at| (if at < 7 { NEXT } else { 0 }, at + 1))
        .collect();
    assert!(offer(&mut bench, &longest)[0].is_ok());
}

#[test]
fn indirect_tables_are_followed_and_bad_ones_named() {
    const TABLE: u64 = 0x8_0000;
    let mut bench = Bench::new(MODERN, 8, &[TABLE + 24]);
    let frame = pattern(500);
    bench.guest.write(BUFFERS, &header());
    bench.guest.write(BUFFERS + 0x100, &frame);
    let offer = |bench: &mut Bench, table: u64, len: u32, flags: u16| {
        bench
            .queue
            .descriptor(&bench.guest, 0, table, len, flags, 5);
        bench.queue.offer(&bench.guest, 0);
        bench.drain().remove(0).map(|(_, read)| read)
    };
    // Aligned, misaligned, and with an entry that straddles two regions.
    for table in [TABLE + 0x1000, TABLE + 0x1003, TABLE] {
        bench.guest.descriptor(table, BUFFERS, 12, NEXT, 1);
        bench
            .guest
            .descriptor(table + 16, BUFFERS + 0x100, 500, 0, 0);
        assert_eq!(offer(&mut bench, table, 32, INDIRECT), Ok(frame.clone()));
        assert_eq!(offer(&mut bench, table, 64, INDIRECT), Ok(frame.clone()));
    }
    let bad = TABLE + 0x2000;
    bench.guest.descriptor(bad, BUFFERS, 12, NEXT, 1);
    for len in [0, 1, 15, 17, 31, 33, 16 * 1025, u32::MAX, u32::MAX - 15] {
        assert_eq!(
            offer(&mut bench, bad, len, INDIRECT),
            Err(ChainError::IndirectLength)
        );
    }
    assert_eq!(
        offer(&mut bench, bad, 16, INDIRECT),
        Err(ChainError::NextOutOfRange)
    );
    assert_eq!(
        offer(&mut bench, bad, 32, INDIRECT | NEXT),
        Err(ChainError::IndirectMisplaced)
    );
    assert_eq!(
        offer(&mut bench, 1 << 50, 32, INDIRECT),
        Err(ChainError::Unmapped)
    );
    assert_eq!(
        offer(&mut bench, u64::MAX - 15, 32, INDIRECT),
        Err(ChainError::Unmapped)
    );
    bench.guest.descriptor(bad, BUFFERS, 32, INDIRECT, 1);
    assert_eq!(
        offer(&mut bench, bad, 32, INDIRECT),
        Err(ChainError::IndirectMisplaced)
    );
    bench.guest.descriptor(bad, BUFFERS, 32, NEXT, 0);
    assert_eq!(offer(&mut bench, bad, 32, INDIRECT), Err(ChainError::Loop));

    let mut without = Bench::new(mask(VERSION_1), 8, &[]);
    assert_eq!(
        offer(&mut without, bad, 32, INDIRECT),
        Err(ChainError::IndirectMisplaced)
    );
}

#[test]
fn an_available_index_that_jumps_stops_the_ring_for_good() {
    for jump in [9u16, 300, 32_768, 65_535] {
        let mut bench = Bench::new(MODERN, 8, &[]);
        bench.guest.write_u16(bench.queue.available() + 2, jump);
        assert!(bench.ring.has_work());
        let error = bench
            .ring
            .take(&mut bench.scratch, 32)
            .unwrap_err_of_burst();
        assert_eq!(
            error,
            RingError::AvailableIndex {
                available: jump,
                next: 0,
                size: 8
            }
        );
        bench.guest.write_u16(bench.queue.available() + 2, 0);
        assert!(
            bench.ring.take(&mut bench.scratch, 32).is_err(),
            "stays stopped"
        );
        assert!(!bench.ring.has_work() && !bench.ring.arm() && !bench.ring.complete());
        assert_eq!(bench.ring.error(), Some(error));
    }
}

trait BurstError {
    fn unwrap_err_of_burst(self) -> RingError;
}

impl BurstError for Result<TxBurst<'_>, RingError> {
    fn unwrap_err_of_burst(self) -> RingError {
        match self {
            Ok(_) => panic!("the ring did not break"),
            Err(error) => error,
        }
    }
}

#[test]
fn a_head_outside_the_table_stops_the_ring_after_what_came_before() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    let frame = pattern(60);
    bench.send(0, &[&header(), &frame]);
    bench.queue.offer(&bench.guest, 8);
    assert_eq!(bench.ring.take(&mut bench.scratch, 32).unwrap().len(), 1);
    assert!(bench.ring.complete());
    let error = bench
        .ring
        .take(&mut bench.scratch, 32)
        .unwrap_err_of_burst();
    assert_eq!(error, RingError::Head { head: 8, size: 8 });
    assert_eq!(bench.queue.take_used(&bench.guest), [(0, 0)]);
    assert_eq!(bench.ring.settle(), 1);
}

#[test]
fn bursts_respect_max_and_nothing_is_published_before_complete() {
    let mut bench = Bench::new(MODERN, 256, &[]);
    for index in 0..50 {
        bench.send(index * 2, &[&header(), &pattern(64)]);
    }
    assert_eq!(bench.ring.take(&mut bench.scratch, 0).unwrap().len(), 0);
    assert_eq!(bench.ring.take(&mut bench.scratch, 5).unwrap().len(), 5);
    assert_eq!(bench.queue.used_index(&bench.guest), 0);
    assert!(bench.ring.complete());
    assert!(!bench.ring.complete());
    assert_eq!(bench.queue.used_index(&bench.guest), 5);
    assert_eq!(
        bench.ring.take(&mut bench.scratch, 1000).unwrap().len(),
        MAX_BURST
    );
    // A take completes what was taken before.
    assert_eq!(bench.ring.take(&mut bench.scratch, 1000).unwrap().len(), 13);
    assert_eq!(bench.queue.used_index(&bench.guest), 37);
}

#[test]
fn long_chains_end_a_burst_early_and_lose_nothing() {
    let guest = Guest::new(0x20_0000);
    let queue = Queue::new(0x1000, 32_768);
    let mut bench = Bench::with(guest, queue, MODERN, &[]);
    // Ten chains of a thousand one-byte buffers.
    for chain in 0..10u16 {
        for index in 0..1000 {
            let at = chain * 1000 + index;
            let flags = if index < 999 { NEXT } else { 0 };
            bench.queue.descriptor(
                &bench.guest,
                at,
                0x10_0000 + u64::from(index),
                1,
                flags,
                at + 1,
            );
        }
        bench.queue.offer(&bench.guest, chain * 1000);
    }
    let mut lens = Vec::new();
    loop {
        let burst = bench.ring.take(&mut bench.scratch, 32).unwrap();
        if burst.is_empty() {
            break;
        }
        assert!(burst.iter().all(|frame| frame.unwrap().len == 988));
        lens.push(burst.len());
    }
    assert_eq!(lens.iter().sum::<usize>(), 10);
    assert!(lens.iter().all(|len| *len <= 2), "{lens:?}");
}

#[test]
fn a_chain_longer_than_any_driver_makes_is_named() {
    let guest = Guest::new(0x20_0000);
    let queue = Queue::new(0x1000, 8192);
    let mut bench = Bench::with(guest, queue, MODERN, &[]);
    for len in [1024u16, 1025] {
        for index in 0..len {
            let flags = if index + 1 < len { NEXT } else { 0 };
            bench
                .queue
                .descriptor(&bench.guest, index, 0x10_0000, 1, flags, index + 1);
        }
        bench.queue.offer(&bench.guest, 0);
        let expected = if len == 1024 {
            Ok(1012)
        } else {
            Err(ChainError::Loop)
        };
        let read = bench.drain().remove(0).map(|(_, read)| read.len());
        assert_eq!(read, expected);
    }
}

/// Chains are resolved ahead of the index at which the ring stands, so one that goes back would leave them behind it.
#[test]
fn an_available_index_that_goes_back_stops_the_ring() {
    for back_to in [32, 33, 63] {
        let mut bench = Bench::new(MODERN, 256, &[]);
        let frame = [&header()[..], &pattern(60)].concat();
        for head in 0..64 {
            bench.send(head, &[&frame]);
        }
        assert_eq!(bench.ring.take(&mut bench.scratch, 32).unwrap().len(), 32);
        bench.guest.write_u16(bench.queue.available() + 2, back_to);
        assert!(matches!(
            bench.ring.take(&mut bench.scratch, 32),
            Err(RingError::AvailableIndex { next: 32, .. })
        ));
    }
}

/// Memory in crumbs makes many pieces of few descriptors.
#[test]
fn a_frame_in_too_many_pieces_is_named_and_costs_only_itself() {
    let cuts: Vec<u64> = (0..500).map(|crumb| 0x8_0000 + crumb * 8).collect();
    let mut bench = Bench::new(MODERN, 32, &cuts);
    let span = 499 * 8;
    for index in 0..16 {
        let flags = if index < 15 { NEXT } else { 0 };
        bench
            .queue
            .descriptor(&bench.guest, index, 0x8_0000, span, flags, index + 1);
    }
    bench.send(16, &[&header(), &pattern(60)]);
    bench.queue.offer(&bench.guest, 0);
    bench.send(18, &[&header(), &pattern(60)]);
    let frames = bench.drain();
    assert!(frames[0].is_ok() && frames[2].is_ok());
    assert_eq!(frames[1], Err(ChainError::TooManyPieces));
    let used = bench.queue.take_used(&bench.guest);
    assert_eq!(used, [(16, 0), (0, 0), (18, 0)]);
}

/// Another thread of the guest rewrites everything a chain consists of while it is taken.
#[test]
fn racing_descriptors_lengths_and_headers_are_survived() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const TABLE: u64 = 0x8_0000;
    let mut bench = Bench::new(MODERN, 16, &[0x9_0000]);
    let file = bench.guest.file.try_clone().unwrap();
    let (size, at) = (bench.guest.size, bench.queue.at);
    let stop = Arc::new(AtomicBool::new(false));
    let mutator = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let guest = Guest { file, size };
            let mut seed = 1u64;
            while !stop.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let pick = |bits: u32, below: u64| (seed >> bits) % below;
                let entry = if pick(20, 2) == 0 { at } else { TABLE } + 16 * pick(24, 16);
                let addr =
                    [BUFFERS, TABLE, 0x8_fff0, size - 40, u64::MAX - 40][pick(30, 5) as usize];
                let len = [0, 11, 16, 32, 48, 100, 256, 70_000][pick(36, 8) as usize];
                guest.descriptor(
                    entry,
                    addr,
                    len,
                    pick(44, 8) as u16 & !WRITE,
                    pick(50, 17) as u16,
                );
                guest.write(BUFFERS, &seed.to_le_bytes());
            }
        }
    });
    let mut taken = 0;
    for round in 0..200_000u32 {
        bench.queue.offer(&bench.guest, (round % 16) as u16);
        let burst = bench.ring.take(&mut bench.scratch, 32).unwrap();
        for frame in burst.iter().flatten() {
            assert!(frame.len as usize <= MAX_FRAME);
            whole(frame);
            taken += 1;
        }
        bench.ring.complete();
        if taken > 2_000 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    mutator.join().unwrap();
    assert!(taken > 0);
}

#[test]
fn indices_wrap() {
    let guest = Guest::new(0x10_0000);
    let queue = Queue::starting_at(&guest, 0x1000, 8, 65_530);
    let mut bench = Bench::with(guest, queue, EVENT, &[]);
    for index in 0..20u16 {
        bench.send(
            index % 4 * 2,
            &[&header(), &pattern(60 + usize::from(index))],
        );
        let frames = bench.drain();
        assert_eq!(frames[0].as_ref().unwrap().1.len(), 60 + usize::from(index));
        assert_eq!(bench.queue.take_used(&bench.guest).len(), 1);
    }
    assert_eq!(bench.queue.used_index(&bench.guest), 14);
}

#[test]
fn a_ring_resumes_where_the_used_ring_stands() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    for round in 0..3u8 {
        bench.send(0, &[&header(), &[round; 60]]);
        bench.send(2, &[&header(), &[round; 61]]);
        assert_eq!(bench.ring.take(&mut bench.scratch, 1).unwrap().len(), 1);
        bench.ring.complete();
        // The switch dies here; another takes over.
        let memory = bench.guest.memory(&[]);
        bench.ring = TxRing::start(setup(&memory, &bench.queue, MODERN)).unwrap();
        let frames = bench.drain();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].clone().unwrap().1, [round; 61]);
        assert_eq!(bench.queue.take_used(&bench.guest), [(0, 0), (2, 0)]);
    }
}

#[test]
fn calls_follow_the_guests_flag_without_event_index() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    let call = bench.call();
    assert_eq!(
        count(&call),
        1,
        "a ring that starts calls once, for its predecessor"
    );
    assert!(!bench.ring.signal().unwrap(), "nothing happened");
    for (suppressed, calls) in [(false, 1), (true, 0), (false, 1)] {
        bench.queue.set_no_interrupt(&bench.guest, suppressed);
        bench.send(0, &[&header(), &pattern(60)]);
        bench.drain();
        assert_eq!(bench.ring.signal().unwrap(), calls == 1);
        assert!(!bench.ring.signal().unwrap(), "once");
        assert_eq!(count(&call), calls);
    }
}

#[test]
fn calls_follow_the_event_index() {
    let mut bench = Bench::new(EVENT, 8, &[]);
    let call = bench.call();
    count(&call);
    let mut step = |event: u16| {
        bench.queue.set_used_event(&bench.guest, event);
        bench.send(0, &[&header(), &pattern(60)]);
        bench.drain();
        bench.ring.signal().unwrap()
    };
    assert!(step(100), "the first question is answered yes");
    assert!(!step(100));
    assert!(step(2), "the third entry was asked for");
    assert!(!step(2), "stale");
    assert_eq!(count(&call), 2);
    bench.ring.set_call(Some(crate::testing::event()));
    assert_eq!(count(&bench.call()), 1, "a new descriptor is tried at once");
}

#[test]
fn arming_asks_looks_again_and_disarming_declines() {
    for features in [MODERN, EVENT] {
        let mut bench = Bench::new(features, 8, &[]);
        let declined = |bench: &Bench| {
            if features == EVENT {
                let next = bench.ring.base_for_tests() as u16;
                bench.queue.available_event(&bench.guest) != next
            } else {
                bench.queue.used_flags(&bench.guest) == 1
            }
        };
        assert!(declined(&bench), "a ring starts polled");
        assert!(!bench.ring.arm());
        assert!(!declined(&bench));
        bench.ring.disarm();
        assert!(declined(&bench));
        bench.send(0, &[&header(), &pattern(60)]);
        assert!(bench.ring.arm(), "work is there already");
        bench.ring.disarm();
        assert_eq!(bench.drain().len(), 1);
        assert!(!bench.ring.arm());
    }
}

#[test]
fn draining_a_kick_never_sleeps() {
    let bench = Bench::new(MODERN, 8, &[]);
    let kick = bench.ring.kick().unwrap();
    rustix::io::write(kick, &3u64.to_ne_bytes()).unwrap();
    let flags = rustix::fs::fcntl_getfl(kick).unwrap();
    rustix::fs::fcntl_setfl(kick, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    bench.ring.drain_kick();
    bench.ring.drain_kick();
    rustix::fs::fcntl_setfl(kick, flags).unwrap();
    assert!(rustix::io::read(kick, &mut [0; 8]).is_err(), "taken back");
}

#[test]
fn memory_cut_short_stops_the_ring() {
    crate::memory::install_sigbus_guard().unwrap();
    let mut bench = Bench::new(MODERN, 8, &[]);
    let mut other = Bench::new(MODERN, 8, &[]);
    bench.guest.file.set_len(0).unwrap();
    // The ring reads zeros at first: nothing on offer.
    let _ = bench
        .ring
        .take(&mut bench.scratch, 32)
        .map(|burst| burst.len());
    let error = bench
        .ring
        .take(&mut bench.scratch, 32)
        .unwrap_err_of_burst();
    assert_eq!(error, RingError::MemoryLost);
    other.send(0, &[&header(), &pattern(60)]);
    assert_eq!(other.drain().len(), 1, "another guest's ring goes on");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever the ring's memory holds, taking ends, and returns as many chains as it says.
    #[test]
    fn any_bytes_in_the_ring_are_survived(
        noise in prop::collection::vec(any::<u8>(), 512),
        near in prop::collection::vec((0u64..0x11_0000, 0u32..0x3000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 16),
        ahead in 0u16..20,
    ) {
        let mut bench = Bench::new(MODERN, 16, &[0x4_0000, 0x8_0000]);
        bench.guest.write(0x8_0000, &noise);
        for (index, (addr, len, flags, next)) in near.iter().enumerate() {
            bench.queue.descriptor(&bench.guest, index as u16, *addr, *len, *flags, *next);
        }
        for (index, head) in heads.iter().enumerate() {
            bench.guest.write_u16(bench.queue.available() + 4 + 2 * index as u64, *head);
        }
        bench.guest.write_u16(bench.queue.available() + 2, ahead);
        let mut taken = 0;
        for _ in 0..40 {
            let Ok(burst) = bench.ring.take(&mut bench.scratch, 32) else { break };
            taken += burst.len();
            for frame in burst.iter().flatten() {
                whole(frame);
            }
        }
        prop_assert!(taken <= 16);
        prop_assert_eq!(bench.ring.settle() as usize, taken);
        prop_assert_eq!(bench.queue.take_used(&bench.guest).len(), taken);
    }
}
