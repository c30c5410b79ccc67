//! `vswitchctl show`.

use std::fmt::Write as _;

use vswitch_api::config::{BusyPoll, SocketMode, Vlan};
use vswitch_api::rpc::{
    BridgeStatus, Link, LinkState, MemoryStatus, Origin, PortStatus, Rates, Status, VhostStatus,
    WorkerStatus,
};

use super::text::{Paint, Table, counted, duration, grouped, memory, scaled, wrapped};

/// The whole switch.
pub(super) fn status(status: &Status, now: u64, paint: Paint) -> String {
    let daemon = &status.daemon;
    let file = daemon
        .config_file
        .as_deref()
        .unwrap_or("the default configuration");
    let mut parts = vec![
        format!(
            "vswitchd {}, pid {}, up {}, {file}\n",
            daemon.version,
            daemon.pid,
            duration(daemon.uptime_s)
        ),
        workers(&status.workers, paint),
        bridges(&status.bridges, paint),
    ];
    if status.ports.is_empty() {
        parts.push("no ports; add one with `vswitchctl port add`\n".into());
    } else {
        parts.push(ports(&status.ports, now, paint));
        let details: Vec<String> = status
            .ports
            .iter()
            .filter_map(|port| remarks(port, paint))
            .collect();
        if !details.is_empty() {
            parts.push(details.concat());
        }
    }
    parts.join("\n")
}

fn workers(workers: &[WorkerStatus], paint: Paint) -> String {
    let mut table = Table::new(&["WORKER", "CORE", "BUSY-POLL", ">BUSY", "", "TAKES FROM"]);
    for worker in workers {
        let queues: Vec<String> = worker
            .queues
            .iter()
            .map(|queue| format!("{}/{}", queue.port, queue.queue))
            .collect();
        table.row([
            worker.index.to_string(),
            worker
                .core
                .map_or_else(|| "any".into(), |core| core.to_string()),
            busy_poll(worker.busy_poll).into(),
            format!("{:.0}%", worker.busy_share.clamp(0.0, 1.0) * 100.0),
            if worker.asleep {
                paint.faint("asleep")
            } else {
                "awake".into()
            },
            or_dash(&queues.join(" ")),
        ]);
    }
    table.render(paint)
}

fn bridges(bridges: &[BridgeStatus], paint: Paint) -> String {
    let mut table = Table::new(&["BRIDGE", ">MTU", ">ADDRESSES", "AGEING", "PORTS"]);
    for bridge in bridges {
        let ageing = match bridge.mac_ageing_s {
            0 => "never".into(),
            seconds => duration(seconds.into()),
        };
        table.row([
            bridge.name.clone(),
            bridge.mtu.to_string(),
            format!("{} of {}", bridge.mac_count, bridge.mac_limit),
            ageing,
            or_dash(&bridge.ports.join(" ")),
        ]);
    }
    table.render(paint)
}

fn ports(ports: &[PortStatus], now: u64, paint: Paint) -> String {
    let mut table = Table::new(&[
        "PORT",
        "BRIDGE",
        "VLAN",
        "LINK",
        ">RX",
        "",
        ">TX",
        "",
        ">RX-DROPS",
        ">TX-DROPS",
    ]);
    for port in ports {
        let Rates {
            rx_pps,
            rx_bps,
            tx_pps,
            tx_bps,
        } = port.rates;
        let drops = |n: u64| {
            if n == 0 {
                "0".into()
            } else {
                paint.waiting(&grouped(n))
            }
        };
        table.row([
            port.name.clone(),
            port.bridge.clone(),
            vlan(&port.vlan),
            link(&port.link, now, paint),
            format!("{}pps", scaled(rx_pps)),
            format!("{}bit/s", scaled(rx_bps)),
            format!("{}pps", scaled(tx_pps)),
            format!("{}bit/s", scaled(tx_bps)),
            drops(port.totals.rx_drops),
            drops(port.totals.tx_drops),
        ]);
    }
    table.render(paint)
}

/// `up 3 min`
pub(super) fn link(link: &Link, now: u64, paint: Paint) -> String {
    let word = match link.state {
        LinkState::Up => paint.good("up"),
        LinkState::Down => paint.bad("down"),
        LinkState::Listening => paint.waiting("listening"),
        LinkState::Connecting => paint.waiting("connecting"),
        LinkState::Negotiating => paint.waiting("negotiating"),
        LinkState::Failed => paint.bad("failed"),
    };
    format!("{word} {}", duration(now.saturating_sub(link.since)))
}

