use arc_swap::ArcSwap;
use vswitch_flowtable::balance::Node;
use vswitch_packet::Accepts;
use vswitch_simguest::driver::{Notifier, TxOptions, TxQueue};
use vswitch_simguest::memory::{Layout, Memory};
use vswitch_vhost::memory::{GuestAddr, GuestMemory, Region, RegionSpec, UserAddr};
use vswitch_vhost::{QueuePair, Standalone, TxRing, features};

use super::scaling::help;
use super::*;
use crate::forward::fdb::FdbWriter;
use crate::forward::learn::LearnMailbox;
use crate::forward::snapshot::{BridgeSpec, Coalesce, GuestQueues, Output, PortSpec};
use crate::forward::vlan::VlanRule;
use crate::forward::{BridgeIndex, PortIndex, PortRef, Snapshot};
use crate::mailbox::Mailbox;
use crate::worker::bell::Bell;
use crate::worker::registry::Wanted;
use crate::worker::vitals::QueueVitals;
use crate::worker::{BusyPoll, Input};

pub(super) const ALL: Duties = Duties {
    rebalance: true,
    scale: true,
    share: true,
};
const LARGE: u64 = 1500;
const NONE: Duties = Duties {
    rebalance: false,
    scale: false,
    share: false,
};

/// Workers on cores that do not exist: the threads run unpinned, which is all the same here.
pub(in crate::worker) fn workers(count: u32) -> Arc<Workers> {
    workers_with(count, BusyPoll::Adaptive, Snapshot::default())
}

fn workers_with(count: u32, busy_poll: BusyPoll, snapshot: Snapshot) -> Arc<Workers> {
    let shared = Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(snapshot),
        clock: 0.into(),
        learn: Arc::new(LearnMailbox::new(1).unwrap()),
        reports: Mailbox::new(1).unwrap(),
        bell: Bell::new().unwrap(),
    });
    let on = |core| Wanted {
        core,
        busy_poll,
        max_sleep: Duration::ZERO,
    };
    let wanted: Vec<_> = (1000..1000 + count).map(on).collect();
    Workers::start(&wanted, &shared).unwrap()
}

#[test]
fn help_comes_to_where_it_is_asked_for() {
    let of = |queues: &[(Option<u8>, u64)]| {
        let queues = queues.iter().map(|(node, load)| (node.map(Node), *load));
        help(Node(1), queues).0
    };
    assert_eq!(of(&[]), 1);
    assert_eq!(of(&[(None, 90), (Some(1), 10)]), 1);
    assert_eq!(of(&[(Some(0), 30), (Some(1), 70)]), 0);
    assert_eq!(
        of(&[(Some(0), 20), (Some(2), 20), (Some(2), 10), (None, 50)]),
        2
    );
    assert_eq!(of(&[(Some(0), 25), (Some(1), 75)]), 1, "too little for it");
}

/// Between putting a worker to use and dealing queues out to it the operator says that queues are to stay.
#[test]
fn who_may_do_nothing_does_not_look() {
    let workers = workers(2);
    let mut brain = Brain::new(ALL);
    brain.changed = true;
    let next = brain.look(brain.balanced, None, &workers);
    assert_eq!(next.within, Some(MEASURED), "there is dealing out to do");
    brain.duties = NONE;
    brain.changed = true;
    let next = brain.look(Instant::now(), None, &workers);
    assert_eq!(next, Next::NEVER);
    workers.stop();
}

const REBALANCE: Duties = Duties {
    rebalance: true,
    ..NONE
};
const SHARE: Duties = Duties {
    share: true,
    ..REBALANCE
};

