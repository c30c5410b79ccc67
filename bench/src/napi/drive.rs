//! One slice: the load, the guest, and what both have seen.

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use vswitch_simguest::traffic::Tally;

use super::frames::{Kind, Order, Sender, Stamp};
use super::guest::{Costs, Done, Napi};
use super::load::{Arrivals, Traffic};
use crate::generator::{Edge, Load, MAC_A, MAC_B, Wire};
use crate::histogram::Histogram;
use crate::{Error, Result};

/// If the thread did not run for so long, what it sees for a while says nothing about the switch.
const STALL: u64 = 50_000;
const AFTER_STALL: u64 = 1_000_000;
/// Frames sent in one turn at most.
const MOST: u32 = 32;
/// A closed loop in which nothing happens for so long is broken.
const SILENCE: u64 = 100_000_000;
/// How long what is under way may take to arrive, nanoseconds.
const REST: u64 = 3_000_000;

/// Lengths of a slice's parts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spans {
    /// Before anything counts, milliseconds.
    pub warm_ms: u64,
    /// A window: delays of a disturbed one do not count.
    pub window_ms: u64,
    /// Windows.
    pub windows: u32,
}

/// What a slice gave. Times of the guest's processor are those it was made to take.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seen {
    /// Length of all windows together, seconds.
    pub seconds: f64,
    /// Frames that were due.
    pub offered: u64,
    /// Of these, those that found no room.
    pub refused: u64,
    /// Frames that the guest took.
    pub received: u64,
    /// Numbers that the guest found missing.
    pub lost: u64,
    /// The guest's processor, nanoseconds.
    pub busy_ns: u64,
    /// Interrupts of the guest.
    pub interrupts: u64,
    /// Windows that count for times, and all.
    pub windows: (u32, u32),
    /// Nanoseconds from sending a frame until the guest took it, by kind.
    #[serde(serialize_with = "delays")]
    pub delays: [Histogram; 2],
    /// Nanoseconds from sending a request until the answer came.
    #[serde(skip)]
    pub answers: Histogram,
}

fn delays<S: Serializer>(delays: &[Histogram; 2], serializer: S) -> Result<S::Ok, S::Error> {
    let of = |histogram: &Histogram| histogram.buckets().collect::<Vec<_>>();
    serializer.collect_seq(delays.iter().map(of))
}

impl Seen {
    /// The guest's processor, nanoseconds a frame.
    pub fn guest_ns(&self) -> f64 {
        self.busy_ns as f64 / self.received.max(1) as f64
    }

    /// Interrupts a frame.
    pub fn interrupts_per_frame(&self) -> f64 {
        self.interrupts as f64 / self.received.max(1) as f64
    }

    /// Delays of one kind.
    pub fn delay(&self, kind: Kind) -> &Histogram {
        &self.delays[kind as usize]
    }

    /// Delays of requests if there are any, else of bulk.
    pub fn waited_for(&self) -> &Histogram {
        match self.delay(Kind::Request) {
            requests if requests.count() > 0 => requests,
            _ => self.delay(Kind::Bulk),
        }
    }
}

impl Traffic {
    /// Offers this to a guest with these costs. `window` is told of every window, and afterwards asked whether it was
    /// undisturbed.
    pub fn slice(
        self,
        wire: &mut Wire,
        costs: Costs,
        spans: Spans,
        seed: u64,
        mut window: impl FnMut(Edge) -> bool,
    ) -> Result<Seen> {
        Load::new(64, 1).both().prepare(wire)?;
        let sender = Sender::new(&mut wire.a.tx, MAC_B, MAC_A)?;
        let answerer = Sender::new(&mut wire.b.tx, MAC_A, MAC_B)?;
        let Wire { a, b, .. } = wire;
        let mut run = Run {
            a,
            sender,
            guest: Napi::new(b, answerer, costs),
            arrivals: Arrivals::new(self, seed),
            clock: Instant::now(),
            closed: matches!(self, Self::Closed { .. }),
            answered: Order::default(),
            last: 0,
            moved: 0,
            tainted: 0,
            window: Seen::default(),
        };
        run.span(spans.warm_ms)?;
        let mut seen = Seen::default();
        for _ in 0..spans.windows {
            run.window = Seen::default();
            window(Edge::Opens);
            let start = (run.guest.done, run.guest.order);
            let lasted = run.span(spans.window_ms)?;
            let undisturbed = window(Edge::IsOver);
            seen.add(&run.take(start, lasted), undisturbed);
        }
        run.rest()?;
        let (there, back) = (run.guest.order, run.answered);
        if there.late + there.alien + back.late + back.alien > 0 {
            return Err(Error::Content(Tally {
                frames: there.frames + back.frames,
                late: there.late + back.late,
                alien: there.alien + back.alien,
                ..Tally::default()
            }));
        }
        if seen.received == 0 {
            return Err(Error::Silent(1));
        }
        Ok(seen)
    }
}

impl Seen {
    fn add(&mut self, window: &Self, undisturbed: bool) {
        self.seconds += window.seconds;
        self.offered += window.offered;
        self.refused += window.refused;
        self.received += window.received;
        self.lost += window.lost;
        self.busy_ns += window.busy_ns;
        self.interrupts += window.interrupts;
        self.windows.1 += 1;
        if undisturbed {
            self.windows.0 += 1;
            for (all, of_window) in self.delays.iter_mut().zip(&window.delays) {
                all.merge(of_window);
            }
            self.answers.merge(&window.answers);
        }
    }
}

