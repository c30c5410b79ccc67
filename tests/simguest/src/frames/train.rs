//! Comparing what arrived of a TCP train with what was sent.

use crate::header::VirtioNetHdr;

use super::check::{Dissected, FrameFault, verify};
use super::{IPV4, build::Tcp};

const FLAGS_LAST: u8 = Tcp::FIN | Tcp::PSH;

/// Checks that `segments`, in this order, are the train `sent` cut into `mss` bytes (the last may be shorter): every
/// segment valid by itself, sequence numbers and IPv4 ids counting on, FIN and PSH on the last only, CWR on the first
/// only, all other header bytes unchanged, the payload byte for byte. A segment may be a train itself, as long as its
/// own segment size is `mss`.
pub fn verify_train(
    sent: &[u8],
    mss: u16,
    segments: &[(VirtioNetHdr, Vec<u8>)],
) -> Result<(), FrameFault> {
    let origin = super::dissect(sent)?;
    let Some((l4, super::PROTO_TCP)) = origin.l4 else {
        return Err(FrameFault::Field {
            what: "protocol of the train",
            value: 0,
        });
    };
    let payload = &sent[origin.payload.clone()];
    let headers = origin.payload.start;
    let seq = be32(sent, l4 + 4);
    let id = be16(sent, origin.l3 + 4);
    let flags = sent[l4 + 13];
    let (mut done, mut wire_segments) = (0, 0u16);
    for (n, (hdr, frame)) in segments.iter().enumerate() {
        let fault = |what, got, want| {
            Err(FrameFault::Train {
                segment: n,
                what,
                got,
                want,
            })
        };
        let d = verify(hdr, frame)?;
        let bytes = &frame[d.payload.clone()];
        if d.payload.start != headers {
            return fault("header length", d.payload.start as u64, headers as u64);
        }
        let last = done + bytes.len() >= payload.len();
        check_size(n, hdr, bytes.len(), mss, last)?;
        if payload.get(done..done + bytes.len()) != Some(bytes) {
            let at = bytes
                .iter()
                .zip(payload.iter().skip(done))
                .position(|(a, b)| a != b);
            return fault(
                "first wrong payload byte",
                at.unwrap_or(bytes.len()) as u64,
                0,
            );
        }
        let want = seq.wrapping_add(done as u32);
        if be32(frame, l4 + 4) != want {
            return fault("sequence number", be32(frame, l4 + 4).into(), want.into());
        }
        if d.ethertype == IPV4 {
            let want = id.wrapping_add(wire_segments);
            if be16(frame, d.l3 + 4) != want {
                return fault("IPv4 id", be16(frame, d.l3 + 4).into(), want.into());
            }
        }
        let mut want = flags;
        if !last {
            want &= !FLAGS_LAST;
        }
        if n > 0 {
            want &= !Tcp::CWR;
        }
        if frame[l4 + 13] != want {
            return fault("flags", frame[l4 + 13].into(), want.into());
        }
        check_rest(n, sent, frame, &d, l4)?;
        done += bytes.len();
        wire_segments = wire_segments.wrapping_add(bytes.len().div_ceil(usize::from(mss)) as u16);
    }
    if done != payload.len() {
        let (segment, what) = (segments.len(), "payload length in all");
        let (got, want) = (done as u64, payload.len() as u64);
        return Err(FrameFault::Train {
            segment,
            what,
            got,
            want,
        });
    }
    Ok(())
}

fn check_size(
    segment: usize,
    hdr: &VirtioNetHdr,
    len: usize,
    mss: u16,
    last: bool,
) -> Result<(), FrameFault> {
    let mss = usize::from(mss);
    let fault = |what, got: usize| {
        Err(FrameFault::Train {
            segment,
            what,
            got: got as u64,
            want: mss as u64,
        })
    };
    if hdr.gso_type != VirtioNetHdr::GSO_NONE {
        if usize::from(hdr.gso_size) != mss {
            return fault("segment size of a train", hdr.gso_size.into());
        }
        if !last && !len.is_multiple_of(mss) {
            return fault("payload of a train within the train", len);
        }
    } else if len > mss || (!last && len != mss) {
        return fault("payload length", len);
    }
    Ok(())
}

