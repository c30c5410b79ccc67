//! Whether the switch is idle enough, and fast enough when it no longer is.

use crate::report::verdict::Verdict;
use crate::report::{ClassResult, Report};

use super::busy::{WAKE_UP, What};
use super::{Case, OURS};

/// Guests that are silent, and what they may cost, percent of a CPU.
const SILENT: (usize, f64) = (16, 1.0);
/// What the first frame may take beyond waking a thread, microseconds.
const BEYOND: f64 = 10.0;
/// Part of always polling's time that a tenth of its rate may take.
const SHARE: f64 = 0.25;
/// How far from always polling the highest rate may be.
const CLOSE: f64 = 0.02;
/// What short sleeps may add to the time of a frame that somebody waits for, microseconds.
const WAITS: f64 = 1.0;
/// Who always polls, and who may sleep for moments.
const POLLS: &str = "vswitch-poll";
const NAPS: &str = "vswitch-nap200";

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

/// Of the loads of [`busy`](super::busy): lines of the report, one for each class of slices.
pub(super) fn of_load(report: &Report) -> Vec<String> {
    let tenth = format!(
        "takes at most {:.0} % of always polling's time",
        SHARE * 100.0
    );
    let close = format!("is within {:.0} % of always polling's", CLOSE * 100.0);
    let part = |result: &ClassResult, name: &str| Some(ratio(result, name)? * 100.0);
    let behind = |paired: f64| (1.0 - paired) * 100.0;
    let claims: [(What, String, f64, &str, Figure<'_>); 6] = [
        (
            What::First,
            format!("the first frame takes at most {BEYOND} us (p50) longer than waking a thread"),
            BEYOND,
            " us",
            &|case| difference(case, OURS, WAKE_UP),
        ),
        (
            What::Part(0.1),
            format!("a tenth of the highest rate, evenly, with sleeps allowed, {tenth}"),
            SHARE * 100.0,
            " %",
            &|case| part(case, NAPS),
        ),
        (
            What::Trains,
            format!("a tenth of the highest rate, in trains, {tenth}"),
            SHARE * 100.0,
            " %",
            &|case| part(case, OURS),
        ),
        (
            What::OneByOne,
            format!(
                "one at a time, with sleeps allowed, takes at most {WAITS} us (p50) longer than without"
            ),
            WAITS,
            " us",
            &|case| difference(case, NAPS, OURS),
        ),
        (
            What::Full,
            format!("the highest rate {close}"),
            CLOSE * 100.0,
            " %",
            &|case| Some(behind(case.ratios.get(POLLS)?.paired?)),
        ),
        (
            What::Full,
            format!("with sleeps allowed, the highest rate {close}"),
            CLOSE * 100.0,
            " %",
            &|case| {
                let ratios = &case.ratios;
                Some(behind(
                    ratios.get(POLLS)?.paired? / ratios.get(NAPS)?.paired?,
                ))
            },
        ),
    ];
    let mut lines = Vec::new();
    for (what, claim, limit, unit, figure) in claims {
        let label = what.label();
        let case = report.cases.iter().find(|case| case.label == label);
        let row = case.and_then(|case| case.rows.first());
        let results = row.map_or(&[][..], |row| row.results.as_slice());
        let found = |result: &ClassResult| {
            let found = Verdict::at_most(claim.as_str(), Some(figure(result)?), limit, unit);
            Some(found.and(result.class.name()).line())
        };
        let before = lines.len();
        lines.extend(results.iter().filter_map(found));
        if lines.len() == before {
            lines.push(Verdict::at_most(claim, None, limit, unit).line());
        }
    }
    lines
}

/// What is taken from a case's first row.
type Figure<'a> = &'a dyn Fn(&ClassResult) -> Option<f64>;

/// How much more one has than another.
fn difference(result: &ClassResult, of: &str, than: &str) -> Option<f64> {
    let figure = |name| Some(result.summaries.get(name)?.figure);
    Some(figure(of)? - figure(than)?)
}

/// What one has in parts of always polling's.
fn ratio(result: &ClassResult, of: &str) -> Option<f64> {
    let figure = |name| Some(result.summaries.get(name)?.figure);
    Some(figure(of)? / figure(POLLS)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Rings;
    use crate::generator::Load;
    use crate::report::Measure;
    use crate::report::testing::{SHARED, report, sample};

    /// A case in which contestants have these figures.
    fn case(what: What, figures: &[(&str, f64)]) -> crate::report::Case {
        let names: Vec<_> = figures.iter().map(|(name, _)| (*name).to_owned()).collect();
        let samples = figures.iter().map(|f| vec![sample(0, f.1, SHARED, true)]);
        let measures = [Measure::median("", "any")];
        let (load, samples) = (Load::new(64, 1), samples.collect());
        crate::report::Case::new(what.label(), load, Rings::Split, &measures, &names, samples)
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
        let all =
            |what, ours, polls, naps| case(what, &[(OURS, ours), (POLLS, polls), (NAPS, naps)]);
        let mut cases = vec![
            case(What::First, &[(OURS, 39.9), (WAKE_UP, 30.0)]),
            all(What::Part(0.1), 100.0, 100.0, 26.0),
            all(What::Trains, 20.0, 100.0, 100.0),
            all(What::OneByOne, 2.0, 1.0, 3.1),
            all(What::Full, 9.7, 10.0, 9.9),
        ];
        let (met, missed) = ("met", "MISSED");
        assert_eq!(words(&cases), [met, missed, met, missed, missed, met]);
        cases = vec![
            case(What::First, &[(OURS, 41.0), (WAKE_UP, 30.0)]),
            all(What::Part(0.1), 100.0, 100.0, 24.0),
            all(What::Trains, 26.0, 100.0, 100.0),
            all(What::OneByOne, 2.0, 1.0, 2.9),
            all(What::Full, 9.9, 10.0, 9.7),
        ];
        assert_eq!(words(&cases), [missed, met, missed, met, met, missed]);
        assert_eq!(words(&[]), ["open"; 6]);
        assert_eq!(of_silence(&[]).met, None);
    }
}
