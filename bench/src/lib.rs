//! Measures the switch against its peers: every claim about speed is a command that repeats it.
//!
//! ```sh
//! cargo run --release -p vswitch-bench -- vvp --quick
//! ```
//!
//! # How a figure comes about
//!
//! Two CPUs are used: one for the *generator* (two simulated guests in one thread, which send,
//! receive and check every frame), the other for the *contestant* (the switch, or a peer doing the
//! same job). All contestants are started once and stand still, stopped; then each in turn gets a
//! slice of about a second, in an order that rotates from round to round. Before and after each
//! slice a probe finds out whether the two CPUs share a cache at the moment: on virtual machines
//! that changes, and with it every figure by a factor. A slice that was disturbed is measured, kept
//! in the raw samples, and not counted. What is reported are medians of slices of one cache class,
//! and ratios to the peers of the same run.
//!
//! That is `vvp`. Experiments that look at contestants from outside (`tcp`, `guest-interrupts`, `memory`, `idle`), and those that
//! run the switch's code in their own process (`cycles`, `scale`), take turns in the same way; what is theirs alone stands
//! at their files, and so it is with `interrupts`, whose guest sleeps. `affinity` runs no switch: it measures the tables
//! that flows are steered by.
//!
//! # Where things are
//!
//! | module | is |
//! | --- | --- |
//! | [`experiment`] | what is measured; one file each |
//! | [`contestant`] | who is measured: the switch, peers, the bare mover |
//! | [`generator`] | the load: sends, receives, checks, counts; as fast as it goes or at a rate |
//! | [`napi`] | a guest that sleeps until it is interrupted, and what that costs it |
//! | [`selfdriven`] | guests and the switch's own rings in one process, for what sockets and other CPUs would hide |
//! | [`histogram`] | how often which latency was seen |
//! | [`rounds`], [`sample`] | slices in turn, and when there are enough; what a slice gave |
//! | [`probe`], [`interference`], [`wake`] | what the machine does meanwhile, and what waking somebody costs on it |
//! | [`footprint`], [`cputime`] | memory and processor time of a contestant |
//! | [`stats`], [`report`] | medians, ratios, table, JSON, plot |
//! | [`lock`], [`cpu`], [`machine`] | one measurement at a time, on which CPUs, on what machine |
//!
//! # Limits
//!
//! One worker, one queue pair, two CPUs; frames up to 9,018 bytes. Linux on x86-64. Without root it
//! works, but nothing can be given priority over other load.

#![forbid(unsafe_code)]

pub mod contestant;
pub mod cpu;
pub mod cputime;
mod error;
pub mod experiment;
pub mod footprint;
pub mod generator;
pub mod histogram;
pub mod interference;
pub mod lock;
pub mod machine;
pub mod napi;
mod options;
pub mod probe;
mod process;
pub mod report;
pub mod rounds;
pub mod sample;
pub mod selfdriven;
pub mod stats;
pub mod wake;

pub use error::{Error, Result};
pub use options::{Options, Peer, What};

/// Does what the command line asks for.
pub fn run(options: &Options) -> Result<()> {
    match options.what {
        What::List => {
            print!("{}", options::list());
            Ok(())
        }
        What::Vvp => present(&experiment::vvp::run(options)?, options),
        What::Pvp => present(&experiment::pvp::run(options)?, options),
        What::Mover => present(&experiment::mover::run(options)?, options),
        What::Ndr => present(&experiment::ndr::run(options)?, options),
        What::Latency => present(&experiment::latency::run(options)?, options),
        What::Tcp => present(&experiment::tcp::run(options)?, options),
        What::Memory => present(&experiment::memory::run(options)?, options),
        What::Idle => present(&experiment::idle::run(options)?, options),
        What::Interrupts => present(&experiment::interrupts::run(options)?, options),
        What::GuestInterrupts => present(&experiment::guest_interrupts::run(options)?, options),
        What::Cycles => present(&experiment::cycles::run(options)?, options),
        What::Scale => present(&experiment::scale::run(options)?, options),
        What::Affinity => present(&experiment::affinity::run(options)?, options),
        What::SteerSim => present(&experiment::steer_sim::run(options)?, options),
    }
}

/// Shows what was found, and writes it to the files asked for.
fn present(report: &impl report::Findings, options: &Options) -> Result<()> {
    print!("{}", report.text());
    if let Some(path) = &options.json {
        report::write_json(report, path)?;
        println!("raw samples: {}", path.display());
    }
    if let Some(path) = &options.svg {
        report.plot(path)?;
        println!("plot: {}", path.display());
    }
    Ok(())
}
