//! What `counters` tells: where every frame went.
//!
//! The books balance, per port and in total: `rx.frames = rx.switched + sum(rx.drops)`,
//! `tx.offered = tx.delivered + sum(tx.drops)`, and over all ports `sum(tx.offered) =
//! sum(rx.copies)`. A reader that looks while frames move can see them off by a burst.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Parameters of `counters`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CountersParams {
    /// Only this port; `totals` then has this port only. Default: all ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// Result of `counters`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// By port name. Ports that are gone are not in it.
    pub ports: BTreeMap<String, PortCounters>,
    /// The sum of `ports`.
    pub totals: PortCounters,
}

/// A port's counters, since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortCounters {
    /// Into the switch.
    pub rx: RxCounters,
    /// Out of the switch.
    pub tx: TxCounters,
    /// Interrupts (calls) sent to the guest, both directions; 0 for devices.
    pub interrupts: u64,
}

/// Frames into the switch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RxCounters {
    /// Frames received.
    pub frames: u64,
    /// Bytes received, from Ethernet header to end of payload.
    pub bytes: u64,
    /// Frames that were switched to at least one output.
    pub switched: u64,
    /// Copies made of them: one per output, several when flooded.
    pub copies: u64,
    /// Frames dropped before an output was chosen, by reason. Every reason is listed, also those
    /// that never happened.
    pub drops: BTreeMap<String, u64>,
}

/// Frames out of the switch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TxCounters {
    /// Frames meant for this port.
    pub offered: u64,
    /// Frames delivered.
    pub delivered: u64,
    /// Bytes delivered, from Ethernet header to end of payload.
    pub bytes: u64,
    /// Frames dropped at this output, by reason. Every reason is listed.
    pub drops: BTreeMap<String, u64>,
}

impl PortCounters {
    /// Adds another port's counts.
    pub fn add(&mut self, other: &Self) {
        self.rx.frames += other.rx.frames;
        self.rx.bytes += other.rx.bytes;
        self.rx.switched += other.rx.switched;
        self.rx.copies += other.rx.copies;
        self.tx.offered += other.tx.offered;
        self.tx.delivered += other.tx.delivered;
        self.tx.bytes += other.tx.bytes;
        self.interrupts += other.interrupts;
        for (sums, counts) in [
            (&mut self.rx.drops, &other.rx.drops),
            (&mut self.tx.drops, &other.tx.drops),
        ] {
            for (reason, count) in counts {
                *sums.entry(reason.clone()).or_default() += count;
            }
        }
    }

    /// Frames received that are neither switched nor dropped by name, and frames offered that are
    /// neither delivered nor dropped by name: both 0 when nothing moves.
    pub fn imbalance(&self) -> (i128, i128) {
        let sum =
            |drops: &BTreeMap<String, u64>| drops.values().map(|&n| i128::from(n)).sum::<i128>();
        (
            i128::from(self.rx.frames) - i128::from(self.rx.switched) - sum(&self.rx.drops),
            i128::from(self.tx.offered) - i128::from(self.tx.delivered) - sum(&self.tx.drops),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_balance_when_the_parts_do() {
        let part = PortCounters {
            rx: RxCounters {
                frames: 10,
                bytes: 1000,
                switched: 7,
                copies: 9,
                drops: [("mtu".into(), 3), ("reflection".into(), 0)].into(),
            },
            tx: TxCounters {
                offered: 9,
                delivered: 8,
                bytes: 800,
                drops: [("ring-full".into(), 1)].into(),
            },
            interrupts: 2,
        };
        assert_eq!(part.imbalance(), (0, 0));
        let mut sum = part.clone();
        sum.add(&part);
        assert_eq!(sum.imbalance(), (0, 0));
        assert_eq!(
            (sum.rx.frames, sum.rx.drops["mtu"], sum.interrupts),
            (20, 6, 4)
        );
        sum.tx.delivered -= 1;
        assert_eq!(sum.imbalance(), (0, 1));
    }
}
