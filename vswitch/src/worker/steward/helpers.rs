//! Who helps whom: hot queues get helpers and lose them, by load or because the operator wants it.

use std::time::{Duration, Instant, SystemTime};

use super::super::QueueKey;
use super::super::node::Kin;
use super::super::registry::sharing::ShareError;
use super::super::registry::{Asked, QueueSeen, Seen, Workers};
use super::press::{Came, Hush};
use super::sharing::{self, Room, Wish};
use super::trace::What;
use super::{ASKED, Brain, WORKERS};

/// What sharing goes by: how far queues were when it last looked.
pub(super) struct Measured {
    since: Instant,
    /// In order.
    queues: Vec<(QueueKey, Figures)>,
}

/// How far a queue is.
#[derive(Clone, Copy)]
struct Figures {
    owner: usize,
    busy_ns: u64,
    /// What its port has received at its owner: frames and bytes.
    received: (u64, u64),
    /// Who helps with it, and what that has taken for it, nanoseconds.
    helped: Option<(usize, u64)>,
}

impl Measured {
    /// Knows of no queue yet.
    pub(super) fn new(since: Instant) -> Self {
        Measured {
            since,
            queues: Vec::new(),
        }
    }

    /// Since when it is measured.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    fn begin(since: Instant, queues: &[QueueSeen], workers: &Workers) -> Self {
        let figures = |queue: &QueueSeen| Figures {
            owner: queue.owner,
            busy_ns: queue.vitals.busy_ns(),
            received: if queue.lends {
                workers.received(queue.key, queue.owner)
            } else {
                (0, 0)
            },
            helped: queue.helper.map(|helper| (helper.worker, helper.busy_ns)),
        };
        let queues = queues.iter().map(|queue| (queue.key, figures(queue)));
        Measured {
            since,
            queues: queues.collect(),
        }
    }
}

impl Brain {
    /// Whether enough was measured since sharing last looked.
    pub(super) fn may_share(&self, now: Instant) -> bool {
        self.duties.shares() && now.duration_since(self.measured.since) >= sharing::EVERY
    }

    /// Whether sharing looks as soon as it may: for somebody who rang, or at what a helper gains.
    pub(super) fn shares_soon(&self) -> bool {
        self.duties.shares() && (self.seeking != 0 || self.sharing.is_measuring())
    }

    /// Sharing measures from now on; what it had measured.
    pub(super) fn measure_sharing(
        &mut self,
        now: Instant,
        queues: &[QueueSeen],
        workers: &Workers,
    ) -> Measured {
        std::mem::replace(&mut self.measured, Measured::begin(now, queues, workers))
    }

    /// Gives a hot queue a helper, or takes one away: what moving queues cannot do. True if it did.
    pub(super) fn share(&mut self, now: Instant, workers: &Workers) -> bool {
        let (list, queues) = (workers.list(), workers.queues());
        let before = self.measure_sharing(now, &queues, workers);
        let elapsed = now.duration_since(before.since).as_nanos() as u64;
        let share = |ns: u64| ns as f64 / elapsed.max(1) as f64;
        let look = |queue: &QueueSeen, old: &Figures, new: &Figures| {
            let helper = queue.helper.map(|helper| {
                let since = old.helped.filter(|(worker, _)| *worker == helper.worker);
                let ns = helper.busy_ns.saturating_sub(since.map_or(0, |(_, ns)| ns));
                sharing::Helper {
                    worker: helper.worker,
                    outputs: helper.outputs,
                    load: share(ns),
                }
            });
            sharing::Queue {
                key: queue.key,
                owner: queue.owner,
                helper,
                asked: queue.asked,
                lends: queue.lends,
                load: share(new.busy_ns.saturating_sub(old.busy_ns)),
                frames: new.received.0.saturating_sub(old.received.0),
                bytes: new.received.1.saturating_sub(old.received.1),
            }
        };
        let mut looks = Vec::new();
        let mut own = [0_u64; WORKERS];
        let mut old = before.queues.iter().peekable();
        for (queue, (_, new)) in queues.iter().zip(&self.measured.queues) {
            while old.next_if(|(key, _)| *key < queue.key).is_some() {}
            let Some((_, old)) = old.next_if(|(key, _)| *key == queue.key) else {
                continue;
            };
            // Of a queue that has just come this is what another spent on it.
            if let Some(own) = own.get_mut(queue.owner) {
                *own += new.busy_ns.saturating_sub(old.busy_ns);
            }
            if old.owner == queue.owner {
                looks.push(look(queue, old, new));
            }
        }
        let room = |worker: &Seen| {
            let pulse = worker.vitals.read();
            Room {
                worker: worker.index,
                load: own.get(worker.index).map_or(1.0, |ns| share(*ns)),
                standing: pulse.standing > 0 && !pulse.asleep,
                resting: worker.resting,
                core: worker.wanted.core,
                node: worker.node,
                kin: worker.kin,
            }
        };
        let rooms: Vec<_> = list.iter().map(room).collect();
        let at = now.duration_since(self.started);
        let length = Duration::from_nanos(elapsed);
        let noted = match self.sharing.look(at, length, &looks, &rooms) {
            None => None,
            Some(Wish::Share(queue, helper, why)) => {
                let shared = workers.share(queue, helper).is_ok();
                shared.then_some((What::Share(queue, helper), why))
            }
            Some(Wish::Alone(queue, why)) => {
                workers.unshare(queue).then_some((What::Alone(queue), why))
            }
        };
        let done = noted.is_some();
        if let Some((what, why)) = noted {
            self.trace.note(SystemTime::now(), what, why);
            // What came of it is worth a look soon.
            self.balancer.hurry();
        }
        let seeking = self.seeking;
        let waits = !done && self.sharing.is_measuring();
        for who in (0..WORKERS).filter(|who| seeking >> who & 1 != 0) {
            let mut own = looks.iter().filter(|queue| queue.owner == who);
            match (done, waits) {
                (true, _) => self.hush.after(who, Came::Relief, now),
                (_, true) => self.hush.until(who, now + sharing::EVERY, now),
                _ if own.any(|queue| self.sharing.has_hope(at, queue, &looks, &rooms)) => {
                    self.hush.after(who, Came::NoHelper, now);
                }
                _ => self.hush.after(who, Came::Nothing, now),
            }
        }
        self.seeking = if waits { seeking } else { 0 };
        done
    }

