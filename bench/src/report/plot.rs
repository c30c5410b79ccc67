//! The plot of frames: bars by case and contestant, of the slices that count.

use super::chart::Chart;
use super::{Case, Report, Row};
use crate::probe::Class;

/// What the labels leave out.
const CAPTION: &str = "CPUs sharing a cache unless marked";

/// The fullest class of each row in the report's unit.
pub fn chart(report: &Report) -> Chart {
    let names: Vec<_> = report
        .contestants
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    let cases = report.cases.iter();
    let rows = cases.flat_map(|case| case.rows.iter().map(move |row| (case, row)));
    let shown = rows.filter(|(_, row)| row.measure.unit == report.unit);
    let group = |(case, row): (&Case, &Row)| {
        let result = row.results.first();
        let bar = |name| result.and_then(|r| r.summaries.get(name)).copied();
        (label(case, row), names.iter().map(bar).collect())
    };
    Chart {
        title: format!("{}: {} ({CAPTION})", report.experiment, report.title),
        unit: report.unit.clone(),
        groups: shown.map(group).collect(),
        names,
    }
}

/// What stands under a row's bars.
fn label(case: &Case, row: &Row) -> String {
    let separator = if row.measure.name.is_empty() {
        ""
    } else {
        ": "
    };
    let mark = match row.results.first().map(|result| result.class) {
        Some(Class::Shared) => "",
        Some(Class::Split) => " (split)",
        None => " (none)",
    };
    format!("{}{separator}{}{mark}", case.label, row.measure.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    #[test]
    fn there_are_bars_where_slices_count() {
        let chart = chart(&testing::report());
        assert_eq!(chart.names, ["vswitch", "testpmd"]);
        let (label, bars) = &chart.groups[0];
        assert_eq!(label, "64 B, 1024 flows");
        let ours = bars[0].unwrap();
        assert_eq!((ours.min, ours.figure, ours.max), (30.0, 31.0, 32.0));
        assert!(chart.groups[1].0.ends_with("(none)"));
        assert_eq!(chart.groups[1].1, vec![None, None]);
    }
}
