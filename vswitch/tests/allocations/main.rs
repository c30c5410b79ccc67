//! The forwarding path allocates nothing, whatever is forwarded and whatever becomes of it: counted, call by call.
//!
//! In a process of its own, because it has an allocator of its own. Guests are simulated, on real sessions; the worker's
//! turn is played by the test, on one thread, so that nobody else's allocations count.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod burst;
mod counting;
mod world;

use std::net::Ipv4Addr;

use vswitch::forward::counters::{InputDrop, OutputDrop};
use vswitch::forward::vlan::VlanRule;
use vswitch_packet::VlanId;
use vswitch_simguest::VirtioNetHdr;
use vswitch_simguest::driver::{Piece, RxOptions, Shape};
use vswitch_simguest::features::virtio::{CSUM, GUEST_CSUM, MRG_RXBUF, OFFLOADS, RING_PACKED};
use vswitch_simguest::frames::{EXPERIMENTAL, Eth, Ip, Tcp, ethernet, tcp_gso, tcp_partial, udp};
use world::{Kind, Wanted, World, mac};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Sends everything; on the trunk.
const SENDER: u8 = 0;
/// On the trunk, with every offload.
const PEER: u8 = 1;
/// In VLAN 10, untagged.
const ACCESS: u8 = 2;
/// On the trunk, without offloads and merged buffers.
const SIMPLE: u8 = 3;
/// On the trunk, without receive buffers.
const FULL: u8 = 4;
/// On the trunk, two queue pairs.
const WIDE: u8 = 5;
/// On the trunk, without a guest.
const ABSENT: u8 = 6;
/// On the trunk, with checksums and no segmentation, small buffers merged.
const CHECKSUM: u8 = 7;

const VLAN: u16 = 10;
const NATIVE: u16 = 1;

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

/// Frames of one kind, and what must become of each.
struct Case {
    what: &'static str,
    from: u8,
    frames: Vec<(VirtioNetHdr, Vec<u8>)>,
    shape: Shape,
    expect: Expect,
}

enum Expect {
    /// Delivered there.
    Delivered(u8),
    /// Delivered there, cut into more packets than frames.
    Segmented(u8),
    /// Not let in.
    Refused(InputDrop),
    /// Not delivered there.
    Dropped(u8, OutputDrop),
}

fn world(layout: u64) -> World {
    let trunk = || VlanRule::trunk([vlan(VLAN)], Some(vlan(NATIVE)));
    let kind = |with, without, posted| {
        Some(Kind {
            with,
            without,
            rx: RxOptions {
                posted,
                ..RxOptions::default()
            },
        })
    };
    let all = kind(OFFLOADS, 0, None);
    let port = |vlan, pairs, guest| Wanted { vlan, pairs, guest };
    let mut small = kind(CSUM | GUEST_CSUM, 0, None);
    if let Some(small) = &mut small {
        small.rx.buffer = Some(256);
    }
    let ports = vec![
        port(trunk(), 1, all.clone()),
        port(trunk(), 1, all.clone()),
        port(VlanRule::access(vlan(VLAN)), 1, all),
        port(trunk(), 1, kind(0, MRG_RXBUF, None)),
        port(trunk(), 1, kind(OFFLOADS, 0, Some(0))),
        port(trunk(), 2, kind(0, 0, None)),
        port(trunk(), 1, None),
        port(trunk(), 1, small),
    ];
    World::new(ports, &[NATIVE, VLAN], layout)
}

fn eth(from: u8, to: u8) -> Eth {
    Eth::new(mac(to), mac(from))
}

fn ip() -> Ip {
    Ip::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
}

/// Frames of `len` payload bytes that leave nothing to do.
fn plain(eth: &Eth, len: usize) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let frame = |port: u16| udp(eth, &ip(), 1000 + port, 2000, &vec![port as u8; len]);
    (0..32)
        .map(|port| (VirtioNetHdr::default(), frame(port)))
        .collect()
}

