//! A simulated guest: the driver half of virtio-net and the VMM's half of vhost-user, as a library.
//!
//! It is what the switch is tested and measured against. It shares no code with the switch, so that a mistake made in
//! one half is not made in the other, and it checks what it gets: a device that gives back a buffer twice, writes more
//! than there was room, or sends an offload nobody asked for is an error ([`driver::DeviceFault`]), not a puzzle.
//!
//! # Layers
//!
//! | module | is |
//! | --- | --- |
//! | [`SimGuest`] | the friendly front: connect, send, receive, stop, reboot, reconnect |
//! | [`driver`] | split and packed rings, transmit and receive queues, every shape of descriptor chain |
//! | [`frontend`] | the vhost-user conversation in QEMU's order, down to raw bytes and descriptors |
//! | [`memory`] | memory files, regions, allocation, fault injection; the only `unsafe` |
//! | [`frames`] | building and checking frames, checksums, segment trains |
//! | [`traffic`] | generator and meter for load: stamped flows, loss and order checked |
//! | [`mover`] | a trusting device for tests of the driver itself, and as the ceiling in benches |
//!
//! # A first guest
//!
//! ```no_run
//! use std::time::Duration;
//! use vswitch_simguest::{SimGuest, frames};
//!
//! let mut guest = SimGuest::connect_to("/run/vswitch/a.sock").mac([2, 0, 0, 0, 0, 1]).start()?;
//! guest.send(&frames::ethernet(&frames::Eth::new([0xff; 6], guest.mac()), 0x88b5, b"hello"))?;
//! if let Some(frame) = guest.recv(Duration::from_secs(1))? {
//!     println!("{} bytes on pair {}", frame.bytes.len(), frame.pair);
//! }
//! # Ok::<(), vswitch_simguest::GuestError>(())
//! ```
//!
//! # Threads
//!
//! A [`QueuePair`] can be taken out of the guest and used by another thread, its two queues even by two threads. Rings
//! and event descriptors stay the same while the switch goes and comes back: such a thread sees a ring that stands
//! still for a while, as a running guest does. Counters can be read from anywhere.
//!
//! # Limits
//!
//! Rings of up to 32,768 entries; little-endian hosts; frames up to 96 KiB in transmit; no control queue (MAC
//! filters, announcements: the VMM's business); no dirty log, no in-flight region, no back-end channel of its own,
//! although any message of theirs can be sent raw. Every wait ends: the session's timeout is 5 s unless set.

#![deny(unsafe_code)]

mod builder;
pub mod driver;
mod endpoint;
pub mod features;
pub mod frames;
pub mod frontend;
mod guest;
mod header;
#[allow(
    unsafe_code,
    reason = "guest memory is the one place that needs raw access"
)]
pub mod memory;
pub mod mover;
pub mod traffic;
pub mod wire;

pub use builder::{Builder, Quirks};
pub use endpoint::{Endpoint, Role};
pub use guest::{Frame, GuestError, GuestStats, Negotiated, QueuePair, SimGuest};
pub use header::VirtioNetHdr;
