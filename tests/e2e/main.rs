//! End-to-end tests: the daemon of this build between real guests, DPDK guests and the host's kernel.
//!
//! `cargo test -p vswitch-tests --test e2e [NAME]` runs them; `tests/run` prepares the guests first and runs everything.
//! Long proofs are shortened unless `VSWITCH_TEST_FULL=1`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use vswitch_tests::suite;

mod daemon;
mod dpdk;
mod guests;
mod harness;
mod offloads;
mod restarts;
mod setup;
mod vlans;

fn main() -> ExitCode {
    let modules = [
        harness::CASES,
        daemon::CASES,
        guests::CASES,
        vlans::CASES,
        offloads::CASES,
        dpdk::CASES,
        restarts::CASES,
    ];
    suite::run(modules.concat())
}
