//! What an operator reads when a configuration is wrong, word for word.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use vswitch_api::config::{Environment, load};

fn errors(text: &str) -> String {
    let environment = Environment {
        allowed_cores: Some(vec![0, 1, 2, 3]),
        runtime_dir: Some("/run".into()),
    };
    let errors = load(text, "switch.yaml", &environment).expect_err("must be refused");
    for problem in &errors.problems {
        let place = problem.place.as_ref().expect("has a place");
        assert!(
            place.line >= 1 && place.column >= 1 && place.length >= 1,
            "{problem:?}"
        );
        assert!(!problem.help.is_empty(), "{problem:?}");
    }
    format!("{}\n----\n{errors}\n", text.trim_end())
}

macro_rules! refused {
    ($($name:ident: $text:expr;)+) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(errors($text));
        }
    )+};
}

refused! {
    not_yaml: "bridges: { br0: {}\nports:\n  vm1: [\n";
    tab_indentation: "bridges:\n\tbr0: {}\n";
    unknown_keys: "brigdes: { br0: {} }\nworkers: [{ core: 1, busypoll: never }]\ncolour: red\n";
    types: "\
bridges:
  br0: { mtu: large, mac-ageing: -1, static-macs: 7 }
workers:
  - core: 1
    busy-poll: sometimes
  - 2
dpdk: { hugepages: yes, memory: 99999999999 }
log: debug
";
    missing: "\
bridges: { br0: {} }
ports:
  vm1:
  vm2: { vhost-user: { mode: server } }
  vm3: { dpdk: {} }
  vm4: { vlan: { access: 10 } }
  vm5: { vhost-user: { socket: /run/5.sock }, dpdk: { device: net_null0 } }
workers:
  - busy-poll: never
";
    a_typo_is_told_once: "\
bridges: { br0: {} }
ports:
  vm1: { vhost_user: { socket: /run/1.sock } }
  vm2: { vhost-user: { sokcet: /run/2.sock } }
  vm3: { vhost-user: { socket: [] } }
";
    vlans: "\
bridges: { br0: {} }
ports:
  vm1: { vhost-user: { socket: /run/1.sock }, vlan: { access: 0 } }
  vm2: { vhost-user: { socket: /run/2.sock }, vlan: { access: 4095 } }
  vm3: { vhost-user: { socket: /run/3.sock }, vlan: { trunk: [10, \"30-20\", x, 4096] } }
  vm4: { vhost-user: { socket: /run/4.sock }, vlan: { trunk: [] } }
  vm5: { vhost-user: { socket: /run/5.sock }, vlan: { access: 5, native: 6 } }
  vm6: { vhost-user: { socket: /run/6.sock }, vlan: { native: 6 } }
  vm7: { vhost-user: { socket: /run/7.sock }, vlan: { access: 5, trunk: [6] } }
  vm8: { vhost-user: { socket: /run/8.sock }, vlan: { trunk: [10-20, 15] } }
";
    sockets: "\
control: { socket: /run/vswitch/control.sock }
bridges: { br0: {} }
ports:
  vm1: { vhost-user: { socket: /run/vm.sock } }
  vm2:
    vhost-user:
      socket: /run//vm.sock
  vm3: { vhost-user: { socket: vm3.sock } }
  vm4: { vhost-user: { socket: /run/vswitch/control.sock } }
  vm5: { vhost-user: { socket: /run/12345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890 } }
  vm6: { vhost-user: { socket: /run/vswitch/ } }
";
    ports: "\
bridges: { br0: {}, br1: {} }
ports:
  vm1: { bridge: bro, vhost-user: { socket: /run/1.sock } }
  vm2: { vhost-user: { socket: /run/2.sock } }
  vm3: { bridge: other, vhost-user: { socket: /run/3.sock } }
  \"vm 4\": { bridge: br0, vhost-user: { socket: /run/4.sock, ring-size: 1000, queue-pairs: 0 } }
  vm5: { bridge: br0, vhost-user: { socket: /run/5.sock, mac: 52:54:00:00:00 } }
  vm6: { bridge: br0, vhost-user: { socket: /run/6.sock, mac: 01:00:5e:00:00:01, mode: listen } }
  vm7: { bridge: br0, vhost-user: { socket: /run/7.sock, mac: 52:54:00:00:00:07 } }
  vm8: { bridge: br0, vhost-user: { socket: /run/8.sock, mac: 52:54:00:00:00:07 } }
  vm9: { bridge: br0, vhost-user: { socket: /run/9.sock, permissions: 660x, owner: \"a b\" } }
  vm10: { bridge: br0, vhost-user: { socket: /run/10.sock, mode: client, owner: root } }
  vm11: { bridge: br0, vhost-user: { socket: /run/11.sock, offload: { checksum: false } } }
  nic0: { bridge: br0, dpdk: { device: \"net_tap0,iface=a\", queues: 100 } }
  nic1: { bridge: br0, dpdk: { device: \"net_tap0,iface=b\" } }
  nic2: { bridge: br0, dpdk: { device: \"\" } }
";
    coalescing: "\
bridges: { br0: {} }
ports:
  vm1: { vhost-user: { socket: /run/1.sock, coalesce: { policy: vpp, rx-usecs: 10 } } }
  vm2: { vhost-user: { socket: /run/2.sock, coalesce: { policy: static } } }
  vm3: { vhost-user: { socket: /run/3.sock, coalesce: { rx-frames: 0, cpu-percent: 101, max-delay-usecs: 20000 } } }
  vm4: { vhost-user: { socket: /run/4.sock, coalesce: { policy: spdk, tx-usecs: 5, tx-frames: 3, policy-x: 1 } } }
  vm5: { vhost-user: { socket: /run/5.sock, coalesce: { policy: adaptiv } } }
  vm6: { vhost-user: { socket: /run/6.sock, coalesce: { rx-usecs: 5000000000 } } }
";
    cores_and_ranges: "\
workers: [{ core: 1 }, { core: 1 }, { core: 64 }, { core: 1024 }, { core: 2, max-sleep-usecs: 1001 }, { core: 3, busy-poll: always, max-sleep-usecs: 50 }, { core: 4294967296 }]
bridges:
  br0: { mtu: 9217, mac-ageing: 5, mac-table-limit: 1 }
  br1: { mtu: 67 }
dpdk: { memory: 1, extra-args: [\"\"] }
";
    static_macs: "\
bridges:
  br0:
    static-macs:
      - { mac: 52:54:00:00:00:01, port: vm9 }
      - { mac: 01:00:5e:00:00:01, port: vm1 }
      - { mac: 52:54:00:00:00:02, vlan: 20, port: vm1 }
      - { mac: 52:54:00:00:00:02, vlan: 20, port: vm1 }
      - { mac: 52:54:00:00:00:03, port: vm1 }
      - mac: 52:54:00:00:00:04
  br1: { static-macs: [{ mac: 52:54:00:00:00:05, vlan: 10, port: vm1 }] }
ports:
  vm1: { bridge: br0, vhost-user: { socket: /run/1.sock }, vlan: { access: 10 } }
";
    double_keys: "\
bridges: { br0: {} }
ports:
  vm1: { vhost-user: { socket: /run/1.sock } }
  vm1: { vhost-user: { socket: /run/2.sock } }
bridges: { br1: {} }
";
    tags_documents_and_keys: "bridges: !mine { br0: {} }\n---\nports: {}\n";
    keys_are_words: "? [a, b]\n: c\n";
    alias_of_itself: "bridges: &b { br0: *b }\n";
    no_such_anchor: "bridges: *none\n";
    what_stands_behind_a_bad_item: "\
workers: [{ core: 1 }, 2, { core: 1 }, { core: 64 }, { busy-poll: never }, { core: 65 }]
bridges:
  br0:
    static-macs:
      - 52:54:00:00:00:01
      - { mac: 52:54:00:00:00:02, port: vm1 }
      - { mac: 52:54:00:00:00:02, port: vm1 }
      - { mac: 52:54:00:00:00:03, port: vm9 }
ports:
  vm1: { vhost-user: { socket: /run/1.sock } }
";
    a_list: "- a\n- b\n";
    nonsense_is_only_told_once_per_cause: "bridges: 5\nports:\n  vm1: { bridge: br0, vhost-user: { socket: /run/1.sock } }\n";
    long_line_of_json: &format!("{{\"bridges\": {{\"br0\": {{\"mtu\": {}1}}}}}}", " ".repeat(300));
    umlauts_and_tabs: "bridges: { \"brücke\": {} }\t# Ümlaut\nlog: { \"ü\": 1, level:\tdebgu }\n";
}

#[test]
fn keys_name_items_by_their_place_in_the_text() {
    let text = "workers: [2, { core: 1 }, 3, { core: 1 }]\n";
    let errors = load(text, "switch.yaml", &Environment::default()).expect_err("must be refused");
    let last = errors.problems.last().expect("there are some");
    assert_eq!(last.key, "workers.3.core", "{errors}");
    assert!(last.message.ends_with("number 2 of the list"), "{errors}");
}
