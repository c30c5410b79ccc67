//! What configurations mean, and that they survive being written back.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vswitch_api::config::{
    AdminLink, BusyPoll, Config, Environment, LogLevel, MemoryFiles, Port, PortKind,
    ReceiveSteering, SocketMode, VhostUser, Vlan, VlanId, add_port, limits, load,
};

fn environment() -> Environment {
    Environment {
        allowed_cores: Some(vec![0, 1, 5]),
        runtime_dir: Some("/run/user/7".into()),
    }
}

fn read(text: &str) -> Config {
    load(text, "test.yaml", &environment()).unwrap_or_else(|errors| panic!("{errors}"))
}

const FULL: &str = r#"
control: { socket: /run/vswitch/control.sock, owner: "root:vswitch", permissions: 0600 }
workers:
  - { core: 1, busy-poll: always }
  - { core: 0, max-sleep-usecs: 50 }
log: { level: debug }
dpdk: { memory: 128, hugepages: true, extra-args: ["--log-level=7"] }
bridges:
  br0:
    mtu: 9000
    mac-ageing: 0
    mac-table-limit: 100
    static-macs:
      - { mac: 52:54:00:00:00:01, vlan: 10, port: vm1 }
  br1:
ports:
  vm1:
    bridge: br0
    vhost-user:
      socket: /run/vswitch/vm1.sock
      mode: client
      queue-pairs: 4
      ring-size: 256
      mac: "52:54:00:00:00:01"
      permissions: "0666"
      offload: { checksum: true, tso: false }
      receive-steering: hashed
      memory-files: any
      mergeable: false
      indirect: false
      event-idx: false
      packed: false
    vlan: { trunk: [10, 20, "100-199"], native: 1 }
    learning: false
    link: down
  uplink:
    bridge: br1
    dpdk: { device: "net_af_packet0,iface=eth0", queues: 2 }
"#;

#[test]
fn everything_is_read() {
    let config = read(FULL);
    assert_eq!(config.control.permissions.bits(), 0o600);
    assert_eq!(
        config.control.owner.as_ref().unwrap().group(),
        Some("vswitch")
    );
    assert_eq!(config.workers[0].busy_poll, BusyPoll::Always);
    assert_eq!(
        (config.workers[1].core, config.workers[1].busy_poll),
        (0, BusyPoll::Adaptive)
    );
    let max_sleep = config.workers.iter().map(|w| w.max_sleep_usecs);
    assert_eq!(max_sleep.collect::<Vec<_>>(), [0, 50]);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!((config.dpdk.memory, config.dpdk.hugepages), (128, true));
    assert_eq!(
        (config.bridges["br0"].mtu, config.bridges["br1"].mtu),
        (9000, 1500)
    );
    let vm1 = &config.ports["vm1"];
    assert_eq!((vm1.learning, vm1.link), (false, AdminLink::Down));
    let vhost_user = vm1.vhost_user().unwrap();
    assert_eq!((vhost_user.queue_pairs, vhost_user.ring_size), (4, 256));
    assert_eq!(vhost_user.mode, SocketMode::Client);
    assert_eq!(vhost_user.receive_steering, ReceiveSteering::Hashed);
    assert_eq!(vhost_user.memory_files, MemoryFiles::Any);
    assert!(vhost_user.offload.checksum && !vhost_user.offload.tso);
    let Vlan::Trunk { allowed, native } = &vm1.vlan else {
        panic!("{:?}", vm1.vlan)
    };
    assert_eq!(*native, VlanId::new(1));
    assert!(allowed[2].contains(VlanId::new(150).unwrap()));
    assert_eq!(config.ports["uplink"].dpdk().unwrap().queues, 2);
}

#[test]
fn what_is_not_written_has_its_default() {
    let config =
        read("bridges: { br0: }\nports: { vm1: { vhost-user: { socket: /run/vm1.sock } } }\n");
    assert_eq!(
        config.control.socket,
        Path::new("/run/user/7/vswitch/control.sock")
    );
    assert_eq!(config.control.permissions.bits(), 0o660);
    assert_eq!((config.workers.len(), config.workers[0].core), (1, 5));
    assert_eq!(config.bridges["br0"].mac_ageing, 300);
    let mut expected = Port::new(PortKind::VhostUser(VhostUser::new("/run/vm1.sock")));
    expected.bridge = "br0".into();
    assert_eq!(config.ports["vm1"], expected);
}

#[test]
fn nothing_is_a_configuration() {
    for text in [
        "",
        "\n",
        "# only a comment\n",
        "---\n",
        "ports:\nbridges:\nworkers:\n",
        "{}",
    ] {
        let config = read(text);
        assert!(
            config.ports.is_empty() && config.bridges.is_empty(),
            "{text:?}"
        );
    }
    let default = Config::default_config(&environment());
    assert_eq!(default.only_bridge(), Some("br0"));
    assert_eq!(read(&default.to_yaml().unwrap()), default);
    assert!(
        load("", "x", &Environment::default())
            .unwrap()
            .workers
            .is_empty()
    );
}

#[test]
fn written_back_it_is_the_same() {
    let config = read(FULL);
    let yaml = config.to_yaml().unwrap();
    assert_eq!(read(&yaml), config);
    insta::assert_snapshot!(yaml);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(read(&json), config, "JSON is YAML");
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
}

