//! The configuration file.
//!
//! [`Config`] is the shape of the YAML file; keys are in kebab-case, unknown keys are errors and
//! everything has a default except what a port cannot do without (its socket or its device).
//! Reading goes through [`load`] only: text to a tree of nodes that know their place
//! ([`mod@tree`]), tree to types by serde ([`decode`]), types to a judgement ([`check`]). Every
//! stage collects all the problems it finds, each with its place in the file.
//!
//! A [`Config`] that came from [`load`] is complete: the control socket has a path, every port
//! names its bridge, there is at least one worker if the environment knows the cores.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use coalesce::{Coalesce, CoalescePolicy, CoalesceProblem};
pub use errors::{ConfigErrors, Place, Problem};
pub use load::{add_port, load, load_port};
pub use plan::{Action, Change, Effect, FieldChange, Plan, Subject, plan};
pub use values::{Mac, Owner, Permissions, ValueError, VlanId, VlanRange};

mod check;
mod coalesce;
mod decode;
mod errors;
mod load;
mod near;
mod plan;
mod tree;
mod values;

/// What can be configured how often, and how big. The numbers are limits, both ends included.
pub mod limits {
    use std::ops::RangeInclusive;

    /// Bytes of configuration text.
    pub const TEXT: usize = 1 << 20;
    /// Ports.
    pub const PORTS: usize = 1024;
    /// Bridges.
    pub const BRIDGES: usize = 64;
    /// Workers.
    pub const WORKERS: usize = 64;
    /// Characters of a port's or bridge's name.
    pub const NAME: RangeInclusive<usize> = 1..=32;
    /// Bytes of a socket's path: `sun_path` has 108, the last one is zero.
    pub const SOCKET_PATH: usize = 107;
    /// Bytes of an Ethernet payload: IPv4's minimum to what jumbo frames reach.
    pub const MTU: RangeInclusive<u16> = 68..=9216;
    /// Seconds until an unused address is forgotten; 0 means never.
    pub const MAC_AGEING: RangeInclusive<u32> = 10..=1_000_000;
    /// Addresses a bridge remembers.
    pub const MAC_TABLE: RangeInclusive<u32> = 16..=65_536;
    /// Queue pairs of a vhost-user port.
    pub const QUEUE_PAIRS: RangeInclusive<u16> = 1..=64;
    /// Descriptors of a ring; a power of two.
    pub const RING_SIZE: RangeInclusive<u16> = 16..=32_768;
    /// Microseconds for which an interrupt is held back.
    pub const COALESCE_USECS: RangeInclusive<u32> = 0..=10_000;
    /// Frames after which there is an interrupt.
    pub const COALESCE_FRAMES: RangeInclusive<u32> = 1..=1024;
    /// Microseconds for which a worker sleeps between looks at rings that fill slowly; 0 means that it does not.
    pub const MAX_SLEEP_USECS: RangeInclusive<u32> = 0..=1000;
    /// Percent of a CPU.
    pub const CPU_PERCENT: RangeInclusive<u32> = 1..=100;
    /// Queues of a DPDK port.
    pub const DPDK_QUEUES: RangeInclusive<u16> = 1..=64;
    /// MiB of memory for DPDK.
    pub const DPDK_MEMORY: RangeInclusive<u32> = 32..=1_048_576;

    /// The limits of the number that a key holds, for a number that does not even fit its type.
    pub(super) fn of(key: &str) -> Option<(i128, i128)> {
        fn both<T: Copy + Into<i128>>(range: &RangeInclusive<T>) -> (i128, i128) {
            ((*range.start()).into(), (*range.end()).into())
        }
        Some(match key {
            "mtu" => both(&MTU),
            "mac-ageing" => both(&MAC_AGEING),
            "mac-table-limit" => both(&MAC_TABLE),
            "queue-pairs" => both(&QUEUE_PAIRS),
            "ring-size" => both(&RING_SIZE),
            "rx-usecs" | "tx-usecs" | "max-delay-usecs" => both(&COALESCE_USECS),
            "rx-frames" | "tx-frames" => both(&COALESCE_FRAMES),
            "max-sleep-usecs" => both(&MAX_SLEEP_USECS),
            "cpu-percent" => both(&CPU_PERCENT),
            "queues" => both(&DPDK_QUEUES),
            "memory" => both(&DPDK_MEMORY),
            "access" | "native" | "vlan" => (1, 4094),
            _ => return None,
        })
    }
}

