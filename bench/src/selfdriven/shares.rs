//! What workers did in a window, and the figures that are made of it.

use serde::Serialize;

/// What one worker did in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Frames that arrived at its guests.
    pub arrived: u64,
    /// Frames that it took out of its guests' rings.
    pub taken: u64,
    /// Frames found missing by its guests.
    pub lost: u64,
    /// Cycles that its taking and forwarding took.
    pub cycles: u64,
    /// The window as the worker saw it, nanoseconds.
    pub window_ns: u64,
    /// Cycles per nanosecond meanwhile.
    pub ghz: f64,
}

/// What all workers did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shares(pub Vec<Share>);

impl Shares {
    /// Millions of frames per second that arrived, by the wall clock; guests' work is part of the time.
    pub fn mpps(&self) -> f64 {
        let of = |share: &Share| share.arrived as f64 * 1e3 / share.window_ns.max(1) as f64;
        self.0.iter().map(of).sum()
    }

    /// Cycles that the switch took for a frame on average.
    pub fn cycles(&self) -> f64 {
        let sum = |of: fn(&Share) -> u64| self.0.iter().map(of).sum::<u64>() as f64;
        sum(|share| share.cycles) / sum(|share| share.taken).max(1.0)
    }

    /// Millions of frames per second that the workers would forward if guests were driven elsewhere and nothing else
    /// changed: each frames taken by time spent on them, added up.
    pub fn forwarding_mpps(&self) -> f64 {
        let of = |share: &Share| share.taken as f64 * share.ghz * 1e3 / share.cycles.max(1) as f64;
        self.0.iter().map(of).sum()
    }

    /// The same where workers share what they take: the busier of them sets the pace for both.
    pub fn forwarding_together_mpps(&self) -> f64 {
        let taken: u64 = self.0.iter().map(|share| share.taken).sum();
        let ns = |share: &Share| share.cycles as f64 / share.ghz.max(f64::MIN_POSITIVE);
        let busiest = self.0.iter().map(ns).fold(1.0, f64::max);
        taken as f64 * 1e3 / busiest
    }

    /// Part of the frames taken that did not arrive, percent.
    pub fn lost_percent(&self) -> f64 {
        let sum = |of: fn(&Share) -> u64| self.0.iter().map(of).sum::<u64>() as f64;
        100.0 * sum(|share| share.lost) / sum(|share| share.taken).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        let share = |arrived, cycles| Share {
            arrived,
            taken: 1000,
            lost: 10,
            cycles,
            window_ns: 1_000_000,
            ghz: 2.0,
        };
        let shares = Shares(vec![share(900, 100_000), share(1100, 300_000)]);
        assert!((shares.mpps() - 2.0).abs() < 1e-9);
        assert!((shares.cycles() - 200.0).abs() < 1e-9);
        // 100 and 300 cycles a frame at 2 GHz: 20 and 6.7 Mpps.
        assert!((shares.forwarding_mpps() - 80.0 / 3.0).abs() < 1e-9);
        // 300,000 cycles at 2 GHz for the 2000 frames of both.
        assert!((shares.forwarding_together_mpps() - 2000.0 / 150.0).abs() < 1e-9);
        assert!((shares.lost_percent() - 1.0).abs() < 1e-9);
    }
}
