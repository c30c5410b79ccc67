//! vhost-user messages as bytes: header, request numbers, the few payload shapes. No I/O.
//!
//! Written so that a test can build any message, right or wrong: nothing here checks anything.

/// Request numbers of the vhost-user specification that this front-end knows by name. Any other number can be sent raw.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// Header flags: version 1, bit 2 reply, bit 3 reply wanted.
pub mod flag {
    /// Protocol version 1, in the lowest two bits.
    pub const VERSION: u32 = 1;
    /// This is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants an acknowledgement.
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// In messages that carry a ring's descriptor: there is none.
pub const NO_FD: u64 = 1 << 8;

/// The 12 bytes before every payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Request number.
    pub request: u32,
    /// See [`flag`].
    pub flags: u32,
    /// Payload bytes that follow.
    pub size: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 12;

    /// A request without acknowledgement.
    pub fn new(request: u32, size: usize) -> Self {
        Self {
            request,
            flags: flag::VERSION,
            size: size as u32,
        }
    }

    /// To the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..4].copy_from_slice(&self.request.to_le_bytes());
        b[4..8].copy_from_slice(&self.flags.to_le_bytes());
        b[8..].copy_from_slice(&self.size.to_le_bytes());
        b
    }

    /// From the wire.
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        Self {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }
}

/// A payload put together from words.
#[derive(Clone, Default, Debug)]
pub struct Payload(pub Vec<u8>);

impl Payload {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }
    /// Appends 32 bits.
    #[must_use]
    pub fn word(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// Appends 64 bits.
    #[must_use]
    pub fn quad(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// A line of the memory table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableEntry {
    /// Guest-physical start.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Start in the front-end's address space.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
}

impl TableEntry {
    /// Of a region of guest memory.
    pub fn of(region: &crate::memory::Region) -> Self {
        Self {
            guest: region.guest(),
            size: region.size(),
            user: region.user(),
            offset: region.file_offset(),
        }
    }

    /// Appends it to a payload.
    pub fn append(&self, payload: Payload) -> Payload {
        payload
            .quad(self.guest)
            .quad(self.size)
            .quad(self.user)
            .quad(self.offset)
    }
}
