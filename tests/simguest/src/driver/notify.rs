//! Kicks, calls, and counters of a queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::frontend::timespec;

/// The event descriptors of one ring. Cloning shares them; they stay the same over reconnects, as in a VMM.
#[derive(Clone, Debug)]
pub struct Notifier {
    kick: Arc<OwnedFd>,
    call: Arc<OwnedFd>,
    err: Arc<OwnedFd>,
    masked: Arc<OwnedFd>,
}

impl Notifier {
    /// Fresh descriptors.
    pub fn new() -> io::Result<Self> {
        let make = || -> io::Result<Arc<OwnedFd>> {
            Ok(Arc::new(eventfd(
                0,
                EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
            )?))
        };
        Ok(Self {
            kick: make()?,
            call: make()?,
            err: make()?,
            masked: make()?,
        })
    }

    /// Written by the driver.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }
    /// Written by the device.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }
    /// Written by the device when the ring is broken.
    pub fn err_fd(&self) -> BorrowedFd<'_> {
        self.err.as_fd()
    }

    /// What QEMU hands over as call descriptor until the guest's driver is up: nobody listens.
    pub fn masked_fd(&self) -> BorrowedFd<'_> {
        self.masked.as_fd()
    }

    /// Kicks, whether the device wants it or not.
    pub fn kick(&self) {
        // The counter saturating means a kick is pending already.
        let _ = rustix::io::write(&*self.kick, &1u64.to_ne_bytes());
    }

    /// Takes pending calls: how many were made since the last look.
    pub fn take_calls(&self) -> u64 {
        take(&self.call)
    }

    /// Takes pending error notifications.
    pub fn take_errors(&self) -> u64 {
        take(&self.err)
    }

    /// Takes pending kicks, as the device would.
    pub fn take_kicks(&self) -> u64 {
        take(&self.kick)
    }

    /// Sleeps until a call is pending or the time is up.
    pub fn wait_call(&self, timeout: Duration) -> bool {
        wait_any(&[self.call.as_fd()], timeout)
    }
}

/// Sleeps until one of the descriptors can be read or the time is up.
pub(crate) fn wait_any(fds: &[BorrowedFd<'_>], timeout: Duration) -> bool {
    let until = Instant::now() + timeout;
    loop {
        let mut polled: Vec<_> = fds
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let left = until.saturating_duration_since(Instant::now());
        match poll(&mut polled, Some(&timespec(left))) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(n) => return n > 0,
            Err(_) => return false,
        }
    }
}

fn take(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(8) => u64::from_ne_bytes(count),
        _ => 0,
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters of a queue: written by its owner, readable by anyone.
        #[derive(Default, Debug)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64),* }

        /// Counters at one moment.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        pub struct QueueStats { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            /// Their values now.
            pub fn read(&self) -> QueueStats {
                QueueStats { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }

        impl std::ops::AddAssign for QueueStats {
            fn add_assign(&mut self, other: Self) { $(self.$name += other.$name;)* }
        }
    };
}

counters! {
    /// Frames sent (made available) or received.
    frames,
    /// Their bytes, without virtio-net headers.
    bytes,
    /// Receive: buffers those frames took; transmit: buffers that came back.
    buffers,
    /// Kicks written.
    kicks,
    /// Kicks the device did not want.
    kicks_saved,
    /// Calls taken.
    calls,
    /// Frames not sent because the ring was full.
    full,
    /// Rules the device broke.
    faults,
}

/// Adds to a counter that has one writer.
#[inline]
pub(super) fn count(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
