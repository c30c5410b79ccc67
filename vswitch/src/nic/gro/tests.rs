use super::*;

const L3_AT: usize = 14;
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

/// The `n`th segment of a connection, of 100 bytes each; `change` comes before IPv4's checksum.
fn part(v6: bool, n: u16, payload: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut f = vec![2; 12];
    let tcp = (32 + payload) as u16;
    if v6 {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        f.extend(tcp.to_be_bytes());
        f.extend([6, 64]);
        f.extend([7; 32]);
    } else {
        f.extend([8, 0, 0x45, 0]);
        f.extend((tcp + 20).to_be_bytes());
        f.extend((0xffff_u16.wrapping_add(n)).to_be_bytes());
        f.extend([0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    f.extend([0, 80, 0, 81]);
    f.extend((0xffff_ff80_u32.wrapping_add(100 * u32::from(n))).to_be_bytes());
    f.extend([0, 0, 0, 9, 8 << 4, Tcp::ACK, 1, 0, 0xab, 0xcd, 0, 0]);
    f.extend(TIMESTAMPS);
    f.extend((0..payload).map(|i| i as u8));
    change(&mut f);
    if !v6 {
        let mut sum = Sum::new();
        sum.add(&f[L3_AT..L3_AT + 20]);
        f[L3_AT + 10..L3_AT + 12].copy_from_slice(&sum.finish().to_be_bytes());
    }
    f
}

/// The trains of a burst, as numbers of their members.
fn trains(burst: &[Vec<u8>]) -> Vec<Vec<usize>> {
    let mut trains = ArrayVec::new();
    let mut members = vec![Vec::new(); burst.len()];
    for (at, frame) in burst.iter().enumerate() {
        let segment = parse_segment(frame, frame.len());
        if let Some(train) = file(&mut trains, at, segment, frame, |i| &burst[i]) {
            members[train].push(at);
        }
    }
    members.retain(|m| !m.is_empty());
    members
}

#[test]
fn consecutive_segments_are_a_train() {
    for v6 in [false, true] {
        let plain = |n| part(v6, n, 100, |_| ());
        let l4 = if v6 { 54 } else { 34 };
        assert_eq!(trains(&[plain(0), plain(1), plain(2)]), [[0, 1, 2]]);
        // A short one ends it, and so does PSH.
        let short = part(v6, 1, 99, |_| ());
        assert_eq!(trains(&[plain(0), short, plain(2)]), [vec![0, 1], vec![2]]);
        let push = part(v6, 1, 100, |f| f[l4 + 13] |= Tcp::PSH);
        assert_eq!(trains(&[plain(0), push, plain(2)]), [vec![0, 1], vec![2]]);
        // A longer one, a hole, and one twice do not go on.
        for other in [part(v6, 1, 101, |_| ()), plain(2), plain(0)] {
            assert_eq!(trains(&[plain(0), other]), [[0], [1]]);
        }
    }
}

#[test]
fn connections_are_told_apart_and_nothing_overtakes() {
    let plain = |n| part(false, n, 100, |_| ());
    let other = |n| part(false, n, 100, |f| f[35] = 99);
    let two = [plain(0), other(0), plain(1), other(1)];
    assert_eq!(trains(&two), [[0, 2], [1, 3]]);
    // An acknowledgement without data between the same stations.
    let ack = part(false, 1, 0, |_| ());
    assert_eq!(trains(&[plain(0), ack, plain(1)]), [[0], [2]]);
    // A segment from elsewhere in the connection.
    assert_eq!(trains(&[plain(0), plain(9), plain(1)]), [[0], [1], [2]]);
}

#[test]
fn headers_must_be_alike() {
    for v6 in [false, true] {
        let header = if v6 { 54 } else { 34 } + 32;
        for at in 0..header {
            let changed = part(v6, 1, 100, |f| f[at] ^= 4);
            let burst = [part(v6, 0, 100, |_| ()), changed];
            // TCP's checksum is the device's to judge; everything else is the same, or counts up.
            let l4 = if v6 { 54 } else { 34 };
            let free = (l4 + 16..l4 + 18).contains(&at);
            let one = trains(&burst) == [[0, 1]];
            assert_eq!(one, free, "byte {at}, {v6}");
        }
    }
}

#[test]
fn what_is_no_part_of_any_train() {
    let segment = |change: fn(&mut [u8])| {
        let frame = part(false, 0, 100, change);
        parse_segment(&frame, frame.len())
    };
    assert!(segment(|_| ()).is_some());
    for change in [
        (|f| f[15] |= 3) as fn(&mut [u8]),
        |f| f[47] |= Tcp::FIN,
        |f| f[47] |= Tcp::SYN,
        |f| f[47] |= Tcp::CWR,
        |f| f[47] |= Tcp::ECE,
        |f| f[47] = 0,
        |f| f[20] |= 0x20,
        |f| f[17] -= 1,
        |f| f[23] = 17,
    ] {
        assert_eq!(segment(change), None);
    }
    let mut broken = part(false, 0, 100, |_| ());
    broken[24] ^= 1;
    assert_eq!(parse_segment(&broken, broken.len()), None);
}

#[test]
fn a_trains_headers_are_what_a_sender_would_have_written() {
    for v6 in [false, true] {
        let l4 = if v6 { 54 } else { 34 };
        let frames = [
            part(v6, 0, 100, |_| ()),
            part(v6, 1, 60, |f| f[l4 + 13] |= Tcp::PSH),
        ];
        let mut list = ArrayVec::new();
        for (at, frame) in frames.iter().enumerate() {
            let segment = parse_segment(frame, frame.len());
            file(&mut list, at, segment, frame, |i| &frames[i]);
        }
        let mut head = frames[0].clone();
        rewrite(&mut head, &list[0]).unwrap();
        head.extend(&frames[1][l4 + 32..]);
        assert_eq!(head[l4 + 13], Tcp::ACK | Tcp::PSH);

        let offload = vswitch_packet::VirtioNetHdr {
            flags: vswitch_packet::VirtioNetHdr::F_NEEDS_CSUM,
            gso_type: if v6 { 4 } else { 1 },
            gso_size: 100,
            csum_start: l4 as u16,
            csum_offset: 16,
            ..Default::default()
        };
        let offload = vswitch_packet::check_offload(&offload, &head, head.len()).unwrap();
        let partial = vswitch_packet::Checksums::Partial;
        let mut cut = vswitch_packet::Segmenter::new(&head, &offload, partial).unwrap();
        assert_eq!(cut.segments(), 2);
        let mut buffer = [0; HEAD_LEN];
        for frame in &frames {
            let segment = cut.next_segment(&mut buffer).unwrap();
            let (headers, wanted) = (&buffer[..segment.header_len], &frame[..l4 + 32]);
            assert_eq!(headers[..l4 + 16], wanted[..l4 + 16]);
            assert_eq!(headers[l4 + 18..], wanted[l4 + 18..]);
            assert_eq!(head[segment.payload], frame[l4 + 32..]);
        }
    }
}
