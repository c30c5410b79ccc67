//! Order, while flows go from one receive queue to another under load: a device in memory, two workers, and a sink.
//!
//! The device is two rings, with the table in front of them; what it is given goes to the queue that the table names at that
//! moment. Every frame has its flow's number and its own, and the sink sees whether they come in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use vswitch_api::config;
use vswitch_dpdk::{
    Demand, Device, DeviceArg, MbufBurst, Mempool, PortConfig, PortError, RxQueue, StartedPort,
    Stock, TxQueue,
};
use vswitch_packet::Accepts;

use super::dpdk::{self, PoolUse};
use super::reta::Table;
use super::reta::tests::Soft;
use super::{DESCRIPTORS, NicInput, NicOutput, Reta};
use crate::forward::fdb::FdbWriter;
use crate::forward::learn::{self, LearnMailbox};
use crate::forward::snapshot::{BridgeSpec, Coalesce, GuestQueues, Output, PortSpec, Snapshot};
use crate::forward::vlan::VlanRule;
use crate::forward::{BridgeIndex, PortIndex, PortRef};
use crate::mailbox::Mailbox;
use crate::worker::bell::Bell;
use crate::worker::registry::{MoveError, Wanted};
use crate::worker::{BusyPoll, Input, QueueKey, Shared, Workers};

const FLOWS: u16 = 64;
const BUCKETS: u16 = 128;
const HEADER: usize = 14;
/// Bursts between two rests, in which workers catch up.
const PACE: u16 = 16;
/// More than anything here may take, on a machine with other things to do.
const LIMIT: Duration = Duration::from_secs(60);
/// Nothing has come for so long: nothing more will.
const QUIET: Duration = Duration::from_millis(200);

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
        coalesce: Coalesce::default(),
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
    /// Frames that came behind a later one of their flow: the flow, their number, and the later one's.
    swaps: Vec<(u16, u32, u32)>,
}

/// A move of a flow: up to this number its frames are in the old queue.
#[derive(Clone, Copy)]
struct Step {
    flow: u16,
    last: u32,
    in_time: bool,
}

impl Step {
    /// Frames of these numbers are on different sides of it.
    fn parts(&self, (flow, earlier, later): (u16, u32, u32)) -> bool {
        self.flow == flow && (earlier..later).contains(&self.last)
    }
}

/// How many frames each flow had so far; changes only while the table is locked.
type Sent = Arc<[AtomicU32]>;

/// The device's table; when it is written, which is for one flow, it notes how many frames that had so far.
struct Noting {
    table: Soft,
    sent: Sent,
    noted: Arc<AtomicU32>,
}

