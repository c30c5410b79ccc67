//! Software segmentation: a TCP frame of up to 64 KB into frames of the sender's segment size.
//!
//! Each segment is the frame's headers, edited, before a range of its payload. The headers are built in the caller's
//! buffer and the payload is not touched, so it can go from where it is to where it belongs in one copy. What changes
//! from segment to segment, as a NIC would do it: IP length and header checksum, the IPv4 identification (one more each),
//! the TCP sequence number, FIN and PSH (last only), CWR (first only), the TCP checksum. Ethernet, VLAN tags, IP options,
//! IPv6 extension headers, TCP options and ECE are repeated as they are.
//!
//! Limits: headers of at most [`HEAD_LEN`] bytes, at most [`MAX_SEGMENTS`](crate::MAX_SEGMENTS) segments, both ensured by
//! [`check_offload`](crate::check_offload). No state beyond the iterator's few words.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::HEAD_LEN;
use crate::checksum::Sum;
use crate::headers::{Tcp, protocol};
use crate::offload::{Gso, GsoInfo, Offload, PartialCsum};

/// Where a segment's headers are built.
pub type HeaderBuf = [u8; HEAD_LEN];

/// What becomes of the TCP checksums.
#[derive(Clone, Copy, Debug)]
pub enum Checksums<'a> {
    /// Left to the receiver, or to whoever copies the payload and sums on the way: the field holds the pseudo header's
    /// sum, and [`Segment::csum`] says where.
    Partial,
    /// Completed, from the linear frame whose head is being cut.
    Complete {
        /// The frame, headers included.
        frame: &'a [u8],
    },
}

/// One segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// How many bytes of the buffer are its headers.
    pub header_len: usize,
    /// Which bytes of the frame are its payload.
    pub payload: Range<usize>,
    /// The checksum that is left to do.
    pub csum: Option<PartialCsum>,
}

impl Segment {
    /// What is left to ask of its receiver.
    #[must_use]
    pub const fn offload(&self) -> Offload {
        Offload {
            csum: self.csum,
            gso: None,
            data_valid: false,
        }
    }
}

/// Cuts one frame. [`next_segment`](Self::next_segment) is called until it returns `None`.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    /// The original headers.
    headers: &'a [u8],
    checksums: Checksums<'a>,
    gso: GsoInfo,
    /// Where TCP starts.
    csum: PartialCsum,
    /// Payload bytes cut so far, and segments.
    done: usize,
    count: u16,
}

impl<'a> Segmenter<'a> {
    /// Prepares to cut the frame that begins with `head` and for which `offload` was checked.
    ///
    /// `None` if there is nothing to cut, or if `offload` was not made from this head and does not fit it.
    #[must_use]
    pub fn new(head: &'a [u8], offload: &Offload, checksums: Checksums<'a>) -> Option<Self> {
        let (gso, csum) = (offload.gso?, offload.csum?);
        let header_len = usize::from(gso.header_len);
        let headers = head.get(..header_len)?;
        let ip_len = match gso.kind {
            Gso::Tcp4 => 20,
            Gso::Tcp6 => 40,
        };
        let l4 = usize::from(csum.start);
        let fits = usize::from(gso.l3_offset) + ip_len <= l4
            && l4 + 20 <= header_len
            && header_len <= HEAD_LEN
            && gso.size > 0;
        let seen = match checksums {
            Checksums::Partial => true,
            Checksums::Complete { frame } => {
                frame.len() >= header_len + usize::from(gso.payload_len)
            }
        };
        (fits && seen).then_some(Self {
            headers,
            checksums,
            gso,
            csum,
            done: 0,
            count: 0,
        })
    }

    /// How many segments the whole frame becomes.
    #[must_use]
    pub fn segments(&self) -> usize {
        usize::from(self.gso.payload_len)
            .div_ceil(usize::from(self.gso.size))
            .max(1)
    }

    /// Builds the next segment's headers at the start of `buf`; `None` after the last.
    pub fn next_segment(&mut self, buf: &mut HeaderBuf) -> Option<Segment> {
        if usize::from(self.count) == self.segments() {
            return None;
        }
        let left = usize::from(self.gso.payload_len) - self.done;
        let len = left.min(usize::from(self.gso.size));
        let header_len = self.headers.len();
        let start = header_len + self.done;
        let payload = start..start + len;

        let headers = buf.get_mut(..header_len)?;
        headers.copy_from_slice(self.headers);
        let (below, tcp) = headers.split_at_mut_checked(usize::from(self.csum.start))?;
        let tcp_len = tcp.len() + len;
        let ip = below.get_mut(usize::from(self.gso.l3_offset)..)?;
        let pseudo = match self.gso.kind {
            Gso::Tcp4 => edit_ipv4(ip, tcp_len, self.count)?,
            Gso::Tcp6 => edit_ipv6(ip, tcp_len)?,
        };
        self.edit_tcp(tcp, len == left)?;
        let csum = self.checksum(tcp, pseudo, &payload)?;

        self.done += len;
        self.count += 1;
        Some(Segment {
            header_len,
            payload,
            csum,
        })
    }

