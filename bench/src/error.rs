//! What can go wrong, each in a sentence for the person at the terminal.

use std::io;

use vswitch_simguest::GuestError;
use vswitch_simguest::driver::{DeviceFault, TxError};
use vswitch_simguest::memory::MemoryError;
use vswitch_simguest::traffic::Tally;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// The machine refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// The switch does not build.
    #[error("the switch does not build, so there is nothing to measure:\n{0}")]
    Build(String),
    /// A peer that is not installed. Not fatal: the peer is left out.
    #[error("{program} is not installed (Debian package {package})")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// Where it is to be had.
        package: &'static str,
    },
    /// Too few hugepages are free. Not fatal: the peer is left out.
    #[error("{wanted} hugepages of 2 MiB must be free, {free} are; see /proc/sys/vm/nr_hugepages")]
    Hugepages {
        /// How many are needed.
        wanted: u64,
        /// How many there are.
        free: u64,
    },
    /// Packed rings were asked for. Not fatal: those cases are left out.
    #[error("does not offer packed rings")]
    SplitOnly,
    /// A contestant ended, or does not answer.
    #[error("{whom}: {what}; the last it said:\n{log}")]
    Contestant {
        /// Who.
        whom: String,
        /// What happened.
        what: String,
        /// The end of its output.
        log: String,
    },
    /// No frame came through.
    #[error("no frame came through within {0} s")]
    Silent(u64),
    /// Frames came back in the wrong order, or are not those that were sent.
    #[error("what arrived is not what was sent: {late} frames late or twice, {alien} unknown, of {frames}", late = .0.late, alien = .0.alien, frames = .0.frames)]
    Content(Tally),
    /// Frames did not go the way that was to be measured.
    #[error(
        "of {received} frames {switched} were let in, and {copies} copies made, or some addresses were not known"
    )]
    Astray {
        /// Frames taken.
        received: u64,
        /// Those that went somewhere.
        switched: u64,
        /// To how many ports in all.
        copies: u64,
    },
    /// A ring of the bench's own does not start.
    #[error("self-driven rings: {0}")]
    Ring(#[from] vswitch_vhost::StandaloneError),
    /// Guest memory as the switch maps it.
    #[error("self-driven rings: {0}")]
    Mapping(#[from] vswitch_vhost::memory::MemoryError),
    /// Frames sent never came back to the sender.
    #[error("the contestant holds on to frames: they did not come back within {0} s")]
    Held(u64),
    /// The simulated guest's session.
    #[error("simulated guest: {0}")]
    Guest(#[from] GuestError),
    /// The simulated guest's device broke a rule.
    #[error("the device broke a rule of virtio: {0}")]
    Fault(#[from] DeviceFault),
    /// A frame could not be queued.
    #[error("simulated guest: {0}")]
    Tx(#[from] TxError),
    /// Guest memory.
    #[error("simulated guest: {0}")]
    Memory(#[from] MemoryError),
    /// A Linux guest, or the kernel bridge.
    #[error(transparent)]
    Machine(#[from] vswitch_tests::Error),
    /// The plot could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}

impl Error {
    /// For `map_err`: says what was being done when the machine refused.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }
}
