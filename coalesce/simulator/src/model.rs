//! The worker and the guest, each with a time of its next step; the earlier one steps.

use std::collections::VecDeque;

use vswitch_coalesce::{Action, Burst, Counters, GuestAsks, Moderator, Settings};

use crate::figures::{Figures, percentile};
use crate::load::{Kind, Load, Source};

const RING: u16 = 256;
const BURST: usize = 32;
const NAPI: usize = 64;
/// The worker: a turn, and each frame in it.
const TURN_NS: u64 = 200;
const FORWARD_NS: u64 = 60;

/// A load on a guest.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What arrives.
    pub load: Load,
    /// What an interrupt costs switch and guest together.
    pub interrupt_ns: u64,
    /// What a frame costs the guest.
    pub guest_frame_ns: u64,
    /// The guest never asks for calls, and looks by itself every microsecond.
    pub polls: bool,
    /// Virtual time.
    pub duration_ns: u64,
    /// Of the load.
    pub seed: u64,
}

impl Scenario {
    /// A quarter of a second of `load`, on a guest with interrupts of 5 µs and 300 ns a frame.
    #[must_use]
    pub const fn new(load: Load) -> Self {
        Self {
            load,
            interrupt_ns: 5_000,
            guest_frame_ns: 300,
            polls: false,
            duration_ns: 250_000_000,
            seed: 1,
        }
    }
}

struct Frame {
    arrived: u64,
    published: u64,
    kind: Kind,
    /// When a call told of it.
    called: Option<u64>,
}

struct World<'s> {
    scenario: &'s Scenario,
    settings: &'s Settings,
    moderator: Moderator,
    counters: Counters,
    source: Source,
    /// Published and not consumed.
    ring: VecDeque<Frame>,
    used: u16,
    used_event: u16,
    /// The worker is busy until then.
    worker: u64,
    worker_cpu: u64,
    guest: Guest,
    guest_cpu: u64,
    answers: u8,
    interrupts: u64,
    interrupt_cpu: u64,
    dropped: u64,
    added: Vec<u32>,
    latency: [Vec<u32>; 2],
}

enum Guest {
    Asleep,
    /// An interrupt is on its way, or the guest busy, until then.
    Busy(u64),
}

/// Simulates `scenario` under the rule of `settings`.
#[must_use]
pub fn run(scenario: &Scenario, settings: &Settings) -> Figures {
    let mut world = World {
        scenario,
        settings,
        moderator: Moderator::new(settings),
        counters: Counters::default(),
        source: Source::new(scenario.load, scenario.seed),
        ring: VecDeque::new(),
        used: 0,
        used_event: 0,
        worker: 0,
        worker_cpu: 0,
        guest: if scenario.polls {
            Guest::Busy(0)
        } else {
            Guest::Asleep
        },
        guest_cpu: 0,
        answers: 0,
        interrupts: 0,
        interrupt_cpu: 0,
        dropped: 0,
        added: Vec::new(),
        latency: [Vec::new(), Vec::new()],
    };
    let warm = scenario.duration_ns / 8;
    world.run_until(warm);
    world.forget();
    world.run_until(scenario.duration_ns);
    world.figures(scenario.duration_ns - warm)
}

