//! Offload requests: what a sender asks of the virtio-net header, and what a receiver is told.
//!
//! The sender's header is hostile and is never copied through. [`check_offload`] turns it into an [`Offload`], checked
//! against the frame's own head, with every length computed here; [`Offload::header_for`] builds a fresh header for each
//! receiver from what that one accepts, or says that software must finish the frame first:
//!
//! - a GSO frame the receiver does not take goes through [`Segmenter`](crate::Segmenter);
//! - a partial checksum it does not take is completed with [`Sum`](crate::Sum) while the frame is copied, or in place
//!   with [`complete_checksum`](crate::complete_checksum).
//!
//! Rules: the checksum field within the frame and its start at or past the network header; GSO only for TCP, of the IP
//! version it names, unfragmented, with its checksum left to do at TCP's own place, a segment size above 0 and at most
//! [`MAX_SEGMENTS`] segments; all headers within the first [`HEAD_LEN`] bytes; frames up to [`MAX_FRAME_LEN`] bytes.

use crate::eth::parse_eth;
use crate::headers::{Fragment, L3, L4};
use crate::net_header::VirtioNetHdr;
use crate::parse::parse;
use crate::vlan::TAG_LEN;
use crate::{HEAD_LEN, MAX_FRAME_LEN, MAX_SEGMENTS};

mod error;

pub use error::OffloadError;

/// Where the checksum field stands in a TCP header.
const TCP_CSUM_OFFSET: u16 = 16;

/// Which segmentation a GSO frame asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gso {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A checksum that is still to be completed. Its field holds the pseudo header's sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialCsum {
    /// From the frame's start to where summing begins.
    pub start: u16,
    /// From there to the field.
    pub offset: u16,
}

/// How a GSO frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GsoInfo {
    /// Protocol.
    pub kind: Gso,
    /// The sender marked it as carrying CWR.
    pub ecn: bool,
    /// TCP payload bytes per segment.
    pub size: u16,
    /// Where the IP header starts.
    pub l3_offset: u16,
    /// Bytes of all headers through TCP's options.
    pub header_len: u16,
    /// TCP payload bytes of the whole frame: more than `size`.
    pub payload_len: u16,
}

/// A checked request. The default asks for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// Checksum to complete; always there with `gso`.
    pub csum: Option<PartialCsum>,
    /// Segmentation to do.
    pub gso: Option<GsoInfo>,
    /// The checksum is known to be good. Only the switch itself may claim this; a guest's claim is never believed.
    pub data_valid: bool,
}

/// What a receiver takes without software's help.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Accepts {
    /// Partial checksums.
    pub csum: bool,
    /// GSO frames of TCP over IPv4.
    pub tso4: bool,
    /// GSO frames of TCP over IPv6.
    pub tso6: bool,
    /// GSO frames with CWR.
    pub ecn: bool,
}

/// Checks what `hdr` asks for the frame of `frame_len` bytes that begins with `head`.
///
/// A GSO frame whose payload fits one segment comes out as a plain one with a partial checksum, which is what it is.
///
/// # Errors
///
/// The request breaks a rule of this module's first page; the frame is to be dropped under the error's name.
#[inline]
pub fn check_offload(
    hdr: &VirtioNetHdr,
    head: &[u8],
    frame_len: usize,
) -> Result<Offload, OffloadError> {
    if frame_len > MAX_FRAME_LEN {
        return Err(OffloadError::TooLong);
    }
    let needs_csum = hdr.flags & VirtioNetHdr::F_NEEDS_CSUM != 0;
    if !needs_csum && hdr.gso_type == VirtioNetHdr::GSO_NONE {
        return Ok(Offload::default());
    }
    let kind = gso_kind(hdr.gso_type)?;
    if !needs_csum {
        return Err(OffloadError::GsoWithoutCsum);
    }
    let csum = check_csum(hdr, head, frame_len)?;
    let gso = match kind {
        Some(kind) => check_gso(hdr, kind, csum, head, frame_len)?,
        None => None,
    };
    Ok(Offload {
        csum: Some(csum),
        gso,
        data_valid: false,
    })
}

