//! A guest's port: its socket, its session, and where its rings are.
//!
//! The port is one state machine, driven by the main thread:
//!
//! ```text
//!            open()                 accept/connect               session ends
//!  Closed ----------> Waiting ------------------------> Attached ------------> Waiting
//!     ^                  |                                 |
//!     +------------------+------------- close() ----------+
//! ```
//!
//! `Waiting` listens (server) or tries again and again (client). The conversation itself runs on a thread of its own,
//! which hands rings to workers through [`Link`] and leaves what people want to know in [`Facts`].

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use vswitch_api::config::{SocketMode, VhostUser};
use vswitch_vhost::{QueuePair, Rings, RxRing, SessionConfig, SessionEvent, TxRing, features};

use super::socket::{self, Listener, SocketError};
use crate::forward::PortRef;
use crate::forward::snapshot::GuestQueues;
use crate::worker::{QueueKey, Report, Shared, Workers};

/// What is known about the guest of a port.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Rings are in use.
    pub up: bool,
    /// When `up` last changed, or the session's state did.
    pub since: SystemTime,
    /// Virtio features the guest took.
    pub virtio: u64,
    /// Protocol features in use.
    pub protocol: u64,
    /// Memory regions, and their bytes.
    pub memory: (u32, u64),
    /// Per queue pair: the worker of its transmit ring, and ring sizes.
    pub pairs: Vec<PairFacts>,
    /// How often somebody has connected.
    pub connections: u64,
    /// How the last session ended.
    pub last_end: Option<String>,
    /// What is wrong with a ring.
    pub ring_error: Option<String>,
}

/// What is known about a queue pair.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairFacts {
    /// Its transmit ring's worker.
    pub tx_worker: Option<usize>,
    /// Descriptors of its transmit ring.
    pub tx_size: u16,
    /// Descriptors of its receive ring.
    pub rx_size: u16,
    /// Its receive ring is in use.
    pub enabled: bool,
}

enum Wire {
    Closed,
    Listening(Listener),
    Connecting,
}

/// The session's side of a port: takes rings from the conversation to the workers and back.
struct Link {
    at: PortRef,
    queues: Arc<GuestQueues>,
    workers: Arc<Workers>,
    facts: Arc<Mutex<Facts>>,
    name: Arc<str>,
}

impl Link {
    fn key(&self, pair: QueuePair) -> QueueKey {
        QueueKey {
            port: self.at,
            queue: pair.0,
        }
    }

    fn with_pair(&self, pair: QueuePair, change: impl FnOnce(&mut PairFacts)) {
        if let Some(facts) = self.facts.lock().pairs.get_mut(usize::from(pair.0)) {
            change(facts);
        }
    }
}

impl Rings for Link {
    fn attach_tx(&mut self, pair: QueuePair, ring: TxRing) {
        let size = ring.size();
        let worker = self.workers.attach(self.key(pair), ring);
        self.with_pair(pair, |p| {
            p.tx_worker = worker;
            p.tx_size = size;
        });
    }

    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing> {
        let mut worker = None;
        self.with_pair(pair, |p| worker = p.tx_worker.take());
        self.workers.detach(worker?, self.key(pair))
    }

    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing) {
        let size = ring.size();
        self.queues.replace(pair.0, Some(ring));
        self.with_pair(pair, |p| {
            p.enabled = true;
            p.rx_size = size;
        });
    }

    fn detach_rx(&mut self, pair: QueuePair) -> Option<RxRing> {
        self.with_pair(pair, |p| p.enabled = false);
        self.queues.replace(pair.0, None)
    }

    fn event(&mut self, event: SessionEvent) {
        let mut facts = self.facts.lock();
        match event {
            SessionEvent::Negotiated { virtio, protocol } => {
                tracing::debug!(port = %self.name, virtio = ?features::virtio_names(virtio), "features negotiated");
                (facts.virtio, facts.protocol) = (virtio, protocol);
            }
            SessionEvent::LinkUp => {
                tracing::info!(port = %self.name, "link up");
                (facts.up, facts.since) = (true, SystemTime::now());
                facts.ring_error = None;
            }
            SessionEvent::LinkDown => {
                tracing::info!(port = %self.name, "link down");
                (facts.up, facts.since) = (false, SystemTime::now());
            }
            SessionEvent::RingError { queue, error } => {
                tracing::warn!(port = %self.name, %queue, %error, "a ring was stopped");
                facts.ring_error = Some(error.to_string());
            }
            SessionEvent::MemoryTable { regions, bytes } => facts.memory = (regions as u32, bytes),
        }
    }
}

/// Tells a port's sessions apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionId(u64);

struct Session {
    id: SessionId,
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Session {
    /// The peer is gone, or the thread is: either way its end is a matter of microseconds.
    fn is_over(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let gone = rustix::event::poll(&mut fds, Some(&Timespec::default()));
        self.thread.is_finished() || gone.is_ok_and(|n| n > 0)
    }
}

/// A guest's port. See the module's page.
pub struct GuestPort {
    at: PortRef,
    name: Arc<str>,
    config: VhostUser,
    mtu: u16,
    /// The receive rings, as the snapshot has them.
    pub queues: Arc<GuestQueues>,
    facts: Arc<Mutex<Facts>>,
    wire: Wire,
    session: Option<Session>,
}

impl GuestPort {
    /// A closed port.
    pub fn new(at: PortRef, name: Arc<str>, config: VhostUser, mtu: u16) -> Self {
        let facts = Facts {
            up: false,
            since: SystemTime::now(),
            virtio: 0,
            protocol: 0,
            memory: (0, 0),
            pairs: vec![PairFacts::default(); usize::from(config.queue_pairs)],
            connections: 0,
            last_end: None,
            ring_error: None,
        };
        GuestPort {
            at,
            name,
            mtu,
            queues: Arc::new(GuestQueues::new(config.queue_pairs, super::secret_key())),
            config,
            facts: Arc::new(Mutex::new(facts)),
            wire: Wire::Closed,
            session: None,
        }
    }

