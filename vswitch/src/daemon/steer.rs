//! The methods about workers and who has which queue.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vswitch_api::config;
use vswitch_api::rpc::{
    Done, RpcError, ShareWish, SteerAction, SteerDecision, SteerDecisions, SteerSetParams,
    SteerShareParams, SteerStatus, SteeredGuest, SteeredQueue, WorkerDetail, WorkerList,
    WorkerQueue, WorkerState, code,
};

use super::port::Attachment;
use super::switch::Switch;
use crate::forward::PortRef;
use crate::worker::registry::sharing::ShareError;
use crate::worker::registry::{Asked, MoveError, QueueSeen, Seen};
use crate::worker::steward::trace::{Decision, What};
use crate::worker::{BusyPoll, QueueKey};

/// What a worker does when idle, as the configuration says it.
pub(super) fn busy_poll(mode: BusyPoll) -> config::BusyPoll {
    match mode {
        BusyPoll::Always => config::BusyPoll::Always,
        BusyPoll::Adaptive => config::BusyPoll::Adaptive,
        BusyPoll::Never => config::BusyPoll::Never,
    }
}

/// Queues by name; those of a port that has just gone are left out.
pub(super) fn named(switch: &Switch, queues: &[QueueKey]) -> Vec<WorkerQueue> {
    let named = queues.iter().filter_map(|key| name(switch, *key));
    let mut named: Vec<_> = named.collect();
    named.sort_by(|a, b| (&a.port, a.queue).cmp(&(&b.port, b.queue)));
    named
}

fn name(switch: &Switch, key: QueueKey) -> Option<WorkerQueue> {
    Some(WorkerQueue {
        port: switch.port_at(key.port)?.name.to_string(),
        queue: key.queue,
    })
}

/// `workers`
pub(super) fn workers(switch: &Switch) -> WorkerList {
    switch.workers.look_for_homes(Instant::now());
    let (workers, queues) = (switch.workers.list(), switch.workers.queues());
    WorkerList {
        workers: workers.iter().map(|w| detail(switch, w, &queues)).collect(),
    }
}

fn detail(switch: &Switch, worker: &Seen, queues: &[QueueSeen]) -> WorkerDetail {
    let far = queues
        .iter()
        .filter(|q| q.owner == worker.index && is_far(q, worker));
    let far: Vec<_> = far.map(|q| q.key).collect();
    let helps = |queue: &&QueueSeen| queue.helper.is_some_and(|h| h.worker == worker.index);
    let helps = queues.iter().find(helps);
    let pulse = worker.vitals.read();
    let shares = switch.shares.get(worker.index);
    let ns = |d: Duration| d.as_nanos() as u64;
    WorkerDetail {
        index: worker.index as u16,
        core: worker.wanted.core,
        node: worker.node.0,
        cache: worker.kin.cache,
        busy_poll: busy_poll(worker.wanted.busy_poll),
        max_sleep_ns: ns(worker.wanted.max_sleep),
        state: match (pulse.parked, pulse.asleep) {
            (true, _) => WorkerState::Parked,
            (false, true) => WorkerState::Asleep,
            (false, false) => WorkerState::Polling,
        },
        queues: named(switch, &worker.queues),
        far: named(switch, &far),
        helps: helps.and_then(|queue| name(switch, queue.key)),
        busy_share: shares.map_or(0.0, |s| s.busy),
        awake_share: shares.map_or(0.0, |s| s.awake),
        delay_ns: ns(pulse.delay),
        delay_p99_ns: ns(pulse.delay_p99),
        delay_max_ns: ns(pulse.delay_max),
        wakes: pulse.sleeps,
        naps: pulse.naps,
        moved_in: pulse.moved_in,
        moved_out: pulse.moved_out,
    }
}

/// A queue is on another node than its worker.
fn is_far(queue: &QueueSeen, worker: &Seen) -> bool {
    queue.node.is_some_and(|node| node != worker.node)
}

