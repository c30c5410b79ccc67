//! A switch of a few ports in this process, with simulated guests on real sessions; the test is its worker.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswitch::forward::counters::{PortCounters, Totals};
use vswitch::forward::deliver::Context;
use vswitch::forward::fdb::{CoarseSecond, FdbWriter};
use vswitch::forward::learn::{self, LearnMailbox};
use vswitch::forward::snapshot::{BridgeSpec, Coalesce, GuestQueues, PortSpec};
use vswitch::forward::steer::Steered;
use vswitch::forward::vlan::VlanRule;
use vswitch::forward::{BURST, BridgeIndex, Forwarder, Output, PortIndex, PortRef, Snapshot, Vid};
use vswitch::mailbox::Mailbox;
use vswitch_flowtable::Micros;
use vswitch_packet::{Accepts, MacAddr};
use vswitch_simguest::SimGuest;
use vswitch_simguest::driver::RxOptions;
use vswitch_vhost::features::{Switches, offered};
use vswitch_vhost::{
    QueuePair, Rings, RxRing, SessionConfig, SessionEnd, SessionEvent, TxRing, TxScratch,
};

use crate::burst::Burst;
use crate::counting::calls;

/// The address of a port's guest.
pub(crate) fn mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

/// Where sessions put transmit rings, and where the test takes from.
type Place = Arc<Mutex<Option<TxRing>>>;

/// The switch's side of a session.
struct Link {
    tx: Place,
    queues: Arc<GuestQueues>,
}

impl Rings for Link {
    fn attach_tx(&mut self, pair: QueuePair, ring: TxRing) {
        if pair == QueuePair(0) {
            *self.tx.lock() = Some(ring);
        }
    }

    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing> {
        let mut place = self.tx.lock();
        place.take_if(|_| pair == QueuePair(0))
    }

    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing) {
        self.queues.replace(pair.0, Some(ring));
    }

    fn detach_rx(&mut self, pair: QueuePair) -> Option<RxRing> {
        self.queues.replace(pair.0, None)
    }

    fn event(&mut self, _event: SessionEvent) {}
}

/// A port as a test wants it.
pub(crate) struct Wanted {
    pub(crate) vlan: VlanRule,
    pub(crate) pairs: u16,
    /// How its guest is, or that there is none.
    pub(crate) guest: Option<Kind>,
}

/// A guest as a test wants it.
#[derive(Clone)]
pub(crate) struct Kind {
    /// Features beyond the usual ones, and of those the ones it lacks.
    pub(crate) with: u64,
    pub(crate) without: u64,
    pub(crate) rx: RxOptions,
}

struct Port {
    queues: Arc<GuestQueues>,
    tx: Place,
    guest: Option<SimGuest>,
    session: Option<JoinHandle<SessionEnd>>,
    counters: Arc<[Arc<PortCounters>]>,
}

/// The switch.
pub(crate) struct World {
    ports: Vec<Port>,
    snapshot: Snapshot,
    forwarder: Forwarder,
    scratch: TxScratch,
    learn: Arc<LearnMailbox>,
    /// The receive ring that was put away.
    away: Option<RxRing>,
    now: Micros,
}

impl World {
    /// Ports on one bridge, whose guests' addresses are known in every VLAN named; `layout` is a feature of all guests.
    pub(crate) fn new(wanted: Vec<Wanted>, vids: &[u16], layout: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut fdb = FdbWriter::new(1024, [1, 2]);
        let (mut ports, mut specs) = (Vec::new(), Vec::new());
        for (index, wanted) in (0u8..).zip(wanted) {
            let at = PortRef {
                index: PortIndex(index.into()),
                incarnation: 1,
            };
            for vid in vids {
                fdb.insert(Vid(*vid), MacAddr(mac(index)), at, CoarseSecond(1), true);
            }
            let queues = Arc::new(GuestQueues::new(wanted.pairs, [7; 16]));
            let counters: Arc<[Arc<PortCounters>]> = Arc::new([Arc::default()]);
            specs.push(Some(PortSpec {
                at,
                name: format!("port{index}").into(),
                bridge: BridgeIndex(0),
                vlan: wanted.vlan,
                learning: true,
                admin_up: true,
                // All of them: what is taken is what the guest negotiated.
                offloads: Accepts {
                    csum: true,
                    tso4: true,
                    tso6: true,
                    ecn: true,
                },
                coalesce: Coalesce::default(),
                output: Output::Guest(Arc::clone(&queues)),
                counters: Arc::clone(&counters),
            }));
            let tx = Place::default();
            let mut port = Port {
                queues: Arc::clone(&queues),
                tx: Arc::clone(&tx),
                guest: None,
                session: None,
                counters,
            };
            if let Some(kind) = wanted.guest {
                let path = dir.path().join(format!("{index}.sock"));
                let listener = UnixListener::bind(&path).unwrap();
                let link = Link { tx, queues };
                port.session = Some(serve(listener, link, wanted.pairs));
                let builder = SimGuest::connect_to(path)
                    .pairs(wanted.pairs)
                    .with(kind.with | layout)
                    .without(kind.without)
                    .rx_options(kind.rx);
                port.guest = Some(builder.start().unwrap());
            }
            ports.push(port);
        }
        let bridge = BridgeSpec {
            mtu: 1500,
            fdb: fdb.table(),
        };
        let snapshot = Snapshot::new(specs, vec![Some(bridge)], None);
        let learn = Arc::new(Mailbox::new(learn::QUEUE).unwrap());
        let mut forwarder = Forwarder::new(0, Arc::clone(&learn));
        forwarder.adopt(&snapshot);
        let world = World {
            ports,
            snapshot,
            forwarder,
            scratch: TxScratch::new(),
            learn,
            away: None,
            now: Micros(1),
        };
        world.wait_up();
        world
    }

