//! Whether a target is met, in one line.

use serde::Serialize;

/// A target, and what was found.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Verdict {
    /// What is to hold.
    pub claim: String,
    /// What was found.
    pub found: String,
    /// Whether it holds; nothing if there is no figure.
    pub met: Option<bool>,
}

impl Verdict {
    /// A figure that must not be above a limit; without a figure there is no verdict.
    pub fn at_most(claim: impl Into<String>, figure: Option<f64>, limit: f64, unit: &str) -> Self {
        Self {
            claim: claim.into(),
            found: figure.map_or("no figure".into(), |figure| format!("{figure:.2}{unit}")),
            met: figure.map(|figure| figure <= limit),
        }
    }

    /// With more words about what was found.
    #[must_use]
    pub fn and(mut self, more: impl AsRef<str>) -> Self {
        if !more.as_ref().is_empty() {
            self.found += ", ";
            self.found += more.as_ref();
        }
        self
    }

    /// As a line.
    pub fn line(&self) -> String {
        let word = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "open",
        };
        format!("{word}: {} ({})", self.claim, self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_met_missed_or_open() {
        let of = |figure| Verdict::at_most("at most 2 us", figure, 2.0, " us");
        assert_eq!(of(Some(2.0)).line(), "met: at most 2 us (2.00 us)");
        let missed = of(Some(2.01)).and("1.90 to 2.20").and("");
        assert_eq!(
            missed.line(),
            "MISSED: at most 2 us (2.01 us, 1.90 to 2.20)"
        );
        assert_eq!(of(None).line(), "open: at most 2 us (no figure)");
    }
}
