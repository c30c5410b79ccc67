//! The guest's driver: virtqueues as virtio 1.2 sections 2.7 and 2.8 describe them, and the net driver over them.
//!
//! - [`Split`] is one ring: descriptors, available and used ring, event indices, with private copies of everything the
//!   driver wrote. It validates what the device gives back ([`DeviceFault`]): the switch under test is the peer.
//! - [`Packed`] is the same for the other layout, [`Ring`] either of them: queues use nothing else.
//! - [`TxQueue`] sends frames cut into any [`Shape`]; [`RxQueue`] posts buffers of any shape and merges frames.
//! - Each has a fast path for load: prefilled slots and [`TxQueue::send_burst`], [`RxQueue::recv_burst`] with views.
//!
//! Speed comes from touching shared lines rarely: buffers are tied to descriptors, free descriptors are a FIFO, so that
//! with in-order completion every descriptor and every available entry keeps its value from lap to lap; the private
//! copies show that, and the shared one is not written again. Per burst there is one publish and one look at the used
//! index.

mod fill;
mod notify;
mod packed;
mod parts;
mod ring;
mod rx;
mod shape;
mod split;
mod tx;

pub(crate) use notify::wait_any;
pub use notify::{Counters, Notifier, QueueStats};
pub use packed::{Packed, PackedDesc, Place, event};
pub use parts::RingParts;
pub use ring::Ring;
pub use rx::{RxFrame, RxOptions, RxQueue};
pub use shape::Shape;
pub use split::{Piece, Split, Used, passed};
pub use tx::{Slot, TxError, TxOptions, TxQueue};

/// Bytes of the virtio-net header: legacy devices without mergeable buffers leave `num_buffers` out.
#[must_use]
pub fn header_len(features: u64) -> u32 {
    use crate::features::virtio::{MRG_RXBUF, VERSION_1};
    if features & (VERSION_1 | MRG_RXBUF) != 0 {
        12
    } else {
        10
    }
}

/// Whether a queue's owner polls or sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Interrupts off the way a polling driver says it: NO_INTERRUPT, or a used_event left behind with EVENT_IDX.
    #[default]
    Poll,
    /// Interrupts armed before each sleep, with a second look afterwards, as Linux does it.
    Interrupt,
}

/// A rule the device broke. The guest stops using a queue that does this, a test fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceFault {
    /// More buffers came back than were out.
    #[error(
        "used index {used} is beyond what was made available: {out} buffers were out from {last}"
    )]
    UsedIndex {
        /// Index in the used ring.
        used: u16,
        /// Where the driver stood.
        last: u16,
        /// Chains in flight.
        out: u16,
    },
    /// A buffer came back that was not out.
    #[error("used entry {at} names descriptor {id}, which is not the head of a buffer in flight")]
    UsedId {
        /// Used index of the entry; in a packed ring its slot.
        at: u16,
        /// The id.
        id: u32,
    },
    /// More bytes written than there was room.
    #[error("used entry {at} claims {len} bytes written into {room}")]
    UsedLen {
        /// Used index of the entry; in a packed ring its slot.
        at: u16,
        /// Length claimed.
        len: u32,
        /// Writable bytes in the buffer.
        room: u32,
    },
    /// A receive buffer came back with less than a header.
    #[error("received {len} bytes, less than a virtio-net header")]
    Runt {
        /// Bytes written.
        len: u32,
    },
    /// num_buffers is 0, beyond the ring, or not 1 without merging.
    #[error("num_buffers is {got}")]
    NumBuffers {
        /// Value in the header.
        got: u16,
    },
    /// An offload in the header that was not negotiated.
    #[error("received header flags {flags:#x}, gso type {gso_type:#x}, which were not negotiated")]
    Offload {
        /// Header flags.
        flags: u8,
        /// GSO type.
        gso_type: u8,
    },
}
