//! What a configuration must satisfy beyond its types.
//!
//! Every rule is checked, whatever the others found; where a rule rests on something that could
//! not be read, it is silent, because its complaint would only be a consequence.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use super::near::nearest;
use super::{
    Bridge, BusyPoll, Config, Control, DpdkPort, Environment, Mac, Port, PortKind, SocketMode,
    StaticMac, VhostUser, Vlan, VlanId, limits,
};

/// Takes the problems.
pub(super) trait Reporter {
    /// A problem of what is at `path`; `at_key`: of its key rather than of its value.
    fn problem(&mut self, path: &[&str], at_key: bool, message: String, help: String);

    /// How an operator counts the item of a list with this index, from 1.
    fn number(&self, list: &[&str], index: usize) -> usize;

    /// Whether what should be at `path` was there and could not be read.
    fn lost(&self, path: &[&str]) -> bool;
}

/// Reports every problem of a configuration whose open ends are resolved.
pub(super) fn check(config: &Config, environment: &Environment, reporter: &mut dyn Reporter) {
    let mut checker = Checker {
        config,
        out: reporter,
        sockets: HashMap::new(),
        devices: HashMap::new(),
        macs: HashMap::new(),
    };
    checker.control(&config.control);
    checker.workers(environment);
    checker.dpdk();
    checker.count("bridges", config.bridges.len(), limits::BRIDGES);
    checker.count("ports", config.ports.len(), limits::PORTS);
    for (name, bridge) in &config.bridges {
        checker.bridge(name, bridge);
    }
    for (name, port) in &config.ports {
        checker.port(name, port);
    }
}

struct Checker<'c, 'r> {
    config: &'c Config,
    out: &'r mut dyn Reporter,
    /// Who uses it, by what is used.
    sockets: HashMap<PathBuf, String>,
    devices: HashMap<&'c str, &'c str>,
    macs: HashMap<(&'c str, Mac), &'c str>,
}

impl<'c> Checker<'c, '_> {
    fn value(&mut self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.out.problem(path, false, message.into(), help.into());
    }

    fn key(&mut self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.out.problem(path, true, message.into(), help.into());
    }

    fn count(&mut self, what: &str, count: usize, limit: usize) {
        if count > limit {
            self.key(
                &[what],
                format!("{count} {what} are more than a switch can have"),
                format!("keep at most {limit}; run a second switch for the rest"),
            );
        }
    }

