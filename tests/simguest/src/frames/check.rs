//! Taking frames apart and checking them.

use std::ops::Range;

use crate::header::VirtioNetHdr;

use super::{IPV4, IPV6, PROTO_TCP, PROTO_UDP, VLAN, fold, sum};

/// What is wrong with a frame (or with a train of segments).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameFault {
    /// Ends within a header or before the length it claims.
    #[error("the frame of {len} bytes ends within its {what}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Bytes there are.
        len: usize,
    },
    /// A header field has an impossible value.
    #[error("impossible {what}: {value:#x}")]
    Field {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A checksum does not match.
    #[error("the {what} checksum is {got:#06x}, not {want:#06x}")]
    Checksum {
        /// Which.
        what: &'static str,
        /// In the frame.
        got: u16,
        /// Computed.
        want: u16,
    },
    /// The virtio-net header does not fit the frame.
    #[error("virtio-net header and frame disagree about {what}: {hdr} there, {frame} here")]
    Header {
        /// Which field.
        what: &'static str,
        /// Value in the header.
        hdr: u64,
        /// Value by the frame.
        frame: u64,
    },
    /// A segment train differs from the frame sent.
    #[error("segment {segment}: {what} is {got:#x}, not {want:#x}")]
    Train {
        /// Which segment, from 0.
        segment: usize,
        /// What differs.
        what: &'static str,
        /// Received.
        got: u64,
        /// Expected.
        want: u64,
    },
}

/// Where the parts of a frame are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dissected {
    /// Destination address.
    pub dst: [u8; 6],
    /// Source address.
    pub src: [u8; 6],
    /// VLAN tags, outermost first, as TCI.
    pub tags: Vec<u16>,
    /// Ethertype after the tags.
    pub ethertype: u16,
    /// First byte after the Ethernet header.
    pub l3: usize,
    /// First byte of layer 4 and its protocol, if IP and not a later fragment.
    pub l4: Option<(usize, u8)>,
    /// What TCP, UDP or an unknown protocol carries.
    pub payload: Range<usize>,
}

fn be16(bytes: &[u8], at: usize, what: &'static str) -> Result<u16, FrameFault> {
    match bytes.get(at..at + 2) {
        Some(b) => Ok(u16::from_be_bytes([b[0], b[1]])),
        None => Err(FrameFault::Truncated {
            what,
            len: bytes.len(),
        }),
    }
}

fn need(bytes: &[u8], len: usize, what: &'static str) -> Result<(), FrameFault> {
    if bytes.len() < len {
        Err(FrameFault::Truncated {
            what,
            len: bytes.len(),
        })
    } else {
        Ok(())
    }
}

/// Takes a frame apart, checking lengths but no checksums.
pub fn dissect(frame: &[u8]) -> Result<Dissected, FrameFault> {
    need(frame, 14, "Ethernet header")?;
    let mut d = Dissected {
        dst: [0; 6],
        src: [0; 6],
        tags: Vec::new(),
        ethertype: be16(frame, 12, "Ethernet header")?,
        l3: 14,
        l4: None,
        payload: 14..frame.len(),
    };
    d.dst.copy_from_slice(&frame[..6]);
    d.src.copy_from_slice(&frame[6..12]);
    while d.ethertype == VLAN {
        d.tags.push(be16(frame, d.l3, "VLAN tag")?);
        d.ethertype = be16(frame, d.l3 + 2, "VLAN tag")?;
        d.l3 += 4;
    }
    d.payload.start = d.l3;
    match d.ethertype {
        IPV4 => dissect_v4(frame, &mut d)?,
        IPV6 => dissect_v6(frame, &mut d)?,
        _ => return Ok(d),
    }
    if let Some((at, proto)) = d.l4 {
        let header = match proto {
            PROTO_TCP => {
                need(&frame[..d.payload.end], at + 20, "TCP header")?;
                let len = usize::from(frame[at + 12] >> 4) * 4;
                if len < 20 {
                    return Err(FrameFault::Field {
                        what: "TCP data offset",
                        value: len as u64,
                    });
                }
                len
            }
            PROTO_UDP => 8,
            _ => 0,
        };
        need(&frame[..d.payload.end], at + header, "layer 4 header")?;
        d.payload.start = at + header;
    }
    Ok(d)
}

fn dissect_v4(frame: &[u8], d: &mut Dissected) -> Result<(), FrameFault> {
    let at = d.l3;
    need(frame, at + 20, "IPv4 header")?;
    let header = usize::from(frame[at] & 15) * 4;
    if frame[at] >> 4 != 4 || header < 20 {
        return Err(FrameFault::Field {
            what: "IPv4 version or length",
            value: frame[at].into(),
        });
    }
    let total = usize::from(be16(frame, at + 2, "IPv4 header")?);
    if total < header {
        return Err(FrameFault::Field {
            what: "IPv4 total length",
            value: total as u64,
        });
    }
    need(frame, at + total, "IPv4 packet")?;
    d.payload = at + header..at + total;
    let fragment = be16(frame, at + 6, "IPv4 header")? & 0x1fff;
    d.l4 = (fragment == 0).then_some((at + header, frame[at + 9]));
    Ok(())
}

