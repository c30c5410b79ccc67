//! Chains that were resolved before they are needed.
//!
//! Nearly every buffer is a single descriptor. Such ones are looked up a burst ahead and their lines asked for, so that
//! the memory has answered when their turn comes. They stay on offer all the while: nothing is given back from here, and
//! to forget them costs no more than resolving them again.

use crate::memory::Span;

/// Chains kept at most: those of the burst at hand and of the next.
pub(super) const DEPTH: usize = 64;

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
pub(super) struct Ahead {
    slots: Box<[Ready; DEPTH]>,
    first: usize,
    len: usize,
}

impl Ahead {
    pub(super) fn new() -> Self {
        let none = Ready {
            span: Span::EMPTY,
            id: 0,
        };
        Self {
            slots: Box::new([none; DEPTH]),
            first: 0,
            len: 0,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The one `ahead` of the first.
    #[inline(always)]
    pub(super) fn get(&self, ahead: usize) -> Option<Ready> {
        (ahead < self.len).then(|| self.slots[(self.first + ahead) % DEPTH])
    }

    /// Writes the one `ahead` of the first; false if there is no room. It counts after [`set_len`](Self::set_len).
    #[inline(always)]
    pub(super) fn push_at(&mut self, ahead: usize, ready: Ready) -> bool {
        let room = ahead < DEPTH;
        if room {
            self.slots[(self.first + ahead) % DEPTH] = ready;
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
