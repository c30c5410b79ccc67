//! Offload requests as guests write them: what is taken from the ring is judged once, and what was judged is what is cut.

use vswitch_packet::{Checksums, HEAD_LEN, Offload, Segmenter, check_offload, complete_checksum};

use super::*;

both!(
    checksums_of_any_place_stay_within_the_frame,
    every_field_of_a_segmentation_request_may_be_anything,
    a_header_that_changes_is_judged_as_it_was_taken,
    headers_in_segments_of_any_length_are_judged_whole,
);

/// Ethernet, IPv4, TCP and a payload, without its checksums.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = (40 + payload) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10]);
    frame.extend([0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(pattern(payload));
    frame
}

/// The request a TCP sender makes for that frame.
fn request(gso_size: u16) -> VirtioNetHdr {
    VirtioNetHdr {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    }
}

fn send<D: Driver>(rig: &mut Rig<D>, header: VirtioNetHdr, frame: &[u8]) {
    rig.guest
        .write(BUFFERS, &[&header.to_bytes()[..], frame].concat());
    rig.offer(1, &[(BUFFERS, HEADER + frame.len() as u32, 0)]);
}

/// Does with a taken frame what the switch does for a receiver without offloads, and says what was asked.
fn finish(header: &VirtioNetHdr, frame: &[u8]) -> Option<Offload> {
    let head = &frame[..frame.len().min(HEAD_LEN)];
    let offload = check_offload(header, head, frame.len()).ok()?;
    let mut copy = frame.to_vec();
    if let Some(csum) = offload.csum {
        assert!(usize::from(csum.start) + usize::from(csum.offset) + 2 <= frame.len());
        complete_checksum(&mut copy, csum);
    }
    if let Some(gso) = offload.gso {
        assert!(gso.size > 0 && gso.payload_len > gso.size);
        assert!(usize::from(gso.header_len) <= head.len());
        let checksums = Checksums::Complete { frame };
        let mut segments = Segmenter::new(head, &offload, checksums).unwrap();
        let (mut count, mut bytes) = (0, 0);
        let mut buffer = [0; HEAD_LEN];
        while let Some(segment) = segments.next_segment(&mut buffer) {
            count += 1;
            bytes += frame[segment.payload].len();
        }
        assert!(count <= vswitch_packet::MAX_SEGMENTS);
        assert_eq!(bytes, usize::from(gso.payload_len));
    }
    Some(offload)
}

/// CVE-2024-11614: the sum began behind the packet.
fn checksums_of_any_place_stay_within_the_frame<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let mut tx = rig.tx(PLAIN);
    let mut random = super::racer::Dice::new(7);
    for len in [1, 13, 14, 15, 60, 192, 193, 1514] {
        let frame = tcp(1500)[..len].to_vec();
        let edge = len as u16;
        let mut values = vec![0, 1, 13, 14, 15, 34, 0x7fff, 0x8000, 0xfffd, 0xfffe, 0xffff];
        values.extend((0..6).map(|down| edge.saturating_sub(down)));
        values.extend([edge + 1, edge + 2]);
        values.extend((0..4).map(|_| random.next() as u16));
        for start in &values {
            for offset in &values {
                let header = VirtioNetHdr {
                    gso_type: 0,
                    gso_size: 0,
                    csum_start: *start,
                    csum_offset: *offset,
                    ..request(0)
                };
                send(&mut rig, header, &frame);
                let (taken, bytes) = tx.drain().remove(0).unwrap();
                assert_eq!((taken, &bytes), (header, &frame));
                let within = usize::from(*start) + usize::from(*offset) + 2 <= len;
                assert!(within || finish(&taken, &bytes).is_none());
                finish(&taken, &bytes);
                assert_eq!(rig.used(), [(1, 0)]);
            }
        }
    }
}

/// Fixes of 2026: a segment size of 0, and whatever else a request can hold.
fn every_field_of_a_segmentation_request_may_be_anything<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let mut tx = rig.tx(PLAIN);
    let frame = tcp(1000);
    let mut legal = 0;
    for flags in [0, 1, 2, 3, 0xff] {
        for gso_type in [0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0xff] {
            for gso_size in [0, 1, 2, 500, 999, 1000, 1001, u16::MAX] {
                for hdr_len in [0, 1, 54, u16::MAX] {
                    for (csum_start, csum_offset) in [(34, 16), (0, 0), (1, 1), (0xffff, 0xffff)] {
                        let header = VirtioNetHdr {
                            flags,
                            gso_type,
                            hdr_len,
                            gso_size,
                            csum_start,
                            csum_offset,
                            num_buffers: hdr_len,
                        };
                        send(&mut rig, header, &frame);
                        let (taken, bytes) = tx.drain().remove(0).unwrap();
                        assert_eq!(taken, header);
                        let cut = finish(&taken, &bytes).is_some_and(|asked| asked.gso.is_some());
                        // 1,000 bytes in segments of one are within the limit; what the guest says of its headers' length
                        // is not used at all.
                        let asked = flags & 1 != 0 && gso_type & 0x7f == 1 && csum_start == 34;
                        assert_eq!(cut, asked && (1..1000).contains(&gso_size), "{header:?}");
                        legal += u32::from(cut);
                        rig.used();
                    }
                }
            }
        }
    }
    assert!(legal > 0);
}