    fn range<T: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        path: &[&str],
        value: T,
        range: &RangeInclusive<T>,
        unit: &str,
    ) {
        if !range.contains(&value) {
            let what = path.last().copied().unwrap_or_default();
            let unit = if unit.is_empty() {
                String::new()
            } else {
                format!(" {unit}")
            };
            self.value(
                path,
                format!("{what} {value} is out of range"),
                format!("use {} to {}{unit}", range.start(), range.end()),
            );
        }
    }

    fn control(&mut self, control: &Control) {
        let path = &["control", "socket"];
        self.socket(path, &control.socket, "the control socket".into());
    }

    fn workers(&mut self, environment: &Environment) {
        let workers = &self.config.workers;
        self.count("workers", workers.len(), limits::WORKERS);
        let mut cores: HashMap<u32, usize> = HashMap::new();
        for (index, worker) in workers.iter().enumerate() {
            let (core, at) = (worker.core, index.to_string());
            let path = &["workers", at.as_str(), "core"];
            if let Some(&first) = cores.get(&core) {
                let first = self.out.number(&["workers"], first);
                self.value(
                    path,
                    format!("core {core} has a worker already, number {first} of the list"),
                    "give each worker a core of its own",
                );
            } else {
                cores.insert(core, index);
            }
            if !limits::CORE.contains(&core) {
                self.value(
                    path,
                    format!("core {core} is beyond those that a worker can be pinned to"),
                    format!("use {} to {}", limits::CORE.start(), limits::CORE.end()),
                );
            } else if let Some(allowed) = &environment.allowed_cores
                && !allowed.contains(&core)
            {
                self.value(
                    path,
                    format!("core {core} does not exist here, or may not be used"),
                    match ranges(allowed) {
                        list if list.is_empty() => "no core may be used; check the CPU set".into(),
                        list => format!("use one of {list}"),
                    },
                );
            }
            let path = &["workers", at.as_str(), "max-sleep-usecs"];
            let (max_sleep, range) = (worker.max_sleep_usecs, &limits::MAX_SLEEP_USECS);
            self.range(path, max_sleep, range, "microseconds");
            if max_sleep > 0 && worker.busy_poll != BusyPoll::Adaptive {
                self.key(
                    path,
                    "`max-sleep-usecs` is for workers that poll for a while, and may sleep",
                    "write `busy-poll: adaptive`, or remove `max-sleep-usecs`",
                );
            }
        }
    }

    fn dpdk(&mut self) {
        let dpdk = &self.config.dpdk;
        self.range(
            &["dpdk", "memory"],
            dpdk.memory,
            &limits::DPDK_MEMORY,
            "MiB",
        );
        for (index, argument) in dpdk.extra_args.iter().enumerate() {
            self.plain_text(&["dpdk", "extra-args", &index.to_string()], argument);
        }
    }

    fn plain_text(&mut self, path: &[&str], text: &str) {
        if text.is_empty() {
            self.value(path, "this is empty", "write a value, or remove the key");
        } else if text.len() > 1024 || text.chars().any(char::is_control) {
            self.value(
                path,
                "this has control characters or more than 1024 bytes",
                "write it as DPDK's command line takes it",
            );
        }
    }

    fn name(&mut self, path: &[&str], name: &str) {
        let fits = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
            && name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !fits || !limits::NAME.contains(&name.chars().count()) {
            self.key(
                path,
                format!("`{name}` cannot be a name"),
                "use 1 to 32 of the characters A-Z a-z 0-9 _ . -, a letter or digit first",
            );
        }
    }

    fn bridge(&mut self, name: &'c str, bridge: &'c Bridge) {
        self.name(&["bridges", name], name);
        self.range(&["bridges", name, "mtu"], bridge.mtu, &limits::MTU, "bytes");
        if bridge.mac_ageing != 0 {
            let path = &["bridges", name, "mac-ageing"];
            let unit = "seconds, or 0 for never";
            self.range(path, bridge.mac_ageing, &limits::MAC_AGEING, unit);
        }
        let path = &["bridges", name, "mac-table-limit"];
        self.range(
            path,
            bridge.mac_table_limit,
            &limits::MAC_TABLE,
            "addresses",
        );
        let mut seen = HashMap::new();
        for (index, entry) in bridge.static_macs.iter().enumerate() {
            let at = index.to_string();
            let path = &["bridges", name, "static-macs", &at];
            self.static_mac(path, name, entry);
            if let Some(first) = seen.insert((entry.mac, entry.vlan), index) {
                let first = self.out.number(&path[..3], first);
                self.value(
                    &[path.as_slice(), &["mac"]].concat(),
                    format!("{} is already in entry {first} of the list", entry.mac),
                    "remove one of the two, or give them different VLANs",
                );
            }
        }
        if bridge.static_macs.len() > bridge.mac_table_limit as usize {
            self.key(
                &["bridges", name, "static-macs"],
                "more static addresses than `mac-table-limit` allows",
                format!("raise `mac-table-limit` above {}", bridge.static_macs.len()),
            );
        }
    }

    fn static_mac(&mut self, path: &[&str], bridge: &str, entry: &StaticMac) {
        let at = |key| [path, &[key]].concat();
        self.station(&at("mac"), entry.mac);
        let Some(port) = self.config.ports.get(&entry.port) else {
            if !self.out.lost(&["ports", &entry.port]) {
                let near = nearest(&entry.port, self.config.ports.keys().map(String::as_str));
                self.value(
                    &at("port"),
                    format!("there is no port `{}`", entry.port),
                    did_you_mean(near, "name a port from the section `ports`"),
                );
            }
            return;
        };
        if port.bridge != bridge && self.config.bridges.contains_key(&port.bridge) {
            self.value(
                &at("port"),
                format!("port `{}` belongs to bridge `{}`", entry.port, port.bridge),
                "name a port of this bridge, or move the entry to the other one",
            );
        } else if !carries(&port.vlan, entry.vlan) {
            let vlan = entry
                .vlan
                .map_or("no VLAN".into(), |id| format!("VLAN {id}"));
            let key = if entry.vlan.is_some() { "vlan" } else { "port" };
            self.value(
                &at(key),
                format!("port `{}` takes no frames of {vlan}", entry.port),
                "use a `vlan` here that the port has",
            );
        }
    }

    /// An address that a single station can have.
    fn station(&mut self, path: &[&str], mac: Mac) {
        if mac.is_multicast() {
            self.value(
                path,
                format!("{mac} is the address of a group, not of a station"),
                format!("make the first byte even, like {:02x}", mac.0[0] & 0xfe),
            );
        } else if mac.is_zero() {
            self.value(
                path,
                "no station has the address of zeros",
                "use the guest's address",
            );
        }
    }

    fn port(&mut self, name: &'c str, port: &'c Port) {
        let base = ["ports", name];
        self.name(&base, name);
        let bridges = &self.config.bridges;
        if port.bridge.is_empty() {
            if !self.out.lost(&["bridges"]) {
                let (message, help) = if bridges.is_empty() {
                    (
                        "there is no bridge for this port",
                        "add `bridges: { br0: {} }`",
                    )
                } else {
                    (
                        "there are several bridges, and this port names none",
                        "add `bridge: NAME`",
                    )
                };
                self.key(&base, message, help);
            }
        } else if !bridges.contains_key(&port.bridge) && !self.out.lost(&["bridges", &port.bridge])
        {
            let near = nearest(&port.bridge, bridges.keys().map(String::as_str));
            let help = match (near, bridges.keys().next()) {
                (None, Some(_)) => {
                    let names: Vec<&str> = bridges.keys().map(String::as_str).take(8).collect();
                    format!("bridges here: {}", names.join(", "))
                }
                _ => did_you_mean(near, "add it to the section `bridges`"),
            };
            let message = format!("there is no bridge `{}`", port.bridge);
            self.value(&["ports", name, "bridge"], message, help);
        }
        self.vlan(name, &port.vlan);
        match &port.kind {
            PortKind::VhostUser(vhost_user) => self.vhost_user(name, &port.bridge, vhost_user),
            PortKind::Dpdk(dpdk) => self.dpdk_port(name, dpdk),
        }
    }

    fn vlan(&mut self, name: &str, vlan: &Vlan) {
        let Vlan::Trunk { allowed, native } = vlan else {
            return;
        };
        let path = ["ports", name, "vlan", "trunk"];
        if allowed.is_empty() && !self.out.lost(&path) {
            let help = match native {
                Some(native) => format!("list VLANs, or write `vlan: {{ access: {native} }}`"),
                None => "list VLANs, like [10, \"100-199\"]".into(),
            };
            self.key(&path, "a trunk without VLANs", help);
        }
        for (index, range) in allowed.iter().enumerate() {
            let overlap = allowed[..index]
                .iter()
                .find(|other| other.first() <= range.last() && range.first() <= other.last());
            if let Some(other) = overlap {
                self.value(
                    &["ports", name, "vlan", "trunk", &index.to_string()],
                    format!("{range} is already covered by {other} in the same list"),
                    "list each VLAN once",
                );
            }
        }
    }

    fn vhost_user(&mut self, name: &'c str, bridge: &'c str, vhost_user: &VhostUser) {
        let base = ["ports", name, "vhost-user"];
        let at = |key| [base.as_slice(), &[key]].concat();
        self.socket(&at("socket"), &vhost_user.socket, format!("port `{name}`"));
        self.range(
            &at("queue-pairs"),
            vhost_user.queue_pairs,
            &limits::QUEUE_PAIRS,
            "",
        );
        let size = vhost_user.ring_size;
        if !size.is_power_of_two() || !limits::RING_SIZE.contains(&size) {
            let near = size.max(1).checked_next_power_of_two().unwrap_or(u16::MAX);
            let near = near.clamp(*limits::RING_SIZE.start(), *limits::RING_SIZE.end());
            self.value(
                &at("ring-size"),
                format!("a ring cannot have {size} descriptors"),
                format!("use a power of two from 16 to 32768, like {near}"),
            );
        }
        if let Some(mac) = vhost_user.mac {
            self.station(&at("mac"), mac);
            if let Some(other) = self.macs.insert((bridge, mac), name) {
                self.value(
                    &at("mac"),
                    format!("port `{other}` of the same bridge has this address, too"),
                    "give every guest an address of its own",
                );
            }
        }
        if vhost_user.offload.tso && !vhost_user.offload.checksum {
            self.value(
                &at("offload"),
                "TSO rests on checksum offload, which is off",
                "write `offload: { checksum: false, tso: false }`, or leave `checksum` on",
            );
        }
        for problem in vhost_user.coalesce.problems() {
            let path = [base.as_slice(), &["coalesce", problem.key]].concat();
            let path = if problem.key == "policy" {
                at("coalesce")
            } else {
                path
            };
            self.out
                .problem(&path, problem.at_key, problem.message, problem.help);
        }
        if let (SocketMode::Client, Some(owner)) = (vhost_user.mode, &vhost_user.owner) {
            self.value(
                &at("owner"),
                format!(
                    "with `mode: client` QEMU creates the socket, nothing can give it to {owner}"
                ),
                "remove `owner`, or use `mode: server`",
            );
        }
    }

    fn dpdk_port(&mut self, name: &'c str, dpdk: &'c DpdkPort) {
        let path = ["ports", name, "dpdk", "device"];
        self.plain_text(&path, &dpdk.device);
        self.range(
            &["ports", name, "dpdk", "queues"],
            dpdk.queues,
            &limits::DPDK_QUEUES,
            "",
        );
        // `net_tap0,iface=a` and `net_tap0,iface=b` are the same device to EAL.
        let device = dpdk.device.split(',').next().unwrap_or_default();
        if let Some(other) = self.devices.insert(device, name)
            && !device.is_empty()
        {
            self.value(
                &path,
                format!("port `{other}` has the device `{device}` already"),
                "use another device; for a virtual one another number, like net_tap1",
            );
        }
    }

    fn socket(&mut self, path: &[&str], socket: &Path, who: String) {
        let text = socket.to_string_lossy();
        if !socket.is_absolute() {
            self.value(
                path,
                format!("the socket path `{text}` is not absolute"),
                format!(
                    "begin it with a slash, like /run/vswitch/{}",
                    text.trim_start_matches("./")
                ),
            );
            return;
        }
        let len = socket.as_os_str().len();
        if len > limits::SOCKET_PATH {
            self.value(
                path,
                format!(
                    "the socket path has {len} bytes, the kernel takes {}",
                    limits::SOCKET_PATH
                ),
                "use a shorter directory or name",
            );
        } else if text.chars().any(char::is_control) || text.ends_with('/') {
            self.value(
                path,
                "the path does not name a file",
                "write directory and name",
            );
        }
        let plain: PathBuf = socket
            .components()
            .filter(|c| *c != Component::CurDir)
            .collect();
        match self.sockets.get(&plain) {
            Some(other) => {
                let message = format!("{other} uses the socket {text}, too");
                self.value(path, message, "give each port a socket of its own");
            }
            None => {
                self.sockets.insert(plain, who);
            }
        }
    }
}

