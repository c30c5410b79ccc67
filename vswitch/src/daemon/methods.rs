//! The methods of the control socket, but for captures and what is answered later.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use vswitch_api::config::{self, AdminLink, Config, ConfigErrors, SocketMode};
use vswitch_api::rpc::{
    self, BridgeStatus, ConfigChecked, ConfigInput, ConfigText, Counters, DaemonStatus, Done,
    FdbEntry, FdbFilter, FdbFlushed, FdbList, Kind, Link, LinkState, MemoryStatus, Method, Origin,
    PortAdded, PortCounters, PortDetail, PortStatus, PortTotals, QueueStatus, Request, RpcError,
    RxCounters, Status, TxCounters, Version, VhostStatus, WorkerStatus, code, methods,
};
use vswitch_packet::MacAddr;
use vswitch_vhost::{MemoryNode, features};

use super::coalesce;
use super::control::to_value;
use super::guest::GuestPort;
use super::port::{Attachment, Port};
use super::steer;
use super::switch::Switch;
use super::watch::Watch;
use crate::forward::counters::{InputDrop, OutputDrop, Totals};
use crate::forward::{PortRef, Vid};
use crate::worker::QueueKey;

/// Carries out one request.
pub(super) fn call(
    request: &Request,
    switch: &mut Switch,
    watch: &mut dyn Watch,
) -> Result<serde_json::Value, RpcError> {
    /// Reads the parameters of `M`, runs it, and writes its result.
    fn run<M: Method>(
        request: &Request,
        method: impl FnOnce(M::Params) -> Result<M::Result, RpcError>,
    ) -> Result<serde_json::Value, RpcError> {
        to_value(&method(request.params::<M>()?)?)
    }
    let r = request;
    match r.method.as_str() {
        methods::GetVersion::NAME => run::<methods::GetVersion>(r, |_| Ok(version())),
        methods::Show::NAME => run::<methods::Show>(r, |_| Ok(show(switch))),
        methods::PortShow::NAME => run::<methods::PortShow>(r, |p| port_show(switch, &p.name)),
        methods::PortAdd::NAME => run::<methods::PortAdd>(r, |p| {
            switch.add_port(&p.name, p.port, watch)?;
            let port = port_status(switch, switch.find_port(&p.name)?);
            Ok(PortAdded {
                port,
                survives_restart: false,
            })
        }),
        methods::PortRemove::NAME => {
            run::<methods::PortRemove>(r, |p| switch.remove_port(&p.name, watch).map(|()| Done {}))
        }
        methods::PortSet::NAME => run::<methods::PortSet>(r, |p| {
            switch.set_offload(&p.name, p.checksum, p.tso)?;
            if let Some(link) = p.link {
                switch.set_link(&p.name, link, watch)?;
            }
            Ok(port_status(switch, switch.find_port(&p.name)?))
        }),
        methods::FdbShow::NAME => run::<methods::FdbShow>(r, |p| fdb_show(switch, &p)),
        methods::FdbAdd::NAME => run::<methods::FdbAdd>(r, |p| fdb_add(switch, &p)),
        methods::FdbDel::NAME => run::<methods::FdbDel>(r, |p| fdb_del(switch, &p)),
        methods::FdbFlush::NAME => run::<methods::FdbFlush>(r, |p| fdb_flush(switch, &p)),
        methods::GetCounters::NAME => {
            run::<methods::GetCounters>(r, |p| counters(switch, p.port.as_deref()))
        }
        methods::Workers::NAME => run::<methods::Workers>(r, |_| Ok(steer::workers(switch))),
        methods::SteerShow::NAME => run::<methods::SteerShow>(r, |_| Ok(steer::show(switch))),
        methods::SteerSet::NAME => run::<methods::SteerSet>(r, |p| steer::set(switch, &p)),
        methods::SteerShare::NAME => run::<methods::SteerShare>(r, |p| steer::share(switch, &p)),
        methods::SteerTrace::NAME => {
            run::<methods::SteerTrace>(r, |_| Ok(steer::decisions(switch, switch.steward.trace())))
        }
        methods::CoalesceShow::NAME => {
            run::<methods::CoalesceShow>(r, |p| coalesce::show(switch, &p))
        }
        methods::CoalesceSet::NAME => run::<methods::CoalesceSet>(r, |p| coalesce::set(switch, &p)),
        methods::ConfigShow::NAME => run::<methods::ConfigShow>(r, |_| config_show(switch)),
        methods::ConfigCheck::NAME => run::<methods::ConfigCheck>(r, |p| {
            let problems = match load(switch, &p) {
                Ok(_) => ConfigErrors {
                    file: p.file,
                    problems: Vec::new(),
                },
                Err(problems) => problems,
            };
            Ok(ConfigChecked { problems })
        }),
        methods::ConfigDiff::NAME => run::<methods::ConfigDiff>(r, |p| {
            let new = load(switch, &p).map_err(|e| RpcError::config(&e))?;
            Ok(config::plan(&switch.config, &new))
        }),
        methods::ConfigApply::NAME => run::<methods::ConfigApply>(r, |p| {
            let new = load(switch, &p).map_err(|e| RpcError::config(&e))?;
            switch.apply(new, watch)
        }),
        other => Err(RpcError::new(
            code::METHOD_NOT_FOUND,
            format!(
                "there is no method \"{other}\"; there are {}",
                methods::NAMES.join(", ")
            ),
        )),
    }
}

