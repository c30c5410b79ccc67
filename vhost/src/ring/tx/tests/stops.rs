//! What stops a ring, and what it survives: indices and memory that no driver would make.

use proptest::prelude::*;

use super::*;

#[test]
fn an_available_index_that_jumps_stops_the_ring_for_good() {
    for jump in [9u16, 300, 32_768, 65_535] {
        let mut bench = Bench::new(MODERN, 8, &[]);
        bench.guest.write_u16(bench.queue.available() + 2, jump);
        assert!(bench.ring.has_work());
        let error = bench
            .ring
            .take(&mut bench.scratch, 32)
            .unwrap_err_of_burst();
        assert_eq!(
            error,
            RingError::AvailableIndex {
                available: jump,
                next: 0,
                size: 8
            }
        );
        bench.guest.write_u16(bench.queue.available() + 2, 0);
        assert!(
            bench.ring.take(&mut bench.scratch, 32).is_err(),
            "stays stopped"
        );
        assert!(!bench.ring.has_work() && !bench.ring.arm() && !bench.ring.complete());
        assert_eq!(bench.ring.error(), Some(error));
    }
}

trait BurstError {
    fn unwrap_err_of_burst(self) -> RingError;
}

impl BurstError for Result<TxBurst<'_>, RingError> {
    fn unwrap_err_of_burst(self) -> RingError {
        match self {
            Ok(_) => panic!("the ring did not break"),
            Err(error) => error,
        }
    }
}

#[test]
fn a_head_outside_the_table_stops_the_ring_after_what_came_before() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    let frame = pattern(60);
    bench.send(0, &[&header(), &frame]);
    bench.queue.offer(&bench.guest, 8);
    assert_eq!(bench.ring.take(&mut bench.scratch, 32).unwrap().len(), 1);
    assert!(bench.ring.complete());
    let error = bench
        .ring
        .take(&mut bench.scratch, 32)
        .unwrap_err_of_burst();
    assert_eq!(error, RingError::Head { head: 8, size: 8 });
    assert_eq!(bench.queue.take_used(&bench.guest), [(0, 0)]);
    assert_eq!(bench.ring.settle(), 1);
}

/// Chains are resolved ahead of the index at which the ring stands, so one that goes back would leave them behind it.
#[test]
fn an_available_index_that_goes_back_stops_the_ring() {
    for back_to in [32, 33, 63] {
        let mut bench = Bench::new(MODERN, 256, &[]);
        let frame = [&header()[..], &pattern(60)].concat();
        for head in 0..64 {
            bench.send(head, &[&frame]);
        }
        assert_eq!(bench.ring.take(&mut bench.scratch, 32).unwrap().len(), 32);
        bench.guest.write_u16(bench.queue.available() + 2, back_to);
        assert!(matches!(
            bench.ring.take(&mut bench.scratch, 32),
            Err(RingError::AvailableIndex { next: 32, .. })
        ));
    }
}

/// Another thread of the guest rewrites everything a chain consists of while it is taken.
#[test]
fn racing_descriptors_lengths_and_headers_are_survived() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const TABLE: u64 = 0x8_0000;
    let mut bench = Bench::new(MODERN, 16, &[0x9_0000]);
    let file = bench.guest.file.try_clone().unwrap();
    let (size, at) = (bench.guest.size, bench.queue.at);
    let stop = Arc::new(AtomicBool::new(false));
    let mutator = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let guest = Guest { file, size };
            let mut seed = 1u64;
            while !stop.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let pick = |bits: u32, below: u64| (seed >> bits) % below;
                let entry = if pick(20, 2) == 0 { at } else { TABLE } + 16 * pick(24, 16);
                let addr =
                    [BUFFERS, TABLE, 0x8_fff0, size - 40, u64::MAX - 40][pick(30, 5) as usize];
                let len = [0, 11, 16, 32, 48, 100, 256, 70_000][pick(36, 8) as usize];
                guest.descriptor(
                    entry,
                    addr,
                    len,
                    pick(44, 8) as u16 & !WRITE,
                    pick(50, 17) as u16,
                );
                guest.write(BUFFERS, &seed.to_le_bytes());
            }
        }
    });
    let mut taken = 0;
    for round in 0..200_000u32 {
        bench.queue.offer(&bench.guest, (round % 16) as u16);
        let burst = bench.ring.take(&mut bench.scratch, 32).unwrap();
        for frame in burst.iter().flatten() {
            assert!(frame.len as usize <= MAX_FRAME);
            whole(frame);
            taken += 1;
        }
        bench.ring.complete();
        if taken > 2_000 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    mutator.join().unwrap();
    assert!(taken > 0);
}

#[test]
fn memory_cut_short_stops_the_ring() {
    crate::memory::install_sigbus_guard().unwrap();
    let mut bench = Bench::new(MODERN, 8, &[]);
    let mut other = Bench::new(MODERN, 8, &[]);
    bench.guest.file.set_len(0).unwrap();
    // The ring reads zeros at first: nothing on offer.
    let _ = bench
        .ring
        .take(&mut bench.scratch, 32)
        .map(|burst| burst.len());
    let error = bench
        .ring
        .take(&mut bench.scratch, 32)
        .unwrap_err_of_burst();
    assert_eq!(error, RingError::MemoryLost);
    other.send(0, &[&header(), &pattern(60)]);
    assert_eq!(other.drain().len(), 1, "another guest's ring goes on");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever the ring's memory holds, taking ends, and returns as many chains as it says.
    #[test]
    fn any_bytes_in_the_ring_are_survived(
        noise in prop::collection::vec(any::<u8>(), 512),
        near in prop::collection::vec((0u64..0x11_0000, 0u32..0x3000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 16),
        ahead in 0u16..20,
    ) {
        let mut bench = Bench::new(MODERN, 16, &[0x4_0000, 0x8_0000]);
        bench.guest.write(0x8_0000, &noise);
        for (index, (addr, len, flags, next)) in near.iter().enumerate() {
            bench.queue.descriptor(&bench.guest, index as u16, *addr, *len, *flags, *next);
        }
        for (index, head) in heads.iter().enumerate() {
            bench.guest.write_u16(bench.queue.available() + 4 + 2 * index as u64, *head);
        }
        bench.guest.write_u16(bench.queue.available() + 2, ahead);
        let mut taken = 0;
        for _ in 0..40 {
            let Ok(burst) = bench.ring.take(&mut bench.scratch, 32) else { break };
            taken += burst.len();
            for frame in burst.iter().flatten() {
                whole(frame);
            }
        }
        prop_assert!(taken <= 16);
        prop_assert_eq!(bench.ring.settle() as usize, taken);
        prop_assert_eq!(bench.queue.take_used(&bench.guest).len(), taken);
    }
}
