//! A bounded queue with a bell: many may put, one takes, and the taker can sleep on the bell's descriptor.
//!
//! The bell rings once for everything put between two drains, so a flood of mail costs one system call.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;

/// See the module's page.
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    rung: AtomicBool,
    bell: OwnedFd,
}

impl<T> Mailbox<T> {
    /// A mailbox for `capacity` letters (at least one).
    pub fn new(capacity: usize) -> io::Result<Self> {
        Ok(Mailbox {
            queue: ArrayQueue::new(capacity.max(1)),
            rung: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Puts a letter in, or gives it back if the box is full.
    pub fn put(&self, letter: T) -> Result<(), T> {
        let outcome = self.queue.push(letter);
        self.ring();
        outcome
    }

    /// Wakes the taker.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Is there mail? One relaxed load: cheap enough for every turn of a loop.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Everything that is there now; at most a boxful, so that a flood cannot keep the taker here.
    pub fn drain(&self) -> impl Iterator<Item = T> + '_ {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        // Cleared before the queue is read: a letter put from here on rings again.
        self.rung.store(false, Ordering::SeqCst);
        std::iter::from_fn(|| self.queue.pop()).take(self.queue.capacity())
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl<T> AsRawFd for Mailbox<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_once_and_holds_what_fits() {
        let m = Mailbox::new(2).unwrap();
        assert!(!m.has_mail());
        assert_eq!((m.put(1), m.put(2), m.put(3)), (Ok(()), Ok(()), Err(3)));
        assert!(m.has_mail());
        assert_eq!(m.drain().collect::<Vec<_>>(), [1, 2]);
        assert!(!m.has_mail());
    }

    #[test]
    fn nothing_put_while_draining_is_forgotten() {
        let m = std::sync::Arc::new(Mailbox::new(64).unwrap());
        let total = 100_000u32;
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 0..total {
                    let mut n = n;
                    while let Err(back) = m.put(n) {
                        n = back;
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < total {
                let mut fds = [rustix::event::PollFd::new(
                    &*m,
                    rustix::event::PollFlags::IN,
                )];
                rustix::event::poll(&mut fds, None).unwrap();
                for n in m.drain() {
                    assert_eq!(n, next);
                    next += 1;
                }
            }
        });
    }
}
