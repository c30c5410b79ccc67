//! Do the two CPUs share a cache right now?
//!
//! A virtual machine's CPUs are moved between cores by the host, without notice. A cache line then
//! takes 30 to 100 ns from one to the other, or four times that, and every figure about rings changes
//! with it. The probe lets two threads, one on each CPU, bounce a line for some milliseconds: each
//! waits for the other's number and writes the next. Both CPUs must be free meanwhile.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::Instant;

use serde::Serialize;

use crate::Result;
use crate::cpu::{Pinned, Placement};

/// How far apart the two CPUs are. Slices of different classes are never compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A cache is shared.
    Shared,
    /// None is: lines travel between sockets or cache domains.
    Split,
}

impl Class {
    /// The class of a bounce time. Machines seen: 60 to 100 ns and 360 to 390 ns (Intel), 31 to 34 ns and
    /// 148 to 150 ns (AMD).
    pub fn of(bounce_ns: f64) -> Self {
        if bounce_ns < BORDER_NS {
            Self::Shared
        } else {
            Self::Split
        }
    }

    /// As it is written in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Split => "split",
        }
    }
}

/// Above what was seen where a cache is shared, below what was seen where none is, on any machine.
const BORDER_NS: f64 = 120.0;
/// Bounces of a batch, and batches: 6 ms where a cache is shared, 25 ms where none is.
const BATCH: u64 = 1000;
const BATCHES: usize = 64;

/// A line of its own for the number that bounces; two lines, because CPUs fetch pairs.
#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds a line takes from one CPU to the other: the lower quartile over batches, because
/// disturbance only lengthens.
pub fn bounce(placement: Placement) -> Result<f64> {
    let line = Line(AtomicU64::new(0));
    let end = AtomicBool::new(false);
    let answer = || -> Result<()> {
        let _pinned = Pinned::to(placement.worker)?;
        loop {
            let number = line.0.load(Acquire);
            if number % 2 == 1 {
                line.0.store(number + 1, Release);
            } else if end.load(Relaxed) {
                return Ok(());
            } else {
                spin_loop();
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(answer);
        let times = ask(&line.0, placement, || other.is_finished());
        end.store(true, Relaxed);
        // A panic of the other thread is not possible; an error of it comes first.
        other.join().unwrap_or(Ok(()))?;
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        Ok(times.get(times.len() / 4).copied().unwrap_or(f64::NAN))
    })
}

fn ask(line: &AtomicU64, placement: Placement, gone: impl Fn() -> bool) -> Result<Vec<f64>> {
    let _pinned = Pinned::to(placement.generator)?;
    let mut times = Vec::with_capacity(BATCHES);
    let mut number = 0;
    // The first batch waits for the other thread to start.
    for batch in 0..=BATCHES {
        let start = Instant::now();
        for _ in 0..BATCH / 2 {
            line.store(number + 1, Release);
            number += 2;
            while line.load(Acquire) != number {
                if batch == 0 && gone() {
                    return Ok(times);
                }
                spin_loop();
            }
        }
        if batch > 0 {
            times.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_machines_are_told_apart() {
        assert_eq!([31.0, 60.0, 100.0].map(Class::of), [Class::Shared; 3]);
        assert_eq!([148.0, 360.0, 390.0].map(Class::of), [Class::Split; 3]);
    }

    #[test]
    fn a_line_takes_some_time() {
        let Ok(placement) = Placement::first_two() else {
            // Nothing to bounce between on a machine with one CPU.
            return;
        };
        let ns = bounce(placement).unwrap();
        assert!(ns > 1.0 && ns < 1e7, "{ns}");
    }
}
