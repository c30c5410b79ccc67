//! A search by halves for the highest rates at which no more than tolerated is lost (RFC 2544, section
//! 26.1). It only decides; who asks makes the trials.

/// Losses tolerated, as parts of the frames offered: none, and next to none.
pub(super) const TOLERATED: [f64; 2] = [0.0, 1e-5];
/// A rate is too high if so many undisturbed trials of it lose. Too high a rate loses every time; fewer
/// may be bad luck that no counter of the machine shows.
const LOSSES: u32 = 6;
/// Trials of all rates together after which a search is given up, because the machine is not quiet
/// enough; and those in another cache class, which are not counted there.
const TRIALS: u32 = 400;
const TRIALS_ELSEWHERE: u32 = 400;

/// The search for one contestant: a bracket for each of [`TOLERATED`], which share their trials.
#[derive(Clone, Debug)]
pub(super) struct Search {
    ceiling: f64,
    resolution: f64,
    brackets: [Bracket; 2],
    /// The rate on trial.
    rate: f64,
    /// Undisturbed trials of it that lost, and the least of their losses.
    losses: u32,
    least: f64,
    trials: u32,
    elsewhere: u32,
}

/// A rate that is good, and one that is not.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    low: f64,
    /// None until the ceiling has been tried.
    high: Option<f64>,
}

/// What a trial says about its rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// All was offered, and this part of it was lost; `disturbed` says that the machine may be to blame.
    Lost { part: f64, disturbed: bool },
    /// The generator did not offer what it should have: nothing.
    Nothing,
    /// The CPUs were moved: nothing for this search, until they come back.
    Elsewhere,
}

impl Search {
    /// Up to `ceiling`, frames per second, to a part `resolution` of it.
    pub(super) fn new(ceiling: f64, resolution: f64) -> Self {
        let bracket = Bracket {
            low: 0.0,
            high: None,
        };
        Self {
            ceiling,
            resolution: resolution * ceiling,
            brackets: [bracket; 2],
            rate: ceiling,
            losses: 0,
            least: f64::INFINITY,
            trials: 0,
            elsewhere: 0,
        }
    }

    /// The rate to try next; none if there is nothing left to find, or the search was given up.
    pub(super) fn next(&self) -> Option<f64> {
        (self.open().is_some() && !self.given_up()).then_some(self.rate)
    }

    /// Whether there were too many trials.
    pub(super) fn given_up(&self) -> bool {
        let spent = self.trials >= TRIALS || self.elsewhere >= TRIALS_ELSEWHERE;
        spent && self.open().is_some()
    }

    /// The highest rates found, frames per second, for each of [`TOLERATED`]; 0 if every rate loses.
    pub(super) fn found(&self) -> [f64; 2] {
        self.brackets.map(|bracket| bracket.low)
    }

    /// Learns from a trial of the rate that [`Search::next`] gave.
    pub(super) fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Elsewhere => self.elsewhere += 1,
            _ => self.trials += 1,
        }
        let Some(open) = self.open() else { return };
        let Outcome::Lost { part, disturbed } = outcome else {
            return;
        };
        if part > TOLERATED[open] {
            if disturbed {
                return;
            }
            self.losses += 1;
            self.least = self.least.min(part);
            if self.losses < LOSSES {
                return;
            }
        } else {
            self.least = part;
        }
        self.settle();
    }

    /// The first bracket that is still too wide.
    fn open(&self) -> Option<usize> {
        let wide = |bracket: &Bracket| match bracket.high {
            None => true,
            Some(high) => high - bracket.low > self.resolution,
        };
        self.brackets.iter().position(wide)
    }

    /// The rate is good or not for each tolerance; goes on to the next.
    fn settle(&mut self) {
        for (bracket, tolerated) in self.brackets.iter_mut().zip(TOLERATED) {
            // Another bracket's trial may lie outside of this one's.
            let high = bracket.high.unwrap_or(f64::INFINITY);
            if self.least > tolerated {
                bracket.high = Some(high.min(self.rate.max(bracket.low)));
            } else if self.rate < high {
                bracket.low = bracket.low.max(self.rate);
                if self.rate >= self.ceiling {
                    bracket.high = Some(self.ceiling);
                }
            }
        }
        (self.losses, self.least) = (0, f64::INFINITY);
        if let Some(Bracket { low, high }) = self.open().map(|open| self.brackets[open]) {
            self.rate = high.map_or(self.ceiling, |high| f64::midpoint(low, high));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Searches a contestant that loses as `loss` says; returns what was found in how many trials.
    fn search(ceiling: f64, mut trial: impl FnMut(f64, u32) -> Outcome) -> (Search, u32) {
        let (mut search, mut trials) = (Search::new(ceiling, 0.01), 0);
        while let Some(rate) = search.next() {
            search.note(trial(rate, trials));
            trials += 1;
        }
        (search, trials)
    }

    fn lost(part: f64) -> Outcome {
        Outcome::Lost {
            part,
            disturbed: false,
        }
    }

    #[test]
    fn one_that_never_loses_is_tried_once() {
        let (search, trials) = search(7e6, |_, _| lost(0.0));
        assert_eq!((search.found(), trials), ([7e6; 2], 1));
        assert!(!search.given_up());
    }

    #[test]
    fn one_that_always_loses_a_little_has_a_rate_for_a_little() {
        let (search, _) = search(1e6, |_, _| lost(5e-6));
        assert_eq!(search.found(), [0.0, 1e6]);
    }

    #[test]
    fn a_single_loss_may_be_bad_luck() {
        let (search, _) = search(1e6, |_, trial| lost(if trial == 0 { 0.1 } else { 0.0 }));
        assert_eq!(search.found(), [1e6; 2]);
    }

    #[test]
    fn disturbed_losses_do_not_count_and_do_not_go_on_for_ever() {
        let disturbed = Outcome::Lost {
            part: 0.5,
            disturbed: true,
        };
        let (quiet, _) = search(1e6, |_, trial| {
            [disturbed, Outcome::Nothing, lost(0.0)][trial as usize % 3]
        });
        assert_eq!(quiet.found(), [1e6; 2]);
        let (loud, trials) = search(1e6, |_, _| disturbed);
        assert!(loud.given_up() && trials == TRIALS);
        let (away, trials) = search(1e6, |_, _| Outcome::Elsewhere);
        assert!(away.given_up() && trials == TRIALS_ELSEWHERE);
    }

    proptest! {
        #[test]
        fn both_rates_are_found(first in 0.02..1.2f64, step in 0.0..0.5f64) {
            // Nothing is lost up to one rate, next to nothing up to another.
            let (ceiling, none, little) = (1e7, 1e7 * first, 1e7 * (first + step));
            let (search, trials) = search(ceiling, |rate, _| lost(match rate {
                rate if rate <= none => 0.0,
                rate if rate <= little => 9e-6,
                _ => 0.01,
            }));
            let [found_none, found_little] = search.found();
            let near = |found: f64, real: f64| {
                let real = real.min(ceiling);
                found <= real && real - found <= 0.01 * ceiling
            };
            prop_assert!(near(found_none, none), "{found_none} of {none}");
            prop_assert!(near(found_little, little), "{found_little} of {little}");
            prop_assert!(trials <= LOSSES * (1 + 2 * 7), "{trials}");
        }
    }
}
