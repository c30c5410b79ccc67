//! Where the daemon's log goes: to the journal if systemd gave it one, else to standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};
use vswitch_api::config::LogLevel;

/// The level in force, to be changed while the daemon runs.
pub struct Level {
    handle: reload::Handle<EnvFilter, Registry>,
    /// What the command line said; it outranks the file.
    fixed: bool,
    now: LogLevel,
}

impl Level {
    /// Takes up the file's level, unless the command line named one.
    pub fn set(&mut self, level: LogLevel) {
        if !self.fixed && level != self.now {
            self.now = level;
            let _ = self.handle.reload(EnvFilter::new(name(level)));
        }
    }
}

/// Is this a filter?
///
/// # Errors
/// It is not, and why.
pub fn check(filter: &str) -> Result<(), String> {
    let outcome = EnvFilter::try_new(filter);
    outcome.map(drop).map_err(|e| {
        format!("\"{filter}\" is no log filter ({e}); use a level, such as debug, or target=level")
    })
}

/// Systemd connected standard error to the journal: it names device and inode of that stream (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stat = rustix::fs::fstat(std::io::stderr());
    stat.is_ok_and(|s| named == format!("{}:{}", s.st_dev, s.st_ino))
}

/// Starts logging; `filter` outranks `level`.
pub fn start(filter: Option<&str>, level: LogLevel) -> Level {
    let first = EnvFilter::new(filter.unwrap_or(name(level)));
    let (first, handle) = reload::Layer::new(first);
    let registry = tracing_subscriber::registry().with(first);
    let journal = stderr_is_the_journal()
        .then(tracing_journald::layer)
        .and_then(Result::ok);
    match journal {
        Some(journal) => registry.with(journal).init(),
        None => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .init(),
    }
    Level {
        handle,
        fixed: filter.is_some(),
        now: level,
    }
}

/// Lets a few lines through and keeps the rest back, for what a guest can repeat at will.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u32,
    since: Instant,
    kept_back: u64,
}

impl Budget {
    /// Lines in each [`PERIOD`](Self::PERIOD).
    pub const LINES: u32 = 20;
    /// How long those lines have to do.
    pub const PERIOD: Duration = Duration::from_secs(60);

    /// A full budget.
    pub fn new() -> Self {
        Budget {
            left: Self::LINES,
            since: Instant::now(),
            kept_back: 0,
        }
    }

    /// May a line be written? If some were kept back before, it says how many.
    pub fn spend(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since) >= Self::PERIOD {
            (self.left, self.since) = (Self::LINES, now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.kept_back))
            }
            None => {
                self.kept_back += 1;
                None
            }
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_and_comes_back() {
        let mut budget = Budget::new();
        let start = budget.since;
        for _ in 0..Budget::LINES {
            assert_eq!(budget.spend(start), Some(0));
        }
        for _ in 0..100 {
            assert_eq!(budget.spend(start), None);
        }
        assert_eq!(budget.spend(start + Budget::PERIOD), Some(100));
    }
}
