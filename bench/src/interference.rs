//! What the machine did to a slice: time stolen by the host, and preemption of the threads measured.
//!
//! Read from `/proc` before and after, compared by [`Watch::since`]; nothing is read meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::cpu::Placement;

/// Steal time is counted in ticks of `USER_HZ`, which is 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// What was lost to others in some span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interference {
    /// Time that the host took from the two CPUs, milliseconds, in steps of 10.
    pub steal_ms: f64,
    /// Time that the generator or the contestant was ready to run and did not, milliseconds.
    pub delay_ms: f64,
    /// Times that one of their threads was preempted.
    pub preempted: u64,
}

/// When a slice does not count.
///
/// Medians are meant to repeat within 3 %, so no more than that may be lost. A slice of half a second
/// with a single tick of steal time still passes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Part of the window that may be stolen.
    pub steal: f64,
    /// Part of the window that threads may have waited for a CPU.
    pub delay: f64,
    /// Preemptions per second.
    pub preempted: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            steal: 0.03,
            delay: 0.03,
            preempted: 200.0,
        }
    }
}

impl Interference {
    /// Adds what was lost in another span.
    pub fn add(&mut self, other: &Self) {
        self.steal_ms += other.steal_ms;
        self.delay_ms += other.delay_ms;
        self.preempted += other.preempted;
    }
}

impl Limits {
    /// For times of single frames, in windows so short that many are free of any disturbance: nobody was
    /// preempted, and nothing was stolen that is seen.
    pub fn strict() -> Self {
        Self {
            steal: 0.0,
            delay: 1e-3,
            preempted: 0.0,
        }
    }

    /// For losses, which steal time causes for certain, and waiting only if it is longer than rings hold.
    pub fn for_losses() -> Self {
        Self {
            steal: 0.0,
            delay: 0.01,
            ..Self::default()
        }
    }

    /// Why a slice of this length does not count, if it does not.
    pub fn verdict(&self, seen: &Interference, window: Duration) -> Option<String> {
        let part = |ms: f64| ms / 1e3 / window.as_secs_f64();
        if part(seen.steal_ms) > self.steal {
            Some(format!("{:.0} ms stolen by the host", seen.steal_ms))
        } else if part(seen.delay_ms) > self.delay {
            Some(format!("{:.0} ms waiting for a CPU", seen.delay_ms))
        } else if seen.preempted as f64 / window.as_secs_f64() > self.preempted {
            Some(format!("{} preemptions", seen.preempted))
        } else {
            None
        }
    }
}

/// The counters at one moment.
#[derive(Clone, Debug)]
pub struct Watch {
    tasks: Vec<PathBuf>,
    cpus: [usize; 2],
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    steal_ticks: u64,
    delay_ns: u64,
    preempted: u64,
}

impl Watch {
    /// Reads the counters of two CPUs and of these threads, given as folders in `/proc`.
    pub fn start(placement: Placement, tasks: Vec<PathBuf>) -> Self {
        let cpus = [placement.generator, placement.worker];
        let counters = read(cpus, &tasks);
        Self {
            tasks,
            cpus,
            counters,
        }
    }

    /// What has happened since.
    pub fn since(&self) -> Interference {
        let (before, now) = (self.counters, read(self.cpus, &self.tasks));
        // Threads may have ended, so counters may have shrunk.
        let ticks = now.steal_ticks.saturating_sub(before.steal_ticks);
        Interference {
            steal_ms: TICK.as_secs_f64() * 1e3 * ticks as f64,
            delay_ms: now.delay_ns.saturating_sub(before.delay_ns) as f64 / 1e6,
            preempted: now.preempted.saturating_sub(before.preempted),
        }
    }
}

/// The folder of the calling thread.
pub fn this_thread() -> PathBuf {
    let tid = rustix::thread::gettid().as_raw_nonzero();
    PathBuf::from(format!("/proc/self/task/{tid}"))
}

/// The folders of a process's threads.
pub fn threads_of(pid: u32) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    tasks.flatten().map(|task| task.path()).collect()
}

fn read(cpus: [usize; 2], tasks: &[PathBuf]) -> Counters {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let stat = text(Path::new("/proc/stat"));
    let mut counters = Counters {
        steal_ticks: cpus.iter().map(|cpu| steal_ticks(&stat, *cpu)).sum(),
        ..Counters::default()
    };
    for task in tasks {
        counters.delay_ns += run_delay(&text(&task.join("schedstat")));
        counters.preempted += preemptions(&text(&task.join("status")));
    }
    counters
}

/// The eighth figure of a CPU's line: user, nice, system, idle, iowait, irq, softirq, steal.
fn steal_ticks(stat: &str, cpu: usize) -> u64 {
    let name = format!("cpu{cpu}");
    let line = stat
        .lines()
        .find(|line| line.split(' ').next() == Some(&name));
    number(line.and_then(|line| line.split_whitespace().nth(8)))
}

/// The second figure: nanoseconds spent ready to run but waiting.
fn run_delay(schedstat: &str) -> u64 {
    number(schedstat.split_whitespace().nth(1))
}

fn preemptions(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    number(line.map(str::trim))
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        let stat = "cpu  1 2 3 4 5 6 7 30 9 0\ncpu1 1 2 3 4 5 6 7 10 9 0\ncpu10 1 2 3 4 5 6 7 20 9 0\nintr 1";
        assert_eq!([1, 10, 2].map(|cpu| steal_ticks(stat, cpu)), [10, 20, 0]);
        assert_eq!(run_delay("123 456 7\n"), 456);
        assert_eq!(
            preemptions("Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n"),
            7
        );
        assert_eq!(run_delay("") + preemptions(""), 0);
    }

    #[test]
    fn limits_are_parts_of_the_window() {
        let limits = Limits::default();
        let second = Duration::from_secs(1);
        let seen = |steal_ms, delay_ms, preempted| Interference {
            steal_ms,
            delay_ms,
            preempted,
        };
        assert_eq!(limits.verdict(&seen(30.0, 30.0, 200), second), None);
        assert!(
            limits
                .verdict(&seen(40.0, 0.0, 0), second)
                .unwrap()
                .contains("stolen")
        );
        assert!(
            limits
                .verdict(&seen(0.0, 31.0, 0), second)
                .unwrap()
                .contains("waiting")
        );
        assert!(
            limits
                .verdict(&seen(0.0, 0.0, 201), second)
                .unwrap()
                .contains("preemptions")
        );
        assert!(limits.verdict(&seen(20.0, 0.0, 0), second / 2).is_some());
        let strict = Limits::strict();
        assert!(strict.verdict(&seen(10.0, 0.0, 0), 60 * second).is_some());
        assert!(strict.verdict(&seen(0.0, 0.0, 1), second / 100).is_some());
        assert_eq!(strict.verdict(&seen(0.0, 0.9, 0), second), None);
        let losses = Limits::for_losses();
        assert!(losses.verdict(&seen(10.0, 0.0, 0), second).is_some());
        assert_eq!(losses.verdict(&seen(0.0, 9.0, 40), second), None);
    }

    #[test]
    fn this_thread_is_seen() {
        let placement = Placement {
            generator: 0,
            worker: 1,
        };
        let watch = Watch::start(placement, vec![this_thread()]);
        std::thread::sleep(Duration::from_millis(1));
        assert!(watch.since().delay_ms < 60_000.0);
        assert!(!threads_of(std::process::id()).is_empty());
    }
}
