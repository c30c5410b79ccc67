//! Both directions over a packed ring, against a driver that counts instead of wrapping.

use std::collections::VecDeque;

use proptest::prelude::*;
use vswitch_packet::VirtioNetHdr;

use super::*;
use crate::features::{
    NET_MRG_RXBUF, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1, mask,
};
use crate::memory::{Piece, Pieces};
use crate::ring::{MAX_BURST, RxError, RxRing, Setup, TxRing, TxScratch};
use crate::testing::{Guest, PackedQueue, WRITE, count, setup_at};

const DIRECT: u64 = mask(VERSION_1) | mask(RING_PACKED);
const MODERN: u64 = DIRECT | mask(RING_INDIRECT_DESC);
const EVENT: u64 = MODERN | mask(RING_EVENT_IDX);
const RING: u64 = 0x1000;
const TABLES: u64 = 0x4_0000;
const BUFFERS: u64 = 0x8_0000;
const MEMORY: u64 = 0x20_0000;
/// Two regions meet in the middle of where buffers are.
const SEAM: u64 = 0x10_0000;

fn setup(guest: &Guest, queue: &PackedQueue, features: u64) -> Setup {
    Setup {
        base: Base::Claimed(queue.base(queue.seen)),
        ..setup_at(
            &guest.memory(&[SEAM]),
            queue.addresses(),
            queue.size,
            features,
        )
    }
}

fn transmit(guest: &Guest, queue: &PackedQueue, features: u64) -> (TxRing, TxScratch) {
    let ring = TxRing::start(setup(guest, queue, features)).unwrap();
    (ring, TxScratch::new())
}

/// Everything on offer: whole frames, header included, or what was wrong; given back.
fn drain(ring: &mut TxRing, scratch: &mut TxScratch) -> Vec<Result<Vec<u8>, ChainError>> {
    let mut frames = Vec::new();
    loop {
        let burst = ring.take(scratch, MAX_BURST).unwrap();
        if burst.is_empty() {
            return frames;
        }
        for frame in burst.iter() {
            frames.push(frame.map(|frame| {
                let mut bytes = frame.header.to_bytes().to_vec();
                bytes.extend(frame.head);
                let mut tail = vec![0; frame.tail.len()];
                frame.tail.copy_to(0, &mut tail);
                bytes.extend(tail);
                bytes
            }));
        }
        ring.complete();
    }
}

fn noise(guest: &Guest, seed: u8) {
    let bytes: Vec<u8> = (BUFFERS..MEMORY)
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ seed)
        .collect();
    guest.write(BUFFERS, &bytes);
}

/// Address, length and flags of a descriptor.
type Offered = (u64, u32, u16);

/// A chain as the driver writes it: its buffers, and whether they are in an indirect table.
#[derive(Clone, Debug)]
struct Sent {
    buffers: Vec<(u64, u32)>,
    indirect: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let buffer = (
        BUFFERS..MEMORY - 3000,
        prop_oneof![Just(0u32), 1u32..64, 64u32..3000],
    );
    let near_seam = (SEAM - 40..SEAM, 0u32..200);
    let buffers = prop::collection::vec(prop_oneof![3 => buffer, 1 => near_seam], 1..6);
    (buffers, any::<bool>()).prop_map(|(buffers, indirect)| Sent { buffers, indirect })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any chains, any ring size, from any place: bytes, ids and order are the driver's.
    #[test]
    fn what_a_driver_sends_arrives(
        rounds in prop::collection::vec(prop::collection::vec(sent(), 1..10), 1..12),
        size in 6u16..70,
        start in 0u64..1000,
        seed: u8,
    ) {
        let guest = Guest::new(MEMORY);
        noise(&guest, seed);
        let mut queue = PackedQueue::starting_at(&guest, RING, size, start);
        let (mut ring, mut scratch) = transmit(&guest, &queue, MODERN);
        prop_assert_eq!(ring.base_for_tests(), queue.base(start));
        for round in rounds {
            let mut expected = Vec::new();
            for (number, chain) in round.iter().enumerate() {
                let slots = if chain.indirect { 1 } else { chain.buffers.len() as u64 };
                if queue.free() < slots {
                    break;
                }
                // Ids are the driver's business.
                let id = 0x8000 + 7 * number as u16;
                let buffers: Vec<_> = chain.buffers.iter().map(|(addr, len)| (*addr, *len, 0)).collect();
                if chain.indirect {
                    queue.offer_table(&guest, id, TABLES + 0x100 * number as u64, &buffers);
                } else {
                    queue.offer(&guest, id, &buffers);
                }
                let bytes: Vec<u8> = buffers.iter().flat_map(|(addr, len, _)| guest.read(*addr, *len as usize)).collect();
                expected.push((id, bytes));
            }
            let frames = drain(&mut ring, &mut scratch);
            prop_assert_eq!(frames.len(), expected.len());
            for (frame, (_, bytes)) in frames.iter().zip(&expected) {
                match frame {
                    Err(ChainError::Short) => prop_assert!(bytes.len() < 12),
                    Err(ChainError::Empty) => prop_assert_eq!(bytes.len(), 12),
                    Err(other) => prop_assert!(false, "{}", other),
                    Ok(frame) => prop_assert_eq!(frame, bytes),
                }
            }
            let returned = queue.take_used(&guest);
            let wanted: Vec<_> = expected.iter().map(|(id, _)| (*id, 0, 0)).collect();
            prop_assert_eq!(returned, wanted);
            prop_assert_eq!(queue.seen, queue.offered);
            prop_assert_eq!(ring.settle(), queue.base(queue.seen));
        }
    }

