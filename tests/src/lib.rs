//! What end-to-end tests are made of: the switch from this build, real guests, DPDK guests, the kernel's network.
//!
//! A test is a function that takes a [`RunDir`] and returns a [`Result`]; a [`suite`] runs them one after the other,
//! because guests need the machine's few cores. What it starts ([`Switch`], [`Guest`], [`TestPmd`], [`Netns`],
//! [`KernelBridge`]) lives as long as the value and is gone after the drop, also when the test runner is killed: every
//! process is started with a parent-death signal. So a process must be started on the thread that will outlive it;
//! guests that should boot together are started first and waited for afterwards ([`Guest::boot_all`]).
//!
//! What goes wrong at a drop cannot be returned, so it is written to the run directory's list of complaints, which
//! fails the test too: a switch that crashed, panicked, or did not stop when asked.
//!
//! A test that cannot run here says so with [`skip!`] and is reported as ignored, with the reason. A failed test keeps
//! its directory, with the logs and consoles of everything it started.
//!
//! Limits: a console command is at most 4000 characters; run directories are short, because a socket's path has at most
//! 107 bytes; guests have up to 8 NICs.

#![forbid(unsafe_code)]

pub use account::account;
pub use control::Control;
pub use error::{Error, Result};
pub use guest::{Guest, GuestSpec, Nic, Role};
pub use iperf::{Iperf, iperf};
pub use kernel::{KernelBridge, Netns};
pub use process::Process;
pub use run_dir::RunDir;
pub use switch::Switch;
pub use testpmd::TestPmd;

mod account;
mod console;
mod control;
mod error;
pub mod fuse;
mod guest;
mod iperf;
mod kernel;
pub mod machine;
mod monitor;
mod process;
mod run_dir;
pub mod suite;
mod switch;
mod testpmd;
