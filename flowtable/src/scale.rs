//! How many workers are awake: the scaler.
//!
//! One worker more when there is too much to do for those awake, one less when there is too little. What a queue says of
//! load is not its length but how long it has been standing (Shenango, NSDI 2019, section 4.1): work that was queued at the
//! previous look and still is, however little, waits for a worker that does not come around.
//!
//! # How it decides
//!
//! A look costs a pass over the workers and is meant to come every 25 us, from whoever is busy.
//!
//! - **Grow** when a worker's queues were standing at two looks running, or have not been seen empty for 20 us. A
//!   parked worker wakes, one on the node where help is best if there is any, or else on the same. 200 us of rest follow, in which what moves to it takes effect. A worker that has nothing
//!   it could give away is left alone.
//! - **Shrink** when a worker that need not stay was busy less than half of 20 ms, and what all do would keep the others
//!   under 70 %; if it is a single item's load, that must fit beside what another has. Balanced workers are all as busy, so
//!   with a smaller share hardly anyone would ever go. Every change starts the 20 ms again, so workers go one by one. The last one parks when it had nothing to do at all.
//! - Nobody is awake and there is work: the worker whose queues have it wakes.
//! - [`Decision::Crowded`] says that one more is wanted and none is left. From then on only balancing can help.
//!
//! What a decision sets going, handing queues over and sleeping, is the caller's. Times are in nanoseconds of any clock
//! that does not go back.

use std::fmt;
use std::time::Duration;

use crate::balance::{Node, Worker};

/// A worker at a look.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Look {
    /// It sleeps, or does nothing else but finish what it was given before.
    pub parked: bool,
    /// Longest time for which one of its queues has not been seen empty. Of a parked one: since work came.
    pub delay: Duration,
    /// Work that was queued at the previous look is still queued.
    pub standing: bool,
    /// Time it was busy since the previous look.
    pub busy: Duration,
    /// It has more than one item with load, so another could take some.
    pub divisible: bool,
    /// It is not to park: something that it has must not go to another.
    pub stays: bool,
    /// Where it runs.
    pub node: Node,
    /// Where help is best: where most of what it could give away would rather be handled, or where it runs.
    pub help: Node,
}

/// The constants. [`Settings::default`] is what the module's page says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// How often looks are meant to come.
    pub every: Duration,
    /// Delay that wakes one more.
    pub delay: Duration,
    /// Looks running with standing work that wake one more.
    pub standing: u8,
    /// No growing for so long after growing.
    pub rest: Duration,
    /// Over how long a worker must have been idle.
    pub window: Duration,
    /// Busy share below which a worker may park.
    pub idle: f64,
    /// Busy share that the others must stay under.
    pub others: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            every: Duration::from_micros(25),
            delay: Duration::from_micros(20),
            standing: 2,
            rest: Duration::from_micros(200),
            window: Duration::from_millis(20),
            idle: 0.5,
            others: 0.7,
        }
    }
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Decision {
    /// Nothing.
    Stay,
    /// Wake a parked worker and give it items.
    Grow {
        /// Who wakes.
        wake: Worker,
        /// Why.
        reason: Grow,
    },
    /// Take everything from a worker and let it sleep.
    Shrink {
        /// Who parks.
        park: Worker,
        /// Why.
        reason: Shrink,
    },
    /// One more is wanted, and all are awake.
    Crowded {
        /// Why.
        reason: Grow,
    },
}

/// Why one more is wanted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Grow {
    /// Work stood still.
    Standing {
        /// Whose.
        worker: Worker,
        /// At how many looks running.
        looks: u8,
    },
    /// Queues were not seen empty.
    Delay {
        /// Whose.
        worker: Worker,
        /// For how long.
        delay: Duration,
    },
    /// All slept.
    Asleep,
}

/// Why one less will do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Shrink {
    /// It had little to do.
    Idle {
        /// Its busy share.
        share: f64,
        /// The busy share of the others when they have its work.
        others: f64,
    },
    /// It is the last, and had nothing to do.
    Silent,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stay => f.write_str("no worker more or less"),
            Self::Grow { wake, reason } => write!(f, "worker {} wakes: {reason}", wake.0),
            Self::Shrink { park, reason } => write!(f, "worker {} parks: {reason}", park.0),
            Self::Crowded { reason } => write!(f, "all workers are awake, but {reason}"),
        }
    }
}

