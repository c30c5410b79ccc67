use super::*;
use crate::Policy;
use crate::policy::State;

/// R is 20,000 a second at first.
const SETTINGS: Settings = Settings::receive(Policy::Adaptive)
    .with_share(100)
    .with_cost_ns(5_000);

/// A flow of single frames, judged as if the guest always wanted to hear.
struct Flow {
    state: Adaptive,
    now: u64,
    transmitted: u8,
    calls: u32,
}

impl Flow {
    fn new() -> Self {
        Self {
            state: Adaptive::new(&SETTINGS),
            now: 1 << 33,
            transmitted: 0,
            calls: 0,
        }
    }

    /// One frame after so many nanoseconds; what is said about it alone.
    fn frame(&mut self, after: u64) -> Verdict {
        self.now += after;
        let burst = Burst {
            now: self.now,
            frames: 1,
            room: 200,
            size: 256,
            drained: true,
            transmitted: self.transmitted,
            ..Burst::default()
        };
        self.state.arrived(&SETTINGS, &burst, after);
        let waiting = Waiting {
            since: self.now,
            frames: 1,
        };
        let verdict = self.state.judge(&SETTINGS, &burst, waiting, after);
        if let Verdict::Now(reason) = verdict {
            self.state.fired(&SETTINGS, self.now, reason);
            self.calls += 1;
        }
        verdict
    }

    fn run(&mut self, ms: u64, interval: u64) {
        for _ in 0..ms * 1_000_000 / interval {
            let _ = self.frame(interval);
        }
    }

    fn gap(&self) -> u32 {
        self.state.gap_ns(&SETTINGS)
    }
}

#[test]
fn state_and_tag_are_half_a_line() {
    assert!(size_of::<State>() <= 32);
}

#[test]
fn the_gap_climbs_level_by_level_and_falls_at_once() {
    let mut flow = Flow::new();
    let mut seen = vec![0];
    for _ in 0..40 {
        flow.run(1, 2_000);
        if flow.gap() != seen[seen.len() - 1] {
            seen.push(flow.gap());
        }
    }
    assert_eq!(seen, [0, 8_000, 16_000, 32_000, 48_000]);
    // Below 1/R a window, and it is gone.
    flow.run(2, 80_000);
    assert_eq!(flow.gap(), 0);
}

#[test]
fn below_the_rate_every_frame_is_reported_at_once() {
    let mut flow = Flow::new();
    for _ in 0..10_000 {
        assert!(matches!(flow.frame(50_001), Verdict::Now(_)));
    }
    assert_eq!(flow.calls, 10_000);
}

#[test]
fn a_silence_fills_the_credits_and_is_no_window() {
    let mut flow = Flow::new();
    flow.run(40, 2_000);
    let gap = flow.gap();
    assert_eq!(gap, 48_000);
    for _ in 0..5 {
        assert_eq!(flow.frame(9_000_000), Verdict::Now(Reason::Quiet));
        for _ in 0..3 {
            assert_eq!(flow.frame(100), Verdict::Now(Reason::Drained));
        }
        assert!(matches!(flow.frame(100), Verdict::By(_)));
        flow.run(1, 2_000);
        assert_eq!(flow.gap(), gap, "a silence brought the gap down");
    }
}

#[test]
fn silences_of_any_length_leave_credits_full() {
    for silence in [1 << 31, 1 << 32, (1 << 32) + 5, 3 << 31, 1 << 40] {
        let mut flow = Flow::new();
        flow.run(40, 2_000);
        assert_eq!(flow.frame(silence), Verdict::Now(Reason::Quiet));
        assert_eq!(
            flow.frame(100),
            Verdict::Now(Reason::Drained),
            "after {silence} ns"
        );
    }
}

#[test]
fn urgent_frames_overdraw_by_half_a_burst_and_no_more() {
    let mut flow = Flow::new();
    flow.run(40, 2_000);
    let mut urgent = || {
        flow.now += 10;
        let burst = Burst {
            now: flow.now,
            frames: 1,
            room: 200,
            size: 256,
            urgent: true,
            ..Burst::default()
        };
        flow.state.arrived(&SETTINGS, &burst, 10);
        let waiting = Waiting {
            since: flow.now,
            frames: 1,
        };
        let verdict = flow.state.judge(&SETTINGS, &burst, waiting, 10);
        if verdict == Verdict::Now(Reason::Urgent) {
            flow.state.fired(&SETTINGS, flow.now, Reason::Urgent);
        }
        verdict == Verdict::Now(Reason::Urgent)
    };
    // Kept for them are up to 5 credits, and 4 may be overdrawn, at a third of one each.
    let allowed = (0..100).filter(|_| urgent()).count();
    assert!((12..=27).contains(&allowed), "{allowed}");
}

