//! The commands against a control socket that a thread of the test serves, and what they print.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use clap::Parser as _;
use serde_json::{Value, json};
use vswitch_api::config::{Environment, PortKind, VhostUser, load, plan};
use vswitch_api::rpc::{
    BridgeStatus, Counters, DaemonStatus, DpdkStatus, FdbEntry, FdbList, Kind, Link, LinkState,
    MemoryStatus, Notification, Origin, PortCounters, PortDetail, PortStatus, PortTotals, Protocol,
    QueueStatus, QueueWake, Rates, Request, Response, RpcError, RssStatus, RxCounters, Status,
    TxCounters, VhostStatus, WorkerQueue, WorkerStatus, code, to_line,
};

use super::*;

const NOW: u64 = 1_700_000_000;

fn names(list: &str) -> Vec<String> {
    list.split_whitespace().map(str::to_owned).collect()
}

fn port_status(name: &str) -> PortStatus {
    let vhost = VhostStatus {
        socket: format!("/run/vswitch/{name}.sock"),
        mode: config::SocketMode::Server,
        peer_connected: true,
        offered: names(
            "csum guest-csum guest-tso4 guest-tso6 host-tso4 host-tso6 mrg-rxbuf mq event-idx",
        ),
        features: names(
            "csum guest-csum guest-tso4 guest-tso6 guest-ecn host-tso4 host-tso6 host-ecn mrg-rxbuf status mq event-idx version-1",
        ),
        protocol_features: names("mq reply-ack backend-req configure-mem-slots"),
        delivered_offloads: names("checksum tso4 tso6"),
        memory: MemoryStatus {
            regions: 2,
            bytes: 1 << 30,
            node: Some(1),
            spread: false,
        },
        max_queue_pairs: 2,
        queues: vec![
            QueueStatus {
                pair: 0,
                enabled: true,
                tx_worker: Some(0),
                rx_ring_size: 1024,
                tx_ring_size: 1024,
            },
            QueueStatus {
                pair: 1,
                enabled: false,
                tx_worker: None,
                rx_ring_size: 1024,
                tx_ring_size: 256,
            },
        ],
        connections: 3,
    };
    PortStatus {
        name: name.into(),
        bridge: "br0".into(),
        origin: Origin::File,
        kind: Kind::VhostUser,
        vlan: config::Vlan::Untagged,
        learning: true,
        admin_up: true,
        link: Link {
            state: LinkState::Up,
            since: NOW - 185,
            reason: None,
        },
        vhost: Some(vhost),
        dpdk: None,
        rates: Rates {
            rx_pps: 1_250_000.0,
            rx_bps: 1.5e10,
            tx_pps: 12.0,
            tx_bps: 9_600.0,
        },
        totals: PortTotals {
            rx_frames: 1_234_567,
            rx_bytes: 99,
            rx_drops: 0,
            tx_frames: 40,
            tx_bytes: 2,
            tx_drops: 1200,
        },
    }
}

pub(super) fn detail() -> PortDetail {
    let mut config =
        config::Port::new(PortKind::VhostUser(VhostUser::new("/run/vswitch/vm1.sock")));
    config.bridge = "br0".into();
    PortDetail {
        status: port_status("vm1"),
        config,
        mtu: 1500,
        origin: Origin::File,
    }
}