fn gso_kind(gso_type: u8) -> Result<Option<Gso>, OffloadError> {
    match gso_type & !VirtioNetHdr::GSO_ECN {
        VirtioNetHdr::GSO_NONE if gso_type == VirtioNetHdr::GSO_NONE => Ok(None),
        VirtioNetHdr::GSO_NONE => Err(OffloadError::EcnWithoutGso),
        VirtioNetHdr::GSO_TCPV4 => Ok(Some(Gso::Tcp4)),
        VirtioNetHdr::GSO_TCPV6 => Ok(Some(Gso::Tcp6)),
        VirtioNetHdr::GSO_UDP => Err(OffloadError::GsoUdpFragments),
        VirtioNetHdr::GSO_UDP_L4 => Err(OffloadError::GsoUdpSegments),
        _ => Err(OffloadError::GsoUnknownType),
    }
}

fn check_csum(
    hdr: &VirtioNetHdr,
    head: &[u8],
    frame_len: usize,
) -> Result<PartialCsum, OffloadError> {
    let csum = PartialCsum {
        start: hdr.csum_start,
        offset: hdr.csum_offset,
    };
    // A tag may yet be pushed before it, and the start must still be a u16 then.
    let highest_start = u16::MAX - TAG_LEN as u16;
    if usize::from(csum.start) + usize::from(csum.offset) + 2 > frame_len
        || csum.start > highest_start
    {
        return Err(OffloadError::CsumBeyondFrame);
    }
    if csum.start < parse_eth(head, frame_len)?.l3_offset {
        return Err(OffloadError::CsumBeforeNetwork);
    }
    Ok(csum)
}

fn check_gso(
    hdr: &VirtioNetHdr,
    kind: Gso,
    csum: PartialCsum,
    head: &[u8],
    frame_len: usize,
) -> Result<Option<GsoInfo>, OffloadError> {
    if hdr.gso_size == 0 {
        return Err(OffloadError::GsoSizeZero);
    }
    let parsed = parse(head, frame_len)?;
    let packet_len = match (parsed.l3, kind) {
        (L3::Ipv4(ip), Gso::Tcp4) => usize::from(ip.total_len),
        (L3::Ipv6(ip), Gso::Tcp6) if ip.routed => return Err(OffloadError::GsoRouted),
        (L3::Ipv6(ip), Gso::Tcp6) => 40 + usize::from(ip.payload_len),
        (L3::Malformed(_), _) => return Err(OffloadError::GsoMalformed),
        (L3::Unseen, _) => return Err(OffloadError::GsoHeadersTooLong),
        _ => return Err(OffloadError::GsoWrongProtocol),
    };
    if parsed.fragment() != Fragment::No {
        return Err(OffloadError::GsoFragment);
    }
    let (tcp, l4_offset) = match (parsed.l4, parsed.l4_offset) {
        (L4::Tcp(tcp), Some(offset)) => (tcp, offset),
        (L4::Unseen, _) => return Err(OffloadError::GsoHeadersTooLong),
        _ => return Err(OffloadError::GsoNotTcp),
    };
    if csum.start != l4_offset || csum.offset != TCP_CSUM_OFFSET {
        return Err(OffloadError::GsoCsumElsewhere);
    }
    let header_len = l4_offset + u16::from(tcp.header_len);
    if usize::from(header_len) > head.len().min(HEAD_LEN) {
        return Err(OffloadError::GsoHeadersTooLong);
    }
    // Bytes of the frame behind the packet are padding.
    let payload_len = (usize::from(parsed.l3_offset) + packet_len)
        .checked_sub(usize::from(header_len))
        .and_then(|len| u16::try_from(len).ok())
        .ok_or(OffloadError::GsoMalformed)?;
    if payload_len <= hdr.gso_size {
        return Ok(None);
    }
    if u32::from(payload_len.div_ceil(hdr.gso_size)) > MAX_SEGMENTS {
        return Err(OffloadError::GsoTooManySegments);
    }
    Ok(Some(GsoInfo {
        kind,
        ecn: hdr.gso_type & VirtioNetHdr::GSO_ECN != 0,
        size: hdr.gso_size,
        l3_offset: parsed.l3_offset,
        header_len,
        payload_len,
    }))
}

