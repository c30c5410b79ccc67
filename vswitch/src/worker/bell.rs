//! How busy workers wake the steward, and how it keeps them quiet.
//!
//! Nobody watches while all sleep: the steward waits on the bell without a timer, and a worker that finds itself busy
//! rings. While the steward watches, only work that queues up is news, and not of those workers that rang for nothing a
//! moment ago; while it is deaf nothing is. So a worker makes at most one system call for each time the steward listens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// What a worker may ring for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Ears {
    /// Nothing.
    Deaf = 0,
    /// Work that queues up.
    Queueing = 1,
    /// A worker that is busy, too.
    Busy = 2,
}

/// See the module's page.
#[derive(Debug)]
pub struct Bell {
    ears: AtomicU8,
    /// Workers that are not heard, a bit each.
    hushed: AtomicU64,
    /// The last worker that rang, until it was asked for.
    who: AtomicUsize,
    descriptor: OwnedFd,
}

/// In the place of a worker's number.
const NOBODY: usize = usize::MAX;

impl Bell {
    /// A bell that nobody listens to.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Bell {
            ears: AtomicU8::new(Ears::Deaf as u8),
            hushed: AtomicU64::new(0),
            who: AtomicUsize::new(NOBODY),
            descriptor: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Says what is news from now on, and of which workers nothing is: bit 0 is worker 0, and from 64 on all are heard.
    pub fn listen(&self, ears: Ears, hushed: u64) {
        self.hushed.store(hushed, Ordering::Relaxed);
        self.ears.store(ears as u8, Ordering::Relaxed);
    }

    /// Rings if this is news of this worker; nothing is until the steward listens again.
    #[inline]
    pub fn ring_for(&self, what: Ears, worker: usize) {
        if self.ears.load(Ordering::Relaxed) >= what as u8
            && !self.is_hushed(worker)
            && self.ears.swap(Ears::Deaf as u8, Ordering::Relaxed) >= what as u8
        {
            self.who.store(worker, Ordering::Release);
            self.ring();
        }
    }

    fn is_hushed(&self, worker: usize) -> bool {
        let hushed = self.hushed.load(Ordering::Relaxed);
        worker < u64::BITS as usize && hushed >> worker & 1 != 0
    }

    /// The worker that rang since this was last asked, if one did.
    pub fn who(&self) -> Option<usize> {
        let who = self.who.swap(NOBODY, Ordering::Acquire);
        (who != NOBODY).then_some(who)
    }

    /// Rings in any case.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
    }

    /// Takes the ring back; true if there was one.
    pub fn answer(&self) -> bool {
        rustix::io::read(&self.descriptor, &mut [0u8; 8]).is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_once_for_what_is_news() {
        let bell = Bell::new().unwrap();
        bell.ring_for(Ears::Queueing, 0);
        assert!(!bell.answer(), "nobody listens");
        bell.listen(Ears::Queueing, 0);
        bell.ring_for(Ears::Busy, 0);
        assert!(!bell.answer(), "being busy is no news");
        bell.ring_for(Ears::Queueing, 3);
        bell.ring_for(Ears::Queueing, 4);
        assert!(bell.answer() && !bell.answer(), "once");
        assert_eq!((bell.who(), bell.who()), (Some(3), None));
        bell.listen(Ears::Busy, 0);
        bell.ring_for(Ears::Queueing, 0);
        assert!(bell.answer(), "who listens for little listens for more");
    }

    #[test]
    fn who_is_hushed_does_not_keep_others_from_ringing() {
        let bell = Bell::new().unwrap();
        bell.listen(Ears::Queueing, 1 << 3 | 1 << 63);
        for worker in [3, 63] {
            bell.ring_for(Ears::Queueing, worker);
        }
        assert!(!bell.answer());
        bell.ring_for(Ears::Queueing, 64);
        assert!(bell.answer() && bell.who() == Some(64));
        bell.listen(Ears::Queueing, 1 << 3);
        bell.ring_for(Ears::Queueing, 63);
        assert!(bell.answer() && bell.who() == Some(63));
        bell.ring();
        assert!(bell.answer() && bell.who().is_none(), "no worker");
    }
}
