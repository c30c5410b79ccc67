//! Calls of one ring: what its [`Moderator`] is told, and what it has decided so far.
//!
//! The ring says what was published, the moderator whether that is worth a call, and whoever owns the ring writes it,
//! outside the lock if there is one. Without [`Settings`] of its own a ring calls once per burst.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;
use vswitch_coalesce::{
    Action, Burst, Counters, GuestAsks, GuestClass, Moderator, Policy, Settings,
};

use super::layout::{Layout, Position};
use crate::event::Event;

/// A call that is to be written: what the guest's interrupt hangs on, whoever has the ring by then.
#[derive(Clone, Debug)]
pub struct Call(pub(super) Arc<Event>);

impl Call {
    /// Writes it.
    ///
    /// # Errors
    ///
    /// What the system says. A full counter is none: it is a call that the guest has yet to see.
    pub fn write(&self) -> io::Result<()> {
        write(&self.0)
    }
}

/// Writes a call to this descriptor.
pub(super) fn write(call: impl AsFd) -> io::Result<()> {
    match rustix::io::write(call, &1u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What was done about calling one ring's guest, for reports.
#[derive(Clone, Copy, Debug)]
pub struct CallReport {
    /// The rule at work.
    pub policy: Policy,
    /// What the guest does between bursts.
    pub class: GuestClass,
    /// Bursts published, and the frames of them.
    pub bursts: u64,
    /// Frames of them.
    pub frames: u64,
    /// Calls by reason, and the delay they added.
    pub counters: Counters,
    /// Of the adaptive rule: what a call costs switch and guest, in nanoseconds, and for how long one may be held now.
    pub adaptive: Option<(u32, u32)>,
}

/// See the module's page. What each burst changes comes first.
#[repr(C)]
pub(super) struct Calls {
    moderator: Moderator,
    /// Entries published since the moderator was told, saturating.
    untold: u16,
    /// What the guest asked for when it was called last, if it was asked.
    heard: Option<GuestAsks>,
    /// The event that it asked for when it was asked last, and the entries published since it was first seen, saturating.
    event: u16,
    event_age: u16,
    bursts: u64,
    frames: u64,
    settings: Settings,
    counters: Counters,
}

/// A ring as its guest is asked: its layout, where it stands, and how many entries were published.
pub(super) type Asked<'r, L> = (&'r L, Position, u16);

impl Calls {
    pub(super) fn new() -> Self {
        let settings = Settings::receive(Policy::PerBurst);
        Self {
            moderator: Moderator::new(&settings),
            settings,
            untold: 0,
            heard: None,
            event: 0,
            event_age: u16::MAX,
            bursts: 0,
            frames: 0,
            counters: Counters::default(),
        }
    }

    /// The next publication is reported unconditionally; what is held is forgotten.
    pub(super) fn reset(&mut self) {
        self.moderator.reset(&self.settings);
        self.heard = None;
    }

    /// So many entries were published.
    #[inline]
    pub(super) fn published(&mut self, count: u16) {
        self.untold = self.untold.saturating_add(count);
        self.event_age = self.event_age.saturating_add(count);
    }

    /// Entries published since the guest was first seen to ask for this event, saturating. It is asked every few bursts at
    /// least, so a guest that has asked for it long ago is known to.
    pub(super) fn age_of(&self, event: u16) -> u16 {
        if event == self.event {
            self.event_age
        } else {
            0
        }
    }

    /// Tells the moderator of what was published since it was told last, if anything.
    #[inline]
    pub(super) fn report<L: Layout>(
        &mut self,
        settings: &Settings,
        burst: &Burst,
        ring: Asked<'_, L>,
    ) -> Action {
        let untold = std::mem::take(&mut self.untold);
        if untold == 0 {
            return Action::Nothing;
        }
        if self.settings != *settings {
            self.configure(settings);
        }
        if untold > i16::MAX as u16 {
            // Half way round: soon the comparison with what was settled last would be ambiguous.
            self.moderator.failed();
        }
        let (layout, at, used) = ring;
        let size = layout.size();
        let mut burst = Burst {
            used,
            size,
            room: size,
            ..*burst
        };
        if self.moderator.heeds_urgency() {
            burst.room = layout.room(at, (size / 4).max(64).min(size / 2));
        }
        self.bursts = self.bursts.wrapping_add(1);
        self.frames = self.frames.wrapping_add(burst.frames.into());
        let mut heard = None;
        let action = self
            .moderator
            .published(settings, &burst, || asks(ring, &mut heard));
        self.done(action, heard)
    }

    #[cold]
    fn configure(&mut self, settings: &Settings) {
        self.settings = *settings;
        self.moderator.reconfigure(settings);
    }

    /// Asks again if something has been held for long enough.
    pub(super) fn expire<L: Layout>(&mut self, now: u64, ring: Asked<'_, L>) -> Action {
        let mut heard = None;
        let action = self
            .moderator
            .expire(&self.settings, now, ring.2, || asks(ring, &mut heard));
        self.done(action, heard)
    }

    /// Leaves nothing held.
    pub(super) fn flush<L: Layout>(&mut self, now: u64, ring: Asked<'_, L>) -> Action {
        let mut heard = None;
        let action = self
            .moderator
            .flush(&self.settings, now, ring.2, || asks(ring, &mut heard));
        self.done(action, heard)
    }

    #[inline]
    fn done(&mut self, action: Action, heard: Option<GuestAsks>) -> Action {
        if let Some(GuestAsks::Event(event)) = heard
            && event != self.event
        {
            (self.event, self.event_age) = (event, 0);
        }
        if action.fires() {
            self.heard = heard;
        }
        self.counters.count(action);
        action
    }

    /// A call could not be written: it is made at the next publication.
    pub(super) fn failed(&mut self) {
        self.moderator.failed();
    }

    /// Settings as last told.
    pub(super) fn settings(&self) -> Settings {
        self.settings
    }

    /// When what is held is due.
    #[inline]
    pub(super) fn deadline(&self) -> Option<u64> {
        self.moderator.deadline()
    }

    #[inline]
    pub(super) fn overdue(&self, now: u64) -> bool {
        self.moderator.overdue(now)
    }

    #[inline]
    pub(super) fn heeds_urgency(&self) -> bool {
        self.moderator.heeds_urgency()
    }

    /// Whether the guest has moved since it was called; `None` if that cannot be told, or would say nothing.
    pub(super) fn has_reacted<L: Layout>(&self, (layout, at, used): Asked<'_, L>) -> Option<bool> {
        let heard = self.heard.filter(|_| self.moderator.awaits_reaction())?;
        Some(layout.asks(at, used) != heard)
    }

    /// What a call costs was measured.
    pub(super) fn measured(&mut self, cost_ns: u32) {
        self.moderator.measured(cost_ns);
        self.heard = None;
    }

    pub(super) fn summary(&self) -> CallReport {
        CallReport {
            policy: self.moderator.policy(),
            class: self.moderator.class(),
            bursts: self.bursts,
            frames: self.frames,
            counters: self.counters,
            adaptive: self.moderator.adaptive_state(&self.settings),
        }
    }
}

/// What the guest asks for now. Publishing comes before reading its wish, as its driver writes the wish before it looks
/// again.
#[inline]
fn asks<L: Layout>((layout, at, used): Asked<'_, L>, heard: &mut Option<GuestAsks>) -> GuestAsks {
    fence(Ordering::SeqCst);
    let asks = layout.asks(at, used);
    *heard = Some(asks);
    asks
}

#[cfg(test)]
mod tests;
