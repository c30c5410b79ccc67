//! Virtqueues as owned values.
//!
//! A ring is made by the session, moved to the worker that uses it and moved back when anything under it changes. While a
//! worker has it, nobody else touches it, so it needs no lock and no atomic of its own; the only concurrency is the guest
//! at the other end of the shared memory.
//!
//! - [`TxRing`]: guest to switch. [`take`](TxRing::take) a burst, forward it, [`complete`](TxRing::complete) it,
//!   [`signal`](TxRing::signal) the guest.
//! - [`RxRing`]: switch to guest. [`begin`](RxRing::begin) a burst, [`put`](RxBurst::put) frames,
//!   [`finish`](RxBurst::finish), [`signal`](RxRing::signal).
//!
//! How it works, from the bottom up:
//!
//! | file | idea |
//! | --- | --- |
//! | `layout` | what the engine asks of a layout |
//! | `split` | the split layout: where its fields lie, and loading and storing each exactly once |
//! | `packed` | the packed layout, and where a ring stands of which nobody knows |
//! | `chain` | from descriptors to the pieces of a buffer, whatever the guest wrote |
//! | `ahead` | chains resolved, and their lines asked for, before they are needed |
//! | `calls` | when the guest is called, and what it was called for |
//! | `core` | what both directions share: where the ring stands, calls and kicks, a ring that broke |
//! | `tx`, `rx` | the two directions |
//! | `lent` | transmitted frames that another thread writes on, several bursts at once |
//! | `queue` | the two directions, over whichever layout was negotiated |
//! | `standalone` | rings that no session stands behind, for benches |
//!
//! **Buffers go back in the order in which they came**, so where a ring stands is one number, the guest's used index is
//! always it, and a ring resumes from what the guest's memory says: after a restart of the switch too. A packed ring has no
//! such index; what its front-end says is held against its descriptors.
//!
//! **Lines on their way.** What is asked of memory that a guest wrote last, or read last, takes long, but much can be asked
//! at once. So each ring looks a burst ahead: descriptors are resolved and the first lines of their buffers asked for, to
//! be read or to be written, while the burst before is being forwarded. The guest's available index is loaded only when
//! what was seen of it last is used up or would not fill a burst; the used index is stored once per burst.
//!
//! **What a guest can break.** A malformed chain costs it that chain, which goes back with length 0 and a [`ChainError`]
//! that names the malformation. A ring whose indices lie is stopped ([`RingError`]) and stays stopped; the session learns
//! of it by itself, and the guest can set the ring up again.
//!
//! Limits: 2 to 32,768 entries; [`MAX_BURST`] frames at a time; up to [`HEAD_LEN`] bytes of each in the snapshot;
//! [`MAX_FRAME`] bytes per frame; chains of at most [`MAX_CHAIN`] descriptors and no more than their table has (drivers of
//! network cards use fewer than 50), so that whatever a guest strings together a
//! burst taken costs at most four times [`MAX_CHAIN`] loads, and one delivered at most eight times: an indirect table may
//! follow direct descriptors, and what was begun is finished.

mod ahead;
mod calls;
mod chain;
mod core;
#[cfg(test)]
mod hostile;
mod layout;
mod lent;
#[cfg(test)]
mod oracle;
mod packed;
mod queue;
mod rx;
mod split;
mod standalone;
mod tx;

use std::fmt;

pub use self::calls::{Call, CallReport};
pub use self::lent::{Lending, Lent};
pub use self::queue::{Delivery, RxBurst, RxRing, Sink, TxRing};
pub use self::rx::{MAX_CHAINS, RxError, RxFeatures};
pub use self::split::PartError;
pub use self::standalone::{Standalone, StandaloneError};
pub use self::tx::{PLAIN_HEAD_LEN, TxBurst, TxFrame, TxScratch};

pub(crate) use self::core::{Setup, Trouble};
pub(crate) use self::layout::{Base, RingAddresses};

/// Frames taken at a time.
pub const MAX_BURST: usize = 32;

/// Bytes of a frame's beginning that are copied out before anything is decided about it.
pub const HEAD_LEN: usize = vswitch_packet::HEAD_LEN;

/// Longest frame: 64 KiB of segmentation offload behind an Ethernet header with its tags.
pub const MAX_FRAME: usize = vswitch_packet::MAX_FRAME_LEN;

/// Descriptors of one chain, and those after which a transmit burst ends early: long chains must not hold up a worker.
pub const MAX_CHAIN: u16 = 1_024;

/// A receive queue and the transmit queue beside it, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct QueuePair(pub u16);

impl QueuePair {
    /// The queue in which the guest receives.
    #[must_use]
    pub const fn receive(self) -> QueueIndex {
        QueueIndex(self.0 as u32 * 2)
    }

