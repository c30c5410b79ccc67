//! The vhost-user conversation with one front-end, from the first message to the last.
//!
//! The front-end (QEMU, DPDK's virtio-user) asks, we answer: features, memory, and for each ring its size, its place, its
//! descriptors. [`serve`] reads one message at a time on the calling thread, almost always asleep, and moves every queue
//! between four states (`vring`):
//!
//! ```text
//! Stopped --- has size, place, base, kick, features, memory ---> Parked --- transmit, or receive and enabled ---> Attached
//!    ^-------------------- GET_VRING_BASE, RESET_OWNER ------------'-------- anything under it changes ------<-------'
//! Failed: it broke, or is not where it was said to be; it stays so until the front-end says something new about it
//! ```
//!
//! An attached ring belongs to the switch ([`Rings`]). Before memory, features or descriptors under a ring change, it is
//! detached, which waits until its owner has let go; only then is the front-end answered, because it may reuse the memory
//! from then on.
//!
//! The conversation is written on the message types of the `vhost` crate, not on its handlers: those answer QEMU's
//! SET_VRING_ENABLE before SET_FEATURES with a closed connection, and every refused request too. Here a request that
//! asks for an answer gets a non-zero one when it fails, and the conversation goes on; one that does not ask cannot be
//! told, so the session ends with the reason. Before features are negotiated nothing starts, so enabling early is a flag
//! that is remembered. Without `VHOST_USER_F_PROTOCOL_FEATURES` rings are enabled from the start.
//!
//! Descriptors of files arrive beside a message's first byte (`handed`); later ones, or too many, end the session. Those that
//! a message has no use for are closed and named in the log; those it lacks make it fail. Memory must be in files that may be it ([`MemoryFiles`]). A kick or call descriptor
//! must be an eventfd, and is made non-blocking: a worker never waits for a front-end. (The front-end shares that mode and
//! could set it back: reading a kick asks not to wait each time, while a call into a full, blocking eventfd would wait. That
//! takes a malicious VMM, not a malicious guest.) What may keep whoever closes it waiting, the connection too, goes to the
//! port's [`Custody`].
//!
//! Limits: messages of at most 4,096 bytes with at most 32 descriptors; complaints about one session are logged 16 times
//! as warnings, further ones for debugging only.

mod custody;
mod handed;
mod message;
mod requests;
#[cfg(test)]
mod tests;
mod vring;

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

use crate::memory::MemoryFiles;
use crate::ring::{QueueIndex, QueuePair, RingError, RxRing, Trouble, TxRing};
pub use custody::Custody;
use message::{Message, Received};
use requests::Session;

/// What a session is to offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionConfig {
    /// Pairs of queues, at least one.
    pub queue_pairs: u16,
    /// Largest ring accepted: a power of two from 2 to 32,768.
    pub ring_size_max: u16,
    /// Virtio features offered; see [`features::offered`](crate::features::offered).
    pub features: u64,
    /// Largest MTU accepted from the front-end, if the port has one to tell.
    pub mtu: Option<u16>,
    /// Files accepted as the guest's memory.
    pub memory_files: MemoryFiles,
}

/// What happened in a session, besides rings coming and going.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// Features were acknowledged; names for both are in [`features`](crate::features).
    Negotiated {
        /// Virtio features.
        virtio: u64,
        /// Protocol features.
        protocol: u64,
    },
    /// The first pair of queues is running and enabled, both ways.
    LinkUp,
    /// No pair is any more.
    LinkDown,
    /// A ring was stopped. It has been detached.
    RingError {
        /// Which one.
        queue: QueueIndex,
        /// Why.
        error: RingError,
    },
    /// The guest's memory changed.
    MemoryTable {
        /// Regions.
        regions: usize,
        /// Bytes over all of them.
        bytes: u64,
    },
}

/// The switch's side of a session, called on the session's thread.
///
/// Rings come and go any number of times. At the end of a session every ring has been detached.
pub trait Rings: Send {
    /// A transmit queue is running; its frames are the switch's to take, or to discard while it is not
    /// [enabled](TxRing::enabled).
    fn attach_tx(&mut self, pair: QueuePair, ring: TxRing);

