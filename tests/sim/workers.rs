//! Workers come, go, change cores and are changed while guests exchange traffic: no frame is lost, none is reordered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vswitch_api::rpc::{
    NoParams, SteerAction, SteerSetParams, SteerStatus, WorkerState, WorkerStatus, code, methods,
};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine, skip};

use crate::config::apply;
use crate::load::Load;
use crate::setup::{BROADCAST, Net, SOON, numbered, port};

cases!("workers":
    workers_come_and_go_under_traffic,
    a_guest_that_comes_and_goes_meets_workers_that_do,
    totals_never_fall,
    the_operator_moves_queues_under_traffic,
    load_is_evened_out,
    workers_rest_and_come_back,
    steady_frames_are_napped_through,
    a_pinned_queue_keeps_its_worker_and_no_other,
    a_guest_that_does_not_read_holds_up_its_own_bridge_at_most,
);

/// Ports for so many guests.
pub(crate) fn ports(guests: u8) -> String {
    let vm = |n| format!("  vm{n}: {{ vhost-user: {{ socket: $RUN/vm{n}.sock }} }}\n");
    let ports: String = (1..=guests).map(vm).collect();
    format!("bridges: {{ br0: {{ }} }}\nports:\n{ports}")
}

/// Two cores that the daemon may use.
pub(crate) fn two_cores() -> Result<[u32; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None);
    let allowed = allowed.map_err(|e| vswitch_tests::Error::Failed(format!("cores: {e}")))?;
    let mut cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|c| allowed.is_set(*c));
    match (cores.next(), cores.next()) {
        (Some(a), Some(b)) => Ok([a as u32, b as u32]),
        _ => skip!("two workers need two cores"),
    }
}

/// Lists of workers that differ from each other in every way.
pub(crate) fn lists([a, b]: [u32; 2]) -> Vec<(String, usize)> {
    [
        (format!("[{{ core: {a} }}, {{ core: {b} }}]"), 2),
        (format!("[{{ core: {b} }}]"), 1),
        (format!("[{{ core: {b}, busy-poll: never }}]"), 1),
        (
            format!("[{{ core: {b} }}, {{ core: {a}, busy-poll: never }}]"),
            2,
        ),
        (format!("[{{ core: {a} }}]"), 1),
        (format!("[{{ core: {b} }}]"), 1),
        (format!("[{{ core: {a}, busy-poll: always }}]"), 1),
    ]
    .into()
}

pub(crate) fn with_workers(list: &str, rest: &str) -> String {
    format!("workers: {list}\nsteering: {{ scale: all }}\n{rest}")
}

/// The same, with queues left where they are put.
pub(crate) fn with_still_workers(list: &str, rest: &str) -> String {
    format!("workers: {list}\nsteering: {{ scale: all, rebalance: off }}\n{rest}")
}

/// The workers are as many as wanted, and each of these guests' rings is with one of them.
fn check_owners(switch: &Switch<'_>, workers: usize, guests: u8) -> Result<Vec<WorkerStatus>> {
    let shown = switch.show()?;
    check!(
        shown.workers.len() == workers,
        "{workers} workers were asked for, {:?} are there",
        shown.workers
    );
    let owned = shown.workers.iter().flat_map(|w| &w.queues);
    let owned: Vec<&str> = owned.map(|q| q.port.as_str()).collect();
    let names: BTreeSet<&str> = owned.iter().copied().collect();
    check!(
        owned.len() == usize::from(guests) && names.len() == owned.len(),
        "of {guests} rings these are owned: {owned:?}"
    );
    for status in shown.ports.iter().filter_map(|p| p.vhost.as_ref()) {
        let worker = status.queues.first().and_then(|q| q.tx_worker);
        check!(
            shown.workers.iter().any(|w| Some(w.index) == worker),
            "a ring is with worker {worker:?}, who is not there"
        );
    }
    Ok(shown.workers)
}

