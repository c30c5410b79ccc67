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

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use vswitch_api::config::{self, Coalesce, Offload, ReceiveSteering, SocketMode, VhostUser};
use vswitch_packet::Accepts;
use vswitch_vhost::{
    Custody, MemoryFiles, QueuePair, Rings, RxRing, SessionConfig, SessionEvent, TxRing, features,
};

use super::log::Budget;
use super::socket::{self, Listener, SocketError};
use crate::forward::PortRef;
use crate::forward::snapshot::GuestQueues;
use crate::worker::{Input, QueueKey, Report, Shared, Workers};

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
    /// Per queue pair: what is in use, and ring sizes.
    pub pairs: Vec<PairFacts>,
    /// How often somebody has connected.
    pub connections: u64,
    /// How the last session ended.
    pub last_end: Option<String>,
    /// Lines that may be logged about this guest.
    budget: Budget,
}

impl Facts {
    /// Logs something that the guest can make happen again and again.
    fn log(&mut self, port: &str, what: impl fmt::Display) {
        match self.budget.spend(Instant::now()) {
            Some(0) => tracing::info!(port, "{what}"),
            Some(kept_back) => tracing::info!(port, kept_back, "{what}"),
            None => tracing::debug!(port, "{what}"),
        }
    }
}

/// What is known about a queue pair.
#[derive(Clone, Debug, Default)]
pub struct PairFacts {
    /// Its transmit ring is with the workers.
    pub taken: bool,
    /// Descriptors of its transmit ring.
    pub tx_size: u16,
    /// Descriptors of its receive ring.
    pub rx_size: u16,
    /// Its receive ring is in use.
    pub enabled: bool,
    /// Why one of its rings was stopped.
    pub error: Option<String>,
}

