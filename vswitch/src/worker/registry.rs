//! Which workers there are, and who owns which queue.
//!
//! # Theory of operation
//!
//! Sessions bring and fetch their rings, the main thread brings and fetches NICs' queues and changes the list of workers,
//! the steward moves queues: all of them ask here, and one table under one lock knows where a queue is. A queue is at its
//! owner or *in transit*; whoever wants one that is in transit waits until it has arrived. The lock is never held while
//! waiting for a worker.
//!
//! **A move** takes the queue back from its owner, which gives it up between two turns: all that it took from the queue it
//! has delivered and given back. Into guests' rings the next owner then writes behind the last one. A NIC has a transmit
//! queue for each worker, and could send the next owner's frames first; so the move waits until the device is done with
//! what the last owner has put there, [`SETTLE`] at most, and counts the times that this was not enough. A guest with
//! several queues is waited for likewise, see [`settle_guests`]: workers know for themselves on which of them a flow is.
//! Meanwhile the queue waits, unpolled: nothing is lost, nothing is reordered.
//!
//! **Sharing.** A queue's owner can have a helper ([`share`](Workers::share)). While that begins or ends the queue counts as
//! in transit. The helper helps before the owner gives it anything and until after the owner has everything back; so the
//! owner, which waits for it when the queue is fetched, never waits for one that has ended, or waits for a helper itself.
//!
//! **Numbers.** A worker keeps its number for life; a new one takes the lowest that is free. Counters are kept by number,
//! and those of a worker that has left stay, so totals never fall.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;
#[cfg(feature = "dpdk")]
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vswitch_flowtable::balance::Node;
use vswitch_vhost::TxRing;

mod home;
#[cfg(feature = "dpdk")]
mod redirect;
pub mod sharing;

use super::node::Kin;
use super::settle::settle_guests;
use super::vitals::{QueueVitals, Vitals};
use super::{BusyPoll, Input, Letter, MAIL, QueueKey, Shared, Worker, node};
use crate::forward::PortRef;
use crate::forward::share::Share;
use crate::mailbox::Mailbox;
use home::{Candidate, Errand, Home};

/// How long a move waits for a NIC to send what the last owner gave it.
pub const SETTLE: Duration = Duration::from_micros(200);

/// A worker as the configuration wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The core it runs on.
    pub core: u32,
    /// What it does when idle.
    pub busy_poll: BusyPoll,
    /// How long it may sleep at a time where frames are few but steady; zero for not at all.
    pub max_sleep: Duration,
}

/// A worker seen from outside, at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its number.
    pub index: usize,
    /// What it was asked to be.
    pub wanted: Wanted,
    /// The node of its core.
    pub node: Node,
    /// The cores that are close to its core.
    pub kin: Kin,
    /// What it tells about itself.
    pub vitals: Arc<Vitals>,
    /// The queues it owns, in order.
    pub queues: Vec<QueueKey>,
    /// Some of them are to stay.
    pub pinned: bool,
    /// It is kept out of use: new queues go to others.
    pub resting: bool,
}

/// A queue seen from outside, at one moment.
#[derive(Clone, Debug)]
pub struct QueueSeen {
    /// Its name.
    pub key: QueueKey,
    /// Its owner; while it moves, its last one.
    pub owner: usize,
    /// Who helps its owner with it.
    pub helper: Option<Helper>,
    /// Whether it is to have one.
    pub asked: Asked,
    /// Its bursts can be lent out.
    pub lends: bool,
    /// It is to stay there: the operator said so.
    pub pinned: bool,
    /// Where its memory or its device is, if that is known.
    pub node: Option<Node>,
    /// What its owners tell about it.
    pub vitals: Arc<QueueVitals>,
}

/// Who helps with a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Helper {
    /// The worker.
    pub worker: usize,
    /// How many outputs are its.
    pub outputs: u32,
    /// Nanoseconds that it took for them since it began.
    pub busy_ns: u64,
}

/// Whether a queue is to have a helper.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Asked {
    /// When it is worth it.
    #[default]
    Auto,
    /// Always, as the operator wants.
    On,
    /// Never, as the operator wants.
    Off,
}

