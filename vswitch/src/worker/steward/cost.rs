//! What a look costs where there is as much as there can be.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::tests::{ALL, workers};
use super::*;
use crate::forward::{PortIndex, PortRef};
use crate::worker::vitals::QueueVitals;

/// So many queues of as many workers as can be looked at, a few of each port, spread evenly.
fn world(queues: u16) -> (Arc<Workers>, Vec<Arc<QueueVitals>>) {
    let workers = workers(WORKERS as u32);
    let vitals = (0..queues).map(|n| {
        let port = PortRef {
            index: PortIndex(n / 4),
            incarnation: 1,
        };
        let key = QueueKey { port, queue: n % 4 };
        workers.pretend(key, usize::from(n) % WORKERS)
    });
    let vitals = vitals.collect();
    for worker in workers.list() {
        workers.rest(worker.index, false);
    }
    (workers, vitals)
}

/// Processor time that this thread has used: what others do meanwhile is not in it.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

/// The shortest of some looks at which a balancing look is due and nothing moves.
fn look(queues: u16) -> Duration {
    let (workers, vitals) = world(queues);
    let mut brain = Brain::new(ALL);
    brain.begin(Instant::now(), &workers);
    let looks = (0..10).map(|_| {
        // A third of what each worker can do.
        let period = brain.balancer.period();
        let each = period.as_nanos() as u64 / 3 * WORKERS as u64 / u64::from(queues);
        vitals.iter().for_each(|queue| queue.burst(1, each));
        for worker in workers.list() {
            worker.vitals.turn(true, period.as_nanos() as u64 / 3);
        }
        let now = brain.balanced + period;
        let before = used();
        brain.look(now, None, &workers);
        used() - before
    });
    let least = looks.min().unwrap();
    let made = brain.trace.decisions();
    assert!(made.is_empty(), "this is about looking: {made:?}");
    assert_eq!(brain.queues.len(), usize::from(queues));
    workers.stop();
    least
}

#[test]
fn a_look_at_all_that_can_be_is_short() {
    let (few, all) = (look(QUEUES as u16 / 8), look(QUEUES as u16));
    println!("{WORKERS} workers: {few:?} for an eighth of the queues, {all:?} for {QUEUES}");
    // Eight times as many take eight times as long, by and large: a look that looked at each queue for each would take
    // 64 times as long. What there is takes under 1 ms as released, on a machine of today.
    assert!(all < few * 24, "{few:?} and {all:?}");
}
