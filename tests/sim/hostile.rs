//! Guests that write nonsense into their rings: every malformed chain is named, and the neighbours do not notice.

use std::time::{Duration, Instant};

use vswitch_simguest::VirtioNetHdr;
use vswitch_simguest::driver::{Piece, RxOptions, Shape};
use vswitch_simguest::features::virtio::{INDIRECT_DESC, MRG_RXBUF};
use vswitch_simguest::memory::{Desc, RegionSpec};
use vswitch_tests::{Error, Result, RunDir, cases, check};

use crate::load::Load;
use crate::setup::{Net, SOON, THREE, dropped, mac, numbered};

cases!("hostile":
    malformed_transmit_chains_are_named,
    indirect_where_it_was_not_agreed,
    malformed_receive_chains_are_named,
    malformed_chains_within_a_full_burst,
    an_available_index_that_jumps_stops_the_ring_only,
    a_storm_of_kicks,
    the_memory_file_cut_short,
);

/// Far outside any guest memory here.
const NOWHERE: u64 = 1 << 50;
/// Bytes of the area of zeroes that bad chains point to.
const AREA: u32 = 40_000;

/// A way to write a chain that breaks the rules, and what it is called.
struct Malformed {
    reason: &'static str,
    what: &'static str,
    /// Descriptors: one piece each, linked; then what is done to them, given the head's number.
    pieces: fn(u64) -> Vec<Piece>,
    then: fn(u16, Desc) -> Desc,
    writable: bool,
}

fn piece(addr: u64, len: u32) -> Piece {
    Piece { addr, len }
}

fn as_it_is(_: u16, desc: Desc) -> Desc {
    desc
}