    /// Whether this worker has a queue that another one could help with.
    pub(super) fn may_have_helper(&self, worker: usize, workers: &Workers) -> bool {
        if !self.duties.shares() || !Hush::knows(worker) {
            return false;
        }
        let queues = workers.queues();
        let may =
            |queue: &QueueSeen| queue.owner == worker && queue.lends && queue.asked == Asked::Auto;
        queues.iter().any(may) && {
            let list = workers.list();
            let own = list.iter().find(|own| own.index == worker);
            let near = |other: &&Seen| own.is_some_and(|own| own.node == other.node);
            let mut others = list.iter().filter(near).filter(|w| w.index != worker);
            !is_engaged(&queues, worker) && others.any(|other| !is_engaged(&queues, other.index))
        }
    }

    /// Finds helpers for the queues that the operator wants shared: one may have left, or a queue come back.
    pub(super) fn find_helpers(&mut self, workers: &Workers) {
        for queue in workers.queues() {
            if queue.asked == Asked::On && queue.helper.is_none() && queue.lends {
                // If there is nobody now, another time.
                let _ = self.find_helper(queue.key, workers);
            }
        }
    }

    /// Has the worker with the least to do help with a queue, because the operator wants it.
    pub(super) fn find_helper(
        &mut self,
        key: QueueKey,
        workers: &Workers,
    ) -> Result<(), ShareError> {
        let (list, queues) = (workers.list(), workers.queues());
        let queue = queues.iter().find(|queue| queue.key == key);
        let owner = queue.ok_or(ShareError::NoQueue)?.owner;
        let busy = |worker: &Seen| {
            let before = self.busy.get(worker.index).copied().unwrap_or_default();
            worker.vitals.read().busy_ns.saturating_sub(before)
        };
        let others = || list.iter().filter(|worker| worker.index != owner);
        let tenth = self.scaled.elapsed().as_nanos() as u64 / 10;
        others().next().ok_or(ShareError::NoWorker)?;
        let free = others().filter(|worker| !is_engaged(&queues, worker.index));
        let owner = list.iter().find(|worker| worker.index == owner);
        let kin = owner.map_or_else(Kin::default, |owner| owner.kin);
        let helper = free.min_by_key(|worker| {
            let busy = busy(worker);
            let about = busy / tenth.max(1);
            (about, kin.distance(worker.kin), busy, worker.queues.len())
        });
        let helper = helper.ok_or(ShareError::Engaged)?.index;
        workers.share(key, helper)?;
        let now = SystemTime::now();
        self.trace.note(now, What::Share(key, helper), ASKED);
        Ok(())
    }
}

/// Whether a worker helps, or is helped.
fn is_engaged(queues: &[QueueSeen], worker: usize) -> bool {
    let mut shared = queues
        .iter()
        .filter_map(|queue| Some((queue.owner, queue.helper?.worker)));
    shared.any(|(owner, helper)| owner == worker || helper == worker)
}
