//! `vpp`: more than 32 frames since the last call, or 1 ms after it.
//!
//! The defaults of VPP's vhost-user driver (`src/vnet/devices/virtio/vhost_user.c`: `coalesce_frames` 32, `coalesce_time`
//! 1 ms), one setting for all interfaces. The time runs from the last call and not from the first frame that waits, so a
//! frame after a silence is reported at once and one right after a call waits the whole millisecond.

use super::{Verdict, Waiting};
use crate::burst::{Burst, Reason};

const FRAMES: u16 = 32;
const TIME_NS: u64 = 1_000_000;

/// When the last call was, in nanoseconds, or that there was none. Two halves, because a line has no room to align it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Vpp {
    last: Option<[u32; 2]>,
}

impl Vpp {
    #[inline]
    pub(super) fn judge(&self, burst: &Burst, waiting: Waiting) -> Verdict {
        if waiting.frames > FRAMES {
            return Verdict::Now(Reason::Frames);
        }
        let last = self
            .last
            .map(|[high, low]| u64::from(high) << 32 | u64::from(low));
        last.map_or(Verdict::Now(Reason::Rule), |last| {
            Verdict::by(last + TIME_NS, burst.now)
        })
    }

    #[inline]
    pub(super) fn fired(&mut self, now: u64) {
        self.last = Some([(now >> 32) as u32, now as u32]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_from_the_last_call() {
        let mut vpp = Vpp::default();
        let judge = |vpp: &Vpp, now, frames| {
            let burst = Burst {
                now,
                ..Burst::default()
            };
            vpp.judge(&burst, Waiting { since: now, frames })
        };
        assert_eq!(judge(&vpp, 7, 1), Verdict::Now(Reason::Rule));
        vpp.fired(1 << 40);
        assert_eq!(
            judge(&vpp, (1 << 40) + 5, 32),
            Verdict::By((1 << 40) + TIME_NS)
        );
        assert_eq!(judge(&vpp, (1 << 40) + 5, 33), Verdict::Now(Reason::Frames));
        assert_eq!(
            judge(&vpp, (1 << 40) + 2 * TIME_NS, 1),
            Verdict::Now(Reason::Deadline)
        );
    }
}