/// Why a queue was not moved. It is where it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MoveError {
    /// There is none of this name, or it has just gone.
    #[error("nobody takes frames from this queue")]
    NoQueue,
    /// There is no such worker, or it is about to leave.
    #[error("there is no such worker")]
    NoWorker,
    /// Somebody else is moving it.
    #[error("the queue is just being moved")]
    InTransit,
}

/// All workers. See the module's page.
pub struct Workers {
    shared: Arc<Shared>,
    #[cfg(feature = "dpdk")]
    retas: Mutex<BTreeMap<crate::forward::PortRef, Arc<crate::nic::Reta>>>,
    table: Mutex<Table>,
    /// Something has arrived or left.
    arrived: Condvar,
    moves: AtomicU64,
    unsettled: AtomicU64,
    /// Who asks where guests' memory lies.
    homes: Errand,
    /// For threads that must not keep it.
    own: Weak<Workers>,
}

#[derive(Default)]
struct Table {
    /// By number. Places are used again, never taken away.
    workers: Vec<Option<Entry>>,
    queues: BTreeMap<QueueKey, Place>,
    /// Queues that the operator keeps with a worker, there at the moment or not: a ring goes and comes back when its guest
    /// is reset.
    pins: BTreeMap<QueueKey, usize>,
    /// Those of which the operator has said whether they are to have helpers, likewise.
    asked: BTreeMap<QueueKey, Asked>,
}

struct Entry {
    wanted: Wanted,
    node: Node,
    kin: Kin,
    vitals: Arc<Vitals>,
    mail: Arc<Mailbox<Letter>>,
    thread: JoinHandle<()>,
    standing: Standing,
    /// It gets queues only if it is asked for, or if all others rest, too.
    resting: bool,
}

/// A worker's part in the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Prepared; not yet part of the switch.
    Coming,
    /// It gets queues.
    Here,
    /// It gets no more.
    Leaving,
}

struct Place {
    owner: usize,
    /// Where it goes, while it is in nobody's hands.
    transit: Option<usize>,
    home: Home,
    /// Who helps its owner with it. Known to the helper before the owner and until after it.
    helper: Option<(usize, Arc<Share>)>,
    lends: bool,
    vitals: Arc<QueueVitals>,
}

impl Table {
    fn here(&self, worker: usize) -> Option<&Entry> {
        let entry = self.workers.get(worker)?.as_ref()?;
        (entry.standing == Standing::Here).then_some(entry)
    }

    /// Finds the worker with the fewest queues, among those in use if there are any and then among the near, and puts it
    /// to use.
    fn choose(&mut self, not: Option<usize>, near: Option<Node>) -> Option<usize> {
        let mut queues = vec![0_usize; self.workers.len()];
        for place in self.queues.values() {
            if let Some(count) = queues.get_mut(place.at()) {
                *count += 1;
            }
        }
        let candidate = |index: usize| {
            let entry = self.here(index).filter(|_| Some(index) != not)?;
            Some(Candidate {
                index,
                resting: entry.resting,
                node: entry.node,
                queues: queues.get(index).copied().unwrap_or(0),
            })
        };
        let chosen = home::best((0..self.workers.len()).filter_map(candidate), near)?;
        self.set_resting(chosen, false);
        Some(chosen)
    }

    fn set_resting(&mut self, worker: usize, resting: bool) {
        if let Some(entry) = self.workers.get_mut(worker).and_then(Option::as_mut) {
            entry.resting = resting;
        }
    }
}

impl Place {
    /// The worker that has it or is about to.
    fn at(&self) -> usize {
        self.transit.unwrap_or(self.owner)
    }

    fn is_helped_by(&self, worker: usize) -> bool {
        self.helper.as_ref().is_some_and(|(by, _)| *by == worker)
    }
}

