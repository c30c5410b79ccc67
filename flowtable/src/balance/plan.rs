//! Making a plan, step by step.

use super::{
    Balancer, Filling, Item, ItemLoad, LONGEST_REST, Move, Node, Outcome, Reason, Side, Worker,
    WorkerRoom,
};

/// Weight of the last look in the noise.
const NOISE_WEIGHT: f64 = 0.25;
/// Steps into which a full worker is divided for sorting.
const SORTED_STEPS: f64 = (1 << 24) as f64;

/// What an item that has no load counts for where silent items are dealt out: 1,000 of them are 1 % of a worker.
const SILENT: f64 = 1e-5;

/// Moves that are made for one purpose, and stand or fall together.
struct Segment {
    /// Where they start in the list.
    mark: usize,
    /// The largest level when they began.
    top: f64,
}

impl Balancer {
    pub(super) fn decide(&mut self, items: &[ItemLoad], workers: &[WorkerRoom]) -> Outcome {
        self.moves.clear();
        self.filling.clear();
        let reference = workers
            .iter()
            .filter(|worker| worker.takes)
            .map(|worker| worker.capacity)
            .max()
            .unwrap_or(0) as f64;
        if reference == 0.0 {
            return self.nothing(Outcome::Idle);
        }
        let changed = self.enter(workers, reference);
        if changed {
            self.hurry();
        }
        self.weigh(items, reference, changed);
        self.sort(items, reference);
        self.evacuate(items);
        let outcome = self.even_out(items, changed);
        if self.moves.is_empty() {
            self.go_home(items);
        }
        let imbalance = outcome.1;
        self.remember(changed);
        match (self.moves.is_empty(), outcome.0) {
            (true, Outcome::Resting) => outcome.0,
            (true, found) if changed => found,
            (true, found) => self.nothing(found),
            (false, found) => {
                if imbalance > self.settings.large {
                    self.period = (self.period / 2).max(self.settings.shortest);
                }
                match found {
                    Outcome::OverBudget => found,
                    _ => Outcome::Moved,
                }
            }
        }
    }

    fn nothing(&mut self, outcome: Outcome) -> Outcome {
        self.period = (self.period * 2).min(self.settings.longest);
        outcome
    }

    /// Takes the workers in; says whether others take items than at the last look.
    fn enter(&mut self, workers: &[WorkerRoom], reference: f64) -> bool {
        let first = self.took.is_empty();
        let mut changed = !first && self.took.len() != workers.len();
        self.sides.clear();
        for (number, worker) in workers.iter().enumerate() {
            let took = self.took.get(number).copied().unwrap_or(false);
            let takes = worker.takes && worker.capacity > 0;
            changed |= !first && took != takes;
            self.sides.push(Side {
                capacity: worker.capacity as f64 / reference,
                takes,
                joined: takes && !took && !first,
                node: Some(worker.node),
                ..Side::default()
            });
        }
        self.took.clear();
        self.took.extend(self.sides.iter().map(|side| side.takes));
        changed
    }

    /// Adds loads up by worker; finds elephants, those that fill a worker, and the noise.
    fn weigh(&mut self, items: &[ItemLoad], reference: f64, changed: bool) {
        let mut known = false;
        for (number, (item, history)) in items.iter().zip(&mut self.histories).enumerate() {
            let share = item.load as f64 / reference;
            known |= history.share > 0.0;
            if let Some(side) = self.sides.get_mut(usize::from(item.worker.0)) {
                side.load += share;
                side.drift += share - history.share;
                let part = share / side.capacity;
                let heavy = part > self.settings.elephant;
                history.heavy = if heavy { 2.min(history.heavy + 1) } else { 0 };
                if part >= self.settings.full {
                    self.filling.push(Filling {
                        item: Item(number as u16),
                        worker: item.worker,
                        load: part,
                    });
                }
            }
            history.share = share;
            if !changed {
                history.rest = history.rest.saturating_sub(1);
            }
        }
        let count = self.sides.iter().filter(|side| side.takes).count() as f64;
        if !known || changed || count == 0.0 {
            return;
        }
        // That all loads rise together makes no worker's place less certain.
        let takers = || self.sides.iter().filter(|side| side.takes);
        let common = takers().map(|side| side.drift).sum::<f64>() / count;
        let apart = takers()
            .map(|side| (side.drift - common).abs())
            .sum::<f64>()
            / count;
        self.noise += NOISE_WEIGHT * (apart - self.noise);
    }

    fn sort(&mut self, items: &[ItemLoad], reference: f64) {
        self.sorted.clear();
        for (number, item) in items.iter().enumerate() {
            if item.load == 0 || usize::from(item.worker.0) >= self.sides.len() {
                continue;
            }
            let steps = (item.load as f64 / reference * SORTED_STEPS) as u32;
            let key =
                u64::from(item.worker.0) << 48 | u64::from(u32::MAX - steps) << 16 | number as u64;
            self.sorted.push(key);
        }
        self.sorted.sort_unstable();
        let mut at = 0;
        for (number, side) in self.sides.iter_mut().enumerate() {
            let start = at;
            while self
                .sorted
                .get(at)
                .is_some_and(|key| (key >> 48) as usize == number)
            {
                at += 1;
            }
            side.items = (start, at);
        }
    }

