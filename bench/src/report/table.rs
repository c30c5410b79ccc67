//! The table on standard output.

use std::fmt::Write as _;

use super::{Case, Report};
use crate::generator::Load;
use crate::rounds::ClassResult;
use crate::stats::Summary;

/// Part of its turns that a generator waits which is not the limit.
const HARDLY: f64 = 0.05;

/// The report as text, 100 columns or so.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |text_of_line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", text_of_line.trim_end());
    };
    let machine = &report.machine;
    line(format!(
        "\n{}: {}, {}",
        report.experiment, report.title, report.unit
    ));
    let virtual_machine = if machine.virtualised {
        " (virtual)"
    } else {
        ""
    };
    line(format!(
        "{} x {}{virtual_machine}, Linux {}, governor {}; generator on CPU {}, contestants on CPU {}",
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.governor.as_deref().unwrap_or("not known"),
        machine.placement.generator,
        machine.placement.worker,
    ));
    line(format!(
        "load at the start {}, priority raised: {}",
        machine.load, machine.favoured
    ));
    for (name, description) in &report.contestants {
        line(format!("{name:8} {description}"));
    }
    line(String::new());

    let names: Vec<&str> = report
        .contestants
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    line(heading(&names));
    for case in &report.cases {
        for row in rows(case, &names) {
            line(row);
        }
    }
    line(String::new());
    line(
        "Medians of the slices that count; ratios of medians, and the range of ratios by round."
            .into(),
    );
    for remark in remarks(report) {
        line(remark);
    }
    text
}

fn heading(names: &[&str]) -> String {
    let mut text = format!("{:>5} {:>6} {:7}", "bytes", "flows", "cache");
    for name in names {
        text += &format!(" {name:>8}");
    }
    for name in names.iter().skip(1) {
        text += &format!("   {:19}", format!("/ {name}"));
    }
    text + "   slices"
}

fn rows(case: &Case, names: &[&str]) -> Vec<String> {
    let start = format!("{:>5} {:>6}", case.load.frame_len, case.load.flows);
    if case.results.is_empty() {
        return vec![format!(
            "{start} no slice of {} counts",
            names.first().unwrap_or(&"anybody")
        )];
    }
    let row = |result: &ClassResult| {
        let mut text = format!("{start} {:7}", result.class.name());
        let mut counts = Vec::new();
        for name in names {
            let summary = result.summaries.get(*name);
            text += &summary.map_or(format!(" {:>8}", "-"), |s| format!(" {:>8.2}", s.median));
            counts.push(summary.map_or(0, |s| s.count).to_string());
        }
        for name in names.iter().skip(1) {
            let ratio = result.ratios.get(*name).map_or("-".into(), |ratio| {
                let spread = ratio.spread.map_or(String::new(), |(min, max)| {
                    format!(" ({min:.2} to {max:.2})")
                });
                format!("{:.2}{spread}", ratio.of_medians)
            });
            text += &format!("   {ratio:19}");
        }
        format!("{text}   {}", counts.join("/"))
    };
    case.results.iter().map(row).collect()
}

/// What a reader must know to judge the figures.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
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
        let of_one = || samples().filter(|(n, _)| *n == name).flat_map(|(_, s)| s);
        let (lost, frames) = of_one().fold((0, 0), |sum, s| (sum.0 + s.lost, sum.1 + s.frames));
        if lost > 0 {
            let part = lost as f64 / (lost + frames) as f64;
            remarks.push(format!(
                "{name} lost {lost} frames, {part:.1e} of those it took."
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
            let counted = case.samples.get(name).into_iter().flatten();
            let counted = counted.filter(|sample| sample.counts_for().is_some());
            let idle = Summary::of(counted.map(|sample| sample.generator_idle));
            if idle.is_some_and(|idle| idle.median < HARDLY) {
                let Load {
                    frame_len, flows, ..
                } = case.load;
                found.push(format!("{name} ({frame_len} B, {flows} fl.)"));
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
        let row = |start: &str| {
            text.lines()
                .find(|l| l.trim_start().starts_with(start))
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            row("64 ").split_whitespace().collect::<Vec<_>>(),
            [
                "64", "1024", "shared", "31.00", "20.00", "1.55", "(1.50", "to", "1.50)", "2/1"
            ]
        );
        assert!(row("1500 ").ends_with("no slice of vswitch counts"));
        assert!(text.contains("4 of 8 slices do not count"));
        assert!(text.contains("vswitch lost 20 frames, 5.0e-3"));
        assert!(text.contains("hardly waited for vswitch (64 B, 1024 fl.): "));
        assert!(text.contains("Not measured: mover: on holiday"));
        assert!(text.lines().all(|line| line.len() <= 140), "{text}");
    }
}
