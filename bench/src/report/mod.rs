//! What a run found, and how it is shown: a table, raw samples as JSON, a plot.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::generator::{Load, Timing};
use crate::interference::Limits;
use crate::machine::Notes;
use crate::rounds::{ClassResult, Sample, Schedule};
use crate::{Error, Result};

pub mod plot;
pub mod table;

/// Everything there is to know about a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its name on the command line.
    pub experiment: String,
    /// What it measures.
    pub title: String,
    /// Unit of every figure.
    pub unit: String,
    /// On what.
    pub machine: Notes,
    /// How.
    pub settings: Settings,
    /// Name and description of who took part, the switch first.
    pub contestants: Vec<(String, String)>,
    /// Who did not, and why.
    pub skipped: Vec<String>,
    /// One by one.
    pub cases: Vec<Case>,
}

/// How it was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settings {
    /// Rounds.
    pub schedule: Schedule,
    /// Length of slices.
    pub timing: Timing,
    /// When a slice does not count.
    pub limits: Limits,
    /// Entries of each ring.
    pub ring_size: u16,
    /// Virtio features the guests take if offered, as bits.
    pub features: u64,
}

/// One load, all contestants.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What was sent.
    pub load: Load,
    /// By class of slices, the fullest first; empty if no slice of the switch counts.
    pub results: Vec<ClassResult>,
    /// All slices by contestant, discarded ones too.
    pub samples: BTreeMap<String, Vec<Sample>>,
}

/// Writes the whole report.
pub fn write_json(report: &Report, path: &Path) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        std::fs::write(path, text)
    };
    write().map_err(Error::io(format!("write {}", path.display())))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::cpu::Placement;
    use crate::interference::Interference;
    use crate::probe::Class;
    use crate::rounds::sum_up;

    /// Two cases, two contestants; in the second case nothing of the switch counts.
    pub(crate) fn report() -> Report {
        let sample = |round, value, discarded: bool| Sample {
            round,
            value,
            frames: 1000,
            lost: u64::from(round) * 10,
            seconds: 1.0,
            generator_idle: if value > 25.0 { 0.01 } else { 0.5 },
            bounce_ns: (80.0, 81.0),
            class: (Class::Shared, Class::Shared),
            interference: Interference::default(),
            discarded: discarded.then(|| "30 ms stolen by the host".to_owned()),
        };
        let names = vec!["vswitch".to_owned(), "testpmd".to_owned()];
        let case = |frame_len, bad| {
            let ours = vec![sample(0, 30.0, bad), sample(1, 32.0, bad)];
            let theirs = vec![sample(0, 20.0, false), sample(1, 10.0, true)];
            let samples = vec![ours, theirs];
            Case {
                load: Load::new(frame_len, 1024),
                results: sum_up(&names, &samples),
                samples: names.iter().cloned().zip(samples).collect(),
            }
        };
        Report {
            experiment: "vvp".into(),
            title: "a & b".into(),
            unit: "Mpps".into(),
            machine: Notes::take(
                Placement {
                    generator: 0,
                    worker: 1,
                },
                false,
            ),
            settings: Settings {
                schedule: Schedule::new(2),
                timing: Timing {
                    warm_ms: 1,
                    window_ms: 2,
                },
                limits: Limits::default(),
                ring_size: 1024,
                features: 0,
            },
            contestants: names
                .iter()
                .map(|name| (name.clone(), format!("{name} 1.0")))
                .collect(),
            skipped: vec!["mover: on holiday".into()],
            cases: vec![case(64, false), case(1500, true)],
        }
    }

    #[test]
    fn json_holds_every_sample_and_its_fate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        write_json(&report(), &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let samples = &json["cases"][1]["samples"]["vswitch"];
        assert_eq!(samples.as_array().unwrap().len(), 2);
        assert_eq!(samples[1]["discarded"], "30 ms stolen by the host");
        assert_eq!(json["cases"][0]["results"][0]["class"], "shared");
        assert!(write_json(&report(), Path::new("/nowhere/report.json")).is_err());
    }
}
