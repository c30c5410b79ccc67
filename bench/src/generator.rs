//! The load: two simulated guests in one thread.
//!
//! [`Wire`] is what a contestant hangs between: guest A sends, guest B receives. [`Load::slice`] keeps
//! A's transmit ring full and B's receive ring empty, by turns, from one thread, so that sender and
//! receiver never compete for a CPU. Every frame carries a stamp (flow, number within the flow), and
//! every frame that arrives is checked: length, stamp, order within its flow. What is counted is what
//! arrived, in a wall-clock window that starts when traffic has been flowing for a while.
//!
//! Each slice starts and ends with empty rings, so that contestants stand still with nothing in
//! flight, and nothing of one slice is found in the next.

use std::time::{Duration, Instant};

use serde::Serialize;
use vswitch_simguest::driver::{RxQueue, TxQueue};
use vswitch_simguest::features::virtio;
use vswitch_simguest::frames::{Eth, ethernet};
use vswitch_simguest::traffic::{Generator, Meter, Pattern, Tally};

use crate::{Error, Result};

/// Address of guest A, which sends.
pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
/// Address of guest B, which receives.
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
/// Entries of every ring.
pub const RING_SIZE: u16 = 1024;
/// What both guests negotiate: a polling driver without offloads, as DPDK's is by default.
pub const FEATURES: u64 = virtio::VERSION_1 | virtio::MRG_RXBUF;

/// Frames put into or taken out of a ring at once.
const SEND: u16 = 32;
const RECEIVE: u16 = 64;
/// Bursts between two looks at the clock.
const CHUNK: u32 = 16;
/// How long nothing at all may arrive at the start of a slice, a contestant may keep frames at its
/// end, and an introduction may take.
const SILENCE: Duration = Duration::from_secs(10);
const RETURN: Duration = Duration::from_secs(5);
/// A receive ring is empty when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(3);
/// Protocol of the frames that only show an address (IEEE 802, local experiments).
const HELLO: u16 = 0x88b5;

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
    /// Whether B has to send something first, so that the contestant knows where it is.
    pub introduce: bool,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Bytes of a frame, Ethernet header included, FCS not: what lies in the ring behind the header.
    pub frame_len: usize,
    /// Flows, each with UDP ports of its own; sent round robin.
    pub flows: u32,
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
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Frames that arrived in the window.
    pub frames: u64,
    /// Frames found missing in the window.
    pub lost: u64,
    /// The window as it was.
    pub window: Duration,
    /// Part of the generator's turns in which there was nothing to send or receive: it waited for the
    /// contestant. Next to nothing means that the generator was the limit.
    pub idle: f64,
}

impl Counted {
    /// Millions of frames per second.
    pub fn mpps(&self) -> f64 {
        self.frames as f64 / self.window.as_secs_f64() / 1e6
    }
}