/// What the machine allows, asked by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Cores this process may run on, ascending. `None`: unknown, cores are not checked.
    pub allowed_cores: Option<Vec<u32>>,
    /// Where run-time files go: `/run`, or `$XDG_RUNTIME_DIR` for who is not root.
    /// `None` means `/run`.
    pub runtime_dir: Option<PathBuf>,
}

impl Environment {
    /// Control socket of a switch that was not told where to put it.
    pub fn control_socket(&self) -> PathBuf {
        let base = self
            .runtime_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from("/run"));
        base.join("vswitch/control.sock")
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// The socket that `vswitchctl` speaks to.
    pub control: Control,
    /// The threads that forward, each on a core of its own. Default: one, on the last core that
    /// the daemon may use.
    pub workers: Vec<Worker>,
    /// Which worker handles what, and how many of them are in use.
    pub steering: Steering,
    /// What is logged.
    pub log: Log,
    /// How DPDK is started, if a port needs it.
    pub dpdk: Dpdk,
    /// Bridges by name. A frame never leaves the bridge of the port it came in by.
    pub bridges: BTreeMap<String, Bridge>,
    /// Ports by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, Port>,
}

impl Config {
    /// What runs when there is no file: one bridge `br0` and no ports, so that `vswitchctl port
    /// add` has something to add to.
    pub fn default_config(environment: &Environment) -> Self {
        let mut config = Self::default();
        config.bridges.insert("br0".into(), Bridge::default());
        config.resolve(environment);
        config
    }

    /// The configuration as a file that [`load`] reads back to the same.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::SerializeError> {
        serde_yaml::to_string(self)
    }

    /// Fills in what depends on the machine or on the rest of the file.
    pub(crate) fn resolve(&mut self, environment: &Environment) {
        if self.control.socket.as_os_str().is_empty() {
            self.control.socket = environment.control_socket();
        }
        if self.workers.is_empty()
            && let Some(&core) = environment
                .allowed_cores
                .as_ref()
                .and_then(|cores| cores.last())
        {
            self.workers.push(Worker {
                core,
                busy_poll: BusyPoll::default(),
                max_sleep_usecs: 0,
            });
        }
        if let Some(only) = self.only_bridge().map(str::to_owned) {
            for port in self
                .ports
                .values_mut()
                .filter(|port| port.bridge.is_empty())
            {
                port.bridge.clone_from(&only);
            }
        }
    }

    /// The bridge that a port belongs to when it names none.
    pub fn only_bridge(&self) -> Option<&str> {
        let mut names = self.bridges.keys();
        names
            .next()
            .filter(|_| names.next().is_none())
            .map(String::as_str)
    }
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Control {
    /// Path. Default `/run/vswitch/control.sock`, or `$XDG_RUNTIME_DIR/vswitch/control.sock`
    /// when the daemon does not run as root.
    pub socket: PathBuf,
    /// Owner of the socket. Default: who runs the daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Access bits of the socket; who may write to it controls the switch. Default `"0660"`.
    pub permissions: Permissions,
}

/// A thread that forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Worker {
    /// The core it is pinned to, as `lscpu` counts.
    pub core: u32,
    /// What it does when there is nothing to do. Default `adaptive`.
    #[serde(default)]
    pub busy_poll: BusyPoll,
    /// How long it may sleep at a time, in microseconds, where frames are few but steady, so that it finds several at once;
    /// only with `adaptive`. Default 0: not at all.
    #[serde(default)]
    pub max_sleep_usecs: u32,
}

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusyPoll {
    /// Polls on: lowest latency, a whole core.
    Always,
    /// Polls on for a short while, as long as that pays, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once: lowest CPU use.
    Never,
}

/// Who decides which worker takes frames from which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Steering {
    /// Whether queues move between workers to even out their load. Default `auto`.
    pub rebalance: Rebalance,
    /// How many workers are in use. Default `auto`.
    pub scale: Scale,
}

/// Whether queues move between workers to even out their load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rebalance {
    /// They do, when that is worth it.
    #[default]
    Auto,
    /// They stay where they are, until `vswitchctl steer` moves them or their worker goes.
    Off,
}

/// How many workers are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// As many as keep delays short; the others have no queues and sleep.
    #[default]
    Auto,
    /// All.
    All,
}

/// Logging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Log {
    /// The least important level that is still written. Default `info`.
    pub level: LogLevel,
}

/// How important a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Something does not work and stays so.
    Error,
    /// Something is not as it should be; the switch goes on.
    Warn,
    /// Ports and guests come and go, the configuration changes.
    #[default]
    Info,
    /// What a guest and the switch tell each other.
    Debug,
    /// Everything, for developers.
    Trace,
}