fn tcp() -> Tcp {
    Tcp {
        sport: 1,
        dport: 2,
        seq: 3,
        ack: 4,
        flags: Tcp::ACK,
        options: Vec::new(),
    }
}

fn partial(eth: &Eth) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    vec![tcp_partial(eth, &ip(), &tcp(), &[7; 1001]); 32]
}

fn train(eth: &Eth) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    vec![tcp_gso(eth, &ip(), &tcp(), &[7; 30_001], 1400); 4]
}

fn raw(bytes: Vec<u8>) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    vec![(VirtioNetHdr::default(), bytes); 32]
}

/// Whatever is delivered.
fn delivered() -> Vec<Case> {
    use Expect::{Delivered, Segmented};
    let case = |what, frames, to| Case {
        what,
        from: SENDER,
        frames,
        shape: Shape::joined(),
        expect: Delivered(to),
    };
    let to = |port| eth(SENDER, port);
    let tagged = |port| eth(SENDER, port).tag(VLAN);
    let cut = |what, shape| Case {
        shape,
        // In pieces no more fit the ring.
        ..case(what, plain(&to(PEER), 1000).split_off(16), PEER)
    };
    let segmented = |what, eth: &Eth, port| Case {
        expect: Segmented(port),
        ..case(what, train(eth), port)
    };
    vec![
        case("small frames", plain(&to(PEER), 18), PEER),
        case("large frames", plain(&to(PEER), 1400), PEER),
        case("merged buffers", plain(&to(CHECKSUM), 1400), CHECKSUM),
        case("tagged frames", plain(&tagged(PEER), 500), PEER),
        case("tags that come off", plain(&tagged(ACCESS), 500), ACCESS),
        Case {
            from: ACCESS,
            ..case("tags that are put on", plain(&eth(ACCESS, PEER), 500), PEER)
        },
        case(
            "a flood",
            plain(&Eth::new([0xff; 6], mac(SENDER)), 300),
            SIMPLE,
        ),
        case(
            "a tagged flood",
            plain(&Eth::new([0xff; 6], mac(SENDER)).tag(VLAN), 300),
            ACCESS,
        ),
        case("flows over two pairs", plain(&to(WIDE), 300), WIDE),
        case("checksums passed on", partial(&to(PEER)), PEER),
        case(
            "checksums of tagged frames",
            partial(&tagged(ACCESS)),
            ACCESS,
        ),
        case("checksums in software", partial(&to(SIMPLE)), SIMPLE),
        case("trains passed on", train(&to(PEER)), PEER),
        case("trains whose tags come off", train(&tagged(ACCESS)), ACCESS),
        segmented("segments in software", &to(SIMPLE), SIMPLE),
        Case {
            // As many as fit its ring.
            frames: train(&to(CHECKSUM)).split_off(3),
            ..segmented("segments in small buffers", &to(CHECKSUM), CHECKSUM)
        },
        segmented("segments of tagged trains", &tagged(SIMPLE), SIMPLE),
        cut("header and frame apart", Shape::separate()),
        cut("many pieces", Shape::cuts(&[5, 7, 0, 20]).then_every(100)),
        cut(
            "indirect tables",
            Shape::cuts(&[12]).then_every(200).indirect(),
        ),
        case("addresses to be learnt", strangers(), PEER),
    ]
}

/// Frames from addresses that nobody knows, each another.
fn strangers() -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let frame = |n| {
        ethernet(
            &Eth::new(mac(PEER), [2, 1, 1, 1, 1, n]),
            EXPERIMENTAL,
            &[9; 64],
        )
    };
    (0..32)
        .map(|n| (VirtioNetHdr::default(), frame(n)))
        .collect()
}

