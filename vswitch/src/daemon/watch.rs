//! What the main loop waits for, and how it tells descriptors apart.

use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events};

use crate::forward::PortIndex;

/// What a descriptor belongs to. Travels through epoll as 32 bits: kind above, number below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// SIGTERM, SIGINT, SIGHUP.
    Signal,
    /// Once a second.
    Tick,
    /// Time to try again what could not be connected.
    Retry,
    /// New control connections.
    Control,
    /// Addresses to learn.
    Learn,
    /// News from workers and sessions.
    Reports,
    /// Somebody connects to a port's socket.
    Port(PortIndex),
    /// A control connection.
    Client(u16),
    /// Frames captured for a control connection.
    Capture(u16),
}

impl Token {
    /// As epoll carries it.
    pub fn to_data(self) -> u32 {
        match self {
            Token::Signal => 1 << 16,
            Token::Tick => 2 << 16,
            Token::Retry => 3 << 16,
            Token::Control => 4 << 16,
            Token::Learn => 5 << 16,
            Token::Reports => 6 << 16,
            Token::Port(PortIndex(n)) => 7 << 16 | u32::from(n),
            Token::Client(n) => 8 << 16 | u32::from(n),
            Token::Capture(n) => 9 << 16 | u32::from(n),
        }
    }

    /// Back from epoll.
    pub fn from_data(data: u32) -> Option<Self> {
        let n = data as u16;
        Some(match data >> 16 {
            1 => Token::Signal,
            2 => Token::Tick,
            3 => Token::Retry,
            4 => Token::Control,
            5 => Token::Learn,
            6 => Token::Reports,
            7 => Token::Port(PortIndex(n)),
            8 => Token::Client(n),
            9 => Token::Capture(n),
            _ => return None,
        })
    }
}

/// What a descriptor is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// Until it can be read.
    pub read: bool,
    /// Until it can be written.
    pub write: bool,
}

impl Interest {
    /// Until it can be read, and nothing else.
    pub const READ: Self = Interest {
        read: true,
        write: false,
    };
}

/// The main loop, to those who open and close descriptors that it has to wait for.
pub trait Watch {
    /// Waits until this can be read.
    fn watch(&mut self, fd: &dyn AsRawFd, token: Token);
    /// Waits for something else than before.
    fn rewatch(&mut self, fd: &dyn AsRawFd, token: Token, interest: Interest);
    /// No longer waits for it. To be called before it is closed.
    fn unwatch(&mut self, fd: &dyn AsRawFd);
}

struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Watch for EventOps<'_> {
    fn watch(&mut self, fd: &dyn AsRawFd, token: Token) {
        let events = Events::with_data(&Raw(fd.as_raw_fd()), token.to_data(), EventSet::IN);
        if let Err(error) = self.add(events) {
            tracing::error!(?token, ?error, "the main loop cannot wait for a descriptor");
        }
    }

    fn rewatch(&mut self, fd: &dyn AsRawFd, token: Token, interest: Interest) {
        let mut set = EventSet::empty();
        set.set(EventSet::IN, interest.read);
        set.set(EventSet::OUT, interest.write);
        let events = Events::with_data(&Raw(fd.as_raw_fd()), token.to_data(), set);
        if let Err(error) = self.modify(events) {
            tracing::error!(?token, ?error, "the main loop cannot wait for a descriptor");
        }
    }

    fn unwatch(&mut self, fd: &dyn AsRawFd) {
        let _ = self.remove(Events::empty(&Raw(fd.as_raw_fd())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        let all = [
            Token::Signal,
            Token::Tick,
            Token::Retry,
            Token::Control,
            Token::Learn,
            Token::Reports,
            Token::Port(PortIndex(1023)),
            Token::Client(u16::MAX),
            Token::Capture(0),
        ];
        for token in all {
            assert_eq!(Token::from_data(token.to_data()), Some(token));
        }
        assert_eq!(Token::from_data(0), None);
    }
}