impl fmt::Display for Grow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standing { worker, looks } => {
                write!(f, "work of worker {} stood at {looks} looks", worker.0)
            }
            Self::Delay { worker, delay } => write!(
                f,
                "the queues of worker {} were not empty for {} us",
                worker.0,
                delay.as_micros()
            ),
            Self::Asleep => f.write_str("it has work, and all sleep"),
        }
    }
}

impl fmt::Display for Shrink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle { share, others } => {
                write!(f, "busy {share:.2}, the others with its work {others:.2}")
            }
            Self::Silent => f.write_str("nothing to do"),
        }
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Watched {
    standing: u8,
    busy: Duration,
}

/// Decides how many workers are awake, look by look.
#[derive(Debug)]
pub struct Scaler {
    settings: Settings,
    watched: Box<[Watched]>,
    /// When the window began; none before the first look.
    since: Option<Duration>,
    grew: Option<Duration>,
}

impl Scaler {
    /// For up to so many workers.
    #[must_use]
    pub fn new(workers: usize, settings: Settings) -> Self {
        Self {
            settings,
            watched: vec![Watched::default(); workers].into_boxed_slice(),
            since: None,
            grew: None,
        }
    }

    /// What to do at this time, by the clock that all looks share. Workers are numbered by their place; those beyond what
    /// the scaler was made for are not looked at. The decision is taken as carried out.
    pub fn look(&mut self, now: Duration, looks: &[Look]) -> Decision {
        let looks = &looks[..looks.len().min(self.watched.len())];
        for (watched, look) in self.watched.iter_mut().zip(looks) {
            watched.busy += look.busy;
            watched.standing = match look.standing && !look.parked {
                true => watched.standing.saturating_add(1),
                false => 0,
            };
        }
        let since = *self.since.get_or_insert(now);
        if let Some(decision) = self.grow(now, looks) {
            return decision;
        }
        if now.saturating_sub(since) < self.settings.window {
            return Decision::Stay;
        }
        let decision = self.shrink(looks, now.saturating_sub(since));
        self.begin(now);
        decision
    }

    fn begin(&mut self, now: Duration) {
        self.since = Some(now);
        for watched in &mut self.watched {
            watched.busy = Duration::ZERO;
        }
    }

    fn grow(&mut self, now: Duration, looks: &[Look]) -> Option<Decision> {
        let (wake, reason) = match looks.iter().all(|look| look.parked) {
            true => {
                let with_work = looks.iter().position(|look| !look.delay.is_zero())?;
                (Some(with_work), Grow::Asleep)
            }
            false => {
                let rested = self
                    .grew
                    .is_none_or(|grew| now.saturating_sub(grew) >= self.settings.rest);
                let (number, reason) = self.loaded(looks).filter(|_| rested)?;
                (nearest(looks, looks[number]), reason)
            }
        };
        self.grew = Some(now);
        for watched in &mut self.watched {
            watched.standing = 0;
        }
        let Some(wake) = wake else {
            return Some(Decision::Crowded { reason });
        };
        self.begin(now);
        let wake = Worker(wake as u16);
        Some(Decision::Grow { wake, reason })
    }

    /// The worker that needs help most, by delay, and why.
    fn loaded(&self, looks: &[Look]) -> Option<(usize, Grow)> {
        let mut found: Option<(usize, Duration, Grow)> = None;
        for (number, (look, watched)) in looks.iter().zip(&self.watched).enumerate() {
            if look.parked || !look.divisible {
                continue;
            }
            let worker = Worker(number as u16);
            let delay = look.delay;
            let reason = if delay >= self.settings.delay {
                Grow::Delay { worker, delay }
            } else if watched.standing >= self.settings.standing {
                let looks = watched.standing;
                Grow::Standing { worker, looks }
            } else {
                continue;
            };
            if found.is_none_or(|(_, longest, _)| delay > longest) {
                found = Some((number, delay, reason));
            }
        }
        found.map(|(number, _, reason)| (number, reason))
    }

