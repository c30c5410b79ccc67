//! A look at all workers and queues: what it sees, what follows, and when the next one is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vswitch_flowtable::balance::{self, Balancer};

use super::super::QueueKey;
use super::super::bell::Ears;
use super::super::registry::{Asked, QueueSeen, Seen, Workers};
use super::helpers::Measured;
use super::press::{COUNTED, Came, Hush};
#[cfg(feature = "dpdk")]
use super::reta;
use super::scaling::{CALM_MIN, scaler};
use super::sharing::Sharing;
use super::{Brain, Duties, Known, MEASURED, Next, QUEUES, QUIET, QUIET_FOR, WORKERS};
impl Brain {
    pub(super) fn new(duties: Duties) -> Self {
        let now = Instant::now();
        let settings = balance::Settings {
            urgent: COUNTED,
            ..balance::Settings::default()
        };
        Brain {
            duties,
            balancer: Balancer::new(QUEUES, WORKERS, settings),
            scaler: scaler(CALM_MIN),
            trace: Arc::default(),
            started: now,
            balanced: now,
            queues: BTreeMap::new(),
            scaled: now,
            busy: [0; WORKERS],
            watched: (now, 0),
            calm: CALM_MIN,
            sharing: Sharing::default(),
            measured: Measured::new(now),
            seeking: 0,
            #[cfg(feature = "dpdk")]
            retas: reta::Retas::default(),
            shrunk: None,
            doubtful: None,
            pressed: None,
            hush: Hush::default(),
            changed: false,
        }
    }

    /// Measures from now on.
    pub(super) fn begin(&mut self, now: Instant, workers: &Workers) {
        (self.doubtful, self.pressed, self.seeking) = (None, None, 0);
        self.balancer.forget();
        let queues = workers.queues();
        self.remember(now, &queues);
        self.measure_sharing(now, &queues, workers);
        #[cfg(feature = "dpdk")]
        self.retas.begin(workers);
        let list = workers.list();
        self.remember_busy(now, &list);
        self.watched = (now, total_busy(&list));
    }

    /// What each of these queues took since balancing last looked, in nanoseconds. They are in order, as what is known is.
    pub(super) fn loads(&self, queues: &[QueueSeen]) -> Vec<u64> {
        let mut known = self.queues.iter().peekable();
        let load = |queue: &QueueSeen| {
            while known.next_if(|(key, _)| **key < queue.key).is_some() {}
            let before = known.next_if(|(key, _)| **key == queue.key);
            let before = before.map_or(0, |(_, known)| known.busy_ns);
            queue.vitals.busy_ns().saturating_sub(before)
        };
        queues.iter().map(load).collect()
    }

