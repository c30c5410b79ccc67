//! What should be, and is or is not.

use serde::Serialize;

use super::{Balance, Delay, Run};

/// Looks within which a load must be even, and the factor of the bound that counts as even.
pub(super) const LOOKS: usize = 10;
pub(super) const EVEN: f64 = 1.10;
/// Part of the buckets that may move at a look after that.
const FEW: f64 = 0.01;
/// How many times longer the static table's delay must be, and at which quantile.
const TIMES: f64 = 14.0;
/// Part of the workers that must be saved.
const SAVED: f64 = 0.25;
/// Time for a decision on 1,024 items and 16 workers.
const DECISION_US: f64 = 50.0;

/// A claim.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// What should be.
    pub text: String,
    /// What is.
    pub found: String,
    /// Whether that is enough.
    pub met: bool,
}

pub(super) fn claims(
    balance: &[Balance],
    delay: &[Delay],
    scale: &[Run],
    decision_us: f64,
) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut claim = |text: String, found: String, met: bool| {
        claims.push(Claim { text, found, met });
    };
    let even = |case: &&Balance| case.settled.is_some_and(|looks| looks <= LOOKS);
    let count = balance.iter().filter(even).count();
    claim(
        format!("largest load <= {EVEN:.2} x max(mean, largest flow) within {LOOKS} looks"),
        format!("{count} of {} cases", balance.len()),
        count == balance.len(),
    );
    let few = balance.iter().filter(|case| case.moves < FEW).count();
    claim(
        "then fewer than 1 % of the buckets move at a look".into(),
        format!("{few} of {} cases", balance.len()),
        few == balance.len(),
    );
    for case in delay {
        let times = |name: &str| {
            let find = |name: &str| case.runs.iter().find(|run| run.name == name);
            let pair = find("static").into_iter().zip(find(name));
            let ratios =
                pair.flat_map(|(fixed, run)| fixed.p95_by_seed.iter().zip(&run.p95_by_seed));
            let mut ratios: Vec<f64> = ratios.map(|(fixed, own)| fixed / own).collect();
            ratios.sort_by(f64::total_cmp);
            let at = |place: usize| ratios.get(place).copied().unwrap_or(f64::NAN);
            (
                at(0),
                at(ratios.len() / 2),
                at(ratios.len().saturating_sub(1)),
            )
        };
        let oracle = times("oracle").1;
        for name in ["waiting", "gated"] {
            let (least, median, most) = times(name);
            claim(
                format!(
                    "p95 at 90 % load, {} workers, exponent {}, {name}: {TIMES:.0} times shorter than static, with every seed",
                    case.workers, case.zipf
                ),
                format!(
                    "{least:.1} to {most:.1} times, median {median:.1}; the oracle {oracle:.1}"
                ),
                least >= TIMES,
            );
        }
    }
    let all = scale.iter().find(|run| run.name == "static");
    for run in scale.iter().filter(|run| run.name != "static") {
        let sum = |run: &Run| run.awake_by_seed.iter().sum::<f64>();
        let saved = 1.0 - sum(run) / all.map_or(f64::NAN, sum);
        claim(
            format!(
                "workers awake over the on/off trace, {}: 25 % fewer",
                run.name
            ),
            format!("{:.0} % fewer, p95 {:.0} us", saved * 100.0, run.p95()),
            saved >= SAVED,
        );
    }
    let reordered = balance.iter().map(|case| case.reordered).sum::<u64>()
        + delay
            .iter()
            .flat_map(|case| &case.runs)
            .map(|run| run.reordered)
            .sum::<u64>()
        + scale.iter().map(|run| run.reordered).sum::<u64>();
    claim(
        "no packet reordered".into(),
        format!("{reordered} reordered"),
        reordered == 0,
    );
    claim(
        format!("decision on 1,024 items and 16 workers < {DECISION_US:.0} us, median"),
        format!("{decision_us:.1} us"),
        decision_us < DECISION_US,
    );
    claims
}
