//! Calls that a worker has left for later, and what becomes of them.
//!
//! Whoever is told to hold a call back remembers the ring, looks at it again when the call is due, and does not sleep before
//! it has fired, was cancelled, or was found settled by another: a receive ring has no worker of its own, so this is the
//! only promise that somebody looks. Several workers may remember the same ring. Each looks under the ring's lock, and what
//! is settled there is settled for all; a place whose ring has gone, or is another by now, holds nothing, or what its own
//! worker remembers.
//!
//! One call in [`WATCH_EVERY`] is watched: how long it takes from before it is written until the guest is seen to move is
//! what a call costs, which the adaptive policy goes by.
//!
//! Limits: [`HELD`] rings are remembered; a call for one more is not held back. A guest that has not moved [`WATCH_NS`]
//! after a call is not watched any longer.

use std::time::Instant;

use arrayvec::ArrayVec;
use parking_lot::Mutex;
use vswitch_coalesce::{Action, Policy};
use vswitch_vhost::{Call, RxRing};

use super::PortRef;
use super::counters::PortCounters;
use super::snapshot::{GuestQueues, Port, Snapshot};

/// Rings that are remembered.
const HELD: usize = 128;
/// Calls per call that is watched.
const WATCH_EVERY: u32 = 16;
/// For how long, in nanoseconds.
const WATCH_NS: u64 = 400_000;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// A receive ring, and what is to be done about its guest.
pub struct Ring {
    port: PortRef,
    queue: u16,
    todo: Todo,
}

enum Todo {
    Nothing,
    Call(Option<Call>),
    Hold(u64),
}

impl Ring {
    /// What an action leaves to be done once the ring's lock is given back.
    #[inline]
    pub fn after(port: PortRef, queue: u16, action: Action, ring: &RxRing) -> Self {
        let todo = match (action, ring.deadline()) {
            (Action::Fire { .. }, _) => Todo::Call(ring.call()),
            (Action::Hold, Some(deadline)) => Todo::Hold(deadline),
            _ => Todo::Nothing,
        };
        Ring { port, queue, todo }
    }
}

/// A ring that holds a call back.
#[derive(Clone, Copy)]
struct Held {
    port: PortRef,
    queue: u16,
    /// When to look at it; by then it may have been dealt with.
    deadline: u64,
}

/// A call whose effect is awaited.
struct Watch {
    port: PortRef,
    queue: u16,
    since: Instant,
    /// In nanoseconds, when it is given up.
    until: u64,
}

/// Which held calls are settled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those whose time has come.
    Due,
    /// Those that the adaptive rule holds too.
    Adaptive,
    /// All.
    All,
}

/// See the module's page.
pub struct Pending {
    worker: usize,
    held: ArrayVec<Held, HELD>,
    /// The earliest deadline.
    next: u64,
    calls: u32,
    watch: Option<Watch>,
}

impl Pending {
    /// Of the worker with this index.
    pub fn new(worker: usize) -> Self {
        Pending {
            worker,
            held: ArrayVec::new(),
            next: NEVER,
            calls: 0,
            watch: None,
        }
    }

    /// Whether calls are held back.
    #[inline]
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Does what a burst has left to be done about a ring, which must not be locked.
    #[inline]
    pub fn leave(&mut self, ring: Ring, queues: &GuestQueues, counters: &PortCounters, now: u64) {
        match ring.todo {
            Todo::Nothing => {}
            Todo::Call(call) => {
                if let (Some(call), Some(place)) = (call, queues.ring(ring.queue)) {
                    self.call(ring.port, ring.queue, &call, place, counters, now);
                }
            }
            Todo::Hold(deadline) => {
                if !self.hold(ring.port, ring.queue, deadline) {
                    self.look(queues, ring.port, ring.queue, counters, now, true);
                }
            }
        }
    }

    /// Looks at the rings whose calls are due, and at the guest that is watched.
    #[inline]
    pub fn tend(&mut self, snapshot: &Snapshot, now: u64) {
        if self.next <= now {
            self.settle(snapshot, now, Which::Due);
        }
        if self.watch.is_some() {
            self.watch(snapshot, now);
        }
    }

    /// Leaves nothing held back.
    pub fn flush(&mut self, snapshot: &Snapshot, now: u64) {
        self.watch = None;
        self.settle(snapshot, now, Which::All);
    }