fn dissect_v6(frame: &[u8], d: &mut Dissected) -> Result<(), FrameFault> {
    let start = d.l3;
    need(frame, start + 40, "IPv6 header")?;
    if frame[start] >> 4 != 6 {
        return Err(FrameFault::Field {
            what: "IPv6 version",
            value: frame[start].into(),
        });
    }
    let end = start + 40 + usize::from(be16(frame, start + 4, "IPv6 header")?);
    need(frame, end, "IPv6 packet")?;
    let (mut next, mut at) = (frame[start + 6], start + 40);
    loop {
        let len = match next {
            0 | 43 | 60 => {
                need(&frame[..end], at + 8, "IPv6 extension header")?;
                8 + usize::from(frame[at + 1]) * 8
            }
            44 => {
                need(&frame[..end], at + 8, "IPv6 fragment header")?;
                if be16(frame, at + 2, "IPv6 fragment header")? & 0xfff8 != 0 {
                    d.payload = at + 8..end;
                    return Ok(());
                }
                8
            }
            _ => break,
        };
        next = frame[at];
        at += len;
        need(&frame[..end], at, "IPv6 extension header")?;
    }
    d.payload = at..end;
    d.l4 = Some((at, next));
    Ok(())
}

/// The pseudo header's sum of a dissected IP frame, with the layer 4 length of this frame.
fn pseudo(frame: &[u8], d: &Dissected, at: usize, proto: u8) -> u32 {
    let len = d.payload.end - at;
    let addresses = if d.ethertype == IPV4 {
        d.l3 + 12..d.l3 + 20
    } else {
        d.l3 + 8..d.l3 + 40
    };
    let total = sum(0, &frame[addresses]);
    let total = sum(total, &(len as u32).to_be_bytes());
    sum(total, &[0, proto])
}

/// Checks a frame together with its virtio-net header: lengths, the IPv4 header's checksum, TCP and UDP checksums
/// (complete, or partial exactly as the header says), and that a GSO header describes the train that is there.
pub fn verify(hdr: &VirtioNetHdr, frame: &[u8]) -> Result<Dissected, FrameFault> {
    let d = dissect(frame)?;
    if d.ethertype == IPV4 {
        let header = usize::from(frame[d.l3] & 15) * 4;
        if fold(sum(0, &frame[d.l3..d.l3 + header])) != 0xffff {
            let got = be16(frame, d.l3 + 10, "IPv4 header")?;
            let mut copy = frame[d.l3..d.l3 + header].to_vec();
            copy[10..12].fill(0);
            return Err(FrameFault::Checksum {
                what: "IPv4",
                got,
                want: !fold(sum(0, &copy)),
            });
        }
    }
    let partial = hdr.flags & VirtioNetHdr::F_NEEDS_CSUM != 0;
    if let Some((at, proto @ (PROTO_TCP | PROTO_UDP))) = d.l4 {
        verify_l4(hdr, frame, &d, at, proto, partial)?;
    } else if partial {
        let (what, start) = ("checksum start", u64::from(hdr.csum_start));
        return Err(FrameFault::Header {
            what,
            hdr: start,
            frame: 0,
        });
    }
    verify_gso(hdr, frame, &d)?;
    Ok(d)
}

fn verify_l4(
    hdr: &VirtioNetHdr,
    frame: &[u8],
    d: &Dissected,
    at: usize,
    proto: u8,
    partial: bool,
) -> Result<(), FrameFault> {
    let (what, offset) = if proto == PROTO_TCP {
        ("TCP", 16)
    } else {
        ("UDP", 6)
    };
    let got = be16(frame, at + offset, what)?;
    let pseudo = pseudo(frame, d, at, proto);
    if partial {
        for (what, hdr, frame) in [
            ("checksum start", usize::from(hdr.csum_start), at),
            ("checksum offset", usize::from(hdr.csum_offset), offset),
        ] {
            if hdr != frame {
                return Err(FrameFault::Header {
                    what,
                    hdr: hdr as u64,
                    frame: frame as u64,
                });
            }
        }
        let want = fold(pseudo);
        return if got == want {
            Ok(())
        } else {
            Err(FrameFault::Checksum { what, got, want })
        };
    }
    if proto == PROTO_UDP && got == 0 && d.ethertype == IPV4 {
        return Ok(());
    }
    if fold(sum(pseudo, &frame[at..d.payload.end])) != 0xffff {
        let mut copy = frame[at..d.payload.end].to_vec();
        copy[offset..offset + 2].fill(0);
        return Err(FrameFault::Checksum {
            what,
            got,
            want: !fold(sum(pseudo, &copy)),
        });
    }
    Ok(())
}

fn verify_gso(hdr: &VirtioNetHdr, frame: &[u8], d: &Dissected) -> Result<(), FrameFault> {
    let kind = hdr.gso_type & !VirtioNetHdr::GSO_ECN;
    if kind == VirtioNetHdr::GSO_NONE {
        return Ok(());
    }
    let want = match (d.ethertype, d.l4) {
        (IPV4, Some((_, PROTO_TCP))) => VirtioNetHdr::GSO_TCPV4,
        (IPV6, Some((_, PROTO_TCP))) => VirtioNetHdr::GSO_TCPV6,
        _ => VirtioNetHdr::GSO_NONE,
    };
    let headers = d.payload.start as u64;
    for (what, hdr, frame) in [
        ("GSO type", u64::from(kind), u64::from(want)),
        (
            "checksum flag of a train",
            u64::from(hdr.flags & VirtioNetHdr::F_NEEDS_CSUM),
            1,
        ),
        ("header length", u64::from(hdr.hdr_len), headers),
    ] {
        if hdr != frame {
            return Err(FrameFault::Header { what, hdr, frame });
        }
    }
    if hdr.gso_size == 0 || frame.len() > 65_535 + 18 {
        return Err(FrameFault::Field {
            what: "GSO size",
            value: hdr.gso_size.into(),
        });
    }
    Ok(())
}
