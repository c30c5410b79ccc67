//! The driver against a trusting device in the same process: every shape, every combination of ring features, polling
//! and sleeping.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use vswitch_simguest::VirtioNetHdr;
use vswitch_simguest::driver::{
    Mode, Notifier, RxOptions, RxQueue, Shape, TxError, TxOptions, TxQueue,
};
use vswitch_simguest::features::virtio::{
    EVENT_IDX, GUEST_CSUM, GUEST_TSO4, INDIRECT_DESC, MRG_RXBUF, RING_PACKED, VERSION_1,
};
use vswitch_simguest::frames::{Eth, Ip, Tcp, ethernet, tcp_gso, verify, verify_train};
use vswitch_simguest::memory::{Layout, Memory};
use vswitch_simguest::mover::Mover;
use vswitch_simguest::traffic::{Generator, Meter, Pattern};

struct Pair {
    tx: TxQueue,
    rx: RxQueue,
    mover: Mover,
}

fn pair(
    layout: &Layout,
    (tx_features, tx): (u64, TxOptions),
    (rx_features, rx): (u64, RxOptions),
) -> Pair {
    let a = Memory::new(layout).unwrap();
    let b = Memory::new(layout).unwrap();
    let tx = TxQueue::new(&a, Notifier::new().unwrap(), tx_features, &tx).unwrap();
    let rx = RxQueue::new(&b, Notifier::new().unwrap(), rx_features, &rx).unwrap();
    let mover = Mover::new((&a, &tx, tx_features), (&b, &rx, rx_features));
    Pair { tx, rx, mover }
}

fn body(seed: usize, len: usize) -> Vec<u8> {
    ethernet(
        &Eth::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]),
        0x88b5,
        &(0..len).map(|i| (i * 31 + seed) as u8).collect::<Vec<_>>(),
    )
}

/// Every combination; packed rings come with VERSION_1 only.
fn ring_features() -> Vec<u64> {
    let split = (0..16u64).map(|bits| {
        [VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX]
            .iter()
            .enumerate()
            .map(|(i, f)| if bits >> i & 1 == 1 { *f } else { 0 })
            .sum()
    });
    let split: Vec<u64> = split.collect();
    let modern = split.iter().filter(|f| **f & VERSION_1 != 0);
    let packed: Vec<u64> = modern.map(|f| f | RING_PACKED).collect();
    [split, packed].concat()
}

/// No more than is needed, for each ring layout.
const LAYOUTS: [u64; 2] = [VERSION_1, VERSION_1 | RING_PACKED];

#[test]
fn every_feature_combination_moves_every_shape() {
    let layouts = [
        Layout::single(2 << 20),
        Layout::adjacent(3, 1 << 20),
        Layout::scattered(2, 1 << 20),
    ];
    for (n, tx_features) in ring_features().into_iter().enumerate() {
        for rx_features in ring_features() {
            let rx_shape = if n % 2 == 0 {
                Shape::joined()
            } else {
                Shape::cuts(&[4, 8]).then_every(700).indirect()
            };
            let rx = RxOptions {
                size: 64,
                buffer: Some(2048),
                shape: rx_shape,
                ..RxOptions::default()
            };
            let tx = TxOptions {
                size: 64,
                ..TxOptions::default()
            };
            let mut p = pair(&layouts[n % 3], (tx_features, tx), (rx_features, rx));
            let shapes = [
                Shape::joined(),
                Shape::separate(),
                Shape::cuts(&[1, 2, 3, 0, 4, 50]),
                Shape::cuts(&[10]).then_every(100),
                Shape::cuts(&[12]).then_every(64).indirect(),
            ];
            for (i, shape) in shapes.iter().cycle().take(200).enumerate() {
                let frame = body(i, 46 + (i * 37) % 1400);
                p.tx.send_shaped(&VirtioNetHdr::default(), &frame, shape)
                    .unwrap();
                assert_eq!(
                    p.mover.run(32),
                    1,
                    "features {tx_features:#x} to {rx_features:#x}"
                );
                let (_, got) = p.rx.recv(Duration::ZERO).unwrap().unwrap();
                assert_eq!(got, frame);
            }
        }
    }
}

