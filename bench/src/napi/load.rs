//! What arrives at the guest, and when.

use serde::Serialize;

use super::frames::Kind;

/// A load, by its rates in frames a second.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub enum Traffic {
    /// Independent frames of full size.
    Poisson {
        /// Frames a second.
        rate: f64,
    },
    /// The same at four times the mean rate for 1 ms, then 3 ms of silence.
    OnOff {
        /// Frames a second on average.
        rate: f64,
    },
    /// As many frames of full size as there is room for.
    Flood,
    /// Requests that are sent when the answer to another one has come: a closed loop.
    Closed {
        /// Requests under way.
        connections: u32,
    },
    /// Requests sent whatever comes of those before: an open loop.
    Requests {
        /// Requests a second.
        rate: f64,
    },
    /// Bulk and, beside it, requests; both in an open loop.
    Mixed {
        /// Frames of bulk a second.
        bulk: f64,
        /// Requests a second.
        requests: f64,
    },
}

impl Traffic {
    /// What tables call it.
    pub fn label(&self) -> String {
        let kilo = |rate: f64| rate / 1e3;
        match *self {
            Self::Poisson { rate } => format!("{} kpps", kilo(rate)),
            Self::OnOff { rate } => format!("{} kpps on/off", kilo(rate)),
            Self::Flood => "flood".into(),
            Self::Closed { connections } => format!("{connections} requests in flight"),
            Self::Requests { rate } => format!("{} k requests/s", kilo(rate)),
            Self::Mixed { bulk, requests } => {
                format!("{} kpps + {} k requests/s", kilo(bulk), kilo(requests))
            }
        }
    }

    /// What the plot's x axis has: frames a second, in thousands, where the load has a rate and no requests.
    pub fn kpps(&self) -> Option<f64> {
        match *self {
            Self::Poisson { rate } => Some(rate / 1e3),
            _ => None,
        }
    }

    /// Whether somebody waits for the frames.
    pub fn has_requests(&self) -> bool {
        matches!(
            self,
            Self::Closed { .. } | Self::Requests { .. } | Self::Mixed { .. }
        )
    }
}

/// Numbers that look random: SplitMix64 (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Exponentially distributed, in nanoseconds.
    fn exponential(&mut self, mean_ns: f64) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        -(1.0 - uniform).ln() * mean_ns
    }
}

/// Length of a train, nanoseconds, and of a train with the silence after it in trains.
const TRAIN_NS: f64 = 1e6;
const PERIOD: f64 = 4.0;

/// Frames of one kind that come by themselves.
#[derive(Clone, Debug)]
struct Stream {
    kind: Kind,
    mean_ns: f64,
    /// When the next one is due, nanoseconds of the stream's own time.
    at: f64,
    trains: bool,
}

impl Stream {
    /// When the next one is due by the clock: a stream of trains has no time of its own while it is silent.
    fn due(&self) -> f64 {
        match self.trains {
            true => (self.at / TRAIN_NS).floor() * TRAIN_NS * PERIOD + self.at % TRAIN_NS,
            false => self.at,
        }
    }
}

/// What falls due.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    dice: Dice,
    streams: Vec<Stream>,
    flood: bool,
    closed: bool,
    /// Requests of a closed loop that are to be sent now.
    ready: u32,
    /// When time began.
    origin: f64,
}

impl Arrivals {
    pub(super) fn new(traffic: Traffic, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let mut stream = |kind, rate: f64, trains| {
            let mean_ns = 1e9 / rate;
            let at = dice.exponential(mean_ns);
            Stream {
                kind,
                mean_ns,
                at,
                trains,
            }
        };
        let streams = match traffic {
            Traffic::Poisson { rate } => vec![stream(Kind::Bulk, rate, false)],
            Traffic::OnOff { rate } => vec![stream(Kind::Bulk, rate * PERIOD, true)],
            Traffic::Requests { rate } => vec![stream(Kind::Request, rate, false)],
            Traffic::Mixed { bulk, requests } => vec![
                stream(Kind::Bulk, bulk, false),
                stream(Kind::Request, requests, false),
            ],
            Traffic::Flood | Traffic::Closed { .. } => Vec::new(),
        };
        Self {
            dice,
            streams,
            flood: traffic == Traffic::Flood,
            closed: matches!(traffic, Traffic::Closed { .. }),
            ready: match traffic {
                Traffic::Closed { connections } => connections,
                _ => 0,
            },
            origin: 0.0,
        }
    }

    /// Time stood still for so long: nothing fell due meanwhile.
    pub(super) fn skip(&mut self, ns: u64) {
        self.origin += ns as f64;
    }

    /// What is due next, if anything is by `now`, and since when; it is taken.
    #[inline]
    pub(super) fn take(&mut self, now: u64) -> Option<(Kind, u64)> {
        if self.ready > 0 {
            self.ready -= 1;
            return Some((Kind::Request, now));
        }
        if self.flood {
            return Some((Kind::Bulk, now));
        }
        let first = self
            .streams
            .iter_mut()
            .min_by(|a, b| a.due().total_cmp(&b.due()))?;
        let due = first.due() + self.origin;
        if due > now as f64 {
            return None;
        }
        first.at += self.dice.exponential(first.mean_ns);
        Some((first.kind, due as u64))
    }

    /// An answer has come: in a closed loop another request follows.
    pub(super) fn again(&mut self) {
        self.ready += u32::from(self.closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_keeps_its_rate() {
        let second = 1_000_000_000;
        for (traffic, expected) in [
            (Traffic::Poisson { rate: 1e5 }, [1e5, 0.0]),
            (Traffic::OnOff { rate: 1e5 }, [1e5, 0.0]),
            (Traffic::Requests { rate: 1e4 }, [0.0, 1e4]),
            (
                Traffic::Mixed {
                    bulk: 9e4,
                    requests: 2e4,
                },
                [9e4, 2e4],
            ),
        ] {
            let (mut arrivals, mut counts, mut last) = (Arrivals::new(traffic, 3), [0.0f64; 2], 0);
            arrivals.skip(second);
            assert_eq!(arrivals.take(second / 2), None, "nothing before time began");
            while let Some((kind, at)) = arrivals.take(2 * second) {
                assert!(at >= last && at >= second);
                last = at;
                counts[kind as usize] += 1.0;
            }
            for (count, expected) in counts.iter().zip(expected) {
                assert!(
                    (count - expected).abs() <= expected * 0.05,
                    "{traffic:?}: {counts:?}"
                );
            }
        }
    }

    #[test]
    fn trains_come_in_the_first_quarter() {
        let mut arrivals = Arrivals::new(Traffic::OnOff { rate: 1e5 }, 1);
        while let Some((_, at)) = arrivals.take(50_000_000) {
            assert!(at % 4_000_000 <= 1_000_000, "{at}");
        }
    }

    #[test]
    fn a_closed_loop_waits_for_answers() {
        let mut arrivals = Arrivals::new(Traffic::Closed { connections: 2 }, 1);
        let taken = |arrivals: &mut Arrivals| std::iter::from_fn(|| arrivals.take(5)).count();
        assert_eq!((taken(&mut arrivals), taken(&mut arrivals)), (2, 0));
        arrivals.again();
        assert_eq!(taken(&mut arrivals), 1);
    }
}
