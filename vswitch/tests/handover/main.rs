//! Four workers to five and back, and queues from one to the next, while guests exchange traffic: no frame is lost, none
//! is late. And while guests send now and then: nobody sleeps on a frame. Sessions, rings, workers and the registry are the
//! real ones; only the daemon around them is not there.
//!
//! `VSWITCH_FRAMES=100000000` makes the first proof as long as that, `VSWITCH_WAKEUPS=600` the second so many seconds.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

mod patience;
mod wakeups;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use patience::Patience;
use vswitch::worker::{BusyPoll, Workers};
use world::{Stream, World, wanted};

/// Pairs of guests that exchange traffic, one sending to the other.
const PAIRS: u8 = 3;
/// Frames on the way at most, per pair: far fewer than fit a ring.
const WINDOW: u64 = 64;
/// Changes of the list of workers at least.
const CHANGES: u64 = 60;

/// Takes what has come, and sends as much as may be on the way unless it is the end; true if anything came.
fn turn(stream: &mut Stream, ending: bool) -> bool {
    let came = stream.take();
    let room = WINDOW.saturating_sub(stream.away()) as u16;
    if room > 0 && !ending {
        stream.send(room.min(32));
    }
    came
}

/// Moves queues and changes the list of workers until it is told to end, [`CHANGES`] times at least; says how often each.
fn disturb(workers: &Workers, end: &AtomicBool) -> (u64, u64) {
    let (mut moves, mut changes) = (0, 0);
    for round in 0u64.. {
        if end.load(Ordering::Relaxed) && changes >= CHANGES {
            break;
        }
        for (n, queue) in (0..).zip(workers.queues()) {
            let to = (round * 7 + n * 3) as usize % 4;
            moves += u64::from(workers.move_queue(queue.key, to) == Ok(true));
        }
        if round % 3 == 0 {
            let count = if workers.list().len() == 4 { 5 } else { 4 };
            let wanted = wanted(count, BusyPoll::Never, Duration::ZERO);
            let change = workers.prepare(&wanted).unwrap();
            workers.commit(change);
            if count == 5 {
                // The new one gets something to hand over when it goes.
                for queue in workers.queues().iter().step_by(4) {
                    moves += u64::from(workers.move_queue(queue.key, 4) == Ok(true));
                }
            }
            changes += 1;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    (moves, changes)
}

#[test]
fn workers_and_owners_change_and_no_frame_is_late() {
    let frames = std::env::var("VSWITCH_FRAMES").ok();
    let all: u64 = frames.map_or(300_000, |n| n.parse().unwrap());
    let most = all / u64::from(PAIRS);
    let workers = wanted(4, BusyPoll::Never, Duration::ZERO);
    let mut world = World::new(&workers, 2 * PAIRS, |_, guest| guest);
    let streams = (0..PAIRS).map(|n| Stream::new(&mut world, 2 * n, 2 * n + 1));
    let mut streams: Vec<_> = streams.collect();
    let end = Arc::new(AtomicBool::new(false));
    let (workers, ended) = (Arc::clone(&world.workers), Arc::clone(&end));
    let disturbing = std::thread::spawn(move || disturb(&workers, &ended));
    let mut patience = Patience::new();
    loop {
        if streams.iter().all(|s| s.meter.tally().frames >= most) {
            end.store(true, Ordering::Relaxed);
        }
        let ending = disturbing.is_finished();
        if ending && streams.iter().all(|s| s.away() == 0) {
            break;
        }
        let mut came = false;
        for stream in &mut streams {
            came |= turn(stream, ending);
        }
        if came {
            patience.renew();
        } else if patience.is_over() {
            let streams = streams.iter().map(|stream| stream.report(&world.workers));
            let streams: String = streams.collect();
            panic!("frames are lost: {}{streams}", patience.report());
        } else {
            std::thread::yield_now();
        }
    }
    let (moves, changes) = disturbing.join().unwrap();
    println!("{all} frames, {moves} moves, {changes} changes of the list");
    assert!(
        moves > 100 && changes > 20,
        "{moves} moves, {changes} changes"
    );
    for (n, stream) in (0..).zip(&streams) {
        let tally = stream.meter.tally();
        let sent = stream.generator.sent();
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
