//! Where frames go: to one, to all, or to a named drop.

use vswitch_api::config::AdminLink;
use vswitch_api::rpc::{LinkState, PortSetParams, methods};
use vswitch_simguest::frames::{EXPERIMENTAL, Eth, ethernet};
use vswitch_tests::{Result, RunDir, cases, check};

use crate::setup::{BROADCAST, NOBODY, Net, SOON, THREE, builder, mac, numbered};

cases!("forwarding":
    unknown_floods_known_does_not,
    groups_are_flooded,
    frames_that_must_not_pass_are_dropped_by_name,
    the_mtu_is_the_bridges,
    jumbo_frames_pass_a_jumbo_bridge,
    an_address_that_moves_is_followed,
    a_port_taken_down_is_silent,
    bridges_are_apart,
    a_receiver_without_buffers_costs_only_its_own_frames,
);

fn unknown_floods_known_does_not(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.reaches(1, &numbered(NOBODY, mac(1), 1), &[2, 3])?;
    net.reaches(1, &numbered(mac(2), mac(1), 2), &[2, 3])?;
    net.wait_known(mac(1), "vm1")?;
    net.reaches(2, &numbered(mac(1), mac(2), 3), &[1])?;
    net.wait_known(mac(2), "vm2")?;
    for n in 10..500 {
        net.reaches(1, &numbered(mac(2), mac(1), n), &[2])?;
        net.reaches(2, &numbered(mac(1), mac(2), n), &[1])?;
    }
    net.close_books()
}

fn groups_are_flooded(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    net.reaches(3, &numbered(BROADCAST, mac(3), 1), &[1, 2])?;
    net.reaches(2, &numbered([0x01, 0, 0x5e, 0, 0, 1], mac(2), 2), &[1, 3])?;
    net.reaches(1, &numbered([0x33, 0x33, 0, 0, 0, 1], mac(1), 3), &[2, 3])?;
    net.close_books()
}

fn frames_that_must_not_pass_are_dropped_by_name(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    for (dst, src, reason) in [
        (mac(1), mac(1), "reflection"),
        (mac(1), NOBODY, "reflection"),
        ([0x01, 0x80, 0xc2, 0, 0, 0], mac(1), "link-local"),
        ([0x01, 0x80, 0xc2, 0, 0, 0x0e], mac(1), "link-local"),
        ([0x01, 0x80, 0xc2, 0, 0, 0x0f], mac(1), "link-local"),
        (mac(2), [0x53, 0, 0, 0, 0, 1], "invalid-source"),
        (mac(2), BROADCAST, "invalid-source"),
        (mac(2), [0; 6], "invalid-source"),
    ] {
        net.is_dropped(1, &numbered(dst, src, 1), reason)?;
    }
    let whole = numbered(mac(2), mac(1), 2);
    for len in 1..14 {
        net.is_dropped(1, &whole[..len], "runt")?;
    }
    // Just beyond the reserved range, and just long enough.
    net.reaches(
        1,
        &numbered([0x01, 0x80, 0xc2, 0, 0, 0x10], mac(1), 3),
        &[2],
    )?;
    net.reaches(1, &whole[..14], &[2])?;
    check!(
        net.known([0; 6])?.is_none() && net.known([0x53, 0, 0, 0, 0, 1])?.is_none(),
        "an impossible source was learnt"
    );
    // The third port has no guest: what is flooded to it has a name, too.
    let before = net.drops("vm3", "not-connected")?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 4), &[2])?;
    check!(
        net.drops("vm3", "not-connected")? == before + 1,
        "a frame for a port without guest is not counted"
    );
    net.close_books()
}

/// A frame whose payload after the Ethernet header has this many bytes.
fn sized(payload: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..payload).map(|i| (i * 7) as u8).collect();
    ethernet(&Eth::new(mac(2), mac(1)), EXPERIMENTAL, &body)
}

fn the_mtu_is_the_bridges(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    for fits in [0, 1, 46, 177, 178, 179, 1499, 1500] {
        net.reaches(1, &sized(fits), &[2])?;
    }
    for long in [1501, 1518, 9000, 60_000] {
        net.is_dropped(1, &sized(long), "over-mtu")?;
    }
    net.close_books()
}

