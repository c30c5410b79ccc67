//! What a second worker gains at a queue, measured.
//!
//! Whether a helper pays depends on the machine: on whether its core shares a cache with the owner's, on what else runs, on
//! the frames. So a queue's rate is measured while it stands with its owner alone, and again while it stands with a helper. A
//! queue that does not stand with one has what it wants, and is not judged.
//!
//! - A *window* is whole looks that last [`WINDOW`] together. A rate is the median of the last [`WINDOWS`] of them, so one
//!   that was disturbed does not count. The first with a helper does not either: outputs are being dealt out.
//! - Two rates are compared by the geometric mean of the ratios of their frames and of their bytes. What a frame costs is in
//!   part the same for all and in part its length, so of frames that got longer or shorter meanwhile neither alone would do.
//! - Less than [`WORTH`] is *in vain*. These two cores are not tried again for [`SHORTEST`], and twice as long each time in
//!   a row, up to [`LONGEST`]. What was a gain is found again as often: the queue is alone for some windows, because a
//!   machine that was just waking up, or was disturbed for long, may have made it seem one.
//! - What was found counts for frames of about that length, within a factor of [`LIKE`], and is forgotten [`LONGEST`] after
//!   it might have been tried again.
//!
//! Nothing here knows a clock. Memory: some hundred bytes for each queue that stood lately, and 40 for each two cores tried.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::QueueKey;

/// Shorter than the shortest time between two regular looks; a burst that is counted a little late changes it by less than 1 %.
const WINDOW: Duration = Duration::from_millis(8);
/// Windows of which the median is taken.
const WINDOWS: usize = 3;
/// Older windows say nothing about a queue alone.
const FRESH: Duration = Duration::from_secs(10);
/// A second worker that brings less than a tenth more is better left to others, and it is more than [`NOISE`].
const WORTH: f64 = 1.10;
/// What brings less than this cannot be told from chance: so much rates differ on a quiet machine.
const NOISE: f64 = 1.05;
/// Frames that are longer or shorter by more than this are other traffic.
const LIKE: f64 = 2.0;
/// How long what was found counts, the first time.
const SHORTEST: Duration = Duration::from_secs(5);
/// And at most.
const LONGEST: Duration = Duration::from_secs(300);

/// A queue since the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) elapsed: Duration,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    /// More was there than was taken.
    pub(super) stands: bool,
}

/// The cores that serve a queue together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pair {
    pub(super) owner: u32,
    pub(super) helper: u32,
}

/// Why a queue is to be alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// For a while.
    Rest(String),
    /// To be measured.
    Check(String),
}

/// Frames and bytes per second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rate {
    frames: f64,
    bytes: f64,
}

/// What is known of all queues.
#[derive(Default, Debug)]
pub(super) struct Gains(BTreeMap<QueueKey, Course>);

/// What is known of a queue.
#[derive(Default, Debug)]
struct Course {
    /// The core of its owner when it was last seen alone.
    owner: u32,
    alone: Windows,
    trial: Option<Trial>,
    found: Vec<Finding>,
}

/// A queue with a helper.
#[derive(Debug)]
struct Trial {
    pair: Pair,
    /// Its rate before.
    alone: Rate,
    windows: Windows,
    /// The first window is over.
    settled: bool,
    is_gain: bool,
}

/// What came of two cores, so many times in a row.
#[derive(Debug)]
struct Finding {
    pair: Pair,
    is_gain: bool,
    frame_len: f64,
    times: u32,
    /// How long that counts.
    until: Duration,
}

#[derive(Default, Debug)]
struct Windows {
    open: Option<Sample>,
    closed: VecDeque<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    /// When it was over.
    at: Duration,
    rate: Rate,
    stood: bool,
}

impl Gains {
    /// A look at a queue that its owner serves alone. `stands` has to mean that it fills its owner.
    pub(super) fn alone(&mut self, key: QueueKey, at: Duration, owner: u32, sample: Sample) {
        let course = match sample.stands {
            true => self.0.entry(key).or_default(),
            // Of most queues nothing is known.
            false => match self.0.get_mut(&key) {
                Some(course) => course,
                None => return,
            },
        };
        if course.owner != owner {
            (course.owner, course.alone) = (owner, Windows::default());
        }
        let windows = &mut course.alone;
        if sample.stands {
            windows.add(at, sample);
        } else {
            windows.open = None;
        }
        windows.closed.retain(|window| at < window.at + FRESH);
        if let Some(rate) = windows.rate() {
            let kept = |f: &Finding| rate.is_like(f.frame_len) && at < f.until + LONGEST;
            course.found.retain(kept);
        }
    }

