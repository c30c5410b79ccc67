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
pub use dpdk::{Dpdk, DpdkPort, Rss};
pub use errors::{ConfigErrors, Place, Problem};
pub use guest::{MemoryFiles, Offload, ReceiveSteering, SocketMode, VhostUser};
pub use load::{add_port, load, load_port};
pub use plan::{Action, Change, Effect, FieldChange, Plan, Subject, plan};
pub use port::{AdminLink, Port, PortKind};
pub use values::{Mac, Owner, Permissions, ValueError, VlanId, VlanRange};
pub use vlan::Vlan;

mod check;
mod coalesce;
mod decode;
mod dpdk;
mod errors;
mod guest;
pub mod limits;
mod load;
mod near;
mod plan;
mod port;
mod tree;
mod values;
mod vlan;

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
    /// Whether a queue that is more than its worker can do gets a second worker's help. Default `auto`.
    pub share: Share,
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

/// Whether a queue that is more than its worker can do gets a second worker's help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// It does, when that is worth it and `rebalance` is `auto`.
    #[default]
    Auto,
    /// Only those that `vswitchctl steer share` names.
    Off,
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
