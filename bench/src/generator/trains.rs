//! Trains of frames as fast as they go, with silence between them: a load that is a small part of the highest rate on
//! average, and all of it now and then.

use std::time::{Duration, Instant};

use super::lane::{Lane, checked, chunk, lanes, receive, wind_down};
use super::{Edge, Load, Paced, Timing, Wire};
use crate::{Error, Result};

impl Load {
    /// Sends as fast as it goes for `on`, then nothing for `off`, and so on. Frames are sent only where the ring has
    /// room, so that all that is due is offered.
    pub fn trains(
        &self,
        wire: &mut Wire,
        (on, off): (Duration, Duration),
        timing: Timing,
        mut window: impl FnMut(Edge),
    ) -> Result<Paced> {
        self.prepare(wire)?;
        let mut lanes = lanes(wire, self, false)?;
        let run = |time_ms: u64, lanes: &mut [Lane<'_>]| -> Result<Duration> {
            let (start, time) = (Instant::now(), Duration::from_millis(time_ms));
            while start.elapsed() < time {
                let train = Instant::now();
                while train.elapsed() < on {
                    chunk(lanes)?;
                }
                while train.elapsed() < on + off {
                    for lane in &mut *lanes {
                        lane.tx.reclaim()?;
                        receive(lane)?;
                    }
                    std::hint::spin_loop();
                }
            }
            Ok(start.elapsed())
        };
        run(timing.warm_ms, &mut lanes)?;
        // What is still under way would be counted without having been offered.
        wind_down(&mut lanes, receive)?;
        let sent = |lanes: &[Lane<'_>]| lanes.iter().map(|l| l.generator.sent()).sum::<u64>();
        let before = (sent(&lanes), Lane::total(&lanes).frames);
        window(Edge::Opens);
        let lasted = run(timing.window_ms, &mut lanes)?;
        window(Edge::IsOver);
        wind_down(&mut lanes, receive)?;
        let after = Lane::total(&lanes);
        checked(&after)?;
        if after.frames == before.1 {
            return Err(Error::Silent(timing.window_ms.div_ceil(1000)));
        }
        Ok(Paced {
            offered: sent(&lanes) - before.0,
            received: after.frames - before.1,
            seconds: lasted.as_secs_f64(),
            ..Paced::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Contestant;
    use crate::generator::tests::mover;

    #[test]
    fn a_train_is_followed_by_its_silence() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        mover.resume().unwrap();
        let timing = Timing {
            warm_ms: 2,
            window_ms: 10,
        };
        let (on, off) = (Duration::from_millis(1), Duration::from_millis(60));
        let trains = Load::new(64, 1)
            .trains(mover.wire(), (on, off), timing, |_| {})
            .unwrap();
        mover.stop().unwrap();
        // The window ends with the silence of the train that it began with.
        assert!(trains.seconds >= 0.061, "{}", trains.seconds);
        assert!(trains.received > 0 && trains.received <= trains.offered);
    }
}
