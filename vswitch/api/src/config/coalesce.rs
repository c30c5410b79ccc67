//! When a guest's port interrupts its guest: the key `coalesce`.

use serde::{Deserialize, Serialize};

use super::limits;

/// When a guest is interrupted for what it receives, and for buffers that it has back from sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Coalesce {
    /// The rule. Default `adaptive`.
    pub policy: CoalescePolicy,
    /// Receive: microseconds for which an interrupt is held back, 0 to 10,000. With `adaptive` at most; with `spdk` the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_usecs: Option<u32>,
    /// Receive: frames after which there is an interrupt at the latest, 1 to 1,024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_frames: Option<u16>,
    /// Transmit: as `rx-usecs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_usecs: Option<u32>,
    /// Transmit: as `rx-frames`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_frames: Option<u16>,
    /// With `adaptive`: percent of one CPU that interrupts of a queue for frames which can wait may cost, switch and guest
    /// together, 1 to 100. Default 3.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u16>,
    /// Both ways: no interrupt is held back for longer, microseconds, 0 to 10,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_delay_usecs: Option<u32>,
}

/// A rule for when to interrupt a guest that wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoalescePolicy {
    /// At once while interrupts are few; spread to a share of CPU when they are many.
    #[default]
    Adaptive,
    /// After every frame.
    PerPacket,
    /// After every burst.
    PerBurst,
    /// After so many microseconds or frames.
    Static,
    /// After 32 frames or a millisecond, as VPP.
    Vpp,
    /// After a delay that grows with the rate, as SPDK.
    Spdk,
    /// After what net_dim's profiles say, as Linux drivers.
    Dim,
}

impl CoalescePolicy {
    /// Every policy.
    pub const ALL: [Self; 7] = [
        Self::Adaptive,
        Self::PerPacket,
        Self::PerBurst,
        Self::Static,
        Self::Vpp,
        Self::Spdk,
        Self::Dim,
    ];

    /// As the file writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::PerPacket => "per-packet",
            Self::PerBurst => "per-burst",
            Self::Static => "static",
            Self::Vpp => "vpp",
            Self::Spdk => "spdk",
            Self::Dim => "dim",
        }
    }

    /// The keys that it goes by.
    pub const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Adaptive => &Coalesce::KEYS,
            Self::Static => &[
                "rx-usecs",
                "rx-frames",
                "tx-usecs",
                "tx-frames",
                "max-delay-usecs",
            ],
            Self::Spdk => &["rx-usecs", "tx-usecs"],
            Self::PerPacket | Self::PerBurst | Self::Vpp | Self::Dim => &[],
        }
    }
}

/// What is wrong with a [`Coalesce`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoalesceProblem {
    /// The key.
    pub key: &'static str,
    /// It is the key that is out of place, not its value.
    pub at_key: bool,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Coalesce {
    /// Every key but `policy`.
    pub const KEYS: [&'static str; 6] = [
        "rx-usecs",
        "rx-frames",
        "tx-usecs",
        "tx-frames",
        "cpu-percent",
        "max-delay-usecs",
    ];

    /// The values of the keys that are set, in the order of [`KEYS`](Self::KEYS).
    pub fn values(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let values = [
            self.rx_usecs,
            self.rx_frames.map(u32::from),
            self.tx_usecs,
            self.tx_frames.map(u32::from),
            self.cpu_percent.map(u32::from),
            self.max_delay_usecs,
        ];
        let named = Self::KEYS.into_iter().zip(values);
        named.filter_map(|(key, value)| Some((key, value?)))
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<CoalesceProblem> {
        let mut problems = Vec::new();
        let policy = self.policy;
        for (key, value) in self.values() {
            let range = match key {
                "cpu-percent" => limits::CPU_PERCENT,
                "rx-frames" | "tx-frames" => limits::COALESCE_FRAMES,
                _ => limits::COALESCE_USECS,
            };
            if !policy.keys().contains(&key) {
                let help = match policy.keys() {
                    [] => "remove it, or use `policy: adaptive` or `policy: static`".into(),
                    keys => format!("remove it; this policy goes by {}", keys.join(", ")),
                };
                problems.push(CoalesceProblem {
                    key,
                    at_key: true,
                    message: format!("`policy: {}` takes no notice of {key}", policy.name()),
                    help,
                });
            } else if !range.contains(&value) {
                problems.push(CoalesceProblem {
                    key,
                    at_key: false,
                    message: format!("{key} {value} is out of range"),
                    help: format!("use {} to {}", range.start(), range.end()),
                });
            }
        }
        if policy == CoalescePolicy::Static && self.values().next().is_none() {
            problems.push(CoalesceProblem {
                key: "policy",
                at_key: false,
                message: "`policy: static` without figures holds nothing back".into(),
                help: "add one of rx-usecs, rx-frames, tx-usecs, tx-frames; or write `policy: per-burst`"
                    .into(),
            });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_file() {
        for policy in CoalescePolicy::ALL {
            let written = serde_json::to_value(policy).unwrap();
            assert_eq!(written, policy.name());
        }
        let all = Coalesce {
            policy: CoalescePolicy::Adaptive,
            rx_usecs: Some(1),
            rx_frames: Some(2),
            tx_usecs: Some(3),
            tx_frames: Some(4),
            cpu_percent: Some(5),
            max_delay_usecs: Some(6),
        };
        let written = serde_json::to_value(all).unwrap();
        for (key, value) in all.values() {
            assert_eq!(written[key], value, "{key}");
        }
        assert_eq!(all.values().count(), Coalesce::KEYS.len());
        assert!(all.problems().is_empty());
    }

    #[test]
    fn a_key_belongs_to_its_policies() {
        let with = |policy| Coalesce {
            policy,
            rx_frames: Some(8),
            ..Coalesce::default()
        };
        for policy in CoalescePolicy::ALL {
            let fits = matches!(policy, CoalescePolicy::Adaptive | CoalescePolicy::Static);
            assert_eq!(with(policy).problems().is_empty(), fits, "{policy:?}");
        }
    }
}
