//! Another thread of the guest rewrites what a chain consists of while it is looked at: whatever is loaded is judged, and
//! nothing is loaded to be judged and then loaded again to be used.

use super::*;
use crate::ring::MAX_FRAME;
use crate::testing::{INDIRECT, NEXT};

both!(
    racing_lengths_are_used_as_they_were_judged,
    racing_receive_lengths_are_used_as_they_were_judged,
    racing_indirect_lengths_are_used_as_they_were_judged,
    racing_flags_and_next_are_followed_to_an_end,
    everything_in_a_ring_may_change_at_any_time,
    everything_in_a_receive_ring_may_change_at_any_time,
);

/// Rounds of a racing test, unless it is over sooner.
const ROUNDS: u32 = 20_000;

/// CVE-2026-86562: the length that was checked was not the length that was copied.
fn racing_lengths_are_used_as_they_were_judged<D: Driver>() {
    const LENS: [u32; 7] = [0, 11, 12, 72, 300, 70_000, u32::MAX];
    let mut rig = Rig::<D>::new(2);
    let mut tx = rig.tx(PLAIN);
    let at = rig.send(0, BUFFERS, 60, 1);
    tx.drain();
    rig.used();
    let other = at + 16;
    let racer = Racer::start(&rig.guest, move |memory, dice| {
        for slot in [at, other] {
            memory.store_u32(slot + 8, dice.of(&LENS));
        }
    });
    let mut seen = [0; 7];
    for _ in 0..ROUNDS {
        rig.offer(0, &[(BUFFERS, 72, 0)]);
        for taken in tx.drain() {
            let len = match taken {
                Ok((_, bytes)) => {
                    // Only so much was ever said to be there.
                    assert!(bytes.len() <= MAX_FRAME);
                    bytes.len() as u32 + HEADER
                }
                Err(ChainError::Short) => 0,
                Err(ChainError::Empty) => HEADER,
                Err(ChainError::TooLong) => u32::MAX,
                Err(other) => panic!("{other}"),
            };
            let which = LENS.iter().position(|known| *known == len);
            seen[which.expect("a length that was offered")] += 1;
        }
        assert_eq!(rig.used_ids(), [0]);
    }
    drop(racer);
    assert!(seen[3] > 0 && seen[3] < ROUNDS, "{seen:?}");
}

/// CVE-2026-86562, the other way: behind the longest buffer there is no guest memory, behind the shorter ones there is
/// somebody else's.
fn racing_receive_lengths_are_used_as_they_were_judged<D: Driver>() {
    const BUFFER: u64 = MEMORY - 2048;
    for features in [PLAIN, MERGED] {
        let mut rig = Rig::<D>::new(2);
        let mut rx = rig.rx(features);
        let first = rig.offer(0, &[(BUFFER, 2048, WRITE)]);
        put(&mut rx, &pattern(60)).unwrap();
        rig.used();
        let racer = Racer::start(&rig.guest, move |memory, dice| {
            for slot in [first, first + 16] {
                memory.store_u32(
                    slot + 8,
                    dice.of(&[0, 11, 13, 100, 512, 2048, 2049, u32::MAX]),
                );
            }
        });
        let (mut whole, mut refused) = (0, 0);
        for _ in 0..ROUNDS {
            rig.offer(0, &[(BUFFER, 512, WRITE)]);
            for attempt in 0.. {
                assert!(attempt < 10_000, "a length is remembered for ever");
                let result = put(&mut rx, &pattern(500));
                let used = rig.used_ids();
                match result {
                    Ok(()) => {
                        assert_eq!(used, [0]);
                        whole += 1;
                    }
                    Err(RxError::Malformed(ChainError::Short | ChainError::Unmapped)) => {
                        assert_eq!(used, [0]);
                        refused += 1;
                    }
                    // Kept, with the length as it was loaded: the guest's own loss, until it says something else.
                    Err(RxError::TooBig | RxError::Full) => {
                        assert!(used.is_empty());
                        // Without the length that was resolved ahead it is looked at anew.
                        let memory = rig.guest.memory(&[]);
                        rx.rebind(&memory).unwrap();
                        continue;
                    }
                    Err(other) => panic!("{other}"),
                }
                break;
            }
        }
        drop(racer);
        assert!(whole > 0 && refused > 0, "{whole} {refused}");
        // Nothing of the memory in front of it was written.
        assert!(
            rig.guest
                .read(BUFFERS, (BUFFER - BUFFERS) as usize)
                .iter()
                .all(|byte| *byte == 0)
        );
    }
}