impl Offload {
    /// The header for a receiver that takes the frame as it is, or `None` if software must finish it first: segment if
    /// [`gso`](Self::gso) is there, else complete the checksum.
    ///
    /// Offsets are those of the frame as it came; [`HeadEdit::adjust`](crate::HeadEdit::adjust) moves them with a tag.
    /// `num_buffers` is left to whoever fills the buffers.
    #[inline]
    #[must_use]
    pub const fn header_for(&self, accepts: Accepts) -> Option<VirtioNetHdr> {
        let mut header = VirtioNetHdr {
            flags: 0,
            gso_type: VirtioNetHdr::GSO_NONE,
            hdr_len: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
            num_buffers: 0,
        };
        if let Some(csum) = self.csum {
            if !accepts.csum {
                return None;
            }
            header.flags = VirtioNetHdr::F_NEEDS_CSUM;
            header.csum_start = csum.start;
            header.csum_offset = csum.offset;
        } else if self.data_valid && accepts.csum {
            header.flags = VirtioNetHdr::F_DATA_VALID;
        }
        if let Some(gso) = self.gso {
            let (taken, gso_type) = match gso.kind {
                Gso::Tcp4 => (accepts.tso4, VirtioNetHdr::GSO_TCPV4),
                Gso::Tcp6 => (accepts.tso6, VirtioNetHdr::GSO_TCPV6),
            };
            if !taken || (gso.ecn && !accepts.ecn) {
                return None;
            }
            header.gso_type = if gso.ecn {
                gso_type | VirtioNetHdr::GSO_ECN
            } else {
                gso_type
            };
            header.gso_size = gso.size;
            header.hdr_len = gso.header_len;
        }
        Some(header)
    }

