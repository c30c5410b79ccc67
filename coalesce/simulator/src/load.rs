//! What arrives, and when.

/// A load, by its rates in frames a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Load {
    /// Independent frames of full size.
    Poisson {
        /// Frames a second.
        rate: f64,
    },
    /// Frames at four times the mean rate for 1 ms, then 3 ms of silence.
    OnOff {
        /// Frames a second on average.
        rate: f64,
    },
    /// Requests that are answered, each connection sending its next one some time after the answer.
    Rpc {
        /// Requests a second, if the guest can.
        rate: f64,
        /// Requests under way at once, at most.
        connections: u16,
    },
    /// Bulk and, beside it, requests.
    Mixed {
        /// Frames of bulk a second.
        bulk: f64,
        /// Requests a second.
        requests: f64,
        /// Requests under way at once, at most.
        connections: u16,
    },
}

/// What kind of frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Bulk,
    Request,
}

/// Numbers that look random: SplitMix64 (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Exponentially distributed, in nanoseconds.
    pub(crate) fn exponential(&mut self, mean_ns: f64) -> u64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (-(1.0 - uniform).ln() * mean_ns) as u64
    }
}

/// Arrivals in order of time.
pub(crate) struct Source {
    dice: Dice,
    load: Load,
    /// When the next frame of bulk comes, in nanoseconds of on-time for [`Load::OnOff`].
    bulk_at: Option<u64>,
    /// When the connections send; none while they wait for an answer.
    requests: Vec<u64>,
    think_ns: f64,
}

const ON_NS: u64 = 1_000_000;
const PERIOD: u64 = 4;

impl Source {
    pub(crate) fn new(load: Load, seed: u64) -> Self {
        let (connections, rate) = match load {
            Load::Rpc { rate, connections } => (connections, rate),
            Load::Mixed {
                requests,
                connections,
                ..
            } => (connections, requests),
            Load::Poisson { .. } | Load::OnOff { .. } => (0, 1.0),
        };
        let mut source = Self {
            dice: Dice(seed),
            load,
            bulk_at: None,
            requests: Vec::new(),
            think_ns: f64::from(connections) / rate * 1e9,
        };
        for _ in 0..connections {
            let at = source.dice.exponential(source.think_ns);
            source.requests.push(at);
        }
        source.draw_bulk(0);
        source
    }

    fn draw_bulk(&mut self, from: u64) {
        let rate = match self.load {
            Load::Poisson { rate } => rate,
            Load::OnOff { rate } => rate * PERIOD as f64,
            Load::Mixed { bulk, .. } => bulk,
            Load::Rpc { .. } => return,
        };
        self.bulk_at = Some(from + self.dice.exponential(1e9 / rate));
    }

    /// In virtual time.
    fn bulk_time(&self) -> Option<u64> {
        let at = self.bulk_at?;
        Some(match self.load {
            Load::OnOff { .. } => at / ON_NS * ON_NS * PERIOD + at % ON_NS,
            _ => at,
        })
    }

    fn next_request(&self) -> Option<(usize, u64)> {
        self.requests
            .iter()
            .copied()
            .enumerate()
            .min_by_key(|&(_, at)| at)
    }

    /// When the next frame arrives.
    pub(crate) fn peek(&self) -> Option<u64> {
        let request = self.next_request().map(|(_, at)| at);
        self.bulk_time().into_iter().chain(request).min()
    }

    /// Takes it.
    pub(crate) fn take(&mut self) -> Option<(u64, Kind)> {
        let request = self.next_request();
        match (self.bulk_time(), request) {
            (Some(bulk), request) if request.is_none_or(|(_, at)| bulk <= at) => {
                let from = self.bulk_at.unwrap_or(0);
                self.draw_bulk(from);
                Some((bulk, Kind::Bulk))
            }
            (_, Some((connection, at))) => {
                self.requests.swap_remove(connection);
                Some((at, Kind::Request))
            }
            _ => None,
        }
    }

    /// A request was answered, `served_ns` after it arrived. The time it took comes off the pause, so that the rate is kept
    /// as long as the guest can.
    pub(crate) fn answered(&mut self, now: u64, served_ns: u64) {
        let pause = self.dice.exponential(self.think_ns);
        self.requests.push(now + pause.saturating_sub(served_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate_of(load: Load) -> f64 {
        let mut source = Source::new(load, 3);
        let mut last = 0;
        for _ in 0..100_000 {
            let (at, kind) = source.take().unwrap();
            assert!(at >= last);
            last = at;
            if kind == Kind::Request {
                source.answered(at, 0);
            }
        }
        1e14 / last as f64
    }

    #[test]
    fn each_load_keeps_its_rate() {
        for load in [
            Load::Poisson { rate: 1e5 },
            Load::OnOff { rate: 1e5 },
            Load::Rpc {
                rate: 1e5,
                connections: 4,
            },
            Load::Mixed {
                bulk: 9e4,
                requests: 1e4,
                connections: 2,
            },
        ] {
            let rate = rate_of(load);
            assert!((9.8e4..1.02e5).contains(&rate), "{load:?}: {rate}");
        }
    }
}
