//! The daemon of this build under simulated guests: what needs no kernel on the other side of the socket, and much that
//! no kernel would do.
//!
//! `cargo test -p vswitch-tests --test sim [NAME]` runs them; together they take about a minute. Long proofs are
//! shortened unless `VSWITCH_TEST_FULL=1`. Each test runs a daemon of its own and ends with its books: every frame is
//! delivered or dropped by name, and what the guests counted is what the switch counted.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use vswitch_tests::suite;

mod capture;
mod coalescing;
mod config;
mod conversation;
mod disturbance;
mod fdb;
mod forwarding;
mod hostile;
mod load;
mod multiqueue;
mod nic;
mod numa;
mod offload_matrix;
mod offloads;
mod packed;
mod regressions;
mod restarts;
mod sessions;
mod setup;
mod sharing;
mod steering;
mod strangers;
mod vlans;
mod wakeups;
mod workers;

fn main() -> ExitCode {
    let modules = [
        forwarding::CASES,
        fdb::CASES,
        vlans::CASES,
        offload_matrix::CASES,
        offloads::CASES,
        hostile::CASES,
        strangers::CASES,
        sessions::CASES,
        disturbance::CASES,
        conversation::CASES,
        multiqueue::CASES,
        steering::CASES,
        nic::CASES,
        numa::CASES,
        wakeups::CASES,
        config::CASES,
        capture::CASES,
        regressions::CASES,
        restarts::CASES,
        packed::CASES,
        workers::CASES,
        sharing::CASES,
        coalescing::CASES,
    ];
    suite::run(modules.concat())
}
