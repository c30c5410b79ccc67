//! What `show` tells: how the switch and its ports are.

use serde::{Deserialize, Serialize};

use crate::config::{BusyPoll, Mac, SocketMode, Vlan};

/// Result of `show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon itself.
    pub daemon: DaemonStatus,
    /// Its workers, in the order of the configuration.
    pub workers: Vec<WorkerStatus>,
    /// Its bridges, by name.
    pub bridges: Vec<BridgeStatus>,
    /// Its ports, by name.
    pub ports: Vec<PortStatus>,
}

/// The daemon itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Process id.
    pub pid: u32,
    /// Version, as `1.2.3`.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The configuration file; absent when it runs with the default configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number, from 0.
    pub index: u16,
    /// The core it is pinned to; absent when it could not be pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u32>,
    /// What it does when there is nothing to do.
    pub busy_poll: BusyPoll,
    /// The queues it takes frames from.
    pub queues: Vec<WorkerQueue>,
    /// Share of the last measuring interval that it spent on frames, 0 to 1; polling in vain and
    /// sleeping do not count.
    pub busy_share: f64,
    /// Whether it sleeps at this moment.
    pub asleep: bool,
}

/// A queue that a worker takes frames from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerQueue {
    /// The port.
    pub port: String,
    /// Its queue pair, from 0.
    pub queue: u16,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// Its name.
    pub name: String,
    /// Largest payload of a frame, bytes.
    pub mtu: u16,
    /// Addresses it knows, static ones included.
    pub mac_count: u32,
    /// Addresses it remembers at most.
    pub mac_limit: u32,
    /// Seconds until an unused address is forgotten; 0 never forgets.
    pub mac_ageing_s: u32,
    /// Names of its ports.
    pub ports: Vec<String>,
}

/// Where a port comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The configuration file; `config.apply` and SIGHUP manage it.
    File,
    /// `port.add`; it ends with the daemon, and applying a configuration leaves it alone.
    Runtime,
}

/// A port's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A guest over a vhost-user socket.
    VhostUser,
    /// A device of DPDK.
    Dpdk,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What it is.
    pub kind: Kind,
    /// How it treats VLANs, as in the configuration.
    pub vlan: Vlan,
    /// Whether it learns addresses.
    pub learning: bool,
    /// Whether the operator wants it up.
    pub admin_up: bool,
    /// Whether it is up.
    pub link: Link,
    /// The guest's side; present for `kind: vhost-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<VhostStatus>,
    /// The device; present for `kind: dpdk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpdk: Option<DpdkStatus>,
    /// What it does per second, over the last measuring interval.
    pub rates: Rates,
    /// What it did since it was made.
    pub totals: PortTotals,
}

/// Whether a port is up, since when, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Up or not.
    pub state: LinkState,
    /// When that began, seconds since 1970.
    pub since: u64,
    /// Why it is not up, or not all of it: a sentence with what to do. Absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The states of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// Frames pass.
    Up,
    /// The operator took it down, or the other side is there and cannot receive yet.
    Down,
    /// The switch listens; nobody has connected.
    Listening,
    /// The switch tries to connect, again and again.
    Connecting,
    /// Somebody is connected and has not started its queues.
    Negotiating,
    /// It does not work and will not by itself.
    Failed,
}

/// A guest's side of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostStatus {
    /// Path of the vhost-user socket.
    pub socket: String,
    /// The switch's part on it.
    pub mode: SocketMode,
    /// Whether a peer is connected.
    pub peer_connected: bool,
    /// Virtio features the switch offers (pinned while a peer is connected), by name.
    pub offered: Vec<String>,
    /// Virtio features the guest took, by name; empty before it negotiated.
    pub features: Vec<String>,
    /// vhost-user protocol features in use, by name.
    pub protocol_features: Vec<String>,
    /// What the switch makes use of toward the guest now: `checksum`, `tso4`, `tso6`, `ecn`.
    pub delivered_offloads: Vec<String>,
    /// The guest's memory as far as the switch sees it.
    pub memory: MemoryStatus,
    /// Queue pairs offered at most.
    pub max_queue_pairs: u16,
    /// The queue pairs that the guest has started.
    pub queues: Vec<QueueStatus>,
    /// How often a peer has connected.
    pub connections: u64,
}

/// A guest's memory as far as the switch sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Regions mapped.
    pub regions: u32,
    /// Their bytes.
    pub bytes: u64,
    /// The NUMA node that more than two thirds of them lie on; absent if there is none, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u16>,
    /// They lie on several nodes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spread: bool,
}

/// A queue pair of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its number, from 0.
    pub pair: u16,
    /// Whether the guest has enabled it.
    pub enabled: bool,
    /// The worker that takes frames from its transmit ring; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_worker: Option<u16>,
    /// Descriptors of its receive ring (switch to guest).
    pub rx_ring_size: u16,
    /// Descriptors of its transmit ring (guest to switch).
    pub tx_ring_size: u16,
}

/// A device of DPDK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DpdkStatus {
    /// The device as the configuration names it.
    pub device: String,
    /// The driver that runs it.
    pub driver: String,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Speed of the link, Mbit/s; absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// Receive queues in use.
    pub queues: u16,
    /// Transmit queues in use.
    #[serde(default)]
    pub tx_queues: u16,
    /// How it spreads flows over its receive queues; absent if the switch has not set it up to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss: Option<RssStatus>,
    /// How each receive queue wakes a worker that sleeps, by its number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wakes: Vec<QueueWake>,
    /// What the device does of a frame's work, as in `tx-tso`; the rest is done in software.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offloads: Vec<String>,
    /// Frames received that the device found to have a wrong checksum; they are delivered as they are.
    #[serde(default)]
    pub bad_checksums: u64,
    /// Frames that the device had no buffer for.
    #[serde(default)]
    pub missed: u64,
    /// Frames that the device received broken, or could not send.
    #[serde(default)]
    pub errors: u64,
}

/// How a device spreads flows over its receive queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RssStatus {
    /// What it hashes, as in `ipv4-tcp`.
    pub hash: Vec<String>,
    /// It hashes with the switch's key, under which both directions of a flow hash alike; else with its driver's.
    pub symmetric: bool,
    /// Buckets of each receive queue, by its number; empty if the device's redirection table cannot be written, and then
    /// it does not say where what goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<u16>,
    /// Buckets that moved from one queue to another, because of load.
    #[serde(default)]
    pub moves: u64,
    /// How often the queue that got buckets was polled again before everything that had arrived for them elsewhere was
    /// known to be dealt with.
    #[serde(default)]
    pub late: u64,
}

/// How a receive queue wakes a worker that sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueWake {
    /// By an interrupt, or because its descriptor becomes readable.
    Interrupt,
    /// It does not: the worker looks at it every 250 microseconds.
    Timer,
}

/// What a port does per second. Receiving is into the switch, transmitting out of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Frames received per second.
    pub rx_pps: f64,
    /// Bits received per second: frames from Ethernet header to end of payload.
    pub rx_bps: f64,
    /// Frames delivered per second.
    pub tx_pps: f64,
    /// Bits delivered per second.
    pub tx_bps: f64,
}

/// What a port did since it was made; `counters` has it in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortTotals {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames received and dropped, for whatever reason.
    pub rx_drops: u64,
    /// Frames delivered.
    pub tx_frames: u64,
    /// Bytes delivered.
    pub tx_bytes: u64,
    /// Frames meant for this port and dropped, for whatever reason.
    pub tx_drops: u64,
}
