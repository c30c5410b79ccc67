//! Descriptors as they come beside a message, before anybody knows what they are.
//!
//! Nothing is asked of one that could keep us waiting, not even its type: only whether it has seals, and its name if it is to
//! be an event. All else is asked, and all but files in memory are closed, by the port's [`Custody`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::custody::Custody;
use crate::event::Event;
use crate::memory::{MemoryFiles, OriginError, has_seals, is_local};

/// What the kernel calls an eventfd. Names of files begin with a slash.
const EVENT_FD: &str = "anon_inode:[eventfd]";

/// The descriptors of one message, in order.
pub(super) struct Handed {
    fds: Vec<OwnedFd>,
    custody: Custody,
}

impl Handed {
    pub(super) fn new(custody: &Custody) -> Self {
        Self {
            fds: Vec::new(),
            custody: custody.clone(),
        }
    }

    pub(super) fn extend(&mut self, fds: impl IntoIterator<Item = OwnedFd>) {
        self.fds.extend(fds);
    }

    pub(super) fn len(&self) -> usize {
        self.fds.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }

    /// The only one, if it is an eventfd. It is made non-blocking.
    pub(super) fn into_event(mut self) -> Result<Event, String> {
        self.only()?;
        if !is_event(&self.fds[0]) {
            return Err("its descriptor is not an eventfd".to_owned());
        }
        let error = |errno: rustix::io::Errno| errno.to_string();
        let flags = fcntl_getfl(&self.fds[0]).map_err(error)?;
        fcntl_setfl(&self.fds[0], flags | OFlags::NONBLOCK).map_err(error)?;
        Ok(Event::handed(self.fds.remove(0), &self.custody))
    }

    /// That there is one and no other.
    pub(super) fn only(&self) -> Result<(), String> {
        match self.fds.len() {
            1 => Ok(()),
            count => Err(format!(
                "it came with {count} descriptors of files instead of one"
            )),
        }
    }

    /// One of them, if it may be memory.
    pub(super) fn memory(
        &mut self,
        index: usize,
        allowed: MemoryFiles,
    ) -> Result<BorrowedFd<'_>, OriginError> {
        if allowed == MemoryFiles::Local && !has_seals(&self.fds[index]) {
            let fd = self.fds.remove(index);
            let Some((fd, answer)) = self.custody.ask(fd, |fd| is_local(fd)) else {
                return Err(OriginError::Silent);
            };
            self.fds.insert(index, fd);
            answer?;
        }
        Ok(self.fds[index].as_fd())
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        for fd in self.fds.drain(..) {
            dispose(fd, &self.custody);
        }
    }
}

/// Closes it here if that waits for nobody. No epoll can watch a file in memory.
fn dispose(fd: OwnedFd, custody: &Custody) {
    if has_seals(&fd) {
        drop(fd);
    } else {
        custody.close(fd);
    }
}

/// By its name, which asks nobody: writing to one never waits once it is non-blocking.
fn is_event(fd: &OwnedFd) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    name.is_ok_and(|name| name.as_os_str() == EVENT_FD)
}
