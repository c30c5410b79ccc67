//! Two guests and the switch on one thread: A sends, the switch forwards, B receives, by turns. Only the switch is timed.

use std::time::{Duration, Instant};

use serde::Serialize;
use vswitch_simguest::mover::Mover;
use vswitch_vhost::TxRing;

use super::{Clock, Fabric, Guest, Steps, Worker};
use crate::contestant::{Near, Rings, Setup, between_guests};
use crate::cpu::Placement;
use crate::generator::lane::{Lane, RECEIVE, SEND, checked, lanes, settle};
use crate::generator::{Edge, Load, MAC_A, MAC_B, Timing, Wire, nth};
use crate::{Error, Result};

/// Frames sent in a turn: some bursts of the switch, far fewer than the ring has entries.
const TURN: u16 = 256;
/// How long frames may be stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module's page.
pub struct Single {
    wire: Wire,
    between: Between,
    clock: Clock,
}

/// What moves frames from A to B.
enum Between {
    Switch(Box<(Fabric, TxRing)>),
    Mover(Box<[Mover; 2]>),
}

/// What a frame cost on average in a slice, whoever moved it. Reading the clock is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spent {
    /// Cycles, timed by the turn.
    pub whole: f64,
    /// Cycles to take, to decide and group, to deliver, to complete; timed by the step, in other turns than `whole`.
    pub steps: Option<[f64; 4]>,
    /// Cycles per nanosecond meanwhile.
    pub ghz: f64,
    /// Cycles that reading the clock took: what was left out of `whole`, and of each of the `steps`.
    pub reading: (f64, f64),
    /// Frames timed by the turn, and by the step.
    pub frames: (u64, u64),
}

impl Single {
    /// The switch between two guests. It knows `macs` addresses on each side.
    pub fn switch(rings: Rings, macs: u16, clock: &Clock) -> Result<Self> {
        let (a, b) = (Guest::new(rings)?, Guest::new(rings)?);
        let mut fabric = Fabric::new(vec![a.receive, b.receive], 1)?;
        for number in 0..macs {
            fabric.know(nth(MAC_A, number), 0);
            fabric.know(nth(MAC_B, number), 1);
        }
        let wire = Wire {
            a: a.ends,
            b: b.ends,
            introduce: false,
        };
        Ok(Self {
            wire,
            between: Between::Switch(Box::new((fabric, a.transmit))),
            clock: clock.clone(),
        })
    }

    /// The bare mover in its place: one copy, no switching.
    pub fn mover(rings: Rings, placement: Placement, clock: &Clock) -> Result<Self> {
        let (wire, movers) = between_guests(Setup {
            placement,
            rings,
            jumbo: true,
            near: Near::Guest,
        })?;
        Ok(Self {
            wire,
            between: Between::Mover(Box::new(movers)),
            clock: clock.clone(),
        })
    }

    /// Turns for the time of a slice; every other one is timed by the step. Frames are checked as they arrive.
    pub fn slice(
        &mut self,
        load: &Load,
        timing: Timing,
        window: impl FnMut(Edge),
    ) -> Result<Spent> {
        settle(&mut self.wire)?;
        let clock = &self.clock;
        let mut lanes = lanes(&mut self.wire, load, false)?;
        let lane = lanes.first_mut().ok_or(Error::Held(0))?;
        let spent = match &mut self.between {
            Between::Switch(both) => {
                let (fabric, ring) = &mut **both;
                let mut served = Served {
                    worker: fabric.worker(0),
                    ring,
                    began: Instant::now(),
                    second: 0,
                };
                let spent = turns(lane, timing, clock, &mut served, window)?;
                fabric.checked()?;
                spent
            }
            Between::Mover(movers) => turns(lane, timing, clock, &mut movers[0], window)?,
        };
        checked(&lane.tally())?;
        Ok(spent)
    }
}

/// Moves the frames of a turn.
trait Moves {
    /// A turn begins: what is not to be timed.
    fn get_ready(&mut self) {}
    /// Moves up to some frames; returns how many.
    fn some(&mut self) -> usize;
    /// The same, in steps; by default there are none, and nothing is moved.
    fn in_steps(&mut self, _steps: &mut Steps<'_>) -> Option<usize> {
        None
    }
}

/// A ring and its worker.
struct Served<'a> {
    worker: Worker<'a>,
    ring: &'a mut TxRing,
    began: Instant,
    /// What the daemon's clock would say: addresses in use are noted once a second.
    second: u32,
}

impl Moves for Served<'_> {
    fn get_ready(&mut self) {
        self.second = self.began.elapsed().as_secs() as u32;
    }

    #[inline(always)]
    fn some(&mut self) -> usize {
        self.worker.serve(0, self.ring, self.second, &mut ())
    }

    #[inline(always)]
    fn in_steps(&mut self, steps: &mut Steps<'_>) -> Option<usize> {
        Some(self.worker.serve(0, self.ring, self.second, steps))
    }
}

impl Moves for Mover {
    #[inline(always)]
    fn some(&mut self) -> usize {
        self.run(SEND).into()
    }
}

/// Frames, and the intervals in which their cycles were taken.
#[derive(Clone, Copy, Default)]
struct Timed {
    frames: u64,
    intervals: u64,
}

