//! The load: two simulated guests in one thread.
//!
//! [`Wire`] is what a contestant hangs between: guest A sends, guest B receives (or both do both, see
//! [`Load::both`]). [`Load::slice`] keeps transmit rings full and receive rings empty, by turns, from
//! one thread, so that sender and receiver never compete for a CPU. Every frame carries a stamp (flow,
//! number within the flow), and every frame that arrives is checked: length, stamp, order within its
//! flow. What is counted is what arrived, in a wall-clock window that starts when traffic has been
//! flowing for a while.
//!
//! [`Load::paced`] offers frames at a rate instead, counts every one of them, and can take the time
//! that each was on its way.
//!
//! Each slice starts and ends with empty rings, so that contestants stand still with nothing in
//! flight, and nothing of one slice is found in the next.

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use vswitch_simguest::driver::{RxQueue, TxQueue};
use vswitch_simguest::features::virtio;
use vswitch_simguest::traffic::Pattern;

use crate::{Error, Result};
use lane::{Lane, checked, lanes, run_for, settle, wind_down};

pub use alone::Costs;
pub(crate) use introduce::nth;
pub use paced::Paced;

mod alone;
mod closed;
mod introduce;
pub(crate) mod lane;
mod paced;
mod trains;

/// First address of guest A; more of its addresses count up the last two bytes.
pub const MAC_A: [u8; 6] = [2, 0, 0, 0xa, 0, 0];
/// First address of guest B.
pub const MAC_B: [u8; 6] = [2, 0, 0, 0xb, 0, 0];
/// Entries of every ring.
pub const RING_SIZE: u16 = 1024;
/// What both guests negotiate: a polling driver without offloads, as DPDK's is by default.
pub const FEATURES: u64 = virtio::VERSION_1 | virtio::MRG_RXBUF;
/// Longest frame: what transmit buffers have room for.
pub const LONGEST: usize = 9018;

/// Lengths of an IMIX, 7:4:1 by frames, in an order without long runs.
const IMIX: [usize; 12] = [64, 570, 64, 64, 570, 64, 1518, 64, 570, 64, 570, 64];

/// How long nothing at all may arrive at the start of a slice, a contestant may keep frames at its
/// end, and an introduction may take.
const SILENCE: Duration = Duration::from_secs(10);
const RETURN: Duration = Duration::from_secs(5);
/// A receive ring is empty when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(3);

/// A guest's two queues.
#[derive(Debug)]
pub struct Ends {
    /// Guest to contestant.
    pub tx: TxQueue,
    /// Contestant to guest.
    pub rx: RxQueue,
}

/// The queues of both guests.
#[derive(Debug)]
pub struct Wire {
    /// The guest that sends.
    pub a: Ends,
    /// The guest that receives.
    pub b: Ends,
    /// Whether guests have to send something first, so that the contestant knows where they are.
    pub introduce: bool,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Bytes of a frame, Ethernet header included, FCS not: what lies in the ring behind the header.
    /// Of the longest frame, in an IMIX. At most [`LONGEST`]; long ones arrive in several buffers.
    pub frame_len: usize,
    /// Flows, each with UDP ports of its own; sent round robin.
    pub flows: u32,
    /// Lengths are 64, 570 and 1518, 7:4:1 by frames.
    pub imix: bool,
    /// Addresses of each guest, which the flows use by turns. There are at least as many flows.
    pub macs: u16,
    /// Guests write the whole payload of every frame they send, and check all of what they receive.
    pub touch: bool,
    /// B sends to A as well; what arrives on both sides is counted together.
    pub both: bool,
}

/// How long a slice is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    /// Traffic before the window, milliseconds, counted from the first frame that arrives.
    pub warm_ms: u64,
    /// The window, milliseconds.
    pub window_ms: u64,
}

/// What a slice gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counted {
    /// Frames that arrived in the window.
    pub frames: u64,
    /// Frames found missing in the window.
    pub lost: u64,
    /// The window as it was.
    #[serde(serialize_with = "seconds", rename = "seconds")]
    pub window: Duration,
    /// Part of the generator's turns in which there was nothing to send or receive: it waited for the
    /// contestant. Next to nothing means that the generator was the limit.
    pub idle: f64,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl Counted {
    /// Millions of frames per second.
    pub fn mpps(&self) -> f64 {
        self.frames as f64 / self.window.as_secs_f64() / 1e6
    }
}

/// The two ends of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It begins now.
    Opens,
    /// It has ended.
    IsOver,
}

impl Load {
    /// Frames of one length, one direction, an address on each side, untouched payload.
    pub fn new(frame_len: usize, flows: u32) -> Self {
        Self {
            frame_len,
            flows,
            imix: false,
            macs: 1,
            touch: false,
            both: false,
        }
    }

    /// The same with an IMIX.
    pub fn imix(flows: u32) -> Self {
        Self {
            imix: true,
            ..Self::new(1518, flows)
        }
    }