impl Workers {
    /// Starts these workers.
    ///
    /// # Errors
    /// A thread or descriptor that the system did not give.
    pub fn start(wanted: &[Wanted], shared: &Arc<Shared>) -> io::Result<Arc<Self>> {
        let workers = Arc::new_cyclic(|own| Workers {
            shared: Arc::clone(shared),
            #[cfg(feature = "dpdk")]
            retas: Mutex::default(),
            table: Mutex::default(),
            arrived: Condvar::new(),
            moves: AtomicU64::new(0),
            unsettled: AtomicU64::new(0),
            homes: Errand::default(),
            own: Weak::clone(own),
        });
        match workers.prepare(wanted) {
            Ok(change) => workers.commit(change),
            Err(error) => {
                workers.stop();
                return Err(error);
            }
        }
        Ok(workers)
    }

    // ---- queues --------------------------------------------------------------------------------------------------

    /// Gives a queue to the worker that it is [pinned](Self::pin) to, or else to the one with the fewest queues among those
    /// in use, on the queue's node if there is one: of a NIC `device`, of a guest the one that its memory lies on. Without
    /// any worker the queue is dropped, and the answer is `None`.
    pub fn attach(&self, key: QueueKey, input: Input, device: Option<Node>) -> Option<usize> {
        let home = self.home_of(key.port, &input, device);
        let mut table = self.table.lock();
        let worker = match table.pins.get(&key) {
            Some(worker) => *worker,
            None => table.choose(None, home.node())?,
        };
        table.set_resting(worker, false);
        let vitals = Arc::<QueueVitals>::default();
        let mail = Arc::clone(&table.here(worker)?.mail);
        let asked = table.asked.get(&key) == Some(&Asked::On);
        table.queues.insert(
            key,
            Place {
                owner: worker,
                transit: Some(worker),
                home,
                helper: None,
                lends: input.lends(),
                vitals: Arc::clone(&vitals),
            },
        );
        drop(table);
        send(&mail, Letter::Attach(key, input, vitals));
        self.settled(key, worker);
        if asked {
            // Somebody has to find it one.
            self.shared.bell.ring();
        }
        Some(worker)
    }

    /// Takes a queue back. When this returns no worker touches it.
    pub fn detach(&self, key: QueueKey) -> Option<Input> {
        let mut table = self.table.lock();
        loop {
            match table.queues.get(&key)?.transit {
                None => break,
                Some(_) => self.arrived.wait(&mut table),
            }
        }
        // Until it is here, so that its owner does not end before it has answered.
        let place = table.queues.get_mut(&key)?;
        place.transit = Some(place.owner);
        let owner = place.owner;
        let input = self.recall(table, owner, key);
        self.table.lock().queues.remove(&key);
        self.arrived.notify_all();
        input
    }

    /// The same for a guest's ring.
    pub fn detach_ring(&self, key: QueueKey) -> Option<TxRing> {
        match self.detach(key)? {
            Input::Guest(ring) => Some(*ring),
            #[cfg(feature = "dpdk")]
            Input::Nic(_) => None,
        }
    }