/// Whatever is not.
fn dropped() -> Vec<Case> {
    use Expect::{Dropped, Refused};
    let to = |port| eth(SENDER, port);
    let case = |what, frames, expect| Case {
        what,
        from: SENDER,
        frames,
        shape: Shape::joined(),
        expect,
    };
    let mut bad_request = partial(&to(PEER));
    for (header, _) in &mut bad_request {
        header.csum_start = 60_000;
    }
    let link_local = Eth::new([1, 0x80, 0xc2, 0, 0, 0], mac(SENDER));
    let group = Eth::new(mac(PEER), [1, 0, 0, 0, 0, 1]);
    let tagged_twice = to(ACCESS).tag(VLAN).tag(99);
    let mut refused = vec![
        case(
            "no frames at all",
            raw(Vec::new()),
            Refused(InputDrop::ChainEmpty),
        ),
        case("runts", raw(vec![0; 13]), Refused(InputDrop::Runt)),
        case(
            "over the MTU",
            plain(&to(PEER), 1600),
            Refused(InputDrop::OverMtu),
        ),
        case(
            "sent by groups",
            plain(&group, 64),
            Refused(InputDrop::InvalidSource),
        ),
        case(
            "for the link",
            plain(&link_local, 64),
            Refused(InputDrop::LinkLocal),
        ),
        case(
            "reflections",
            plain(&to(SENDER), 64),
            Refused(InputDrop::Reflection),
        ),
        case("bad requests", bad_request, Refused(InputDrop::BadOffload)),
    ];
    let foreign = plain(&to(PEER).tag(77), 64);
    refused.extend([
        case("foreign VLANs", foreign, Refused(InputDrop::VlanNotAllowed)),
        case(
            "no buffers",
            plain(&to(FULL), 64),
            Dropped(FULL, OutputDrop::RingFull),
        ),
        case(
            "trains without buffers",
            train(&to(FULL)),
            Dropped(FULL, OutputDrop::RingFull),
        ),
        case(
            "nobody there",
            plain(&to(ABSENT), 64),
            Dropped(ABSENT, OutputDrop::NotConnected),
        ),
        case(
            "second tags",
            plain(&tagged_twice, 64),
            Dropped(ACCESS, OutputDrop::DoubleTagged),
        ),
    ]);
    refused
}

/// Sends the case's frames once; says how often forwarding them called the allocator.
fn round(world: &mut World, case: &Case) -> u64 {
    let tx = &mut world.guest(case.from).queue(0).unwrap().tx;
    for (header, frame) in &case.frames {
        tx.queue(header, frame, &case.shape).unwrap();
    }
    tx.flush();
    let (mut calls, mut left) = (0, case.frames.len());
    while left > 0 {
        let (more, taken) = world.turn(case.from, 32);
        assert!(taken > 0, "{}: {left} frames are left", case.what);
        calls += more;
        left -= taken;
    }
    // And once in vain, as a worker does.
    calls += world.turn(case.from, 32).0;
    world.empty();
    calls
}

/// As often as that, after as many rounds to warm up: the indirection table's reader has state for each thread.
const ROUNDS: u64 = 100;
const WARM_UP: u64 = 2;

fn check(world: &mut World, case: &Case) {
    let count = |world: &World| {
        let (from, frames) = (world.totals(case.from), case.frames.len() as u64);
        match case.expect {
            Expect::Delivered(to) => (world.totals(to).delivered, frames),
            Expect::Segmented(to) => {
                let totals = world.totals(to);
                assert!(totals.delivered_packets >= 10 * totals.delivered.min(1));
                (totals.delivered, frames)
            }
            Expect::Refused(reason) => (from.input_drops[reason as usize], frames),
            Expect::Dropped(to, reason) => (world.totals(to).output_drops[reason as usize], frames),
        }
    };
    for _ in 0..WARM_UP {
        round(world, case);
    }
    let (before, frames) = count(world);
    let calls: u64 = (0..ROUNDS).map(|_| round(world, case)).sum();
    let (after, _) = count(world);
    assert_eq!(
        after - before,
        ROUNDS * frames,
        "{}: what became of it",
        case.what
    );
    assert_eq!(calls, 0, "{}: calls of the allocator", case.what);
}