    /// Leaves nothing held back by the adaptive rule, which weighs what calls cost: staying awake for one costs more. Who
    /// sleeps does not see when a guest moves.
    pub fn yield_calls(&mut self, snapshot: &Snapshot, now: u64) {
        self.watch = None;
        if self.holds() {
            self.settle(snapshot, now, Which::Adaptive);
        }
    }

    /// Remembers a ring; false if there is no room.
    fn hold(&mut self, port: PortRef, queue: u16, deadline: u64) -> bool {
        self.next = self.next.min(deadline);
        let mut held = self.held.iter_mut();
        if let Some(held) = held.find(|h| h.port == port && h.queue == queue) {
            held.deadline = held.deadline.min(deadline);
            return true;
        }
        let held = Held {
            port,
            queue,
            deadline,
        };
        self.held.try_push(held).is_ok()
    }

    #[inline(never)]
    fn settle(&mut self, snapshot: &Snapshot, now: u64, which: Which) {
        self.next = NEVER;
        let mut at = 0;
        while let Some(held) = self.held.get(at).copied() {
            let port = snapshot.live(held.port);
            let adaptive = |port: &Port| port.coalesce.receive.policy() == Policy::Adaptive;
            let all = match which {
                Which::Due => false,
                Which::Adaptive => port.is_some_and(|port| adaptive(port)),
                Which::All => true,
            };
            let again = if all || held.deadline <= now {
                port.and_then(|port| {
                    let queues = port.output.guest()?;
                    let counters = port.counters.get(self.worker)?;
                    self.look(queues, held.port, held.queue, counters, now, all)
                })
            } else {
                Some(held.deadline)
            };
            match (again, self.held.get_mut(at)) {
                (Some(deadline), Some(held)) => {
                    held.deadline = deadline;
                    self.next = self.next.min(deadline);
                    at += 1;
                }
                _ => drop(self.held.swap_remove(at)),
            }
        }
    }

    /// Looks at a ring whose call is due, or at one that may hold nothing any more; says when to do so again.
    fn look(
        &mut self,
        queues: &GuestQueues,
        port: PortRef,
        queue: u16,
        counters: &PortCounters,
        now: u64,
        all: bool,
    ) -> Option<u64> {
        let place = queues.ring(queue)?;
        let mut locked = place.lock();
        let ring = locked.as_mut()?;
        let action = if all {
            ring.flush(now)
        } else {
            ring.expire(now)
        };
        let again = ring.deadline();
        let call = action.fires().then(|| ring.call()).flatten();
        drop(locked);
        if let Some(call) = call {
            self.call(port, queue, &call, place, counters, now);
        }
        again
    }

    fn call(
        &mut self,
        port: PortRef,
        queue: u16,
        call: &Call,
        place: &Mutex<Option<RxRing>>,
        counters: &PortCounters,
        now: u64,
    ) {
        self.calls = self.calls.wrapping_add(1);
        let watched = self.watch.is_none() && self.calls.is_multiple_of(WATCH_EVERY);
        let since = watched.then(Instant::now);
        match call.write() {
            Ok(()) => {
                counters.rx_calls.add(1);
                self.watch = since.map(|since| Watch {
                    port,
                    queue,
                    since,
                    until: now + WATCH_NS,
                });
            }
            Err(error) => {
                tracing::debug!(%error, "calling a guest failed");
                if let Some(ring) = place.lock().as_mut() {
                    ring.call_failed();
                }
            }
        }
    }

    /// Has the guest that was called moved?
    #[inline(never)]
    fn watch(&mut self, snapshot: &Snapshot, now: u64) {
        let Some(watch) = &self.watch else { return };
        let awaited = watch.until > now
            && snapshot.live(watch.port).is_some_and(|port| {
                let Some(queues) = port.output.guest() else {
                    return false;
                };
                // Who has the lock is filling the ring: that is no time to look.
                let Some(mut place) = queues.ring(watch.queue).and_then(|place| place.try_lock())
                else {
                    return true;
                };
                match place.as_mut().map(|ring| (ring.has_reacted(), ring)) {
                    Some((Some(true), ring)) => {
                        let took = watch.since.elapsed().as_nanos();
                        ring.measured(took.min(u32::MAX.into()) as u32);
                        false
                    }
                    Some((Some(false), _)) => true,
                    Some((None, _)) | None => false,
                }
            });
        if !awaited {
            self.watch = None;
        }
    }
}