    /// A queue has no helper, for whatever reason.
    pub(super) fn end(&mut self, key: QueueKey) {
        if let Some(course) = self.0.get_mut(&key) {
            course.trial = None;
        }
    }

    /// Its rate alone, if that is known.
    pub(super) fn rate(&self, key: QueueKey) -> Option<Rate> {
        self.0.get(&key)?.alone.rate()
    }

    /// Two cores were tried in vain a while ago, and are not to be tried again yet.
    pub(super) fn is_vain(&self, key: QueueKey, at: Duration, pair: Pair) -> bool {
        self.vain(key, pair).is_some_and(|found| at < found.until)
    }

    /// When two cores were last tried, it was in vain.
    pub(super) fn was_vain(&self, key: QueueKey, pair: Pair) -> bool {
        self.vain(key, pair).is_some()
    }

    fn vain(&self, key: QueueKey, pair: Pair) -> Option<&Finding> {
        let mut found = self.0.get(&key)?.found.iter();
        found.find(|found| found.pair == pair && !found.is_gain)
    }

    /// A queue whose rate alone is known gets a helper.
    pub(super) fn begin(&mut self, key: QueueKey, pair: Pair) {
        let Some(course) = self.0.get_mut(&key) else {
            return;
        };
        course.trial = course.alone.rate().map(|alone| Trial {
            pair,
            alone,
            windows: Windows::default(),
            settled: false,
            is_gain: false,
        });
        course.alone = Windows::default();
    }

    /// A look at a queue with a helper; says if that is to end, if it is to be judged now. One whose rate alone nobody
    /// knows is not judged.
    pub(super) fn shared(
        &mut self,
        key: QueueKey,
        at: Duration,
        pair: Pair,
        sample: Sample,
        judge: bool,
    ) -> Option<End> {
        let course = self.0.get_mut(&key)?;
        // It may have been asked for meanwhile, of another worker.
        let trial = course.trial.as_mut().filter(|trial| trial.pair == pair);
        let Some(trial) = trial else {
            course.trial = None;
            return None;
        };
        if !trial.windows.add(at, sample) || !judge {
            return None;
        }
        if !std::mem::replace(&mut trial.settled, true) {
            trial.windows.closed.clear();
        }
        let rate = trial.windows.rate()?;
        if !trial.windows.stood() {
            return None;
        }
        if !trial.is_gain {
            let (alone, is_gain) = (trial.alone, rate.over(trial.alone) >= WORTH);
            trial.is_gain = is_gain;
            course.find(at, pair, is_gain, alone.frame_len());
            return (!is_gain).then(|| End::Rest(in_vain(alone, rate)));
        }
        let (before, now) = (trial.alone.frame_len(), rate.frame_len());
        if now * LIKE < before {
            let why =
                format!("its frames have {now:.0} bytes, and had {before:.0} when it was tried");
            return Some(End::Rest(why));
        }
        let found = course.found.iter().find(|found| found.pair == pair)?;
        (at >= found.until).then(|| {
            let alone = trial.alone;
            End::Check(format!(
                "its rate alone, {alone}, is measured again: now it is {rate}"
            ))
        })
    }

    /// Whether it is known what a queue with a helper did without.
    pub(super) fn knows(&self, key: QueueKey) -> bool {
        let course = self.0.get(&key);
        course.is_some_and(|course| course.trial.is_some())
    }

    /// A queue is with a helper for another reason than a gain.
    pub(super) fn asked(&mut self, key: QueueKey) {
        if let Some(course) = self.0.get_mut(&key) {
            (course.trial, course.alone) = (None, Windows::default());
        }
    }

    /// Some queue's first windows with a helper are not over.
    pub(super) fn is_trying(&self) -> bool {
        let trials = self.0.values().filter_map(|course| course.trial.as_ref());
        let mut short = trials.filter(|trial| trial.windows.closed.len() < WINDOWS);
        short.next().is_some()
    }

