//! Sessions that begin, pause, end and begin again, in both socket roles and with every habit of front-ends.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vswitch_simguest::driver::RingParts;
use vswitch_simguest::features::{protocol, virtio};
use vswitch_simguest::memory::Layout;
use vswitch_simguest::{Builder, Quirks, SimGuest};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine};

use crate::setup::{BROADCAST, Net, SOON, THREE, mac, numbered};

cases!("sessions":
    both_socket_roles,
    habits_of_front_ends,
    every_layout_of_memory,
    ring_sizes,
    what_was_negotiated_is_shown,
    stop_and_start,
    reboots,
    reconnects_keep_memory_and_rings,
    a_killed_guest_is_replaced_by_a_new_one,
    a_second_front_end_is_turned_away,
);

fn both_talk(net: &mut Net<'_>, number: u32) -> Result<()> {
    net.reaches(1, &numbered(BROADCAST, mac(1), number), &[2])?;
    net.reaches(2, &numbered(BROADCAST, mac(2), number), &[1])
}

fn both_socket_roles(dir: &RunDir) -> Result<()> {
    let config = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock, mode: client } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock } }
";
    // One that listens before the switch is there, one that comes after.
    let socket =
        vswitch_simguest::Endpoint::new(vswitch_simguest::Role::Listen(dir.join("vm1.sock")))?;
    let switch = Switch::start(dir, config)?;
    let mut first = SimGuest::listen_on(dir.join("vm1.sock"))
        .mac(mac(1))
        .start_at(socket)?;
    let mut second = SimGuest::connect_to(dir.join("vm2.sock"))
        .mac(mac(2))
        .start()?;
    for n in 0..machine::rounds(5, 100) {
        switch.wait_up("vm1", SOON)?;
        switch.wait_up("vm2", SOON)?;
        let frame = numbered(BROADCAST, mac(1), n);
        first.send(&frame)?;
        check!(
            second.recv(SOON)?.is_some_and(|f| f.bytes == frame),
            "nothing came from the guest that listens, round {n}"
        );
        second.send(&frame)?;
        check!(
            first.recv(SOON)?.is_some_and(|f| f.bytes == frame),
            "nothing came to the guest that listens, round {n}"
        );
        first.kill();
        first.reconnect()?;
        second.disconnect()?;
        second.reconnect()?;
    }
    switch.accounted().map(drop)
}

fn habits_of_front_ends(dir: &RunDir) -> Result<()> {
    let qemu = Quirks::default();
    let habits = [
        qemu,
        Quirks {
            early_enable: false,
            ..qemu
        },
        Quirks {
            kick_at_start: true,
            ..qemu
        },
        Quirks {
            early_enable: false,
            kick_at_start: true,
            ..qemu
        },
        Quirks {
            no_call_fd: true,
            ..qemu
        },
        Quirks {
            no_kick_fd: true,
            ..qemu
        },
    ];
    let protocols = [
        protocol::ALL,
        protocol::ALL & !protocol::CONFIGURE_MEM_SLOTS,
        protocol::ALL & !protocol::REPLY_ACK,
        0,
    ];
    let mut net = Net::new(dir, THREE, 1)?;
    for quirks in habits {
        for protocol in protocols {
            let with = |b: Builder| b.quirks(quirks).protocol(protocol);
            net.add(with)?;
            for n in 0..5 {
                both_talk(&mut net, n).map_err(|e| {
                    Error::Failed(format!("{quirks:?}, protocol {protocol:#x}: {e}"))
                })?;
            }
            net.vm(2).disconnect()?;
            net.guests.truncate(1);
        }
    }
    net.switch.accounted().map(drop)
}

fn every_layout_of_memory(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 1)?;
    for layout in [
        Layout::single(16 << 20),
        Layout::adjacent(2, 8 << 20),
        Layout::adjacent(8, 4 << 20),
        Layout::scattered(2, 8 << 20),
        Layout::scattered(8, 4 << 20),
    ] {
        for protocol in [
            protocol::ALL,
            protocol::ALL & !protocol::CONFIGURE_MEM_SLOTS,
        ] {
            net.add(|b| b.layout(layout.clone()).protocol(protocol))?;
            for n in 0..300 {
                both_talk(&mut net, n)?;
            }
            let memory = net.switch.port("vm2")?.vhost.map(|v| v.memory.regions);
            check!(
                memory == Some(layout.regions.len() as u32),
                "{} regions are shown as {memory:?}",
                layout.regions.len()
            );
            net.guests.truncate(1);
        }
    }
    net.switch.accounted().map(drop)
}

fn ring_sizes(dir: &RunDir) -> Result<()> {
    let config = THREE.replace("vm2.sock", "vm2.sock, ring-size: 32768");
    let mut net = Net::new(dir, &config, 1)?;
    let mut number = 0;
    for size in [16, 64, 256, 1024, 4096, 32_768] {
        net.add(|b| b.ring_size(size).rx_buffer(256))?;
        // Round the ring more than once, where that is quick.
        for _ in 0..u32::from(size.min(1024)) * 2 + 3 {
            number += 1;
            both_talk(&mut net, number)?;
        }
        net.guests.truncate(1);
    }
    net.switch.accounted().map(drop)
}

