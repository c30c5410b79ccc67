//! How busy workers wake the steward, and how it keeps them quiet.
//!
//! Nobody watches while all sleep: the steward waits on the bell without a timer, and a worker that finds itself busy
//! rings. While the steward watches, only work that queues up is news; while it is deaf nothing is. So a worker makes at
//! most one system call for each time the steward listens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

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
    descriptor: OwnedFd,
}

impl Bell {
    /// A bell that nobody listens to.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Bell {
            ears: AtomicU8::new(Ears::Deaf as u8),
            descriptor: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Says what is news from now on.
    pub fn listen(&self, ears: Ears) {
        self.ears.store(ears as u8, Ordering::Relaxed);
    }

    /// Rings if this is news; nothing is until the steward listens again.
    #[inline]
    pub fn ring_for(&self, what: Ears) {
        if self.ears.load(Ordering::Relaxed) >= what as u8
            && self.ears.swap(Ears::Deaf as u8, Ordering::Relaxed) >= what as u8
        {
            self.ring();
        }
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
        bell.ring_for(Ears::Queueing);
        assert!(!bell.answer(), "nobody listens");
        bell.listen(Ears::Queueing);
        bell.ring_for(Ears::Busy);
        assert!(!bell.answer(), "being busy is no news");
        bell.ring_for(Ears::Queueing);
        bell.ring_for(Ears::Queueing);
        assert!(bell.answer() && !bell.answer(), "once");
        bell.listen(Ears::Busy);
        bell.ring_for(Ears::Queueing);
        assert!(bell.answer(), "who listens for little listens for more");
    }
}