fn workers_come_and_go_under_traffic(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let ports = ports(4);
    let first = with_workers(&format!("[{{ core: {} }}]", cores[0]), &ports);
    let mut net = Net::new(dir, &first, 4)?;
    net.introduce()?;
    let loads = [Load::start(&mut net, 1, 2)?, Load::start(&mut net, 3, 4)?];
    let mut cross = 0;
    for _ in 0..machine::rounds(20, 200) {
        for (list, count) in lists(cores) {
            apply(&net.switch, dir, &with_workers(&list, &ports))?;
            check_owners(&net.switch, count, 4)?;
            for load in &loads {
                load.wait_more(50)?;
            }
            cross += 1;
        }
    }
    for load in loads {
        load.finish_whole(&mut net)?;
    }
    check!(cross > 100, "only {cross} changes were made");
    net.close_books()
}

/// Its session attaches and detaches rings while the workers that have them leave.
fn a_guest_that_comes_and_goes_meets_workers_that_do(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let ports = ports(3);
    let first = with_workers(&format!("[{{ core: {} }}]", cores[0]), &ports);
    let mut net = Net::new(dir, &first, 3)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    for n in 0..machine::rounds(10, 200) {
        for (list, _) in lists(cores) {
            match n % 3 {
                0 => net.vm(1).kill(),
                1 => net.vm(1).disconnect()?,
                _ => {}
            }
            // Applied while the session of guest 1 is still on its way out, or the next one on its way in.
            apply(&net.switch, dir, &with_workers(&list, &ports))?;
            if n % 3 == 2 {
                net.vm(1).reboot()?;
            } else {
                net.vm(1).reconnect()?;
            }
            load.wait_more(20)?;
        }
        net.switch.wait_up("vm1", SOON)?;
        let list = &lists(cores)[0].0;
        apply(&net.switch, dir, &with_workers(list, &ports))?;
        // The session of guest 1 may just be handing over what it was told of.
        net.switch
            .until("every ring to have its worker", SOON, || {
                check_owners(&net.switch, 2, 3)
            })?;
        let src = net.vm(1).mac();
        net.send(1, &numbered(src, src, n))?;
    }
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}

fn totals_never_fall(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let ports = ports(2);
    let mut net = Net::new(dir, &with_workers(&lists(cores)[0].0, &ports), 2)?;
    net.introduce()?;
    let mut sent = 1;
    for (list, _) in lists(cores) {
        apply(&net.switch, dir, &with_workers(&list, &ports))?;
        for number in 0..100 {
            let (dst, src) = (net.vm(2).mac(), net.vm(1).mac());
            net.vm(1).send(&numbered(dst, src, number))?;
        }
        net.drain(1)?;
        sent += 100;
        let got = net.vm(2).recv_all(Duration::ZERO, usize::MAX)?.len();
        let counted = net.switch.counters()?.ports[&port(1)].rx.frames;
        check!(
            got == 100 && counted == sent,
            "{sent} frames were sent, {got} of the last 100 came, and {counted} are counted"
        );
    }
    net.close_books()
}