    /// Moves a queue to another worker while frames pass; true if it was not there yet. No frame is lost or reordered.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn move_queue(&self, key: QueueKey, to: usize) -> Result<bool, MoveError> {
        let mut table = self.table.lock();
        table.here(to).ok_or(MoveError::NoWorker)?;
        let place = table.queues.get_mut(&key).ok_or(MoveError::NoQueue)?;
        if place.transit.is_some() {
            return Err(MoveError::InTransit);
        }
        let from = place.owner;
        if from == to {
            return Ok(false);
        }
        place.transit = Some(to);
        let vitals = Arc::clone(&place.vitals);
        let Some(input) = self.recall(table, from, key) else {
            self.table.lock().queues.remove(&key);
            self.arrived.notify_all();
            return Err(MoveError::NoQueue);
        };
        self.settle_nics(from, to);
        settle_guests(&self.shared.snapshot.load(), key.port, None);
        let table = self.table.lock();
        // It cannot have gone: a worker that leaves waits for what is on the way to it.
        let target = table.workers.get(to).and_then(Option::as_ref);
        let mail = target.map(|entry| Arc::clone(&entry.mail));
        for (worker, came) in [(from, false), (to, true)] {
            if let Some(entry) = table.workers.get(worker).and_then(Option::as_ref) {
                if came {
                    entry.vitals.moved_in();
                } else {
                    entry.vitals.moved_out();
                }
            }
        }
        drop(table);
        if let Some(mail) = mail {
            send(&mail, Letter::Attach(key, input, vitals));
        }
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.settled(key, to);
        Ok(true)
    }

    /// Keeps a worker out of use, or puts it to use. It keeps its queues either way.
    pub fn rest(&self, worker: usize, resting: bool) {
        self.table.lock().set_resting(worker, resting);
    }

    /// Says whether a queue is to stay where it is, whatever the steward thinks. That holds until its worker leaves or
    /// its port is [forgotten](Self::forget), also while the queue is away.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn pin(&self, key: QueueKey, pinned: bool) -> Result<(), MoveError> {
        let mut table = self.table.lock();
        let at = table.queues.get(&key).map(Place::at);
        if pinned {
            table.pins.insert(key, at.ok_or(MoveError::NoQueue)?);
        } else if table.pins.remove(&key).is_none() {
            at.ok_or(MoveError::NoQueue)?;
        }
        Ok(())
    }

    /// This port does not come back.
    pub fn forget(&self, port: PortRef) {
        let mut table = self.table.lock();
        table.pins.retain(|key, _| key.port != port);
        table.asked.retain(|key, _| key.port != port);
    }

    /// Who owns a queue; while it moves, who did last.
    pub fn owner(&self, key: QueueKey) -> Option<usize> {
        self.table.lock().queues.get(&key).map(|place| place.owner)
    }

    /// The workers, by number.
    pub fn list(&self) -> Vec<Seen> {
        let table = self.table.lock();
        let mut queues = vec![(Vec::new(), false); table.workers.len()];
        for (key, place) in &table.queues {
            if let Some((own, pinned)) = queues.get_mut(place.owner) {
                own.push(*key);
                *pinned |= table.pins.contains_key(key);
            }
        }
        let workers = table.workers.iter().zip(queues).enumerate();
        workers
            .filter_map(|(index, (entry, (queues, pinned)))| {
                let entry = entry.as_ref().filter(|e| e.standing == Standing::Here)?;
                Some(Seen {
                    index,
                    wanted: entry.wanted,
                    node: entry.node,
                    kin: entry.kin,
                    vitals: Arc::clone(&entry.vitals),
                    queues,
                    pinned,
                    resting: entry.resting,
                })
            })
            .collect()
    }

    /// The queues, in order.
    pub fn queues(&self) -> Vec<QueueSeen> {
        let table = self.table.lock();
        let queues = table.queues.iter().map(|(key, place)| QueueSeen {
            key: *key,
            owner: place.owner,
            asked: table.asked.get(key).copied().unwrap_or_default(),
            lends: place.lends,
            helper: place.helper.as_ref().map(|(worker, share)| Helper {
                worker: *worker,
                outputs: share.outputs(),
                busy_ns: share.helper_ns(),
            }),
            pinned: table.pins.contains_key(key),
            node: place.home.node(),
            vitals: Arc::clone(&place.vitals),
        });
        queues.collect()
    }

    /// Has a queue in the books that no worker knows of.
    #[cfg(test)]
    pub(super) fn pretend(&self, key: QueueKey, owner: usize) -> Arc<QueueVitals> {
        let vitals = Arc::<QueueVitals>::default();
        let place = Place {
            owner,
            transit: None,
            home: Home::Device(None),
            helper: None,
            lends: false,
            vitals: Arc::clone(&vitals),
        };
        self.table.lock().queues.insert(key, place);
        vitals
    }

    /// How many numbers are in use or were: what is kept by worker has so many places.
    pub fn places(&self) -> usize {
        self.table.lock().workers.len()
    }

    /// Queues moved between workers so far, and how often a NIC was not done in time with what the last owner had sent.
    pub fn moves(&self) -> (u64, u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (get(&self.moves), get(&self.unsettled))
    }

    /// Gives the lock up, asks the owner for its queue and waits for it.
    fn recall(&self, table: MutexGuard<'_, Table>, owner: usize, key: QueueKey) -> Option<Input> {
        let mail = Arc::clone(&table.workers.get(owner)?.as_ref()?.mail);
        drop(table);
        let (reply, answer) = mpsc::sync_channel(1);
        send(&mail, Letter::Detach(key, reply));
        // A letter that is never read ends with its box, and so does this wait.
        drop(mail);
        let input = answer.recv().ok().flatten();
        self.release_helper(key);
        input
    }

    /// A queue has arrived.
    fn settled(&self, key: QueueKey, owner: usize) {
        if let Some(place) = self.table.lock().queues.get_mut(&key) {
            (place.owner, place.transit) = (owner, None);
        }
        self.arrived.notify_all();
    }

    /// Waits until NICs have sent what this worker gave them, if another uses other queues of theirs.
    fn settle_nics(&self, from: usize, to: usize) {
        #[cfg(feature = "dpdk")]
        {
            if !self.nics_settle(from, to, Instant::now() + SETTLE) {
                self.unsettled.fetch_add(1, Ordering::Relaxed);
            }
        }
        #[cfg(not(feature = "dpdk"))]
        let _ = (from, to, &self.shared);
    }

    /// The same until this moment; false if some had not by then.
    #[cfg(feature = "dpdk")]
    fn nics_settle(&self, from: usize, to: usize, until: Instant) -> bool {
        let snapshot = self.shared.snapshot.load();
        // Every one of them, also after one was not done.
        let late = snapshot.nics().filter(|nic| !nic.settle(from, to, until));
        late.count() == 0
    }
}

