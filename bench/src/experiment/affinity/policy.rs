//! How packets are steered: by modulo, by Calisto's table, by ours.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use vswitch_flowtable::{FlowHash, Indirection, Micros, Position, Selection, Target, View};

use super::flows::hash;

/// The most targets there are.
pub(super) const TARGETS: u16 = 8;

/// Who knows how far targets have come.
pub(super) trait Progress {
    /// Whether a target is done with what it was given at this position, and with all before it.
    fn completed(&self, target: Target, position: Position) -> bool;
}

/// Nothing is ever under way.
pub(super) struct AllDone;

impl Progress for AllDone {
    fn completed(&self, _: Target, _: Position) -> bool {
        true
    }
}

/// Whether a target that was given so many packets, and is done with so many, is done with that at `position`.
#[inline]
pub(super) fn passed(queued: u64, done: u64, position: Position) -> bool {
    u64::from((queued as u16).wrapping_sub(position.0)) > queued - done
}

/// A way to steer.
pub(super) trait Policy {
    /// On the command line's terms.
    const NAME: &'static str;
    /// In a sentence.
    const ABOUT: &'static str;

    /// With targets `0..active`.
    fn new(active: u16) -> Self;
    /// From now on targets `0..active` are to be used.
    fn activate(&mut self, active: u16);
    /// Where a packet goes, and, if that matters, what is to be told when it is queued.
    fn select(&mut self, hash: FlowHash, progress: &impl Progress) -> (Target, Option<Selection>);
    /// The packet was queued there.
    fn sent(&mut self, _selection: Selection, _position: Position) {}
    /// Where a flow's packets go in the end, once everything has settled.
    fn settled(&self, hash: FlowHash) -> Target;
}

/// Hash modulo number of targets, as in Shenango.
pub(super) struct Modulo {
    active: u16,
}

fn modulo(hash: FlowHash, active: u16) -> Target {
    Target((hash.low() % u32::from(active)) as u16)
}

impl Policy for Modulo {
    const NAME: &'static str = "modulo";
    const ABOUT: &'static str = "hash modulo number of targets";

    fn new(active: u16) -> Self {
        Self { active }
    }

    fn activate(&mut self, active: u16) {
        self.active = active;
    }

    #[inline]
    fn select(&mut self, hash: FlowHash, _: &impl Progress) -> (Target, Option<Selection>) {
        (modulo(hash, self.active), None)
    }

    fn settled(&self, hash: FlowHash) -> Target {
        modulo(hash, self.active)
    }
}

/// Calisto as its paper has it: a hash table from a packet's 32-bit hash to the core of the flow, filled at a flow's first
/// packet by modulo. A flow whose core is gone counts as new. The table grows as it needs to.
pub(super) struct Calisto {
    table: HashMap<u32, Target, BuildHasherDefault<Spread>>,
    active: u16,
}

/// One multiplication: keys are hashes already.
#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, value: u32) {
        let mixed = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

impl Calisto {
    /// Flows in the table.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

impl Policy for Calisto {
    const NAME: &'static str = "calisto";
    const ABOUT: &'static str = "a hash table from 32-bit hash to target, filled by a flow's first packet, as its paper has it";

    fn new(active: u16) -> Self {
        Self {
            table: HashMap::default(),
            active,
        }
    }

    fn activate(&mut self, active: u16) {
        self.active = active;
    }

    #[inline]
    fn select(&mut self, hash: FlowHash, _: &impl Progress) -> (Target, Option<Selection>) {
        let target = self
            .table
            .entry(hash.low())
            .or_insert_with(|| modulo(hash, self.active));
        if target.0 >= self.active {
            *target = modulo(hash, self.active);
        }
        (*target, None)
    }

    fn settled(&self, hash: FlowHash) -> Target {
        let known = self.table.get(&hash.low());
        known
            .copied()
            .filter(|target| target.0 < self.active)
            .unwrap_or_else(|| modulo(hash, self.active))
    }
}

/// Time stands still for the view. Its rule that a bucket without a packet for 10 ms may move is for targets that do not tell
/// what they have completed; these do, so order rests on that alone.
const NEVER: Micros = Micros(0);

/// The switch's: an indirection table, and a view that moves buckets in order.
pub(super) struct Ours {
    table: Indirection,
    view: View,
}

impl Policy for Ours {
    const NAME: &'static str = "vswitch";
    const ABOUT: &'static str =
        "an indirection table of 512 buckets, moved bucket by bucket in order";

    fn new(active: u16) -> Self {
        let mut table = Indirection::new(TARGETS);
        for target in 0..active {
            table.add(Target(target));
        }
        let view = View::new(&table);
        Self { table, view }
    }

    fn activate(&mut self, active: u16) {
        for target in (0..TARGETS).map(Target) {
            if target.0 < active {
                self.table.add(target);
            } else {
                self.table.remove(target);
            }
        }
        // Always of the same size.
        let _ = self.view.adopt(&self.table);
    }

    #[inline]
    fn select(&mut self, hash: FlowHash, progress: &impl Progress) -> (Target, Option<Selection>) {
        let completed = |target, position| progress.completed(target, position);
        let selection = self.view.select(hash.low(), NEVER, completed);
        (selection.map_or(Target(0), |s| s.target), selection)
    }

    #[inline]
    fn sent(&mut self, selection: Selection, position: Position) {
        self.view.sent(selection, position, NEVER);
    }

    fn settled(&self, hash: FlowHash) -> Target {
        self.table.select(hash.low()).unwrap_or(Target(0))
    }
}

/// The part of flows that go elsewhere when `from` targets become `to`, of those numbered `0..flows`; all of them were seen
/// before.
pub(super) fn moved<P: Policy>(from: u16, to: u16, flows: u32) -> f64 {
    let mut policy = P::new(from);
    let hashes = || (0..flows).map(hash);
    for hash in hashes() {
        policy.select(hash, &AllDone);
    }
    let before: Vec<Target> = hashes().map(|hash| policy.settled(hash)).collect();
    policy.activate(to);
    let elsewhere = hashes().zip(before);
    let elsewhere = elsewhere.filter(|(hash, before)| policy.settled(*hash) != *before);
    elsewhere.count() as f64 / f64::from(flows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_wrap() {
        for queued in [3, 65_536, 65_538, 1 << 40] {
            let last = Position((queued - 1) as u16);
            assert!(passed(queued, queued, last));
            assert!(!passed(queued, queued - 1, last));
            assert!(passed(queued, queued - 1, Position((queued - 2) as u16)));
        }
    }

    #[test]
    fn who_moves_how_much() {
        let flows = 50_000;
        let close = |part: f64, expected: f64| (part - expected).abs() < 0.01;
        assert!(close(moved::<Modulo>(4, 5, flows), 0.8));
        assert!(close(moved::<Ours>(4, 5, flows), 0.2));
        assert!(close(moved::<Ours>(5, 4, flows), 0.2));
        assert!(close(moved::<Calisto>(4, 5, flows), 0.0));
        assert!(close(moved::<Calisto>(5, 4, flows), 0.2));
    }
}