fn example() -> Status {
    let mut vm2 = port_status("vm2");
    vm2.origin = Origin::Runtime;
    vm2.vlan = config::Vlan::Trunk {
        allowed: vec!["10".parse().unwrap(), "20-29".parse().unwrap()],
        native: config::VlanId::new(1),
    };
    vm2.link = Link {
        state: LinkState::Listening,
        since: NOW - 7200,
        reason: Some("nobody has connected to /run/vswitch/vm2.sock".into()),
    };
    vm2.rates = Rates::default();
    vm2.totals = PortTotals::default();
    if let Some(vhost) = &mut vm2.vhost {
        vhost.peer_connected = false;
    }
    let mut nic = port_status("uplink");
    nic.kind = Kind::Dpdk;
    nic.vhost = None;
    nic.dpdk = Some(DpdkStatus {
        device: "0000:03:00.0".into(),
        driver: "net_ixgbe".into(),
        mac: Some(config::Mac([0x02, 0, 0, 0, 0, 0xaa])),
        speed_mbps: Some(10_000),
        queues: 2,
        tx_queues: 4,
        rss: Some(RssStatus {
            hash: ["ipv4-tcp", "ipv6-tcp"].map(String::from).to_vec(),
            symmetric: true,
            buckets: vec![64, 64],
            moves: 3,
            late: 1,
        }),
        wakes: vec![QueueWake::Interrupt, QueueWake::Timer],
        offloads: ["rx-tcp-checksum", "tx-tcp-checksum", "tx-tso"]
            .map(String::from)
            .to_vec(),
        bad_checksums: 3,
        missed: 1,
        errors: 0,
    });
    Status {
        daemon: DaemonStatus {
            pid: 4711,
            version: "0.1.0".into(),
            uptime_s: 93_784,
            config_file: Some("/etc/vswitch/vswitch.yaml".into()),
        },
        workers: vec![
            WorkerStatus {
                index: 0,
                core: Some(1),
                busy_poll: config::BusyPoll::Adaptive,
                queues: vec![WorkerQueue {
                    port: "vm1".into(),
                    queue: 0,
                }],
                busy_share: 0.034,
                asleep: false,
            },
            WorkerStatus {
                index: 1,
                core: Some(2),
                busy_poll: config::BusyPoll::Never,
                queues: Vec::new(),
                busy_share: 0.0,
                asleep: true,
            },
        ],
        bridges: vec![BridgeStatus {
            name: "br0".into(),
            mtu: 1500,
            mac_count: 2,
            mac_limit: 8192,
            mac_ageing_s: 300,
            ports: names("uplink vm1 vm2"),
        }],
        ports: vec![nic, port_status("vm1"), vm2],
    }
}

fn counters_example() -> Counters {
    let one = |frames: u64, full: u64| PortCounters {
        rx: RxCounters {
            frames,
            bytes: frames * 60,
            switched: frames - 3,
            copies: frames - 3,
            drops: [("over-mtu".into(), 3), ("runt".into(), 0)].into(),
        },
        tx: TxCounters {
            offered: 500 + full,
            delivered: 500,
            bytes: 30_000,
            drops: [("ring-full".into(), full), ("not-connected".into(), 0)].into(),
        },
        interrupts: 77,
    };
    let mut counters = Counters::default();
    for (name, frames, full) in [("vm1", 1_000_003, 0), ("vm2", 503, 42)] {
        let counts = one(frames, full);
        counters.totals.add(&counts);
        counters.ports.insert(name.into(), counts);
    }
    counters
}

#[test]
fn what_people_read() {
    let plain = Paint::plain();
    expect("show.txt", &show::status(&example(), NOW, plain));
    let mut empty = example();
    empty.ports.clear();
    empty.daemon.config_file = None;
    assert!(show::status(&empty, NOW, plain).contains("no ports; add one with"));
    expect("port-show.txt", &port::detail(&detail(), NOW, plain));
    let mut nic = detail();
    nic.status = example().ports[0].clone();
    nic.status.learning = false;
    expect("port-show-dpdk.txt", &port::detail(&nic, NOW, plain));
    expect(
        "counters.txt",
        &counters::render(&counters_example(), false, plain),
    );
    expect(
        "counters-all.txt",
        &counters::render(&counters_example(), true, plain),
    );
    let entry = |vlan, idle_s: Option<u64>| FdbEntry {
        bridge: "br0".into(),
        vlan: config::VlanId::new(vlan),
        mac: config::Mac([0x52, 0x54, 0, 0, 0, vlan as u8]),
        port: "vm1".into(),
        is_static: idle_s.is_none(),
        idle_s,
    };
    let entries = vec![entry(0, Some(0)), entry(10, Some(75)), entry(11, None)];
    expect("fdb.txt", &fdb::render(&FdbList { entries }, plain));
}

#[test]
fn plans_say_what_they_mean() {
    let read = |text: &str| load(text, "x", &Environment::default()).unwrap();
    let old = read("bridges: { br0: {} }\n");
    let port = "ports: { vm1: { vhost-user: { socket: /run/1.sock } } }\n";
    let new = read(&format!("bridges: {{ br0: {{ mtu: 9000 }} }}\n{port}"));
    expect(
        "diff.txt",
        &configure::plan(&plan(&old, &new), "new.yaml", false, Paint::plain()),
    );
    let same = configure::plan(&plan(&old, &old), "new.yaml", false, Paint::plain());
    assert_eq!(same, "new.yaml is what runs; nothing to change\n");
}

/// A control socket that gives prepared answers, one a request; hands the requests back.
struct Server {
    _directory: tempfile::TempDir,
    path: PathBuf,
    thread: JoinHandle<Vec<Request>>,
}

impl Server {
    fn answering(answers: Vec<Result<Value, RpcError>>) -> Self {
        Self::scripted(answers, Vec::new())
    }