// ---- the list of workers ----------------------------------------------------------------------------------------

/// What leads from the workers there are to those that are wanted. Dropped without [`Workers::commit`], new workers stay
/// prepared and idle; see [`Workers::abandon`].
#[must_use]
#[derive(Debug)]
pub struct Change {
    coming: Vec<usize>,
    leaving: Vec<usize>,
    changed: Vec<(usize, Wanted)>,
}

impl Workers {
    /// Prepares a change of the list: everything that can fail is done, and nothing is changed. New workers have their
    /// numbers, so [`places`](Self::places) says how many places counters need before the [`commit`](Self::commit).
    ///
    /// A worker whose core is still wanted stays, whatever its place in the list. The others are moved to the cores that
    /// are new, as far as there are any, and keep their queues.
    ///
    /// # Errors
    /// A thread or descriptor that the system did not give.
    pub fn prepare(&self, wanted: &[Wanted]) -> io::Result<Change> {
        let mut change = Change {
            coming: Vec::new(),
            leaving: Vec::new(),
            changed: Vec::new(),
        };
        let mut missing: Vec<Wanted> = wanted.to_vec();
        for Seen { index, wanted, .. } in self.list() {
            match missing.iter().position(|w| w.core == wanted.core) {
                Some(at) => {
                    let new = missing.remove(at);
                    if new != wanted {
                        change.changed.push((index, new));
                    }
                }
                None => change.leaving.push(index),
            }
        }
        let repinned = change.leaving.len().min(missing.len());
        let pairs = change.leaving.drain(..repinned);
        change.changed.extend(pairs.zip(missing.drain(..repinned)));
        for wanted in missing {
            match self.hire(wanted) {
                Ok(index) => change.coming.push(index),
                Err(error) => {
                    self.abandon(change);
                    return Err(error);
                }
            }
        }
        Ok(change)
    }

    /// Makes a prepared change. New workers must have places in the snapshot that workers see by now. When this returns
    /// the workers that left have ended, and their queues are with others.
    pub fn commit(&self, change: Change) {
        let mut table = self.table.lock();
        for (index, wanted) in change.changed {
            if let Some(entry) = table.workers.get_mut(index).and_then(Option::as_mut) {
                let mail = Arc::clone(&entry.mail);
                let before = std::mem::replace(&mut entry.wanted, wanted);
                entry.node = node::of_core(wanted.core);
                entry.kin = Kin::of_core(wanted.core);
                let core = wanted.core;
                tracing::info!(worker = index, core, mode = ?wanted.busy_poll, "worker changed");
                if before.core != wanted.core {
                    send(&mail, Letter::Pin(wanted.core));
                }
                let idle = |w: Wanted| (w.busy_poll, w.max_sleep);
                if idle(before) != idle(wanted) {
                    send(&mail, Letter::Idle(wanted.busy_poll, wanted.max_sleep));
                }
            }
        }
        for (list, standing) in [
            (&change.coming, Standing::Here),
            (&change.leaving, Standing::Leaving),
        ] {
            for index in list {
                if let Some(entry) = table.workers.get_mut(*index).and_then(Option::as_mut) {
                    entry.standing = standing;
                    let core = entry.wanted.core;
                    match standing {
                        Standing::Here => tracing::info!(worker = index, core, "worker added"),
                        _ => {
                            tracing::info!(worker = index, core, "worker leaves");
                            table.pins.retain(|_, worker| worker != index);
                        }
                    }
                }
            }
        }
        drop(table);
        for index in change.leaving {
            self.vacate(index);
            self.dismiss(index);
        }
    }

