//! Short timed sleeps of a worker that finds little each time it looks.
//!
//! Frames that come evenly, a few microseconds apart, never leave a worker idle for as long as it spins: it polls all the
//! time, and most of its looks find nothing. If it sleeps for some microseconds instead, what comes meanwhile waits in the
//! rings, and is taken in larger bursts. That costs every such frame up to a sleep's length, so it is done only if the
//! operator allows it, and only where it pays and harms nobody:
//!
//! - Time goes by in *windows*. After one in which the worker polled, was awake for at least a quarter of the time, and
//!   spent less than half of it on frames or found less than [`LITTLE`] of them at a time, it *naps*: whenever its queues
//!   have become empty, without asking for kicks.
//! - A nap grows from [`SHORTEST`], doubling with each window, to what is allowed, or to what fills a quarter of the
//!   smallest ring on average. One that has filled half of it is halved at once. So four times as much as usual may come, or the
//!   worker may be kept asleep four times as long, before frames are lost.
//! - Frames take more than [`BUSY`] of the time in spite of naps: it *rests* from napping.
//! - Somebody may wait for what a nap delays: a request, an acknowledgement. Who waits sends less while the worker
//!   naps, and more when it does not; who does not wait sends the same. So after a window of naps in which the rate of some
//!   queue has changed, and at any rate every [`PERIOD`], the worker polls for a window. If a queue then brings more than it
//!   did with naps, by more than chance would, [`VOTES`] times running, the worker rests; each time twice as long.
//!
//! A nap that finds nothing is not followed by another: the worker then polls and sleeps as it would without them.
//!
//! Limits: a queue of less than some 20 frames per millisecond is too slow for its rate to tell in time that somebody waits, and one
//! whose requests take much longer than a nap loses little enough not to be told from chance.

use std::time::{Duration, Instant};

/// A window, at least; it ends when the worker next has nothing to do.
const WINDOW: Duration = Duration::from_millis(2);
/// The first nap; one that would have to be shorter than half of it is none.
const SHORTEST: Duration = Duration::from_micros(10);
/// Naps go on for so long until a window of polling says whether somebody waits.
const PERIOD: Duration = Duration::from_millis(200);
/// Part of a ring that naps fill on average, at most.
const FILL: f64 = 0.25;
/// Part that one nap may fill: loads are not even, and the kernel may let a worker sleep on.
const TOO_FULL: f64 = 0.5;
/// Part of the time that frames may take, with naps.
const BUSY: f64 = 0.3;
/// The same of a worker that polls, and takes frames as they come.
const BUSY_POLLING: f64 = 0.5;
/// Frames found at a time. Taken one by one they take several times as long as in bursts, so that even a busy worker may have
/// much to gain.
const LITTLE: u64 = 4;
/// A worker that is awake for a smaller part than this has nothing to gain.
const AWAKE: f64 = 0.25;
/// Pairs of windows in a row that have to say that somebody waits.
const VOTES: u32 = 3;
/// Rests, the first one and the longest.
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What a queue brought, in its worker's eyes.
#[derive(Default, Clone, Copy, Debug)]
pub(super) struct Inflow {
    /// Frames since the window began.
    frames: u64,
    /// Looks that found them.
    looks: u64,
    /// Of the frames, those that were there before the last nap.
    before: u64,
    polled: Rate,
    napped: Rate,
}

/// Frames and the seconds in which they came.
#[derive(Default, Clone, Copy, Debug)]
struct Rate {
    frames: f64,
    seconds: f64,
}

impl Rate {
    fn per_second(self) -> f64 {
        self.frames / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Greater than the other one by a quarter, and by more than chance: three times the standard deviation of a difference
    /// of Poisson counts.
    fn exceeds(self, other: Rate) -> bool {
        let (a, b) = (self.per_second(), other.per_second());
        let variance = |rate: Rate| rate.per_second() / rate.seconds.max(f64::MIN_POSITIVE);
        let chance = 3.0 * (variance(self) + variance(other)).sqrt();
        a - b > chance.max(b / 4.0)
    }
}

impl Inflow {
    /// A look has found so many frames.
    #[inline(always)]
    pub(super) fn came(&mut self, frames: usize) {
        self.frames += frames as u64;
        self.looks += 1;
    }

