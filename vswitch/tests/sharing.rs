//! A queue that gets a helper, loses it, moves and leaves while frames pass: nothing is lost unnamed or reordered, nobody
//! waits for a call that was held back, and who has nothing to do sleeps.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::event::{PollFd, PollFlags, Timespec};
use vswitch::forward::counters::{PortCounters, Totals};
use vswitch::forward::fdb::{CoarseSecond, FdbWriter};
use vswitch::forward::learn::{self, LearnMailbox};
use vswitch::forward::snapshot::{BridgeSpec, Coalesce, GuestQueues, Output, PortSpec};
use vswitch::forward::vlan::VlanRule;
use vswitch::forward::{BridgeIndex, PortIndex, PortRef, Snapshot, Vid};
use vswitch::mailbox::Mailbox;
use vswitch::worker::bell::{Bell, Ears};
use vswitch::worker::registry::Wanted;
use vswitch::worker::registry::sharing::ShareError;
use vswitch::worker::steward::trace::What;
use vswitch::worker::steward::{Duties, Steward};
use vswitch::worker::{BusyPoll, Input, QueueKey, Shared, Workers};
use vswitch_coalesce::{Policy, Settings};
use vswitch_packet::{Accepts, MacAddr};
use vswitch_simguest::driver::{Notifier, Ring, RxOptions, RxQueue, TxOptions, TxQueue};
use vswitch_simguest::memory::{Layout, Memory};
use vswitch_simguest::traffic::{Generator, Meter, Pattern};
use vswitch_vhost::memory::{GuestAddr, GuestMemory, Region, RegionSpec, UserAddr};
use vswitch_vhost::{QueuePair, RxRing, Standalone, TxRing, features};

/// More than anything here may take, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first sends to all others.
const GUESTS: usize = 4;
const WORKERS: usize = 2;
const FLOWS: u32 = 24;
const LEN: usize = 1400;
const FEATURES: u64 = features::mask(features::VERSION_1);

struct Guest {
    tx: TxQueue,
    rx: RxQueue,
    transmit: Option<TxRing>,
    receive: Option<RxRing>,
}

impl Guest {
    fn new() -> Self {
        let memory = Memory::new(&Layout::single(8 << 20)).unwrap();
        // Long enough that it does not run dry at once when the sender has to wait for its processor.
        let tx = TxOptions {
            size: 1024,
            buffer: 2048,
            ..TxOptions::default()
        };
        let rx = RxOptions {
            size: 256,
            ..RxOptions::default()
        };
        let notifier = || Notifier::new().unwrap();
        let tx = TxQueue::new(&memory, notifier(), FEATURES, &tx).unwrap();
        let rx = RxQueue::new(&memory, notifier(), FEATURES, &rx).unwrap();
        let mut table = GuestMemory::empty();
        for region in memory.regions() {
            let spec = RegionSpec {
                guest: GuestAddr(region.guest()),
                size: region.size(),
                user: UserAddr(region.user()),
                offset: region.file_offset(),
            };
            let mapped = Region::map(spec, region.fd()).unwrap();
            table = table.with(Arc::new(mapped)).unwrap();
        }
        let table = Arc::new(table);
        let standalone = |ring: &Ring, notifier: &Notifier| {
            let call = notifier.call_fd().try_clone_to_owned().unwrap();
            let at = ring.parts().addresses();
            Standalone {
                pair: QueuePair(0),
                memory: Arc::clone(&table),
                descriptors: UserAddr(at.desc),
                available: UserAddr(at.avail),
                used: UserAddr(at.used),
                size: ring.size(),
                features: FEATURES,
                call: Some(Arc::new(call)),
            }
        };
        let transmit = TxRing::standalone(&standalone(tx.ring(), tx.notifier())).unwrap();
        let receive = RxRing::standalone(&standalone(rx.ring(), rx.notifier())).unwrap();
        Guest {
            tx,
            rx,
            transmit: Some(transmit),
            receive: Some(receive),
        }
    }
}

fn at(port: usize) -> PortRef {
    PortRef {
        index: PortIndex(port as u16),
        incarnation: 0,
    }
}

fn mac(port: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, port as u8]
}

/// A bridge with the guests on it, all of whose addresses are known.
struct Bridge {
    shared: Arc<Shared>,
    queues: Vec<Arc<GuestQueues>>,
    /// The same without the first guest's port.
    without_first: Arc<Snapshot>,
}