    /// The queue in which the guest transmits.
    #[must_use]
    pub const fn transmit(self) -> QueueIndex {
        QueueIndex(self.0 as u32 * 2 + 1)
    }
}

impl fmt::Display for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A queue as the front-end counts: even ones receive, odd ones transmit, seen from the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueIndex(pub u32);

impl QueueIndex {
    /// Whether the guest transmits in it.
    #[must_use]
    pub const fn is_transmit(self) -> bool {
        self.0 % 2 == 1
    }

    /// The pair it belongs to.
    #[must_use]
    pub const fn pair(self) -> QueuePair {
        QueuePair((self.0 / 2) as u16)
    }
}

impl fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.is_transmit() {
            "transmit"
        } else {
            "receive"
        };
        write!(f, "{side} queue {}", self.pair())
    }
}

/// What is wrong with one descriptor chain. Each costs the guest that chain and is a drop reason of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum ChainError {
    /// A buffer is not in the memory that the guest shares, or not all of it.
    #[error("a buffer lies outside the guest's memory")]
    Unmapped,
    /// `next` names no descriptor of its table.
    #[error("a descriptor's next index is outside its table")]
    NextOutOfRange,
    /// More descriptors than the table has, which is a loop, or than [`MAX_CHAIN`].
    #[error("a descriptor chain is a loop, or longer than its table or {MAX_CHAIN}")]
    Loop,
    /// An indirect table without the feature, inside another one, or with `next`.
    #[error("an indirect descriptor where none may be")]
    IndirectMisplaced,
    /// An indirect table's length is 0, not a multiple of 16, or above the limit.
    #[error("an indirect descriptor table's length is not a whole, sensible number of descriptors")]
    IndirectLength,
    /// A device-writable buffer in a transmit queue.
    #[error("a device-writable buffer in a transmit queue")]
    Writable,
    /// A device-readable buffer in a receive queue.
    #[error("a device-readable buffer in a receive queue")]
    ReadOnly,
    /// Shorter than the virtio-net header.
    #[error("a buffer too short for the virtio-net header")]
    Short,
    /// A header and nothing else.
    #[error("a virtio-net header without a frame")]
    Empty,
    /// Longer than any frame.
    #[error("a frame longer than {MAX_FRAME} bytes")]
    TooLong,
    /// More pieces than a frame may have.
    #[error("a frame in too many pieces")]
    TooManyPieces,
}

impl ChainError {
    /// Every variant.
    pub const ALL: [Self; 11] = [
        Self::Unmapped,
        Self::NextOutOfRange,
        Self::Loop,
        Self::IndirectMisplaced,
        Self::IndirectLength,
        Self::Writable,
        Self::ReadOnly,
        Self::Short,
        Self::Empty,
        Self::TooLong,
        Self::TooManyPieces,
    ];

    /// Its name among the drop reasons.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmapped => "descriptor-unmapped",
            Self::NextOutOfRange => "descriptor-next-out-of-range",
            Self::Loop => "descriptor-loop",
            Self::IndirectMisplaced => "descriptor-indirect-misplaced",
            Self::IndirectLength => "descriptor-indirect-length",
            Self::Writable => "descriptor-writable",
            Self::ReadOnly => "descriptor-read-only",
            Self::Short => "buffer-short",
            Self::Empty => "buffer-empty",
            Self::TooLong => "buffer-too-long",
            Self::TooManyPieces => "buffer-too-many-pieces",
        }
    }
}

/// Why a ring was stopped. It stays stopped until the guest sets it up again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// More buffers offered than the ring has entries.
    #[error(
        "the available index {available} is more than the ring's {size} entries ahead of {next}; the driver must reset the queue"
    )]
    AvailableIndex {
        /// As read.
        available: u16,
        /// Where the switch stands.
        next: u16,
        /// Entries.
        size: u16,
    },
    /// The available ring names no descriptor.
    #[error(
        "the available ring names descriptor {head} of a table of {size}; the driver must reset the queue"
    )]
    Head {
        /// As read.
        head: u16,
        /// Entries.
        size: u16,
    },
    /// A chain in a packed ring that does not end, so that nobody knows where the next begins.
    #[error(
        "the chain that begins in descriptor {slot} does not end within {limit}; the driver must reset the queue"
    )]
    Endless {
        /// Where it begins.
        slot: u16,
        /// Descriptors that a chain may have.
        limit: u16,
    },
    /// A packed ring of which nobody knows how far it was served.
    #[error(
        "the packed ring is not at {base:#x}, as the front-end says, and its descriptors do not show where it was left; the driver must reset the queue"
    )]
    Place {
        /// What the front-end says.
        base: u32,
    },
    /// A part of the ring is not where the front-end said.
    #[error(transparent)]
    Part(#[from] PartError),
    /// The memory file was cut short.
    #[error("the guest's memory file was cut short under the switch; restart the guest")]
    MemoryLost,
}