    /// A nap begins; says how many frames came since the last one did.
    pub(super) fn mark(&mut self) -> u64 {
        let since = self.frames - self.before;
        self.before = self.frames;
        since
    }

    /// The window is over.
    fn close(&mut self, seconds: f64) -> Rate {
        let frames = self.frames as f64;
        (self.frames, self.looks, self.before) = (0, 0, 0);
        Rate { frames, seconds }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It looks how things are without naps, after some or not.
    Polling { after_naps: bool },
    /// It naps since then.
    Napping(Instant),
    /// It does not nap until then.
    Resting(Instant),
}

/// When and how long a worker naps. See the module's page.
#[derive(Debug)]
pub(super) struct Naps {
    /// Zero: never.
    longest: Duration,
    length: Duration,
    state: State,
    /// There was something to do since the last nap.
    worked: bool,
    /// Since when the window lasts; how much of it went to frames, and to sleep other than naps.
    window: Instant,
    busy: Duration,
    slept: Duration,
    /// Naps in it, and the parts of a ring that they filled, added up.
    naps: u32,
    filled: f64,
    votes: u32,
    rest: Duration,
}

impl Naps {
    /// Of at most this length; zero means none.
    pub(super) fn new(longest: Duration, now: Instant) -> Self {
        Naps {
            longest,
            length: Duration::ZERO,
            state: State::Polling { after_naps: false },
            worked: false,
            window: now,
            busy: Duration::ZERO,
            slept: Duration::ZERO,
            naps: 0,
            filled: 0.0,
            votes: 0,
            rest: REST.0,
        }
    }

    /// Whether there are any at all.
    #[inline(always)]
    pub(super) fn are_allowed(&self) -> bool {
        !self.longest.is_zero()
    }

    /// A turn that moved frames took so long.
    #[inline(always)]
    pub(super) fn worked(&mut self, spent: Duration) {
        self.busy += spent;
        self.worked = true;
    }

    /// The worker slept until a queue woke it.
    pub(super) fn slept(&mut self, time: Duration) {
        self.slept += time;
    }

    /// Whether the window is over: [`close`](Self::close) it.
    #[inline]
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.window) >= WINDOW
    }

    /// How long to nap now that all queues are empty; zero for not at all. If it is done [`begin`](Self::begin) follows.
    #[inline]
    pub(super) fn length(&self) -> Duration {
        match self.state {
            State::Napping(_) if self.worked => self.length,
            _ => Duration::ZERO,
        }
    }

    /// A nap begins. Since the last one this part of a ring was filled, of the ring that was fullest; false if that is
    /// too much for another one.
    pub(super) fn begin(&mut self, filled: f64, now: Instant) -> bool {
        self.worked = false;
        (self.filled, self.naps) = (self.filled + filled, self.naps + 1);
        if filled > TOO_FULL {
            self.length /= 2;
            if self.length < self.shortest() {
                self.rest(now);
                return false;
            }
        }
        true
    }

