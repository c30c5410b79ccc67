//! Frames that should not wait for company.
//!
//! Decided on the head of a frame with a handful of loads, because it is asked per frame while a ring is moderated
//! ([`Moderator::heeds_urgency`](crate::Moderator::heeds_urgency)): what resolves names and addresses, what opens and
//! closes connections, what a sender marked, and what looks like a request or an answer. Intel's I210 makes such choices in
//! hardware (datasheet, section on low-latency interrupts). Flows are not told apart here: the controller's credits
//! limit urgent calls to its rate, which bounds small segments of a fast flow as well.
//!
//! Walked are Ethernet, up to two VLAN tags, one network header without IPv6 extensions, and the transport header. What
//! cannot be read is not urgent: a wrong answer costs at most the gap.

/// Bytes of a frame that are looked at, at most.
pub const HEAD: usize = 96;
/// Payload up to which a pushed segment or a datagram is taken for a request or an answer.
pub const SMALL: u16 = 256;

/// What a frame is to a guest that may be asleep.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// May wait: full-size segments above all.
    Bulk,
    /// A TCP segment without payload or flags. Its sender's peer waits for it only if it has nothing left to send.
    PureAck,
    /// A request or an answer by its size: a pushed segment or a datagram of up to [`SMALL`] bytes.
    Small,
    /// The first or last segments of a connection.
    Handshake,
    /// ARP, neighbour discovery, ICMP, DHCP, DNS.
    Control,
    /// Marked as expedited or above (DSCP 46, RFC 3246).
    Marked,
}

impl Class {
    /// Whether it should be reported at once. `transmit_ring_empty` says that the receiving guest has nothing on offer: it
    /// may be waiting for an acknowledgement.
    #[inline]
    #[must_use]
    pub const fn is_urgent(self, transmit_ring_empty: bool) -> bool {
        match self {
            Self::Bulk => false,
            Self::PureAck => transmit_ring_empty,
            Self::Small | Self::Handshake | Self::Control | Self::Marked => true,
        }
    }

    /// Of the frame that begins with `head` and is `len` bytes long.
    #[inline]
    #[must_use]
    pub fn of(head: &[u8], len: usize) -> Self {
        classify(head, len).unwrap_or(Self::Bulk)
    }
}

/// Longest frame that can be anything but bulk: SMALL bytes behind the longest headers walked.
const LONGEST: usize = 14 + 8 + 60 + 60 + SMALL as usize;
const EXPEDITED: u8 = 46;

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

#[inline]
fn two(head: &[u8], at: usize) -> Option<u16> {
    let bytes = head.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

#[inline]
fn classify(head: &[u8], len: usize) -> Option<Class> {
    let mut at = 12;
    let mut ethertype = two(head, at)?;
    for _ in 0..2 {
        if ethertype != VLAN && ethertype != SERVICE_VLAN {
            break;
        }
        at += 4;
        ethertype = two(head, at)?;
    }
    at += 2;
    let (traffic_class, protocol, payload) = match ethertype {
        IPV4 => {
            let ip = head.get(at..)?.first_chunk::<20>()?;
            let header = usize::from(ip[0] & 0x0f) * 4;
            let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
            let total = u16::from_be_bytes([ip[2], ip[3]]);
            at += header;
            let protocol = if fragment { u8::MAX } else { ip[9] };
            (ip[1], protocol, total.checked_sub(header as u16)?)
        }
        IPV6 => {
            let ip = head.get(at..)?.first_chunk::<40>()?;
            at += 40;
            let traffic_class = ip[0] << 4 | ip[1] >> 4;
            (traffic_class, ip[6], u16::from_be_bytes([ip[4], ip[5]]))
        }
        ARP => return Some(Class::Control),
        _ => return None,
    };
    if len > LONGEST {
        return None;
    }
    if traffic_class >> 2 >= EXPEDITED {
        return Some(Class::Marked);
    }
    match protocol {
        TCP => tcp(head, at, payload),
        UDP => udp(head, at, payload),
        ICMP | ICMPV6 => Some(Class::Control),
        _ => None,
    }
}

#[inline]
fn tcp(head: &[u8], at: usize, segment: u16) -> Option<Class> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const PSH: u8 = 8;
    let [offset, flags] = *head.get(at + 12..)?.first_chunk::<2>()?;
    if flags & (FIN | SYN | RST) != 0 {
        return Some(Class::Handshake);
    }
    let payload = segment.checked_sub(u16::from(offset >> 4) * 4)?;
    match payload {
        0 => Some(Class::PureAck),
        1..=SMALL if flags & PSH != 0 => Some(Class::Small),
        _ => None,
    }
}

