//! Two Linux guests through the switch: do they talk, and does everything they do to their NICs go well.

use std::time::Duration;

use vswitch_api::rpc::{NoParams, methods};
use vswitch_tests::{
    Error, Guest, GuestSpec, KernelBridge, Nic, Result, Role, RunDir, Switch, cases, check, iperf,
    machine,
};

use crate::setup::{ADDRESSES, TWO_PORTS, UP_LIMIT, guest, mac, nic, send_random, two_guests};

cases!("guests":
    ping_and_iperf,
    random_bytes_arrive_as_they_left_both_ways,
    qemu_may_listen,
    two_queue_pairs,
    flows_arrive_where_they_are_sent_from,
    a_guest_reboots,
    a_driver_is_reloaded,
    qemu_is_killed,
    tcp_beside_a_kernel_bridge,
);

const SOON: Duration = Duration::from_secs(60);

fn ping_and_iperf(dir: &RunDir) -> Result<()> {
    let (switch, mut vm1, mut vm2) = two_guests(dir)?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    check!(vm1.ping(ADDRESSES[1], 20)? == 20, "vm1's pings were lost");
    check!(vm2.ping(ADDRESSES[0], 20)? == 20, "vm2's pings were lost");
    for direction in ["", "-R"] {
        let tcp = iperf(&mut vm1, &mut vm2, ADDRESSES[1], 3, direction)?;
        // Not a rate: what is wrong with segments or checksums leaves next to nothing, however fast the machine is.
        check!(
            tcp.bits_per_second > 1e6,
            "TCP {direction} reached {:.1} Mbit/s",
            tcp.bits_per_second / 1e6
        );
        // A rate that even emulated guests keep up with: then nothing may be lost.
        let udp = iperf(
            &mut vm1,
            &mut vm2,
            ADDRESSES[1],
            3,
            &format!("-u -b 1M {direction}"),
        )?;
        check!(
            udp.bytes > 200_000 && udp.lost == 0,
            "UDP {direction}: {} bytes, {} datagrams lost",
            udp.bytes,
            udp.lost
        );
    }

    let counters = switch.accounted()?;
    check!(
        counters.ports["vm1"].rx.frames > 100,
        "the switch counts too little: {counters:?}"
    );
    let features = switch
        .port("vm1")?
        .vhost
        .map(|vhost| vhost.features)
        .unwrap_or_default();
    check!(
        !features.is_empty(),
        "`show` does not name what QEMU negotiated"
    );
    check!(
        switch.vswitchctl(&["show"])?.contains("vm2"),
        "`vswitchctl show` does not show vm2"
    );
    Ok(())
}

fn random_bytes_arrive_as_they_left_both_ways(dir: &RunDir) -> Result<()> {
    let (switch, mut vm1, mut vm2) = two_guests(dir)?;
    let mib = machine::rounds(16, 100);
    send_random(&mut vm1, &mut vm2, ADDRESSES[1], mib)?;
    send_random(&mut vm2, &mut vm1, ADDRESSES[0], mib)?;
    switch.accounted().map(drop)
}

fn qemu_may_listen(dir: &RunDir) -> Result<()> {
    let config = TWO_PORTS.replace("vm2.sock }", "vm2.sock, mode: client }");
    let switch = Switch::start(dir, &config)?;
    let listening = Nic::vhost_user(dir.join("vm2.sock"), Role::Server, mac(2));
    let [mut vm1, _vm2] = Guest::boot_all(dir, [&guest(1, nic(dir, 1)), &guest(2, listening)])?;
    switch.wait_up("vm2", UP_LIMIT)?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    check!(vm1.ping(ADDRESSES[1], 10)? == 10, "pings were lost");
    switch.accounted().map(drop)
}

fn two_queue_pairs(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(
        dir,
        &TWO_PORTS.replace(".sock }", ".sock, queue-pairs: 2 }"),
    )?;
    let specs = [1, 2].map(|n| guest(n, nic(dir, n).queue_pairs(2)).cpus(2));
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&specs[0], &specs[1]])?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    for vm in [&mut vm1, &mut vm2] {
        // Recent kernels take all queues by themselves; asking again is an error then.
        vm.run(
            "ethtool -L eth0 combined 2 || ethtool -l eth0 | tail -n 5 | grep -q 'Combined:.*2'",
        )?;
    }
    let up = switch.until("two enabled queue pairs", UP_LIMIT, || {
        let queues = switch
            .port("vm1")?
            .vhost
            .map(|vhost| vhost.queues)
            .unwrap_or_default();
        check!(
            queues.iter().filter(|queue| queue.enabled).count() == 2,
            "the queues are {queues:?}"
        );
        Ok(queues)
    });
    up?;
    let tcp = iperf(&mut vm1, &mut vm2, ADDRESSES[1], 3, "-P 4")?;
    check!(
        tcp.bytes > 1_000_000,
        "four TCP flows carried {} bytes in 3 s",
        tcp.bytes
    );
    let sent = vm1.run("grep 'virtio.-output' /proc/interrupts")?;
    check!(
        sent.lines().count() == 2,
        "the guest does not have two transmit queues:\n{sent}"
    );

    // One queue fewer, and one more again, while it runs.
    vm1.run("ethtool -L eth0 combined 1")?;
    check!(
        vm1.ping(ADDRESSES[1], 10)? == 10,
        "pings were lost with one queue pair"
    );
    vm1.run("ethtool -L eth0 combined 2")?;
    check!(
        vm1.ping(ADDRESSES[1], 10)? == 10,
        "pings were lost with two queue pairs again"
    );
    switch.accounted().map(drop)
}

