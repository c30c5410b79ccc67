//! Workers: the threads that forward, one per configured core.
//!
//! # Theory of operation
//!
//! A worker owns guests' transmit rings and NICs' receive queues. They come and go by letter: whoever brings a ring
//! hands it over by value, whoever wants it back waits for the worker to put it into the reply. So a ring has one owner
//! at any time, and when a session has its ring back no worker touches the guest's memory through it.
//!
//! A turn polls every owned queue for one burst and forwards it ([`turn`](Worker::turn)). When turns stay empty the
//! worker spins for a while ([`idle`]), then asks every ring for a kick, looks again, and sleeps in epoll.
//!
//! # Limits
//!
//! One burst of 32 frames a queue and turn, so a busy queue cannot starve its neighbours. [`MAIL`] letters wait at most;
//! who writes more waits.

pub mod idle;
mod queues;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use arc_swap::ArcSwap;
use rustix::thread::CpuSet;
use vswitch_vhost::{TxRing, TxScratch};

use crate::daemon::SessionId;
use crate::forward::fdb::CoarseSecond;
use crate::forward::learn::LearnMailbox;
use crate::forward::{Forwarder, PortRef, Snapshot};
use crate::mailbox::Mailbox;
pub use idle::BusyPoll;
use idle::{Idle, Poller};
use queues::{GuestQueue, Queues};
pub use queues::{QueueKey, Steps, serve};

/// Letters that may wait for a worker.
const MAIL: usize = 256;

/// What a worker is asked to do.
pub enum Letter {
    /// Own this ring from now on.
    AttachGuest(QueueKey, Box<TxRing>),
    /// Give the ring back.
    DetachGuest(QueueKey, mpsc::SyncSender<Option<TxRing>>),
    /// Own this NIC queue from now on.
    #[cfg(feature = "dpdk")]
    AttachNic(QueueKey, Box<crate::nic::NicInput>),
    /// Give the NIC queue back.
    #[cfg(feature = "dpdk")]
    DetachNic(QueueKey, mpsc::SyncSender<Option<crate::nic::NicInput>>),
    /// End.
    Stop,
}

/// What sessions report to the main thread.
#[derive(Debug)]
pub enum Report {
    /// A guest's session has ended, and why.
    SessionEnded(PortRef, SessionId, String),
}

/// What all workers share.
pub struct Shared {
    /// The switch as it is now.
    pub snapshot: ArcSwap<Snapshot>,
    /// The coarse clock, moved on by the main thread.
    pub clock: AtomicU32,
    /// New addresses, for the writer of the tables.
    pub learn: Arc<LearnMailbox>,
    /// News for the main thread.
    pub reports: Mailbox<Report>,
}