/// Sends single frames one after the other, a moment between them, and takes what arrives; all of them do.
fn send_steadily(net: &mut Net<'_>, count: u32) -> Result<()> {
    let (dst, src) = (net.vm(2).mac(), net.vm(1).mac());
    let (mut sent, mut got, start) = (0, 0, Instant::now());
    while got < count && start.elapsed() < SOON {
        if sent < count && sent - got < 64 {
            net.vm(1).send(&numbered(dst, src, sent))?;
            sent += 1;
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(10) {
            std::hint::spin_loop();
        }
        got += net.vm(2).recv_all(Duration::ZERO, usize::MAX)?.len() as u32;
    }
    check!(got == count, "of {count} frames {got} arrived");
    Ok(())
}

/// A worker sleeps for moments where it may, from the moment on that it may, and until it no longer may; no frame is lost.
fn steady_frames_are_napped_through(dir: &RunDir) -> Result<()> {
    let [core, _] = two_cores()?;
    let ports = ports(2);
    let config = |more: &str| with_workers(&format!("[{{ core: {core}{more} }}]"), &ports);
    let mut net = Net::new(dir, &config(""), 2)?;
    net.introduce()?;
    let worker = |net: &Net<'_>| -> Result<(u64, u64)> {
        let workers = net.switch.call::<methods::Workers>(&NoParams {})?.workers;
        let of = workers.first().map(|w| (w.max_sleep_ns, w.naps));
        of.ok_or_else(|| Error::Failed("there is no worker".into()))
    };
    send_steadily(&mut net, 500)?;
    check!(worker(&net)? == (0, 0), "it napped without leave");
    for _ in 0..2 {
        let (_, before) = worker(&net)?;
        apply(&net.switch, dir, &config(", max-sleep-usecs: 50"))?;
        let start = Instant::now();
        while worker(&net)?.1 == before && start.elapsed() < SOON {
            send_steadily(&mut net, 200)?;
        }
        let (length, naps) = worker(&net)?;
        check!(length == 50_000, "it may sleep for {length} ns");
        check!(naps > before, "it may nap, and did not");
        apply(&net.switch, dir, &config(""))?;
        // What was applied is read between two turns, of which these frames take many.
        send_steadily(&mut net, 200)?;
        let (length, before) = worker(&net)?;
        send_steadily(&mut net, 500)?;
        check!(
            (length, worker(&net)?.1) == (0, before),
            "it naps on without leave"
        );
    }
    net.close_books()
}

pub(crate) fn steered(switch: &Switch<'_>) -> Result<SteerStatus> {
    switch.call::<methods::SteerShow>(&NoParams {})
}

pub(crate) fn set(switch: &Switch<'_>, n: u8, worker: Option<u16>) -> Result<()> {
    let params = SteerSetParams {
        port: port(n),
        queue: 0,
        worker,
    };
    switch.call::<methods::SteerSet>(&params).map(drop)
}

/// Queues are moved back and forth as fast as can be, while frames of theirs and to their guests are under way.
fn the_operator_moves_queues_under_traffic(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let config = with_still_workers(&lists(cores)[0].0, &ports(2));
    let mut net = Net::new(dir, &config, 2)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    let rounds = machine::rounds(500, 20_000);
    for n in 0..rounds {
        set(&net.switch, 1, Some((n % 2) as u16))?;
        if n % 10 == 0 {
            load.wait_more(20)?;
        }
    }
    let shown = steered(&net.switch)?;
    let queue = shown.queues.iter().find(|q| q.port == "vm1");
    check!(
        queue.is_some_and(|q| q.pinned && q.worker == ((rounds - 1) % 2) as u16 && q.frames > 100),
        "the queue that was set is shown as {queue:?}"
    );
    check!(
        shown.moves + 2 >= u64::from(rounds),
        "{rounds} moves were asked for, {} made",
        shown.moves
    );
    let workers = net.switch.call::<methods::Workers>(&NoParams {})?.workers;
    let (came, went) = workers
        .iter()
        .fold((0, 0), |(i, o), w| (i + w.moved_in, o + w.moved_out));
    check!(
        came == shown.moves && went == shown.moves,
        "of {} moves workers count {came} in and {went} out",
        shown.moves
    );
    set(&net.switch, 1, None)?;
    check!(
        steered(&net.switch)?.queues.iter().all(|q| !q.pinned),
        "a queue that was released is still pinned"
    );
    let trace = net.switch.call::<methods::SteerTrace>(&NoParams {})?;
    check!(
        trace.decisions.len() <= 256
            && trace
                .decisions
                .iter()
                .any(|d| d.action == SteerAction::Move)
            && trace
                .decisions
                .last()
                .is_some_and(|d| d.action == SteerAction::Release),
        "what was done is not in the trace: {:?}",
        trace.decisions.last()
    );
    for (n, worker) in [(1, Some(7)), (9, Some(0))] {
        match set(&net.switch, n, worker) {
            Err(Error::Refused { error, .. }) if error.code == code::NOT_FOUND => {}
            other => return Err(Error::Failed(format!("port {n} to {worker:?}: {other:?}"))),
        }
    }
    load.finish_whole(&mut net)?;
    net.close_books()
}

