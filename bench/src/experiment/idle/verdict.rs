//! Whether the switch is idle enough, and fast enough when it no longer is.

use crate::histogram::Histogram;
use crate::report::verdict::Verdict;
use crate::report::{ClassResult, Report};

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

/// Of the loads of [`busy`](super::busy), in its order: lines of the report.
pub(super) fn of_load(report: &Report, woken: &Histogram) -> Vec<String> {
    let mut lines = vec![format!(
        "Waking a thread that slept in epoll takes {:.1} us (p50), {:.1} us (p99) here.",
        woken.quantile(0.5) as f64 / 1e3,
        woken.quantile(0.99) as f64 / 1e3
    )];
    let results = |case: usize| {
        let row = report.cases.get(case).and_then(|case| case.rows.first());
        row.map_or(&[][..], |row| row.results.as_slice())
    };
    lines.push(first(results(0), woken).line());
    for (case, how) in [(1, "evenly"), (2, "in trains")] {
        let claim = format!(
            "a tenth of the highest rate, {how}, takes at most {:.0} % of always polling's time",
            SHARE * 100.0
        );
        lines.push(of_ratio(results(case), claim, |ratio| ratio, SHARE).line());
    }
    let claim = format!(
        "the highest rate is within {:.0} % of always polling's",
        CLOSE * 100.0
    );
    lines.push(of_ratio(results(3), claim, |ratio| 1.0 - ratio, CLOSE).line());
    lines
}

fn first(results: &[ClassResult], woken: &Histogram) -> Verdict {
    let claim = format!("the first frame takes at most {BEYOND} us longer than waking a thread");
    let ours = results
        .first()
        .and_then(|result| result.summaries.get(OURS));
    let beyond = ours
        .filter(|_| woken.count() > 0)
        .map(|ours| ours.figure - woken.quantile(0.5) as f64 / 1e3);
    Verdict::at_most(claim, beyond, BEYOND, " us, p50")
}

/// The first class's ratio to always polling, made into what must not be above the limit.
fn of_ratio(
    results: &[ClassResult],
    claim: String,
    figure: impl Fn(f64) -> f64,
    limit: f64,
) -> Verdict {
    let ratio = results.first().and_then(|result| result.ratios.get(POLLS));
    let spread = ratio.and_then(|ratio| ratio.spread);
    let spread = spread.map_or(String::new(), |(min, max)| {
        format!("ratios {min:.2} to {max:.2}")
    });
    Verdict::at_most(claim, ratio.map(|r| figure(r.of_figures)), limit, "").and(spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Rings;
    use crate::generator::Load;
    use crate::report::Measure;
    use crate::report::testing::{SHARED, report, sample};

    /// A case in which the switch has one figure, and the one that always polls another.
    fn case(ours: f64, polls: f64) -> crate::report::Case {
        let names = [OURS, POLLS].map(String::from);
        let samples = [ours, polls].map(|value| vec![sample(0, value, SHARED, true)]);
        let measures = [Measure::median("", "any")];
        let load = Load::new(64, 1);
        crate::report::Case::new(
            "x".into(),
            load,
            Rings::Split,
            &measures,
            &names,
            samples.into(),
        )
    }

    #[test]
    fn each_target_has_its_line() {
        let mut woken = Histogram::default();
        woken.record(30_000);
        let mut found = report();
        found.cases = vec![
            case(39.9, 1.0),
            case(100.0, 100.0),
            case(20.0, 100.0),
            case(9.7, 10.0),
        ];
        let lines = of_load(&found, &woken);
        let words: Vec<_> = lines.iter().skip(1).map(|l| l.split(':').next()).collect();
        assert_eq!(
            words,
            ["met", "MISSED", "met", "MISSED"].map(Some),
            "{lines:?}"
        );
        found.cases[0] = case(41.0, 1.0);
        assert!(of_load(&found, &woken)[1].starts_with("MISSED"));
        found.cases.clear();
        assert!(of_load(&found, &woken)[1].starts_with("open"));
        assert_eq!(of_silence(&[]).met, None);
    }
}
