//! Which of several targets a flow goes to, so that its frames stay in order and the load spreads.
//!
//! A switch steers in more than one place (which receive queue of a guest gets a frame, which worker handles a flow), and
//! it is one structure everywhere: a keyed hash over what identifies a flow, and a table from hash to target.
//!
//! - [`hash`]: [`FlowKey`], the identity of a flow in plain values, and [`FlowHasher`], a keyed hash that is the same for
//!   both directions. Guests choose their flows, so an unkeyed hash would let one aim all its flows at one queue.
//! - [`toeplitz`]: the hash that NICs use, to mirror what they do.
//! - [`indirection`]: [`Indirection`], the table. It is full as soon as there is one target, a lookup is one load, and a
//!   target that comes or goes moves no more than its share.
//! - [`steer`]: [`View`], where one worker's packets go now. It follows a table as far as order allows: a bucket leaves a
//!   target when that has completed the last packet it was given.
//! - [`pins`]: [`Pins`], flows that go elsewhere than their bucket says, learned from what a guest sends.
//! - [`cache`]: [`FlowCache`], what was decided about a flow, by its full key.
//! - [`balance`]: the rebalancer, which says what moves from worker to worker by load.
//! - [`scale`]: the scaler, which says how many workers are awake.
//!
//! ```
//! use vswitch_flowtable::{Indirection, Micros, Position, Target, View};
//!
//! let mut table = Indirection::new(4);
//! table.add(Target(0));
//! let mut view = View::new(&table);
//! let (hash, now) = (0x1234_5678, Micros(0));
//! // A packet comes: select, queue it, and say where it was put.
//! if let Some(selection) = view.select(hash, now, |_, _| true) {
//!     view.sent(selection, Position(17), now);
//! }
//! table.add(Target(1));
//! view.adopt(&table)?;
//! // As long as target 0 has not completed position 17, the flow goes there.
//! let next = view.select(hash, now, |target, position| false).map(|selection| selection.target);
//! assert_eq!(next, Some(Target(0)));
//! # Ok::<(), vswitch_flowtable::OtherSize>(())
//! ```
//!
//! What this gives, and what not: frames of one key are not reordered by a change of targets, if the caller can tell what a
//! target has completed. Nothing here looks at load; a table is changed by whoever does.
//!
//! Limits: at least 512 buckets and 64 per target, at most [`MAX_BUCKETS`](indirection::MAX_BUCKETS), 2 bytes each and 8 in
//! every view; [`pins::CAPACITY`] pins per port. None of it grows with the number of flows. Neither hashing nor looking up
//! allocates or fails. No I/O, no clock, no randomness: keys and time come from outside.

#![forbid(unsafe_code)]

pub mod balance;
pub mod cache;
mod clock;
pub mod hash;
pub mod indirection;
pub mod pins;
pub mod scale;
pub mod steer;
pub mod toeplitz;

pub use cache::FlowCache;
pub use clock::Micros;
pub use hash::{Addresses, FlowHash, FlowHasher, FlowKey};
pub use indirection::{Indirection, Move, Target};
pub use pins::{Learned, Pins};
pub use steer::{Moves, OtherSize, Position, Selection, View};
