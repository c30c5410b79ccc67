//! What the steward decided lately, and why.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::super::QueueKey;

/// Decisions that are kept.
pub const KEPT: usize = 256;
/// What does not change anything is noted at most once in so long a time.
const REMARK_AGAIN: Duration = Duration::from_secs(60);

/// What was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A queue moved.
    Move {
        /// Which.
        queue: QueueKey,
        /// From this worker.
        from: usize,
        /// To that.
        to: usize,
    },
    /// A worker was put to use.
    Grow(usize),
    /// A worker was taken out of use.
    Shrink(usize),
    /// All workers are in use, and that is not enough.
    Crowded,
    /// A queue fills its worker by itself.
    Filling(QueueKey),
    /// A NIC's receive queue gets so many buckets of flows from others of the same NIC.
    Buckets {
        /// Which.
        queue: QueueKey,
        /// How many.
        count: u16,
    },
    /// A queue's owner is helped by this worker.
    Share(QueueKey, usize),
    /// A queue's owner does without its helper.
    Alone(QueueKey),
    /// The operator said where a queue stays.
    Pin(QueueKey, usize),
    /// The operator left a queue to the steward again.
    Release(QueueKey),
    /// The operator asked for a look that changed nothing.
    Nothing,
}

impl What {
    /// It changes nothing, so it may come again and again.
    fn is_remark(self) -> bool {
        matches!(self, What::Crowded | What::Filling(_))
    }
}

/// A decision.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// When.
    pub at: SystemTime,
    /// What.
    pub what: What,
    /// Why, in words.
    pub reason: String,
}

/// The last [`KEPT`] decisions, the oldest first. Who reads them does not wait for what is being decided.
#[derive(Debug, Default)]
pub struct Trace {
    decisions: Mutex<VecDeque<Decision>>,
}

impl Trace {
    /// Notes a decision; the oldest makes room for it. A remark is dropped if it was made a moment ago.
    pub fn note(&self, at: SystemTime, what: What, reason: impl Into<String>) {
        let mut decisions = self.decisions.lock();
        let lately = |d: &&Decision| at.duration_since(d.at).unwrap_or_default() < REMARK_AGAIN;
        let mut recent = decisions.iter().rev().take_while(lately);
        if what.is_remark() && recent.any(|d| d.what == what) {
            return;
        }
        if decisions.len() >= KEPT {
            decisions.pop_front();
        }
        decisions.push_back(Decision {
            at,
            what,
            reason: reason.into(),
        });
    }

    /// All of them, the oldest first.
    pub fn decisions(&self) -> Vec<Decision> {
        self.decisions.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let trace = Trace::default();
        for n in 0..KEPT + 10 {
            trace.note(SystemTime::UNIX_EPOCH, What::Grow(n), "");
        }
        let kept = trace.decisions();
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[0].what, What::Grow(10));
    }

    #[test]
    fn remarks_are_not_repeated_at_once() {
        let (trace, start) = (Trace::default(), SystemTime::UNIX_EPOCH);
        let after = |s| start + Duration::from_secs(s);
        for s in 0..150 {
            trace.note(after(s), What::Crowded, "");
        }
        trace.note(after(150), What::Shrink(0), "");
        trace.note(after(151), What::Shrink(0), "");
        let kept = trace.decisions();
        let crowded = kept.iter().filter(|d| d.what == What::Crowded).count();
        assert_eq!((crowded, kept.len()), (3, 5));
    }
}
