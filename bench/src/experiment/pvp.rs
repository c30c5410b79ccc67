//! `pvp`: NIC to guest and back at once, as many frames per second as get through in both directions together.
//!
//! The contestants' NIC is a DPDK port on the driver `net_vhost`, whose far end is the generator's: a NIC-like port that
//! can be fed from outside at the speed of memory, and that every contestant has in its own process. A frame pays for the
//! driver (one copy, in DPDK's vhost library) and for the switch's own side (another one). `net_ring`, which costs next to
//! nothing, gives back what is sent on it, unless its rings are made in the contestant's own process; `net_null` sends no
//! frames.

use crate::contestant::Near;
use crate::generator::Load;
use crate::report::Report;
use crate::{Options, Result};

/// What an MTU of 1,500 lets through.
const SIZES: [usize; 6] = [64, 128, 256, 512, 1024, 1500];
const QUICK_SIZES: [usize; 2] = [64, 1500];
const FLOWS: [u32; 2] = [1, 1024];

fn loads(quick: bool) -> Vec<Load> {
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let load = |&frame_len: &usize| FLOWS.map(|flows| Load::new(frame_len, flows).both());
    sizes.iter().flat_map(load).collect()
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Report> {
    let title = "NIC to switch to guest and back, one worker, both directions together";
    super::vvp::measure(options, ("pvp", title), Near::Nic, &loads(options.quick))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_in_every_case() {
        assert_eq!((loads(true).len(), loads(false).len()), (4, 12));
        assert!(
            loads(false)
                .iter()
                .all(|load| load.both && load.frame_len <= 1514)
        );
    }
}
