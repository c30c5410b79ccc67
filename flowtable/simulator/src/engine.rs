//! The clock: packets, workers and looks in the order of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use vswitch_flowtable::balance::Node;
use vswitch_flowtable::scale::{self, Decision};

use crate::outcome::{Bound, Delays, Look, Outcome};
use crate::policy::{Change, Policy, View};
use crate::trace::{Packet, Source, Trace};
use table::Table;

mod table;

/// Entries of a worker's ring.
pub const RING: usize = 1024;
/// Most packets that a worker takes at a time.
pub const BURST: usize = 32;
/// From the look that wakes a worker to its first packet, in ns.
const WAKE_NS: u64 = 5000;
/// Time between samples, in ns.
const SAMPLE_NS: u64 = 10_000_000;
/// A look over less than this takes in what was counted before, in ns.
const SHORT_NS: u64 = 5_000_000;
/// A bucket with more than this part of its worker's load leaves nothing worth giving away.
const INDIVISIBLE: f64 = 0.8;

/// When a bucket goes to its new worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// When the old one has completed what it was given for it.
    Kept,
    /// With the next packet, as if nothing were queued.
    AtOnce,
}

/// A worker.
#[derive(Default)]
struct Worker {
    ring: VecDeque<Packet>,
    batch: Vec<Packet>,
    running: bool,
    asleep: bool,
    awake_since: u64,
    awake_for: u64,
    /// Packets it was ever given, has taken, and has published as completed.
    given: u64,
    taken: u64,
    completed: u64,
    /// What it had been given at the previous look.
    given_at_look: u64,
    /// When it last saw its ring empty.
    emptied: u64,
    busy_in_look: u64,
    busy_in_plan: u64,
    divisible: bool,
}

impl Worker {
    /// Takes what is there, up to a burst; says how long that will take.
    fn take(&mut self, now: u64) -> u64 {
        let count = self.ring.len().min(BURST);
        self.batch.extend(self.ring.drain(..count));
        self.taken += count as u64;
        if self.ring.is_empty() {
            self.emptied = now;
        }
        let work = self.batch.iter().map(|packet| u64::from(packet.work)).sum();
        self.running = true;
        self.busy_in_look += work;
        self.busy_in_plan += work;
        work
    }

    fn see(&mut self, parked: bool, elapsed: u64, now: u64) -> scale::Look {
        let waits = self.running || !self.ring.is_empty();
        let look = scale::Look {
            parked,
            delay: std::time::Duration::from_nanos(if waits {
                (now - self.emptied).max(1)
            } else {
                0
            }),
            standing: self.taken < self.given_at_look,
            busy: std::time::Duration::from_nanos(self.busy_in_look.min(elapsed.max(1))),
            divisible: self.divisible,
            node: Node(0),
        };
        // A burst may last longer than the time between looks.
        self.busy_in_look = self.busy_in_look.saturating_sub(elapsed);
        self.given_at_look = self.given;
        look
    }
}

/// The last packet of a flow that was completed.
#[derive(Clone, Copy, Default)]
struct Last {
    generation: u32,
    sequence: u32,
}

/// Work by worker since some time.
struct Offered {
    work: Vec<u64>,
    since: u64,
}

impl Offered {
    fn new(workers: usize) -> Self {
        Self {
            work: vec![0; workers],
            since: 0,
        }
    }

    /// The loads, and starts again.
    fn look(&mut self, now: u64, alone: usize, awake: u16, moves: usize) -> Look {
        let elapsed = (now - self.since).max(1) as f64;
        self.work.sort_unstable_by_key(|work| Reverse(*work));
        let level = |place: usize| self.work.get(place).map_or(0.0, |w| *w as f64 / elapsed);
        let look = Look {
            at: now,
            largest: level(0),
            mean: self.work.iter().sum::<u64>() as f64 / elapsed / self.work.len() as f64,
            largest_of_rest: level(alone),
            awake,
            moves,
        };
        self.work.fill(0);
        self.since = now;
        look
    }
}

struct Run<'a> {
    policy: &'a mut dyn Policy,
    order: Order,
    workers: Vec<Worker>,
    parked: Vec<bool>,
    table: Table,
    /// Ends of batches.
    ends: BinaryHeap<Reverse<(u64, u16)>>,
    last: Vec<Last>,
    /// Work by bucket since the last scheduled look, and in the time before that.
    loads: Vec<u64>,
    before: Vec<u64>,
    counted_since: u64,
    before_since: u64,
    of_plan: Offered,
    of_sample: Offered,
    alone: usize,
    looked: u64,
    look_due: u64,
    changes: Vec<Change>,
    seen: Vec<scale::Look>,
    outcome: Outcome,
}

