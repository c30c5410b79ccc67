//! A front-end with its guest, and a switch that keeps rings in a table.

use std::collections::HashMap;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq as R;

use crate::event::Event;
use crate::features::{self, mask};
use crate::memory::RegionSpec;
use crate::ring::{QueuePair, RingAddresses, RxRing, TxRing, TxScratch};
use crate::session::{Custody, Rings, SessionConfig, SessionEnd, SessionEvent, serve};
use crate::testing::{Guest, Queue, USER, event};

pub(super) const QUEUE_SIZE: u16 = 256;
const QUEUES_AT: u64 = 0x1_0000;

#[derive(Default)]
struct Table {
    tx: HashMap<QueuePair, TxRing>,
    rx: HashMap<QueuePair, RxRing>,
    events: Vec<SessionEvent>,
}

/// The switch's side: rings in a table, behind a lock that stands for a worker's hand-over.
#[derive(Clone, Default)]
pub(super) struct Switch(Arc<(Mutex<Table>, Condvar)>);

impl Switch {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.0.lock().unwrap()
    }

    pub(super) fn attached(&self) -> usize {
        let table = self.table();
        table.tx.len() + table.rx.len()
    }

    pub(super) fn has_tx(&self, pair: u16) -> bool {
        self.table().tx.contains_key(&QueuePair(pair))
    }

    pub(super) fn has_rx(&self, pair: u16) -> bool {
        self.table().rx.contains_key(&QueuePair(pair))
    }

    pub(super) fn with_tx<T>(
        &self,
        pair: u16,
        work: impl FnOnce(&mut TxRing, &mut TxScratch) -> T,
    ) -> T {
        let mut table = self.table();
        work(
            table.tx.get_mut(&QueuePair(pair)).unwrap(),
            &mut TxScratch::new(),
        )
    }

    pub(super) fn with_rx<T>(&self, pair: u16, work: impl FnOnce(&mut RxRing) -> T) -> T {
        work(self.table().rx.get_mut(&QueuePair(pair)).unwrap())
    }

    /// One turn of a worker.
    pub(super) fn poll_tx(&self, pair: u16) {
        if let Some(ring) = self.table().tx.get_mut(&QueuePair(pair)) {
            let mut scratch = TxScratch::new();
            if ring.take(&mut scratch, 32).is_ok() {
                ring.complete();
            }
        }
    }

    /// What happened since the last time.
    pub(super) fn events(&self) -> Vec<SessionEvent> {
        std::mem::take(&mut self.table().events)
    }

    pub(super) fn wait_for(&self, what: impl Fn(&SessionEvent) -> bool) {
        let (_table, timeout) = self
            .0
            .1
            .wait_timeout_while(self.table(), Duration::from_secs(10), |table| {
                !table.events.iter().any(&what)
            })
            .unwrap();
        assert!(!timeout.timed_out());
    }
}

impl Rings for Switch {
    fn attach_tx(&mut self, pair: QueuePair, ring: TxRing) {
        assert_eq!(ring.queue_pair(), pair);
        assert!(self.table().tx.insert(pair, ring).is_none());
    }

    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing> {
        self.table().tx.remove(&pair)
    }

    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing) {
        assert_eq!(ring.queue_pair(), pair);
        assert!(self.table().rx.insert(pair, ring).is_none());
    }

    fn detach_rx(&mut self, pair: QueuePair) -> Option<RxRing> {
        self.table().rx.remove(&pair)
    }

    fn event(&mut self, event: SessionEvent) {
        self.table().events.push(event);
        self.0.1.notify_all();
    }
}

/// What was left when a session ended.
pub(super) struct Happened {
    pub(super) end: SessionEnd,
    pub(super) attached: usize,
    pub(super) events: Vec<SessionEvent>,
}

