//! `static`: the four knobs of `ethtool -C`, as the administrator set them.
//!
//! A call is made when `frames` wait, or the first has waited `usecs`. As in `struct ethtool_coalesce` (Linux,
//! `include/uapi/linux/ethtool.h`), a zero takes a condition away, `usecs` 0 without `frames` is no moderation. With both
//! zero here nothing is held back either, where ethtool forbids the setting. Kuroda ("Adaptive interrupt coalescing for
//! virtual machines") proposes to tune these at run time; this is what there is to tune.

use super::{Verdict, Waiting};
use crate::burst::{Burst, Reason};
use crate::settings::Settings;

/// Waiting for frames alone would never end where traffic does: there is a limit of our own, in nanoseconds.
const LIMIT_NS: u32 = 1_000_000;

#[inline]
pub(super) fn judge(settings: &Settings, burst: &Burst, waiting: Waiting) -> Verdict {
    let frames = settings.frames_or(0);
    let hold = match (settings.hold_ns_or(0), frames) {
        (0, 0 | 1) => return Verdict::Now(Reason::Rule),
        (0, _) => LIMIT_NS,
        (hold, _) => hold,
    };
    if frames != 0 && waiting.frames >= frames {
        return Verdict::Now(Reason::Frames);
    }
    Verdict::by(waiting.since + u64::from(hold), burst.now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    fn at(now: u64, frames: u16, knobs: (u32, u16)) -> Verdict {
        let settings = Settings::receive(Policy::Static)
            .with_usecs(Some(knobs.0))
            .with_frames(Some(knobs.1));
        let burst = Burst {
            now,
            ..Burst::default()
        };
        judge(&settings, &burst, Waiting { since: 0, frames })
    }

    #[test]
    fn either_knob_calls_and_zero_takes_it_away() {
        assert_eq!(at(0, 1, (0, 0)), Verdict::Now(Reason::Rule));
        assert_eq!(at(0, 1, (10, 0)), Verdict::By(10_000));
        assert_eq!(at(10_000, 1, (10, 0)), Verdict::Now(Reason::Deadline));
        assert_eq!(at(0, 7, (10, 8)), Verdict::By(10_000));
        assert_eq!(at(0, 8, (10, 8)), Verdict::Now(Reason::Frames));
        assert_eq!(at(0, 9_000, (10, 0)), Verdict::By(10_000));
        assert_eq!(at(0, 7, (0, 8)), Verdict::By(u64::from(LIMIT_NS)));
    }
}
