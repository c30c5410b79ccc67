//! Steering on a virtual clock: the rebalancer and the scaler against other policies, packet by packet.
//!
//! # The model
//!
//! Packets come at random times (Poisson), each of a flow drawn from a [`Trace`]. A flow's hash, by the switch's own
//! [`FlowHasher`](vswitch_flowtable::FlowHasher), names a bucket, the bucket a worker. A worker has one ring of 1,024
//! entries; what does not fit is dropped and counted. It takes up to 32 packets at a time, works each for 800 or 1,200 ns,
//! 1 us in the mean, and publishes all of them as completed when the last is done. A packet's delay is the time from its
//! coming to that.
//!
//! A bucket that is to move goes to its new worker when the old one has completed the last packet it was given for that
//! bucket, and not before; [`Order::AtOnce`] leaves this out, to show what it is for. Every flow's packets are checked for
//! order when they complete.
//!
//! A parked worker sleeps once it has no buckets and nothing queued; waking takes 5 us. If all sleep, packets wait until
//! the look that their coming causes.
//!
//! What is left out: caches and what a move costs them, the time that deciding takes, receivers, NICs.
//!
//! # Where things are
//!
//! | module | is |
//! | --- | --- |
//! | [`trace`] | descriptions of traffic, and the flows made from them |
//! | [`engine`] | the clock, the workers, the table |
//! | [`policy`] | who decides: a static table, RSS++'s constants, ours, an oracle |
//! | [`outcome`] | what a run gave: delays, why packets were late, loads, workers awake |
//!
//! One seed, one result: nothing here looks at a clock or at the machine.

#![forbid(unsafe_code)]

pub mod engine;
pub mod outcome;
pub mod policy;
pub mod trace;

pub use engine::{Order, run};
pub use outcome::{Delays, Look, Outcome};
pub use policy::{Oracle, Ours, Policy, RssPlusPlus, Static};
pub use trace::Trace;
