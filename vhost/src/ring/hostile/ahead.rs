//! Chains are resolved a burst before they are needed: nothing may be remembered that is no longer so, and nothing may
//! come out of order.

use super::racer::Dice;
use super::*;
use crate::ring::Base;

both!(
    memory_replaced_under_resolved_chains_is_not_read,
    memory_replaced_under_resolved_buffers_is_not_written,
    memory_taken_from_under_resolved_chains_makes_them_unmapped,
    a_ring_that_was_settled_resolves_anew,
    descriptors_rewritten_after_they_were_resolved_cost_only_their_own_frame,
    racing_descriptors_of_resolved_chains_keep_counts_exact,
    a_ring_of_two_is_looked_ahead_over_its_end,
);

/// The same guest in another file, the bytes of its buffers changed: what a ring must see once it is bound to that.
fn moved<D: Driver>(rig: &mut Rig<D>, buffers: u64) -> Guest {
    let copy = Guest::new(MEMORY);
    copy.write(0, &rig.guest.read(0, MEMORY as usize));
    for number in 0..buffers {
        copy.write(Rig::<D>::buffer(number) + 12, &[0xbb; 60]);
    }
    rig.memory = copy.memory(&[]);
    std::mem::replace(&mut rig.guest, copy)
}

/// CVE-2026-86567, seen from the ring.
fn memory_replaced_under_resolved_chains_is_not_read<D: Driver>() {
    for taken in [1, 8, 31, 32] {
        let mut rig = Rig::<D>::new(64);
        let mut tx = rig.tx(PLAIN);
        for id in 0..64 {
            rig.send(id, Rig::<D>::buffer(id.into()), 60, 0xaa);
        }
        assert!(tx.take(taken).unwrap().iter().all(Result::is_ok));
        tx.ring.settle();
        let old = Arc::downgrade(&rig.memory);
        moved(&mut rig, 64);
        tx.ring.rebind(&rig.memory).unwrap();
        assert!(old.upgrade().is_none(), "nothing holds the old memory");
        assert_eq!(tx.frames(), vec![Ok(vec![0xbb; 60]); 64 - taken]);
        let ids: Vec<_> = (0..64).map(|id| (id, 0)).collect();
        assert_eq!(rig.used(), ids);
    }
}

/// CVE-2026-86567, the other way.
fn memory_replaced_under_resolved_buffers_is_not_written<D: Driver>() {
    for features in [PLAIN, MERGED] {
        let mut rig = Rig::<D>::new(64);
        let mut rx = rig.rx(features);
        for id in 0..64 {
            rig.offer(id, &[(Rig::<D>::buffer(id.into()), 100, WRITE)]);
        }
        put(&mut rx, &[1; 60]).unwrap();
        rx.settle();
        let before = moved(&mut rig, 0);
        let image = before.read(0, MEMORY as usize);
        rx.rebind(&rig.memory).unwrap();
        for number in 1..64u8 {
            put(&mut rx, &[number; 60]).unwrap();
            let buffer = Rig::<D>::buffer(number.into());
            assert_eq!(rig.guest.read(buffer + 12, 60), [number; 60]);
        }
        assert!(
            before.read(0, MEMORY as usize) == image,
            "written to the old file"
        );
        assert_eq!(rig.used().len(), 64);
    }
}

/// CVE-2026-86567: the buffers' region goes, the ring's stays.
fn memory_taken_from_under_resolved_chains_makes_them_unmapped<D: Driver>() {
    let mut rig = Rig::<D>::new(64);
    rig.memory = rig.guest.memory(&[BUFFERS]);
    let mut tx = rig.tx(PLAIN);
    for id in 0..48 {
        rig.send(id, Rig::<D>::buffer(id.into()), 60, 1);
    }
    assert_eq!(tx.take(10).unwrap().len(), 10);
    tx.ring.settle();
    let without = rig.memory.without(rig.guest.spec(BUFFERS, MEMORY));
    tx.ring.rebind(&Arc::new(without.unwrap())).unwrap();
    assert_eq!(tx.frames(), vec![Err(ChainError::Unmapped); 38]);
    // It comes back, and the ring goes on.
    tx.ring.rebind(&rig.memory).unwrap();
    rig.send(48, BUFFERS, 60, 2);
    assert_eq!(tx.frames(), [Ok(vec![2; 60])]);
    let ids: Vec<_> = (0..49).map(|id| (id, 0)).collect();
    assert_eq!(rig.used(), ids);
}

/// Stopped, the guest rewrites what is still on offer, started: by the same ring and by a new one.
fn a_ring_that_was_settled_resolves_anew<D: Driver>() {
    for anew in [false, true] {
        let mut rig = Rig::<D>::new(64);
        let mut tx = rig.tx(PLAIN);
        let mut places = Vec::new();
        for id in 0..60 {
            places.push(rig.send(id, Rig::<D>::buffer(id.into()), 60, 1));
        }
        assert_eq!(tx.take(20).unwrap().len(), 20);
        let base = tx.ring.settle();
        rig.guest.write(BUFFERS + 12, &[2; 90]);
        for at in &places[20..] {
            rig.guest.write(*at, &BUFFERS.to_le_bytes());
            rig.guest.write(at + 8, &102u32.to_le_bytes());
        }
        if anew {
            let setup = Setup {
                base: Base::Known(base),
                ..rig.setup(PLAIN)
            };
            tx.ring = TxRing::start(setup).unwrap();
        }
        assert_eq!(tx.frames(), vec![Ok(vec![2; 90]); 40]);
        let ids: Vec<_> = (0..60).map(|id| (id, 0)).collect();
        assert_eq!(rig.used(), ids);
    }
}