    fn scripted(answers: Vec<Result<Value, RpcError>>, then: Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let mut requests = Vec::new();
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut stream = stream;
            for answer in answers {
                let request = Request::parse(lines.next().unwrap().unwrap().as_bytes()).unwrap();
                let id = request.id.clone().unwrap();
                let outcome = answer.map_or_else(rpc::Outcome::Error, rpc::Outcome::Result);
                let response = Response {
                    jsonrpc: Protocol::V2,
                    id,
                    outcome,
                };
                stream.write_all(response.to_line().as_bytes()).unwrap();
                requests.push(request);
            }
            for line in then {
                stream.write_all(line.as_bytes()).unwrap();
            }
            requests
        });
        Self {
            _directory: directory,
            path,
            thread,
        }
    }

    /// Runs a command line against it; what became of it, and the requests.
    fn run(self, line: &str) -> (Result<ExitCode, CtlError>, Vec<Request>) {
        let socket = self.path.display().to_string();
        let words = ["vswitchctl", "--socket", &socket]
            .into_iter()
            .chain(line.split(' '));
        let outcome = execute(&Cli::try_parse_from(words).unwrap());
        (outcome, self.thread.join().unwrap())
    }
}

#[test]
fn requests_say_what_was_asked() {
    for (line, method, params) in [
        ("show", "show", json!({})),
        (
            "port set vm1 link down",
            "port.set",
            json!({"name": "vm1", "link": "down"}),
        ),
        (
            "port set vm1 tso off",
            "port.set",
            json!({"name": "vm1", "tso": false}),
        ),
        (
            "port set vm1 checksum on",
            "port.set",
            json!({"name": "vm1", "checksum": true}),
        ),
        (
            "fdb del 52:54:00:00:00:01 --vlan 7",
            "fdb.del",
            json!({"mac": "52:54:00:00:00:01", "vlan": 7}),
        ),
        ("workers", "workers", json!({})),
        ("steer rebalance", "steer.rebalance", json!({})),
        (
            "steer set vm1/2 1",
            "steer.set",
            json!({"port": "vm1", "queue": 2, "worker": 1}),
        ),
        (
            "steer share vm1/2 on",
            "steer.share",
            json!({ "port": "vm1", "queue": 2, "share": "on" }),
        ),
        (
            "steer set vm1 auto",
            "steer.set",
            json!({"port": "vm1", "queue": 0}),
        ),
        ("coalesce show vm1", "coalesce.show", json!({"port": "vm1"})),
        ("coalesce show --all", "coalesce.show", json!({})),
        ("fdb flush --port vm1", "fdb.flush", json!({"port": "vm1"})),
        ("counters vm1", "counters", json!({"port": "vm1"})),
    ] {
        let refusal = RpcError::new(code::NOT_FOUND, "there is no port \"vm1\"");
        let (outcome, requests) = Server::answering(vec![Err(refusal)]).run(line);
        assert_eq!(outcome.unwrap_err().to_string(), "there is no port \"vm1\"");
        assert_eq!(
            (requests[0].method.as_str(), &requests[0].params),
            (method, &params),
            "{line}"
        );
    }
}

#[test]
fn a_port_to_add_is_built_from_the_command_line() {
    let added = json!({"port": port_status("vm3"), "survives_restart": false});
    let line = "port add vm3 --vhost-user /run/3.sock --mode client --trunk 10,20-29 --native 1 --no-tso --down";
    let (outcome, requests) = Server::answering(vec![Ok(added.clone())]).run(line);
    outcome.unwrap();
    let params = requests[0].params::<methods::PortAdd>().unwrap();
    assert_eq!(params.port.link, config::AdminLink::Down);
    assert_eq!(show::vlan(&params.port.vlan), "trunk 10,20-29 native 1");
    let vhost_user = params.port.vhost_user().unwrap();
    assert_eq!(vhost_user.mode, config::SocketMode::Client);
    assert!(vhost_user.offload.checksum && !vhost_user.offload.tso);
    let said = port::added(&serde_json::from_value(added).unwrap());
    assert!(
        said.contains("ends with vswitchd") && said.contains("--qemu"),
        "{said}"
    );

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("port.yaml");
    std::fs::write(&file, "dpdk: { device: net_null0 }\nvlan: { access: 7 }\n").unwrap();
    let line = format!("port add nic --bridge br1 --yaml {}", file.display());
    let refusal = RpcError::new(code::EXISTS, "taken");
    let (_, requests) = Server::answering(vec![Err(refusal)]).run(&line);
    let params = requests[0].params::<methods::PortAdd>().unwrap();
    assert_eq!(params.port.dpdk().unwrap().device, "net_null0");
    assert_eq!(
        (params.port.bridge.as_str(), show::vlan(&params.port.vlan)),
        ("br1", "7".into())
    );

    std::fs::write(&file, "dpdk: { devise: net_null0 }\n").unwrap();
    let cli = Cli::try_parse_from([
        "vswitchctl",
        "port",
        "add",
        "x",
        "--yaml",
        &file.display().to_string(),
    ]);
    let error = execute(&cli.unwrap()).unwrap_err().to_string();
    assert!(
        error.contains(":1:9:") && error.contains("did you mean `device`?"),
        "{error}"
    );
}

