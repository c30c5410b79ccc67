//! Which target a packet goes to now, so that no flow is reordered while the table changes.
//!
//! [`Indirection`] says where buckets belong. A [`View`] says where they are: it belongs to one worker and one port, takes
//! over what a new table wants bucket by bucket, and leaves a target only when that has completed the last packet the
//! bucket was given there. Until then packets keep going where they went: nothing is stashed, nothing is dropped.
//!
//! ```text
//! per packet:   select(hash) -> target          a load, a mask and a compare
//!               ... the packet is queued there ...
//!               sent(selection, position)       a store: the bucket's tail
//! move pending: select asks the caller whether `from` has completed the tail
//!               yes                             move                           counted: completed
//!               no, but 10 ms without a packet  move                           counted: idle
//!               no                              `from` again
//! ```
//!
//! Between selecting and `sent`, packets are on their way: then the caller must not say that the target has completed them,
//! which it decides from the tail, that does not know of them. They count as packets from when they are selected, so that
//! nothing moves by idleness either.
//!
//! A pin (see [`pins`]) is a bucket of a single flow and moves by the same rule. A view meets a new pin with the
//! tail of the flow's bucket, which covers the flow's own; from then on it keeps the flow's.
//!
//! A move by idleness is the weaker one: a target that has not completed a packet after 10 ms may complete it after all,
//! behind packets of the same flow elsewhere. It is there for targets that do not tell, such as a guest that asks for no
//! notifications, and counted for itself.
//!
//! Size: 8 bytes per bucket, and with pins 32 KiB more. Selecting never allocates or fails; [`View::adopt`] is one pass over
//! the buckets, [`View::lost`] and [`View::gather`] over buckets and pins; they allocate only for target numbers
//! above those that the table was made for.

use crate::clock::{Micros, TICK};
use crate::hash::FlowHash;
use crate::indirection::{BUCKETS_PER_TARGET, Indirection, Target};
use crate::pins::{self, Pin, Pins};

/// How long a bucket must be without a packet to move although nothing says that the last one was completed.
pub const IDLE_MICROS: u64 = 10_000;
/// So many ticks apart are two stamps that are surely as far apart as that.
const IDLE_TICKS: u16 = (IDLE_MICROS.div_ceil(TICK) + 1) as u16;

/// Where in a target's queue a packet was put: what the caller counts there, modulo 2^16.
///
/// Only the caller looks into it. As a tail can be much older than the queue is long, "completed" must be decided as "not
/// among those now under way", which may at most be 2^15.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Position(pub u16);

/// Where a packet goes, and which tail is to be noted when it is queued there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selection {
    /// Where.
    pub target: Target,
    /// Bucket, or behind the buckets the slot of a pin.
    place: u32,
}

/// How many moves were made, by what allowed them. A bucket's first target is no move.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moves {
    /// The old target had completed the last packet.
    pub completed: u64,
    /// There was no packet for 10 ms.
    pub idle: u64,
    /// The old target was lost.
    pub forced: u64,
    /// Packets sent to the old target because it had not completed the one before.
    pub waited: u64,
}

/// A tail: the last packet of a bucket or pin.
#[derive(Clone, Copy, Default, Debug)]
struct Tail {
    position: Position,
    tick: u16,
}

/// Where a bucket is, and where it belongs.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// [`Target::NONE`] before the first packet.
    current: Target,
    wanted: Target,
    tail: Tail,
}

/// Where a pinned flow is. Where it belongs says the pin.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    current: Target,
    /// Of the pin that this is about; the slot may have another by now.
    generation: u16,
    tail: Tail,
}

impl Pinned {
    const EMPTY: Self = Self {
        current: Target::NONE,
        generation: 0,
        tail: Tail {
            position: Position(0),
            tick: 0,
        },
    };
}

/// A table was to be adopted that has another number of buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OtherSize;

impl std::fmt::Display for OtherSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the table has another number of buckets than the one before: start a new view")
    }
}

impl std::error::Error for OtherSize {}

/// One worker's view of how one port is steered. A clone takes the tails along, to another worker that takes over.
#[derive(Clone, Debug)]
pub struct View {
    /// A power of two.
    buckets: Box<[Bucket]>,
    /// By slot; empty if this view has no part in pins.
    pinned: Box<[Pinned]>,
    /// Targets of the table, a bit each.
    targets: Vec<u64>,
    moves: Moves,
}