/// What was resolved is used or what is there now; others do not notice, and every chain goes back once.
fn descriptors_rewritten_after_they_were_resolved_cost_only_their_own_frame<D: Driver>() {
    for (addr, len) in [(BUFFERS + 0x8_0000, 102), (u64::MAX, 60), (BUFFERS, 5)] {
        for victim in [0, 1, 15, 31] {
            let mut rig = Rig::<D>::new(64);
            let mut tx = rig.tx(PLAIN);
            let mut places = Vec::new();
            for id in 0..64 {
                let byte = id as u8;
                places.push(rig.send(id, Rig::<D>::buffer(id.into()), 60, byte));
            }
            rig.guest.write(BUFFERS + 0x8_000c, &[0xcc; 90]);
            assert_eq!(tx.take(MAX_BURST).unwrap().len(), MAX_BURST);
            let at = places[MAX_BURST + victim];
            rig.guest.write(at, &addr.to_le_bytes());
            rig.guest.write(at + 8, &u32::to_le_bytes(len));
            for (number, frame) in tx.frames().into_iter().enumerate() {
                let own = Ok(vec![(MAX_BURST + number) as u8; 60]);
                let allowed = [
                    own.clone(),
                    Ok(vec![0xcc; 90]),
                    Err(ChainError::Unmapped),
                    Err(ChainError::Short),
                ];
                if number == victim {
                    assert!(allowed.contains(&frame), "{frame:?}");
                } else {
                    assert_eq!(frame, own);
                }
            }
            let ids: Vec<_> = (0..64).map(|id| (id, 0)).collect();
            assert_eq!(rig.used(), ids);
        }
    }
}

/// The same without an end, from another thread.
fn racing_descriptors_of_resolved_chains_keep_counts_exact<D: Driver>() {
    const SIZE: u16 = 64;
    let mut rig = Rig::<D>::new(SIZE);
    let mut tx = rig.tx(PLAIN);
    let racer = Racer::start(&rig.guest, |memory, dice| {
        let slot = RING + 16 * dice.below(SIZE.into());
        if dice.below(2) == 0 {
            memory.store_u64(slot, dice.of(&[BUFFERS, MEMORY - 30, u64::MAX]));
        } else {
            memory.store_u32(slot + 8, dice.of(&[0, 12, 60, 1500, u32::MAX]));
        }
    });
    let mut dice = Dice::new(3);
    let (mut next, mut back, mut out) = (0u64, 0u64, 0u64);
    let (mut good, mut bad) = (0u32, 0u32);
    while next < 60_000 {
        for _ in 0..dice.below(1 + rig.driver.free()) {
            rig.offer((next % 256) as u16, &[(BUFFERS, 60, 0)]);
            next += 1;
        }
        let frames = tx.take(dice.below(40) as usize).unwrap();
        back += frames.len() as u64;
        good += frames.iter().filter(|frame| frame.is_ok()).count() as u32;
        bad += frames.iter().filter(|frame| frame.is_err()).count() as u32;
        for id in rig.used_ids() {
            assert_eq!(u64::from(id), out % 256);
            out += 1;
        }
        assert_eq!(out, back, "as many came back as were taken");
    }
    drop(racer);
    assert!(good > 0 && bad > 0, "{good} {bad}");
}

/// The list of what is resolved is longer than the ring, which has been through its end.
fn a_ring_of_two_is_looked_ahead_over_its_end<D: Driver>() {
    for start in [0, 1, 2, 3, 65_533, 65_535] {
        let mut rig = Rig::<D>::new(2);
        rig.driver = D::starting_at(&rig.guest, RING, 2, start);
        let mut tx = rig.tx(EVENT);
        for round in 0..300u16 {
            let (one, two) = (round % 100, 100 + round % 100);
            rig.send(one, BUFFERS, 60, round as u8);
            rig.send(two, BUFFERS + 0x1000, 61, !(round as u8));
            let max = 1 + usize::from(round) % 3;
            let mut frames = tx.take(max).unwrap();
            assert_eq!(frames.len(), max.min(2));
            if max == 1 {
                // A third one where the first was, which is resolved behind the second.
                assert_eq!(rig.used(), [(one, 0)]);
                rig.send(one, BUFFERS, 60, 0x55);
                frames.extend(tx.take(1).unwrap());
                assert_eq!(rig.used(), [(two, 0)]);
                assert_eq!(tx.frames(), [Ok(vec![0x55; 60])]);
                assert_eq!(rig.used(), [(one, 0)]);
            } else {
                assert_eq!(rig.used(), [(one, 0), (two, 0)]);
            }
            let bytes: Vec<_> = frames.into_iter().map(|frame| frame.unwrap().1).collect();
            assert_eq!(bytes, [vec![round as u8; 60], vec![!(round as u8); 61]]);
            tx.ring.signal().unwrap();
            assert!(!tx.ring.arm());
            tx.ring.disarm();
        }
    }
}