    /// The same, and what was known of them; measures from now on. A queue keeps its number, because the balancer remembers
    /// what it did with it.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        queues: &[QueueSeen],
    ) -> (Vec<u64>, BTreeMap<QueueKey, Known>) {
        let mut taken = vec![false; QUEUES];
        for old in self.queues.values() {
            if let Some(taken) = taken.get_mut(usize::from(old.item)) {
                *taken = true;
            }
        }
        let mut free = (0..).zip(&taken).filter(|(_, taken)| !**taken);
        let mut old = self.queues.iter().peekable();
        let (mut known, mut loads) = (Vec::new(), Vec::new());
        for queue in queues {
            while old.next_if(|(key, _)| **key < queue.key).is_some() {}
            let before = old.next_if(|(key, _)| **key == queue.key);
            let before = before.map(|(_, known)| *known);
            let busy_ns = queue.vitals.busy_ns();
            loads.push(busy_ns.saturating_sub(before.map_or(0, |known| known.busy_ns)));
            let item = match before {
                Some(known) => Some(known.item),
                None => free.next().map(|(item, _)| item),
            };
            let seen = |item| Known {
                item,
                busy_ns,
                helped: queue.helper.map(|helper| (helper.worker, helper.busy_ns)),
            };
            known.extend(item.map(|item| (queue.key, seen(item))));
        }
        self.balanced = now;
        let before = std::mem::replace(&mut self.queues, known.into_iter().collect());
        (loads, before)
    }

    pub(super) fn remember_busy(&mut self, now: Instant, workers: &[Seen]) {
        for worker in workers {
            if let Some(busy) = self.busy.get_mut(worker.index) {
                *busy = worker.vitals.read().busy_ns;
            }
        }
        self.scaled = now;
    }

    /// Looks, decides and acts.
    pub(super) fn look(&mut self, now: Instant, rung: Option<usize>, workers: &Workers) -> Next {
        let list = workers.list();
        let busy = self.busy_share(now, &list);
        let looks = self.looks(now, &list, workers);
        self.remember_busy(now, &list);
        let scaled = self.duties.scales() && self.scale(now, &list, &looks, workers);
        self.changed |= scaled;
        let mut helped = false;
        if self.duties.rebalance && self.is_due(now, workers) {
            helped = self.balance(now, workers).helped;
            match self.pressed.take() {
                Some(pressed) if helped => self.hush.after(pressed.who, Came::Relief, now),
                Some(pressed) => helped = self.in_vain(now, pressed.who, workers),
                None => {}
            }
        }
        if self.shares_soon() && self.may_share(now) {
            helped |= self.share(now, workers);
        }
        let mut next = self.next(workers, busy);
        if self.changed && self.duties.rebalance {
            // Those in use are others, and too little is known about loads to deal the queues out.
            next.within = Some(MEASURED);
        }
        if next.within.is_none() {
            return next;
        }
        let doubtful = self.doubtful.take();
        if let Some(who) = rung.or(doubtful).filter(|_| !scaled) {
            if helped || self.changed {
                self.hush.after(who, Came::Relief, now);
            } else if !self.press(now, who, (&list, &looks), workers) {
                if rung.is_some() {
                    // Seen again it may be worth it, or else not for a while.
                    self.doubtful = rung;
                } else {
                    self.in_vain(now, who, workers);
                }
            }
            if !Hush::knows(who) {
                next.ears = Ears::Deaf;
            }
        }
        self.wait_for_news(now, next)
    }

    /// Busy share of all workers, added up; that of one as long as little time has passed.
    fn busy_share(&mut self, now: Instant, list: &[Seen]) -> f64 {
        let elapsed = now.duration_since(self.watched.0);
        if elapsed < QUIET_FOR {
            return 1.0;
        }
        let total = total_busy(list);
        let (_, before) = std::mem::replace(&mut self.watched, (now, total));
        total.saturating_sub(before) as f64 / elapsed.as_nanos() as f64
    }

    /// When to look again.
    pub(super) fn next(&self, workers: &Workers, busy: f64) -> Next {
        let list = workers.list();
        if !self.duties.rebalance || list.len() < 2 {
            return Next::NEVER;
        }
        let in_use = list.iter().filter(|w| !w.resting).count();
        // Workers that may still be spared are watched until they are.
        let spare =
            self.duties.scales() && in_use > 1 && list.iter().any(|w| !w.resting && !w.pinned);
        // A queue that is not hot any more is to lose its helper.
        let loses = |queue: &QueueSeen| queue.helper.is_some() && queue.asked != Asked::On;
        let helped = || workers.queues().iter().any(loses);
        if busy < QUIET && !spare && !(self.duties.shares() && helped()) {
            return Next::QUIET;
        }
        let within = self.balancer.period().min(if spare {
            self.calm.max(Duration::from_millis(20))
        } else {
            Duration::MAX
        });
        Next {
            ears: Ears::Queueing,
            hushed: 0,
            within: Some(within),
        }
    }
}

/// Nanoseconds that all have been busy.
fn total_busy(list: &[Seen]) -> u64 {
    list.iter().map(|w| w.vitals.read().busy_ns).sum()
}
