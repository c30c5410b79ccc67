//! Chains that were resolved before they are needed.
//!
//! Nearly every buffer is a single descriptor. Such ones are looked up a burst ahead and their lines asked for, so that
//! the memory has answered when their turn comes. They stay on offer all the while: nothing is given back from here, and
//! to forget them costs no more than resolving them again.

use super::MAX_BURST;
use crate::memory::Span;

/// Chains kept at most: those of the burst at hand and of the next.
pub(super) const DEPTH: usize = 2 * MAX_BURST;

/// Bursts after which a ring belongs to the worker that wrote all of them.
const TURNS: u8 = 16;

/// Chains resolved at a time. A processor has room for some tens of lines on their way and may forget what is asked for
/// beyond that, so asking goes in small steps between which earlier frames are dealt with.
pub(super) const STEP: usize = 4;

/// A chain of one descriptor, resolved.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) span: Span,
    /// What goes into its used entry.
    pub(super) id: u16,
}

/// A queue of them, in ring order.
///
/// Several workers may fill one receive ring by turns. What one resolves beyond its own burst is lost on the next: the lines
/// that it asked for are with the wrong processor, and so is this list. So then each resolves only what it needs itself,
/// and keeps that in slots of its own.
pub(super) struct Ahead {
    slots: Box<Slots>,
    /// A word each: halves that are stored one by one and loaded as one make the load wait for all earlier stores.
    first: usize,
    len: usize,
    /// Who used it last.
    by: u16,
    /// Bursts until it is that one's alone.
    turns: u8,
}

/// Aligned, so that the two halves share no line.
#[repr(align(64))]
struct Slots([Ready; DEPTH]);

impl Ahead {
    pub(super) fn new() -> Self {
        let none = Ready {
            span: Span::EMPTY,
            id: 0,
        };
        Self {
            slots: Box::new(Slots([none; DEPTH])),
            first: 0,
            len: 0,
            by: 0,
            turns: 0,
        }
    }

    /// From now on it is this worker's; says how far beyond its burst that one should look.
    #[inline]
    pub(super) fn turn(&mut self, by: u16) -> usize {
        if self.by != by {
            (self.by, self.turns) = (by, TURNS);
        }
        if self.turns == 0 {
            return MAX_BURST;
        }
        self.turns -= 1;
        if self.len == 0 {
            self.first = usize::from(by % 2) * MAX_BURST;
        }
        0
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The one `ahead` of the first.
    #[inline(always)]
    pub(super) fn get(&self, ahead: usize) -> Option<Ready> {
        (ahead < self.len).then(|| self.slots.0[(self.first + ahead) % DEPTH])
    }

    /// Writes the one `ahead` of the first; false if there is no room. It counts after [`set_len`](Self::set_len).
    #[inline(always)]
    pub(super) fn push_at(&mut self, ahead: usize, ready: Ready) -> bool {
        let room = ahead < DEPTH;
        if room {
            self.slots.0[(self.first + ahead) % DEPTH] = ready;
        }
        room
    }

    /// So many are there now.
    #[inline]
    pub(super) fn set_len(&mut self, len: usize) {
        self.len = len.min(DEPTH);
    }

    /// Takes the first `count` away, or all.
    #[inline]
    pub(super) fn skip(&mut self, count: usize) {
        let count = count.min(self.len);
        self.first = (self.first + count) % DEPTH;
        self.len -= count;
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_it_alone_looks_a_burst_further() {
        let mut ahead = Ahead::new();
        for _ in 0..3 {
            assert_eq!(ahead.turn(0), MAX_BURST, "from the first on");
        }
        for _ in 0..TURNS {
            assert_eq!((ahead.turn(1), ahead.first), (0, MAX_BURST));
        }
        assert_eq!(ahead.turn(1), MAX_BURST);
        assert_eq!((ahead.turn(0), ahead.first), (0, 0));
        ahead.set_len(2);
        ahead.skip(1);
        assert_eq!((ahead.turn(1), ahead.first), (0, 1), "what is left stays");
    }
}
