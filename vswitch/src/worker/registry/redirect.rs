//! Flows of a NIC that come to another of its receive queues from now on.
//!
//! The device changes at once, but what had arrived for them is still in the queue that they came to before. So the new
//! queue is held first, then the device's table written, and the new queue is polled again when the owner of the old one
//! has forwarded what that held, and the devices and guests it forwarded to are done with it; [`HOLD`] at most, whatever
//! happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};

use super::{MoveError, Workers, send};
use crate::forward::PortRef;
use crate::mailbox::Mailbox;
use crate::nic::Reta;
use crate::worker::gate::HOLD;
use crate::worker::settle::settle_guests;
use crate::worker::{Letter, QueueKey};

/// A frame that was hashed before the table changed is in its queue so long after, unless the device is very slow.
const PIPELINE: Duration = Duration::from_micros(5);

impl Workers {
    /// Has the table of a port to look after.
    pub fn add_reta(&self, port: PortRef, reta: Arc<Reta>) {
        self.retas.lock().insert(port, reta);
    }

    /// Looks after it no longer.
    pub fn remove_reta(&self, port: PortRef) {
        self.retas.lock().remove(&port);
    }

    /// The tables of all ports.
    pub fn retas(&self) -> Vec<(PortRef, Arc<Reta>)> {
        let retas = self.retas.lock();
        retas
            .iter()
            .map(|(at, reta)| (*at, Arc::clone(reta)))
            .collect()
    }

    /// Makes a change by which flows leave some receive queues of a port for another one, without reordering them; `write`
    /// tells the device, and says whether it has. True if everything was in time, false if the wait was over first. None of
    /// these queues goes to another worker meanwhile.
    ///
    /// # Errors
    /// [`MoveError::NoQueue`] also if the device refused. Nothing has changed then.
    pub fn redirect(
        &self,
        port: PortRef,
        from: &[u16],
        to: u16,
        write: impl FnOnce() -> bool,
    ) -> Result<bool, MoveError> {
        let to = QueueKey { port, queue: to };
        let from: Vec<_> = from.iter().map(|&queue| QueueKey { port, queue }).collect();
        // What a worker knows of a queue that it holds or drains would not go with the queue.
        let claim = self.claim(from.iter().chain([&to]))?;
        let new = claim.owner(to).ok_or(MoveError::NoQueue)?;
        let mail = self.mail_of(new).ok_or(MoveError::NoWorker)?;
        let until = hear(mail, |told| Letter::Hold(to, told)).flatten();
        let until = until.ok_or(MoveError::NoQueue)?;
        let outcome = if write() {
            Ok(self.drain(&claim, &from, new, until) && Instant::now() < until)
        } else {
            Err(MoveError::NoQueue)
        };
        if let Some(mail) = self.mail_of(new) {
            send(&mail, Letter::Release(to));
        }
        outcome
    }

    /// Waits until these queues are drained, and until it does not matter that another worker goes on with their flows.
    fn drain(&self, claim: &Claim<'_>, from: &[QueueKey], new: usize, until: Instant) -> bool {
        let written = Instant::now();
        while written.elapsed() < PIPELINE {
            std::hint::spin_loop();
        }
        let mut all = true;
        let mut owners = Vec::new();
        let mut answers = Vec::new();
        for key in from {
            let owner = claim.owner(*key);
            match owner.and_then(|owner| Some((owner, self.mail_of(owner)?))) {
                Some((owner, mail)) => {
                    answers.push(ask(&mail, |told| Letter::Drain(*key, told)));
                    owners.push(owner);
                }
                None => all = false,
            }
        }
        for answer in answers {
            let left = until.saturating_duration_since(Instant::now());
            all &= answer.recv_timeout(left).is_ok();
        }
        owners.sort_unstable();
        owners.dedup();
        owners.retain(|owner| *owner != new);
        for owner in &owners {
            all &= self.nics_settle(*owner, new, until);
        }
        let port = from.first().map(|key| key.port);
        let settled = |port| settle_guests(&self.shared.snapshot.load(), port, Some(until));
        all && (owners.is_empty() || port.is_none_or(settled))
    }

    /// Keeps queues where they are. As if they were in transit to their owners: whoever wants one waits or is refused.
    fn claim<'k>(&self, keys: impl Iterator<Item = &'k QueueKey>) -> Result<Claim<'_>, MoveError> {
        let mut table = self.table.lock();
        let owners = keys.map(|key| match table.queues.get(key) {
            None => Err(MoveError::NoQueue),
            Some(place) if place.transit.is_some() => Err(MoveError::InTransit),
            Some(place) => Ok((*key, place.owner)),
        });
        let owners: BTreeMap<_, _> = owners.collect::<Result<_, _>>()?;
        for (key, owner) in &owners {
            if let Some(place) = table.queues.get_mut(key) {
                place.transit = Some(*owner);
            }
        }
        Ok(Claim {
            workers: self,
            owners,
        })
    }

    /// None if it has ended.
    fn mail_of(&self, worker: usize) -> Option<Arc<Mailbox<Letter>>> {
        let table = self.table.lock();
        let entry = table.workers.get(worker)?.as_ref()?;
        Some(Arc::clone(&entry.mail))
    }
}

/// Queues that stay with their owners, until this is dropped.
struct Claim<'w> {
    workers: &'w Workers,
    owners: BTreeMap<QueueKey, usize>,
}

impl Claim<'_> {
    fn owner(&self, key: QueueKey) -> Option<usize> {
        self.owners.get(&key).copied()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        for (key, owner) in &self.owners {
            self.workers.settled(*key, *owner);
        }
    }
}

/// Writes a letter that is answered.
fn ask<T>(
    mail: &Mailbox<Letter>,
    letter: impl FnOnce(SyncSender<T>) -> Letter,
) -> mpsc::Receiver<T> {
    let (told, answer) = mpsc::sync_channel(1);
    send(mail, letter(told));
    answer
}

/// The same, and waits for the answer. None if the worker has ended: its letters end with their box, which must not be kept
/// from that.
fn hear<T>(mail: Arc<Mailbox<Letter>>, letter: impl FnOnce(SyncSender<T>) -> Letter) -> Option<T> {
    let answer = ask(&mail, letter);
    drop(mail);
    answer.recv().ok()
}

const _: () = assert!(PIPELINE.as_nanos() < HOLD.as_nanos());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::PortIndex;

    /// The worker was dismissed between being found and being asked.
    #[test]
    fn who_has_ended_is_not_waited_for() {
        let key = QueueKey {
            port: PortRef {
                index: PortIndex(0),
                incarnation: 1,
            },
            queue: 0,
        };
        let theirs = Arc::new(Mailbox::new(4).unwrap());
        let found = Arc::clone(&theirs);
        drop(theirs);
        let (told, heard) = mpsc::channel();
        std::thread::spawn(move || told.send(hear(found, |reply| Letter::Hold(key, reply))));
        let heard = heard.recv_timeout(Duration::from_secs(10));
        assert_eq!(heard, Ok(None), "it waits for ever");
    }
}
