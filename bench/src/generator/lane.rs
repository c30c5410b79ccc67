//! One direction of a load, and turns of sending and receiving over all directions.

use std::time::{Duration, Instant};

use vswitch_simguest::driver::{RxQueue, TxQueue};
use vswitch_simguest::traffic::{Generator, Meter, Tally};

use super::{Load, MAC_A, MAC_B, QUIET, RETURN, Wire};
use crate::{Error, Result};

/// Frames put into or taken out of a ring at once.
pub(crate) const SEND: u16 = 64;
pub(crate) const RECEIVE: u16 = 64;
/// Turns between two looks at the clock.
const CHUNK: u32 = 16;

/// From one guest to the other.
pub(crate) struct Lane<'a> {
    pub(crate) generator: Generator,
    pub(crate) meter: Meter,
    pub(crate) tx: &'a mut TxQueue,
    pub(crate) rx: &'a mut RxQueue,
}

/// The directions that a load has.
pub(crate) fn lanes<'a>(wire: &'a mut Wire, load: &Load, timed: bool) -> Result<Vec<Lane<'a>>> {
    let Wire { a, b, .. } = wire;
    let mut lanes = Vec::with_capacity(2);
    let mut add = |dst, src, tx: &'a mut TxQueue, rx: &'a mut RxQueue| -> Result<()> {
        let mut pattern = load.pattern(dst, src);
        pattern.timed = timed;
        lanes.push(Lane {
            generator: Generator::new(pattern.clone(), tx)?,
            meter: Meter::new(&pattern),
            tx,
            rx,
        });
        Ok(())
    };
    add(MAC_B, MAC_A, &mut a.tx, &mut b.rx)?;
    if load.both {
        add(MAC_A, MAC_B, &mut b.tx, &mut a.rx)?;
    }
    Ok(lanes)
}

impl Lane<'_> {
    /// What has arrived.
    pub(crate) fn tally(&self) -> Tally {
        self.meter.tally()
    }

    /// What has arrived in all directions.
    pub(crate) fn total(lanes: &[Self]) -> Tally {
        let mut total = Tally::default();
        lanes.iter().for_each(|lane| total.add(lane.tally()));
        total
    }
}

/// Takes what is there; returns how much it was.
pub(crate) fn receive(lane: &mut Lane<'_>) -> Result<u16> {
    Ok(lane.meter.burst(lane.rx, RECEIVE)?)
}

/// Some turns; returns in how many of them there was nothing to do.
#[inline]
pub(crate) fn chunk(lanes: &mut [Lane<'_>]) -> Result<u32> {
    let mut idle = 0;
    for _ in 0..CHUNK {
        let mut moved = 0;
        for lane in &mut *lanes {
            // What has arrived is on its way to the cache while frames are sent.
            lane.rx.fetch()?;
            if lane.tx.has_room(SEND)? {
                moved += lane.generator.burst(lane.tx, SEND)?;
            }
            moved += lane.meter.burst(lane.rx, RECEIVE)?;
        }
        idle += u32::from(moved == 0);
    }
    Ok(idle)
}

/// Turns for a time; returns how long it was, and in what part of them there was nothing to do.
pub(crate) fn run_for(time_ms: u64, lanes: &mut [Lane<'_>]) -> Result<(Duration, f64)> {
    let (start, time) = (Instant::now(), Duration::from_millis(time_ms));
    let (mut idle, mut turns) = (0u64, 0u64);
    loop {
        idle += u64::from(chunk(lanes)?);
        turns += u64::from(CHUNK);
        let lasted = start.elapsed();
        if lasted >= time {
            return Ok((lasted, idle as f64 / turns as f64));
        }
    }
}

/// How long somebody has waited who may be kept from his processor meanwhile: that is no waiting.
struct Wait {
    until: Instant,
    last: Instant,
}

/// Between two looks nobody takes so long by himself.
const ABSENT: Duration = Duration::from_millis(100);

impl Wait {
    fn new(now: Instant) -> Self {
        Self {
            until: now + RETURN,
            last: now,
        }
    }

    /// Whether [`RETURN`] is over, of the time in which it was looked.
    fn is_over(&mut self, now: Instant) -> bool {
        let since = now.duration_since(self.last);
        if since > ABSENT {
            self.until += since;
        }
        self.last = now;
        now > self.until
    }
}

/// Receives with `receive` until all that was sent has come back to its sender, and either has arrived
/// or nothing more comes.
pub(crate) fn wind_down(
    lanes: &mut [Lane<'_>],
    mut receive: impl FnMut(&mut Lane<'_>) -> Result<u16>,
) -> Result<()> {
    let mut last = Instant::now();
    let mut wait = Wait::new(last);
    loop {
        let (mut held, mut whole) = (false, true);
        for lane in &mut *lanes {
            lane.tx.reclaim()?;
            held |= lane.tx.ring().chains() > 0;
            if receive(lane)? > 0 {
                last = Instant::now();
            }
            whole &= lane.tally().frames == lane.generator.sent();
        }
        if !held && (whole || last.elapsed() >= QUIET) {
            return Ok(());
        }
        if wait.is_over(Instant::now()) {
            return Err(Error::Held(RETURN.as_secs()));
        }
    }
}

/// Whether what arrived is what was sent.
pub(crate) fn checked(tally: &Tally) -> Result<()> {
    if tally.late + tally.alien > 0 {
        return Err(Error::Content(*tally));
    }
    Ok(())
}

/// Throws away what is left of whatever was before.
pub(crate) fn settle(wire: &mut Wire) -> Result<()> {
    let mut last = Instant::now();
    let mut wait = Wait::new(last);
    while last.elapsed() < QUIET {
        wire.a.tx.reclaim()?;
        wire.b.tx.reclaim()?;
        let got = wire.a.rx.recv_burst(RECEIVE, |_| {})? + wire.b.rx.recv_burst(RECEIVE, |_| {})?;
        if got > 0 || wire.a.tx.ring().chains() + wire.b.tx.ring().chains() > 0 {
            last = Instant::now();
        }
        if wait.is_over(Instant::now()) {
            return Err(Error::Held(RETURN.as_secs()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_kept_from_his_processor_does_not_wait() {
        let start = Instant::now();
        let mut wait = Wait::new(start);
        assert!(!wait.is_over(start + 3 * RETURN), "it was away");
        let steps = (1..1000).map(|n| 3 * RETURN + n * ABSENT / 2);
        let over = steps.into_iter().find(|t| wait.is_over(start + *t));
        assert_eq!(over, Some(4 * RETURN + ABSENT / 2));
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
