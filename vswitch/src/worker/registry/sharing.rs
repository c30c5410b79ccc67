//! Who helps whom with which queue.

use std::sync::{Arc, mpsc};

use super::{Asked, Place, Workers, send};
use crate::forward::counters::PortCounters;
use crate::forward::share::Share;
use crate::worker::{Letter, QueueKey};

/// Why a queue is not shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShareError {
    /// There is none of this name, or it has just gone.
    #[error("nobody takes frames from this queue")]
    NoQueue,
    /// There is no such worker, or it is about to leave, or it owns the queue.
    #[error("there is no other worker")]
    NoWorker,
    /// One of the two workers helps already, or is helped.
    #[error("its worker, or the other one, helps already or is helped")]
    Engaged,
    /// Only bursts of guests' split rings can be lent out.
    #[error("only queues of guests with split rings can be shared")]
    Unfit,
}

impl Workers {
    /// Has a worker help with a queue, when that has arrived where it goes, from now on, until one of the two leaves, the
    /// queue moves or goes, or [`unshare`](Self::unshare).
    ///
    /// # Errors
    /// See [`ShareError`]; nothing has changed.
    pub fn share(&self, key: QueueKey, helper: usize) -> Result<(), ShareError> {
        let mut table = self.table.lock();
        let owner = loop {
            let place = table.queues.get(&key).ok_or(ShareError::NoQueue)?;
            if !place.lends {
                return Err(ShareError::Unfit);
            }
            if place.transit.is_none() {
                break place.owner;
            }
            self.arrived.wait(&mut table);
        };
        let helps = table.here(helper).ok_or(ShareError::NoWorker)?;
        let helps = Arc::clone(&helps.mail);
        if owner == helper {
            return Err(ShareError::NoWorker);
        }
        // Nobody waits for one who waits: a helper has no helper.
        let engaged = |worker| {
            let mut shared = table.queues.values().filter(|p| p.helper.is_some());
            shared.any(|p| p.owner == worker || p.is_helped_by(worker))
        };
        if engaged(owner) || engaged(helper) {
            return Err(ShareError::Engaged);
        }
        let owns = table.here(owner).ok_or(ShareError::NoWorker)?;
        let owns = Arc::clone(&owns.mail);
        // Not to keep the box alive: letters that are never read end with it.
        let bell = Arc::downgrade(&helps);
        let share = Arc::new(Share::new(move || {
            if let Some(mail) = bell.upgrade() {
                mail.ring();
            }
        }));
        if let Some(place) = table.queues.get_mut(&key) {
            // As if on its way to where it is: nobody moves it, and neither of the two ends before it is done.
            place.transit = Some(owner);
            place.helper = Some((helper, Arc::clone(&share)));
        }
        table.set_resting(helper, false);
        drop(table);
        send(&helps, Letter::Help(Arc::clone(&share)));
        drop(helps);
        let (reply, answer) = mpsc::sync_channel(1);
        send(&owns, Letter::Share(key, share, reply));
        drop(owns);
        let is_shared = answer.recv().unwrap_or(false);
        if !is_shared {
            self.release_helper(key);
        }
        self.settled(key, owner);
        is_shared.then_some(()).ok_or(ShareError::Unfit)
    }

    /// Has a queue served by its owner alone; true if it was not. When this returns the guest has back what was out.
    pub fn unshare(&self, key: QueueKey) -> bool {
        let mut table = self.table.lock();
        let owner = loop {
            match table.queues.get_mut(&key) {
                Some(Place { helper: None, .. }) | None => return false,
                Some(place) if place.transit.is_none() => {
                    place.transit = Some(place.owner);
                    break place.owner;
                }
                Some(_) => self.arrived.wait(&mut table),
            }
        };
        let entry = table.workers.get(owner).and_then(Option::as_ref);
        let owns = entry.map(|entry| Arc::clone(&entry.mail));
        drop(table);
        if let Some(owns) = owns {
            let (reply, answer) = mpsc::sync_channel(1);
            send(&owns, Letter::Alone(key, reply));
            drop(owns);
            // It has ended if there is no answer, and then it had given everything back.
            let _ = answer.recv();
        }
        self.release_helper(key);
        self.settled(key, owner);
        true
    }