/// `steer.show`
pub(super) fn show(switch: &Switch) -> SteerStatus {
    switch.workers.look_for_homes(Instant::now());
    let (moves, unsettled) = switch.workers.moves();
    let list = switch.workers.list();
    let in_use = list.iter().filter(|w| !w.resting);
    let queues = switch.workers.queues().into_iter();
    let mut queues: Vec<_> = queues
        .filter_map(|queue| {
            let WorkerQueue { port, queue: pair } = name(switch, queue.key)?;
            Some(SteeredQueue {
                port,
                queue: pair,
                worker: queue.owner as u16,
                node: queue.node.map(|node| node.0),
                far: list
                    .iter()
                    .any(|w| w.index == queue.owner && is_far(&queue, w)),
                helper: queue.helper.map(|helper| helper.worker as u16),
                helper_outputs: queue.helper.map(|helper| helper.outputs),
                share: match queue.asked {
                    Asked::Auto => ShareWish::Auto,
                    Asked::On => ShareWish::On,
                    Asked::Off => ShareWish::Off,
                },
                pinned: queue.pinned,
                busy_ns: queue.vitals.busy_ns(),
                frames: queue.vitals.frames(),
                buckets: buckets(switch, queue.key),
            })
        })
        .collect();
    queues.sort_by(|a, b| (&a.port, a.queue).cmp(&(&b.port, b.queue)));
    SteerStatus {
        rebalance: switch.config.steering.rebalance,
        scale: switch.config.steering.scale,
        share: switch.config.steering.share,
        in_use: in_use.map(|w| w.index as u16).collect(),
        moves,
        unsettled,
        queues,
        guests: guests(switch),
    }
}

fn guests(switch: &Switch) -> Vec<SteeredGuest> {
    let ports = switch.ports.values();
    let guests = ports.filter_map(|port| match &port.attachment {
        Attachment::Guest(guest) => Some((&port.name, guest)),
        _ => None,
    });
    let several = guests.filter(|(_, guest)| guest.queues.pairs() > 1);
    let mut guests: Vec<_> = several
        .map(|(name, guest)| {
            let steered = guest.queues.steering().steered();
            let active = guest.queues.active();
            let buckets = steered.buckets.iter().take(active.into());
            SteeredGuest {
                port: name.to_string(),
                receive_steering: guest.config().receive_steering,
                max_queue_pairs: guest.queues.pairs(),
                active,
                buckets: buckets.map(|n| *n as u32).collect(),
                pins: steered.pins as u32,
                pins_refused: steered.refused,
                moved_completed: steered.moves.completed,
                moved_idle: steered.moves.idle,
                moved_forced: steered.moves.forced,
                waited: steered.moves.waited,
                unsettled: steered.unsettled,
            }
        })
        .collect();
    guests.sort_by(|a, b| a.port.cmp(&b.port));
    guests
}

/// How many buckets a device sends to this queue of its.
fn buckets(switch: &Switch, key: QueueKey) -> Option<u16> {
    #[cfg(feature = "dpdk")]
    {
        let retas = switch.workers.retas();
        let (_, reta) = retas.iter().find(|(port, _)| *port == key.port)?;
        reta.buckets().get(usize::from(key.queue)).copied()
    }
    #[cfg(not(feature = "dpdk"))]
    {
        let _ = (switch, key);
        None
    }
}

/// `steer.set`
pub(super) fn set(switch: &Switch, p: &SteerSetParams) -> Result<Done, RpcError> {
    let key = QueueKey {
        port: switch.find_port(&p.port)?.at,
        queue: p.queue,
    };
    let outcome = switch.steward.set(key, p.worker.map(usize::from));
    outcome.map(|()| Done {}).map_err(|error| match error {
        MoveError::NoQueue => no_queue(&p.port, p.queue),
        MoveError::NoWorker => {
            let list = switch.workers.list();
            let list: Vec<_> = list.iter().map(|w| w.index.to_string()).collect();
            RpcError::new(
                code::NOT_FOUND,
                format!(
                    "there is no worker {}; workers: {}",
                    p.worker.unwrap_or_default(),
                    list.join(", ")
                ),
            )
        }
        MoveError::InTransit => RpcError::new(
            code::SYSTEM,
            format!("{}/{} is just being moved; try again", p.port, p.queue),
        ),
    })
}

