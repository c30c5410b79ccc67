//! Guests with packed rings: beside split ones, loaded, paused, restarted under, and hostile.

use std::time::{Duration, Instant};

use vswitch_simguest::driver::{PackedDesc, Place, RxOptions, Shape, TxOptions};
use vswitch_simguest::features::virtio::{
    EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, RING_PACKED, VERSION_1,
};
use vswitch_simguest::frames::{EXPERIMENTAL, Eth, ethernet};
use vswitch_simguest::{Builder, VirtioNetHdr};
use vswitch_tests::{Error, Result, RunDir, cases, check, machine};

use crate::load::Load;
use crate::setup::{Net, SOON, THREE, mac, numbered};

cases!("packed":
    every_shape_between_split_and_packed_guests,
    a_port_that_does_not_offer_them,
    rings_of_any_size,
    packed_rings_under_load,
    packed_rings_stop_and_start,
    a_killed_switch_finds_its_place,
    a_place_that_nobody_knows,
    malformed_packed_chains,
    a_packed_chain_without_end,
    lap_flags_at_random,
);

/// Four untagged ports on a bridge.
const FOUR: &str = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock } }
  vm3: { vhost-user: { socket: $RUN/vm3.sock } }
  vm4: { vhost-user: { socket: $RUN/vm4.sock } }
";

/// Memory for hand-made buffers.
const AREA: u64 = 1 << 18;

fn packed(_: u8, builder: Builder) -> Builder {
    builder.with(RING_PACKED)
}

/// Frames in every cut, from split and packed guests to split and packed guests, with every ring feature.
fn every_shape_between_split_and_packed_guests(dir: &RunDir) -> Result<()> {
    let shapes = [
        Shape::joined(),
        Shape::separate(),
        Shape::cuts(&[5, 7, 0, 20]).then_every(300),
        Shape::cuts(&[12]).then_every(100).indirect(),
    ];
    let layouts = [
        (0, RING_PACKED),
        (RING_PACKED, 0),
        (RING_PACKED, RING_PACKED),
    ];
    for optional in [
        0,
        INDIRECT_DESC,
        EVENT_IDX,
        MRG_RXBUF | INDIRECT_DESC | EVENT_IDX,
    ] {
        for (from, to) in layouts {
            let mut net = Net::with(dir, THREE, 2, |n, builder| {
                let cut = Shape::cuts(&[20, 700]).indirect();
                let rx = RxOptions {
                    size: 64,
                    shape: if n == 2 { cut } else { Shape::joined() },
                    ..RxOptions::default()
                };
                let layout = if n == 1 { from } else { to };
                builder
                    .features(VERSION_1 | optional | layout)
                    .rx_options(rx)
            })?;
            check!(
                net.vm(2).is_packed() == (to == RING_PACKED),
                "packed rings are not offered"
            );
            net.introduce()?;
            for (n, shape) in shapes.iter().cycle().take(200).enumerate() {
                let body: Vec<u8> = (0..46 + n * 7).map(|at| (at * 31 + n) as u8).collect();
                let frame = ethernet(&Eth::new(mac(2), mac(1)), EXPERIMENTAL, &body);
                net.vm(1)
                    .send_shaped(&VirtioNetHdr::default(), &frame, shape)?;
                net.drain(1)?;
                let got: Vec<_> = net.received(2)?.into_iter().map(|f| f.bytes).collect();
                check!(
                    got == [frame],
                    "features {optional:#x}, layouts {from:#x} to {to:#x}: frame {n}, cut {shape:?}, did not arrive"
                );
            }
            net.reaches(2, &numbered(mac(1), mac(2), 1), &[1])?;
            net.close_books()?;
        }
    }
    Ok(())
}

fn a_port_that_does_not_offer_them(dir: &RunDir) -> Result<()> {
    let config = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock, packed: false } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock } }
";
    let mut net = Net::with(dir, config, 2, packed)?;
    let layouts = [net.vm(1).is_packed(), net.vm(2).is_packed()];
    check!(
        layouts == [false, true],
        "negotiated packed rings: {layouts:?}"
    );
    net.introduce()?;
    net.reaches(1, &numbered(mac(2), mac(1), 1), &[2])?;
    net.reaches(2, &numbered(mac(1), mac(2), 2), &[1])?;
    net.close_books()
}

/// Also no power of two, and smaller than a burst.
fn rings_of_any_size(dir: &RunDir) -> Result<()> {
    for size in [2, 3, 7, 100, 1000, 1024] {
        let mut net = Net::with(dir, THREE, 2, |n, b| packed(n, b).ring_size(size))?;
        net.introduce()?;
        for n in 0..3 * u32::from(size) {
            net.reaches(1, &numbered(mac(2), mac(1), n), &[2])?;
        }
        net.close_books()?;
    }
    Ok(())
}

