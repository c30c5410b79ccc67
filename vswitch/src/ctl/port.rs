//! `vswitchctl port`.

use vswitch_api::config::{self, AdminLink, DpdkPort, Port, PortKind, SocketMode, VhostUser, Vlan};
use vswitch_api::rpc::{
    Origin, PortAddParams, PortAdded, PortDetail, PortSetParams, PortStatus, QueueWake, RssStatus,
};

use super::cli::{LinkWish, Part, PortAddOptions, SetWhat, Switch};
use super::text::{Paint, grouped, scaled};
use super::{CtlError, input, show};

/// The port that the command line describes.
pub(super) fn to_add(options: &PortAddOptions) -> Result<PortAddParams, CtlError> {
    let mut port = match (&options.vhost_user, &options.dpdk, &options.yaml) {
        (Some(socket), None, None) => {
            let socket = std::path::absolute(socket)
                .map_err(|e| super::file_error("use the socket path", socket, e))?;
            Port::new(PortKind::VhostUser(vhost_user(
                VhostUser::new(socket),
                options,
            )))
        }
        (None, Some(device), None) => {
            let mut dpdk = DpdkPort::new(device);
            dpdk.queues = options.queues.unwrap_or(dpdk.queues);
            Port::new(PortKind::Dpdk(dpdk))
        }
        (None, None, Some(file)) => {
            let input = input(file)?;
            config::load_port(&input.text, &input.file).map_err(CtlError::Config)?
        }
        _ => {
            return Err(CtlError::Usage(
                "a port is attached to one thing; give one of --vhost-user, --dpdk, --yaml".into(),
            ));
        }
    };
    if let Some(bridge) = &options.bridge {
        port.bridge.clone_from(bridge);
    }
    match (options.access, options.trunk.as_slice()) {
        (Some(id), _) => port.vlan = Vlan::Access(id),
        (None, []) => {}
        (None, list) => {
            port.vlan = Vlan::Trunk {
                allowed: list.to_vec(),
                native: options.native,
            };
        }
    }
    port.learning &= !options.no_learning;
    if options.down {
        port.link = AdminLink::Down;
    }
    Ok(PortAddParams {
        name: options.name.clone(),
        port,
    })
}

fn vhost_user(mut port: VhostUser, options: &PortAddOptions) -> VhostUser {
    port.mode = match options.mode {
        Some(Part::Client) => SocketMode::Client,
        Some(Part::Server) | None => SocketMode::Server,
    };
    port.queue_pairs = options.queue_pairs.unwrap_or(port.queue_pairs);
    port.ring_size = options.ring_size.unwrap_or(port.ring_size);
    port.permissions = options.permissions.unwrap_or(port.permissions);
    port.mac = options.mac;
    port.owner.clone_from(&options.owner);
    port.offload.tso = !options.no_tso;
    port
}

/// The change that the command line describes.
pub(super) fn to_set(name: &str, what: &SetWhat) -> PortSetParams {
    let mut params = PortSetParams {
        name: name.into(),
        ..PortSetParams::default()
    };
    match what {
        SetWhat::Link { wish } => {
            params.link = Some(match wish {
                LinkWish::Up => AdminLink::Up,
                LinkWish::Down => AdminLink::Down,
            });
        }
        SetWhat::Checksum { wish } => params.checksum = Some(*wish == Switch::On),
        SetWhat::Tso { wish } => params.tso = Some(*wish == Switch::On),
    }
    params
}

/// What to say about a port that was changed.
pub(super) fn was_set(port: &PortStatus, what: &SetWhat, now: u64, paint: Paint) -> String {
    let name = &port.name;
    match (what, &port.vhost) {
        (SetWhat::Checksum { .. } | SetWhat::Tso { .. }, Some(vhost)) if vhost.peer_connected => {
            let delivered = match vhost.delivered_offloads.as_slice() {
                [] => "none".into(),
                list => list.join(" "),
            };
            format!(
                "port {name}: offloads delivered now: {delivered}\n\
                 What the guest is offered, and so what it sends, changes when it connects again.\n"
            )
        }
        (SetWhat::Checksum { .. } | SetWhat::Tso { .. }, _) => {
            format!("port {name}: offered like this to the next guest\n")
        }
        (SetWhat::Link { .. }, _) => {
            format!("port {name}: link {}", show::link(&port.link, now, paint))
        }
    }
}

/// What to say about a port that was added.
pub(super) fn added(added: &PortAdded) -> String {
    let port = &added.port;
    let mut out = format!("port {} is in bridge {}\n", port.name, port.bridge);
    if !added.survives_restart {
        out += "It ends with vswitchd; add it to the configuration file to keep it.\n";
    }
    if port.vhost.is_some() {
        out += &format!(
            "To attach a guest: vswitchctl port show {} --qemu (or --libvirt)\n",
            port.name
        );
    }
    out
}