/// Sends, moves and receives for a window.
fn turns<M: Moves>(
    lane: &mut Lane<'_>,
    timing: Timing,
    clock: &Clock,
    between: &mut M,
    mut window: impl FnMut(Edge),
) -> Result<Spent> {
    let (mut whole, mut by_step) = (Timed::default(), Timed::default());
    let (mut cycles, mut steps) = (0, Steps::new(clock));
    let warm = Instant::now() + Duration::from_millis(timing.warm_ms);
    let mut wall = None;
    let mut number = 0u64;
    loop {
        let now = Instant::now();
        match &wall {
            None if now >= warm => {
                window(Edge::Opens);
                (whole, by_step, cycles) = Default::default();
                steps = Steps::new(clock);
                wall = Some((clock.against_the_wall(), Instant::now()));
            }
            Some((wall, opened)) if (now - *opened).as_millis() >= timing.window_ms.into() => {
                let ghz = wall.ghz();
                window(Edge::IsOver);
                return Ok(spent(clock, (whole, cycles), (by_step, steps.sums), ghz));
            }
            _ => {}
        }
        let mut sent = 0;
        for _ in 0..TURN / SEND {
            sent += usize::from(lane.generator.burst(lane.tx, SEND)?);
        }
        between.get_ready();
        number += 1;
        let mut moved = 0;
        if number.is_multiple_of(2) {
            while moved < sent {
                steps.begin();
                let Some(some) = between.in_steps(&mut steps) else {
                    break;
                };
                by_step.frames += some as u64;
                by_step.intervals += 1;
                moved += progress(now, some)?;
            }
        }
        if moved < sent {
            let before = clock.now();
            let mut some = 0;
            while moved + some < sent {
                some += progress(now, between.some())?;
            }
            cycles += clock.now().wrapping_sub(before);
            whole.frames += some as u64;
            whole.intervals += 1;
        }
        let mut received = 0;
        while received < sent {
            received += progress(now, lane.meter.burst(lane.rx, RECEIVE)?.into())?;
        }
    }
}

/// How much was done; an error if that is nothing for too long.
#[inline(always)]
fn progress(since: Instant, count: usize) -> Result<usize> {
    if count == 0 && since.elapsed() > PATIENCE {
        return Err(Error::Held(PATIENCE.as_secs()));
    }
    Ok(count)
}

/// Means for a frame, reading the clock subtracted.
fn spent(
    clock: &Clock,
    (whole, cycles): (Timed, u64),
    (by_step, sums): (Timed, [u64; 4]),
    ghz: f64,
) -> Spent {
    let per_frame = |timed: Timed, n: u64| n as f64 / timed.frames.max(1) as f64;
    let reading = |timed: Timed| per_frame(timed, timed.intervals * clock.cost());
    let reading = (reading(whole), reading(by_step));
    let steps = sums.map(|sum| per_frame(by_step, sum) - reading.1);
    Spent {
        whole: per_frame(whole, cycles) - reading.0,
        steps: (by_step.frames > 0).then_some(steps),
        ghz,
        reading,
        frames: (whole.frames, by_step.frames),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        warm_ms: 1,
        window_ms: 50,
    };

    #[test]
    fn frames_come_through_both_layouts_and_every_step_takes_some_time() {
        let clock = Clock::new().unwrap();
        for (rings, load) in [
            (Rings::Split, Load::new(64, 1)),
            (Rings::Split, Load::new(1500, 100).macs(100).touch()),
            (Rings::Packed, Load::new(1500, 1)),
            (Rings::Packed, Load::new(64, 100).macs(100)),
        ] {
            let mut single = Single::switch(rings, load.macs, &clock).unwrap();
            let mut edges = Vec::new();
            let spent = single.slice(&load, TIMING, |e| edges.push(e)).unwrap();
            assert_eq!(edges, [Edge::Opens, Edge::IsOver]);
            assert!(spent.frames.0 >= TURN.into() && spent.frames.1 >= TURN.into());
            let [take, decide, deliver, _] = spent.steps.unwrap();
            let all = [spent.whole, take, decide, deliver];
            assert!(all.iter().all(|cycles| *cycles > 0.0), "{spent:?}");
            // Again on the same rings, where they stand.
            single.slice(&load, TIMING, |_| {}).unwrap();
        }
    }

    #[test]
    fn unknown_addresses_are_noticed() {
        let clock = Clock::new().unwrap();
        let mut single = Single::switch(Rings::Split, 1, &clock).unwrap();
        let load = Load::new(64, 1).macs(2);
        let error = single.slice(&load, TIMING, |_| {}).unwrap_err();
        assert!(matches!(error, Error::Astray { .. }), "{error}");
    }

    #[test]
    fn the_mover_has_no_steps() {
        let clock = Clock::new().unwrap();
        let placement = Placement {
            generator: 0,
            worker: 1,
        };
        let mut single = Single::mover(Rings::Split, placement, &clock).unwrap();
        let spent = single.slice(&Load::new(64, 1), TIMING, |_| {}).unwrap();
        assert!(spent.steps.is_none() && spent.whole > 0.0 && spent.frames.1 == 0);
    }

    #[test]
    fn reading_the_clock_is_subtracted_once_an_interval() {
        let clock = Clock::new().unwrap();
        let (cost, frames) = (clock.cost(), 64);
        let timed = |intervals| Timed { frames, intervals };
        let sums = [2 * cost + 640, 2 * cost + 64, 2 * cost, 2 * cost + 6];
        let spent = spent(&clock, (timed(1), cost + 6400), (timed(2), sums), 2.5);
        assert!((spent.whole - 100.0).abs() < 1e-9);
        let [take, decide, deliver, complete] = spent.steps.unwrap();
        assert!((take - 10.0).abs() + (decide - 1.0).abs() + deliver.abs() < 1e-9);
        assert!((complete - 6.0 / 64.0).abs() < 1e-9);
    }
}