    /// Starts to listen, or to try to connect.
    ///
    /// # Errors
    /// Only in server mode: the socket could not be made.
    pub fn open(&mut self) -> Result<(), SocketError> {
        if let Wire::Closed = self.wire {
            self.wire = match self.config.mode {
                SocketMode::Client => Wire::Connecting,
                SocketMode::Server => Wire::Listening(Listener::bind(
                    &self.config.socket,
                    self.config.owner.as_ref(),
                    self.config.permissions,
                )?),
            };
            self.facts.lock().since = SystemTime::now();
        }
        Ok(())
    }

    /// Ends the session and stops listening. When this returns nothing of the guest is in use.
    pub fn close(&mut self) {
        self.wire = Wire::Closed;
        if let Some(session) = self.session.take() {
            let _ = session.stream.shutdown(Shutdown::Both);
            let _ = session.thread.join();
        }
        self.facts.lock().since = SystemTime::now();
    }

    /// What it listens on.
    pub fn listener(&self) -> Option<&Listener> {
        match &self.wire {
            Wire::Listening(listener) => Some(listener),
            _ => None,
        }
    }

    /// Has to be tried again.
    pub fn wants_connection(&self) -> bool {
        matches!(self.wire, Wire::Connecting) && self.session.is_none()
    }

    /// Somebody connects: starts a session, or turns the newcomer away if there is one.
    pub fn accept(&mut self, workers: &Arc<Workers>, shared: &Arc<Shared>) {
        let Some(stream) = self.listener().and_then(Listener::accept) else {
            return;
        };
        if self.attached() {
            tracing::warn!(
                port = %self.name,
                "a second front-end connected and was turned away: the port has a guest already"
            );
            return;
        }
        self.start(stream, workers, shared);
    }

    /// Tries to connect to a front-end that listens.
    pub fn try_connect(&mut self, workers: &Arc<Workers>, shared: &Arc<Shared>) {
        if self.wants_connection()
            && let Some(stream) = socket::connect(&self.config.socket)
        {
            self.start(stream, workers, shared);
        }
    }

    /// The thread of a session reported its end.
    pub fn session_ended(&mut self, id: SessionId, how: &str) {
        if let Some(session) = self.session.take_if(|s| s.id == id) {
            let _ = session.thread.join();
            let mut facts = self.facts.lock();
            facts.last_end = Some(how.into());
            facts.since = SystemTime::now();
            facts.memory = (0, 0);
            facts.up = false;
        }
    }

    fn start(&mut self, stream: UnixStream, workers: &Arc<Workers>, shared: &Arc<Shared>) {
        if let Some(ended) = self.session.take() {
            let _ = ended.thread.join();
        }
        match self.spawn(stream, workers, shared) {
            Ok(session) => {
                let mut facts = self.facts.lock();
                facts.connections += 1;
                facts.since = SystemTime::now();
                facts.ring_error = None;
                drop(facts);
                tracing::info!(port = %self.name, socket = %self.config.socket.display(), "front-end connected");
                self.session = Some(session);
            }
            Err(error) => tracing::error!(port = %self.name, %error, "no session could be started"),
        }
    }

    fn spawn(
        &self,
        stream: UnixStream,
        workers: &Arc<Workers>,
        shared: &Arc<Shared>,
    ) -> io::Result<Session> {
        let mut link = Link {
            at: self.at,
            queues: Arc::clone(&self.queues),
            workers: Arc::clone(workers),
            facts: Arc::clone(&self.facts),
            name: Arc::clone(&self.name),
        };
        let config = self.session_config();
        let (theirs, shared, at) = (stream.try_clone()?, Arc::clone(shared), self.at);
        let id = SessionId(self.facts.lock().connections);
        let thread = std::thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let end = vswitch_vhost::serve(theirs, &config, &mut link);
                tracing::info!(port = %link.name, reason = %end, "front-end disconnected");
                shared.report(Report::SessionEnded(at, id, end.to_string()));
            })?;
        Ok(Session { id, stream, thread })
    }

    fn session_config(&self) -> SessionConfig {
        SessionConfig {
            queue_pairs: self.config.queue_pairs,
            ring_size_max: self.config.ring_size,
            features: self.offered(),
            mtu: Some(self.mtu),
        }
    }

    /// Virtio features offered to a guest that connects now.
    pub fn offered(&self) -> u64 {
        features::offered(features::Switches {
            mergeable: self.config.mergeable,
            indirect: self.config.indirect,
            event_idx: self.config.event_idx,
            checksum: self.config.offload.checksum,
            tso: self.config.offload.tso,
            multiqueue: self.config.queue_pairs > 1,
            mtu: true,
        })
    }

    /// What is known about the guest.
    pub fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    /// Its part of the configuration.
    pub fn config(&self) -> &VhostUser {
        &self.config
    }

    /// Somebody is connected.
    pub fn attached(&self) -> bool {
        self.session.as_ref().is_some_and(|s| !s.is_over())
    }

    /// Neither listening nor connecting.
    pub fn closed(&self) -> bool {
        matches!(self.wire, Wire::Closed)
    }
}

impl Drop for GuestPort {
    fn drop(&mut self) {
        self.close();
    }
}
