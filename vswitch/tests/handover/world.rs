//! Guests on sessions, the workers that serve them, and a bridge that knows where everybody is; no daemon.

use std::fmt::Write;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vswitch::forward::counters::{PortCounters, Totals};
use vswitch::forward::fdb::{CoarseSecond, FdbWriter};
use vswitch::forward::learn;
use vswitch::forward::snapshot::{BridgeSpec, Coalesce, GuestQueues, PortSpec};
use vswitch::forward::vlan::VlanRule;
use vswitch::forward::{BridgeIndex, Output, PortIndex, PortRef, Snapshot, Vid};
use vswitch::mailbox::Mailbox;
use vswitch::worker::bell::Bell;
use vswitch::worker::registry::Wanted;
use vswitch::worker::{BusyPoll, Input, QueueKey, Shared, Workers};
use vswitch_packet::{Accepts, MacAddr};
use vswitch_simguest::driver::RingParts;
use vswitch_simguest::traffic::{Generator, Meter, Pattern};
use vswitch_simguest::{Builder, QueuePair as Queues, SimGuest};
use vswitch_vhost::features::{Switches, offered};
use vswitch_vhost::{
    Custody, MemoryFiles, QueuePair, Rings, RxRing, SessionConfig, SessionEnd, SessionEvent, TxRing,
};

use crate::patience::Patience;

/// Workers at most.
pub(crate) const WORKERS: usize = 5;

/// The switch's side of a session.
struct Link {
    at: PortRef,
    queues: Arc<GuestQueues>,
    workers: Arc<Workers>,
}

impl Link {
    fn key(&self, pair: QueuePair) -> QueueKey {
        QueueKey {
            port: self.at,
            queue: pair.0,
        }
    }
}

impl Rings for Link {
    fn attach_tx(&mut self, pair: QueuePair, ring: TxRing) {
        let input = Input::Guest(Box::new(ring));
        self.workers.attach(self.key(pair), input, None);
    }

    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing> {
        self.workers.detach_ring(self.key(pair))
    }

    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing) {
        self.queues.replace(pair.0, Some(ring));
    }

    fn detach_rx(&mut self, pair: QueuePair) -> Option<RxRing> {
        self.queues.replace(pair.0, None)
    }

    fn event(&mut self, _event: SessionEvent) {}
}

/// See the module's page.
pub(crate) struct World {
    pub(crate) workers: Arc<Workers>,
    pub(crate) guests: Vec<SimGuest>,
    sessions: Vec<JoinHandle<SessionEnd>>,
    counters: Vec<Arc<[Arc<PortCounters>]>>,
    _dir: tempfile::TempDir,
}

fn mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

pub(crate) fn at(port: u8) -> PortRef {
    PortRef {
        index: PortIndex(port.into()),
        incarnation: 1,
    }
}

/// `count` workers on cores of their own, as far as there are so many: those without run where the system puts them.
pub(crate) fn wanted(count: usize, busy_poll: BusyPoll, max_sleep: Duration) -> Vec<Wanted> {
    let each = |n| Wanted {
        core: n as u32,
        busy_poll,
        max_sleep,
    };
    (0..count).map(each).collect()
}

impl World {
    /// With these workers, all of them in use, and so many guests as `habit` makes them of what they are by default.
    pub(crate) fn new(
        wanted: &[Wanted],
        guests: u8,
        habit: impl Fn(u8, Builder) -> Builder,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared {
            snapshot: arc_swap::ArcSwap::default(),
            clock: 0.into(),
            learn: Arc::new(Mailbox::new(learn::QUEUE).unwrap()),
            reports: Mailbox::new(16).unwrap(),
            bell: Bell::new().unwrap(),
        });
        let workers = Workers::start(wanted, &shared).unwrap();
        for worker in workers.list() {
            workers.rest(worker.index, false);
        }
        let mut fdb = FdbWriter::new(1024, [1, 2]);
        let (mut specs, mut links, mut counters) = (Vec::new(), Vec::new(), Vec::new());
        for port in 0..guests {
            fdb.insert(Vid(0), MacAddr(mac(port)), at(port), CoarseSecond(1), true);
            let queues = Arc::new(GuestQueues::new(1, [7; 16]));
            let blocks: Arc<[Arc<PortCounters>]> = (0..WORKERS).map(|_| Arc::default()).collect();
            counters.push(Arc::clone(&blocks));
            specs.push(Some(PortSpec {
                at: at(port),
                name: format!("port{port}").into(),
                bridge: BridgeIndex(0),
                vlan: VlanRule::untagged(),
                learning: false,
                admin_up: true,
                offloads: Accepts::default(),
                coalesce: Coalesce::default(),
                output: Output::Guest(Arc::clone(&queues)),
                counters: blocks,
            }));
            links.push(Link {
                at: at(port),
                queues,
                workers: Arc::clone(&workers),
            });
        }
        let fdb = fdb.table();
        let bridge = BridgeSpec { mtu: 1500, fdb };
        let snapshot = Snapshot::new(specs, vec![Some(bridge)], None);
        shared.snapshot.store(Arc::new(snapshot));
        let (mut guests, mut sessions) = (Vec::new(), Vec::new());
        for (port, link) in (0u8..).zip(links) {
            let path = dir.path().join(format!("{port}.sock"));
            sessions.push(serve(UnixListener::bind(&path).unwrap(), link));
            let builder = SimGuest::connect_to(path)
                .mac(mac(port))
                .timeout(Duration::from_secs(60));
            guests.push(habit(port, builder).start().unwrap());
        }
        let world = World {
            workers,
            guests,
            sessions,
            counters,
            _dir: dir,
        };
        let mut patience = Patience::new();
        while world.workers.queues().len() < world.guests.len() {
            assert!(!patience.is_over(), "no queue: {}", patience.report());
            std::thread::yield_now();
        }
        world
    }

    pub(crate) fn totals(&self, port: u8) -> Totals {
        Totals::of(self.counters[usize::from(port)].iter())
    }

    pub(crate) fn end(mut self) {
        self.guests.clear();
        for session in self.sessions.drain(..) {
            session.join().unwrap();
        }
        assert!(self.workers.queues().is_empty(), "a ring was left behind");
        self.workers.stop();
    }
}