const MALFORMED: &[Malformed] = &[
    Malformed {
        reason: "descriptor-unmapped",
        what: "a buffer outside memory",
        pieces: |_| vec![piece(NOWHERE, 100)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "descriptor-unmapped",
        what: "a buffer that wraps around the address space",
        pieces: |_| vec![piece(u64::MAX - 10, 100)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "descriptor-unmapped",
        what: "a second piece outside memory",
        pieces: |area| vec![piece(area, 100), piece(NOWHERE, 100)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "buffer-too-long",
        what: "a length of 4 GiB",
        pieces: |area| vec![piece(area, u32::MAX)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "descriptor-next-out-of-range",
        what: "a next beyond the table",
        pieces: |area| vec![piece(area, 100)],
        then: |_, desc| Desc {
            flags: Desc::NEXT,
            next: 60_000,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "descriptor-next-out-of-range",
        what: "a next one beyond the table",
        pieces: |area| vec![piece(area, 100)],
        then: |_, desc| Desc {
            flags: Desc::NEXT,
            next: 256,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "descriptor-loop",
        what: "a descriptor that follows itself",
        pieces: |area| vec![piece(area, 1)],
        then: |head, desc| Desc {
            flags: Desc::NEXT,
            next: head,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "descriptor-writable",
        what: "a buffer for the device to write, in transmit",
        pieces: |area| vec![piece(area, 100)],
        then: as_it_is,
        writable: true,
    },
    Malformed {
        reason: "descriptor-indirect-length",
        what: "an indirect table of 17 bytes",
        pieces: |area| vec![piece(area, 17)],
        then: |_, desc| Desc {
            flags: Desc::INDIRECT,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "descriptor-indirect-length",
        what: "an indirect table of no entries",
        pieces: |area| vec![piece(area, 0)],
        then: |_, desc| Desc {
            flags: Desc::INDIRECT,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "descriptor-unmapped",
        what: "an indirect table outside memory",
        pieces: |_| vec![piece(NOWHERE, 32)],
        then: |_, desc| Desc {
            flags: Desc::INDIRECT,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "descriptor-indirect-misplaced",
        what: "an indirect table with a next",
        pieces: |area| vec![piece(area, 32)],
        then: |head, desc| Desc {
            flags: Desc::INDIRECT | Desc::NEXT,
            next: head,
            ..desc
        },
        writable: false,
    },
    Malformed {
        reason: "buffer-short",
        what: "five bytes",
        pieces: |area| vec![piece(area, 5)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "buffer-short",
        what: "eleven bytes in three pieces",
        pieces: |area| vec![piece(area, 4), piece(area, 0), piece(area, 7)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "buffer-empty",
        what: "a header and no frame",
        pieces: |area| vec![piece(area, 12)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "buffer-too-long",
        what: "120,000 bytes",
        pieces: |area| vec![piece(area, AREA); 3],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "runt",
        what: "a header and one byte",
        pieces: |area| vec![piece(area, 13)],
        then: as_it_is,
        writable: false,
    },
    Malformed {
        reason: "invalid-source",
        what: "zeroes in a hundred pieces, some empty",
        pieces: |area| (0..100).map(|i| piece(area, i % 3)).collect(),
        then: as_it_is,
        writable: false,
    },
];

/// Puts a malformed chain into guest 1's transmit ring; the caller publishes.
fn put(net: &mut Net<'_>, area: u64, bad: &Malformed) -> Result<()> {
    let ring = net.vm(1).queue(0)?.tx.ring_mut();
    let head = ring.add(&(bad.pieces)(area), bad.writable);
    let Some(head) = head else {
        return Err(Error::Failed(format!("{}: no room in the ring", bad.what)));
    };
    let table = ring.parts().desc.clone();
    let desc = table.load(usize::from(head));
    table.store(usize::from(head), (bad.then)(head, desc));
    Ok(())
}

fn malformed_transmit_chains_are_named(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, &four(), 4)?;
    net.introduce()?;
    let area = net.vm(1).memory().alloc(AREA as usize, 64)?.guest;
    let load = Load::start(&mut net, 2, 3)?;
    for (n, bad) in MALFORMED.iter().enumerate() {
        let before = net.drops("vm1", bad.reason)?;
        put(&mut net, area, bad)?;
        net.vm(1).queue(0)?.tx.flush();
        net.drain(1)?;
        let counted = net.drops("vm1", bad.reason)? - before;
        check!(
            counted == 1,
            "{} is not counted as {}: {:?}",
            bad.what,
            bad.reason,
            net.switch.counters()?.ports["vm1"].rx
        );
        // The ring goes on.
        net.reaches(1, &numbered(mac(4), mac(1), n as u32), &[4])?;
        load.wait_more(50)?;
    }
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}

/// Guests 2 and 3 exchange traffic, guests 1 and 4 are free for a test.
fn four() -> String {
    format!("{THREE}  vm4: {{ vhost-user: {{ socket: $RUN/vm4.sock }} }}\n")
}

fn indirect_where_it_was_not_agreed(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, |_, b| b.without(INDIRECT_DESC))?;
    net.introduce()?;
    let area = net.vm(1).memory().alloc(AREA as usize, 64)?.guest;
    let bad = Malformed {
        reason: "descriptor-indirect-misplaced",
        what: "an indirect table",
        pieces: |area| vec![piece(area, 32)],
        then: |_, desc| Desc {
            flags: Desc::INDIRECT,
            ..desc
        },
        writable: false,
    };
    put(&mut net, area, &bad)?;
    net.vm(1).queue(0)?.tx.flush();
    net.drain(1)?;
    check!(
        net.drops("vm1", bad.reason)? == 1,
        "an indirect table that was not agreed on is not counted"
    );
    net.reaches(1, &numbered(mac(2), mac(1), 1), &[2])?;
    net.switch.accounted().map(drop)
}

fn malformed_receive_chains_are_named(dir: &RunDir) -> Result<()> {
    // Guest 4 posts no buffers of its own.
    let mut net = Net::with(dir, &four(), 4, |n, builder| match n {
        4 => builder.without(MRG_RXBUF).rx_options(RxOptions {
            posted: Some(0),
            ..RxOptions::default()
        }),
        _ => builder,
    })?;
    net.introduce()?;
    let area = net.vm(4).memory().alloc(AREA as usize, 64)?.guest;
    let load = Load::start(&mut net, 2, 3)?;
    for (what, reasons, piece, writable) in [
        (
            "outside memory",
            ["malformed-buffer"; 2],
            piece(NOWHERE, 2048),
            true,
        ),
        (
            "that wraps",
            ["malformed-buffer"; 2],
            piece(u64::MAX - 100, 2048),
            true,
        ),
        (
            "read-only",
            ["malformed-buffer"; 2],
            piece(area, 2048),
            false,
        ),
        (
            "of no bytes",
            ["malformed-buffer", "buffer-too-small"],
            piece(area, 0),
            true,
        ),
        (
            "of 5 bytes",
            ["malformed-buffer", "buffer-too-small"],
            piece(area, 5),
            true,
        ),
        (
            "of 11 bytes",
            ["malformed-buffer", "buffer-too-small"],
            piece(area, 11),
            true,
        ),
        (
            "of a header",
            ["malformed-buffer", "buffer-too-small"],
            piece(area, 12),
            true,
        ),
        (
            "of a header and a byte",
            ["buffer-too-small"; 2],
            piece(area, 13),
            true,
        ),
    ] {
        net.vm(4).reboot()?;
        net.switch.wait_up("vm4", SOON)?;
        let ring = net.vm(4).queue(0)?.rx.ring_mut();
        ring.add(&[piece], writable);
        ring.publish();
        let before = net.switch.counters()?;
        net.send(1, &numbered(mac(4), mac(1), 1))?;
        let after = net.switch.counters()?;
        let counted = |reason: &str| {
            Ok::<_, Error>(dropped(&after, "vm4", reason)? - dropped(&before, "vm4", reason)?)
        };
        let named = counted(reasons[0])?
            + if reasons[0] == reasons[1] {
                0
            } else {
                counted(reasons[1])?
            };
        check!(
            named == 1,
            "a receive buffer {what} is not counted as {}: {:?}",
            reasons.join(" or "),
            after.ports["vm4"].tx
        );
        load.wait_more(50)?;
    }
    load.finish_whole(&mut net)?;
    let delivered = net.switch.accounted()?.ports["vm4"].tx.delivered;
    check!(
        delivered == 0,
        "{delivered} frames were written into bad buffers"
    );
    Ok(())
}

fn malformed_chains_within_a_full_burst(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let area = net.vm(1).memory().alloc(AREA as usize, 64)?.guest;
    for good_at in [0, 1, 15, 31] {
        let before = net.switch.counters()?.ports["vm1"].rx.clone();
        let mut want = Vec::new();
        for n in 0..32u32 {
            let bad = &MALFORMED[n as usize % 10];
            if n == good_at || n % 5 == 0 {
                let frame = numbered(mac(2), mac(1), n);
                let tx = &mut net.vm(1).queue(0)?.tx;
                tx.queue(&VirtioNetHdr::default(), &frame, &Shape::separate())?;
                want.push(frame);
            } else {
                put(&mut net, area, bad)?;
            }
        }
        net.vm(1).queue(0)?.tx.flush();
        net.drain(1)?;
        let got: Vec<_> = net.received(2)?.into_iter().map(|f| f.bytes).collect();
        check!(
            got == want,
            "{} of {} good frames among bad ones came through",
            got.len(),
            want.len()
        );
        let after = net.switch.accounted()?.ports["vm1"].rx.clone();
        check!(
            after.frames == before.frames + 32,
            "{} of 32 chains are counted",
            after.frames - before.frames
        );
    }
    Ok(())
}

fn an_available_index_that_jumps_stops_the_ring_only(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, &four(), 4)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    for jump in [65_535, 32_768, 257] {
        let parts = net.vm(1).queue(0)?.tx.ring().parts().clone();
        parts.set_avail_idx(parts.avail_idx().wrapping_add(jump));
        let started = Instant::now();
        let Some(notifier) = net.vm(1).notifier(1).cloned() else {
            return Err(Error::Failed("guest 1 has no transmit ring".into()));
        };
        notifier.kick();
        while notifier.take_errors() == 0 {
            check!(
                started.elapsed() < SOON,
                "nobody is told of a ring whose available index jumped by {jump}"
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

fn a_storm_of_kicks(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    let Some(notifier) = net.vm(1).notifier(1).cloned() else {
        return Err(Error::Failed("guest 1 has no transmit ring".into()));
    };
    for n in 0..200_000 {
        notifier.kick();
        if n % 20_000 == 0 {
            load.wait_more(10)?;
        }
    }
    load.finish_whole(&mut net)?;
    net.reaches(1, &numbered(mac(2), mac(1), 1), &[2])?;
    net.close_books()
}

fn the_memory_file_cut_short(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    let guest = 1 << 40;
    net.vm(1).add_memory(RegionSpec {
        guest,
        size: 2 << 20,
        shared_file: false,
        read_only: false,
    })?;
    net.vm(1).memory().truncate(guest, 0)?;
    let tx = &mut net.vm(1).queue(0)?.tx;
    tx.ring_mut().add(
        &[piece(guest + 4096, 100), piece(guest + (1 << 20), 1000)],
        false,
    );
    tx.flush();
    check!(
        net.vm(1).wait_closed(SOON),
        "a guest whose memory file was cut short keeps its session"
    );
    load.wait_more(1000)?;
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}
