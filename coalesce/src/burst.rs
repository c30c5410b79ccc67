//! What is told about a burst, and what comes back.

use std::fmt;

/// One publication of used entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Burst {
    /// Nanoseconds of a clock that never goes back. Workers that share a ring may report out of order: the latest counts.
    pub now: u64,
    /// The used index as it was published, running freely; for a packed ring the count in which
    /// [`GuestAsks::Event`](crate::GuestAsks::Event) is expressed.
    pub used: u16,
    /// Frames of it.
    pub frames: u16,
    /// Bytes of them.
    pub bytes: u32,
    /// Receive rings: buffers that are left to fill, as far as known without a look.
    pub room: u16,
    /// Entries of the ring.
    pub size: u16,
    /// A frame among them should not wait, see [`Class::is_urgent`](crate::urgent::Class::is_urgent).
    pub urgent: bool,
    /// Receive rings: the sources gave less than they were asked for, so nothing is about to follow. Transmit rings: the
    /// guest has nothing more on offer.
    pub drained: bool,
    /// Low bits of any count that moves when the guest transmits. Left at zero, request and response are not told from bulk.
    pub transmitted: u8,
    /// The guest's round trip if known, else 0. A call is held back for at most a quarter of it.
    pub rtt_ns: u32,
}

/// Why a call is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The first publication after attach, reset or a new call descriptor: unconditional.
    First,
    /// The policy has no reason to wait.
    Rule,
    /// Calls are so rare, or so clearly waited for, that none is held back.
    Ungated,
    /// Nothing had been published for a while.
    Quiet,
    /// A frame should not wait.
    Urgent,
    /// The sources have nothing more, and the share of CPU is not used up.
    Drained,
    /// Enough frames wait.
    Frames,
    /// The ring is nearly used up.
    Room,
    /// The first of what waits has waited long enough.
    Deadline,
    /// The worker is about to sleep, or the ring to leave it.
    Flush,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::First,
        Self::Rule,
        Self::Ungated,
        Self::Quiet,
        Self::Urgent,
        Self::Drained,
        Self::Frames,
        Self::Room,
        Self::Deadline,
        Self::Flush,
    ];

    /// As in counters and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Rule => "rule",
            Self::Ungated => "ungated",
            Self::Quiet => "quiet",
            Self::Urgent => "urgent",
            Self::Drained => "drained",
            Self::Frames => "frames",
            Self::Room => "room",
            Self::Deadline => "deadline",
            Self::Flush => "flush",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the owner of the ring is to do.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing: the guest is looking anyway, or there is nothing to tell.
    Nothing,
    /// Something waits: come back with [`Moderator::expire`](crate::Moderator::expire) at
    /// [`Moderator::deadline`](crate::Moderator::deadline), and flush before sleeping.
    Hold,
    /// What waited no longer has to: the guest came to look by itself.
    Cancelled,
    /// Write the call. It counts as written; if that fails, say [`Moderator::failed`](crate::Moderator::failed).
    Fire {
        /// Why now.
        reason: Reason,
        /// For how long the first of it has waited.
        held_ns: u32,
    },
}

impl Action {
    /// Whether the call is to be written.
    #[inline]
    #[must_use]
    pub const fn fires(self) -> bool {
        matches!(self, Self::Fire { .. })
    }
}

/// Buckets of delay: below 1 µs, below 2, 4, … µs; the last has no end.
pub const DELAY_BUCKETS: usize = 12;

/// What has been done, for one ring. Beside the [`Moderator`](crate::Moderator), not in its line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    calls: [u64; Reason::ALL.len()],
    cancelled: u64,
    delays: [u64; DELAY_BUCKETS],
}

impl Counters {
    /// Counts what came back.
    #[inline]
    pub fn count(&mut self, action: Action) {
        match action {
            Action::Fire { reason, held_ns } => {
                self.calls[reason as usize] += 1;
                let bucket = (u32::BITS - (held_ns >> 10).leading_zeros()) as usize;
                self.delays[bucket.min(DELAY_BUCKETS - 1)] += 1;
            }
            Action::Cancelled => self.cancelled += 1,
            Action::Nothing | Action::Hold => {}
        }
    }

    /// Calls made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.iter().sum()
    }

    /// Calls made for this reason.
    #[must_use]
    pub const fn calls_for(&self, reason: Reason) -> u64 {
        self.calls[reason as usize]
    }

    /// Calls held back until they were not needed any more.
    #[must_use]
    pub const fn cancelled(&self) -> u64 {
        self.cancelled
    }

    /// Calls by the delay added to the first frame they tell of: bucket `n` ends at 2ⁿ × 1,024 ns.
    #[must_use]
    pub const fn delays(&self) -> &[u64; DELAY_BUCKETS] {
        &self.delays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_under_their_own_names() {
        let mut counters = Counters::default();
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            for _ in 0..=at {
                counters.count(Action::Fire { reason, held_ns: 0 });
            }
        }
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(counters.calls_for(reason), at as u64 + 1, "{reason}");
        }
        assert_eq!(counters.calls(), 55);
        counters.count(Action::Cancelled);
        counters.count(Action::Hold);
        assert_eq!((counters.calls(), counters.cancelled()), (55, 1));
    }

    #[test]
    fn delays_fall_into_powers_of_two() {
        let bucket = |held_ns| {
            let mut counters = Counters::default();
            counters.count(Action::Fire {
                reason: Reason::Deadline,
                held_ns,
            });
            counters.delays.iter().position(|&n| n == 1).unwrap()
        };
        assert_eq!(
            [0, 1023, 1024, 2047, 2048, 64 << 10].map(bucket),
            [0, 0, 1, 1, 2, 7]
        );
        assert_eq!(bucket(u32::MAX), DELAY_BUCKETS - 1);
    }
}
