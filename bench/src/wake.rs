//! What waking a thread costs on this machine: from writing an event descriptor on one CPU to the thread running that
//! slept on it, in epoll, on another.
//!
//! No switch that sleeps can be faster. On a virtual machine a CPU that is idle is given back to the host, so that this
//! is tens of microseconds, and differs from one host to the next.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::cpu::{Pinned, Placement};
use crate::histogram::Histogram;
use crate::{Error, Result};

/// How long a wake-up may take before the thread is taken for dead.
const LIMIT: Duration = Duration::from_secs(1);
/// Written instead of a number when the thread is to end.
const END: u64 = u64::MAX;

/// A line that only the sleeper writes.
#[repr(align(128))]
struct Line(AtomicU64);

/// Wakes a thread on the worker's CPU so many times, each after it has slept for `silence`. Nanoseconds, from before
/// the write until the waker, which spins on the generator's CPU, sees a line written by the one that was woken.
pub fn cost(placement: Placement, silence: Duration, count: u32) -> Result<Histogram> {
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
        .map_err(Error::io("make an eventfd"))?;
    let (woken, wanted) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    let wake = |number: u64| {
        wanted.0.store(number, Release);
        // The counter saturating means that a wake-up is pending already.
        let _ = rustix::io::write(&event, &1u64.to_ne_bytes());
    };
    let sleeper = || -> Result<()> {
        let _pinned = Pinned::to(placement.worker)?;
        let poller = epoll::create(CreateFlags::CLOEXEC).map_err(Error::io("make an epoll"))?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&poller, &event, EventData::new_u64(0), flags).map_err(Error::io("epoll"))?;
        loop {
            let mut events = [MaybeUninit::uninit(); 1];
            let _ = epoll::wait(&poller, &mut events, None);
            match wanted.0.load(Acquire) {
                END => return Ok(()),
                number => woken.0.store(number, Release),
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(sleeper);
        let measured = Pinned::to(placement.generator).and_then(|_pinned| {
            let mut times = Histogram::default();
            // The first one starts the thread.
            for number in 0..=u64::from(count) {
                spin(silence);
                let start = Instant::now();
                wake(number + 1);
                while woken.0.load(Acquire) != number + 1 {
                    if start.elapsed() > LIMIT || other.is_finished() {
                        return Err(Error::Silent(LIMIT.as_secs()));
                    }
                    std::hint::spin_loop();
                }
                if number > 0 {
                    times.record(start.elapsed().as_nanos() as u64);
                }
            }
            Ok(times)
        });
        wake(END);
        // A panic of the other thread is not possible; an error of it comes first.
        other.join().unwrap_or(Ok(()))?;
        measured
    })
}

/// Waits without sleeping, so that nobody has to be woken afterwards.
pub(crate) fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_takes_some_time() {
        let Ok(placement) = Placement::first_two() else {
            // Nobody to wake on a machine with one CPU.
            return;
        };
        let times = cost(placement, Duration::from_millis(1), 5).unwrap();
        assert_eq!(times.count(), 5);
        assert!(times.min() > 100, "{} ns", times.min());
    }
}