fn load(switch: &Switch, input: &ConfigInput) -> Result<Config, ConfigErrors> {
    config::load(&input.text, &input.file, &switch.environment)
}

fn version() -> Version {
    Version {
        version: env!("CARGO_PKG_VERSION").into(),
        #[cfg(feature = "dpdk")]
        dpdk: Some(vswitch_dpdk::Eal::version()),
        #[cfg(not(feature = "dpdk"))]
        dpdk: None,
    }
}

// ---- show -----------------------------------------------------------------------------------------------------------

fn show(switch: &Switch) -> Status {
    switch.workers.look_for_homes(Instant::now());
    Status {
        daemon: DaemonStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: switch.started.elapsed().as_secs(),
            config_file: switch.file.as_ref().map(|f| f.display().to_string()),
        },
        workers: workers(switch),
        bridges: switch
            .bridges
            .iter()
            .map(|(name, b)| bridge_status(switch, name, b))
            .collect(),
        ports: switch
            .ports
            .values()
            .map(|port| port_status(switch, port))
            .collect(),
    }
}

fn bridge_status(switch: &Switch, name: &str, bridge: &super::bridge::Bridge) -> BridgeStatus {
    let ports = switch.ports.values().filter(|p| p.config.bridge == name);
    BridgeStatus {
        name: name.into(),
        mtu: bridge.config.mtu,
        mac_count: bridge.fdb.len() as u32,
        mac_limit: bridge.fdb.limit() as u32,
        mac_ageing_s: bridge.config.mac_ageing,
        ports: ports.map(|p| p.name.to_string()).collect(),
    }
}

fn workers(switch: &Switch) -> Vec<WorkerStatus> {
    let workers = switch.workers.list().into_iter();
    workers
        .map(|worker| {
            let shares = switch.shares.get(worker.index);
            WorkerStatus {
                index: worker.index as u16,
                core: Some(worker.wanted.core),
                busy_poll: steer::busy_poll(worker.wanted.busy_poll),
                queues: steer::named(switch, &worker.queues),
                busy_share: shares.map_or(0.0, |s| s.busy),
                asleep: worker.vitals.read().asleep,
            }
        })
        .collect()
}

fn port_show(switch: &Switch, name: &str) -> Result<PortDetail, RpcError> {
    let port = switch.find_port(name)?;
    switch.workers.look_for_homes(Instant::now());
    Ok(PortDetail {
        status: port_status(switch, port),
        config: port.config.clone(),
        mtu: switch
            .bridges
            .get(&port.config.bridge)
            .map_or(1500, |b| b.config.mtu),
        origin: port.origin,
    })
}

