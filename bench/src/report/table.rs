//! The table on standard output.

use std::fmt::Write as _;

use super::{Case, Report, Row};
use crate::machine::Notes;
use crate::stats::Summary;

/// Part of its turns that a generator waits which is not the limit.
const HARDLY: f64 = 0.05;

/// The report as text: figures, ratios, and what one must know to judge them.
pub fn render(report: &Report) -> String {
    joined(preamble(report)) + &body(report)
}

/// The same without what was measured, of whom, and on what.
pub fn body(report: &Report) -> String {
    let names: Vec<&str> = report
        .contestants
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let measured: Vec<_> = report
        .cases
        .iter()
        .flat_map(|case| case.rows.iter().map(move |row| (case, row)))
        .collect();
    let mut lines = vec![String::new()];
    lines.extend(figures(&measured, &names));
    if names.len() > 1 {
        lines.push(String::new());
        lines.push(format!("{} in parts of each of the others:", names[0]));
        lines.extend(ratios(&measured, &names));
    }
    lines.push(String::new());
    lines.push(
        "Medians of the slices that count; ratios of these figures, and the range of ratios by round."
            .into(),
    );
    lines.extend(remarks(report));
    joined(lines)
}

fn joined(lines: Vec<String>) -> String {
    let mut text = String::new();
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The machine in two lines.
pub(super) fn machine_lines(machine: &Notes) -> [String; 2] {
    let virtual_machine = if machine.virtualised {
        " (virtual)"
    } else {
        ""
    };
    [
        format!(
            "{} x {}{virtual_machine}, Linux {}, governor {}; generator on CPU {}, contestants on CPU {}",
            machine.cpus,
            machine.cpu,
            machine.kernel,
            machine.governor.as_deref().unwrap_or("not known"),
            machine.placement.generator,
            machine.placement.worker,
        ),
        format!(
            "load at the start {}, priority raised: {}",
            machine.load, machine.favoured
        ),
    ]
}

/// What was measured, of whom, and on what.
fn preamble(report: &Report) -> Vec<String> {
    let title = format!("{}: {}", report.experiment, report.title);
    let mut lines = vec![String::new(), title];
    lines.extend(machine_lines(&report.machine));
    for (name, description) in &report.contestants {
        lines.push(format!("{name:9} {description}"));
    }
    lines
}

/// Columns that say what a line is about.
struct Stub {
    case: usize,
    measure: usize,
}

impl Stub {
    fn of(measured: &[(&Case, &Row)]) -> Self {
        let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or_default();
        Self {
            case: width(&mut measured.iter().map(|(case, _)| case.label.len())).max(4),
            measure: width(&mut measured.iter().map(|(_, row)| name(row).len())),
        }
    }

    fn line(&self, case: &str, measure: &str, class: &str) -> String {
        let Self {
            case: wide,
            measure: narrow,
        } = self;
        format!("{case:wide$}  {measure:narrow$}  {class:6}")
    }
}

/// A row's name with its unit.
fn name(row: &Row) -> String {
    let separator = if row.measure.name.is_empty() {
        ""
    } else {
        ", "
    };
    format!("{}{separator}{}", row.measure.name, row.measure.unit)
}

fn figures(measured: &[(&Case, &Row)], names: &[&str]) -> Vec<String> {
    let stub = Stub::of(measured);
    let mut heading = stub.line("case", "", "cache");
    // Wide enough for figures, and for the name above them.
    let wide = |name: &str| name.len().max(9);
    for name in names {
        heading += &format!(" {name:>0$}", wide(name));
    }
    let mut lines = vec![heading + "   slices"];
    for (case, row) in measured {
        if row.results.is_empty() {
            let nobody = format!("no slice of {} counts", names.first().unwrap_or(&"anybody"));
            lines.push(stub.line(&case.label, &name(row), "") + " " + &nobody);
        }
        for result in &row.results {
            let mut line = stub.line(&case.label, &name(row), result.class.name());
            let mut counts = Vec::new();
            for name in names {
                let summary = result.summaries.get(*name);
                let figure = summary.map_or("-".into(), |s| number(s.figure));
                line += &format!(" {figure:>0$}", wide(name));
                counts.push(summary.map_or(0, |s| s.count).to_string());
            }
            lines.push(format!("{line}   {}", counts.join("/")));
        }
    }
    lines
}

/// Two decimals, or a power of ten where those say nothing.
fn number(value: f64) -> String {
    if value > 0.0 && value < 0.005 {
        format!("{value:.1e}")
    } else {
        format!("{value:.2}")
    }
}

fn ratios(measured: &[(&Case, &Row)], names: &[&str]) -> Vec<String> {
    let compared: Vec<_> = measured
        .iter()
        .filter(|(_, row)| row.measure.ratios)
        .copied()
        .collect();
    let stub = Stub::of(&compared);
    let mut heading = stub.line("case", "", "cache");
    for name in names.iter().skip(1) {
        heading += &format!("   {:19}", format!("/ {name}"));
    }
    let mut lines = vec![heading];
    for (case, row) in compared {
        for result in &row.results {
            let mut line = stub.line(&case.label, &name(row), result.class.name());
            for name in names.iter().skip(1) {
                let ratio = result.ratios.get(*name).map_or("-".into(), |ratio| {
                    let spread = ratio.spread.map_or(String::new(), |(min, max)| {
                        format!(" ({min:.2} to {max:.2})")
                    });
                    format!("{:.2}{spread}", ratio.of_figures)
                });
                line += &format!("   {ratio:19}");
            }
            lines.push(line);
        }
    }
    lines
}

/// What a reader must know to judge the figures.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = report.remarks.clone();
    let samples = || report.cases.iter().flat_map(|case| &case.samples);
    let all: usize = samples().map(|(_, samples)| samples.len()).sum();
    let discarded: usize = samples()
        .flat_map(|(_, s)| s)
        .filter(|s| s.counts_for().is_none())
        .count();
    if discarded > 0 {
        remarks.push(format!(
            "{discarded} of {all} slices do not count: disturbed, or the CPUs were moved meanwhile."
        ));
    }
    for (name, _) in &report.contestants {
        let of_one = samples().filter(|(n, _)| *n == name);
        let counted = of_one.flat_map(|(_, s)| s).filter_map(|s| s.counted());
        let (lost, frames) = counted.fold((0, 0), |sum, c| (sum.0 + c.lost, sum.1 + c.frames));
        if lost > 0 {
            let part = lost as f64 / (lost + frames) as f64;
            remarks.push(format!(
                "{name} lost {lost} frames, {part:.1e} of those it took, when offered more than it forwards."
            ));
        }
    }
    let limited = at_the_generators_limit(report);
    if !limited.is_empty() {
        remarks.push(format!(
            "The generator hardly waited for {}: there it may be the limit, not the contestant.",
            limited.join(", ")
        ));
    }
    remarks.extend(
        report
            .skipped
            .iter()
            .map(|reason| format!("Not measured: {reason}")),
    );
    remarks
}

