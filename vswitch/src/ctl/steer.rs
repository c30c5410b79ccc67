//! `vswitchctl workers` and `vswitchctl steer`.

use vswitch_api::config::{Rebalance, ReceiveSteering, Scale, Share};
use vswitch_api::rpc::{
    ShareWish, SteerAction, SteerDecision, SteerDecisions, SteerSetParams, SteerShareParams,
    SteerStatus, SteeredGuest, SteeredQueue, WorkerDetail, WorkerList, WorkerQueue, WorkerState,
};

use super::cli::{QueueName, SharingWish, WorkerWish};
use super::show::{busy_poll, or_dash};
use super::text::{Paint, Table, counted, duration, grouped};

/// The workers in detail.
pub(super) fn workers(list: &WorkerList, paint: Paint) -> String {
    let mut table = Table::new(&[
        "WORKER",
        "CORE",
        "NODE",
        "CACHE",
        "BUSY-POLL",
        "STATE",
        ">BUSY",
        ">AWAKE",
        ">DELAY P99",
        ">MAX",
        ">WAKES",
        ">NAPS",
        ">IN",
        ">OUT",
        "TAKES FROM",
    ]);
    for worker in &list.workers {
        let WorkerDetail {
            busy_share,
            awake_share,
            ..
        } = worker;
        let percent = |share: f64| format!("{:.0}%", share.clamp(0.0, 1.0) * 100.0);
        let mark = |queue: &WorkerQueue| match worker.far.contains(queue) {
            true => format!("{}*", queue_name(queue)),
            false => queue_name(queue),
        };
        let mut queues: Vec<String> = worker.queues.iter().map(mark).collect();
        if let Some(helps) = &worker.helps {
            queues.push(format!("(helps with {})", queue_name(helps)));
        }
        table.row([
            worker.index.to_string(),
            worker.core.to_string(),
            worker.node.to_string(),
            worker.cache.map_or_else(|| "-".into(), |n| n.to_string()),
            busy_poll(worker.busy_poll).into(),
            match worker.state {
                WorkerState::Polling => "polling".into(),
                WorkerState::Asleep => paint.faint("asleep"),
                WorkerState::Parked => paint.faint("parked"),
            },
            // Of the time it was awake: what polling in vain leaves.
            percent(busy_share / awake_share.max(f64::MIN_POSITIVE)),
            percent(*awake_share),
            delay(worker.delay_p99_ns),
            delay(worker.delay_max_ns),
            grouped(worker.wakes),
            match worker.max_sleep_ns {
                0 => "-".into(),
                _ => grouped(worker.naps),
            },
            grouped(worker.moved_in),
            grouped(worker.moved_out),
            or_dash(&queues.join(" ")),
        ]);
    }
    let mut out = table.render(paint);
    if list.workers.iter().any(|worker| !worker.far.is_empty()) {
        out += "* its memory or device is on another NUMA node than the worker\n";
    }
    out
}

/// Which worker takes frames from which queue.
pub(super) fn show(status: &SteerStatus, paint: Paint) -> String {
    let rebalance = match status.rebalance {
        Rebalance::Auto => "auto",
        Rebalance::Off => "off",
    };
    let scale = match status.scale {
        Scale::Auto => "auto",
        Scale::All => "all",
    };
    let share = match status.share {
        Share::Auto => "auto",
        Share::Off => "off",
    };
    let in_use: Vec<String> = status.in_use.iter().map(ToString::to_string).collect();
    let mut out = format!(
        "rebalance {rebalance}, scale {scale}, share {share}; in use: {}; {}",
        or_dash(&in_use.join(" ")),
        counted(status.moves, "move", "moves"),
    );
    if status.unsettled > 0 {
        out += &format!(
            ", {} of them before a device had sent everything",
            grouped(status.unsettled)
        );
    }
    out.push('\n');
    let guests = guests(&status.guests, paint);
    if status.queues.is_empty() {
        return out + "no queue is in use\n" + &guests;
    }
    let mut table = Table::new(&[
        "QUEUE", "WORKER", "NODE", "", ">FRAMES", ">TIME", ">BUCKETS",
    ]);
    for queue in &status.queues {
        table.row([
            format!("{}/{}", queue.port, queue.queue),
            match queue.helper {
                Some(helper) => format!("{} + {helper}", queue.worker),
                None => queue.worker.to_string(),
            },
            queue.node.map_or_else(|| "-".into(), |n| n.to_string()),
            notes(queue),
            grouped(queue.frames),
            format!("{:.1} s", queue.busy_ns as f64 / 1e9),
            queue.buckets.map_or_else(|| "-".into(), |n| n.to_string()),
        ]);
    }
    out + "\n" + &table.render(paint) + &guests
}

