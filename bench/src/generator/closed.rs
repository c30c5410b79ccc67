//! One frame at a time: the time a frame takes when nothing else is on its way, and when nothing has been for a while.

use std::time::{Duration, Instant};

use super::lane::{Lane, checked, lanes, receive, wind_down};
use super::{Edge, Load, Paced, Timing, Wire};
use crate::histogram::Histogram;
use crate::wake::spin;
use crate::{Error, Result};

/// A frame that has not come for so long is lost. No contestant keeps one for longer on purpose.
const LOST: Duration = Duration::from_millis(20);

impl Load {
    /// Sends a frame when the one before has arrived, from A to B: a closed loop, in which a slow
    /// contestant is offered less. The time each takes is noted in nanoseconds.
    pub fn one_by_one(
        &self,
        wire: &mut Wire,
        timing: Timing,
        latency: &mut Histogram,
        mut window: impl FnMut(Edge),
    ) -> Result<Paced> {
        self.prepare(wire)?;
        let mut lanes = lanes(wire, self, true)?;
        let Some(lane) = lanes.first_mut() else {
            return Ok(Paced::default());
        };
        let mut turns = |time_ms, latency: &mut Histogram| -> Result<Paced> {
            let (start, time) = (Instant::now(), Duration::from_millis(time_ms));
            let mut paced = Paced::default();
            while start.elapsed() < time {
                one(lane, latency, &mut paced)?;
            }
            paced.seconds = start.elapsed().as_secs_f64();
            Ok(paced)
        };
        turns(timing.warm_ms, &mut Histogram::default())?;
        window(Edge::Opens);
        let paced = turns(timing.window_ms, latency)?;
        window(Edge::IsOver);
        wind_down(&mut lanes, receive)?;
        lanes.iter().try_for_each(|lane| checked(&lane.tally()))?;
        if paced.received == 0 {
            return Err(Error::Silent(timing.window_ms.div_ceil(1000)));
        }
        Ok(paced)
    }

    /// Sends `count` frames from A to B, each after nothing has happened for `silence`: whoever sleeps when there is
    /// nothing to do is asleep by then. The time each takes is noted in nanoseconds.
    pub fn after_silence(
        &self,
        wire: &mut Wire,
        silence: Duration,
        count: u32,
        latency: &mut Histogram,
        mut window: impl FnMut(Edge),
    ) -> Result<Paced> {
        self.prepare(wire)?;
        let mut lanes = lanes(wire, self, true)?;
        let mut paced = Paced::default();
        let start = Instant::now();
        window(Edge::Opens);
        for lane in lanes.iter_mut().take(1) {
            for _ in 0..count {
                lane.tx.reclaim()?;
                spin(silence);
                one(lane, latency, &mut paced)?;
            }
        }
        window(Edge::IsOver);
        paced.seconds = start.elapsed().as_secs_f64();
        wind_down(&mut lanes, receive)?;
        lanes.iter().try_for_each(|lane| checked(&lane.tally()))?;
        if paced.received == 0 {
            return Err(Error::Silent(start.elapsed().as_secs()));
        }
        Ok(paced)
    }
}

/// Sends a frame and waits for it.
#[inline]
fn one(lane: &mut Lane<'_>, latency: &mut Histogram, paced: &mut Paced) -> Result<()> {
    let sent = Instant::now();
    lane.generator.burst_at(lane.tx, 1, 0)?;
    paced.offered += 1;
    let mut taken = 0;
    while taken == 0 && sent.elapsed() < LOST {
        taken = lane.meter.burst_timed(lane.rx, 1, |_| {})?;
    }
    if taken == 1 {
        latency.record(sent.elapsed().as_nanos() as u64);
        paced.received += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Contestant;
    use crate::generator::tests::mover;

    const TIMING: Timing = Timing {
        warm_ms: 2,
        window_ms: 20,
    };

    #[test]
    fn one_frame_is_on_its_way() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        mover.resume().unwrap();
        let (mut latency, mut edges) = (Histogram::default(), Vec::new());
        let paced = Load::new(64, 10)
            .one_by_one(mover.wire(), TIMING, &mut latency, |e| edges.push(e))
            .unwrap();
        mover.stop().unwrap();
        assert_eq!(edges, [Edge::Opens, Edge::IsOver]);
        assert_eq!(paced.received, latency.count());
        assert!(paced.lost() <= 1 && latency.min() > 0);
        // They follow each other, so their times add up to no more than the window.
        let sum = latency.mean() * latency.count() as f64 / 1e9;
        assert!(sum <= paced.seconds, "{sum} of {}", paced.seconds);
    }

    #[test]
    fn silence_comes_before_each_frame() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        mover.resume().unwrap();
        let (mut latency, silence) = (Histogram::default(), Duration::from_millis(2));
        let paced = Load::new(64, 1)
            .after_silence(mover.wire(), silence, 5, &mut latency, |_| {})
            .unwrap();
        mover.stop().unwrap();
        assert_eq!(paced.offered, 5);
        assert!(paced.seconds >= 0.01 && latency.count() == paced.received);
    }

    #[test]
    fn a_contestant_that_stands_still_is_an_error() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        let mut latency = Histogram::default();
        let result = Load::new(64, 1).one_by_one(mover.wire(), TIMING, &mut latency, |_| {});
        assert!(result.is_err() && latency.count() == 0);
    }
}