/// Both busy queues are put on one worker and let go; the steward spreads them.
fn load_is_evened_out(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let config = with_workers(&lists(cores)[0].0, &ports(4));
    let mut net = Net::new(dir, &config, 4)?;
    net.introduce()?;
    let loads = [Load::start(&mut net, 1, 2)?, Load::start(&mut net, 3, 4)?];
    for n in [1, 3] {
        set(&net.switch, n, Some(0))?;
    }
    for load in &loads {
        load.wait_more(100)?;
    }
    for n in [1, 3] {
        set(&net.switch, n, None)?;
    }
    let apart = || {
        let queues = steered(&net.switch)?.queues;
        let of = |name: &str| queues.iter().find(|q| q.port == name).map(|q| q.worker);
        check!(
            of("vm1") != of("vm3"),
            "both busy queues are on worker {:?}",
            of("vm1")
        );
        Ok(())
    };
    net.switch.until("the load to be evened out", SOON, apart)?;
    let trace = net
        .switch
        .call::<methods::SteerTrace>(&NoParams {})?
        .decisions;
    check!(
        trace
            .iter()
            .any(|d| d.action == SteerAction::Move && d.reason.contains("largest load")),
        "no reason is given: {trace:?}"
    );
    for load in loads {
        load.finish_whole(&mut net)?;
    }
    net.close_books()
}

/// With `scale: auto` an idle switch ends with one worker in use; the other has no queue and does not wake.
fn workers_rest_and_come_back(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let rest = ports(4);
    let list = &lists(cores)[0].0;
    let all = with_workers(list, &rest);
    let auto = format!("workers: {list}\nsteering: {{ scale: auto }}\n{rest}");
    let mut net = Net::new(dir, &all, 4)?;
    net.introduce()?;
    check!(
        steered(&net.switch)?.in_use.len() == 2,
        "with `scale: all` not all workers are in use"
    );
    for _ in 0..machine::rounds(3, 50) {
        apply(&net.switch, dir, &auto)?;
        net.switch.until("a worker to rest", SOON, || {
            let shown = steered(&net.switch)?;
            check!(shown.in_use.len() == 1, "in use are {:?}", shown.in_use);
            check!(
                shown
                    .queues
                    .iter()
                    .all(|q| Some(&q.worker) == shown.in_use.first()),
                "a resting worker has queues: {:?}",
                shown.queues
            );
            Ok(())
        })?;
        // Its number, and how often it has woken.
        let parked = || -> Result<(u32, u64)> {
            let in_use = steered(&net.switch)?.in_use;
            let workers = net.switch.call::<methods::Workers>(&NoParams {})?.workers;
            let mut idle = workers.iter().filter(|w| !in_use.contains(&w.index));
            let Some(parked) = idle.find(|w| w.state == WorkerState::Parked) else {
                return Err(Error::Failed(format!("none is parked: {workers:?}")));
            };
            Ok((parked.index.into(), parked.wakes))
        };
        // It says so itself, when it gets there; and where others keep queues waiting it may be put to use once more.
        net.switch.until("a worker to sleep on", SOON, || {
            let before = parked()?;
            std::thread::sleep(Duration::from_millis(300));
            let after = parked()?;
            check!(
                before == after,
                "a parked worker woke: its number and wakes were {before:?} and are {after:?}"
            );
            Ok(())
        })?;
        let loads = [Load::start(&mut net, 1, 2)?, Load::start(&mut net, 3, 4)?];
        for load in &loads {
            load.wait_more(100)?;
        }
        apply(&net.switch, dir, &all)?;
        for load in &loads {
            load.wait_more(100)?;
        }
        check_owners(&net.switch, 2, 4)?;
        for load in loads {
            load.finish_whole(&mut net)?;
        }
    }
    net.close_books()
}

