//! Closing, and asking about, descriptors that may keep whoever does it waiting.
//!
//! A front-end chooses the files that it passes along. Closing one on FUSE sends the file's server a message and waits for
//! the answer, without end and deaf to signals if there is none; closing any that an epoll watches waits for a lock that its
//! owner may never give back; letting go of a connection whose unread messages hold such files may wait likewise. The main
//! thread waits for sessions, so neither may do it.
//!
//! A [`Custody`] belongs to a port. What goes into it is dealt with by a thread of its own, one after the other; the thread
//! is there while there is something to do, and nobody waits for it long: not at all once it has been stuck for
//! [`PATIENCE`]. What comes behind waits, and when [`MOST`] have gathered, or [`MOST_OF_ALL`] in all ports, the port takes
//! neither messages nor connections until a server answers or ends: a front-end that does this has harmed its own port.
//!
//! The process cannot end for as long as the kernel waits for such a server.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Descriptors in custody at which a port takes no more: a guest with 64 queue pairs leaves 384 at once when it goes.
pub(super) const MOST: usize = 400;

/// The same over all ports of the process, those that are gone among them. Then ports that hold some take no more.
const MOST_OF_ALL: usize = 4096;

/// As many are held over all ports.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// How long an answer, or room, is waited for: long for a kernel, short for whoever waits for the session.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// See the module's page. Clones are the same custody.
#[derive(Clone, Debug, Default)]
pub struct Custody(Arc<Shared>);

type Errand = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Shared {
    desk: Mutex<Desk>,
    /// Something was dealt with.
    done: Condvar,
}

#[derive(Default)]
struct Desk {
    waiting: VecDeque<Errand>,
    /// Those that wait and the one that is being dealt with.
    held: usize,
    /// There is a thread, or about to be, which will look for more.
    working: bool,
    /// When the one that is being dealt with was begun.
    since: Option<Instant>,
    /// It was said that there is no thread.
    complained: bool,
}

/// Whether a port with `held` descriptors may take more, if there are `of_all`. One that holds none is in nobody's way: others
/// must not be able to shut it.
fn has_room(held: usize, of_all: usize) -> bool {
    held < MOST && (held == 0 || of_all < MOST_OF_ALL)
}

impl Desk {
    fn has_room(&self) -> bool {
        has_room(self.held, HELD.load(Ordering::Relaxed))
    }

    /// Somebody has waited long enough for what is being dealt with.
    fn is_stuck(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= PATIENCE)
    }
}

/// What no thread could be had for is closed with the port.
impl Drop for Desk {
    fn drop(&mut self) {
        HELD.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl Custody {
    /// Closes a descriptor, some time.
    pub fn close(&self, fd: impl Into<OwnedFd>) {
        let fd = fd.into();
        self.send(Box::new(move || drop(fd)));
    }

    /// As many are held as may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.staff();
        !self.0.desk().has_room()
    }

    /// Waits a moment for room. False if there is none.
    pub(super) fn has_room(&self) -> bool {
        self.staff();
        let worth_waiting = |desk: &mut Desk| !desk.has_room() && !desk.is_stuck();
        let desk = self.0.desk();
        let waited = self
            .0
            .done
            .wait_timeout_while(desk, PATIENCE, worth_waiting);
        let (desk, _) = waited.unwrap_or_else(PoisonError::into_inner);
        desk.has_room()
    }

    /// Asks something about a descriptor, and gives it back with the answer. `None` if there was no answer in time, or
    /// will be none: then it is closed, some time.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        fd: OwnedFd,
        question: impl FnOnce(&OwnedFd) -> T + Send + 'static,
    ) -> Option<(OwnedFd, T)> {
        if self.0.desk().is_stuck() {
            self.close(fd);
            return None;
        }
        let (answers, answer) = sync_channel(0);
        self.send(Box::new(move || {
            let said = question(&fd);
            // Nobody waits any more: it is closed here.
            drop(answers.send((fd, said)));
        }));
        answer.recv_timeout(PATIENCE).ok()
    }