    /// Says whether a queue is to have a helper; the answer is what was said before. That holds until its port is
    /// [forgotten](Self::forget), also while the queue is away. Nothing is done about it here.
    ///
    /// # Errors
    /// There is no such queue, or it cannot be shared.
    pub fn ask_to_share(&self, key: QueueKey, asked: Asked) -> Result<Asked, ShareError> {
        let mut table = self.table.lock();
        let lends = table.queues.get(&key).map(|place| place.lends);
        match (asked, lends) {
            (Asked::Auto, _) => {
                let was = table.asked.remove(&key);
                was.or(lends.map(|_| Asked::Auto))
                    .ok_or(ShareError::NoQueue)
            }
            (Asked::On | Asked::Off, None) => Err(ShareError::NoQueue),
            (Asked::On, Some(false)) => Err(ShareError::Unfit),
            (Asked::On | Asked::Off, Some(_)) => {
                let was = table.asked.insert(key, asked);
                Ok(was.unwrap_or_default())
            }
        }
    }

    /// Frames and bytes that a port has received at a worker.
    pub fn received(&self, key: QueueKey, worker: usize) -> (u64, u64) {
        let counters = self.counters(key, worker);
        counters.map_or((0, 0), |c| (c.received.get(), c.received_bytes.get()))
    }

    /// What a worker counts about a queue's port.
    pub(in crate::worker) fn counters(
        &self,
        key: QueueKey,
        worker: usize,
    ) -> Option<Arc<PortCounters>> {
        let snapshot = self.shared.snapshot.load();
        let port = snapshot.live(key.port)?;
        port.counters.get(worker).cloned()
    }

    /// Queues in whose sharing a worker has a part end it.
    pub(super) fn part(&self, worker: usize) {
        loop {
            let table = self.table.lock();
            let mut shared = table.queues.iter().filter(|(_, p)| p.helper.is_some());
            let own = shared.find(|(_, p)| p.owner == worker || p.is_helped_by(worker));
            let Some((&key, _)) = own else {
                return;
            };
            drop(table);
            self.unshare(key);
        }
    }

    /// The owner is done with its helper, if it had one.
    pub(super) fn release_helper(&self, key: QueueKey) {
        let mut table = self.table.lock();
        let helper = table.queues.get_mut(&key).and_then(|p| p.helper.take());
        let Some((helper, share)) = helper else {
            return;
        };
        let entry = table.workers.get(helper).and_then(Option::as_ref);
        let mail = entry.map(|entry| Arc::clone(&entry.mail));
        let wanted = table.asked.values().any(|asked| *asked == Asked::On);
        drop(table);
        if let Some(mail) = mail {
            send(&mail, Letter::Leave(share));
        }
        if wanted {
            // It may be the helper that another queue is to have.
            self.shared.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::worker::steward::tests::workers;

    /// Who frees a helper and who gives it to another queue do not wait for each other.
    #[test]
    fn a_helper_does_not_leave_whom_it_has_just_been_given_to() {
        let workers = workers(1);
        let mail = Arc::clone(&workers.table.lock().here(0).unwrap().mail);
        let [old, new] = [(); 2].map(|()| Arc::new(Share::new(|| ())));
        let parked = || workers.list()[0].vitals.read().parked;
        let becomes = |wanted: bool| {
            let since = Instant::now();
            while parked() != wanted {
                assert!(since.elapsed() < Duration::from_secs(10), "not {wanted}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        becomes(true);
        let (reply, read) = mpsc::sync_channel(1);
        send(&mail, Letter::Help(Arc::clone(&old)));
        send(&mail, Letter::Help(Arc::clone(&new)));
        send(&mail, Letter::Leave(old));
        let nobody = QueueKey {
            port: crate::forward::PortRef {
                index: crate::forward::PortIndex(0),
                incarnation: 0,
            },
            queue: 0,
        };
        send(&mail, Letter::Alone(nobody, reply));
        read.recv().unwrap();
        becomes(false);
        send(&mail, Letter::Leave(new));
        becomes(true);
    }
}
