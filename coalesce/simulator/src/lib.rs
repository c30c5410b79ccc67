//! A switch worker and a guest in virtual time, to compare rules for when the guest is called.
//!
//! Deterministic: the same scenario gives the same figures to the last digit, on any machine, in milliseconds. It says what a
//! rule does with interrupts, CPU and delay under a model; that the model is a guest is shown elsewhere, with real
//! ones.
//!
//! The model. One worker polls: it takes what has arrived (at most 32 frames), forwards at a fixed cost a frame, publishes,
//! asks the [`Moderator`](vswitch_coalesce::Moderator), and writes a call if told to, which costs it a quarter of an
//! interrupt's cost. The guest has one CPU: an interrupt wakes it for the other three quarters, then it polls like
//! NAPI, 64 frames a round at a fixed cost each, arms its event index when it finds the ring empty, and sleeps. A guest that
//! is awake is not interrupted. Its ring has 256 entries, refilled as they are consumed; a full ring drops.
//!
//! - [`load`]: what arrives, and when.
//! - [`run`]: the simulation, and what it measures.

mod figures;
pub mod load;
mod model;

pub use figures::{Figures, percentile};
pub use load::Load;
pub use model::{Scenario, run};

use vswitch_coalesce::{Policy, Settings};

/// Costs of an interrupt, switch and guest together: a good host, an ordinary one, a nested or emulated one.
pub const INTERRUPTS_NS: [u64; 3] = [2_000, 5_000, 20_000];

/// The loads that rules are compared under.
#[must_use]
pub fn all_loads() -> Vec<Load> {
    let poisson = [1e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5].map(|rate| Load::Poisson { rate });
    let trains = [1e4, 5e4, 2e5].map(|rate| Load::OnOff { rate });
    let requests = [(1e3, 1), (1e4, 1), (5e4, 4), (1e5, 8)];
    let requests = requests.map(|(rate, connections)| Load::Rpc { rate, connections });
    let mixed = [(1e5, 5e3), (3e5, 1e4)].map(|(bulk, requests)| Load::Mixed {
        bulk,
        requests,
        connections: 1,
    });
    [poisson.as_slice(), &trains, &requests, &mixed].concat()
}

/// The static settings among which the best one is sought: microseconds and frames, 0 for none.
#[must_use]
pub fn statics() -> Vec<(u32, u16)> {
    let mut all = vec![(0, 0)];
    for usecs in [
        2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 100, 128, 200, 256, 400, 500,
    ] {
        for frames in [0, 32] {
            all.push((usecs, frames));
        }
    }
    all
}

/// Settings for one of [`statics`].
#[must_use]
pub fn fixed((usecs, frames): (u32, u16)) -> Settings {
    Settings::receive(Policy::Static)
        .with_usecs(Some(usecs))
        .with_frames(Some(frames))
}

/// Of all static settings that add, on average, no more than `mean_ns` to a frame, the one that costs least CPU a frame.
/// There is always one: to hold nothing back.
#[must_use]
pub fn best_static(scenario: &Scenario, mean_ns: f64) -> ((u32, u16), Figures) {
    let runs = statics()
        .into_iter()
        .map(|knobs| (knobs, run(scenario, &fixed(knobs))));
    let allowed =
        runs.filter(|(knobs, figures)| *knobs == (0, 0) || figures.added_mean_ns <= mean_ns);
    allowed
        .min_by(|a, b| a.1.cpu_ns_per_frame.total_cmp(&b.1.cpu_ns_per_frame))
        .unwrap_or_else(|| ((0, 0), run(scenario, &fixed((0, 0)))))
}
