//! `adaptive`: hold a call back only where calls cost too much, and no longer than that takes.
//!
//! A call costs switch and guest `C` together. Calls are allowed a share `e` of one CPU, so up to `R = e / C` a second
//! there is nothing to gain and nothing is held back; above, they are spread to `R`. `C` is measured, so the same rule
//! serves bare metal, nested virtualisation and emulation.
//!
//! - **Credits.** A bucket of 8 refills at `R`. A burst after which the sources have nothing more spends a credit, if it
//!   leaves half a burst (4), and is reported at once; one with an urgent frame spends a third of one, and may overdraw by
//!   half a burst (Intel's low-latency interrupts limit themselves in such a way). So urgent calls alone may cost three times
//!   the share. Without credit the call waits for the next one, or for the gap.
//! - **Gap.** The time for which a call may be held. Wanted is what makes up a period, `1/R - 1/rate`, with the rate of
//!   bursts over a window of 1 ms or 32 frames, whichever is longer; averaged over four. It may use a level of 0, 8, 16,
//!   32 or 64 µs, up to 500 µs where a call costs more than 50 µs: down at once, up by one level after four windows
//!   that all want more. The four windows after a step are compared with those before: more than 5 % fewer frames, and more
//!   than chance explains (three standard deviations of a Poisson count), take the step back, and hold off the next, twice
//!   as long each time.
//! - **Closed loops.** While the guest never gets more than 8 frames between two transmissions of its own over four
//!   windows, it works request by request: the sender waits for it, waiting gains nothing, the gap is 0.
//!   `R` does not bound these: such a guest is called for each of its turns.
//! - **Deadlines** are also limited by a quarter of the guest's round trip, a quarter of the ring's room at the present
//!   rate, and the configured cap. A receive ring nearly used up is reported at once.
//! - **Transmit rings**: an empty one is reported at once (its guest may be waiting), gap at most 32 µs, a quarter of the
//!   ring at most.
//!
//! A silence of 1 ms is not part of any window, which goes on after it: what comes in trains is judged by the trains. Times are low bits of
//! nanoseconds, good for 2 s; longer silences reset what depends on them.

use super::{Verdict, Waiting};
use crate::burst::{Burst, Reason};
use crate::settings::{Direction, Settings};

/// Longest time for which a call is held back, in nanoseconds.
pub const CAP_NS: u64 = 64_000;
/// The same where a call costs more than [`EXPENSIVE_NS`].
pub const EXPENSIVE_CAP_NS: u64 = 500_000;
/// Cost of a call from which on it may be held back longer.
pub const EXPENSIVE_NS: u32 = 50_000;

const LEVELS: [u32; 8] = [0, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 500_000];
/// Of [`CAP_NS`].
const TOP: u8 = 4;
const TRANSMIT_CAP_NS: u32 = 32_000;

const WINDOW_NS: u32 = 1_000_000;
const WINDOW_FRAMES: u16 = 32;
const QUIET_NS: u64 = 1_000_000;
/// Windows that must agree before a step up, and that are compared after it.
const BLOCK: u8 = 4;

const CREDITS: u32 = 8;
/// Half a burst of credits: what urgent frames may overdraw, and what is kept for them.
const OVERDRAFT: u32 = 4;
/// What an urgent call pays, in parts of a credit.
const URGENT_PART: u32 = 3;

/// Frames between two transmissions of a guest that works request by request.
const LOOP_FRAMES: u8 = 8;
/// Windows of it, the first of which may have begun before.
const LOOP_WINDOWS: u8 = 5;

/// First hold-off, in windows; it doubles up to five times.
const HOLD_OFF: u8 = 4;
const MAX_BACKOFF: u8 = 5;

