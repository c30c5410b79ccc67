//! Traffic: descriptions, and what is made from them.
//!
//! A trace is a seed and parameters, in YAML; packets are made as they are needed and never stored. Those that the claims
//! use are in `traces/`, written by hand. Generator: Marsaglia's xorshift with 128 bits of state.

use rand_core::{Rng, SeedableRng};
use rand_xorshift::XorShiftRng;
use serde::{Deserialize, Serialize};
use vswitch_flowtable::{Addresses, FlowHasher, FlowKey};

/// Mean work of a packet, in ns.
pub const SERVICE_NS: u64 = 1000;
/// A short packet takes so much less, a long one so much more.
const SERVICE_SPREAD_NS: u64 = 200;

/// Flows whose popularity follows Zipf's law, and what happens to them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Trace {
    /// Of everything random.
    pub seed: u64,
    /// Workers there are.
    pub workers: u16,
    /// How long it lasts.
    pub millis: u64,
    /// Work offered, as part of what all workers can do; with elephants, in the mean.
    pub load: f64,
    /// Flows at any time.
    pub flows: u32,
    /// Exponent: the k-th flow has a part of the traffic proportional to `k^-zipf`.
    pub zipf: f64,
    /// Flows per second that end, each replaced by a new one of the same popularity.
    #[serde(default)]
    pub churn: f64,
    /// Large flows that come and go, on top of the others.
    #[serde(default)]
    pub elephants: Option<Elephants>,
    /// Loads in turn, over and over, instead of `load`.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// Large flows. Times on and off are random with these means; each is a new flow when it comes again.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Elephants {
    /// How many.
    pub count: u32,
    /// Part of a worker that each takes.
    pub share: f64,
    /// How long one stays.
    pub on_millis: f64,
    /// How long it stays away.
    pub off_millis: f64,
}

/// A load for a while.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Phase {
    /// How long.
    pub millis: u64,
    /// Part of what all workers can do.
    pub load: f64,
}

/// The description is none.
#[derive(Debug, thiserror::Error)]
#[error("not a description of a trace: {0}")]
pub struct NotATrace(String);

impl Trace {
    /// Reads a description.
    pub fn parse(text: &str) -> Result<Self, NotATrace> {
        let trace: Self =
            serde_yaml::from_str(text).map_err(|error| NotATrace(error.to_string()))?;
        let sound = trace.workers > 0 && trace.flows > 0 && trace.base_load(trace.load) > 0.0;
        match sound {
            true => Ok(trace),
            false => Err(NotATrace("it has no workers, no flows or no load".into())),
        }
    }

    /// Flows by Zipf's law alone.
    pub fn zipf() -> Result<Self, NotATrace> {
        Self::parse(include_str!("../traces/zipf.yaml"))
    }

    /// The same with elephants that come and go, and churn.
    pub fn elephants() -> Result<Self, NotATrace> {
        Self::parse(include_str!("../traces/elephants.yaml"))
    }

    /// Load that comes and goes.
    pub fn on_off() -> Result<Self, NotATrace> {
        Self::parse(include_str!("../traces/on-off.yaml"))
    }

    /// The same over so many workers: as many flows and elephants for each, at least one elephant.
    #[must_use]
    pub fn over(mut self, workers: u16) -> Self {
        let scaled = |count: u32| (count * u32::from(workers) / u32::from(self.workers)).max(1);
        self.flows = scaled(self.flows);
        self.elephants = self.elephants.map(|all| Elephants {
            count: scaled(all.count),
            ..all
        });
        self.churn *= f64::from(workers) / f64::from(self.workers);
        self.workers = workers;
        self
    }

    /// How long it lasts, in ns.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.millis * 1_000_000
    }

    /// What is left of a load, in workers, when the mean of the elephants is taken away.
    fn base_load(&self, load: f64) -> f64 {
        let elephants = self.elephants.map_or(0.0, |all| {
            let on = all.on_millis / (all.on_millis + all.off_millis);
            f64::from(all.count) * all.share * on
        });
        load * f64::from(self.workers) - elephants
    }

    /// The loads of the flows, elephants not among them, in workers, from the largest.
    #[must_use]
    pub fn flow_loads(&self) -> Vec<f64> {
        let weights = weights(self.flows, self.zipf);
        let all: f64 = weights.iter().sum();
        let load = self.base_load(self.load);
        weights.iter().map(|weight| weight / all * load).collect()
    }
}