/// A guest's transmit ring in which nothing comes.
fn silent_ring() -> TxRing {
    const FEATURES: u64 = features::mask(features::VERSION_1);
    let memory = Memory::new(&Layout::single(8 << 20)).unwrap();
    let notifier = Notifier::new().unwrap();
    let call = notifier.call_fd().try_clone_to_owned().unwrap();
    let tx = TxQueue::new(&memory, notifier, FEATURES, &TxOptions::default()).unwrap();
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
    let at = tx.ring().parts().addresses();
    let standalone = Standalone {
        pair: QueuePair(0),
        memory: Arc::new(table),
        descriptors: UserAddr(at.desc),
        available: UserAddr(at.avail),
        used: UserAddr(at.used),
        size: tx.ring().size(),
        features: FEATURES,
        call: Some(Arc::new(call)),
    };
    TxRing::standalone(&standalone).unwrap()
}

/// One port, in so many workers.
fn one_port(at: PortRef, workers: u32) -> Snapshot {
    let spec = PortSpec {
        at,
        name: "guest".into(),
        bridge: BridgeIndex(0),
        vlan: VlanRule::untagged(),
        learning: true,
        admin_up: true,
        offloads: Accepts::default(),
        coalesce: Coalesce::default(),
        output: Output::Guest(Arc::new(GuestQueues::new(1, [7; 16]))),
        counters: (0..workers).map(|_| Arc::default()).collect(),
    };
    let bridge = BridgeSpec {
        mtu: 1500,
        fdb: FdbWriter::new(16, [1, 2]).table(),
    };
    Snapshot::new(vec![Some(spec)], vec![Some(bridge)], None)
}

/// Workers with queues that give steady work, on a clock of its own. Queues are only in the books, so one that moves is
/// gone.
struct World {
    workers: Arc<Workers>,
    brain: Brain,
    now: Instant,
    next: Next,
    queues: Vec<Fake>,
    looks: usize,
    /// Whether workers ring whose queues stand.
    rings: bool,
}

struct Fake {
    key: QueueKey,
    owner: usize,
    vitals: Arc<QueueVitals>,
    /// Part of a worker that it would take.
    load: f64,
    /// Bytes of a frame; each takes 5 us.
    len: u64,
}

impl World {
    /// So many queues for each worker, with a load each by worker.
    fn new(duties: Duties, each: u16, loads: &[f64]) -> Self {
        let workers = workers(loads.len() as u32);
        while !workers.list().iter().all(|w| w.vitals.read().asleep) {
            std::thread::yield_now();
        }
        let fake = |n: u16| {
            let owner = usize::from(n / each);
            let port = PortRef {
                index: PortIndex(n),
                incarnation: 1,
            };
            let key = QueueKey { port, queue: 0 };
            Fake {
                key,
                owner,
                vitals: workers.pretend(key, owner),
                load: loads[owner],
                len: LARGE,
            }
        };
        let queues = (0..each * loads.len() as u16).map(fake).collect();
        World::of(duties, workers, queues)
    }

    /// One queue, which can be shared, and gives nothing yet. Workers without a queue sleep.
    fn lone(duties: Duties, count: u32) -> Self {
        World::with_rings(duties, count, 1)
    }

    /// So many queues which can be shared, with a worker each, and give nothing yet.
    fn with_rings(duties: Duties, count: u32, rings: u16) -> Self {
        let port = PortRef {
            index: PortIndex(0),
            incarnation: 1,
        };
        // One that does not sleep does not say that it does.
        let workers = workers_with(count, BusyPoll::Always, one_port(port, count));
        for worker in 0..usize::from(rings) {
            workers.rest(worker, false);
        }
        let add = |queue| {
            let key = QueueKey { port, queue };
            let ring = Input::Guest(Box::new(silent_ring()));
            let owner = workers.attach(key, ring, None).unwrap();
            while workers.list()[owner].vitals.read().asleep {
                std::thread::yield_now();
            }
            let queues = workers.queues();
            let seen = queues.iter().find(|queue| queue.key == key);
            Fake {
                key,
                owner,
                vitals: Arc::clone(&seen.unwrap().vitals),
                load: 0.0,
                len: LARGE,
            }
        };
        let queues = (0..rings).map(add).collect();
        World::of(duties, workers, queues)
    }

