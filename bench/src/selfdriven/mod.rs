//! Self-driven rings: guests and switch in one process, without sockets, and if wanted on one thread.
//!
//! A [`Guest`] is memory with real virtqueues in it, laid out and driven by the simulated guest's driver, and the switch's
//! own [`TxRing`](vswitch_vhost::TxRing) and [`RxRing`](vswitch_vhost::RxRing) at the other ends. A [`Fabric`] is a bridge
//! with a port for each of them: a [`Snapshot`](vswitch::forward::Snapshot) with its FDB and counters. A [`Worker`] does
//! with a ring what a worker of the daemon does in a turn, by the same code ([`vswitch::worker::serve`]).
//!
//! What is missing: sessions, sleeping, letters, snapshots that change. What is different: a guest that runs on the
//! worker's own CPU leaves its lines in that CPU's caches, where those of a real guest have to be fetched from another.
//!
//! | part | is |
//! | --- | --- |
//! | [`Clock`] | the time stamp counter, and what reading it costs |
//! | [`Single`] | two guests and a switch on one thread, the switch's part timed, in steps or whole |
//! | [`Mesh`] | guests that send to each other, driven by one worker or several |

mod clock;
mod fabric;
mod guest;
mod mesh;
mod shares;
mod single;

pub use clock::{Clock, Steps};
pub use fabric::{Fabric, Worker};
pub use guest::Guest;
pub use mesh::{FLOWS, Hot, Mesh, Moment, Path, Talk};
pub use shares::{Share, Shares};
pub use single::{Single, Spent};
