//! Chains that are not what they should be.

use super::*;
use crate::ring::{MAX_CHAIN, MAX_FRAME};
use crate::testing::INDIRECT;

both!(
    buffers_that_leave_their_region_are_unmapped,
    receive_buffers_that_leave_their_region_are_not_written,
    bad_descriptors_in_a_full_burst_cost_only_their_own_chains,
    bad_receive_buffers_in_a_full_burst_cost_one_frame_each,
    a_header_may_be_cut_anywhere,
    receive_buffers_of_less_than_a_header_take_nothing,
    chains_without_an_end_are_left,
    receive_chains_without_an_end_are_left,
    indirect_tables_without_an_end_are_left,
    tables_of_any_length_are_judged_before_they_are_read,
);

/// Guest memory ends here, and goes on there.
const GAP: std::ops::Range<u64> = 0x10_0000..0x11_0000;

fn with_gap<D: Driver>(size: u16) -> Rig<D> {
    let mut rig = Rig::new(size);
    let whole = rig.guest.memory(&[GAP.start, GAP.end]);
    let spec = rig.guest.spec(GAP.start, GAP.end);
    rig.memory = Arc::new(whole.without(spec).unwrap());
    rig
}

/// Ranges of which some or all bytes are not guest memory.
fn outside() -> Vec<(u64, u32)> {
    let edges = [GAP.start, MEMORY];
    let mut ranges = vec![
        (GAP.start - 16, 0x1_0020),
        (GAP.end - 1, 1),
        (GAP.end - 1, 2),
        (BUFFERS, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 99, 100),
        (u64::MAX - 98, 100),
        (1 << 63, 64),
    ];
    for edge in edges {
        ranges.extend([(edge - 63, 64), (edge - 1, 2), (edge, 1), (edge, 64)]);
    }
    ranges
}

/// CVE-2018-1059: a range was looked up by its first byte.
fn buffers_that_leave_their_region_are_unmapped<D: Driver>() {
    let mut rig = with_gap::<D>(16);
    let mut tx = rig.tx(PLAIN);
    let good = (BUFFERS, 60, 0);
    for (addr, len) in outside() {
        let bad = (addr, len, 0);
        for chain in [
            &[bad][..],
            &[bad, good],
            &[good, bad],
            &[good, (BUFFERS, 0, 0), bad, good],
        ] {
            let upto = chain.iter().position(|piece| *piece == bad).unwrap();
            let total: usize = chain[..=upto].iter().map(|piece| piece.1 as usize).sum();
            let expected = if total > MAX_FRAME + HEADER as usize {
                Err(ChainError::TooLong)
            } else {
                Err(ChainError::Unmapped)
            };
            rig.offer(1, chain);
            rig.offer_table(2, TABLES, chain);
            assert_eq!(tx.frames(), [expected.clone(), expected], "{chain:x?}");
            assert_eq!(rig.used(), [(1, 0), (2, 0)]);
        }
    }
    // The last bytes of a region are its own, and so are tables only as long as they lie within.
    for edge in [GAP.start, MEMORY] {
        rig.offer(1, &[(edge - 64, 64, 0)]);
        assert_eq!(tx.frames(), [Ok(vec![0; 52])]);
        rig.used();
        for (table, len, expected) in [
            (edge - 16, 16, Ok(vec![0; 48])),
            (edge - 16, 32, Err(ChainError::Unmapped)),
            (edge - 8, 16, Err(ChainError::Unmapped)),
            (u64::MAX - 15, 32, Err(ChainError::Unmapped)),
        ] {
            if table == edge - 16 {
                // With more to come, where there is more; split tables are read no further than they say.
                let flags = u16::from(len > 16);
                rig.guest.descriptor(table, BUFFERS, 60, flags, 1);
                let at = D::FLAGS;
                rig.guest.write_u16(table + at, flags);
            }
            rig.offer(2, &[(table, len, INDIRECT)]);
            assert_eq!(tx.frames(), [expected], "{table:x} {len}");
            rig.used();
        }
        rig.guest.write(edge - 64, &[0; 64]);
    }
}

