//! Why a test did not pass, and the macros that say so.

use std::io;
use std::time::Duration;

use vswitch_simguest::GuestError;
use vswitch_simguest::driver::{DeviceFault, TxError};
use vswitch_simguest::frontend::FrontendError;
use vswitch_simguest::memory::MemoryError;

/// What the harness's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a test did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot run on this machine. Not a failure.
    #[error("skipped: {0}")]
    Skipped(String),
    /// Something was not as it must be: the failure a test looks for.
    #[error("{0}")]
    Failed(String),
    /// The machine refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// A command ended with another status than 0.
    #[error("{whom}: `{command}` ended with {status}:\n{output}")]
    Command {
        /// Who ran it.
        whom: String,
        /// What was run.
        command: String,
        /// Exit status.
        status: i32,
        /// What it printed.
        output: String,
    },
    /// Something took too long.
    #[error("{whom}: {what} took more than {limit:?}; the last it said:\n{so_far}")]
    Timeout {
        /// Who was waited for.
        whom: String,
        /// What for.
        what: String,
        /// How long.
        limit: Duration,
        /// The end of its output.
        so_far: String,
    },
    /// The switch answered a request with an error.
    #[error("the switch refuses {method}: {error}")]
    Refused {
        /// The method.
        method: &'static str,
        /// Its error.
        error: vswitch_api::rpc::RpcError,
    },
    /// A simulated guest: its socket, its memory, or a rule of its rings that the switch broke.
    #[error("simulated guest: {0}")]
    Sim(GuestError),
}

/// Everything a simulated guest can complain about arrives here.
macro_rules! from_guest {
    ($($error:ty),+) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Sim(error.into())
            }
        })+
    };
}

from_guest!(GuestError, FrontendError, MemoryError, DeviceFault, TxError);

/// For sockets and files that a test uses directly.
impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io {
            what: "use a socket or file of the test".into(),
            source,
        }
    }
}

impl Error {
    /// For `map_err`: says what was being done when the machine refused.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Ends the test as skipped: `skip!("needs root")`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {
        return Err($crate::Error::Skipped(format!($($reason)+)))
    };
}

/// Ends the test as failed unless the condition holds: `check!(lost == 0, "{lost} frames were lost")`.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Error::Failed(format!($($message)+)));
        }
    };
}

/// The end of a text, for messages: at most `lines` lines.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
