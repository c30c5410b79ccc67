//! The guest's side of the switch: vhost-user sessions, guest memory and virtqueues.
//!
//! A virtual machine's network card is half in the guest (the driver) and half here (the back-end). The two share the
//! guest's memory; the VMM (QEMU, or DPDK's virtio-user) introduces them over a socket and stays out of the way. This
//! crate is everything between that socket and a frame:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`session`] | the conversation on the socket: what was negotiated, where the memory is, which rings run |
//! | [`memory`] | the guest's memory, mapped: addresses become [`Piece`]s, checked once |
//! | [`ring`] | virtqueues as owned values: [`TxRing`] gives frames, [`RxRing`] takes them |
//! | [`features`] | feature bits by name, and what a back-end may offer |
//!
//! [`serve`] holds one conversation on the calling thread and hands rings, by value, to whoever implements [`Rings`]. A
//! ring's owner works on it without a lock and without asking the session; before anything under a ring changes (its
//! memory, its features, its descriptors for kicks and calls) the session takes the ring back, and a front-end gets its
//! answer only after that.
//!
//! What holds whatever the guest writes: no panic, no access outside that guest's memory, no unbounded work in one call.
//! Guest memory is never a slice of ours; every descriptor, index and flag is loaded exactly once.
//!
//! Limits: 509 memory regions; 32 descriptors of files on one message; messages of at most 4,096 bytes; rings of 2 to
//! 32,768 entries, split layout; 32 frames per burst; frames of at most 65,557 bytes; receive buffers merged from at most
//! 256 chains per frame.

#![deny(unsafe_code)]

mod event;
pub mod features;
#[allow(
    unsafe_code,
    reason = "maps the guest's memory, and is the only way to reach it"
)]
pub mod memory;
#[allow(
    unsafe_code,
    reason = "reads and writes what the guest may change meanwhile"
)]
pub mod ring;
pub mod session;
#[cfg(test)]
mod testing;

pub use memory::{MemoryFiles, MemoryNode, MemoryProbe, Piece, Pieces};
pub use ring::{
    Call, CallReport, ChainError, Delivery, Lending, Lent, PLAIN_HEAD_LEN, QueueIndex, QueuePair,
    RingError, RxBurst, RxError, RxFeatures, RxRing, Sink, Standalone, StandaloneError, TxBurst,
    TxFrame, TxRing, TxScratch,
};
pub use session::{Custody, Rings, SessionConfig, SessionEnd, SessionEvent, serve};