/// CVE-2018-1059, the other way.
fn receive_buffers_that_leave_their_region_are_not_written<D: Driver>() {
    for features in [PLAIN, MERGED] {
        let mut rig = with_gap::<D>(16);
        let before = rig.guest.read(BUFFERS, (MEMORY - BUFFERS) as usize);
        let mut rx = rig.rx(features);
        for (addr, len) in outside() {
            rig.offer(1, &[(addr, len, WRITE)]);
            rig.offer(2, &[(BUFFERS, 20, WRITE), (addr, len, WRITE)]);
            for id in [1, 2] {
                let malformed = Err(RxError::Malformed(ChainError::Unmapped));
                assert_eq!(put(&mut rx, &pattern(60)), malformed);
                assert_eq!(rig.used(), [(id, 0)]);
            }
        }
        assert!(before == rig.guest.read(BUFFERS, before.len()));
    }
}

/// CVE-2020-10725: the path for whole bursts did not check addresses.
fn bad_descriptors_in_a_full_burst_cost_only_their_own_chains<D: Driver>() {
    use ChainError as C;
    let bad: [(Piece, ChainError); 6] = [
        ((BUFFERS, 0, 0), C::Short),
        ((u64::MAX, 0, 0), C::Short),
        ((MEMORY - 30, 60, 0), C::Unmapped),
        ((u64::MAX - 30, 60, 0), C::Unmapped),
        ((BUFFERS, 60, WRITE), C::Writable),
        ((TABLES, 0, INDIRECT), C::IndirectLength),
    ];
    for at in 0..MAX_BURST {
        for run in [1, 2, MAX_BURST] {
            let mut rig = Rig::<D>::new(64);
            let mut tx = rig.tx(PLAIN);
            let mut expected = Vec::new();
            for id in 0..MAX_BURST {
                if (at..at + run).contains(&id) {
                    let (piece, error) = bad[(at + id) % bad.len()];
                    rig.offer(id as u16, &[piece]);
                    expected.push(Err(error));
                } else {
                    rig.send(id as u16, Rig::<D>::buffer(id as u64), 60, id as u8);
                    expected.push(Ok(vec![id as u8; 60]));
                }
            }
            let frames = tx.take(MAX_BURST).unwrap().into_iter();
            let frames: Vec<_> = frames.map(|frame| frame.map(|(_, bytes)| bytes)).collect();
            assert_eq!(frames, expected);
            let ids: Vec<_> = (0..MAX_BURST as u16).map(|id| (id, 0)).collect();
            assert_eq!(rig.used(), ids);
        }
    }
}

/// CVE-2020-10725, the other way.
fn bad_receive_buffers_in_a_full_burst_cost_one_frame_each<D: Driver>() {
    use ChainError as C;
    let bad: [(Piece, ChainError); 6] = [
        ((BUFFERS, 0, WRITE), C::Short),
        ((u64::MAX, 0, WRITE), C::Short),
        ((MEMORY - 99, 100, WRITE), C::Unmapped),
        ((u64::MAX - 30, 100, WRITE), C::Unmapped),
        ((BUFFERS, 100, 0), C::ReadOnly),
        ((TABLES, 8, INDIRECT), C::IndirectLength),
    ];
    for features in [PLAIN, MERGED] {
        for at in 0..MAX_BURST {
            let mut rig = Rig::<D>::new(64);
            let mut rx = rig.rx(features);
            let (piece, error) = bad[at % bad.len()];
            for id in 0..MAX_BURST {
                let good = (Rig::<D>::buffer(id as u64), 100, WRITE);
                rig.offer(id as u16, &[if id == at { piece } else { good }]);
            }
            let mut burst = rx.begin(MAX_BURST).unwrap();
            for id in 0..MAX_BURST {
                let frame = [id as u8; 60];
                let put = burst.put(&VirtioNetHdr::default(), &[&frame], Pieces::empty());
                let malformed = Err(RxError::Malformed(error));
                assert_eq!(put, if id == at { malformed } else { Ok(()) });
            }
            assert!(burst.is_full());
            assert_eq!(burst.finish(), MAX_BURST as u16);
            for (id, len) in rig.used() {
                assert_eq!(len, if usize::from(id) == at { 0 } else { 72 });
                if len > 0 {
                    let frame = rig.guest.read(Rig::<D>::buffer(id.into()) + 12, 61);
                    assert_eq!(frame, [&[id as u8; 60][..], &[0]].concat());
                }
            }
        }
    }
}

