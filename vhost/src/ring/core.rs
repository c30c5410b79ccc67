//! What both directions of a ring share: where it stands, whom to call, and what happens when it breaks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::io::ReadWriteFlags;
use vswitch_coalesce::{Action, Burst, Settings};

use super::ahead::{Ahead, Ready};
use super::calls::{self, Asked, Call, CallReport, Calls};
use super::chain::{Direction, Spans, Walk};
use super::layout::{Base, Chain, Layout, Position, RingAddresses};
use super::{QueuePair, RingError};
use crate::event::Event;
use crate::features;
use crate::memory::{GuestMemory, MemoryProbe, Window, poison_epoch};

/// How a ring that broke tells its session: a descriptor the session sleeps on.
#[derive(Clone, Debug)]
pub(crate) struct Trouble(Arc<OwnedFd>);

impl Trouble {
    pub(crate) fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    fn raise(&self) {
        // The counter would have to be full, and then the session has its reason to wake up already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Whether it was raised since the last time.
    pub(crate) fn clear(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Trouble {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Everything the session knows about a ring when it starts.
pub(crate) struct Setup {
    pub(crate) pair: QueuePair,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) addresses: RingAddresses,
    /// Checked against what the layout allows.
    pub(crate) size: u16,
    /// Where the ring stands, as far as that is known.
    pub(crate) base: Base,
    /// Acknowledged virtio features.
    pub(crate) features: u64,
    pub(crate) kick: Option<Arc<Event>>,
    pub(crate) call: Option<Arc<Event>>,
    pub(crate) enabled: bool,
    pub(crate) trouble: Trouble,
}

/// A started ring of either direction.
///
/// In this order: what each burst changes is in few lines, one after the other, and nothing else is. Workers that fill one
/// ring by turns fetch them from each other.
#[repr(C, align(64))]
pub(super) struct Core<L> {
    pub(super) ring: L,
    /// Next chain to give back; those below it are written to the used ring.
    pub(super) next: Position,
    /// Entries given back, running freely, and as many as were published.
    given: u16,
    published: u16,
    indirect: bool,
    direction: Direction,
    /// Chains from `next` on that are resolved already.
    pub(super) ahead: Ahead,
    window: Window,
    /// [`poison_epoch`] when the memory was last known to be whole.
    epoch: u32,
    calls: Calls,
    memory: Arc<GuestMemory>,
    pub(super) header_len: usize,
    broken: Option<RingError>,
    call: Option<Arc<Event>>,
    kick: Option<Arc<Event>>,
    addresses: RingAddresses,
    event_idx: bool,
    trouble: Trouble,
    pub(super) pair: QueuePair,
    pub(super) enabled: bool,
}

impl<L: Layout> Core<L> {
    pub(super) fn start(setup: Setup, direction: Direction) -> Result<Self, RingError> {
        let epoch = poison_epoch();
        let event_idx = features::has(setup.features, features::RING_EVENT_IDX);
        // SAFETY: `memory` is kept beside the ring, and replaced only together with it.
        let mut ring = unsafe { L::bind(&setup.memory, setup.addresses, setup.size, event_idx)? };
        let indirect = features::has(setup.features, features::RING_INDIRECT_DESC);
        let next = ring.start(setup.base, indirect)?;
        let core = Self {
            ring,
            direction,
            next,
            ahead: Ahead::new(),
            window: Window::new(),
            memory: setup.memory,
            header_len: features::header_len(setup.features),
            indirect,
            // Split rings express events in their index: then this is it.
            given: next.0,
            published: next.0,
            calls: Calls::new(),
            broken: None,
            epoch,
            call: setup.call,
            kick: setup.kick,
            addresses: setup.addresses,
            event_idx,
            trouble: setup.trouble,
            pair: setup.pair,
            enabled: setup.enabled,
        };
        core.disarm();
        // A predecessor may have published without getting round to the call, and the guest may be waiting for it.
        core.nudge();
        Ok(core)
    }

    pub(super) fn memory_probe(&self) -> MemoryProbe {
        let RingAddresses {
            descriptors,
            available,
            used,
        } = self.addresses;
        MemoryProbe::new(&self.memory, [descriptors, available, used])
    }

    /// Finds the ring again in another table of memory. Where it stands does not change.
    pub(super) fn rebind(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        let epoch = poison_epoch();
        self.ahead.clear();
        // SAFETY: the table is kept beside the ring from here on.
        let ring = unsafe { L::bind(memory, self.addresses, self.ring.size(), self.event_idx)? };
        self.ring = ring;
        self.ring.resume(self.next);
        self.memory = Arc::clone(memory);
        self.window = Window::new();
        self.epoch = epoch;
        Ok(())
    }

    /// Publishes everything written, leaves no call held, forgets what was resolved, and says where the ring stands, as a
    /// front-end is told.
    pub(super) fn settle(&mut self) -> u32 {
        self.publish();
        // What is held longest is due first, so no later than now, whatever the owner's clock says.
        if self.broken.is_none() && self.flush(0).fires() {
            self.make_call();
        }
        self.ahead.clear();
        self.ring.base(self.next)
    }

    pub(super) fn set_call(&mut self, call: Option<Arc<Event>>) {
        self.call = call;
        self.calls.reset();
        self.nudge();
    }

    pub(super) fn set_kick(&mut self, kick: Option<Arc<Event>>) {
        self.kick = kick;
    }

    pub(super) fn error(&self) -> Option<RingError> {
        self.broken
    }

    /// Stops the ring for good and tells the session, once.
    #[cold]
    pub(super) fn break_with(&mut self, error: RingError) -> RingError {
        if self.broken.is_none() {
            self.broken = Some(error);
            self.trouble.raise();
        }
        error
    }

    /// Whether the ring still works.
    #[inline]
    pub(super) fn check(&mut self) -> Result<(), RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if self.epoch != poison_epoch() {
            self.check_memory()?;
        }
        Ok(())
    }

    #[cold]
    fn check_memory(&mut self) -> Result<(), RingError> {
        let epoch = poison_epoch();
        // Pairs with the release in the handler: whoever sees the new epoch sees which region it was.
        fence(Ordering::Acquire);
        if self.memory.poisoned() {
            return Err(self.break_with(RingError::MemoryLost));
        }
        self.epoch = epoch;
        Ok(())
    }

    /// Looks at what is on offer, unless at least `enough` chains are known to be.
    #[inline]
    pub(super) fn look(&mut self, enough: usize) -> Result<(), RingError> {
        let looked = self.ring.look(self.next, enough as u16);
        looked.map_err(|error| self.break_with(error))
    }

    /// Resolves chains until `wanted` are ready, as far as they are of the simple kind; calls `each` for every new one.
    #[inline]
    pub(super) fn look_ahead(&mut self, wanted: usize, mut each: impl FnMut(&Ready)) {
        let (mut at, mut len) = (self.next, self.ahead.len());
        at = self.ring.advance(at, len as u16);
        // A copy of its own, or every store to the list might have changed it.
        let mut window = self.window;
        let mut walk = Walk {
            memory: &self.memory,
            window: &mut window,
            direction: self.direction,
            indirect: self.indirect,
            walked: 0,
        };
        while len < wanted && self.ring.sees(at) {
            let Some((id, buffer)) = self.ring.single(at) else {
                break;
            };
            let Some(span) = walk.simple(buffer) else {
                break;
            };
            let ready = Ready { span, id };
            if !self.ahead.push_at(len, ready) {
                break;
            }
            each(&ready);
            len += 1;
            at = self.ring.advance(at, 1);
        }
        self.window = window;
        self.ahead.set_len(len);
    }

    /// Walks the chain on offer at `at`; `walked` counts descriptors.
    #[inline]
    pub(super) fn walk(
        &mut self,
        at: Position,
        walked: &mut usize,
        spans: &mut Spans,
    ) -> Result<Chain, RingError> {
        let mut walk = Walk {
            memory: &self.memory,
            window: &mut self.window,
            direction: self.direction,
            indirect: self.indirect,
            walked: *walked,
        };
        let chain = self.ring.walk(at, &mut walk, spans);
        *walked = walk.walked;
        chain
    }

    /// Gives the next chain back, `len` bytes written. The guest sees it after [`publish`](Self::publish). If it was
    /// resolved ahead, the caller takes it from there.
    #[inline]
    pub(super) fn give_back(&mut self, id: u16, entries: u16, len: u32) {
        self.ring.give_back(self.next, id, entries, len);
        self.pass(entries);
    }

    /// Writes the used entry of the chain that is `ahead` of the first resolved one. It counts once it was
    /// [passed](Self::pass_ahead).
    #[inline]
    pub(super) fn give_back_ahead(&mut self, ahead: usize, id: u16, len: u32) {
        let at = self.ring.advance(self.next, ahead as u16);
        self.ring.give_back(at, id, 1, len);
    }

    /// Moves on behind the first `count` chains that were resolved ahead, all of which have their used entries.
    #[inline]
    pub(super) fn pass_ahead(&mut self, count: usize) {
        self.ahead.skip(count);
        self.pass(count as u16);
    }

    #[inline]
    fn pass(&mut self, entries: u16) {
        self.next = self.ring.advance(self.next, entries);
        self.given = self.given.wrapping_add(entries);
    }

    /// Publishes everything given back; says how many entries that were.
    #[inline]
    pub(super) fn publish(&mut self) -> u16 {
        let count = self.given.wrapping_sub(self.published);
        if count > 0 {
            self.publish_some(self.next, count);
        }
        count
    }

    /// Publishes the next `count` entries of those given back, which end at `at`.
    #[inline]
    pub(super) fn publish_some(&mut self, at: Position, count: u16) {
        self.ring.publish(at);
        self.published = self.published.wrapping_add(count);
        self.calls.published(count);
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Tells of the burst that was just published, and says what is to be done about it. What the ring itself knows of it is
    /// filled in.
    #[inline]
    pub(super) fn report(&mut self, settings: &Settings, burst: &Burst) -> Action {
        let asked: Asked<'_, L> = (&self.ring, self.next, self.published);
        self.calls.report(settings, burst, asked)
    }

    /// Asks again if something has been held for long enough.
    pub(super) fn expire(&mut self, now: u64) -> Action {
        let asked: Asked<'_, L> = (&self.ring, self.next, self.published);
        self.calls.expire(now, asked)
    }

    /// Leaves nothing held.
    pub(super) fn flush(&mut self, now: u64) -> Action {
        let asked: Asked<'_, L> = (&self.ring, self.next, self.published);
        self.calls.flush(now, asked)
    }

    /// When what is held is due.
    #[inline]
    pub(super) fn deadline(&self) -> Option<u64> {
        self.calls.deadline()
    }

    #[inline]
    pub(super) fn overdue(&self, now: u64) -> bool {
        self.calls.overdue(now)
    }

    #[inline]
    pub(super) fn heeds_urgency(&self) -> bool {
        self.calls.heeds_urgency()
    }

    pub(super) fn has_reacted(&self) -> Option<bool> {
        if self.broken.is_some() {
            return None;
        }
        self.calls
            .has_reacted((&self.ring, self.next, self.published))
    }

    pub(super) fn measured(&mut self, cost_ns: u32) {
        self.calls.measured(cost_ns);
    }

    pub(super) fn call_report(&self) -> CallReport {
        self.calls.summary()
    }

    pub(super) fn call(&self) -> Option<Call> {
        self.call.clone().map(Call)
    }

    pub(super) fn call_failed(&mut self) {
        self.calls.failed();
    }

    /// Writes a call that is due; true if there is somebody to call. One that cannot be written is made at the next
    /// publication.
    pub(super) fn make_call(&mut self) -> bool {
        match self.write_call() {
            Ok(()) => self.call.is_some(),
            Err(error) => {
                tracing::debug!(pair = %self.pair, %error, "calling the guest failed");
                self.calls.failed();
                false
            }
        }
    }

    /// Calls the guest if something was published that it wants to hear of.
    #[inline]
    pub(super) fn notify(&mut self) -> io::Result<bool> {
        let settings = self.calls.settings();
        let fires = self.report(&settings, &Burst::default()).fires();
        if fires {
            self.write_call().inspect_err(|_| self.calls.failed())?;
        }
        Ok(fires && self.call.is_some())
    }

    /// How many entries were ever published, modulo 2^16.
    #[inline]
    pub(super) fn published(&self) -> u16 {
        self.published
    }

    /// Whether the guest has dealt with everything that had been published when [`published`](Self::published) was
    /// `position`, as far as it lets us know: what it offers anew it has dealt with, and what it asks to be called for says
    /// where it was when it last stopped polling.
    pub(super) fn consumed(&self, position: u16) -> bool {
        let (size, later) = (self.ring.size(), self.published.wrapping_sub(position));
        if self.broken.is_some() || later >= size {
            return true;
        }
        let by_event = || {
            let event = self.ring.event();
            // While it polls, a guest leaves its event where it was, and that comes round again.
            event.is_some_and(|event| {
                self.calls.age_of(event) < size && self.published.wrapping_sub(event) <= later
            })
        };
        by_event() || self.ring.offers(self.next, size - later)
    }

    fn write_call(&self) -> io::Result<()> {
        self.call.as_ref().map_or(Ok(()), calls::write)
    }

    /// Calls the guest whatever it asked for; drivers accept a spurious call.
    fn nudge(&self) {
        if let Err(error) = self.write_call() {
            tracing::debug!(pair = %self.pair, %error, "calling the guest failed");
        }
    }

    /// Asks for a kick at the next buffer; true if there already is one.
    pub(super) fn arm(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        self.ring.ask_for_kicks(self.next);
        // The wish must be visible before the second look, or driver and switch could miss each other.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    pub(super) fn disarm(&self) {
        if self.broken.is_none() {
            self.ring.decline_kicks(self.next);
        }
    }

    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.broken.is_none() && self.ring.has_work(self.next)
    }

    pub(super) fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(|kick| kick.as_fd())
    }

    /// Takes back a kick. Never sleeps, whatever mode the front-end has left the descriptor in.
    pub(super) fn drain_kick(&self) {
        if let Some(kick) = &self.kick {
            let mut count = [0; 8];
            let mut buffers = [io::IoSliceMut::new(&mut count)];
            // No kick to take back is as good as one taken back.
            let _ = rustix::io::preadv2(&**kick, &mut buffers, u64::MAX, ReadWriteFlags::NOWAIT);
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.ring.size()
    }

    #[cfg(test)]
    pub(super) fn base_for_tests(&self) -> u32 {
        self.ring.base(self.next)
    }

    #[cfg(test)]
    pub(super) fn call_for_tests(&self) -> Arc<Event> {
        self.call.clone().unwrap()
    }
}
