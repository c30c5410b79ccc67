//! Workers: the threads that forward, one per configured core.
//!
//! # Theory of operation
//!
//! A worker owns guests' transmit rings and NICs' receive queues. They come and go by letter: whoever brings a queue
//! hands it over by value, whoever wants it back waits for the worker to put it into the reply. So a queue has one owner
//! at any time, and when a session has its ring back no worker touches the guest's memory through it.
//!
//! A turn polls every owned queue for one burst and forwards it ([`turn`](Worker::turn)). When turns stay empty the
//! worker spins for a while ([`idle`]), then asks every ring for a kick, and every NIC that has one for an interrupt, looks
//! again, and sleeps in epoll. NICs without are looked at by a timer. If it may, it naps (`nap`) where frames are few but
//! steady.
//!
//! A queue that is hotter than its worker's core can be [shared](crate::forward::share): another worker writes part of what
//! its owner takes. Who helps has no helper, and is not helped with.
//!
//! - [`registry`]: which workers there are and who owns which queue; workers come, go and change while frames pass
//! - [`vitals`]: what workers tell about themselves; a busy one looks at its queues once per [`LOOK`]
//! - [`steward`]: moves queues between workers, and decides how many of them are in use; woken through a [`bell`]
//!
//! # Limits
//!
//! One burst of 32 frames a queue and turn, so a busy queue cannot starve its neighbours. [`MAIL`] letters wait at most;
//! who writes more waits.

pub mod bell;
#[cfg(feature = "dpdk")]
mod gate;
pub mod idle;
mod nap;
pub mod node;
mod queues;
pub mod registry;
mod settle;
pub mod steward;
pub mod vitals;

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::thread::CpuSet;
use vswitch_flowtable::Micros;
use vswitch_vhost::TxScratch;

use crate::daemon::SessionId;
use crate::forward::fdb::CoarseSecond;
use crate::forward::learn::LearnMailbox;
use crate::forward::share::Share;
use crate::forward::{Forwarder, PortRef, Snapshot};
use crate::mailbox::Mailbox;
use bell::{Bell, Ears};
pub use idle::BusyPoll;
use idle::{Idle, Poller};
use nap::Naps;
use queues::Queues;
pub use queues::{Input, QueueKey, Steps, serve};
use registry::Wanted;
pub use registry::Workers;
use vitals::{QueueVitals, Vitals};

/// Letters that may wait for a worker.
const MAIL: usize = 256;
/// How often a busy worker looks whether its queues keep up.
pub const LOOK: Duration = Duration::from_micros(25);
/// A queue that has not been seen empty for so long wants another worker.
pub const DELAY_LIMIT: Duration = Duration::from_micros(20);
/// Looks in a row that find the same queue never empty in between.
pub const STANDING_LIMIT: u32 = 2;
/// A worker that was busy for so long, in at most eight times the time, is worth a look from outside.
const BUSY_NEWS: Duration = Duration::from_millis(1);

/// What a worker is asked to do.
enum Letter {
    /// Own this queue from now on.
    Attach(QueueKey, Input, Arc<QueueVitals>),
    /// Give the queue back.
    Detach(QueueKey, mpsc::SyncSender<Option<Input>>),
    /// Have a helper for this queue from now on; whether that was possible.
    Share(QueueKey, Arc<Share>, mpsc::SyncSender<bool>),
    /// Do without it.
    Alone(QueueKey, mpsc::SyncSender<()>),
    /// Help with this from now on.
    Help(Arc<Share>),
    /// Help with this no longer. Named, because it may come after the next one: who frees a worker and who takes it are two.
    Leave(Arc<Share>),
    /// Leave this NIC's queue alone until it is released, or until the moment that is the answer: `None` if it is not here.
    #[cfg(feature = "dpdk")]
    Hold(QueueKey, mpsc::SyncSender<Option<Instant>>),
    /// Poll it again.
    #[cfg(feature = "dpdk")]
    Release(QueueKey),
    /// Tell when what is in this NIC's queue now has been forwarded.
    #[cfg(feature = "dpdk")]
    Drain(QueueKey, mpsc::SyncSender<()>),
    /// Run on this core from now on.
    Pin(u32),
    /// Do this when idle from now on.
    Idle(BusyPoll, Duration),
    /// End.
    Stop,
}