    /// Gives a transmit queue back. Waits until its owner has let go. `None` if it is not there.
    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing>;

    /// A receive queue is running and enabled.
    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing);

    /// Gives a receive queue back. Waits until nobody writes to it. `None` if it is not there.
    fn detach_rx(&mut self, pair: QueuePair) -> Option<RxRing>;

    /// Something happened.
    fn event(&mut self, event: SessionEvent);
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The front-end, or the switch, closed the connection between two messages.
    #[error("the front-end closed the connection")]
    Closed,
    /// The connection was closed within a message.
    #[error("the front-end closed the connection in the middle of a message")]
    Truncated,
    /// The socket failed.
    #[error("the connection failed")]
    Socket(#[source] io::Error),
    /// What came was no vhost-user message, so where the next one begins is unknown.
    #[error("the front-end does not speak vhost-user: {0}")]
    NotVhostUser(String),
    /// A request failed and its sender did not ask for an answer that could say so.
    #[error("the front-end's {request} failed, and it asked for no answer: {reason}")]
    Refused {
        /// Its name in the specification.
        request: String,
        /// Why.
        reason: String,
    },
    /// The memory file was cut short.
    #[error("the guest's memory file was cut short under the switch; restart the guest")]
    MemoryLost,
    /// What it handed over cannot be got rid of.
    #[error(
        "descriptors of files that the port's front-ends handed over cannot be closed, because the servers of their file \
         systems do not answer; end those"
    )]
    Stuck,
    /// The session could not begin.
    #[error("the session could not begin: {0}")]
    Setup(String),
}

/// Holds the whole conversation on the calling thread. Shutting the socket down from elsewhere ends it.
///
/// Every ring has been detached when this returns, whatever the reason; the connection is closed at about that time. What
/// may not be closed here goes to `custody`, which all sessions of a port share.
pub fn serve(
    stream: UnixStream,
    config: &SessionConfig,
    custody: &Custody,
    rings: &mut dyn Rings,
) -> SessionEnd {
    let end = begin(&stream, config, custody, rings);
    // The front-end waits for this, and does not for the custody.
    let _ = stream.shutdown(Shutdown::Both);
    custody.close(stream);
    end
}

fn begin(
    stream: &UnixStream,
    config: &SessionConfig,
    custody: &Custody,
    rings: &mut dyn Rings,
) -> SessionEnd {
    let size = config.ring_size_max;
    if config.queue_pairs == 0 || size < 2 || !size.is_power_of_two() {
        return SessionEnd::Setup(format!(
            "{} queue pairs of at most {size} entries cannot be served",
            config.queue_pairs
        ));
    }
    let trouble = match Trouble::new() {
        Ok(trouble) => trouble,
        Err(error) => return SessionEnd::Setup(format!("no event descriptor: {error}")),
    };
    // Beginnings of messages are awaited by polling, their rest by reading.
    if let Err(error) = stream.set_nonblocking(false) {
        return SessionEnd::Socket(error);
    }
    let mut session = Session::new(config, custody, rings, trouble.clone());
    let end = converse(stream, &mut session, custody, &trouble);
    session.stop_all();
    end
}

fn converse(
    stream: &UnixStream,
    session: &mut Session<'_>,
    custody: &Custody,
    trouble: &Trouble,
) -> SessionEnd {
    loop {
        if let Err(error) = wait(stream, trouble) {
            return SessionEnd::Socket(error);
        }
        if trouble.clear()
            && let Err(end) = session.collect_broken()
        {
            return end;
        }
        if !custody.has_room() {
            return SessionEnd::Stuck;
        }
        let message = match Message::receive(stream, custody) {
            Ok(Received::Nothing) => continue,
            Ok(Received::Message(message)) => message,
            Err(end) => return end,
        };
        let answer = match session.answer(message) {
            Ok(answer) => answer,
            Err(end) => return end,
        };
        if let Some(answer) = answer
            && let Err(error) = message::send(stream, &answer)
        {
            return SessionEnd::Socket(error);
        }
    }
}

/// Sleeps until a message begins, the connection ends or a ring breaks.
fn wait(stream: &UnixStream, trouble: &Trouble) -> io::Result<()> {
    let mut fds = [
        PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(trouble.as_fd(), PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
