//! Offering frames at a rate: for finding the highest rate without loss, and how long frames take below
//! it.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::lane::{self, Lane, RECEIVE, checked, lanes, wind_down};
use super::{Edge, Load, Timing, Wire};
use crate::histogram::Histogram;
use crate::{Error, Result};

/// About what is sent at once, in seconds of the rate: at ten million frames a second ten frames.
const GRAIN: f64 = 1e-6;
/// Frames sent at once at most.
const MOST: u16 = 64;
/// A generator that did not run for so long does not make up for it: what would have been due is not
/// offered. A receive ring holds more than falls due in this time.
const STALL: Duration = Duration::from_micros(20);

/// What was offered in a window, and what came of it; all directions together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Paced {
    /// Frames that were due.
    pub offered: u64,
    /// Of these, those that found the transmit ring full: the contestant does not take them. They are
    /// lost.
    pub refused: u64,
    /// Those that arrived, however late.
    pub received: u64,
    /// Frames that fell due while the generator did not run, and were not offered: not counted above. If
    /// they are more than a few, the slice says nothing.
    pub slipped: u64,
    /// Longest time between two turns of the generator, seconds.
    pub longest_stall: f64,
    /// The window, seconds.
    pub seconds: f64,
}

impl Paced {
    /// Adds another window.
    pub fn add(&mut self, other: &Self) {
        self.offered += other.offered;
        self.refused += other.refused;
        self.received += other.received;
        self.slipped += other.slipped;
        self.longest_stall = self.longest_stall.max(other.longest_stall);
        self.seconds += other.seconds;
    }

    /// Frames offered that did not arrive.
    pub fn lost(&self) -> u64 {
        self.offered - self.received
    }

    /// The part of the frames offered that did not arrive.
    pub fn loss(&self) -> f64 {
        if self.offered == 0 {
            return 0.0;
        }
        self.lost() as f64 / self.offered as f64
    }

    /// Frames offered per second.
    pub fn offered_rate(&self) -> f64 {
        self.offered as f64 / self.seconds
    }
}

impl Load {
    /// Offers `rate` frames a second in each direction, evenly, in bursts of about a microsecond's
    /// worth. With `latency`, every frame of the window carries the time at which it was sent, and what
    /// it took until the guest had it is noted there, in nanoseconds (modulo 2^32).
    ///
    /// The window starts with empty rings after the warm-up, and ends when all that was sent in it has
    /// been received or is lost for certain, so that every frame is accounted for.
    pub fn paced(
        &self,
        wire: &mut Wire,
        rate: f64,
        timing: Timing,
        latency: Option<&mut Histogram>,
        mut window: impl FnMut(Edge),
    ) -> Result<Paced> {
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Error::Usage(format!("{rate} is no rate")));
        }
        self.prepare(wire)?;
        let mut lanes = lanes(wire, self, latency.is_some())?;
        let clock = Instant::now();
        let mut warm = latency.is_some().then(Histogram::default);
        let time = Duration::from_millis(timing.warm_ms);
        offer(&mut lanes, rate, time, clock, &mut warm.as_mut())?;
        arrive(&mut lanes, clock, &mut warm.as_mut())?;

        let before = Lane::total(&lanes).frames;
        let mut latency = latency;
        window(Edge::Opens);
        let time = Duration::from_millis(timing.window_ms);
        let mut paced = offer(&mut lanes, rate, time, clock, &mut latency)?;
        window(Edge::IsOver);
        arrive(&mut lanes, clock, &mut latency)?;
        let after = Lane::total(&lanes);
        checked(&after)?;
        if after.frames == 0 {
            return Err(Error::Silent(0));
        }
        paced.received = after.frames - before;
        Ok(paced)
    }
}

