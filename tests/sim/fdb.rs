//! The forwarding database: what is learnt, what is forgotten, what stays, and who pays when it is full.

use std::time::{Duration, Instant};

use vswitch_api::config::Mac;
use vswitch_api::rpc::{FdbAddParams, FdbDelParams, FdbEntry, FdbFilter, methods};
use vswitch_tests::{Result, RunDir, cases, check, machine, skip};

use crate::setup::{BROADCAST, Net, SOON, THREE, mac, numbered};

cases!("fdb":
    configured_addresses_do_not_move,
    added_addresses_do_not_move_until_deleted,
    a_flush_forgets_what_was_learnt,
    a_port_that_does_not_learn,
    a_full_table_evicts_from_who_fills_it,
    silent_addresses_age,
    addresses_of_a_removed_port_are_gone,
);

const SERVER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xfe];

/// The address stays behind port 3, whatever guest 1 says.
fn stays_behind_3(net: &mut Net<'_>) -> Result<()> {
    net.reaches(2, &numbered(SERVER, mac(2), 1), &[3])?;
    for n in 0..20 {
        net.reaches(1, &numbered(BROADCAST, SERVER, n), &[2, 3])?;
    }
    net.reaches(2, &numbered(SERVER, mac(2), 2), &[3])?;
    let entry = net.known(SERVER)?;
    check!(
        entry
            .as_ref()
            .is_some_and(|e| e.is_static && e.port == "vm3" && e.idle_s.is_none()),
        "the static entry is shown as {entry:?}"
    );
    Ok(())
}

fn configured_addresses_do_not_move(dir: &RunDir) -> Result<()> {
    let config = THREE.replace(
        "br0: { }",
        "br0: { static-macs: [{ mac: \"52:54:00:00:00:fe\", port: vm3 }] }",
    );
    let mut net = Net::new(dir, &config, 3)?;
    stays_behind_3(&mut net)?;
    let removed = net
        .switch
        .call::<methods::FdbFlush>(&FdbFilter::default())?
        .removed;
    check!(removed <= 3, "a flush removed {removed} addresses");
    stays_behind_3(&mut net)?;
    net.close_books()
}

fn added_addresses_do_not_move_until_deleted(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    // Learnt elsewhere first: a person outranks traffic.
    net.reaches(1, &numbered(BROADCAST, SERVER, 0), &[2, 3])?;
    net.wait_known(SERVER, "vm1")?;
    net.switch.call::<methods::FdbAdd>(&FdbAddParams {
        mac: Mac(SERVER),
        vlan: None,
        port: "vm3".into(),
    })?;
    stays_behind_3(&mut net)?;
    let delete = FdbDelParams {
        bridge: None,
        mac: Mac(SERVER),
        vlan: None,
    };
    net.switch.call::<methods::FdbDel>(&delete)?;
    check!(net.known(SERVER)?.is_none(), "a deleted address is known");
    check!(
        net.switch.call::<methods::FdbDel>(&delete).is_err(),
        "an unknown address could be deleted"
    );
    net.reaches(2, &numbered(SERVER, mac(2), 3), &[1, 3])?;
    net.reaches(1, &numbered(BROADCAST, SERVER, 4), &[2, 3])?;
    net.wait_known(SERVER, "vm1")?;
    net.reaches(2, &numbered(SERVER, mac(2), 5), &[1])?;
    let group = FdbAddParams {
        mac: Mac(BROADCAST),
        vlan: None,
        port: "vm3".into(),
    };
    check!(
        net.switch.call::<methods::FdbAdd>(&group).is_err(),
        "a group address could be added"
    );
    net.close_books()
}

fn a_flush_forgets_what_was_learnt(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let one = FdbFilter {
        port: Some("vm2".into()),
        ..FdbFilter::default()
    };
    let removed = net.switch.call::<methods::FdbFlush>(&one)?.removed;
    check!(removed == 1, "port 2 had {removed} addresses");
    net.reaches(1, &numbered(mac(2), mac(1), 1), &[2, 3])?;
    net.reaches(1, &numbered(mac(3), mac(1), 2), &[3])?;
    let removed = net
        .switch
        .call::<methods::FdbFlush>(&FdbFilter::default())?
        .removed;
    check!(removed == 2, "{removed} addresses were left to flush");
    net.reaches(1, &numbered(mac(3), mac(1), 3), &[2, 3])?;
    net.close_books()
}

