//! A round: every way to steer under every load, for real and replayed, one after the other in an order that rotates.

use super::costs::Costs;
use super::flows::{Random, shuffled};
use super::live::{Drive, Live, Outcome};
use super::policy::{Calisto, Modulo, Ours, Policy};
use super::replay::{self, Overhead};
use super::{FLOWS, LOAD, PHASES, RATES, Report, Round, Sample, Settings, WORK_NS, steering};
use crate::Result;
use crate::cpu::{Pinned, Placement};
use crate::probe;

/// The least part of a cycle that has to count, in percent.
const CALM_PERCENT: f64 = 20.0;
/// Cycles tried until one counts.
const TRIES: usize = 3;
/// How many times as long as it took to grow a queue drains at half load: on the busier CPU, which has three of five targets and
/// lets packets in besides. At the paper's rates CPUs are idle, and nothing is left behind.
const DRAIN: u64 = 4;
/// Packets that say what four targets can do.
const FULL_PACKETS: u64 = 2_000_000;

/// The targets, and the order in which flows come for the first time.
pub(super) struct Bench {
    pub(super) live: Live,
    pub(super) placement: Placement,
    pub(super) settings: Settings,
    order: Vec<u32>,
}

/// Times of steps: at the paper's rates, and at half load.
#[derive(Default)]
pub(super) struct Timed {
    pub(super) idle: Costs,
    pub(super) busy: Costs,
}

/// One way to steer, everything of a round.
struct Taken {
    live: Vec<Sample>,
    timed: Timed,
}

impl Bench {
    pub(super) fn new(placement: Placement, settings: Settings) -> Self {
        Self {
            live: Live::new(FLOWS, placement),
            placement,
            settings,
            order: shuffled(FLOWS, &mut Random(11)),
        }
    }

    /// What four targets on the two CPUs can do while flows stay where they are, in packets a second.
    pub(super) fn capacity(&mut self) -> Result<f64> {
        self.live.clear(1);
        let mut policy = Modulo::new(PHASES[0]);
        self.settle(&mut policy)?;
        let drive = Drive {
            phases: &PHASES[..1],
            packets: FULL_PACKETS,
            order: None,
            rate: None,
            drain: DRAIN,
        };
        let outcome = self.live.run(&mut policy, &drive)?;
        Ok(outcome.packets as f64 / outcome.seconds.max(1e-9))
    }

    /// One packet of every flow, at four targets, so that every state is where it belongs.
    pub(super) fn settle<P: Policy + Send>(&mut self, policy: &mut P) -> Result<Outcome> {
        self.each(policy, None)
    }

    fn each<P: Policy + Send>(&mut self, policy: &mut P, rate: Option<f64>) -> Result<Outcome> {
        let drive = Drive {
            phases: &PHASES[..1],
            packets: self.order.len() as u64,
            order: Some(&self.order),
            rate,
            drain: DRAIN,
        };
        self.live.run(policy, &drive)
    }

    /// A cycle at a rate, everything where it belongs before.
    pub(super) fn cycle<P: Policy + Send>(
        &mut self,
        policy: &mut P,
        rate: f64,
        seconds: f64,
    ) -> Result<Outcome> {
        self.settle(policy)?;
        let drive = Drive {
            phases: &PHASES,
            packets: (rate * seconds) as u64,
            order: None,
            rate: Some(rate),
            drain: if RATES.contains(&rate) { 0 } else { DRAIN },
        };
        self.live.run(policy, &drive)
    }

    fn take<P: Policy + Send>(&mut self, seed: u64, capacity: f64) -> Result<Taken> {
        self.live.clear(seed);
        let mut policy = P::new(PHASES[0]);
        let cold = self.each(&mut policy, Some(LOAD * capacity))?;
        let mut taken = Taken {
            live: Vec::new(),
            timed: Timed::default(),
        };
        for rate in RATES.into_iter().chain([LOAD * capacity]) {
            let busy = taken.live.len() == RATES.len();
            let mut tries = 0;
            let (outcome, discarded) = loop {
                let outcome = self.cycle(&mut policy, rate, self.settings.phase_seconds)?;
                let calm = calm_percent(&outcome);
                let discarded = (calm < CALM_PERCENT)
                    .then(|| format!("both threads ran in {calm:.0} % of the windows"));
                tries += 1;
                if discarded.is_none() || tries == TRIES {
                    break (outcome, discarded);
                }
            };
            let cold_ns = busy.then(|| cold.latency.mean());
            taken.live.push(sample(rate, &outcome, cold_ns, discarded));
            let timed = match busy {
                true => &mut taken.timed.busy,
                false => &mut taken.timed.idle,
            };
            timed.merge(&outcome.costs);
            if busy {
                // New flows are timed where they are.
                timed.fresh.extend(&cold.costs.fresh);
                taken.timed.idle.fresh.extend(&cold.costs.fresh);
            }
        }
        Ok(taken)
    }

