//! A NIC's queue while flows come to it from another queue of the same device.
//!
//! What arrived for them before is still in the other queue, and must be forwarded first. So the queue is *held*, unpolled,
//! before the device's table changes, until the other one is known to be *drained* of what it held then, or until too much
//! time has passed.

use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::forward::BURST;

/// How long a queue is held at most: its owner looks at the clock by itself.
pub(super) const HOLD: Duration = Duration::from_micros(200);

/// What a queue's owner remembers of it. Nothing is asked of most queues most of the time.
#[derive(Default)]
pub(super) struct Gate {
    held: Option<Instant>,
    drain: Option<Drain>,
}

/// Somebody waits for what a queue holds to be forwarded.
struct Drain {
    told: SyncSender<()>,
    /// Frames that it can hold, less those that were taken since.
    left: usize,
}

impl Gate {
    /// Leaves the queue alone from now on, until the moment that is returned or [`release`](Self::release).
    pub(super) fn hold(&mut self, now: Instant) -> Instant {
        *self.held.insert(now + HOLD)
    }

    /// Looks at it again.
    pub(super) fn release(&mut self) {
        self.held = None;
    }

    /// Tells when the frames that are in the queue now, of `depth` at most, have been forwarded.
    pub(super) fn drain(&mut self, depth: usize, told: SyncSender<()>) {
        self.drain = Some(Drain { told, left: depth });
    }

    /// It is held, or somebody waits for it: the worker must not sleep for long.
    pub(super) fn is_pending(&self) -> bool {
        self.held.is_some() || self.drain.is_some()
    }

    /// Whether the queue may be polled at this time.
    #[inline(always)]
    pub(super) fn is_open(&mut self, now: Instant) -> bool {
        self.held.is_none() || self.opens(now)
    }

    #[cold]
    fn opens(&mut self, now: Instant) -> bool {
        self.held.take_if(|until| now >= *until);
        self.held.is_none()
    }

    /// So many frames were taken and forwarded. Less than a burst was all there was.
    #[inline(always)]
    pub(super) fn polled(&mut self, frames: usize) {
        if self.drain.is_some() {
            self.drained(frames);
        }
    }

    #[cold]
    fn drained(&mut self, frames: usize) {
        if let Some(drain) = &mut self.drain {
            drain.left = drain.left.saturating_sub(frames);
            if frames < BURST || drain.left == 0 {
                // Who waited may have given up.
                let _ = drain.told.try_send(());
                self.drain = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{TryRecvError, sync_channel};

    #[test]
    fn held_for_as_long_as_it_may_be() {
        let mut gate = Gate::default();
        let t = Instant::now();
        assert!(gate.is_open(t) && !gate.is_pending());
        gate.hold(t);
        assert!(!gate.is_open(t) && gate.is_pending());
        gate.release();
        assert!(gate.is_open(t) && !gate.is_pending());
        gate.hold(t);
        assert!(!gate.is_open(t + HOLD / 2));
        assert!(gate.is_open(t + HOLD), "nobody came back");
        assert!(gate.is_open(t), "and it stays open");
    }

    #[test]
    fn drained_when_empty_or_when_all_it_can_hold_was_taken() {
        for (polls, wanted) in [
            (vec![BURST - 1], true),
            (vec![0], true),
            (vec![BURST; 3], false),
            (vec![BURST; 4], true),
            (vec![BURST, 3], true),
        ] {
            let mut gate = Gate::default();
            let (told, hears) = sync_channel(1);
            gate.drain(4 * BURST, told);
            for frames in &polls {
                gate.polled(*frames);
            }
            assert_eq!(hears.try_recv().is_ok(), wanted, "{polls:?}");
            assert_eq!(gate.is_pending(), !wanted);
        }
    }

    #[test]
    fn a_queue_that_goes_tells_nothing() {
        let mut gate = Gate::default();
        let (told, hears) = sync_channel(1);
        gate.drain(1024, told);
        drop(gate);
        assert_eq!(hears.try_recv(), Err(TryRecvError::Disconnected));
    }
}