/// A fix of 2025: `csum_start` was checked and then read again.
fn a_header_that_changes_is_judged_as_it_was_taken<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let mut tx = rig.tx(PLAIN);
    let frame = tcp(300);
    let (one, other) = (
        request(100),
        VirtioNetHdr {
            csum_start: 0xfff0,
            csum_offset: 0xfff0,
            gso_size: 0,
            ..request(0)
        },
    );
    let words = [one, other].map(|header| {
        let bytes = header.to_bytes();
        let low = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        (low, u32::from_le_bytes(bytes[8..].try_into().unwrap()))
    });
    let racer = Racer::start(&rig.guest, move |memory, dice| {
        let (low, high) = dice.of(&words);
        memory.store_u64(BUFFERS, low);
        memory.store_u32(BUFFERS + 8, high);
    });
    rig.guest.write(BUFFERS + 12, &frame);
    let len = HEADER + frame.len() as u32;
    let (mut legal, mut refused) = (0u32, 0u32);
    while legal.min(refused) < 200 || racer.rounds() < 10_000 {
        rig.offer(1, &[(BUFFERS, len, 0)]);
        rig.offer(2, &[(BUFFERS, 5, 0), (BUFFERS + 5, len - 5, 0)]);
        let burst = tx.ring.take(&mut tx.scratch, 2).unwrap();
        for index in 0..2 {
            let first = burst.frame(index).unwrap();
            let judged = check_offload(&first.header, first.head, first.len as usize);
            std::thread::yield_now();
            let again = burst.frame(index).unwrap();
            assert_eq!((first.header, first.head), (again.header, again.head));
            let mut bytes = again.head.to_vec();
            bytes.extend(&frame[again.head.len()..]);
            assert_eq!(finish(&again.header, &bytes).is_some(), judged.is_ok());
            *(if judged.is_ok() {
                &mut legal
            } else {
                &mut refused
            }) += 1;
        }
        tx.ring.complete();
        assert_eq!(rig.used(), [(1, 0), (2, 0)]);
    }
}

/// CVE-2026-100236: headers were looked for in the first segment, and `hdr_len` believed.
fn headers_in_segments_of_any_length_are_judged_whole<D: Driver>() {
    let mut rig = Rig::<D>::new(256);
    let mut tx = rig.tx(PLAIN);
    let frame = tcp(400);
    for (gso_size, hdr_len) in [(100, 54), (100, 0), (20, 54), (1, u16::MAX), (399, 400)] {
        let header = VirtioNetHdr {
            hdr_len,
            ..request(gso_size)
        };
        let bytes = [&header.to_bytes()[..], &frame].concat();
        rig.guest.write(BUFFERS, &bytes);
        let expected = finish(&header, &frame);
        assert!(expected.is_some_and(|asked| asked.gso.is_some()));
        let len = bytes.len() as u32;
        for first in (0..100).chain([190, 203, 204, 205, 300, len - 1]) {
            let rest = (BUFFERS + u64::from(first), len - first, 0);
            rig.offer(1, &[(BUFFERS, first, 0), rest]);
            // Byte by byte as far as that, in a table and not.
            let mut crumbs: Vec<_> = (0..first.min(200))
                .map(|at| (BUFFERS + u64::from(at), 1, 0))
                .collect();
            let rest = len - first.min(200);
            crumbs.push((BUFFERS + u64::from(first.min(200)), rest, 0));
            rig.offer(2, &crumbs);
            let mut taken = tx.drain();
            assert_eq!(rig.used(), [(1, 0), (2, 0)]);
            rig.offer_table(3, TABLES, &crumbs);
            taken.extend(tx.drain());
            assert_eq!(rig.used(), [(3, 0)]);
            assert_eq!(taken.len(), 3);
            for taken in taken {
                let (taken, bytes) = taken.unwrap();
                assert!(taken == header && bytes == frame);
                assert_eq!(finish(&taken, &bytes), expected);
            }
        }
    }
}
