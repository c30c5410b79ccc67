//! What is measured. An experiment sets its cases and contestants up and returns a report; taking
//! turns, probing and judging slices is the same for all of them and lies here.

use std::path::PathBuf;

use crate::contestant::{self, Contestant, Mover, Near, Ovs, Rules, Switch, Testpmd};
use crate::cpu::{Pinned, Placement, favour_self};
use crate::generator::{Edge, Load, Timing};
use crate::interference::{Limits, Watch, this_thread};
use crate::probe::{self, Class};
use crate::rounds::Sample;
use crate::{Options, Peer, Result};

pub mod pvp;
pub mod vvp;

/// Who takes part, and where.
struct Field {
    placement: Placement,
    favoured: bool,
    /// The switch first.
    contestants: Vec<Box<dyn Contestant>>,
    /// Peers that do not take part, with the reason.
    skipped: Vec<String>,
}

impl Field {
    /// Starts the switch and the peers asked for; all of them stand still. Two vhost ports are what testpmd
    /// and the mover have in either case.
    fn start(options: &Options, near: Near) -> Result<Self> {
        let placement = options.placement()?;
        let program: PathBuf = match &options.vswitchd {
            Some(program) => program.clone(),
            None => contestant::built()?,
        };
        let favoured = favour_self();
        let mut switch = Switch::start("vswitch", &program, placement, near)?;
        switch.stop()?;
        let mut contestants: Vec<Box<dyn Contestant>> = vec![Box::new(switch)];
        let mut skipped = Vec::new();
        let mut add = |name: &str, started: Result<Box<dyn Contestant>>| match started
            .and_then(|mut peer| peer.stop().map(|()| peer))
        {
            Ok(peer) => contestants.push(peer),
            Err(reason) => skipped.push(format!("{name}: {reason}")),
        };
        if let Some(program) = &options.against {
            let other = Switch::start("against", program, placement, near);
            add("against", other.map(|other| Box::new(other) as _));
        }
        for (peer, name, rules) in [
            (Peer::Ovs, "ovs", Rules::Learning),
            (Peer::OvsFlows, "ovs-flows", Rules::PortToPort),
        ] {
            if options.wants(peer) {
                let ovs = Ovs::start(rules, placement, near);
                add(name, ovs.map(|peer| Box::new(peer) as _));
            }
        }
        if options.wants(Peer::Testpmd) {
            add(
                "testpmd",
                Testpmd::start(placement).map(|peer| Box::new(peer) as _),
            );
        }
        if options.wants(Peer::Mover) {
            add(
                "mover",
                Mover::start(placement).map(|peer| Box::new(peer) as _),
            );
        }
        Ok(Self {
            placement,
            favoured,
            contestants,
            skipped,
        })
    }
}

/// One contestant's slice, with everything that says whether it counts.
fn slice(
    contestant: &mut dyn Contestant,
    placement: Placement,
    load: Load,
    timing: Timing,
    limits: Limits,
    round: u32,
) -> Result<Sample> {
    let before = probe::bounce(placement)?;
    let pinned = Pinned::to(placement.generator)?;
    contestant.resume()?;
    let mut tasks = contestant.tasks();
    tasks.push(this_thread());
    let (mut watch, mut interference) = (None, None);
    let result = load.slice(contestant.wire(), timing, |edge| match edge {
        Edge::Opens => watch = Some(Watch::start(placement, std::mem::take(&mut tasks))),
        Edge::IsOver => interference = watch.as_ref().map(Watch::since),
    });
    let counted = result.map_err(|error| contestant.explain(error))?;
    contestant.stop()?;
    drop(pinned);
    let after = probe::bounce(placement)?;

    let interference = interference.unwrap_or_default();
    let class = (Class::of(before), Class::of(after));
    let moved = (class.0 != class.1).then(|| "the CPUs were moved".to_owned());
    Ok(Sample {
        round,
        value: counted.mpps(),
        frames: counted.frames,
        lost: counted.lost,
        seconds: counted.window.as_secs_f64(),
        generator_idle: counted.idle,
        bounce_ns: (before, after),
        class,
        interference,
        discarded: moved.or_else(|| limits.verdict(&interference, counted.window)),
    })
}
