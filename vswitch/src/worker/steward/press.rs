//! Work that stands does not wait for the next look of balancing.
//!
//! When a worker rings because its queues stand, has something that it could give away, and no further worker is put to use
//! for it, loads are counted anew, and [`COUNTED`] later queues or buckets move by that ([`Balancer::press`]). What was known
//! of loads before stays known; it is weighed by its length. A turn that was kept from its core may end meanwhile, and would
//! look like more than was counted; counting then begins anew, until [`WHOLE`] is over.
//!
//! [`Balancer::press`]: vswitch_flowtable::balance::Balancer::press
//!
//! Moving can do nothing for a worker with one queue. If that could have a [helper](super::sharing), sharing looks at what it
//! measured until now, and [`EVERY`] later again, at what the worker did since it rang, until it is known. It measures by itself,
//! so nothing of that is lost when loads are counted anew, whoever rang for it.
//!
//! # Limits
//!
//! A worker that rang for nothing is not heard for [`HUSHED`], for twice as long each time running, up to [`LONGEST`], or
//! [`SEEKING`] where its queue is nearly hot and somebody could help; others are. After its ring there are at most a look at once, one [`AGAIN`] later
//! or those at what was counted, one at what sharing measured, and one when it is heard again. So in the long run a worker
//! that cannot be helped causes a few looks a second, and one that somebody could help some 90. A worker that was helped is not
//! heard for [`SETTLED`]: so a queue that has moved rests for 8 looks that are 3 ms apart at least.

use std::time::{Duration, Instant};

use super::super::DELAY_LIMIT;
use super::super::bell::Ears;
use super::super::registry::{Seen, Workers};
use super::sharing::EVERY;
use super::{AGAIN, Brain, MEASURED, Next, WORKERS};
use vswitch_flowtable::scale;

/// For how long loads are counted when work stands. A queue's load is known to a burst; of 32 full frames that is 3 % of
/// this, which is as little as a move must be worth. Whole queues are moved for less only by chance.
pub(super) const COUNTED: Duration = Duration::from_millis(1);
/// After so long it is looked at what was counted in any case.
const WHOLE: Duration = Duration::from_millis(10);
/// For how long a worker is not heard when nothing helped: as long as the balancer wants to hear of nothing then.
const HUSHED: Duration = Duration::from_millis(4);
/// The same after it was in vain again and again.
const LONGEST: Duration = Duration::from_secs(1);
/// The same of a worker that somebody could help with its queue, of large frames: whether it is hot may be other soon.
const SEEKING: Duration = Duration::from_millis(32);
/// For how long a worker is not heard that was helped: it first completes what had queued up.
const SETTLED: Duration = Duration::from_millis(2);

/// What came of a worker's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Came {
    /// Somebody has less to do.
    Relief,
    /// Nothing, and nothing can.
    Nothing,
    /// Nothing this time, though some other worker could help with its queue.
    NoHelper,
}

/// Loads are being counted.
#[derive(Clone, Copy)]
pub(super) struct Pressed {
    /// For this worker, which rang.
    pub(super) who: usize,
    /// Since then, though what ended meanwhile may have been left out.
    since: Instant,
}

/// Who is not heard, and until when.
pub(super) struct Hush {
    voices: [Voice; WORKERS],
}

#[derive(Clone, Copy, Default)]
struct Voice {
    /// Not heard until then.
    until: Option<Instant>,
    /// For how long, when it was last in vain.
    pause: Duration,
}

impl Voice {
    /// For how long, if it rang again soon. One that was silent for as long when it was heard again begins anew.
    fn paused(&self, now: Instant) -> Duration {
        let again = |until: Instant| now <= until + self.pause.max(HUSHED);
        let again = self.until.is_some_and(again);
        if again { self.pause } else { Duration::ZERO }
    }
}

impl Default for Hush {
    fn default() -> Self {
        Hush {
            voices: [Voice::default(); WORKERS],
        }
    }
}