    #[cfg(test)]
    pub(crate) fn hold_up_for_tests(&self, errand: impl FnOnce() + Send + 'static) {
        self.send(Box::new(errand));
    }

    #[cfg(test)]
    pub(crate) fn held_for_tests(&self) -> usize {
        self.0.desk().held
    }

    fn send(&self, errand: Errand) {
        let mut desk = self.0.desk();
        desk.waiting.push_back(errand);
        desk.held += 1;
        HELD.fetch_add(1, Ordering::Relaxed);
        drop(desk);
        self.staff();
    }

    /// Sees to it that there is a thread if there is something to do. If there can be none, whoever looks next tries again.
    fn staff(&self) {
        let mut desk = self.0.desk();
        if desk.working || desk.waiting.is_empty() {
            return;
        }
        desk.working = true;
        drop(desk);
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("custody".into());
        let spawned = thread.spawn(move || shared.work());
        if let Err(error) = spawned {
            let mut desk = self.0.desk();
            desk.working = false;
            let first = !std::mem::replace(&mut desk.complained, true);
            drop(desk);
            if first {
                tracing::error!(%error, "no thread to close descriptors");
            }
        }
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut desk = self.desk();
        desk.complained = false;
        while let Some(errand) = desk.waiting.pop_front() {
            desk.since = Some(Instant::now());
            drop(desk);
            errand();
            desk = self.desk();
            desk.since = None;
            desk.held -= 1;
            HELD.fetch_sub(1, Ordering::Relaxed);
            self.done.notify_all();
        }
        desk.working = false;
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Desk { held, working, .. } = &*self.desk();
        let mut shared = f.debug_struct("Custody");
        shared.field("held", held).field("working", working);
        shared.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn event() -> OwnedFd {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        rustix::event::eventfd(0, flags).unwrap()
    }

    fn is_empty(custody: &Custody) -> bool {
        let held = |desk: &mut Desk| desk.held > 0;
        let long = Duration::from_secs(10);
        let waited = custody
            .0
            .done
            .wait_timeout_while(custody.0.desk(), long, held);
        !waited.unwrap().1.timed_out()
    }

    #[test]
    fn what_goes_in_is_closed() {
        let custody = Custody::default();
        for _ in 0..3 {
            let (read, write) = rustix::pipe::pipe().unwrap();
            custody.close(write);
            // The end of the file: nobody has the other side open.
            assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
            assert!(is_empty(&custody));
        }
    }

    #[test]
    fn a_port_is_full_by_itself_or_with_all_others() {
        assert!(has_room(MOST - 1, MOST - 1) && !has_room(MOST, MOST));
        assert!(has_room(1, MOST_OF_ALL - 1) && !has_room(1, MOST_OF_ALL));
        assert!(has_room(0, usize::MAX));
    }

    #[test]
    fn an_answer_comes_with_the_descriptor() {
        use std::os::fd::AsRawFd;
        let (custody, fd) = (Custody::default(), event());
        let number = fd.as_raw_fd();
        let (fd, answer) = custody.ask(fd, OwnedFd::as_raw_fd).unwrap();
        assert_eq!((fd.as_raw_fd(), answer), (number, number));
    }

    #[test]
    fn nobody_waits_for_one_that_is_stuck_and_room_comes_back() {
        let custody = Custody::default();
        let (go, stuck) = channel::<()>();
        let asked = custody.ask(event(), move |_| stuck.recv().is_ok());
        assert!(asked.is_none());
        // From now on it is known, and nobody waits at all.
        let since = Instant::now();
        for _ in 1..MOST / 2 {
            assert!(custody.has_room());
            let asked = custody.ask(event(), |_| ());
            assert!(asked.is_none());
        }
        for _ in MOST / 2..MOST {
            assert!(!custody.is_full());
            custody.close(event());
        }
        assert!(custody.is_full());
        for _ in 0..MOST {
            assert!(!custody.has_room());
        }
        // It would have been two seconds each time.
        assert!(since.elapsed() < PATIENCE * 10, "{:?}", since.elapsed());
        drop(go);
        assert!(is_empty(&custody));
        assert!(custody.has_room() && !custody.is_full());
    }
}
