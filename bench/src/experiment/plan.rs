//! Cases before they are measured: what is sent, over which rings, and which of them are asked for.

use std::collections::BTreeSet;

use crate::contestant::{PLAIN, Rings};
use crate::generator::Load;
use crate::{Error, Result};

/// A case to be measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// What picks it on the command line.
    pub(super) tag: String,
    pub(super) load: Load,
    pub(super) rings: Rings,
}

impl Plan {
    /// Over split rings, tagged with its frame size.
    pub(super) fn of_size(load: Load) -> Self {
        let tag = if load.imix {
            "imix".into()
        } else {
            format!("{}B", load.frame_len)
        };
        Self::tagged(&tag, load)
    }

    /// Over split rings.
    pub(super) fn tagged(tag: &str, load: Load) -> Self {
        Self {
            tag: tag.into(),
            load,
            rings: Rings::Split,
        }
    }

    /// Over packed rings.
    pub(super) fn packed(load: Load) -> Self {
        Self {
            rings: Rings::Packed,
            ..Self::tagged("packed", load)
        }
    }

    /// What tables call it.
    pub(super) fn label(&self) -> String {
        let Load {
            frame_len,
            flows,
            imix,
            macs,
            touch,
            both,
        } = self.load;
        let mut label = if imix {
            "IMIX".into()
        } else {
            format!("{frame_len} B")
        };
        label += &match flows {
            1 => ", 1 flow".into(),
            flows if flows % (1 << 20) == 0 => format!(", {} Mi flows", flows >> 20),
            flows => format!(", {flows} flows"),
        };
        if macs > 1 {
            label += &format!(", {macs} MACs");
        }
        for (holds, words) in [
            (both, "both directions"),
            (touch, "payload touched"),
            (self.rings == Rings::Packed, "packed rings"),
        ] {
            if holds {
                label += &format!(", {words}");
            }
        }
        label
    }

    /// What contestants have to be started for: ring layout, and whether frames are longer than all take.
    pub(super) fn setup(&self) -> (Rings, bool) {
        (self.rings, self.load.frame_len > PLAIN)
    }
}

/// The plans whose tags are wanted, in their order; all of them if nothing is said.
pub(super) fn pick(plans: Vec<Plan>, wanted: &[String]) -> Result<Vec<Plan>> {
    let known: BTreeSet<&str> = plans.iter().map(|plan| plan.tag.as_str()).collect();
    if let Some(stranger) = wanted.iter().find(|tag| !known.contains(tag.as_str())) {
        let mut tags: Vec<&str> = Vec::new();
        for plan in &plans {
            if !tags.contains(&plan.tag.as_str()) {
                tags.push(&plan.tag);
            }
        }
        return Err(Error::Usage(format!(
            "--cases {stranger}: there are {}",
            tags.join(", ")
        )));
    }
    let mut plans = plans;
    plans.retain(|plan| wanted.is_empty() || wanted.contains(&plan.tag));
    Ok(plans)
}

/// Plans by what contestants have to be started for, in the order in which that first appears.
pub(super) fn by_setup(plans: Vec<Plan>) -> Vec<Vec<Plan>> {
    let mut groups: Vec<Vec<Plan>> = Vec::new();
    for plan in plans {
        let same = |group: &&mut Vec<Plan>| {
            let first = group.first();
            first.is_some_and(|first| first.setup() == plan.setup())
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(plan),
            None => groups.push(vec![plan]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> Vec<Plan> {
        vec![
            Plan::of_size(Load::new(64, 1)),
            Plan::packed(Load::new(64, 1024)),
            Plan::of_size(Load::new(9000, 1)),
            Plan::of_size(Load::imix(1)),
            Plan::tagged("flows", Load::new(64, 1 << 20)),
        ]
    }

    #[test]
    fn labels_say_what_is_special() {
        let labels: Vec<_> = plans().iter().map(Plan::label).collect();
        assert_eq!(
            labels,
            [
                "64 B, 1 flow",
                "64 B, 1024 flows, packed rings",
                "9000 B, 1 flow",
                "IMIX, 1 flow",
                "64 B, 1 Mi flows"
            ]
        );
        let all = Plan::tagged("x", Load::new(64, 1).macs(8).both().touch());
        assert_eq!(
            all.label(),
            "64 B, 8 flows, 8 MACs, both directions, payload touched"
        );
    }

    #[test]
    fn tags_pick() {
        let tags = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            pick(plans(), &wanted).map(|plans| plans.into_iter().map(|p| p.tag).collect::<Vec<_>>())
        };
        assert_eq!(tags(&["flows", "64B"]).unwrap(), ["64B", "flows"]);
        assert_eq!(tags(&[]).unwrap().len(), 5);
        let error = tags(&["64"]).unwrap_err().to_string();
        assert!(error.contains("64B, packed, 9000B, imix, flows"), "{error}");
    }

    #[test]
    fn contestants_are_started_once_for_what_goes_together() {
        let groups = by_setup(plans());
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1]);
        assert_eq!(groups[2][0].setup(), (Rings::Split, true));
    }
}
