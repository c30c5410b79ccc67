//! A queue that gets a helper, loses it, moves and leaves while frames pass: nothing is lost unnamed or reordered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use vswitch::forward::counters::Totals;
use vswitch::forward::fdb::FdbWriter;
use vswitch::forward::learn::{self, LearnMailbox};
use vswitch::forward::snapshot::{BridgeSpec, GuestQueues, Output, PortSpec};
use vswitch::forward::vlan::VlanRule;
use vswitch::forward::{BridgeIndex, PortIndex, PortRef, Snapshot, Vid};
use vswitch::mailbox::Mailbox;
use vswitch::worker::bell::Bell;
use vswitch::worker::registry::Wanted;
use vswitch::worker::{BusyPoll, Input, QueueKey, Shared, Workers};
use vswitch_packet::{Accepts, MacAddr};
use vswitch_simguest::driver::{Notifier, Ring, RxOptions, RxQueue, TxOptions, TxQueue};
use vswitch_simguest::memory::{Layout, Memory};
use vswitch_simguest::traffic::{Generator, Meter, Pattern};
use vswitch_vhost::memory::{GuestAddr, GuestMemory, Region, RegionSpec, UserAddr};
use vswitch_vhost::{QueuePair, RxRing, Standalone, TxRing, features};

/// The first sends to all others.
const GUESTS: usize = 4;
const FLOWS: u32 = 24;
const LEN: usize = 600;
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
        let tx = TxOptions {
            size: 256,
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
        let standalone = |ring: &Ring| {
            let at = ring.parts().addresses();
            Standalone {
                pair: QueuePair(0),
                memory: Arc::clone(&table),
                descriptors: UserAddr(at.desc),
                available: UserAddr(at.avail),
                used: UserAddr(at.used),
                size: ring.size(),
                features: FEATURES,
                call: None,
            }
        };
        let transmit = TxRing::standalone(&standalone(tx.ring())).unwrap();
        let receive = RxRing::standalone(&standalone(rx.ring())).unwrap();
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
fn shared(guests: &mut [Guest], workers: usize) -> Arc<Shared> {
    let mut fdb = FdbWriter::new(1024, [1, 2]);
    let port = |(index, guest): (usize, &mut Guest)| {
        let queues = GuestQueues::new(1, [7; 16]);
        queues.replace(0, guest.receive.take());
        let now = vswitch::forward::fdb::CoarseSecond(0);
        fdb.insert(Vid(0), MacAddr(mac(index)), at(index), now, false);
        Some(PortSpec {
            at: at(index),
            name: format!("guest{index}").into(),
            bridge: BridgeIndex(0),
            vlan: VlanRule::untagged(),
            learning: true,
            admin_up: true,
            offloads: Accepts::default(),
            output: Output::Guest(Arc::new(queues)),
            counters: (0..workers).map(|_| Arc::default()).collect(),
        })
    };
    let ports = guests.iter_mut().enumerate().map(port).collect();
    let bridge = BridgeSpec {
        mtu: 1500,
        fdb: fdb.table(),
    };
    Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::new(ports, vec![Some(bridge)], None)),
        clock: AtomicU32::new(0),
        learn: Arc::new(LearnMailbox::new(learn::QUEUE).unwrap()),
        reports: Mailbox::new(16).unwrap(),
        bell: Bell::new().unwrap(),
    })
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

