//! Making a plan, step by step.

use super::{
    Alarm, Balancer, Item, ItemLoad, LONGEST_REST, Move, Node, Outcome, Reason, Side, Worker,
    WorkerRoom,
};

/// Steps into which a full worker is divided for sorting.
const SORTED_STEPS: f64 = (1 << 24) as f64;

/// How much longer than counting anew it takes until that may be done again, when it was in vain.
const VAIN: u32 = 4;

/// What an item that has no load counts for where silent items are dealt out: 1,000 of them are 1 % of a worker.
const SILENT: f64 = 1e-5;

/// Part of what is worth a move otherwise that a move gains at least, however little room there is.
const LEAST: f64 = 0.1;

/// Moves that are made for one purpose, and stand or fall together.
struct Segment {
    /// Where they start in the list.
    mark: usize,
    /// The largest level when they began.
    top: f64,
}

/// What levels a plan is after.
#[derive(Clone, Copy)]
struct Limits {
    /// Down to where the fullest gives.
    goal: f64,
    /// Up to where others take.
    ceiling: f64,
    /// By how much the maximum must fall.
    wanted: f64,
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
        self.sort(items);
        self.evacuate(items);
        let outcome = self.even_out(items, changed);
        if self.moves.is_empty() {
            self.go_home(items);
        }
        let imbalance = outcome.1;
        self.remember(changed);
        let outcome = self.pace(outcome.0, imbalance, changed);
        self.alarm = match self.alarm {
            Alarm::Counting if self.moves.is_empty() => {
                self.period = self.settings.urgent * VAIN;
                Alarm::Vain
            }
            Alarm::Counting => {
                self.period = self.settings.shortest;
                Alarm::Ready
            }
            Alarm::Vain => {
                self.period = self.period.max(self.settings.shortest);
                Alarm::Ready
            }
            Alarm::Ready => Alarm::Ready,
        };
        outcome
    }

    /// Sets when to look again.
    fn pace(&mut self, outcome: Outcome, imbalance: f64, changed: bool) -> Outcome {
        match (self.moves.is_empty(), outcome) {
            (true, Outcome::Resting) => outcome,
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

    fn sort(&mut self, items: &[ItemLoad]) {
        self.sorted.clear();
        for (number, item) in items.iter().enumerate() {
            let share = self.histories[number].share;
            if share == 0.0 || usize::from(item.worker.0) >= self.sides.len() {
                continue;
            }
            let steps = (share * SORTED_STEPS) as u32;
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
            let share = self.histories[number].share;
            let silent = share == 0.0 || usize::from(item.worker.0) >= self.sides.len();
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
        let mut last = None;
        while let Some(fullest) = self.fullest() {
            let wanted = self.wanted(segment.top);
            let ceiling = self.ceiling(goal);
            // One that is relieved gives down to the goal, though others are filled beyond.
            let sticks = |(from, _): &(usize, usize)| {
                ceiling > goal && self.sides[*from].is_in() && self.sides[*from].level() > goal
            };
            let from = last.filter(sticks).map_or(fullest, |(from, _)| from);
            let enough = if from == fullest { ceiling } else { goal };
            if self.sides[from].level() <= enough + wanted / 2.0 {
                if from == fullest {
                    break;
                }
                last = None;
                continue;
            }
            if self.moves.len() - forced >= budget {
                outcome = Outcome::OverBudget;
                break;
            }
            // To as few as have room: each of them waits until the giver has completed what it has.
            let again = last.filter(|(giver, _)| *giver == from && ceiling > goal);
            let limits = Limits {
                goal,
                ceiling,
                wanted,
            };
            let fitting = Limits {
                wanted: f64::INFINITY,
                ..limits
            };
            let again = again.and_then(|(_, to)| self.find(from, to, items, fitting, &mut resting));
            let found = again.or_else(|| {
                let to = self.roomiest(None)?;
                self.find(from, to, items, limits, &mut resting)
            });
            if let Some((place, to)) = found {
                self.make(place, from, to, items);
                last = Some((from, to));
                continue;
            }
            last = None;
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

    /// How far a worker may be filled. Where work stands, each that takes some has to wait for it, so they are few; they
    /// are evened out when nothing stands any more.
    fn ceiling(&self, goal: f64) -> f64 {
        match self.alarm {
            Alarm::Counting => goal.max(f64::midpoint(goal, 1.0)),
            _ => goal,
        }
    }

    /// By how much a maximum must fall.
    fn wanted(&self, top: f64) -> f64 {
        let near = ((1.0 - top) / self.settings.near).clamp(LEAST, 1.0);
        (self.settings.worth * top * near).max(self.settings.above_noise * self.noise)
    }

    /// The place in the sorted items of what the worker gives away, and to whom.
    fn find(
        &mut self,
        from: usize,
        to: usize,
        items: &[ItemLoad],
        limits: Limits,
        resting: &mut bool,
    ) -> Option<(usize, usize)> {
        if from == to {
            return None;
        }
        let Limits {
            goal,
            ceiling,
            wanted,
        } = limits;
        let giver = self.sides[from];
        let taker = self.sides[to];
        let excess = giver.load - goal * giver.capacity;
        let room = ceiling * taker.capacity - taker.load;
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
        let near =
            near.filter(|near| *near != from && self.sides[*near].level_with(load) <= ceiling);
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