fn forwarding_allocates_nothing(layout: u64) {
    let mut world = world(layout);
    for case in delivered().iter().chain(&dropped()) {
        check(&mut world, case);
    }
    malformed_chains(&mut world);
    flows_that_move(&mut world);
}

/// A guest with two pairs sends on one and the other, and takes one out of use and into use: flows are learned and moved.
fn flows_that_move(world: &mut World) {
    let (there, back) = (eth(SENDER, WIDE), eth(WIDE, SENDER));
    let (mut calls, mut pinned) = (0, 0);
    for round in 0..WARM_UP + ROUNDS {
        let answers = (0..32u16).map(|port| {
            let ip = Ip::new(Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1));
            udp(&back, &ip, 2000, 1000 + port, &[3; 18])
        });
        let answers: Vec<_> = answers.collect();
        let mut more = 0;
        for (from, frames) in [
            (WIDE, answers),
            (SENDER, plain(&there, 18).into_iter().map(|f| f.1).collect()),
        ] {
            for frame in &frames {
                let tx = &mut world.guest(from).queue(0).unwrap().tx;
                tx.queue(&VirtioNetHdr::default(), frame, &Shape::joined())
                    .unwrap();
                tx.flush();
                // One at a time, so that each is looked at.
                more += world.turn_of(from, (round / 3 % 2) as u16, 1).0;
            }
            world.empty();
        }
        calls += if round < WARM_UP { 0 } else { more };
        world.pass(3_000);
        pinned = world.steered(WIDE).pins.max(pinned);
        if round % 5 == 0 {
            world.put_away(WIDE);
        }
    }
    let moves = world.steered(WIDE).moves;
    assert!(
        pinned > 0 && moves.completed > 20,
        "{pinned} pins, {moves:?}"
    );
    assert_eq!(calls, 0, "flows that move: calls of the allocator");
}

/// Chains that are no frames.
fn malformed_chains(world: &mut World) {
    let nowhere = Piece {
        addr: 1 << 50,
        len: 100,
    };
    let mut calls = 0;
    for turn in 0..WARM_UP + ROUNDS {
        let ring = world.guest(SENDER).queue(0).unwrap().tx.ring_mut();
        for n in 0..32 {
            assert!(ring.add(&[nowhere], n % 2 == 1).is_some());
        }
        ring.publish();
        let (more, taken) = world.turn(SENDER, 32);
        assert_eq!(taken, 32);
        calls += if turn < WARM_UP { 0 } else { more };
        world.empty();
    }
    let drops = world.totals(SENDER).input_drops;
    let each = (WARM_UP + ROUNDS) * 16;
    assert_eq!(drops[InputDrop::ChainUnmapped as usize], each);
    assert_eq!(drops[InputDrop::ChainWritable as usize], each);
    assert_eq!(calls, 0, "malformed chains: calls of the allocator");
}

#[test]
fn forwarding_between_split_rings_allocates_nothing() {
    forwarding_allocates_nothing(0);
}

#[test]
fn forwarding_between_packed_rings_allocates_nothing() {
    forwarding_allocates_nothing(RING_PACKED);
}

/// What the others rest on.
#[test]
fn every_call_of_the_allocator_is_counted() {
    assert_eq!(counting::calls(|| ()), 0);
    let calls = counting::calls(|| {
        let mut bytes = Vec::with_capacity(1);
        bytes.extend_from_slice(std::hint::black_box(&[1u8; 100]));
        drop(std::hint::black_box(bytes));
    });
    assert_eq!(calls, 3);
    let elsewhere = || std::thread::spawn(|| drop(std::hint::black_box(vec![1; 100])));
    let thread = elsewhere();
    assert_eq!(counting::calls(|| while !thread.is_finished() {}), 0);
}