impl View {
    /// Follows this table, and no pins.
    #[must_use]
    pub fn new(table: &Indirection) -> Self {
        let bucket = Bucket {
            current: Target::NONE,
            wanted: Target::NONE,
            tail: Tail::default(),
        };
        let mut view = Self {
            buckets: vec![bucket; table.buckets()].into_boxed_slice(),
            pinned: Box::default(),
            // In words of 64.
            targets: Vec::with_capacity(table.buckets() / BUCKETS_PER_TARGET / 64 + 1),
            moves: Moves::default(),
        };
        view.follow(table);
        view
    }

    /// Follows this table, and pins.
    #[must_use]
    pub fn with_pins(table: &Indirection) -> Self {
        Self {
            pinned: vec![Pinned::EMPTY; pins::CAPACITY].into_boxed_slice(),
            ..Self::new(table)
        }
    }

    /// How many buckets there are, a power of two: a hash's low bits name its bucket.
    #[inline]
    #[must_use]
    pub const fn buckets(&self) -> usize {
        self.buckets.len()
    }

    #[inline]
    fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    /// Where a packet with this hash goes now; `None` only if there is no target at all.
    ///
    /// `completed(target, position)` is asked at most once, and only if a move waits: whether `target` is done with the
    /// packet that was given this position, and with all before it. It must say no while a packet of the same flow, or
    /// unpinned of the same bucket, is selected for and not yet queued.
    #[inline]
    pub fn select(
        &mut self,
        hash: u32,
        now: Micros,
        completed: impl FnOnce(Target, Position) -> bool,
    ) -> Option<Selection> {
        let place = self.bucket(hash);
        let bucket = self.buckets.get_mut(place)?;
        if bucket.current != bucket.wanted {
            bucket.turn(now, completed, &mut self.moves);
        }
        bucket.tail.tick = now.tick() as u16;
        (bucket.current != Target::NONE).then_some(Selection {
            target: bucket.current,
            place: place as u32,
        })
    }

    /// The same for a port with pins: a pin, if there is one, before the bucket.
    #[inline]
    pub fn select_pinned(
        &mut self,
        hash: FlowHash,
        pins: &Pins,
        now: Micros,
        completed: impl FnOnce(Target, Position) -> bool,
    ) -> Option<Selection> {
        self.select_by(hash, pins.lookup(hash, now), pins, now, completed)
    }

    /// The same for who has looked the pin up already. With one, `completed` need not mind other flows of the bucket.
    #[inline]
    pub fn select_by(
        &mut self,
        hash: FlowHash,
        pin: Option<Pin>,
        pins: &Pins,
        now: Micros,
        completed: impl FnOnce(Target, Position) -> bool,
    ) -> Option<Selection> {
        match pin {
            Some(pin) => self.follow_pin(hash, &pin, pins, now, completed),
            None => self.select(hash.low(), now, completed),
        }
    }

    /// Where a flow with a pin goes.
    fn follow_pin(
        &mut self,
        hash: FlowHash,
        pin: &Pin,
        pins: &Pins,
        now: Micros,
        completed: impl FnOnce(Target, Position) -> bool,
    ) -> Option<Selection> {
        let bucket = self.bucket(hash.low());
        let at = *self.buckets.get(bucket)?;
        // Without a place to remember pinned flows there is only the bucket.
        let Some(place) = self.pinned.get_mut(usize::from(pin.slot())) else {
            return self.select(hash.low(), now, completed);
        };
        if place.generation != pin.generation() {
            *place = Pinned {
                current: at.current,
                generation: pin.generation(),
                tail: at.tail,
            };
        }
        let bound = contains(&self.targets, pin.target());
        let wanted = match (bound, at.current) {
            (true, _) => pin.target(),
            (false, Target::NONE) => at.wanted,
            (false, current) => current,
        };
        let redundant = wanted == at.wanted && (at.current == wanted || at.current == Target::NONE);
        if place.current == wanted && redundant {
            // The pin says what the bucket says. Once the flow has no packet under way the bucket's tail need not know of it.
            let over = completed(place.current, place.tail.position) || place.tail.idle(now);
            if over && pins.remove(pin) {
                return self.select(hash.low(), now, |_, _| false);
            }
        } else if place.current != wanted {
            let place = &mut *place;
            turn(
                &mut place.current,
                wanted,
                place.tail,
                now,
                completed,
                &mut self.moves,
            );
        }
        place.tail.tick = now.tick() as u16;
        (place.current != Target::NONE).then_some(Selection {
            target: place.current,
            place: self.buckets.len() as u32 + u32::from(pin.slot()),
        })
    }