/// Both guests at work.
struct Run<'a> {
    a: &'a mut crate::generator::Ends,
    sender: Sender,
    guest: Napi<'a>,
    arrivals: Arrivals,
    clock: Instant,
    closed: bool,
    answered: Order,
    /// When the last turn was, when anything last moved, and until when times do not count.
    last: u64,
    moved: u64,
    tainted: u64,
    window: Seen,
}

impl Run<'_> {
    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// Turns for a time; returns how long it was.
    fn span(&mut self, ms: u64) -> Result<Duration> {
        let start = self.now();
        // Nothing fell due while nobody looked.
        self.arrivals.skip(start - self.last);
        (self.last, self.moved, self.tainted) = (start, start, start + AFTER_STALL / 4);
        let end = start + ms * 1_000_000;
        loop {
            let now = self.now();
            if now >= end {
                self.last = now;
                return Ok(Duration::from_nanos(now - start));
            }
            self.turn(now, true)?;
        }
    }

    /// Sends what is due, lets the guest work, takes answers.
    #[inline]
    fn turn(&mut self, now: u64, send: bool) -> Result<()> {
        if now - self.last > STALL {
            self.tainted = now + AFTER_STALL;
        }
        self.last = now;
        for _ in 0..if send { MOST } else { 0 } {
            let Some((kind, _)) = self.arrivals.take(now) else {
                break;
            };
            self.window.offered += 1;
            let sent = self.now();
            if !self.sender.send(&mut self.a.tx, kind, sent)? {
                self.window.refused += 1;
                break;
            }
        }
        let (window, counts, moved) = (&mut self.window, now >= self.tainted, &mut self.moved);
        self.guest.step(now, |stamp: Stamp, at| {
            *moved = now;
            if counts {
                window.delays[stamp.kind as usize].record(at.saturating_sub(stamp.sent));
            }
        })?;
        let (answered, arrivals) = (&mut self.answered, &mut self.arrivals);
        let clock = self.clock;
        self.a.rx.recv_burst(64, |frame| {
            let stamp = Stamp::of(frame);
            answered.note(stamp);
            if let Some(stamp) = stamp {
                if counts {
                    let now = clock.elapsed().as_nanos() as u64;
                    window.answers.record(now.saturating_sub(stamp.sent));
                }
                arrivals.again();
            }
        })?;
        if self.closed && now - self.moved > SILENCE {
            return Err(Error::Silent(0));
        }
        Ok(())
    }

    /// What happened in a window that began like this.
    fn take(&mut self, (done, order): (Done, Order), lasted: Duration) -> Seen {
        let now = self.guest.done;
        let mut seen = std::mem::take(&mut self.window);
        seen.seconds = lasted.as_secs_f64();
        seen.received = now.frames - done.frames;
        seen.busy_ns = now.busy_ns - done.busy_ns;
        seen.interrupts = now.interrupts - done.interrupts;
        seen.refused += now.refused - done.refused;
        seen.lost = self.guest.order.missing - order.missing;
        seen
    }

    /// Lets everything arrive that is under way.
    fn rest(&mut self) -> Result<()> {
        let end = self.now() + REST;
        while self.now() < end {
            self.turn(self.now(), false)?;
            self.a.tx.reclaim()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;
    use crate::contestant::{Near, Rings, Setup, between_guests};
    use crate::cpu::Placement;

    const COSTS: Costs = Costs {
        interrupt_ns: 5_000,
        frame_ns: 300,
    };
    const SPANS: Spans = Spans {
        warm_ms: 2,
        window_ms: 20,
        windows: 2,
    };

    /// What a load gives if a bare mover calls the guest whenever it asks.
    fn seen(traffic: Traffic) -> Seen {
        let setup = Setup {
            placement: Placement {
                generator: 0,
                worker: 1,
            },
            rings: Rings::Split,
            jumbo: false,
            near: Near::Guest,
        };
        let (mut wire, [mut there, mut back]) = between_guests(setup).unwrap();
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Relaxed) {
                    if there.run(64) + back.run(64) == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let seen = traffic.slice(&mut wire, COSTS, SPANS, 1, |_| true);
            end.store(true, Relaxed);
            seen.unwrap()
        })
    }

    #[test]
    fn time_is_that_of_interrupts_and_frames() {
        let seen = seen(Traffic::Poisson { rate: 2e4 });
        assert!(seen.received > 0 && seen.interrupts > 0);
        assert!(seen.interrupts <= seen.received, "{seen:?}");
        let time = seen.interrupts * COSTS.interrupt_ns + seen.received * COSTS.frame_ns;
        assert_eq!(seen.busy_ns, time);
        assert_eq!((seen.windows, seen.refused), ((2, 2), 0));
        assert!(seen.guest_ns() > 300.0 && seen.interrupts_per_frame() <= 1.0);
    }

    #[test]
    fn a_guest_that_has_enough_to_do_is_not_interrupted() {
        let seen = seen(Traffic::Flood);
        assert!(seen.interrupts_per_frame() < 0.05, "{seen:?}");
    }

    #[test]
    fn answers_come_back_to_who_asked() {
        let seen = seen(Traffic::Closed { connections: 4 });
        assert!(seen.received > 0 && seen.delay(Kind::Bulk).count() == 0);
        // A request and its answer take longer than the interrupt and the frame, unless the guest was awake.
        assert!(seen.answers.max() > COSTS.interrupt_ns);
    }
}
