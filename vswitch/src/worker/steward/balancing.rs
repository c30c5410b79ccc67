//! Who has which queue.

use std::time::{Instant, SystemTime};

use vswitch_flowtable::balance::{self, Item, ItemLoad, Node, Plan, Reason, WorkerRoom};

use super::super::QueueKey;
use super::super::registry::{Seen, Workers};
#[cfg(feature = "dpdk")]
use super::reta;
use super::trace::{Trace, What};
use super::{Brain, WORKERS};

impl Brain {
    /// Moves queues by what they took since the last time.
    pub(super) fn balance(&mut self, now: Instant, workers: &Workers) -> Balanced {
        let pressed = self.pressed.is_some();
        let (list, queues) = (workers.list(), workers.queues());
        self.changed = false;
        let elapsed = now.duration_since(self.balanced).as_nanos() as u64;
        let (measured, before) = self.remember(now, &queues);
        let mut by_owner = [0_u64; WORKERS];
        for (queue, load) in queues.iter().zip(&measured) {
            if let Some(sum) = by_owner.get_mut(queue.owner) {
                *sum += load;
            }
        }
        // A turn counts when it ends, and one that was kept from its core may have begun long before.
        let longest = by_owner.into_iter().max().unwrap_or(0);
        let mut rooms = rooms(&list, elapsed.max(longest).max(1));
        // Numbers without a queue, and pinned queues, are where they need not go away from.
        let taker = rooms.iter().position(|room| room.takes).unwrap_or(0);
        let absent = ItemLoad {
            worker: balance::Worker(taker as u16),
            load: 0,
            node: None,
        };
        let mut items = vec![
            absent;
            self.queues
                .values()
                .map(|k| usize::from(k.item) + 1)
                .max()
                .unwrap_or(0)
        ];
        let mut names = vec![None; items.len()];
        #[cfg(feature = "dpdk")]
        let whole = rooms.clone();
        let mut known = self.queues.iter().peekable();
        for (queue, &load) in queues.iter().zip(&measured) {
            // Only those that found no number are missing.
            let Some((_, known)) = known.next_if(|(key, _)| **key == queue.key) else {
                continue;
            };
            if let Some(helper) = queue.helper
                && let Some(room) = rooms.get_mut(helper.worker)
            {
                let since = before.get(&queue.key).and_then(|known| known.helped);
                let took = helper.busy_ns.saturating_sub(since.map_or(0, |(_, ns)| ns));
                room.capacity = room.capacity.saturating_sub(took).max(1);
            }
            if queue.pinned || queue.helper.is_some() {
                if let Some(room) = rooms.get_mut(queue.owner) {
                    room.capacity = room.capacity.saturating_sub(load).max(1);
                }
                continue;
            }
            let at = usize::from(known.item);
            if let (Some(item), Some(name)) = (items.get_mut(at), names.get_mut(at)) {
                *item = ItemLoad {
                    worker: balance::Worker(queue.owner as u16),
                    load,
                    node: queue.node,
                };
                *name = Some(queue.key);
            }
        }
        let plan = self.balancer.plan(&items, &rooms);
        carry_out(&plan, &names, pressed, workers, &self.trace);
        let relieves = |made: &balance::Move| !matches!(made.reason, Reason::Home(_));
        let mut balanced = Balanced {
            outcome: plan.outcome,
            helped: plan.moves.iter().any(relieves),
        };
        let moved = !plan.moves.is_empty();
        // One thing at a time: what was measured is of the queues as they were.
        #[cfg(feature = "dpdk")]
        if !moved {
            let loads = queues.iter().zip(measured).map(|(queue, load)| {
                let owner = queue.owner;
                (queue.key, reta::QueueLoad { owner, load })
            });
            let loads = reta::Loads::new(loads);
            let retas = &mut self.retas;
            if retas.balance(&loads, &whole, pressed, workers, &self.trace) {
                self.balancer.hurry();
                balanced.helped = true;
                return balanced;
            }
        }
        if !moved && self.may_share(now) {
            balanced.helped |= self.share(now, workers);
        }
        // What is learned counts at the next look.
        workers.look_for_homes(now);
        balanced
    }
}

/// What came of balancing.
pub(super) struct Balanced {
    pub(super) outcome: balance::Outcome,
    /// Somebody has less to do.
    pub(super) helped: bool,
}

/// The workers as the balancer sees them, by number.
fn rooms(list: &[Seen], capacity: u64) -> Vec<WorkerRoom> {
    let nobody = WorkerRoom {
        capacity,
        takes: false,
        node: Node(u8::MAX),
    };
    let places = list.iter().map(|w| w.index + 1).max().unwrap_or(0);
    let mut rooms = vec![nobody; places];
    for worker in list {
        if let Some(room) = rooms.get_mut(worker.index) {
            *room = WorkerRoom {
                capacity,
                takes: !worker.resting,
                node: worker.node,
            };
        }
    }
    rooms
}

/// Moves what is to move, and notes it; what was counted for a moment only says nothing of queues that fill a worker.
fn carry_out(
    plan: &Plan<'_>,
    names: &[Option<QueueKey>],
    pressed: bool,
    workers: &Workers,
    trace: &Trace,
) {
    let stood = if pressed { "; work stood" } else { "" };
    let named = |item: Item| names.get(usize::from(item.0)).copied().flatten();
    for a_move in plan.moves {
        let (from, to) = (usize::from(a_move.from.0), usize::from(a_move.to.0));
        let Some(queue) = named(a_move.item) else {
            continue;
        };
        // A queue that has gone, or is moved by somebody else, is not worth a word.
        if workers.move_queue(queue, to) == Ok(true) {
            let why = match a_move.reason {
                // Numbers of items mean nothing to people.
                Reason::BesideElephant(_) => "a heavy queue needs the room".to_owned(),
                Reason::ElephantsApart(_) => "two heavy queues part".to_owned(),
                Reason::Home(node) => format!("its memory or device is on node {}", node.0),
                other => other.to_string(),
            };
            let (before, after) = (a_move.before * 100.0, a_move.after * 100.0);
            let reason = format!("{why}: largest load {before:.0} % -> {after:.0} %{stood}");
            let what = What::Move { queue, from, to };
            trace.note(SystemTime::now(), what, reason);
        }
    }
    for filling in plan.filling.iter().filter(|_| !pressed) {
        if let Some(queue) = named(filling.item) {
            let load = filling.load * 100.0;
            let worker = filling.worker.0;
            let reason = format!("it alone takes {load:.0} % of worker {worker}");
            trace.note(SystemTime::now(), What::Filling(queue), reason);
        }
    }
}
