//! Ten million flows come and go, 700,000 at a time, through everything that keeps anything by flow: the switch's view and
//! pins, and the cache of decisions.
//!
//! Every flow has [`PACKETS`] packets and lives until 700,000 others have come: the first packet of a flow is followed by
//! packets of any flows alive. One flow in eight is learned to belong elsewhere, so there are far more pins wanted than there
//! is room for. A packet costs what it costs in the switch: a lookup in the cache, keeping the decision if it was not there,
//! learning, selecting, noting the tail.

use std::time::Instant;

use serde::Serialize;
use vswitch_flowtable::{
    FlowCache, FlowHash, Indirection, Micros, Pins, Position, Target, View, pins,
};

use super::flows::{Random, hash};
use crate::Result;
use crate::footprint::Footprint;

/// Packets of a flow on average.
const PACKETS: u64 = 4;
/// Flows that come in a second: ten million in a minute and two thirds.
const PER_SECOND: u64 = 100_000;
/// Slots of the cache: a power of two that all flows alive fit in.
const SLOTS: usize = 1 << 20;
/// A decision that was not needed for so long may go: about as long as flows live.
const IDLE_MICROS: u64 = 5_000_000;
/// Sets swept at a time, as the switch's housekeeping does it, all of them within half a second.
const SWEPT: usize = 64;
const PARTS: usize = 10;

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Churn {
    /// Flows that came.
    pub distinct: u64,
    /// At a time.
    pub alive: u64,
    /// All packets.
    pub packets: u64,
    /// Tenths, in turn.
    pub parts: Vec<Part>,
    /// Packets that got no target, or a decision that was another flow's.
    pub failed: u64,
    /// The most pins there were at once, and the most there may be.
    pub pins: (usize, usize),
}

/// A tenth of the packets.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Part {
    /// A packet, in ns.
    pub ns: f64,
    /// Packets whose decision was in the cache, in percent.
    pub found_percent: f64,
    /// Decisions that found no room in it, in percent of those to be kept.
    pub refused_percent: f64,
    /// Flows pinned.
    pub pinned: u64,
    /// Pins refused.
    pub pins_refused: u64,
    /// Memory of the process at its end, KiB.
    pub resident_kib: u64,
}

/// Lets so many flows come and go.
pub(super) fn measure(alive: u32, distinct: u64) -> Result<Churn> {
    let mut table = Indirection::new(8);
    for target in 0..5 {
        table.add(Target(target));
    }
    let pins = Pins::new();
    let mut run = Run {
        view: View::with_pins(&table),
        table,
        cache: FlowCache::new(SLOTS, IDLE_MICROS),
        pins: &pins,
        random: Random(2),
        position: 0,
        failed: 0,
        most_pins: 0,
    };
    let parts: Result<Vec<Part>> = (0..PARTS as u64)
        .map(|part| {
            run.part(
                part * distinct / PARTS as u64,
                (part + 1) * distinct / PARTS as u64,
                alive,
            )
        })
        .collect();
    Ok(Churn {
        distinct,
        alive: u64::from(alive),
        packets: distinct * PACKETS,
        parts: parts?,
        failed: run.failed,
        pins: (run.most_pins, pins::CAPACITY),
    })
}

struct Run<'p> {
    table: Indirection,
    view: View,
    cache: FlowCache<u64, Target>,
    pins: &'p Pins,
    random: Random,
    position: u16,
    failed: u64,
    most_pins: usize,
}

impl Run<'_> {
    fn part(&mut self, from: u64, to: u64, alive: u32) -> Result<Part> {
        let refused = (self.cache.refused(), self.pins.refused());
        let (mut found, mut missed, mut pinned) = (0u64, 0u64, 0u64);
        let start = Instant::now();
        for newest in from..to {
            let now = Micros(newest * 1_000_000 / PER_SECOND);
            for nth in 0..PACKETS {
                let age = match nth {
                    0 => 0,
                    _ => u64::from(self.random.below(alive)).min(newest),
                };
                let flow = newest - age;
                let seen = self.packet(flow, now);
                found += u64::from(seen.0);
                missed += u64::from(!seen.0);
                pinned += u64::from(seen.1);
            }
            if newest % (PER_SECOND / 32) == 0 {
                let first = (newest / (PER_SECOND / 32)) as usize * SWEPT % pins::SETS;
                self.pins.sweep(first..first + SWEPT, now);
            }
            self.most_pins = self.most_pins.max(self.pins.len());
        }
        let packets = ((to - from) * PACKETS).max(1) as f64;
        let ns = start.elapsed().as_nanos() as f64 / packets;
        let part = |n: u64, of: u64| 100.0 * n as f64 / of.max(1) as f64;
        Ok(Part {
            ns,
            found_percent: part(found, found + missed),
            refused_percent: part(self.cache.refused() - refused.0, missed),
            pinned,
            pins_refused: self.pins.refused() - refused.1,
            resident_kib: Footprint::of(std::process::id())?.total_kib(),
        })
    }

    /// Whether its decision was known, and whether its flow was pinned by it.
    #[inline]
    fn packet(&mut self, flow: u64, now: Micros) -> (bool, bool) {
        let hashed = FlowHash(Random(flow).next());
        let says = self.table.select(hashed.low());
        // What was decided stands for itself: any function of the key that another flow does not share.
        let decided = Target(hash(flow as u32).low() as u16);
        let found = self.cache.lookup(hashed, &flow, now);
        match found {
            Some(kept) => self.failed += u64::from(kept != decided),
            None => {
                self.cache.insert(hashed, flow, decided, now);
            }
        }
        let mut pinned = false;
        if let (0, Some(says)) = (flow % 8, says) {
            let learned = self.pins.learn(hashed, Target((says.0 + 1) % 5), says, now);
            pinned = learned == vswitch_flowtable::Learned::Pinned;
        }
        match self.view.select_pinned(hashed, self.pins, now, |_, _| true) {
            Some(selection) => {
                self.position = self.position.wrapping_add(1);
                self.view.sent(selection, Position(self.position), now);
            }
            None => self.failed += 1,
        }
        (found.is_some(), pinned)
    }
}

impl Churn {
    /// How much slower the last tenth was than the second, in percent. The first one fills what is empty.
    pub(super) fn slower_percent(&self) -> f64 {
        let [_, second, .., last] = self.parts.as_slice() else {
            return 0.0;
        };
        100.0 * (last.ns / second.ns - 1.0)
    }

    /// How much more memory there was after the last tenth than after the first, KiB.
    pub(super) fn grown_kib(&self) -> i64 {
        let [first, .., last] = self.parts.as_slice() else {
            return 0;
        };
        last.resident_kib as i64 - first.resident_kib as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_come_and_go_without_failure() {
        let churn = measure(10_000, 100_000).unwrap();
        assert_eq!((churn.failed, churn.parts.len()), (0, PARTS));
        assert!(churn.pins.0 <= churn.pins.1);
        // Each flow's first packet is new, others mostly known.
        for part in &churn.parts {
            assert!((60.0..76.0).contains(&part.found_percent), "{churn:?}");
            assert!(part.pinned > 0 && part.refused_percent < 1.0, "{churn:?}");
        }
        assert!(churn.slower_percent() > -100.0 && churn.grown_kib().abs() < 1 << 20);
    }
}
