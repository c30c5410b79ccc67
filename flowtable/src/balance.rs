//! Which item is handled by which worker, by load: the rebalancer.
//!
//! An *item* is what moves as a whole: a bucket of a table, or a queue that has one owner. At every look the caller says
//! what load each item had since the last one, and gets a list of moves; making them, and keeping order meanwhile, is the
//! caller's. Nothing is split here: an item that fills a worker by itself is reported as [`Filling`].
//!
//! # How it decides
//!
//! An item's load is known from the last 16 looks, weighted by their length: chance in counting packets, 1 % of a worker
//! over 10 ms, would hide what matters near full. Of one that changed by more than 2 % of a worker, a tenth of itself and
//! four standard deviations only the last look counts; of all if the load of all changed by a tenth.
//!
//! The most loaded worker gives its largest item that fits to the worker with most room, until nobody is above the mean.
//! A worker from which nothing can move is set aside, and the others are balanced without it. What was found counts only
//! if the predicted maximum falls by 2 % of itself (less where it leaves less room than 10 %, in proportion, because a little
//! less load is then much less delay), and by twice the noise, which is how far the estimates may be wrong: the change of
//! workers' loads from look to look against each other, by how long they were counted. Then:
//!
//! - A moved item rests for 8 looks; twice as long each time it goes back to where it came from, at most
//!   [`LONGEST_REST`].
//! - At most a sixteenth of the items move at a look, or two that change places, except when the set of workers changes.
//! - An *elephant*, above 30 % of its worker at two looks running, stays, and what shares its worker moves. Of two
//!   elephants on one worker the lesser may move.
//! - When the loads are even, items go *home*: to a worker on the node that they are near, if that makes neither
//!   worker fuller than the fuller one was; or two change places, if both come home by that.
//! - The time to the next look halves, down to 10 ms, while a large imbalance is being corrected, and doubles, up to
//!   1 s, when nothing moved. A change of the set of workers starts it at 10 ms again.
//! - Work that stands does not wait for that ([`Balancer::press`]): loads are counted anew for 500 us, and then looked at.
//!   What is moved then goes to few, who are filled half way from the mean to full: each of them may have to wait until
//!   the giver has completed what it has. The next look, after 10 ms, evens them out. If nothing helped, work that stands
//!   is not heard for 2 ms.
//!
//! # Limits
//!
//! 65,536 items; memory is taken once, at construction. A look costs a sort of the items that have load, and a pass over
//! a worker's items for each move. No clock, no randomness: equal calls give equal answers.

use std::time::Duration;

mod estimate;
mod home;
mod plan;
mod reason;

pub use reason::{Filling, Move, Outcome, Plan, Reason};

/// The most items: their numbers have 16 bits.
pub const MAX_ITEMS: usize = 65_536;
/// The longest that an item rests, in looks.
pub const LONGEST_REST: u16 = 1024;

/// What moves as a whole, by number from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Item(pub u16);

/// Who handles items, by number from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Worker(pub u16);

/// Where memory is near.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Node(pub u8);

/// An item at a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItemLoad {
    /// Who handles it.
    pub worker: Worker,
    /// Work it gave since the last look, in the unit of [`WorkerRoom::capacity`]: cycles, or packets and bytes weighted.
    /// Work offered, not work done: of an overloaded worker the two differ.
    pub load: u64,
    /// Where it would rather be handled.
    pub node: Option<Node>,
}

/// A worker at a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerRoom {
    /// What it could have done since the last look.
    pub capacity: u64,
    /// Whether it takes items. One that does not loses those it has.
    pub takes: bool,
    /// Where it runs.
    pub node: Node,
}

/// The constants. [`Settings::default`] is what the module's page says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Least fall of the predicted maximum that is worth a move, as part of it.
    pub worth: f64,
    /// Where the maximum leaves less room than this, less is worth a move, in proportion: near full, a little less load is
    /// much less delay.
    pub near: f64,
    /// Multiple of the noise that it must fall by as well.
    pub above_noise: f64,
    /// Looks that a moved item rests.
    pub rest: u16,
    /// One in so many items may move at a look.
    pub budget: usize,
    /// Part of a worker above which an item is an elephant.
    pub elephant: f64,
    /// Part of a worker above which an item is said to fill it.
    pub full: f64,
    /// The imbalance is large when the maximum exceeds the mean by this factor.
    pub large: f64,
    /// Looks that what is known of an item's load goes back, if they are equally long; 0 for the last one only.
    pub memory: u16,
    /// Change of an item's load, as part of a worker, after which what was known of it does not count.
    pub change: f64,
    /// For how long loads are counted when work stands.
    pub urgent: Duration,
    /// Shortest time between looks.
    pub shortest: Duration,
    /// Longest time between looks.
    pub longest: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            worth: 0.02,
            near: 0.1,
            above_noise: 2.0,
            rest: 8,
            budget: 16,
            elephant: 0.3,
            full: 0.95,
            large: 1.25,
            memory: 16,
            change: 0.02,
            urgent: Duration::from_micros(500),
            shortest: Duration::from_millis(10),
            longest: Duration::from_secs(1),
        }
    }
}

