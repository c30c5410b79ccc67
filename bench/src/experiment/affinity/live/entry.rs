//! Where packets come in: when they fall due, and where they are steered.

use std::sync::atomic::Ordering::Relaxed;

use vswitch_flowtable::Position;

use super::calm::Diary;
use super::core::PACKET;
use super::{CPUS, Drive, Outcome, Seen, Shared};
use crate::experiment::affinity::flows::{Random, hash};
use crate::experiment::affinity::policy::{Policy, TARGETS};
use crate::experiment::affinity::ring::Sender;

/// Packets steered before the targets beside get their turn.
const BURST: usize = 4;

/// One run's packets.
pub(super) struct Entry<'r, P> {
    policy: &'r mut P,
    drive: &'r Drive<'r>,
    flows: u32,
    entrances: &'r mut [Sender<PACKET>; CPUS],
    queued: &'r mut [u64; TARGETS as usize],
    random: &'r mut Random,
    /// Of packets in all runs.
    numbers: &'r mut u64,
    /// When the next is due, in ns.
    due: f64,
    came: u64,
    lost: u64,
    diary: Diary,
    /// Packets done before this run, of all targets.
    before: u64,
    begun: u64,
    ended: u64,
}

impl<'r, P: Policy> Entry<'r, P> {
    pub(super) fn new(
        policy: &'r mut P,
        drive: &'r Drive<'r>,
        flows: u32,
        entrances: &'r mut [Sender<PACKET>; CPUS],
        queued: &'r mut [u64; TARGETS as usize],
        (random, numbers): (&'r mut Random, &'r mut u64),
    ) -> Self {
        Self {
            before: queued.iter().sum(),
            policy,
            drive,
            flows,
            entrances,
            queued,
            random,
            numbers,
            due: 0.0,
            came: 0,
            lost: 0,
            diary: Diary::default(),
            begun: 0,
            ended: 0,
        }
    }

    /// The first packet is due a millisecond from now: by then both threads run.
    pub(super) fn begin(&mut self, now: u64) {
        self.begun = now + 1_000_000;
        self.due = self.begun as f64;
    }

    /// Lets in what is due; tells whether all have come and are done.
    pub(super) fn turn(&mut self, now: u64, shared: &Shared) -> bool {
        for _ in 0..BURST {
            if self.due > now as f64 || self.came == self.drive.all() || !self.packet(now, shared) {
                break;
            }
        }
        if self.came < self.drive.all() {
            return false;
        }
        self.ended = now;
        let done: u64 = (0..TARGETS).map(|target| shared.done(target)).sum();
        done - self.before == self.came - self.lost
    }

    /// Lets a packet in; false if it has to wait for room.
    #[inline]
    fn packet(&mut self, now: u64, shared: &Shared) -> bool {
        if self.drive.rate.is_none() && !self.entrances.iter_mut().all(Sender::has_room) {
            return false;
        }
        if self.came.is_multiple_of(self.drive.packets) {
            let phase = (self.came / self.drive.packets) as usize;
            self.policy.activate(self.drive.phases[phase]);
        }
        let flow = match self.drive.order {
            Some(order) => order[self.came as usize % order.len()],
            None => self.random.below(self.flows),
        };
        let due = match self.drive.rate {
            Some(rate) => {
                let due = self.due;
                self.due += self.random.gap(1e9 / rate);
                due as u64
            }
            None => now,
        };
        self.came += 1;
        let number = *self.numbers;
        *self.numbers += 1;
        let seen = Seen {
            queued: self.queued,
            shared,
        };
        let (target, selection) = self.policy.select(hash(flow), &seen);
        let place = u64::from(flow) | u64::from(target.0) << 32;
        let sent = self.entrances[usize::from(target.0) % CPUS].send(|words| {
            let values = words.iter().zip([due, number, place]);
            values.for_each(|(word, value)| word.store(value, Relaxed));
        });
        if !sent {
            self.lost += 1;
            self.diary.lost(due);
            return true;
        }
        let queued = &mut self.queued[usize::from(target.0)];
        if let Some(selection) = selection {
            self.policy.sent(selection, Position(*queued as u16));
        }
        *queued += 1;
        true
    }

    /// What is known here: of losses their times.
    pub(super) fn outcome(self) -> (Outcome, Diary) {
        let outcome = Outcome {
            packets: self.came,
            done: self.came - self.lost,
            seconds: self.ended.saturating_sub(self.begun) as f64 / 1e9,
            ..Outcome::default()
        };
        (outcome, self.diary)
    }
}
