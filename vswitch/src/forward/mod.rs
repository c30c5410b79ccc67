//! Forwarding: what happens to a frame between the ring it came from and the rings it goes to.
//!
//! # Theory of operation
//!
//! A worker takes up to [`BURST`] frames from one source (a guest's transmit ring, a NIC queue) and hands them to
//! [`Forwarder::forward`] ([`deliver`]). Three steps follow, each over the whole burst:
//!
//! 1. **Decide** ([`decide`]): on the worker's own copy of the frame's head, classify the VLAN, check the source,
//!    learn, look the destination up. The outcome is a list of outputs or a named drop. [`ways`] remembers outcomes,
//!    and [`steer`] knows which queue of a guest with several a flow is on.
//! 2. **Group** ([`group`]): frames are filed under their outputs in arrival order, so that each output is locked once.
//! 3. **Deliver** ([`output`]): per output, write the frames into its ring: the head from the worker's copy, the rest
//!    straight from the source's buffer. That is the one copy.
//!
//! A guest is called when its port's policy says so; what is held back is [remembered](pending). Who sent has its buffers back
//! when all is delivered ([`completion`]).
//!
//! One queue that is more than its worker can do is [shared](share) with a second one: then that delivers a part.
//!
//! What can change under a worker (ports, VLANs, tables) is a [`Snapshot`], picked up once per burst. What it counts is
//! its own [`counters`], added up by whoever reads them.
//!
//! # Limits
//!
//! [`BURST`] frames a burst, [`MAX_PORTS`] ports, [`MAX_BRIDGES`] bridges; frames up to 64 KiB with segmentation offload.

pub mod completion;
pub mod counters;
pub mod decide;
pub mod deliver;
pub mod fdb;
pub mod group;
pub mod learn;
pub mod output;
pub mod patience;
pub mod pending;
pub mod share;
pub mod snapshot;
pub mod software;
pub mod steer;
pub mod vlan;
pub mod ways;

pub use deliver::Forwarder;
pub use snapshot::{Bridge, Output, Port, Snapshot};

/// Frames taken from one source at a time.
pub const BURST: usize = 32;
/// Ports a switch can have.
pub const MAX_PORTS: usize = 1024;
/// Bridges a switch can have.
pub const MAX_BRIDGES: usize = 64;

/// A port's place in the snapshot. Places are used again; see [`PortRef`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortIndex(pub u16);

/// A bridge's place in the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BridgeIndex(pub u16);

/// A VLAN inside the switch: 1 to 4094, or 0 for the untagged segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vid(pub u16);

/// One particular port: a place and which of the ports that have held it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRef {
    /// Its place.
    pub index: PortIndex,
    /// Which holder of that place; 15 bits.
    pub incarnation: u16,
}
