//! VLANs, to the byte: who hears whom, and what tag a frame leaves with.

use vswitch_simguest::frames::Eth;
use vswitch_tests::{Result, RunDir, cases, check};

use crate::setup::{BROADCAST, Net, mac, numbered, numbered_on};

cases!("vlans":
    access_ports_of_a_vlan_talk_and_others_do_not_hear,
    a_trunk_carries_tags,
    a_native_vlan_has_no_tag,
    priority_tags_are_no_vlan,
    forbidden_tags_are_dropped,
    each_vlan_learns_for_itself,
    tags_do_not_count_for_the_mtu,
    second_tags_and_service_tags,
);

/// Untagged, access 10, access 10, access 20, trunk, trunk with a native VLAN.
const CONFIG: &str = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { vlan: { access: 10 }, vhost-user: { socket: $RUN/vm2.sock } }
  vm3: { vlan: { access: 10 }, vhost-user: { socket: $RUN/vm3.sock } }
  vm4: { vlan: { access: 20 }, vhost-user: { socket: $RUN/vm4.sock } }
  vm5: { vlan: { trunk: [10, 20, \"100-102\"] }, vhost-user: { socket: $RUN/vm5.sock } }
  vm6: { vlan: { trunk: [20, 101], native: 10 }, vhost-user: { socket: $RUN/vm6.sock } }
";

fn eth(from: u8) -> Eth {
    Eth::new(BROADCAST, mac(from))
}

fn access_ports_of_a_vlan_talk_and_others_do_not_hear(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    let plain = |from| numbered_on(&eth(from), 1);
    let tagged = |from, tci| numbered_on(&eth(from).tag(tci), 1);
    net.becomes(
        2,
        &plain(2),
        &[(3, &plain(2)), (5, &tagged(2, 10)), (6, &plain(2))],
    )?;
    net.becomes(4, &plain(4), &[(5, &tagged(4, 20)), (6, &tagged(4, 20))])?;
    net.is_dropped(1, &plain(1), "no-output")?;
    net.close_books()
}

fn a_trunk_carries_tags(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    let plain = numbered_on(&eth(5), 1);
    let tagged = |tci| numbered_on(&eth(5).tag(tci), 1);
    net.becomes(5, &tagged(10), &[(2, &plain), (3, &plain), (6, &plain)])?;
    net.becomes(5, &tagged(20), &[(4, &plain), (6, &tagged(20))])?;
    net.becomes(5, &tagged(101), &[(6, &tagged(101))])?;
    // Priority and DEI survive from trunk to trunk.
    net.becomes(
        5,
        &tagged(0xf000 | 20),
        &[(4, &plain), (6, &tagged(0xf000 | 20))],
    )?;
    net.is_dropped(5, &tagged(100), "no-output")?;
    net.close_books()
}

fn a_native_vlan_has_no_tag(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    let plain = numbered_on(&eth(6), 1);
    let tagged = |tci| numbered_on(&eth(6).tag(tci), 1);
    net.becomes(6, &plain, &[(2, &plain), (3, &plain), (5, &tagged(10))])?;
    net.becomes(6, &tagged(20), &[(4, &plain), (5, &tagged(20))])?;
    net.close_books()
}

fn priority_tags_are_no_vlan(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    let prio = |from| numbered_on(&eth(from).tag(0xa000), 1);
    let plain = |from| numbered_on(&eth(from), 1);
    let in10 = numbered_on(&eth(2).tag(0xa000 | 10), 1);
    // The priority survives where there is a tag to carry it.
    net.becomes(2, &prio(2), &[(3, &plain(2)), (5, &in10), (6, &plain(2))])?;
    let in10 = numbered_on(&eth(6).tag(0xa000 | 10), 1);
    net.becomes(6, &prio(6), &[(2, &plain(6)), (3, &plain(6)), (5, &in10)])?;
    net.is_dropped(5, &prio(5), "vlan-not-allowed")?;
    net.is_dropped(1, &prio(1), "no-output")?;
    net.close_books()
}

fn forbidden_tags_are_dropped(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    for (from, tci) in [
        (1, 10),
        (1, 1),
        (2, 10),
        (2, 20),
        (4, 10),
        (5, 30),
        (5, 99),
        (5, 103),
        (5, 4095),
        (6, 10),
        (6, 100),
        (6, 0xe000 | 102),
    ] {
        net.is_dropped(
            from,
            &numbered_on(&eth(from).tag(tci), 1),
            "vlan-not-allowed",
        )?;
    }
    net.is_dropped(5, &numbered_on(&eth(5), 1), "vlan-not-allowed")?;
    // A tag that is cut off is no header.
    net.is_dropped(5, &numbered_on(&eth(5).tag(10), 1)[..15], "runt")?;
    net.close_books()
}

fn each_vlan_learns_for_itself(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    let shared = [0x52, 0x54, 0, 0, 0, 0x99];
    let from = |dst, src| Eth::new(dst, src);
    // One address in VLAN 10 behind port 2, and in VLAN 20 behind port 4.
    net.send(2, &numbered_on(&from(BROADCAST, shared), 1))?;
    net.wait_known(shared, "vm2")?;
    net.send(4, &numbered_on(&from(BROADCAST, shared), 1))?;
    net.switch.until("both entries", crate::setup::SOON, || {
        let found = net
            .switch
            .call::<vswitch_api::rpc::methods::FdbShow>(&Default::default())?
            .entries;
        let places: Vec<_> = found
            .iter()
            .filter(|e| e.mac.0 == shared)
            .map(|e| {
                (
                    e.vlan.map(vswitch_api::config::VlanId::get),
                    e.port.as_str(),
                )
            })
            .collect();
        check!(
            places == [(Some(10), "vm2"), (Some(20), "vm4")],
            "the address is at {places:?}"
        );
        Ok(())
    })?;
    for n in 1..=6 {
        net.received(n)?;
    }
    let plain = numbered(shared, mac(5), 2);
    let tagged = |tci| numbered_on(&from(shared, mac(5)).tag(tci), 2);
    net.becomes(5, &tagged(10), &[(2, &plain)])?;
    net.becomes(5, &tagged(20), &[(4, &plain)])?;
    net.becomes(5, &tagged(101), &[(6, &tagged(101))])?;
    net.close_books()
}

fn tags_do_not_count_for_the_mtu(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    let long = |eth: &Eth, extra: usize| {
        let mut frame = numbered_on(eth, 1);
        frame.resize(14 + 4 * eth.tags.len() + 1500 + extra, 0x5a);
        frame
    };
    let tagged = Eth::new(mac(3), mac(5)).tag(10);
    let plain = Eth::new(mac(3), mac(5));
    net.becomes(
        5,
        &long(&tagged, 0),
        &[
            (2, &long(&plain, 0)),
            (3, &long(&plain, 0)),
            (6, &long(&plain, 0)),
        ],
    )?;
    net.is_dropped(5, &long(&tagged, 1), "over-mtu")?;
    let back = Eth::new(mac(5), mac(3));
    net.wait_known(mac(5), "vm5")?;
    net.becomes(3, &long(&back, 0), &[(5, &long(&back.clone().tag(10), 0))])?;
    net.is_dropped(3, &long(&back, 1), "over-mtu")?;
    net.close_books()
}

fn second_tags_and_service_tags(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, CONFIG, 6)?;
    // A second tag must not become the first one of a frame whose tag is taken off: the sender would choose its VLAN.
    let double = numbered_on(&eth(5).tag(10).tag(20), 1);
    net.becomes(5, &double, &[])?;
    for port in ["vm2", "vm3", "vm6"] {
        check!(
            net.drops(port, "double-tagged")? == 1,
            "{port}: a frame with two tags is not counted"
        );
    }
    // From trunk to trunk it is payload, and so is a service tag (802.1ad) everywhere.
    let double = numbered_on(&eth(5).tag(101).tag(20), 1);
    net.becomes(5, &double, &[(6, &double)])?;
    net.is_dropped(
        5,
        &numbered_on(&eth(5).tag(0).tag(20), 1),
        "vlan-not-allowed",
    )?;
    net.is_dropped(
        6,
        &numbered_on(&eth(6).tag(0).tag(20), 1),
        "vlan-not-allowed",
    )?;
    let mut service = numbered_on(&eth(2).tag(20), 1);
    service[12..14].copy_from_slice(&[0x88, 0xa8]);
    let mut carried = numbered_on(&eth(2).tag(10).tag(20), 1);
    carried[16..18].copy_from_slice(&[0x88, 0xa8]);
    net.becomes(2, &service, &[(3, &service), (5, &carried), (6, &service)])?;
    net.close_books()
}