impl Hush {
    /// This worker rang; says what came of it.
    pub(super) fn after(&mut self, worker: usize, came: Came, now: Instant) {
        let Some(voice) = self.voices.get_mut(worker) else {
            return;
        };
        let longer = voice.paused(now) * 2;
        voice.pause = match came {
            Came::Relief => Duration::ZERO,
            Came::Nothing => longer.clamp(HUSHED, LONGEST),
            Came::NoHelper => longer.clamp(HUSHED, SEEKING),
        };
        voice.until = Some(now + voice.pause.max(SETTLED));
    }

    /// What this worker rang for is known at that time.
    pub(super) fn until(&mut self, worker: usize, then: Instant, now: Instant) {
        if let Some(voice) = self.voices.get_mut(worker) {
            (voice.pause, voice.until) = (voice.paused(now), Some(then));
        }
    }

    /// Whether this worker can be kept from ringing.
    pub(super) const fn knows(worker: usize) -> bool {
        worker < WORKERS
    }

    /// Who is not heard at this time, a bit each, and how long it is until one of them is.
    fn at(&self, now: Instant) -> (u64, Option<Duration>) {
        let (mut hushed, mut first) = (0, None);
        for (worker, voice) in self.voices.iter().enumerate() {
            let left = voice
                .until
                .map(|until| until.saturating_duration_since(now));
            if let Some(left) = left.filter(|left| !left.is_zero()) {
                hushed |= 1 << worker;
                first = Some(first.map_or(left, |first: Duration| first.min(left)));
            }
        }
        (hushed, first)
    }
}

impl Brain {
    /// Whether loads were counted for as long as balancing asks for. If that was for nothing they are counted anew.
    pub(super) fn is_due(&mut self, now: Instant, workers: &Workers) -> bool {
        let measured = now.duration_since(self.balanced);
        if self.changed {
            return measured >= MEASURED;
        }
        if measured < self.balancer.period() {
            return false;
        }
        let young = |pressed: &Pressed| now.duration_since(pressed.since) < WHOLE;
        let cut = self.pressed.as_ref().is_some_and(young) && self.is_cut(measured, workers);
        if cut {
            self.count(now, workers);
        }
        !cut
    }

    fn count(&mut self, now: Instant, workers: &Workers) {
        self.remember(now, &workers.queues());
        #[cfg(feature = "dpdk")]
        self.retas.count(workers);
    }

    /// Whether some worker seems to have done more in this time than it can have: what ended in it began long before.
    fn is_cut(&self, measured: Duration, workers: &Workers) -> bool {
        let queues = workers.queues();
        let mut by_owner = [0_u64; WORKERS];
        for (queue, load) in queues.iter().zip(self.loads(&queues)) {
            if let Some(sum) = by_owner.get_mut(queue.owner) {
                *sum += load;
            }
        }
        let longest = Duration::from_nanos(by_owner.into_iter().max().unwrap_or(0));
        // A burst that began before is no matter.
        longest > measured * 5 / 4
    }

    /// Counts loads anew for this worker, which rang; false if that would be in vain.
    pub(super) fn press(
        &mut self,
        now: Instant,
        who: usize,
        (list, looks): (&[Seen], &[scale::Look]),
        workers: &Workers,
    ) -> bool {
        let others = list.iter().any(|w| w.index != who && !w.resting);
        if self.changed || !others {
            return false;
        }
        let mut seen = list.iter().zip(looks);
        let late = seen.find(|(worker, _)| worker.index == who);
        let late = late.filter(|(_, look)| look.standing || look.delay >= DELAY_LIMIT);
        let gives =
            |(worker, look): (&Seen, &scale::Look)| look.divisible || has_buckets(worker, workers);
        if !late.is_some_and(gives) || !self.balancer.press() {
            return false;
        }
        self.count(now, workers);
        self.pressed = Some(Pressed { who, since: now });
        true
    }