    /// Takes back what was prepared.
    pub fn abandon(&self, change: Change) {
        for index in change.coming {
            self.dismiss(index);
        }
    }

    /// Ends all workers and waits for them.
    pub fn stop(&self) {
        for index in 0..self.places() {
            self.dismiss(index);
        }
    }

    /// Starts a worker that gets no queues yet.
    fn hire(&self, wanted: Wanted) -> io::Result<usize> {
        let mut table = self.table.lock();
        let free = table.workers.iter().position(Option::is_none);
        let index = free.unwrap_or(table.workers.len());
        let mail = Arc::new(Mailbox::new(MAIL)?);
        let vitals = Arc::<Vitals>::default();
        let worker = Worker::new(index, wanted, &self.shared, &mail, &vitals)?;
        let thread = thread::Builder::new()
            .name(format!("worker/{index}"))
            .spawn(move || worker.run())?;
        if free.is_none() {
            table.workers.push(None);
        }
        if let Some(place) = table.workers.get_mut(index) {
            *place = Some(Entry {
                wanted,
                node: node::of_core(wanted.core),
                kin: Kin::of_core(wanted.core),
                vitals,
                mail,
                thread,
                standing: Standing::Coming,
                resting: true,
            });
        }
        Ok(index)
    }

    /// Moves all queues of a worker that gets no more to others; those that are on their way to it, too. What nobody takes
    /// stays.
    fn vacate(&self, worker: usize) {
        loop {
            let mut table = self.table.lock();
            let mut owned = table
                .queues
                .iter()
                .filter(|(_, p)| p.at() == worker || p.owner == worker);
            let Some((&key, place)) = owned.next() else {
                return;
            };
            if place.transit.is_some() {
                self.arrived.wait(&mut table);
                continue;
            }
            let near = place.home.node();
            let Some(to) = table.choose(Some(worker), near) else {
                return;
            };
            drop(table);
            match self.move_queue(key, to) {
                Ok(_) | Err(MoveError::InTransit | MoveError::NoQueue | MoveError::NoWorker) => {}
            }
        }
    }

    /// Ends a worker and waits for it. Queues that it still has end with it.
    fn dismiss(&self, index: usize) {
        let mut table = self.table.lock();
        if let Some(entry) = table.workers.get_mut(index).and_then(Option::as_mut) {
            // No helper and not helped from now on.
            entry.standing = Standing::Leaving;
        }
        drop(table);
        self.part(index);
        let mut table = self.table.lock();
        let Some(entry) = table.workers.get_mut(index).and_then(Option::take) else {
            return;
        };
        table.queues.retain(|_, place| place.owner != index);
        drop(table);
        self.arrived.notify_all();
        send(&entry.mail, Letter::Stop);
        let _ = entry.thread.join();
    }
}