    /// Any buffers, merged or not: what is delivered is what lies in the buffers that came back.
    #[test]
    fn what_is_delivered_is_received(
        lens in prop::collection::vec(1usize..4000, 1..60),
        buffers in prop::collection::vec((prop::collection::vec(1u32..1500, 1..4), any::<bool>()), 60),
        size in 4u16..40,
        start in 0u64..200,
        merged: bool,
        posted in 1usize..20,
    ) {
        let guest = Guest::new(MEMORY);
        let mut queue = PackedQueue::starting_at(&guest, RING, size, start);
        let features = MODERN | if merged { mask(NET_MRG_RXBUF) } else { 0 };
        let mut ring = RxRing::start(setup(&guest, &queue, features)).unwrap();
        let mut supply = buffers.into_iter().cycle();
        let mut out = VecDeque::new();
        for (number, len) in lens.into_iter().enumerate() {
            while out.len() < posted {
                let Some((pieces, indirect)) = supply.next() else { break };
                let slots = if indirect { 1 } else { pieces.len() as u64 };
                if queue.free() < slots {
                    break;
                }
                let id = (0..).find(|id| !out.iter().any(|(out, _)| out == id)).unwrap_or(0);
                let chain: Vec<_> = pieces.iter().enumerate()
                    .map(|(piece, len)| (BUFFERS + 0x2000 * u64::from(id) + 0x800 * piece as u64, *len, WRITE))
                    .collect();
                if indirect {
                    queue.offer_table(&guest, id, TABLES + 0x100 * u64::from(id), &chain);
                } else {
                    queue.offer(&guest, id, &chain);
                }
                out.push_back((id, chain));
            }
            let frame: Vec<u8> = (0..len).map(|at| (at * 11 + at / 256 + number) as u8).collect();
            let mut burst = ring.begin(1).unwrap();
            let pieces = [Piece::from(&frame[len / 2..])];
            let put = burst.put(&VirtioNetHdr::default(), &[&frame[..len / 2]], Pieces::from_slice(&pieces));
            burst.finish();
            let used = queue.take_used(&guest);
            let mut read = Vec::new();
            for (id, len, flags) in &used {
                let (expected, chain) = out.pop_front().unwrap();
                prop_assert_eq!(*id, expected);
                prop_assert_eq!(*flags, if *len > 0 { WRITE } else { 0 });
                let bytes = chain.iter().flat_map(|(addr, len, _)| guest.read(*addr, *len as usize));
                read.extend(bytes.take(*len as usize));
            }
            match put {
                Ok(()) => {
                    let header = VirtioNetHdr { num_buffers: used.len() as u16, ..VirtioNetHdr::default() };
                    prop_assert_eq!(read, [&header.to_bytes()[..], &frame].concat());
                    prop_assert!(merged || used.len() == 1);
                }
                Err(RxError::Malformed(ChainError::Short)) => prop_assert!(read.is_empty() && !used.is_empty()),
                Err(RxError::Full | RxError::TooBig) => prop_assert_eq!(used.len(), 0),
                Err(other) => prop_assert!(false, "{}", other),
            }
            if put == Err(RxError::TooBig) {
                // The guest posts others, or it would not go on.
                break;
            }
        }
        prop_assert_eq!(ring.settle(), queue.base(queue.seen));
    }