/// What the operator said of a queue, and how much of it its helper has.
fn notes(queue: &SteeredQueue) -> String {
    let mut notes = Vec::new();
    if queue.pinned {
        notes.push("pinned".to_owned());
    }
    if queue.far {
        notes.push("far".into());
    }
    match queue.share {
        ShareWish::Auto => {}
        ShareWish::On => notes.push("to be shared".into()),
        ShareWish::Off => notes.push("not to be shared".into()),
    }
    if let Some(outputs) = queue.helper_outputs {
        notes.push(counted(outputs.into(), "output", "outputs") + " helped");
    }
    notes.join(", ")
}

/// How flows are spread over the queue pairs of guests that may have several.
fn guests(guests: &[SteeredGuest], paint: Paint) -> String {
    if guests.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "TO",
        "PAIRS",
        "FLOWS",
        "BUCKETS",
        ">PINS",
        ">REFUSED",
        ">MOVED",
        ">IDLE",
        ">FORCED",
        ">WAITED",
        ">UNSETTLED",
    ]);
    for guest in guests {
        let buckets: Vec<String> = guest.buckets.iter().map(ToString::to_string).collect();
        table.row([
            guest.port.clone(),
            format!("{} of {}", guest.active, guest.max_queue_pairs),
            match guest.receive_steering {
                ReceiveSteering::Learned => "learned".into(),
                ReceiveSteering::Hashed => "hashed".into(),
            },
            or_dash(&shares(&buckets)),
            grouped(guest.pins.into()),
            grouped(guest.pins_refused),
            grouped(guest.moved_completed),
            grouped(guest.moved_idle),
            grouped(guest.moved_forced),
            grouped(guest.waited),
            grouped(guest.unsettled),
        ]);
    }
    format!("\n{}", table.render(paint))
}

/// `4x256`, or if they differ the first few.
fn shares(buckets: &[String]) -> String {
    const FEW: usize = 4;
    match buckets {
        [first, _, ..] if buckets.iter().all(|n| n == first) => {
            format!("{}x{first}", buckets.len())
        }
        _ if buckets.len() > FEW => buckets[..FEW].join(" ") + " ...",
        _ => buckets.join(" "),
    }
}

/// What was decided, and why.
pub(super) fn decisions(list: &SteerDecisions, now_ms: u64, paint: Paint) -> String {
    if list.decisions.is_empty() {
        return "nothing was decided yet\n".into();
    }
    let mut table = Table::new(&["AGO", "DECISION", "WHY"]);
    for made in &list.decisions {
        table.row([
            ago(now_ms.saturating_sub(made.at_ms)),
            decision(made),
            made.reason.clone(),
        ]);
    }
    table.render(paint)
}

fn decision(made: &SteerDecision) -> String {
    let queue = made.queue.as_ref().map(queue_name).unwrap_or_default();
    let number = |worker: Option<u16>| worker.map_or_else(|| "-".into(), |w| w.to_string());
    let (from, worker) = (number(made.from), number(made.worker));
    match made.action {
        SteerAction::Move => format!("{queue}: worker {from} -> {worker}"),
        SteerAction::Grow => format!("worker {worker} is put to use"),
        SteerAction::Shrink => format!("worker {worker} rests"),
        SteerAction::Crowded => "all workers are in use".into(),
        SteerAction::Filling => format!("{queue} fills its worker"),
        SteerAction::Buckets => format!("{queue} gets {} buckets", number(made.buckets)),
        SteerAction::Share => format!("worker {worker} helps with {queue}"),
        SteerAction::Alone => format!("{queue} is its worker's alone"),
        SteerAction::Pin => format!("{queue} stays on worker {worker}"),
        SteerAction::Release => format!("{queue} may move again"),
        SteerAction::Nothing => "nothing moves".into(),
    }
}

