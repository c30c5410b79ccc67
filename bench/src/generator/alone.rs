//! What the generator costs by itself: sender, mover and receiver by turns on one CPU, each timed.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::lane::{RECEIVE, SEND, checked, lanes, settle};
use super::{Load, RETURN, Timing, Wire};
use crate::{Error, Result};

/// Bursts between two looks at the clock: so many that looking costs next to nothing, so few that a ring
/// has room for the longest frames.
const BURSTS: u16 = 2;

/// Time for a frame, nanoseconds, with all lines in the caches of one CPU.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Costs {
    /// To send it.
    pub send_ns: f64,
    /// To move it from ring to ring.
    pub move_ns: f64,
    /// To receive it.
    pub receive_ns: f64,
    /// How many frames this is the mean of.
    pub frames: u64,
}

impl Costs {
    /// Millions of frames per second that the generator could send and receive by turns, if lines came
    /// for free.
    pub fn mpps(&self) -> f64 {
        1e3 / (self.send_ns + self.receive_ns)
    }
}

impl Load {
    /// Sends from A to B for a window, in the calling thread alone; `mover` moves up to so many frames.
    pub fn alone(
        &self,
        wire: &mut Wire,
        timing: Timing,
        mut mover: impl FnMut(u16) -> u16,
    ) -> Result<Costs> {
        settle(wire)?;
        let mut lanes = lanes(wire, self, false)?;
        let (mut times, mut frames) = ([Duration::ZERO; 3], 0);
        let (start, warm) = (Instant::now(), Duration::from_millis(timing.warm_ms));
        let end = warm + Duration::from_millis(timing.window_ms);
        while start.elapsed() < end {
            let warming = start.elapsed() < warm;
            for lane in lanes.iter_mut().take(1) {
                let begin = Instant::now();
                let mut sent = 0;
                for _ in 0..BURSTS {
                    sent += lane.generator.burst(lane.tx, SEND)?;
                }
                let after_send = Instant::now();
                let mut moved = 0;
                while moved < sent {
                    moved += progress(begin, mover(SEND))?;
                }
                let after_move = Instant::now();
                let mut taken = 0;
                while taken < sent {
                    taken += progress(begin, lane.meter.burst(lane.rx, RECEIVE)?)?;
                }
                if !warming {
                    times[0] += after_send - begin;
                    times[1] += after_move - after_send;
                    times[2] += after_move.elapsed();
                    frames += u64::from(sent);
                }
            }
        }
        lanes.iter().try_for_each(|lane| checked(&lane.tally()))?;
        let each = |time: Duration| time.as_nanos() as f64 / frames.max(1) as f64;
        Ok(Costs {
            send_ns: each(times[0]),
            move_ns: each(times[1]),
            receive_ns: each(times[2]),
            frames,
        })
    }
}

/// How much was done; an error if that is nothing for too long.
fn progress(since: Instant, count: u16) -> Result<u16> {
    if count == 0 && since.elapsed() > RETURN {
        return Err(Error::Held(RETURN.as_secs()));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::{Near, Rings, Setup, between_guests};
    use crate::cpu::Placement;
    use crate::generator::tests::mover;

    #[test]
    fn every_part_takes_some_time() {
        let Some((_stands_still, _alone)) = mover() else {
            return;
        };
        let placement = Placement {
            generator: 0,
            worker: 1,
        };
        let timing = Timing {
            warm_ms: 1,
            window_ms: 20,
        };
        let plain = Load::new(64, 1);
        let long = Load::new(9000, 10).touch();
        for (rings, load) in [
            (Rings::Split, plain),
            (Rings::Split, long),
            (Rings::Packed, plain),
            (Rings::Packed, long),
        ] {
            let setup = Setup {
                placement,
                rings,
                jumbo: true,
                near: Near::Guest,
            };
            let (mut wire, [mut there, _back]) = between_guests(setup).unwrap();
            let costs = load.alone(&mut wire, timing, |max| there.run(max)).unwrap();
            assert!(costs.frames > 0);
            let parts = [costs.send_ns, costs.move_ns, costs.receive_ns];
            assert!(parts.iter().all(|ns| *ns > 0.0), "{costs:?}");
            // All three of them fit into the window.
            let sum = parts.iter().sum::<f64>() * costs.frames as f64 / 1e6;
            assert!(sum < 60.0, "{sum} ms");
        }
    }
}