/// Contestant and case wherever the generator was busy all the time.
fn at_the_generators_limit(report: &Report) -> Vec<String> {
    let mut found = Vec::new();
    for (name, _) in &report.contestants {
        for case in &report.cases {
            let samples = case.samples.get(name).into_iter().flatten();
            let good = samples.filter(|sample| sample.counts_for().is_some());
            let idle = Summary::of(good.filter_map(|s| Some(s.counted()?.idle)));
            if idle.is_some_and(|idle| idle.figure < HARDLY) {
                found.push(format!("{name} ({})", case.label));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_figures_and_gaps() {
        let text = render(&crate::report::testing::report());
        let rows = |start: &str| -> Vec<String> {
            let rows = text.lines().filter(|line| line.starts_with(start));
            let words = rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "));
            words.collect()
        };
        assert_eq!(
            rows("64 B, 1024 flows"),
            [
                "64 B, 1024 flows Mpps shared 31.00 20.00 2/1",
                "64 B, 1024 flows Mpps shared 1.55 (1.50 to 1.50)"
            ]
        );
        assert_eq!(
            rows("1500 B"),
            ["1500 B, 1024 flows Mpps no slice of vswitch counts"]
        );
        assert!(text.contains("4 of 8 slices do not count"));
        assert!(text.contains("vswitch lost 20 frames, 5.0e-3"));
        assert!(text.contains("hardly waited for vswitch (64 B, 1024 flows): "));
        assert!(text.contains("Not measured: mover: on holiday"));
        assert!(text.contains("All is well."));
        assert!(text.lines().all(|line| line.len() <= 140), "{text}");
    }

    #[test]
    fn small_numbers_do_not_vanish() {
        let numbers = [0.0, 1e-5, 0.0049, 0.005, 12.345].map(number);
        assert_eq!(numbers, ["0.00", "1.0e-5", "4.9e-3", "0.01", "12.35"]);
    }

    #[test]
    fn a_row_without_ratios_is_not_compared() {
        let mut report = crate::report::testing::report();
        let row = &mut report.cases[0].rows[0];
        row.measure.ratios = false;
        let text = render(&report);
        let rows = text.lines().filter(|line| line.starts_with("64 B, 1024"));
        assert_eq!(rows.count(), 1);
    }
}