const COST_NS: (u32, u32) = (1_000, 200_000);
/// Unit in which the cost is kept.
const COST_UNIT: u32 = 4;
/// Unit in which the wanted gap is kept.
const GAP_UNIT: u32 = 16;
/// Units in which a block's time and rate are kept: 4,096 ns, and frames in 2^22 ns.
const TIME_SHIFT: u32 = 12;
const RATE_SHIFT: u32 = 22;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Adaptive {
    /// When the credits were, or will be, exactly 0.
    empty_at: u32,
    window_began: u32,
    bursts: u16,
    frames: u16,
    /// Frames and time of the windows of a block.
    block_frames: u16,
    block_time: u16,
    /// Frames before the step that is on trial.
    before: u16,
    cost: u16,
    /// What makes up a period, averaged over about four windows, in units of [`GAP_UNIT`].
    wanted: u16,
    /// Index into [`LEVELS`].
    level: u8,
    /// Windows seen of the block before a step; from [`BLOCK`] on of the one after it.
    phase: u8,
    /// Windows until the next step.
    hold_off: u8,
    backoff: u8,
    /// Windows running without an excess of frames, saturating.
    looped: u8,
    /// Frames since the guest last transmitted, saturating.
    since_transmit: u8,
    transmitted: u8,
    /// A call was made whose reaction has not been seen.
    awaits: bool,
}

