//! When guests are called: no policy forgets one that sleeps, a guest that polls is left alone, and policies change while
//! frames pass.

use std::time::{Duration, Instant};

use vswitch_api::config::{Coalesce, CoalescePolicy};
use vswitch_api::rpc::{
    CoalesceSetParams, CoalesceShowParams, CoalescedRing, GuestClass, RingDirection,
    SteerSetParams, code, methods,
};
use vswitch_simguest::driver::Mode;
use vswitch_simguest::features::virtio::{EVENT_IDX, RING_PACKED};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine};

use crate::config::apply;
use crate::load::Load;
use crate::setup::{Net, THREE, mac, numbered, port};
use crate::workers::two_cores;

cases!("coalescing":
    every_policy_wakes_a_guest_that_sleeps,
    two_workers_wake_one_guest_under_every_policy,
    a_guest_that_polls_is_not_called,
    policies_change_under_traffic,
    a_held_call_is_made_in_time_and_the_worker_sleeps,
);

/// A frame that takes this long is a lost wake-up: nobody wakes by a clock but for the calls that are held back.
const LOST: Duration = Duration::from_secs(30);

/// Each policy with figures that make it hold calls back, if it can.
fn policies() -> impl Iterator<Item = Coalesce> {
    CoalescePolicy::ALL.into_iter().map(|policy| {
        let plain = Coalesce {
            policy,
            ..Coalesce::default()
        };
        match policy {
            CoalescePolicy::Static => Coalesce {
                rx_usecs: Some(300),
                rx_frames: Some(64),
                tx_usecs: Some(300),
                ..plain
            },
            CoalescePolicy::Spdk => Coalesce {
                rx_usecs: Some(100),
                ..plain
            },
            // A small share holds back soon.
            CoalescePolicy::Adaptive => Coalesce {
                cpu_percent: Some(1),
                ..plain
            },
            _ => plain,
        }
    })
}

fn set(switch: &Switch<'_>, n: u8, coalesce: Coalesce) -> Result<()> {
    let params = CoalesceSetParams {
        port: port(n),
        coalesce,
    };
    let set = switch.call::<methods::CoalesceSet>(&params)?;
    check!(
        set.coalesce == coalesce,
        "{coalesce:?} was set, {:?} holds",
        set.coalesce
    );
    Ok(())
}

fn ring(switch: &Switch<'_>, n: u8, direction: RingDirection) -> Result<CoalescedRing> {
    let params = CoalesceShowParams {
        port: Some(port(n)),
    };
    let shown = switch.call::<methods::CoalesceShow>(&params)?;
    let rings = shown.ports.into_iter().flat_map(|p| p.rings);
    rings
        .into_iter()
        .find(|ring| ring.direction == direction)
        .ok_or_else(|| Error::Failed(format!("vm{n} has no {direction:?} ring")))
}

/// The guest falls asleep: from now on only a call wakes it.
fn falls_asleep(net: &mut Net<'_>, n: u8) -> Result<()> {
    let rx = &mut net.vm(n).queue(0)?.rx;
    rx.disarm();
    check!(!rx.arm()?, "vm{n} has frames that nobody knows of");
    Ok(())
}

/// What the guest gets, asleep as it is, until it has so many frames; it sleeps again whenever there is nothing to see.
fn wakes_for(net: &mut Net<'_>, n: u8, frames: usize, what: &str) -> Result<Vec<Vec<u8>>> {
    let mut got = Vec::new();
    loop {
        let rx = &mut net.vm(n).queue(0)?.rx;
        let woken = rx.notifier().wait_call(LOST);
        check!(
            woken,
            "{what}: vm{n} sleeps on after {LOST:?}, with {} of {frames} frames",
            got.len()
        );
        loop {
            net.vm(n).queue(0)?.rx.disarm();
            let more = net.vm(n).recv_all(Duration::ZERO, usize::MAX)?;
            got.extend(more.into_iter().map(|frame| frame.bytes));
            if got.len() >= frames {
                return Ok(got);
            }
            if !net.vm(n).queue(0)?.rx.arm()? {
                break;
            }
        }
    }
}