fn a_port_that_does_not_learn(dir: &RunDir) -> Result<()> {
    let config = THREE.replace("vm3: {", "vm3: { learning: false,");
    let mut net = Net::new(dir, &config, 3)?;
    for n in 0..10 {
        net.reaches(3, &numbered(BROADCAST, mac(3), n), &[1, 2])?;
        net.reaches(1, &numbered(mac(3), mac(1), n), &[2, 3])?;
    }
    // Whoever learns now has had its turn after everything above.
    net.wait_known(mac(1), "vm1")?;
    check!(
        net.known(mac(3))?.is_none(),
        "a port without learning has learnt"
    );
    net.close_books()
}

fn behind(net: &Net<'_>, port: &str) -> Result<Vec<FdbEntry>> {
    let filter = FdbFilter {
        port: Some(port.into()),
        ..FdbFilter::default()
    };
    Ok(net.switch.call::<methods::FdbShow>(&filter)?.entries)
}

fn a_full_table_evicts_from_who_fills_it(dir: &RunDir) -> Result<()> {
    let config = THREE.replace("br0: { }", "br0: { mac-table-limit: 64 }");
    let mut net = Net::new(dir, &config, 3)?;
    net.introduce()?;
    for n in 0..10 {
        let other = [0x52, 0x54, 0, 0, 1, n];
        net.reaches(2, &numbered(BROADCAST, other, 0), &[1, 3])?;
        net.wait_known(other, "vm2")?;
    }
    for n in 0..5000u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let invented = [0x52, 0x54, 0, 2, high, low];
        net.send(3, &numbered(mac(1), invented, n))?;
        net.received(1)?;
    }
    let last = [0x52, 0x54, 0, 2, 0x13, 0x87];
    net.wait_known(last, "vm3")?;
    let (at2, at3) = (behind(&net, "vm2")?.len(), behind(&net, "vm3")?.len());
    check!(
        at2 == 11 && (40..=53).contains(&at3),
        "after a flood of addresses from port 3 the table of 64 has {at2} of port 2 (of 11), {at3} of port 3"
    );
    let bridge = net.switch.show()?.bridges.remove(0);
    check!(
        bridge.mac_count <= 64 && bridge.mac_limit == 64,
        "the table of 64 has {} addresses",
        bridge.mac_count
    );
    for n in 0..10 {
        net.reaches(1, &numbered([0x52, 0x54, 0, 0, 1, n], mac(1), 7), &[2])?;
    }
    net.close_books()
}

fn silent_addresses_age(dir: &RunDir) -> Result<()> {
    if !machine::full() {
        skip!("ten seconds at least: run with VSWITCH_TEST_FULL=1");
    }
    let config = THREE.replace("br0: { }", "br0: { mac-ageing: 10 }");
    let mut net = Net::new(dir, &config, 3)?;
    net.introduce()?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(14) {
        net.reaches(
            1,
            &numbered(mac(2), mac(1), 1),
            if net_knows(&net, 2)? { &[2] } else { &[2, 3] },
        )?;
        std::thread::sleep(Duration::from_millis(500));
    }
    check!(
        net.known(mac(2))?.is_none() && net.known(mac(3))?.is_none(),
        "silent addresses are known after 14 s"
    );
    check!(
        net.known(mac(1))?.is_some(),
        "an address that speaks was forgotten"
    );
    net.close_books()
}

fn net_knows(net: &Net<'_>, n: u8) -> Result<bool> {
    Ok(net.known(mac(n))?.is_some())
}

fn addresses_of_a_removed_port_are_gone(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let name = "vm3".to_owned();
    net.switch
        .call::<methods::PortRemove>(&vswitch_api::rpc::PortName { name })?;
    check!(
        net.vm(3).wait_closed(SOON),
        "the guest of a removed port keeps its connection"
    );
    check!(
        net.known(mac(3))?.is_none(),
        "the address of a removed port is known"
    );
    net.guests.truncate(2);
    net.reaches(1, &numbered(mac(3), mac(1), 1), &[2])?;
    net.reaches(1, &numbered(mac(2), mac(1), 2), &[2])?;
    Ok(())
}