impl Adaptive {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            empty_at: 0,
            window_began: 0,
            bursts: 0,
            frames: 0,
            block_frames: 0,
            block_time: 0,
            before: 0,
            cost: cost_units(settings.cost_ns),
            wanted: 0,
            level: 0,
            phase: 0,
            hold_off: 0,
            backoff: 0,
            looped: 0,
            since_transmit: 0,
            transmitted: 0,
            awaits: false,
        }
    }

    #[inline]
    pub(crate) const fn cost_ns(&self) -> u32 {
        self.cost as u32 * COST_UNIT
    }

    /// A call was seen to cost this much. One in eight parts counts, from 1 to 200 µs.
    pub(crate) fn measured(&mut self, cost_ns: u32) {
        let sample = cost_ns.clamp(COST_NS.0, COST_NS.1);
        let average = self.cost_ns() - self.cost_ns() / 8 + sample / 8;
        self.cost = cost_units(average);
        self.awaits = false;
    }

    #[inline]
    pub(crate) const fn awaits(&self) -> bool {
        self.awaits
    }

    #[inline]
    pub(crate) const fn overlapped(&mut self) {
        self.awaits = false;
    }

    /// Whether calls come often enough for holding some back.
    #[inline]
    pub(super) const fn moderates(&self) -> bool {
        self.level > 0
    }

    #[inline]
    const fn looping(&self) -> bool {
        self.looped >= LOOP_WINDOWS
    }

    /// For how long a call may be held, in nanoseconds.
    #[inline]
    pub(crate) fn gap_ns(&self, settings: &Settings) -> u32 {
        if self.level == 0 || self.looping() {
            return 0;
        }
        let level = LEVELS[usize::from(self.level) % LEVELS.len()];
        let wanted = u32::from(self.wanted) * GAP_UNIT;
        level.min(wanted).min(self.cap_ns(settings))
    }

    #[inline]
    fn cap_ns(&self, settings: &Settings) -> u32 {
        let cap = match settings.direction {
            Direction::Transmit => TRANSMIT_CAP_NS,
            Direction::Receive if self.cost_ns() > EXPENSIVE_NS => EXPENSIVE_CAP_NS as u32,
            Direction::Receive => CAP_NS as u32,
        };
        settings.hold_ns_or(cap).min(cap)
    }

    /// Nanoseconds of credit: so many periods are so many calls. Negative if overdrawn.
    #[inline]
    fn credit(&self, now: u64) -> i32 {
        (now as u32).wrapping_sub(self.empty_at) as i32
    }

    #[inline]
    pub(super) fn arrived(&mut self, settings: &Settings, burst: &Burst, idle: u64) {
        let now = burst.now as u32;
        let period = settings.period_ns(self.cost_ns());
        let full = period * CREDITS;
        let silence = idle >= QUIET_NS;
        if silence {
            // The window stands still meanwhile: it counts intervals, and this one is none.
            self.window_began = self.window_began.wrapping_add(idle as u32);
            if idle >= u64::from(full + OVERDRAFT * period) {
                self.empty_at = now.wrapping_sub(full);
            }
        }
        if self.credit(burst.now) > full as i32 {
            self.empty_at = now.wrapping_sub(full);
        }
        if burst.transmitted != self.transmitted {
            self.transmitted = burst.transmitted;
            self.since_transmit = 0;
        }
        let frames = burst.frames.min(u16::from(u8::MAX)) as u8;
        self.since_transmit = self.since_transmit.saturating_add(frames);
        if self.since_transmit > LOOP_FRAMES {
            self.looped = 0;
        }
        if silence {
            return;
        }
        self.bursts = self.bursts.saturating_add(1);
        self.frames = self.frames.saturating_add(burst.frames);
        let elapsed = now.wrapping_sub(self.window_began);
        if elapsed >= WINDOW_NS {
            let rare = elapsed / u32::from(self.bursts) >= period;
            if rare || self.frames >= WINDOW_FRAMES {
                self.close_window(settings, now, elapsed, period);
            }
        }
    }

    /// At most every millisecond.
    #[inline(never)]
    fn close_window(&mut self, settings: &Settings, now: u32, elapsed: u32, period: u32) {
        let interval = elapsed / u32::from(self.bursts);
        let cap = self.cap_ns(settings);
        let wanted = period.saturating_sub(interval).min(cap);
        let frames = self.frames;
        self.window_began = now;
        (self.bursts, self.frames) = (0, 0);
        self.looped = self.looped.saturating_add(1);
        let average = u32::from(self.wanted) * GAP_UNIT * 3 / 4 + wanted / 4;
        // Down at once to nothing, and from nothing there is nothing to average.
        let average = if wanted == 0 || self.level == 0 {
            wanted
        } else {
            average
        };
        self.wanted = (average / GAP_UNIT) as u16;
        let top = if cap > CAP_NS as u32 {
            LEVELS.len() as u8 - 1
        } else {
            TOP
        };
        // Reaching beyond what is wanted on average lets a call wait until it can be afforded.
        let reach = (2 * wanted).min(period).min(cap);
        let target = if self.looping() {
            0
        } else {
            level_for(reach).min(top)
        };
        self.hold_off = self.hold_off.saturating_sub(1);
        if target < self.level {
            self.level = target;
            self.begin_block(0);
            return;
        }
        let on_trial = self.phase >= BLOCK;
        if !on_trial && (target == self.level || self.hold_off > 0) {
            self.begin_block(0);
            return;
        }
        self.block_frames = self.block_frames.saturating_add(frames);
        let time = (elapsed >> TIME_SHIFT).min(u32::from(u16::MAX)) as u16;
        self.block_time = self.block_time.saturating_add(time);
        self.phase += 1;
        if self.phase == BLOCK {
            self.step_up();
        } else if self.phase == 2 * BLOCK {
            self.end_trial(target);
        }
    }

    fn begin_block(&mut self, phase: u8) {
        self.phase = phase;
        (self.block_frames, self.block_time) = (0, 0);
    }

    fn step_up(&mut self) {
        let time = u32::from(self.block_time).max(1);
        let rate = (u32::from(self.block_frames) << (RATE_SHIFT - TIME_SHIFT)) / time;
        self.before = rate.min(u32::from(u16::MAX)) as u16;
        self.level += 1;
        self.begin_block(BLOCK);
    }

    fn end_trial(&mut self, target: u8) {
        let expected =
            (u64::from(self.before) * u64::from(self.block_time)) >> (RATE_SHIFT - TIME_SHIFT);
        let missing = expected.saturating_sub(u64::from(self.block_frames));
        // Both counts vary by their roots: three standard deviations of the difference.
        if missing * 20 > expected && missing * missing > 9 * 2 * expected {
            self.level -= 1;
            self.hold_off = HOLD_OFF << self.backoff;
            self.backoff = (self.backoff + 1).min(MAX_BACKOFF);
            self.begin_block(0);
            return;
        }
        self.backoff = 0;
        if target > self.level {
            self.step_up();
        } else {
            self.begin_block(0);
        }
    }

    #[inline]
    pub(super) fn judge(
        &self,
        settings: &Settings,
        burst: &Burst,
        waiting: Waiting,
        idle: u64,
    ) -> Verdict {
        if idle >= QUIET_NS {
            return Verdict::Now(Reason::Quiet);
        }
        let mut frames = settings.frames_or(u16::MAX).max(1);
        match settings.direction {
            Direction::Receive => {
                let low = (burst.size / 4).max(64).min(burst.size / 2);
                if burst.room < low {
                    return Verdict::Now(Reason::Room);
                }
            }
            Direction::Transmit => {
                if burst.drained {
                    return Verdict::Now(Reason::Drained);
                }
                frames = frames.min((burst.size / 4).max(1));
            }
        }
        let gap = self.gap_ns(settings);
        if gap == 0 {
            return Verdict::Now(Reason::Ungated);
        }
        let period = settings.period_ns(self.cost_ns());
        let credit = self.credit(burst.now);
        if burst.urgent && credit >= (period / URGENT_PART) as i32 - (OVERDRAFT * period) as i32 {
            return Verdict::Now(Reason::Urgent);
        }
        let spare = credit - ((OVERDRAFT + 1) * period) as i32;
        if burst.drained && spare >= 0 {
            return Verdict::Now(Reason::Drained);
        }
        if waiting.frames >= frames {
            return Verdict::Now(Reason::Frames);
        }
        // By then it would be affordable; not later than the level allows.
        let affordable = burst.now + u64::from((period as i32 - credit).max(0).unsigned_abs());
        let ceiling = waiting.since + u64::from(self.ceiling_ns(settings, burst));
        let mut deadline = (waiting.since + u64::from(gap))
            .max(affordable)
            .min(ceiling);
        if burst.drained {
            // When there is a credit to spare.
            deadline = deadline.min(burst.now + u64::from(spare.unsigned_abs()));
        }
        Verdict::by(deadline, burst.now)
    }

    /// How long a call may be held at most: by level, round trip and the ring's room.
    #[inline]
    fn ceiling_ns(&self, settings: &Settings, burst: &Burst) -> u32 {
        let level = LEVELS[usize::from(self.level) % LEVELS.len()];
        let mut hold = level.min(self.cap_ns(settings));
        if burst.rtt_ns > 0 {
            hold = hold.min(burst.rtt_ns / 4);
        }
        if burst.size > 0 && self.frames > 0 {
            let elapsed = (burst.now as u32).wrapping_sub(self.window_began);
            let room = u64::from(burst.room / 4) * u64::from(elapsed);
            // At the start of a window there is no rate to speak of.
            if elapsed >= WINDOW_NS / 16 && room < u64::from(hold) * u64::from(self.frames) {
                hold = (room / u64::from(self.frames)) as u32;
            }
        }
        hold
    }

    #[inline]
    pub(super) fn fired(&mut self, settings: &Settings, now: u64, reason: Reason) {
        let period = settings.period_ns(self.cost_ns());
        let credit = self.credit(now);
        // What does not ask for credit takes what there is and leaves no debt, or urgent frames would pay it.
        let left = match reason {
            Reason::Urgent => credit - (period / URGENT_PART) as i32,
            _ => credit.min((credit - period as i32).max(0)),
        };
        self.empty_at = (now as u32).wrapping_sub(left as u32);
        self.awaits = true;
    }
}

const fn cost_units(cost_ns: u32) -> u16 {
    let cost_ns = if cost_ns < COST_NS.0 {
        COST_NS.0
    } else if cost_ns > COST_NS.1 {
        COST_NS.1
    } else {
        cost_ns
    };
    (cost_ns / COST_UNIT) as u16
}

/// The lowest level that holds for as long.
fn level_for(gap: u32) -> u8 {
    LEVELS
        .iter()
        .position(|&level| level >= gap)
        .unwrap_or(LEVELS.len() - 1) as u8
}

#[cfg(test)]
mod tests;
