//! What kind of guest looks at a ring: one that waits for interrupts, or one that polls.
//!
//! A guest that did not want a call 64 times running, or for a millisecond with traffic, polls, or is so busy that it does
//! for now. Asking it after each burst costs a fence and a line that its core holds, for the same answer. It is then asked
//! after every 8th burst or 50 µs, whichever comes first, until it wants to be called. What is not asked after keeps a
//! deadline, so a guest that goes from polling to sleeping waits for one sample and no longer; and the history stays
//! valid over it, because the question covers all that was published since the last.

/// What a guest does between bursts, as far as it has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GuestClass {
    /// Not known yet.
    #[default]
    Unknown,
    /// Waits for interrupts.
    Interrupt,
    /// Looks by itself.
    Polling,
}

impl GuestClass {
    /// As in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Interrupt => "interrupt",
            Self::Polling => "polling",
        }
    }
}

/// Answers of "not wanted" running that make a guest a polling one.
pub(crate) const RUN: u8 = 64;
/// Bursts between two questions to a polling guest.
pub(crate) const SAMPLE_BURSTS: u8 = 8;
/// Nanoseconds between two questions to a polling guest, at most.
pub const SAMPLE_NS: u64 = 50_000;
/// Used entries between two questions at most, well below where indices become ambiguous.
pub(crate) const SAMPLE_ENTRIES: u16 = 0x4000;

/// Nanoseconds of "not wanted" that make a guest a polling one, in units of 4,096.
const POLLS: u16 = (1_000_000 >> 12) as u16;
/// Answers that it takes at least.
const FEW: u8 = 8;

/// Watches a guest's answers. 4 bytes; its time is in units of 4,096 ns and goes round in 268 ms, after which a guest may
/// be taken for a polling one too early, which a sample corrects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    /// When the run of refusals began.
    began: u16,
    /// Refusals running; of a polling guest the bursts since it was asked.
    run: u8,
    class: GuestClass,
}

impl Watch {
    #[inline]
    pub(crate) const fn class(&self) -> GuestClass {
        self.class
    }

    /// The guest wants to be called.
    #[inline]
    pub(crate) const fn wanted(&mut self) {
        self.class = GuestClass::Interrupt;
        self.run = 0;
    }

    /// The guest does not.
    #[inline]
    pub(crate) const fn refused(&mut self, now: u64) {
        if let GuestClass::Polling = self.class {
            self.run = 0;
            return;
        }
        let at = (now >> 12) as u16;
        if self.run == 0 {
            self.began = at;
        }
        self.run += 1;
        if self.run >= RUN || self.run >= FEW && at.wrapping_sub(self.began) >= POLLS {
            self.class = GuestClass::Polling;
            self.run = 0;
        }
    }

    /// Whether this burst of a polling guest may go without a question.
    #[inline]
    pub(crate) const fn skips(&mut self) -> bool {
        self.run += 1;
        self.run < SAMPLE_BURSTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_refusals_or_a_millisecond_of_them_is_polling() {
        let mut quick = Watch::default();
        for i in 0..u64::from(RUN) {
            assert_ne!(quick.class(), GuestClass::Polling, "after {i}");
            quick.refused(i);
        }
        assert_eq!(quick.class(), GuestClass::Polling);

        let mut slow = Watch::default();
        for i in 0..8 {
            assert_ne!(slow.class(), GuestClass::Polling, "after {i}");
            slow.refused(i * 150_000);
        }
        assert_eq!(slow.class(), GuestClass::Polling);
    }

    #[test]
    fn one_wish_ends_it() {
        let mut watch = Watch::default();
        (0..64).for_each(|i| watch.refused(i));
        watch.wanted();
        assert_eq!(watch.class(), GuestClass::Interrupt);
        (0..63).for_each(|i| watch.refused(i));
        assert_eq!(watch.class(), GuestClass::Interrupt);
    }

    #[test]
    fn every_eighth_burst_is_asked_after() {
        let mut watch = Watch::default();
        (0..64).for_each(|i| watch.refused(i));
        for _ in 0..3 {
            let asked: Vec<_> = (0..8).map(|_| !watch.skips()).collect();
            assert_eq!(
                asked,
                [false, false, false, false, false, false, false, true]
            );
            watch.refused(0);
        }
    }
}
