//! When to interrupt a guest.
//!
//! A guest's used index tells it how far the switch has got; a *call* (a write to the ring's eventfd) wakes a guest that
//! is not looking. A call costs the switch a system call and the guest an entry, a handler and a NAPI turn, so the guest
//! says when it wants one, and this crate knows how to read what it says. It is arithmetic and state: no clock, no ring,
//! no system call. Whoever owns the ring loads the guest's words, asks here, writes the eventfd, and reports back.
//!
//! - [`signal`]: what the guest asked for. [`need_event`] is the arithmetic of virtio 1.2, section 2.7.7.2; [`Signal`]
//!   is the state kept per ring, with the rule that **testing does not commit**.
//! - [`Policy`]: the rules for when a wanted call is made, ours and those of other switches, chosen by [`Settings`].
//! - [`Moderator`]: the state of one ring, which puts the two together: a cache line.
//! - [`class`]: guests that poll and need not be asked each time.
//! - [`urgent`]: frames that should not wait.
//! - [`Counters`]: what was done and why, and the delay it added.
//!
//! How an owner of a ring uses it, under the ring's lock:
//!
//! ```text
//! each burst   publish; moderator.published(settings, burst, || { fence(SeqCst); ring.asks() })
//!              Fire -> write eventfd, or failed();  Hold -> remember the ring, stay awake
//! each turn    for remembered rings: overdue(now)? expire(…) ; deadline() none -> forget the ring
//! before sleep, park, hand-over, detach    flush(…)
//! ```
//!
//! The order that makes it correct, all of it the caller's:
//!
//! ```text
//! store used.idx (Release) -> SeqCst fence -> load the guest's event or flags -> wanted? -> write eventfd -> commit
//! ```
//!
//! Limits: indices are 16 bits and run freely; at most 32,768 used entries may be published between two calls of
//! [`Moderator::published`]. A ring's state is 64 bytes. A call is held for at most 64 µs by the default policy, 500 µs where
//! one costs more than 50 µs, and for what they say by the others. Times are nanoseconds of any clock that never goes back.

#![forbid(unsafe_code)]

mod burst;
pub mod class;
mod moderator;
pub mod policy;
mod settings;
pub mod signal;
pub mod urgent;

pub use burst::{Action, Burst, Counters, DELAY_BUCKETS, Reason};
pub use class::GuestClass;
pub use moderator::Moderator;
pub use policy::{DimProfile, Policy};
pub use settings::{Direction, Settings};
pub use signal::{GuestAsks, Signal, need_event};