/// A front-end in conversation with a session on a thread of its own.
pub(super) struct Front {
    pub(super) stream: UnixStream,
    switch_end: UnixStream,
    session: JoinHandle<SessionEnd>,
    pub(super) switch: Switch,
    pub(super) guest: Guest,
    pub(super) queues: Vec<Queue>,
    pub(super) calls: Vec<Arc<Event>>,
    pub(super) kicks: Vec<Arc<Event>>,
    pub(super) errors: Vec<Arc<Event>>,
    pub(super) features: u64,
    pub(super) protocol: u64,
}

impl Front {
    pub(super) fn connect(config: SessionConfig) -> Self {
        Self::connect_to(config, Custody::default())
    }

    /// To a port that has had front-ends before.
    pub(super) fn connect_to(config: SessionConfig, custody: Custody) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let switch = Switch::default();
        let switch_end = theirs.try_clone().unwrap();
        let session = std::thread::spawn({
            let mut switch = switch.clone();
            move || serve(theirs, &config, &custody, &mut switch)
        });
        let count = usize::from(config.queue_pairs) * 2;
        let events = || (0..count).map(|_| event()).collect::<Vec<_>>();
        let mut front = Self {
            stream,
            switch_end,
            session,
            switch,
            guest: Guest::new(0x40_0000),
            queues: Vec::new(),
            calls: events(),
            kicks: events(),
            errors: events(),
            features: 0,
            protocol: 0,
        };
        front.reset_queues();
        front
    }

    /// A connection that has come as far as traffic, pair 0 enabled.
    pub(super) fn started(config: SessionConfig) -> Self {
        let mut front = Self::connect(config);
        hello(&mut front);
        for queue in 0..2 {
            let error: [&dyn AsFd; 1] = [&front.errors[queue as usize]];
            front.send(R::SET_VRING_ERR, &u64::from(queue).to_ne_bytes(), &error);
            assert_eq!(front.ask(R::SET_VRING_ENABLE, &state(queue, 1), &[]), 0);
        }
        front.start_device();
        front.switch.events();
        front
    }

    /// The guest's driver sets its queues up anew.
    pub(super) fn reset_queues(&mut self) {
        let count = self.calls.len() as u64;
        self.queues = (0..count)
            .map(|index| Queue::starting_at(&self.guest, QUEUES_AT + index * 0x4000, QUEUE_SIZE, 0))
            .collect();
    }

    pub(super) fn send_raw(&self, bytes: &[u8], fds: &[&dyn AsFd]) -> rustix::io::Result<usize> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    }

    /// A request that asks for no answer.
    pub(super) fn send(&self, request: R, body: &[u8], fds: &[&dyn AsFd]) {
        self.send_raw(&message(request as u32, 1, body), fds)
            .unwrap();
    }

    pub(super) fn receive(&self, request: R) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (request as u32, 5));
        let mut body = vec![0; word(8) as usize];
        (&self.stream).read_exact(&mut body).unwrap();
        body
    }

    /// A request whose answer says how it went: 0 is well.
    pub(super) fn ask(&self, request: R, body: &[u8], fds: &[&dyn AsFd]) -> u64 {
        self.send_raw(&message(request as u32, 9, body), fds)
            .unwrap();
        u64::from_ne_bytes(self.receive(request).try_into().unwrap())
    }

    pub(super) fn get(&self, request: R) -> u64 {
        self.send(request, &[], &[]);
        u64::from_ne_bytes(self.receive(request).try_into().unwrap())
    }

    pub(super) fn get_base(&self, queue: u32) -> u32 {
        self.send(R::GET_VRING_BASE, &state(queue, 0), &[]);
        let body = self.receive(R::GET_VRING_BASE);
        assert_eq!(body[..4], queue.to_ne_bytes());
        u32::from_ne_bytes(body[4..].try_into().unwrap())
    }

    /// Everything sent so far has been dealt with.
    pub(super) fn sync(&self) {
        self.get(R::GET_FEATURES);
    }

    /// From SET_FEATURES to running queues, as at DRIVER_OK.
    pub(super) fn start_device(&mut self) {
        self.send(R::SET_FEATURES, &self.features.to_ne_bytes(), &[]);
        let spec = self.guest.spec(0, self.guest.size);
        if features::has(self.protocol, features::PROTOCOL_REPLY_ACK) {
            assert_eq!(
                self.ask(R::ADD_MEM_REG, &region(&spec, 0), &[&self.guest.file]),
                0
            );
        } else {
            self.send(R::SET_MEM_TABLE, &table(&[spec]), &[&self.guest.file]);
        }
        for queue in 0..self.queues.len() as u32 {
            self.start_queue(queue, 0);
        }
        self.sync();
    }

    pub(super) fn start_queue(&self, queue: u32, base: u32) {
        let index = queue as usize;
        self.send(R::SET_VRING_NUM, &state(queue, u32::from(QUEUE_SIZE)), &[]);
        self.send(R::SET_VRING_BASE, &state(queue, base), &[]);
        self.send(
            R::SET_VRING_ADDR,
            &addresses(queue, &self.queues[index]),
            &[],
        );
        self.send(
            R::SET_VRING_KICK,
            &u64::from(queue).to_ne_bytes(),
            &[&self.kicks[index]],
        );
        self.send(
            R::SET_VRING_CALL,
            &u64::from(queue).to_ne_bytes(),
            &[&self.calls[index]],
        );
    }

    pub(super) fn shutdown_of_switch(&self) {
        self.switch_end.shutdown(Shutdown::Both).unwrap();
    }

    /// Closes the connection and looks at what is left.
    pub(super) fn leave(self) -> Happened {
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.ended()
    }

    /// The session ended by itself, or will.
    pub(super) fn ended(self) -> Happened {
        let end = self.session.join().unwrap();
        Happened {
            end,
            attached: self.switch.attached(),
            events: self.switch.events(),
        }
    }
}