/// Packets of the guest's first NIC by queue, as its driver counts them: received or sent.
fn by_queue(vm: &mut Guest, direction: &str) -> Result<Vec<u64>> {
    let text = vm.run("ethtool -S eth0")?;
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.trim().split_once(": ")?;
        let number = name
            .strip_prefix(direction)?
            .trim_start_matches("_queue_")
            .strip_suffix("_packets")?;
        number.parse::<usize>().ok()?;
        count.parse().ok()
    });
    let counts: Vec<u64> = counts.collect();
    check!(!counts.is_empty(), "no counters by queue:\n{text}");
    Ok(counts)
}

/// Pings from one processor of the guest, each address a flow; the queue that all went out by and came back to.
fn pinged_on(vm: &mut Guest, processor: u16, addresses: &[String]) -> Result<usize> {
    const PINGS: u64 = 60;
    // What a flow that is not yet where it belongs may take elsewhere, and what else is on the wire.
    const FEW: u64 = 8;
    let read = |vm: &mut Guest| Ok::<_, Error>([by_queue(vm, "tx")?, by_queue(vm, "rx")?]);
    let mut queues = Vec::new();
    for address in addresses {
        let before = read(vm)?;
        let output = vm.run(&format!(
            "taskset {} ping -q -c {PINGS} -i 0.02 {address} | grep -o '[0-9]* packets received'",
            1 << processor
        ))?;
        let after = read(vm)?;
        check!(
            output == format!("{PINGS} packets received"),
            "of {PINGS} pings: {output}"
        );
        let mut seen = [Vec::new(), Vec::new()];
        for ((seen, after), before) in seen.iter_mut().zip(after).zip(before) {
            *seen = after.iter().zip(before).map(|(a, b)| a - b).collect();
        }
        let [sent, received] = &seen;
        let queue = (0..sent.len())
            .max_by_key(|queue| sent[*queue])
            .unwrap_or(0);
        check!(
            sent[queue] + FEW >= PINGS && received.get(queue).is_some_and(|n| n + FEW >= PINGS),
            "{address} from processor {processor}: sent by queue {sent:?}, received by queue {received:?}"
        );
        queues.push(queue);
    }
    queues.dedup();
    check!(queues.len() == 1, "one processor sent on queues {queues:?}");
    Ok(queues[0])
}

/// A guest with two processors and two queue pairs sends from each on that one's pair; the answers come there.
fn flows_arrive_where_they_are_sent_from(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(
        dir,
        &TWO_PORTS.replace("vm1.sock }", "vm1.sock, queue-pairs: 2 }"),
    )?;
    let specs = [
        guest(1, nic(dir, 1).queue_pairs(2)).cpus(2),
        guest(2, nic(dir, 2)),
    ];
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&specs[0], &specs[1]])?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    let addresses: Vec<String> = (11..15).map(|n| format!("10.77.0.{n}")).collect();
    for address in &addresses {
        vm2.run(&format!("ip address add {address}/24 dev eth0"))?;
    }
    let combined = |vm: &mut Guest, count: u16| {
        vm.run(&format!(
            "ethtool -L eth0 combined {count} || ethtool -l eth0 | tail -n 5 | grep -q 'Combined:.*{count}'"
        ))
    };
    for _ in 0..2 {
        combined(&mut vm1, 2)?;
        let mut queues = Vec::new();
        for processor in [0, 1] {
            queues.push(pinged_on(&mut vm1, processor, &addresses)?);
        }
        queues.sort_unstable();
        check!(queues == [0, 1], "two processors sent on queues {queues:?}");
        let interrupts = vm1.run("grep 'virtio.-input' /proc/interrupts")?;
        check!(
            interrupts.lines().count() == 2
                && interrupts.lines().all(|line| {
                    let counts = line.split_whitespace().skip(1).take(2);
                    counts.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() > 100
                }),
            "not both input queues had interrupts:\n{interrupts}"
        );
        combined(&mut vm1, 1)?;
        for processor in [0, 1] {
            let queue = pinged_on(&mut vm1, processor, &addresses[..1])?;
            check!(queue == 0, "with one pair queue {queue} was used");
        }
    }
    let guests = switch.call::<methods::SteerShow>(&NoParams {})?.guests;
    let shown = guests.iter().find(|guest| guest.port == "vm1");
    check!(
        shown.is_some_and(|guest| {
            // From each processor half of the flows are not where their hash says, chance permitting.
            guest.max_queue_pairs == 2
                && guest.active == 1
                && guest.moved_completed + guest.moved_idle > 0
                && guest.pins_refused == 0
        }),
        "it is shown as {shown:?}"
    );
    switch.accounted().map(drop)
}

