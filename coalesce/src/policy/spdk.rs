//! `spdk`: a delay between calls that grows with the rate above a threshold.
//!
//! SPDK's vhost target (`lib/vhost`, RPC `vhost_controller_set_coalescing`) takes a base delay in microseconds and a
//! threshold in requests a second, 60,000 unless set. Every 10 ms it counts a queue's requests; above the threshold the
//! delay becomes `base × (count − threshold) / threshold`, and no call is made sooner than that after the last one. At or
//! below the threshold *nothing changes*: the delay stays, and the count runs on into the next interval, so the delay that a
//! load left behind outlives it. That is kept here, because it is what the comparison is about. The base is 0 in SPDK, which
//! turns it off; 16 µs here.

use super::Verdict;
use crate::burst::{Burst, Reason};
use crate::settings::Settings;

const INTERVAL_NS: u64 = 10_000_000;
/// Base delay.
const BASE_NS: u64 = 16_000;
/// 60,000 a second.
const THRESHOLD: u64 = 60_000 * INTERVAL_NS / 1_000_000_000;

/// Times are in units of 1,024 ns, whose 32 bits go round in 73 minutes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spdk {
    interval_began: u32,
    frames: u32,
    delay: u32,
    called: u32,
}

const fn ticks(ns: u64) -> u32 {
    (ns >> 10) as u32
}

impl Spdk {
    #[inline]
    pub(super) fn arrived(&mut self, settings: &Settings, burst: &Burst) {
        self.frames = self.frames.saturating_add(u32::from(burst.frames));
        if ticks(burst.now).wrapping_sub(self.interval_began) < ticks(INTERVAL_NS) {
            return;
        }
        self.interval_began = ticks(burst.now);
        let above = u64::from(self.frames).saturating_sub(THRESHOLD);
        if above > 0 {
            let base = u64::from(settings.hold_ns_or(BASE_NS as u32));
            self.delay = ticks(base * above / THRESHOLD);
            self.frames = 0;
        }
    }

    #[inline]
    pub(super) fn judge(&self, burst: &Burst) -> Verdict {
        let since = ticks(burst.now).wrapping_sub(self.called);
        match self.delay.checked_sub(since) {
            None | Some(0) => Verdict::Now(Reason::Rule),
            Some(left) => Verdict::By(burst.now + (u64::from(left) << 10)),
        }
    }

    #[inline]
    pub(super) fn fired(&mut self, now: u64) {
        self.called = ticks(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    /// Feeds `frames` a millisecond, one at a time, for so many milliseconds; says the delay then, in nanoseconds.
    fn after(spdk: &mut Spdk, from_ms: u64, ms: u64, frames: u64) -> u64 {
        let settings = Settings::receive(Policy::Spdk);
        for i in 0..ms * frames {
            let burst = Burst {
                now: from_ms * 1_000_000 + i * 1_000_000 / frames,
                frames: 1,
                ..Burst::default()
            };
            spdk.arrived(&settings, &burst);
        }
        u64::from(spdk.delay) << 10
    }

    #[test]
    fn delay_grows_with_the_excess_and_outlives_it() {
        let mut spdk = Spdk::default();
        assert_eq!(after(&mut spdk, 11, 9, 50), 0);
        let twice = after(&mut spdk, 100, 40, 120);
        assert!((14_000..=17_000).contains(&twice), "{twice}");
        let thrice = after(&mut spdk, 200, 40, 180);
        assert!((30_000..=34_000).contains(&thrice), "{thrice}");
        // One silent interval on end after the load has gone: the delay is still there.
        assert_eq!(after(&mut spdk, 1_000, 5, 1), thrice);
    }
}
