//! `dim`: Linux's dynamic interrupt moderation for network devices (`lib/dim/net_dim.c`, Documentation/networking/net_dim.rst).
//!
//! Five profiles of (microseconds, frames). After every 64 events (here: calls) the bytes, frames and events per
//! millisecond since the last decision are compared with those before it: bytes first, then frames, then events (fewer is
//! better), a difference counting only above 10 %. The search walks in one direction while things get better, turns when
//! they do not, parks on top when it has turned back after a single step, parks *tired* after ten steps, and leaves either
//! parking place when the figures change, or its tiredness has worn off. Written from the published description and
//! figures; latency is no input of it, and in a closed loop the figures it compares are its own doing.

use super::{Verdict, Waiting};
use crate::burst::{Burst, Reason};
use crate::settings::{Direction, Settings};

/// Which family of profiles: the moderation timer starts at the last call (EQE) or at the first frame after it (CQE).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DimProfile {
    /// What Linux's virtio-net uses.
    #[default]
    Eqe,
    /// Shorter times, fewer frames.
    Cqe,
}

/// Microseconds and frames.
type Profile = (u16, u16);

const RX_EQE: [Profile; 5] = [(1, 256), (8, 256), (64, 256), (128, 256), (256, 256)];
const RX_CQE: [Profile; 5] = [(2, 256), (8, 128), (16, 64), (32, 64), (64, 64)];
const TX_EQE: [Profile; 5] = [(1, 128), (8, 128), (32, 128), (64, 128), (128, 128)];
const TX_CQE: [Profile; 5] = [(5, 128), (8, 64), (16, 32), (32, 32), (64, 32)];