fn packed_rings_under_load(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 3, packed)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    load.wait_more(machine::rounds(200_000, 20_000_000).into())?;
    load.finish_whole(&mut net)?;
    net.reaches(1, &numbered(mac(2), mac(1), 1), &[2])?;
    net.switch.accounted().map(drop)
}

/// Stopped and started again they go on where they said they were, whatever chains went through them.
fn packed_rings_stop_and_start(dir: &RunDir) -> Result<()> {
    for indirect in [true, false] {
        let mut net = Net::with(dir, THREE, 2, |n, builder| {
            let builder = packed(n, builder).ring_size(16);
            if indirect {
                builder
            } else {
                builder.without(INDIRECT_DESC)
            }
        })?;
        net.introduce()?;
        for n in 0..machine::rounds(40, 500) {
            for i in 0..n % 7 {
                let frame = numbered(mac(1), mac(2), i);
                let shape = Shape::cuts(&[12, 20][..i as usize % 3]);
                net.vm(2)
                    .send_shaped(&VirtioNetHdr::default(), &frame, &shape)?;
                net.drain(2)?;
                net.received(1)?;
                net.reaches(1, &numbered(mac(2), mac(1), i), &[2])?;
            }
            let bases = net.vm(2).stop()?;
            let pair = net.vm(2).queue(0)?;
            let rings = [pair.rx.ring().as_packed(), pair.tx.ring().as_packed()];
            let places: Vec<_> = rings
                .iter()
                .flatten()
                .map(|ring| u32::from(ring.used_place().bits()) * 0x1_0001)
                .collect();
            check!(
                bases == places,
                "rings were stopped at {bases:x?}, their drivers are at {places:x?}"
            );
            let waiting = numbered(mac(1), mac(2), n);
            net.vm(2).send(&waiting)?;
            net.vm(2).resume()?;
            net.switch.wait_up("vm2", SOON)?;
            net.drain(2)?;
            let got: Vec<_> = net.received(1)?.into_iter().map(|f| f.bytes).collect();
            check!(
                got == [waiting],
                "what waited in a stopped ring did not arrive"
            );
        }
    }
    Ok(())
}

/// The front-end says that every ring is new, as QEMU does when the switch died without a word.
fn a_killed_switch_finds_its_place(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, |n, b| packed(n, b).ring_size(64))?;
    net.introduce()?;
    for round in 0..machine::rounds(10, 300) {
        for n in 0..round * 13 % 150 {
            net.reaches(1, &numbered(mac(2), mac(1), n), &[2])?;
        }
        if round % 2 == 0 {
            net.switch.kill();
        } else {
            net.switch.stop();
        }
        // What it sends meanwhile waits.
        let waiting = numbered(mac(2), mac(1), round);
        net.vm(1).send(&waiting)?;
        net.switch.start_again()?;
        for n in [2, 1] {
            net.vm(n).reconnect()?;
            net.switch.wait_up(&format!("vm{n}"), SOON)?;
        }
        let until = Instant::now() + SOON;
        loop {
            let got = net.vm(2).recv(Duration::from_millis(50))?.map(|f| f.bytes);
            if got.as_ref() == Some(&waiting) {
                break;
            }
            check!(
                got.is_none() && Instant::now() < until,
                "after restart {round} what waited did not arrive, but {got:?}"
            );
        }
        net.drain(1)?;
        net.reaches(2, &numbered(mac(1), mac(2), round), &[1])?;
    }
    net.switch.accounted().map(drop)
}

