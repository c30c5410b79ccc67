//! A guest's port.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::port::yes;
use super::{Coalesce, Mac, Owner, Permissions};

/// A guest's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VhostUser {
    /// Path of the vhost-user socket, absolute, at most 107 bytes.
    pub socket: PathBuf,
    /// Our part on that socket. Default `server`.
    #[serde(default)]
    pub mode: SocketMode,
    /// Queue pairs offered to the guest, 1 to 64. Default 1.
    #[serde(default = "VhostUser::default_queue_pairs")]
    pub queue_pairs: u16,
    /// Largest ring that is accepted, descriptors, a power of two. Default 1024.
    #[serde(default = "VhostUser::default_ring_size")]
    pub ring_size: u16,
    /// The address that QEMU gives the guest. The switch does not enforce it; it goes into what
    /// `vswitchctl port show --qemu` prints and is checked against other ports' addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Owner of the socket, for `mode: server`. Default: who runs the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Access bits of the socket, for `mode: server`. Default `"0660"`.
    #[serde(default)]
    pub permissions: Permissions,
    /// Which work guests may leave to each other and to the switch. A change counts at once for what is delivered, and
    /// from the guest's next connection on for what it is offered.
    #[serde(default)]
    pub offload: Offload,
    /// Which queue pair a guest with several receives a flow on. Default `learned`.
    #[serde(default)]
    pub receive_steering: ReceiveSteering,
    /// When the guest is interrupted. Changes count at once.
    #[serde(default)]
    pub coalesce: Coalesce,
    /// Files that are accepted as the guest's memory. Default `local`.
    #[serde(default)]
    pub memory_files: MemoryFiles,
    /// Offer receive buffers that merge (VIRTIO_NET_F_MRG_RXBUF). Default yes.
    #[serde(default = "yes")]
    pub mergeable: bool,
    /// Offer indirect descriptors (VIRTIO_F_RING_INDIRECT_DESC). Default yes.
    #[serde(default = "yes")]
    pub indirect: bool,
    /// Offer event indices, which save interrupts and kicks (VIRTIO_F_RING_EVENT_IDX). Default
    /// yes.
    #[serde(default = "yes")]
    pub event_idx: bool,
    /// Offer packed rings (VIRTIO_F_RING_PACKED). Default yes.
    #[serde(default = "yes")]
    pub packed: bool,
}

impl VhostUser {
    /// A port at this socket with everything else at its default.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: SocketMode::default(),
            queue_pairs: Self::default_queue_pairs(),
            ring_size: Self::default_ring_size(),
            mac: None,
            owner: None,
            permissions: Permissions::DEFAULT,
            offload: Offload::default(),
            receive_steering: ReceiveSteering::default(),
            coalesce: Coalesce::default(),
            memory_files: MemoryFiles::default(),
            mergeable: true,
            indirect: true,
            event_idx: true,
            packed: true,
        }
    }

    fn default_queue_pairs() -> u16 {
        1
    }

    fn default_ring_size() -> u16 {
        1024
    }
}

/// Who listens on a vhost-user socket: the switch's part, not QEMU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketMode {
    /// The switch creates the socket and listens; QEMU connects, and again with `reconnect`.
    #[default]
    Server,
    /// QEMU creates the socket and listens; the switch connects, and again when it is lost.
    Client,
}

/// Files that are accepted as a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryFiles {
    /// Those in memory (tmpfs, memfd, hugetlbfs) and on local disks, whose pages the kernel alone provides.
    #[default]
    Local,
    /// All, also those whose pages come from a process (FUSE) or another machine: whoever connects to the port can stop the
    /// switch with one.
    Any,
}

/// Which queue pair a guest receives a flow on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiveSteering {
    /// The pair that it sends the flow on, and for flows that it does not send the pair of their hash.
    #[default]
    Learned,
    /// The pair of the flow's hash.
    Hashed,
}

/// Which work guests may leave to each other and to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Offload {
    /// Frames with unfinished checksums, both ways. Default yes.
    pub checksum: bool,
    /// TCP frames of up to 64 KB, both ways; needs `checksum`. Default yes.
    pub tso: bool,
}

impl Default for Offload {
    fn default() -> Self {
        Self {
            checksum: true,
            tso: true,
        }
    }
}
