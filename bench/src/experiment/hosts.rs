//! Who takes part where contestants are looked at from outside, and keeping account of who did.

use vswitch_simguest::SimGuest;

use crate::contestant::built;
use crate::contestant::host::{Host, Idle, Kind};
use crate::cpu::Placement;
use crate::machine::Notes;
use crate::report::head::Head;
use crate::{Options, Result};

/// The switch in these manners, another build of it if one is given, then those of the
/// peers that are asked for.
pub(super) fn kinds(options: &Options, manners: &[Idle], peers: &[Kind]) -> Result<Vec<Kind>> {
    let program = match &options.vswitchd {
        Some(program) => program.clone(),
        None => built()?,
    };
    let switch = |idle: Idle| Kind::Switch(idle.switch(), program.clone(), idle);
    let mut kinds: Vec<_> = manners.iter().copied().map(switch).collect();
    if let Some(program) = &options.against {
        kinds.push(Kind::Switch("against", program.clone(), Idle::Adaptive));
    }
    let wanted = |kind: &&Kind| kind.peer().is_some_and(|peer| options.wants(peer));
    kinds.extend(peers.iter().filter(wanted).cloned());
    Ok(kinds)
}

/// A contestant with its simulated guests.
pub(super) struct Attended {
    pub(super) name: &'static str,
    // Guests hang up before the contestant ends.
    _guests: Vec<SimGuest>,
    pub(super) host: Host,
}

/// Who has taken part so far, and who has not.
#[derive(Debug, Default)]
pub(super) struct Field {
    contestants: Vec<(String, String)>,
    skipped: Vec<String>,
}

impl Field {
    /// Starts all of them, each with so many guests; they stand still.
    pub(super) fn start(
        &mut self,
        kinds: &[Kind],
        guests: usize,
        placement: Placement,
    ) -> Result<Vec<Attended>> {
        let mut running = Vec::new();
        for (place, kind) in kinds.iter().enumerate() {
            if let Some(mut one) = self.start_one(kind, place == 0, guests, placement)? {
                one.host.stop()?;
                running.push(one);
            }
        }
        Ok(running)
    }

    /// Starts one with so many guests; it runs. Nothing if it cannot be had and is not required.
    pub(super) fn start_one(
        &mut self,
        kind: &Kind,
        required: bool,
        guests: usize,
        placement: Placement,
    ) -> Result<Option<Attended>> {
        let started = kind.start(guests, placement);
        let attended = started.and_then(|host| Ok((host.attach()?, host)));
        match attended {
            Ok((attached, host)) => {
                self.takes_part(kind.name(), host.about());
                Ok(Some(Attended {
                    name: kind.name(),
                    _guests: attached,
                    host,
                }))
            }
            Err(error) if required => Err(error),
            Err(error) => {
                self.is_left_out(&format!("{} with {guests} ports: {error}", kind.name()));
                Ok(None)
            }
        }
    }

    /// Notes somebody who takes part, once.
    pub(super) fn takes_part(&mut self, name: &str, about: &str) {
        if self.contestants.iter().all(|(other, _)| other != name) {
            self.contestants.push((name.to_owned(), about.to_owned()));
        }
    }

    /// Notes somebody who does not, with the reason.
    pub(super) fn is_left_out(&mut self, reason: &str) {
        self.skipped.push(reason.to_owned());
    }

    /// The head of the report.
    pub(super) fn head(self, experiment: &str, title: String, machine: Notes) -> Head {
        Head {
            experiment: experiment.into(),
            title,
            machine,
            contestants: self.contestants,
            skipped: self.skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_noted_once_and_the_missing_with_a_reason() {
        let mut field = Field::default();
        field.takes_part("vswitch", "1");
        field.takes_part("testpmd", "2");
        field.takes_part("vswitch", "1");
        field.is_left_out("ovs: on holiday");
        let machine = crate::report::testing::report().machine;
        let head = field.head("idle", "nothing".into(), machine);
        assert_eq!(head.contestants.len(), 2);
        assert_eq!(head.skipped, ["ovs: on holiday"]);
    }
}