#[test]
fn a_large_train_is_merged_from_many_small_buffers() {
    LAYOUTS.into_iter().for_each(merge_a_large_train);
}

fn merge_a_large_train(base: u64) {
    let features = base | MRG_RXBUF | GUEST_CSUM | GUEST_TSO4;
    let rx = RxOptions {
        buffer: Some(1536),
        ..RxOptions::default()
    };
    let layout = Layout::single(16 << 20);
    let mut p = pair(&layout, (features, TxOptions::default()), (features, rx));
    let payload: Vec<u8> = (0..60_000u32).map(|i| (i % 253) as u8).collect();
    let eth = Eth::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    let ip = Ip::new([10, 0, 0, 1], [10, 0, 0, 2]);
    let (hdr, frame) = tcp_gso(&eth, &ip, &Tcp::default(), &payload, 1448);
    p.tx.send_shaped(&hdr, &frame, &Shape::cuts(&[12, 54]).then_every(4096))
        .unwrap();
    assert_eq!(p.mover.run(1), 1);
    let (got_hdr, got) = p.rx.recv(Duration::ZERO).unwrap().unwrap();
    assert_eq!(
        usize::from(got_hdr.num_buffers),
        (12 + frame.len()).div_ceil(1536)
    );
    verify(&got_hdr, &got).unwrap();
    verify_train(&frame, 1448, &[(got_hdr, got)]).unwrap();
}

#[test]
fn a_train_nobody_asked_for_is_a_fault() {
    LAYOUTS.into_iter().for_each(refuse_a_train);
}

fn refuse_a_train(base: u64) {
    let offloads = base | GUEST_CSUM | GUEST_TSO4;
    let layout = Layout::single(8 << 20);
    let tx = (offloads, TxOptions::default());
    let mut p = pair(&layout, tx, (base | MRG_RXBUF, RxOptions::default()));
    let hdr = VirtioNetHdr {
        flags: 1,
        gso_type: 1,
        gso_size: 500,
        ..VirtioNetHdr::default()
    };
    p.tx.send_shaped(&hdr, &body(0, 1000), &Shape::joined())
        .unwrap();
    p.mover.run(1);
    assert!(p.rx.recv(Duration::ZERO).is_err());
    assert_eq!(p.rx.counters().read().faults, 1);
}

#[test]
fn a_full_ring_says_so_and_recovers() {
    LAYOUTS.into_iter().for_each(fill_and_recover);
}

fn fill_and_recover(base: u64) {
    let layout = Layout::single(8 << 20);
    let tx = TxOptions {
        size: 8,
        ..TxOptions::default()
    };
    let mut p = pair(&layout, (base, tx), (base, RxOptions::default()));
    for i in 0..4 {
        p.tx.send_shaped(&VirtioNetHdr::default(), &body(i, 60), &Shape::separate())
            .unwrap();
    }
    let full = p.tx.send(&body(9, 60));
    assert_eq!(full, Err(TxError::Full { free: 0, needed: 1 }));
    let too_big = p.tx.send(&vec![0; 100_000]);
    assert!(matches!(too_big, Err(TxError::TooBig { .. })));
    assert_eq!(p.mover.run(32), 4);
    p.tx.send(&body(9, 60)).unwrap();
    assert_eq!(p.mover.run(32), 1);
    assert!(p.tx.drain(Duration::ZERO).unwrap());
    assert_eq!(p.tx.ring().free(), 8);
}

#[test]
fn a_frozen_guest_posts_nothing_until_it_thaws() {
    LAYOUTS.into_iter().for_each(freeze_and_thaw);
}

