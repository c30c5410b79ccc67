//! Which of several targets a flow goes to, so that its frames stay in order and the load spreads.
//!
//! A switch steers in more than one place (which receive queue of a guest gets a frame, which worker handles a flow), and
//! it is one structure everywhere: a keyed hash over what identifies a flow, and a table from hash to target.
//!
//! - [`hash`]: [`FlowKey`], the identity of a flow in plain values, and [`FlowHasher`], a keyed hash that is the same for
//!   both directions. Guests choose their flows, so an unkeyed hash would let one aim all its flows at one queue.
//! - [`indirection`]: [`Indirection`], the table. It is full as soon as there is one target, a lookup is one load, and a
//!   target that comes or goes moves no more than its share.
//! - [`balance`]: the rebalancer, which says what moves from worker to worker by load.
//! - [`scale`]: the scaler, which says how many workers are awake.
//!
//! What this gives, and what not: frames of one key go to one target for as long as the set of targets stands. When it
//! changes, some buckets move at once; keeping order across a move is the caller's, who knows what is still queued. The
//! table does not look at load.
//!
//! Limits: at least 512 buckets and 64 per target, at most [`MAX_BUCKETS`](indirection::MAX_BUCKETS), 2 bytes each. Neither hashing nor looking
//! up allocates or fails. No I/O, no clock, no randomness: the key comes from outside.

#![forbid(unsafe_code)]

pub mod balance;
pub mod hash;
pub mod indirection;
pub mod scale;

pub use hash::{Addresses, FlowHasher, FlowKey};
pub use indirection::{Indirection, Target};