/// How DPDK is started. Nothing is, unless a port needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Dpdk {
    /// Memory for packet buffers, MiB. Default 64.
    pub memory: u32,
    /// Take that memory from hugepages. Default no.
    pub hugepages: bool,
    /// More arguments for EAL, one list item each. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_args: Vec<String>,
}

impl Default for Dpdk {
    fn default() -> Self {
        Self {
            memory: 64,
            hugepages: false,
            extra_args: Vec::new(),
        }
    }
}

/// A bridge: the ports that can reach each other, and what it has learnt about them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Bridge {
    /// Largest payload of a frame, bytes, without Ethernet header and VLAN tag. Default 1500.
    pub mtu: u16,
    /// Seconds until an address that sends nothing is forgotten; 0 never forgets. Default 300.
    pub mac_ageing: u32,
    /// Addresses the bridge remembers at most. Default 8192.
    pub mac_table_limit: u32,
    /// Addresses that are known from the start, never age and never move. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_macs: Vec<StaticMac>,
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            mtu: 1500,
            mac_ageing: 300,
            mac_table_limit: 8192,
            static_macs: Vec::new(),
        }
    }
}

/// An address that is always behind the same port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StaticMac {
    /// The station's address; not a group's.
    pub mac: Mac,
    /// The VLAN it is in. Default: among the untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The port it is behind; a port of the same bridge.
    pub port: String,
}

/// A port: where frames come in and go out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortShape", into = "PortShape")]
pub struct Port {
    /// The bridge it belongs to. Default: the only bridge, when there is exactly one.
    pub bridge: String,
    /// What it is attached to.
    pub kind: PortKind,
    /// How it treats VLANs. Default [`Vlan::Untagged`].
    pub vlan: Vlan,
    /// Learn the addresses of the stations behind it. Default yes.
    pub learning: bool,
    /// Whether it takes part at all. Default up.
    pub link: AdminLink,
}

impl Port {
    /// A port of this kind with everything else at its default.
    pub fn new(kind: PortKind) -> Self {
        Self {
            bridge: String::new(),
            kind,
            vlan: Vlan::default(),
            learning: true,
            link: AdminLink::Up,
        }
    }

    /// The guest's side, if that is what the port is for.
    pub fn vhost_user(&self) -> Option<&VhostUser> {
        match &self.kind {
            PortKind::VhostUser(vhost_user) => Some(vhost_user),
            PortKind::Dpdk(_) => None,
        }
    }

    /// The DPDK device, if that is what the port is for.
    pub fn dpdk(&self) -> Option<&DpdkPort> {
        match &self.kind {
            PortKind::Dpdk(dpdk) => Some(dpdk),
            PortKind::VhostUser(_) => None,
        }
    }
}

/// What a port is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A guest, over a vhost-user socket.
    VhostUser(VhostUser),
    /// A device of DPDK.
    Dpdk(DpdkPort),
}

impl PortKind {
    /// When the guest of a guest's port is interrupted.
    pub fn coalesce(&self) -> Option<Coalesce> {
        match self {
            Self::VhostUser(vhost_user) => Some(vhost_user.coalesce),
            Self::Dpdk(_) => None,
        }
    }

    /// The offloads of a guest's port.
    pub fn offload(&self) -> Option<Offload> {
        match self {
            Self::VhostUser(vhost_user) => Some(vhost_user.offload),
            Self::Dpdk(_) => None,
        }
    }
}

/// A port as the file writes it; [`Port`] is the same without the combinations that mean nothing.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, rename = "port")]
struct PortShape {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    bridge: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vhost_user: Option<VhostUser>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dpdk: Option<DpdkPort>,
    #[serde(default, skip_serializing_if = "Vlan::is_untagged")]
    vlan: Vlan,
    #[serde(default = "yes")]
    learning: bool,
    #[serde(default)]
    link: AdminLink,
}

fn yes() -> bool {
    true
}

impl TryFrom<PortShape> for Port {
    type Error = ValueError;