    /// An event fires exactly when its slot is among those used since the last test.
    #[test]
    fn calls_come_when_the_slot_asked_for_is_used(
        size in 4u16..50,
        start in 0u64..200,
        bursts in prop::collection::vec((1u64..4, 0u64..60), 1..40),
    ) {
        let guest = Guest::new(MEMORY);
        let mut queue = PackedQueue::starting_at(&guest, RING, size, start);
        let (mut ring, mut scratch) = transmit(&guest, &queue, EVENT);
        let call = ring.call_for_tests();
        // The first answer after the start is always yes.
        queue.offer(&guest, 0, &[(BUFFERS, 60, 0)]);
        drain(&mut ring, &mut scratch);
        ring.signal().unwrap();
        count(&call);
        queue.take_used(&guest);
        for (burst, ahead) in bursts {
            let before = queue.seen;
            // As far as one turn ahead, and what has just passed.
            let event = (before + ahead % u64::from(size)).saturating_sub(u64::from(ahead > 50));
            queue.ask(&guest, 2, event);
            for id in 0..burst {
                queue.offer(&guest, id as u16, &[(BUFFERS, 60, 0)]);
            }
            drain(&mut ring, &mut scratch);
            let called = ring.signal().unwrap();
            queue.take_used(&guest);
            prop_assert_eq!(called, (before..queue.seen).contains(&event), "event {}", event);
            prop_assert_eq!(count(&call), u64::from(called));
        }
    }
}

#[test]
fn parts_must_lie_within_memory_and_be_aligned() {
    let guest = Guest::new(MEMORY);
    let memory = guest.memory(&[]);
    let bind = |descriptors: u64, driver: u64, device: u64, size: u16| {
        let user = |at| crate::memory::UserAddr(crate::testing::USER + at);
        let addresses = RingAddresses {
            descriptors: user(descriptors),
            available: user(driver),
            used: user(device),
        };
        // SAFETY: the memory outlives the ring, which is dropped at once.
        unsafe { PackedRing::bind(&memory, addresses, size, true) }.map(|_| ())
    };
    for size in [2u16, 3, 256, MAX_SIZE] {
        let last = MEMORY - 16 * u64::from(size);
        assert_eq!(bind(last, MEMORY - 4, MEMORY - 4, size), Ok(()));
        for (descriptors, driver, device) in [
            (last + 16, 0, 0),
            (0, MEMORY, 0),
            (0, 0, MEMORY),
            (MEMORY, 0, 0),
        ] {
            let refused = bind(descriptors, driver, device, size);
            assert!(matches!(refused, Err(PartError::Unmapped { .. })));
        }
        for (descriptors, driver, device) in [(8, 0, 0), (0, 2, 0), (0, 0, 2)] {
            let refused = bind(descriptors, driver, device, size);
            assert!(matches!(refused, Err(PartError::Misaligned { .. })));
        }
    }
}

#[test]
fn nothing_is_seen_of_a_burst_before_it_is_complete() {
    let guest = Guest::new(MEMORY);
    let mut queue = PackedQueue::new(RING, 8);
    let (mut ring, mut scratch) = transmit(&guest, &queue, MODERN);
    for id in 0..8 {
        queue.offer(&guest, id, &[(BUFFERS, 60, 0)]);
    }
    let before = guest.read(RING, 8 * 16);
    assert_eq!(ring.take(&mut scratch, 5).unwrap().len(), 5);
    assert_eq!(guest.read(RING, 8 * 16), before);
    assert!(ring.complete());
    assert_eq!(queue.take_used(&guest).len(), 5);
    assert_eq!(guest.read(RING + 5 * 16, 3 * 16), before[5 * 16..]);
}

#[test]
fn more_than_can_be_kept_back_still_appears_at_once() {
    let guest = Guest::new(MEMORY);
    let size = 2 * KEPT as u16;
    let mut queue = PackedQueue::starting_at(&guest, RING, size, u64::from(size) - 3);
    let features = MODERN | mask(NET_MRG_RXBUF);
    let mut ring = RxRing::start(setup(&guest, &queue, features)).unwrap();
    for id in 0..size {
        queue.offer(&guest, id, &[(BUFFERS, 20, WRITE)]);
    }
    let mut burst = ring.begin(32).unwrap();
    let frame = [7; 20 * 200 - 12];
    for _ in 0..4 {
        let put = burst.put(&VirtioNetHdr::default(), &[&frame], Pieces::from_slice(&[]));
        assert_eq!(put, Ok(()));
    }
    assert!(queue.clone().take_used(&guest).is_empty());
    assert_eq!(burst.finish(), 800);
    let used = queue.take_used(&guest);
    let wanted: Vec<_> = (0..800).map(|id| (id, 20, WRITE)).collect();
    assert_eq!(used, wanted);
}