/// What was set, in a sentence.
pub(super) fn was_set(queue: &QueueName, worker: WorkerWish) -> String {
    match worker {
        WorkerWish::Number(worker) => {
            format!("{queue} stays on worker {worker} until vswitchd or that worker ends\n")
        }
        WorkerWish::Auto => format!("{queue} may move again\n"),
    }
}

/// The request that sets it.
pub(super) fn to_set(queue: &QueueName, worker: WorkerWish) -> SteerSetParams {
    SteerSetParams {
        port: queue.port.clone(),
        queue: queue.queue,
        worker: match worker {
            WorkerWish::Number(worker) => Some(worker),
            WorkerWish::Auto => None,
        },
    }
}

/// What was asked for, in a sentence.
pub(super) fn was_shared(queue: &QueueName, wish: SharingWish) -> String {
    match wish {
        SharingWish::On => format!("{queue} is shared until vswitchd or its port ends\n"),
        SharingWish::Off => format!("{queue} is not shared until vswitchd or its port ends\n"),
        SharingWish::Auto => format!("{queue} is shared when that is worth it\n"),
    }
}

/// The request that asks for it.
pub(super) fn to_share(queue: &QueueName, wish: SharingWish) -> SteerShareParams {
    SteerShareParams {
        port: queue.port.clone(),
        queue: queue.queue,
        share: match wish {
            SharingWish::On => ShareWish::On,
            SharingWish::Off => ShareWish::Off,
            SharingWish::Auto => ShareWish::Auto,
        },
    }
}

fn queue_name(queue: &WorkerQueue) -> String {
    format!("{}/{}", queue.port, queue.queue)
}

