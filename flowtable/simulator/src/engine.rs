//! The clock: packets, workers and looks in the order of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use vswitch_flowtable::balance::Node;
use vswitch_flowtable::scale::{self, Decision};

use crate::outcome::{Bound, Delays, Late, Look, Outcome};
use crate::policy::{Change, Policy, View};
use crate::trace::{Packet, Source, Trace};
use late::Ledger;
use table::Table;

mod late;
mod table;

/// Entries of a worker's ring.
pub const RING: usize = 1024;
/// Most packets that a worker takes at a time.
pub const BURST: usize = 32;
/// From the look that wakes a worker to its first packet, in ns.
const WAKE_NS: u64 = 5000;
/// Time between samples, in ns.
const SAMPLE_NS: u64 = 10_000_000;
/// Time between looks at what is true, in ns.
const TRUTH_NS: u64 = 1_000_000;
/// Over how long a policy that knows the true rates is told them.
const KNOWN_NS: u64 = 1_000_000_000;
/// A bucket with more than this part of its worker's load leaves nothing worth giving away.
const INDIVISIBLE: f64 = 0.8;

/// When a bucket goes to its new worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// When the old one has completed what it was given for it.
    Kept,
    /// With the next packet; but the new one takes nothing from its ring beyond that packet until the old one has completed
    /// what it was given. No two workers wait for each other: whatever a packet waits for came before it, and so did all
    /// that is before that in its ring.
    Gated,
    /// With the next packet, as if nothing were queued. This reorders.
    AtOnce,
}

/// A packet of a worker after which another may go on: the worker, and the packet's number there.
type Gate = (u16, u64);

#[derive(Clone, Copy)]
struct Queued {
    packet: Packet,
    gate: Option<Gate>,
    /// For how long its worker had ever waited when it came.
    waited: u64,
}

/// A worker.
#[derive(Default)]
struct Worker {
    ring: VecDeque<Queued>,
    batch: Vec<Queued>,
    running: bool,
    /// For another, with packets in its ring.
    waits: bool,
    waits_since: u64,
    /// For how long it ever waited for others.
    waited: u64,
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
    /// Takes so many packets; says how long they will take.
    fn take(&mut self, count: usize, now: u64) -> u64 {
        self.batch.extend(self.ring.drain(..count));
        self.taken += count as u64;
        if self.ring.is_empty() {
            self.emptied = now;
        }
        let work = self
            .batch
            .iter()
            .map(|one| u64::from(one.packet.work))
            .sum();
        self.running = true;
        self.busy_in_look += work;
        self.busy_in_plan += work;
        work
    }

    /// For how long it ever waited for others, up to now.
    fn waited(&self, now: u64) -> u64 {
        self.waited
            + if self.waits {
                now - self.waits_since
            } else {
                0
            }
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
            stays: false,
            node: Node(0),
            help: Node(0),
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

/// Work by bucket since some time.
struct Recent {
    loads: Vec<u64>,
    since: u64,
}

impl Recent {
    fn new(entries: usize) -> Self {
        Self {
            loads: vec![0; entries],
            since: 0,
        }
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
    /// Work by bucket since the last scheduled look.
    loads: Vec<u64>,
    counted_since: u64,
    /// The same since the last sample and since the one before that: for looks between two scheduled ones.
    recent: [Recent; 2],
    both: Vec<u64>,
    of_plan: Offered,
    of_sample: Offered,
    alone: usize,
    any_waits: bool,
    looked: u64,
    look_due: u64,
    changes: Vec<Change>,
    seen: Vec<scale::Look>,
    source: Source,
    truth: Vec<f64>,
    truth_due: u64,
    ledger: Ledger,
    outcome: Outcome,
}

/// Runs a trace under a policy.
pub fn run(trace: &Trace, policy: &mut dyn Policy, order: Order) -> Outcome {
    let count = usize::from(trace.workers);
    let table = Table::new(trace.workers, policy.entries());
    let entries = table.entries();
    let source = Source::new(trace, entries);
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
        counted_since: 0,
        recent: [Recent::new(entries), Recent::new(entries)],
        both: vec![0; entries],
        of_plan: Offered::new(count),
        of_sample: Offered::new(count),
        alone: Bound::of(trace).alone,
        any_waits: false,
        looked: 0,
        look_due: policy
            .look_every()
            .map_or(u64::MAX, |every| every.as_nanos() as u64),
        changes: Vec::new(),
        seen: Vec::new(),
        source,
        truth: Vec::new(),
        truth_due: TRUTH_NS,
        ledger: Ledger::new(count),
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
            late: Late::default(),
        },
        policy,
    };
    let end = trace.end();
    while let Some(packet) = run.source.next(end) {
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
            let next = batch
                .min(self.look_due)
                .min(plan)
                .min(sample)
                .min(self.truth_due);
            if next > until {
                return;
            }
            if next == batch {
                if let Some(Reverse((at, worker))) = self.ends.pop() {
                    self.complete(usize::from(worker), at);
                }
            } else if next == self.look_due {
                self.look(next);
            } else if next == self.truth_due {
                self.see_truth(next);
            } else if next == sample {
                let look = self.of_sample.look(next, self.alone, self.awake(), 0);
                self.outcome.samples.push(look);
                self.recent_anew(next);
            } else {
                // One that was hurried may be due since a while.
                self.plan(next.max(self.looked), false);
            }
        }
    }