    fn of(duties: Duties, workers: Arc<Workers>, queues: Vec<Fake>) -> Self {
        for worker in workers.list() {
            workers.rest(worker.index, false);
            worker.vitals.wakes();
        }
        let mut brain = Brain::new(duties);
        let now = Instant::now();
        brain.begin(now, &workers);
        let next = brain.next(&workers, 1.0);
        World {
            workers,
            brain,
            now,
            next,
            queues,
            looks: 0,
            rings: true,
        }
    }

    /// All queues of a worker give this load from now on.
    fn load(&mut self, owner: usize, load: f64) {
        let own = self.queues.iter_mut().filter(|q| q.owner == owner);
        own.for_each(|queue| queue.load = load);
    }

    fn wanted(&self, owner: usize) -> f64 {
        let own = self.queues.iter().filter(|q| q.owner == owner);
        own.map(|queue| queue.load).sum()
    }

    /// Until the next look, and that.
    fn step(&mut self) {
        let list = self.workers.list();
        let stands = |w: usize| self.rings && self.wanted(w) >= 1.0;
        let heard = |w: &usize| self.next.ears >= Ears::Queueing && self.next.hushed >> w & 1 == 0;
        let rung = (0..list.len()).filter(|w| stands(*w)).find(heard);
        let within = self.next.within.unwrap();
        let passes = rung.map_or(within, |_| within.min(crate::worker::LOOK));
        let rung = rung.filter(|_| passes < within);
        self.work(passes);
        self.next = self.brain.look(self.now, rung, &self.workers);
        self.looks += 1;
    }

    /// Part of the time until the next look.
    fn wait(&mut self, time: Duration) {
        let left = self.next.within.unwrap().checked_sub(time);
        self.next.within = Some(left.unwrap());
        self.work(time);
    }

    /// So much time passes.
    fn work(&mut self, passes: Duration) {
        for queue in &self.queues {
            let share = queue.load / self.wanted(queue.owner).max(1.0);
            let took = passes.mul_f64(share).as_nanos() as u64;
            let frames = took / 5_000;
            queue.vitals.burst(frames, took);
            if let Some(counters) = self.workers.counters(queue.key, queue.owner) {
                counters.received.add(frames);
                counters.received_bytes.add(frames * queue.len);
            }
        }
        for worker in self.workers.list() {
            let wanted = self.wanted(worker.index);
            let busy = passes.mul_f64(wanted.min(1.0));
            worker.vitals.turn(true, busy.as_nanos() as u64);
            match wanted >= 1.0 {
                true => worker.vitals.look(Duration::from_micros(100), 3),
                false => worker.vitals.look(Duration::ZERO, 0),
            }
        }
        self.now += passes;
    }

    /// Runs for so long; says how many looks that took.
    fn run(&mut self, time: Duration) -> usize {
        let (end, before) = (self.now + time, self.looks);
        while self.now < end {
            self.step();
        }
        self.looks - before
    }

    /// Runs until a queue has a helper; says how long that took.
    fn run_to_share(&mut self) -> Duration {
        let began = self.now;
        while self.workers.queues().iter().all(|q| q.helper.is_none()) {
            self.step();
            let told = self.brain.trace.decisions();
            assert!(self.now < began + Duration::from_secs(5), "alone: {told:?}");
        }
        self.now - began
    }

    /// Runs until a queue moves; says how long that took, and whose it was.
    fn run_to_move(&mut self) -> (Duration, usize) {
        let (began, count) = (self.now, self.queues.len());
        while self.workers.queues().len() == count {
            self.step();
            assert!(self.now < began + Duration::from_secs(5), "nothing moves");
        }
        let left: Vec<_> = self.workers.queues().iter().map(|q| q.key).collect();
        let moved = self.queues.iter().find(|q| !left.contains(&q.key));
        (self.now - began, moved.unwrap().owner)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.stop();
    }
}