    fn try_from(shape: PortShape) -> Result<Self, ValueError> {
        let kind = match (shape.vhost_user, shape.dpdk) {
            (Some(vhost_user), None) => PortKind::VhostUser(vhost_user),
            (None, Some(dpdk)) => PortKind::Dpdk(dpdk),
            (None, None) => {
                return Err(ValueError::new(
                    "the port is attached to nothing; add `vhost-user: { socket: /path }` or `dpdk: { device: \"…\" }`",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(ValueError::new(
                    "a port is either `vhost-user` or `dpdk`; make it two ports of the same bridge",
                ));
            }
        };
        Ok(Self {
            bridge: shape.bridge,
            kind,
            vlan: shape.vlan,
            learning: shape.learning,
            link: shape.link,
        })
    }
}

impl From<Port> for PortShape {
    fn from(port: Port) -> Self {
        let (vhost_user, dpdk) = match port.kind {
            PortKind::VhostUser(vhost_user) => (Some(vhost_user), None),
            PortKind::Dpdk(dpdk) => (None, Some(dpdk)),
        };
        Self {
            bridge: port.bridge,
            vhost_user,
            dpdk,
            vlan: port.vlan,
            learning: port.learning,
            link: port.link,
        }
    }
}

/// Whether the operator wants the port to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminLink {
    /// It forwards, if there is somebody on the other side.
    #[default]
    Up,
    /// It drops what comes in and sends nothing.
    Down,
}

/// How a port treats VLANs.
///
/// Frames without a tag on ports without a `vlan` are a segment of their own, beside the VLANs 1
/// to 4094; no VLAN reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "VlanShape", into = "VlanShape")]
pub enum Vlan {
    /// Takes part in the untagged segment. Tagged frames are dropped (`vlan-not-allowed`).
    #[default]
    Untagged,
    /// Takes part in one VLAN without knowing: frames get the tag on their way in and lose it on
    /// their way out. Tagged frames are dropped (`vlan-not-allowed`).
    Access(VlanId),
    /// Takes part in several VLANs, tagged.
    Trunk {
        /// The VLANs that pass; others are dropped (`vlan-not-allowed`).
        allowed: Vec<VlanRange>,
        /// The VLAN that frames without a tag belong to, both ways; it need not be in `allowed`.
        /// Without it, frames without a tag are dropped (`vlan-not-allowed`).
        native: Option<VlanId>,
    },
}

impl Vlan {
    /// Is it the default?
    pub fn is_untagged(&self) -> bool {
        *self == Self::Untagged
    }
}

/// `vlan` as the file writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, rename = "vlan")]
struct VlanShape {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<VlanId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trunk: Option<Vec<VlanRange>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    native: Option<VlanId>,
}

impl TryFrom<VlanShape> for Vlan {
    type Error = ValueError;

    fn try_from(shape: VlanShape) -> Result<Self, ValueError> {
        match (shape.access, shape.trunk, shape.native) {
            (None, None, None) => Ok(Self::Untagged),
            (Some(id), None, None) => Ok(Self::Access(id)),
            (None, Some(allowed), native) => Ok(Self::Trunk { allowed, native }),
            (Some(_), Some(_), _) => Err(ValueError::new(
                "`access` and `trunk` exclude each other; keep `trunk`, and name the untagged VLAN with `native`",
            )),
            (access, None, Some(native)) => Err(ValueError::new(match access {
                Some(_) => "`native` is for trunks; an access port has no other VLAN than `access`, remove `native`".into(),
                None => format!("`native` alone says nothing; write `access: {native}`, or add a `trunk` list"),
            })),
        }
    }
}

impl From<Vlan> for VlanShape {
    fn from(vlan: Vlan) -> Self {
        let (access, trunk, native) = match vlan {
            Vlan::Untagged => (None, None, None),
            Vlan::Access(id) => (Some(id), None, None),
            Vlan::Trunk { allowed, native } => (None, Some(allowed), native),
        };
        Self {
            access,
            trunk,
            native,
        }
    }
}

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

/// A port on a device of DPDK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DpdkPort {
    /// The device as EAL takes it: a PCI address or a virtual device with its arguments.
    pub device: String,
    /// Queue pairs, 1 to 64. Default 1.
    #[serde(default = "DpdkPort::default_queues")]
    pub queues: u16,
    /// Who spreads flows over several receive queues. Default `auto`.
    #[serde(default)]
    pub rss: Rss,
}

/// Who spreads flows over the receive queues of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rss {
    /// The device by a hash, as the switch sets it up, as far as it can.
    #[default]
    Auto,
    /// The device, as it does when nobody asks it for anything.
    Off,
}

impl DpdkPort {
    /// The device with one queue pair.
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            device: device.into(),
            queues: Self::default_queues(),
            rss: Rss::default(),
        }
    }

    fn default_queues() -> u16 {
        1
    }
}