fn port_status(switch: &Switch, port: &Port) -> PortStatus {
    let totals = port.totals();
    let (kind, link) = match &port.attachment {
        Attachment::Guest(guest) => (Kind::VhostUser, guest_link(port, guest)),
        Attachment::Absent(_) => (Kind::Dpdk, failed_link(port)),
        #[cfg(feature = "dpdk")]
        Attachment::Nic(nic) => (Kind::Dpdk, nic.link(port.admin)),
    };
    PortStatus {
        name: port.name.to_string(),
        bridge: port.config.bridge.clone(),
        origin: port.origin,
        kind,
        vlan: port.config.vlan.clone(),
        learning: port.config.learning,
        admin_up: port.admin == AdminLink::Up,
        link,
        vhost: match &port.attachment {
            Attachment::Guest(guest) => Some(vhost_status(switch, port.at, guest)),
            _ => None,
        },
        dpdk: match &port.attachment {
            #[cfg(feature = "dpdk")]
            Attachment::Nic(nic) => Some(nic.status()),
            _ => None,
        },
        rates: port.rates,
        totals: PortTotals {
            rx_frames: totals.received,
            rx_bytes: totals.received_bytes,
            rx_drops: totals.input_drops.iter().sum(),
            tx_frames: totals.delivered,
            tx_bytes: totals.delivered_bytes,
            tx_drops: totals.output_drops.iter().sum(),
        },
    }
}

fn failed_link(port: &Port) -> Link {
    Link {
        state: LinkState::Failed,
        since: epoch_s(port.made),
        reason: port.failure.clone(),
    }
}

fn guest_link(port: &Port, guest: &GuestPort) -> Link {
    let facts = guest.facts();
    let socket = guest.config().socket.display();
    let last = facts
        .last_end
        .as_ref()
        .map(|end| format!("; last session: {end}"));
    let last = last.unwrap_or_default();
    let ring_error = facts.pairs.iter().find_map(|p| p.error.as_ref());
    let ring_error =
        ring_error.map(|e| format!("{e}; the guest's driver has to start the queue anew"));
    let (state, reason) = if let Some(failure) = &port.failure {
        (LinkState::Failed, Some(failure.clone()))
    } else if port.admin == AdminLink::Down {
        let how = format!(
            "taken down by the operator; `vswitchctl port set {} link up`",
            port.name
        );
        (LinkState::Down, Some(how))
    } else if facts.up && guest.attached() {
        (LinkState::Up, ring_error)
    } else if guest.attached() && ring_error.is_some() {
        (LinkState::Down, ring_error)
    } else if guest.attached() {
        let what = "a front-end is connected; the guest's driver has not started its queues";
        (LinkState::Negotiating, Some(what.into()))
    } else {
        match guest.config().mode {
            SocketMode::Server => (
                LinkState::Listening,
                Some(format!("nobody has connected to {socket}{last}")),
            ),
            SocketMode::Client => (
                LinkState::Connecting,
                Some(format!("nobody listens on {socket}; trying again{last}")),
            ),
        }
    };
    let since = epoch_s(facts.since);
    Link {
        state,
        since,
        reason,
    }
}

fn vhost_status(switch: &Switch, at: PortRef, guest: &GuestPort) -> VhostStatus {
    let facts = guest.facts();
    let attached = guest.attached();
    let lies = switch.workers.memory_node(at);
    let negotiated = if attached { facts.virtio } else { 0 };
    let may = guest.may_leave();
    let delivered = [
        (features::NET_GUEST_CSUM, "checksum", may.csum),
        (features::NET_GUEST_TSO4, "tso4", may.tso4),
        (features::NET_GUEST_TSO6, "tso6", may.tso6),
        (features::NET_GUEST_ECN, "ecn", may.ecn),
    ];
    VhostStatus {
        socket: guest.config().socket.display().to_string(),
        mode: guest.config().mode,
        peer_connected: attached,
        offered: features::virtio_names(guest.offered()),
        features: features::virtio_names(negotiated),
        protocol_features: features::protocol_names(if attached { facts.protocol } else { 0 }),
        delivered_offloads: delivered
            .iter()
            .filter(|(bit, _, may)| *may && negotiated >> bit & 1 == 1)
            .map(|(_, name, _)| (*name).into())
            .collect(),
        memory: MemoryStatus {
            regions: facts.memory.0,
            bytes: facts.memory.1,
            node: match lies {
                MemoryNode::One(node) => Some(node),
                MemoryNode::Unknown | MemoryNode::Spread => None,
            },
            spread: lies == MemoryNode::Spread,
        },
        max_queue_pairs: guest.config().queue_pairs,
        queues: facts
            .pairs
            .iter()
            .enumerate()
            .filter(|(_, p)| p.enabled || p.taken)
            .map(|(pair, p)| QueueStatus {
                pair: pair as u16,
                enabled: p.enabled,
                tx_worker: switch
                    .workers
                    .owner(QueueKey {
                        port: at,
                        queue: pair as u16,
                    })
                    .map(|w| w as u16),
                rx_ring_size: p.rx_size,
                tx_ring_size: p.tx_size,
            })
            .collect(),
        connections: facts.connections,
    }
}