    fn wait_up(&self) {
        let start = Instant::now();
        let up = |port: &Port| port.guest.is_none() || port.tx.lock().is_some();
        while !self.ports.iter().all(up) {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }

    pub(crate) fn guest(&mut self, port: u8) -> &mut SimGuest {
        self.ports[usize::from(port)].guest.as_mut().unwrap()
    }

    /// What a port has counted.
    pub(crate) fn totals(&self, port: u8) -> Totals {
        Totals::of(self.ports[usize::from(port)].counters.iter())
    }

    /// Takes a guest's last pair out of use, as its session would, or puts it back.
    pub(crate) fn put_away(&mut self, port: u8) {
        let queues = &self.ports[usize::from(port)].queues;
        let last = queues.pairs() - 1;
        self.away = match self.away.take() {
            None => queues.replace(last, None),
            ring => queues.replace(last, ring),
        };
    }

    /// How flows to a port's guest are steered.
    pub(crate) fn steered(&self, port: u8) -> Steered {
        self.ports[usize::from(port)].queues.steering().steered()
    }

    /// So much later.
    pub(crate) fn pass(&mut self, micros: u64) {
        self.now = self.now.after(micros);
    }

    /// What a worker does in a turn with one queue, as if it were that of `pair`; says how often it called the allocator, and how many frames it took.
    pub(crate) fn turn_of(&mut self, from: u8, pair: u16, max: usize) -> (u64, usize) {
        let place = Arc::clone(&self.ports[usize::from(from)].tx);
        let mut place = place.lock();
        let ring = place.as_mut().unwrap();
        let mut taken = 0;
        let calls = calls(|| {
            let ingress = self.snapshot.port(PortIndex(from.into())).unwrap();
            if let Ok(burst) = ring.take(&mut self.scratch, max.min(BURST)) {
                taken = burst.len();
                let context = Context {
                    snapshot: &self.snapshot,
                    ingress,
                    now: CoarseSecond(1),
                    micros: self.now,
                    nanos: self.now.0 * 1000,
                    drained: burst.drained(),
                    pair: Some(pair),
                    discard: None,
                };
                self.forwarder.forward(context, &Burst(burst));
            }
            ring.complete();
            ring.signal().unwrap();
            ring.arm();
            ring.disarm();
        });
        (calls, taken)
    }

    /// The same of the first pair.
    pub(crate) fn turn(&mut self, from: u8, max: usize) -> (u64, usize) {
        self.turn_of(from, 0, max)
    }

    /// Receives everything everywhere, and forgets what was learnt.
    pub(crate) fn empty(&mut self) {
        for port in &mut self.ports {
            let Some(guest) = &mut port.guest else {
                continue;
            };
            let mut pair = 0;
            while let Ok(queue) = guest.queue(pair) {
                while queue.rx.recv_burst(64, |_| {}).unwrap() > 0 {}
                queue.tx.reclaim().unwrap();
                pair += 1;
            }
        }
        self.learn.drain().for_each(drop);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for port in &mut self.ports {
            port.guest = None;
            if let Some(session) = port.session.take() {
                let ended = session.join();
                assert!(ended.is_ok() || std::thread::panicking());
            }
        }
    }
}

/// A session that waits for its front-end.
fn serve(listener: UnixListener, mut link: Link, pairs: u16) -> JoinHandle<SessionEnd> {
    let config = SessionConfig {
        queue_pairs: pairs,
        ring_size_max: 1024,
        features: offered(Switches {
            multiqueue: pairs > 1,
            ..Switches::default()
        }),
        mtu: None,
    };
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        vswitch_vhost::serve(stream, &config, &mut link)
    })
}
