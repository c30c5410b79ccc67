//! Which of a NIC's receive queues gets which flows: the buckets of its redirection table, by load.
//!
//! Queues that have one owner move as a whole, and that comes first. When no queue moves, the buckets of each port are
//! balanced over its queues: a queue has as much room as its owner has left, by equal parts if that owns several. A
//! bucket's load is its part of its queue's, by the frames that were counted; of a device that does not hand on its hash
//! every bucket of a queue is taken for the same.

use std::collections::BTreeMap;
use std::time::SystemTime;

use vswitch_flowtable::balance::{self, Balancer, ItemLoad, Node, WorkerRoom};

use super::super::QueueKey;
use super::super::registry::Workers;
use super::trace::{Trace, What};
use crate::forward::PortRef;

/// What a queue took since the last look, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLoad {
    pub(super) owner: usize,
    /// Nanoseconds.
    pub(super) load: u64,
}

/// What all queues took since the last look.
pub(super) struct Loads {
    queues: BTreeMap<QueueKey, QueueLoad>,
    /// By owner, all together.
    owners: Vec<u64>,
}

impl Loads {
    pub(super) fn new(queues: impl IntoIterator<Item = (QueueKey, QueueLoad)>) -> Self {
        let queues: BTreeMap<_, _> = queues.into_iter().collect();
        let mut owners = Vec::new();
        for QueueLoad { owner, load } in queues.values() {
            if owners.len() <= *owner {
                owners.resize(owner + 1, 0);
            }
            if let Some(sum) = owners.get_mut(*owner) {
                *sum += load;
            }
        }
        Loads { queues, owners }
    }

    /// A port's queues from 0 on. `None` if some of so many are missing.
    fn of(&self, port: PortRef, queues: u16) -> Option<Vec<QueueLoad>> {
        let all = QueueKey { port, queue: 0 }..QueueKey {
            port,
            queue: queues,
        };
        let found: Vec<_> = self.queues.range(all).map(|(_, load)| *load).collect();
        (found.len() == usize::from(queues)).then_some(found)
    }

    /// What an owner's queues took.
    fn by(&self, owner: usize) -> u64 {
        self.owners.get(owner).copied().unwrap_or_default()
    }
}

/// The ports with a table.
#[derive(Default)]
pub(super) struct Retas {
    ports: BTreeMap<PortRef, Buckets>,
}

struct Buckets {
    balancer: Balancer,
    /// Frames by bucket at the last look.
    counted: Vec<u32>,
}

impl Retas {
    /// Counts from now on, as what was known is of another time.
    pub(super) fn begin(&mut self, workers: &Workers) {
        self.count(workers);
        self.ports
            .values_mut()
            .for_each(|known| known.balancer.forget());
    }

    /// Counts from now on.
    pub(super) fn count(&mut self, workers: &Workers) {
        for (port, reta) in workers.retas() {
            if let Some(known) = self.ports.get_mut(&port) {
                known.counted = reta.counted();
            }
        }
    }

    /// Moves buckets; true if it did. `rooms` are the workers, by number. `pressed` if this was counted because work stands.
    pub(super) fn balance(
        &mut self,
        loads: &Loads,
        rooms: &[WorkerRoom],
        pressed: bool,
        workers: &Workers,
        trace: &Trace,
    ) -> bool {
        let retas = workers.retas();
        self.ports
            .retain(|port, _| retas.binary_search_by_key(port, |(at, _)| *at).is_ok());
        let mut moved = false;
        for (port, reta) in retas {
            let (table, counted) = (reta.table(), reta.counted());
            let queues = reta.buckets().len();
            let known = self.ports.entry(port).or_insert_with(|| Buckets {
                balancer: Balancer::new(table.len(), queues, balance::Settings::default()),
                counted: vec![0; table.len()],
            });
            let before = std::mem::replace(&mut known.counted, counted);
            let frames = known.counted.iter().zip(&before);
            let frames: Vec<_> = frames
                .map(|(now, before)| now.wrapping_sub(*before))
                .collect();
            let Some((sides, by_queue)) = sides(port, queues, loads, rooms) else {
                continue;
            };
            if pressed {
                // If that was in vain a moment ago, this look is one like any other.
                let _ = known.balancer.press();
            }
            let plan = known
                .balancer
                .plan(&items(&table, &frames, &by_queue), &sides);
            for (to, moves) in by_target(plan.moves) {
                let mut from: Vec<u16> = moves.iter().map(|m| m.from.0).collect();
                from.sort_unstable();
                from.dedup();
                let buckets: Vec<u16> = moves.iter().map(|m| m.item.0).collect();
                let write = || reta.set(&buckets, to);
                let Ok(in_time) = workers.redirect(port, &from, to, write) else {
                    continue;
                };
                moved = true;
                if !in_time {
                    reta.was_late();
                }
                let what = What::Buckets {
                    queue: QueueKey { port, queue: to },
                    count: buckets.len() as u16,
                };
                trace.note(SystemTime::now(), what, reason(&moves));
            }
        }
        moved
    }
}

/// From before the first move to after the last.
fn reason(moves: &[balance::Move]) -> String {
    let before = moves.first().map_or(0.0, |m| m.before) * 100.0;
    let after = moves.last().map_or(0.0, |m| m.after) * 100.0;
    format!("largest load of a queue {before:.0} % -> {after:.0} %")
}

/// Moves by the queue that they lead to.
fn by_target(moves: &[balance::Move]) -> BTreeMap<u16, Vec<balance::Move>> {
    let mut groups = BTreeMap::<u16, Vec<_>>::new();
    for one in moves {
        groups.entry(one.to.0).or_default().push(*one);
    }
    groups
}