fn send(mail: &Mailbox<Letter>, mut letter: Letter) {
    while let Err(back) = mail.put(letter) {
        letter = back;
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::learn::LearnMailbox;
    use crate::forward::{PortIndex, PortRef};
    use crate::worker::bell::Bell;

    pub(super) fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            snapshot: arc_swap::ArcSwap::default(),
            clock: 0.into(),
            learn: Arc::new(LearnMailbox::new(1).unwrap()),
            reports: Mailbox::new(1).unwrap(),
            bell: Bell::new().unwrap(),
        })
    }

    fn on(core: u32) -> Wanted {
        Wanted {
            core,
            busy_poll: BusyPoll::Adaptive,
            max_sleep: Duration::ZERO,
        }
    }

    fn cores(workers: &Workers) -> Vec<(usize, u32)> {
        let list = workers.list();
        list.iter().map(|w| (w.index, w.wanted.core)).collect()
    }

    fn change_to(workers: &Workers, wanted: &[Wanted]) {
        let change = workers.prepare(wanted).unwrap();
        workers.commit(change);
    }

    // Cores that do not exist: the threads run unpinned, which is all the same here.
    const A: u32 = 1000;

    #[test]
    fn numbers_stay_and_are_used_again() {
        let workers = Workers::start(&[on(A), on(A + 1)], &shared()).unwrap();
        assert_eq!(cores(&workers), [(0, A), (1, A + 1)]);
        change_to(&workers, &[on(A + 1)]);
        assert_eq!(cores(&workers), [(1, A + 1)], "who stays keeps its number");
        change_to(&workers, &[on(A + 2), on(A + 1), on(A + 3)]);
        assert_eq!(cores(&workers), [(0, A + 2), (1, A + 1), (2, A + 3)]);
        assert_eq!(workers.places(), 3);
        change_to(&workers, &[on(A + 2), on(A + 4), on(A + 3)]);
        assert_eq!(
            cores(&workers),
            [(0, A + 2), (1, A + 4), (2, A + 3)],
            "a core instead of another is a worker that goes there"
        );
        let never = Wanted {
            busy_poll: BusyPoll::Never,
            ..on(A + 4)
        };
        change_to(&workers, &[never]);
        assert_eq!(workers.list()[0].wanted, never);
        workers.stop();
        assert!(workers.list().is_empty());
    }

    #[test]
    fn what_is_abandoned_leaves_no_trace() {
        let workers = Workers::start(&[on(A)], &shared()).unwrap();
        let change = workers.prepare(&[on(A + 1), on(A + 2), on(A + 3)]).unwrap();
        assert_eq!(cores(&workers), [(0, A)], "nothing is changed before");
        assert_eq!(workers.places(), 3, "but counters have to make room");
        workers.abandon(change);
        change_to(&workers, &[on(A), on(A + 9)]);
        assert_eq!(cores(&workers), [(0, A), (1, A + 9)]);
        workers.stop();
    }

    #[test]
    fn what_is_not_there_is_not_moved() {
        let workers = Workers::start(&[on(A)], &shared()).unwrap();
        let key = QueueKey {
            port: PortRef {
                index: PortIndex(3),
                incarnation: 1,
            },
            queue: 0,
        };
        assert_eq!(workers.move_queue(key, 0), Err(MoveError::NoQueue));
        assert_eq!(workers.move_queue(key, 1), Err(MoveError::NoWorker));
        assert_eq!(workers.pin(key, true), Err(MoveError::NoQueue));
        assert!(workers.detach(key).is_none() && workers.owner(key).is_none());
        workers.stop();
    }

    /// Where it is not known which cores there are, any number may be configured.
    #[test]
    fn a_core_that_no_machine_has_is_no_reason_to_end() {
        let workers = Workers::start(&[on(A), on(1 << 20)], &shared()).unwrap();
        let lives = |w: &Seen| {
            let started = std::time::Instant::now();
            while !w.vitals.read().asleep && started.elapsed() < Duration::from_secs(10) {
                thread::yield_now();
            }
            w.vitals.read().asleep
        };
        assert!(workers.list().iter().all(lives));
        workers.stop();
    }

    /// A worker without queues sleeps, whatever it does when idle, and does not wake by itself.
    #[test]
    fn a_parked_worker_costs_nothing() {
        let always = Wanted {
            busy_poll: BusyPoll::Always,
            ..on(A)
        };
        let workers = Workers::start(&[always], &shared()).unwrap();
        let vitals = &workers.list()[0].vitals;
        let started = std::time::Instant::now();
        while !vitals.read().asleep && started.elapsed() < Duration::from_secs(10) {
            thread::yield_now();
        }
        let before = vitals.read();
        thread::sleep(Duration::from_millis(30));
        assert!(before.asleep && before.parked);
        assert_eq!(vitals.read(), before);
        workers.stop();
    }
}