fn no_queue(port: &str, queue: u16) -> RpcError {
    RpcError::new(
        code::NOT_FOUND,
        format!(
            "no worker takes frames from {port}/{queue}; `vswitchctl steer show` lists the queues in use"
        ),
    )
}

/// `steer.share`
pub(super) fn share(switch: &Switch, p: &SteerShareParams) -> Result<Done, RpcError> {
    let key = QueueKey {
        port: switch.find_port(&p.port)?.at,
        queue: p.queue,
    };
    let asked = match p.share {
        ShareWish::Auto => Asked::Auto,
        ShareWish::On => Asked::On,
        ShareWish::Off => Asked::Off,
    };
    let outcome = switch.steward.share(key, asked);
    outcome.map(|()| Done {}).map_err(|error| {
        let (code, why) = match error {
            ShareError::NoQueue => return no_queue(&p.port, p.queue),
            ShareError::NoWorker => (
                code::NOT_FOUND,
                "there is no second worker; `workers` in the configuration lists them",
            ),
            ShareError::Engaged => (
                code::SYSTEM,
                "every other worker, or its own, helps already or is helped",
            ),
            ShareError::Unfit => (
                code::UNSUPPORTED,
                "only guests' queues with split rings can be shared",
            ),
        };
        RpcError::new(code, format!("{}/{} is not shared: {why}", p.port, p.queue))
    })
}

/// The answer to `steer.trace`, and later to `steer.rebalance`.
pub(super) fn decisions(switch: &Switch, made: Vec<Decision>) -> SteerDecisions {
    SteerDecisions {
        decisions: made.into_iter().map(|d| decision(switch, d)).collect(),
    }
}

fn decision(switch: &Switch, made: Decision) -> SteerDecision {
    let count = match made.what {
        What::Buckets { count, .. } => Some(count),
        _ => None,
    };
    let (action, queue, from, worker) = match made.what {
        What::Move { queue, from, to } => (SteerAction::Move, Some(queue), Some(from), Some(to)),
        What::Grow(worker) => (SteerAction::Grow, None, None, Some(worker)),
        What::Shrink(worker) => (SteerAction::Shrink, None, None, Some(worker)),
        What::Crowded => (SteerAction::Crowded, None, None, None),
        What::Filling(queue) => (SteerAction::Filling, Some(queue), None, None),
        What::Buckets { queue, .. } => (SteerAction::Buckets, Some(queue), None, None),
        What::Share(queue, helper) => (SteerAction::Share, Some(queue), None, Some(helper)),
        What::Alone(queue) => (SteerAction::Alone, Some(queue), None, None),
        What::Pin(queue, worker) => (SteerAction::Pin, Some(queue), None, Some(worker)),
        What::Release(queue) => (SteerAction::Release, Some(queue), None, None),
        What::Nothing => (SteerAction::Nothing, None, None, None),
    };
    SteerDecision {
        at_ms: epoch_ms(made.at),
        action,
        queue: queue.map(|key| name(switch, key).unwrap_or_else(|| gone(key.port, key.queue))),
        from: from.map(|w| w as u16),
        worker: worker.map(|w| w as u16),
        buckets: count,
        reason: made.reason,
    }
}

/// The name of a queue whose port has gone.
fn gone(port: PortRef, queue: u16) -> WorkerQueue {
    WorkerQueue {
        port: format!("(gone, place {})", port.index.0),
        queue,
    }
}

fn epoch_ms(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
