//! Order, while flows go from one receive queue to another under load: a device in memory, two workers, and a sink.
//!
//! The device is two rings, with the table in front of them; what it is given goes to the queue that the table names at that
//! moment. Every frame has its flow's number and its own, and the sink sees whether they come in order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use vswitch_api::config;
use vswitch_dpdk::{
    Device, DeviceArg, MbufBurst, Mempool, PortConfig, RxQueue, StartedPort, Stock, TxQueue,
};
use vswitch_packet::Accepts;

use super::dpdk::{self, PoolUse};
use super::reta::tests::Soft;
use super::{DESCRIPTORS, NicInput, NicOutput, Reta};
use crate::forward::fdb::FdbWriter;
use crate::forward::learn::{self, LearnMailbox};
use crate::forward::snapshot::{BridgeSpec, GuestQueues, Output, PortSpec, Snapshot};
use crate::forward::vlan::VlanRule;
use crate::forward::{BridgeIndex, PortIndex, PortRef};
use crate::mailbox::Mailbox;
use crate::worker::bell::Bell;
use crate::worker::registry::Wanted;
use crate::worker::{BusyPoll, Input, QueueKey, Shared, Workers};

const FLOWS: u16 = 64;
const BUCKETS: u16 = 128;
const HEADER: usize = 14;

fn at(n: u16) -> PortRef {
    PortRef {
        index: PortIndex(n),
        incarnation: 1,
    }
}

fn spec(n: u16, output: Output) -> PortSpec {
    PortSpec {
        at: at(n),
        name: format!("port{n}").into(),
        bridge: BridgeIndex(0),
        vlan: VlanRule::untagged(),
        learning: false,
        admin_up: true,
        offloads: Accepts::default(),
        output,
        counters: Arc::new([Arc::default(), Arc::default()]),
    }
}

fn open(device: &str, queues: (u16, u16), pool: Mempool, eal: vswitch_dpdk::Eal) -> StartedPort {
    let config = PortConfig {
        rx_queues: queues.0,
        tx_queues: queues.1,
        ..PortConfig::default()
    };
    let device: DeviceArg = device.parse().unwrap();
    Device::probe(eal, &device)
        .unwrap()
        .start(&config, pool)
        .unwrap()
}

/// What the sink has seen.
#[derive(Default)]
struct Seen {
    frames: u64,
    /// Flows with a frame behind a later one, and how many such frames there were.
    reordered: BTreeSet<u16>,
    swaps: u64,
}

/// Two workers, a queue of the device each.
struct World {
    workers: Arc<Workers>,
    reta: Arc<Reta>,
    device: Soft,
    tx: Vec<TxQueue>,
    stock: Stock,
    sink: RxQueue,
    output: Arc<NicOutput>,
    next: [u32; FLOWS as usize],
    last: [u32; FLOWS as usize],
    seen: Seen,
    _pool: PoolUse,
}

