//! Whether the switch is idle enough, and fast enough when it no longer is.

use crate::report::verdict::Verdict;
use crate::report::{ClassResult, Report};

use super::busy::WAKE_UP;
use super::{Case, OURS};

/// Guests that are silent, and what they may cost, percent of a CPU.
const SILENT: (usize, f64) = (16, 1.0);
/// What the first frame may take beyond waking a thread, microseconds.
const BEYOND: f64 = 10.0;
/// Part of always polling's time that a tenth of its rate may take.
const SHARE: f64 = 0.25;
/// How far from always polling the highest rate may be.
const CLOSE: f64 = 0.02;
/// Who always polls.
const POLLS: &str = "vswitch-poll";

/// Of silent guests.
pub(super) fn of_silence(cases: &[Case]) -> Verdict {
    let case = cases.iter().find(|case| case.guests == SILENT.0);
    let percent = case.and_then(|case| case.of(OURS, |used| used.percent));
    let claim = format!(
        "{} silent guests cost at most {} % of a CPU",
        SILENT.0, SILENT.1
    );
    let range = percent.map_or(String::new(), |p| format!("{:.2} to {:.2}", p.min, p.max));
    Verdict::at_most(claim, percent.map(|p| p.figure), SILENT.1, " %").and(range)
}

/// Of the loads of [`busy`](super::busy), in its order: lines of the report, one for each class of slices.
pub(super) fn of_load(report: &Report) -> Vec<String> {
    let claims = [
        format!("the first frame takes at most {BEYOND} us (p50) longer than waking a thread"),
        tenth("evenly"),
        tenth("in trains"),
        format!(
            "the highest rate is within {:.0} % of always polling's",
            CLOSE * 100.0
        ),
    ];
    let mut lines = Vec::new();
    for (number, claim) in claims.into_iter().enumerate() {
        let row = report.cases.get(number).and_then(|case| case.rows.first());
        let results = row.map_or(&[][..], |row| row.results.as_slice());
        let of = |result| match number {
            0 => first(result, &claim),
            3 => of_ratio(result, &claim, |ratio| 1.0 - ratio, CLOSE),
            _ => of_ratio(result, &claim, |ratio| ratio, SHARE),
        };
        lines.extend(results.iter().filter_map(of).map(|found| found.line()));
        if results.iter().all(|result| of(result).is_none()) {
            lines.push(Verdict::at_most(claim, None, 0.0, "").line());
        }
    }
    lines
}

fn tenth(how: &str) -> String {
    format!(
        "a tenth of the highest rate, {how}, takes at most {:.0} % of always polling's time",
        SHARE * 100.0
    )
}

/// How much longer than a wake-up.
fn first(result: &ClassResult, claim: &str) -> Option<Verdict> {
    let figure = |name| Some(result.summaries.get(name)?.figure);
    let (ours, woken) = (figure(OURS)?, figure(WAKE_UP)?);
    let found = Verdict::at_most(claim, Some(ours - woken), BEYOND, " us");
    Some(
        found
            .and(format!("{ours:.1} against {woken:.1}"))
            .and(result.class.name()),
    )
}

/// The ratio to always polling, made into what must not be above the limit; in percent.
fn of_ratio(
    result: &ClassResult,
    claim: &str,
    figure: impl Fn(f64) -> f64,
    limit: f64,
) -> Option<Verdict> {
    let ratio = result.ratios.get(POLLS)?;
    let spread = ratio.spread.map_or(String::new(), |(min, max)| {
        format!("ratios {min:.3} to {max:.3}")
    });
    let percent = figure(ratio.of_figures) * 100.0;
    let found = Verdict::at_most(claim, Some(percent), limit * 100.0, " %");
    Some(found.and(spread).and(result.class.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Rings;
    use crate::generator::Load;
    use crate::report::Measure;
    use crate::report::testing::{SHARED, report, sample};

    /// A case in which the switch has one figure, and somebody else another.
    fn case(ours: f64, (name, theirs): (&str, f64)) -> crate::report::Case {
        let names = [OURS, name].map(String::from);
        let samples = [ours, theirs].map(|value| vec![sample(0, value, SHARED, true)]);
        let measures = [Measure::median("", "any")];
        let (load, samples) = (Load::new(64, 1), samples.into());
        crate::report::Case::new("x".into(), load, Rings::Split, &measures, &names, samples)
    }

    #[test]
    fn each_target_has_its_line() {
        let words = |cases: &[crate::report::Case]| {
            let mut found = report();
            found.cases = cases.to_vec();
            let lines = of_load(&found);
            let words = lines.iter().filter_map(|line| line.split(':').next());
            words.map(String::from).collect::<Vec<_>>()
        };
        let polls = |ours, theirs| case(ours, (POLLS, theirs));
        let mut cases = vec![
            case(39.9, (WAKE_UP, 30.0)),
            polls(100.0, 100.0),
            polls(20.0, 100.0),
            polls(9.7, 10.0),
        ];
        assert_eq!(words(&cases), ["met", "MISSED", "met", "MISSED"]);
        (cases[0], cases[3]) = (case(41.0, (WAKE_UP, 30.0)), polls(9.9, 10.0));
        assert_eq!(words(&cases), ["MISSED", "MISSED", "met", "met"]);
        assert_eq!(words(&[]), ["open"; 4]);
        assert_eq!(of_silence(&[]).met, None);
    }
}