fn what_was_negotiated_is_shown(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, |n, b| match n {
        1 => b.with(virtio::OFFLOADS),
        _ => b.features(virtio::PLAIN),
    })?;
    both_talk(&mut net, 1)?;
    let rich = net
        .switch
        .port("vm1")?
        .vhost
        .map(|v| (v.features, v.delivered_offloads));
    let Some((features, offloads)) = rich else {
        return Err(Error::Failed("vm1 is shown without a guest".into()));
    };
    for name in ["CSUM", "GUEST_TSO4", "MRG_RXBUF", "EVENT_IDX", "VERSION_1"] {
        check!(
            features
                .iter()
                .any(|f| f.to_uppercase().replace('-', "_").contains(name)),
            "{name} was negotiated and is not shown: {features:?}"
        );
    }
    check!(
        ["checksum", "tso4", "tso6", "ecn"]
            .iter()
            .all(|o| offloads.iter().any(|s| s == o)),
        "the offloads are shown as {offloads:?}"
    );
    let plain = net.switch.port("vm2")?.vhost;
    check!(
        plain
            .as_ref()
            .is_some_and(|v| v.delivered_offloads.is_empty() && v.peer_connected),
        "a plain guest is shown as {plain:?}"
    );
    let shown = net.switch.vswitchctl(&["show"])?;
    check!(
        ["vm1", "vm2", "vm3", "br0"]
            .iter()
            .all(|name| shown.contains(name)),
        "`vswitchctl show` prints\n{shown}"
    );
    net.close_books()
}

/// Rings stopped (their bases told) and started again, as QEMU does for a paused guest. A memory table is sent
/// again then, slots are not.
fn stop_and_start(dir: &RunDir) -> Result<()> {
    for protocol in [
        protocol::ALL,
        protocol::ALL & !protocol::CONFIGURE_MEM_SLOTS,
    ] {
        let mut net = Net::with(dir, THREE, 2, |_, b| b.protocol(protocol))?;
        net.introduce()?;
        for n in 0..machine::rounds(20, 500) {
            for i in 0..n % 7 {
                net.reaches(1, &numbered(mac(2), mac(1), i), &[2])?;
            }
            let bases = net.vm(2).stop()?;
            let indices: Vec<_> = (0..2)
                .map(|ring| net.vm(2).ring(ring).map(RingParts::used_idx))
                .collect();
            check!(
                indices == bases.iter().map(|b| Some(*b as u16)).collect::<Vec<_>>(),
                "rings were stopped at {bases:?}, their used indices are {indices:?}"
            );
            let before = net.drops("vm2", "not-connected")?;
            net.reaches(1, &numbered(mac(2), mac(1), n), &[])?;
            check!(
                net.drops("vm2", "not-connected")? == before + 1,
                "a frame for a stopped guest is not counted"
            );
            // What it sends while it is stopped waits.
            let waiting = numbered(mac(1), mac(2), n);
            net.vm(2).send(&waiting)?;
            net.vm(2).resume()?;
            net.switch.wait_up("vm2", SOON)?;
            net.drain(2)?;
            let got: Vec<_> = net.received(1)?.into_iter().map(|f| f.bytes).collect();
            check!(
                got == [waiting],
                "{} frames came of the one that waited for the start",
                got.len()
            );
        }
        both_talk(&mut net, 1)?;
        net.close_books()?;
    }
    Ok(())
}

fn reboots(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    for n in 0..machine::rounds(20, 500) {
        for i in 0..300 {
            both_talk(&mut net, n * 1000 + i)?;
        }
        net.vm(1 + (n % 2) as u8).reboot()?;
        net.switch.wait_up("vm1", SOON)?;
        net.switch.wait_up("vm2", SOON)?;
    }
    both_talk(&mut net, 7)?;
    net.close_books()
}

fn reconnects_keep_memory_and_rings(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    for n in 0..machine::rounds(30, 1000) {
        for i in 0..n % 20 {
            both_talk(&mut net, n * 100 + i)?;
        }
        if n % 2 == 0 {
            net.vm(1).kill();
        } else {
            net.vm(1).disconnect()?;
        }
        net.vm(1).reconnect()?;
        net.switch.wait_up("vm1", SOON)?;
    }
    let connections = net.switch.port("vm1")?.vhost.map(|v| v.connections);
    check!(
        connections == Some(u64::from(machine::rounds(30, 1000)) + 1),
        "connections are counted as {connections:?}"
    );
    net.close_books()
}

fn a_killed_guest_is_replaced_by_a_new_one(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 1)?;
    for n in 0..machine::rounds(20, 500) {
        net.add(|b| {
            if n % 2 == 0 {
                b.features(virtio::PLAIN)
            } else {
                b.with(virtio::OFFLOADS)
            }
        })?;
        both_talk(&mut net, n)?;
        net.vm(2).kill();
        net.guests.truncate(1);
    }
    net.switch.accounted().map(drop)
}

fn a_second_front_end_is_turned_away(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    for n in 0..20 {
        let mut second = UnixStream::connect(dir.join("vm1.sock"))
            .map_err(Error::io("connect a second time"))?;
        second
            .set_read_timeout(Some(SOON))
            .map_err(Error::io("set a time limit"))?;
        let mut byte = [0];
        let end = second.read(&mut byte);
        check!(
            matches!(end, Ok(0))
                || end
                    .as_ref()
                    .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "a second front-end is not turned away: {end:?}"
        );
        both_talk(&mut net, n)?;
    }
    check!(
        net.vm(1).is_connected(),
        "the first front-end was turned away"
    );
    // The place is free once the first has left.
    net.vm(1).kill();
    std::thread::sleep(Duration::from_millis(1));
    net.vm(1).reconnect()?;
    net.switch.wait_up("vm1", SOON)?;
    both_talk(&mut net, 99)?;
    net.close_books()
}