/// From the first message to protocol features, as QEMU does it.
pub(super) fn hello(front: &mut Front) {
    front.features = front.get(R::GET_FEATURES);
    assert!(features::has(
        front.features,
        features::VHOST_PROTOCOL_FEATURES
    ));
    front.protocol = front.get(R::GET_PROTOCOL_FEATURES) & !mask(63);
    front.send(R::SET_PROTOCOL_FEATURES, &front.protocol.to_ne_bytes(), &[]);
    assert_eq!(front.get(R::GET_QUEUE_NUM), front.calls.len() as u64 / 2);
    front.get(R::GET_MAX_MEM_SLOTS);
    front.send(R::SET_OWNER, &[], &[]);
    // A VMM leaves packed rings out unless it is told otherwise.
    front.features = front.get(R::GET_FEATURES) & !mask(features::RING_PACKED);
}

pub(super) fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [code, flags, body.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(body);
    bytes
}

pub(super) fn state(queue: u32, value: u32) -> Vec<u8> {
    [queue.to_ne_bytes(), value.to_ne_bytes()].concat()
}

pub(super) fn addresses(queue: u32, at: &Queue) -> Vec<u8> {
    places(queue, at.addresses())
}

pub(super) fn places(queue: u32, places: RingAddresses) -> Vec<u8> {
    let mut bytes = state(queue, 0);
    for addr in [places.descriptors.0, places.used.0, places.available.0, 0] {
        bytes.extend(addr.to_ne_bytes());
    }
    bytes
}

fn region_body(spec: &RegionSpec, shift: u64) -> Vec<u8> {
    [
        spec.guest.0.wrapping_add(shift),
        spec.size,
        spec.user.0.wrapping_add(shift),
        spec.offset,
    ]
    .iter()
    .flat_map(|word| word.to_ne_bytes())
    .collect()
}

/// A region for ADD_MEM_REG and REM_MEM_REG, its addresses moved up by `shift`.
pub(super) fn region(spec: &RegionSpec, shift: u64) -> Vec<u8> {
    [&[0; 8][..], &region_body(spec, shift)].concat()
}

pub(super) fn table(specs: &[RegionSpec]) -> Vec<u8> {
    let mut bytes = state(specs.len() as u32, 0);
    for spec in specs {
        bytes.extend(region_body(spec, 0));
    }
    bytes
}

/// An address no region has, for front-ends that lie.
pub(super) const NOWHERE: u64 = USER / 2;