    /// Forgets what does not count any longer, of queues that are `gone` everything but what was found.
    pub(super) fn forget(&mut self, at: Duration, is_gone: impl Fn(&QueueKey) -> bool) {
        self.0.retain(|key, course| {
            if is_gone(key) {
                (course.trial, course.alone) = (None, Windows::default());
            }
            if course.trial.is_none() {
                course.found.retain(|found| at < found.until + LONGEST);
            }
            let alone = &course.alone;
            let is_measured = alone.open.is_some() || !alone.closed.is_empty();
            course.trial.is_some() || is_measured || !course.found.is_empty()
        });
    }
}

impl Course {
    fn find(&mut self, at: Duration, pair: Pair, is_gain: bool, frame_len: f64) {
        let old = self.found.iter().position(|found| found.pair == pair);
        let old = old.map(|old| self.found.swap_remove(old));
        let again = old.filter(|old| old.is_gain == is_gain);
        let times = again.map_or(1, |old| old.times.saturating_add(1));
        let doubled = 1_u32.checked_shl(times - 1).unwrap_or(u32::MAX);
        self.found.push(Finding {
            pair,
            is_gain,
            frame_len,
            times,
            until: at + SHORTEST.saturating_mul(doubled).min(LONGEST),
        });
    }
}

impl Windows {
    /// True if a window is over with that.
    fn add(&mut self, at: Duration, sample: Sample) -> bool {
        let open = self.open.take();
        let sum = open.map_or(sample, |open| Sample {
            elapsed: open.elapsed + sample.elapsed,
            frames: open.frames + sample.frames,
            bytes: open.bytes + sample.bytes,
            stands: open.stands && sample.stands,
        });
        if sum.elapsed < WINDOW {
            self.open = Some(sum);
            return false;
        }
        let seconds = sum.elapsed.as_secs_f64();
        if self.closed.len() == WINDOWS {
            self.closed.pop_front();
        }
        self.closed.push_back(Window {
            at,
            rate: Rate {
                frames: sum.frames as f64 / seconds,
                bytes: sum.bytes as f64 / seconds,
            },
            stood: sum.stands,
        });
        true
    }

    /// The median of the last windows, if there are enough.
    fn rate(&self) -> Option<Rate> {
        let median = |of: fn(&Window) -> f64| {
            let mut all: Vec<f64> = self.closed.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(WINDOWS / 2).copied()
        };
        if self.closed.len() < WINDOWS {
            return None;
        }
        Some(Rate {
            frames: median(|window| window.rate.frames)?,
            bytes: median(|window| window.rate.bytes)?,
        })
    }

    /// Most of the last windows did.
    fn stood(&self) -> bool {
        let stood = self.closed.iter().filter(|window| window.stood).count();
        stood > WINDOWS / 2
    }
}

impl Rate {
    /// How many times the other this is.
    fn over(self, other: Rate) -> f64 {
        let ratio = |a: f64, b: f64| a / b.max(1.0);
        (ratio(self.frames, other.frames) * ratio(self.bytes, other.bytes)).sqrt()
    }

    fn frame_len(self) -> f64 {
        self.bytes / self.frames.max(1.0)
    }

    fn is_like(self, frame_len: f64) -> bool {
        let own = self.frame_len();
        own < frame_len * LIKE && frame_len < own * LIKE
    }

    /// In thousands or millions.
    fn unit(self) -> (f64, &'static str) {
        match self.frames {
            frames if frames < 1e6 => (1e3, "kframes/s"),
            _ => (1e6, "Mframes/s"),
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (one, unit) = self.unit();
        write!(f, "{:.2} {unit}", self.frames / one)
    }
}

fn in_vain(alone: Rate, shared: Rate) -> String {
    let gained = match shared.over(alone) {
        ratio if ratio < NOISE => "nothing",
        _ => "too little",
    };
    // Both in the same unit.
    let (one, _) = alone.unit();
    let shared = shared.frames / one;
    format!("a second worker gains {gained}: {alone} alone, {shared:.2} shared")
}

#[cfg(test)]
mod tests;
