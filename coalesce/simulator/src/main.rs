//! Prints every rule's figures under every load.
//!
//! `cargo run -p vswitch-coalesce-sim [SHARE]`: thousandths of a CPU for calls, if not the default. `best` is the static
//! setting that costs least CPU and adds no more delay than `adaptive`, on average.

use vswitch_coalesce::{Policy, Settings};
use vswitch_coalesce_sim::{Figures, INTERRUPTS_NS, Scenario, all_loads, best_static, fixed, run};

fn main() {
    let share = std::env::args().nth(1).and_then(|arg| arg.parse().ok());
    let settings = |policy| {
        let settings = Settings::receive(policy);
        share.map_or(settings, |share| settings.with_share(share))
    };
    for interrupt_ns in INTERRUPTS_NS {
        println!("\ninterrupt {} us", interrupt_ns / 1000);
        for load in all_loads() {
            let scenario = Scenario {
                interrupt_ns,
                ..Scenario::new(load)
            };
            println!("{load:?}");
            let mut ours = Figures::default();
            for policy in Policy::ALL {
                ours = match policy {
                    Policy::Static => run(&scenario, &fixed((64, 64))),
                    policy => run(&scenario, &settings(policy)),
                };
                print(policy.name(), &ours);
            }
            let (knobs, best) = best_static(&scenario, ours.added_mean_ns);
            print(&format!("best {}/{}", knobs.0, knobs.1), &best);
        }
    }
}

fn print(name: &str, f: &Figures) {
    println!(
        "  {name:<12} {:7.0} frames/s {:7.1} ns/frame  int/frame {:.3}  share {:.3}  added mean {:6.1} p50 {:6.1} p99 {:6.1} us  latency p50 {:6.1} p99 {:6.1} us  dropped {}",
        f.rate,
        f.cpu_ns_per_frame,
        f.interrupts_per_frame(),
        f.interrupt_share,
        f.added_mean_ns / 1e3,
        f.added_p50_ns as f64 / 1e3,
        f.added_p99_ns as f64 / 1e3,
        f.latency_p50_ns as f64 / 1e3,
        f.latency_p99_ns as f64 / 1e3,
        f.dropped,
    );
}
