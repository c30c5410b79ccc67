//! The switch's daemon. All of it is in [`vswitch::daemon`].

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    vswitch::daemon::run(&vswitch::daemon::cli::Cli::parse())
}
