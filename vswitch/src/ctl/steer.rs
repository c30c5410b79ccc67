//! `vswitchctl workers` and `vswitchctl steer`.

use vswitch_api::config::{Rebalance, Scale};
use vswitch_api::rpc::{
    SteerAction, SteerDecision, SteerDecisions, SteerSetParams, SteerStatus, WorkerDetail,
    WorkerList, WorkerQueue, WorkerState,
};

use super::cli::{QueueName, WorkerWish};
use super::show::{busy_poll, or_dash};
use super::text::{Paint, Table, counted, duration, grouped, scaled};

/// The workers in detail.
pub(super) fn workers(list: &WorkerList, paint: Paint) -> String {
    let mut table = Table::new(&[
        "WORKER",
        "CORE",
        "NODE",
        "BUSY-POLL",
        "STATE",
        ">BUSY",
        ">AWAKE",
        ">DELAY P99",
        ">MAX",
        ">WAKES",
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
        let queues: Vec<String> = worker.queues.iter().map(queue_name).collect();
        table.row([
            worker.index.to_string(),
            worker.core.to_string(),
            worker.node.to_string(),
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
            grouped(worker.moved_in),
            grouped(worker.moved_out),
            or_dash(&queues.join(" ")),
        ]);
    }
    table.render(paint)
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
    let in_use: Vec<String> = status.in_use.iter().map(ToString::to_string).collect();
    let mut out = format!(
        "rebalance {rebalance}, scale {scale}; in use: {}; {}",
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
    if status.queues.is_empty() {
        return out + "no queue is in use\n";
    }
    let mut table = Table::new(&["QUEUE", "WORKER", "", ">FRAMES", ">TIME"]);
    for queue in &status.queues {
        table.row([
            format!("{}/{}", queue.port, queue.queue),
            match queue.helper {
                Some(helper) => format!("{} + {helper}", queue.worker),
                None => queue.worker.to_string(),
            },
            if queue.pinned {
                "pinned".into()
            } else {
                String::new()
            },
            grouped(queue.frames),
            format!("{}s", scaled(queue.busy_ns as f64 / 1e9)),
        ]);
    }
    out + "\n" + &table.render(paint)
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
        SteerAction::Share => format!("{queue} is shared with worker {worker}"),
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
    use vswitch_api::rpc::SteeredQueue;

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
            busy_poll: BusyPoll::Adaptive,
            state,
            queues: Vec::new(),
            busy_share: 0.0,
            awake_share: 0.0,
            delay_ns: 0,
            delay_p99_ns: 0,
            delay_max_ns: 0,
            wakes: 1,
            moved_in: 0,
            moved_out: 3,
        }
    }

    #[test]
    fn what_people_read() {
        let busy = WorkerDetail {
            queues: vec![queue("nic", 0), queue("vm1", 0), queue("vm1", 1)],
            busy_share: 0.3,
            awake_share: 0.6,
            delay_ns: 3_000,
            delay_p99_ns: 16_000,
            delay_max_ns: 2_345_678,
            wakes: 12_345,
            moved_in: 2,
            ..worker(0, WorkerState::Polling)
        };
        let parked = worker(1, WorkerState::Parked);
        let list = WorkerList {
            workers: vec![busy, parked, worker(3, WorkerState::Asleep)],
        };
        expect("workers.txt", &workers(&list, Paint::plain()));
        let status = SteerStatus {
            rebalance: Rebalance::Auto,
            scale: Scale::Auto,
            in_use: vec![0, 3],
            moves: 7,
            unsettled: 1,
            queues: vec![
                SteeredQueue {
                    port: "nic".into(),
                    queue: 0,
                    worker: 3,
                    helper: None,
                    pinned: true,
                    busy_ns: 1_500_000_000,
                    frames: 12_000_000,
                },
                SteeredQueue {
                    port: "vm1".into(),
                    queue: 0,
                    worker: 0,
                    helper: Some(3),
                    pinned: false,
                    busy_ns: 0,
                    frames: 0,
                },
            ],
        };
        expect("steer-show.txt", &show(&status, Paint::plain()));
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
            reason: format!("because of {action:?}"),
        };
        let vm1 = || Some(queue("vm1", 0));
        let decisions_made = vec![
            made(7_200_000, SteerAction::Grow, None, None, Some(1)),
            made(7_100_000, SteerAction::Move, vm1(), Some(0), Some(1)),
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