#[test]
fn a_malformed_chain_costs_only_itself() {
    let guest = Guest::new(MEMORY);
    let mut queue = PackedQueue::new(RING, 16);
    let (mut ring, mut scratch) = transmit(&guest, &queue, MODERN);
    let good = (BUFFERS, 60, 0);
    let table = (TABLES, 32, crate::testing::INDIRECT);
    let bad: [(&[Offered], ChainError); 8] = [
        (&[(MEMORY, 60, 0), good, good], ChainError::Unmapped),
        (&[good, (u64::MAX - 8, 60, 0), good], ChainError::Unmapped),
        (&[good, (BUFFERS, 60, WRITE), good], ChainError::Writable),
        (&[table, good], ChainError::IndirectMisplaced),
        (&[(TABLES, 24, table.2)], ChainError::IndirectLength),
        (&[(TABLES, 0, table.2)], ChainError::IndirectLength),
        (&[(BUFFERS, 11, 0)], ChainError::Short),
        (&[(BUFFERS, 0, 0), (BUFFERS, 12, 0)], ChainError::Empty),
    ];
    for (chain, error) in bad.into_iter().cycle().take(40) {
        queue.offer(&guest, 1, chain);
        queue.offer(&guest, 2, &[good]);
        let frames = drain(&mut ring, &mut scratch);
        assert_eq!(frames[0], Err(error), "{chain:?}");
        assert!(frames[1].is_ok() && frames.len() == 2);
        assert_eq!(queue.take_used(&guest), [(1, 0, 0), (2, 0, 0)]);
    }
}

#[test]
fn indirect_tables_only_if_negotiated() {
    let guest = Guest::new(MEMORY);
    let mut queue = PackedQueue::new(RING, 16);
    let (mut ring, mut scratch) = transmit(&guest, &queue, DIRECT);
    queue.offer_table(&guest, 5, TABLES, &[(BUFFERS, 60, 0)]);
    let frames = drain(&mut ring, &mut scratch);
    assert_eq!(frames, [Err(ChainError::IndirectMisplaced)]);
    assert_eq!(queue.take_used(&guest), [(5, 0, 0)]);
}

#[test]
fn a_chain_without_end_stops_the_ring() {
    let guest = Guest::new(MEMORY);
    for size in [2, 16, 2048] {
        let queue = PackedQueue::new(RING, size);
        let (mut ring, mut scratch) = transmit(&guest, &queue, MODERN);
        for slot in 0..size {
            let at = queue.slot(slot.into());
            guest.write(at, &BUFFERS.to_le_bytes());
            guest.write(at + 8, &0u32.to_le_bytes());
            guest.write_u16(at + 14, 1 << 7 | crate::testing::NEXT);
        }
        let limit = size.min(MAX_CHAIN);
        let error = RingError::Endless { slot: 0, limit };
        assert_eq!(ring.take(&mut scratch, 32).map(|_| ()), Err(error));
        assert_eq!(ring.error(), Some(error));
        guest.write(RING, &vec![0; 16 * usize::from(size) + 8]);
    }
}

#[test]
fn kicks_are_asked_for_at_the_next_slot() {
    for (features, armed) in [(MODERN, 0), (EVENT, 2)] {
        let guest = Guest::new(MEMORY);
        let mut queue = PackedQueue::starting_at(&guest, RING, 5, 3);
        let (mut ring, mut scratch) = transmit(&guest, &queue, features);
        for _ in 0..12 {
            assert_eq!(queue.asked(&guest).1, 1, "declined");
            assert!(!ring.arm());
            let (place, flags) = queue.asked(&guest);
            assert_eq!(flags, armed);
            assert!(features == MODERN || place == queue.bits(queue.offered));
            queue.offer(&guest, 9, &[(BUFFERS, 60, 0)]);
            assert!(ring.arm(), "a frame that came before the wish is found");
            ring.disarm();
            drain(&mut ring, &mut scratch);
            queue.take_used(&guest);
        }
    }
}

#[test]
fn calls_follow_the_drivers_flag() {
    for features in [MODERN, EVENT] {
        let guest = Guest::new(MEMORY);
        let mut queue = PackedQueue::new(RING, 4);
        let (mut ring, mut scratch) = transmit(&guest, &queue, features);
        for (flags, wanted) in [(0, true), (1, false), (3, true), (1, false), (0, true)] {
            queue.ask(&guest, flags, 0);
            queue.offer(&guest, 1, &[(BUFFERS, 60, 0)]);
            drain(&mut ring, &mut scratch);
            assert_eq!(ring.signal().unwrap(), wanted, "flags {flags}");
            queue.take_used(&guest);
        }
    }
}

#[test]
fn a_ring_goes_on_where_it_was_left_in_other_memory_too() {
    let guest = Guest::new(MEMORY);
    let mut queue = PackedQueue::new(RING, 4);
    let (mut ring, mut scratch) = transmit(&guest, &queue, MODERN);
    for round in 0..10 {
        queue.offer(&guest, round, &[(BUFFERS, 60, 0)]);
        ring.rebind(&guest.memory(&[SEAM, SEAM + 0x1000])).unwrap();
        assert_eq!(drain(&mut ring, &mut scratch).len(), 1);
        assert_eq!(queue.take_used(&guest), [(round, 0, 0)]);
        if round % 3 == 0 {
            let base = ring.settle();
            let again = Setup {
                base: Base::Known(base),
                ..setup(&guest, &queue, MODERN)
            };
            ring = TxRing::start(again).unwrap();
        }
    }
}