/// What the operator has pinned stays with its worker when its guest is reset or comes back; a worker rests though another
/// may not.
fn a_pinned_queue_keeps_its_worker_and_no_other(dir: &RunDir) -> Result<()> {
    let cores = two_cores()?;
    let rest = ports(3);
    let list = &lists(cores)[0].0;
    let mut net = Net::new(dir, &with_workers(list, &rest), 3)?;
    net.introduce()?;
    set(&net.switch, 1, Some(1))?;
    for n in [2, 3] {
        set(&net.switch, n, Some(0))?;
        set(&net.switch, n, None)?;
    }
    let pinned = |net: &Net<'_>| {
        let queues = steered(&net.switch)?.queues;
        let queue = queues.iter().find(|q| q.port == "vm1");
        check!(
            queue.is_some_and(|q| q.pinned && q.worker == 1),
            "the queue that was pinned to worker 1 is shown as {queue:?}"
        );
        Ok(())
    };
    pinned(&net)?;
    net.vm(1).reboot()?;
    net.switch.wait_up("vm1", SOON)?;
    net.switch
        .until("the pinned queue after a reboot", SOON, || pinned(&net))?;
    net.vm(1).disconnect()?;
    net.vm(1).reconnect()?;
    net.switch.wait_up("vm1", SOON)?;
    net.switch
        .until("the pinned queue of a new session", SOON, || pinned(&net))?;
    let auto = format!("workers: {list}\nsteering: {{ scale: auto }}\n{rest}");
    apply(&net.switch, dir, &auto)?;
    net.switch.until("the other worker to rest", SOON, || {
        let shown = steered(&net.switch)?;
        check!(shown.in_use == [1], "in use are {:?}", shown.in_use);
        check!(
            shown.queues.len() == 3 && shown.queues.iter().all(|q| q.worker == 1),
            "a resting worker has queues: {:?}",
            shown.queues
        );
        Ok(())
    })?;
    // Released, and nothing else happens.
    set(&net.switch, 1, Some(0))?;
    set(&net.switch, 1, None)?;
    net.switch.until("a worker to rest again", SOON, || {
        let shown = steered(&net.switch)?;
        check!(shown.in_use.len() == 1, "in use are {:?}", shown.in_use);
        Ok(())
    })?;
    set(&net.switch, 1, Some(1))?;
    // With the worker the pin goes.
    apply(
        &net.switch,
        dir,
        &with_workers(&format!("[{{ core: {} }}]", cores[0]), &rest),
    )?;
    let shown = steered(&net.switch)?;
    check!(
        shown.queues.len() == 3 && shown.queues.iter().all(|q| q.worker == 0 && !q.pinned),
        "without worker 1 there are {:?}",
        shown.queues
    );
    net.switch.accounted().map(drop)
}

/// A move waits for guests with several queue pairs to read what they have got, but only for those that the moved queue
/// sends to.
fn a_guest_that_does_not_read_holds_up_its_own_bridge_at_most(dir: &RunDir) -> Result<()> {
    let [a, b] = two_cores()?;
    let config = format!(
        "\
workers: [{{ core: {a} }}, {{ core: {b} }}]
steering: {{ scale: all, rebalance: off }}
bridges: {{ left: {{ }}, right: {{ }} }}
ports:
  vm1: {{ bridge: left, vhost-user: {{ socket: $RUN/vm1.sock }} }}
  vm2: {{ bridge: right, vhost-user: {{ socket: $RUN/vm2.sock, queue-pairs: 4 }} }}
  vm3: {{ bridge: right, vhost-user: {{ socket: $RUN/vm3.sock }} }}
"
    );
    let pairs = |n, guest: vswitch_simguest::Builder| if n == 2 { guest.pairs(4) } else { guest };
    let mut net = Net::with(dir, &config, 3, pairs)?;
    net.introduce()?;
    let src = net.vm(3).mac();
    net.send(3, &numbered(BROADCAST, src, 1))?;
    let in_vain = |n: u8| -> Result<u64> {
        for worker in [0, 1, 0] {
            set(&net.switch, n, Some(worker))?;
        }
        let guests = steered(&net.switch)?.guests;
        let of = guests.iter().find(|guest| guest.port == "vm2");
        Ok(of.map_or(0, |guest| guest.unsettled))
    };
    check!(
        in_vain(1)? == 0,
        "a move was held up by a guest on another bridge"
    );
    check!(in_vain(3)? > 0, "nobody has waited for the guest");
    net.close_books()
}