fn jumbo_frames_pass_a_jumbo_bridge(dir: &RunDir) -> Result<()> {
    use vswitch_simguest::features::virtio::MRG_RXBUF;
    let config = THREE.replace("br0: { }", "br0: { mtu: 9000 }");
    let mut net = Net::with(dir, &config, 3, |n, builder| match n {
        3 => builder.without(MRG_RXBUF),
        _ => builder,
    })?;
    net.introduce()?;
    for fits in [1500, 2034, 2035, 2036, 4096, 8999, 9000] {
        net.reaches(1, &sized(fits), &[2])?;
    }
    net.is_dropped(1, &sized(9001), "over-mtu")?;
    // Guest 3 has buffers of 2048 bytes and cannot merge them.
    let mut to3 = sized(4000);
    to3[..6].copy_from_slice(&mac(3));
    net.reaches(1, &to3, &[])?;
    check!(
        net.drops("vm3", "buffer-too-small")? == 1,
        "a frame that fits no buffer is not counted as buffer-too-small"
    );
    net.reaches(1, &numbered(mac(3), mac(1), 9), &[3])?;
    net.close_books()
}

fn an_address_that_moves_is_followed(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let wanderer = [0x52, 0x54, 0, 0, 0, 0x77];
    for round in 0..10u32 {
        for at in 1..=3u8 {
            let others: Vec<u8> = (1..=3).filter(|n| *n != at).collect();
            net.reaches(at, &numbered(BROADCAST, wanderer, round), &others)?;
            net.wait_known(wanderer, &format!("vm{at}"))?;
            for from in others {
                net.reaches(from, &numbered(wanderer, mac(from), round), &[at])?;
            }
        }
    }
    net.close_books()
}

fn a_port_taken_down_is_silent(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let set = |net: &Net<'_>, link| {
        let params = PortSetParams {
            name: "vm3".into(),
            link: Some(link),
            ..PortSetParams::default()
        };
        net.switch.call::<methods::PortSet>(&params).map(drop)
    };
    set(&net, AdminLink::Down)?;
    check!(
        net.vm(3).wait_closed(SOON),
        "the guest of a port taken down keeps its connection"
    );
    check!(
        net.switch.port("vm3")?.link.state == LinkState::Down,
        "a port taken down is {:?}",
        net.switch.port("vm3")?.link
    );
    let refused = builder(dir, 3)
        .timeout(std::time::Duration::from_millis(300))
        .start();
    check!(
        refused.is_err(),
        "a guest can connect to a port that is down"
    );
    let before = net.drops("vm3", "port-down")?;
    net.reaches(1, &numbered(mac(3), mac(1), 1), &[])?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 2), &[2])?;
    let after = net.drops("vm3", "port-down")?;
    check!(
        after == before + 2,
        "{} of 2 frames for a port that is down are counted so",
        after - before
    );
    set(&net, AdminLink::Up)?;
    net.vm(3).reconnect()?;
    net.switch.wait_up("vm3", SOON)?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 3), &[2, 3])?;
    net.reaches(3, &numbered(mac(1), mac(3), 4), &[1])?;
    net.close_books()
}

fn bridges_are_apart(dir: &RunDir) -> Result<()> {
    let config = "\
bridges: { left: { }, right: { } }
ports:
  vm1: { bridge: left, vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { bridge: left, vhost-user: { socket: $RUN/vm2.sock } }
  vm3: { bridge: right, vhost-user: { socket: $RUN/vm3.sock } }
";
    let mut net = Net::new(dir, config, 3)?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 1), &[2])?;
    net.reaches(1, &numbered(mac(3), mac(1), 2), &[2])?;
    net.is_dropped(3, &numbered(mac(1), mac(3), 3), "no-output")?;
    net.wait_known(mac(1), "vm1")?;
    net.is_dropped(3, &numbered(mac(1), mac(3), 4), "no-output")?;
    net.close_books()
}

fn a_receiver_without_buffers_costs_only_its_own_frames(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    net.vm(3).queue(0)?.rx.freeze(true);
    let mut reached = 0;
    for n in 0..1000 {
        net.send(1, &numbered(BROADCAST, mac(1), n))?;
        let at2 = net.received(2)?;
        check!(
            at2.len() == 1,
            "broadcast {n} reached guest 2 {} times while guest 3 is stuck",
            at2.len()
        );
        reached += net.received(3)?.len() as u64;
    }
    let full = net.drops("vm3", "ring-full")?;
    check!(
        reached <= 256 && full == 1000 - reached,
        "the stuck guest got {reached} frames, {full} are counted as ring-full"
    );
    net.vm(3).queue(0)?.rx.freeze(false);
    net.reaches(1, &numbered(mac(3), mac(1), 1), &[3])?;
    net.close_books()
}