    fn shrink(&self, looks: &[Look], window: Duration) -> Decision {
        let shares = || {
            let both = looks.iter().zip(&self.watched).enumerate();
            both.filter(|(_, (look, _))| !look.parked)
                .map(|(number, (_, watched))| {
                    (number, watched.busy.as_secs_f64() / window.as_secs_f64())
                })
        };
        let awake = shares().count();
        // Of equals the last, so that those awake stay together.
        let may_go = shares().filter(|(number, _)| !looks[*number].stays);
        let Some((number, share)) = may_go.reduce(|least, next| match next.1 <= least.1 {
            true => next,
            false => least,
        }) else {
            return Decision::Stay;
        };
        let park = Worker(number as u16);
        if awake == 1 {
            // What came since the worker was last busy keeps it awake.
            let silent = share == 0.0 && looks[number].delay.is_zero();
            let reason = Shrink::Silent;
            return match silent {
                true => Decision::Shrink { park, reason },
                false => Decision::Stay,
            };
        }
        let others = shares().map(|(_, share)| share).sum::<f64>() / (awake - 1) as f64;
        let rest = shares().filter(|(other, _)| *other != number);
        let least = rest.map(|(_, share)| share).fold(f64::INFINITY, f64::min);
        let fits = looks[number].divisible || share + least < self.settings.others;
        if share < self.settings.idle && others < self.settings.others && fits {
            let reason = Shrink::Idle { share, others };
            return Decision::Shrink { park, reason };
        }
        Decision::Stay
    }
}

