//! When the question is put: the policies that decide without a clock.
//!
//! A policy says only whether the owner of a ring should publish, test and perhaps call *now*; whether the guest is
//! called is then [`Signal::wanted`](crate::Signal::wanted). Neither policy here ever holds a call back, so neither adds
//! delay beyond the rest of the burst.

use std::fmt;

/// A rule for when to test a ring, chosen per port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// After every frame. What an emulated NIC without moderation does, and the upper bound on calls that other policies
    /// are measured against.
    PerPacket,
    /// Once, when the burst is through: at most one call per ring and worker turn. The rule of DPDK's vhost library and
    /// so of Open vSwitch, and the default here.
    #[default]
    PerBurst,
}

impl Policy {
    /// Every policy, in the order of rising restraint.
    pub const ALL: [Self; 2] = [Self::PerPacket, Self::PerBurst];

    /// Whether to publish and test now, with `waiting` frames handed to the guest since the last test.
    /// `burst_over` says that no further frame of this burst follows.
    #[inline]
    #[must_use]
    pub const fn due(self, waiting: u16, burst_over: bool) -> bool {
        match self {
            Self::PerPacket => waiting > 0,
            Self::PerBurst => burst_over && waiting > 0,
        }
    }

    /// The name used in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerPacket => "per-packet",
            Self::PerBurst => "per-burst",
        }
    }

    /// The policy with this [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests put during one burst of `frames`.
    fn tests_in_burst(policy: Policy, frames: u16) -> u16 {
        let (mut tests, mut waiting) = (0, 0);
        for frame in 0..frames {
            waiting += 1;
            if policy.due(waiting, frame + 1 == frames) {
                tests += 1;
                waiting = 0;
            }
        }
        assert_eq!(waiting, 0, "{policy} left frames untested");
        tests + u16::from(policy.due(waiting, true))
    }

    #[test]
    fn per_packet_tests_each_frame_and_per_burst_once() {
        for frames in 0..=32 {
            assert_eq!(tests_in_burst(Policy::PerPacket, frames), frames);
            assert_eq!(tests_in_burst(Policy::PerBurst, frames), frames.min(1));
        }
    }

    #[test]
    fn names_round_trip() {
        for policy in Policy::ALL {
            assert_eq!(Policy::from_name(policy.name()), Some(policy));
            assert_eq!(policy.to_string(), policy.name());
        }
        assert_eq!(Policy::from_name("per-second"), None);
    }
}