impl World<'_> {
    fn run_until(&mut self, end: u64) {
        loop {
            let arrival = self.source.peek();
            let due = arrival.into_iter().chain(self.moderator.deadline()).min();
            let worker = due.map(|due| due.max(self.worker));
            let guest = match self.guest {
                Guest::Asleep => None,
                Guest::Busy(until) => Some(until),
            };
            match (worker, guest) {
                (Some(at), _) if at >= end && guest.is_none_or(|g| g >= end) => return,
                (Some(at), guest) if guest.is_none_or(|g| at < g) => self.worker_turn(at),
                (_, Some(at)) if at < end => self.guest_turn(at),
                _ => return,
            }
        }
    }

    fn forget(&mut self) {
        (self.worker_cpu, self.guest_cpu, self.dropped) = (0, 0, 0);
        (self.interrupts, self.interrupt_cpu) = (0, 0);
        self.added.clear();
        self.latency = [Vec::new(), Vec::new()];
    }

    fn worker_turn(&mut self, start: u64) {
        let mut now = start + TURN_NS;
        let mut taken = Vec::with_capacity(BURST);
        while taken.len() < BURST && self.source.peek().is_some_and(|at| at <= start) {
            taken.extend(self.source.take());
        }
        let drained = taken.len() < BURST;
        let each = if self.settings.policy().every_frame() {
            1
        } else {
            BURST
        };
        for some in taken.chunks(each) {
            now += some.len() as u64 * FORWARD_NS;
            self.worker_cpu += some.len() as u64 * FORWARD_NS;
            now = self.publish(now, some, drained);
        }
        if self.moderator.overdue(now) {
            let ask = GuestAsks::Event(self.used_event);
            let action = self.moderator.expire(self.settings, now, self.used, || ask);
            now = self.act(action, now);
        }
        self.worker = now;
    }

    fn publish(&mut self, now: u64, frames: &[(u64, Kind)], drained: bool) -> u64 {
        let room = usize::from(RING) - self.ring.len();
        let fit = frames.len().min(room);
        self.dropped += (frames.len() - fit) as u64;
        let frames = &frames[..fit];
        if frames.is_empty() {
            return now;
        }
        for &(arrived, kind) in frames {
            self.ring.push_back(Frame {
                arrived,
                published: now,
                kind,
                called: None,
            });
        }
        self.used = self.used.wrapping_add(frames.len() as u16);
        let requests = frames
            .iter()
            .filter(|(_, kind)| *kind == Kind::Request)
            .count();
        let burst = Burst {
            now,
            used: self.used,
            frames: frames.len() as u16,
            bytes: ((frames.len() - requests) * 1514 + requests * 120) as u32,
            room: (room - frames.len()) as u16,
            size: RING,
            urgent: requests > 0,
            drained,
            transmitted: self.answers,
            rtt_ns: 0,
        };
        let ask = GuestAsks::Event(self.used_event);
        let action = self.moderator.published(self.settings, &burst, || ask);
        self.act(action, now)
    }

    fn act(&mut self, action: Action, now: u64) -> u64 {
        self.counters.count(action);
        if !action.fires() {
            return now;
        }
        let write = self.scenario.interrupt_ns / 4;
        let enter = self.scenario.interrupt_ns - write;
        self.interrupts += 1;
        self.worker_cpu += write;
        self.guest_cpu += enter;
        self.interrupt_cpu += write + enter;
        for frame in self
            .ring
            .iter_mut()
            .rev()
            .take_while(|frame| frame.called.is_none())
        {
            frame.called = Some(now);
        }
        let until = match self.guest {
            Guest::Asleep => now + write,
            // Interrupted in whatever it does.
            Guest::Busy(until) => until,
        };
        self.guest = Guest::Busy(until + enter);
        now + write
    }

    fn guest_turn(&mut self, now: u64) {
        if self.moderator.awaits_reaction() {
            self.moderator.reacted(now);
        }
        let count = self.ring.len().min(NAPI);
        let mut at = now;
        for frame in self.ring.drain(..count) {
            let told = frame.called.unwrap_or(now).min(now).max(frame.published);
            self.added.push((told - frame.published) as u32);
            at += self.scenario.guest_frame_ns;
            let served = at - frame.arrived;
            match frame.kind {
                Kind::Bulk => self.latency[0].push(served as u32),
                Kind::Request => {
                    self.latency[1].push(served as u32);
                    self.answers = self.answers.wrapping_add(1);
                    self.source.answered(at, served);
                }
            }
        }
        self.guest_cpu += at - now;
        self.guest = if count > 0 {
            Guest::Busy(at)
        } else if self.scenario.polls {
            Guest::Busy(now + 1_000)
        } else {
            // Armed for the next entry, and looked again at the same instant.
            self.used_event = self.used;
            Guest::Asleep
        };
    }

    fn figures(mut self, time: u64) -> Figures {
        let frames = self.added.len() as u64;
        let added_mean_ns =
            self.added.iter().map(|&ns| f64::from(ns)).sum::<f64>() / frames.max(1) as f64;
        let kind = usize::from(!self.latency[1].is_empty());
        let latency = &mut self.latency[kind];
        Figures {
            frames,
            dropped: self.dropped,
            interrupts: self.interrupts,
            cpu_ns_per_frame: (self.worker_cpu + self.guest_cpu) as f64 / frames.max(1) as f64,
            interrupt_share: self.interrupt_cpu as f64 / time as f64,
            added_mean_ns,
            added_p50_ns: percentile(&mut self.added, 500),
            added_p99_ns: percentile(&mut self.added, 990),
            latency_p50_ns: percentile(latency, 500),
            latency_p99_ns: percentile(latency, 990),
            rate: frames as f64 * 1e9 / time as f64,
        }
    }
}
