//! One guest's queue served by two workers while its frames pass to several others: each arrives once and in order, whatever
//! becomes of the queue, its workers and the guests meanwhile.

use std::time::Duration;

use vswitch_api::rpc::{
    NoParams, ShareWish, SteerAction, SteerDecision, SteerShareParams, SteeredQueue, WorkerQueue,
    WorkerState, code, methods,
};
use vswitch_simguest::Builder;
use vswitch_simguest::features::virtio::RING_PACKED;
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine};

use crate::config::apply;
use crate::load::Load;
use crate::setup::{Net, SOON, numbered, port};
use crate::workers::{lists, ports, set, steered, two_cores, with_still_workers as with_workers};

cases!("sharing":
    a_shared_queue_keeps_order_and_loses_nothing,
    a_queue_stays_shared_whatever_its_guest_and_workers_do,
    nobody_stays_awake_to_help_nobody,
    what_is_asked_for_stays_whatever_it_gains,
    what_cannot_be_shared_is_refused,
);

/// Guests; the first sends to the others.
const GUESTS: u8 = 4;
/// Frames of this size are what sharing is for.
const LARGE: usize = 1500;
/// And these are not.
const SMALL: usize = 64;
/// On the way at most: most of a ring, and so no more than each receiver has buffers for.
const MANY: u64 = 192;

fn share(switch: &Switch<'_>, n: u8, share: ShareWish) -> Result<()> {
    let params = SteerShareParams {
        port: port(n),
        queue: 0,
        share,
    };
    switch.call::<methods::SteerShare>(&params).map(drop)
}

/// The queue of the first guest, as the switch shows it.
fn queue(switch: &Switch<'_>) -> Result<SteeredQueue> {
    let queue = steered(switch)?.queues.into_iter();
    let mut queue = queue.filter(|queue| queue.port == "vm1");
    let queue = queue.next();
    queue.ok_or_else(|| Error::Failed("vm1 has no queue".into()))
}

/// Waits until a second worker delivers to some of the guests.
fn wait_shared(switch: &Switch<'_>) -> Result<SteeredQueue> {
    switch.until("a helper to have outputs", SOON, || {
        let queue = queue(switch)?;
        let outputs = queue.helper_outputs.unwrap_or(0);
        check!(
            outputs > 0 && outputs < u32::from(GUESTS),
            "the helper has {outputs} outputs: {queue:?}"
        );
        Ok(queue)
    })
}

/// Two workers, all in use, and guests that the switch knows.
fn net(dir: &RunDir) -> Result<Net<'_>> {
    let list = &lists(two_cores()?)[0].0;
    let mut net = Net::new(dir, &with_workers(list, &ports(GUESTS)), GUESTS)?;
    net.introduce()?;
    Ok(net)
}

fn a_shared_queue_keeps_order_and_loses_nothing(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    let load = Load::fan(&mut net, 1, 2..=GUESTS, (LARGE, MANY))?;
    load.wait_more(1000)?;
    for _ in 0..machine::rounds(10, 200) {
        share(&net.switch, 1, ShareWish::On)?;
        let shared = wait_shared(&net.switch)?;
        load.wait_more(2000)?;
        check!(
            shared.helper.is_some_and(|helper| helper != shared.worker)
                && shared.share == ShareWish::On,
            "{shared:?}"
        );
        let workers = net.switch.call::<methods::Workers>(&NoParams {})?.workers;
        let helps: Vec<_> = workers.iter().filter_map(|w| w.helps.clone()).collect();
        let ours = WorkerQueue {
            port: port(1),
            queue: 0,
        };
        check!(helps == [ours], "{workers:?}");
        share(&net.switch, 1, ShareWish::Off)?;
        let alone = queue(&net.switch)?;
        check!(
            alone.helper.is_none() && alone.share == ShareWish::Off,
            "{alone:?}"
        );
        load.wait_more(1000)?;
    }
    share(&net.switch, 1, ShareWish::Auto)?;
    load.finish_whole(&mut net)?;
    let trace = net.switch.call::<methods::SteerTrace>(&NoParams {})?;
    for wanted in [SteerAction::Share, SteerAction::Alone] {
        let told = trace.decisions.iter().any(|made| made.action == wanted);
        check!(told, "{wanted:?} is not in the trace: {trace:?}");
    }
    net.close_books()
}