    /// With so many addresses on each side.
    #[must_use]
    pub fn macs(mut self, macs: u16) -> Self {
        self.macs = macs.max(1);
        self.flows = self.flows.max(self.macs.into());
        self
    }

    /// With payload written and read.
    #[must_use]
    pub fn touch(mut self) -> Self {
        self.touch = true;
        self
    }

    /// In both directions.
    #[must_use]
    pub fn both(mut self) -> Self {
        self.both = true;
        self
    }

    /// Bytes of a frame on average.
    pub fn mean_len(&self) -> f64 {
        if self.imix {
            // Lengths repeat every 1,024 frames, so the first third of a dozen comes once more often.
            IMIX.iter().cycle().take(1024).sum::<usize>() as f64 / 1024.0
        } else {
            self.frame_len as f64
        }
    }

    /// What the frames in one direction look like.
    fn pattern(&self, dst: [u8; 6], src: [u8; 6]) -> Pattern {
        let mut pattern = Pattern::new(dst, src, self.frame_len).flows(self.flows);
        if self.imix {
            pattern = pattern.mix(&IMIX);
        }
        (pattern.srcs, pattern.dsts) = (self.macs.into(), self.macs.into());
        pattern.touch = self.touch;
        pattern
    }

    /// Gets ready: empty rings, known addresses.
    pub(crate) fn prepare(&self, wire: &mut Wire) -> Result<()> {
        settle(wire)?;
        if wire.introduce {
            introduce::all(wire, self)?;
        }
        Ok(())
    }

    /// Sends for one slice, as fast as it goes. `window` is told when the window opens and when it is
    /// over.
    pub fn slice(
        &self,
        wire: &mut Wire,
        timing: Timing,
        mut window: impl FnMut(Edge),
    ) -> Result<Counted> {
        self.prepare(wire)?;
        let mut lanes = lanes(wire, self, false)?;
        let until = Instant::now() + SILENCE;
        while lanes.iter().any(|lane| lane.tally().frames == 0) {
            if Instant::now() > until {
                return Err(Error::Silent(SILENCE.as_secs()));
            }
            lane::chunk(&mut lanes)?;
        }
        run_for(timing.warm_ms, &mut lanes)?;

        window(Edge::Opens);
        let before = Lane::total(&lanes);
        let (window_was, idle) = run_for(timing.window_ms, &mut lanes)?;
        let after = Lane::total(&lanes);
        window(Edge::IsOver);

        wind_down(&mut lanes, lane::receive)?;
        checked(&Lane::total(&lanes))?;
        Ok(Counted {
            frames: after.frames - before.frames,
            lost: after.missing - before.missing,
            window: window_was,
            idle,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;
    use crate::contestant::{Contestant, Mover, Near, Rings, Setup};
    use crate::cpu::Placement;

    const TIMING: Timing = Timing {
        warm_ms: 5,
        window_ms: 50,
    };

    /// A mover, and the CPUs to oneself. A machine with one CPU cannot have a mover beside the generator.
    pub(in crate::generator) fn mover() -> Option<(Mover, MutexGuard<'static, ()>)> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock();
        let guard = guard.unwrap_or_else(PoisonError::into_inner);
        let placement = Placement::first_two().ok()?;
        let setup = Setup {
            placement,
            rings: Rings::Split,
            jumbo: true,
            near: Near::Guest,
        };
        Some((Mover::start(setup).unwrap(), guard))
    }

    #[test]
    fn what_arrives_is_counted_in_the_window() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        mover.resume().unwrap();
        for load in [
            Load::new(64, 1),
            Load::new(1518, 100),
            Load::new(9000, 100).touch(),
            Load::imix(1).macs(100).touch().both(),
        ] {
            let mut edges = Vec::new();
            let counted = load
                .slice(mover.wire(), TIMING, |edge| edges.push(edge))
                .unwrap();
            assert_eq!(edges, [Edge::Opens, Edge::IsOver]);
            assert!(counted.frames > 0 && counted.window >= Duration::from_millis(50));
            assert!((0.0..=1.0).contains(&counted.idle));
        }
        mover.stop().unwrap();
        let Wire { a, b, .. } = mover.wire();
        assert_eq!((a.tx.ring().chains(), b.rx.has_work().unwrap()), (0, false));
    }

    #[test]
    fn every_address_is_shown_to_the_other_side() {
        let Some((mut mover, _alone)) = mover() else {
            return;
        };
        mover.resume().unwrap();
        mover.wire().introduce = true;
        for macs in [1, 1024] {
            introduce::all(mover.wire(), &Load::new(64, 1).macs(macs)).unwrap();
        }
    }

    #[test]
    fn an_imix_is_mostly_small_frames() {
        let load = Load::imix(1);
        assert!((load.mean_len() - 353.8).abs() < 1.0, "{}", load.mean_len());
        assert_eq!((load.frame_len, Load::new(64, 1).mean_len()), (1518, 64.0));
        assert_eq!(load.macs(5).flows, 5);
    }
}