// ---- counters -------------------------------------------------------------------------------------------------------

fn counters(switch: &Switch, only: Option<&str>) -> Result<Counters, RpcError> {
    if let Some(name) = only {
        switch.find_port(name)?;
    }
    let mut all = Counters::default();
    let wanted = switch
        .ports
        .iter()
        .filter(|(name, _)| only.is_none_or(|o| o == *name));
    for (name, port) in wanted {
        let counts = port_counters(&port.totals());
        all.totals.add(&counts);
        all.ports.insert(name.clone(), counts);
    }
    Ok(all)
}

fn port_counters(t: &Totals) -> PortCounters {
    let rx_drops = InputDrop::ALL.iter().zip(&t.input_drops);
    let tx_drops = OutputDrop::ALL.iter().zip(&t.output_drops);
    PortCounters {
        rx: RxCounters {
            frames: t.received,
            bytes: t.received_bytes,
            switched: t.switched,
            copies: t.copies,
            drops: rx_drops.map(|(r, n)| (r.name().into(), *n)).collect(),
        },
        tx: TxCounters {
            offered: t.offered,
            delivered: t.delivered,
            bytes: t.delivered_bytes,
            drops: tx_drops.map(|(r, n)| (r.name().into(), *n)).collect(),
        },
        interrupts: t.rx_calls + t.tx_calls,
    }
}

// ---- forwarding databases -------------------------------------------------------------------------------------------

fn fdb_show(switch: &Switch, filter: &FdbFilter) -> Result<FdbList, RpcError> {
    check_filter(switch, filter)?;
    let now = switch.now();
    let mut entries = Vec::new();
    for (name, bridge) in &switch.bridges {
        if filter.bridge.as_ref().is_some_and(|b| b != name) {
            continue;
        }
        for e in bridge.fdb.entries() {
            let Some(port) = switch.port_at(e.port) else {
                continue;
            };
            if filter.port.as_ref().is_some_and(|p| **p != *port.name)
                || filter.vlan.is_some_and(|v| v != e.vid.0)
            {
                continue;
            }
            entries.push(FdbEntry {
                bridge: name.clone(),
                vlan: config::VlanId::new(e.vid.0),
                mac: config::Mac(e.mac.0),
                port: port.name.to_string(),
                is_static: e.is_static,
                idle_s: (!e.is_static).then(|| u64::from(now.0.saturating_sub(e.seen.0))),
            });
        }
    }
    entries.sort_by_key(|e| {
        (
            e.bridge.clone(),
            e.vlan.map_or(0, config::VlanId::get),
            e.mac.0,
        )
    });
    Ok(FdbList { entries })
}

fn check_filter(switch: &Switch, filter: &FdbFilter) -> Result<(), RpcError> {
    if let Some(port) = &filter.port {
        switch.find_port(port)?;
    }
    match &filter.bridge {
        Some(name) if !switch.bridges.contains_key(name) => Err(no_bridge(switch, name)),
        _ => Ok(()),
    }
}

fn no_bridge(switch: &Switch, name: &str) -> RpcError {
    let names: Vec<_> = switch.bridges.keys().map(String::as_str).collect();
    RpcError::new(
        code::NOT_FOUND,
        format!(
            "there is no bridge \"{name}\"; bridges: {}",
            names.join(", ")
        ),
    )
}

