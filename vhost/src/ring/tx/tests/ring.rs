//! Bursts, indices, calls and kicks.

use super::*;

#[test]
fn bursts_respect_max_and_nothing_is_published_before_complete() {
    let mut bench = Bench::new(MODERN, 256, &[]);
    for index in 0..50 {
        bench.send(index * 2, &[&header(), &pattern(64)]);
    }
    assert_eq!(bench.ring.take(&mut bench.scratch, 0).unwrap().len(), 0);
    assert_eq!(bench.ring.take(&mut bench.scratch, 5).unwrap().len(), 5);
    assert_eq!(bench.queue.used_index(&bench.guest), 0);
    assert!(bench.ring.complete());
    assert!(!bench.ring.complete());
    assert_eq!(bench.queue.used_index(&bench.guest), 5);
    assert_eq!(
        bench.ring.take(&mut bench.scratch, 1000).unwrap().len(),
        MAX_BURST
    );
    // A take completes what was taken before.
    assert_eq!(bench.ring.take(&mut bench.scratch, 1000).unwrap().len(), 13);
    assert_eq!(bench.queue.used_index(&bench.guest), 37);
}

#[test]
fn long_chains_end_a_burst_early_and_lose_nothing() {
    let guest = Guest::new(0x20_0000);
    let queue = Queue::new(0x1000, 32_768);
    let mut bench = Bench::with(guest, queue, MODERN, &[]);
    // Ten chains of a thousand one-byte buffers.
    for chain in 0..10u16 {
        for index in 0..1000 {
            let at = chain * 1000 + index;
            let flags = if index < 999 { NEXT } else { 0 };
            bench.queue.descriptor(
                &bench.guest,
                at,
                0x10_0000 + u64::from(index),
                1,
                flags,
                at + 1,
            );
        }
        bench.queue.offer(&bench.guest, chain * 1000);
    }
    let mut lens = Vec::new();
    loop {
        let burst = bench.ring.take(&mut bench.scratch, 32).unwrap();
        if burst.is_empty() {
            break;
        }
        assert!(burst.iter().all(|frame| frame.unwrap().len == 988));
        lens.push(burst.len());
    }
    assert_eq!(lens.iter().sum::<usize>(), 10);
    assert!(lens.iter().all(|len| *len <= 2), "{lens:?}");
}

#[test]
fn indices_wrap() {
    let guest = Guest::new(0x10_0000);
    let queue = Queue::starting_at(&guest, 0x1000, 8, 65_530);
    let mut bench = Bench::with(guest, queue, EVENT, &[]);
    for index in 0..20u16 {
        bench.send(
            index % 4 * 2,
            &[&header(), &pattern(60 + usize::from(index))],
        );
        let frames = bench.drain();
        assert_eq!(frames[0].as_ref().unwrap().1.len(), 60 + usize::from(index));
        assert_eq!(bench.queue.take_used(&bench.guest).len(), 1);
    }
    assert_eq!(bench.queue.used_index(&bench.guest), 14);
}

#[test]
fn a_ring_resumes_where_the_used_ring_stands() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    for round in 0..3u8 {
        bench.send(0, &[&header(), &[round; 60]]);
        bench.send(2, &[&header(), &[round; 61]]);
        assert_eq!(bench.ring.take(&mut bench.scratch, 1).unwrap().len(), 1);
        bench.ring.complete();
        // The switch dies here; another takes over.
        let memory = bench.guest.memory(&[]);
        bench.ring = TxRing::start(setup(&memory, &bench.queue, MODERN)).unwrap();
        let frames = bench.drain();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].clone().unwrap().1, [round; 61]);
        assert_eq!(bench.queue.take_used(&bench.guest), [(0, 0), (2, 0)]);
    }
}

#[test]
fn calls_follow_the_guests_flag_without_event_index() {
    let mut bench = Bench::new(MODERN, 8, &[]);
    let call = bench.call();
    assert_eq!(
        count(&call),
        1,
        "a ring that starts calls once, for its predecessor"
    );
    assert!(!bench.ring.signal().unwrap(), "nothing happened");
    for (suppressed, calls) in [(false, 1), (true, 0), (false, 1)] {
        bench.queue.set_no_interrupt(&bench.guest, suppressed);
        bench.send(0, &[&header(), &pattern(60)]);
        bench.drain();
        assert_eq!(bench.ring.signal().unwrap(), calls == 1);
        assert!(!bench.ring.signal().unwrap(), "once");
        assert_eq!(count(&call), calls);
    }
}

#[test]
fn calls_follow_the_event_index() {
    let mut bench = Bench::new(EVENT, 8, &[]);
    let call = bench.call();
    count(&call);
    let mut step = |event: u16| {
        bench.queue.set_used_event(&bench.guest, event);
        bench.send(0, &[&header(), &pattern(60)]);
        bench.drain();
        bench.ring.signal().unwrap()
    };
    assert!(step(100), "the first question is answered yes");
    assert!(!step(100));
    assert!(step(2), "the third entry was asked for");
    assert!(!step(2), "stale");
    assert_eq!(count(&call), 2);
    bench.ring.set_call(Some(crate::testing::event()));
    assert_eq!(count(bench.call()), 1, "a new descriptor is tried at once");
}

#[test]
fn arming_asks_looks_again_and_disarming_declines() {
    for features in [MODERN, EVENT] {
        let mut bench = Bench::new(features, 8, &[]);
        let declined = |bench: &Bench| {
            if features == EVENT {
                let next = bench.ring.base_for_tests() as u16;
                bench.queue.available_event(&bench.guest) != next
            } else {
                bench.queue.used_flags(&bench.guest) == 1
            }
        };
        assert!(declined(&bench), "a ring starts polled");
        assert!(!bench.ring.arm());
        assert!(!declined(&bench));
        bench.ring.disarm();
        assert!(declined(&bench));
        bench.send(0, &[&header(), &pattern(60)]);
        assert!(bench.ring.arm(), "work is there already");
        bench.ring.disarm();
        assert_eq!(bench.drain().len(), 1);
        assert!(!bench.ring.arm());
    }
}

#[test]
fn draining_a_kick_never_sleeps() {
    let bench = Bench::new(MODERN, 8, &[]);
    let kick = bench.ring.kick().unwrap();
    rustix::io::write(kick, &3u64.to_ne_bytes()).unwrap();
    let flags = rustix::fs::fcntl_getfl(kick).unwrap();
    rustix::fs::fcntl_setfl(kick, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    bench.ring.drain_kick();
    bench.ring.drain_kick();
    rustix::fs::fcntl_setfl(kick, flags).unwrap();
    assert!(rustix::io::read(kick, &mut [0; 8]).is_err(), "taken back");
}
