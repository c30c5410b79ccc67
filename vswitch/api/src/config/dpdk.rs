//! DPDK, and ports on its devices.

use serde::{Deserialize, Serialize};

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
