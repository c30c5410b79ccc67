//! The steward: who moves queues between workers, and decides how many workers are in use.
//!
//! # Theory of operation
//!
//! A thread that sleeps without a timer while nothing happens. A worker that is busy rings ([`bell`](super::bell)); from then
//! on the steward looks at all workers, every 10 ms to 1 s, until there is nothing to do again. While it looks, a worker
//! whose queues stand rings, too, and is looked at at once, and if it had been idle before, again 200 us later. If another
//! worker is not put to use for it, loads are counted anew, and queues or buckets move a millisecond later (`press`).
//!
//! What a look sees are the figures that workers and queues keep of themselves. What follows from it is decided by
//! [`vswitch_flowtable::scale`] (one worker more, one less) and [`vswitch_flowtable::balance`] (which queues move), which
//! know neither clock nor queue. What is decided is made by [`Workers::move_queue`] and noted in the [`trace`].
//!
//! Flows of a NIC with several receive queues are spread over them by the device, by a table that the steward changes by
//! load, too (`reta`), when no queue moves.
//!
//! A worker that is not in use *rests*: it owns no queue and sleeps without a timer. A queue that the operator has pinned
//! is no item for the balancer; its load is taken off its worker's capacity.
//!
//! A queue that fills its worker by itself cannot be moved to any avail. It is given a helper where that pays, also one that
//! rested, and loses it where it does not any longer ([`sharing`]); whether it does is measured ([`gain`]). Meanwhile it does
//! not move, and its helper does not rest.
//!
//! # Limits
//!
//! 64 workers and 4096 queues are balanced; queues beyond stay where they are. If one is put to use soon after one was sent
//! to rest, workers must have had little to do for twice as long before one rests again, up to five seconds.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use vswitch_flowtable::balance::Balancer;
use vswitch_flowtable::scale::Scaler;

use super::bell::Ears;
use super::registry::sharing::ShareError;
use super::registry::{Asked, MoveError, QueueSeen, Workers};
use super::{QueueKey, Report, Shared};
use helpers::Measured;
pub use orders::Order;
use press::{Hush, Pressed};
use sharing::Sharing;
use trace::{Decision, Trace, What};

mod balancing;
mod gain;
mod helpers;
mod look;
mod orders;
mod press;
#[cfg(feature = "dpdk")]
mod reta;
mod scaling;
mod sharing;
pub mod trace;

/// Why, if nothing was measured.
const ASKED: &str = "the operator asked for it";
/// Workers that are looked at.
const WORKERS: usize = 64;
/// Queues that are looked at.
const QUEUES: usize = 4096;
/// A worker is pressed if it was busy for this share of the time since the last look.
const PRESSED: f64 = 0.5;
/// When to look again at a worker that rang and had been idle before.
const AGAIN: Duration = Duration::from_micros(200);
/// Loads measured over less than this are chance.
const MEASURED: Duration = Duration::from_millis(2);
/// Below this busy share of all workers together, over [`QUIET_FOR`], nothing is worth watching.
const QUIET: f64 = 0.05;
/// Looks may come sooner after each other than a guest's bursts.
const QUIET_FOR: Duration = Duration::from_millis(10);
/// What the steward may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Duties {
    /// Move queues by load.
    pub rebalance: bool,
    /// Take workers out of use. Only together with `rebalance`: who cannot move queues cannot empty a worker.
    pub scale: bool,
    /// Give hot queues helpers. Only together with `rebalance`.
    pub share: bool,
}

impl Duties {
    fn shares(self) -> bool {
        self.rebalance && self.share
    }

    fn scales(self) -> bool {
        self.rebalance && self.scale
    }
}

