//! From a frame's head to typed headers, layers 2 to 4.
//!
//! The walk has two ends. Past the end of the *frame* (or of what its IP header says is the packet) a header is
//! malformed; past the end of the *head* it is merely unseen, and a policy that needs it must decide what that means.
//! The walk is bounded: one Ethernet header, one network header, [`MAX_EXTENSIONS`] IPv6 extension headers, one
//! transport header.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::eth::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ParseError, parse_eth};
use crate::headers::{Arp, Fragment, Ipv4, Ipv6, L3, L4, Malformed, Parsed, Ports, Tcp, protocol};
use crate::mac::MacAddr;

/// IPv6 extension headers walked before layer 4 is given up as unseen.
pub const MAX_EXTENSIONS: usize = 8;

/// Parses the `head` of a frame of `frame_len` bytes.
///
/// # Errors
///
/// Only what [`parse_eth`] refuses; deeper trouble is in [`Parsed::l3`] and [`Parsed::l4`].
pub fn parse(head: &[u8], frame_len: usize) -> Result<Parsed, ParseError> {
    let eth = parse_eth(head, frame_len)?;
    let view = View {
        head: head.get(..frame_len).unwrap_or(head),
        end: frame_len,
    };
    let start = usize::from(eth.l3_offset);
    let network = match eth.ethertype {
        ETHERTYPE_IPV4 => ipv4(view, start),
        ETHERTYPE_IPV6 => ipv6(view, start),
        ETHERTYPE_ARP => arp(view, start),
        _ => Ok((L3::Other, Transport::ABSENT)),
    };
    let (l3, transport) = network.unwrap_or_else(|l3| (l3, Transport::ABSENT));
    Ok(Parsed {
        dst: eth.dst,
        src: eth.src,
        vlan: eth.vlan,
        inner_vlan: eth.inner_vlan,
        ethertype: eth.ethertype,
        l3_offset: eth.l3_offset,
        l3,
        l4_offset: transport.offset,
        l4: transport.l4,
    })
}

/// Bytes to read from, and where the packet they belong to ends.
#[derive(Clone, Copy)]
struct View<'a> {
    head: &'a [u8],
    end: usize,
}

/// Why bytes could not be read.
enum Short {
    Packet,
    Head,
}

impl From<Short> for L3 {
    fn from(short: Short) -> Self {
        match short {
            Short::Packet => Self::Malformed(Malformed::Truncated),
            Short::Head => Self::Unseen,
        }
    }
}

impl From<Short> for L4 {
    fn from(short: Short) -> Self {
        match short {
            Short::Packet => Self::Malformed,
            Short::Head => Self::Unseen,
        }
    }
}

impl<'a> View<'a> {
    #[inline]
    fn read<const N: usize>(self, at: usize) -> Result<&'a [u8; N], Short> {
        if at + N > self.end {
            return Err(Short::Packet);
        }
        self.head
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .ok_or(Short::Head)
    }
}

struct Transport {
    offset: Option<u16>,
    l4: L4,
}

impl Transport {
    const ABSENT: Self = Self {
        offset: None,
        l4: L4::None,
    };
}

fn arp(view: View<'_>, at: usize) -> Result<(L3, Transport), L3> {
    // Hardware type Ethernet, protocol IPv4, lengths 6 and 4: the only ARP that anyone speaks.
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    if *view.read::<6>(at)? != ETHERNET_IPV4 {
        return Ok((L3::Other, Transport::ABSENT));
    }
    let [o0, o1, a @ ..] = *view.read::<22>(at + 6)?;
    let arp = Arp {
        operation: u16::from_be_bytes([o0, o1]),
        sender_mac: MacAddr([a[0], a[1], a[2], a[3], a[4], a[5]]),
        sender_ip: Ipv4Addr::new(a[6], a[7], a[8], a[9]),
        target_mac: MacAddr([a[10], a[11], a[12], a[13], a[14], a[15]]),
        target_ip: Ipv4Addr::new(a[16], a[17], a[18], a[19]),
    };
    Ok((L3::Arp(arp), Transport::ABSENT))
}

