//! What a parsed frame is made of: one type per header, only values, no bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::mac::MacAddr;
use crate::vlan::Tag;

/// IP protocol numbers that the switch knows by name.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// What forwarding needs to know of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Where to.
    pub dst: MacAddr,
    /// Where from.
    pub src: MacAddr,
    /// The outer tag.
    pub vlan: Option<Tag>,
    /// The tag behind it.
    pub inner_vlan: Option<Tag>,
    /// What follows the tags.
    pub ethertype: u16,
    /// Where it starts.
    pub l3_offset: u16,
    /// The network layer.
    pub l3: L3,
    /// Where layer 4 starts; `None` if there is none in this frame or the walk did not get there.
    pub l4_offset: Option<u16>,
    /// The transport layer.
    pub l4: L4,
}

/// The network layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L3 {
    /// Not ARP for IPv4, not IP.
    Other,
    /// Its EtherType says ARP or IP, its bytes do not.
    Malformed(Malformed),
    /// The head ends before its header does.
    Unseen,
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// IPv4.
    Ipv4(Ipv4),
    /// IPv6.
    Ipv6(Ipv6),
}

/// What is wrong with a network header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The frame ends inside the header.
    Truncated,
    /// The version is not what the EtherType promises.
    Version,
    /// The header length is below the minimum.
    HeaderLength,
    /// The packet's length is below its header's, or beyond the frame.
    Length,
}

impl Malformed {
    /// Every variant.
    pub const ALL: [Self; 4] = [
        Self::Truncated,
        Self::Version,
        Self::HeaderLength,
        Self::Length,
    ];

    /// The name of the drop reason, for policies that refuse such frames.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "l3-truncated",
            Self::Version => "ip-version-mismatch",
            Self::HeaderLength => "ip-header-length",
            Self::Length => "ip-length",
        }
    }
}

/// ARP for IPv4 over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Claimed Ethernet address of the sender.
    pub sender_mac: MacAddr,
    /// Claimed IPv4 address of the sender.
    pub sender_ip: Ipv4Addr,
    /// Ethernet address of the target.
    pub target_mac: MacAddr,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

/// Whether an IP packet is a piece of a larger one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// It is whole. An IPv6 fragment header around a whole packet (RFC 6946) counts as whole.
    No,
    /// The first piece: it has the transport header.
    First,
    /// A later piece: it has none.
    Later,
}

/// An IPv4 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4 {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// What it carries; see [`protocol`].
    pub protocol: u8,
    /// Bytes of the header, options included: 20 to 60.
    pub header_len: u8,
    /// Bytes of the packet, at least `header_len`, within the frame.
    pub total_len: u16,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Whether it is a piece.
    pub fragment: Fragment,
}

/// An IPv6 header and its extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6 {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// What it carries behind the extension headers walked; see [`protocol`].
    pub protocol: u8,
    /// Bytes behind the 40 of the fixed header, within the frame.
    pub payload_len: u16,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Whether it is a piece.
    pub fragment: Fragment,
    /// Whether there is any extension header.
    pub extended: bool,
    /// Whether a routing header still has addresses to visit, so that `dst` is not the final one.
    pub routed: bool,
}

/// The transport layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L4 {
    /// None in this frame: not IP, a later fragment, or an IPv6 packet with no next header.
    None,
    /// Beyond the head, or behind more extension headers than are walked.
    Unseen,
    /// The packet ends inside the header, or a TCP header length that cannot be.
    Malformed,
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Ports),
    /// SCTP.
    Sctp(Ports),
    /// ICMP, for IPv4 or IPv6 as the network layer says.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Something else.
    Other,
}

/// A pair of port numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ports {
    /// The sender's.
    pub src: u16,
    /// The receiver's.
    pub dst: u16,
}

/// A TCP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Ports.
    pub ports: Ports,
    /// Flags; see the constants.
    pub flags: u8,
    /// Bytes of the header, options included: 20 to 60, within the packet; not necessarily within the head.
    pub header_len: u8,
}

impl Tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Breaks it.
    pub const RST: u8 = 0x04;
    /// The receiver is to hand over what it has.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Congestion was seen.
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced.
    pub const CWR: u8 = 0x80;
}

impl Parsed {
    /// What the IP packet carries, if it is one.
    #[must_use]
    pub const fn protocol(&self) -> Option<u8> {
        match self.l3 {
            L3::Ipv4(ip) => Some(ip.protocol),
            L3::Ipv6(ip) => Some(ip.protocol),
            _ => None,
        }
    }

    /// Whether the IP packet is a piece of a larger one.
    #[must_use]
    pub const fn fragment(&self) -> Fragment {
        match self.l3 {
            L3::Ipv4(ip) => ip.fragment,
            L3::Ipv6(ip) => ip.fragment,
            _ => Fragment::No,
        }
    }

    /// The ports, wherever they can be seen.
    #[must_use]
    pub const fn ports(&self) -> Option<Ports> {
        match self.l4 {
            L4::Tcp(tcp) => Some(tcp.ports),
            L4::Udp(ports) | L4::Sctp(ports) => Some(ports),
            _ => None,
        }
    }

    /// The ports, if steering may use them: never of a fragment, whose later pieces have none, nor behind IPv6 extension
    /// headers, which some packets of a flow have and others not. The frames of one flow must agree.
    #[must_use]
    pub const fn steering_ports(&self) -> Option<Ports> {
        match self.l3 {
            L3::Ipv4(Ipv4 {
                fragment: Fragment::No,
                ..
            })
            | L3::Ipv6(Ipv6 {
                extended: false, ..
            }) => self.ports(),
            _ => None,
        }
    }
}