impl Bridge {
    fn new(guests: &mut [Guest], coalesce: Coalesce) -> Self {
        let mut fdb = FdbWriter::new(1024, [1, 2]);
        let queues = |guest: &mut Guest| {
            let queues = GuestQueues::new(1, [7; 16]);
            queues.replace(0, guest.receive.take());
            Arc::new(queues)
        };
        let queues: Vec<_> = guests.iter_mut().map(queues).collect();
        let blocks = || (0..WORKERS).map(|_| Arc::default()).collect();
        let counters: Vec<Arc<[Arc<PortCounters>]>> = queues.iter().map(|_| blocks()).collect();
        for port in 0..guests.len() {
            fdb.insert(Vid(0), MacAddr(mac(port)), at(port), CoarseSecond(0), false);
        }
        let snapshot = |from: usize| {
            let ports = queues.iter().zip(&counters).enumerate();
            let spec = |(port, (queues, counters)): (usize, (&Arc<GuestQueues>, _))| {
                let spec = PortSpec {
                    at: at(port),
                    name: format!("guest{port}").into(),
                    bridge: BridgeIndex(0),
                    vlan: VlanRule::untagged(),
                    learning: true,
                    admin_up: true,
                    offloads: Accepts::default(),
                    coalesce,
                    output: Output::Guest(Arc::clone(queues)),
                    counters: Arc::clone(counters),
                };
                (port >= from).then_some(spec)
            };
            let bridge = BridgeSpec {
                mtu: 1500,
                fdb: fdb.table(),
            };
            Snapshot::new(ports.map(spec).collect(), vec![Some(bridge)], None)
        };
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot(0)),
            clock: AtomicU32::new(0),
            learn: Arc::new(LearnMailbox::new(learn::QUEUE).unwrap()),
            reports: Mailbox::new(16).unwrap(),
            bell: Bell::new().unwrap(),
        });
        let without_first = Arc::new(snapshot(1));
        Bridge {
            shared,
            queues,
            without_first,
        }
    }
}

fn totals(shared: &Shared) -> Totals {
    let mut all = Totals::default();
    if let Some(bridge) = shared.snapshot.load().bridge(BridgeIndex(0)) {
        for port in &bridge.members {
            let of_port = Totals::of(port.counters.iter());
            all.received += of_port.received;
            all.delivered += of_port.delivered;
            for (sum, drops) in all.output_drops.iter_mut().zip(of_port.output_drops) {
                *sum += drops;
            }
        }
    }
    all
}

/// Waits until something holds that is not far away where nobody else wants the processors.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

/// Two workers, and the first guest's ring with one of them.
struct World {
    bridge: Bridge,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    key: QueueKey,
    owner: usize,
    other: usize,
}

impl World {
    fn new(guests: &mut [Guest], coalesce: Coalesce, busy_poll: BusyPoll) -> Self {
        let bridge = Bridge::new(guests, coalesce);
        let shared = Arc::clone(&bridge.shared);
        let wanted = [0, 1].map(|core| Wanted {
            core,
            busy_poll,
            max_sleep: Duration::ZERO,
        });
        let workers = Workers::start(&wanted, &shared).unwrap();
        let key = QueueKey {
            port: at(0),
            queue: 0,
        };
        let ring = Input::Guest(Box::new(guests[0].transmit.take().unwrap()));
        let owner = workers.attach(key, ring, None).unwrap();
        World {
            bridge,
            shared,
            workers,
            key,
            owner,
            other: 1 - owner,
        }
    }

    /// Frames that a worker has taken of the first guest's.
    fn taken(&self, worker: usize) -> u64 {
        self.workers.received(self.key, worker).0
    }

    /// Frames that a worker has delivered to the others.
    fn delivered(&self, worker: usize) -> u64 {
        let snapshot = self.shared.snapshot.load();
        let ports = (1..GUESTS).filter_map(|port| snapshot.live(at(port)));
        let delivered = ports.map(|port| port.counters[worker].delivered.get());
        delivered.sum()
    }

    fn share(&self) {
        assert_eq!(self.workers.share(self.key, self.other), Ok(()));
        soon("the helper has outputs", || {
            let helper = self.workers.queues()[0].helper;
            helper.is_some_and(|helper| helper.worker == self.other && helper.outputs > 0)
        });
        let before = self.delivered(self.other);
        soon("the helper delivers", || {
            self.delivered(self.other) > before + 1000
        });
    }

