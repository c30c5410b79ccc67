//! Wire formats: everything the switch knows about the bytes of a frame.
//!
//! Frames come from guests and wires, so every byte is hostile. All functions here read a *head*: the switch's own copy
//! of a frame's first bytes ([`HEAD_LEN`] at most), made once, so that what was checked is what is sent. Nothing here
//! touches guest memory, does I/O, allocates or panics, whatever the bytes are.
//!
//! - [`mac`], [`vlan`]: addresses, VLAN numbers, tags, and tag edits that need no copy of the head.
//! - [`eth`], [`parse`](mod@parse), [`headers`]: from bytes to typed headers: Ethernet with up to two tags, ARP, IPv4, IPv6 with extension
//!   headers, TCP, UDP, SCTP, ICMP.
//! - [`net_header`]: the header virtio-net puts before each frame.
//! - [`offload`]: what a sender asks of that header, checked against the frame's own head, and what a receiver is told.
//! - [`checksum`], [`segment`]: the software that finishes what a receiver cannot.
//!
//! A frame that cannot be switched at all is an error with a [`name`](ParseError::name); one whose inner layers are
//! malformed still parses, and says so in [`L3`] or [`L4`], because a bridge forwards by Ethernet alone.
//!
//! Limits: two VLAN tags (`0x8100`, `0x88a8`); 8 IPv6 extension headers; headers beyond the head are reported as unseen,
//! never guessed; frames up to [`MAX_FRAME_LEN`] bytes; at most [`MAX_SEGMENTS`] segments from one frame.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod eth;
pub mod headers;
pub mod mac;
pub mod net_header;
pub mod offload;
pub mod parse;
pub mod segment;
pub mod vlan;

#[cfg(test)]
mod testing;

pub use checksum::{Sum, complete_checksum};
pub use eth::{Eth, ParseError, parse_eth};
pub use headers::{Arp, Fragment, Ipv4, Ipv6, L3, L4, Malformed, Parsed, Ports, Tcp};
pub use mac::MacAddr;
pub use net_header::VirtioNetHdr;
pub use offload::{Accepts, Gso, GsoInfo, Offload, OffloadError, PartialCsum, check_offload};
pub use parse::parse;
pub use segment::{Checksums, HeaderBuf, Segment, Segmenter};
pub use vlan::{HeadEdit, Tag, VlanId};

/// How much of a frame is copied out and parsed; longer frames are judged by this much.
pub const HEAD_LEN: usize = 192;

/// The longest frame the switch carries: a full IP packet of 65,535 bytes behind Ethernet with two tags.
pub const MAX_FRAME_LEN: usize = 65_535 + 14 + 8;

/// The most segments one GSO frame may ask for: 64 KB at 64 bytes each. Without a bound one frame with a segment size of
/// 1 would cost its receiver's worker 65,000 frames.
pub const MAX_SEGMENTS: u32 = 1_024;