/// Every way to cut `total` bytes into up to `pieces` pieces, empty ones included.
fn cuts(total: u32, pieces: u32) -> Vec<Vec<u32>> {
    if pieces == 1 {
        return vec![vec![total]];
    }
    let mut all = vec![vec![total]];
    for first in 0..=total {
        for rest in cuts(total - first, pieces - 1) {
            all.push([vec![first], rest].concat());
        }
    }
    all
}

/// CVE-2022-2132: the header was taken for one descriptor's, and a chain for longer than it.
fn a_header_may_be_cut_anywhere<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let mut tx = rig.tx(PLAIN);
    let bytes = pattern(16);
    rig.guest.write(BUFFERS, &bytes);
    for total in 0..=14 {
        for cut in cuts(total, 3) {
            let mut at = BUFFERS;
            let mut chain = Vec::new();
            for len in &cut {
                chain.push((at, *len, 0));
                at += u64::from(*len);
            }
            rig.offer(1, &chain);
            rig.offer_table(2, TABLES, &chain);
            let expected = match total {
                0..HEADER => Err(ChainError::Short),
                HEADER => Err(ChainError::Empty),
                _ => Ok(bytes[12..total as usize].to_vec()),
            };
            assert_eq!(tx.frames(), [expected.clone(), expected], "{cut:?}");
            assert_eq!(rig.used(), [(1, 0), (2, 0)]);
        }
    }
}

/// CVE-2026-86566: what was left of a buffer behind the header underflowed.
fn receive_buffers_of_less_than_a_header_take_nothing<D: Driver>() {
    for features in [PLAIN, MERGED] {
        let mut rig = Rig::<D>::new(16);
        let mut rx = rig.rx(features);
        for total in 0..=14 {
            for cut in cuts(total, 3) {
                // Each piece between bytes that are nobody's.
                let chain: Vec<_> = (0..)
                    .zip(&cut)
                    .map(|(piece, len)| (BUFFERS + 64 * piece + 16, *len, WRITE))
                    .collect();
                rig.guest.write(BUFFERS, &[0xee; 256]);
                rig.offer(1, &chain);
                let frame = pattern(total.saturating_sub(HEADER).max(1) as usize);
                let fits = total > HEADER;
                let short = Err(RxError::Malformed(ChainError::Short));
                assert_eq!(put(&mut rx, &frame), if fits { Ok(()) } else { short });
                assert_eq!(rig.used(), [(1, if fits { total } else { 0 })]);
                for (piece, len) in cut.iter().enumerate() {
                    let around = rig.guest.read(BUFFERS + 64 * piece as u64, 64);
                    let len = *len as usize;
                    let untouched = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0xee);
                    assert!(untouched(&around[..16]) && untouched(&around[16 + len..]));
                    assert!(fits || untouched(&around), "{cut:?}");
                }
            }
        }
    }
}

