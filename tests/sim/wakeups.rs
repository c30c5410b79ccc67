//! Sleeping and waking: workers that sleep, guests that wait for interrupts, and nothing that is forgotten in between.

use std::time::{Duration, Instant};

use vswitch_simguest::Builder;
use vswitch_simguest::driver::Mode;
use vswitch_simguest::features::virtio::{EVENT_IDX, RING_PACKED};
use vswitch_tests::{Error, Result, RunDir, cases, check, machine};

use crate::setup::{Net, THREE, mac, numbered};

cases!("wakeups":
    a_sleeping_switch_wakes_for_one_frame,
    ping_pong_between_interrupt_driven_guests,
    ping_pong_with_a_worker_that_never_polls,
    idle_costs_nothing,
);

/// How long a frame may take from one guest to another where nobody is in the way, which is not at every time.
const PROMPT: Duration = Duration::from_millis(100);
/// A frame that takes this long is a lost wake-up: nobody wakes by a clock.
const LOST: Duration = Duration::from_secs(30);

/// All four habits of a guest.
fn habits() -> impl Iterator<Item = (Mode, bool)> {
    [Mode::Interrupt, Mode::Poll]
        .into_iter()
        .flat_map(|mode| [(mode, true), (mode, false)])
}

fn with((mode, event_idx): (Mode, bool), builder: Builder) -> Builder {
    let builder = builder.mode(mode);
    if event_idx {
        builder
    } else {
        builder.without(EVENT_IDX)
    }
}

/// Sends one frame and waits for it; how long that took.
fn one(net: &mut Net<'_>, from: u8, to: u8, number: u32) -> Result<Duration> {
    let frame = numbered(mac(to), mac(from), number);
    let started = Instant::now();
    net.vm(from).send(&frame)?;
    let got = net.vm(to).recv(LOST)?.map(|f| f.bytes);
    let took = started.elapsed();
    check!(
        got.as_ref() == Some(&frame),
        "frame {number} from guest {from} to guest {to} did not arrive within {LOST:?}"
    );
    Ok(took)
}

fn a_sleeping_switch_wakes_for_one_frame(dir: &RunDir) -> Result<()> {
    for sender in habits() {
        for receiver in habits() {
            let mut net = Net::with(dir, THREE, 2, |n, b| {
                with(if n == 1 { sender } else { receiver }, b)
            })?;
            net.introduce()?;
            let mut took = Vec::new();
            for number in 0..machine::rounds(3, 100) {
                net.switch.until("the worker to sleep", LOST, || {
                    let asleep = net.switch.show()?.workers.iter().all(|w| w.asleep);
                    check!(asleep, "a worker is awake though nothing happens");
                    Ok(())
                })?;
                took.push(one(&mut net, 1, 2, number)?);
            }
            took.sort_unstable();
            let median = took[took.len() / 2];
            check!(
                median < PROMPT,
                "from {sender:?} to {receiver:?} (mode, event index) half of the frames took {median:?} or more"
            );
            net.close_books()?;
        }
    }
    Ok(())
}

fn ping_pong(dir: &RunDir, config: &str) -> Result<()> {
    let rounds = machine::rounds(2000, 200_000);
    let habits = [
        (true, 0),
        (false, 0),
        (true, RING_PACKED),
        (false, RING_PACKED),
    ];
    for (event_idx, layout) in habits {
        let mut net = Net::with(dir, config, 2, |_, b| {
            with((Mode::Interrupt, event_idx), b).with(layout)
        })?;
        net.introduce()?;
        let mut took = Vec::new();
        for number in 0..rounds {
            let lost = |e: Error| {
                Error::Failed(format!(
                    "event index {event_idx}, layout {layout:#x}, round {number}: {e}"
                ))
            };
            took.push(one(&mut net, 1, 2, number).map_err(lost)?);
            took.push(one(&mut net, 2, 1, number).map_err(lost)?);
        }
        // Others that want the processor delay some of them, but not most.
        took.sort_unstable();
        let median = took[took.len() / 2];
        check!(
            median < Duration::from_millis(5),
            "event index {event_idx}, layout {layout:#x}: half of the frames take {median:?} or more"
        );
        net.close_books()?;
    }
    Ok(())
}

fn ping_pong_between_interrupt_driven_guests(dir: &RunDir) -> Result<()> {
    ping_pong(dir, THREE)
}

fn ping_pong_with_a_worker_that_never_polls(dir: &RunDir) -> Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_err(|e| Error::io("ask which cores there are")(e.into()))?;
    let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|core| allowed.is_set(*core));
    let workers = format!(
        "workers: [{{ core: {}, busy-poll: never }}]\n",
        core.unwrap_or(0)
    );
    ping_pong(dir, &format!("{workers}{THREE}"))
}

/// Many short looks at fresh switches, because a switch that does not come to rest does so by chance; and a long one.
fn idle_costs_nothing(dir: &RunDir) -> Result<()> {
    for mode in [Mode::Interrupt, Mode::Poll] {
        for _ in 0..machine::rounds(10, 500) {
            idle(dir, mode, Duration::from_millis(300), 5.0)?;
        }
        let watched = Duration::from_secs(u64::from(machine::rounds(3, 60)));
        idle(dir, mode, watched, 1.0)?;
    }
    Ok(())
}

/// A switch and two guests that have talked may use so many percent of a core afterwards.
fn idle(dir: &RunDir, mode: Mode, watched: Duration, percent: f64) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, |_, b| b.mode(mode))?;
    net.introduce()?;
    for n in 0..100 {
        one(&mut net, 1, 2, n)?;
    }
    let process = net.switch.process()?;
    let share = process.rest(watched, percent / 100.0)? * 100.0;
    check!(
        share < percent,
        "the idle switch with two guests ({mode:?}) used {share:.2} % of a core over {watched:?} and more; threads and their ns: {}",
        threads(process.id())
    );
    net.close_books()
}

/// Names of a process's threads with the processor time each has used.
fn threads(process: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let mut names = Vec::new();
    for task in tasks.into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, time) = (read("comm"), read("schedstat"));
        names.push(format!(
            "{} {}",
            name.trim(),
            time.split(' ').next().unwrap_or("")
        ));
    }
    names.join(", ")
}