/// What a port has to say beyond the table's columns.
fn remarks(port: &PortStatus, paint: Paint) -> Option<String> {
    let mut out = format!("{}\n", paint.strong(&port.name));
    let begin = out.len();
    if port.origin == Origin::Runtime {
        out += "  added at run time; ends with vswitchd\n";
    }
    if let Some(reason) = &port.link.reason {
        out += &format!("  {reason}\n");
    }
    if let Some(vhost) = &port.vhost
        && vhost.peer_connected
    {
        let mode = match vhost.mode {
            SocketMode::Server => "it connected to us",
            SocketMode::Client => "we connected to it",
        };
        let _ = writeln!(out, "  guest     {} ({mode})", vhost.socket);
        out += &guest(vhost);
    }
    if let Some(dpdk) = &port.dpdk {
        let speed = dpdk
            .speed_mbps
            .map(|mbps| format!(", {}bit/s", scaled(f64::from(mbps) * 1e6)));
        let mac = dpdk.mac.map(|mac| format!(", {mac}"));
        let _ = writeln!(
            out,
            "  device    {} ({}), {}{}{}",
            dpdk.device,
            dpdk.driver,
            counted(dpdk.queues.into(), "queue pair", "queue pairs"),
            mac.unwrap_or_default(),
            speed.unwrap_or_default()
        );
    }
    (out.len() > begin).then_some(out)
}

/// Where a guest's memory lies.
fn lies(memory: &MemoryStatus) -> String {
    match (memory.node, memory.spread) {
        (Some(node), _) => format!("node {node}"),
        (None, true) => "spread over nodes".into(),
        (None, false) => "node unknown".into(),
    }
}

/// What a connected guest negotiated, several lines, each indented by two.
pub(super) fn guest(vhost: &VhostStatus) -> String {
    let mut out = String::new();
    let mut list = |label: &str, words: &[String]| {
        if !words.is_empty() {
            out += &wrapped(&format!("  {label:<10}"), 12, words);
            out.push('\n');
        }
    };
    list("features", &vhost.features);
    list("protocol", &vhost.protocol_features);
    list("offloads", &vhost.delivered_offloads);
    if vhost.memory.regions > 0 {
        let regions = counted(vhost.memory.regions.into(), "region", "regions");
        list(
            "memory",
            &[format!(
                "{} in {regions}, {}",
                memory(vhost.memory.bytes),
                lies(&vhost.memory)
            )],
        );
    }
    let queues: Vec<String> = vhost
        .queues
        .iter()
        .map(|queue| {
            let worker = match queue.tx_worker {
                Some(worker) => format!("worker {worker}"),
                None => "no worker".into(),
            };
            let state = if queue.enabled { "" } else { ", not enabled" };
            let sizes = match (queue.rx_ring_size, queue.tx_ring_size) {
                (rx, tx) if rx == tx => format!("rings of {rx}"),
                (rx, tx) => format!("rings of {rx} rx, {tx} tx"),
            };
            format!("{}: {worker}, {sizes}{state};", queue.pair)
        })
        .collect();
    let of = format!("of {}", vhost.max_queue_pairs);
    match queues.len() {
        0 => list("queues", &["none".into(), of, "started".into()]),
        n => {
            let words: Vec<String> = [n.to_string(), format!("{of}:")]
                .into_iter()
                .chain(queues)
                .flat_map(|text| text.split(' ').map(str::to_owned).collect::<Vec<_>>())
                .collect();
            let mut words = words;
            if let Some(last) = words.last_mut() {
                last.truncate(last.trim_end_matches(';').len());
            }
            list("queues", &words);
        }
    }
    out
}

/// `10`, `trunk 10,20-29 native 1` or `-`.
pub(super) fn vlan(vlan: &Vlan) -> String {
    match vlan {
        Vlan::Untagged => "-".into(),
        Vlan::Access(id) => id.to_string(),
        Vlan::Trunk { allowed, native } => {
            let list: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            let native = native.map(|id| format!(" native {id}")).unwrap_or_default();
            format!("trunk {}{native}", list.join(","))
        }
    }
}

pub(super) fn busy_poll(busy_poll: BusyPoll) -> &'static str {
    match busy_poll {
        BusyPoll::Always => "always",
        BusyPoll::Adaptive => "adaptive",
        BusyPoll::Never => "never",
    }
}

pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}
