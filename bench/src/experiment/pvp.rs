//! `pvp`: NIC to guest and back at once, as many frames per second as get through in both directions together.
//!
//! The contestants' NIC is a DPDK port on the driver `net_vhost`, whose far end is the generator's: a NIC-like port that
//! can be fed from outside at the speed of memory, and that every contestant has in its own process. A frame pays for the
//! driver (one copy, in DPDK's vhost library) and for the switch's own side (another one). `net_ring`, which costs next to
//! nothing, gives back what is sent on it, unless its rings are made in the contestant's own process; `net_null` sends no
//! frames.

use super::Heading;
use super::plan::{Plan, pick};
use super::vvp::{measure, open};
use crate::contestant::Near;
use crate::generator::Load;
use crate::report::Report;
use crate::{Options, Result};

/// What an MTU of 1,500 lets through.
const SIZES: [usize; 6] = [64, 128, 256, 512, 1024, 1500];
const QUICK_SIZES: [usize; 2] = [64, 1500];
const FLOWS: [u32; 2] = [1, 1024];

const HEADING: Heading = Heading {
    experiment: "pvp",
    title: "NIC to switch to guest and back, one worker, both directions together",
    unit: "Mpps",
};

fn plans(quick: bool) -> Vec<Plan> {
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let plan = |len: &usize| FLOWS.map(|flows| Plan::of_size(Load::new(*len, flows).both()));
    sizes.iter().flat_map(plan).collect()
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let quick = options.quick && options.cases.is_empty();
    let plans = pick(plans(quick), &options.cases)?;
    measure(&open(options)?.near(Near::Nic), &HEADING, plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_in_every_case() {
        assert_eq!((plans(true).len(), plans(false).len()), (4, 12));
        assert!(
            plans(false)
                .iter()
                .all(|plan| plan.load.both && plan.load.frame_len <= 1514)
        );
    }
}
