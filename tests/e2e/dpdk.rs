//! DPDK on either side: testpmd as a guest, and ports of the switch on devices of the host.

use std::time::{Duration, Instant};

use vswitch_tests::{Guest, Netns, Result, Role, RunDir, Switch, TestPmd, cases, check};

use crate::setup::{ADDRESSES, TWO_PORTS, UP_LIMIT, check_layouts, guest, mac, nic};

cases!("dpdk":
    testpmd_connects,
    testpmd_listens,
    testpmd_with_packed_rings,
    testpmd_with_two_queue_pairs_is_killed_and_comes_back,
    an_af_packet_port_reaches_a_namespace,
    a_tap_port_reaches_the_host,
);

const SOON: Duration = Duration::from_secs(60);

/// Two testpmds on one bridge: one sends to the other's address, and all that was delivered must have come.
fn through(dir: &RunDir, config: &str, role: Role, options: &[&str]) -> Result<()> {
    let switch = Switch::start(dir, config)?;
    let start = |n: u8| {
        TestPmd::start(
            dir,
            &format!("pmd{n}"),
            &dir.join(format!("vm{n}.sock")),
            role,
            mac(n),
            options,
        )
    };
    let (mut sender, mut receiver) = (start(1)?, start(2)?);
    switch.wait_up("vm1", UP_LIMIT)?;
    switch.wait_up("vm2", UP_LIMIT)?;
    check_layouts(&switch, [options.contains(&"packed_vq=1"); 2])?;

    receiver.run("set fwd rxonly")?;
    receiver.run("start")?;
    sender.run("set fwd txonly")?;
    sender.run(&format!("set eth-peer 0 {}", mac(2)))?;
    sender.run("set burst 8")?;
    sender.run("start")?;
    std::thread::sleep(Duration::from_secs(2));
    sender.run("stop")?;
    let sent = sender.stats()?.sent;
    check!(sent > 1000, "testpmd sent {sent} frames");
    // What testpmd has put into its ring may still wait there.
    switch.until("the switch to receive everything", SOON, || {
        let received = switch.counters()?.ports["vm1"].rx.frames;
        check!(
            received == sent,
            "testpmd sent {sent} frames, the switch received {received}"
        );
        Ok(())
    })?;
    let delivered = switch.accounted()?.ports["vm2"].tx.delivered;
    let (mut received, started) = (receiver.stats()?.received, Instant::now());
    while received < delivered && started.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(50));
        received = receiver.stats()?.received;
    }
    check!(
        received == delivered,
        "the switch delivered {delivered} frames, testpmd received {received}"
    );
    check!(
        received > 1000,
        "only {received} of {sent} frames got through"
    );
    Ok(())
}

fn testpmd_connects(dir: &RunDir) -> Result<()> {
    through(dir, TWO_PORTS, Role::Client, &[])
}

fn testpmd_with_packed_rings(dir: &RunDir) -> Result<()> {
    through(dir, TWO_PORTS, Role::Client, &["packed_vq=1"])
}

fn testpmd_listens(dir: &RunDir) -> Result<()> {
    through(
        dir,
        &TWO_PORTS.replace(".sock }", ".sock, mode: client }"),
        Role::Server,
        &[],
    )
}

fn testpmd_with_two_queue_pairs_is_killed_and_comes_back(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(
        dir,
        &TWO_PORTS.replace(".sock }", ".sock, queue-pairs: 2 }"),
    )?;
    for life in 1..=3 {
        let name = format!("pmd-{life}");
        let mut pmd = TestPmd::start(
            dir,
            &name,
            &dir.join("vm1.sock"),
            Role::Client,
            mac(1),
            &["queues=2"],
        )?;
        switch.wait_up("vm1", UP_LIMIT)?;
        check!(pmd.link_up()?, "testpmd sees its link down");
        pmd.run("set fwd txonly")?;
        pmd.run("start")?;
        std::thread::sleep(Duration::from_millis(300));
        pmd.kill();
        switch.until("the port to notice", UP_LIMIT, || {
            let link = switch.port("vm1")?.link;
            check!(
                link.state != vswitch_api::rpc::LinkState::Up,
                "the port of a killed testpmd is still up"
            );
            Ok(())
        })?;
    }
    switch.accounted().map(drop)
}

fn an_af_packet_port_reaches_a_namespace(dir: &RunDir) -> Result<()> {
    let netns = Netns::new("10.77.0.9/24")?;
    let port = format!(
        "  nic: {{ dpdk: {{ device: \"net_af_packet0,iface={}\" }} }}\n",
        netns.outside()
    );
    let switch = Switch::start(dir, &format!("{TWO_PORTS}{port}"))?;
    let mut vm1 = Guest::boot(dir, &guest(1, nic(dir, 1)))?;
    vm1.wait_for_answer("10.77.0.9", SOON)?;
    check!(
        vm1.ping("10.77.0.9", 20)? == 20,
        "pings from the guest to the namespace were lost"
    );
    // Guests need busybox, so it is there; a ping of the host's own may not be.
    netns.run(&["busybox", "ping", "-q", "-c", "5", "-W", "2", ADDRESSES[0]])?;

    // Large segments must be cut and checksums completed for the wire.
    let server = netns.prefix();
    let mut iperf3 = vswitch_tests::Process::start(
        dir,
        "iperf3",
        server[0],
        server[1..].iter().chain(&["iperf3", "-s"]),
    )?;
    netns.wait_listening(5201)?;
    for direction in ["", "-R"] {
        vm1.run(&format!(
            "iperf3 -c 10.77.0.9 -t 3 {direction} >/tmp/iperf 2>&1 || (cat /tmp/iperf; false)"
        ))?;
    }
    iperf3.kill();
    let counters = switch.accounted()?;
    check!(
        counters.ports["nic"].tx.delivered > 100,
        "little left by the NIC: {:?}",
        counters.ports["nic"]
    );
    Ok(())
}

fn a_tap_port_reaches_the_host(dir: &RunDir) -> Result<()> {
    vswitch_tests::machine::need_root("tap devices of DPDK")?;
    let tap = format!("vsd{}", std::process::id());
    let port = format!("  nic: {{ dpdk: {{ device: \"net_tap0,iface={tap}\" }} }}\n");
    let switch = Switch::start(dir, &format!("{TWO_PORTS}{port}"))?;
    let mut vm1 = Guest::boot(dir, &guest(1, nic(dir, 1)))?;
    let configured = std::process::Command::new("sh")
        .args([
            "-c",
            &format!("ip address add 10.77.0.9/24 dev {tap} && ip link set {tap} up"),
        ])
        .status();
    check!(
        configured.is_ok_and(|status| status.success()),
        "the tap device {tap} is not there"
    );
    vm1.wait_for_answer("10.77.0.9", SOON)?;
    check!(
        vm1.ping("10.77.0.9", 10)? == 10,
        "pings from the guest to the host were lost"
    );
    switch.accounted().map(drop)
}
