//! One slice, or one search made of slices: its figures, and everything that says whether it counts.

use serde::{Serialize, Serializer};

use crate::contestant::pair::Counters;
use crate::cputime::CpuUse;
use crate::generator::{Counted, Paced};
use crate::histogram::Histogram;
use crate::interference::Interference;
use crate::napi::Seen;
use crate::probe::Class;
use crate::selfdriven::{Shares, Spent};

/// What one contestant gave in one round of one case.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Which round it belongs to.
    pub round: u32,
    /// Its figures, one for each row of the case, in the row's unit.
    pub values: Vec<f64>,
    /// What the probe said before and after, nanoseconds a bounce.
    pub bounce_ns: (f64, f64),
    /// The class of that, before and after; they differ where the host moved a CPU meanwhile.
    pub class: (Class, Class),
    /// What disturbed it.
    pub interference: Interference,
    /// Why it does not count, if it does not.
    pub discarded: Option<String>,
    /// What the figures were made of.
    #[serde(flatten)]
    pub detail: Detail,
}

/// What figures are made of.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// As many frames as get through in a window.
    Rate(Counted),
    /// Frames offered at a rate, without looking at the time they take.
    Offered(Paced),
    /// What was offered, and the processor time that the contestant took for it.
    Used {
        /// What was offered.
        paced: Paced,
        /// What its threads used.
        cpu: CpuUse,
        /// How long frames took, if that was measured: nanoseconds, as the upper end of a bucket and how often.
        #[serde(serialize_with = "buckets")]
        histogram: Histogram,
    },
    /// Times that frames were on their way.
    Latency {
        /// What was offered in the windows that count.
        paced: Paced,
        /// How many windows count, and how many there were.
        windows: (u32, u32),
        /// Nanoseconds, as the upper end of a bucket and how often.
        #[serde(serialize_with = "buckets")]
        histogram: Histogram,
    },
    /// A guest that sleeps until it is interrupted.
    Interrupted {
        /// What it and the load have seen.
        seen: Box<Seen>,
        /// What the switch's threads used meanwhile.
        cpu: CpuUse,
    },
    /// What real guests, sender and receiver, have counted.
    Counted {
        /// While one sent a stream to the other.
        streamed: [Counters; 2],
        /// During round trips.
        answered: [Counters; 2],
        /// Pings afterwards, microseconds.
        ping_us: Vec<f64>,
    },
    /// TCP streams and pings between real guests.
    Streams {
        /// How long they took together, seconds.
        seconds: f64,
        /// Round trip times in the order they were taken, microseconds.
        ping_us: Vec<f64>,
    },
    /// Cycles of self-driven rings on one thread.
    Cycles(Spent),
    /// What workers with self-driven rings did.
    Workers(Shares),
    /// A search for a rate, with all its trials.
    Search(Vec<Trial>),
}

/// One rate tried.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The rate aimed at, frames per second in each direction.
    pub rate: f64,
    /// What came of it.
    pub paced: Paced,
    /// What disturbed it.
    pub interference: Interference,
    /// Why a loss in it does not count, if it does not.
    pub discarded: Option<String>,
}

impl Sample {
    /// Its class, if it counts.
    pub fn counts_for(&self) -> Option<Class> {
        (self.discarded.is_none() && self.class.0 == self.class.1).then_some(self.class.0)
    }

    /// What was counted, if it went as fast as it could.
    pub fn counted(&self) -> Option<&Counted> {
        match &self.detail {
            Detail::Rate(counted) => Some(counted),
            _ => None,
        }
    }

    /// The latencies, if they were taken.
    pub fn histogram(&self) -> Option<&Histogram> {
        match &self.detail {
            Detail::Latency { histogram, .. } | Detail::Used { histogram, .. } => Some(histogram),
            Detail::Interrupted { seen, .. } => Some(seen.waited_for()),
            _ => None,
        }
    }
}

fn buckets<S: Serializer>(histogram: &Histogram, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(histogram.buckets())
}
