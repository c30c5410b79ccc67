//! A guest that sleeps until it is interrupted, over real rings: what notifications cost it, and what waiting for them
//! does to its frames.
//!
//! # Theory of operation
//!
//! Two guests are served by one thread. Guest A polls: it sends what falls due ([`load`]), and takes answers. Guest B is
//! Linux's virtio-net driver as seen from the ring ([`guest`]): it sleeps with its event index armed, is woken by its
//! call descriptor, polls up to 64 frames at a time, and when it finds fewer it arms and looks again. B's processor is
//! *simulated in real time*: an interrupt keeps it busy for so many microseconds, every frame for so many nanoseconds,
//! and until that time is over by the clock it does nothing else. Meanwhile the thread goes on sending, so that a busy
//! guest does not delay its own load. What the thread itself takes is not B's time.
//!
//! The switch is the real daemon, on the other CPU, with real rings, real event indices and a real system call for every
//! call and kick.
//!
//! # What is simulated, and what that leaves out
//!
//! - Nobody sleeps on B's call descriptor: the thread reads it each turn, some hundred nanoseconds apart. So a call
//!   costs the switch a write to a descriptor that wakes nobody, which is less than KVM's, and the guest exactly what is
//!   configured.
//! - An interrupt while B is awake (a call that was under way when B stopped asking) costs as much as any.
//! - Leaving polling costs nothing; frames cost the same in every batch.
//! - B's transmit side is polled.
//!
//! # Limits
//!
//! Guest and load share a CPU: up to about a million frames a second. When the thread did not run for 50 µs, the delays
//! of the next millisecond are not noted.

mod drive;
mod frames;
mod guest;
mod load;

pub use drive::{Seen, Spans};
pub use frames::Kind;
pub use guest::Costs;
pub use load::Traffic;
