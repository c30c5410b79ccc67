//! How much processor time a process uses, and how often it sleeps. Counted by the kernel, for all threads.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::interference::threads_of;
use crate::{Error, Result};

/// `utime` and `stime` are counted in ticks of `USER_HZ`, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process used in some span of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CpuUse {
    /// Length of the span, seconds.
    pub seconds: f64,
    /// Time its threads ran, in percent of one CPU: the scheduler's own account, in nanoseconds.
    pub percent: f64,
    /// The same by ticks (`utime` and `stime`), in steps of 10 ms.
    pub ticks_percent: f64,
    /// Times a second that one of its threads went to sleep by itself.
    pub sleeps_per_second: f64,
}

impl CpuUse {
    /// Between two readings; an error if one of them failed or is missing.
    pub fn between(readings: Vec<Result<CpuClock>>) -> Result<Self> {
        let readings = readings.into_iter().collect::<Result<Vec<_>>>()?;
        match readings.as_slice() {
            [before, .., after] => Ok(after.since(before)),
            _ => Err(Error::Silent(0)),
        }
    }
}

/// A process's counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock {
    at: Instant,
    run_ns: u64,
    ticks: u64,
    sleeps: u64,
}

impl CpuClock {
    /// Reads the counters; an error if the process is gone.
    pub fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
        let mut clock = Self {
            at: Instant::now(),
            run_ns: 0,
            ticks: ticks(&stat),
            sleeps: 0,
        };
        // Threads that end meanwhile take their counts along; switches keep theirs.
        for task in threads_of(pid) {
            clock.run_ns += run_ns(&text(&task.join("schedstat")));
            clock.sleeps += sleeps(&text(&task.join("status")));
        }
        Ok(clock)
    }

    /// What was used from `earlier` until this moment.
    pub fn since(&self, earlier: &Self) -> CpuUse {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64();
        let part =
            |now: u64, then: u64, unit: f64| now.saturating_sub(then) as f64 / unit / seconds;
        let second_ns = Duration::from_secs(1).as_nanos() as f64;
        CpuUse {
            seconds,
            percent: 100.0 * part(self.run_ns, earlier.run_ns, second_ns),
            ticks_percent: 100.0 * part(self.ticks, earlier.ticks, TICKS_PER_SECOND),
            sleeps_per_second: part(self.sleeps, earlier.sleeps, 1.0),
        }
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Fields 14 and 15, `utime` and `stime`, of the whole process. The name before them is in brackets and may hold anything.
fn ticks(stat: &str) -> u64 {
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields = rest.split(' ').skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// The first figure: nanoseconds spent running.
fn run_ns(schedstat: &str) -> u64 {
    let first = schedstat.split_whitespace().next();
    first.and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn sleeps(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 10 20 30 40 1500 25 99 99 20 0 3 0 100";
        assert_eq!(ticks(stat), 1525);
        assert_eq!(run_ns("1234 5 6\n"), 1234);
        let status = "voluntary_ctxt_switches:\t8\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(sleeps(status), 8);
        assert_eq!(ticks("") + run_ns("") + sleeps(""), 0);
    }

    #[test]
    fn use_is_a_part_of_the_time_between() {
        let earlier = CpuClock {
            at: Instant::now(),
            run_ns: 1_000_000_000,
            ticks: 100,
            sleeps: 10,
        };
        let later = CpuClock {
            at: earlier.at + Duration::from_secs(4),
            run_ns: 3_000_000_000,
            ticks: 302,
            sleeps: 50,
        };
        let used = later.since(&earlier);
        assert_eq!((used.seconds, used.percent), (4.0, 50.0));
        assert_eq!((used.ticks_percent, used.sleeps_per_second), (50.5, 10.0));
        // A thread that ended takes its time along: that is nothing used, not less than nothing.
        let fewer = CpuClock { run_ns: 0, ..later };
        assert_eq!(fewer.since(&earlier).percent, 0.0);
    }

    #[test]
    fn work_is_seen() {
        let pid = std::process::id();
        let before = CpuClock::read(pid).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let used = CpuClock::read(pid).unwrap().since(&before);
            if used.percent > 0.0 && used.ticks_percent > 0.0 {
                break;
            }
            assert!(Instant::now() < until, "{used:?}");
        }
        assert!(CpuClock::read(u32::MAX).is_err());
    }
}
