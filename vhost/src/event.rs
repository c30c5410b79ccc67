//! Kick, call and error descriptors, as long as anybody uses them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::session::Custody;

/// An eventfd. One that a front-end handed over is not closed by whoever lets go of it last, which may be a worker: an epoll
/// that watches it is told first, under a lock that its owner may never give back. It goes to the port's [`Custody`].
#[derive(Debug)]
pub(crate) struct Event {
    /// Taken only as it is dropped.
    fd: Option<OwnedFd>,
    custody: Option<Custody>,
}

impl Event {
    /// One that a front-end handed over.
    pub(crate) fn handed(fd: OwnedFd, custody: &Custody) -> Self {
        Self {
            fd: Some(fd),
            custody: Some(custody.clone()),
        }
    }
}

/// One of our own, that nobody else knows.
impl From<OwnedFd> for Event {
    fn from(fd: OwnedFd) -> Self {
        Self {
            fd: Some(fd),
            custody: None,
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // Instead of none, which cannot be, one that can be neither read nor written.
        self.fd.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let (Some(fd), Some(custody)) = (self.fd.take(), &self.custody) {
            custody.close(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::sync::mpsc::channel;

    fn eventfd() -> OwnedFd {
        use rustix::event::EventfdFlags;
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn whoever_drops_one_that_was_handed_over_does_not_close_it() {
        let custody = Custody::default();
        let (go, stuck) = channel::<()>();
        custody.hold_up_for_tests(move || {
            let _ = stuck.recv();
        });
        let events: Vec<_> = (0..3).map(|_| Event::handed(eventfd(), &custody)).collect();
        let numbers: Vec<_> = events.iter().map(|e| e.as_fd().as_raw_fd()).collect();
        drop(events);
        // All are open still, as nobody else could have these numbers.
        for number in numbers {
            let name = std::fs::read_link(format!("/proc/self/fd/{number}"));
            assert_eq!(name.unwrap().as_os_str(), "anon_inode:[eventfd]");
        }
        assert_eq!(custody.held_for_tests(), 4);
        drop(go);
        while custody.held_for_tests() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn one_of_our_own_is_closed_at_once() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(Event::from(write));
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}