    /// Notes who is overloaded, and by what. It is known one packet ahead.
    fn see_truth(&mut self, now: u64) {
        self.truth_due = now + TRUTH_NS;
        self.source.truth(&mut self.truth);
        let came = self.source.came().filter(|(at, _)| at + TRUTH_NS >= now);
        let came = came.map(|(_, hash)| self.table.owner(self.table.bucket(hash)));
        let owner = |bucket| self.table.owner(bucket);
        let queued = |worker: usize| self.workers[worker].ring.len();
        self.ledger.look(&self.truth, owner, queued, came);
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
        self.recent[0].loads[bucket] += work;
        self.of_plan.work[number] += work;
        self.of_sample.work[number] += work;
        let worker = &mut self.workers[number];
        if worker.ring.len() >= RING {
            self.outcome.dropped += 1;
            self.ledger.record(number, u64::MAX, 0);
            return;
        }
        if worker.ring.is_empty() && !worker.running {
            worker.emptied = packet.at;
        }
        worker.given += 1;
        self.table.given(bucket, worker.given);
        let is_free = !worker.running && worker.ring.is_empty();
        let gate = self.table.gate(bucket).filter(|gate| !self.is_open(*gate));
        let worker = &mut self.workers[number];
        let waited = worker.waited(packet.at);
        worker.ring.push_back(Queued {
            packet,
            gate,
            waited,
        });
        if worker.asleep {
            // Its queues are armed: the packet is a kick.
            self.look_due = self.look_due.min(packet.at);
        } else if is_free {
            self.start(number, packet.at, packet.at);
        }
    }

    fn is_open(&self, (worker, number): Gate) -> bool {
        self.workers[usize::from(worker)].completed >= number
    }

    /// Takes from the ring what may be taken, up to a burst, and works on it from that time on.
    fn start(&mut self, number: usize, now: u64, from: u64) {
        let ring = self.workers[number].ring.iter().take(BURST);
        let open = |queued: &&Queued| queued.gate.is_none_or(|gate| self.is_open(gate));
        let count = ring.take_while(open).count();
        if count > 0 {
            let end = from + self.workers[number].take(count, now);
            self.ends.push(Reverse((end, number as u16)));
        }
        let worker = &mut self.workers[number];
        worker.waited = worker.waited(now);
        worker.waits_since = now;
        worker.waits = count == 0;
        self.any_waits |= count == 0;
    }

    /// Lets those go on that wait for others.
    fn go_on(&mut self, now: u64) {
        self.any_waits = false;
        for number in 0..self.workers.len() {
            if self.workers[number].waits {
                self.start(number, now, now);
            }
        }
    }

    /// Who gets a packet of this bucket now; the bucket moves if it may.
    fn owner_now(&mut self, bucket: usize) -> usize {
        if let Some(from) = self.table.leaves(bucket) {
            let completed = self.workers[from].completed;
            if self.order != Order::Kept || self.table.may_move(bucket, completed) {
                self.table.make(bucket, self.order == Order::Gated);
                self.outcome.moved += 1;
            }
        }
        self.table.owner(bucket)
    }

    fn complete(&mut self, number: usize, now: u64) {
        let worker = &mut self.workers[number];
        worker.completed += worker.batch.len() as u64;
        worker.running = false;
        let waited = worker.waited(now);
        for Queued {
            packet,
            waited: before,
            ..
        } in worker.batch.drain(..)
        {
            let delay = now - packet.at;
            self.outcome.delays.record(delay);
            self.ledger.record(number, delay, waited - before);
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
            self.start(number, now, now);
        }
        if self.any_waits {
            self.go_on(now);
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
            self.start(number, now, now + WAKE_NS);
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
                if self.awake() == 0 {
                    // What was before the silence says nothing.
                    self.recent_anew(now);
                    self.recent_anew(now);
                }
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
        if self.policy.counts_anew() {
            self.loads.fill(0);
            self.counted_since = now;
            for worker in &mut self.workers {
                worker.busy_in_plan = 0;
            }
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

    fn recent_anew(&mut self, now: u64) {
        self.recent.swap(0, 1);
        self.recent[0].loads.fill(0);
        self.recent[0].since = now;
    }

    fn plan(&mut self, now: u64, extra: bool) {
        let [last, before] = &self.recent;
        for (both, pair) in self
            .both
            .iter_mut()
            .zip(last.loads.iter().zip(&before.loads))
        {
            *both = pair.0 + pair.1;
        }
        if self.policy.knows() {
            self.source.truth(&mut self.truth);
            let ns = |share: &f64| (share * KNOWN_NS as f64) as u64;
            self.both.clear();
            self.both.extend(self.truth.iter().map(ns));
        }
        let (loads, since) = match extra {
            _ if self.policy.knows() => (&self.both, now.saturating_sub(KNOWN_NS)),
            true => (&self.both, before.since),
            false => (&self.loads, self.counted_since),
        };
        let busy: Vec<_> = self.workers.iter().map(|w| w.busy_in_plan).collect();
        self.changes.clear();
        let view = View {
            now,
            elapsed: if self.policy.knows() {
                KNOWN_NS
            } else {
                (now - since).max(1)
            },
            loads,
            owners: self.table.wanted(),
            busy: &busy,
            extra,
        };
        self.policy.plan(&view, &mut self.parked, &mut self.changes);
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
        self.loads.fill(0);
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
        self.outcome.late = self.ledger.late;
        self.outcome.awake = self.workers.iter().map(awake).sum::<u64>() as f64 / now as f64;
        self.outcome
    }
}
