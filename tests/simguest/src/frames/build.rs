//! Building frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::header::VirtioNetHdr;

use super::{ARP, IPV4, IPV6, PROTO_TCP, PROTO_UDP, VLAN, fold, sum};

/// Layer 2 of a frame.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Eth {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// Tags, outermost first, as TCI (priority, DEI, VLAN id).
    pub tags: Vec<u16>,
}

impl Eth {
    /// Untagged.
    pub fn new(dst: [u8; 6], src: [u8; 6]) -> Self {
        Self {
            dst,
            src,
            tags: Vec::new(),
        }
    }

    /// With one more (inner) tag.
    #[must_use]
    pub fn tag(mut self, tci: u16) -> Self {
        self.tags.push(tci);
        self
    }

    fn len(&self) -> usize {
        14 + 4 * self.tags.len()
    }
}

/// Layer 3 of a frame. Both addresses must be of one family; if not, the destination's decides and the source is all
/// zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// IPv4 identification.
    pub id: u16,
}

impl Ip {
    /// Usual values for the rest.
    pub fn new(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> Self {
        Self {
            src: src.into(),
            dst: dst.into(),
            ttl: 64,
            tos: 0,
            id: 0x1234,
        }
    }

    fn ethertype(&self) -> u16 {
        if self.dst.is_ipv4() { IPV4 } else { IPV6 }
    }

    fn header_len(&self) -> usize {
        if self.dst.is_ipv4() { 20 } else { 40 }
    }

    fn append(&self, out: &mut Vec<u8>, proto: u8, payload: usize) {
        let start = out.len();
        match (self.src, self.dst) {
            (src, IpAddr::V4(dst)) => {
                let src = if let IpAddr::V4(src) = src {
                    src
                } else {
                    Ipv4Addr::UNSPECIFIED
                };
                out.extend_from_slice(&[0x45, self.tos]);
                out.extend_from_slice(&((20 + payload) as u16).to_be_bytes());
                out.extend_from_slice(&self.id.to_be_bytes());
                out.extend_from_slice(&[0x40, 0, self.ttl, proto, 0, 0]);
                out.extend_from_slice(&src.octets());
                out.extend_from_slice(&dst.octets());
                let check = !fold(sum(0, &out[start..]));
                out[start + 10..start + 12].copy_from_slice(&check.to_be_bytes());
            }
            (src, IpAddr::V6(dst)) => {
                let src = if let IpAddr::V6(src) = src {
                    src
                } else {
                    Ipv6Addr::UNSPECIFIED
                };
                out.extend_from_slice(&(0x6000_0000 | u32::from(self.tos) << 20).to_be_bytes());
                out.extend_from_slice(&(payload as u16).to_be_bytes());
                out.extend_from_slice(&[proto, self.ttl]);
                out.extend_from_slice(&src.octets());
                out.extend_from_slice(&dst.octets());
            }
        }
    }

    /// Sum of the pseudo header.
    fn pseudo(&self, proto: u8, len: usize) -> u32 {
        let mut bytes = Vec::with_capacity(40);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend_from_slice(&src.octets());
                bytes.extend_from_slice(&dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend_from_slice(&src.octets());
                bytes.extend_from_slice(&dst.octets());
            }
            (_, IpAddr::V4(dst)) => bytes.extend_from_slice(&dst.octets()),
            (_, IpAddr::V6(dst)) => bytes.extend_from_slice(&dst.octets()),
        }
        bytes.extend_from_slice(&(len as u32).to_be_bytes());
        bytes.extend_from_slice(&[0, proto]);
        sum(0, &bytes)
    }
}

/// The TCP header.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag byte: see the constants.
    pub flags: u8,
    /// Options, padded with zeroes to a multiple of four.
    pub options: Vec<u8>,
}

impl Tcp {
    /// Last segment.
    pub const FIN: u8 = 0x01;
    /// Deliver at once.
    pub const PSH: u8 = 0x08;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
    /// Congestion echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;

    fn header_len(&self) -> usize {
        20 + self.options.len().next_multiple_of(4)
    }

    fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sport.to_be_bytes());
        out.extend_from_slice(&self.dport.to_be_bytes());
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.ack.to_be_bytes());
        out.extend_from_slice(&[(self.header_len() as u8 / 4) << 4, self.flags, 0xff, 0xff]);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.options);
        out.resize(
            out.len() + self.options.len().next_multiple_of(4) - self.options.len(),
            0,
        );
    }
}