/// Whether frames of a VLAN (`None`: without a tag, as a segment) get through a port.
fn carries(vlan: &Vlan, id: Option<VlanId>) -> bool {
    match (vlan, id) {
        (Vlan::Untagged, None) => true,
        (Vlan::Access(own), Some(id)) => *own == id,
        (Vlan::Trunk { allowed, native }, Some(id)) => {
            *native == Some(id) || allowed.iter().any(|range| range.contains(id))
        }
        _ => false,
    }
}

fn did_you_mean(near: Option<&str>, otherwise: &str) -> String {
    near.map_or(otherwise.into(), |near| format!("did you mean `{near}`?"))
}

/// `0-3, 8` for an ascending list.
fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(n) => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let run = |(a, b): &(u32, u32)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[u32::MAX]), u32::MAX.to_string());
    }

    #[test]
    fn a_port_carries_its_vlans() {
        let id = |n| VlanId::new(n).unwrap();
        assert!(carries(&Vlan::Untagged, None) && !carries(&Vlan::Untagged, Some(id(1))));
        assert!(carries(&Vlan::Access(id(5)), Some(id(5))) && !carries(&Vlan::Access(id(5)), None));
        let trunk = Vlan::Trunk {
            allowed: vec!["10-20".parse().unwrap()],
            native: Some(id(1)),
        };
        assert!(carries(&trunk, Some(id(1))) && carries(&trunk, Some(id(20))));
        assert!(!carries(&trunk, Some(id(21))) && !carries(&trunk, None));
    }
}