#[test]
fn standing_work_does_not_wait_for_the_period() {
    // So many queues for each of two workers, of this load each, before and after.
    type Case = (u16, [f64; 2], [f64; 2]);
    let time = |rings: bool, duties: Duties, (each, before, after): Case| {
        let mut world = World::new(duties, each, &before);
        world.rings = rings;
        world.run(Duration::from_secs(3));
        assert_eq!(world.brain.balancer.period(), Duration::from_secs(1));
        world.load(0, after[0]);
        world.load(1, after[1]);
        let (time, owner) = world.run_to_move();
        assert_eq!(owner, 0);
        println!("{each} queues, {duties:?}, rings: {rings}: after {time:?}");
        time
    };
    let (some, two) = (
        (4, [0.16; 2], [0.35, 0.16]),
        // The other has nothing to do any more.
        (2, [0.3; 2], [0.6, 0.0]),
    );
    for case in [some, two] {
        assert!(time(false, REBALANCE, case) > Duration::from_millis(100));
        for duties in [REBALANCE, SHARE] {
            assert!(time(true, duties, case) < Duration::from_millis(2));
        }
    }
    assert!(time(true, ALL, some) < Duration::from_millis(2));
}

/// Moving does nothing for it; it is measured for as long as ever, three looks, but from when it rings.
#[test]
fn a_lone_hot_queue_does_not_wait_for_the_period() {
    let time = |rings: bool, duties: Duties, calm: Duration| {
        let mut world = World::lone(duties, 2);
        world.rings = rings;
        let owner = world.queues[0].owner;
        world.load(owner, 0.5);
        world.run(calm);
        world.wait(world.next.within.unwrap() / 2);
        world.load(owner, 1.3);
        let time = world.run_to_share();
        println!("calm for {calm:?}, {duties:?}, rings: {rings}: a helper after {time:?}");
        time
    };
    for duties in [SHARE, ALL] {
        for calm in [0, 3, 65, 3000].map(Duration::from_millis) {
            let (with, without) = (time(true, duties, calm), time(false, duties, calm));
            assert!(
                with <= without && with < sharing::EVERY * 4,
                "{with:?} {without:?}"
            );
        }
    }
    let least = time(false, SHARE, Duration::from_millis(3000));
    assert!(least > Duration::from_millis(100), "{least:?}");
}

/// It rings all the time, and its frames are too small for a helper.
#[test]
fn a_lone_hot_queue_that_gains_nothing_causes_few_looks() {
    let mut world = World::lone(SHARE, 2);
    world.queues[0].len = 64;
    let owner = world.queues[0].owner;
    world.load(owner, 1.3);
    let seconds: Vec<_> = (0..4).map(|_| world.run(Duration::from_secs(1))).collect();
    println!("looks by second: {seconds:?}");
    // It rings every second; then there is a look at once, three at most until it is heard again, and those of balancing.
    let most = 2 * 4 + 4;
    assert!(seconds[2..].iter().all(|n| *n <= most), "{seconds:?}");
    assert!(world.workers.queues()[0].helper.is_none());
    // And is helped when that has changed.
    world.queues[0].len = LARGE;
    let time = world.run_to_share();
    assert!(time < Duration::from_millis(1200), "{time:?}");
}

/// Who has little to do is spared, though another rings all the time.
#[test]
fn pressing_does_not_keep_workers_in_use() {
    let mut world = World::new(ALL, 4, &[0.0, 0.01, 0.01]);
    world.queues[0].load = 1.5;
    world.run(Duration::from_millis(200));
    let resting = world.workers.list().iter().filter(|w| w.resting).count();
    assert_eq!(resting, 1, "{:?}", world.brain.trace.decisions());
}

/// Every worker has more than it can do, and nobody has room.
#[test]
fn who_cannot_be_helped_causes_few_looks() {
    for duties in [REBALANCE, ALL] {
        let mut world = World::new(duties, 4, &[0.4; 4]);
        let seconds: Vec<_> = (0..5).map(|_| world.run(Duration::from_secs(1))).collect();
        println!("looks by second: {seconds:?}");
        let moved = world.brain.trace.decisions();
        assert!(moved.iter().all(|d| d.what == What::Crowded), "{moved:?}");
        // Balancing looks after 10 ms and then less often, scaling every 20 ms as long as some worker may be spared.
        let others = if duties.scale { 20 + 50 } else { 20 };
        // Nine pauses of each worker in the first second, and then one; at most four looks each.
        assert!(seconds[0] <= 4 * 9 * 4 + others, "{seconds:?}");
        let later = &seconds[2..];
        assert!(later.iter().all(|n| *n <= 4 * 4 + others), "{seconds:?}");
    }
}

