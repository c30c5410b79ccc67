//! What a device is asked to do for a frame, and when software does it instead.
//!
//! A guest may ask for a checksum from anywhere to anywhere (virtio 1.2, section 5.1.6.2); a device knows TCP and UDP by
//! their headers, computes the pseudo header itself or takes it from the field, and drivers rewrite that field on the way.
//! So a device is asked only where all of that comes to the same frame: TCP or UDP straight behind an IP header without
//! options, unfragmented, nothing behind the packet. Segmentation also needs a device that takes as many buffers as the
//! frame fills, a segment size that every device takes, and no CWR, which devices repeat or not as they like.

use vswitch_dpdk::{IpVersion, Transport, TxCapabilities, TxOffload};
use vswitch_packet::{Fragment, L3, L4, Offload, Parsed, Sum, Tcp, parse};

/// Segments that some devices refuse to cut, for being smaller (i40e).
const SMALLEST_SEGMENT: u16 = 256;

const IPV4_LEN: u16 = 20;
const IPV6_LEN: u16 = 40;
const UDP_LEN: u16 = 8;

/// A request, for the frame as it came: a tag that is pushed or popped moves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    /// For the device.
    pub(super) ask: TxOffload,
    /// Where the checksum field is, and what is to be in it, if that is not what the sender has put there: a device that
    /// cuts wants the pseudo header's sum without the length.
    pub(super) field: Option<(u16, [u8; 2])>,
}

impl Request {
    /// For the same frame with `shift` more bytes in front of its network header.
    pub(super) fn moved(mut self, shift: i16) -> Self {
        self.ask.l2_len = self.ask.l2_len.saturating_add_signed(shift);
        if let Some((at, _)) = &mut self.field {
            *at = at.saturating_add_signed(shift);
        }
        self
    }
}

/// What to ask of a device with buffers of `room` bytes, for the frame of `len` bytes that begins with `head`. `None` if
/// software has to do what is left to do.
pub(super) fn request(
    device: &TxCapabilities,
    room: u16,
    offload: &Offload,
    head: &[u8],
    len: usize,
) -> Option<Request> {
    let csum = offload.csum?;
    if !(device.tcp_checksum || device.udp_checksum) {
        return None;
    }
    let parsed = parse(head, len).ok()?;
    let network = network(&parsed, len)?;
    if parsed.l4_offset != Some(csum.start) || parsed.fragment() != Fragment::No {
        return None;
    }
    let (field, l4_len, able, transport) = match parsed.l4 {
        L4::Tcp(tcp) => {
            let able = device.tcp_checksum;
            (16, u16::from(tcp.header_len), able, Transport::Tcp)
        }
        L4::Udp(_) => (6, UDP_LEN, device.udp_checksum, Transport::Udp),
        _ => return None,
    };
    if csum.offset != field || !able {
        return None;
    }
    let mut ask = TxOffload {
        l2_len: parsed.l3_offset,
        l3_len: network.header,
        l4_len,
        ip: network.ip,
        ip_checksum: false,
        transport,
    };
    let Some(gso) = offload.gso else {
        return Some(Request { ask, field: None });
    };
    let cwr = match parsed.l4 {
        L4::Tcp(tcp) => tcp.flags & Tcp::CWR != 0,
        _ => return None,
    };
    let buffers = (len + vswitch_packet::vlan::TAG_LEN).div_ceil(usize::from(room).max(1));
    let able = device.tcp_segmentation
        && buffers <= usize::from(device.max_segments)
        && gso.size >= SMALLEST_SEGMENT
        && !(cwr || gso.ecn);
    ask.transport = Transport::TcpSegments { size: gso.size };
    able.then_some(Request {
        ask,
        field: Some((csum.start + field, network.pseudo.to_field().to_be_bytes())),
    })
}

/// The IP header of a frame that a device reads as we do.
struct Network {
    ip: IpVersion,
    header: u16,
    /// Of TCP, without the length.
    pseudo: Sum,
}