/// Everything about one port.
pub(super) fn detail(detail: &PortDetail, now: u64, paint: Paint) -> String {
    let port = &detail.status;
    let mut lines: Vec<(&str, String)> = vec![
        ("port", paint.strong(&port.name)),
        ("link", show::link(&port.link, now, paint)),
    ];
    if let Some(reason) = &port.link.reason {
        lines.push(("", reason.clone()));
    }
    lines.push(("bridge", format!("{}, MTU {}", port.bridge, detail.mtu)));
    lines.push((
        "from",
        match detail.origin {
            Origin::File => "the configuration file".into(),
            Origin::Runtime => "`port add`; ends with vswitchd".into(),
        },
    ));
    lines.push((
        "vlan",
        match &port.vlan {
            Vlan::Untagged => "none; tagged frames are dropped".into(),
            Vlan::Access(id) => format!("access {id}"),
            trunk @ Vlan::Trunk { .. } => show::vlan(trunk),
        },
    ));
    if !port.learning {
        lines.push(("learning", "off".into()));
    }
    let (rates, totals) = (&port.rates, &port.totals);
    let flow = |pps: f64, bps: f64, frames: u64, drops: u64| {
        format!(
            "{}pps, {}bit/s; {} frames and {} drops in all",
            scaled(pps),
            scaled(bps),
            grouped(frames),
            grouped(drops)
        )
    };
    lines.push((
        "rx",
        flow(
            rates.rx_pps,
            rates.rx_bps,
            totals.rx_frames,
            totals.rx_drops,
        ),
    ));
    lines.push((
        "tx",
        flow(
            rates.tx_pps,
            rates.tx_bps,
            totals.tx_frames,
            totals.tx_drops,
        ),
    ));
    let mut out: String = lines
        .iter()
        .map(|(label, text)| format!("{label:<8}  {text}\n"))
        .collect();
    if let Some(vhost) = &port.vhost {
        out += &format!(
            "\nsocket {}, {}; connected {} so far\n",
            vhost.socket,
            match vhost.mode {
                SocketMode::Server => "the switch listens",
                SocketMode::Client => "the switch connects",
            },
            super::text::counted(vhost.connections, "time", "times"),
        );
        out += &super::text::wrapped("  offered   ", 12, &vhost.offered);
        out.push('\n');
        if vhost.peer_connected {
            out += &show::guest(vhost);
        } else {
            out += &format!(
                "  to attach a guest: vswitchctl port show {} --qemu (or --libvirt)\n",
                port.name
            );
        }
    }
    if let Some(dpdk) = &port.dpdk {
        out += &format!("\ndevice {}, driver {}\n", dpdk.device, dpdk.driver);
        if let Some(mac) = dpdk.mac {
            out += &format!("  address   {mac}\n");
        }
        if let Some(speed) = dpdk.speed_mbps {
            out += &format!("  speed     {}bit/s\n", scaled(f64::from(speed) * 1e6));
        }
        out += &format!(
            "  queues    {} to receive, {} to send\n",
            dpdk.queues, dpdk.tx_queues
        );
        if let Some(rss) = &dpdk.rss {
            out += &rss_lines(rss);
        }
        if !dpdk.wakes.is_empty() {
            out += &format!("  idle      {}\n", idle(&dpdk.wakes));
        }
        let nothing = ["none; software does everything".to_owned()];
        let offloads = match &dpdk.offloads[..] {
            [] => &nothing,
            names => names,
        };
        out += &super::text::wrapped("  offloads  ", 12, offloads);
        out.push('\n');
        out += &format!(
            "  device    {} missed for want of a buffer, {} errors, {} with a wrong checksum (delivered)\n",
            super::text::counted(dpdk.missed, "frame", "frames"),
            dpdk.errors,
            dpdk.bad_checksums,
        );
    }
    out
}
/// How a device spreads flows.
fn rss_lines(rss: &RssStatus) -> String {
    let mut out = super::text::wrapped("  rss       ", 12, &rss.hash);
    out.push('\n');
    if !rss.symmetric {
        out += "            by a key of the driver's, so the directions of a flow may part\n";
    }
    let buckets: Vec<String> = rss.buckets.iter().map(ToString::to_string).collect();
    out += &match &buckets[..] {
        [] => "  buckets   as the device has them\n".to_owned(),
        all => format!(
            "  buckets   {} by queue; {} moved, {} in doubt\n",
            all.join(" "),
            grouped(rss.moves),
            grouped(rss.late)
        ),
    };
    out
}

/// What wakes a worker, in words.
fn idle(wakes: &[QueueWake]) -> String {
    const TIMER: &str = "looked at every 250 us";
    let timed = |wake: &QueueWake| *wake == QueueWake::Timer;
    match wakes.iter().filter(|wake| timed(wake)).count() {
        0 => "woken by its interrupts".into(),
        n if n == wakes.len() => TIMER.into(),
        _ => {
            let queues = (0..).zip(wakes).filter(|(_, wake)| timed(wake));
            let queues: Vec<String> = queues.map(|(n, _): (u16, _)| n.to_string()).collect();
            format!(
                "woken by its interrupts, queues {} {TIMER}",
                queues.join(" ")
            )
        }
    }
}