#[test]
fn a_guest_that_answers_each_request_is_not_held_back() {
    let mut flow = Flow::new();
    for _ in 0..200_000 {
        flow.transmitted = flow.transmitted.wrapping_add(1);
        let _ = flow.frame(5_000);
    }
    assert_eq!(flow.gap(), 0);
    // It stops answering: bulk.
    flow.run(40, 5_000);
    assert_eq!(flow.gap() / 100, 449);
}

#[test]
fn a_step_that_costs_traffic_is_taken_back_for_ever_longer() {
    let mut flow = Flow::new();
    let (mut steps, mut was) = (Vec::new(), 0);
    // A sender whose rate falls by a fifth as soon as it is held back at all.
    for ms in 0..2_000u64 {
        let interval = if flow.gap() > 0 { 5_000 } else { 4_000 };
        flow.run(1, interval);
        if flow.gap() > was {
            steps.push(ms);
        }
        was = flow.gap();
        assert!(was <= 8_000);
    }
    let waits: Vec<_> = steps.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(waits.len() >= 5, "{waits:?}");
    assert!(waits.is_sorted(), "{waits:?}");
    assert!(waits[4] >= 8 * waits[0] / 2, "{waits:?}");
}

#[test]
fn chance_does_not_take_a_step_back() {
    // Intervals that a generator draws: 12 to 28 µs, a frame each.
    let mut flow = Flow::new();
    let mut seed = 7u64;
    let mut full = 0;
    for _ in 0..100_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let _ = flow.frame(12_000 + (seed >> 33) % 16_000);
        full += u32::from(flow.gap() >= 25_000);
    }
    assert!(full > 80_000, "{full}");
}

#[test]
fn what_a_call_costs_moves_the_threshold() {
    let mut flow = Flow::new();
    for _ in 0..100 {
        flow.state.measured(20_000);
    }
    assert!(
        (19_900..=20_000).contains(&flow.state.cost_ns()),
        "{}",
        flow.state.cost_ns()
    );
    flow.run(40, 150_000);
    assert!(flow.gap() > 0, "6,700 calls of 20 us are more than a tenth");
    for _ in 0..100 {
        flow.state.measured(0);
    }
    assert!(
        (1_000..=1_100).contains(&flow.state.cost_ns()),
        "{}",
        flow.state.cost_ns()
    );
    flow.run(40, 15_000);
    assert_eq!(flow.gap(), 0, "67,000 calls of 1 us are less");
    for _ in 0..100 {
        flow.state.measured(u32::MAX);
    }
    assert!((199_000..=200_000).contains(&flow.state.cost_ns()));
    flow.run(400, 15_000);
    assert_eq!(flow.gap(), 500_000);
}

#[test]
fn round_trip_and_room_shorten_the_hold() {
    let mut flow = Flow::new();
    flow.run(40, 2_000);
    for _ in 0..200 {
        let _ = flow.frame(2_000);
    }
    let burst = Burst {
        now: flow.now,
        room: 200,
        size: 256,
        ..Burst::default()
    };
    assert_eq!(flow.state.ceiling_ns(&SETTINGS, &burst), 64_000);
    let quick = Burst {
        rtt_ns: 40_000,
        ..burst
    };
    assert_eq!(flow.state.ceiling_ns(&SETTINGS, &quick), 10_000);
    let tight = Burst { room: 80, ..burst };
    let hold = flow.state.ceiling_ns(&SETTINGS, &tight);
    assert!(
        (35_000..=45_000).contains(&hold),
        "20 frames of 2 us: {hold}"
    );
}

#[test]
fn a_transmit_ring_that_ran_empty_is_reported() {
    let settings = Settings::transmit(Policy::Adaptive).with_share(100);
    let mut state = Adaptive::new(&settings);
    let mut now = 1 << 33;
    for _ in 0..20_000 {
        now += 2_000;
        let burst = Burst {
            now,
            frames: 1,
            size: 256,
            ..Burst::default()
        };
        state.arrived(&settings, &burst, 2_000);
    }
    assert_eq!(state.gap_ns(&settings), 32_000);
    let judge = |drained, frames| {
        let burst = Burst {
            now,
            frames: 1,
            size: 256,
            drained,
            ..Burst::default()
        };
        state.judge(&settings, &burst, Waiting { since: now, frames }, 2_000)
    };
    assert_eq!(judge(true, 1), Verdict::Now(Reason::Drained));
    assert_eq!(judge(false, 64), Verdict::Now(Reason::Frames));
    assert_eq!(judge(false, 63), Verdict::By(now + 32_000));
}
