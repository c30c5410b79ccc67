//! Several queue pairs: flows stay where they are, all pairs are used, order is kept.

use std::collections::HashMap;

use vswitch_simguest::SimGuest;
use vswitch_simguest::driver::Shape;
use vswitch_simguest::features::virtio::MQ;
use vswitch_simguest::frames::{Eth, Ip, Tcp, tcp_partial, udp};
use vswitch_tests::{Result, RunDir, Switch, cases, check};

use crate::setup::{Net, SOON, THREE, mac, numbered};

cases!("multiqueue":
    flows_stay_on_their_pair_and_in_order,
    every_transmit_ring_is_served,
    the_number_of_pairs_changes_between_frames,
    more_pairs_than_the_port_has,
    a_restart_keeps_all_pairs,
);

fn config() -> String {
    THREE.replace("vm2.sock", "vm2.sock, queue-pairs: 4")
}

fn net(dir: &RunDir) -> Result<Net<'_>> {
    let mut net = Net::with(
        dir,
        &config(),
        3,
        |n, b| if n == 2 { b.pairs(4) } else { b },
    )?;
    net.introduce()?;
    Ok(net)
}

/// Frame `number` of a flow.
fn flow(flow: u16, number: u32) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(20, 0);
    let host = (flow % 7) as u8 + 1;
    udp(
        &Eth::new(mac(2), mac(1)),
        &Ip::new([10, 0, 0, host], [10, 0, 0, 200]),
        1000 + flow,
        2000,
        &payload,
    )
}

/// Flow and number of a received frame.
fn read(frame: &[u8]) -> Option<(u16, u32)> {
    let port = u16::from_be_bytes(*frame.get(34..)?.first_chunk()?);
    let number = u32::from_be_bytes(*frame.get(42..)?.first_chunk()?);
    Some((port - 1000, number))
}

/// Rounds after which flows are where they belong, at the latest: they go there as the guest takes what it was given.
const SETTLING: u32 = 50;

/// Sends frames of 64 flows until none of them changes its pair, and then `rounds` more, in which none may; returns each
/// flow's pair, and checks the order of all.
fn spread(net: &mut Net<'_>, rounds: u32) -> Result<HashMap<u16, u16>> {
    let mut pairs = HashMap::new();
    let (mut number, mut steady) = (0, 0);
    while steady < rounds {
        let now = round(net, number)?;
        if now == pairs {
            steady += 1;
        } else {
            check!(
                number < SETTLING,
                "flows change their pairs after {number} rounds"
            );
            (pairs, steady) = (now, 0);
        }
        number += 1;
    }
    Ok(pairs)
}

/// Sends a frame of each of 64 flows, the one with this number; returns the pair that each came on.
fn round(net: &mut Net<'_>, number: u32) -> Result<HashMap<u16, u16>> {
    for id in 0..64 {
        net.vm(1).send(&flow(id, number))?;
    }
    net.drain(1)?;
    let frames = net.received(2)?;
    check!(frames.len() == 64, "{} of 64 frames came", frames.len());
    let mut pairs = HashMap::new();
    for frame in frames {
        let Some((id, came)) = read(&frame.bytes) else {
            return Err(vswitch_tests::Error::Failed("a short frame came".into()));
        };
        check!(
            came == number,
            "flow {id}: frame {came} came instead of {number}"
        );
        pairs.insert(id, frame.pair);
    }
    Ok(pairs)
}

fn used(pairs: &HashMap<u16, u16>) -> Vec<u16> {
    let mut used: Vec<u16> = pairs.values().copied().collect();
    used.sort_unstable();
    used.dedup();
    used
}

fn flows_stay_on_their_pair_and_in_order(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    let pairs = spread(&mut net, 100)?;
    check!(
        used(&pairs) == [0, 1, 2, 3],
        "only pairs {:?} are used",
        used(&pairs)
    );
    for pair in 0..4 {
        let flows = pairs.values().filter(|p| **p == pair).count();
        check!(
            (4..=32).contains(&flows),
            "pair {pair} got {flows} of 64 flows"
        );
    }
    net.close_books()
}

fn every_transmit_ring_is_served(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    for round in 0..500 {
        for pair in 0..4u16 {
            let frame = numbered(mac(1), mac(2), round * 4 + u32::from(pair));
            net.vm(2).queue(pair)?.tx.send(&frame)?;
        }
        net.drain(2)?;
        let mut got: Vec<_> = net.received(1)?.into_iter().map(|f| f.bytes).collect();
        got.sort();
        let want: Vec<_> = (0..4)
            .map(|n| numbered(mac(1), mac(2), round * 4 + n))
            .collect();
        check!(
            got == want,
            "{} of 4 frames came in round {round}",
            got.len()
        );
    }
    net.close_books()
}

fn the_number_of_pairs_changes_between_frames(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    for count in [4, 1, 2, 3, 4, 2, 1, 4] {
        net.vm(2).enable_pairs(count)?;
        let pairs = spread(&mut net, 3)?;
        let want: Vec<u16> = (0..count).collect();
        check!(
            used(&pairs) == want,
            "with {count} pairs enabled {:?} are used",
            used(&pairs)
        );
        wait_enabled(&net, count)?;
    }
    net.close_books()
}

/// Waits until that many pairs of guest 2 are shown as enabled.
fn wait_enabled(net: &Net<'_>, count: u16) -> Result<()> {
    net.switch.until("queue pairs to be enabled", SOON, || {
        let shown = net.switch.port("vm2")?.vhost.map(|v| v.queues);
        let enabled = shown.iter().flatten().filter(|q| q.enabled).count();
        check!(
            enabled == usize::from(count),
            "{count} pairs are enabled, {enabled} are shown"
        );
        Ok(())
    })
}

fn more_pairs_than_the_port_has(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, &config())?;
    let five = SimGuest::connect_to(dir.join("vm2.sock")).pairs(5).start();
    check!(five.is_err(), "a guest got five of four queue pairs");
    let one = SimGuest::connect_to(dir.join("vm1.sock")).start()?;
    check!(
        one.negotiated().offer.virtio & MQ == 0
            && one.negotiated().offer.queue_pairs.unwrap_or(1) == 1,
        "a port with one queue pair offers {:?}",
        one.negotiated().offer
    );
    // Fewer than the port has is fine.
    let two = SimGuest::connect_to(dir.join("vm2.sock"))
        .pairs(2)
        .start()?;
    let status = switch.wait_up("vm2", SOON)?;
    check!(
        two.is_connected() && status.vhost.is_some_and(|v| v.queues.len() == 2),
        "a guest with two of four queue pairs is not shown so"
    );
    Ok(())
}

fn a_restart_keeps_all_pairs(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    for _ in 0..5 {
        net.vm(2).kill();
        net.vm(2).reconnect()?;
        wait_enabled(&net, 4)?;
        let pairs = spread(&mut net, 3)?;
        check!(
            used(&pairs) == [0, 1, 2, 3],
            "after a reconnect only {:?} are used",
            used(&pairs)
        );
    }
    // Partial checksums are no reason to steer elsewhere: ports are in the same place.
    let (header, frame) = tcp_partial(
        &Eth::new(mac(2), mac(1)),
        &Ip::new([10, 0, 0, 1], [10, 0, 0, 2]),
        &Tcp::default(),
        &[1; 100],
    );
    for _ in 0..2 {
        net.vm(1).send_shaped(&header, &frame, &Shape::joined())?;
    }
    net.drain(1)?;
    let got = net.received(2)?;
    check!(
        got.len() == 2 && got[0].pair == got[1].pair,
        "a flow came on two pairs"
    );
    net.close_books()
}
