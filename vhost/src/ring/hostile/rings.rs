//! Rings that lie about themselves, lie where they must not, or are never served.

use std::os::fd::AsFd;

use super::*;
use crate::ring::RingAddresses;
use crate::testing::{USER, count, event};

both!(
    more_on_offer_than_a_ring_holds_ends_it_or_is_taken_in_bursts,
    a_ring_that_starts_anew_knows_nothing_of_the_old_one,
    a_guest_that_returns_no_buffers_costs_a_look_per_burst,
    full_event_counters_hold_nobody_up,
    parts_may_lie_on_top_of_each_other_and_of_the_buffers,
    one_ring_may_be_both_queues,
    receive_chains_without_measure_end_a_burst_and_lose_nothing,
);

/// CVE-2026-86845 to -86848: the available index was not checked.
fn more_on_offer_than_a_ring_holds_ends_it_or_is_taken_in_bursts<D: Driver>() {
    let mut rig = Rig::<D>::new(8);
    let (mut tx, mut rx) = (rig.tx(PLAIN), rig.rx(PLAIN));
    rig.driver.offer_too_many(&rig.guest);
    let error = tx.take(MAX_BURST).unwrap_err();
    if D::FEATURES == 0 {
        assert!(matches!(error, RingError::AvailableIndex { size: 8, .. }));
        assert_eq!(rx.begin(1).map(|_| ()), Err(error));
    } else {
        assert!(matches!(error, RingError::Endless { limit: 8, .. }));
        assert_eq!(put(&mut rx, &pattern(60)), Err(RxError::Full));
        assert_eq!(rx.error(), Some(error));
    }
    // What the guest says afterwards does not revive it.
    rig.guest.write(RING, &vec![0; rig.driver.bytes() as usize]);
    assert_eq!(tx.take(MAX_BURST), Err(error));
    assert!(!tx.ring.has_work() && !tx.ring.arm() && !tx.ring.complete());
}

/// CVE-2026-86845 to -86848: a session that was gone left something behind.
fn a_ring_that_starts_anew_knows_nothing_of_the_old_one<D: Driver>() {
    let mut rig = Rig::<D>::new(64);
    let mut tx = rig.tx(PLAIN);
    for id in 0..40 {
        rig.send(id, Rig::<D>::buffer(id.into()), 60, 1);
    }
    assert_eq!(tx.take(4).unwrap().len(), 4);
    let old = Arc::downgrade(&rig.memory);
    // The guest reboots: its memory is new, and so is its ring.
    let mut fresh = Rig::<D>::new(64);
    fresh.send(7, BUFFERS, 80, 2);
    std::mem::swap(&mut rig, &mut fresh);
    tx.ring.settle();
    tx = rig.tx(PLAIN);
    drop(fresh);
    assert!(old.upgrade().is_none(), "nothing holds the old memory");
    assert_eq!(tx.frames(), [Ok(vec![2; 80])]);
    assert_eq!(rig.used(), [(7, 0)]);
}

/// It is full, at a look a burst, until it is not.
fn a_guest_that_returns_no_buffers_costs_a_look_per_burst<D: Driver>() {
    for features in [PLAIN, MERGED] {
        let mut rig = Rig::<D>::new(4);
        let mut rx = rig.rx(features);
        for id in 0..3 {
            rig.offer(id, &[(Rig::<D>::buffer(id.into()), 100, WRITE)]);
        }
        let before = rig.guest.read(BUFFERS, 0x4000);
        for round in 0..1000 {
            let mut burst = rx.begin(MAX_BURST).unwrap();
            for number in 0..MAX_BURST {
                let frame = [number as u8; 60];
                let put = burst.put(&VirtioNetHdr::default(), &[&frame], Pieces::empty());
                let fits = round == 0 && number < 3;
                assert_eq!(put, if fits { Ok(()) } else { Err(RxError::Full) });
            }
            // A buffer that comes late in a burst is for the next.
            if round == 500 {
                rig.offer(3, &[(Rig::<D>::buffer(3), 100, WRITE)]);
            }
            assert_eq!(burst.finish(), if round == 0 { 3 } else { 0 });
            if round == 500 {
                assert_eq!(put(&mut rx, &[9; 60]), Ok(()));
            }
        }
        assert_eq!(rig.used(), [(0, 72), (1, 72), (2, 72), (3, 72)]);
        assert_ne!(rig.guest.read(BUFFERS, 0x4000), before);
    }
}

/// A storm of kicks, and a guest that never looks at its calls.
fn full_event_counters_hold_nobody_up<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let (kick, call) = (event(), event());
    for fd in [&kick, &call] {
        rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(rustix::io::write(fd, &1u64.to_ne_bytes()).is_err(), "full");
    }
    let setup = Setup {
        kick: Some(Arc::clone(&kick)),
        call: Some(Arc::clone(&call)),
        ..rig.setup(PLAIN)
    };
    let mut tx = Tx {
        ring: TxRing::start(setup).unwrap(),
        scratch: TxScratch::new(),
    };
    for round in 0..1000u16 {
        let _ = rustix::io::write(kick.as_fd(), &1u64.to_ne_bytes());
        tx.ring.drain_kick();
        assert_eq!(count(&kick), 0, "taken back, all at once");
        rig.send(round % 16, BUFFERS, 60, 3);
        assert!(tx.ring.arm());
        tx.ring.disarm();
        assert_eq!(tx.drain().len(), 1);
        assert!(tx.ring.signal().unwrap(), "the call that is there will do");
        assert_eq!(rig.used().len(), 1);
    }
    assert_eq!(count(&call), u64::MAX - 1);
}