fn freeze_and_thaw(base: u64) {
    let layout = Layout::single(8 << 20);
    let rx = RxOptions {
        size: 8,
        ..RxOptions::default()
    };
    let mut p = pair(&layout, (base, TxOptions::default()), (base, rx));
    p.rx.freeze(true);
    let mut received = 0;
    for i in 0..20 {
        p.tx.send(&body(i, 60)).unwrap();
        p.mover.run(1);
        received += usize::from(p.rx.recv(Duration::ZERO).unwrap().is_some());
    }
    assert_eq!(received, 8);
    p.rx.freeze(false);
    p.tx.send(&body(0, 60)).unwrap();
    assert_eq!(p.mover.run(1), 1);
}

/// Sets a flag when it goes, also by a failed assertion: a device thread must not outlive its test.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Neither a sleeping receiver nor a sleeping sender may miss its interrupt, whatever the timing of the device.
#[test]
fn sleepers_are_woken() {
    LAYOUTS.into_iter().for_each(sleep_and_wake);
}

fn sleep_and_wake(base: u64) {
    const FRAMES: usize = 20_000;
    const WINDOW: usize = 16;
    let limit = Duration::from_secs(60);
    for event_idx in [0, EVENT_IDX] {
        let features = base | MRG_RXBUF | event_idx;
        let layout = Layout::single(8 << 20);
        let tx = TxOptions {
            mode: Mode::Interrupt,
            size: 64,
            ..TxOptions::default()
        };
        let rx = RxOptions {
            mode: Mode::Interrupt,
            size: 64,
            ..RxOptions::default()
        };
        let Pair {
            mut tx,
            mut rx,
            mut mover,
        } = pair(&layout, (features, tx), (features, rx));
        let (stop, received) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (stop, received) = (&stop, &received);
        let stats = thread::scope(|scope| {
            let _guard = StopOnDrop(stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if mover.run(4) == 0 {
                        thread::yield_now();
                    }
                }
            });
            let receiver = scope.spawn(move || {
                for i in 0..FRAMES {
                    let (_, got) = rx.recv(limit).unwrap().expect("woken up");
                    assert_eq!(got, body(i, 60));
                    received.store(i + 1, Ordering::Relaxed);
                }
                rx.counters().read()
            });
            for i in 0..FRAMES {
                while usize::from(tx.ring().chains()) >= WINDOW {
                    assert!(tx.wait_space(limit).unwrap(), "woken up");
                }
                // Never more under way than the receiver has buffers, or the device would drop.
                while i - received.load(Ordering::Relaxed) >= WINDOW && !receiver.is_finished() {
                    thread::yield_now();
                }
                tx.send(&body(i, 60)).unwrap();
            }
            receiver.join().unwrap()
        });
        assert_eq!(stats.frames, FRAMES as u64);
        assert!(stats.calls > 0, "the receiver has slept at least once");
    }
}

#[test]
fn stamped_load_arrives_whole_and_in_order() {
    LAYOUTS.into_iter().for_each(stamped_load);
}

