//! Feature bits: their names, and which of them a back-end may offer.
//!
//! A VMM keeps some features to itself (the MAC address, the control queue, the link status bit) and takes others only as
//! the back-end offers them. QEMU's vhost-user net device masks exactly the bits of [`offered`] with the back-end's answer;
//! `VIRTIO_NET_F_STATUS`, `CTRL_VQ` and the rest of the control queue it provides whatever we say. `NOTIFY_ON_EMPTY`, UFO
//! and `ACCESS_PLATFORM` are never offered.

/// A partial checksum may be sent: `VIRTIO_NET_F_CSUM`.
pub const NET_CSUM: u32 = 0;
/// A partial checksum may be received.
pub const NET_GUEST_CSUM: u32 = 1;
/// The back-end names an MTU.
pub const NET_MTU: u32 = 3;
/// TCP over IPv4 segmentation requests may be received.
pub const NET_GUEST_TSO4: u32 = 7;
/// TCP over IPv6 segmentation requests may be received.
pub const NET_GUEST_TSO6: u32 = 8;
/// Segmentation requests with CWR may be received.
pub const NET_GUEST_ECN: u32 = 9;
/// TCP over IPv4 segmentation requests may be sent.
pub const NET_HOST_TSO4: u32 = 11;
/// TCP over IPv6 segmentation requests may be sent.
pub const NET_HOST_TSO6: u32 = 12;
/// Segmentation requests with CWR may be sent.
pub const NET_HOST_ECN: u32 = 13;
/// A received frame may lie in several buffers.
pub const NET_MRG_RXBUF: u32 = 15;
/// The guest announces itself after a migration.
pub const NET_GUEST_ANNOUNCE: u32 = 21;
/// Several queue pairs.
pub const NET_MQ: u32 = 22;
/// Descriptors may be cut anywhere (before version 1).
pub const ANY_LAYOUT: u32 = 27;
/// Descriptors may name tables of descriptors.
pub const RING_INDIRECT_DESC: u32 = 28;
/// Both sides name the index at which they want to hear.
pub const RING_EVENT_IDX: u32 = 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`: part of the conversation, not of the device.
pub const VHOST_PROTOCOL_FEATURES: u32 = 30;
/// Virtio 1.0 and later.
pub const VERSION_1: u32 = 32;
/// Queues are packed rings.
pub const RING_PACKED: u32 = 34;

/// Several queue pairs can be asked about.
pub const PROTOCOL_MQ: u32 = 0;
/// A front-end may ask for an answer to any message.
pub const PROTOCOL_REPLY_ACK: u32 = 3;
/// A front-end may tell the MTU.
pub const PROTOCOL_NET_MTU: u32 = 4;
/// Memory regions come and go one by one.
pub const PROTOCOL_CONFIGURE_MEM_SLOTS: u32 = 15;

const VIRTIO_NAMES: [(u32, &str); 49] = [
    (0, "csum"),
    (1, "guest-csum"),
    (2, "ctrl-guest-offloads"),
    (3, "mtu"),
    (5, "mac"),
    (6, "gso"),
    (7, "guest-tso4"),
    (8, "guest-tso6"),
    (9, "guest-ecn"),
    (10, "guest-ufo"),
    (11, "host-tso4"),
    (12, "host-tso6"),
    (13, "host-ecn"),
    (14, "host-ufo"),
    (15, "mrg-rxbuf"),
    (16, "status"),
    (17, "ctrl-vq"),
    (18, "ctrl-rx"),
    (19, "ctrl-vlan"),
    (20, "ctrl-rx-extra"),
    (21, "guest-announce"),
    (22, "mq"),
    (23, "ctrl-mac-addr"),
    (24, "notify-on-empty"),
    (26, "log-all"),
    (27, "any-layout"),
    (28, "indirect-desc"),
    (29, "event-idx"),
    (30, "protocol-features"),
    (32, "version-1"),
    (33, "access-platform"),
    (34, "ring-packed"),
    (35, "in-order"),
    (36, "order-platform"),
    (37, "sr-iov"),
    (38, "notification-data"),
    (39, "notif-config-data"),
    (40, "ring-reset"),
    (41, "admin-vq"),
    (51, "device-stats"),
    (52, "vq-notf-coal"),
    (53, "notf-coal"),
    (54, "guest-uso4"),
    (55, "guest-uso6"),
    (56, "host-uso"),
    (57, "hash-report"),
    (59, "guest-hdrlen"),
    (60, "rss"),
    (61, "rsc-ext"),
];

const PROTOCOL_NAMES: [(u32, &str); 21] = [
    (0, "mq"),
    (1, "log-shmfd"),
    (2, "rarp"),
    (3, "reply-ack"),
    (4, "net-mtu"),
    (5, "backend-req"),
    (6, "cross-endian"),
    (7, "crypto-session"),
    (8, "pagefault"),
    (9, "config"),
    (10, "backend-send-fd"),
    (11, "host-notifier"),
    (12, "inflight-shmfd"),
    (13, "reset-device"),
    (14, "inband-notifications"),
    (15, "configure-mem-slots"),
    (16, "status"),
    (17, "xen-mmap"),
    (18, "shared-object"),
    (19, "device-state"),
    (20, "get-vring-base-inflight"),
];

/// What a port offers beyond what every port does, as its configuration switches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switches {
    /// Frames in several receive buffers.
    pub mergeable: bool,
    /// Indirect descriptors.
    pub indirect: bool,
    /// Event indices.
    pub event_idx: bool,
    /// Packed rings.
    pub packed: bool,
    /// Partial checksums, both ways.
    pub checksum: bool,
    /// TCP segmentation, both ways. Needs `checksum`: without it, this is as if off.
    pub tso: bool,
    /// Several queue pairs.
    pub multiqueue: bool,
    /// An MTU told to the guest.
    pub mtu: bool,
}

impl Default for Switches {
    /// Everything on, but one queue pair and no MTU.
    fn default() -> Self {
        Self {
            mergeable: true,
            indirect: true,
            event_idx: true,
            packed: true,
            checksum: true,
            tso: true,
            multiqueue: false,
            mtu: false,
        }
    }
}

/// The virtio features to offer. `VHOST_USER_F_PROTOCOL_FEATURES` is the session's to add.
#[must_use]
pub fn offered(switches: Switches) -> u64 {
    let groups: [(bool, &[u32]); 9] = [
        (true, &[VERSION_1, ANY_LAYOUT, NET_GUEST_ANNOUNCE]),
        (switches.mergeable, &[NET_MRG_RXBUF]),
        (switches.indirect, &[RING_INDIRECT_DESC]),
        (switches.event_idx, &[RING_EVENT_IDX]),
        (switches.packed, &[RING_PACKED]),
        (switches.checksum, &[NET_CSUM, NET_GUEST_CSUM]),
        (
            switches.checksum && switches.tso,
            &[
                NET_GUEST_TSO4,
                NET_GUEST_TSO6,
                NET_GUEST_ECN,
                NET_HOST_TSO4,
                NET_HOST_TSO6,
                NET_HOST_ECN,
            ],
        ),
        (switches.multiqueue, &[NET_MQ]),
        (switches.mtu, &[NET_MTU]),
    ];
    groups
        .iter()
        .filter(|(on, _)| *on)
        .flat_map(|(_, bits)| bits.iter())
        .fold(0, |set, bit| set | mask(*bit))
}

/// A set of one bit.
#[inline]
#[must_use]
pub const fn mask(bit: u32) -> u64 {
    1 << (bit & 63)
}

/// Whether a bit is in a set.
#[inline]
#[must_use]
pub const fn has(set: u64, bit: u32) -> bool {
    set & mask(bit) != 0
}

/// The names of a set of virtio features, lowest first; a bit without a name is called `bit-N`.
#[must_use]
pub fn virtio_names(set: u64) -> Vec<String> {
    names(set, &VIRTIO_NAMES)
}

/// The names of a set of protocol features, lowest first; a bit without a name is called `bit-N`.
#[must_use]
pub fn protocol_names(set: u64) -> Vec<String> {
    names(set, &PROTOCOL_NAMES)
}

fn names(set: u64, known: &[(u32, &str)]) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| has(set, *bit))
        .map(|bit| {
            let name = known.iter().find(|(known, _)| *known == bit);
            name.map_or_else(|| format!("bit-{bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

/// Bytes of the virtio-net header: `num_buffers` is there with either feature (virtio 1.2, section 5.1.6).
#[must_use]
pub(crate) fn header_len(virtio: u64) -> usize {
    if has(virtio, VERSION_1) || has(virtio, NET_MRG_RXBUF) {
        12
    } else {
        10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_specification_puts_them() {
        use vhost::vhost_user::message::VhostUserProtocolFeatures as P;
        use virtio_bindings::{virtio_config as c, virtio_net as n, virtio_ring as r};
        let ours = [
            (NET_CSUM, n::VIRTIO_NET_F_CSUM),
            (NET_GUEST_CSUM, n::VIRTIO_NET_F_GUEST_CSUM),
            (NET_MTU, n::VIRTIO_NET_F_MTU),
            (NET_GUEST_TSO4, n::VIRTIO_NET_F_GUEST_TSO4),
            (NET_GUEST_TSO6, n::VIRTIO_NET_F_GUEST_TSO6),
            (NET_GUEST_ECN, n::VIRTIO_NET_F_GUEST_ECN),
            (NET_HOST_TSO4, n::VIRTIO_NET_F_HOST_TSO4),
            (NET_HOST_TSO6, n::VIRTIO_NET_F_HOST_TSO6),
            (NET_HOST_ECN, n::VIRTIO_NET_F_HOST_ECN),
            (NET_MRG_RXBUF, n::VIRTIO_NET_F_MRG_RXBUF),
            (NET_GUEST_ANNOUNCE, n::VIRTIO_NET_F_GUEST_ANNOUNCE),
            (NET_MQ, n::VIRTIO_NET_F_MQ),
            (ANY_LAYOUT, c::VIRTIO_F_ANY_LAYOUT),
            (RING_INDIRECT_DESC, r::VIRTIO_RING_F_INDIRECT_DESC),
            (RING_EVENT_IDX, r::VIRTIO_RING_F_EVENT_IDX),
            (VERSION_1, c::VIRTIO_F_VERSION_1),
            (RING_PACKED, c::VIRTIO_F_RING_PACKED),
        ];
        for (ours, theirs) in ours {
            assert_eq!(ours, theirs);
        }
        assert_eq!(mask(PROTOCOL_MQ), P::MQ.bits());
        assert_eq!(mask(PROTOCOL_REPLY_ACK), P::REPLY_ACK.bits());
        assert_eq!(mask(PROTOCOL_NET_MTU), P::MTU.bits());
        assert_eq!(
            mask(PROTOCOL_CONFIGURE_MEM_SLOTS),
            P::CONFIGURE_MEM_SLOTS.bits()
        );
    }

    #[test]
    fn names_are_sorted_and_cover_what_is_offered() {
        assert!(VIRTIO_NAMES.is_sorted_by_key(|(bit, _)| bit));
        assert!(PROTOCOL_NAMES.is_sorted_by_key(|(bit, _)| bit));
        let all = Switches {
            multiqueue: true,
            mtu: true,
            ..Switches::default()
        };
        assert!(!virtio_names(offered(all)).join(" ").contains("bit-"));
        assert_eq!(virtio_names(mask(15) | mask(63)), ["mrg-rxbuf", "bit-63"]);
        assert_eq!(protocol_names(mask(3)), ["reply-ack"]);
    }

    #[test]
    fn segmentation_needs_checksums() {
        let switches = Switches {
            checksum: false,
            ..Switches::default()
        };
        assert!(!has(offered(switches), NET_HOST_TSO4));
        assert!(has(offered(Switches::default()), NET_GUEST_TSO6));
    }

    #[test]
    fn the_header_has_a_buffer_count_with_either_feature() {
        assert_eq!(header_len(0), 10);
        assert_eq!(header_len(mask(VERSION_1)), 12);
        assert_eq!(header_len(mask(NET_MRG_RXBUF)), 12);
    }
}
