//! What a run found, and how it is shown: a table, raw samples as JSON, a plot.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::contestant::Rings;
use crate::generator::{Load, Timing};
use crate::interference::Limits;
use crate::machine::Notes;
use crate::rounds::Schedule;
use crate::sample::Sample;
use crate::{Error, Result};

pub use results::{ClassResult, Figure, Measure, Row, sum_up};

pub mod chart;
pub mod head;
pub mod lines;
pub mod plot;
mod results;
pub mod table;
pub mod verdict;

/// Everything there is to know about a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its name on the command line.
    pub experiment: String,
    /// What it measures.
    pub title: String,
    /// Unit of the rows that the plot shows.
    pub unit: String,
    /// On what.
    pub machine: Notes,
    /// How.
    pub settings: Settings,
    /// Name and description of who took part, the one that is compared first.
    pub contestants: Vec<(String, String)>,
    /// Who did not, and why.
    pub skipped: Vec<String>,
    /// One by one.
    pub cases: Vec<Case>,
    /// What the experiment itself has to say, a sentence each.
    pub remarks: Vec<String>,
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
    /// Virtio features the guests take if offered, as bits; packed rings come on top where a case says so.
    pub features: u64,
}

/// One load, all contestants.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What tables call it.
    pub label: String,
    /// What was sent.
    pub load: Load,
    /// Over which rings.
    pub rings: Rings,
    /// Its figures.
    pub rows: Vec<Row>,
    /// All samples by contestant, discarded ones too.
    pub samples: BTreeMap<String, Vec<Sample>>,
}

impl Case {
    /// Sums samples up, which are by contestant in the order of `names`.
    pub fn new(
        label: String,
        load: Load,
        rings: Rings,
        measures: &[Measure],
        names: &[String],
        samples: Vec<Vec<Sample>>,
    ) -> Self {
        Self {
            label,
            load,
            rings,
            rows: sum_up(measures, names, &samples),
            samples: names.iter().cloned().zip(samples).collect(),
        }
    }
}

/// What every report can be made into.
pub trait Findings: Serialize {
    /// The table, with everything a reader must know to judge it.
    fn text(&self) -> String;
    /// The plot.
    fn chart(&self) -> chart::Chart;
    /// Writes the plot to an SVG file, the chart unless there is more to show.
    fn plot(&self, path: &Path) -> Result<()> {
        self.chart().write(path)
    }
}

impl Findings for Report {
    fn text(&self) -> String {
        table::render(self)
    }

    fn chart(&self) -> chart::Chart {
        plot::chart(self)
    }
}

/// Writes a whole report.
pub fn write_json(report: &impl Serialize, path: &Path) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        std::fs::write(path, text)
    };
    write().map_err(Error::io(format!("write {}", path.display())))
}

#[cfg(test)]
pub(crate) mod testing {
    use std::time::Duration;

    use super::*;
    use crate::cpu::Placement;
    use crate::generator::Counted;
    use crate::interference::Interference;
    use crate::probe::Class;
    use crate::sample::Detail;

    pub(crate) const SHARED: (Class, Class) = (Class::Shared, Class::Shared);
    pub(crate) const SPLIT: (Class, Class) = (Class::Split, Class::Split);

    /// A slice of a second with one figure; the generator is at its limit above 25.
    pub(crate) fn sample(round: u32, value: f64, class: (Class, Class), good: bool) -> Sample {
        Sample {
            round,
            values: vec![value],
            bounce_ns: (80.0, 81.0),
            class,
            interference: Interference::default(),
            discarded: (!good).then(|| "30 ms stolen by the host".to_owned()),
            detail: Detail::Rate(Counted {
                frames: 1000,
                lost: u64::from(round) * 10,
                window: Duration::from_secs(1),
                idle: if value > 25.0 { 0.01 } else { 0.5 },
            }),
        }
    }

    /// Two cases, two contestants; in the second case nothing of the switch counts.
    pub(crate) fn report() -> Report {
        let names = vec!["vswitch".to_owned(), "testpmd".to_owned()];
        let case = |frame_len, bad: bool| {
            let slice = |round, value, good| sample(round, value, SHARED, good);
            let ours = vec![slice(0, 30.0, !bad), slice(1, 32.0, !bad)];
            let theirs = vec![slice(0, 20.0, true), slice(1, 10.0, false)];
            let label = format!("{frame_len} B, 1024 flows");
            let measures = [Measure::median("", "Mpps")];
            let load = Load::new(frame_len, 1024);
            let samples = vec![ours, theirs];
            Case::new(label, load, Rings::Split, &measures, &names, samples)
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
            remarks: vec!["All is well.".into()],
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
        assert_eq!(samples[1]["rate"]["seconds"], 1.0);
        let row = &json["cases"][0]["rows"][0];
        assert_eq!(row["results"][0]["class"], "shared");
        assert!(write_json(&report(), Path::new("/nowhere/report.json")).is_err());
    }
}
