//! What is configured: shared by all rings of a port and direction, copied into each worker's snapshot.

use crate::policy::{DimProfile, Policy};

/// Which way the frames of a ring go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Frames to the guest.
    Receive,
    /// Frames from the guest: what is reported is their completion.
    Transmit,
}

/// The policy of a port's rings of one direction.
///
/// With [`Policy::Adaptive`] `usecs` and `frames` are caps on the controller; with [`Policy::Static`] they are the policy,
/// and with [`Policy::Spdk`] `usecs` is the base delay. Other policies have figures of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub(crate) policy: Policy,
    pub(crate) direction: Direction,
    pub(crate) dim_profile: DimProfile,
    /// [`NO_FRAMES`](Self::NO_FRAMES) if not set.
    frames: u16,
    /// Nanoseconds; [`NO_HOLD`](Self::NO_HOLD) if not set.
    hold_ns: u32,
    /// One over the share of CPU, in sixteenths.
    inverse_share: u32,
    /// What a call is taken to cost before it was measured.
    pub(crate) cost_ns: u32,
}

impl Settings {
    const NO_FRAMES: u16 = u16::MAX;
    const NO_HOLD: u32 = u32::MAX;

    /// Share of one CPU that calls for frames which can wait may cost, in thousandths, unless configured. Chosen in simulation
    /// as the largest that halves the CPU of one call per frame from 50,000 frames a second on, if a call costs 2 µs.
    pub const SHARE: u16 = 33;
    /// What a call is taken to cost switch and guest together before it was measured, in nanoseconds.
    pub const COST_NS: u32 = 5_000;

    const fn new(policy: Policy, direction: Direction) -> Self {
        Self {
            policy,
            direction,
            dim_profile: DimProfile::Eqe,
            frames: Self::NO_FRAMES,
            hold_ns: Self::NO_HOLD,
            inverse_share: 16 * 1000 / Self::SHARE as u32,
            cost_ns: Self::COST_NS,
        }
    }

    /// For rings that carry frames to the guest.
    #[must_use]
    pub const fn receive(policy: Policy) -> Self {
        Self::new(policy, Direction::Receive)
    }

    /// For rings that carry frames from the guest.
    #[must_use]
    pub const fn transmit(policy: Policy) -> Self {
        Self::new(policy, Direction::Transmit)
    }

    /// `rx-usecs` or `tx-usecs`: microseconds for which a call is held back at most.
    #[must_use]
    pub const fn with_usecs(mut self, usecs: Option<u32>) -> Self {
        self.hold_ns = match usecs {
            Some(usecs) => usecs.saturating_mul(1000),
            None => Self::NO_HOLD,
        };
        self
    }

    /// `rx-frames` or `tx-frames`: frames after which a call is made at the latest.
    #[must_use]
    pub const fn with_frames(mut self, frames: Option<u16>) -> Self {
        self.frames = match frames {
            Some(frames) => frames,
            None => Self::NO_FRAMES,
        };
        self
    }

    /// Thousandths of one CPU that calls for frames which can wait may cost, 10 to 1,000. Urgent ones may cost three times it.
    #[must_use]
    pub const fn with_share(mut self, permille: u16) -> Self {
        let permille = if permille < 10 {
            10
        } else if permille > 1000 {
            1000
        } else {
            permille
        };
        self.inverse_share = 16 * 1000 / permille as u32;
        self
    }

    /// The family of profiles for [`Policy::Dim`].
    #[must_use]
    pub const fn with_dim_profile(mut self, profile: DimProfile) -> Self {
        self.dim_profile = profile;
        self
    }

    /// What a call is taken to cost before it was measured, in nanoseconds.
    #[must_use]
    pub const fn with_cost_ns(mut self, cost_ns: u32) -> Self {
        self.cost_ns = cost_ns;
        self
    }

    /// The rule.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Nanoseconds between two calls that cost `cost_ns` each, if together they are to keep within the share: 1/R.
    #[inline]
    pub(crate) const fn period_ns(&self, cost_ns: u32) -> u32 {
        // At most 200 µs times 1,600: fits.
        (cost_ns * (self.inverse_share / 16)) + cost_ns * (self.inverse_share % 16) / 16
    }

    #[inline]
    pub(crate) const fn hold_ns_or(&self, default: u32) -> u32 {
        if self.hold_ns == Self::NO_HOLD {
            default
        } else {
            self.hold_ns
        }
    }

    #[inline]
    pub(crate) const fn frames_or(&self, default: u16) -> u16 {
        if self.frames == Self::NO_FRAMES {
            default
        } else {
            self.frames
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn period_is_cost_over_share() {
        let of = |share, cost| {
            Settings::receive(Policy::Adaptive)
                .with_share(share)
                .period_ns(cost)
        };
        assert_eq!(of(100, 5_000), 50_000);
        assert_eq!(of(1000, 5_000), 5_000);
        assert_eq!(of(10, 200_000), 20_000_000);
        assert_eq!(of(0, 1_000), of(10, 1_000));
        // To a sixteenth of the cost.
        assert!((14_285 - of(350, 5_000) as i32).abs() <= 5_000 / 16 + 1);
    }
}
