//! The table from hash to target.
//!
//! Buckets hold targets; a hash's low bits name its bucket. Every target has `floor(B/N)` or `ceil(B/N)` of the B buckets:
//! one that comes takes its share evenly from those that have most, one that goes leaves its buckets evenly to those that
//! have least, and no other bucket moves. So with N targets at most `ceil(B/N) + 1` of B buckets change their target, where
//! a hash modulo N would move nearly all. Only [`Indirection::set`] makes shares uneven, which is what it is for: moving
//! load. What comes and goes afterwards evens them out again, bucket by bucket.
//!
//! The table says what is wanted. Whoever has packets under way makes the [`Move`]s one at a time, each when order allows
//! it: see [`steer`](crate::steer). Changing the set costs a pass over the table and belongs to the control side; readers
//! get a clone.

/// The fewest buckets of a table.
pub const MIN_BUCKETS: usize = 512;
/// The most: 1,024 targets keep their 64 each.
pub const MAX_BUCKETS: usize = 65_536;
/// Buckets per target that keep the load within 2 % of even by rounding alone.
pub const BUCKETS_PER_TARGET: usize = 64;

/// Something a flow can go to: a queue pair, a worker. What the number means is the owner's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target(pub u16);

impl Target {
    /// Stands for no target; no table ever holds it.
    pub const NONE: Self = Self(u16::MAX);
}

/// A bucket changes its target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Which, from 0.
    pub bucket: usize,
    /// Where its flows go before; none if there was no target at all.
    pub from: Option<Target>,
    /// Where they go after; none if the last target goes.
    pub to: Option<Target>,
}

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

    /// A table of so many buckets, as a NIC's has them, without a target yet. `None` if that is no power of two or more than
    /// [`MAX_BUCKETS`].
    #[must_use]
    pub fn of_size(buckets: usize) -> Option<Self> {
        (buckets.is_power_of_two() && buckets <= MAX_BUCKETS).then(|| Self {
            buckets: vec![Target(0); buckets].into_boxed_slice(),
            shares: Vec::new(),
        })
    }

    /// Where this hash goes; `None` only if there is no target at all.
    #[inline]
    #[must_use]
    pub fn select(&self, hash: u32) -> Option<Target> {
        self.target(self.bucket(hash))
    }

    /// The bucket of a hash: its low bits.
    #[inline]
    #[must_use]
    pub fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    /// Where a bucket's flows go; `None` if there is no target at all, or no such bucket.
    #[inline]
    #[must_use]
    pub fn target(&self, bucket: usize) -> Option<Target> {
        if self.shares.is_empty() {
            return None;
        }
        self.buckets.get(bucket).copied()
    }

    /// Gives one bucket to a target of the set; returns what changed. Nothing does if the bucket is that target's already,
    /// or if there is no such bucket or target.
    pub fn set(&mut self, bucket: usize, target: Target) -> Option<Move> {
        let from = self.target(bucket).filter(|from| *from != target)?;
        let to = self
            .shares
            .iter()
            .position(|share| share.target == target)?;
        self.shares[to].buckets += 1;
        if let Some(share) = self.shares.iter_mut().find(|share| share.target == from) {
            share.buckets -= 1;
        }
        self.buckets[bucket] = target;
        Some(Move {
            bucket,
            from: Some(from),
            to: Some(target),
        })
    }

    /// The moves that make this table into `wanted`, in the order of buckets. Tables of different size have none.
    pub fn moves_to(&self, wanted: &Self) -> impl Iterator<Item = Move> {
        let buckets = match self.buckets() == wanted.buckets() {
            true => self.buckets(),
            false => 0,
        };
        (0..buckets).filter_map(|bucket| {
            let (from, to) = (self.target(bucket), wanted.target(bucket));
            (from != to).then_some(Move { bucket, from, to })
        })
    }

    /// What [`Indirection::add`] would move.
    #[must_use]
    pub fn plan_add(&self, target: Target) -> Vec<Move> {
        let mut after = self.clone();
        after.add(target);
        self.moves_to(&after).collect()
    }

    /// What [`Indirection::remove`] would move.
    #[must_use]
    pub fn plan_remove(&self, target: Target) -> Vec<Move> {
        let mut after = self.clone();
        after.remove(target);
        self.moves_to(&after).collect()
    }

    /// Adds a target; returns how many buckets moved to it: none if it is there already, or is [`Target::NONE`].
    pub fn add(&mut self, target: Target) -> usize {
        if self.contains(target) || target == Target::NONE {
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
        // Which flows share a bucket with which says nothing about load, so the first that come are as good as any.
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
    fn a_table_of_a_nics_size() {
        for none in [0, 3, 96, MAX_BUCKETS * 2] {
            assert_eq!(Indirection::of_size(none), None);
        }
        for size in [1, 64, 128, 2048] {
            let mut table = Indirection::of_size(size).unwrap();
            for target in 0..3 {
                table.add(Target(target));
                assert_full_and_even(&table);
            }
            assert_eq!(table.buckets(), size);
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
    fn a_plan_is_what_happens() {
        let mut table = of(5, 0..4);
        let plan = table.plan_add(Target(4));
        assert_eq!(plan.len(), 102);
        assert!(plan.iter().all(|step| step.to == Some(Target(4))));
        let before = table.clone();
        table.add(Target(4));
        assert!(before.moves_to(&table).eq(plan));
        let back = table.plan_remove(Target(4));
        assert!(back.iter().all(|step| step.from == Some(Target(4))));
        assert_eq!(before.moves_to(&before).count(), 0);
        assert_eq!(before.moves_to(&Indirection::new(64)).count(), 0);
    }

    #[test]
    fn the_first_comes_from_nowhere_and_the_last_goes_there() {
        let mut table = Indirection::new(1);
        let plan = table.plan_add(Target(0));
        assert!(plan.len() == 512 && plan.iter().all(|step| step.from.is_none()));
        table.add(Target(0));
        let plan = table.plan_remove(Target(0));
        assert!(plan.len() == 512 && plan.iter().all(|step| step.to.is_none()));
        assert_eq!(table.add(Target::NONE), 0);
    }

    #[test]
    fn one_bucket_moves_by_hand_and_the_shares_know() {
        let mut table = of(4, 0..4);
        let bucket = table.bucket(0xffff_fe07);
        assert_eq!(bucket, 7);
        let from = table.target(bucket).unwrap();
        let to = Target((from.0 + 1) % 4);
        let step = table.set(bucket, to).unwrap();
        assert_eq!((step.bucket, step.from, step.to), (7, Some(from), Some(to)));
        assert_eq!(table.select(7), Some(to));
        assert_eq!(table.set(bucket, to), None, "it is there already");
        assert_eq!(table.set(bucket, Target(9)), None, "not of the set");
        assert_eq!(table.set(512, from), None, "no such bucket");
        let share = |target| table.shares().find(|(t, _)| *t == target).unwrap().1;
        assert_eq!((share(from), share(to)), (127, 129));
        // Comings and goings even it out.
        table.remove(to);
        table.add(to);
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