/// `12 us` or `3.4 ms`
fn delay(ns: u64) -> String {
    match ns {
        0 => "-".into(),
        1..1_000_000 => format!("{} us", ns.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

fn ago(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        _ => duration(ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use vswitch_api::config::BusyPoll;

    use super::super::expect;
    use super::*;

    fn queue(port: &str, queue: u16) -> WorkerQueue {
        WorkerQueue {
            port: port.into(),
            queue,
        }
    }

    fn worker(index: u16, state: WorkerState) -> WorkerDetail {
        WorkerDetail {
            index,
            core: u32::from(index) + 2,
            node: 0,
            cache: Some(2),
            busy_poll: BusyPoll::Adaptive,
            max_sleep_ns: 0,
            state,
            queues: Vec::new(),
            far: Vec::new(),
            helps: None,
            busy_share: 0.0,
            awake_share: 0.0,
            delay_ns: 0,
            delay_p99_ns: 0,
            delay_max_ns: 0,
            wakes: 1,
            naps: 0,
            moved_in: 0,
            moved_out: 3,
        }
    }

    #[test]
    fn what_people_read() {
        let busy = WorkerDetail {
            queues: vec![queue("nic", 0), queue("vm1", 0), queue("vm1", 1)],
            far: vec![queue("vm1", 1)],
            busy_share: 0.3,
            awake_share: 0.6,
            delay_ns: 3_000,
            delay_p99_ns: 16_000,
            delay_max_ns: 2_345_678,
            wakes: 12_345,
            naps: 54_321,
            max_sleep_ns: 50_000,
            moved_in: 2,
            ..worker(0, WorkerState::Polling)
        };
        let parked = WorkerDetail {
            cache: None,
            ..worker(1, WorkerState::Parked)
        };
        let helps = WorkerDetail {
            helps: Some(queue("vm1", 0)),
            ..worker(2, WorkerState::Polling)
        };
        let list = WorkerList {
            workers: vec![busy, parked, helps, worker(3, WorkerState::Asleep)],
        };
        expect("workers.txt", &workers(&list, Paint::plain()));
        let status = SteerStatus {
            rebalance: Rebalance::Auto,
            scale: Scale::Auto,
            share: Share::Auto,
            in_use: vec![0, 3],
            moves: 7,
            unsettled: 1,
            queues: vec![
                SteeredQueue {
                    port: "nic".into(),
                    queue: 0,
                    worker: 3,
                    node: Some(0),
                    far: false,
                    helper: None,
                    helper_outputs: None,
                    share: ShareWish::Off,
                    pinned: true,
                    busy_ns: 1_500_000_000,
                    frames: 12_000_000,
                    buckets: Some(64),
                },
                SteeredQueue {
                    port: "vm1".into(),
                    queue: 0,
                    worker: 0,
                    node: None,
                    far: false,
                    helper: Some(3),
                    helper_outputs: Some(2),
                    share: ShareWish::Auto,
                    pinned: false,
                    busy_ns: 0,
                    frames: 0,
                    buckets: None,
                },
                SteeredQueue {
                    port: "vm2".into(),
                    queue: 0,
                    worker: 0,
                    node: Some(1),
                    far: true,
                    helper: None,
                    helper_outputs: None,
                    share: ShareWish::Auto,
                    pinned: false,
                    busy_ns: 200_000_000,
                    frames: 1_000,
                    buckets: None,
                },
            ],
            guests: vec![
                SteeredGuest {
                    port: "vm1".into(),
                    receive_steering: ReceiveSteering::Learned,
                    max_queue_pairs: 4,
                    active: 3,
                    buckets: vec![171, 171, 170],
                    pins: 1_234,
                    pins_refused: 2,
                    moved_completed: 5_678,
                    moved_idle: 9,
                    moved_forced: 170,
                    waited: 12_345,
                    unsettled: 1,
                },
                SteeredGuest {
                    port: "vm2".into(),
                    receive_steering: ReceiveSteering::Hashed,
                    max_queue_pairs: 8,
                    active: 8,
                    buckets: vec![64; 8],
                    pins: 0,
                    pins_refused: 0,
                    moved_completed: 0,
                    moved_idle: 0,
                    moved_forced: 0,
                    waited: 0,
                    unsettled: 0,
                },
            ],
        };
        expect("steer-show.txt", &show(&status, Paint::plain()));
        let nobody = SteerStatus {
            queues: Vec::new(),
            guests: Vec::new(),
            ..status
        };
        let shown = show(&nobody, Paint::plain());
        assert!(shown.ends_with("\nno queue is in use\n"), "{shown}");
    }

    #[test]
    fn decisions_are_told_with_their_reasons() {
        const NOW: u64 = 1_700_000_000_000;
        let made = |ago, action, queue, from, worker| SteerDecision {
            at_ms: NOW - ago,
            action,
            queue,
            from,
            worker,
            buckets: (action == SteerAction::Buckets).then_some(5),
            reason: format!("because of {action:?}"),
        };
        let vm1 = || Some(queue("vm1", 0));
        let decisions_made = vec![
            made(7_200_000, SteerAction::Grow, None, None, Some(1)),
            made(7_100_000, SteerAction::Move, vm1(), Some(0), Some(1)),
            made(6_000, SteerAction::Buckets, vm1(), None, None),
            made(5_500, SteerAction::Crowded, None, None, None),
            made(5_400, SteerAction::Filling, vm1(), None, None),
            made(5_300, SteerAction::Share, vm1(), None, Some(1)),
            made(900, SteerAction::Alone, vm1(), None, None),
            made(800, SteerAction::Pin, vm1(), None, Some(1)),
            made(90, SteerAction::Release, vm1(), None, None),
            made(8, SteerAction::Shrink, None, None, Some(1)),
            made(0, SteerAction::Nothing, None, None, None),
        ];
        let list = SteerDecisions {
            decisions: decisions_made,
        };
        expect("steer-trace.txt", &decisions(&list, NOW, Paint::plain()));
        let none = decisions(&SteerDecisions::default(), NOW, Paint::plain());
        assert_eq!(none, "nothing was decided yet\n");
    }

    #[test]
    fn queues_and_workers_are_read() {
        let name = |text: &str| text.parse::<QueueName>();
        let pair = |queue| QueueName {
            port: "vm1".into(),
            queue,
        };
        assert_eq!(name("vm1"), Ok(pair(0)));
        assert_eq!(name("vm1/3"), Ok(pair(3)));
        assert!(name("/3").is_err() && name("vm1/x").is_err() && name("vm1/").is_err());
        assert_eq!("auto".parse(), Ok(WorkerWish::Auto));
        assert_eq!("3".parse(), Ok(WorkerWish::Number(3)));
        assert!("-1".parse::<WorkerWish>().is_err());
        let auto = to_set(&pair(3), WorkerWish::Auto);
        assert_eq!((auto.queue, auto.worker), (3, None));
    }
}