/// The first parked worker where help is best, or else on the same node, or else the first.
fn nearest(looks: &[Look], loaded: Look) -> Option<usize> {
    let parked = |on: Option<Node>| {
        looks
            .iter()
            .position(|look| look.parked && on.is_none_or(|node| look.node == node))
    };
    parked(Some(loaded.help))
        .or_else(|| parked(Some(loaded.node)))
        .or_else(|| parked(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVERY: Duration = Duration::from_micros(25);

    fn awake(busy: f64) -> Look {
        Look {
            parked: false,
            delay: Duration::ZERO,
            standing: false,
            busy: EVERY.mul_f64(busy),
            divisible: true,
            stays: false,
            node: Node(0),
            help: Node(0),
        }
    }

    fn parked(node: u8) -> Look {
        Look {
            parked: true,
            node: Node(node),
            ..awake(0.0)
        }
    }

    fn standing() -> Look {
        Look {
            standing: true,
            ..awake(1.0)
        }
    }

    /// Looks at the same until something is decided, for at most so long; says when.
    fn until(scaler: &mut Scaler, from: Duration, most: Duration, looks: &[Look]) -> Decided {
        let mut now = from;
        while now <= from + most {
            let decision = scaler.look(now, looks);
            if decision != Decision::Stay {
                return (now, decision);
            }
            now += EVERY;
        }
        (now, Decision::Stay)
    }

    type Decided = (Duration, Decision);

    #[test]
    fn standing_twice_wakes_the_nearest() {
        let mut scaler = Scaler::new(3, Settings::default());
        let looks = [standing(), parked(1), parked(0)];
        assert_eq!(scaler.look(EVERY, &looks), Decision::Stay);
        let decision = scaler.look(EVERY * 2, &looks);
        let reason = Grow::Standing {
            worker: Worker(0),
            looks: 2,
        };
        let wake = Worker(2);
        assert_eq!(decision, Decision::Grow { wake, reason });
        assert_eq!(
            decision.to_string(),
            "worker 2 wakes: work of worker 0 stood at 2 looks"
        );
    }

    #[test]
    fn help_comes_from_where_the_work_would_rather_be() {
        let woken = |help, looks: &[u8]| {
            let pressed = Look {
                help: Node(help),
                delay: Duration::from_millis(1),
                node: Node(1),
                ..awake(1.0)
            };
            let mut all = vec![pressed];
            all.extend(looks.iter().copied().map(parked));
            match Scaler::new(4, Settings::default()).look(EVERY, &all) {
                Decision::Grow { wake, .. } => wake.0,
                other => panic!("{other}"),
            }
        };
        assert_eq!(woken(2, &[0, 1, 2]), 3, "where its queues are at home");
        assert_eq!(
            woken(3, &[0, 1, 2]),
            2,
            "nobody there: where it runs itself"
        );
        assert_eq!(woken(3, &[0, 2, 0]), 1, "nor there: anybody");
    }

    #[test]
    fn standing_once_and_again_is_not_twice_running() {
        let mut scaler = Scaler::new(2, Settings::default());
        for look in 0..100 {
            let worker = if look % 2 == 0 {
                standing()
            } else {
                awake(0.6)
            };
            assert_eq!(
                scaler.look(EVERY * look, &[worker, parked(0)]),
                Decision::Stay
            );
        }
    }

    #[test]
    fn delay_wakes_at_once_then_rests() {
        let mut scaler = Scaler::new(4, Settings::default());
        let late = Look {
            delay: Duration::from_micros(20),
            ..awake(1.0)
        };
        let looks = [late, parked(0), parked(0), parked(0)];
        let (at, first) = until(&mut scaler, EVERY, EVERY, &looks);
        assert!(matches!(first, Decision::Grow { .. }) && at == EVERY);
        let looks = [late, awake(0.1), parked(0), parked(0)];
        let (next, second) = until(&mut scaler, at + EVERY, EVERY * 100, &looks);
        assert_eq!(next - at, Duration::from_micros(200));
        let wake = Worker(2);
        assert!(matches!(second, Decision::Grow { wake: w, .. } if w == wake));
    }

    #[test]
    fn nobody_left_is_said() {
        let mut scaler = Scaler::new(2, Settings::default());
        let (_, decision) = until(&mut scaler, EVERY, EVERY * 4, &[standing(), awake(0.2)]);
        assert!(matches!(decision, Decision::Crowded { .. }), "{decision}");
    }

    #[test]
    fn a_single_item_wakes_nobody() {
        let mut scaler = Scaler::new(2, Settings::default());
        let alone = Look {
            divisible: false,
            delay: Duration::from_millis(1),
            ..standing()
        };
        let looks = [alone, parked(0)];
        let (_, decision) = until(&mut scaler, EVERY, Duration::from_millis(50), &looks);
        assert_eq!(decision, Decision::Stay);
    }

    #[test]
    fn one_idle_worker_goes_if_the_others_can_take_it() {
        for (busy, goes) in [([0.6, 0.5, 0.2], true), ([0.9, 0.6, 0.2], false)] {
            let mut scaler = Scaler::new(3, Settings::default());
            let looks = busy.map(awake);
            let (at, decision) = until(&mut scaler, EVERY, Duration::from_millis(60), &looks);
            if goes {
                let Decision::Shrink { park, reason } = decision else {
                    panic!("{decision}");
                };
                assert_eq!((at - EVERY, park), (Duration::from_millis(20), Worker(2)));
                assert_eq!(
                    reason.to_string(),
                    "busy 0.20, the others with its work 0.65"
                );
            } else {
                assert_eq!(decision, Decision::Stay);
            }
        }
    }

    #[test]
    fn a_single_item_must_fit_beside_another() {
        for (divisible, goes) in [(true, true), (false, false)] {
            let mut scaler = Scaler::new(3, Settings::default());
            let last = Look {
                divisible,
                ..awake(0.4)
            };
            let most = Duration::from_millis(60);
            let looks = [awake(0.45), awake(0.45), last];
            let (_, decision) = until(&mut scaler, EVERY, most, &looks);
            assert_eq!(decision != Decision::Stay, goes);
        }
    }

    #[test]
    fn who_has_to_stay_is_passed_over() {
        let stays = Look {
            stays: true,
            ..awake(0.0)
        };
        let most = Duration::from_millis(60);
        let mut scaler = Scaler::new(3, Settings::default());
        let (_, decision) = until(&mut scaler, EVERY, most, &[awake(0.1), awake(0.2), stays]);
        let park = Worker(0);
        assert!(matches!(decision, Decision::Shrink { park: p, .. } if p == park));
        let mut scaler = Scaler::new(2, Settings::default());
        let (_, decision) = until(&mut scaler, EVERY, most, &[stays, stays]);
        assert_eq!(decision, Decision::Stay);
    }

    #[test]
    fn the_last_goes_only_when_silent_and_wakes_for_work() {
        let mut scaler = Scaler::new(1, Settings::default());
        let most = Duration::from_millis(100);
        let (at, decision) = until(&mut scaler, EVERY, most, &[awake(0.01)]);
        assert_eq!(decision, Decision::Stay);
        let (at, decision) = until(&mut scaler, at, most, &[awake(0.0)]);
        let reason = Shrink::Silent;
        let park = Worker(0);
        assert_eq!(decision, Decision::Shrink { park, reason });
        let (at, decision) = until(&mut scaler, at + EVERY, most, &[parked(0)]);
        assert_eq!(decision, Decision::Stay);
        let work = Look {
            delay: Duration::from_nanos(1),
            ..parked(0)
        };
        let reason = Grow::Asleep;
        let wake = Worker(0);
        assert_eq!(scaler.look(at, &[work]), Decision::Grow { wake, reason });
    }

    fn any_look() -> impl Strategy<Value = Look> {
        (
            any::<bool>(),
            0u64..40,
            any::<bool>(),
            0.0..1.0,
            any::<bool>(),
            any::<bool>(),
            0u8..2,
        )
            .prop_map(
                |(parked, delay, standing, busy, divisible, stays, node)| Look {
                    parked,
                    delay: Duration::from_micros(delay),
                    standing,
                    busy: EVERY.mul_f64(if parked { 0.0 } else { busy }),
                    divisible,
                    stays,
                    node: Node(node),
                    help: Node(node),
                },
            )
    }

    proptest! {
        /// Whatever it sees: only the parked wake and only the awake park, growing rests, the same again gives the same.
        #[test]
        fn decisions_make_sense(
            looks in prop::collection::vec(prop::collection::vec(any_look(), 4), 1..200),
            step in 25u64..2000,
        ) {
            let mut scaler = Scaler::new(4, Settings::default());
            let mut again = Scaler::new(4, Settings::default());
            let mut grew: Option<Duration> = None;
            for (number, looks) in looks.iter().enumerate() {
                let now = Duration::from_micros(step * number as u64);
                let decision = scaler.look(now, looks);
                prop_assert_eq!(decision, again.look(now, looks));
                match decision {
                    Decision::Grow { wake, reason } => {
                        prop_assert!(looks[usize::from(wake.0)].parked);
                        let rested = grew.is_none_or(|grew| now - grew >= Duration::from_micros(200));
                        prop_assert!(rested || reason == Grow::Asleep);
                        grew = Some(now);
                    }
                    Decision::Shrink { park, .. } => {
                        let look = looks[usize::from(park.0)];
                        prop_assert!(!look.parked && !look.stays);
                    }
                    Decision::Crowded { .. } => {
                        prop_assert!(looks.iter().all(|look| !look.parked));
                        grew = Some(now);
                    }
                    Decision::Stay => {}
                }
            }
        }

        /// A load that does not change, spread evenly over whoever is awake, ends at one number of workers and stays.
        #[test]
        fn a_steady_load_settles(total in 0.05f64..4.0, start in 1usize..=8) {
            let mut scaler = Scaler::new(8, Settings::default());
            let mut count = start;
            let mut changes = 0;
            for look in 0..40_000u32 {
                let share = total / count as f64;
                let looks: Vec<_> = (0..8)
                    .map(|number| match number < count {
                        true if share >= 1.0 => standing(),
                        true => awake(share),
                        false => parked(0),
                    })
                    .collect();
                match scaler.look(EVERY * look, &looks) {
                    Decision::Grow { .. } => count += 1,
                    Decision::Shrink { .. } => count -= 1,
                    _ => continue,
                }
                changes += 1;
            }
            prop_assert!(changes <= 8, "{changes} changes");
            prop_assert!(total / (count as f64) < 1.0);
        }
    }
}