/// All header bytes that segmentation must not change.
fn check_rest(
    segment: usize,
    sent: &[u8],
    frame: &[u8],
    d: &Dissected,
    l4: usize,
) -> Result<(), FrameFault> {
    let l3 = d.l3;
    let changes: &[std::ops::Range<usize>] = if d.ethertype == IPV4 {
        &[
            l3 + 2..l3 + 6,
            l3 + 10..l3 + 12,
            l4 + 4..l4 + 8,
            l4 + 13..l4 + 14,
            l4 + 16..l4 + 18,
        ]
    } else {
        &[
            l3 + 4..l3 + 6,
            l4 + 4..l4 + 8,
            l4 + 13..l4 + 14,
            l4 + 16..l4 + 18,
        ]
    };
    let differs = (0..d.payload.start)
        .filter(|at| !changes.iter().any(|range| range.contains(at)))
        .find(|at| sent[*at] != frame[*at]);
    match differs {
        None => Ok(()),
        Some(at) => Err(FrameFault::Train {
            segment,
            what: "header byte",
            got: frame[at].into(),
            want: sent[at].into(),
        }),
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::frames::{Eth, Ip, arp_request, dissect, icmp_echo, tcp, tcp_gso, udp, udp_partial};

    const NONE: VirtioNetHdr = VirtioNetHdr {
        flags: 0,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 0,
    };

    fn eth() -> Eth {
        Eth::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).tag(5)
    }

    fn ips() -> [Ip; 2] {
        let v6 = |n| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n));
        [Ip::new([10, 0, 0, 1], [10, 0, 0, 2]), Ip::new(v6(1), v6(2))]
    }

    #[test]
    fn a_known_frame_byte_for_byte() {
        // Echo request of the usual ping, 10.0.0.1 to 10.0.0.2, checksums computed by hand.
        let ip = Ip {
            id: 0,
            ..Ip::new([10, 0, 0, 1], [10, 0, 0, 2])
        };
        let frame = icmp_echo(&Eth::new([0xff; 6], [2; 6]), &ip, 1, 1, &[]);
        assert_eq!(
            frame[14..34],
            [
                0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0x26, 0xdf, 10, 0, 0, 1, 10, 0, 0, 2
            ]
        );
        assert_eq!(frame[34..], [8, 0, 0xf7, 0xfd, 0, 1, 0, 1]);
    }

    #[test]
    fn built_frames_verify_and_broken_ones_do_not() {
        for ip in ips() {
            for payload in [0, 1, 2, 17, 1400] {
                let payload: Vec<u8> = (0..payload).map(|i| (i * 7) as u8).collect();
                let (hdr, partial) = udp_partial(&eth(), &ip, 1, 2, &payload);
                assert_eq!(verify(&hdr, &partial).unwrap().payload.len(), payload.len());
                assert!(verify(&NONE, &partial).is_err());
                let frame = udp(&eth(), &ip, 1, 2, &payload);
                verify(&NONE, &frame).unwrap();
                let header = Tcp {
                    flags: Tcp::ACK,
                    options: vec![1; 3],
                    ..Tcp::default()
                };
                let mut frame = tcp(&eth(), &ip, &header, &payload);
                let d = verify(&NONE, &frame).unwrap();
                assert_eq!(
                    (d.tags.as_slice(), d.payload.len()),
                    ([5].as_slice(), payload.len())
                );
                let at = frame.len() - 3;
                frame[at] ^= 0x10;
                assert!(matches!(
                    verify(&NONE, &frame),
                    Err(FrameFault::Checksum { .. })
                ));
            }
        }
        let arp = arp_request(
            [2; 6],
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 2),
        );
        assert_eq!(dissect(&arp).unwrap().ethertype, crate::frames::ARP);
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_frame_but_no_panic() {
        for ip in ips() {
            let frame = tcp(&eth(), &ip, &Tcp::default(), &[1, 2, 3]);
            assert!((0..frame.len()).all(|len| dissect(&frame[..len]).is_err()));
        }
    }

    /// Cuts a train the long way round: each segment built anew.
    fn segments(ip: Ip, header: &Tcp, payload: &[u8], mss: u16) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        let count = payload.len().div_ceil(usize::from(mss));
        payload
            .chunks(usize::from(mss))
            .enumerate()
            .map(|(n, bytes)| {
                let mut header = header.clone();
                header.seq = header.seq.wrapping_add((n * usize::from(mss)) as u32);
                if n + 1 < count {
                    header.flags &= !FLAGS_LAST;
                }
                if n > 0 {
                    header.flags &= !Tcp::CWR;
                }
                let ip = Ip {
                    id: ip.id.wrapping_add(n as u16),
                    ..ip
                };
                (NONE, tcp(&eth(), &ip, &header, bytes))
            })
            .collect()
    }

    #[test]
    fn trains() {
        let payload: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        let header = Tcp {
            seq: u32::MAX - 1000,
            flags: Tcp::ACK | Tcp::FIN | Tcp::PSH | Tcp::CWR,
            ..Tcp::default()
        };
        for ip in ips() {
            let (hdr, sent) = tcp_gso(&eth(), &ip, &header, &payload, 1448);
            let good = segments(ip, &header, &payload, 1448);
            verify_train(&sent, 1448, &good).unwrap();
            verify_train(&sent, 1448, &[(hdr, sent.clone())]).unwrap();

            assert!(verify_train(&sent, 1448, &good[..3]).is_err());
            assert!(verify_train(&sent, 1400, &good).is_err());
            let mut swapped = good.clone();
            swapped.swap(1, 2);
            assert!(verify_train(&sent, 1448, &swapped).is_err());
            let early_fin = Tcp {
                flags: header.flags,
                ..header.clone()
            };
            let mut wrong = good.clone();
            wrong[0].1 = tcp(&eth(), &ip, &early_fin, &payload[..1448]);
            assert!(matches!(
                verify_train(&sent, 1448, &wrong),
                Err(FrameFault::Train {
                    segment: 0,
                    what: "flags",
                    ..
                })
            ));
            let mut wrong = good.clone();
            wrong[0].1[0] ^= 1;
            assert!(matches!(
                verify_train(&sent, 1448, &wrong),
                Err(FrameFault::Train {
                    segment: 0,
                    what: "header byte",
                    ..
                })
            ));
        }
    }
}
