//! What both directions of a ring share: where it stands, whom to call, and what happens when it breaks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::io::{Errno, ReadWriteFlags};
use vswitch_coalesce::{GuestAsks, Signal};

use super::split::{RingAddresses, SplitRing};
use super::{QueuePair, RingError};
use crate::features;
use crate::memory::{GuestMemory, Window, poison_epoch};

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
    /// A power of two, checked.
    pub(crate) size: u16,
    /// Acknowledged virtio features.
    pub(crate) features: u64,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) call: Option<Arc<OwnedFd>>,
    pub(crate) enabled: bool,
    pub(crate) trouble: Trouble,
}

/// A started ring of either direction.
pub(super) struct Core {
    pub(super) ring: SplitRing,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) window: Window,
    /// Next chain to take; entries below it are written to the used ring.
    pub(super) next: u16,
    /// The available index as last read.
    available: u16,
    /// The used index as last stored.
    published: u16,
    /// Entries published since the guest's wish was last settled, saturating.
    unsettled: u16,
    signal: Signal,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) header_len: usize,
    broken: Option<RingError>,
    /// [`poison_epoch`] when the memory was last known to be whole.
    epoch: u32,
    call: Option<Arc<OwnedFd>>,
    kick: Option<Arc<OwnedFd>>,
    addresses: RingAddresses,
    trouble: Trouble,
    pub(super) pair: QueuePair,
    pub(super) enabled: bool,
}

impl Core {
    pub(super) fn start(setup: Setup) -> Result<Self, RingError> {
        let epoch = poison_epoch();
        // SAFETY: `memory` is kept beside the ring, and replaced only together with it.
        let ring = unsafe { SplitRing::bind(&setup.memory, setup.addresses, setup.size)? };
        let next = ring.used_index();
        let event_idx = features::has(setup.features, features::RING_EVENT_IDX);
        let core = Self {
            ring,
            memory: setup.memory,
            window: Window::new(),
            next,
            available: next,
            published: next,
            unsettled: 0,
            signal: Signal::new(),
            event_idx,
            indirect: features::has(setup.features, features::RING_INDIRECT_DESC),
            header_len: features::header_len(setup.features),
            broken: None,
            epoch,
            call: setup.call,
            kick: setup.kick,
            addresses: setup.addresses,
            trouble: setup.trouble,
            pair: setup.pair,
            enabled: setup.enabled,
        };
        core.disarm();
        // A predecessor may have published without getting round to the call, and the guest may be waiting for it.
        core.nudge();
        Ok(core)
    }

    /// Finds the ring again in another table of memory. Where it stands does not change.
    pub(super) fn rebind(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        let epoch = poison_epoch();
        // SAFETY: the table is kept beside the ring from here on.
        let ring = unsafe { SplitRing::bind(memory, self.addresses, self.ring.size())? };
        self.ring = ring;
        self.memory = Arc::clone(memory);
        self.window = Window::new();
        self.epoch = epoch;
        Ok(())
    }

    pub(super) fn set_call(&mut self, call: Option<Arc<OwnedFd>>) {
        self.call = call;
        self.signal.invalidate();
        self.nudge();
    }

    pub(super) fn set_kick(&mut self, kick: Option<Arc<OwnedFd>>) {
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

    /// Chains seen on offer, without looking again.
    #[inline]
    pub(super) fn seen(&self) -> u16 {
        self.available.wrapping_sub(self.next)
    }

    /// Looks again at what is on offer.
    #[inline]
    pub(super) fn look(&mut self) -> Result<u16, RingError> {
        let (available, size) = (self.ring.available_index(), self.ring.size());
        let ahead = available.wrapping_sub(self.next);
        if ahead > size {
            let next = self.next;
            return Err(self.break_with(RingError::AvailableIndex {
                available,
                next,
                size,
            }));
        }
        self.available = available;
        Ok(ahead)
    }

    /// The chain `ahead` of the next one.
    #[inline]
    pub(super) fn head(&self, ahead: u16) -> Result<u16, RingError> {
        let (head, size) = (
            self.ring.head(self.next.wrapping_add(ahead)),
            self.ring.size(),
        );
        if head < size {
            Ok(head)
        } else {
            Err(RingError::Head { head, size })
        }
    }

    /// Gives the next chain back, `len` bytes written. The guest sees it after [`publish`](Self::publish).
    #[inline]
    pub(super) fn give_back(&mut self, head: u16, len: u32) {
        self.ring.set_used(self.next, head, len);
        self.next = self.next.wrapping_add(1);
    }

    /// Publishes everything given back; says how many chains that were.
    #[inline]
    pub(super) fn publish(&mut self) -> u16 {
        let count = self.next.wrapping_sub(self.published);
        if count > 0 {
            self.ring.publish(self.next);
            self.published = self.next;
            self.unsettled = self.unsettled.saturating_add(count);
            if self.unsettled > i16::MAX as u16 {
                // Half way round: soon the comparison with what was settled last would be ambiguous.
                self.signal.invalidate();
            }
        }
        count
    }

    /// Calls the guest if something was published that it wants to hear of.
    #[inline]
    pub(super) fn notify(&mut self) -> io::Result<bool> {
        if self.unsettled == 0 {
            return Ok(false);
        }
        // Publishing comes before reading the guest's wish, as its driver writes the wish before it looks again.
        fence(Ordering::SeqCst);
        let ask = if self.event_idx {
            GuestAsks::Event(self.ring.used_event())
        } else {
            GuestAsks::Flags {
                suppressed: self.ring.interrupts_suppressed(),
            }
        };
        let wanted = self.signal.wanted(self.published, ask);
        if wanted {
            self.write_call()?;
        }
        self.signal.commit(self.published);
        self.unsettled = 0;
        Ok(wanted && self.call.is_some())
    }

    fn write_call(&self) -> io::Result<()> {
        let Some(call) = &self.call else {
            return Ok(());
        };
        match rustix::io::write(&**call, &1u64.to_ne_bytes()) {
            // A full counter is a call that the guest has yet to see.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
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
        if self.event_idx {
            self.ring.set_available_event(self.next);
        } else {
            self.ring.set_kicks_declined(false);
        }
        // The wish must be visible before the second look, or driver and switch could miss each other.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    pub(super) fn disarm(&self) {
        if self.broken.is_some() {
            return;
        }
        if self.event_idx {
            // An event already passed: it comes round again after 65,535 buffers.
            self.ring.set_available_event(self.next.wrapping_sub(1));
        } else {
            self.ring.set_kicks_declined(true);
        }
    }

    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.broken.is_none() && self.ring.available_index() != self.next
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

    #[cfg(test)]
    pub(super) fn call_for_tests(&self) -> Arc<OwnedFd> {
        self.call.clone().unwrap()
    }
}