/// CVE-2026-93683: the length of an indirect table was read more than once.
fn racing_indirect_lengths_are_used_as_they_were_judged<D: Driver>() {
    let mut rig = Rig::<D>::new(2);
    let mut tx = rig.tx(PLAIN);
    // Sixteen entries of as many bytes, then the end of memory.
    let table = MEMORY - 16 * 16;
    let chain: Vec<Piece> = (0..16).map(|_| (BUFFERS, 16, 0)).collect();
    let first = rig.offer_table(0, table, &chain);
    assert_eq!(tx.frames(), [Ok(vec![0; 244])]);
    rig.used();
    let racer = Racer::start(&rig.guest, move |memory, dice| {
        for slot in [first, first + 16] {
            let lens = [0, 16, 31, 256, 272, 16 * 1024, 16 * 1025, u32::MAX];
            memory.store_u32(slot + 8, dice.of(&lens));
        }
    });
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        rig.offer(0, &[(table, 256, INDIRECT)]);
        for taken in tx.frames() {
            match taken {
                Ok(bytes) if bytes.len() == 244 => whole += 1,
                // One entry, which a packed table may end with.
                Ok(bytes) => assert_eq!(bytes.len(), 4),
                Err(
                    ChainError::IndirectLength
                    | ChainError::NextOutOfRange
                    | ChainError::Unmapped
                    | ChainError::Loop,
                ) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(rig.used_ids(), [0]);
    }
    drop(racer);
    assert!(whole > 0 && refused > 0, "{whole} {refused}");
}

/// CVE-2026-86845 to -86848: `next` was checked and read again, or was never written.
fn racing_flags_and_next_are_followed_to_an_end<D: Driver>() {
    const SIZE: u16 = 16;
    let mut rig = Rig::<D>::new(SIZE);
    let descriptors = RING;
    let racer = Racer::start(&rig.guest, move |memory, dice| {
        let slot = descriptors + 16 * dice.below(SIZE.into());
        // Split: flags and next. Packed: id and flags, lap bits among them.
        let low = [0, NEXT, INDIRECT, NEXT | INDIRECT, WRITE];
        let lap = [1 << 7, 1 << 15, 1 << 7 | 1 << 15, 0];
        let next = dice.of(&[0, 1, 7, 15, 16, 17, 0x7fff, 0xffff]);
        let (two, three) = if D::FEATURES == 0 {
            (dice.of(&low), next)
        } else {
            (next, dice.of(&low) | dice.of(&lap))
        };
        memory.store_u32(slot + 12, u32::from(two) | u32::from(three) << 16);
    });
    for slot in 0..u64::from(SIZE) {
        let at = RING + 16 * slot;
        rig.guest.write(at, &BUFFERS.to_le_bytes());
        rig.guest.write(at + 8, &20u32.to_le_bytes());
    }
    let (mut taken, mut broken) = (0, 0);
    while racer.rounds() < 100_000 || taken < 1000 {
        let mut tx = rig.tx(PLAIN);
        for round in 0..200 {
            if D::FEATURES == 0 {
                // The index alone: descriptors are as they happen to be.
                offer_heads(&mut rig, round);
            }
            match tx.take(MAX_BURST) {
                Ok(frames) => taken += frames.len(),
                Err(RingError::Endless { .. }) => {
                    broken += 1;
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        rig.driver = D::starting_at(&rig.guest, RING, SIZE, 0);
    }
    drop(racer);
    assert!(taken > 0);
    assert!(D::FEATURES == 0 || broken > 0 || taken > 100);
}

/// A split ring's available ring, filled with every head, and its index moved on by one.
fn offer_heads<D: Driver>(rig: &mut Rig<D>, round: u16) {
    let available = RING + 16 * u64::from(rig.driver.size());
    for slot in 0..rig.driver.size() {
        let at = available + 4 + 2 * u64::from(slot);
        rig.guest.write_u16(at, slot);
    }
    rig.guest.write_u16(available + 2, round + 1);
}

/// A word for any place of a ring: bits, small numbers, addresses.
fn word(dice: &mut super::racer::Dice) -> u64 {
    let addr = dice.of(&[BUFFERS, TABLES, RING, MEMORY - 20, u64::MAX - 9, 1 << 40, 0]);
    let flags = dice.of(&[
        0u64, 1, 2, 3, 4, 5, 0x80, 0x81, 0x82, 0x84, 0x8000, 0x8001, 0x8080,
    ]);
    let len = dice.of(&[0u64, 1, 11, 12, 16, 32, 60, 2048, 70_000, 0xffff_ffff]);
    match dice.below(4) {
        0 => addr,
        1 => len | dice.below(40) << 32 | flags << 48,
        2 => len | flags << 32 | dice.below(20) << 48,
        _ => dice.next(),
    }
}

fn scribble_all(memory: &super::racer::Raw, dice: &mut super::racer::Dice, bytes: u64) {
    let at = if dice.below(8) == 0 {
        TABLES + 8 * dice.below(64)
    } else {
        RING + 8 * dice.below(bytes / 8)
    };
    memory.store_u64(at, word(dice));
}

/// All of the above at once, and every index beside: whatever is loaded, taking ends, keeps to guest memory and says how
/// many chains there were.
fn everything_in_a_ring_may_change_at_any_time<D: Driver>() {
    for size in [2u16, 16, 256] {
        let mut rig = Rig::<D>::new(size);
        let bytes = rig.driver.bytes();
        let racer = Racer::start(&rig.guest, move |memory, dice| {
            scribble_all(memory, dice, bytes);
        });
        let mut taken = 0;
        for _ in 0..300 {
            rig.guest.write(RING, &vec![0; bytes as usize]);
            rig.driver = D::starting_at(&rig.guest, RING, size, 0);
            let mut tx = rig.tx(EVENT);
            for round in 0..40 {
                let len = rig.driver.free().min(1) as u32 * 60;
                if len > 0 {
                    rig.offer(round, &[(BUFFERS, len, 0)]);
                }
                match tx.take(1 + usize::from(round)) {
                    Ok(frames) => taken += frames.len(),
                    Err(error) => {
                        assert_eq!(tx.ring.error(), Some(error));
                        break;
                    }
                }
                tx.ring.signal().unwrap();
                tx.ring.arm();
                tx.ring.disarm();
            }
            tx.ring.settle();
        }
        drop(racer);
        assert!(taken > 0);
    }
}

/// The same where the switch writes: not a byte beyond what the guest shares, which is all that can be known.
fn everything_in_a_receive_ring_may_change_at_any_time<D: Driver>() {
    for (size, features) in [(2u16, PLAIN), (16, MERGED), (256, MERGED)] {
        let mut rig = Rig::<D>::new(size);
        // What no word above points to is not written.
        rig.guest.write(0xc_0000, &[0x77; 0x1000]);
        let bytes = rig.driver.bytes();
        let racer = Racer::start(&rig.guest, move |memory, dice| {
            scribble_all(memory, dice, bytes);
        });
        // How often a frame finds a buffer in such a ring is up to the processors: more turns until one has.
        let (mut delivered, mut turns) = (0, 0);
        while turns < 300 || (delivered == 0 && turns < 100_000) {
            turns += 1;
            rig.guest.write(RING, &vec![0; bytes as usize]);
            rig.driver = D::starting_at(&rig.guest, RING, size, 0);
            let mut rx = rig.rx(features);
            for round in 0..20 {
                if rig.driver.free() > 0 {
                    rig.offer(round, &[(BUFFERS, 2048, WRITE)]);
                }
                let Ok(mut burst) = rx.begin(4) else { break };
                for len in [60, 1500, 4000] {
                    let frame = [0; 4000];
                    let put =
                        burst.put(&VirtioNetHdr::default(), &[&frame[..len]], Pieces::empty());
                    delivered += u32::from(put.is_ok());
                }
                burst.finish();
                rx.signal().unwrap();
            }
            rx.settle();
        }
        drop(racer);
        assert!(delivered > 0);
    }
}