#[test]
fn problems_of_a_configuration_arrive_whole() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bad.yaml");
    std::fs::write(&file, "bridges: { br0: { mtu: 1 } }\n").unwrap();
    let name = file.display().to_string();
    let problems = load(
        "bridges: { br0: { mtu: 1 } }\n",
        &name,
        &Environment::default(),
    )
    .unwrap_err();
    let refusal = RpcError::config(&problems);
    let (outcome, requests) =
        Server::answering(vec![Err(refusal)]).run(&format!("config apply {name}"));
    let error = outcome.unwrap_err();
    assert!(
        matches!(&error, CtlError::Config(found) if *found == problems),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains(&format!("{name}:1:24: mtu 1 is out of range")),
        "{error}"
    );
    assert!(
        requests[0].params["text"]
            .as_str()
            .unwrap()
            .contains("mtu: 1")
    );

    // Without a daemon the same is found here.
    let cli = [
        "vswitchctl",
        "--socket",
        "/nonexistent/sock",
        "config",
        "check",
        &name,
    ];
    let error = execute(&Cli::try_parse_from(cli).unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("use 68 to 9216 bytes"),
        "{error}"
    );
}

#[test]
fn a_daemon_that_is_not_there_is_said_so() {
    let run = |line: &str| {
        let words = std::iter::once("vswitchctl").chain(line.split(' '));
        execute(&Cli::try_parse_from(words).unwrap())
            .unwrap_err()
            .to_string()
    };
    let error = run("--socket /nonexistent/sock show");
    assert!(
        error.contains("no switch answers at /nonexistent/sock; start it"),
        "{error}"
    );
    let error = run("--socket /nonexistent/sock config check /nonexistent/file");
    assert!(error.contains("cannot read /nonexistent/file"), "{error}");
    let missing = [
        PathBuf::from("/nonexistent/a"),
        PathBuf::from("/nonexistent/b"),
    ];
    let error = Client::connect_default(&missing).err().unwrap().to_string();
    assert!(
        error.contains("/nonexistent/a or /nonexistent/b"),
        "{error}"
    );
}

#[test]
fn nonsense_from_the_socket_is_an_error() {
    for line in ["not json\n", "{}\n", "", "{\"jsonrpc\":\"2.0\""] {
        let (outcome, _) = Server::scripted(Vec::new(), vec![line.into()]).run("show");
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, CtlError::Nonsense { .. } | CtlError::Lost(_)),
            "{line:?}: {error}"
        );
    }
    let (outcome, _) = Server::answering(vec![Ok(json!({"version": 7}))]).run("version");
    assert!(matches!(outcome.unwrap_err(), CtlError::Nonsense { .. }));
}

#[test]
fn a_capture_is_written_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.pcapng");
    let news = |count: usize, end: bool| {
        let frame = json!({"port": "vm1", "dir": "drop", "reason": "ring-full", "ts_ns": 5,
            "orig_len": 60, "data": "//////////9SVAAAAAEIBg=="});
        let params = json!({"id": 9, "frames": vec![frame; count], "lost": 0, "end": end});
        to_line(&Notification {
            jsonrpc: Protocol::V2,
            method: "capture.frames".into(),
            params,
        })
    };
    let started = Ok(json!({"id": 9, "interfaces": ["vm1"]}));
    let server = Server::scripted(
        vec![started],
        vec![news(2, false), news(1, true), news(7, false)],
    );
    let line = format!(
        "capture --port vm1 --direction drop --count 3 -w {}",
        file.display()
    );
    let (outcome, requests) = server.run(&line);
    outcome.unwrap();
    let params = requests[0].params::<methods::CaptureStart>().unwrap();
    assert_eq!(
        (params.ports, params.count),
        (vec!["vm1".to_owned()], Some(3))
    );
    let written = std::fs::read(&file).unwrap();
    assert_eq!(
        written
            .windows(18)
            .filter(|w| w == b"dropped: ring-full")
            .count(),
        3
    );
}
