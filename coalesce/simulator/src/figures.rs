//! What a run gives.

/// Of one run, after its first eighth.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Frames the guest has consumed.
    pub frames: u64,
    /// Frames that found the ring full.
    pub dropped: u64,
    /// Calls written.
    pub interrupts: u64,
    /// Virtual nanoseconds of guest and switch together, a frame.
    pub cpu_ns_per_frame: f64,
    /// CPU time of calls, guest and switch together, in parts of one CPU.
    pub interrupt_share: f64,
    /// From publication to the call, or to the guest's looking by itself if that is sooner: what the rule has added.
    pub added_mean_ns: f64,
    /// Median of it.
    pub added_p50_ns: u64,
    /// 99th percentile of it.
    pub added_p99_ns: u64,
    /// From arrival at the switch until the guest is through with it, of requests (of all frames, if there are none).
    pub latency_p50_ns: u64,
    /// 99th percentile of it.
    pub latency_p99_ns: u64,
    /// Frames a second.
    pub rate: f64,
}

impl Figures {
    /// Interrupts a frame.
    #[must_use]
    pub fn interrupts_per_frame(&self) -> f64 {
        self.interrupts as f64 / self.frames.max(1) as f64
    }
}

/// The value below which `permille` thousandths of `values` lie; 0 of none. Sorts.
#[must_use]
pub fn percentile(values: &mut [u32], permille: usize) -> u64 {
    if values.is_empty() {
        return 0;
    }
    values.sort_unstable();
    u64::from(values[(values.len() * permille / 1000).min(values.len() - 1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let mut values: Vec<u32> = (0..100).rev().collect();
        assert_eq!(percentile(&mut values, 500), 50);
        assert_eq!(percentile(&mut values, 990), 99);
        assert_eq!(percentile(&mut [], 990), 0);
    }
}