fn every_policy_wakes_a_guest_that_sleeps(dir: &RunDir) -> Result<()> {
    let rounds = machine::rounds(100, 5_000);
    for (without, layout) in [
        (0, 0),
        (EVENT_IDX, 0),
        (0, RING_PACKED),
        (EVENT_IDX, RING_PACKED),
    ] {
        let mut net = Net::with(dir, THREE, 2, |_, b| {
            b.mode(Mode::Interrupt).without(without).with(layout)
        })?;
        net.introduce()?;
        for coalesce in policies() {
            for n in [1, 2] {
                set(&net.switch, n, coalesce)?;
            }
            for number in 0..rounds {
                for (from, to) in [(1, 2), (2, 1)] {
                    let frame = numbered(mac(to), mac(from), number);
                    falls_asleep(&mut net, to)?;
                    net.vm(from).send(&frame)?;
                    let what = format!(
                        "{}, layout {layout:#x} without {without:#x}, round {number} to vm{to}",
                        coalesce.policy.name()
                    );
                    let got = wakes_for(&mut net, to, 1, &what)?;
                    check!(got == [frame], "{what}: other frames came");
                }
            }
            let seen = ring(&net.switch, 2, RingDirection::Receive)?;
            check!(
                seen.policy == coalesce.policy && seen.calls > 0,
                "{} is shown as {seen:?}",
                coalesce.policy.name()
            );
        }
        net.close_books()?;
    }
    Ok(())
}

/// Two senders, each with a worker of its own, and one sleeping receiver: what one worker holds back the other may report.
fn two_workers_wake_one_guest_under_every_policy(dir: &RunDir) -> Result<()> {
    let [a, b] = two_cores()?;
    let config = format!(
        "workers: [{{ core: {a} }}, {{ core: {b} }}]\nsteering: {{ scale: all, rebalance: off }}\n{THREE}"
    );
    let mut net = Net::with(dir, &config, 3, |_, b| b.mode(Mode::Interrupt))?;
    net.introduce()?;
    for (n, worker) in [(1, 0), (3, 1)] {
        net.switch.call::<methods::SteerSet>(&SteerSetParams {
            port: port(n),
            queue: 0,
            worker: Some(worker),
        })?;
    }
    for coalesce in policies() {
        set(&net.switch, 2, coalesce)?;
        for number in 0..machine::rounds(300, 20_000) {
            // Different numbers of frames, so that the one or the other comes last.
            let (first, third) = (number % 3 + 1, number % 5 + 1);
            falls_asleep(&mut net, 2)?;
            for k in 0..first.max(third) {
                for (n, count) in [(1, first), (3, third)] {
                    if k < count {
                        net.vm(n).send(&numbered(mac(2), mac(n), number))?;
                    }
                }
            }
            let what = format!("{}, round {number}", coalesce.policy.name());
            let got = wakes_for(&mut net, 2, (first + third) as usize, &what)?;
            check!(
                got.len() == (first + third) as usize,
                "{what}: {} frames came",
                got.len()
            );
        }
    }
    net.close_books()
}

fn a_guest_that_polls_is_not_called(dir: &RunDir) -> Result<()> {
    for layout in [0, RING_PACKED] {
        let mut net = Net::with(dir, THREE, 2, |_, b| b.mode(Mode::Poll).with(layout))?;
        net.introduce()?;
        let exchange = |net: &mut Net<'_>, count: u32| -> Result<()> {
            for number in 0..count {
                net.send(1, &numbered(mac(2), mac(1), number))?;
                let got = net.vm(2).recv(LOST)?;
                check!(got.is_some(), "a guest that polls gets nothing");
            }
            Ok(())
        };
        exchange(&mut net, 100)?;
        let rings = |net: &Net<'_>| -> Result<[CoalescedRing; 2]> {
            Ok([
                ring(&net.switch, 2, RingDirection::Receive)?,
                ring(&net.switch, 1, RingDirection::Transmit)?,
            ])
        };
        let before = rings(&net)?;
        exchange(&mut net, machine::rounds(1_000, 50_000))?;
        let after = rings(&net)?;
        for (before, after) in before.iter().zip(&after) {
            check!(
                before.calls == after.calls && before.calls <= 1,
                "a guest that polls was called: {after:?}"
            );
        }
        let [receive, _] = after;
        check!(
            receive.class == GuestClass::Polling && receive.frames > before[0].frames,
            "a guest that polls is taken for {receive:?}"
        );
        net.close_books()?;
    }
    Ok(())
}

