//! Feature bits: virtio-net and ring (virtio 1.2, 5.1.3 and 6), and vhost-user protocol bits.

/// Virtio feature masks.
pub mod virtio {
    /// Device takes frames with a partial checksum.
    pub const CSUM: u64 = 1 << 0;
    /// Driver takes frames with a partial checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device says its MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device has a MAC address.
    pub const MAC: u64 = 1 << 5;
    /// Driver takes TCP over IPv4 trains.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// Driver takes TCP over IPv6 trains.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// Driver takes trains with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// Device takes TCP over IPv4 trains.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// Device takes TCP over IPv6 trains.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// Device takes trains with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A frame may be spread over several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// Link status.
    pub const STATUS: u64 = 1 << 16;
    /// Control queue (lives in the VMM, not in the back-end).
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Driver can announce itself.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// Any cut of header and frame into descriptors.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Tables of descriptors in a buffer.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event indices instead of the no-interrupt and no-notify flags.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: the back-end speaks the protocol feature messages.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Modern virtio.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in order.
    pub const IN_ORDER: u64 = 1 << 35;

    /// Checksum and segmentation offloads, both directions.
    pub const OFFLOADS: u64 =
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
    /// All this driver can do with split rings; [`RING_PACKED`] comes on top, and [`IN_ORDER`] is tolerated there.
    pub const ALL: u64 = OFFLOADS | MRG_RXBUF | MQ | INDIRECT_DESC | EVENT_IDX | VERSION_1;
    /// A plain modern device: no offloads, no merging, no ring options.
    pub const PLAIN: u64 = VERSION_1;
}

/// vhost-user protocol feature masks.
pub mod protocol {
    /// Several queue pairs, and GET_QUEUE_NUM.
    pub const MQ: u64 = 1 << 0;
    /// Dirty log in a shared file.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// SEND_RARP.
    pub const RARP: u64 = 1 << 2;
    /// NEED_REPLY.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// NET_SET_MTU.
    pub const NET_MTU: u64 = 1 << 4;
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: u64 = 1 << 9;
    /// In-flight tracking.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// RESET_DEVICE.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// ADD_MEM_REG, REM_MEM_REG, GET_MAX_MEM_SLOTS.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// SET_STATUS, GET_STATUS.
    pub const STATUS: u64 = 1 << 16;
    /// What QEMU's net device would take, of what this front-end implements.
    pub const ALL: u64 = MQ | REPLY_ACK | CONFIGURE_MEM_SLOTS;
}
