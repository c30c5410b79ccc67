//! Workers come, go, change cores and are changed while guests exchange traffic: no frame is lost, none is reordered.

use std::collections::BTreeSet;
use std::time::Duration;

use vswitch_api::rpc::WorkerStatus;
use vswitch_tests::{Result, RunDir, Switch, cases, check, machine, skip};

use crate::config::apply;
use crate::load::Load;
use crate::setup::{Net, SOON, numbered, port};

cases!("workers":
    workers_come_and_go_under_traffic,
    a_guest_that_comes_and_goes_meets_workers_that_do,
    totals_never_fall,
);

/// Ports for so many guests.
fn ports(guests: u8) -> String {
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
fn lists([a, b]: [u32; 2]) -> Vec<(String, usize)> {
    [
        (format!("[{{ core: {a} }}, {{ core: {b} }}]"), 2),
        (format!("[{{ core: {b} }}]"), 1),
        (format!("[{{ core: {b}, busy-poll: never }}]"), 1),
        (format!("[{{ core: {b} }}, {{ core: {a}, busy-poll: never }}]"), 2),
        (format!("[{{ core: {a} }}]"), 1),
        (format!("[{{ core: {b} }}]"), 1),
        (format!("[{{ core: {a}, busy-poll: always }}]"), 1),
    ]
    .into()
}

fn with_workers(list: &str, rest: &str) -> String {
    format!("workers: {list}\nsteering: {{ scale: all }}\n{rest}")
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
        check_owners(&net.switch, 2, 3)?;
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