fn a_guest_reboots(dir: &RunDir) -> Result<()> {
    let (switch, mut vm1, mut vm2) = two_guests(dir)?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    for _ in 0..machine::rounds(1, 10) {
        vm2.reboot()?;
        switch.wait_up("vm2", UP_LIMIT)?;
        vm1.wait_for_answer(ADDRESSES[1], SOON)?;
        check!(
            vm2.ping(ADDRESSES[0], 10)? == 10,
            "pings were lost after the reboot"
        );
    }
    switch.accounted().map(drop)
}

fn a_driver_is_reloaded(dir: &RunDir) -> Result<()> {
    let (switch, mut vm1, mut vm2) = two_guests(dir)?;
    for _ in 0..machine::rounds(2, 20) {
        vm2.run("rmmod virtio_net && insmod /modules/*-virtio_net.ko")?;
        vm2.run(&format!(
            "ip address add {}/24 dev eth0 && ip link set eth0 up",
            ADDRESSES[1]
        ))?;
        vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    }
    switch.wait_up("vm2", UP_LIMIT)?;
    switch.accounted().map(drop)
}

fn qemu_is_killed(dir: &RunDir) -> Result<()> {
    let (switch, mut vm1, mut vm2) = two_guests(dir)?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    vm1.run(&format!(
        "ping -i 0.05 -c 1000 {} >/dev/null 2>&1 &",
        ADDRESSES[1]
    ))?;
    vm2.kill();
    switch.until("the port to notice", UP_LIMIT, || {
        let link = switch.port("vm2")?.link;
        check!(
            link.state != vswitch_api::rpc::LinkState::Up,
            "the port of a killed guest is still up"
        );
        Ok(())
    })?;
    drop(vm2);
    let mut vm2 = Guest::boot(dir, &guest(2, nic(dir, 2)))?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    check!(
        vm2.ping(ADDRESSES[0], 10)? == 10,
        "pings were lost after the guest came back"
    );
    switch.accounted().map(drop)
}

/// The same two guests, each with a NIC on the switch and one on a kernel bridge, take turns.
fn tcp_beside_a_kernel_bridge(dir: &RunDir) -> Result<()> {
    const AT_LEAST: f64 = 0.95;
    let mut bridge = KernelBridge::new()?;
    let switch = Switch::start(dir, TWO_PORTS)?;
    let spec = |n: u8, tap: String| -> GuestSpec {
        guest(n, nic(dir, n)).nic(Nic::tap(tap, mac(n + 10)), &format!("10.79.0.{n}/24"))
    };
    let specs = [spec(1, bridge.tap()?), spec(2, bridge.tap()?)];
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&specs[0], &specs[1]])?;
    let paths = [ADDRESSES[1], "10.79.0.2"];
    for address in paths {
        vm1.wait_for_answer(address, SOON)?;
    }
    let rounds = machine::rounds(5, 15);
    let mut rates: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds as usize {
        for turn in 0..2 {
            // Who goes first changes, so that neither gets all of what comes after something.
            let which = (round + turn) % 2;
            rates[which]
                .push(iperf(&mut vm1, &mut vm2, paths[which], 2, "")?.bits_per_second / 1e9);
        }
    }
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    let summary = |rates: &[f64]| {
        format!(
            "{:.2} Gbit/s ({:.2} to {:.2})",
            rates[rates.len() / 2],
            rates[0],
            rates[rates.len() - 1]
        )
    };
    let [ours, theirs] = [summary(&rates[0]), summary(&rates[1])];
    let middle = rounds as usize / 2;
    let share = rates[0][middle] / rates[1][middle];
    println!("\n  TCP: switch {ours}, kernel bridge {theirs}: {share:.2} of it");
    switch.accounted()?;
    // A shared machine measures what its neighbours do. A full run is one that somebody keeps quiet.
    if machine::full() && share < AT_LEAST {
        return Err(Error::Failed(format!(
            "TCP through the switch: {ours}, over a kernel bridge: {theirs}; that is {share:.2} of it, and {AT_LEAST} is wanted"
        )));
    }
    Ok(())
}