    /// The packet selected for was queued, and got this position there. Not to be called for one that was dropped.
    #[inline]
    pub fn sent(&mut self, selection: Selection, position: Position, now: Micros) {
        let tail = Tail {
            position,
            tick: now.tick() as u16,
        };
        let place = selection.place as usize;
        if let Some(bucket) = self.buckets.get_mut(place) {
            bucket.tail = tail;
        } else if let Some(pinned) = self.pinned.get_mut(place - self.buckets.len()) {
            pinned.tail = tail;
        }
    }

    /// From now on this table is wanted; buckets move as order allows it. Targets that are not in it any more still
    /// complete what they have: for others see [`View::lost`]. Returns how many buckets are to move.
    ///
    /// # Errors
    ///
    /// If the table has another size: then nothing changes.
    pub fn adopt(&mut self, table: &Indirection) -> Result<usize, OtherSize> {
        if table.buckets() != self.buckets.len() {
            return Err(OtherSize);
        }
        self.follow(table);
        Ok(self.pending())
    }

    fn follow(&mut self, table: &Indirection) {
        for (number, bucket) in self.buckets.iter_mut().enumerate() {
            bucket.wanted = table.target(number).unwrap_or(Target::NONE);
        }
        self.targets.clear();
        for (target, _) in table.shares() {
            let (word, bit) = (usize::from(target.0) / 64, target.0 % 64);
            if word >= self.targets.len() {
                self.targets.resize(word + 1, 0);
            }
            self.targets[word] |= 1 << bit;
        }
    }

    /// Packets went to this target alone for a while, without this view, and the last of them got this position there: that
    /// is where all flows are, and from where they move as order allows it. With none, nothing is on its way anywhere.
    pub fn gather(&mut self, at: Option<(Target, Position)>, now: Micros) {
        let (current, position) = at.unwrap_or((Target::NONE, Position(0)));
        let tail = Tail {
            position,
            tick: now.tick() as u16,
        };
        for bucket in &mut self.buckets {
            (bucket.current, bucket.tail) = (current, tail);
        }
        for place in &mut self.pinned {
            (place.current, place.tail) = (current, tail);
        }
    }

    /// This target will complete nothing any more: what is there leaves at once. Adopt a table without it first.
    pub fn lost(&mut self, target: Target) {
        let buckets = self.buckets.iter_mut();
        for bucket in buckets.filter(|bucket| bucket.current == target) {
            bucket.current = bucket.wanted;
            self.moves.forced += 1;
        }
        let pinned = self.pinned.iter_mut();
        for place in pinned.filter(|place| place.current == target) {
            // Of the right generation still, so that it does not begin with a tail that is not its own.
            place.current = Target::NONE;
            self.moves.forced += 1;
        }
    }

    /// Buckets that are not where they belong; those without a packet so far do not count.
    #[must_use]
    pub fn pending(&self) -> usize {
        let moving =
            |bucket: &&Bucket| bucket.current != bucket.wanted && bucket.current != Target::NONE;
        self.buckets.iter().filter(moving).count()
    }

    /// What was moved since the view began.
    #[must_use]
    pub const fn moves(&self) -> Moves {
        self.moves
    }
}

impl Bucket {
    #[cold]
    fn turn(
        &mut self,
        now: Micros,
        completed: impl FnOnce(Target, Position) -> bool,
        moves: &mut Moves,
    ) {
        turn(
            &mut self.current,
            self.wanted,
            self.tail,
            now,
            completed,
            moves,
        );
    }
}

impl Tail {
    /// Whether there was no packet for long enough. One that is 67 s old can look young: then the move waits 10 ms more.
    fn idle(self, now: Micros) -> bool {
        (now.tick() as u16).wrapping_sub(self.tick) >= IDLE_TICKS
    }
}

/// Moves from `current` to `wanted` if order allows it now.
fn turn(
    current: &mut Target,
    wanted: Target,
    tail: Tail,
    now: Micros,
    completed: impl FnOnce(Target, Position) -> bool,
    moves: &mut Moves,
) {
    if *current == Target::NONE {
        *current = wanted;
    } else if completed(*current, tail.position) {
        *current = wanted;
        moves.completed += 1;
    } else if tail.idle(now) {
        *current = wanted;
        moves.idle += 1;
    } else {
        moves.waited += 1;
    }
}

#[inline]
fn contains(targets: &[u64], target: Target) -> bool {
    let word = targets.get(usize::from(target.0) / 64);
    word.is_some_and(|word| word >> (target.0 % 64) & 1 == 1)
}

#[cfg(test)]
mod tests;