    fn is_asleep(&self) -> bool {
        self.workers.list().iter().all(|w| w.vitals.read().asleep)
    }
}

/// Frames from the first guest to all others, by turns.
fn pattern() -> Pattern {
    let mut pattern = Pattern::new(mac(1), mac(0), LEN).flows(FLOWS);
    pattern.dsts = GUESTS as u32 - 1;
    pattern
}

/// Sends as much as fits until it is over; says how much.
fn flood(generator: &mut Generator, tx: &mut TxQueue, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if tx.has_room(16).unwrap() {
            generator.burst(tx, 16).unwrap();
        } else {
            std::thread::yield_now();
        }
    }
}

/// Receives until it is over and there is nothing more.
fn drain(meter: &mut Meter, rx: &mut RxQueue, over: &AtomicBool) {
    loop {
        // Looked at before the ring, or the last frames would be missed.
        let was_over = over.load(Ordering::Acquire);
        if meter.burst(rx, 64).unwrap() == 0 {
            if was_over {
                return;
            }
            // There are more threads than processors, and the workers are to have those.
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// Has traffic pass while `then` runs.
fn under_load(
    generator: &mut Generator,
    tx: &mut TxQueue,
    receivers: &mut [(RxQueue, Meter)],
    then: impl FnOnce(),
) {
    let (over, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            flood(generator, tx, &over);
            // Everything is with its receivers, or counted, once the ring has drained.
            assert!(tx.drain(PATIENCE).unwrap());
            ended.store(true, Ordering::Release);
        });
        for (rx, meter) in receivers {
            scope.spawn(|| drain(meter, rx, &ended));
        }
        // Whatever becomes of it, the others are to end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(then));
        over.store(true, Ordering::Relaxed);
        sender.join().unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What is needed to send from the first guest, and to receive at the others.
fn parts(guests: Vec<Guest>) -> (TxQueue, Generator, Vec<(RxQueue, Meter)>, RxQueue) {
    let mut guests = guests.into_iter();
    let Guest { mut tx, rx, .. } = guests.next().unwrap();
    let generator = Generator::new(pattern(), &mut tx).unwrap();
    let receivers = guests.map(|guest| (guest.rx, Meter::new(&pattern())));
    (tx, generator, receivers.collect(), rx)
}

/// Every frame sent was taken, and is at its receiver, in order, or was counted as lost.
fn check_books(world: &World, sent: u64, receivers: &[(RxQueue, Meter)]) {
    let all = totals(&world.shared);
    let dropped: u64 = all.output_drops.iter().sum();
    assert_eq!(all.received, sent);
    assert_eq!(all.received, all.delivered + dropped);
    let arrived = receivers.iter().map(|(_, meter)| meter.tally().frames);
    assert_eq!(arrived.sum::<u64>(), all.delivered);
    for (_, meter) in receivers {
        let tally = meter.tally();
        assert!(
            tally.frames > 100 && tally.late == 0 && tally.alien == 0,
            "{tally:?}"
        );
    }
}

#[test]
fn a_queue_is_shared_and_alone_again_while_frames_pass() {
    let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
    let mut world = World::new(&mut guests, Coalesce::default(), BusyPoll::Adaptive);
    let (mut tx, mut generator, mut receivers, _rx) = parts(guests);
    under_load(&mut generator, &mut tx, &mut receivers, || {
        let workers = Arc::clone(&world.workers);
        let (key, owner, other) = (world.key, world.owner, world.other);
        soon("frames pass", || world.taken(owner) > 1000);
        assert_eq!(workers.share(key, owner), Err(ShareError::NoWorker));
        assert_eq!(workers.share(key, 2), Err(ShareError::NoWorker));
        for _ in 0..5 {
            world.share();
            assert_eq!(workers.share(key, other), Err(ShareError::Engaged));
            assert!(workers.unshare(key) && !workers.unshare(key));
            assert_eq!(workers.queues()[0].helper, None);
        }
        // It moves to its own helper, and back while it is shared again.
        world.share();
        assert_eq!(workers.move_queue(key, other), Ok(true));
        assert_eq!(workers.queues()[0].helper, None);
        soon("frames pass at the other", || world.taken(other) > 1000);
        (world.owner, world.other) = (other, owner);
        world.share();
        assert_eq!(workers.move_queue(key, owner), Ok(true));
        (world.owner, world.other) = (owner, other);
        // It leaves while it is shared: when it is here, all that was taken is at the receivers, or counted.
        world.share();
        let ring = workers.detach_ring(key).unwrap();
        let all = totals(&world.shared);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(totals(&world.shared).received, all.received);
        let dropped: u64 = all.output_drops.iter().sum();
        assert_eq!(all.received, all.delivered + dropped);
        assert!(!workers.unshare(key));
        let ring = Input::Guest(Box::new(ring));
        world.owner = workers.attach(key, ring, None).unwrap();
        world.other = 1 - world.owner;
        world.share();
    });
    check_books(&world, generator.sent(), &receivers);
    world.workers.stop();
}

/// The list of workers changes while a queue is shared: its owner leaves, its helper leaves, both change cores.
#[test]
fn workers_that_share_come_and_go() {
    let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
    let mut world = World::new(&mut guests, Coalesce::default(), BusyPoll::Never);
    let (mut tx, mut generator, mut receivers, _rx) = parts(guests);
    under_load(&mut generator, &mut tx, &mut receivers, || {
        let workers = Arc::clone(&world.workers);
        let on = |core| Wanted {
            core,
            busy_poll: BusyPoll::Never,
            max_sleep: Duration::ZERO,
        };
        let change = |wanted: &[Wanted]| workers.commit(workers.prepare(wanted).unwrap());
        for round in 0..6 {
            world.share();
            let list = workers.list();
            let stays = list.iter().find(|worker| {
                let owner = worker.index == world.owner;
                owner == (round % 2 == 0)
            });
            let core = stays.unwrap().wanted.core;
            change(&[on(core)]);
            assert_eq!(workers.queues()[0].helper, None, "round {round}");
            change(&[on(0), on(1)]);
            world.owner = workers.owner(world.key).unwrap();
            world.other = 1 - world.owner;
            let before = world.taken(world.owner);
            soon("frames pass", || world.taken(world.owner) > before + 1000);
        }
    });
    check_books(&world, generator.sent(), &receivers);
    world.workers.stop();
}

/// Ports leave the switch while bursts for them, or from them, are out.
#[test]
fn ports_leave_while_their_frames_are_out() {
    let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
    let world = World::new(&mut guests, Coalesce::default(), BusyPoll::Adaptive);
    let (mut tx, mut generator, mut receivers, _rx) = parts(guests);
    let before = world.shared.snapshot.load_full();
    let last = &world.bridge.queues[GUESTS - 1];
    under_load(&mut generator, &mut tx, &mut receivers, || {
        for round in 0..20 {
            world.share();
            let ring = match round % 2 {
                0 => {
                    let without = Arc::clone(&world.bridge.without_first);
                    world.shared.snapshot.store(without);
                    None
                }
                _ => last.replace(0, None),
            };
            std::thread::sleep(Duration::from_millis(2));
            if round % 4 < 2 {
                assert!(world.workers.unshare(world.key));
            }
            world.shared.snapshot.store(Arc::clone(&before));
            if ring.is_some() {
                last.replace(0, ring);
            }
            assert_eq!(world.workers.unshare(world.key), round % 4 >= 2);
        }
    });
    check_books(&world, generator.sent(), &receivers);
    world.workers.stop();
}

/// Nobody looks at a ring but who has written it: what the helper holds back it has to remember, also when it would sleep.
#[test]
fn a_call_that_the_helper_holds_back_is_made_in_time() {
    for busy_poll in [BusyPoll::Adaptive, BusyPoll::Never] {
        let hold = Settings::receive(Policy::Static).with_usecs(Some(3_000));
        let coalesce = Coalesce {
            receive: hold,
            ..Coalesce::default()
        };
        let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
        let world = World::new(&mut guests, coalesce, busy_poll);
        let (mut tx, mut generator, mut receivers, _rx) = parts(guests);
        under_load(&mut generator, &mut tx, &mut receivers, || world.share());
        let helped = world.delivered(world.other);
        let mut took = Vec::new();
        for round in 0..50 {
            // A helper is no reason to stay awake.
            soon("both sleep", || world.is_asleep());
            for (rx, _) in &mut receivers {
                assert!(!rx.arm().unwrap(), "nothing is there yet");
                let _ = rustix::io::read(rx.notifier().call_fd(), &mut [0; 8]);
            }
            let sent = Instant::now();
            assert_eq!(generator.burst(&mut tx, 3).unwrap(), 3);
            for (rx, meter) in &mut receivers {
                let mut fds = [PollFd::from_borrowed_fd(
                    rx.notifier().call_fd(),
                    PollFlags::IN,
                )];
                let at_most = Timespec {
                    tv_sec: PATIENCE.as_secs() as i64,
                    tv_nsec: 0,
                };
                let called = rustix::event::poll(&mut fds, Some(&at_most)).unwrap();
                assert_eq!(called, 1, "round {round}: nobody called");
                assert_eq!(meter.burst(rx, 8).unwrap(), 1);
            }
            took.push(sent.elapsed());
            assert!(tx.drain(PATIENCE).unwrap());
        }
        // Others that want the processors delay some of them, but not most.
        took.sort_unstable();
        assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
        assert!(world.delivered(world.other) >= helped + 50);
        check_books(&world, generator.sent(), &receivers);
        world.workers.stop();
    }
}

/// A guest that sends more than a worker can forward gets the help of one that rested, for as long as it does.
#[test]
fn the_steward_has_a_hot_queue_shared_and_takes_it_back() {
    let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
    let world = World::new(&mut guests, Coalesce::default(), BusyPoll::Adaptive);
    let duties = Duties {
        rebalance: true,
        scale: true,
        share: true,
    };
    world.workers.rest(world.other, true);
    let steward = Steward::start(&world.workers, &world.shared, duties).unwrap();
    steward.configure(duties);
    let helper = || world.workers.queues()[0].helper;
    let (mut tx, mut generator, mut receivers, _rx) = parts(guests);
    under_load(&mut generator, &mut tx, &mut receivers, || {
        let begun = Instant::now();
        while helper().map_or(0, |helper| helper.outputs) == 0 {
            let told = || steward.trace();
            assert!(begun.elapsed() < PATIENCE * 5, "{:?}", told());
            std::thread::sleep(Duration::from_millis(1));
        }
        let rests = |worker: usize| {
            let list = world.workers.list();
            list.iter().any(|w| w.index == worker && w.resting)
        };
        // Where nothing is gained it ends soon, and then the other may rest.
        let rests = rests(world.other);
        assert!(!rests || helper().is_none(), "who helps is in use");
    });
    // Nothing comes any more.
    soon("the queue is its owner's alone", || helper().is_none());
    soon("all workers sleep", || world.is_asleep());
    let told = |what: What| steward.trace().iter().any(|made| made.what == what);
    assert!(told(What::Share(world.key, world.other)));
    soon("its end is in the trace", || told(What::Alone(world.key)));
    check_books(&world, generator.sent(), &receivers);
    steward.stop();
    world.workers.stop();
}

/// The steward reacts at once, and to whoever it is.
#[test]
fn a_worker_that_cannot_keep_up_rings_under_its_number() {
    let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
    let mut world = World::new(&mut guests, Coalesce::default(), BusyPoll::Adaptive);
    let (mut tx, mut generator, mut receivers, _rx) = parts(guests);
    for _ in 0..2 {
        under_load(&mut generator, &mut tx, &mut receivers, || {
            let bell = &world.shared.bell;
            bell.listen(Ears::Queueing, 0);
            soon("work that stands is told of", || bell.answer());
            assert_eq!(bell.who(), Some(world.owner));
        });
        soon("all workers sleep", || world.is_asleep());
        assert_eq!(world.workers.move_queue(world.key, world.other), Ok(true));
        std::mem::swap(&mut world.owner, &mut world.other);
    }
    check_books(&world, generator.sent(), &receivers);
    world.workers.stop();
}

#[test]
fn workers_that_share_can_be_dismissed() {
    for helper_first in [false, true] {
        let mut guests = vec![Guest::new()];
        let shared = Bridge::new(&mut guests, Coalesce::default()).shared;
        let wanted = [0, 1].map(|core| Wanted {
            core,
            busy_poll: BusyPoll::Adaptive,
            max_sleep: Duration::ZERO,
        });
        let workers = Workers::start(&wanted, &shared).unwrap();
        let key = QueueKey {
            port: at(0),
            queue: 0,
        };
        if helper_first {
            // So that the owner has the higher number, and ends last.
            workers.rest(0, true);
            workers.rest(1, false);
        }
        let ring = Input::Guest(Box::new(guests[0].transmit.take().unwrap()));
        let owner = workers.attach(key, ring, None).unwrap();
        assert_eq!(owner, usize::from(helper_first));
        assert_eq!(workers.share(key, 1 - owner), Ok(()));
        workers.stop();
        assert!(workers.list().is_empty());
    }
}
