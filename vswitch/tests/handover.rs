//! Four workers to five and back, and queues from one to the next, while guests exchange traffic: no frame is lost, none
//! is late. Sessions, rings, workers and the registry are the real ones; only the daemon around them is not there.
//!
//! `VSWITCH_FRAMES=100000000` makes the proof as long as that.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
use vswitch_simguest::traffic::{Generator, Meter, Pattern};
use vswitch_simguest::{QueuePair as Queues, SimGuest};
use vswitch_vhost::features::{Switches, offered};
use vswitch_vhost::{QueuePair, Rings, RxRing, SessionConfig, SessionEnd, SessionEvent, TxRing};

/// Pairs of guests that exchange traffic, one sending to the other.
const PAIRS: u8 = 3;
/// Frames on the way at most, per pair: far fewer than fit a ring.
const WINDOW: u64 = 64;
/// Changes of the list of workers at least.
const CHANGES: u64 = 60;
/// More than anything here may take, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Workers at most.
const WORKERS: usize = 5;

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

struct World {
    workers: Arc<Workers>,
    guests: Vec<SimGuest>,
    sessions: Vec<JoinHandle<SessionEnd>>,
    counters: Vec<Arc<[Arc<PortCounters>]>>,
    _dir: tempfile::TempDir,
}

fn mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

fn at(port: u8) -> PortRef {
    PortRef {
        index: PortIndex(port.into()),
        incarnation: 1,
    }
}

/// `count` workers on cores of their own, as far as there are so many: those without run where the system puts them.
fn wanted(count: usize) -> Vec<Wanted> {
    let each = |n| Wanted {
        core: n as u32,
        busy_poll: BusyPoll::Never,
        max_sleep: Duration::ZERO,
    };
    (0..count).map(each).collect()
}

impl World {
    fn new(workers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared {
            snapshot: arc_swap::ArcSwap::default(),
            clock: 0.into(),
            learn: Arc::new(Mailbox::new(learn::QUEUE).unwrap()),
            reports: Mailbox::new(16).unwrap(),
            bell: Bell::new().unwrap(),
        });
        let workers = Workers::start(&wanted(workers), &shared).unwrap();
        for worker in workers.list() {
            workers.rest(worker.index, false);
        }
        let mut fdb = FdbWriter::new(1024, [1, 2]);
        let (mut specs, mut links, mut counters) = (Vec::new(), Vec::new(), Vec::new());
        for port in 0..2 * PAIRS {
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
            let builder = SimGuest::connect_to(path).mac(mac(port));
            guests.push(builder.start().unwrap());
        }
        let world = World {
            workers,
            guests,
            sessions,
            counters,
            _dir: dir,
        };
        let started = Instant::now();
        while world.workers.queues().len() < world.guests.len() {
            assert!(started.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        world
    }

    fn totals(&self, port: u8) -> Totals {
        Totals::of(self.counters[usize::from(port)].iter())
    }

    fn end(mut self) {
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
    };
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        vswitch_vhost::serve(stream, &config, &mut link)
    })
}

/// One guest sends to another.
struct Stream {
    tx: Queues,
    rx: Queues,
    generator: Generator,
    meter: Meter,
}

impl Stream {
    fn new(world: &mut World, from: u8, to: u8) -> Self {
        let pattern = Pattern::new(mac(to), mac(from), 60).flows(16);
        let mut tx = world.guests[usize::from(from)].take_queue(0).unwrap();
        Stream {
            generator: Generator::new(pattern.clone(), &mut tx.tx).unwrap(),
            meter: Meter::new(&pattern),
            rx: world.guests[usize::from(to)].take_queue(0).unwrap(),
            tx,
        }
    }

    /// Frames on the way.
    fn away(&self) -> u64 {
        self.generator.sent() - self.meter.tally().frames
    }

    /// Takes what has come, and sends as much as may be on the way unless it is the end; true if anything came.
    fn turn(&mut self, ending: bool) -> bool {
        let came = self.meter.burst(&mut self.rx.rx, 64).unwrap();
        let room = WINDOW.saturating_sub(self.away()) as u16;
        if room > 0 && !ending {
            self.generator.burst(&mut self.tx.tx, room.min(32)).unwrap();
        }
        came > 0
    }
}

/// Moves queues and changes the list of workers until it is told to end, [`CHANGES`] times at least; says how often each.
fn disturb(workers: &Workers, end: &AtomicBool) -> (u64, u64) {
    let (mut moves, mut changes) = (0, 0);
    for round in 0u64.. {
        if end.load(Ordering::Relaxed) && changes >= CHANGES {
            break;
        }
        for (n, queue) in (0..).zip(workers.queues()) {
            let to = (round * 7 + n * 3) as usize % 4;
            moves += u64::from(workers.move_queue(queue.key, to) == Ok(true));
        }
        if round % 3 == 0 {
            let count = if workers.list().len() == 4 { 5 } else { 4 };
            let change = workers.prepare(&wanted(count)).unwrap();
            workers.commit(change);
            if count == 5 {
                // The new one gets something to hand over when it goes.
                for queue in workers.queues().iter().step_by(4) {
                    moves += u64::from(workers.move_queue(queue.key, 4) == Ok(true));
                }
            }
            changes += 1;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    (moves, changes)
}

#[test]
fn workers_and_owners_change_and_no_frame_is_late() {
    let wanted = std::env::var("VSWITCH_FRAMES").ok();
    let all: u64 = wanted.map_or(300_000, |n| n.parse().unwrap());
    let most = all / u64::from(PAIRS);
    let mut world = World::new(4);
    let streams = (0..PAIRS).map(|n| (2 * n, 2 * n + 1));
    let streams: Vec<_> = streams.collect();
    let mut streams: Vec<_> = streams
        .into_iter()
        .map(|(from, to)| Stream::new(&mut world, from, to))
        .collect();
    let end = Arc::new(AtomicBool::new(false));
    let (workers, ended) = (Arc::clone(&world.workers), Arc::clone(&end));
    let disturbing = std::thread::spawn(move || disturb(&workers, &ended));
    let mut progress = Instant::now();
    loop {
        if streams.iter().all(|s| s.meter.tally().frames >= most) {
            end.store(true, Ordering::Relaxed);
        }
        let ending = disturbing.is_finished();
        if ending && streams.iter().all(|s| s.away() == 0) {
            break;
        }
        let mut came = false;
        for stream in &mut streams {
            came |= stream.turn(ending);
        }
        if came {
            progress = Instant::now();
        } else {
            let tallies: Vec<_> = streams.iter().map(|s| s.meter.tally()).collect();
            assert!(
                progress.elapsed() < PATIENCE,
                "frames are lost: {tallies:?}"
            );
            std::thread::yield_now();
        }
    }
    let (moves, changes) = disturbing.join().unwrap();
    println!("{all} frames, {moves} moves, {changes} changes of the list");
    assert!(
        moves > 100 && changes > 20,
        "{moves} moves, {changes} changes"
    );
    for (n, stream) in (0..).zip(&streams) {
        let tally = stream.meter.tally();
        let sent = stream.generator.sent();
        assert_eq!(
            (tally.frames, tally.late, tally.missing, tally.alien),
            (sent, 0, 0, 0)
        );
        let (from, to) = (world.totals(2 * n), world.totals(2 * n + 1));
        assert_eq!((from.received, to.delivered), (sent, sent));
    }
    drop(streams);
    world.end();
}
