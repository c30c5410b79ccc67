//! What every run begins with, and the contestants of a setup.

use std::path::{Path, PathBuf};

use crate::contestant::{
    self, Contestant, Mover, Near, Ovs, Rings, Rules, Setup, Switch, Testpmd, guest_pages,
};
use crate::cpu::{Placement, favour_self};
use crate::generator::{FEATURES, RING_SIZE, Timing};
use crate::interference::Limits;
use crate::lock::Lock;
use crate::machine::Notes;
use crate::report::{Report, Settings};
use crate::rounds::Schedule;
use crate::{Options, Peer, Result};

/// The machine is ours, and it is known what is measured.
pub(super) struct Session<'o> {
    pub(super) options: &'o Options,
    pub(super) placement: Placement,
    pub(super) settings: Settings,
    near: Near,
    notes: Notes,
    _lock: Lock,
}

/// Name, title and unit of a report.
pub(super) struct Heading {
    pub(super) experiment: &'static str,
    pub(super) title: &'static str,
    /// Of the rows that the plot shows.
    pub(super) unit: &'static str,
}

/// Who takes part, all started for the same setup; all of them stand still.
pub(super) struct Field {
    pub(super) contestants: Vec<Box<dyn Contestant>>,
    /// Peers that do not take part, with the reason.
    skipped: Vec<String>,
}

impl<'o> Session<'o> {
    /// Waits for the machine and looks around.
    pub(super) fn open(
        options: &'o Options,
        schedule: Schedule,
        timing: Timing,
        limits: Limits,
    ) -> Result<Self> {
        let lock = Lock::take()?;
        let placement = options.placement()?;
        let favoured = favour_self();
        let settings = Settings {
            schedule,
            timing,
            limits,
            ring_size: RING_SIZE,
            features: FEATURES,
        };
        Ok(Self {
            options,
            placement,
            settings,
            near: Near::Guest,
            notes: Notes::take(placement, favoured),
            _lock: lock,
        })
    }

    /// With this on guest A's side of contestants. Two vhost ports are what testpmd and the mover have in either case.
    pub(super) fn near(self, near: Near) -> Self {
        Self { near, ..self }
    }

    /// A report without anything in it.
    pub(super) fn report(&self, heading: &Heading) -> Report {
        Report {
            experiment: heading.experiment.into(),
            title: format!("{}; guests on {}", heading.title, guest_pages()),
            unit: heading.unit.into(),
            machine: self.notes.clone(),
            settings: self.settings,
            contestants: Vec::new(),
            skipped: Vec::new(),
            cases: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// For these rings and frames.
    pub(super) fn setup(&self, (rings, jumbo): (Rings, bool)) -> Setup {
        Setup {
            placement: self.placement,
            rings,
            jumbo,
            near: self.near,
        }
    }
}

impl Field {
    /// Starts the switch (`program`) and the peers asked for.
    pub(super) fn start(options: &Options, program: &Path, setup: Setup) -> Result<Self> {
        let mut switch = Switch::start("vswitch", program, setup)?;
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
            let other = Switch::start("against", program, setup);
            add("against", other.map(|other| Box::new(other) as _));
        }
        for (peer, name, rules) in [
            (Peer::Ovs, "ovs", Rules::Learning),
            (Peer::OvsFlows, "ovs-flows", Rules::PortToPort),
        ] {
            if options.wants(peer) {
                let ovs = Ovs::start(rules, setup);
                add(name, ovs.map(|peer| Box::new(peer) as _));
            }
        }
        if options.wants(Peer::Testpmd) {
            let testpmd = Testpmd::start(setup);
            add("testpmd", testpmd.map(|peer| Box::new(peer) as _));
        }
        if options.wants(Peer::Mover) {
            let mover = Mover::start(setup);
            add("mover", mover.map(|peer| Box::new(peer) as _));
        }
        Ok(Self {
            contestants,
            skipped,
        })
    }

    /// The bare mover and nobody else.
    pub(super) fn of_mover(setup: Setup) -> Result<Self> {
        let mut mover = Mover::start(setup)?;
        mover.stop()?;
        Ok(Self {
            contestants: vec![Box::new(mover)],
            skipped: Vec::new(),
        })
    }

    /// Their names, the switch first.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.contestants.iter().map(|c| c.name().to_owned());
        names.collect()
    }

    /// Enters them into a report, unless they are there already from another setup.
    pub(super) fn enter(&self, report: &mut Report, setup: Setup) {
        for contestant in &self.contestants {
            let known = |(name, _): &(String, String)| name == contestant.name();
            if !report.contestants.iter().any(known) {
                let entry = (contestant.name().into(), contestant.describe());
                report.contestants.push(entry);
            }
        }
        for reason in &self.skipped {
            let reason = format!("{}{reason}", said(setup));
            if !report.skipped.contains(&reason) {
                report.skipped.push(reason);
            }
        }
    }
}

/// What precedes a reason that holds for one setup only.
pub(super) fn said(setup: Setup) -> &'static str {
    match (setup.rings, setup.jumbo) {
        (Rings::Packed, _) => "packed rings, ",
        (_, true) => "jumbo frames, ",
        _ => "",
    }
}

/// The program to measure: the one given, or the workspace's, built now.
pub(super) fn program(options: &Options) -> Result<PathBuf> {
    match &options.vswitchd {
        Some(program) => Ok(program.clone()),
        None => contestant::built(),
    }
}