impl World {
    fn new() -> Self {
        let argument: DeviceArg = "net_ring20".parse().unwrap();
        let settings = config::Dpdk::default();
        let eal = dpdk::start(&argument, &settings).unwrap();
        dpdk::adopt_thread();
        let pool = PoolUse::take(eal, 2048, (2, 2), DESCRIPTORS, 2).unwrap();
        let source = open("net_ring20", (2, 2), pool.pool(), eal);
        let mut sink = open("net_ring21", (1, 1), pool.pool(), eal);
        let caps = sink.port.capabilities().tx;
        let output = Arc::new(NicOutput::new(caps, sink.tx, pool.pool()));
        let nowhere = Arc::new(GuestQueues::new(1, [0; 16]));
        let ports = vec![
            Some(spec(0, Output::Guest(nowhere))),
            Some(spec(1, Output::Nic(Arc::clone(&output)))),
        ];
        let bridge = BridgeSpec {
            mtu: 1500,
            fdb: FdbWriter::new(1024, [1, 2]).table(),
        };
        let snapshot = Snapshot::new(ports, vec![Some(bridge)], None);
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            clock: AtomicU32::new(0),
            learn: Arc::new(LearnMailbox::new(learn::QUEUE).unwrap()),
            reports: Mailbox::new(16).unwrap(),
            bell: Bell::new().unwrap(),
        });
        let wanted = [0, 1].map(|core| Wanted {
            core,
            busy_poll: BusyPoll::Adaptive,
        });
        let workers = Workers::start(&wanted, &shared).unwrap();
        for (queue, rx) in (0..).zip(source.rx) {
            let input = Input::Nic(Box::new(NicInput::new(rx, Arc::default(), None)));
            workers.attach(QueueKey { port: at(0), queue }, input, None);
        }
        for queue in 0..2_u16 {
            let key = QueueKey { port: at(0), queue };
            workers.move_queue(key, queue.into()).unwrap();
            assert_eq!(workers.owner(key), Some(queue.into()));
        }
        let device = Soft::default();
        let reta = Reta::start(device.clone(), BUCKETS, 2).unwrap().unwrap();
        World {
            workers,
            reta,
            device,
            tx: source.tx,
            stock: Stock::new(pool.pool()),
            sink: sink.rx.remove(0),
            output,
            next: [0; FLOWS as usize],
            last: [0; FLOWS as usize],
            seen: Seen::default(),
            _pool: pool,
        }
    }

    /// A few frames of a flow to the device, and what has arrived from the sink.
    fn turn(&mut self, flow: u16) {
        let mut burst = MbufBurst::new();
        for number in (self.next[usize::from(flow)] + 1..).take(4) {
            let mut frame = [2; 64];
            frame[12..14].copy_from_slice(&[0x88, 0xb5]);
            frame[HEADER..HEADER + 2].copy_from_slice(&flow.to_be_bytes());
            frame[HEADER + 2..HEADER + 6].copy_from_slice(&number.to_be_bytes());
            let copy = |at: usize, room: &mut [u8]| {
                room.copy_from_slice(&frame[at..at + room.len()]);
                room.len()
            };
            match self.stock.frame(64, copy) {
                Ok(mbuf) => burst.push(mbuf).unwrap(),
                Err(_) => break,
            }
        }
        {
            // The table does not change while frames are being put where it says.
            let table = self.device.0.lock();
            let queue = table[usize::from(flow)];
            let sent = self.tx[usize::from(queue)].tx_burst(&mut burst).sent;
            self.next[usize::from(flow)] += sent as u32;
        }
        burst.clear();
        self.receive();
    }

    fn receive(&mut self) {
        let mut burst = MbufBurst::new();
        while self.sink.rx_burst(&mut burst) > 0 {
            for mbuf in burst.drain() {
                let data = mbuf.data();
                let flow = u16::from_be_bytes([data[HEADER], data[HEADER + 1]]);
                let number = [2, 3, 4, 5].map(|i| data[HEADER + i]);
                let number = u32::from_be_bytes(number);
                let last = &mut self.last[usize::from(flow)];
                self.seen.frames += 1;
                if number <= *last {
                    self.seen.swaps += 1;
                    self.seen.reordered.insert(flow);
                }
                *last = number.max(*last);
            }
        }
    }

    /// Traffic for so long, or until `enough`, while another thread moves buckets; returns the flows of moves that were
    /// not in time, and how many were.
    fn run(
        &mut self,
        most: Duration,
        enough: impl Fn(&Seen) -> bool,
        change: impl Fn(&Workers, &Reta, u16, u16) -> Option<bool> + Sync,
    ) -> (BTreeSet<u16>, u64) {
        self.seen = Seen::default();
        let (workers, reta) = (Arc::clone(&self.workers), Arc::clone(&self.reta));
        let ending = AtomicBool::new(false);
        let late = Mutex::new((BTreeSet::new(), 0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0_u16.. {
                    if ending.load(Ordering::Relaxed) {
                        return;
                    }
                    // Buckets beyond the flows' are empty.
                    let bucket = round % FLOWS * 7 % FLOWS;
                    let from = reta.table()[usize::from(bucket)];
                    match change(&workers, &reta, bucket, from) {
                        Some(true) => late.lock().1 += 1,
                        Some(false) => drop(late.lock().0.insert(bucket)),
                        None => panic!("not moved"),
                    }
                    thread::sleep(Duration::from_micros(300));
                }
            });
            let began = Instant::now();
            let mut round = 0;
            while began.elapsed() < most && !enough(&self.seen) {
                self.turn(round % FLOWS);
                round = round.wrapping_add(1);
            }
            ending.store(true, Ordering::Relaxed);
        });
        // What is still under way belongs to this run.
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            self.receive();
        }
        late.into_inner()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.stop();
        self.output.close();
    }
}

// The only test of this program that starts DPDK.
#[test]
fn flows_keep_their_order_while_buckets_move() {
    let mut world = World::new();
    let redirect = |workers: &Workers, reta: &Reta, bucket: u16, from: u16| {
        let to = 1 - from;
        let write = || reta.set(&[bucket], to);
        workers.redirect(at(0), &[from], to, write).ok()
    };
    let (late, in_time) = world.run(Duration::from_secs(2), |_| false, redirect);
    let seen = &world.seen;
    println!(
        "{} frames, {in_time} moves in time, flows of late moves {late:?}; {} frames out of order, of flows {:?}",
        seen.frames, seen.swaps, seen.reordered
    );
    assert!(seen.frames > 10_000 && in_time > 0);
    assert!(
        seen.reordered.is_subset(&late),
        "out of order, and not late"
    );

    // The same without waiting: this test would see it.
    let at_once =
        |_: &Workers, reta: &Reta, bucket: u16, from: u16| Some(reta.set(&[bucket], 1 - from));
    world.run(Duration::from_secs(10), |seen| seen.swaps > 0, at_once);
    println!("{} frames without", world.seen.frames);
    assert!(world.seen.swaps > 0);
}
