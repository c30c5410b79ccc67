//! VLANs between guests that know nothing of them and one that does.

use std::time::Duration;

use vswitch_tests::{Guest, Result, RunDir, Switch, cases, check};

use crate::setup::{guest, nic};

cases!("vlans": access_vlans_are_apart_and_a_trunk_sees_both, a_native_vlan_is_untagged_on_the_trunk);

const SOON: Duration = Duration::from_secs(60);

const CONFIG: &str = "\
bridges: { br0: { } }
ports:
  vm1: { vlan: { access: 10 }, vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { vlan: { access: 20 }, vhost-user: { socket: $RUN/vm2.sock } }
  vm3: { vlan: { trunk: [10, 20] }, vhost-user: { socket: $RUN/vm3.sock } }
";

fn three_guests(dir: &RunDir) -> Result<[Guest; 3]> {
    let specs = [1, 2, 3].map(|n| guest(n, nic(dir, n)));
    Guest::boot_all(dir, [&specs[0], &specs[1], &specs[2]])
}

fn tagged(vm: &mut Guest, vlan: u16, address: &str) -> Result<()> {
    vm.run(&format!(
        "ip link add link eth0 name v{vlan} type vlan id {vlan} && ip address add {address} dev v{vlan} && ip link set v{vlan} up"
    ))
    .map(drop)
}

fn access_vlans_are_apart_and_a_trunk_sees_both(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, CONFIG)?;
    let [mut vm1, mut vm2, mut vm3] = three_guests(dir)?;
    vm3.run("ip address flush dev eth0")?;
    vm1.run("ip address add 10.10.0.1/24 dev eth0")?;
    vm2.run("ip address add 10.20.0.2/24 dev eth0")?;
    tagged(&mut vm3, 10, "10.10.0.3/24")?;
    tagged(&mut vm3, 20, "10.20.0.3/24")?;

    vm1.wait_for_answer("10.10.0.3", SOON)?;
    vm2.wait_for_answer("10.20.0.3", SOON)?;
    check!(
        vm3.ping("10.10.0.1", 10)? == 10,
        "the trunk lost pings to VLAN 10"
    );
    check!(
        vm3.ping("10.20.0.2", 10)? == 10,
        "the trunk lost pings to VLAN 20"
    );
    // Same subnet (10.77.0.0/24), different VLANs.
    check!(
        vm1.ping_within("10.77.0.2", 5, 2)? == 0,
        "VLAN 20 hears VLAN 10"
    );
    check!(
        vm2.ping_within("10.77.0.1", 5, 2)? == 0,
        "VLAN 10 hears VLAN 20"
    );

    // A VLAN that the trunk does not carry, and a tag on an access port.
    tagged(&mut vm3, 30, "10.30.0.3/24")?;
    vm3.ping_within("10.30.0.1", 3, 2)?;
    tagged(&mut vm1, 20, "10.20.0.1/24")?;
    check!(
        vm1.ping_within("10.20.0.2", 3, 2)? == 0,
        "an access port got into another VLAN by tagging"
    );
    let counters = switch.accounted()?;
    for port in ["vm1", "vm3"] {
        let dropped = counters.ports[port]
            .rx
            .drops
            .get("vlan-not-allowed")
            .copied()
            .unwrap_or(0);
        check!(
            dropped > 0,
            "{port}: forbidden tags are not counted: {:?}",
            counters.ports[port].rx.drops
        );
    }
    Ok(())
}

fn a_native_vlan_is_untagged_on_the_trunk(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(
        dir,
        &CONFIG.replace("trunk: [10, 20]", "trunk: [20], native: 10"),
    )?;
    let [mut vm1, mut vm2, mut vm3] = three_guests(dir)?;
    vm2.run("ip address add 10.20.0.2/24 dev eth0")?;
    tagged(&mut vm3, 20, "10.20.0.3/24")?;
    vm1.wait_for_answer("10.77.0.3", SOON)?;
    check!(
        vm3.ping("10.77.0.1", 10)? == 10,
        "pings in the native VLAN were lost"
    );
    check!(
        vm3.ping("10.20.0.2", 10)? == 10,
        "pings in the tagged VLAN were lost"
    );
    check!(
        vm1.ping_within("10.77.0.2", 3, 2)? == 0,
        "the native VLAN leaks into VLAN 20"
    );
    switch.accounted().map(drop)
}
