//! Why packets are late.

use crate::outcome::{Cause, Late};

/// A delay from which on a packet is late: a fourteenth of a full ring's.
pub(super) const LATE_NS: u64 = super::RING as u64 * crate::trace::SERVICE_NS / 14;
/// A ring with fewer packets than this is over what it suffered from.
const DRAINED: usize = super::RING / 32;
/// Mean load from which on queues are long however even the load is.
const FULL: f64 = 0.97;

/// What is true of the workers, looked at every millisecond.
#[derive(Default)]
pub(super) struct Ledger {
    causes: Vec<Cause>,
    loads: Vec<f64>,
    pub(super) late: Late,
}

impl Ledger {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            causes: vec![Cause::Chance; workers],
            loads: vec![0.0; workers],
            late: Late::default(),
        }
    }

    /// Takes the true loads of the buckets, with who has them; of each worker the packets that it has queued, and who got
    /// an elephant since the last time.
    pub(super) fn look(
        &mut self,
        truth: &[f64],
        owner: impl Fn(usize) -> usize,
        queued: impl Fn(usize) -> usize,
        came: Option<usize>,
    ) {
        self.loads.fill(0.0);
        for (bucket, load) in truth.iter().enumerate() {
            self.loads[owner(bucket)] += load;
        }
        let mean = self.loads.iter().sum::<f64>() / self.loads.len() as f64;
        for (number, (cause, load)) in self.causes.iter_mut().zip(&self.loads).enumerate() {
            *cause = match (*load > 1.0, *cause) {
                (_, _) if mean >= FULL => Cause::Full,
                (true, _) if came == Some(number) => Cause::Came,
                (true, Cause::Came) => Cause::Came,
                (true, _) => Cause::Uneven,
                (false, Cause::Chance) => Cause::Chance,
                (false, _) if queued(number) < DRAINED => Cause::Chance,
                (false, _) => Cause::Draining,
            };
        }
    }

    /// A packet took so long, of which its worker waited so long for another; or was dropped.
    pub(super) fn record(&mut self, worker: usize, delay: u64, waited: u64) {
        if delay >= LATE_NS {
            let cause = match waited * 2 > delay {
                true => Cause::Waiting,
                false => self.causes[worker],
            };
            self.late.0[cause as usize] += 1;
        }
    }
}
