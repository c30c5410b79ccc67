//! What workers and queues tell about themselves: one writer each, in cache lines of their own, read by whoever asks.
//!
//! The writer is the worker that has the queue; a queue's figures travel with it. A reader that races a writer sees each
//! figure as it was at some moment, not all of the same moment.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Bins of a [`Histogram`]: bin 0 below a microsecond, bin `n` from 2^(n-1) to 2^n microseconds, the last without end.
const BINS: usize = 24;

/// Adds without an atomic read-modify-write: there is one writer.
#[inline]
fn add(to: &AtomicU64, n: u64) {
    to.store(
        to.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// What a worker tells about itself. Written by the worker, but for the last two, which are whoever's who moves queues.
#[derive(Default, Debug)]
#[repr(align(128))]
pub struct Vitals {
    busy_ns: AtomicU64,
    awake_ns: AtomicU64,
    sleeps: AtomicU64,
    naps: AtomicU64,
    busy_turns: AtomicU64,
    delay_ns: AtomicU64,
    delay_max_ns: AtomicU64,
    standing: AtomicU32,
    asleep: AtomicBool,
    parked: AtomicBool,
    delays: Histogram,
    moved_in: AtomicU64,
    moved_out: AtomicU64,
}

/// A worker's figures at one moment. Times count from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pulse {
    /// Nanoseconds spent in turns that moved frames.
    pub busy_ns: u64,
    /// Nanoseconds spent awake.
    pub awake_ns: u64,
    /// Times it went to sleep and was woken.
    pub sleeps: u64,
    /// Times it slept for a moment, to find more at once.
    pub naps: u64,
    /// Turns that moved frames.
    pub busy_turns: u64,
    /// How long its most delayed queue had not been empty, at its last look.
    pub delay: Duration,
    /// The longest it ever was.
    pub delay_max: Duration,
    /// What 99 of 100 looks stayed below.
    pub delay_p99: Duration,
    /// Looks in a row, up to the last, between which some queue was never seen empty.
    pub standing: u32,
    /// Sleeping now.
    pub asleep: bool,
    /// It has no queue.
    pub parked: bool,
    /// Queues that it was given while they were in use.
    pub moved_in: u64,
    /// Queues that were taken from it while they were in use.
    pub moved_out: u64,
}

impl Vitals {
    /// A turn of this length.
    #[inline]
    pub(super) fn turn(&self, worked: bool, ns: u64) {
        add(&self.awake_ns, ns);
        if worked {
            add(&self.busy_ns, ns);
            add(&self.busy_turns, 1);
        }
    }

    /// A look at its own queues.
    pub(super) fn look(&self, delay: Duration, standing: u32) {
        let ns = delay.as_nanos() as u64;
        self.delay_ns.store(ns, Ordering::Relaxed);
        if ns > self.delay_max_ns.load(Ordering::Relaxed) {
            self.delay_max_ns.store(ns, Ordering::Relaxed);
        }
        self.delays.add(delay);
        self.standing.store(standing, Ordering::Relaxed);
    }

    /// It goes to sleep: nothing waits.
    pub(super) fn sleeps(&self) {
        add(&self.sleeps, 1);
        self.rests();
    }

    /// It sleeps for a moment: nothing waits.
    pub(super) fn naps(&self) {
        add(&self.naps, 1);
        self.rests();
    }

    fn rests(&self) {
        self.delay_ns.store(0, Ordering::Relaxed);
        self.standing.store(0, Ordering::Relaxed);
        self.asleep.store(true, Ordering::Relaxed);
    }

    /// It has woken.
    pub(super) fn wakes(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// It has queues, or none.
    pub(super) fn parked(&self, parked: bool) {
        self.parked.store(parked, Ordering::Relaxed);
    }

    /// A queue came from another worker.
    pub(super) fn moved_in(&self) {
        self.moved_in.fetch_add(1, Ordering::Relaxed);
    }

    /// A queue went to another worker.
    pub(super) fn moved_out(&self) {
        self.moved_out.fetch_add(1, Ordering::Relaxed);
    }

    /// All figures.
    pub fn read(&self) -> Pulse {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        let delay_max = Duration::from_nanos(get(&self.delay_max_ns));
        Pulse {
            busy_ns: get(&self.busy_ns),
            awake_ns: get(&self.awake_ns),
            sleeps: get(&self.sleeps),
            naps: get(&self.naps),
            busy_turns: get(&self.busy_turns),
            delay: Duration::from_nanos(get(&self.delay_ns)),
            delay_max,
            delay_p99: self.delays.percentile(99).min(delay_max),
            standing: self.standing.load(Ordering::Relaxed),
            asleep: self.asleep.load(Ordering::Relaxed),
            parked: self.parked.load(Ordering::Relaxed),
            moved_in: get(&self.moved_in),
            moved_out: get(&self.moved_out),
        }
    }
}

/// What a queue's owner tells about it. It stays with the queue when that moves.
#[derive(Default, Debug)]
#[repr(align(128))]
pub struct QueueVitals {
    busy_ns: AtomicU64,
    frames: AtomicU64,
}

impl QueueVitals {
    /// A burst of so many frames, forwarded in this time.
    #[inline]
    pub(super) fn burst(&self, frames: u64, ns: u64) {
        add(&self.busy_ns, ns);
        add(&self.frames, frames);
    }

    /// Nanoseconds that workers spent on its frames.
    pub fn busy_ns(&self) -> u64 {
        self.busy_ns.load(Ordering::Relaxed)
    }

    /// Frames taken from it.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

/// Durations by powers of two of a microsecond.
#[derive(Debug)]
struct Histogram {
    bins: [AtomicU64; BINS],
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            bins: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Histogram {
    fn add(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let bin = (u64::BITS - us.leading_zeros()) as usize;
        if let Some(bin) = self.bins.get(bin.min(BINS - 1)) {
            add(bin, 1);
        }
    }

    /// The upper end of the bin that the percentile is in; zero if there is nothing.
    fn percentile(&self, percent: u64) -> Duration {
        let counts: [u64; BINS] =
            std::array::from_fn(|i| self.bins.get(i).map_or(0, |b| b.load(Ordering::Relaxed)));
        let all: u64 = counts.iter().sum();
        let mut below = 0;
        for (bin, count) in counts.iter().enumerate() {
            below += count;
            if below > 0 && u128::from(below) * 100 >= u128::from(all) * u128::from(percent) {
                return Duration::from_micros(1 << bin);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn percentiles_are_no_lower_than_what_was_seen() {
        let histogram = Histogram::default();
        assert_eq!(histogram.percentile(99), Duration::ZERO);
        for _ in 0..990 {
            histogram.add(3 * US);
        }
        for _ in 0..10 {
            histogram.add(500 * US);
        }
        assert_eq!(histogram.percentile(50), 4 * US);
        assert_eq!(histogram.percentile(99), 4 * US);
        assert_eq!(histogram.percentile(100), 512 * US);
        histogram.add(Duration::from_secs(1 << 30));
        assert!(histogram.percentile(100) >= Duration::from_secs(8));
    }

    #[test]
    fn what_a_worker_tells() {
        let vitals = Vitals::default();
        vitals.turn(true, 70);
        vitals.turn(false, 30);
        vitals.look(40 * US, 2);
        vitals.look(10 * US, 0);
        let pulse = vitals.read();
        assert_eq!(
            (pulse.busy_ns, pulse.awake_ns, pulse.busy_turns),
            (70, 100, 1)
        );
        assert_eq!((pulse.delay, pulse.delay_max), (10 * US, 40 * US));
        assert_eq!((pulse.standing, pulse.delay_p99), (0, 40 * US));
        vitals.look(30 * US, 1);
        vitals.sleeps();
        let pulse = vitals.read();
        assert!(pulse.asleep && pulse.sleeps == 1);
        assert_eq!((pulse.delay, pulse.standing), (Duration::ZERO, 0));
        vitals.wakes();
        vitals.look(30 * US, 1);
        vitals.naps();
        let pulse = vitals.read();
        assert!(pulse.asleep && (pulse.sleeps, pulse.naps) == (1, 1));
        assert_eq!((pulse.delay, pulse.standing), (Duration::ZERO, 0));
    }

    #[test]
    fn writers_do_not_share_lines() {
        assert_eq!(align_of::<Vitals>(), 128);
        assert_eq!(align_of::<QueueVitals>(), 128);
    }
}
