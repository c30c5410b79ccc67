//! `per-burst`: call once when the burst is through.
//!
//! The rule of DPDK's vhost library (`vhost_vring_call` at the end of each enqueue), and so of Open vSwitch, and of Linux's
//! vhost-net. Nothing is held back: the bursts themselves are what coalesces, and they grow only when the switch is busy.

use super::Verdict;
use crate::burst::Reason;

#[inline]
pub(super) const fn judge() -> Verdict {
    Verdict::Now(Reason::Rule)
}