/// Runs a trace under a policy.
pub fn run(trace: &Trace, policy: &mut dyn Policy, order: Order) -> Outcome {
    let mut source = Source::new(trace);
    let count = usize::from(trace.workers);
    let table = Table::new(trace.workers, policy.entries());
    let entries = table.entries();
    let worker = || Worker {
        divisible: true,
        ..Worker::default()
    };
    let mut run = Run {
        order,
        workers: (0..count).map(|_| worker()).collect(),
        parked: vec![false; count],
        table,
        ends: BinaryHeap::new(),
        last: vec![Last::default(); source.places()],
        loads: vec![0; entries],
        before: vec![0; entries],
        counted_since: 0,
        before_since: 0,
        of_plan: Offered::new(count),
        of_sample: Offered::new(count),
        alone: Bound::of(trace).alone,
        looked: 0,
        look_due: policy
            .look_every()
            .map_or(u64::MAX, |every| every.as_nanos() as u64),
        changes: Vec::new(),
        seen: Vec::new(),
        outcome: Outcome {
            policy: policy.name(),
            packets: 0,
            dropped: 0,
            reordered: 0,
            moved: 0,
            entries,
            delays: Delays::default(),
            looks: Vec::new(),
            samples: Vec::new(),
            awake: 0.0,
        },
        policy,
    };
    let end = trace.end();
    while let Some(packet) = source.next(end) {
        run.pass(packet.at);
        run.arrive(packet);
    }
    run.finish(end)
}