    /// Everything once.
    pub(super) fn round(&mut self, round: u32, report: &mut Report) -> Result<()> {
        let before = probe::bounce(self.placement)?;
        let capacity = self.capacity()?;
        let mut timed = Timed::default();
        for turn in 0..3 {
            let who = (turn + round as usize) % 3;
            eprintln!("round {}: {}", round + 1, report.live[0].samples[who].0);
            let seed = u64::from(round) + 1;
            let taken = match who {
                0 => self.take::<Ours>(seed, capacity)?,
                1 => self.take::<Modulo>(seed, capacity)?,
                _ => self.take::<Calisto>(seed, capacity)?,
            };
            timed.idle.merge(&taken.timed.idle);
            timed.busy.merge(&taken.timed.busy);
            for (case, sample) in report.live.iter_mut().zip(taken.live) {
                case.samples[who].1.push(sample);
            }
        }
        // Waiting for whoever is asked is the replay's own part.
        timed.busy.wire.clone_from(&timed.idle.wire);
        let steering = {
            let _pinned = Pinned::to(self.placement.worker)?;
            steering::measure(FLOWS)
        };
        eprintln!("round {}: replay", round + 1);
        self.replay(round, &timed, &steering, report);
        report.rounds.push(Round {
            bounce_ns: (before, probe::bounce(self.placement)?),
            capacity,
            idle: timed.idle.medians(),
            busy: timed.busy.medians(),
            steering,
        });
        Ok(())
    }

    fn replay(
        &self,
        round: u32,
        timed: &Timed,
        steering: &steering::Steering,
        report: &mut Report,
    ) {
        let even = |ns| Overhead {
            first: ns,
            later: ns,
        };
        let calisto = Overhead {
            first: steering.calisto_new,
            later: steering.calisto,
        };
        let packets = self.settings.phase_packets;
        for (number, case) in report.replay.iter_mut().enumerate() {
            let (costs, rate) = match RATES.get(number) {
                Some(rate) => (&timed.idle, *rate),
                None => (&timed.busy, LOAD * capacity(&timed.busy)),
            };
            let seed = u64::from(round) << 8 | number as u64;
            let samples = [
                replayed::<Ours>(costs, even(steering.select), rate, seed, packets),
                replayed::<Modulo>(costs, even(steering.modulo), rate, seed, packets),
                replayed::<Calisto>(costs, calisto, rate, seed, packets),
            ];
            for ((_, all), sample) in case.samples.iter_mut().zip(samples) {
                all.push(sample);
            }
        }
    }
}

/// What four targets with a CPU each can do while flows stay where they are, in packets a second; steering costs nothing.
pub(super) fn capacity(costs: &Costs) -> f64 {
    4e9 / (WORK_NS as f64 + costs.mean_hit())
}

fn replayed<P: Policy>(
    costs: &Costs,
    overhead: Overhead,
    rate: f64,
    seed: u64,
    packets: u64,
) -> Sample {
    let policy = P::new(PHASES[0]);
    let mut run = replay::Run::new(policy, costs, FLOWS, overhead, rate, seed);
    let cold = run.first_packets();
    let warm = run.cycle(&PHASES, packets);
    let at = |q| warm.latency.quantile(q) as f64;
    Sample {
        rate,
        mean_ns: warm.latency.mean(),
        percentiles_ns: [0.5, 0.9, 0.99].map(at),
        packets: warm.packets,
        fetched_percent: 100.0 * warm.fetched as f64 / warm.packets.max(1) as f64,
        reordered: cold.reordered + warm.reordered,
        lost: cold.lost + warm.lost,
        cold_ns: Some(cold.latency.mean()),
        calm_percent: None,
        discarded: None,
    }
}

fn sample(rate: f64, outcome: &Outcome, cold_ns: Option<f64>, discarded: Option<String>) -> Sample {
    let at = |q| outcome.latency.quantile(q) as f64;
    let fetched: u64 = outcome.fetched.iter().sum();
    Sample {
        rate,
        mean_ns: outcome.latency.mean(),
        percentiles_ns: [0.5, 0.9, 0.99].map(at),
        packets: outcome.packets,
        fetched_percent: 100.0 * fetched as f64 / outcome.packets.max(1) as f64,
        reordered: outcome.reordered,
        lost: outcome.lost,
        cold_ns,
        calm_percent: Some(calm_percent(outcome)),
        discarded,
    }
}

fn calm_percent(outcome: &Outcome) -> f64 {
    let (calm, all) = outcome.windows;
    100.0 * calm as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_targets_do_four_times_what_one_does() {
        let costs = Costs {
            hit: vec![400 - WORK_NS as u32],
            ..Costs::default()
        };
        assert_eq!(capacity(&costs), 1e7);
    }
}