fn vid_of(vlan: Option<config::VlanId>) -> Vid {
    Vid(vlan.map_or(0, config::VlanId::get))
}

fn fdb_add(switch: &mut Switch, p: &rpc::FdbAddParams) -> Result<Done, RpcError> {
    let mac = MacAddr(p.mac.0);
    if mac.is_multicast() || mac.is_zero() {
        return Err(RpcError::new(
            code::INVALID_PARAMS,
            format!(
                "{} is not a station's address; only those have an entry",
                p.mac
            ),
        ));
    }
    let now = switch.now();
    let port = switch.find_port(&p.port)?;
    let (at, bridge) = (port.at, port.config.bridge.clone());
    // An access port's stations are in its VLAN, whether the request says so or not.
    let vlan = match (&port.config.vlan, p.vlan) {
        (config::Vlan::Access(own), None) => Some(*own),
        (_, vlan) => vlan,
    };
    if !super::port::vlan_rule(&port.config.vlan).carries(vid_of(vlan)) {
        let segment = vlan.map_or("untagged frames".into(), |v| format!("VLAN {v}"));
        return Err(RpcError::new(
            code::INVALID_PARAMS,
            format!(
                "port \"{}\" does not carry {segment}; name a VLAN that it does",
                p.port
            ),
        ));
    }
    let Some(bridge) = switch.bridges.get_mut(&bridge) else {
        return Err(RpcError::new(code::INTERNAL, "the port's bridge is gone"));
    };
    match bridge.fdb.insert(vid_of(vlan), mac, at, now, true) {
        crate::forward::fdb::Learned::Refused => Err(RpcError::new(
            code::LIMIT,
            "the table is full of static entries; raise the bridge's mac-table-limit, or delete some",
        )),
        _ => Ok(Done {}),
    }
}

fn fdb_del(switch: &mut Switch, p: &rpc::FdbDelParams) -> Result<Done, RpcError> {
    let name = match &p.bridge {
        Some(name) => name.clone(),
        None if switch.bridges.len() == 1 => {
            switch.bridges.keys().next().cloned().unwrap_or_default()
        }
        None => {
            return Err(RpcError::new(
                code::INVALID_PARAMS,
                "there are several bridges; say which one with `bridge`",
            ));
        }
    };
    let unknown = no_bridge(switch, &name);
    let bridge = switch.bridges.get_mut(&name).ok_or(unknown)?;
    if bridge.fdb.remove(vid_of(p.vlan), MacAddr(p.mac.0)) {
        Ok(Done {})
    } else {
        let vlan = p
            .vlan
            .map_or("the untagged segment".into(), |v| format!("VLAN {v}"));
        Err(RpcError::new(
            code::NOT_FOUND,
            format!("bridge {name} does not know {} in {vlan}", p.mac),
        ))
    }
}

fn fdb_flush(switch: &mut Switch, filter: &FdbFilter) -> Result<FdbFlushed, RpcError> {
    check_filter(switch, filter)?;
    let port = match &filter.port {
        Some(name) => Some(switch.find_port(name)?.at),
        None => None,
    };
    let mut removed = 0;
    for (name, bridge) in &mut switch.bridges {
        if filter.bridge.as_ref().is_some_and(|b| b != name) {
            continue;
        }
        removed += bridge.fdb.retain(|e| {
            e.is_static
                || port.is_some_and(|p| p != e.port)
                || filter.vlan.is_some_and(|v| v != e.vid.0)
        });
    }
    Ok(FdbFlushed {
        removed: removed as u64,
    })
}

// ---- configuration --------------------------------------------------------------------------------------------------

fn config_show(switch: &Switch) -> Result<ConfigText, RpcError> {
    let text = switch.config.to_yaml().map_err(|e| {
        RpcError::new(
            code::INTERNAL,
            format!("the configuration has no YAML form: {e}"),
        )
    })?;
    let runtime = switch
        .ports
        .values()
        .filter(|p| p.origin == Origin::Runtime);
    Ok(ConfigText {
        text,
        runtime_ports: runtime.map(|p| p.name.to_string()).collect(),
    })
}

/// Seconds since the epoch.
pub(crate) fn epoch_s(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