fn weights(flows: u32, zipf: f64) -> Vec<f64> {
    (1..=flows)
        .map(|rank| f64::from(rank).powf(-zipf))
        .collect()
}

/// A packet as it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    /// When, in ns.
    pub(crate) at: u64,
    /// Work, in ns.
    pub(crate) work: u32,
    /// Its flow's hash.
    pub(crate) hash: u32,
    /// Its flow's place; a place serves one flow after the other.
    pub(crate) flow: u32,
    /// Which flow at this place.
    pub(crate) generation: u32,
    /// Its number in the flow.
    pub(crate) sequence: u32,
}

struct Flow {
    hash: u32,
    generation: u32,
    sequence: u32,
}

struct Elephant {
    is_on: bool,
    turns_at: u64,
}

/// Makes the packets of a trace, one after the other.
pub(crate) struct Source {
    random: XorShiftRng,
    hasher: FlowHasher,
    made: u32,
    flows: Vec<Flow>,
    /// Walker's alias method: with this chance the drawn place, else the other.
    alias: Vec<(f64, u32)>,
    elephants: Vec<Elephant>,
    of_elephants: Option<Elephants>,
    phases: Vec<(u64, f64)>,
    phase: usize,
    phase_ends: u64,
    /// Packets per ns of the flows that are no elephants, and of each elephant.
    rate: f64,
    elephant_rate: f64,
    churn: f64,
    churns_at: u64,
    now: f64,
    /// What is so, and no policy of a switch knows: parts of the traffic by bucket, elephants aside.
    parts: Vec<f64>,
    /// Part of the traffic by flow.
    weights: Vec<f64>,
    turned: Option<(u64, u32)>,
}