impl Table for Noting {
    fn write(&self, entries: &[(u16, u16)]) -> Result<(), PortError> {
        let mut table = self.table.0.lock();
        for (entry, queue) in entries {
            if let Some(sent) = self.sent.get(usize::from(*entry)) {
                self.noted
                    .store(sent.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            table[usize::from(*entry)] = *queue;
        }
        Ok(())
    }
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
    sent: Sent,
    noted: Arc<AtomicU32>,
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
        let pool = PoolUse::take(
            eal,
            2048,
            Demand {
                rx_queues: 2,
                tx_queues: 2,
                descriptors: DESCRIPTORS,
                threads: 3,
            },
        )
        .unwrap();
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
            max_sleep: Duration::ZERO,
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
        device.0.lock().resize(BUCKETS.into(), 0);
        let sent: Sent = (0..FLOWS).map(|_| AtomicU32::new(0)).collect();
        let noted = Arc::<AtomicU32>::default();
        let noting = Noting {
            table: device.clone(),
            sent: Arc::clone(&sent),
            noted: Arc::clone(&noted),
        };
        let reta = Reta::start(noting, BUCKETS, 2).unwrap().unwrap();
        World {
            workers,
            reta,
            device,
            tx: source.tx,
            stock: Stock::new(pool.pool()),
            sink: sink.rx.remove(0),
            output,
            sent,
            noted,
            last: [0; FLOWS as usize],
            seen: Seen::default(),
            _pool: pool,
        }
    }

    /// While a queue is held for flows from another one neither goes to the other worker, which would know nothing of it.
    fn check_what_is_held_stays(&self) {
        let moves = || {
            [0_u16, 1].map(|queue| {
                let key = QueueKey { port: at(0), queue };
                self.workers.move_queue(key, usize::from(1 - queue))
            })
        };
        let write = || {
            assert_eq!(moves(), [Err(MoveError::InTransit); 2]);
            true
        };
        self.workers.redirect(at(0), &[0], 1, write).unwrap();
        assert_eq!(moves(), [Ok(true); 2], "it is over");
        for queue in 0..2_u16 {
            let key = QueueKey { port: at(0), queue };
            assert_eq!(self.workers.move_queue(key, queue.into()), Ok(true));
        }
    }

    /// A few frames of a flow to the device, and what has arrived from the sink.
    fn turn(&mut self, flow: u16) {
        let mut burst = MbufBurst::new();
        let sent = self.sent[usize::from(flow)].load(Ordering::Relaxed);
        for number in (sent + 1..).take(4) {
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
            let taken = self.tx[usize::from(queue)].tx_burst(&mut burst).sent as u32;
            self.sent[usize::from(flow)].store(sent + taken, Ordering::Relaxed);
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
                    self.seen.swaps.push((flow, number, *last));
                }
                *last = number.max(*last);
            }
        }
    }

    /// Traffic for so long, or until `enough`, while another thread moves buckets by `change`, which says whether that was
    /// in time. Returns the moves.
    fn run(
        &mut self,
        most: Duration,
        enough: impl Fn(&Seen) -> bool,
        change: impl Fn(&Workers, &Reta, u16, u16) -> bool + Sync,
    ) -> Vec<Step> {
        self.seen = Seen::default();
        let (workers, reta) = (Arc::clone(&self.workers), Arc::clone(&self.reta));
        let noted = Arc::clone(&self.noted);
        let ending = AtomicBool::new(false);
        let moving = || {
            let mut steps = Vec::new();
            for round in 0_u16.. {
                if ending.load(Ordering::Relaxed) {
                    break;
                }
                // Buckets beyond the flows' are empty.
                let flow = round % FLOWS * 7 % FLOWS;
                let from = reta.table()[usize::from(flow)];
                let in_time = change(&workers, &reta, flow, from);
                let last = noted.load(Ordering::Relaxed);
                steps.push(Step {
                    flow,
                    last,
                    in_time,
                });
                thread::sleep(Duration::from_micros(300));
            }
            steps
        };
        let steps = thread::scope(|scope| {
            let mover = scope.spawn(moving);
            let began = Instant::now();
            let mut round = 0_u16;
            while began.elapsed() < most && !enough(&self.seen) {
                self.turn(round % FLOWS);
                round = round.wrapping_add(1);
                if round.is_multiple_of(PACE) {
                    thread::sleep(Duration::from_micros(20));
                }
            }
            ending.store(true, Ordering::Relaxed);
            mover.join().unwrap()
        });
        // What is still under way belongs to this run, also where a worker has to wait for its processor.
        let (mut seen, mut came) = (self.seen.frames, Instant::now());
        while came.elapsed() < QUIET {
            self.receive();
            if self.seen.frames > seen {
                (seen, came) = (self.seen.frames, Instant::now());
            }
            thread::yield_now();
        }
        steps
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
    world.check_what_is_held_stays();
    let redirect = |workers: &Workers, reta: &Reta, bucket: u16, from: u16| {
        let to = 1 - from;
        let write = || reta.set(&[bucket], to);
        workers.redirect(at(0), &[from], to, write).unwrap()
    };
    // For so long, and on a slow machine until there is something to be seen.
    let began = Instant::now();
    let enough = |seen: &Seen| began.elapsed() > Duration::from_secs(2) && seen.frames > 10_000;
    let steps = world.run(LIMIT, enough, redirect);
    let (frames, swaps) = (world.seen.frames, &world.seen.swaps);
    let in_time = steps.iter().filter(|step| step.in_time).count();
    println!(
        "{frames} frames, {in_time} of {} moves in time, {} frames out of order",
        steps.len(),
        swaps.len()
    );
    assert!(frames > 10_000 && in_time > 0);
    // A worker that lost its core for longer than a queue is held: then, and only then.
    let late: Vec<_> = steps.iter().filter(|step| !step.in_time).collect();
    for swap in swaps {
        assert!(late.iter().any(|step| step.parts(*swap)), "{swap:?}");
    }

    // The same without waiting: this test would see it.
    let at_once = |_: &Workers, reta: &Reta, bucket, from| reta.set(&[bucket], 1 - from);
    let steps = world.run(LIMIT, |seen| seen.swaps.len() > 9, at_once);
    let swaps = &world.seen.swaps;
    println!("without: {} frames, {swaps:?}", world.seen.frames);
    assert!(!swaps.is_empty());
    let parted = |swap| steps.iter().any(|step| step.parts(swap));
    assert!(swaps.iter().all(|swap| parted(*swap)), "only moves do that");
}
