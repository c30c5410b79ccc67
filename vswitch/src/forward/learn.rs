//! What workers tell the writer of the forwarding databases.

use vswitch_packet::MacAddr;

use super::{BridgeIndex, PortRef, Vid};
use crate::mailbox::Mailbox;

/// Addresses that may wait for the writer. More are seen again with the next frame.
pub const QUEUE: usize = 4096;

/// An address seen where the table does not know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// On this bridge,
    pub bridge: BridgeIndex,
    /// in this VLAN,
    pub vid: Vid,
    /// this source address
    pub mac: MacAddr,
    /// came from this port.
    pub port: PortRef,
}

/// The way from all workers to the writer.
pub type LearnMailbox = Mailbox<Seen>;