    /// Items of workers that take none go to whoever has most room, those with load first.
    fn evacuate(&mut self, items: &[ItemLoad]) {
        let gone = |sides: &[Side], worker: Worker| {
            !sides
                .get(usize::from(worker.0))
                .is_some_and(|side| side.takes)
        };
        if !items.iter().any(|item| gone(&self.sides, item.worker)) {
            return;
        }
        let before = self.highest(|side| side.takes);
        for place in 0..self.sorted.len() {
            let item = Item(self.sorted[place] as u16);
            if gone(&self.sides, items[usize::from(item.0)].worker) {
                self.send_off(item, items, before);
            }
        }
        for (number, item) in items.iter().enumerate() {
            let silent = item.load == 0 || usize::from(item.worker.0) >= self.sides.len();
            if silent && gone(&self.sides, item.worker) {
                self.send_off(Item(number as u16), items, before);
            }
        }
        let after = self.highest(|side| side.takes);
        self.moves.iter_mut().for_each(|made| made.after = after);
    }

    fn send_off(&mut self, item: Item, items: &[ItemLoad], before: f64) {
        let ItemLoad { worker, node, .. } = items[usize::from(item.0)];
        let load = self.histories[usize::from(item.0)].share.max(SILENT);
        let Some(to) = self.roomiest(None) else {
            return;
        };
        let near = self.roomiest(node).unwrap_or(to);
        // The near one, unless that makes it the fullest of all.
        let to = match self.sides[near].level_with(load) <= before {
            true => near,
            false => to,
        };
        if let Some(from) = self.sides.get_mut(usize::from(worker.0)) {
            from.load -= load;
        }
        self.sides[to].load += load;
        self.moves.push(Move {
            item,
            from: worker,
            to: Worker(to as u16),
            reason: Reason::WorkerLeaves,
            before,
            after: before,
        });
    }

    /// Moves items until nobody is above the mean, or nothing helps. Returns what came of it, and the maximum by the mean
    /// as it was before.
    fn even_out(&mut self, items: &[ItemLoad], changed: bool) -> (Outcome, f64) {
        let forced = self.moves.len();
        let budget = match changed {
            true => items.len(),
            false => (items.len() / self.settings.budget).max(1),
        };
        let (Some(mut goal), top) = (self.mean(), self.highest(Side::is_in)) else {
            return (Outcome::Idle, 1.0);
        };
        let imbalance = if goal > 0.0 { top / goal } else { 1.0 };
        let mut outcome = if top > 0.0 {
            Outcome::Even
        } else {
            Outcome::Idle
        };
        let mut segment = Segment { mark: forced, top };
        let mut resting = false;
        while let Some(from) = self.fullest() {
            let wanted = self.wanted(segment.top);
            if self.sides[from].level() <= goal + wanted / 2.0 {
                break;
            }
            if self.moves.len() - forced >= budget {
                outcome = Outcome::OverBudget;
                break;
            }
            if let Some((place, to)) = self.find(from, items, goal, wanted, &mut resting) {
                self.make(place, from, to, items);
                continue;
            }
            outcome = Outcome::Unsplittable;
            if let Some(small) = self.close(&segment, forced) {
                outcome = small;
            }
            self.sides[from].aside = true;
            let Some(mean) = self.mean() else { break };
            goal = mean;
            segment = Segment {
                mark: self.moves.len(),
                top: self.highest(Side::is_in),
            };
        }
        if let Some(small) = self.close(&segment, forced) {
            outcome = small;
        }
        if resting && matches!(outcome, Outcome::Unsplittable | Outcome::NotWorth { .. }) {
            outcome = Outcome::Resting;
        }
        (outcome, imbalance)
    }

    /// By how much a maximum must fall.
    fn wanted(&self, top: f64) -> f64 {
        (self.settings.worth * top).max(self.settings.above_noise * self.noise)
    }

    /// The place in the sorted items of what the worker gives away, and to whom.
    fn find(
        &mut self,
        from: usize,
        items: &[ItemLoad],
        goal: f64,
        wanted: f64,
        resting: &mut bool,
    ) -> Option<(usize, usize)> {
        let to = self.roomiest(None).filter(|to| *to != from)?;
        let giver = self.sides[from];
        let taker = self.sides[to];
        let excess = giver.load - goal * giver.capacity;
        let room = goal * taker.capacity - taker.load;
        let elephant = self.elephant(from);
        let mut found = None;
        let mut least = giver.level() - wanted;
        for place in giver.items.0..giver.items.1 {
            let Some(item) = self.waiting(place) else {
                continue;
            };
            let history = &self.histories[usize::from(item.0)];
            if elephant == Some(item) {
                continue;
            }
            if history.rest > 0 {
                *resting = true;
                continue;
            }
            let load = history.share;
            if load <= excess.min(room) {
                found = Some(place);
                break;
            }
            // None that fits has come yet: the one that leaves the lower maximum.
            let level = giver.level_with(-load).max(taker.level_with(load));
            if level < least {
                least = level;
                found = Some(place);
            }
        }
        let place = found?;
        let item = Item(self.sorted[place] as u16);
        let load = self.histories[usize::from(item.0)].share;
        let near = items[usize::from(item.0)].node;
        let near = near.filter(|_| taker.node != near).and(self.roomiest(near));
        let near = near.filter(|near| *near != from && self.sides[*near].level_with(load) <= goal);
        Some((place, near.unwrap_or(to)))
    }

