//! `per-packet`: call for every frame.
//!
//! What an emulated NIC does whose driver sets no moderation, and what Dong et al. ("Optimizing network I/O virtualization
//! with efficient interrupt coalescing and virtual receive side scaling", 2011) measure their coalescing against. The
//! caller has its part in it: it publishes and reports each frame alone ([`Policy::every_frame`](super::Policy::every_frame)).

use super::Verdict;
use crate::burst::Reason;

#[inline]
pub(super) const fn judge() -> Verdict {
    Verdict::Now(Reason::Rule)
}