/// What is remembered of an item.
#[derive(Clone, Copy, Default, Debug)]
struct History {
    /// Part of a worker that it takes, as far as is known.
    share: f64,
    /// Capacity over which that was counted; 0 if it never was.
    weight: f64,
    /// The worker it left at its last move.
    left: Option<Worker>,
    /// Looks for which it stays where it is.
    rest: u16,
    /// How long it rested after the last move.
    rested: u16,
    /// Looks running that it was heavy, up to 2.
    heavy: u8,
}

impl History {
    fn is_elephant(&self) -> bool {
        self.heavy >= 2
    }
}

/// A worker while a plan is made. Loads are parts of the reference capacity, that of the largest worker.
#[derive(Clone, Copy, Default, Debug)]
struct Side {
    load: f64,
    capacity: f64,
    takes: bool,
    /// New in the set at this look.
    joined: bool,
    aside: bool,
    node: Option<Node>,
    /// Its part of the sorted items.
    items: (usize, usize),
    /// By how much the load is another than was thought.
    drift: f64,
    /// Sum of its items' loads, each by the number of looks like this one that it is known from.
    doubt: f64,
}

impl Side {
    /// Load by capacity: 1 is full.
    fn level(&self) -> f64 {
        self.load / self.capacity
    }

    fn level_with(&self, load: f64) -> f64 {
        (self.load + load) / self.capacity
    }

    fn is_in(&self) -> bool {
        self.takes && !self.aside
    }
}

/// What is done about work that stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Alarm {
    /// Nothing yet.
    Ready,
    /// Loads are counted anew.
    Counting,
    /// That found nothing that helps.
    Vain,
}

/// Decides which items move, look by look.
#[derive(Debug)]
pub struct Balancer {
    settings: Settings,
    period: Duration,
    alarm: Alarm,
    /// Mean deviation of a worker's load at a look, times the root of the capacity.
    scatter: f64,
    noise: f64,
    histories: Box<[History]>,
    /// Who took items at the last look; empty before the first.
    took: Vec<bool>,
    sides: Vec<Side>,
    /// Items with load, by worker and then from the largest: worker, inverted share, item, in one number.
    sorted: Vec<u64>,
    moves: Vec<Move>,
    filling: Vec<Filling>,
}

impl Balancer {
    /// For up to so many items ([`MAX_ITEMS`] at most) and workers.
    #[must_use]
    pub fn new(items: usize, workers: usize, settings: Settings) -> Self {
        let items = items.min(MAX_ITEMS);
        Self {
            settings,
            period: settings.shortest,
            alarm: Alarm::Ready,
            scatter: 0.0,
            noise: 0.0,
            histories: vec![History::default(); items].into_boxed_slice(),
            took: Vec::with_capacity(workers),
            sides: Vec::with_capacity(workers),
            sorted: Vec::with_capacity(items),
            moves: Vec::with_capacity(items),
            filling: Vec::with_capacity(items),
        }
    }

    /// When to look again, counted from the last look.
    #[must_use]
    pub const fn period(&self) -> Duration {
        self.period
    }

    /// Something is known to be wrong, or other than it was: looks again after the shortest period. What was in vain before
    /// need not be now.
    pub const fn hurry(&mut self) {
        self.period = self.settings.shortest;
        if matches!(self.alarm, Alarm::Vain) {
            self.alarm = Alarm::Ready;
        }
    }

    /// What is known of loads is of another time: as if this were new, but for what rests.
    pub fn forget(&mut self) {
        self.alarm = Alarm::Ready;
        self.histories
            .iter_mut()
            .for_each(|history| history.weight = 0.0);
    }

    /// Work stands, so what is known of loads is probably old. If true, loads are to be counted anew from now on, and the
    /// look after [`period`](Self::period) is about them. False while that is under way, and until the next look if it
    /// found nothing that helps.
    #[must_use]
    pub fn press(&mut self) -> bool {
        let ready = self.alarm == Alarm::Ready;
        if ready {
            self.alarm = Alarm::Counting;
            self.period = self.settings.urgent;
        }
        ready
    }

    /// The noise, as part of the largest worker's capacity.
    #[must_use]
    pub const fn noise(&self) -> f64 {
        self.noise
    }

    /// For how many looks more this item stays where it is.
    #[must_use]
    pub fn rests(&self, item: Item) -> u16 {
        self.histories
            .get(usize::from(item.0))
            .map_or(0, |history| history.rest)
    }

    /// What moves. Items and workers are numbered by their place; those beyond what the balancer was made for are not
    /// looked at. The moves are taken as made.
    pub fn plan(&mut self, items: &[ItemLoad], workers: &[WorkerRoom]) -> Plan<'_> {
        let items = &items[..items.len().min(self.histories.len())];
        let workers = &workers[..workers.len().min(self.sides.capacity())];
        let outcome = self.decide(items, workers);
        Plan {
            moves: &self.moves,
            filling: &self.filling,
            outcome,
            period: self.period,
        }
    }
}

#[cfg(test)]
mod tests;