/// Sends what falls due for a time, and receives meanwhile.
fn offer(
    lanes: &mut [Lane<'_>],
    rate: f64,
    time: Duration,
    clock: Instant,
    latency: &mut Option<&mut Histogram>,
) -> Result<Paced> {
    let directions = lanes.len() as u64;
    let burst = (rate * GRAIN).clamp(1.0, MOST.into()) as u64;
    // More falls due in no turn that is not a stall.
    let most = (rate * STALL.as_secs_f64()) as u64 + u64::from(MOST);
    let mut paced = Paced::default();
    let (start, mut last) = (Instant::now(), Duration::ZERO);
    // Of each direction: frames that had their turn, in whatever way.
    let mut done = 0;
    loop {
        let now = start.elapsed();
        paced.longest_stall = paced.longest_stall.max((now - last).as_secs_f64());
        last = now;
        let due = (now.as_secs_f64() * rate) as u64;
        let over = now >= time;
        if due - done >= burst || over {
            if due - done > most {
                let slipped = due - done - burst;
                paced.slipped += slipped * directions;
                done += slipped;
            }
            let stamp = clock.elapsed().as_nanos() as u32;
            for lane in &mut *lanes {
                paced.refused += send(lane, due - done, stamp)?;
            }
            paced.offered += (due - done) * directions;
            done = due;
        }
        for lane in &mut *lanes {
            receive(lane, clock, latency)?;
        }
        if over {
            paced.seconds = now.as_secs_f64();
            return Ok(paced);
        }
    }
}

/// Sends `count` frames now; returns how many found no room.
fn send(lane: &mut Lane<'_>, count: u64, time: u32) -> Result<u64> {
    let mut left = count;
    while left > 0 {
        let most = left.min(MOST.into()) as u16;
        let sent = lane.generator.burst_at(lane.tx, most, time)?;
        if sent == 0 {
            break;
        }
        left -= u64::from(sent);
    }
    Ok(left)
}

/// Receives what is there; returns how much it was.
#[inline]
fn receive(
    lane: &mut Lane<'_>,
    clock: Instant,
    latency: &mut Option<&mut Histogram>,
) -> Result<u16> {
    let Some(latency) = latency else {
        return lane::receive(lane);
    };
    // The clock is read once for all frames that are found together.
    let mut now = None;
    let taken = lane.meter.burst_timed(lane.rx, RECEIVE, |sent| {
        let now = *now.get_or_insert_with(|| clock.elapsed().as_nanos() as u32);
        latency.record(now.wrapping_sub(sent).into());
    })?;
    Ok(taken)
}

/// Waits for what is on its way: until all has arrived, or nothing comes any more.
fn arrive(
    lanes: &mut [Lane<'_>],
    clock: Instant,
    latency: &mut Option<&mut Histogram>,
) -> Result<()> {
    wind_down(lanes, |lane| receive(lane, clock, latency))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Contestant;
    use crate::generator::tests::mover;

    const TIMING: Timing = Timing {
        warm_ms: 5,
        window_ms: 50,
    };

    #[test]
    fn every_frame_is_offered_and_accounted_for() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        mover.resume().unwrap();
        for load in [Load::new(64, 10), Load::new(256, 1).both().touch()] {
            let (mut latency, mut edges) = (Histogram::default(), Vec::new());
            let paced = load
                .paced(mover.wire(), 1e5, TIMING, Some(&mut latency), |edge| {
                    edges.push(edge);
                })
                .unwrap();
            assert_eq!(edges, [Edge::Opens, Edge::IsOver]);
            let directions = if load.both { 2.0 } else { 1.0 };
            let due = directions * 1e5 * paced.seconds;
            let offered = (paced.offered + paced.slipped) as f64;
            assert!((offered - due).abs() <= 2.0, "{offered} of {due}");
            assert_eq!(paced.received, latency.count());
            assert!(paced.received + paced.lost() == paced.offered);
            assert!(latency.min() > 0 && latency.max() >= latency.quantile(0.5));
        }
        mover.stop().unwrap();
    }

    #[test]
    fn what_a_contestant_does_not_take_is_refused() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        // It stands still: the ring takes what it holds, the rest is refused, and nothing comes back.
        let mut lanes = lanes(mover.wire(), &Load::new(64, 1), false).unwrap();
        let time = Duration::from_millis(20);
        let paced = offer(&mut lanes, 1e6, time, Instant::now(), &mut None).unwrap();
        let sent = lanes[0].generator.sent();
        assert_eq!(paced.offered, paced.refused + sent);
        assert!(sent <= super::super::RING_SIZE.into());
    }

    #[test]
    fn a_rate_is_a_positive_number() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let load = Load::new(64, 1);
            assert!(
                load.paced(mover.wire(), rate, TIMING, None, |_| {})
                    .is_err()
            );
        }
    }
}