    /// Moving helps this worker nothing, so it is to have a helper if that helps; true if it has one now.
    pub(super) fn in_vain(&mut self, now: Instant, who: usize, workers: &Workers) -> bool {
        if !self.may_have_helper(who, workers) {
            self.hush.after(who, Came::Nothing, now);
            return false;
        }
        // What was measured until now is not lost, and if it is little it is of the same time.
        if self.may_share(now) && self.share(now, workers) {
            self.hush.after(who, Came::Relief, now);
            return true;
        }
        self.seeking |= 1 << who;
        self.hush.until(who, self.measured.since() + EVERY, now);
        false
    }

    /// The same, with what may ring before, and when to look because of that.
    pub(super) fn wait_for_news(&self, now: Instant, next: Next) -> Next {
        let mut next = self.wait_for_rings(now, next);
        if self.shares_soon() {
            let measured = now.duration_since(self.measured.since());
            let left = EVERY.saturating_sub(measured);
            next.within = next.within.map(|within| within.min(left));
        }
        next
    }

    fn wait_for_rings(&self, now: Instant, mut next: Next) -> Next {
        let measured = now.duration_since(self.balanced);
        let left = self.balancer.period().saturating_sub(measured);
        if self.pressed.is_some() && !self.changed {
            next.ears = Ears::Deaf;
            next.within = Some(left);
            return next;
        }
        if self.doubtful.is_some() {
            next.ears = Ears::Deaf;
            next.within = Some(AGAIN);
            return next;
        }
        // Who rings does not put balancing off.
        let mut within = next.within.filter(|_| self.changed).unwrap_or(left);
        within = next.within.map_or(within, |asked| asked.min(within));
        if next.ears == Ears::Queueing {
            let (hushed, first) = self.hush.at(now);
            next.hushed = hushed;
            within = first.map_or(within, |first| first.min(within));
        }
        next.within = Some(within);
        next
    }
}

/// Whether flows can be taken from a worker's queues though the queues stay.
#[cfg(feature = "dpdk")]
fn has_buckets(worker: &Seen, workers: &Workers) -> bool {
    let retas = workers.retas();
    let several = retas.iter().filter(|(_, reta)| reta.buckets().len() > 1);
    let mut ports = several.map(|(port, _)| port);
    ports.any(|port| worker.queues.iter().any(|queue| queue.port == *port))
}

#[cfg(not(feature = "dpdk"))]
fn has_buckets(_: &Seen, _: &Workers) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_rings_for_nothing_is_heard_less_and_less() {
        let mut hush = Hush::default();
        let mut now = Instant::now();
        assert_eq!(hush.at(now), (0, None));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            hush.after(5, Came::Nothing, now);
            let (hushed, left) = hush.at(now);
            assert_eq!(hushed, 1 << 5, "others are heard");
            pauses.push(left.unwrap());
            now += left.unwrap();
            assert_eq!(hush.at(now), (0, None));
        }
        let doubled: Vec<_> = (0..8).map(|n| HUSHED * (1 << n)).collect();
        assert_eq!(pauses[..8], doubled);
        assert_eq!(pauses[8..], [LONGEST; 2]);
        hush.after(5, Came::NoHelper, now);
        assert_eq!(hush.at(now).1, Some(SEEKING), "somebody could help");
        now += SEEKING;
        hush.until(5, now + EVERY, now);
        assert_eq!(hush.at(now).1, Some(EVERY), "it is known soon");
        now += EVERY;
        hush.after(5, Came::Nothing, now);
        assert_eq!(hush.at(now).1, Some(SEEKING * 2), "as if it had rung now");
        hush.after(5, Came::Relief, now);
        assert_eq!(hush.at(now).1, Some(SETTLED), "it was helped");
        now += SETTLED;
        hush.after(5, Came::Nothing, now);
        assert_eq!(hush.at(now).1, Some(HUSHED));
        now += HUSHED * 3;
        hush.after(5, Came::Nothing, now);
        assert_eq!(hush.at(now).1, Some(HUSHED), "it was silent for long");
        hush.after(WORKERS, Came::Nothing, now);
        assert!(
            !Hush::knows(WORKERS) && hush.at(now).0 == 1 << 5,
            "it has no place"
        );
    }
}