#[inline]
fn udp(head: &[u8], at: usize, datagram: u16) -> Option<Class> {
    // DNS, DHCP of both families.
    const PORTS: [u16; 5] = [53, 67, 68, 546, 547];
    let (from, to) = (two(head, at)?, two(head, at + 2)?);
    if PORTS.contains(&from) || PORTS.contains(&to) {
        return Some(Class::Control);
    }
    (datagram <= SMALL + 8).then_some(Class::Small)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ACK: u8 = 0x10;
    const PSH: u8 = 0x08;

    fn ipv4(protocol: u8, tos: u8, transport: &[u8], payload: usize) -> (Vec<u8>, usize) {
        let mut frame = vec![2; 12];
        frame.extend(IPV4.to_be_bytes());
        let total = (20 + transport.len() + payload) as u16;
        frame.extend([0x45, tos]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        finish(frame, transport, payload)
    }

    fn ipv6(protocol: u8, transport: &[u8], payload: usize) -> (Vec<u8>, usize) {
        let mut frame = vec![2; 12];
        frame.extend(IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((transport.len() + payload) as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([7; 32]);
        finish(frame, transport, payload)
    }

    fn finish(mut frame: Vec<u8>, transport: &[u8], payload: usize) -> (Vec<u8>, usize) {
        frame.extend(transport);
        frame.resize(frame.len() + payload, 0xaa);
        let len = frame.len();
        frame.truncate(HEAD);
        (frame, len)
    }

    fn segment(flags: u8) -> Vec<u8> {
        let mut tcp = vec![0x12, 0x34, 0x00, 0x50];
        tcp.extend([0; 8]);
        // Twelve bytes of options: timestamps, as nearly every segment has.
        tcp.extend([0x80, flags]);
        tcp.extend([0; 18]);
        tcp
    }

    fn datagram(from: u16, to: u16) -> Vec<u8> {
        [from.to_be_bytes(), to.to_be_bytes(), [0; 2], [0; 2]].concat()
    }

    fn of((head, len): (Vec<u8>, usize)) -> Class {
        Class::of(&head, len)
    }

    #[test]
    fn each_kind_by_its_smallest_example() {
        let mut arp = vec![0xff; 12];
        arp.extend(ARP.to_be_bytes());
        arp.extend([0; 28]);
        assert_eq!(Class::of(&arp, 60), Class::Control);
        for flags in [1, 2, 4, 0x12, 0x14] {
            assert_eq!(
                of(ipv4(TCP, 0, &segment(flags), 0)),
                Class::Handshake,
                "{flags:#x}"
            );
        }
        assert_eq!(of(ipv4(TCP, 0, &segment(ACK), 0)), Class::PureAck);
        assert_eq!(of(ipv6(TCP, &segment(ACK), 0)), Class::PureAck);
        assert_eq!(of(ipv4(TCP, 0, &segment(ACK | PSH), 1)), Class::Small);
        assert_eq!(of(ipv4(TCP, 0, &segment(ACK | PSH), 256)), Class::Small);
        assert_eq!(of(ipv4(TCP, 0, &segment(ACK | PSH), 257)), Class::Bulk);
        assert_eq!(of(ipv4(TCP, 0, &segment(ACK), 100)), Class::Bulk);
        assert_eq!(of(ipv4(ICMP, 0, &[8, 0, 0, 0], 56)), Class::Control);
        assert_eq!(of(ipv6(ICMPV6, &[135, 0, 0, 0], 20)), Class::Control);
        assert_eq!(of(ipv6(UDP, &datagram(4000, 5000), 256)), Class::Small);
        assert_eq!(of(ipv6(UDP, &datagram(4000, 5000), 257)), Class::Bulk);
        for port in [53, 67, 68, 546, 547] {
            assert_eq!(of(ipv4(UDP, 0, &datagram(port, 9999), 300)), Class::Control);
            assert_eq!(of(ipv6(UDP, &datagram(9999, port), 10)), Class::Control);
        }
        assert_eq!(
            of(ipv4(UDP, 46 << 2, &datagram(4000, 5000), 300)),
            Class::Marked
        );
        assert_eq!(
            of(ipv4(UDP, 45 << 2, &datagram(4000, 5000), 300)),
            Class::Bulk
        );
    }

    #[test]
    fn full_size_is_never_urgent() {
        for tos in [0, 46 << 2] {
            for flags in [ACK, ACK | PSH, ACK | PSH | 1] {
                assert_eq!(of(ipv4(TCP, tos, &segment(flags), 1448)), Class::Bulk);
            }
            assert_eq!(of(ipv4(UDP, tos, &datagram(53, 53), 1400)), Class::Bulk);
        }
    }

    #[test]
    fn tags_are_stepped_over() {
        let (head, len) = ipv4(TCP, 0, &segment(2), 0);
        let mut tagged = head[..12].to_vec();
        for tag in [[0x88, 0xa8, 0, 1], [0x81, 0, 0, 2]] {
            tagged.extend(tag);
        }
        tagged.extend(&head[12..]);
        assert_eq!(Class::of(&tagged, len + 8), Class::Handshake);
    }

    #[test]
    fn a_later_fragment_has_no_transport_header() {
        let (mut head, len) = ipv4(TCP, 0, &segment(2), 0);
        head[20..22].copy_from_slice(&[0, 1]);
        assert_eq!(Class::of(&head, len), Class::Bulk);
    }

    #[test]
    fn an_acknowledgement_is_urgent_to_a_sender_with_nothing_left() {
        assert!(Class::PureAck.is_urgent(true));
        assert!(!Class::PureAck.is_urgent(false));
        assert!(!Class::Bulk.is_urgent(true));
        assert!(Class::Small.is_urgent(false));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(head in prop::collection::vec(any::<u8>(), 0..HEAD), len in 0usize..70_000) {
            let class = Class::of(&head, len);
            prop_assert!(len <= LONGEST || matches!(class, Class::Bulk | Class::Control));
        }

        #[test]
        fn a_head_cut_short_is_at_most_less_urgent(cut in 0usize..HEAD, flags: u8, payload in 0usize..300) {
            let (head, len) = ipv4(TCP, 0, &segment(flags), payload);
            let whole = Class::of(&head, len);
            let part = Class::of(&head[..cut.min(head.len())], len);
            prop_assert!(part == whole || part == Class::Bulk);
        }
    }
}