    /// The item at this place, unless it has moved.
    pub(super) fn waiting(&self, place: usize) -> Option<Item> {
        let key = self.sorted[place];
        (key != u64::MAX).then_some(Item(key as u16))
    }

    /// The largest elephant of a worker, which stays. If it is there, it is first of those not moved.
    fn elephant(&self, worker: usize) -> Option<Item> {
        let (start, end) = self.sides[worker].items;
        let first = (start..end).find_map(|place| self.waiting(place))?;
        self.histories[usize::from(first.0)]
            .is_elephant()
            .then_some(first)
    }

    fn make(&mut self, place: usize, from: usize, to: usize, items: &[ItemLoad]) {
        let item = Item(self.sorted[place] as u16);
        let history = &self.histories[usize::from(item.0)];
        let load = history.share;
        let reason = match self.elephant(from) {
            _ if self.sides[to].joined => Reason::WorkerJoins,
            Some(larger) if history.is_elephant() => Reason::ElephantsApart(larger),
            Some(elephant) => Reason::BesideElephant(elephant),
            None => Reason::Even,
        };
        self.sorted[place] = u64::MAX;
        if place == self.sides[from].items.0 {
            self.sides[from].items.0 += 1;
        }
        self.sides[from].load -= load;
        self.sides[to].load += load;
        self.moves.push(Move {
            item,
            from: items[usize::from(item.0)].worker,
            to: Worker(to as u16),
            reason,
            before: 0.0,
            after: 0.0,
        });
    }

    /// Lets the segment's moves stand if the largest level falls enough; otherwise takes them back and says so.
    fn close(&mut self, segment: &Segment, forced: usize) -> Option<Outcome> {
        if self.moves.len() == segment.mark {
            return None;
        }
        let after = self.highest(Side::is_in);
        let gain = segment.top - after;
        let wanted = self.wanted(segment.top);
        if gain >= wanted {
            for made in &mut self.moves[segment.mark..] {
                made.before = segment.top;
                made.after = after;
            }
            return None;
        }
        for made in &self.moves[segment.mark.max(forced)..] {
            let load = self.histories[usize::from(made.item.0)].share;
            self.sides[usize::from(made.from.0)].load += load;
            self.sides[usize::from(made.to.0)].load -= load;
        }
        self.moves.truncate(segment.mark);
        Some(Outcome::NotWorth { gain, wanted })
    }

    /// Moved items rest from now on.
    fn remember(&mut self, changed: bool) {
        for made in &self.moves {
            let history = &mut self.histories[usize::from(made.item.0)];
            let back = history.left == Some(made.to) && !changed;
            history.rested = match back {
                true => history
                    .rested
                    .saturating_mul(2)
                    .clamp(self.settings.rest, LONGEST_REST),
                false => self.settings.rest,
            };
            history.rest = history.rested;
            history.left = Some(made.from);
        }
    }

    /// Load by capacity of all that are in.
    fn mean(&self) -> Option<f64> {
        let sum = |of: fn(&Side) -> f64| {
            let sides = self.sides.iter().filter(|side| side.is_in());
            sides.map(of).sum::<f64>()
        };
        let capacity = sum(|side| side.capacity);
        (capacity > 0.0).then(|| sum(|side| side.load) / capacity)
    }

    fn highest(&self, which: impl Fn(&Side) -> bool) -> f64 {
        let sides = self.sides.iter().filter(|side| which(side));
        sides.map(Side::level).fold(0.0, f64::max)
    }

    fn fullest(&self) -> Option<usize> {
        let sides = self.sides.iter().enumerate();
        let sides = sides.filter(|(_, side)| side.is_in());
        let best = sides.reduce(|best, next| match next.1.level() > best.1.level() {
            true => next,
            false => best,
        });
        best.map(|(number, _)| number)
    }

    /// Whoever is least loaded, of a node or of all.
    fn roomiest(&self, node: Option<Node>) -> Option<usize> {
        let sides = self.sides.iter().enumerate();
        let sides = sides.filter(|(_, side)| side.is_in() && (node.is_none() || side.node == node));
        let best = sides.reduce(|best, next| match next.1.level() < best.1.level() {
            true => next,
            false => best,
        });
        best.map(|(number, _)| number)
    }
}