/// A frame of any ethertype; not padded.
#[must_use]
pub fn ethernet(eth: &Eth, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(eth.len() + payload.len());
    out.extend_from_slice(&eth.dst);
    out.extend_from_slice(&eth.src);
    for tci in &eth.tags {
        out.extend_from_slice(&VLAN.to_be_bytes());
        out.extend_from_slice(&tci.to_be_bytes());
    }
    out.extend_from_slice(&ethertype.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn arp(eth: &Eth, op: u16, target_mac: [u8; 6], src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend_from_slice(&op.to_be_bytes());
    body.extend_from_slice(&eth.src);
    body.extend_from_slice(&src.octets());
    body.extend_from_slice(&target_mac);
    body.extend_from_slice(&dst.octets());
    ethernet(eth, ARP, &body)
}

/// "Who has `dst`? Tell `src`", broadcast.
#[must_use]
pub fn arp_request(src_mac: [u8; 6], src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    arp(&Eth::new([0xff; 6], src_mac), 1, [0; 6], src, dst)
}

/// "`src` is at `eth.src`", to `eth.dst`.
#[must_use]
pub fn arp_reply(eth: &Eth, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    arp(eth, 2, eth.dst, src, dst)
}

/// ICMP echo request over IPv4.
#[must_use]
pub fn icmp_echo(eth: &Eth, ip: &Ip, id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![8, 0, 0, 0];
    body.extend_from_slice(&id.to_be_bytes());
    body.extend_from_slice(&seq.to_be_bytes());
    body.extend_from_slice(payload);
    let check = !fold(sum(0, &body));
    body[2..4].copy_from_slice(&check.to_be_bytes());
    let mut packet = Vec::new();
    ip.append(&mut packet, 1, body.len());
    packet.extend_from_slice(&body);
    ethernet(eth, ip.ethertype(), &packet)
}

/// Layer 4 with its checksum field either complete or holding the pseudo header's sum only.
fn transport(
    eth: &Eth,
    ip: &Ip,
    proto: u8,
    mut l4: Vec<u8>,
    field: usize,
    partial: bool,
) -> Vec<u8> {
    let pseudo = ip.pseudo(proto, l4.len());
    let check = match (partial, proto) {
        (true, _) => fold(pseudo),
        (false, PROTO_UDP) => match !fold(sum(pseudo, &l4)) {
            0 => 0xffff,
            check => check,
        },
        (false, _) => !fold(sum(pseudo, &l4)),
    };
    l4[field..field + 2].copy_from_slice(&check.to_be_bytes());
    let mut packet = Vec::with_capacity(ip.header_len() + l4.len());
    ip.append(&mut packet, proto, l4.len());
    packet.extend_from_slice(&l4);
    ethernet(eth, ip.ethertype(), &packet)
}

fn udp_l4(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::with_capacity(8 + payload.len());
    l4.extend_from_slice(&sport.to_be_bytes());
    l4.extend_from_slice(&dport.to_be_bytes());
    l4.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    l4.extend_from_slice(&[0, 0]);
    l4.extend_from_slice(payload);
    l4
}

fn tcp_l4(header: &Tcp, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::with_capacity(header.header_len() + payload.len());
    header.append(&mut l4);
    l4.extend_from_slice(payload);
    l4
}

fn partial_header(eth: &Eth, ip: &Ip, offset: u16) -> VirtioNetHdr {
    VirtioNetHdr {
        flags: VirtioNetHdr::F_NEEDS_CSUM,
        csum_start: (eth.len() + ip.header_len()) as u16,
        csum_offset: offset,
        ..VirtioNetHdr::default()
    }
}

/// UDP with a complete checksum.
#[must_use]
pub fn udp(eth: &Eth, ip: &Ip, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    transport(eth, ip, PROTO_UDP, udp_l4(sport, dport, payload), 6, false)
}

/// UDP with a partial checksum, and the header that asks for completing it.
#[must_use]
pub fn udp_partial(
    eth: &Eth,
    ip: &Ip,
    sport: u16,
    dport: u16,
    payload: &[u8],
) -> (VirtioNetHdr, Vec<u8>) {
    let frame = transport(eth, ip, PROTO_UDP, udp_l4(sport, dport, payload), 6, true);
    (partial_header(eth, ip, 6), frame)
}

/// TCP with a complete checksum.
#[must_use]
pub fn tcp(eth: &Eth, ip: &Ip, header: &Tcp, payload: &[u8]) -> Vec<u8> {
    transport(eth, ip, PROTO_TCP, tcp_l4(header, payload), 16, false)
}

/// TCP with a partial checksum, and the header that asks for completing it.
#[must_use]
pub fn tcp_partial(eth: &Eth, ip: &Ip, header: &Tcp, payload: &[u8]) -> (VirtioNetHdr, Vec<u8>) {
    let frame = transport(eth, ip, PROTO_TCP, tcp_l4(header, payload), 16, true);
    (partial_header(eth, ip, 16), frame)
}

/// A TCP train to be cut into segments of `mss` bytes (at most 64 KiB in all), and its virtio-net header. CWR in the
/// flags makes it an ECN train.
#[must_use]
pub fn tcp_gso(
    eth: &Eth,
    ip: &Ip,
    header: &Tcp,
    payload: &[u8],
    mss: u16,
) -> (VirtioNetHdr, Vec<u8>) {
    let (mut hdr, frame) = tcp_partial(eth, ip, header, payload);
    hdr.gso_type = if ip.dst.is_ipv4() {
        VirtioNetHdr::GSO_TCPV4
    } else {
        VirtioNetHdr::GSO_TCPV6
    };
    if header.flags & Tcp::CWR != 0 {
        hdr.gso_type |= VirtioNetHdr::GSO_ECN;
    }
    hdr.gso_size = mss;
    hdr.hdr_len = (eth.len() + ip.header_len() + header.header_len()) as u16;
    (hdr, frame)
}