/// Its session takes the rings back while bursts are out; workers leave, come and take the queue from each other.
fn a_queue_stays_shared_whatever_its_guest_and_workers_do(dir: &RunDir) -> Result<()> {
    let lists = lists(two_cores()?);
    let mut net = net(dir)?;
    share(&net.switch, 1, ShareWish::On)?;
    let load = Load::fan(&mut net, 1, 2..=GUESTS, (LARGE, MANY))?;
    for n in 0..machine::rounds(12, 200) {
        wait_shared(&net.switch)?;
        load.wait_more(500)?;
        match n % 4 {
            0 => {
                net.vm(1).disconnect()?;
                net.vm(1).reconnect()?;
                net.switch.wait_up("vm1", SOON)?;
            }
            1 => {
                let queue = queue(&net.switch)?;
                set(&net.switch, 1, queue.helper)?;
                let moved = steered(&net.switch)?;
                check!(
                    moved
                        .queues
                        .iter()
                        .any(|q| q.port == "vm1" && Some(q.worker) == queue.helper),
                    "{moved:?}"
                );
                set(&net.switch, 1, None)?;
            }
            _ => {
                // The one that helps leaves, or the one that owns: of both lists, one worker stays.
                let (one, _) = &lists[if n % 4 == 2 { 1 } else { 4 }];
                apply(&net.switch, dir, &with_workers(one, &ports(GUESTS)))?;
                let alone = queue(&net.switch)?;
                check!(alone.helper.is_none(), "nobody is there to help: {alone:?}");
                load.wait_more(500)?;
                let both = with_workers(&lists[0].0, &ports(GUESTS));
                apply(&net.switch, dir, &both)?;
            }
        }
    }
    wait_shared(&net.switch)?;
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}

/// A helper of a queue in which nothing comes sleeps like any other worker, and is there when something does.
fn nobody_stays_awake_to_help_nobody(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    share(&net.switch, 1, ShareWish::On)?;
    let load = Load::fan(&mut net, 1, 2..=GUESTS, (LARGE, MANY))?;
    wait_shared(&net.switch)?;
    load.finish_whole(&mut net)?;
    for number in 0..machine::rounds(20, 200) {
        let wakes = net.switch.until("all workers to sleep", SOON, || {
            let workers = net.switch.call::<methods::Workers>(&NoParams {})?.workers;
            check!(
                workers.iter().all(|w| w.state == WorkerState::Asleep),
                "{workers:?}"
            );
            Ok(workers.iter().map(|w| w.wakes).sum::<u64>())
        })?;
        std::thread::sleep(Duration::from_millis(20));
        let workers = net.switch.call::<methods::Workers>(&NoParams {})?.workers;
        let later = workers.iter().map(|w| w.wakes).sum::<u64>();
        check!(later == wakes, "{} wake-ups for nothing", later - wakes);
        let helped = queue(&net.switch)?.helper.is_some();
        check!(helped, "it is shared no longer");
        let src = net.vm(1).mac();
        for n in 2..=GUESTS {
            let dst = net.vm(n).mac();
            net.reaches(1, &numbered(dst, src, number), &[n])?;
        }
    }
    net.close_books()
}

/// Small frames gain least, on some machines less than nothing; who asks for a helper keeps it.
fn what_is_asked_for_stays_whatever_it_gains(dir: &RunDir) -> Result<()> {
    let mut net = net(dir)?;
    share(&net.switch, 1, ShareWish::On)?;
    let load = Load::fan(&mut net, 1, 2..=GUESTS, (SMALL, MANY))?;
    let shared = wait_shared(&net.switch)?;
    // Several times as long as the switch would try it.
    for _ in 0..machine::rounds(20, 200) {
        std::thread::sleep(Duration::from_millis(20));
        let now = queue(&net.switch)?;
        check!(now.helper == shared.helper, "{now:?}");
    }
    load.finish_whole(&mut net)?;
    let trace = net.switch.call::<methods::SteerTrace>(&NoParams {})?;
    let ended = |made: &SteerDecision| made.action == SteerAction::Alone;
    check!(!trace.decisions.iter().any(ended), "{trace:?}");
    net.close_books()
}

fn what_cannot_be_shared_is_refused(dir: &RunDir) -> Result<()> {
    let refused = |outcome: Result<()>, wanted: i64| match outcome {
        Err(Error::Refused { error, .. }) if error.code == wanted => Ok(()),
        other => Err(Error::Failed(format!("not refused by {wanted}: {other:?}"))),
    };
    let lists = lists(two_cores()?);
    let packed = |n, builder: Builder| match n {
        2 => builder.with(RING_PACKED),
        _ => builder,
    };
    let config = with_workers(&lists[0].0, &ports(2));
    let mut net = Net::with(dir, &config, 2, packed)?;
    // Their queues are with the switch, not only their links up.
    net.introduce()?;
    let on = |n| share(&net.switch, n, ShareWish::On);
    refused(on(2), code::UNSUPPORTED)?;
    refused(on(3), code::NOT_FOUND)?;
    on(1)?;
    let one = with_workers(&lists[1].0, &ports(2));
    apply(&net.switch, dir, &one)?;
    share(&net.switch, 1, ShareWish::Off)?;
    refused(on(1), code::NOT_FOUND)?;
    // What was refused is not remembered, and what was said before is.
    apply(&net.switch, dir, &config)?;
    let queue = queue(&net.switch)?;
    check!(
        queue.helper.is_none() && queue.share == ShareWish::Off,
        "{queue:?}"
    );
    Ok(())
}
