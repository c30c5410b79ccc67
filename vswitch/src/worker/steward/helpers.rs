//! Who helps whom: hot queues get helpers and lose them, by load or because the operator wants it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::super::QueueKey;
use super::super::registry::sharing::ShareError;
use super::super::registry::{Asked, QueueSeen, Seen, Workers};
use super::sharing::{self, Room, Wish};
use super::trace::What;
use super::{ASKED, Brain, Known};

impl Brain {
    /// Gives a hot queue a helper, or takes one away: what moving queues cannot do. True if it did. What it goes by was
    /// measured since the last time.
    pub(super) fn share(
        &mut self,
        now: Instant,
        (list, queues): (&[Seen], &[QueueSeen]),
        workers: &Workers,
    ) -> bool {
        let (since, before) = self.measure_sharing(now);
        let elapsed = now.duration_since(since).as_nanos() as u64;
        let share = |ns: u64| ns as f64 / elapsed.max(1) as f64;
        let look = |queue: &QueueSeen| {
            let old = before.get(&queue.key).filter(|k| k.owner == queue.owner)?;
            let new = self.queues.get(&queue.key)?;
            let helper = queue.helper.map(|helper| {
                let since = old.helped.filter(|(worker, _)| *worker == helper.worker);
                let ns = helper.busy_ns.saturating_sub(since.map_or(0, |(_, ns)| ns));
                sharing::Helper {
                    worker: helper.worker,
                    outputs: helper.outputs,
                    load: share(ns),
                }
            });
            Some(sharing::Queue {
                key: queue.key,
                owner: queue.owner,
                helper,
                asked: queue.asked,
                lends: queue.lends,
                load: share(new.busy_ns.saturating_sub(old.busy_ns)),
                frames: new.received.0.saturating_sub(old.received.0),
                bytes: new.received.1.saturating_sub(old.received.1),
            })
        };
        let looks: Vec<_> = queues.iter().filter_map(look).collect();
        let room = |worker: &Seen| {
            let pulse = worker.vitals.read();
            let own = looks.iter().filter(|queue| queue.owner == worker.index);
            Room {
                worker: worker.index,
                // The sum of nothing is -0.
                load: own.map(|queue| queue.load).sum::<f64>() + 0.0,
                standing: pulse.standing > 0 && !pulse.asleep,
                resting: worker.resting,
                node: worker.node,
            }
        };
        let rooms: Vec<_> = list.iter().map(room).collect();
        let at = now.duration_since(self.started);
        let noted = match self.sharing.look(at, &looks, &rooms) {
            None => return false,
            Some(Wish::Share(queue, helper, why)) => {
                let shared = workers.share(queue, helper).is_ok();
                shared.then_some((What::Share(queue, helper), why))
            }
            Some(Wish::Alone(queue, why)) => {
                workers.unshare(queue).then_some((What::Alone(queue), why))
            }
        };
        let Some((what, why)) = noted else {
            return false;
        };
        self.trace.note(SystemTime::now(), what, why);
        // What came of it is worth a look soon.
        self.balancer.hurry();
        true
    }

    /// Measures for sharing from now on; since when it did, and what it knew of queues then.
    pub(super) fn measure_sharing(
        &mut self,
        now: Instant,
    ) -> (Instant, Arc<BTreeMap<QueueKey, Known>>) {
        std::mem::replace(&mut self.shared, (now, Arc::clone(&self.queues)))
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
        let engaged = |worker: usize| {
            let mut shared = queues.iter().filter(|queue| queue.helper.is_some());
            shared.any(|q| q.owner == worker || helps(q, worker))
        };
        let busy = |worker: &Seen| {
            let before = self.busy.get(worker.index).copied().unwrap_or_default();
            worker.vitals.read().busy_ns.saturating_sub(before)
        };
        let others = || list.iter().filter(|worker| worker.index != owner);
        others().next().ok_or(ShareError::NoWorker)?;
        let free = others().filter(|worker| !engaged(worker.index));
        let helper = free.min_by_key(|worker| (busy(worker), worker.queues.len()));
        let helper = helper.ok_or(ShareError::Engaged)?.index;
        workers.share(key, helper)?;
        let now = SystemTime::now();
        self.trace.note(now, What::Share(key, helper), ASKED);
        Ok(())
    }
}

/// Whether a worker helps with a queue.
fn helps(queue: &QueueSeen, worker: usize) -> bool {
    queue.helper.is_some_and(|helper| helper.worker == worker)
}