    /// The longest frame that a frame of `frame_len` bytes becomes on the wire: what an MTU is to be held against.
    #[inline]
    #[must_use]
    pub const fn wire_len(&self, frame_len: usize) -> usize {
        match self.gso {
            Some(gso) => gso.header_len as usize + gso.size as usize,
            None => frame_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eth::ParseError;
    use crate::segment::{Checksums, Segmenter};
    use crate::testing::{TcpFrame, tcp_frames};
    use crate::vlan::{TPID_CUSTOMER, Tag};
    use proptest::prelude::*;

    const ALL: Accepts = Accepts {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };

    fn check(frame: &[u8], hdr: &VirtioNetHdr) -> Result<Offload, OffloadError> {
        check_offload(hdr, &frame[..frame.len().min(HEAD_LEN)], frame.len())
    }

    /// A TSO frame of 1,000 bytes of payload, with its request changed.
    fn changed(v6: bool, change: impl FnOnce(&mut VirtioNetHdr)) -> Result<Offload, OffloadError> {
        let frame = TcpFrame::plain(v6, 1000);
        let mut hdr = frame.request(100);
        change(&mut hdr);
        check(&frame.build(), &hdr)
    }

    #[test]
    fn nothing_asked_nothing_read() {
        let mut hdr = VirtioNetHdr {
            flags: VirtioNetHdr::F_DATA_VALID,
            hdr_len: 9,
            gso_size: 9,
            csum_start: 9999,
            csum_offset: 9999,
            ..VirtioNetHdr::default()
        };
        assert_eq!(check_offload(&hdr, &[], 0), Ok(Offload::default()));
        assert_eq!(
            check_offload(&hdr, &[], MAX_FRAME_LEN + 1),
            Err(OffloadError::TooLong)
        );
        hdr.flags |= VirtioNetHdr::F_NEEDS_CSUM;
        hdr.csum_start = 0;
        hdr.csum_offset = 0;
        assert_eq!(
            check_offload(&hdr, &[0; 10], 10),
            Err(ParseError::Runt.into())
        );
    }

    #[test]
    fn a_tso_request_and_its_header() {
        for v6 in [false, true] {
            let mut frame = TcpFrame::plain(v6, 3000);
            frame.tags = vec![Tag {
                tpid: TPID_CUSTOMER,
                tci: 5,
            }];
            frame.tcp_options = vec![[1, 1, 1, 1]; 3];
            let offload = check(&frame.build(), &frame.request(1448)).unwrap();
            let l4 = frame.l4() as u16;
            let expected = GsoInfo {
                kind: if v6 { Gso::Tcp6 } else { Gso::Tcp4 },
                ecn: false,
                size: 1448,
                l3_offset: 18,
                header_len: l4 + 32,
                payload_len: 3000,
            };
            assert_eq!(offload.gso, Some(expected));
            assert_eq!(
                offload.csum,
                Some(PartialCsum {
                    start: l4,
                    offset: 16
                })
            );
            assert!(!offload.data_valid);
            let header = VirtioNetHdr {
                hdr_len: l4 + 32,
                ..frame.request(1448)
            };
            assert_eq!(offload.header_for(ALL), Some(header));
            assert_eq!(offload.wire_len(9999), usize::from(l4) + 32 + 1448);
        }
    }

    #[test]
    fn the_receiver_decides() {
        let only = |csum, tso4, tso6, ecn| Accepts {
            csum,
            tso4,
            tso6,
            ecn,
        };
        let gso4 = changed(false, |_| ()).unwrap();
        let gso6 = changed(true, |_| ()).unwrap();
        let ecn4 = changed(false, |hdr| hdr.gso_type |= VirtioNetHdr::GSO_ECN).unwrap();
        let csum = Offload { gso: None, ..gso4 };
        for (offload, accepts, taken) in [
            (gso4, only(true, true, false, false), true),
            (gso4, only(true, false, true, true), false),
            (gso4, only(false, true, true, true), false),
            (gso6, only(true, false, true, false), true),
            (gso6, only(true, true, false, true), false),
            (ecn4, only(true, true, true, false), false),
            (ecn4, ALL, true),
            (csum, only(true, false, false, false), true),
            (csum, Accepts::default(), false),
            (Offload::default(), Accepts::default(), true),
        ] {
            let header = offload.header_for(accepts);
            assert_eq!(header.is_some(), taken, "{offload:?} {accepts:?}");
        }
        assert_eq!(
            ecn4.header_for(ALL).map(|header| header.gso_type),
            Some(VirtioNetHdr::GSO_TCPV4 | VirtioNetHdr::GSO_ECN)
        );
        let valid = Offload {
            data_valid: true,
            ..Offload::default()
        };
        let flags = |accepts| valid.header_for(accepts).map(|header| header.flags);
        assert_eq!(flags(ALL), Some(VirtioNetHdr::F_DATA_VALID));
        assert_eq!(flags(Accepts::default()), Some(0));
    }

    #[test]
    fn each_rule_by_name() {
        use OffloadError as E;
        type Change = fn(&mut VirtioNetHdr);
        let cases: [(Change, E); 14] = [
            (|hdr| hdr.flags = 0, E::GsoWithoutCsum),
            (|hdr| hdr.gso_type = 0x80, E::EcnWithoutGso),
            (|hdr| hdr.gso_type = 3, E::GsoUdpFragments),
            (|hdr| hdr.gso_type = 0x83, E::GsoUdpFragments),
            (|hdr| hdr.gso_type = 5, E::GsoUdpSegments),
            (|hdr| hdr.gso_type = 2, E::GsoUnknownType),
            (|hdr| hdr.gso_type = 0x7f, E::GsoUnknownType),
            (|hdr| hdr.gso_size = 0, E::GsoSizeZero),
            (|hdr| hdr.gso_type = 4, E::GsoWrongProtocol),
            (|hdr| hdr.csum_start = 13, E::CsumBeforeNetwork),
            (|hdr| hdr.csum_start = 35, E::GsoCsumElsewhere),
            (|hdr| hdr.csum_offset = 6, E::GsoCsumElsewhere),
            (|hdr| hdr.csum_offset = 1054 - 34 - 1, E::CsumBeyondFrame),
            (|hdr| hdr.csum_start = u16::MAX, E::CsumBeyondFrame),
        ];
        for (i, (change, error)) in cases.into_iter().enumerate() {
            assert_eq!(changed(false, change), Err(error), "case {i}");
        }
        let plain_csum = changed(false, |hdr| {
            hdr.gso_type = 0;
            hdr.csum_start = 14;
            hdr.csum_offset = 1054 - 14 - 2;
        });
        assert!(
            plain_csum.is_ok(),
            "the last two bytes of a frame are within it"
        );
    }

    #[test]
    fn frames_that_are_no_tcp_to_cut() {
        use OffloadError as E;
        let tso = TcpFrame::plain(false, 1000);
        let with = |at: usize, byte: u8| {
            let mut frame = tso.build();
            frame[at] = byte;
            check(&frame, &tso.request(100))
        };
        assert_eq!(with(14, 0x55), Err(E::GsoMalformed));
        assert_eq!(with(14, 0x44), Err(E::GsoMalformed));
        assert_eq!(with(16, 0xff), Err(E::GsoMalformed));
        assert_eq!(with(20, 0x20), Err(E::GsoFragment));
        assert_eq!(with(21, 0x01), Err(E::GsoFragment));
        assert_eq!(with(23, 17), Err(E::GsoNotTcp));
        assert_eq!(with(46, 0x40), Err(E::GsoNotTcp));

        let mut routed = TcpFrame::plain(true, 1000);
        routed.extensions = vec![0];
        let mut frame = routed.build();
        (frame[20], frame[54 + 3]) = (43, 1);
        assert_eq!(check(&frame, &routed.request(100)), Err(E::GsoRouted));
        frame[54 + 3] = 0;
        assert!(check(&frame, &routed.request(100)).is_ok());

        let mut long = TcpFrame::plain(true, 1000);
        long.extensions = vec![15];
        assert_eq!(
            check(&long.build(), &long.request(100)),
            Err(E::GsoHeadersTooLong)
        );
    }

    #[test]
    fn a_segment_size_of_one_is_bounded() {
        let at_most = MAX_SEGMENTS as usize;
        for (payload, allowed) in [(at_most, true), (at_most + 1, false)] {
            let frame = TcpFrame::plain(false, payload);
            let offload = check(&frame.build(), &frame.request(1));
            assert_eq!(offload.is_ok(), allowed);
        }
        let frame = TcpFrame::plain(false, at_most + 1);
        assert_eq!(
            check(&frame.build(), &frame.request(1)),
            Err(OffloadError::GsoTooManySegments)
        );
    }

    #[test]
    fn one_segment_is_a_plain_frame() {
        for payload in [0, 1, 99, 100] {
            let frame = TcpFrame::plain(true, payload);
            let offload = check(&frame.build(), &frame.request(100)).unwrap();
            assert_eq!(offload.gso, None);
            assert!(offload.csum.is_some());
        }
    }

    #[test]
    fn names_differ() {
        let mut names: Vec<_> = OffloadError::ALL.iter().map(|error| error.name()).collect();
        names.extend(ParseError::ALL.iter().map(|error| error.name()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| {
            name.bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        }));
    }

    proptest! {
        /// Whatever passes the check can be cut, completed and announced within the frame.
        #[test]
        fn any_request_on_any_frame(
            base in tcp_frames(3000),
            flips in prop::collection::vec((0usize..200, any::<u8>()), 0..4),
            hdr: [u8; 12],
            keep in 0u8..16,
            cut in 0usize..4000,
        ) {
            let mut frame = base.build();
            for (at, byte) in flips {
                if let Some(slot) = frame.get_mut(at) {
                    *slot = byte;
                }
            }
            let proper = base.request(300);
            let mut hdr = VirtioNetHdr::from_bytes(&hdr);
            // Mostly right requests get further than random ones.
            if keep & 1 != 0 { hdr.flags = proper.flags; }
            if keep & 2 != 0 { hdr.gso_type = proper.gso_type; }
            if keep & 4 != 0 { (hdr.csum_start, hdr.csum_offset) = (proper.csum_start, proper.csum_offset); }
            if keep & 8 != 0 { frame.truncate(cut); }
            if let Ok(offload) = check(&frame, &hdr) {
                if let Some(csum) = offload.csum {
                    prop_assert!(usize::from(csum.start) + usize::from(csum.offset) + 2 <= frame.len());
                }
                if let Some(gso) = offload.gso {
                    prop_assert!(offload.csum.is_some() && gso.size > 0 && gso.payload_len > gso.size);
                    let mut segmenter = Segmenter::new(&frame[..frame.len().min(HEAD_LEN)], &offload, Checksums::Complete { frame: &frame }).unwrap();
                    let mut buf = [0; HEAD_LEN];
                    let mut next = usize::from(gso.header_len);
                    let mut count = 0;
                    while let Some(segment) = segmenter.next_segment(&mut buf) {
                        prop_assert_eq!(segment.payload.start, next);
                        next = segment.payload.end;
                        count += 1;
                    }
                    prop_assert_eq!(count, segmenter.segments());
                    prop_assert_eq!(next, usize::from(gso.header_len) + usize::from(gso.payload_len));
                    prop_assert!(next <= frame.len());
                }
                prop_assert!(offload.header_for(ALL).is_some());
            }
        }
    }
}
