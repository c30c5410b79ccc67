//! Which latencies count: those of packets that were due while both threads ran.
//!
//! A thread that polls notices by itself that it did not run: its turns take a microsecond or a few, and if one takes thirty,
//! somebody else had the CPU, the host included. What was due in that time, or while the queue that it left behind drains, does
//! not count, however long it took.

use crate::histogram::Histogram;

/// No turn takes so long by itself: eight messages and a packet.
const GAP_NS: u64 = 30_000;
const WINDOW_NS: u64 = 500_000;
/// Stands for a lost packet.
const LOST: u32 = u32::MAX;

/// What one thread has seen of itself, and of packets.
#[derive(Clone, Debug, Default)]
pub(super) struct Diary {
    last: Option<u64>,
    /// When it did not run: from, to.
    gaps: Vec<(u64, u64)>,
    /// Window and ns, by packet.
    packets: Vec<(u32, u32)>,
}

/// What counts of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub(super) latency: Histogram,
    pub(super) lost: u64,
    /// Windows in which packets were due: those that count, and all.
    pub(super) windows: (usize, usize),
}

impl Diary {
    /// With room for so many packets.
    pub(super) fn with_room(packets: usize) -> Self {
        Self {
            packets: Vec::with_capacity(packets),
            ..Self::default()
        }
    }

    /// A turn begins.
    #[inline]
    pub(super) fn turn(&mut self, now: u64) {
        if let Some(last) = self.last.replace(now)
            && now - last > GAP_NS
        {
            self.gaps.push((last, now));
        }
    }

    /// A packet is done.
    #[inline]
    pub(super) fn done(&mut self, due: u64, now: u64) {
        let ns = now.saturating_sub(due).min(u64::from(LOST - 1)) as u32;
        self.packets.push(((due / WINDOW_NS) as u32, ns));
    }

    /// A packet found no room.
    pub(super) fn lost(&mut self, due: u64) {
        self.packets.push(((due / WINDOW_NS) as u32, LOST));
    }
}

/// What counts of what all have seen. A queue drains at most in `drain` times the time in which it grew.
pub(super) fn counted(diaries: &[Diary], drain: u64) -> Counted {
    let packets = || diaries.iter().flat_map(|diary| &diary.packets);
    let first = packets().map(|(window, _)| *window).min().unwrap_or(0);
    let last = packets().map(|(window, _)| *window).max().unwrap_or(0);
    let mut calm = vec![true; (last - first) as usize + 1];
    for (from, to) in diaries.iter().flat_map(|diary| &diary.gaps) {
        // What was due just before was still waiting.
        let begin = from.saturating_sub(WINDOW_NS / 4);
        let over = to + drain * (to - from) + WINDOW_NS / 4;
        for window in begin / WINDOW_NS..=over / WINDOW_NS {
            if let Some(calm) = calm.get_mut((window as usize).wrapping_sub(first as usize)) {
                *calm = false;
            }
        }
    }
    let mut counted = Counted {
        windows: (calm.iter().filter(|calm| **calm).count(), calm.len()),
        ..Counted::default()
    };
    for (window, ns) in packets() {
        if calm[(window - first) as usize] {
            match *ns {
                LOST => counted.lost += 1,
                ns => counted.latency.record(u64::from(ns)),
            }
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_around_a_gap_does_not_count() {
        let ms = 1_000_000;
        let (mut one, mut other) = (Diary::default(), Diary::default());
        for due in (0..100).map(|n| n * ms) {
            one.done(due, due + 500);
        }
        other.lost(30 * ms);
        other.lost(90 * ms);
        // A gap of 2 ms in the other thread: what was due in it, and in the 8 ms after it.
        for now in [0, 20_000, 30 * ms, 32 * ms] {
            other.last = if now == 30 * ms { None } else { other.last };
            other.turn(now);
        }
        let counted = counted(&[one, other], 4);
        // From 29.875 to 40.125 ms: windows 59 to 80 of 0 to 198.
        assert_eq!(counted.windows, (199 - 22, 199));
        assert_eq!((counted.latency.count(), counted.lost), (100 - 11, 1));
    }
}
