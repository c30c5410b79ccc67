//! What the operator asks for, and what takes longer than he is kept waiting: the steward's thread does it, and reports.

use std::time::{Duration, Instant, SystemTime};

use super::trace::{Decision, What};
use super::{Report, Steward};

/// For how long the operator's look measures.
pub(super) const SAMPLE: Duration = Duration::from_millis(50);

/// The number under which somebody waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Order(pub u64);

impl Steward {
    /// Measures for a moment and balances then, whether that is switched on or not. What was decided is
    /// [reported](Report::Rebalanced) with this number; nobody waits for it here. Those who ask while it is being measured
    /// for another get a measurement of their own, all the same one.
    pub fn rebalance(&self, order: Order) {
        self.orders.lock().push(order);
        self.shared.bell.ring();
    }

    /// Carries out what was asked for; true if there was anything. What is asked for meanwhile is [left](Self::has_orders).
    pub(super) fn take_orders(&self) -> bool {
        let orders = std::mem::take(&mut *self.orders.lock());
        if orders.is_empty() || self.is_ending() {
            return false;
        }
        if let Some(made) = self.measure_and_balance() {
            for order in orders {
                self.tell(Report::Rebalanced(order, made.clone()));
            }
        }
        true
    }

    /// Whether somebody has asked for something.
    pub(super) fn has_orders(&self) -> bool {
        !self.orders.lock().is_empty()
    }

    /// `None` if the steward ends. While it measures it holds nothing that others want.
    fn measure_and_balance(&self) -> Option<Vec<Decision>> {
        let began = Instant::now();
        self.brain.lock().begin(began, &self.workers);
        loop {
            let left = SAMPLE.saturating_sub(began.elapsed());
            if self.is_ending() {
                return None;
            }
            if left.is_zero() {
                break;
            }
            self.wait(Some(left));
        }
        let mut brain = self.brain.lock();
        let now = SystemTime::now();
        let outcome = brain.balance(Instant::now(), &self.workers).outcome;
        let noted = self.trace.decisions();
        let mut new: Vec<_> = noted.into_iter().filter(|d| d.at >= now).collect();
        if new.is_empty() {
            self.trace.note(now, What::Nothing, outcome.to_string());
            new.extend(self.trace.decisions().pop());
        }
        Some(new)
    }

    /// Waits for room, unless the reader waits for the steward to end.
    fn tell(&self, mut report: Report) {
        while let Err(back) = self.shared.reports.put(report) {
            if self.is_ending() {
                return;
            }
            report = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
