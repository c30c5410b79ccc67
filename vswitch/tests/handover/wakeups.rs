//! Guests send a frame or a few, with pauses so short or so long that workers spin, nap, are about to sleep, or sleep.
//! Meanwhile queues move, are shared and are fetched by their sessions, and workers come and go. Then nothing more happens
//! until every frame has come: who is asleep on one is not woken by the next.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
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
/// Rounds at least, however slow the machine is.
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
    match dice.below(16) {
        0 => {}
        1 => std::thread::sleep(Duration::from_micros(dice.below(300))),
        2 => std::thread::yield_now(),
        _ => {
            let until = Duration::from_nanos(dice.below(60_000));
            while since.elapsed() < until {
                std::hint::spin_loop();
            }
        }
    }
}

/// Where all threads meet between rounds: what the last frames of a round have not woken, nothing else does.
struct Meeting {
    state: Mutex<(usize, u64, bool)>,
    changed: Condvar,
    threads: usize,
}

impl Meeting {
    fn new(threads: usize) -> Self {
        Meeting {
            state: Mutex::new((0, 0, true)),
            changed: Condvar::new(),
            threads,
        }
    }

    /// Waits for all others; false if there is no further round, which is so if anybody says so.
    fn meet(&self, goes_on: bool) -> bool {
        let mut state = self.state.lock();
        state.0 += 1;
        state.2 &= goes_on;
        if state.0 == self.threads {
            (state.0, state.1) = (0, state.1 + 1);
            self.changed.notify_all();
        } else {
            let round = state.1;
            while state.1 == round && (goes_on && state.2) {
                self.changed.wait(&mut state);
            }
        }
        state.2
    }

    /// Nobody is to wait for who is about to panic.
    fn breaks(&self) {
        self.state.lock().2 = false;
        self.changed.notify_all();
    }
}

/// One pair's rounds: some frames, one after the other, so that the last may be the one that finds nobody awake.
fn exchange(stream: &mut Stream, workers: &Workers, mut dice: Dice, meeting: &Meeting) {
    while meeting.meet(true) {
        for _ in 0..1 + dice.below(3) {
            pause(&mut dice);
            stream.send(1);
            stream.take();
        }
        let mut patience = Patience::new();
        while stream.away() > 0 {
            if stream.take() {
                patience.renew();
            } else if patience.is_over() {
                meeting.breaks();
                let stream = stream.report(workers);
                panic!("nobody brings a frame\n{}{stream}", patience.report());
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// What happened to queues and workers meanwhile.
#[derive(Default, Debug)]
struct Disturbances {
    rounds: u64,
    moves: u64,
    shares: u64,
    restarts: u64,
    changes: u64,
}

/// A few of them in a round, until the time is over. Only guests that send are stopped: what is sent to one that is would be
/// dropped.
fn disturb(
    (workers, guests): (&Workers, &mut [SimGuest]),
    of: &[Wanted],
    time: Duration,
    meeting: &Meeting,
) -> Disturbances {
    let (mut done, mut dice) = (Disturbances::default(), Dice(77));
    let begun = Instant::now();
    while meeting.meet(done.rounds < ROUNDS || begun.elapsed() < time) {
        done.rounds += 1;
        for _ in 0..dice.below(3) {
            pause(&mut dice);
            let queues = workers.queues();
            let key = queues[dice.below(queues.len() as u64) as usize].key;
            let list = workers.list();
            let worker = list[dice.below(list.len() as u64) as usize].index;
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
                    let left_out = usize::from(list.len() == of.len());
                    let change = workers.prepare(&of[left_out..]).unwrap();
                    workers.commit(change);
                    done.changes += 1;
                }
                2..6 => done.shares += u64::from(workers.share(key, worker).is_ok()),
                6 => drop(workers.unshare(key)),
                _ => done.moves += u64::from(workers.move_queue(key, worker) == Ok(true)),
            }
        }
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
        let meeting = Meeting::new(streams.len() + 1);
        let (workers, guests) = (&world.workers, &mut world.guests);
        let done = std::thread::scope(|scope| {
            for (n, stream) in (1..).zip(&mut streams) {
                let (dice, meeting) = (Dice(n * 0x9e37_79b9), &meeting);
                scope.spawn(move || exchange(stream, workers, dice, meeting));
            }
            disturb((workers, guests), &of, time, &meeting)
        });
        let list = workers.list();
        let sleeps = list.iter().map(|w| w.vitals.read().sleeps);
        let sleeps: u64 = sleeps.sum();
        println!("{busy_poll:?}, {max_sleep:?}: at least {sleeps} sleeps, {done:?}");
        assert!(sleeps > 0, "nobody ever slept");
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