fn ipv4(view: View<'_>, at: usize) -> Result<(L3, Transport), L3> {
    let b = view.read::<20>(at)?;
    if b[0] >> 4 != 4 {
        return Err(L3::Malformed(Malformed::Version));
    }
    let header_len = (b[0] & 0x0f) * 4;
    if header_len < 20 {
        return Err(L3::Malformed(Malformed::HeaderLength));
    }
    let total_len = u16::from_be_bytes([b[2], b[3]]);
    let end = at + usize::from(total_len);
    if total_len < u16::from(header_len) || end > view.end {
        return Err(L3::Malformed(Malformed::Length));
    }
    let pieces = u16::from_be_bytes([b[6], b[7]]);
    let ip = Ipv4 {
        src: Ipv4Addr::new(b[12], b[13], b[14], b[15]),
        dst: Ipv4Addr::new(b[16], b[17], b[18], b[19]),
        protocol: b[9],
        header_len,
        total_len,
        tos: b[1],
        ttl: b[8],
        fragment: fragment(pieces & 0x1fff, pieces & 0x2000 != 0),
    };
    let transport = if ip.fragment == Fragment::Later {
        Transport::ABSENT
    } else {
        let view = View { end, ..view };
        transport(
            view,
            at + usize::from(header_len),
            ip.protocol,
            protocol::ICMP,
        )
    };
    Ok((L3::Ipv4(ip), transport))
}

const fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