/// Places within and around one ring, for parts to lie in.
fn places<D: Driver>(driver: &D) -> Vec<u64> {
    let RingAddresses {
        descriptors,
        available,
        used,
    } = driver.addresses();
    let parts = [descriptors.0, available.0, used.0].map(|user| user - USER);
    let mut all: Vec<_> = parts.iter().map(|at| at.next_multiple_of(16)).collect();
    all.extend([RING + 16, RING + 64, BUFFERS]);
    all
}

/// Rings over each other and over their buffers: the guest's data is lost, and nothing else.
fn parts_may_lie_on_top_of_each_other_and_of_the_buffers<D: Driver>() {
    let mut rig = Rig::<D>::new(16);
    let around = rig.guest.read(0xc_0000, 0x1000);
    let places = places(&rig.driver);
    for descriptors in &places {
        for available in &places {
            for used in &places {
                let user = |at: &u64| crate::memory::UserAddr(USER + at);
                let addresses = RingAddresses {
                    descriptors: user(descriptors),
                    available: user(available),
                    used: user(used),
                };
                rig.guest.write(RING, &[0; 0x1000]);
                rig.guest.write(BUFFERS, &[0; 0x1000]);
                rig.driver = D::starting_at(&rig.guest, RING, 16, 0);
                let start = || Setup {
                    addresses,
                    ..rig.setup(EVENT)
                };
                let (tx, rx) = (TxRing::start(start()), RxRing::start(start()));
                let (Ok(ring), Ok(mut rx)) = (tx, rx) else {
                    continue;
                };
                let scratch = TxScratch::new();
                let mut tx = Tx { ring, scratch };
                for round in 0..24u16 {
                    let buffer = [RING, *used, *available, BUFFERS][usize::from(round % 4)];
                    let flags = if round % 8 < 4 { 0 } else { WRITE };
                    if rig.driver.free() > 0 {
                        rig.offer(round, &[(buffer, 100, flags)]);
                    }
                    if tx.take(MAX_BURST).is_ok() {
                        tx.ring.signal().unwrap();
                        tx.ring.arm();
                    }
                    let _ = put(&mut rx, &[round as u8; 60]);
                    rx.signal().unwrap();
                }
                tx.ring.settle();
                rx.settle();
            }
        }
    }
    assert_eq!(rig.guest.read(0xc_0000, 0x1000), around);
}

/// A receive and a transmit queue over the same memory, served by turns and by two threads at once.
fn one_ring_may_be_both_queues<D: Driver>() {
    let mut rig = Rig::<D>::new(64);
    let (mut tx, mut rx) = (rig.tx(PLAIN), rig.rx(MERGED));
    let receiving = std::thread::spawn(move || {
        let mut frames = 0;
        for _ in 0..20_000 {
            let Ok(mut burst) = rx.begin(8) else { break };
            for _ in 0..8 {
                let put = burst.put(&VirtioNetHdr::default(), &[&[5; 200]], Pieces::empty());
                frames += u32::from(put.is_ok());
            }
            burst.finish();
        }
        rx.settle();
        frames
    });
    for round in 0..2_000u16 {
        let buffer = if round % 3 == 0 { RING } else { BUFFERS };
        let flags = if round % 2 == 0 { 0 } else { WRITE };
        rig.guest.write(RING, &[0; 16]);
        rig.driver = D::starting_at(&rig.guest, RING, 64, 0);
        for id in 0..8 {
            rig.offer(id, &[(buffer, 300, flags)]);
        }
        if tx.take(MAX_BURST).is_err() {
            tx.ring.settle();
            tx = rig.tx(PLAIN);
        }
    }
    receiving.join().unwrap();
    assert!(
        rig.guest
            .read(BUFFERS + 300, 300)
            .iter()
            .all(|byte| *byte == 0)
    );
}

/// No advisory: as a burst's transmit chains, a burst's receive chains may have so many descriptors together and no more,
/// whatever comes of them; else each of 32 frames costs its sender's worker 2,047.
fn receive_chains_without_measure_end_a_burst_and_lose_nothing<D: Driver>() {
    let long: Vec<Piece> = (0..1000)
        .map(|piece| (BUFFERS, if piece < 999 { 0 } else { 100 }, WRITE))
        .collect();
    let mut bad = long.clone();
    bad[999] = (u64::MAX, 100, WRITE);
    let mut small = long.clone();
    small[999].1 = 13;
    for (chain, features, result) in [
        (&long, PLAIN, Ok(())),
        (&bad, PLAIN, Err(RxError::Malformed(ChainError::Unmapped))),
        (&small, PLAIN, Err(RxError::TooBig)),
        (&small, MERGED, Err(RxError::TooBig)),
    ] {
        let mut rig = Rig::<D>::new(64);
        let mut rx = rig.rx(features);
        for id in 0..32 {
            rig.offer_table(id, TABLES, chain);
        }
        let mut used_up = 0;
        for _ in 0..4 {
            let mut burst = rx.begin(32).unwrap();
            let results: Vec<_> = (0..32)
                .map(|_| burst.put(&VirtioNetHdr::default(), &[&[1; 60]], Pieces::empty()))
                .collect();
            let tried = results.iter().take_while(|put| **put == result).count();
            assert!((2..=5).contains(&tried), "{tried} of {result:?}");
            assert!(
                results[tried..]
                    .iter()
                    .all(|put| *put == Err(RxError::Full))
            );
            assert!(burst.is_full(), "nothing is to be prepared in vain");
            let lost = matches!(result, Err(RxError::TooBig));
            used_up += if lost { 0 } else { tried };
            burst.finish();
        }
        let ids: Vec<_> = (0..used_up as u16).collect();
        assert_eq!(rig.used_ids(), ids);
    }
}
