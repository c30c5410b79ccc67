//! When a worker stops polling, and what wakes it.
//!
//! A short sleep means that the worker should have spun on; a long one that it spun for nothing. So the spin doubles
//! after the first and halves after the second, between [`SPIN_MIN`] and [`SPIN_MAX`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Shortest time a worker polls before it sleeps.
pub const SPIN_MIN: Duration = Duration::from_micros(2);
/// Longest time a worker polls before it sleeps.
pub const SPIN_MAX: Duration = Duration::from_micros(50);
/// How long a queue that cannot wake the worker may wait for it.
pub const TIMER: Duration = Duration::from_micros(250);

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BusyPoll {
    /// Polls for ever.
    Always,
    /// Polls for a short, adaptive time, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Never,
}

/// Decides between polling on and sleeping.
pub struct Idle {
    mode: BusyPoll,
    spin: Duration,
    since: Option<Instant>,
    /// It is about to get more to do than by a wake-up each time.
    keen: bool,
}

impl Idle {
    /// A worker that has just started.
    pub fn new(mode: BusyPoll) -> Self {
        Idle {
            mode,
            spin: SPIN_MAX,
            since: None,
            keen: false,
        }
    }

    /// What it does.
    #[inline]
    pub fn mode(&self) -> BusyPoll {
        self.mode
    }

    /// Changes what it does from the next turn on.
    pub fn set_mode(&mut self, mode: BusyPoll) {
        (self.mode, self.since) = (mode, None);
    }

    /// Whether it polls for a while also where it would sleep at once: a queue that is worth a second worker would wake it
    /// for every burst.
    pub fn set_keen(&mut self, keen: bool) {
        (self.keen, self.since) = (keen, None);
    }

    /// After a turn: is it time to sleep?
    #[inline]
    pub fn should_sleep(&mut self, worked: bool, now: Instant) -> bool {
        if worked {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        match self.mode {
            BusyPoll::Always => false,
            BusyPoll::Never if !self.keen => true,
            BusyPoll::Adaptive | BusyPoll::Never if now.duration_since(since) < self.spin => {
                std::hint::spin_loop();
                false
            }
            BusyPoll::Adaptive | BusyPoll::Never => true,
        }
    }

    /// After a sleep of this length.
    pub fn woke(&mut self, slept: Duration, now: Instant) {
        self.since = Some(now);
        self.spin = if slept < SPIN_MAX {
            (self.spin * 2).min(SPIN_MAX)
        } else {
            (self.spin / 2).max(SPIN_MIN)
        };
    }
}

/// What a sleeping worker waits on: its mailbox and its queues' kicks.
///
/// Edge-triggered, so a kick need not be read to be forgotten; a stale edge costs one needless turn.
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Waits on `mail`, to begin with.
    ///
    /// # Errors
    /// What epoll says.
    pub fn new(mail: impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Edge-triggered: a letter can be read between its writer's mark and its ring, and the ring then stays unread.
        epoll::add(
            &epoll,
            mail,
            EventData::new_u64(0),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Poller { epoll })
    }

    /// Waits on this kick too.
    ///
    /// # Errors
    /// What epoll says; the queue must then be polled.
    pub fn add(&self, kick: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            kick,
            EventData::new_u64(0),
            EventFlags::IN | EventFlags::ET,
        )?)
    }

    /// Waits on a descriptor that stays readable until what wakes has been read from it.
    ///
    /// # Errors
    /// What epoll says; the queue must then be polled.
    pub fn add_readable(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(0),
            EventFlags::IN,
        )?)
    }

    /// No longer waits on this kick.
    pub fn remove(&self, kick: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, kick);
    }

    /// Sleeps until something happens, or for `at_most`; true if something did.
    pub fn wait(&self, at_most: Option<Duration>) -> bool {
        let at_most = at_most.map(|d| Timespec {
            tv_sec: d.as_secs() as i64,
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        // An interrupted wait is a needless turn, nothing more.
        let wait = |timeout: Option<&Timespec>| {
            // Which queue it was does not matter: all are polled.
            let mut events = [MaybeUninit::uninit(); 16];
            epoll::wait(&self.epoll, &mut events, timeout).is_ok_and(|(seen, _)| !seen.is_empty())
        };
        if at_most.is_none() {
            return wait(None);
        }
        // `epoll_wait` counts in milliseconds, and these are fractions of one; `ppoll` takes nanoseconds.
        let mut epoll = [PollFd::new(&self.epoll, PollFlags::IN)];
        let ready = rustix::event::poll(&mut epoll, at_most.as_ref());
        ready.is_ok_and(|ready| ready > 0) && wait(Some(&Timespec::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spin_follows_the_sleeps() {
        let mut idle = Idle::new(BusyPoll::Adaptive);
        let t = Instant::now();
        assert!(!idle.should_sleep(true, t));
        assert!(!idle.should_sleep(false, t), "the spin begins");
        assert!(!idle.should_sleep(false, t + SPIN_MAX / 2));
        assert!(idle.should_sleep(false, t + SPIN_MAX));
        for _ in 0..10 {
            idle.woke(Duration::from_millis(5), t);
        }
        assert!(
            idle.should_sleep(false, t + SPIN_MIN),
            "long sleeps shorten it"
        );
        for _ in 0..10 {
            idle.woke(Duration::from_micros(5), t);
        }
        assert!(
            !idle.should_sleep(false, t + SPIN_MAX / 2),
            "short sleeps lengthen it"
        );
    }

    #[test]
    fn an_unread_ring_wakes_once() {
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let poller = Poller::new(&bell).unwrap();
        for _ in 0..3 {
            rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
            let before = Instant::now();
            poller.wait(Some(Duration::from_secs(9)));
            assert!(before.elapsed() < Duration::from_secs(9), "a ring wakes");
            let before = Instant::now();
            poller.wait(Some(Duration::from_millis(20)));
            assert!(
                before.elapsed() >= Duration::from_millis(20),
                "and only once"
            );
        }
    }

    #[test]
    fn a_wait_may_be_shorter_than_a_millisecond() {
        let nobody = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let poller = Poller::new(&nobody).unwrap();
        let took = (0..1000).map(|_| {
            let before = Instant::now();
            assert!(!poller.wait(Some(Duration::from_micros(100))));
            before.elapsed()
        });
        // On a busy machine most of them take longer.
        let soon = { took }.find(|took| *took < Duration::from_micros(900));
        assert!(soon.is_some_and(|took| took >= Duration::from_micros(100)));
    }

    #[test]
    fn modes_are_what_they_say() {
        let t = Instant::now();
        let late = t + Duration::from_secs(9);
        let mut always = Idle::new(BusyPoll::Always);
        assert!(!always.should_sleep(false, t) && !always.should_sleep(false, late));
        assert!(Idle::new(BusyPoll::Never).should_sleep(false, t));
        always.set_mode(BusyPoll::Never);
        assert!(always.should_sleep(false, late), "and can be changed");
        always.set_keen(true);
        assert!(!always.should_sleep(false, t) && always.should_sleep(false, t + SPIN_MAX));
        always.set_keen(false);
        assert!(always.should_sleep(false, t));
    }
}
