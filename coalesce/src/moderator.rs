//! One ring's state: what the guest was told, what it waits for, and by which rule.
//!
//! ```text
//! published  --not wanted-->  settled                       (the guest is looking: free)
//!            --wanted------>  fire | held until a deadline   (the policy's judgement)
//! held       --more published-->  judged again; asked again only before firing
//!            --overdue, flush-->  asked again: fire, or cancelled
//! ```
//!
//! While something is held the guest's wish is not settled (see [`Signal`]): asking again gives the same answer until the
//! guest itself has moved on. A guest that polls is sampled, see [`class`](crate::class); what was not asked after is held
//! like what is wanted, and is asked after at its deadline.
//!
//! All of it is one cache line, changed under the ring's lock.

use crate::burst::{Action, Burst, Reason};
use crate::class::{GuestClass, SAMPLE_ENTRIES, SAMPLE_NS, Watch};
use crate::policy::{Policy, State, Verdict, Waiting};
use crate::settings::Settings;
use crate::signal::{GuestAsks, Signal};

/// Decides when one ring's guest is called.
///
/// Whatever happens, at most one call is due at a time; every published entry that the guest wants to hear of is followed
/// by a call or held with a deadline.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Moderator {
    /// When what is held is due, in nanoseconds; [`NEVER`] if nothing is.
    deadline: u64,
    /// When the last burst was published.
    last: u64,
    /// Low bits of when the first that is held was published; with nothing held, of the last call.
    first: u32,
    signal: Signal,
    watch: Watch,
    /// Frames that are held, saturating; 0 if nothing is.
    pending: u16,
    /// The next publication is reported whatever the guest asks for.
    fresh: bool,
    state: State,
}

const _: () = assert!(size_of::<Moderator>() == 64 && align_of::<Moderator>() == 64);

/// No deadline.
const NEVER: u64 = u64::MAX;

