//! `memory`: what memory a switch takes with 2, 16 and 64 guests attached. Guest memory is not counted.
//!
//! One contestant at a time, freshly started; every guest's session is up, and every guest has been heard by another
//! one. Each with the memory that it takes by default.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::hosts;
use crate::contestant::host::{Idle, Kind};
use crate::contestant::ovs::Settings;
use crate::footprint::Footprint;
use crate::lock::Lock;
use crate::machine::Notes;
use crate::report::Findings;
use crate::report::chart::Chart;
use crate::report::head::{Head, columns};
use crate::stats::Summary;
use crate::{Options, Result};

/// Ports, each with a guest.
const PORTS: [usize; 3] = [2, 16, 64];
/// How long a contestant gets to come to rest.
const SETTLE: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// On what, and who.
    #[serde(flatten)]
    pub head: Head,
    /// By number of ports.
    pub cases: Vec<Case>,
}

/// All contestants with so many ports.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// How many.
    pub ports: usize,
    /// By contestant.
    pub footprints: BTreeMap<String, Footprint>,
}

/// Measures all cases. `--quick` leaves out nothing: there is nothing to repeat.
pub fn run(options: &Options) -> Result<Report> {
    let _lock = Lock::take()?;
    let placement = options.placement()?;
    let machine = Notes::take(placement, false);
    let kinds = hosts::kinds(
        options,
        &[Idle::Adaptive],
        &[Kind::Ovs(Settings::DEFAULT), Kind::Testpmd],
    )?;
    let mut field = hosts::Field::default();
    let mut cases = Vec::new();
    for ports in PORTS {
        let mut footprints = BTreeMap::new();
        for (place, kind) in kinds.iter().enumerate() {
            if !takes_part(kind, ports) {
                continue;
            }
            eprintln!("{} with {ports} ports", kind.name());
            if let Some(one) = field.start_one(kind, place == 0, ports, placement)? {
                std::thread::sleep(SETTLE);
                footprints.insert(one.name.into(), Footprint::of(one.host.pid())?);
            }
        }
        cases.push(Case { ports, footprints });
    }
    let title = "by number of ports, each with a guest; guest memory not counted";
    Ok(Report {
        head: field.head("memory", title.into(), machine),
        cases,
    })
}

/// testpmd forwards between pairs of ports: more of them are no switch, only more wires.
fn takes_part(kind: &Kind, ports: usize) -> bool {
    !matches!(kind, Kind::Testpmd) || ports == 2
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

impl Case {
    fn rows(&self, names: &[String]) -> Vec<Vec<String>> {
        let ours = names.first().and_then(|name| self.footprints.get(name));
        let row = |(place, name): (usize, &String)| {
            let footprint = self.footprints.get(name)?;
            let ratio = ours.filter(|_| place > 0).map(|ours| {
                let ratio = ours.total_kib() as f64 / footprint.total_kib().max(1) as f64;
                format!("{ratio:.3}")
            });
            Some(vec![
                name.clone(),
                self.ports.to_string(),
                format!("{:.1}", mib(footprint.private_kib)),
                format!("{:.0}", mib(footprint.huge_kib)),
                format!("{:.1}", mib(footprint.total_kib())),
                ratio.unwrap_or_default(),
            ])
        };
        names.iter().enumerate().filter_map(row).collect()
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        let names = self.head.names();
        let ours = names.first().map_or("", String::as_str);
        let last = format!("{ours} / it");
        let heading = ["", "ports", "private", "hugepages", "together", &last];
        let mut rows = vec![heading.map(String::from).to_vec()];
        rows.extend(self.cases.iter().flat_map(|case| case.rows(&names)));
        format!(
            "{}{}\nMiB. Private: resident pages that only this process maps. Guest memory is not counted.\n{}",
            self.head.render(),
            columns(&rows, 1),
            self.head.not_measured()
        )
    }

    fn chart(&self) -> Chart {
        let names = self.head.names();
        let group = |case: &Case| {
            let bar = |name| Summary::of([mib(case.footprints.get(name)?.total_kib())]);
            (
                format!("{} ports", case.ports),
                names.iter().map(bar).collect(),
            )
        };
        Chart {
            title: format!("{}: {}", self.head.experiment, self.head.title),
            unit: "MiB".into(),
            groups: self.cases.iter().map(group).collect(),
            names,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_summed_and_compared() {
        let footprint = |private_kib, huge_kib| Footprint {
            private_kib,
            huge_kib,
            guests_kib: 1 << 30,
        };
        let footprints = [
            ("vswitch".to_owned(), footprint(10 << 10, 0)),
            ("ovs".to_owned(), footprint(50 << 10, 150 << 10)),
        ];
        let mut field = hosts::Field::default();
        for name in ["vswitch", "ovs", "testpmd"] {
            field.takes_part(name, "");
        }
        let machine = crate::report::testing::report().machine;
        let report = Report {
            head: field.head("memory", "by ports".into(), machine),
            cases: vec![Case {
                ports: 16,
                footprints: footprints.into(),
            }],
        };
        let text = report.text();
        let row = |start: &str| {
            let mut rows = text.lines().filter(|line| line.starts_with(start));
            let last = rows.next_back().unwrap_or_default();
            last.split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
        };
        assert_eq!(row("vswitch"), ["vswitch", "16", "10.0", "0", "10.0"]);
        assert_eq!(row("ovs"), ["ovs", "16", "50.0", "150", "200.0", "0.050"]);
        let bars = &report.chart().groups[0].1;
        assert_eq!(bars[1].map(|bar| bar.figure), Some(200.0));
        assert_eq!(bars[2], None);
    }

    #[test]
    fn testpmd_is_two_ports() {
        assert!(takes_part(&Kind::Testpmd, 2) && !takes_part(&Kind::Testpmd, 16));
        assert!(takes_part(
            &Kind::Switch("vswitch", "/x".into(), Idle::Adaptive),
            64
        ));
    }
}
