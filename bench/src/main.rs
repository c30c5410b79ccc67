//! The command `vswitch-bench`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match vswitch_bench::run(&vswitch_bench::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vswitch-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
