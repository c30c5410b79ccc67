//! Where the daemon's log goes: to the journal if systemd gave it one, else to standard error.

use std::io::IsTerminal;

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

/// Starts logging; `filter` outranks `level`.
pub fn start(filter: Option<&str>, level: LogLevel) -> Level {
    let first = EnvFilter::new(filter.unwrap_or(name(level)));
    let (first, handle) = reload::Layer::new(first);
    let registry = tracing_subscriber::registry().with(first);
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
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

fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}