/// The port's queues as the balancer sees workers, and the load of each. `None` if some queue has no owner just now.
fn sides(
    port: PortRef,
    queues: usize,
    loads: &Loads,
    rooms: &[WorkerRoom],
) -> Option<(Vec<WorkerRoom>, Vec<u64>)> {
    let own = loads.of(port, u16::try_from(queues).ok()?)?;
    // Of each owner, how many of these it has and what they took.
    let mut sums = BTreeMap::<usize, (u64, u64)>::new();
    for queue in &own {
        let (count, load) = sums.entry(queue.owner).or_default();
        (*count, *load) = (*count + 1, *load + queue.load);
    }
    let side = |queue: &QueueLoad| {
        let room = rooms.get(queue.owner)?;
        let (sharing, theirs) = sums.get(&queue.owner).copied().unwrap_or_default();
        let beside = loads.by(queue.owner).saturating_sub(theirs);
        Some(WorkerRoom {
            capacity: (room.capacity.saturating_sub(beside) / sharing.max(1)).max(1),
            node: Node(0),
            ..*room
        })
    };
    let sides = own.iter().map(side).collect::<Option<_>>()?;
    Some((sides, own.iter().map(|queue| queue.load).collect()))
}

/// The buckets with their loads.
fn items(table: &[u16], frames: &[u32], by_queue: &[u64]) -> Vec<ItemLoad> {
    let mut sums = vec![(0_u64, 0_u64); by_queue.len()];
    for (queue, frames) in table.iter().zip(frames) {
        if let Some((buckets, all)) = sums.get_mut(usize::from(*queue)) {
            *buckets += 1;
            *all += u64::from(*frames);
        }
    }
    let load = |queue: usize, frames: u32| {
        let load = by_queue.get(queue).copied().unwrap_or_default();
        match sums.get(queue) {
            Some((buckets, 0)) => load / (*buckets).max(1),
            Some((_, all)) => (u128::from(load) * u128::from(frames) / u128::from(*all)) as u64,
            None => 0,
        }
    };
    let items = table.iter().zip(frames);
    let items = items.map(|(queue, frames)| ItemLoad {
        worker: balance::Worker(*queue),
        load: load(usize::from(*queue), *frames),
        node: None,
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::PortIndex;

    const PERIOD: u64 = 10_000_000;

    fn port(n: u16) -> PortRef {
        PortRef {
            index: PortIndex(n),
            incarnation: 1,
        }
    }

    fn key(port_number: u16, queue: u16) -> QueueKey {
        QueueKey {
            port: port(port_number),
            queue,
        }
    }

    fn room(takes: bool) -> WorkerRoom {
        WorkerRoom {
            capacity: PERIOD,
            takes,
            node: Node(3),
        }
    }

    #[test]
    fn a_queue_has_what_its_owner_has_left() {
        let load = |owner, load| QueueLoad { owner, load };
        let loads = Loads::new([
            (key(0, 0), load(0, 10)),
            (key(0, 1), load(1, 20)),
            (key(0, 2), load(1, 30)),
            (key(7, 0), load(1, 4_000_000)),
        ]);
        let rooms = [room(true), room(false)];
        let (sides, by_queue) = sides(port(0), 3, &loads, &rooms).unwrap();
        let seen: Vec<_> = sides.iter().map(|s| (s.capacity, s.takes)).collect();
        assert_eq!(
            seen,
            [(PERIOD, true), (3_000_000, false), (3_000_000, false)]
        );
        assert_eq!(by_queue, [10, 20, 30]);
        assert!(
            super::sides(port(0), 4, &loads, &rooms).is_none(),
            "one has no owner"
        );
    }

    #[test]
    fn buckets_share_their_queues_load() {
        let loads = |frames: &[u32]| {
            let items = items(&[0, 0, 1, 1], frames, &[900, 100]);
            items.iter().map(|item| item.load).collect::<Vec<_>>()
        };
        assert_eq!(loads(&[1, 2, 5, 5]), [300, 600, 50, 50]);
        assert_eq!(
            loads(&[0, 0, 4, 0]),
            [450, 450, 100, 0],
            "nothing was counted"
        );
    }

    /// Skewed buckets over queues that all but one worker has for itself.
    #[test]
    fn skewed_buckets_even_out() {
        let mut table: Vec<u16> = (0..128).map(|bucket| bucket % 4).collect();
        // By Zipf's law with exponent 1, in an order that puts the heavy ones on one queue.
        let weight = |bucket: u16| 1000 / (u32::from(bucket / 4 + bucket % 4 * 32) + 1) + 1;
        let frames: Vec<u32> = (0..128).map(weight).collect();
        let all: u32 = frames.iter().sum();
        let of = |table: &[u16]| {
            let mut loads = [0_u64; 4];
            for (queue, frames) in table.iter().zip(&frames) {
                // Two of four workers' time altogether.
                loads[usize::from(*queue)] += u64::from(*frames) * PERIOD * 2 / u64::from(all);
            }
            loads
        };
        let mut balancer = Balancer::new(128, 4, balance::Settings::default());
        let sides = [room(true); 4];
        let before = *of(&table).iter().max().unwrap();
        for _ in 0..40 {
            let plan = balancer.plan(&items(&table, &frames, &of(&table)), &sides);
            for (to, moves) in by_target(plan.moves) {
                for one in moves {
                    table[usize::from(one.item.0)] = to;
                }
            }
        }
        let (after, mean) = (*of(&table).iter().max().unwrap(), PERIOD / 2);
        let largest = u64::from(*frames.iter().max().unwrap()) * PERIOD * 2 / u64::from(all);
        assert!(before > mean * 2, "{before}");
        assert!(
            after <= mean.max(largest) * 11 / 10,
            "{after} of {mean}, {largest}"
        );
    }
}
