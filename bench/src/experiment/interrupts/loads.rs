//! Which loads there are, for which question, and at what costs.

use serde::Serialize;

use crate::contestant::host::Idle;
use crate::napi::{Costs, Traffic};
use crate::{Error, Options, Result};

/// A load, and what picks it on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Load {
    /// The tag.
    pub tag: &'static str,
    /// The load.
    pub traffic: Traffic,
}

const TAGS: [&str; 5] = ["poisson", "on-off", "requests", "mixed", "flood"];

/// What an interrupt costs: a good host, an ordinary one, a nested or emulated one.
const INTERRUPTS_NS: [u64; 3] = [2_000, 5_000, 20_000];
const QUICK_INTERRUPTS_NS: [u64; 1] = [5_000];
/// What a frame costs, and what it costs in a flood, so that the guest is surely the bottleneck.
const FRAME_NS: u64 = 300;
const FLOODED_FRAME_NS: u64 = 1_000;

/// What the worker does when idle, and the loads that go with it.
type Field = (Idle, Vec<(Load, Costs)>);

/// Loads at costs, by what the worker does when idle: as shipped where processor time is the question, polling where
/// somebody waits.
pub(super) fn by_field(options: &Options) -> Result<[Field; 2]> {
    if let Some(stranger) = options.cases.iter().find(|c| !TAGS.contains(&c.as_str())) {
        return Err(Error::Usage(format!(
            "--cases {stranger}: there are {}",
            TAGS.join(", ")
        )));
    }
    let picked =
        |load: &Load| options.cases.is_empty() || options.cases.iter().any(|case| case == load.tag);
    let loads: Vec<Load> = all(options.quick).into_iter().filter(picked).collect();
    let interrupts: &[u64] = if options.quick {
        &QUICK_INTERRUPTS_NS
    } else {
        &INTERRUPTS_NS
    };
    let at_costs = |waited_for: bool| -> Vec<(Load, Costs)> {
        let of_field = |load: &&Load| load.traffic.has_requests() == waited_for;
        let each = |interrupt_ns: &u64| {
            let costs = *interrupt_ns;
            let loads = loads.iter().filter(of_field);
            loads
                .map(move |load| (*load, costs_of(load.traffic, costs)))
                .collect::<Vec<_>>()
        };
        interrupts.iter().flat_map(each).collect()
    };
    Ok([
        (Idle::Adaptive, at_costs(false)),
        (Idle::Polls, at_costs(true)),
    ])
}

fn costs_of(traffic: Traffic, interrupt_ns: u64) -> Costs {
    Costs {
        interrupt_ns,
        frame_ns: match traffic {
            Traffic::Flood => FLOODED_FRAME_NS,
            _ => FRAME_NS,
        },
    }
}

/// All loads; requests in an open loop have the rate of those in each mix, which is what mixes are compared with.
fn all(quick: bool) -> Vec<Load> {
    let of = |tag: &'static str, all: &[Traffic]| -> Vec<Load> {
        all.iter()
            .map(|traffic| Load {
                tag,
                traffic: *traffic,
            })
            .collect()
    };
    let poisson = |rate| Traffic::Poisson { rate };
    let trains = |rate| Traffic::OnOff { rate };
    let open = |rate| Traffic::Requests { rate };
    let closed = |connections| Traffic::Closed { connections };
    let mixed = |bulk, requests| Traffic::Mixed { bulk, requests };
    let parts = if quick {
        [
            of("poisson", &[1e4, 1e5, 3e5].map(poisson)),
            of("on-off", &[5e4].map(trains)),
            of("requests", &[open(5e3), closed(8)]),
            of("mixed", &[mixed(1e5, 5e3)]),
            of("flood", &[Traffic::Flood]),
        ]
    } else {
        let mut requests = [1e3, 5e3, 1e4, 2e4, 5e4, 1e5].map(open).to_vec();
        requests.extend([1, 4, 16, 64].map(closed));
        [
            of("poisson", &[1e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5].map(poisson)),
            of("on-off", &[1e4, 5e4, 2e5].map(trains)),
            of("requests", &requests),
            of("mixed", &[mixed(1e5, 5e3), mixed(3e5, 1e4)]),
            of("flood", &[Traffic::Flood]),
        ]
    };
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn every_mix_has_its_requests_alone() {
        for quick in [false, true] {
            let loads = all(quick);
            for load in &loads {
                assert!(TAGS.contains(&load.tag));
                if let Traffic::Mixed { requests, .. } = load.traffic {
                    let alone = Traffic::Requests { rate: requests };
                    assert!(loads.iter().any(|other| other.traffic == alone));
                }
            }
        }
    }

    #[test]
    fn cases_pick_loads() {
        let of = |args: &[&str]| {
            let command = [&["vswitch-bench", "interrupts"], args].concat();
            by_field(&Options::parse_from(command))
        };
        let [(_, bulk), (idle, requests)] = of(&["--quick"]).unwrap();
        assert_eq!((bulk.len(), requests.len(), idle), (5, 3, Idle::Polls));
        let [(_, bulk), (_, requests)] = of(&["--cases", "flood"]).unwrap();
        assert_eq!((bulk.len(), requests.len()), (3, 0));
        assert_eq!(bulk[0].1.frame_ns, FLOODED_FRAME_NS);
        assert!(of(&["--cases", "floods"]).is_err());
    }
}