fn policies_change_under_traffic(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, |_, b| b.mode(Mode::Interrupt))?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    for _ in 0..machine::rounds(5, 100) {
        for coalesce in policies() {
            set(&net.switch, 2, coalesce)?;
            load.wait_more(100)?;
            let seen = ring(&net.switch, 2, RingDirection::Receive)?;
            check!(
                seen.policy == coalesce.policy,
                "{:?} was set, the ring goes by {:?}",
                coalesce.policy,
                seen.policy
            );
        }
    }
    // By the file, too; what differs from the file otherwise stays.
    let vpp = THREE.replace("vm2.sock", "vm2.sock, coalesce: { policy: vpp }");
    let changes = apply(&net.switch, dir, &vpp)?;
    check!(
        changes.len() == 1 && changes[0].effect == vswitch_api::config::Effect::Live,
        "a policy in the file makes these changes: {changes:?}"
    );
    load.wait_more(100)?;
    let seen = ring(&net.switch, 2, RingDirection::Receive)?;
    check!(
        seen.policy == CoalescePolicy::Vpp,
        "the ring goes by {seen:?}"
    );
    let wrong = CoalesceSetParams {
        port: port(2),
        coalesce: Coalesce {
            policy: CoalescePolicy::Vpp,
            rx_usecs: Some(5),
            ..Coalesce::default()
        },
    };
    match net.switch.call::<methods::CoalesceSet>(&wrong) {
        Err(Error::Refused { error, .. }) => check!(
            error.code == code::INVALID_PARAMS && error.message.contains("takes no notice"),
            "it is refused with {error}"
        ),
        other => check!(false, "figures that a policy does not have: {other:?}"),
    }
    load.finish_whole(&mut net)?;
    net.close_books()
}

fn a_held_call_is_made_in_time_and_the_worker_sleeps(dir: &RunDir) -> Result<()> {
    const HELD: Duration = Duration::from_millis(5);
    let mut net = Net::with(dir, THREE, 2, |_, b| b.mode(Mode::Interrupt))?;
    net.introduce()?;
    let coalesce = Coalesce {
        policy: CoalescePolicy::Static,
        rx_usecs: Some(HELD.as_micros() as u32),
        ..Coalesce::default()
    };
    set(&net.switch, 2, coalesce)?;
    let mut took = Vec::new();
    for number in 0..machine::rounds(20, 500) {
        falls_asleep(&mut net, 2)?;
        let started = Instant::now();
        net.vm(1).send(&numbered(mac(2), mac(1), number))?;
        wakes_for(&mut net, 2, 1, "a held call")?;
        took.push(started.elapsed());
        net.switch.until("the worker to sleep", LOST, || {
            let asleep = net.switch.show()?.workers.iter().all(|w| w.asleep);
            check!(asleep, "a worker is awake though nothing is held");
            Ok(())
        })?;
    }
    // Others that want the processor delay some of them, but not most.
    took.sort_unstable();
    let median = took[took.len() / 2];
    check!(
        median < HELD + Duration::from_millis(500),
        "half of the calls that were held for {HELD:?} took {median:?} or more"
    );
    let seen = ring(&net.switch, 2, RingDirection::Receive)?;
    let deadlines = seen.reasons.get("deadline").copied().unwrap_or(0);
    check!(
        deadlines > 0 && seen.delay_p50_ns > 1_000_000,
        "calls were not held back: {seen:?}"
    );
    net.close_books()
}
