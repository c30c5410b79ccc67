//! Parameters and results of everything but `show`, `counters` and captures.

use serde::{Deserialize, Serialize};

use super::status::{Origin, PortStatus};
use crate::config::{AdminLink, ConfigErrors, Mac, Port, VlanId};

/// The method takes no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// It is done; there is nothing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}

/// Result of `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the daemon, as `1.2.3`.
    pub version: String,
    /// Version of DPDK, as it names itself; absent when the daemon was built without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpdk: Option<String>,
}

/// Names a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortName {
    /// Its name.
    pub name: String,
}

/// Parameters of `port.add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortAddParams {
    /// Name of the new port; must be free.
    pub name: String,
    /// The port, as it would stand in the configuration file.
    pub port: Port,
}

/// Result of `port.add`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortAdded {
    /// The new port.
    pub port: PortStatus,
    /// Whether it will be there after a restart of the daemon: `false` for every port that did
    /// not come from the file.
    pub survives_restart: bool,
}

/// Parameters of `port.set`. What is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSetParams {
    /// Which port.
    pub name: String,
    /// What the link is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<AdminLink>,
    /// Whether frames may lack their checksums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<bool>,
    /// Whether TCP frames may be larger than the MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tso: Option<bool>,
}

/// Which addresses; what is absent does not restrict.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FdbFilter {
    /// Those of one bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Those behind one port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Those of one VLAN; 0 stands for the untagged segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// Result of `fdb.show`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FdbList {
    /// The addresses, in the order of bridge, VLAN, address.
    pub entries: Vec<FdbEntry>,
}

/// One address that a bridge knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The bridge that knows it.
    pub bridge: String,
    /// Its VLAN; absent in the untagged segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The address.
    pub mac: Mac,
    /// The port it is behind.
    pub port: String,
    /// From the configuration or `fdb.add`: never ages, never moves.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Seconds since it last sent something; absent for static ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
}

/// Parameters of `fdb.add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbAddParams {
    /// The address; not a group's.
    pub mac: Mac,
    /// Its VLAN. Default: the untagged segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The port it is behind; names the bridge, too.
    pub port: String,
}

/// Parameters of `fdb.del`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbDelParams {
    /// The bridge. Default: the only bridge, when there is exactly one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The address.
    pub mac: Mac,
    /// Its VLAN. Default: the untagged segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
}

/// Result of `fdb.flush`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbFlushed {
    /// How many addresses were forgotten.
    pub removed: u64,
}

/// A configuration as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigInput {
    /// YAML.
    pub text: String,
    /// The name that messages give the text. Default `config`.
    #[serde(default = "config_name")]
    pub file: String,
}

fn config_name() -> String {
    "config".into()
}

/// Result of `config.show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// YAML, every default written out. Runtime ports are left out: they are in `runtime_ports`.
    pub text: String,
    /// Names of the ports that are not in `text`, because `port.add` made them.
    #[serde(default)]
    pub runtime_ports: Vec<String>,
}

/// Result of `config.check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigChecked {
    /// Every problem; empty when the configuration is fine.
    pub problems: ConfigErrors,
}

/// Result of `port.show`: the port's state together with its configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortDetail {
    /// How it is.
    pub status: PortStatus,
    /// How it was asked to be.
    pub config: Port,
    /// Largest payload of its bridge, bytes: the `host_mtu` of QEMU.
    pub mtu: u16,
    /// Whether `port.add` made it.
    pub origin: Origin,
}