/// What sessions and the steward report to the main thread.
#[derive(Debug)]
pub enum Report {
    /// A guest's session has ended, and why.
    SessionEnded(PortRef, SessionId, String),
    /// What was asked for under this number is done, and this was decided.
    Rebalanced(steward::Order, Vec<steward::trace::Decision>),
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
    /// What busy workers ring.
    pub bell: Bell,
}

/// The clock of flows and their pins: microseconds since some moment in this process's life.
#[inline]
pub fn micros(now: Instant) -> Micros {
    Micros(nanos(now) / 1000)
}

/// The same in nanoseconds: the clock of calls.
#[inline]
pub fn nanos(now: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = now.saturating_duration_since(*START);
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
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

/// The thread's own side.
struct Worker {
    core: u32,
    shared: Arc<Shared>,
    forwarder: Forwarder,
    scratch: TxScratch,
    queues: Queues,
    /// Another's queue that it helps with.
    helping: Option<Arc<Share>>,
    idle: Idle,
    naps: Naps,
    mail: Arc<Mailbox<Letter>>,
    vitals: Arc<Vitals>,
    look: Look,
}

/// What a worker remembers from one look at its queues to the next.
struct Look {
    last: Instant,
    /// Looks in a row between which a queue was never empty.
    standing: u32,
    /// Busy since this time, when it was last told.
    busy: Duration,
    told: Instant,
}

impl Worker {
    /// The worker with this number. It owns no queue.
    ///
    /// # Errors
    /// No descriptor to sleep on.
    fn new(
        index: usize,
        wanted: Wanted,
        shared: &Arc<Shared>,
        mail: &Arc<Mailbox<Letter>>,
        vitals: &Arc<Vitals>,
    ) -> io::Result<Self> {
        vitals.parked(true);
        Ok(Worker {
            core: wanted.core,
            shared: Arc::clone(shared),
            forwarder: Forwarder::new(index, Arc::clone(&shared.learn)),
            scratch: TxScratch::new(),
            queues: Queues::new(Poller::new(mail)?),
            helping: None,
            idle: Idle::new(wanted.busy_poll),
            naps: naps(wanted.busy_poll, wanted.max_sleep),
            mail: Arc::clone(mail),
            vitals: Arc::clone(vitals),
            look: Look {
                last: Instant::now(),
                standing: 0,
                busy: Duration::ZERO,
                told: Instant::now(),
            },
        })
    }

    /// The worker's life.
    fn run(mut self) {
        self.pin();
        self.sleep_exactly();
        let shared = Arc::clone(&self.shared);
        let mut cache = arc_swap::Cache::new(&shared.snapshot);
        let mut adopted: Option<Arc<Snapshot>> = None;
        let mut clock = Instant::now();
        loop {
            if self.mail.has_mail() && !self.read_mail() {
                self.forwarder.flush(&shared.snapshot.load(), nanos(clock));
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
            let before = clock;
            let worked = self.turn(snapshot, &mut clock);
            if !worked {
                clock = Instant::now();
            }
            self.account(worked, before, clock);
            // Without queues there is nothing to poll for, whatever it does when idle.
            let parked = self.is_parked();
            if !worked
                && !parked
                && self.helping.is_none()
                && self.naps.are_allowed()
                && self.nap(snapshot, &mut clock)
            {
                continue;
            }
            if (parked || self.idle.should_sleep(worked, clock))
                && self.holds_nothing(parked, snapshot, clock)
                && self.sleep(snapshot, &mut clock)
            {
                let woken = Instant::now();
                self.naps.slept(woken.duration_since(clock));
                self.queues.refresh(woken);
                self.idle.woke(woken.duration_since(clock), woken);
                clock = woken;
            }
        }
    }

    /// One burst from every queue. True if there was anything to do; `clock` then moves on to the turn's end.
    fn turn(&mut self, snapshot: &Arc<Snapshot>, clock: &mut Instant) -> bool {
        let now = CoarseSecond(self.shared.clock.load(Ordering::Relaxed));
        let (forwarder, scratch) = (&mut self.forwarder, &mut self.scratch);
        let worked = self.queues.poll(snapshot, now, forwarder, scratch, clock);
        match &self.helping {
            None => worked,
            Some(share) => help(share, forwarder, worked, clock),
        }
    }

    /// There is nothing to look at.
    fn is_parked(&self) -> bool {
        self.queues.is_empty() && self.helping.is_none()
    }

    /// Whether no guest waits for a call of this worker's, which is about to sleep. One that is not to poll, or has nothing
    /// to poll, makes it so; any other leaves the rules that hold for a fixed time their way.
    fn holds_nothing(&mut self, parked: bool, snapshot: &Snapshot, now: Instant) -> bool {
        if parked || self.idle.mode() == BusyPoll::Never {
            self.forwarder.flush(snapshot, nanos(now));
            self.queues.flush(nanos(now));
        } else {
            self.forwarder.yield_calls(snapshot, nanos(now));
            self.queues.yield_calls(nanos(now));
        }
        !self.forwarder.holds() && !self.queues.holds()
    }

    /// Sleeps until something happens; false if something had happened already.
    fn sleep(&mut self, snapshot: &Arc<Snapshot>, clock: &mut Instant) -> bool {
        let helping = self.helping.clone();
        let quiet = self.queues.arm()
            && !self.last_look(snapshot, clock)
            && helping.as_ref().is_none_or(|share| share.may_sleep())
            && !self.mail.has_mail();
        if quiet {
            self.look.standing = 0;
            self.vitals.sleeps();
            self.queues.wait();
            self.vitals.wakes();
        }
        if let Some(share) = helping {
            share.awake();
        }
        self.queues.disarm();
        quiet
    }

    /// After a turn that found nothing: sleeps for a moment if that is what to do, so that the next one finds more.
    fn nap(&mut self, snapshot: &Snapshot, clock: &mut Instant) -> bool {
        if self.naps.is_over(*clock) {
            self.naps.close(*clock, self.queues.inflows());
        }
        let length = self.naps.length();
        let goes = !length.is_zero()
            && self.queues.may_nap()
            && self.holds_nothing(false, snapshot, *clock)
            && !self.mail.has_mail()
            && self.naps.begin(self.queues.filled(), *clock);
        if goes {
            self.look.standing = 0;
            self.vitals.naps();
            self.queues.nap(length);
            self.vitals.wakes();
            *clock = Instant::now();
            self.queues.refresh(*clock);
        }
        goes
    }

    /// Polls once more if there are NICs that have just been asked for interrupts: what came before does not wake. True if
    /// there was anything.
    fn last_look(&mut self, snapshot: &Arc<Snapshot>, clock: &mut Instant) -> bool {
        if !self.queues.needs_last_look() {
            return false;
        }
        let before = *clock;
        let worked = self.turn(snapshot, clock);
        if worked {
            self.account(true, before, *clock);
            self.idle.should_sleep(true, *clock);
        }
        worked
    }

    fn read_mail(&mut self) -> bool {
        let mail = Arc::clone(&self.mail);
        for letter in mail.drain() {
            match letter {
                Letter::Attach(key, input, vitals) => self.queues.attach(key, input, vitals),
                // Nobody waits for the answer any more only if the asker died; the queue then goes with it.
                Letter::Detach(key, reply) => {
                    self.alone(key);
                    drop(reply.send(self.queues.detach(key)));
                }
                Letter::Share(key, share, reply) => {
                    let _ = reply.send(self.queues.share(key, share));
                }
                Letter::Alone(key, reply) => {
                    self.alone(key);
                    let _ = reply.send(());
                }
                Letter::Help(share) => {
                    self.idle.set_keen(true);
                    self.helping = Some(share);
                }
                Letter::Leave(share) => {
                    let left = self.helping.take_if(|own| Arc::ptr_eq(own, &share));
                    if left.is_some() {
                        self.idle.set_keen(false);
                    }
                }
                #[cfg(feature = "dpdk")]
                Letter::Hold(key, reply) => drop(reply.send(self.queues.hold(key))),
                #[cfg(feature = "dpdk")]
                Letter::Release(key) => self.queues.release(key),
                #[cfg(feature = "dpdk")]
                Letter::Drain(key, told) => self.queues.drain(key, told),
                Letter::Pin(core) => {
                    self.core = core;
                    self.pin();
                }
                Letter::Idle(mode, max_sleep) => {
                    self.idle.set_mode(mode);
                    self.naps = naps(mode, max_sleep);
                    self.sleep_exactly();
                }
                Letter::Stop => return false,
            }
        }
        self.vitals.parked(self.is_parked());
        true
    }

    /// Serves a queue without a helper from now on; the helper is done with it on return.
    fn alone(&mut self, key: QueueKey) {
        let snapshot = self.shared.snapshot.load();
        let worker = self.forwarder.worker();
        self.queues.alone(key, &snapshot, worker);
    }

    #[inline]
    fn account(&mut self, worked: bool, before: Instant, now: Instant) {
        let spent = now.duration_since(before);
        self.vitals.turn(worked, spent.as_nanos() as u64);
        if worked {
            self.look.busy += spent;
            self.naps.worked(spent);
            if now.duration_since(self.look.last) >= LOOK {
                self.look(now);
            }
        }
    }

    /// Do the queues keep up? Rings if they do not, or if it is time that somebody looks at this worker.
    #[inline(never)]
    fn look(&mut self, now: Instant) {
        let Some(emptied) = self.queues.emptied() else {
            return;
        };
        let worker = self.forwarder.worker();
        let delay = now.duration_since(emptied);
        self.look.standing = if emptied <= self.look.last {
            self.look.standing.saturating_add(1)
        } else {
            0
        };
        self.look.last = now;
        self.vitals.look(delay, self.look.standing);
        if self.look.standing >= STANDING_LIMIT || delay >= DELAY_LIMIT {
            self.shared.bell.ring_for(Ears::Queueing, worker);
        }
        if self.look.busy >= BUSY_NEWS {
            // A worker that took long for it is not busy.
            if now.duration_since(self.look.told) <= BUSY_NEWS * 8 {
                self.shared.bell.ring_for(Ears::Busy, worker);
            }
            (self.look.busy, self.look.told) = (Duration::ZERO, now);
        }
    }

    /// The kernel may let a thread sleep 50 us longer than it asks for, unless told otherwise.
    fn sleep_exactly(&self) {
        let slack = NonZeroU64::MIN;
        let slack = self.naps.are_allowed().then_some(slack);
        if let Err(error) = rustix::thread::set_current_timer_slack(slack) {
            tracing::warn!(core = self.core, %error, "the worker may sleep longer than it is to");
        }
    }

    fn pin(&self) {
        let mut cores = CpuSet::new();
        let core = self.core as usize;
        let pinned = if core < CpuSet::MAX_CPU {
            cores.set(core);
            rustix::thread::sched_setaffinity(None, &cores)
        } else {
            // A set has no place for it.
            Err(rustix::io::Errno::INVAL)
        };
        if let Err(error) = pinned {
            tracing::warn!(core = self.core, %error, "the worker could not be pinned to its core");
        }
    }
}

/// Does the helper's part of another's burst, after a turn that worked or not; true if either did.
#[inline(never)]
fn help(share: &Share, forwarder: &mut Forwarder, worked: bool, clock: &mut Instant) -> bool {
    if !share.help(forwarder, nanos(*clock)) {
        return worked;
    }
    let now = Instant::now();
    share.took(now.duration_since(*clock).as_nanos() as u64);
    *clock = now;
    true
}

/// Only a worker that polls, and may sleep, naps.
fn naps(mode: BusyPoll, max_sleep: Duration) -> Naps {
    let adaptive = mode == BusyPoll::Adaptive;
    let longest = if adaptive { max_sleep } else { Duration::ZERO };
    Naps::new(longest, Instant::now())
}