const EVENTS_PER_DECISION: u8 = 64;
/// Steps after which the search tires.
const TIRED: u8 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Search {
    ParkedOnTop,
    ParkedTired,
    Up,
    Down,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compared {
    Worse,
    Same,
    Better,
}

/// Per millisecond, saturating.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    bytes: u32,
    frames: u16,
    events: u16,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Dim {
    began: u32,
    bytes: u32,
    previous: Rates,
    frames: u16,
    events: u8,
    profile: u8,
    search: Search,
    up: u8,
    down: u8,
    tired: u8,
}

impl Default for Dim {
    fn default() -> Self {
        Self {
            began: 0,
            bytes: 0,
            previous: Rates::default(),
            frames: 0,
            events: 0,
            // The profile that drivers start with, and the direction in which they set out.
            profile: 1,
            search: Search::Up,
            up: 0,
            down: 0,
            tired: 0,
        }
    }
}

fn compare(now: Rates, before: Rates) -> Compared {
    let differs =
        |now: u32, before: u32| u64::from(now.abs_diff(before)) * 100 > u64::from(before) * 10;
    let more = |now: u32, before: u32| {
        if now > before {
            Compared::Better
        } else {
            Compared::Worse
        }
    };
    let (frames, was) = (u32::from(now.frames), u32::from(before.frames));
    let (events, were) = (u32::from(now.events), u32::from(before.events));
    if before.bytes == 0 {
        return if now.bytes > 0 {
            Compared::Better
        } else {
            Compared::Same
        };
    }
    if differs(now.bytes, before.bytes) {
        more(now.bytes, before.bytes)
    } else if was > 0 && differs(frames, was) {
        more(frames, was)
    } else if were > 0 && differs(events, were) {
        more(were, events)
    } else {
        Compared::Same
    }
}

impl Dim {
    fn profile(&self, settings: &Settings) -> Profile {
        let profiles = match (settings.direction, settings.dim_profile) {
            (Direction::Receive, DimProfile::Eqe) => &RX_EQE,
            (Direction::Receive, DimProfile::Cqe) => &RX_CQE,
            (Direction::Transmit, DimProfile::Eqe) => &TX_EQE,
            (Direction::Transmit, DimProfile::Cqe) => &TX_CQE,
        };
        profiles[usize::from(self.profile).min(profiles.len() - 1)]
    }

    #[inline]
    pub(super) fn arrived(&mut self, burst: &Burst) {
        self.bytes = self.bytes.saturating_add(burst.bytes);
        self.frames = self.frames.saturating_add(burst.frames);
    }

    #[inline]
    pub(super) fn judge(&self, settings: &Settings, burst: &Burst, waiting: Waiting) -> Verdict {
        let (usecs, frames) = self.profile(settings);
        if waiting.frames >= frames {
            return Verdict::Now(Reason::Frames);
        }
        Verdict::by(waiting.since + u64::from(usecs) * 1000, burst.now)
    }

    pub(super) fn fired(&mut self, now: u64) {
        self.events += 1;
        if self.events >= EVENTS_PER_DECISION {
            self.decide(now);
        }
    }

    #[inline(never)]
    fn decide(&mut self, now: u64) {
        let ticks = (now >> 10) as u32;
        let time = u64::from(ticks.wrapping_sub(self.began)).max(1);
        // Ticks are 1,024 ns.
        let per_ms = |count: u64| count * 977 / time;
        let rates = Rates {
            bytes: per_ms(u64::from(self.bytes)).min(u64::from(u32::MAX)) as u32,
            frames: per_ms(u64::from(self.frames)).min(u64::from(u16::MAX)) as u16,
            events: per_ms(u64::from(self.events)).min(u64::from(u16::MAX)) as u16,
        };
        let was = self.search;
        let compared = compare(rates, self.previous);
        match self.search {
            Search::ParkedOnTop if compared != Compared::Same => self.leave_parking(),
            Search::ParkedOnTop => {}
            Search::ParkedTired => {
                self.tired = self.tired.saturating_sub(1);
                if self.tired == 0 {
                    self.leave_parking();
                }
            }
            Search::Up | Search::Down => self.walk(compared),
        }
        if was != Search::ParkedOnTop || self.search != Search::ParkedOnTop {
            self.previous = rates;
        }
        (self.began, self.bytes, self.frames, self.events) = (ticks, 0, 0, 0);
    }

    fn walk(&mut self, compared: Compared) {
        if compared != Compared::Better {
            self.turn();
        }
        if self.on_top() {
            (self.up, self.down, self.tired) = (0, 0, 0);
            self.search = Search::ParkedOnTop;
        } else if self.tired >= TIRED {
            (self.up, self.down) = (0, 0);
            self.search = Search::ParkedTired;
        } else if !self.step() {
            self.turn();
        }
    }

    /// A single step beyond the best one, several to get there.
    fn on_top(&self) -> bool {
        match self.search {
            Search::ParkedOnTop | Search::ParkedTired => true,
            Search::Up => self.down > 1 && self.up == 1,
            Search::Down => self.up > 1 && self.down == 1,
        }
    }

    fn turn(&mut self) {
        match self.search {
            Search::ParkedOnTop | Search::ParkedTired => {}
            Search::Up => (self.search, self.down) = (Search::Down, 0),
            Search::Down => (self.search, self.up) = (Search::Up, 0),
        }
    }

    /// False at the end of the profiles.
    fn step(&mut self) -> bool {
        match self.search {
            Search::Up if self.profile < 4 => {
                self.profile += 1;
                self.up += 1;
            }
            Search::Down if self.profile > 0 => {
                self.profile -= 1;
                self.down += 1;
            }
            Search::Up | Search::Down => return false,
            Search::ParkedOnTop | Search::ParkedTired => {}
        }
        self.tired += 1;
        true
    }

    fn leave_parking(&mut self) {
        self.search = if self.profile > 0 {
            Search::Down
        } else {
            Search::Up
        };
        self.tired = 0;
        self.step();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 events within `us`, with so many frames of 1,500 bytes each.
    fn round(dim: &mut Dim, now: &mut u64, us: u64, frames: u16) {
        let burst = Burst {
            frames,
            bytes: u32::from(frames) * 1500,
            ..Burst::default()
        };
        for _ in 0..EVENTS_PER_DECISION {
            *now += us * 1000 / 64;
            dim.arrived(&burst);
            dim.fired(*now);
        }
    }

    #[test]
    fn climbs_while_bytes_grow_and_turns_when_they_fall() {
        let (mut dim, mut now) = (Dim::default(), 0);
        let mut walked = Vec::new();
        for frames in [10, 20, 40] {
            round(&mut dim, &mut now, 1000, frames);
            walked.push(dim.profile);
        }
        assert_eq!(walked, [2, 3, 4]);
        round(&mut dim, &mut now, 1000, 10);
        assert_eq!((dim.profile, dim.search), (3, Search::Down));
    }

    #[test]
    fn nothing_changing_tires_it_or_parks_it() {
        let (mut dim, mut now) = (Dim::default(), 0);
        let mut seen = Vec::new();
        for _ in 0..40 {
            round(&mut dim, &mut now, 1000, 10);
            seen.push(dim.search);
        }
        assert!(
            seen.contains(&Search::ParkedOnTop) || seen.contains(&Search::ParkedTired),
            "{seen:?}"
        );
    }

    #[test]
    fn fewer_events_for_the_same_traffic_are_better() {
        let before = Rates {
            bytes: 1000,
            frames: 10,
            events: 100,
        };
        let fewer = Rates {
            events: 50,
            ..before
        };
        let slower = Rates {
            bytes: 800,
            ..before
        };
        assert_eq!(compare(fewer, before), Compared::Better);
        assert_eq!(compare(before, fewer), Compared::Worse);
        assert_eq!(compare(slower, before), Compared::Worse);
        assert_eq!(compare(before, before), Compared::Same);
        assert_eq!(compare(before, Rates::default()), Compared::Better);
    }
}
