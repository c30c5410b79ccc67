//! Guests send a frame or a few, wait until they have come, and pause: for so short or so long that workers spin, nap, are
//! about to sleep, or sleep. Meanwhile queues move, are shared and are fetched by their sessions, and workers come and go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vswitch::worker::registry::Wanted;
use vswitch::worker::{BusyPoll, Workers};
use vswitch_simguest::features::virtio::{EVENT_IDX, RING_PACKED};
use vswitch_simguest::{Builder, SimGuest};

use crate::patience::Patience;
use crate::world::{Stream, World, wanted};

/// Pairs of guests, of all four kinds of rings.
const PAIRS: u8 = 4;
/// How long with each kind of worker.
const TIME: Duration = Duration::from_millis(1200);
/// Rounds of each pair at least, however slow the machine is.
const ROUNDS: u64 = 20;
/// What a worker may nap.
const NAP: Duration = Duration::from_micros(100);

/// Whichever numbers, always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Split or packed rings, with event index or without.
fn habit(port: u8, guest: Builder) -> Builder {
    let guest = match port / 2 % 2 {
        0 => guest,
        _ => guest.with(RING_PACKED),
    };
    match port / 4 % 2 {
        0 => guest,
        _ => guest.without(EVENT_IDX),
    }
}

/// A pause that a worker does not notice, or spins through, or sleeps through.
fn pause(dice: &mut Dice) {
    let since = Instant::now();
    match dice.below(8) {
        0 => {}
        1 => std::thread::sleep(Duration::from_micros(dice.below(2000))),
        2 => std::thread::yield_now(),
        _ => {
            let until = Duration::from_nanos(dice.below(60_000));
            while since.elapsed() < until {
                std::hint::spin_loop();
            }
        }
    }
}

/// One pair's rounds, until it is told to end; how many.
fn exchange(stream: &mut Stream, workers: &Workers, mut dice: Dice, end: &AtomicBool) -> u64 {
    for round in 0.. {
        if end.load(Ordering::Relaxed) && round >= ROUNDS {
            return round;
        }
        let mut left = 1 + dice.below(3);
        let mut patience = Patience::new();
        while left > 0 || stream.away() > 0 {
            if left > 0 {
                // One after the other, so that the last may be the one that finds nobody awake.
                stream.send(1);
                left -= 1;
            }
            if stream.take() {
                patience.renew();
            } else if patience.is_over() {
                // Whoever else is stuck says so, too.
                end.store(true, Ordering::Relaxed);
                let stream = stream.report(workers);
                panic!(
                    "nobody brings a frame, in round {round}\n{}{stream}",
                    patience.report()
                );
            } else if dice.below(4) == 0 {
                std::thread::yield_now();
            }
        }
        pause(&mut dice);
    }
    0
}

/// What happened to queues and workers meanwhile.
#[derive(Default, Debug)]
struct Disturbances {
    moves: u64,
    shares: u64,
    restarts: u64,
    changes: u64,
}

/// Until it is told to end. Only guests that send are stopped: what is sent to one that is would be dropped.
fn disturb(
    workers: &Workers,
    guests: &mut [SimGuest],
    of: &[Wanted],
    mut dice: Dice,
    end: &AtomicBool,
) -> Disturbances {
    let mut done = Disturbances::default();
    while !end.load(Ordering::Relaxed) {
        let queues = workers.queues();
        let key = queues[dice.below(queues.len() as u64) as usize].key;
        let some = workers.list();
        let worker = some[dice.below(some.len() as u64) as usize].index;
        match dice.below(24) {
            0 => {
                let sender = 2 * dice.below(u64::from(PAIRS)) as usize;
                guests[sender].stop().unwrap();
                guests[sender].resume().unwrap();
                // What is acknowledged is done, and all before it.
                let frontend = guests[sender].frontend().unwrap();
                frontend.set_vring_enable(1, true).unwrap();
                done.restarts += 1;
            }
            1 => {
                let count = if some.len() == of.len() { 1 } else { 0 };
                let change = workers.prepare(&of[count..]).unwrap();
                workers.commit(change);
                done.changes += 1;
            }
            2..6 => done.shares += u64::from(workers.share(key, worker).is_ok()),
            6 => drop(workers.unshare(key)),
            _ => done.moves += u64::from(workers.move_queue(key, worker) == Ok(true)),
        }
        pause(&mut dice);
    }
    done
}

#[test]
fn nobody_sleeps_on_a_frame() {
    let seconds = std::env::var("VSWITCH_WAKEUPS").ok();
    let time = seconds.map_or(TIME, |n| Duration::from_secs(n.parse().unwrap()) / 3);
    for (busy_poll, max_sleep) in [
        (BusyPoll::Never, Duration::ZERO),
        (BusyPoll::Adaptive, Duration::ZERO),
        (BusyPoll::Adaptive, NAP),
    ] {
        let of = wanted(3, busy_poll, max_sleep);
        let mut world = World::new(&of, 2 * PAIRS, habit);
        let mut streams: Vec<_> = (0..PAIRS)
            .map(|n| Stream::new(&mut world, 2 * n, 2 * n + 1))
            .collect();
        let (end, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        let (workers, guests) = (&world.workers, &mut world.guests);
        let sleeps = || -> u64 {
            let list = workers.list();
            list.iter().map(|w| w.vitals.read().sleeps).sum()
        };
        let done = std::thread::scope(|scope| {
            for (n, stream) in (1..).zip(&mut streams) {
                let (end, rounds) = (&end, &rounds);
                scope.spawn(move || {
                    let of_this = exchange(stream, workers, Dice(n * 0x9e37_79b9), end);
                    rounds.fetch_add(of_this, Ordering::Relaxed);
                });
            }
            let disturbing = scope.spawn(|| disturb(workers, guests, &of, Dice(77), &end));
            let begun = Instant::now();
            while begun.elapsed() < time && !end.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            end.store(true, Ordering::Relaxed);
            disturbing.join().unwrap()
        });
        println!(
            "{busy_poll:?}, {max_sleep:?}: {rounds:?} rounds, at least {} sleeps, {done:?}",
            sleeps()
        );
        for (n, stream) in (0..).zip(&streams) {
            let (tally, sent) = (stream.meter.tally(), stream.generator.sent());
            assert_eq!(
                (tally.frames, tally.late, tally.missing, tally.alien),
                (sent, 0, 0, 0)
            );
            let (from, to) = (world.totals(2 * n), world.totals(2 * n + 1));
            assert_eq!((from.received, to.delivered), (sent, sent));
        }
        drop(streams);
        world.end();
    }
}