/// The same, and any of them could be helped if somebody had room.
#[test]
fn who_finds_no_helper_causes_few_looks() {
    let mut world = World::with_rings(SHARE, 4, 4);
    for owner in 0..4 {
        world.load(owner, 1.3);
    }
    let seconds: Vec<_> = (0..5).map(|_| world.run(Duration::from_secs(1))).collect();
    println!("looks by second: {seconds:?}");
    assert!(seconds[2..].iter().all(|n| *n <= 4 * 4 + 20), "{seconds:?}");
    // And one is helped when another has room, a second later at most.
    world.load(3, 0.1);
    let time = world.run_to_share();
    assert!(time < Duration::from_millis(1200), "{time:?}");
}

/// A queue that has lost its helper is let alone for a while, and nobody looks whether it could have one.
#[test]
fn who_may_not_have_a_helper_yet_causes_few_looks() {
    let mut world = World::lone(SHARE, 2);
    let owner = world.queues[0].owner;
    world.load(owner, 1.3);
    world.run_to_share();
    // Before it is known what that gains its frames are short.
    world.queues[0].len = 64;
    world.run(Duration::from_millis(500));
    assert!(world.workers.queues()[0].helper.is_none());
    for len in [64, LARGE] {
        world.queues[0].len = len;
        let seconds: Vec<_> = (0..2).map(|_| world.run(Duration::from_secs(1))).collect();
        println!("{len} bytes, looks by second: {seconds:?}");
        assert!(seconds[1] <= 2 * 4 + 4, "{seconds:?}");
    }
}

/// One queue alone is more than its worker can do, and it rings all the time.
#[test]
fn who_cannot_be_helped_does_not_drown_out_others() {
    let mut world = World::new(REBALANCE, 4, &[0.0, 0.16, 0.16]);
    world.queues[0].load = 1.5;
    let looks = world.run(Duration::from_secs(4));
    assert!(looks < 150, "{looks}");
    assert_eq!(world.workers.queues().len(), 12, "nothing moved");
    world.load(1, 0.35);
    let (time, owner) = world.run_to_move();
    assert!(owner == 1 && time < Duration::from_millis(2), "{time:?}");
}

/// A turn that was kept from its core for some milliseconds ends while loads are counted.
#[test]
fn a_turn_from_before_is_not_counted() {
    let mut world = World::new(REBALANCE, 4, &[0.16, 0.16]);
    world.run(Duration::from_secs(3));
    // It rings, but has no more to do than the other.
    world.load(0, 0.26);
    while world.brain.pressed.is_none() {
        world.step();
    }
    world.load(0, 0.16);
    world.queues[0].vitals.burst(1, 3_000_000);
    while world.brain.pressed.is_some() {
        world.step();
    }
    assert!(world.now - world.brain.balanced < MEASURED);
    assert_eq!(world.workers.queues().len(), 8, "nothing moved");
}

/// What sharing goes by is measured over as long as ever, however often queues are balanced.
#[test]
fn pressing_is_no_look_of_sharing() {
    let mut world = World::new(ALL, 4, &[0.4; 4]);
    let (mut last, mut pressed, mut shared) = (world.brain.measured.since(), 0, 0);
    let end = world.now + Duration::from_millis(300);
    while world.now < end {
        world.step();
        pressed += usize::from(world.brain.pressed.is_some());
        let since = world.brain.measured.since();
        if since != last {
            assert!(since - last >= sharing::EVERY);
            (last, shared) = (since, shared + 1);
        }
    }
    assert!(pressed > 5 && shared > 5, "{pressed} {shared}");
}