/// Fixes of 2026: circular chains. One in a split ring costs that chain; a packed ring is lost behind one.
fn chains_without_an_end_are_left<D: Driver>() {
    for size in [2, 16, 2048] {
        for piece in [(BUFFERS, 1, 0), (BUFFERS, 0, 0), (u64::MAX, 9, 0)] {
            let mut rig = Rig::<D>::new(size);
            let mut tx = rig.tx(PLAIN);
            rig.driver.offer_endless(&rig.guest, piece);
            if D::FEATURES == 0 {
                let unmapped = piece.0 == u64::MAX;
                let error = if unmapped {
                    ChainError::Unmapped
                } else {
                    ChainError::Loop
                };
                assert_eq!(tx.frames(), [Err(error)]);
                assert_eq!(rig.used(), [(u16::MAX, 0)]);
            } else {
                let limit = size.min(MAX_CHAIN);
                let error = RingError::Endless { slot: 0, limit };
                assert_eq!(tx.take(32), Err(error));
                assert_eq!(tx.ring.error(), Some(error));
                assert!(!tx.ring.has_work() && !tx.ring.arm());
            }
        }
    }
}

/// The same where the switch writes.
fn receive_chains_without_an_end_are_left<D: Driver>() {
    for size in [2, 16, 2048] {
        for features in [PLAIN, MERGED] {
            let mut rig = Rig::<D>::new(size);
            let mut rx = rig.rx(features);
            rig.driver.offer_endless(&rig.guest, (BUFFERS, 1, WRITE));
            if D::FEATURES == 0 {
                let malformed = Err(RxError::Malformed(ChainError::Loop));
                assert_eq!(put(&mut rx, &pattern(60)), malformed);
                assert_eq!(rig.used(), [(u16::MAX, 0)]);
            } else {
                assert_eq!(put(&mut rx, &pattern(60)), Err(RxError::Full));
                let error = rx.error();
                assert!(matches!(error, Some(RingError::Endless { .. })));
                assert!(rx.begin(1).is_err());
            }
            assert_eq!(rig.guest.read(BUFFERS, 64), [0; 64]);
        }
    }
}

/// Fixes of 2026, in indirect tables. A packed one knows no `next`: it is read to its end, once.
fn indirect_tables_without_an_end_are_left<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let mut tx = rig.tx(PLAIN);
    for (entries, next) in [
        (1u16, 0u16),
        (1, 1),
        (2, 0),
        (2, 1),
        (2, 2),
        (1024, 0),
        (1024, 1023),
        (1024, 1024),
        (8, 0xffff),
    ] {
        for entry in 0..entries {
            let at = TABLES + 16 * u64::from(entry);
            let last = entry + 1 == entries;
            let next = if last { next } else { entry + 1 };
            let (two, three) = if D::FEATURES == 0 {
                (1, next)
            } else {
                (next, 1)
            };
            rig.guest.descriptor(at, BUFFERS, 20, two, three);
        }
        rig.offer(3, &[(TABLES, 16 * u32::from(entries), INDIRECT)]);
        let expected = match (D::FEATURES == 0, next < entries) {
            (true, true) => Err(ChainError::Loop),
            (true, false) => Err(ChainError::NextOutOfRange),
            (false, _) => Ok(vec![0; 20 * usize::from(entries) - 12]),
        };
        assert_eq!(tx.frames(), [expected], "{entries} {next}");
        assert_eq!(rig.used(), [(3, 0)]);
    }
}

/// CVE-2026-93683: room was made for a table before anybody asked whether it may be that long.
fn tables_of_any_length_are_judged_before_they_are_read<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let mut tx = rig.tx(PLAIN);
    for len in [
        0,
        1,
        15,
        17,
        16 * 1024 + 1,
        16 * 1025,
        1 << 31,
        u32::MAX - 15,
        u32::MAX,
    ] {
        for table in [TABLES, MEMORY - 16, u64::MAX - 15] {
            rig.offer(1, &[(table, len, INDIRECT)]);
            assert_eq!(tx.frames(), [Err(ChainError::IndirectLength)]);
            assert_eq!(rig.used(), [(1, 0)]);
        }
    }
    // From the other side, where the ring stands now.
    let mut rx = rig.rx(PLAIN);
    rig.offer(1, &[(TABLES, 16 * 1025, INDIRECT)]);
    let malformed = Err(RxError::Malformed(ChainError::IndirectLength));
    assert_eq!(put(&mut rx, &pattern(60)), malformed);
}
