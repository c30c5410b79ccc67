//! The switch's command line tool. All of it is in [`vswitch::ctl`].

#![forbid(unsafe_code)]

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    vswitch::ctl::run(&vswitch::ctl::cli::Cli::parse())
}
