//! Steady traffic from one guest's queue pair to another's while a test does something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vswitch_simguest::QueuePair;
use vswitch_simguest::driver::DeviceFault;
use vswitch_simguest::traffic::{Generator, Meter, Pattern, Tally};
use vswitch_tests::{Error, Result, check};

use crate::setup::{Net, SOON, mac};

/// Frames on the way at most: far fewer than a ring has entries, so none is lost for want of a buffer.
const WINDOW: u64 = 64;
/// After so long without an arrival what is on the way counts as lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// Traffic in one direction, as fast as it arrives. The thread has both ends, so it knows what is on the way.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    thread: JoinHandle<Result<(Outcome, [QueuePair; 2]), DeviceFault>>,
    ends: [u8; 2],
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
        let pattern = Pattern::new(mac(to), mac(from), 60).flows(8);
        let mut pairs = [net.vm(from).take_queue(0)?, net.vm(to).take_queue(0)?];
        let mut generator = Generator::new(pattern.clone(), &mut pairs[0].tx)?;
        let mut meter = Meter::new(&pattern);
        let (stop, arrived) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&arrived));
        let run = move || {
            let [tx, rx] = &mut pairs;
            let (mut given_up, mut progress) = (0, Instant::now());
            loop {
                let stopping = stopped.load(Ordering::Relaxed);
                let came = meter.burst(&mut rx.rx, 64)?;
                let got = meter.tally().frames;
                seen.store(got, Ordering::Relaxed);
                let away = generator.sent().saturating_sub(got + given_up);
                if came > 0 {
                    progress = Instant::now();
                } else if progress.elapsed() > if stopping { PATIENCE * 3 } else { PATIENCE } {
                    given_up += away;
                    progress = Instant::now();
                }
                if stopping && away == 0 && tx.tx.drain(SOON)? {
                    break;
                }
                let room = WINDOW.saturating_sub(away) as u16;
                if stopping || room == 0 || generator.burst(&mut tx.tx, room.min(32))? == 0 {
                    std::thread::yield_now();
                }
            }
            while meter.burst(&mut rx.rx, 64)? > 0 {}
            let outcome = Outcome {
                sent: generator.sent(),
                tally: meter.tally(),
            };
            Ok((outcome, pairs))
        };
        Ok(Self {
            stop,
            arrived,
            thread: std::thread::spawn(run),
            ends: [from, to],
        })
    }

    /// Waits until more frames have arrived.
    pub(crate) fn wait_more(&self, frames: u64) -> Result<()> {
        let (before, started) = (self.arrived.load(Ordering::Relaxed), Instant::now());
        while self.arrived.load(Ordering::Relaxed) < before + frames {
            check!(
                started.elapsed() < SOON,
                "traffic from vm{} to vm{} stands still: {} of {frames} frames in {SOON:?}",
                self.ends[0],
                self.ends[1],
                self.arrived.load(Ordering::Relaxed) - before
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
        let [from, to] = self.ends;
        for (pair, n) in pairs.into_iter().zip([from, to]) {
            net.vm(n).give_queue(pair);
        }
        let tally = outcome.tally;
        check!(
            tally.late == 0 && tally.alien == 0,
            "vm{from} to vm{to}: frames out of order or damaged: {tally:?}"
        );
        Ok(outcome)
    }

    /// Ends it; nothing may be missing.
    pub(crate) fn finish_whole(self, net: &mut Net<'_>) -> Result<u64> {
        let [from, to] = self.ends;
        let outcome = self.finish(net)?;
        check!(
            outcome.tally.frames == outcome.sent,
            "vm{from} to vm{to}: {} frames sent, {:?}",
            outcome.sent,
            outcome.tally
        );
        Ok(outcome.sent)
    }
}