    /// The window is over, and this is what the queues brought.
    pub(super) fn close<'a>(&mut self, now: Instant, queues: impl Iterator<Item = &'a mut Inflow>) {
        let elapsed = now.duration_since(self.window);
        let seconds = elapsed.as_secs_f64();
        let share = |part: Duration| part.as_secs_f64() / seconds.max(f64::MIN_POSITIVE);
        let (busy, awake) = (share(self.busy), 1.0 - share(self.slept));
        let filled = self.filled / f64::from(self.naps.max(1));
        (self.window, self.busy, self.slept) = (now, Duration::ZERO, Duration::ZERO);
        (self.naps, self.filled) = (0, 0.0);
        match self.state {
            State::Polling { after_naps } => {
                let (mut slowed, mut frames, mut looks) = (false, 0, 0);
                for queue in queues {
                    (frames, looks) = (frames + queue.frames, looks + queue.looks);
                    queue.polled = queue.close(seconds);
                    slowed |= after_naps && queue.polled.exceeds(queue.napped);
                }
                self.votes = if slowed { self.votes + 1 } else { 0 };
                if self.votes >= VOTES {
                    self.rest(now);
                } else if awake >= AWAKE && (busy < BUSY_POLLING || frames < LITTLE * looks) {
                    self.length = self.length.clamp(SHORTEST.min(self.longest), self.longest);
                    self.state = State::Napping(now);
                } else {
                    self.state = State::Polling { after_naps: false };
                }
            }
            State::Napping(since) => {
                let mut changed = false;
                for queue in queues {
                    queue.napped = queue.close(seconds);
                    let (polled, napped) = (queue.polled, queue.napped);
                    changed |= polled.exceeds(napped) || napped.exceeds(polled);
                }
                let done = now.duration_since(since) >= PERIOD;
                if done && self.votes == 0 {
                    self.rest = REST.0;
                }
                if busy > BUSY {
                    self.rest(now);
                } else if awake < AWAKE {
                    self.state = State::Polling { after_naps: false };
                } else if changed || done || self.votes > 0 {
                    self.state = State::Polling { after_naps: true };
                } else {
                    let room = (FILL / filled.max(f64::MIN_POSITIVE)).clamp(0.5, 2.0);
                    self.length = self.length.mul_f64(room).min(self.longest);
                    if self.length < self.shortest() {
                        self.rest(now);
                    }
                }
            }
            State::Resting(until) => {
                for queue in queues {
                    queue.close(seconds);
                }
                if now >= until {
                    self.state = State::Polling { after_naps: false };
                }
            }
        }
    }

    /// What is shorter is no nap.
    fn shortest(&self) -> Duration {
        SHORTEST.min(self.longest) / 2
    }

    fn rest(&mut self, now: Instant) {
        self.state = State::Resting(now + self.rest);
        self.rest = (self.rest * 2).min(REST.1);
        (self.length, self.votes) = (Duration::ZERO, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const US: Duration = Duration::from_micros(1);
    const MOST: Duration = Duration::from_micros(50);
    /// What a frame costs, and what sleeping takes longer than was asked for.
    const FRAME: f64 = 50e-9;
    const LATE: Duration = Duration::from_micros(13);

    /// A queue that a worker with naps serves, on a clock of its own.
    struct World {
        naps: Naps,
        inflow: Inflow,
        now: Instant,
        /// Entries of the ring.
        ring: f64,
        /// Parts of frames that are due.
        due: f64,
        /// The longest nap, how many, and the time in them; the most frames that one has found.
        longest: Duration,
        count: u32,
        napped: Duration,
        most: f64,
    }

    impl World {
        fn new(most: Duration, ring: f64) -> Self {
            let now = Instant::now();
            World {
                naps: Naps::new(most, now),
                inflow: Inflow::default(),
                now,
                ring,
                due: 0.0,
                longest: Duration::ZERO,
                count: 0,
                napped: Duration::ZERO,
                most: 0.0,
            }
        }

        /// For so long, frames come at a rate that depends on how many may be under way and whether there are naps.
        fn run(&mut self, time: Duration, mut rate: impl FnMut(&World) -> f64) {
            let (end, before) = (self.now + time, (self.count, self.napped));
            let (mut length, mut spent) = (Duration::ZERO, Duration::ZERO);
            while self.now < end {
                let step = length.max(US);
                self.now += step;
                self.due += rate(self) * (step + spent).as_secs_f64();
                let found = self.due.floor();
                self.due -= found;
                if length > Duration::ZERO {
                    self.most = self.most.max(found);
                }
                spent = Duration::from_secs_f64(found * FRAME);
                if found > 0.0 {
                    self.now += spent;
                    self.naps.worked(spent);
                    self.inflow.came(found as usize);
                }
                length = self.nap();
            }
            self.count -= before.0;
            self.napped -= before.1;
        }

        /// As a worker does after a turn that found nothing; how long it was away.
        fn nap(&mut self) -> Duration {
            if self.naps.is_over(self.now) {
                self.naps.close(self.now, [&mut self.inflow].into_iter());
            }
            let length = self.naps.length();
            if length.is_zero() {
                return length;
            }
            let filled = self.inflow.mark() as f64 / self.ring;
            if !self.naps.begin(filled, self.now) {
                return Duration::ZERO;
            }
            self.longest = self.longest.max(length);
            self.count += 1;
            self.napped += length + LATE;
            length + LATE
        }
    }

    /// One request is under way: the next one follows what a nap has delayed.
    fn asks(world: &World) -> f64 {
        match world.naps.state {
            State::Napping(_) => 2e4,
            _ => 1e5,
        }
    }

    #[test]
    fn what_comes_steadily_is_napped_through() {
        let mut world = World::new(MOST, 512.0);
        let time = Duration::from_millis(500);
        world.run(time, |_| 1e6);
        assert_eq!(world.longest, MOST, "it grows to what is allowed");
        assert!(world.napped > time.mul_f64(0.85), "{:?}", world.napped);
    }

    #[test]
    fn none_without_leave_or_where_there_is_nothing_to_gain() {
        let mut world = World::new(Duration::ZERO, 512.0);
        assert!(!world.naps.are_allowed() && Naps::new(US, world.now).are_allowed());
        world.run(Duration::from_millis(50), |_| 1e6);
        assert_eq!(world.count, 0, "not allowed");
        let mut world = World::new(MOST, 512.0);
        world.run(Duration::from_millis(50), |_| 0.0);
        assert_eq!(world.count, 0, "there was nothing to do at all");
        // The window in which it begins is of both.
        world.run(Duration::from_millis(10), |_| 14e6);
        world.run(Duration::from_millis(500), |_| 14e6);
        assert_eq!(world.count, 0, "more than half of the time goes to frames");
        // It sleeps most of the time anyway.
        for _ in 0..50 {
            world.naps.slept(WINDOW);
            world.now += WINDOW;
            world.naps.worked(US);
            world.inflow.came(1);
            assert!(world.nap().is_zero());
        }
    }

    #[test]
    fn a_ring_keeps_room_for_four_times_as_much() {
        for (ring, rate) in [(512.0, 5e6), (256.0, 2e6), (64.0, 4e5)] {
            let mut world = World::new(MOST, ring);
            world.run(Duration::from_millis(300), |_| rate);
            assert!(world.count > 100, "ring of {ring}: {} naps", world.count);
            // A quarter on average, and the kernel is late for one as for another.
            assert!(world.most <= ring / 2.0, "ring of {ring}: {}", world.most);
        }
    }

    #[test]
    fn a_load_that_grows_ends_them() {
        let mut world = World::new(MOST, 512.0);
        world.run(Duration::from_millis(50), |_| 1e6);
        assert!(world.count > 0);
        world.run(Duration::from_millis(10), |_| 15e6);
        world.run(Duration::from_millis(100), |_| 15e6);
        assert_eq!(world.count, 0, "three quarters of the time");
    }

    #[test]
    fn nobody_waits_for_long() {
        let mut world = World::new(MOST, 512.0);
        let time = Duration::from_secs(20);
        world.run(time, asks);
        assert!(world.napped < time.mul_f64(0.01), "{:?}", world.napped);
        // And when nobody waits any longer they come back, after a rest at most.
        world.run(REST.1 + WINDOW, |_| 1e6);
        world.run(time, |_| 1e6);
        assert!(world.napped > time.mul_f64(0.8), "{:?}", world.napped);
    }

    #[test]
    fn who_begins_to_wait_while_it_naps_is_noticed() {
        let mut world = World::new(MOST, 512.0);
        world.run(Duration::from_millis(500), |_| 1e6);
        let time = Duration::from_secs(1);
        world.run(time, asks);
        assert!(world.napped < time.mul_f64(0.1), "{:?}", world.napped);
    }

    #[test]
    fn a_nap_that_finds_nothing_is_the_last() {
        let mut world = World::new(MOST, 512.0);
        world.run(Duration::from_millis(50), |_| 1e6);
        world.naps.worked(US);
        assert!(!world.naps.length().is_zero());
        assert!(world.naps.begin(0.0, world.now));
        assert!(world.naps.length().is_zero());
        world.naps.worked(US);
        assert!(!world.naps.length().is_zero());
    }

    proptest! {
        /// Whatever comes, naps are no longer than allowed, nor do rests grow without end.
        #[test]
        fn limits_hold(
            most in 1u64..1000,
            loads in prop::collection::vec((0.0..2e7f64, 1u64..30), 1..20),
        ) {
            let mut world = World::new(Duration::from_micros(most), 512.0);
            for (rate, ms) in loads {
                world.run(Duration::from_millis(ms), |_| rate);
                prop_assert!(world.longest <= Duration::from_micros(most));
                prop_assert!(world.naps.rest <= REST.1);
                if let State::Resting(until) = world.naps.state {
                    prop_assert!(until <= world.now + REST.1);
                }
            }
        }
    }
}