impl Source {
    /// For a table of so many entries, a power of two.
    pub(crate) fn new(trace: &Trace, entries: usize) -> Self {
        let mut random = XorShiftRng::seed_from_u64(trace.seed);
        let mut key = [0; 16];
        random.fill_bytes(&mut key);
        let phases: Vec<_> = match trace.phases.is_empty() {
            true => vec![(u64::MAX, trace.base_load(trace.load))],
            false => {
                let phase = |phase: &Phase| (phase.millis * 1_000_000, trace.base_load(phase.load));
                trace.phases.iter().map(phase).collect()
            }
        };
        let mut weights = weights(trace.flows, trace.zipf);
        let alias = alias(&weights);
        let all: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= all);
        let mut source = Self {
            random,
            hasher: FlowHasher::new(key),
            made: 0,
            flows: Vec::new(),
            alias,
            elephants: Vec::new(),
            of_elephants: trace.elephants,
            phase: 0,
            phase_ends: phases[0].0,
            rate: phases[0].1.max(0.0) / SERVICE_NS as f64,
            phases,
            elephant_rate: trace.elephants.map_or(0.0, |all| all.share) / SERVICE_NS as f64,
            churn: trace.churn / 1e9,
            churns_at: u64::MAX,
            now: 0.0,
            parts: vec![0.0; entries],
            weights,
            turned: None,
        };
        let elephants = trace.elephants.map_or(0, |all| all.count);
        for place in 0..(trace.flows + elephants) as usize {
            let hash = source.new_hash();
            if let Some(weight) = source.weights.get(place) {
                source.parts[hash as usize & (entries - 1)] += weight;
            }
            source.flows.push(Flow {
                hash,
                generation: 0,
                sequence: 0,
            });
        }
        for _ in 0..elephants {
            let turns_at = source.elephant_turns(0, false);
            source.elephants.push(Elephant {
                is_on: false,
                turns_at,
            });
        }
        source.plan_churn(0);
        source
    }

    /// Places for flows, those of elephants last.
    pub(crate) fn places(&self) -> usize {
        self.flows.len()
    }

    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A random time with this mean.
    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.uniform()).ln() * mean
    }

    fn new_hash(&mut self) -> u32 {
        self.made += 1;
        let port = self.random.next_u32();
        self.hasher.hash(&FlowKey {
            vlan: 0,
            addresses: Addresses::V4 {
                src: (0x0a00_0000 | self.made).to_be_bytes(),
                dst: [192, 168, 0, 1],
            },
            protocol: 6,
            ports: Some((port as u16 | 1024, 443)),
        })
    }

    /// The true loads of the buckets at this moment, in workers.
    pub(crate) fn truth(&self, loads: &mut Vec<f64>) {
        let base = self.rate * SERVICE_NS as f64;
        loads.clear();
        loads.extend(self.parts.iter().map(|part| part * base));
        let elephant = self.elephant_rate * SERVICE_NS as f64;
        for (one, flow) in self.elephants.iter().zip(&self.flows[self.alias.len()..]) {
            if one.is_on {
                loads[flow.hash as usize & (self.parts.len() - 1)] += elephant;
            }
        }
    }

    /// When an elephant last came, and its hash.
    pub(crate) const fn came(&self) -> Option<(u64, u32)> {
        self.turned
    }

    fn renew(&mut self, place: usize) {
        let hash = self.new_hash();
        if let Some(weight) = self.weights.get(place) {
            let mask = self.parts.len() - 1;
            self.parts[self.flows[place].hash as usize & mask] -= weight;
            self.parts[hash as usize & mask] += weight;
        }
        let flow = &mut self.flows[place];
        flow.hash = hash;
        flow.generation += 1;
        flow.sequence = 0;
    }

    fn elephant_turns(&mut self, now: u64, on: bool) -> u64 {
        let Some(all) = self.of_elephants else {
            return u64::MAX;
        };
        let mean = if on { all.on_millis } else { all.off_millis };
        now + (self.exponential(mean) * 1e6) as u64
    }

    fn plan_churn(&mut self, now: u64) {
        if self.churn > 0.0 {
            self.churns_at = now + self.exponential(1.0 / self.churn) as u64;
        }
    }

    /// Lets happen what changes the flows up to this time.
    fn pass(&mut self, now: u64) {
        while self.phase_ends <= now {
            self.phase = (self.phase + 1) % self.phases.len();
            let (lasts, load) = self.phases[self.phase];
            self.phase_ends += lasts;
            self.rate = load.max(0.0) / SERVICE_NS as f64;
        }
        while self.churns_at <= now {
            let at = self.churns_at;
            let place = (self.uniform() * self.alias.len() as f64) as usize;
            self.renew(place);
            self.plan_churn(at);
        }
        for number in 0..self.elephants.len() {
            while self.elephants[number].turns_at <= now {
                let on = !self.elephants[number].is_on;
                let turns_at = self.elephant_turns(self.elephants[number].turns_at, on);
                self.elephants[number] = Elephant {
                    is_on: on,
                    turns_at,
                };
                if on {
                    let place = self.alias.len() + number;
                    self.renew(place);
                    self.turned = Some((now, self.flows[place].hash));
                }
            }
        }
    }

    /// When something next changes the rate.
    fn changes_at(&self) -> u64 {
        let turns = self.elephants.iter().map(|elephant| elephant.turns_at);
        turns.min().unwrap_or(u64::MAX).min(self.phase_ends)
    }

    /// The next packet before this time.
    pub(crate) fn next(&mut self, before: u64) -> Option<Packet> {
        let on = loop {
            let on = self.elephants.iter().filter(|one| one.is_on).count();
            let rate = self.rate + on as f64 * self.elephant_rate;
            let change = self.changes_at();
            let gap = match rate > 0.0 {
                true => self.exponential(1.0 / rate),
                false => f64::INFINITY,
            };
            // An exponential time does not remember: at a change it is drawn anew.
            if self.now + gap < change as f64 {
                self.now += gap;
                break on;
            }
            if change >= before {
                return None;
            }
            self.now = change as f64;
            self.pass(change);
        };
        let at = self.now as u64;
        if at >= before {
            return None;
        }
        self.pass(at);
        let place = self.draw(on);
        let bits = self.random.next_u32();
        let flow = &mut self.flows[place];
        flow.sequence += 1;
        let work = match bits >> 31 {
            0 => SERVICE_NS - SERVICE_SPREAD_NS,
            _ => SERVICE_NS + SERVICE_SPREAD_NS,
        };
        Some(Packet {
            at,
            work: work as u32,
            hash: flow.hash,
            flow: place as u32,
            generation: flow.generation,
            sequence: flow.sequence,
        })
    }

    fn draw(&mut self, on: usize) -> usize {
        let elephants = on as f64 * self.elephant_rate;
        let at = self.uniform() * (self.rate + elephants);
        if at < elephants {
            let which = (at / self.elephant_rate) as usize;
            let mut running = (0..self.elephants.len()).filter(|one| self.elephants[*one].is_on);
            return self.alias.len() + running.nth(which).unwrap_or(0);
        }
        let place = self.uniform() * self.alias.len() as f64;
        let (chance, other) = self.alias[place as usize];
        match place.fract() < chance {
            true => place as usize,
            false => other as usize,
        }
    }
}