    fn edit_tcp(&self, tcp: &mut [u8], last: bool) -> Option<()> {
        let tcp = tcp.first_chunk_mut::<20>()?;
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let sequence = sequence.wrapping_add(self.done as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            tcp[13] &= !(Tcp::FIN | Tcp::PSH);
        }
        if self.count > 0 {
            tcp[13] &= !Tcp::CWR;
        }
        Some(())
    }

    /// Writes the checksum field; returns what is left to do.
    fn checksum(
        &self,
        tcp: &mut [u8],
        pseudo: Sum,
        payload: &Range<usize>,
    ) -> Option<Option<PartialCsum>> {
        let (field, left) = match self.checksums {
            Checksums::Partial => (pseudo.to_field(), Some(self.csum)),
            Checksums::Complete { frame } => {
                put16(tcp, 16, 0)?;
                let mut sum = pseudo;
                sum.add(tcp);
                sum.add(frame.get(payload.clone())?);
                (sum.finish_nonzero(), None)
            }
        };
        put16(tcp, 16, field)?;
        Some(left)
    }
}

/// Length, identification and header checksum; returns the pseudo header's sum.
fn edit_ipv4(ip: &mut [u8], tcp_len: usize, count: u16) -> Option<Sum> {
    let total_len = u16::try_from(ip.len() + tcp_len).ok()?;
    let first = ip.first_chunk::<20>()?;
    let id = u16::from_be_bytes([first[4], first[5]]).wrapping_add(count);
    let src = Ipv4Addr::new(first[12], first[13], first[14], first[15]);
    let dst = Ipv4Addr::new(first[16], first[17], first[18], first[19]);
    put16(ip, 2, total_len)?;
    put16(ip, 4, id)?;
    put16(ip, 10, 0)?;
    let mut sum = Sum::new();
    sum.add(ip);
    put16(ip, 10, sum.finish())?;
    let tcp_len = u16::try_from(tcp_len).ok()?;
    Some(Sum::pseudo_v4(src, dst, protocol::TCP, tcp_len))
}

/// Length; returns the pseudo header's sum. `ip` includes the extension headers.
fn edit_ipv6(ip: &mut [u8], tcp_len: usize) -> Option<Sum> {
    let payload_len = u16::try_from(ip.len().checked_sub(40)? + tcp_len).ok()?;
    let (_, addresses) = ip.first_chunk::<40>()?.split_first_chunk::<8>()?;
    let (src, rest) = addresses.split_first_chunk::<16>()?;
    let dst = rest.first_chunk::<16>()?;
    let (src, dst) = (Ipv6Addr::from(*src), Ipv6Addr::from(*dst));
    put16(ip, 4, payload_len)?;
    let tcp_len = u32::try_from(tcp_len).ok()?;
    Some(Sum::pseudo_v6(src, dst, protocol::TCP, tcp_len))
}

