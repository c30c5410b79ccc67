//! Every shape of chain a guest can send, and what must come of it.

use super::*;

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
