//! Frames: builders, a checker, and a checker for segment trains. Shares nothing with the switch's packet code.
//!
//! Builders return complete frames with right lengths and checksums; the `_partial` and `_gso` ones return the
//! virtio-net header that goes with an unfinished checksum or an unsegmented train. [`verify`] takes any frame with
//! its header and says what is wrong with it; [`verify_train`] compares received segments with the train sent.

mod build;
mod check;
mod train;

pub use build::{
    Eth, Ip, Tcp, arp_reply, arp_request, ethernet, icmp_echo, tcp, tcp_gso, tcp_partial, udp,
    udp_partial,
};
pub use check::{Dissected, FrameFault, dissect, verify};
pub use train::verify_train;

/// Ethertype of ARP.
pub const ARP: u16 = 0x0806;
/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Ethertype of a customer VLAN tag.
pub const VLAN: u16 = 0x8100;
/// Ethertype for local experiments: for frames that are nothing in particular.
pub const EXPERIMENTAL: u16 = 0x88b5;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

/// The one's complement sum of 16-bit big-endian words, not yet complemented; an odd last byte counts as high byte.
pub(crate) fn sum(start: u32, bytes: &[u8]) -> u32 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        let word = u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
        total += word;
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

pub(crate) fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