#[inline]
fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut::<2>()? = value.to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::complete_checksum;
    use crate::offload::check_offload;
    use crate::testing::{TcpFrame, tcp_frames};
    use proptest::prelude::*;

    /// Cuts a frame as a receiver without offloads needs it.
    fn cut(frame: &[u8], offload: &Offload, partial: bool) -> Vec<Vec<u8>> {
        let head = &frame[..frame.len().min(HEAD_LEN)];
        let checksums = if partial {
            Checksums::Partial
        } else {
            Checksums::Complete { frame }
        };
        let mut segmenter = Segmenter::new(head, offload, checksums).unwrap();
        let mut buf = [0xa5; HEAD_LEN];
        let mut segments = Vec::new();
        while let Some(segment) = segmenter.next_segment(&mut buf) {
            let mut out = buf[..segment.header_len].to_vec();
            out.extend(&frame[segment.payload.clone()]);
            assert_eq!(segment.csum.is_some(), partial);
            if let Some(csum) = segment.csum {
                complete_checksum(&mut out, csum);
            }
            segments.push(out);
        }
        assert_eq!(segments.len(), segmenter.segments());
        assert!(segmenter.next_segment(&mut buf).is_none());
        segments
    }

    #[test]
    fn three_segments_byte_by_byte() {
        let mut big = TcpFrame::plain(false, 0);
        big.payload = b"abcdefgh".to_vec();
        big.flags = Tcp::CWR | Tcp::ECE | Tcp::ACK | Tcp::PSH | Tcp::FIN;
        big.id = 0xffff;
        big.sequence = 0xffff_fffe;
        let frame = big.build();
        let offload = check_offload(&big.request(3), &frame, frame.len()).unwrap();
        let segments = cut(&frame, &offload, false);
        let lengths = [43, 43, 42];
        let ids = [[0xff, 0xff], [0, 0], [0, 1]];
        let sequences = [[0xff, 0xff, 0xff, 0xfe], [0, 0, 0, 1], [0, 0, 0, 4]];
        let flags = [0xd0, 0x50, 0x59];
        let payloads: [&[u8]; 3] = [b"abc", b"def", b"gh"];
        assert_eq!(segments.len(), 3);
        for (i, segment) in segments.iter().enumerate() {
            assert_eq!(segment[..14], frame[..14]);
            assert_eq!(segment[16..18], [0, lengths[i]]);
            assert_eq!(segment[18..20], ids[i]);
            assert_eq!(segment[38..42], sequences[i]);
            assert_eq!(segment[47], flags[i]);
            assert_eq!(segment[54..], *payloads[i]);
            big.assert_whole(segment);
        }
    }

    #[test]
    fn a_full_64_kb_frame() {
        for v6 in [false, true] {
            let mut big = TcpFrame::plain(v6, 0);
            big.payload = vec![0x5a; 65_535 - if v6 { 60 } else { 40 }];
            let frame = big.build();
            let offload =
                check_offload(&big.request(1448), &frame[..HEAD_LEN], frame.len()).unwrap();
            let segments = cut(&frame, &offload, false);
            assert_eq!(segments.len(), 46);
            segments
                .iter()
                .for_each(|segment| big.assert_whole(segment));
        }
    }

    #[test]
    fn padding_behind_the_packet_is_left_out() {
        let big = TcpFrame::plain(false, 5);
        let mut frame = big.build();
        frame.resize(64, 0xee);
        let offload = check_offload(&big.request(4), &frame, frame.len()).unwrap();
        let segments = cut(&frame, &offload, false);
        assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [58, 55]);
    }

    #[test]
    fn an_offload_of_another_frame_is_refused() {
        let big = TcpFrame::plain(false, 100);
        let frame = big.build();
        let good = check_offload(&big.request(10), &frame, frame.len()).unwrap();
        let (gso, csum) = (good.gso.unwrap(), good.csum.unwrap());
        let made = |gso, csum| Offload {
            gso,
            csum,
            data_valid: false,
        };
        let refused = |offload: &Offload, head: &[u8], frame: &[u8]| {
            Segmenter::new(head, offload, Checksums::Complete { frame }).is_none()
        };
        assert!(!refused(&good, &frame, &frame));
        assert!(refused(&good, &frame[..53], &frame));
        assert!(refused(&good, &frame, &frame[..153]));
        assert!(refused(&made(None, Some(csum)), &frame, &frame));
        assert!(refused(&made(Some(gso), None), &frame, &frame));
        for bad in [
            GsoInfo { size: 0, ..gso },
            GsoInfo {
                kind: Gso::Tcp6,
                ..gso
            },
            GsoInfo {
                header_len: 50,
                ..gso
            },
            GsoInfo {
                header_len: 193,
                ..gso
            },
            GsoInfo {
                l3_offset: u16::MAX,
                ..gso
            },
        ] {
            assert!(
                refused(&made(Some(bad), Some(csum)), &frame, &frame),
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn segments_are_whole_and_add_up(big in tcp_frames(20_000), pieces in 2usize..200, partial: bool) {
            prop_assume!(big.payload.len() > 1);
            let frame = big.build();
            let size = (big.payload.len() / pieces).max(1) as u16;
            let count = big.payload.len().div_ceil(usize::from(size));
            let head = &frame[..frame.len().min(HEAD_LEN)];
            let offload = check_offload(&big.request(size), head, frame.len()).unwrap();
            let segments = cut(&frame, &offload, partial);
            prop_assert_eq!(segments.len(), count);

            let (l3, l4, header_len) = (big.l3(), big.l4(), big.header_len());
            let mut payload: Vec<u8> = Vec::new();
            for (i, segment) in segments.iter().enumerate() {
                big.assert_whole(segment);
                let (first, last) = (i == 0, i + 1 == count);
                prop_assert!(segment.len() <= offload.wire_len(frame.len()));
                prop_assert_eq!(&segment[..l3], &frame[..l3]);
                prop_assert_eq!(&segment[l4 + 20..header_len], &frame[l4 + 20..header_len]);
                if !big.v6 {
                    let id = big.id.wrapping_add(i as u16).to_be_bytes();
                    prop_assert_eq!(&segment[l3 + 4..l3 + 6], &id);
                    prop_assert_eq!(&segment[l3 + 20..l4], &frame[l3 + 20..l4]);
                } else {
                    prop_assert_eq!(&segment[l3 + 6..l4], &frame[l3 + 6..l4]);
                }
                let sequence = big.sequence.wrapping_add(payload.len() as u32).to_be_bytes();
                prop_assert_eq!(&segment[l4 + 4..l4 + 8], &sequence);
                let gone = if last { 0 } else { 0x09 } | if first { 0 } else { 0x80 };
                prop_assert_eq!(segment[l4 + 13], big.flags & !gone);
                payload.extend(&segment[header_len..]);
            }
            prop_assert_eq!(payload, big.payload);
        }
    }
}