/// Waits until something holds that is not far away.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_queue_is_shared_and_alone_again_while_frames_pass() {
    let mut guests: Vec<_> = (0..GUESTS).map(|_| Guest::new()).collect();
    let shared = shared(&mut guests, 2);
    let wanted = |core| Wanted {
        core,
        busy_poll: BusyPoll::Adaptive,
    };
    let workers = Workers::start(&[wanted(0), wanted(1)], &shared).unwrap();
    let key = QueueKey {
        port: at(0),
        queue: 0,
    };
    let ring = guests[0].transmit.take().unwrap();
    let owner = workers.attach(key, Input::Guest(Box::new(ring))).unwrap();
    let other = 1 - owner;

    let mut pattern = Pattern::new(mac(1), mac(0), LEN).flows(FLOWS);
    pattern.dsts = GUESTS as u32 - 1;
    let ended = AtomicBool::new(false);
    let mut iter = guests.into_iter();
    let Guest { mut tx, rx, .. } = iter.next().unwrap();
    let receivers = iter.map(|guest| guest.rx);
    let (sent, tallies) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut generator = Generator::new(pattern.clone(), &mut tx).unwrap();
            while !ended.load(Ordering::Relaxed) {
                if tx.has_room(16).unwrap() {
                    generator.burst(&mut tx, 16).unwrap();
                } else {
                    std::thread::yield_now();
                }
            }
            generator.sent()
        });
        let meters: Vec<_> = receivers
            .map(|mut rx| {
                let (pattern, ended) = (&pattern, &ended);
                scope.spawn(move || {
                    let mut meter = Meter::new(pattern);
                    loop {
                        // Looked at before the ring, or the last frames would be missed.
                        let over = ended.load(Ordering::Acquire);
                        if meter.burst(&mut rx, 64).unwrap() == 0 {
                            if over {
                                return meter.tally();
                            }
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();

        let received = |worker: usize| workers.received(key, worker).0;
        let delivered = |worker: usize| {
            let snapshot = shared.snapshot.load();
            let ports = (1..GUESTS).filter_map(|port| snapshot.live(at(port)));
            ports
                .map(|port| port.counters[worker].delivered.get())
                .sum::<u64>()
        };
        soon("frames pass", || received(owner) > 1000);
        assert!(!workers.share(key, owner), "by itself");
        for round in 0..5 {
            assert!(workers.share(key, other), "round {round}");
            assert!(!workers.share(key, other), "twice");
            let outputs = || workers.queues()[0].helper.map_or(0, |(_, outputs)| outputs);
            soon("the helper has outputs", || outputs() > 0);
            let before = delivered(other);
            soon("the helper delivers", || delivered(other) > before + 1000);
            assert!(workers.unshare(key) && !workers.unshare(key));
            assert_eq!(workers.queues()[0].helper, None);
        }
        // It moves to its own helper, and leaves while it is shared.
        assert!(workers.share(key, other));
        soon("it is shared", || workers.queues()[0].helper.is_some());
        assert_eq!(workers.move_queue(key, other), Ok(true));
        let before = received(other);
        soon("frames pass at the other", || {
            received(other) > before + 1000
        });
        assert!(workers.share(key, owner));
        std::thread::sleep(Duration::from_millis(20));
        let ring = workers.detach_ring(key).unwrap();
        // Nobody serves it any more: what it had taken is at the receivers, or counted.
        let all = totals(&shared);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(totals(&shared).received, all.received);
        let dropped: u64 = all.output_drops.iter().sum();
        assert_eq!(all.received, all.delivered + dropped);
        drop(ring);
        ended.store(true, Ordering::Release);
        let tallies: Vec<_> = meters.into_iter().map(|m| m.join().unwrap()).collect();
        (sender.join().unwrap(), tallies)
    });
    drop(rx);
    workers.stop();
    let all = totals(&shared);
    assert!(sent >= all.received);
    assert_eq!(tallies.iter().map(|t| t.frames).sum::<u64>(), all.delivered);
    for tally in tallies {
        assert!(
            tally.frames > 1000 && tally.late == 0 && tally.alien == 0,
            "{tally:?}"
        );
    }
}

#[test]
fn workers_that_share_can_be_dismissed() {
    for helper_first in [false, true] {
        let mut guests = vec![Guest::new()];
        let shared = shared(&mut guests, 2);
        let wanted = |core| Wanted {
            core,
            busy_poll: BusyPoll::Adaptive,
        };
        let workers = Workers::start(&[wanted(0), wanted(1)], &shared).unwrap();
        let key = QueueKey {
            port: at(0),
            queue: 0,
        };
        if helper_first {
            // So that the owner has the higher number, and ends last.
            workers.rest(0, true);
            workers.rest(1, false);
        }
        let ring = guests[0].transmit.take().unwrap();
        let owner = workers.attach(key, Input::Guest(Box::new(ring))).unwrap();
        assert_eq!(owner, usize::from(helper_first));
        assert!(workers.share(key, 1 - owner));
        workers.stop();
        assert!(workers.list().is_empty());
    }
}