fn ipv6(view: View<'_>, at: usize) -> Result<(L3, Transport), L3> {
    let b = view.read::<40>(at)?;
    if b[0] >> 4 != 6 {
        return Err(L3::Malformed(Malformed::Version));
    }
    let payload_len = u16::from_be_bytes([b[4], b[5]]);
    let end = at + 40 + usize::from(payload_len);
    if end > view.end {
        return Err(L3::Malformed(Malformed::Length));
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&b[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let mut ip = Ipv6 {
        src: address(8),
        dst: address(24),
        protocol: b[6],
        payload_len,
        traffic_class: (b[0] << 4) | (b[1] >> 4),
        hop_limit: b[7],
        fragment: Fragment::No,
        extended: false,
        routed: false,
    };
    let transport = extensions(View { end, ..view }, at + 40, &mut ip);
    Ok((L3::Ipv6(ip), transport))
}

/// Walks the extension headers (RFC 8200, section 4) from `at` and reads what is behind them.
fn extensions(view: View<'_>, mut at: usize, ip: &mut Ipv6) -> Transport {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const NO_NEXT_HEADER: u8 = 59;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    const HIP: u8 = 139;
    const SHIM6: u8 = 140;

    for walked in 0..=MAX_EXTENSIONS {
        match ip.protocol {
            NO_NEXT_HEADER => return Transport::ABSENT,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP
            | SHIM6 => {}
            other => return transport(view, at, other, protocol::ICMPV6),
        }
        if walked == MAX_EXTENSIONS {
            break;
        }
        let kind = ip.protocol;
        ip.extended = true;
        // Every extension header is at least 8 bytes.
        let header = match view.read::<8>(at) {
            Ok(header) => header,
            Err(short) => {
                return Transport {
                    offset: None,
                    l4: short.into(),
                };
            }
        };
        ip.protocol = header[0];
        at += match kind {
            FRAGMENT => {
                let pieces = u16::from_be_bytes([header[2], header[3]]);
                ip.fragment = fragment(pieces >> 3, pieces & 1 != 0);
                if ip.fragment == Fragment::Later {
                    return Transport::ABSENT;
                }
                8
            }
            // RFC 4302: in units of 4 bytes, minus 2.
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => {
                ip.routed |= kind == ROUTING && header[3] != 0;
                (usize::from(header[1]) + 1) * 8
            }
        };
    }
    Transport {
        offset: None,
        l4: L4::Unseen,
    }
}

fn transport(view: View<'_>, at: usize, number: u8, icmp: u8) -> Transport {
    let l4 = match number {
        protocol::TCP => tcp(view, at).unwrap_or_else(L4::from),
        protocol::UDP => view
            .read::<8>(at)
            .map_or_else(L4::from, |b| L4::Udp(ports(b))),
        protocol::SCTP => view
            .read::<12>(at)
            .map_or_else(L4::from, |b| L4::Sctp(ports(b))),
        number if number == icmp => view.read::<4>(at).map_or_else(L4::from, |b| L4::Icmp {
            kind: b[0],
            code: b[1],
        }),
        _ => L4::Other,
    };
    Transport {
        // An extension header may claim to reach past anything a frame can hold.
        offset: u16::try_from(at).ok().filter(|_| at <= view.end),
        l4,
    }
}

fn tcp(view: View<'_>, at: usize) -> Result<L4, Short> {
    let b = view.read::<20>(at)?;
    let header_len = (b[12] >> 4) * 4;
    if header_len < 20 || at + usize::from(header_len) > view.end {
        return Ok(L4::Malformed);
    }
    Ok(L4::Tcp(Tcp {
        ports: ports(b),
        flags: b[13],
        header_len,
    }))
}

fn ports<const N: usize>(header: &[u8; N]) -> Ports {
    const { assert!(N >= 4) };
    Ports {
        src: u16::from_be_bytes([header[0], header[1]]),
        dst: u16::from_be_bytes([header[2], header[3]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HEAD_LEN;
    use crate::testing::{TcpFrame, tcp_frames};
    use proptest::prelude::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn frame(ethertype: u16, rest: &[u8]) -> Vec<u8> {
        [&MACS[..], &ethertype.to_be_bytes(), rest].concat()
    }

    fn parsed(frame: &[u8]) -> Parsed {
        parse(&frame[..frame.len().min(HEAD_LEN)], frame.len()).unwrap()
    }

    /// An IPv4 packet with a flags-and-offset word, and this behind the header.
    fn packet4(protocol: u8, pieces: u16, payload: &[u8]) -> Vec<u8> {
        let len = (20 + payload.len() as u16).to_be_bytes();
        let [p0, p1] = pieces.to_be_bytes();
        let header = [
            0x45, 0xb8, len[0], len[1], 0, 1, p0, p1, 63, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        frame(ETHERTYPE_IPV4, &[&header, payload].concat())
    }

    /// An IPv6 packet with this behind the fixed header.
    fn packet6(next: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        let mut header = vec![0x6b, 0x80, 0, 0, len[0], len[1], next, 62];
        header.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        header.extend(payload);
        frame(ETHERTYPE_IPV6, &header)
    }

    const UDP: [u8; 8] = [0x00, 0x35, 0xc0, 0x00, 0, 8, 0, 0];
    const UDP_PORTS: Ports = Ports {
        src: 53,
        dst: 49_152,
    };

    #[test]
    fn arp_request() {
        let bytes =
            b"\x00\x01\x08\x00\x06\x04\x00\x01\x02\0\0\0\0\x02\x0a\0\0\x02\0\0\0\0\0\0\x0a\0\0\x01";
        let arp = Arp {
            operation: 1,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            sender_ip: Ipv4Addr::new(10, 0, 0, 2),
            target_mac: MacAddr::default(),
            target_ip: Ipv4Addr::new(10, 0, 0, 1),
        };
        assert_eq!(parsed(&frame(ETHERTYPE_ARP, bytes)).l3, L3::Arp(arp));
        let mut other = bytes.to_vec();
        other[5] = 16;
        assert_eq!(parsed(&frame(ETHERTYPE_ARP, &other)).l3, L3::Other);
        for len in 0..28 {
            let cut = frame(ETHERTYPE_ARP, &bytes[..len]);
            assert_eq!(parsed(&cut).l3, L3::Malformed(Malformed::Truncated));
        }
    }

    #[test]
    fn ipv4_udp() {
        let p = parsed(&packet4(protocol::UDP, 0x4000, &UDP));
        let ip = Ipv4 {
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(10, 0, 0, 2),
            protocol: 17,
            header_len: 20,
            total_len: 28,
            tos: 0xb8,
            ttl: 63,
            fragment: Fragment::No,
        };
        assert_eq!(p.l3, L3::Ipv4(ip));
        assert_eq!((p.l4_offset, p.l4), (Some(34), L4::Udp(UDP_PORTS)));
        assert_eq!(p.steering_ports(), Some(UDP_PORTS));
        assert_eq!(p.protocol(), Some(17));
    }

    #[test]
    fn ipv4_fragments_have_no_steering_ports() {
        let first = parsed(&packet4(protocol::UDP, 0x2000, &UDP));
        assert_eq!(first.fragment(), Fragment::First);
        assert_eq!(
            (first.ports(), first.steering_ports()),
            (Some(UDP_PORTS), None)
        );
        for pieces in [0x2001, 0x0001, 0x1fff] {
            let later = parsed(&packet4(protocol::UDP, pieces, &UDP));
            assert_eq!(later.fragment(), Fragment::Later);
            assert_eq!((later.l4_offset, later.l4), (None, L4::None));
            assert_eq!(later.ports(), None);
        }
    }

    #[test]
    fn ipv4_that_is_none() {
        let with = |at: usize, byte: u8| {
            let mut bytes = packet4(protocol::UDP, 0, &UDP);
            bytes[at] = byte;
            parsed(&bytes).l3
        };
        assert_eq!(with(14, 0x65), L3::Malformed(Malformed::Version));
        assert_eq!(with(14, 0x44), L3::Malformed(Malformed::HeaderLength));
        assert_eq!(with(14, 0x4f), L3::Malformed(Malformed::Length));
        assert_eq!(with(17, 29), L3::Malformed(Malformed::Length));
        assert_eq!(with(17, 19), L3::Malformed(Malformed::Length));
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut bytes = packet4(protocol::UDP, 0, &UDP[..4]);
        bytes.resize(60, 0);
        assert_eq!(parsed(&bytes).l4, L4::Malformed);
    }

    #[test]
    fn transports() {
        let sctp = [0, 7, 0, 9, 1, 2, 3, 4, 0, 0, 0, 0];
        assert_eq!(
            parsed(&packet4(protocol::SCTP, 0, &sctp)).l4,
            L4::Sctp(Ports { src: 7, dst: 9 })
        );
        let echo = L4::Icmp { kind: 8, code: 0 };
        assert_eq!(parsed(&packet4(protocol::ICMP, 0, &[8, 0, 0, 0])).l4, echo);
        let solicit = L4::Icmp { kind: 135, code: 0 };
        assert_eq!(
            parsed(&packet6(protocol::ICMPV6, &[135, 0, 0, 0])).l4,
            solicit
        );
        assert_eq!(
            parsed(&packet6(protocol::ICMP, &[8, 0, 0, 0])).l4,
            L4::Other
        );
        assert_eq!(parsed(&packet4(47, 0, &[])).l4, L4::Other);
        let mut tcp = [0; 24];
        tcp[12..14].copy_from_slice(&[0x60, Tcp::SYN]);
        assert_eq!(
            parsed(&packet6(protocol::TCP, &tcp)).l4,
            L4::Tcp(Tcp {
                ports: Ports { src: 0, dst: 0 },
                flags: Tcp::SYN,
                header_len: 24
            })
        );
        for bad in [0x40, 0x70, 0xf0, 0] {
            tcp[12] = bad;
            assert_eq!(parsed(&packet6(protocol::TCP, &tcp)).l4, L4::Malformed);
        }
    }

    #[test]
    fn ipv6_extension_headers() {
        // Hop-by-hop of 16 bytes, routing with one segment left, authentication of 16, UDP.
        let mut chain = vec![43, 1];
        chain.extend([0; 14]);
        chain.extend([51, 0, 0, 1, 0, 0, 0, 0]);
        chain.extend([17, 2]);
        chain.extend([0; 14]);
        chain.extend(UDP);
        let p = parsed(&packet6(0, &chain));
        assert_eq!(
            (p.l4_offset, p.l4),
            (Some(14 + 40 + 40), L4::Udp(UDP_PORTS))
        );
        let L3::Ipv6(ip) = p.l3 else {
            panic!("{:?}", p.l3)
        };
        assert!(ip.extended && ip.routed);
        assert_eq!(
            (ip.protocol, ip.traffic_class, ip.hop_limit),
            (17, 0xb8, 62)
        );
        assert_eq!((p.ports(), p.steering_ports()), (Some(UDP_PORTS), None));
    }

    #[test]
    fn ipv6_fragments() {
        let pieces = |word: u16| {
            let [w0, w1] = word.to_be_bytes();
            let mut chain = vec![17, 0, w0, w1, 0, 0, 0, 1];
            chain.extend(UDP);
            parsed(&packet6(44, &chain))
        };
        let atomic = pieces(0);
        assert_eq!(
            (atomic.fragment(), atomic.steering_ports()),
            (Fragment::No, None)
        );
        let first = pieces(1);
        assert_eq!(
            (first.fragment(), first.ports()),
            (Fragment::First, Some(UDP_PORTS))
        );
        let later = pieces(8);
        assert_eq!((later.fragment(), later.l4), (Fragment::Later, L4::None));
        assert_eq!(later.l4_offset, None);
    }

    #[test]
    fn ipv6_chains_are_bounded() {
        let chain = |headers: usize| {
            let mut chain = Vec::new();
            for i in 0..headers {
                chain.extend([if i + 1 == headers { 17 } else { 60 }, 0, 0, 0, 0, 0, 0, 0]);
            }
            chain.extend(UDP);
            parsed(&packet6(60, &chain))
        };
        assert_eq!(chain(MAX_EXTENSIONS).l4, L4::Udp(UDP_PORTS));
        let long = chain(MAX_EXTENSIONS + 1);
        assert_eq!((long.l4, long.l4_offset), (L4::Unseen, None));
        assert_eq!(parsed(&packet6(59, &[])).l4, L4::None);
        // A header that claims 2,048 bytes of a packet that has 16.
        let mut lie = vec![17, 255, 0, 0, 0, 0, 0, 0];
        lie.extend(UDP);
        let lie = parsed(&packet6(60, &lie));
        assert_eq!((lie.l4, lie.l4_offset), (L4::Malformed, None));
    }

    #[test]
    fn beyond_the_head_is_unseen() {
        let mut far = vec![17, 20, 0, 0, 0, 0, 0, 0];
        far.extend([0; 160]);
        far.extend(UDP);
        let p = parsed(&packet6(60, &far));
        assert_eq!((p.l4, p.l4_offset), (L4::Unseen, Some(14 + 40 + 168)));
        let whole = packet4(protocol::UDP, 0, &UDP);
        assert_eq!(parse(&whole[..20], whole.len()).unwrap().l3, L3::Unseen);
        assert_eq!(parse(&whole[..40], whole.len()).unwrap().l4, L4::Unseen);
    }

    #[test]
    fn truncated_at_every_byte() {
        for v6 in [false, true] {
            let whole = TcpFrame::plain(v6, 0).build();
            assert!(matches!(parsed(&whole).l4, L4::Tcp(_)));
            for len in 0..whole.len() {
                match parse(&whole[..len], len) {
                    Err(error) => assert_eq!((error, len < 14), (ParseError::Runt, true)),
                    Ok(p) => assert!(matches!(p.l3, L3::Malformed(_)), "{len} bytes: {p:?}"),
                }
                match parse(&whole[..len], whole.len()) {
                    Err(error) => assert_eq!((error, len < 14), (ParseError::HeadTooShort, true)),
                    Ok(p) => assert!(
                        p.l3 == L3::Unseen || p.l4 == L4::Unseen,
                        "{len} bytes: {p:?}"
                    ),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..250), frame_len in 0usize..70_000, kind in 0u8..4) {
            let mut bytes = bytes;
            let ethertype = [ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP];
            if let (Some(kind), Some(at)) = (ethertype.get(usize::from(kind)), bytes.get_mut(12..14)) {
                at.copy_from_slice(&kind.to_be_bytes());
            }
            for frame_len in [bytes.len(), frame_len] {
                if let Ok(p) = parse(&bytes, frame_len) {
                    if let Some(offset) = p.l4_offset {
                        prop_assert!(offset > p.l3_offset && usize::from(offset) <= frame_len);
                    }
                    prop_assert!(p.steering_ports().is_none() || p.steering_ports() == p.ports());
                }
            }
        }

        #[test]
        fn damaged_frames(base in tcp_frames(100), at in 0usize..250, byte: u8, head in 0usize..250) {
            let mut frame = base.build();
            if let Some(slot) = frame.get_mut(at) {
                *slot = byte;
            }
            let head = head.min(frame.len());
            let _ = parse(&frame[..head], frame.len());
            let _ = parse(&frame, head);
        }

        #[test]
        fn well_formed_tcp(base in tcp_frames(100)) {
            let frame = base.build();
            let p = parsed(&frame);
            prop_assert_eq!(p.vlan, base.tags.first().copied());
            prop_assert_eq!(p.inner_vlan, base.tags.get(1).copied());
            prop_assert_eq!(usize::from(p.l3_offset), base.l3());
            prop_assert_eq!(p.l4_offset, Some(base.l4() as u16));
            let L4::Tcp(tcp) = p.l4 else { panic!("{:?}", p.l4) };
            prop_assert_eq!(tcp.ports, Ports { src: 40_000, dst: 5201 });
            prop_assert_eq!(tcp.flags, base.flags);
            prop_assert_eq!(usize::from(tcp.header_len), base.header_len() - base.l4());
        }
    }
}