/// See the module's page.
pub struct Steward {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    brain: Mutex<Brain>,
    trace: Arc<Trace>,
    orders: Mutex<Vec<Order>>,
    ending: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Steward {
    /// Starts its thread.
    ///
    /// # Errors
    /// No thread.
    pub fn start(
        workers: &Arc<Workers>,
        shared: &Arc<Shared>,
        duties: Duties,
    ) -> io::Result<Arc<Self>> {
        let brain = Brain::new(duties);
        let steward = Arc::new(Steward {
            shared: Arc::clone(shared),
            workers: Arc::clone(workers),
            trace: Arc::clone(&brain.trace),
            brain: Mutex::new(brain),
            orders: Mutex::default(),
            ending: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let own = Arc::clone(&steward);
        let thread = std::thread::Builder::new().name("steward".into());
        *steward.thread.lock() = Some(thread.spawn(move || own.run())?);
        Ok(steward)
    }

    /// Takes up what it may do, and which workers there are.
    pub fn configure(&self, duties: Duties) {
        let mut brain = self.brain.lock();
        brain.duties = duties;
        if !duties.shares() {
            for queue in self.workers.queues() {
                if queue.asked != Asked::On && self.workers.unshare(queue.key) {
                    let why = "sharing is switched off";
                    brain
                        .trace
                        .note(SystemTime::now(), What::Alone(queue.key), why);
                }
            }
        }
        if !duties.scales() {
            for worker in self.workers.list() {
                self.workers.rest(worker.index, false);
            }
        }
        drop(brain);
        self.shared.bell.ring();
    }

    /// What it may do.
    pub fn duties(&self) -> Duties {
        self.brain.lock().duties
    }

    /// Moves a queue to a worker and keeps it there, or leaves it to the steward again.
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn set(&self, key: QueueKey, worker: Option<usize>) -> Result<(), MoveError> {
        let brain = self.brain.lock();
        let now = SystemTime::now();
        match worker {
            Some(to) => {
                let from = self.workers.owner(key).ok_or(MoveError::NoQueue)?;
                if self.workers.move_queue(key, to)? {
                    let queue = key;
                    brain.trace.note(now, What::Move { queue, from, to }, ASKED);
                }
                self.workers.rest(to, false);
                self.workers.pin(key, true)?;
                brain.trace.note(now, What::Pin(key, to), ASKED);
            }
            None => {
                self.workers.pin(key, false)?;
                brain.trace.note(now, What::Release(key), ASKED);
            }
        }
        // It may sleep because of what stayed where it was.
        self.shared.bell.ring();
        Ok(())
    }

    /// Has a queue shared with the worker that has most room, or not, from now on, or leaves it to the steward again.
    ///
    /// # Errors
    /// See [`ShareError`]; nothing has changed.
    pub fn share(&self, key: QueueKey, asked: Asked) -> Result<(), ShareError> {
        let mut brain = self.brain.lock();
        let before = self.workers.ask_to_share(key, asked)?;
        let is_helped = |queue: &QueueSeen| queue.key == key && queue.helper.is_some();
        let is_shared = self.workers.queues().iter().any(is_helped);
        let ends = match asked {
            Asked::On => false,
            Asked::Off => true,
            Asked::Auto => !brain.duties.shares(),
        };
        if asked == Asked::On && !is_shared {
            if let Err(error) = brain.find_helper(key, &self.workers) {
                self.workers.ask_to_share(key, before)?;
                return Err(error);
            }
        } else if ends && self.workers.unshare(key) {
            let now = SystemTime::now();
            brain.trace.note(now, What::Alone(key), ASKED);
        }
        drop(brain);
        self.shared.bell.ring();
        Ok(())
    }

    /// The last decisions, the oldest first.
    pub fn trace(&self) -> Vec<Decision> {
        self.trace.decisions()
    }

    /// Ends its thread and waits for it.
    pub fn stop(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.shared.bell.ring();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn run(&self) {
        let bell = &self.shared.bell;
        let mut next = Next::QUIET;
        let mut ordered = false;
        while !self.is_ending() {
            bell.listen(next.ears, next.hushed);
            // Between two orders it looks, whoever else gives some.
            if !self.has_orders() {
                self.wait(next.within);
            }
            bell.listen(Ears::Deaf, 0);
            let rung = bell.who();
            ordered = !ordered && self.take_orders();
            if ordered {
                let mut brain = self.brain.lock();
                // The bell may have rung for a queue that is to have a helper.
                brain.find_helpers(&self.workers);
                // It goes on watching if there is anything to watch.
                next = brain.next(&self.workers, 1.0);
                continue;
            }
            let asleep = next.within.is_none();
            let mut brain = self.brain.lock();
            let now = Instant::now();
            brain.find_helpers(&self.workers);
            next = if asleep {
                // What was measured before is of another time.
                brain.begin(now, &self.workers);
                brain.balancer.hurry();
                brain.next(&self.workers, 1.0)
            } else {
                brain.look(now, rung, &self.workers)
            };
        }
    }

    /// Waits for the bell.
    fn wait(&self, within: Option<Duration>) {
        let within = within.map(|d| Timespec {
            tv_sec: d.as_secs() as i64,
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        let mut fds = [PollFd::new(&self.shared.bell, PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, within.as_ref());
        self.shared.bell.answer();
    }
}

/// When to look again, and what to be woken for before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Next {
    ears: Ears,
    /// Workers that are not heard, a bit each.
    hushed: u64,
    within: Option<Duration>,
}

impl Next {
    /// When somebody is busy.
    const QUIET: Self = Next {
        ears: Ears::Busy,
        hushed: 0,
        within: None,
    };
    /// When it is configured anew.
    const NEVER: Self = Next {
        ears: Ears::Deaf,
        hushed: 0,
        within: None,
    };
}

/// What the steward remembers from look to look.
struct Brain {
    duties: Duties,
    balancer: Balancer,
    scaler: Scaler,
    trace: Arc<Trace>,
    started: Instant,
    /// When balancing last looked, and what it saw.
    balanced: Instant,
    queues: BTreeMap<QueueKey, Known>,
    /// When scaling last looked, and how long each worker had been busy by then.
    scaled: Instant,
    busy: [u64; WORKERS],
    /// Since when it is watched whether all is quiet, and how long all together had been busy by then.
    watched: (Instant, u64),
    calm: Duration,
    sharing: Sharing,
    /// What sharing goes by, and which workers it looks for soon because they rang, a bit each.
    measured: Measured,
    seeking: u64,
    #[cfg(feature = "dpdk")]
    retas: reta::Retas,
    shrunk: Option<Instant>,
    /// Who rang a moment ago; nothing could be done about it then.
    doubtful: Option<usize>,
    pressed: Option<Pressed>,
    hush: Hush,
    /// Other workers are in use than when queues were last dealt out.
    changed: bool,
}

/// What is remembered of a queue.
#[derive(Clone, Copy)]
struct Known {
    item: u16,
    busy_ns: u64,
    /// Who helped with it then, and what that had taken for it, nanoseconds.
    helped: Option<(usize, u64)>,
}

#[cfg(test)]
mod cost;
#[cfg(test)]
pub(super) mod tests;