fn serve(listener: UnixListener, mut link: Link) -> JoinHandle<SessionEnd> {
    let config = SessionConfig {
        queue_pairs: 1,
        ring_size_max: 1024,
        features: offered(Switches::default()),
        mtu: None,
        memory_files: MemoryFiles::Local,
    };
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        vswitch_vhost::serve(stream, &config, &Custody::default(), &mut link)
    })
}

/// One guest sends to another.
pub(crate) struct Stream {
    from: u8,
    tx: Queues,
    rx: Queues,
    pub(crate) generator: Generator,
    pub(crate) meter: Meter,
}

impl Stream {
    pub(crate) fn new(world: &mut World, from: u8, to: u8) -> Self {
        let pattern = Pattern::new(mac(to), mac(from), 60).flows(16);
        let mut tx = world.guests[usize::from(from)].take_queue(0).unwrap();
        Stream {
            from,
            generator: Generator::new(pattern.clone(), &mut tx.tx).unwrap(),
            meter: Meter::new(&pattern),
            rx: world.guests[usize::from(to)].take_queue(0).unwrap(),
            tx,
        }
    }

    /// Frames on the way.
    pub(crate) fn away(&self) -> u64 {
        self.generator.sent() - self.meter.tally().frames
    }

    /// Takes what has come; true if anything has.
    pub(crate) fn take(&mut self) -> bool {
        self.meter.burst(&mut self.rx.rx, 64).unwrap() > 0
    }

    /// Sends so many frames, if there is room for them.
    pub(crate) fn send(&mut self, frames: u16) {
        self.generator.burst(&mut self.tx.tx, frames).unwrap();
    }

    /// Who has the queue, what its ring says, and what the workers do.
    pub(crate) fn report(&self, workers: &Workers) -> String {
        let (ring, stats) = (self.tx.tx.ring(), self.tx.tx.counters().read());
        let tally = self.meter.tally();
        let mut report = format!(
            "guest {}: {} frames sent, {tally:?}; {} chains with the switch; {} kicks, {} not wanted; ring: {}\n",
            self.from,
            self.generator.sent(),
            ring.chains(),
            stats.kicks,
            stats.kicks_saved,
            words(ring.parts(), ring.as_packed().is_some())
        );
        for queue in workers.queues() {
            let mark = if queue.key.port == at(self.from) {
                "->"
            } else {
                "  "
            };
            let _ = writeln!(
                report,
                "{mark} {:?} at worker {}, helped by {:?}, {} frames taken",
                queue.key.port.index,
                queue.owner,
                queue.helper.map(|helper| helper.worker),
                queue.vitals.frames()
            );
        }
        for worker in workers.list() {
            let pulse = worker.vitals.read();
            let _ = writeln!(report, "   worker {}: {pulse:?}", worker.index);
        }
        report
    }
}

/// What a ring's shared words say.
fn words(parts: &RingParts, is_packed: bool) -> String {
    if is_packed {
        return format!(
            "the switch asks for kicks at {:#06x}, in manner {}",
            parts.used_flags(),
            parts.used_idx()
        );
    }
    format!(
        "{} offered, {} used, the switch asks for a kick at {}, flags {}",
        parts.avail_idx(),
        parts.used_idx(),
        parts.avail_event(),
        parts.used_flags()
    )
}
