//! The rules for when a wanted call is made, each in a file of its own with its source, all behind one interface.
//!
//! A rule sees every publication ([`State::arrived`]) and judges each that the guest wants to hear of
//! ([`State::judge`]): now, or by a deadline. It never sees the guest's wish, which is the [`Moderator`](crate::Moderator)'s,
//! so that a comparison of rules compares nothing else.

mod adaptive;
mod dim;
mod fixed;
mod per_burst;
mod per_packet;
mod spdk;
mod vpp;

use std::fmt;

use crate::burst::{Burst, Reason};
use crate::settings::Settings;

pub(crate) use adaptive::Adaptive;
pub use adaptive::{CAP_NS, EXPENSIVE_CAP_NS, EXPENSIVE_NS};
pub use dim::DimProfile;

/// A rule for when to call a guest, chosen per port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// After every frame. What an emulated NIC without moderation does, and the upper bound on calls that other policies
    /// are measured against.
    PerPacket,
    /// Once, when the burst is through: at most one call per ring and worker turn. The rule of DPDK's vhost library and
    /// so of Open vSwitch.
    PerBurst,
    /// After so many microseconds or frames, as `ethtool -C` sets them.
    Static,
    /// After more than 32 frames, or 1 ms after the last call: VPP's default.
    Vpp,
    /// After a delay that grows with the rate above a threshold: SPDK's.
    Spdk,
    /// After what one of five profiles says, between which it climbs: Linux's `net_dim`.
    Dim,
    /// After as little as a share of CPU for calls allows, and at once below it: the default here.
    #[default]
    Adaptive,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 7] = [
        Self::PerPacket,
        Self::PerBurst,
        Self::Static,
        Self::Vpp,
        Self::Spdk,
        Self::Dim,
        Self::Adaptive,
    ];

    /// Whether each frame is to be published and reported alone. All other policies are asked once per burst.
    #[inline]
    #[must_use]
    pub const fn every_frame(self) -> bool {
        matches!(self, Self::PerPacket)
    }

    /// The name used in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerPacket => "per-packet",
            Self::PerBurst => "per-burst",
            Self::Static => "static",
            Self::Vpp => "vpp",
            Self::Spdk => "spdk",
            Self::Dim => "dim",
            Self::Adaptive => "adaptive",
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

/// What a rule says about a wanted call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Make it.
    Now(Reason),
    /// Make it at this time, in nanoseconds, unless something makes it sooner.
    By(u64),
}

impl Verdict {
    /// By `deadline`, which may have passed.
    #[inline]
    pub(crate) fn by(deadline: u64, now: u64) -> Self {
        if deadline <= now {
            Self::Now(Reason::Deadline)
        } else {
            Self::By(deadline)
        }
    }
}

/// What waits for a call, this burst included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// When the first of it was published, in nanoseconds.
    pub(crate) since: u64,
    pub(crate) frames: u16,
}

/// What a rule remembers of one ring: at most 32 bytes with the tag.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    PerPacket,
    PerBurst,
    Static,
    Vpp(vpp::Vpp),
    Spdk(spdk::Spdk),
    Dim(dim::Dim),
    Adaptive(Adaptive),
}

impl State {
    pub(crate) fn new(settings: &Settings) -> Self {
        match settings.policy {
            Policy::PerPacket => Self::PerPacket,
            Policy::PerBurst => Self::PerBurst,
            Policy::Static => Self::Static,
            Policy::Vpp => Self::Vpp(vpp::Vpp::default()),
            Policy::Spdk => Self::Spdk(spdk::Spdk::default()),
            Policy::Dim => Self::Dim(dim::Dim::default()),
            Policy::Adaptive => Self::Adaptive(Adaptive::new(settings)),
        }
    }

    pub(crate) const fn policy(&self) -> Policy {
        match self {
            Self::PerPacket => Policy::PerPacket,
            Self::PerBurst => Policy::PerBurst,
            Self::Static => Policy::Static,
            Self::Vpp(_) => Policy::Vpp,
            Self::Spdk(_) => Policy::Spdk,
            Self::Dim(_) => Policy::Dim,
            Self::Adaptive(_) => Policy::Adaptive,
        }
    }

    /// A burst was published, `idle` nanoseconds after the one before.
    #[inline]
    pub(crate) fn arrived(&mut self, settings: &Settings, burst: &Burst, idle: u64) {
        match self {
            Self::Adaptive(state) => state.arrived(settings, burst, idle),
            Self::Spdk(state) => state.arrived(settings, burst),
            Self::Dim(state) => state.arrived(burst),
            Self::PerPacket | Self::PerBurst | Self::Static | Self::Vpp(_) => {}
        }
    }

    /// The guest wants to hear of what is waiting.
    #[inline]
    pub(crate) fn judge(
        &self,
        settings: &Settings,
        burst: &Burst,
        waiting: Waiting,
        idle: u64,
    ) -> Verdict {
        match self {
            Self::PerPacket => per_packet::judge(),
            Self::PerBurst => per_burst::judge(),
            Self::Static => fixed::judge(settings, burst, waiting),
            Self::Vpp(state) => state.judge(burst, waiting),
            Self::Spdk(state) => state.judge(burst),
            Self::Dim(state) => state.judge(settings, burst, waiting),
            Self::Adaptive(state) => state.judge(settings, burst, waiting, idle),
        }
    }

    /// A call is made.
    #[inline]
    pub(crate) fn fired(&mut self, settings: &Settings, now: u64, reason: Reason) {
        match self {
            Self::Adaptive(state) => state.fired(settings, now, reason),
            Self::Vpp(state) => state.fired(now),
            Self::Spdk(state) => state.fired(now),
            Self::Dim(state) => state.fired(now),
            Self::PerPacket | Self::PerBurst | Self::Static => {}
        }
    }

    /// Whether a guest that polls need not be asked after each burst.
    #[inline]
    pub(crate) const fn may_sample(&self) -> bool {
        match self {
            Self::Adaptive(state) => state.moderates(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for policy in Policy::ALL {
            assert_eq!(Policy::from_name(policy.name()), Some(policy));
            assert_eq!(policy.to_string(), policy.name());
            assert_eq!(State::new(&Settings::receive(policy)).policy(), policy);
        }
        assert_eq!(Policy::from_name("per-second"), None);
    }

    #[test]
    fn only_one_policy_asks_after_each_frame() {
        let each: Vec<_> = Policy::ALL
            .into_iter()
            .filter(|p| p.every_frame())
            .collect();
        assert_eq!(each, [Policy::PerPacket]);
    }
}