fn stamped_load(base: u64) {
    let layout = Layout::single(32 << 20);
    let features = base | MRG_RXBUF;
    let tx = TxOptions {
        size: 256,
        ..TxOptions::default()
    };
    let mut p = pair(&layout, (features, tx), (features, RxOptions::default()));
    let mut pattern = Pattern::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], 60).flows(1000);
    pattern.srcs = 1000;
    let mut generator = Generator::new(pattern.clone(), &mut p.tx).unwrap();
    let mut meter = Meter::new(&pattern);
    for _ in 0..2000 {
        assert_eq!(generator.burst(&mut p.tx, 32).unwrap(), 32);
        assert_eq!(p.mover.run(32), 32);
        assert_eq!(meter.burst(&mut p.rx, 64).unwrap(), 32);
    }
    let tally = meter.tally();
    assert_eq!((tally.frames, generator.sent()), (64_000, 64_000));
    assert_eq!((tally.missing, tally.late, tally.alien), (0, 0, 0));
    // What is lost in between must show.
    generator.burst(&mut p.tx, 8).unwrap();
    p.mover.run(8);
    p.rx.recv_burst(8, |frame| {
        assert!(verify(&frame.header(), &frame.to_vec()).is_ok());
    })
    .unwrap();
    for _ in 0..32 {
        generator.burst(&mut p.tx, 32).unwrap();
        p.mover.run(32);
        meter.burst(&mut p.rx, 32).unwrap();
    }
    assert_eq!((meter.tally().missing, meter.tally().late), (8, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any cut on either side, any buffer size: the bytes arrive, or the frame is dropped for lack of buffers.
    #[test]
    fn any_cut_moves_any_frame(
        tx_cuts in prop::collection::vec(0u32..200, 0..10),
        tx_every in prop::option::of(64u32..2000),
        rx_cuts in prop::collection::vec(1u32..200, 0..6),
        indirect in any::<(bool, bool)>(),
        merge in any::<bool>(),
        packed in any::<(bool, bool)>(),
        rx_buffer in 64u32..3000,
        lens in prop::collection::vec(0usize..9000, 1..20),
    ) {
        let shape = |cuts: &[u32], every: Option<u32>, indirect: bool| {
            let mut shape = Shape::cuts(cuts);
            if let Some(every) = every { shape = shape.then_every(every); }
            if indirect { shape = shape.indirect(); }
            shape
        };
        let features = VERSION_1 | INDIRECT_DESC | if merge { MRG_RXBUF } else { 0 };
        let rx = RxOptions {
            shape: shape(&rx_cuts, None, indirect.1),
            buffer: Some(rx_buffer),
            table_len: 160,
            ..RxOptions::default()
        };
        let tx = TxOptions { table_len: 160, large: 4, ..TxOptions::default() };
        let layout = |packed| features | if packed { RING_PACKED } else { 0 };
        let (tx, rx) = ((layout(packed.0), tx), (layout(packed.1), rx));
        let mut p = pair(&Layout::single(8 << 20), tx, rx);
        for (i, len) in lens.into_iter().enumerate() {
            let frame = body(i, len);
            p.tx.send_shaped(&VirtioNetHdr::default(), &frame, &shape(&tx_cuts, tx_every, indirect.0)).unwrap();
            let delivered = p.mover.run(1) == 1;
            let fits = frame.len() + 12 <= rx_buffer as usize;
            let got = p.rx.recv(Duration::ZERO).unwrap();
            prop_assert_eq!(delivered, got.is_some());
            if fits { prop_assert!(delivered); }
            if let Some((hdr, got)) = got {
                prop_assert_eq!(&got, &frame);
                if merge {
                    let want = (frame.len() + 12).div_ceil(rx_buffer as usize);
                    prop_assert_eq!(usize::from(hdr.num_buffers), want);
                }
            }
        }
    }
}

/// Bursts after chains of several descriptors: the ring has lost its simple order for good.
#[test]
fn bursts_after_long_chains() {
    LAYOUTS.into_iter().for_each(chains_then_bursts);
}

fn chains_then_bursts(base: u64) {
    let layout = Layout::single(16 << 20);
    let tx = TxOptions {
        size: 64,
        ..TxOptions::default()
    };
    let rx = RxOptions {
        size: 128,
        ..RxOptions::default()
    };
    let mut p = pair(&layout, (base, tx), (base, rx));
    for i in 0..50 {
        let shape = Shape::cuts(&[12]).then_every(30 + i);
        let frame = body(i as usize, 200);
        p.tx.send_shaped(&VirtioNetHdr::default(), &frame, &shape)
            .unwrap();
        p.mover.run(1);
        assert_eq!(p.rx.recv(Duration::ZERO).unwrap().unwrap().1, frame);
    }
    let pattern = Pattern::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], 60).flows(7);
    let mut generator = Generator::new(pattern.clone(), &mut p.tx).unwrap();
    let mut meter = Meter::new(&pattern);
    for _ in 0..3000 {
        assert_eq!(generator.burst(&mut p.tx, 32).unwrap(), 32);
        assert_eq!(p.mover.run(32), 32);
        assert_eq!(meter.burst(&mut p.rx, 64).unwrap(), 32);
    }
    assert_eq!(
        (
            meter.tally().frames,
            meter.tally().missing,
            meter.tally().late
        ),
        (96_000, 0, 0)
    );
}