#[test]
fn aliases_and_merging() {
    let config = read(
        "bridges: { br0: &b { mtu: 9000 }, br1: *b, br2: { <<: *b, mac-ageing: 60 } }\n\
         ports:\n\
         \x20 vm1: &p { bridge: br0, learning: false, vhost-user: { socket: /run/1.sock } }\n\
         \x20 vm2: { <<: *p, vhost-user: { socket: /run/2.sock } }\n",
    );
    assert_eq!(config.bridges["br1"].mtu, 9000);
    assert_eq!(
        (config.bridges["br2"].mtu, config.bridges["br2"].mac_ageing),
        (9000, 60)
    );
    assert!(!config.ports["vm2"].learning);
    assert_eq!(
        config.ports["vm2"].vhost_user().unwrap().socket,
        Path::new("/run/2.sock")
    );
}

#[test]
fn limits_hold() {
    let ports = |n: usize| {
        let port = |i| format!("  vm{i}: {{ vhost-user: {{ socket: /run/{i}.sock }} }}\n");
        format!(
            "bridges: {{ br0: {{}} }}\nports:\n{}",
            (0..n).map(port).collect::<String>()
        )
    };
    assert_eq!(read(&ports(limits::PORTS)).ports.len(), limits::PORTS);
    let refused = |text: &str| {
        load(text, "x", &Environment::default())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&ports(limits::PORTS + 1)).contains("at most 1024"));
    let bridges: String = (0..65).map(|i| format!("  br{i}: {{}}\n")).collect();
    assert!(refused(&format!("bridges:\n{bridges}")).contains("at most 64"));
    let workers: String = (0..65).map(|i| format!("  - core: {i}\n")).collect();
    assert!(refused(&format!("workers:\n{workers}")).contains("at most 64"));
    assert!(refused(&" ".repeat(limits::TEXT + 1)).contains("the limit is 1048576"));
    assert!(refused(&"[".repeat(10_000)).contains("recursion limit"));
    assert!(refused(&"x: {".repeat(100)).contains("64 levels of nesting"));
}

#[test]
fn problems_do_not_grow_without_end() {
    let many: String = (0..5000).map(|i| format!("key{i}: 1\n")).collect();
    assert_eq!(
        load(&many, "x", &Environment::default()).unwrap_err().len(),
        50
    );
}

#[test]
fn alias_bombs_fizzle() {
    let mut text = String::from("a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n");
    for i in 1..30 {
        let before = format!("*a{}, ", i - 1).repeat(9);
        text += &format!("a{i}: &a{i} [{before}]\n");
    }
    let big: String = format!("&t [{}]", "10, ".repeat(100_000));
    let mut trunks =
        format!("ports:\n  p0: {{ vlan: {{ trunk: {big} }}, dpdk: {{ device: d }} }}\n");
    for i in 1..1000 {
        trunks += &format!("  p{i}: {{ vlan: {{ trunk: *t }}, dpdk: {{ device: d }} }}\n");
    }
    for text in [text, trunks] {
        let start = Instant::now();
        assert!(load(&text, "x", &Environment::default()).is_err());
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_port_is_judged_together_with_the_others() {
    let config = read(FULL);
    let port = |socket: &str| Port::new(PortKind::VhostUser(VhostUser::new(socket)));
    let taken = add_port(
        &config,
        "vm2",
        port("/run/vswitch/vm1.sock"),
        &environment(),
    );
    insta::assert_snapshot!(taken.unwrap_err().to_string());
    let mut good = port("/run/vswitch/vm2.sock");
    good.bridge = "br0".into();
    let with = add_port(&config, "vm2", good, &environment()).unwrap();
    assert_eq!(with.ports.len(), config.ports.len() + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the file: an answer, never a panic, and every place is in the text.
    #[test]
    fn any_text_is_answered(text in any_text()) {
        if let Err(errors) = load(&text, "x", &environment()) {
            prop_assert!(!errors.is_empty());
            for problem in &errors.problems {
                let place = problem.place.as_ref().unwrap();
                prop_assert!(place.line as usize <= text.split(['\n', '\r']).count());
                prop_assert!(place.column as usize <= place.text.chars().count() + 1);
            }
            prop_assert!(!errors.to_string().is_empty());
        }
    }

    /// One byte changed in a good file.
    #[test]
    fn a_slip_of_the_finger_is_answered(at in 0..FULL.len(), byte in 0x20_u8..0x7f) {
        let mut text = FULL.as_bytes().to_vec();
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Ok(config) = load(&text, "x", &environment()) {
            prop_assert_eq!(read(&config.to_yaml().unwrap()), config);
        }
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "bridges",
        "ports",
        "br0",
        "vm1",
        "vhost-user",
        "socket",
        "/run/a",
        "vlan",
        "trunk",
        ": ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "\"",
        "'",
        "&a ",
        "*a",
        "<<",
        "!t ",
        "|",
        ">",
        "#",
        "?",
        "---\n",
        "10",
        "-1",
        "null",
        "\t",
        "ü",
        "\u{feff}",
        "%YAML 1.2",
        "\r",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}
