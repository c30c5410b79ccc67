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
//! to rest, workers must have had little to do for twice as long before one rests again, up to [`CALM_MAX`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use vswitch_flowtable::balance::{self, Balancer, Item, ItemLoad, Node, Plan, Reason, WorkerRoom};
use vswitch_flowtable::scale::{self, Scaler};

use super::bell::Ears;
use super::registry::sharing::ShareError;
use super::registry::{Asked, MoveError, QueueSeen, Seen, Workers};
use super::{QueueKey, Report, Shared};
use helpers::Measured;
pub use orders::Order;
use press::{COUNTED, Came, Hush, Pressed};
use sharing::Sharing;
use trace::{Decision, Trace, What};

mod gain;
mod helpers;
mod orders;
mod press;
#[cfg(feature = "dpdk")]
mod reta;
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
/// Over how long a worker must have had little to do before it rests, and over how much longer each time that this was
/// too soon.
const CALM_MIN: Duration = Duration::from_millis(20);
/// See [`CALM_MIN`].
const CALM_MAX: Duration = Duration::from_secs(5);

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

impl Brain {
    fn new(duties: Duties) -> Self {
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
    fn begin(&mut self, now: Instant, workers: &Workers) {
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
    fn loads(&self, queues: &[QueueSeen]) -> Vec<u64> {
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
    fn remember(
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

    fn remember_busy(&mut self, now: Instant, workers: &[Seen]) {
        for worker in workers {
            if let Some(busy) = self.busy.get_mut(worker.index) {
                *busy = worker.vitals.read().busy_ns;
            }
        }
        self.scaled = now;
    }

    /// Looks, decides and acts.
    fn look(&mut self, now: Instant, rung: Option<usize>, workers: &Workers) -> Next {
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
    fn next(&self, workers: &Workers, busy: f64) -> Next {
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

    // ---- how many workers are in use -----------------------------------------------------------------------------

    /// Puts a worker to use or takes one out of use; true if it did.
    fn scale(
        &mut self,
        now: Instant,
        list: &[Seen],
        looks: &[scale::Look],
        workers: &Workers,
    ) -> bool {
        let at = now.duration_since(self.started);
        let decision = self.scaler.look(at, looks);
        let wall = SystemTime::now();
        match decision {
            scale::Decision::Stay => false,
            scale::Decision::Crowded { reason } => {
                self.trace.note(wall, What::Crowded, reason.to_string());
                false
            }
            scale::Decision::Grow { wake, reason } => {
                let Some(wake) = list.get(usize::from(wake.0)).map(|w| w.index) else {
                    return false;
                };
                // It was taken out of use too soon.
                let soon = self
                    .shrunk
                    .is_some_and(|t| now.duration_since(t) < self.calm * 8);
                self.calm = if soon {
                    (self.calm * 2).min(CALM_MAX)
                } else {
                    CALM_MIN
                };
                // It looks anew from here, over the time that is asked for now.
                self.scaler = scaler(self.calm);
                workers.rest(wake, false);
                self.trace.note(wall, What::Grow(wake), reason.to_string());
                self.balancer.hurry();
                true
            }
            scale::Decision::Shrink { park, reason } => {
                let Some(park) = list.get(usize::from(park.0)).map(|w| w.index) else {
                    return false;
                };
                let in_use = list.iter().filter(|w| !w.resting).count();
                // The last one stays: it sleeps by itself when there is nothing to do.
                if in_use < 2 {
                    return false;
                }
                self.shrunk = Some(now);
                workers.rest(park, true);
                self.trace
                    .note(wall, What::Shrink(park), reason.to_string());
                true
            }
        }
    }

    /// The workers as the scaler sees them, in the order of the list. What waits for a worker that has time is no reason
    /// for another: it was a short burst, or the worker was kept from its core.
    fn looks(&self, now: Instant, list: &[Seen], workers: &Workers) -> Vec<scale::Look> {
        let elapsed = now.duration_since(self.scaled);
        let queues = workers.queues();
        let mut loaded: Vec<Vec<(Option<Node>, u64)>> = vec![Vec::new(); WORKERS];
        for (queue, load) in queues.iter().zip(self.loads(&queues)) {
            if let Some(loaded) = loaded
                .get_mut(queue.owner)
                .filter(|_| load > 0 && !queue.pinned)
            {
                loaded.push((queue.node, load));
            }
        }
        let helpers: Vec<usize> = queues
            .iter()
            .filter_map(|queue| Some(queue.helper?.worker))
            .collect();
        let look = |worker: &Seen| {
            let loaded = loaded.get(worker.index).map_or(&[][..], Vec::as_slice);
            let pulse = worker.vitals.read();
            let before = self.busy.get(worker.index).copied().unwrap_or_default();
            let busy = Duration::from_nanos(pulse.busy_ns.saturating_sub(before));
            let pressed = !pulse.asleep && busy >= elapsed.mul_f64(PRESSED);
            scale::Look {
                parked: worker.resting,
                delay: if pressed { pulse.delay } else { Duration::ZERO },
                standing: pressed && pulse.standing > 0,
                busy,
                divisible: loaded.len() > 1,
                // Who helps is in use, whatever its own queues do.
                stays: worker.pinned || helpers.contains(&worker.index),
                node: worker.node,
                help: help(worker.node, loaded.iter().copied()),
            }
        };
        list.iter().map(look).collect()
    }

    // ---- who has which queue -------------------------------------------------------------------------------------

    /// Moves queues by what they took since the last time.
    fn balance(&mut self, now: Instant, workers: &Workers) -> Balanced {
        let pressed = self.pressed.is_some();
        let (list, queues) = (workers.list(), workers.queues());
        self.changed = false;
        let elapsed = now.duration_since(self.balanced).as_nanos() as u64;
        let (measured, before) = self.remember(now, &queues);
        let mut by_owner = [0_u64; WORKERS];
        for (queue, load) in queues.iter().zip(&measured) {
            if let Some(sum) = by_owner.get_mut(queue.owner) {
                *sum += load;
            }
        }
        // A turn counts when it ends, and one that was kept from its core may have begun long before.
        let longest = by_owner.into_iter().max().unwrap_or(0);
        let mut rooms = rooms(&list, elapsed.max(longest).max(1));
        // Numbers without a queue, and pinned queues, are where they need not go away from.
        let taker = rooms.iter().position(|room| room.takes).unwrap_or(0);
        let absent = ItemLoad {
            worker: balance::Worker(taker as u16),
            load: 0,
            node: None,
        };
        let mut items = vec![
            absent;
            self.queues
                .values()
                .map(|k| usize::from(k.item) + 1)
                .max()
                .unwrap_or(0)
        ];
        let mut names = vec![None; items.len()];
        #[cfg(feature = "dpdk")]
        let whole = rooms.clone();
        let mut known = self.queues.iter().peekable();
        for (queue, &load) in queues.iter().zip(&measured) {
            // Only those that found no number are missing.
            let Some((_, known)) = known.next_if(|(key, _)| **key == queue.key) else {
                continue;
            };
            if let Some(helper) = queue.helper
                && let Some(room) = rooms.get_mut(helper.worker)
            {
                let since = before.get(&queue.key).and_then(|known| known.helped);
                let took = helper.busy_ns.saturating_sub(since.map_or(0, |(_, ns)| ns));
                room.capacity = room.capacity.saturating_sub(took).max(1);
            }
            if queue.pinned || queue.helper.is_some() {
                if let Some(room) = rooms.get_mut(queue.owner) {
                    room.capacity = room.capacity.saturating_sub(load).max(1);
                }
                continue;
            }
            let at = usize::from(known.item);
            if let (Some(item), Some(name)) = (items.get_mut(at), names.get_mut(at)) {
                *item = ItemLoad {
                    worker: balance::Worker(queue.owner as u16),
                    load,
                    node: queue.node,
                };
                *name = Some(queue.key);
            }
        }
        let plan = self.balancer.plan(&items, &rooms);
        carry_out(&plan, &names, pressed, workers, &self.trace);
        let relieves = |made: &balance::Move| !matches!(made.reason, Reason::Home(_));
        let mut balanced = Balanced {
            outcome: plan.outcome,
            helped: plan.moves.iter().any(relieves),
        };
        let moved = !plan.moves.is_empty();
        // One thing at a time: what was measured is of the queues as they were.
        #[cfg(feature = "dpdk")]
        if !moved {
            let loads = queues.iter().zip(measured).map(|(queue, load)| {
                let owner = queue.owner;
                (queue.key, reta::QueueLoad { owner, load })
            });
            let loads = reta::Loads::new(loads);
            let retas = &mut self.retas;
            if retas.balance(&loads, &whole, pressed, workers, &self.trace) {
                self.balancer.hurry();
                balanced.helped = true;
                return balanced;
            }
        }
        if !moved && self.may_share(now) {
            balanced.helped |= self.share(now, workers);
        }
        // What is learned counts at the next look.
        workers.look_for_homes(now);
        balanced
    }
}

/// Nanoseconds that all have been busy.
fn total_busy(list: &[Seen]) -> u64 {
    list.iter().map(|w| w.vitals.read().busy_ns).sum()
}

/// What came of balancing.
struct Balanced {
    outcome: balance::Outcome,
    /// Somebody has less to do.
    helped: bool,
}

/// Where a worker on this node is helped best, by the nodes and loads of the queues that it could give away: where most of
/// those are at home that are not here, if they are more than a quarter. Of fewer, more would have to leave home than come
/// there, until the two have half each.
fn help(here: Node, queues: impl Iterator<Item = (Option<Node>, u64)>) -> Node {
    let mut away = BTreeMap::<Node, u64>::new();
    let mut all = 0;
    for (node, load) in queues {
        all += load;
        if let Some(node) = node.filter(|node| *node != here) {
            *away.entry(node).or_default() += load;
        }
    }
    let most = away.into_iter().max_by_key(|(_, load)| *load);
    most.filter(|(_, load)| load.saturating_mul(4) > all)
        .map_or(here, |(node, _)| node)
}

/// A scaler that takes a worker out of use after it had little to do for so long.
fn scaler(window: Duration) -> Scaler {
    let settings = scale::Settings {
        window,
        // Whole queues do not spread as evenly as buckets.
        idle: 0.25,
        ..scale::Settings::default()
    };
    Scaler::new(WORKERS, settings)
}

/// The workers as the balancer sees them, by number.
fn rooms(list: &[Seen], capacity: u64) -> Vec<WorkerRoom> {
    let nobody = WorkerRoom {
        capacity,
        takes: false,
        node: Node(u8::MAX),
    };
    let places = list.iter().map(|w| w.index + 1).max().unwrap_or(0);
    let mut rooms = vec![nobody; places];
    for worker in list {
        if let Some(room) = rooms.get_mut(worker.index) {
            *room = WorkerRoom {
                capacity,
                takes: !worker.resting,
                node: worker.node,
            };
        }
    }
    rooms
}

/// Moves what is to move, and notes it; what was counted for a moment only says nothing of queues that fill a worker.
fn carry_out(
    plan: &Plan<'_>,
    names: &[Option<QueueKey>],
    pressed: bool,
    workers: &Workers,
    trace: &Trace,
) {
    let stood = if pressed { "; work stood" } else { "" };
    let named = |item: Item| names.get(usize::from(item.0)).copied().flatten();
    for a_move in plan.moves {
        let (from, to) = (usize::from(a_move.from.0), usize::from(a_move.to.0));
        let Some(queue) = named(a_move.item) else {
            continue;
        };
        // A queue that has gone, or is moved by somebody else, is not worth a word.
        if workers.move_queue(queue, to) == Ok(true) {
            let why = match a_move.reason {
                // Numbers of items mean nothing to people.
                Reason::BesideElephant(_) => "a heavy queue needs the room".to_owned(),
                Reason::ElephantsApart(_) => "two heavy queues part".to_owned(),
                Reason::Home(node) => format!("its memory or device is on node {}", node.0),
                other => other.to_string(),
            };
            let (before, after) = (a_move.before * 100.0, a_move.after * 100.0);
            let reason = format!("{why}: largest load {before:.0} % -> {after:.0} %{stood}");
            let what = What::Move { queue, from, to };
            trace.note(SystemTime::now(), what, reason);
        }
    }
    for filling in plan.filling.iter().filter(|_| !pressed) {
        if let Some(queue) = named(filling.item) {
            let load = filling.load * 100.0;
            let worker = filling.worker.0;
            let reason = format!("it alone takes {load:.0} % of worker {worker}");
            trace.note(SystemTime::now(), What::Filling(queue), reason);
        }
    }
}

#[cfg(test)]
mod cost;
#[cfg(test)]
pub(super) mod tests;
