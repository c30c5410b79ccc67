//! Which flows there are, and which of them comes next.

use vswitch_flowtable::FlowHash;

/// Any odd number whose bits look random.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of flow `n`: a bijection that spreads, so no two flows share one.
#[inline]
pub(super) fn hash(n: u32) -> FlowHash {
    let mut mixed = (u64::from(n) + 1).wrapping_mul(SPREAD);
    mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    FlowHash(mixed ^ mixed >> 32)
}

/// Random numbers, the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SPREAD);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Under `limit`.
    #[inline]
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    /// One of these, or 0 if there is none.
    #[inline]
    pub(super) fn of(&mut self, values: &[u32]) -> u64 {
        let at = self.below(values.len() as u32) as usize;
        values.get(at).map_or(0, |value| u64::from(*value))
    }

    /// A time until the next of events that come `mean` apart and know nothing of each other.
    #[inline]
    pub(super) fn gap(&mut self, mean: f64) -> f64 {
        let uniform = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -uniform.ln() * mean
    }
}

/// The flows `0..flows` in any order (Fisher and Yates): memory that is walked through from end to end is fetched ahead.
pub(super) fn shuffled(flows: u32, random: &mut Random) -> Vec<u32> {
    let mut order: Vec<u32> = (0..flows).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u32 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_the_mean_asked_for() {
        let mut random = Random(3);
        let sum: f64 = (0..100_000).map(|_| random.gap(50.0)).sum();
        assert!((sum / 100_000.0 - 50.0).abs() < 1.0, "{sum}");
    }

    #[test]
    fn every_flow_comes_once() {
        let mut order = shuffled(1000, &mut Random(1));
        assert!(!order.is_sorted());
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