fn network(parsed: &Parsed, len: usize) -> Option<Network> {
    let tcp = vswitch_packet::headers::protocol::TCP;
    let (network, packet) = match parsed.l3 {
        L3::Ipv4(ip) => (
            Network {
                ip: IpVersion::V4,
                header: IPV4_LEN,
                pseudo: Sum::pseudo_v4(ip.src, ip.dst, tcp, 0),
            },
            usize::from(ip.total_len),
        ),
        L3::Ipv6(ip) => (
            Network {
                ip: IpVersion::V6,
                header: IPV6_LEN,
                pseudo: Sum::pseudo_v6(ip.src, ip.dst, tcp, 0),
            },
            usize::from(IPV6_LEN) + usize::from(ip.payload_len),
        ),
        _ => return None,
    };
    let plain = parsed.l4_offset == Some(parsed.l3_offset + network.header);
    let whole = usize::from(parsed.l3_offset) + packet == len;
    (plain && whole).then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_packet::{VirtioNetHdr, check_offload};

    const ALL: TxCapabilities = TxCapabilities {
        ipv4_checksum: true,
        tcp_checksum: true,
        udp_checksum: true,
        tcp_segmentation: true,
        multi_segment: true,
        fast_free: false,
        max_segments: 40,
        max_mtu_segments: 40,
    };

    /// A frame of IPv4 or IPv6 with a transport header and some payload, and where that header is.
    fn frame(v6: bool, protocol: u8, l4: &[u8], payload: usize) -> (Vec<u8>, u16) {
        let mut frame = vec![2; 12];
        let len = (l4.len() + payload) as u16;
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend((0..32).map(|i| i as u8));
        } else {
            frame.extend([0x08, 0, 0x45, 0]);
            frame.extend((len + 20).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let start = frame.len() as u16;
        frame.extend(l4);
        frame.resize(frame.len() + payload, 0x5a);
        (frame, start)
    }

    fn tcp(flags: u8) -> [u8; 20] {
        let mut tcp = [0; 20];
        (tcp[12], tcp[13]) = (5 << 4, flags);
        tcp
    }

    fn asked(device: &TxCapabilities, frame: &[u8], header: &VirtioNetHdr) -> Option<Request> {
        let head = &frame[..frame.len().min(192)];
        let offload = check_offload(header, head, frame.len()).unwrap();
        request(device, 2048, &offload, head, frame.len())
    }

    fn csum(start: u16, offset: u16) -> VirtioNetHdr {
        VirtioNetHdr {
            flags: VirtioNetHdr::F_NEEDS_CSUM,
            csum_start: start,
            csum_offset: offset,
            ..VirtioNetHdr::default()
        }
    }

    fn gso(start: u16, v6: bool, size: u16) -> VirtioNetHdr {
        VirtioNetHdr {
            gso_type: if v6 {
                VirtioNetHdr::GSO_TCPV6
            } else {
                VirtioNetHdr::GSO_TCPV4
            },
            gso_size: size,
            ..csum(start, 16)
        }
    }

    #[test]
    fn checksums_of_either_protocol_over_either_ip() {
        for v6 in [false, true] {
            let (l3_len, ip) = if v6 {
                (40, IpVersion::V6)
            } else {
                (20, IpVersion::V4)
            };
            let (udp, start) = frame(v6, 17, &[0; 8], 100);
            let wanted = TxOffload {
                l2_len: 14,
                l3_len,
                l4_len: 8,
                ip,
                ip_checksum: false,
                transport: Transport::Udp,
            };
            let got = asked(&ALL, &udp, &csum(start, 6)).unwrap();
            assert_eq!((got.ask, got.field), (wanted, None));
            assert_eq!(got.moved(4).ask.l2_len, 18);
            let none = TxCapabilities {
                udp_checksum: false,
                ..ALL
            };
            assert_eq!(asked(&none, &udp, &csum(start, 6)), None);

            let (frame, start) = frame(v6, 6, &tcp(0x10), 100);
            let got = asked(&none, &frame, &csum(start, 16)).unwrap();
            assert_eq!((got.ask.transport, got.ask.l4_len), (Transport::Tcp, 20));
            let none = TxCapabilities {
                tcp_checksum: false,
                ..ALL
            };
            assert_eq!(asked(&none, &frame, &csum(start, 16)), None);
        }
    }

    #[test]
    fn what_a_device_would_do_otherwise_is_left_to_software() {
        let (frame, start) = frame(false, 6, &tcp(0x10), 100);
        // Another field, another start, bytes behind the packet, a fragment, an option.
        assert_eq!(asked(&ALL, &frame, &csum(start, 6)), None);
        assert_eq!(asked(&ALL, &frame, &csum(start + 2, 14)), None);
        let padded = [frame.clone(), vec![0; 6]].concat();
        assert_eq!(asked(&ALL, &padded, &csum(start, 16)), None);
        let mut fragment = frame.clone();
        fragment[20] = 0x20;
        assert_eq!(asked(&ALL, &fragment, &csum(start, 16)), None);
        let mut option = frame.clone();
        option[14] = 0x46;
        assert_eq!(asked(&ALL, &option, &csum(start + 4, 16)), None);
        // Nothing to do.
        assert_eq!(asked(&ALL, &frame, &VirtioNetHdr::default()), None);
    }

    #[test]
    fn segmentation_where_every_device_does_the_same() {
        for v6 in [false, true] {
            let (train, start) = frame(v6, 6, &tcp(0x18), 10_000);
            let got = asked(&ALL, &train, &gso(start, v6, 1448)).unwrap();
            assert_eq!(got.ask.transport, Transport::TcpSegments { size: 1448 });
            let (at, field) = got.field.unwrap();
            assert_eq!(at, start + 16);
            let mut sum = Sum::new();
            sum.add(if v6 { &train[22..54] } else { &train[26..34] });
            sum.add(&[0, 6]);
            assert_eq!(field, sum.to_field().to_be_bytes());
            assert_eq!(got.moved(-4).field.unwrap().0, start + 12);

            for device in [
                TxCapabilities {
                    tcp_segmentation: false,
                    ..ALL
                },
                TxCapabilities {
                    max_segments: 4,
                    ..ALL
                },
            ] {
                assert_eq!(asked(&device, &train, &gso(start, v6, 1448)), None);
            }
            assert_eq!(asked(&ALL, &train, &gso(start, v6, 255)), None);
            let (cwr, start) = frame(v6, 6, &tcp(0x98), 10_000);
            assert_eq!(asked(&ALL, &cwr, &gso(start, v6, 1448)), None);
        }
    }
}
