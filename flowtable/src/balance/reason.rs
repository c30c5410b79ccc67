//! What was decided, and why, for programs and for people.

use std::fmt;
use std::time::Duration;

use super::{Item, Node, Worker};

/// What a look found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Plan<'a> {
    /// What moves; no item twice.
    pub moves: &'a [Move],
    /// Items that fill a worker by themselves.
    pub filling: &'a [Filling],
    /// In a word.
    pub outcome: Outcome,
    /// When to look again.
    pub period: Duration,
}

/// An item changes its worker.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Move {
    /// Which.
    pub item: Item,
    /// Who had it.
    pub from: Worker,
    /// Who gets it.
    pub to: Worker,
    /// Why.
    pub reason: Reason,
    /// The largest load of the workers concerned, 1 is a full worker: before any of the moves made for it.
    pub before: f64,
    /// After all of them.
    pub after: f64,
}

impl Move {
    /// The move in a sentence, with the item's name in the operator's terms.
    #[must_use]
    pub fn named<'a>(&'a self, name: &'a dyn fmt::Display) -> impl fmt::Display + 'a {
        Named { of: self, name }
    }
}

struct Named<'a> {
    of: &'a Move,
    name: &'a dyn fmt::Display,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Move {
            from,
            to,
            reason,
            before,
            after,
            ..
        } = self.of;
        write!(
            f,
            "moved {} from worker {} to {}: predicted maximum {before:.2} -> {after:.2}",
            self.name, from.0, to.0
        )?;
        match reason {
            Reason::Even => Ok(()),
            other => write!(f, ", {other}"),
        }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named(&format_args!("item {}", self.item.0)).fmt(f)
    }
}

/// Why an item moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Its worker had the most to do.
    Even,
    /// Its worker has an elephant, which needs the room.
    BesideElephant(Item),
    /// Its worker has a larger elephant, and it is one itself.
    ElephantsApart(Item),
    /// The worker that gets it is on its node, the one that had it was not.
    Home(Node),
    /// The worker that gets it is new.
    WorkerJoins,
    /// Its worker takes nothing any more.
    WorkerLeaves,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Even => f.write_str("the load evens out"),
            Self::BesideElephant(item) => write!(f, "elephant {} needs the room", item.0),
            Self::ElephantsApart(item) => write!(f, "away from elephant {}", item.0),
            Self::Home(node) => write!(f, "it is at home on node {}", node.0),
            Self::WorkerJoins => f.write_str("the worker is new"),
            Self::WorkerLeaves => f.write_str("its worker leaves"),
        }
    }
}

/// An item that fills a worker by itself: no move helps it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Filling {
    /// Which.
    pub item: Item,
    /// Who has it.
    pub worker: Worker,
    /// Its load as part of the worker's capacity.
    pub load: f64,
}

impl fmt::Display for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { item, worker, load } = self;
        write!(
            f,
            "item {} alone takes {load:.2} of worker {} and cannot be split",
            item.0, worker.0
        )
    }
}

/// What came of a look.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Outcome {
    /// Nobody had anything to do, or nobody takes anything.
    Idle,
    /// The loads are even as far as they can be told apart.
    Even,
    /// Items move.
    Moved,
    /// As many items move as may at one look; more would have been worth it.
    OverBudget,
    /// Moves were found, but they gain too little.
    NotWorth {
        /// By how much the predicted maximum would have fallen.
        gain: f64,
        /// By how much it must.
        wanted: f64,
    },
    /// What would help has moved lately, and rests.
    Resting,
    /// Single items are the load; no move makes it more even.
    Unsplittable,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("nothing to do"),
            Self::Even => f.write_str("the load is even"),
            Self::Moved => f.write_str("items move"),
            Self::OverBudget => f.write_str("items move, more at the next look"),
            Self::NotWorth { gain, wanted } => {
                write!(f, "a gain of {gain:.3} is not worth a move, {wanted:.3} is")
            }
            Self::Resting => f.write_str("what would help has just moved"),
            Self::Unsplittable => f.write_str("single items are the load"),
        }
    }
}
