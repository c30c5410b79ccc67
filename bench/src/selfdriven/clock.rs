//! The time stamp counter, and where a burst's cycles go.
//!
//! Cycles are those of the time stamp counter, which runs at one rate whatever the core does: a core that is clocked
//! higher makes more of its own in the same time.

use std::time::Instant;

use vswitch::worker;

use crate::{Error, Result, machine};

/// Readings that the cost of one is taken from.
const READINGS: usize = 10_001;

/// The counter.
#[derive(Clone, Debug)]
pub struct Clock {
    counter: quanta::Clock,
    cost: u64,
}

impl Clock {
    /// Looks for the counter, and finds out what reading it costs.
    ///
    /// # Errors
    /// There is none, or none that runs at one rate all the time.
    pub fn new() -> Result<Self> {
        // Without it the crate would read the kernel's clock instead, and not say so.
        if !machine::cpu_has("nonstop_tsc") || !machine::cpu_has("rdtscp") {
            let reason = "this machine's CPUs have no time stamp counter that never stops";
            return Err(Error::Usage(reason.into()));
        }
        let counter = quanta::Clock::new();
        // The distance of two readings that follow one another: the median, which an interruption does not change.
        let mut readings: Vec<u64> = (0..READINGS)
            .map(|_| {
                let before = counter.raw();
                counter.raw().wrapping_sub(before)
            })
            .collect();
        let (_, cost, _) = readings.select_nth_unstable(READINGS / 2);
        let cost = *cost;
        Ok(Self { counter, cost })
    }

    /// Reads it.
    #[inline(always)]
    pub fn now(&self) -> u64 {
        self.counter.raw()
    }

    /// Cycles between two readings with nothing in between.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Begins to hold it against the wall clock.
    pub fn against_the_wall(&self) -> Wall<'_> {
        Wall {
            clock: self,
            cycles: self.now(),
            time: Instant::now(),
        }
    }
}

/// The counter and the wall clock at one moment.
#[derive(Debug)]
pub struct Wall<'c> {
    clock: &'c Clock,
    cycles: u64,
    time: Instant,
}

impl Wall<'_> {
    /// Cycles per nanosecond since then.
    pub fn ghz(&self) -> f64 {
        let cycles = self.clock.now().wrapping_sub(self.cycles);
        cycles as f64 / self.time.elapsed().as_nanos().max(1) as f64
    }
}

/// Adds up what each step of a burst takes: take, decide and group, deliver, complete.
#[derive(Debug)]
pub struct Steps<'c> {
    clock: &'c Clock,
    last: u64,
    /// In the order of the steps, readings included.
    pub sums: [u64; 4],
}

impl<'c> Steps<'c> {
    /// Nothing spent yet.
    pub fn new(clock: &'c Clock) -> Self {
        Self {
            clock,
            last: 0,
            sums: [0; 4],
        }
    }

    /// A burst begins.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.last = self.clock.now();
    }

    #[inline(always)]
    fn end_of(&mut self, step: usize) {
        let now = self.clock.now();
        self.sums[step] += now.wrapping_sub(self.last);
        self.last = now;
    }
}

impl worker::Steps for Steps<'_> {
    #[inline(always)]
    fn taken(&mut self) {
        self.end_of(0);
    }
    #[inline(always)]
    fn decided(&mut self) {
        self.end_of(1);
    }
    #[inline(always)]
    fn delivered(&mut self) {
        self.end_of(2);
    }
    #[inline(always)]
    fn completed(&mut self) {
        self.end_of(3);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use vswitch::worker::Steps as _;

    #[test]
    fn the_counter_runs_as_the_wall_clock_does() {
        let clock = Clock::new().unwrap();
        let rates = || {
            [5, 10].map(|ms| {
                let wall = clock.against_the_wall();
                std::thread::sleep(Duration::from_millis(ms));
                wall.ghz()
            })
        };
        // The thread may be preempted between the two clocks.
        let agree = |rates: [f64; 2]| rates[0] > 0.1 && (rates[0] / rates[1] - 1.0).abs() < 0.05;
        assert!((0..20).any(|_| agree(rates())));
        assert!(clock.cost() < 10_000);
    }

    #[test]
    fn each_step_has_its_own_sum() {
        let clock = Clock::new().unwrap();
        let stands_out = || {
            let mut steps = Steps::new(&clock);
            steps.begin();
            steps.taken();
            steps.decided();
            std::thread::sleep(Duration::from_millis(2));
            steps.delivered();
            steps.completed();
            let [take, decide, deliver, complete] = steps.sums;
            deliver > 10 * (take + decide + complete)
        };
        // The thread may be preempted in any step.
        assert!((0..20).any(|_| stands_out()));
    }
}