impl Load {
    /// Sends for one slice. `window` is told when the window opens and when it is over.
    pub fn slice(
        &self,
        wire: &mut Wire,
        timing: Timing,
        mut window: impl FnMut(Edge),
    ) -> Result<Counted> {
        settle(wire)?;
        if wire.introduce {
            introduce(wire)?;
        }
        let pattern = Pattern::new(MAC_B, MAC_A, self.frame_len).flows(self.flows);
        let mut generator = Generator::new(pattern.clone(), &mut wire.a.tx)?;
        let mut meter = Meter::new(&pattern);

        let until = Instant::now() + SILENCE;
        while meter.tally().frames == 0 {
            if Instant::now() > until {
                return Err(Error::Silent(SILENCE.as_secs()));
            }
            chunk(&mut generator, &mut meter, wire)?;
        }
        run_for(timing.warm_ms, &mut generator, &mut meter, wire)?;

        window(Edge::Opens);
        let before = meter.tally();
        let (window_was, idle) = run_for(timing.window_ms, &mut generator, &mut meter, wire)?;
        let after = meter.tally();
        window(Edge::IsOver);

        wind_down(&mut meter, wire)?;
        checked(&meter.tally())?;
        Ok(Counted {
            frames: after.frames - before.frames,
            lost: after.missing - before.missing,
            window: window_was,
            idle,
        })
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

/// Some turns; returns in how many of them there was nothing to do.
#[inline]
fn chunk(generator: &mut Generator, meter: &mut Meter, wire: &mut Wire) -> Result<u32> {
    let mut idle = 0;
    for _ in 0..CHUNK {
        let sent = generator.burst(&mut wire.a.tx, SEND)?;
        let received = meter.burst(&mut wire.b.rx, RECEIVE)?;
        idle += u32::from(sent == 0 && received == 0);
    }
    Ok(idle)
}

/// Turns for a time; returns how long it was, and in what part of them there was nothing to do.
fn run_for(
    time_ms: u64,
    generator: &mut Generator,
    meter: &mut Meter,
    wire: &mut Wire,
) -> Result<(Duration, f64)> {
    let (start, time) = (Instant::now(), Duration::from_millis(time_ms));
    let (mut idle, mut turns) = (0u64, 0u64);
    loop {
        idle += u64::from(chunk(generator, meter, wire)?);
        turns += u64::from(CHUNK);
        let lasted = start.elapsed();
        if lasted >= time {
            return Ok((lasted, idle as f64 / turns as f64));
        }
    }
}

/// Receives until all that was sent has come back, and nothing more comes.
fn wind_down(meter: &mut Meter, wire: &mut Wire) -> Result<()> {
    let until = Instant::now() + RETURN;
    let mut last = Instant::now();
    while wire.a.tx.ring().chains() > 0 || last.elapsed() < QUIET {
        wire.a.tx.reclaim()?;
        if meter.burst(&mut wire.b.rx, RECEIVE)? > 0 {
            last = Instant::now();
        }
        if Instant::now() > until {
            return Err(Error::Held(RETURN.as_secs()));
        }
    }
    Ok(())
}

fn checked(tally: &Tally) -> Result<()> {
    if tally.late + tally.alien > 0 {
        return Err(Error::Content(*tally));
    }
    Ok(())
}

/// Throws away what is left of whatever was before.
fn settle(wire: &mut Wire) -> Result<()> {
    let (mut last, until) = (Instant::now(), Instant::now() + RETURN);
    while last.elapsed() < QUIET {
        wire.a.tx.reclaim()?;
        wire.b.tx.reclaim()?;
        let got = wire.a.rx.recv_burst(RECEIVE, |_| {})? + wire.b.rx.recv_burst(RECEIVE, |_| {})?;
        if got > 0 || wire.a.tx.ring().chains() + wire.b.tx.ring().chains() > 0 {
            last = Instant::now();
        }
        if last > until {
            return Err(Error::Held(RETURN.as_secs()));
        }
    }
    Ok(())
}

/// B shows its address, until A has seen a frame of it.
fn introduce(wire: &mut Wire) -> Result<()> {
    let hello = ethernet(&Eth::new(MAC_A, MAC_B), HELLO, &[0; 46]);
    let until = Instant::now() + SILENCE;
    while Instant::now() < until {
        wire.b.tx.send(&hello)?;
        if wire.a.rx.recv(Duration::from_millis(50))?.is_some() {
            return settle(wire);
        }
    }
    Err(Error::Silent(SILENCE.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::{Contestant, Mover};
    use crate::cpu::Placement;

    const TIMING: Timing = Timing {
        warm_ms: 5,
        window_ms: 20,
    };

    fn mover() -> Option<Mover> {
        // A machine with one CPU cannot have a mover beside the generator.
        Placement::first_two()
            .ok()
            .map(|placement| Mover::start(placement).unwrap())
    }

    #[test]
    fn what_arrives_is_counted_in_the_window() {
        let Some(mut mover) = mover() else { return };
        mover.resume().unwrap();
        for load in [
            Load {
                frame_len: 64,
                flows: 1,
            },
            Load {
                frame_len: 1518,
                flows: 100,
            },
        ] {
            let mut edges = Vec::new();
            let counted = load
                .slice(mover.wire(), TIMING, |edge| edges.push(edge))
                .unwrap();
            assert_eq!(edges, [Edge::Opens, Edge::IsOver]);
            assert!(counted.frames > 0 && counted.window >= Duration::from_millis(20));
            assert!((0.0..=1.0).contains(&counted.idle));
        }
        mover.stop().unwrap();
        let Wire { a, b, .. } = mover.wire();
        assert_eq!((a.tx.ring().chains(), b.rx.has_work().unwrap()), (0, false));
    }

    #[test]
    fn wrong_order_and_strangers_are_errors() {
        let good = Tally {
            frames: 10,
            missing: 3,
            ..Tally::default()
        };
        checked(&good).unwrap();
        assert!(checked(&Tally { late: 1, ..good }).is_err());
        assert!(checked(&Tally { alien: 1, ..good }).is_err());
    }
}