/// Without indirect descriptors a driver may have strung some together: a ring is not served from a guess.
fn a_place_that_nobody_knows(dir: &RunDir) -> Result<()> {
    let direct = |n, b| packed(n, b).without(INDIRECT_DESC);
    let mut net = Net::with(dir, THREE, 2, direct)?;
    net.introduce()?;
    for n in 0..10 {
        net.reaches(1, &numbered(mac(2), mac(1), n), &[2])?;
    }
    let Some(notifier) = net.vm(1).notifier(1).cloned() else {
        return Err(Error::Failed("guest 1 has no transmit ring".into()));
    };
    net.switch.kill();
    net.switch.start_again()?;
    net.vm(1).reconnect()?;
    let started = Instant::now();
    while notifier.take_errors() == 0 {
        check!(
            started.elapsed() < SOON,
            "nobody is told of a ring that is not served"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    // Its driver resets it, as does the other one's when it comes.
    net.vm(1).reboot()?;
    net.vm(2).reconnect_reset()?;
    for n in [1, 2] {
        net.switch.wait_up(&format!("vm{n}"), SOON)?;
    }
    net.reaches(1, &numbered(mac(2), mac(1), 1), &[2])?;
    net.switch.accounted().map(drop)
}

/// A descriptor of guest 1's transmit ring, by its slot.
fn descriptor(net: &mut Net<'_>, slot: u16) -> Result<PackedDesc> {
    let words = &net.vm(1).queue(0)?.tx.ring().parts().desc_words;
    let at = 2 * usize::from(slot);
    Ok(PackedDesc::from_words([words.load(at), words.load(at + 1)]))
}

fn set_descriptor(net: &mut Net<'_>, slot: u16, desc: PackedDesc) -> Result<()> {
    let words = &net.vm(1).queue(0)?.tx.ring().parts().desc_words;
    let [addr, rest] = desc.to_words();
    words.store(2 * usize::from(slot), addr);
    words.store_release(2 * usize::from(slot) + 1, rest);
    Ok(())
}

/// Where guest 1's driver writes next.
fn next(net: &mut Net<'_>) -> Result<Place> {
    let ring = net.vm(1).queue(0)?.tx.ring().as_packed();
    let place = ring.map(vswitch_simguest::driver::Packed::avail_place);
    place.ok_or_else(|| Error::Failed("guest 1 has no packed rings".into()))
}

/// What is done to a descriptor.
type Spoil = fn(&mut PackedDesc);

/// How a chain of three goes wrong: the reason counted, and what is done to its second descriptor.
const MALFORMED: [(&str, Spoil); 4] = [
    ("descriptor-unmapped", |desc| desc.addr = 1 << 60),
    ("descriptor-writable", |desc| {
        desc.flags |= PackedDesc::WRITE;
    }),
    ("descriptor-indirect-misplaced", |desc| {
        desc.flags |= PackedDesc::INDIRECT;
    }),
    ("buffer-too-long", |desc| desc.len = 70_000),
];

fn malformed_packed_chains(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 3, packed)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    for (n, (reason, spoil)) in MALFORMED.iter().cycle().take(50).enumerate() {
        let before = net.drops("vm1", reason)?;
        let slot = next(&mut net)?.ahead(1, 256).slot;
        let frame = numbered(mac(2), mac(1), n as u32);
        let tx = &mut net.vm(1).queue(0)?.tx;
        tx.queue(&VirtioNetHdr::default(), &frame, &Shape::cuts(&[12, 20]))?;
        let mut desc = descriptor(&mut net, slot)?;
        spoil(&mut desc);
        set_descriptor(&mut net, slot, desc)?;
        net.vm(1).queue(0)?.tx.flush();
        net.drain(1)?;
        let counted = net.drops("vm1", reason)? - before;
        check!(
            counted == 1,
            "chain {n}: {counted} of 1 counted as {reason}"
        );
    }
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}

fn a_packed_chain_without_end(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, FOUR, 4, packed)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    let Some(notifier) = net.vm(1).notifier(1).cloned() else {
        return Err(Error::Failed("guest 1 has no transmit ring".into()));
    };
    for _ in 0..3 {
        let first = next(&mut net)?;
        for ahead in (0..256).rev() {
            let at = first.ahead(ahead, 256);
            let desc = PackedDesc {
                flags: at.available() | PackedDesc::NEXT,
                ..PackedDesc::default()
            };
            set_descriptor(&mut net, at.slot, desc)?;
        }
        notifier.kick();
        let started = Instant::now();
        while notifier.take_errors() == 0 {
            check!(
                started.elapsed() < SOON,
                "nobody is told of a chain without end"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        load.wait_more(200)?;
        net.vm(1).reboot()?;
        net.switch.wait_up("vm1", SOON)?;
        net.reaches(1, &numbered(mac(4), mac(1), 1), &[4])?;
    }
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}

/// Any nonsense in a ring costs its guest only.
fn lap_flags_at_random(dir: &RunDir) -> Result<()> {
    let options = TxOptions {
        size: 64,
        ..TxOptions::default()
    };
    let mut net = Net::with(dir, FOUR, 4, |n, b| {
        packed(n, b).tx_options(options.clone())
    })?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    let Some(notifier) = net.vm(1).notifier(1).cloned() else {
        return Err(Error::Failed("guest 1 has no transmit ring".into()));
    };
    let area = net.vm(1).memory().alloc(AREA as usize, 64)?.guest;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for n in 0..machine::rounds(20_000, 2_000_000) {
        let word = next();
        let desc = PackedDesc {
            // Now and then beyond what there is.
            addr: area + (word >> 40) % (AREA + AREA / 16),
            len: (word >> 20) as u32 & 0xfff,
            id: word as u16,
            flags: next() as u16,
        };
        set_descriptor(&mut net, (next() % 64) as u16, desc)?;
        if n % 64 == 0 {
            notifier.kick();
        }
        if n % 4000 == 0 {
            load.wait_more(50)?;
            net.vm(1).reboot()?;
        }
    }
    load.wait_more(200)?;
    net.vm(1).reboot()?;
    net.switch.wait_up("vm1", SOON)?;
    net.reaches(1, &numbered(mac(4), mac(1), 1), &[4])?;
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}