impl Run<'_> {
    /// Lets everything happen that comes before this time, or at it.
    fn pass(&mut self, until: u64) {
        loop {
            let batch = self.ends.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            let plan = self.policy.due().unwrap_or(u64::MAX);
            let sample = self.of_sample.since + SAMPLE_NS;
            let next = batch.min(self.look_due).min(plan).min(sample);
            if next > until {
                return;
            }
            if next == batch {
                if let Some(Reverse((at, worker))) = self.ends.pop() {
                    self.complete(usize::from(worker), at);
                }
            } else if next == self.look_due {
                self.look(next);
            } else if next == sample {
                let look = self.of_sample.look(next, self.alone, self.awake(), 0);
                self.outcome.samples.push(look);
            } else {
                // One that was hurried may be due since a while.
                self.plan(next.max(self.looked), false);
            }
        }
    }

    fn awake(&self) -> u16 {
        self.workers.iter().filter(|worker| !worker.asleep).count() as u16
    }

    fn arrive(&mut self, packet: Packet) {
        self.outcome.packets += 1;
        let bucket = self.table.bucket(packet.hash);
        let number = self.owner_now(bucket);
        let work = u64::from(packet.work);
        self.loads[bucket] += work;
        self.of_plan.work[number] += work;
        self.of_sample.work[number] += work;
        let worker = &mut self.workers[number];
        if worker.ring.len() >= RING {
            self.outcome.dropped += 1;
            return;
        }
        if worker.asleep && worker.ring.is_empty() {
            worker.emptied = packet.at;
        }
        worker.ring.push_back(packet);
        worker.given += 1;
        self.table.given(bucket, worker.given);
        if worker.asleep {
            // Its queues are armed: the packet is a kick.
            self.look_due = self.look_due.min(packet.at);
        } else if !worker.running {
            let end = packet.at + worker.take(packet.at);
            self.ends.push(Reverse((end, number as u16)));
        }
    }

    /// Who gets a packet of this bucket now; the bucket moves if it may.
    fn owner_now(&mut self, bucket: usize) -> usize {
        if let Some(from) = self.table.leaves(bucket) {
            let completed = self.workers[from].completed;
            if self.order == Order::AtOnce || self.table.may_move(bucket, completed) {
                self.table.make(bucket);
                self.outcome.moved += 1;
            }
        }
        self.table.owner(bucket)
    }

    fn complete(&mut self, number: usize, now: u64) {
        let worker = &mut self.workers[number];
        worker.completed += worker.batch.len() as u64;
        worker.running = false;
        for packet in worker.batch.drain(..) {
            self.outcome.delays.record(now - packet.at);
            let last = &mut self.last[packet.flow as usize];
            if packet.generation > last.generation {
                *last = Last {
                    generation: packet.generation,
                    sequence: packet.sequence,
                };
            } else if packet.generation == last.generation {
                self.outcome.reordered += u64::from(packet.sequence < last.sequence);
                last.sequence = last.sequence.max(packet.sequence);
            }
        }
        if worker.ring.is_empty() {
            worker.emptied = now;
            self.rest(number, now);
        } else {
            let end = now + worker.take(now);
            self.ends.push(Reverse((end, number as u16)));
        }
    }

    /// Sleeps if it is parked and has nothing left to do.
    fn rest(&mut self, number: usize, now: u64) {
        let all = self.parked.iter().all(|parked| *parked);
        let free = self.parked[number] && (all || self.table.held(number) == 0);
        let worker = &mut self.workers[number];
        if free && !worker.asleep && !worker.running && worker.ring.is_empty() {
            worker.asleep = true;
            worker.awake_for += now - worker.awake_since;
        }
    }

    fn wake(&mut self, number: usize, now: u64) {
        let worker = &mut self.workers[number];
        if !worker.asleep {
            return;
        }
        worker.asleep = false;
        worker.awake_since = now;
        worker.emptied = now;
        if !worker.ring.is_empty() {
            let end = now + WAKE_NS + worker.take(now);
            self.ends.push(Reverse((end, number as u16)));
        }
    }

    fn look(&mut self, now: u64) {
        let elapsed = now - self.looked;
        self.looked = now;
        self.seen.clear();
        for (worker, parked) in self.workers.iter_mut().zip(&self.parked) {
            self.seen.push(worker.see(*parked, elapsed, now));
        }
        match self.policy.look(now, &self.seen) {
            Decision::Grow { wake, .. } => {
                self.parked[usize::from(wake.0)] = false;
                self.wake(usize::from(wake.0), now);
                self.plan(now, true);
            }
            Decision::Shrink { park, .. } => {
                self.parked[usize::from(park.0)] = true;
                self.plan(now, true);
            }
            Decision::Stay | Decision::Crowded { .. } => {}
        }
        self.sweep(now);
        let every = self.policy.look_every().filter(|_| self.awake() > 0);
        self.look_due = every.map_or(u64::MAX, |every| now + every.as_nanos() as u64);
    }

    /// Makes the moves of buckets for which nothing comes, and lets parked workers sleep.
    fn sweep(&mut self, now: u64) {
        let mut place = 0;
        while let Some(bucket) = self.table.pending(place) {
            self.owner_now(bucket);
            if self.table.leaves(bucket).is_some() {
                place += 1;
            }
        }
        for number in 0..self.workers.len() {
            self.rest(number, now);
        }
    }

    fn plan(&mut self, now: u64, extra: bool) {
        let mut elapsed = now - self.counted_since;
        let joined = extra && elapsed < SHORT_NS;
        if joined {
            elapsed = now - self.before_since;
            for (load, before) in self.loads.iter_mut().zip(&self.before) {
                *load += *before;
            }
        }
        let busy: Vec<_> = self.workers.iter().map(|w| w.busy_in_plan).collect();
        self.changes.clear();
        let view = View {
            now,
            elapsed: elapsed.max(1),
            loads: &self.loads,
            owners: self.table.wanted(),
            busy: &busy,
            extra,
        };
        self.policy.plan(&view, &mut self.parked, &mut self.changes);
        if joined {
            for (load, before) in self.loads.iter_mut().zip(&self.before) {
                *load -= *before;
            }
        }
        for (bucket, to) in &self.changes {
            self.table.want(*bucket, *to);
        }
        for number in 0..self.workers.len() {
            if !self.parked[number] {
                self.wake(number, now);
            }
        }
        self.sweep(now);
        if !extra {
            self.count_anew(now);
        }
    }

    fn count_anew(&mut self, now: u64) {
        let moves = self.changes.len();
        let look = self.of_plan.look(now, self.alone, self.awake(), moves);
        self.outcome.looks.push(look);
        let mut most = vec![0; self.workers.len()];
        let mut all = vec![0; self.workers.len()];
        for (load, owner) in self.loads.iter().zip(self.table.wanted()) {
            let owner = usize::from(*owner);
            most[owner] = *load.max(&most[owner]);
            all[owner] += *load;
        }
        for (number, worker) in self.workers.iter_mut().enumerate() {
            worker.divisible = most[number] as f64 <= INDIVISIBLE * all[number] as f64;
            worker.busy_in_plan = 0;
        }
        std::mem::swap(&mut self.loads, &mut self.before);
        self.loads.fill(0);
        self.before_since = self.counted_since;
        self.counted_since = now;
    }

    /// Lets the workers complete what they have.
    fn finish(mut self, end: u64) -> Outcome {
        self.pass(end);
        let mut now = end;
        for number in 0..self.workers.len() {
            self.wake(number, end);
        }
        while let Some(Reverse((at, worker))) = self.ends.pop() {
            now = at;
            self.complete(usize::from(worker), at);
        }
        let awake = |worker: &Worker| match worker.asleep {
            true => worker.awake_for,
            false => worker.awake_for + now.max(end) - worker.awake_since,
        };
        self.outcome.awake = self.workers.iter().map(awake).sum::<u64>() as f64 / now as f64;
        self.outcome
    }
}
