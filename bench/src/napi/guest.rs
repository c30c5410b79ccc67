//! The guest that is interrupted: Linux's habits, with costs.
//!
//! `drivers/net/virtio_net.c` and `drivers/virtio/virtio_ring.c`: the interrupt's handler stops asking for interrupts (with
//! event indices by leaving the index where it is, behind the ring) and starts polling; a poll takes up to 64 frames; one
//! that finds fewer asks again (the index at the next frame), looks again, and goes on polling if something has come.

use std::collections::VecDeque;

use serde::Serialize;

use super::frames::{Order, Sender, Stamp};
use crate::Result;
use crate::generator::Ends;

/// Frames of one poll: Linux's NAPI_POLL_WEIGHT.
const BUDGET: u16 = 64;

/// What things cost the guest's processor, nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Costs {
    /// An interrupt: leaving the guest or being woken, entering it, the handler, scheduling the poll.
    pub interrupt_ns: u64,
    /// A frame: the driver and the stack.
    pub frame_ns: u64,
}

/// What it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Waits for a call, with interrupts on.
    Asleep,
    /// Handles an interrupt or frames until then, and polls afterwards.
    Busy { until: u64 },
    /// The same, and asks for interrupts afterwards.
    Last { until: u64 },
}

/// What it has done.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Done {
    /// Its processor's time, nanoseconds.
    pub(super) busy_ns: u64,
    /// Interrupts.
    pub(super) interrupts: u64,
    /// Frames taken.
    pub(super) frames: u64,
    /// Answers that found no room.
    pub(super) refused: u64,
}

/// The guest.
pub(super) struct Napi<'a> {
    ends: &'a mut Ends,
    costs: Costs,
    state: State,
    sender: Sender,
    /// When each is to be sent, and the time of the request it answers.
    answers: VecDeque<(u64, Stamp)>,
    pub(super) order: Order,
    pub(super) done: Done,
}

impl<'a> Napi<'a> {
    /// Asleep or nearly so: it polls once first.
    pub(super) fn new(ends: &'a mut Ends, sender: Sender, costs: Costs) -> Self {
        Self {
            ends,
            costs,
            state: State::Last { until: 0 },
            sender,
            answers: VecDeque::with_capacity(1024),
            order: Order::default(),
            done: Done::default(),
        }
    }

    /// Does what is to be done by `now`. Each frame is shown with the time at which it was taken.
    #[inline]
    pub(super) fn step(&mut self, now: u64, each: impl FnMut(Stamp, u64)) -> Result<()> {
        while let Some((at, stamp)) = self.answers.front().copied() {
            if at > now {
                break;
            }
            self.answers.pop_front();
            if !self
                .sender
                .send(&mut self.ends.tx, stamp.kind, stamp.sent)?
            {
                self.done.refused += 1;
            }
        }
        match self.state {
            State::Asleep => {
                if self.interrupted() {
                    self.ends.rx.disarm();
                    self.state = State::Busy {
                        until: now + self.costs.interrupt_ns,
                    };
                }
            }
            State::Busy { until } if until <= now => self.poll(now, each)?,
            State::Last { until } if until <= now => {
                // What was called meanwhile interrupts it, although it is awake.
                let called = self.interrupted();
                if self.ends.rx.arm()? {
                    self.ends.rx.disarm();
                    self.poll(now, each)?;
                } else {
                    self.state = State::Asleep;
                }
                if called {
                    self.delay();
                }
            }
            State::Busy { .. } | State::Last { .. } => {}
        }
        Ok(())
    }

    /// Whether it was called; that costs.
    fn interrupted(&mut self) -> bool {
        if self.ends.rx.notifier().take_calls() == 0 {
            return false;
        }
        self.done.interrupts += 1;
        self.done.busy_ns += self.costs.interrupt_ns;
        true
    }

    /// An interrupt comes on top of what it does.
    fn delay(&mut self) {
        if let State::Busy { until } | State::Last { until } = &mut self.state {
            *until += self.costs.interrupt_ns;
        }
    }

    fn poll(&mut self, now: u64, mut each: impl FnMut(Stamp, u64)) -> Result<()> {
        let (frame_ns, order) = (self.costs.frame_ns, &mut self.order);
        let (answers, mut at) = (&mut self.answers, now);
        let taken = self.ends.rx.recv_burst(BUDGET, |frame| {
            let stamp = Stamp::of(frame);
            order.note(stamp);
            if let Some(stamp) = stamp {
                each(stamp, at);
                if stamp.kind == super::frames::Kind::Request {
                    answers.push_back((at + frame_ns, stamp));
                }
            }
            at += frame_ns;
        })?;
        self.done.frames += u64::from(taken);
        self.done.busy_ns += at - now;
        self.state = if taken == BUDGET {
            State::Busy { until: at }
        } else {
            State::Last { until: at }
        };
        Ok(())
    }
}
