//! For tests: TCP frames built byte by byte, and checks that share no code with what they check.

use proptest::prelude::*;

use crate::net_header::VirtioNetHdr;
use crate::vlan::{TPID_CUSTOMER, TPID_SERVICE, Tag};

/// RFC 1071 by the book: 16-bit big-endian words, end-around carry, odd byte padded with zero.
pub(crate) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(pair[0]) << 8 | u32::from(low);
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// A TCP frame to be built.
#[derive(Clone, Debug)]
pub(crate) struct TcpFrame {
    pub(crate) tags: Vec<Tag>,
    pub(crate) v6: bool,
    /// IPv4 options in words of four bytes.
    pub(crate) ip_options: Vec<[u8; 4]>,
    /// Destination-options headers, each of 8 bytes and this many more times 8.
    pub(crate) extensions: Vec<u8>,
    /// TCP options in words of four bytes.
    pub(crate) tcp_options: Vec<[u8; 4]>,
    pub(crate) flags: u8,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: Vec<u8>,
}

impl TcpFrame {
    pub(crate) fn plain(v6: bool, payload: usize) -> Self {
        Self {
            tags: vec![],
            v6,
            ip_options: vec![],
            extensions: vec![],
            tcp_options: vec![],
            flags: 0x10,
            id: 7,
            sequence: 1000,
            payload: (0..payload).map(|i| (i * 31) as u8).collect(),
        }
    }

    pub(crate) fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub(crate) fn l4(&self) -> usize {
        let extensions: usize = self
            .extensions
            .iter()
            .map(|n| 8 + 8 * usize::from(*n))
            .sum();
        if self.v6 {
            self.l3() + 40 + extensions
        } else {
            self.l3() + 20 + 4 * self.ip_options.len()
        }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.l4() + 20 + 4 * self.tcp_options.len()
    }

    /// The addresses, as they stand in the pseudo header.
    fn addresses(&self) -> Vec<u8> {
        if self.v6 {
            let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
            [address(1), address(2)].concat()
        } else {
            vec![10, 0, 0, 1, 10, 0, 0, 2]
        }
    }

    fn pseudo(&self, tcp_len: usize) -> Vec<u8> {
        let mut bytes = self.addresses();
        if self.v6 {
            bytes.extend((tcp_len as u32).to_be_bytes());
            bytes.extend([0, 0, 0, 6]);
        } else {
            bytes.extend([0, 6]);
            bytes.extend((tcp_len as u16).to_be_bytes());
        }
        bytes
    }

    /// The frame, its TCP checksum left to do.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tag in &self.tags {
            frame.extend(tag.tpid.to_be_bytes());
            frame.extend(tag.tci.to_be_bytes());
        }
        let ip_payload = self.header_len() + self.payload.len() - self.l3();
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x6a, 0xbc, 0xde, 0xf0]);
            frame.extend(((ip_payload - 40) as u16).to_be_bytes());
            frame.extend([if self.extensions.is_empty() { 6 } else { 60 }, 64]);
            frame.extend(self.addresses());
            for (i, more) in self.extensions.iter().enumerate() {
                let last = i + 1 == self.extensions.len();
                frame.extend([if last { 6 } else { 60 }, *more]);
                frame.extend(vec![0; 6 + 8 * usize::from(*more)]);
            }
        } else {
            let mut ip = vec![0x45 + self.ip_options.len() as u8, 0x02];
            ip.extend((ip_payload as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([0x40, 0, 64, 6, 0, 0]);
            ip.extend(self.addresses());
            ip.extend(self.ip_options.concat());
            let sum = !naive_sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        assert_eq!(frame.len(), self.l4());
        let tcp_len = 20 + 4 * self.tcp_options.len() + self.payload.len();
        frame.extend([0x9c, 0x40, 0x14, 0x51]);
        frame.extend(self.sequence.to_be_bytes());
        frame.extend([0, 0, 0, 9]);
        frame.extend([
            0x50 + 0x10 * self.tcp_options.len() as u8,
            self.flags,
            0x20,
            0,
        ]);
        frame.extend(naive_sum(&self.pseudo(tcp_len)).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(self.tcp_options.concat());
        frame.extend(&self.payload);
        frame
    }

    /// What a correct driver asks for.
    pub(crate) fn request(&self, gso_size: u16) -> VirtioNetHdr {
        VirtioNetHdr {
            flags: VirtioNetHdr::F_NEEDS_CSUM,
            gso_type: if self.v6 {
                VirtioNetHdr::GSO_TCPV6
            } else {
                VirtioNetHdr::GSO_TCPV4
            },
            hdr_len: 0xdead,
            gso_size,
            csum_start: self.l4() as u16,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    /// Checks that `frame`, of the same header lengths, is whole: lengths, IP checksum, TCP checksum.
    pub(crate) fn assert_whole(&self, frame: &[u8]) {
        let (l3, l4) = (self.l3(), self.l4());
        let word = |at: usize| usize::from(frame[at]) << 8 | usize::from(frame[at + 1]);
        if self.v6 {
            assert_eq!(word(l3 + 4), frame.len() - l3 - 40, "payload length");
        } else {
            assert_eq!(word(l3 + 2), frame.len() - l3, "total length");
            assert_eq!(naive_sum(&frame[l3..l4]), 0xffff, "IP checksum");
        }
        let mut covered = self.pseudo(frame.len() - l4);
        covered.extend(&frame[l4..]);
        assert_eq!(naive_sum(&covered), 0xffff, "TCP checksum");
    }
}

/// Frames whose headers fit the head, with payloads of at most `longest` bytes.
pub(crate) fn tcp_frames(longest: usize) -> impl Strategy<Value = TcpFrame> {
    let tag = (prop::bool::ANY, any::<u16>()).prop_map(|(service, tci)| Tag {
        tpid: if service { TPID_SERVICE } else { TPID_CUSTOMER },
        tci,
    });
    let length = prop_oneof![0usize..200, 0..=longest];
    (
        prop::collection::vec(tag, 0..=2),
        any::<bool>(),
        prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        prop::collection::vec(0u8..3, 0..=3),
        prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        any::<(u8, u16, u32)>(),
        length.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len)),
    )
        .prop_map(
            |(tags, v6, ip_options, extensions, tcp_options, (flags, id, sequence), payload)| {
                TcpFrame {
                    tags,
                    v6,
                    ip_options,
                    extensions,
                    tcp_options,
                    flags,
                    id,
                    sequence,
                    payload,
                }
            },
        )
        .prop_filter("headers fit the head", |frame| {
            frame.header_len() <= crate::HEAD_LEN
        })
}
