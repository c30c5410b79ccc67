//! Steady traffic from one guest's queue pair to those of others while a test does something else.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vswitch_simguest::QueuePair;
use vswitch_simguest::driver::DeviceFault;
use vswitch_simguest::traffic::{Generator, Meter, Pattern, Tally};
use vswitch_tests::{Error, Result, check};

use crate::setup::{Net, SOON, mac};

/// Frames on the way at most, if nobody asks for more: far fewer than a ring has entries, so none is lost for want of a
/// buffer.
const WINDOW: u64 = 64;
/// Traffic in one direction, as fast as it arrives. The thread has both ends, so it knows what is on the way.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    thread: JoinHandle<Result<(Outcome, Vec<QueuePair>), DeviceFault>>,
    from: u8,
    to: Vec<u8>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Frames put into the ring.
    pub(crate) sent: u64,
    /// What arrived.
    pub(crate) tally: Tally,
}

impl Load {
    /// Starts sending from the first pair of one guest to the first of another; they are away until [`Load::finish`].
    pub(crate) fn start(net: &mut Net<'_>, from: u8, to: u8) -> Result<Self> {
        Self::fan(net, from, to..=to, (60, WINDOW))
    }

    /// The same to several guests by turns, with frames of this length, and so many on the way at most.
    pub(crate) fn fan(
        net: &mut Net<'_>,
        from: u8,
        to: RangeInclusive<u8>,
        (frame_len, window): (usize, u64),
    ) -> Result<Self> {
        let mut pattern = Pattern::new(mac(*to.start()), mac(from), frame_len).flows(24);
        pattern.dsts = to.len() as u32;
        let mut pairs = vec![net.vm(from).take_queue(0)?];
        for n in to.clone() {
            pairs.push(net.vm(n).take_queue(0)?);
        }
        let mut generator = Generator::new(pattern.clone(), &mut pairs[0].tx)?;
        let mut meters: Vec<_> = to.clone().map(|_| Meter::new(&pattern)).collect();
        let (stop, arrived) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&arrived));
        let run = move || {
            let (mut lost, mut progress) = (0, Instant::now());
            loop {
                let stopping = stopped.load(Ordering::Relaxed);
                let tx = &mut pairs[0].tx;
                tx.reclaim()?;
                // Looked at before the receivers' rings: what the switch is done with lies there, or does not come.
                let done = tx.ring().chains() == 0;
                let mut came = 0;
                for (meter, pair) in meters.iter_mut().zip(&mut pairs[1..]) {
                    came += meter.burst(&mut pair.rx, 64)?;
                }
                let tx = &mut pairs[0].tx;
                let got = meters.iter().map(|meter| meter.tally().frames).sum();
                seen.store(got, Ordering::Relaxed);
                if came > 0 {
                    progress = Instant::now();
                } else if done {
                    lost = generator.sent().saturating_sub(got);
                }
                let away = generator.sent().saturating_sub(got + lost);
                // Whoever has waited for so long in vain misses frames, and says so.
                if stopping && ((away == 0 && done) || progress.elapsed() > SOON) {
                    break;
                }
                let room = window.saturating_sub(away) as u16;
                if stopping || room == 0 || generator.burst(tx, room.min(32))? == 0 {
                    std::thread::yield_now();
                }
            }
            let mut tally = Tally::default();
            for (meter, pair) in meters.iter_mut().zip(&mut pairs[1..]) {
                while meter.burst(&mut pair.rx, 64)? > 0 {}
                tally.add(meter.tally());
            }
            let outcome = Outcome {
                sent: generator.sent(),
                tally,
            };
            Ok((outcome, pairs))
        };
        Ok(Self {
            stop,
            arrived,
            thread: std::thread::spawn(run),
            from,
            to: to.collect(),
        })
    }

    /// Waits until more frames have arrived, however long they take as long as some do.
    pub(crate) fn wait_more(&self, frames: u64) -> Result<()> {
        let before = self.arrived.load(Ordering::Relaxed);
        let (mut seen, mut progress) = (before, Instant::now());
        while seen < before + frames {
            let now = self.arrived.load(Ordering::Relaxed);
            if now > seen {
                (seen, progress) = (now, Instant::now());
            }
            check!(
                progress.elapsed() < SOON,
                "traffic from vm{} to {:?} stands still for {SOON:?} after {} of {frames} frames",
                self.from,
                self.to,
                seen - before
            );
            check!(!self.thread.is_finished(), "traffic has ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it and gives the pairs back; frames must be in order and unharmed, but may be missing.
    pub(crate) fn finish(self, net: &mut Net<'_>) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(outcome) = self.thread.join() else {
            return Err(Error::Failed("the traffic thread panicked".into()));
        };
        let (outcome, pairs) = outcome?;
        let (from, to) = (self.from, self.to);
        for (pair, n) in pairs.into_iter().zip(std::iter::once(from).chain(to)) {
            net.vm(n).give_queue(pair);
        }
        let tally = outcome.tally;
        check!(
            tally.late == 0 && tally.alien == 0,
            "from vm{from}: frames out of order or damaged: {tally:?}"
        );
        Ok(outcome)
    }

    /// Ends it; nothing may be missing.
    pub(crate) fn finish_whole(self, net: &mut Net<'_>) -> Result<u64> {
        let from = self.from;
        let outcome = self.finish(net)?;
        check!(
            outcome.tally.frames == outcome.sent,
            "from vm{from}: {} frames sent, {:?}",
            outcome.sent,
            outcome.tally
        );
        Ok(outcome.sent)
    }
}