/// Tables for drawing by weight at once (Vose 1991).
fn alias(weights: &[f64]) -> Vec<(f64, u32)> {
    let scale = weights.len() as f64 / weights.iter().sum::<f64>();
    let mut left: Vec<f64> = weights.iter().map(|weight| weight * scale).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..left.len()).partition(|place| left[*place] < 1.0);
    let mut table: Vec<_> = (0..left.len() as u32).map(|place| (1.0, place)).collect();
    while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
        table[less] = (left[less], more as u32);
        left[more] -= 1.0 - left[less];
        if left[more] < 1.0 {
            large.pop();
            small.push(more);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(trace: &Trace) -> Vec<Packet> {
        let mut source = Source::new(trace, 512);
        std::iter::from_fn(|| source.next(trace.end())).collect()
    }

    #[test]
    fn the_rate_and_the_law_are_as_described() {
        let mut trace = Trace::zipf().unwrap();
        (trace.workers, trace.load, trace.flows, trace.zipf) = (4, 0.5, 1000, 1.0);
        trace.millis = 100;
        let packets = packets(&trace);
        let work: u64 = packets.iter().map(|packet| u64::from(packet.work)).sum();
        let load = work as f64 / trace.end() as f64;
        assert!((load - 2.0).abs() < 0.02, "{load}");
        for (rank, expected) in trace.flow_loads().iter().enumerate().take(10) {
            let own = packets.iter().filter(|packet| packet.flow as usize == rank);
            let seen = own.count() as f64 * SERVICE_NS as f64 / trace.end() as f64;
            assert!(
                (seen / expected - 1.0).abs() < 0.05,
                "{rank}: {seen} for {expected}"
            );
        }
    }

    #[test]
    fn phases_take_turns() {
        let mut trace = Trace::on_off().unwrap();
        let phase = |millis, load| Phase { millis, load };
        trace.phases = vec![phase(2, 0.5), phase(1, 0.0)];
        trace.millis = 12;
        let packets = packets(&trace);
        let silent = |packet: &&Packet| packet.at % 3_000_000 >= 2_000_000;
        assert_eq!(packets.iter().find(silent).map(|packet| packet.at), None);
        let last = packets.last().unwrap().at;
        assert!(last > 10_900_000, "it goes on after a silence: {last}");
    }

    #[test]
    fn elephants_come_and_go_as_new_flows() {
        let mut trace = Trace::elephants().unwrap();
        trace.millis = 500;
        trace.elephants = Some(Elephants {
            count: 1,
            share: 0.5,
            on_millis: 10.0,
            off_millis: 10.0,
        });
        let all = packets(&trace);
        let own: Vec<_> = all
            .iter()
            .filter(|packet| packet.flow == trace.flows)
            .collect();
        let load = own.len() as f64 * SERVICE_NS as f64 / trace.end() as f64;
        assert!((0.15..0.35).contains(&load), "{load}");
        let flows = own.last().unwrap().generation;
        assert!((10..40).contains(&flows), "{flows}");
    }

    #[test]
    fn one_seed_one_trace() {
        let mut trace = Trace::elephants().unwrap();
        trace.millis = 5;
        let ends = |trace: &Trace| packets(trace).last().map(|packet| (packet.at, packet.hash));
        assert_eq!(ends(&trace), ends(&trace));
        let first = ends(&trace);
        trace.seed += 1;
        assert_ne!(first, ends(&trace));
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        assert!(Trace::parse("seed: 1").is_err());
        let text = include_str!("../traces/zipf.yaml").replace("load:", "lode:");
        assert!(Trace::parse(&text).is_err());
    }
}
