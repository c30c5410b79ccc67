//! The table from hash to target.
//!
//! Buckets hold targets; a hash's low bits name its bucket. Every target has `floor(B/N)` or `ceil(B/N)` of the B buckets,
//! at all times: one that comes takes its share evenly from those that have most, one that goes leaves its buckets evenly
//! to those that have least, and no other bucket moves. So with N targets at most `ceil(B/N) + 1` of B buckets change
//! their target, where a hash modulo N would move nearly all.
//!
//! Changing the set costs a pass over the table and belongs to the control side; readers get a clone.

/// The fewest buckets of a table.
pub const MIN_BUCKETS: usize = 512;
/// The most: 1,024 targets keep their 64 each.
pub const MAX_BUCKETS: usize = 65_536;
/// Buckets per target that keep the load within 2 % of even by rounding alone.
pub const BUCKETS_PER_TARGET: usize = 64;

/// Something a flow can go to: a queue pair, a worker. What the number means is the owner's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target(pub u16);

/// A set of targets and which of them each hash goes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Indirection {
    /// A power of two of them; all name members of `shares`, unless that is empty.
    buckets: Box<[Target]>,
    shares: Vec<Share>,
}

/// A target and how many buckets name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Share {
    target: Target,
    buckets: usize,
}

impl Indirection {
    /// A table that keeps 64 buckets for each of up to `targets` targets, and has none yet.
    #[must_use]
    pub fn new(targets: u16) -> Self {
        let buckets = (usize::from(targets) * BUCKETS_PER_TARGET)
            .next_power_of_two()
            .clamp(MIN_BUCKETS, MAX_BUCKETS);
        Self {
            buckets: vec![Target(0); buckets].into_boxed_slice(),
            shares: Vec::new(),
        }
    }

    /// Where this hash goes; `None` only if there is no target at all.
    #[inline]
    #[must_use]
    pub fn select(&self, hash: u32) -> Option<Target> {
        if self.shares.is_empty() {
            return None;
        }
        self.buckets
            .get(hash as usize & (self.buckets.len() - 1))
            .copied()
    }

    /// Adds a target; returns how many buckets moved to it: none if it is there already.
    pub fn add(&mut self, target: Target) -> usize {
        if self.contains(target) {
            return 0;
        }
        if self.shares.is_empty() {
            self.buckets.fill(target);
            self.shares.push(Share {
                target,
                buckets: self.buckets.len(),
            });
            return self.buckets.len();
        }
        let wanted = self.buckets.len() / (self.shares.len() + 1);
        let mut after = self.shares.clone();
        for _ in 0..wanted {
            if let Some(most) = after.iter_mut().max_by_key(|share| share.buckets) {
                most.buckets -= 1;
            }
        }
        let mut moved = 0;
        for bucket in &mut self.buckets {
            let Some(at) = self.shares.iter().position(|share| share.target == *bucket) else {
                continue;
            };
            if self.shares[at].buckets > after[at].buckets {
                self.shares[at].buckets -= 1;
                *bucket = target;
                moved += 1;
            }
        }
        self.shares.push(Share {
            target,
            buckets: moved,
        });
        moved
    }

    /// Takes a target away; returns how many buckets moved from it: none if it is not there.
    pub fn remove(&mut self, target: Target) -> usize {
        let Some(at) = self.shares.iter().position(|share| share.target == target) else {
            return 0;
        };
        let gone = self.shares.remove(at);
        for bucket in self.buckets.iter_mut().filter(|bucket| **bucket == target) {
            if let Some(least) = self.shares.iter_mut().min_by_key(|share| share.buckets) {
                least.buckets += 1;
                *bucket = least.target;
            }
        }
        gone.buckets
    }

    /// Whether the target is in the set.
    #[must_use]
    pub fn contains(&self, target: Target) -> bool {
        self.shares.iter().any(|share| share.target == target)
    }

    /// The targets with their buckets, in the order they came.
    pub fn shares(&self) -> impl ExactSizeIterator<Item = (Target, usize)> {
        self.shares
            .iter()
            .map(|share| (share.target, share.buckets))
    }

    /// How many buckets there are.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(targets: u16, set: impl IntoIterator<Item = u16>) -> Indirection {
        let mut table = Indirection::new(targets);
        for target in set {
            table.add(Target(target));
        }
        table
    }

    /// Counts the buckets of every target and holds them against what the table says and what is even.
    fn assert_full_and_even(table: &Indirection) {
        let buckets = table.buckets();
        let shares: Vec<_> = table.shares().collect();
        let mut total = 0;
        for &(target, share) in &shares {
            let counted = (0..buckets as u32)
                .filter(|hash| table.select(*hash) == Some(target))
                .count();
            assert_eq!(counted, share);
            let even = buckets / shares.len()..=buckets.div_ceil(shares.len());
            assert!(
                even.contains(&share),
                "{share} of {buckets} for 1 in {}",
                shares.len()
            );
            total += counted;
        }
        assert_eq!(total, if shares.is_empty() { 0 } else { buckets });
    }

    fn changed(before: &Indirection, after: &Indirection) -> usize {
        (0..before.buckets() as u32)
            .filter(|hash| before.select(*hash) != after.select(*hash))
            .count()
    }

    #[test]
    fn sizes() {
        for (targets, buckets) in [
            (0, 512),
            (1, 512),
            (8, 512),
            (9, 1024),
            (16, 1024),
            (256, 16_384),
            (u16::MAX, MAX_BUCKETS),
        ] {
            assert_eq!(Indirection::new(targets).buckets(), buckets);
        }
    }

    #[test]
    fn no_target_one_target() {
        let mut table = Indirection::new(4);
        assert_eq!(table.select(7), None);
        assert_eq!(table.remove(Target(0)), 0);
        assert_eq!(table.add(Target(3)), 512);
        assert_eq!(table.add(Target(3)), 0);
        assert_eq!(table.select(u32::MAX), Some(Target(3)));
        assert_eq!(table.remove(Target(3)), 512);
        assert_eq!(table.select(7), None);
        assert_full_and_even(&table);
    }

    #[test]
    fn four_to_five_and_back_moves_a_fifth() {
        let four = of(5, 0..4);
        let mut table = four.clone();
        assert_eq!(table.add(Target(4)), 102);
        assert_eq!(changed(&four, &table), 102);
        assert_eq!(table.remove(Target(4)), 102);
        assert_full_and_even(&table);
    }

    #[test]
    fn more_targets_than_buckets_is_survived() {
        let mut table = of(1, 0..600);
        for target in 0..600 {
            table.remove(Target(target));
        }
        assert_eq!(table.select(0), None);
    }

    proptest! {
        /// Any sequence of comings and goings: always full and even, and only the share of the one concerned moves.
        #[test]
        fn only_a_share_moves(steps in prop::collection::vec((any::<bool>(), 0u16..24), 1..60)) {
            let mut table = Indirection::new(24);
            for (add, target) in steps {
                let before = table.clone();
                let target = Target(target);
                let moved = if add { table.add(target) } else { table.remove(target) };
                assert_full_and_even(&table);
                if before.shares().len() == 0 || table.shares().len() == 0 {
                    continue;
                }
                prop_assert_eq!(changed(&before, &table), moved);
                let most = before.shares().len().max(table.shares().len());
                prop_assert!(moved <= table.buckets().div_ceil(most) + 1);
                for hash in 0..table.buckets() as u32 {
                    let (was, is) = (before.select(hash), table.select(hash));
                    prop_assert!(was == is || was == Some(target) || is == Some(target));
                }
            }
        }
    }
}