/// A session that ended sooner did not really begin.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// How long a client-mode port waits after a session has ended; doubled after each short one.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a front-end may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

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
        let input = Input::Guest(Box::new(ring));
        let worker = self.workers.attach(self.key(pair), input, None);
        self.with_pair(pair, |p| {
            p.taken = worker.is_some();
            p.tx_size = size;
            p.error = None;
        });
    }

    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing> {
        self.with_pair(pair, |p| p.taken = false);
        // Whoever has it by now: it may have been moved since it was attached, and may be on its way.
        self.workers.detach_ring(self.key(pair))
    }

    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing) {
        let size = ring.size();
        self.queues.replace(pair.0, Some(ring));
        self.with_pair(pair, |p| {
            p.enabled = true;
            p.rx_size = size;
            p.error = None;
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
                facts.log(&self.name, "link up");
                (facts.up, facts.since) = (true, SystemTime::now());
            }
            SessionEvent::LinkDown => {
                facts.log(&self.name, "link down");
                (facts.up, facts.since) = (false, SystemTime::now());
            }
            SessionEvent::RingError { queue, error } => {
                facts.log(&self.name, format_args!("the {queue} was stopped: {error}"));
                if let Some(pair) = facts.pairs.get_mut(usize::from(queue.pair().0)) {
                    pair.error = Some(format!("{queue}: {error}"));
                }
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
    /// Virtio features that its guest is offered.
    offered: u64,
    begun: Instant,
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Session {
    /// Ends it and waits for that. The shutdown first: the thread may be waiting for a peer that does not read.
    fn end(self, custody: &Custody) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.thread.join();
        custody.close(self.stream);
    }

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
    /// Where descriptors of front-ends are closed.
    custody: Custody,
    /// The last front-end left without taking any feature. QEMU does that if its guest uses one that is no longer offered,
    /// so to the next one all offloads are offered, whatever the switches say; what is delivered they still decide.
    put_off: bool,
    next_try: Instant,
    pause: Duration,
}

fn learns(steering: ReceiveSteering) -> bool {
    steering == ReceiveSteering::Learned
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
            budget: Budget::new(),
        };
        let queues = GuestQueues::new(config.queue_pairs, super::secret_key());
        queues
            .steering()
            .set_learning(learns(config.receive_steering));
        GuestPort {
            at,
            name,
            mtu,
            queues: Arc::new(queues),
            config,
            facts: Arc::new(Mutex::new(facts)),
            wire: Wire::Closed,
            session: None,
            custody: Custody::default(),
            put_off: false,
            next_try: Instant::now(),
            pause: PAUSE_MIN,
        }
    }

    /// Sessions from now on accept this MTU from their front-end.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    /// Changes which offloads are made use of, from the next snapshot on, and which are offered, from the next session
    /// on: what a guest was offered it keeps until then.
    pub fn set_offload(&mut self, offload: Offload) {
        self.config.offload = offload;
    }

    /// Changes which of its queue pairs flows go to; they go there in order.
    pub fn set_receive_steering(&mut self, steering: ReceiveSteering) {
        self.config.receive_steering = steering;
        self.queues.steering().set_learning(learns(steering));
    }

    /// Changes when the guest is called, from the next snapshot on.
    pub fn set_coalesce(&mut self, coalesce: Coalesce) {
        self.config.coalesce = coalesce;
    }

    /// What may be left to the guest, if it negotiated it.
    pub fn may_leave(&self) -> Accepts {
        let Offload { checksum, tso } = self.config.offload;
        let tso = checksum && tso;
        Accepts {
            csum: checksum,
            tso4: tso,
            tso6: tso,
            ecn: tso,
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
        // Connections may be waiting there, with anything on them.
        if let Wire::Listening(listener) = &self.wire
            && let Ok(socket) = listener.as_fd().try_clone_to_owned()
        {
            self.wire = Wire::Closed;
            self.custody.close(socket);
        }
        self.wire = Wire::Closed;
        if let Some(session) = self.session.take() {
            session.end(&self.custody);
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
    ///
    /// # Errors
    /// The connection could not be accepted; see [`Listener::accept`].
    pub fn accept(&mut self, workers: &Arc<Workers>, shared: &Arc<Shared>) -> io::Result<()> {
        if self.custody.is_full() {
            let what = "descriptors that the port's front-ends handed over cannot be closed, because the servers of their file systems do not answer; end those";
            return Err(io::Error::other(what));
        }
        let Some(stream) = self.listener().map_or(Ok(None), Listener::accept)? else {
            return Ok(());
        };
        if self.attached() {
            let what = "a second front-end connected and was turned away: the port has a guest";
            self.facts.lock().log(&self.name, what);
            self.custody.close(stream);
        } else {
            self.start(stream, workers, shared);
        }
        Ok(())
    }

    /// Tries to connect to a front-end that listens.
    pub fn try_connect(&mut self, workers: &Arc<Workers>, shared: &Arc<Shared>) {
        if self.wants_connection()
            && !self.custody.is_full()
            && Instant::now() >= self.next_try
            && let Ok(stream) = socket::connect(&self.config.socket)
        {
            self.start(stream, workers, shared);
        }
    }

    /// The thread of a session reported its end.
    pub fn session_ended(&mut self, id: SessionId, how: &str) {
        if let Some(session) = self.session.take_if(|s| s.id == id) {
            // Whoever throws us out at once is asked less and less often.
            let short = session.begun.elapsed() < SHORT_SESSION;
            self.pause = if short {
                (self.pause * 2).min(PAUSE_MAX)
            } else {
                PAUSE_MIN
            };
            self.next_try = Instant::now() + self.pause;
            self.part_from(session);
            let mut facts = self.facts.lock();
            facts.last_end = Some(how.into());
            facts.since = SystemTime::now();
            facts.memory = (0, 0);
            facts.up = false;
        }
    }

    /// After a session that ended by itself.
    fn part_from(&mut self, session: Session) {
        session.end(&self.custody);
        let mut facts = self.facts.lock();
        self.put_off = facts.virtio == 0;
        let Offload { checksum, tso } = self.config.offload;
        if self.put_off && !(checksum && tso) {
            let what = "it took none of the features on offer; the next front-end is offered every offload";
            facts.log(&self.name, what);
        }
    }

    fn start(&mut self, stream: UnixStream, workers: &Arc<Workers>, shared: &Arc<Shared>) {
        if let Some(over) = self.session.take() {
            self.part_from(over);
        }
        let mut facts = self.facts.lock();
        (facts.virtio, facts.protocol) = (0, 0);
        drop(facts);
        match self.spawn(stream, workers, shared) {
            Ok(session) => {
                let mut facts = self.facts.lock();
                facts.connections += 1;
                facts.since = SystemTime::now();
                facts.log(&self.name, "front-end connected");
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
        let (config, custody) = (self.session_config(), self.custody.clone());
        let offered = config.features;
        let (theirs, shared, at) = (stream.try_clone()?, Arc::clone(shared), self.at);
        // A front-end that asks and never reads the answers must not keep the session from its rings.
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let id = SessionId(self.facts.lock().connections);
        let thread = std::thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let end = vswitch_vhost::serve(theirs, &config, &custody, &mut link);
                link.facts
                    .lock()
                    .log(&link.name, format_args!("front-end disconnected: {end}"));
                shared.report(Report::SessionEnded(at, id, end.to_string()));
            })?;
        let begun = Instant::now();
        Ok(Session {
            id,
            offered,
            begun,
            stream,
            thread,
        })
    }

    fn session_config(&self) -> SessionConfig {
        SessionConfig {
            queue_pairs: self.config.queue_pairs,
            ring_size_max: self.config.ring_size,
            features: self.to_offer(),
            mtu: Some(self.mtu),
            memory_files: match self.config.memory_files {
                config::MemoryFiles::Local => MemoryFiles::Local,
                config::MemoryFiles::Any => MemoryFiles::Any,
            },
        }
    }

    /// Virtio features offered to the guest that is there, or to one that connects now.
    pub fn offered(&self) -> u64 {
        let session = self.session.as_ref().filter(|s| !s.is_over());
        session.map_or_else(|| self.to_offer(), |s| s.offered)
    }

    fn to_offer(&self) -> u64 {
        features::offered(features::Switches {
            mergeable: self.config.mergeable,
            indirect: self.config.indirect,
            event_idx: self.config.event_idx,
            packed: self.config.packed,
            checksum: self.config.offload.checksum || self.put_off,
            tso: self.config.offload.tso || self.put_off,
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