impl Moderator {
    /// The state of a ring that was just attached.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            deadline: NEVER,
            last: 0,
            first: 0,
            signal: Signal::new(),
            watch: Watch::default(),
            pending: 0,
            fresh: true,
            state: State::new(settings),
        }
    }

    /// The ring was reset, or its call descriptor replaced: what is held is forgotten, and the next publication is
    /// reported unconditionally. What was published before is the caller's to report, by a call of its own.
    pub fn reset(&mut self, settings: &Settings) {
        *self = Self::new(settings);
    }

    /// The settings have changed. What is held stays held, and until its deadline.
    pub fn reconfigure(&mut self, settings: &Settings) {
        if self.state.policy() != settings.policy() {
            self.state = State::new(settings);
        }
    }

    /// Something was published. `asks` loads what the guest asks for, after a SeqCst fence; it is not called if the answer
    /// would change nothing.
    ///
    /// At most 32,768 used entries may be published between two calls of this function.
    #[inline]
    pub fn published(
        &mut self,
        settings: &Settings,
        burst: &Burst,
        asks: impl FnOnce() -> GuestAsks,
    ) -> Action {
        // Another worker may have read the clock later and come here sooner.
        let burst = &Burst {
            now: burst.now.max(self.last),
            ..*burst
        };
        let idle = burst.now - self.last;
        self.last = burst.now;
        self.state.arrived(settings, burst, idle);
        let frames = burst.frames.max(1);
        if self.fresh {
            self.fresh = false;
            self.hold(burst.now, frames);
            return self.fire(settings, burst.now, burst.used, Reason::First);
        }
        let distance = self.signal.distance(burst.used);
        if distance > i16::MAX as u16 {
            // Half way round: soon the comparison with what was settled last would be ambiguous.
            self.signal.invalidate();
        }
        let polling = self.watch.class() == GuestClass::Polling;
        if polling
            && self.state.may_sample()
            && distance < SAMPLE_ENTRIES
            && !self.overdue(burst.now)
            && self.watch.skips()
        {
            if self.pending == 0 {
                self.hold(burst.now, frames);
                self.deadline = burst.now + SAMPLE_NS;
            } else {
                self.pending = self.pending.saturating_add(frames);
            }
            return Action::Hold;
        }
        let known = self.pending > 0 && !polling;
        let now = burst.now;
        let mut asks = Some(asks);
        // At most once.
        let mut asked = |this: &mut Self| {
            asks.take()
                .is_none_or(|asks| this.asked(burst.used, now, asks))
        };
        if !known && !asked(self) {
            return Action::Nothing;
        }
        if self.pending == 0 {
            self.hold(burst.now, frames);
        } else {
            self.pending = self.pending.saturating_add(frames);
        }
        let Some(reason) = self.judge(settings, burst, idle) else {
            return Action::Hold;
        };
        if known && !asked(self) {
            return Action::Cancelled;
        }
        self.fire(settings, burst.now, burst.used, reason)
    }

    /// Whether something is held that should not be any longer. One comparison.
    #[inline]
    #[must_use]
    pub const fn overdue(&self, now: u64) -> bool {
        self.deadline <= now
    }

    /// When what is held is due, in nanoseconds of the caller's clock.
    #[inline]
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        if self.deadline == NEVER {
            None
        } else {
            Some(self.deadline)
        }
    }

    /// Asks again if something is [overdue](Self::overdue). `used` is the used index as last published.
    #[inline]
    pub fn expire(
        &mut self,
        settings: &Settings,
        now: u64,
        used: u16,
        asks: impl FnOnce() -> GuestAsks,
    ) -> Action {
        match self.deadline() {
            None => Action::Nothing,
            Some(deadline) if deadline > now => Action::Hold,
            Some(_) => self.end(settings, now, used, Reason::Deadline, asks),
        }
    }

    /// Leaves nothing held: before the worker sleeps or parks, and before the ring is handed over or detached.
    pub fn flush(
        &mut self,
        settings: &Settings,
        now: u64,
        used: u16,
        asks: impl FnOnce() -> GuestAsks,
    ) -> Action {
        if self.pending == 0 {
            return Action::Nothing;
        }
        self.end(settings, now, used, Reason::Flush, asks)
    }

    /// The call could not be written: the next publication is reported unconditionally.
    pub const fn failed(&mut self) {
        self.signal.invalidate();
        self.fresh = true;
    }

    /// The guest's side of the ring was seen to move for the first time after a call, which makes the time since then
    /// (writing the call included) a measure of what a call costs. Ignored unless [`awaits_reaction`](Self::awaits_reaction).
    #[inline]
    pub fn reacted(&mut self, now: u64) {
        if let State::Adaptive(state) = &mut self.state
            && state.awaits()
            && self.pending == 0
        {
            let took = (now as u32).wrapping_sub(self.first);
            if took <= i32::MAX as u32 {
                state.measured(took);
            }
        }
    }

    /// Whether a call was made whose effect has not been seen.
    #[inline]
    #[must_use]
    pub const fn awaits_reaction(&self) -> bool {
        match &self.state {
            State::Adaptive(state) => state.awaits() && self.pending == 0,
            _ => false,
        }
    }

    /// What a call costs switch and guest together was measured in another way, in nanoseconds.
    pub fn measured(&mut self, cost_ns: u32) {
        if let State::Adaptive(state) = &mut self.state {
            state.measured(cost_ns);
        }
    }

    /// Whether it makes a difference if a frame is urgent; if not, there is no need to find out.
    #[inline]
    #[must_use]
    pub const fn heeds_urgency(&self) -> bool {
        self.state.may_sample() && !matches!(self.watch.class(), GuestClass::Polling)
    }

    /// What the guest does between bursts.
    #[must_use]
    pub const fn class(&self) -> GuestClass {
        self.watch.class()
    }

    /// The rule at work.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.state.policy()
    }

    /// For reports, of the adaptive rule: what a call costs, and for how long one may be held at present, in nanoseconds.
    #[must_use]
    pub fn adaptive_state(&self, settings: &Settings) -> Option<(u32, u32)> {
        match &self.state {
            State::Adaptive(state) => Some((state.cost_ns(), state.gap_ns(settings))),
            _ => None,
        }
    }

    #[inline]
    fn hold(&mut self, now: u64, frames: u16) {
        self.pending = frames;
        self.first = now as u32;
        if let State::Adaptive(state) = &mut self.state {
            // The time of the call is overwritten, and what the guest does next may be due to either.
            state.overlapped();
        }
    }

    /// Why to call now, or `None` and a deadline.
    #[inline]
    fn judge(&mut self, settings: &Settings, burst: &Burst, idle: u64) -> Option<Reason> {
        let held = (burst.now as u32).wrapping_sub(self.first);
        let waiting = Waiting {
            since: burst.now - u64::from(held),
            frames: self.pending,
        };
        match self.state.judge(settings, burst, waiting, idle) {
            Verdict::Now(reason) => Some(reason),
            Verdict::By(_) if self.overdue(burst.now) => Some(Reason::Deadline),
            Verdict::By(deadline) => {
                self.deadline = self.deadline.min(deadline);
                None
            }
        }
    }

    /// Whether the guest wants to be called; if not, that is settled.
    #[inline]
    fn asked(&mut self, used: u16, now: u64, asks: impl FnOnce() -> GuestAsks) -> bool {
        if self.signal.wanted(used, asks()) {
            self.watch.wanted();
            return true;
        }
        self.watch.refused(now);
        self.settle(used);
        false
    }

    fn end(
        &mut self,
        settings: &Settings,
        now: u64,
        used: u16,
        reason: Reason,
        asks: impl FnOnce() -> GuestAsks,
    ) -> Action {
        let now = now.max(self.last);
        let known = self.watch.class() != GuestClass::Polling;
        if self.asked(used, now, asks) {
            self.fire(settings, now, used, reason)
        } else if known {
            Action::Cancelled
        } else {
            Action::Nothing
        }
    }

    #[inline]
    fn fire(&mut self, settings: &Settings, now: u64, used: u16, reason: Reason) -> Action {
        let held_ns = (now as u32).wrapping_sub(self.first);
        self.state.fired(settings, now, reason);
        self.settle(used);
        self.first = now as u32;
        Action::Fire { reason, held_ns }
    }

    #[inline]
    const fn settle(&mut self, used: u16) {
        self.signal.commit(used);
        self.pending = 0;
        self.deadline = NEVER;
    }
}
