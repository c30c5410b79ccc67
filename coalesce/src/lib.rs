//! When to interrupt a guest.
//!
//! A guest's used index tells it how far the switch has got; a *call* (a write to the ring's eventfd) wakes a guest that
//! is not looking. A call costs the switch a system call and the guest an entry, a handler and a NAPI turn, so the guest
//! says when it wants one, and this crate knows how to read what it says. It is arithmetic and state: no clock, no ring,
//! no system call. Whoever owns the ring loads the guest's words, asks here, writes the eventfd, and reports back.
//!
//! Two faces:
//!
//! - [`signal`]: what the guest asked for. [`need_event`] is the arithmetic of virtio 1.2, section 2.7.7.2; [`Signal`]
//!   is the state kept per ring, with the rule that **testing does not commit**.
//! - [`policy`]: when the question is put at all: after every packet, or once per burst.
//!
//! The order that makes it correct, all of it the caller's:
//!
//! ```text
//! store used.idx (Release) -> SeqCst fence -> load the guest's event or flags -> wanted? -> write eventfd -> commit
//! ```
//!
//! Limits: indices are 16 bits and run freely; fewer than 65,536 used entries may be published between two commits of one
//! ring, which a ring of at most 32,768 entries keeps by being tested after each burst. A ring's state is 4 bytes.

#![forbid(unsafe_code)]

pub mod policy;
pub mod signal;

pub use policy::Policy;
pub use signal::{GuestAsks, Signal, need_event};