impl Shared {
    /// Puts news into the main thread's mailbox, waiting for room. Not for workers.
    pub fn report(&self, mut report: Report) {
        while let Err(back) = self.reports.put(report) {
            report = back;
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// What a worker tells about itself. Written by the worker alone.
#[derive(Default)]
#[repr(align(128))]
pub struct Vitals {
    /// Nanoseconds spent in turns that moved frames.
    pub busy_ns: AtomicU64,
    /// Nanoseconds spent awake.
    pub awake_ns: AtomicU64,
    /// Times it went to sleep.
    pub sleeps: AtomicU64,
    /// Turns that moved frames.
    pub busy_turns: AtomicU64,
    /// Sleeping now.
    pub asleep: AtomicBool,
}

/// A worker seen from outside.
pub struct Handle {
    /// Its core.
    pub core: u32,
    /// What it does when idle.
    pub busy_poll: BusyPoll,
    /// What it tells about itself.
    pub vitals: Arc<Vitals>,
    /// Queues it owns.
    pub queues: AtomicUsize,
    mail: Arc<Mailbox<Letter>>,
}

impl Handle {
    fn send(&self, mut letter: Letter) {
        while let Err(back) = self.mail.put(letter) {
            letter = back;
            thread::yield_now();
        }
    }
}

/// All workers.
pub struct Workers {
    handles: Vec<Handle>,
    threads: parking_lot::Mutex<Vec<thread::JoinHandle<()>>>,
}

impl Workers {
    /// Starts a worker per core.
    ///
    /// # Errors
    /// A thread or descriptor that the system did not give.
    pub fn start(cores: &[(u32, BusyPoll)], shared: &Arc<Shared>) -> io::Result<Arc<Self>> {
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for (index, &(core, busy_poll)) in cores.iter().enumerate() {
            let mail = Arc::new(Mailbox::new(MAIL)?);
            let vitals = Arc::new(Vitals::default());
            let worker = Worker {
                core,
                shared: Arc::clone(shared),
                forwarder: Forwarder::new(index, Arc::clone(&shared.learn)),
                scratch: TxScratch::new(),
                queues: Queues::new(Poller::new(&mail)?),
                idle: Idle::new(busy_poll),
                mail: Arc::clone(&mail),
                vitals: Arc::clone(&vitals),
            };
            let name = format!("worker/{index}");
            threads.push(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || worker.run())?,
            );
            handles.push(Handle {
                core,
                busy_poll,
                vitals,
                queues: AtomicUsize::new(0),
                mail,
            });
        }
        Ok(Arc::new(Workers {
            handles,
            threads: parking_lot::Mutex::new(threads),
        }))
    }

    /// The workers, by index.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Gives a ring to the worker with the fewest queues; returns which that is.
    pub fn attach(&self, key: QueueKey, ring: TxRing) -> Option<usize> {
        let worker = self.least_loaded()?;
        self.post(worker, Letter::AttachGuest(key, Box::new(ring)));
        Some(worker)
    }

    /// Takes a ring back from its worker. When this returns the worker no longer touches it.
    pub fn detach(&self, worker: usize, key: QueueKey) -> Option<TxRing> {
        self.recall(worker, |reply| Letter::DetachGuest(key, reply))
    }

    /// Gives a NIC queue to the worker with the fewest queues; returns which that is.
    #[cfg(feature = "dpdk")]
    pub fn attach_nic(&self, key: QueueKey, queue: crate::nic::NicInput) -> Option<usize> {
        let worker = self.least_loaded()?;
        self.post(worker, Letter::AttachNic(key, Box::new(queue)));
        Some(worker)
    }

    /// Takes a NIC queue back.
    #[cfg(feature = "dpdk")]
    pub fn detach_nic(&self, worker: usize, key: QueueKey) -> Option<crate::nic::NicInput> {
        self.recall(worker, |reply| Letter::DetachNic(key, reply))
    }

    /// Ends all workers and waits for them.
    pub fn stop(&self) {
        for handle in &self.handles {
            handle.send(Letter::Stop);
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }

    fn least_loaded(&self) -> Option<usize> {
        let loads = self
            .handles
            .iter()
            .map(|h| h.queues.load(Ordering::Relaxed))
            .enumerate();
        loads
            .min_by_key(|(_, queues)| *queues)
            .map(|(index, _)| index)
    }

    fn post(&self, worker: usize, letter: Letter) {
        if let Some(handle) = self.handles.get(worker) {
            handle.queues.fetch_add(1, Ordering::Relaxed);
            handle.send(letter);
        }
    }

    fn recall<T>(
        &self,
        worker: usize,
        letter: impl FnOnce(mpsc::SyncSender<Option<T>>) -> Letter,
    ) -> Option<T> {
        let handle = self.handles.get(worker)?;
        let (reply, answer) = mpsc::sync_channel(1);
        handle.send(letter(reply));
        let owned = answer.recv().ok().flatten()?;
        handle.queues.fetch_sub(1, Ordering::Relaxed);
        Some(owned)
    }
}

/// The thread's own side.
struct Worker {
    core: u32,
    shared: Arc<Shared>,
    forwarder: Forwarder,
    scratch: TxScratch,
    queues: Queues,
    idle: Idle,
    mail: Arc<Mailbox<Letter>>,
    vitals: Arc<Vitals>,
}

impl Worker {
    /// The worker's life.
    fn run(mut self) {
        self.pin();
        let shared = Arc::clone(&self.shared);
        let mut cache = arc_swap::Cache::new(&shared.snapshot);
        let mut adopted: Option<Arc<Snapshot>> = None;
        let mut before = Instant::now();
        loop {
            if self.mail.has_mail() && !self.read_mail() {
                return;
            }
            let snapshot = cache.load();
            if !adopted.as_ref().is_some_and(|a| Arc::ptr_eq(a, snapshot)) {
                self.forwarder.adopt(snapshot);
                // Also a worker that only sends to NICs takes packet buffers.
                #[cfg(feature = "dpdk")]
                crate::nic::adopt_thread();
                adopted = Some(Arc::clone(snapshot));
            }
            let worked = self.turn(snapshot);
            let now = Instant::now();
            self.account(worked, now.duration_since(before).as_nanos() as u64);
            before = now;
            if self.idle.should_sleep(worked, now) && self.sleep() {
                before = Instant::now();
                self.idle.woke(before.duration_since(now), before);
            }
        }
    }

    /// One burst from every queue. True if there was anything to do.
    fn turn(&mut self, snapshot: &Snapshot) -> bool {
        let now = CoarseSecond(self.shared.clock.load(Ordering::Relaxed));
        self.queues
            .poll(snapshot, now, &mut self.forwarder, &mut self.scratch)
    }

    /// Sleeps until something happens; false if something had happened already.
    fn sleep(&mut self) -> bool {
        let quiet = self.queues.arm() && !self.mail.has_mail();
        if quiet {
            self.vitals.sleeps.fetch_add(1, Ordering::Relaxed);
            self.vitals.asleep.store(true, Ordering::Relaxed);
            self.queues.wait();
            self.vitals.asleep.store(false, Ordering::Relaxed);
        }
        self.queues.disarm();
        quiet
    }

    fn read_mail(&mut self) -> bool {
        for letter in self.mail.drain() {
            match letter {
                Letter::AttachGuest(key, ring) => self.queues.attach(GuestQueue::new(key, *ring)),
                // Nobody waits for the answer any more only if the asker died; the ring then goes with it.
                Letter::DetachGuest(key, reply) => drop(reply.send(self.queues.detach(key))),
                #[cfg(feature = "dpdk")]
                Letter::AttachNic(key, queue) => self.queues.attach_nic(key, *queue),
                #[cfg(feature = "dpdk")]
                Letter::DetachNic(key, reply) => drop(reply.send(self.queues.detach_nic(key))),
                Letter::Stop => return false,
            }
        }
        true
    }

    fn account(&self, worked: bool, ns: u64) {
        let add = |c: &AtomicU64, n| c.store(c.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        add(&self.vitals.awake_ns, ns);
        if worked {
            add(&self.vitals.busy_ns, ns);
            add(&self.vitals.busy_turns, 1);
        }
    }

    fn pin(&self) {
        let mut cores = CpuSet::new();
        cores.set(self.core as usize);
        if let Err(error) = rustix::thread::sched_setaffinity(None, &cores) {
            tracing::warn!(core = self.core, %error, "the worker could not be pinned to its core");
        }
    }
}
