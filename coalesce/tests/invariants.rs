//! What holds whatever the traffic and the guest do, on a virtual clock.

use proptest::prelude::*;
use vswitch_coalesce::class::SAMPLE_NS;
use vswitch_coalesce::policy::{CAP_NS, EXPENSIVE_CAP_NS};
use vswitch_coalesce::{Action, Burst, GuestAsks, GuestClass, Moderator, Policy, Reason, Settings};

/// R is 20,000 a second: a tenth of a CPU for calls of 5 µs.
const SETTINGS: Settings = Settings::receive(Policy::Adaptive)
    .with_share(100)
    .with_cost_ns(5_000);
const PERIOD_NS: u64 = 50_000;

/// One frame of a flow that the sources have nothing behind, into a ring with room.
fn frame(now: u64, used: u16) -> Burst {
    Burst {
        now,
        used,
        frames: 1,
        bytes: 1500,
        room: 200,
        size: 256,
        drained: true,
        ..Burst::default()
    }
}

/// A ring whose guest sleeps again as soon as it was called.
struct Sleeper {
    moderator: Moderator,
    settings: Settings,
    now: u64,
    used: u16,
    event: u16,
    calls: u64,
    longest_ns: u32,
}

impl Sleeper {
    fn new(settings: Settings) -> Self {
        Self {
            moderator: Moderator::new(&settings),
            settings,
            now: 1 << 40,
            used: 0,
            event: 0,
            calls: 0,
            longest_ns: 0,
        }
    }

    fn act(&mut self, action: Action) {
        if let Action::Fire { held_ns, .. } = action {
            self.calls += 1;
            self.longest_ns = self.longest_ns.max(held_ns);
            self.event = self.used;
        }
    }

    /// Time goes on, and the worker keeps its deadlines.
    fn pass(&mut self, ns: u64) {
        let until = self.now + ns;
        while let Some(deadline) = self.moderator.deadline().filter(|&at| at <= until) {
            self.now = deadline.max(self.now);
            let ask = GuestAsks::Event(self.event);
            let action = self
                .moderator
                .expire(&self.settings, self.now, self.used, || ask);
            assert_ne!(action, Action::Hold, "nothing is put off twice");
            self.act(action);
        }
        self.now = until;
    }

    fn publish(&mut self, change: impl Fn(&mut Burst)) {
        self.used = self.used.wrapping_add(1);
        let mut burst = frame(self.now, self.used);
        change(&mut burst);
        let ask = GuestAsks::Event(self.event);
        let action = self.moderator.published(&self.settings, &burst, || ask);
        self.act(action);
    }

    /// Calls a second over `ms` of frames every `interval` nanoseconds, after as much again to settle.
    fn rate(&mut self, ms: u64, interval: u64, change: impl Fn(&mut Burst)) -> u64 {
        for half in 0..2 {
            for _ in 0..ms * 1_000_000 / interval {
                self.pass(interval);
                self.publish(&change);
            }
            if half == 0 {
                self.calls = 0;
            }
        }
        self.calls * 1000 / ms
    }
}

#[test]
fn below_r_the_added_delay_is_exactly_zero() {
    let mut seed = 1;
    for least in [PERIOD_NS, 2 * PERIOD_NS, 40 * PERIOD_NS] {
        let mut sleeper = Sleeper::new(SETTINGS);
        for i in 0..20_000u64 {
            sleeper.pass(least + random(&mut seed) % least);
            sleeper.publish(|_| {});
            assert_eq!((sleeper.calls, sleeper.longest_ns), (i + 1, 0));
        }
    }
}

#[test]
fn random_arrivals_at_half_of_r_are_not_held_back_either() {
    let mut seed = 2;
    let mut sleeper = Sleeper::new(SETTINGS);
    for _ in 0..50_000 {
        // Exponential, with a mean of two periods.
        let uniform = (random(&mut seed) % 1_000_000 + 1) as f64 / 1e6;
        sleeper.pass((-uniform.ln() * 2.0 * PERIOD_NS as f64) as u64);
        sleeper.publish(|_| {});
    }
    assert_eq!((sleeper.calls, sleeper.longest_ns), (50_000, 0));
}

#[test]
fn calls_keep_within_r_or_what_the_longest_hold_makes_of_it() {
    for cost in [2_000, 5_000, 20_000, 100_000] {
        let settings = SETTINGS.with_cost_ns(cost);
        let r = 100_000_000 / u64::from(cost);
        let cap = if cost > 50_000 {
            EXPENSIVE_CAP_NS
        } else {
            CAP_NS
        };
        for interval in [300, 1_000, 7_000, 15_000, 33_000] {
            for drained in [true, false] {
                let mut sleeper = Sleeper::new(settings);
                // Room enough that it is never the reason.
                let rate = sleeper.rate(1_000, interval, |burst| {
                    (burst.room, burst.size) = (30_000, 32_768);
                    burst.drained = drained;
                });
                let least = 1_000_000_000 / cap;
                let arrivals = 1_000_000_000 / interval;
                // Twelve: the bucket, and what it may be overdrawn by.
                let bound = r.max(least) + r.max(least) / 50 + 12;
                assert!(
                    rate <= bound.min(arrivals),
                    "{rate} at {cost} ns every {interval} ns: {bound}"
                );
                let longest = u64::from(sleeper.longest_ns);
                assert!(longest <= cap, "{longest} ns held");
            }
        }
    }
}

#[test]
fn urgent_frames_keep_within_three_times_r() {
    for interval in [1_000, 4_000, 12_000] {
        let mut sleeper = Sleeper::new(SETTINGS);
        let rate = sleeper.rate(1_000, interval, |burst| burst.urgent = true);
        assert!((20_000..=61_200 + 12).contains(&rate), "{rate}");
    }
}

#[test]
fn a_ring_nearly_used_up_is_reported_whatever_it_costs() {
    let mut sleeper = Sleeper::new(SETTINGS);
    let rate = sleeper.rate(200, 2_000, |burst| burst.room = 50);
    assert_eq!(rate, 500_000);
}

/// A guest that never wants a call, in each of the ways to say so.
fn polled(ask: impl Fn(u16) -> GuestAsks, bursts: u32) -> (u64, u32) {
    let mut moderator = Moderator::new(&SETTINGS);
    let (mut now, mut used, mut calls, mut asked) = (1 << 40, 0u16, 0, 0);
    for i in 0..bursts {
        now += 3_000;
        if moderator.overdue(now) {
            let action = moderator.expire(&SETTINGS, now, used, || ask(used));
            calls += u64::from(action.fires() && i > 0);
        }
        used = used.wrapping_add(32);
        let burst = Burst {
            frames: 32,
            ..frame(now, used)
        };
        let action = moderator.published(&SETTINGS, &burst, || {
            asked += 1;
            ask(used)
        });
        calls += u64::from(action.fires() && i > 0);
    }
    assert_eq!(moderator.class(), GuestClass::Polling);
    (calls, asked)
}

#[test]
fn a_polling_guest_is_not_called_and_seldom_asked() {
    let suppressed = GuestAsks::Flags { suppressed: true };
    let (calls, asked) = polled(|_| suppressed, 100_000);
    assert_eq!(calls, 0);
    assert!(
        asked < 100_000 / 8 + 6_000,
        "asked {asked} times in 100,000 bursts"
    );

    // A driver that keeps its event just behind: never crossed.
    let (calls, _) = polled(GuestAsks::Event, 100_000);
    assert_eq!(calls, 0);

    // A driver that never set its event: once a round of the index, and no more.
    let (calls, _) = polled(|_| GuestAsks::Event(0), 100_000);
    let rounds = 100_000 * 32 / 65_536;
    assert!(
        calls.abs_diff(rounds) <= 1,
        "{calls} calls in {rounds} rounds"
    );
}

#[test]
fn a_guest_that_goes_from_polling_to_sleeping_waits_for_one_sample() {
    let polling = GuestAsks::Flags { suppressed: true };
    let asleep = GuestAsks::Flags { suppressed: false };
    let mut moderator = Moderator::new(&SETTINGS);
    let (mut now, mut used) = (1 << 40, 0u16);
    for _ in 0..50_003 {
        now += 3_000;
        used = used.wrapping_add(1);
        let _ = moderator.published(&SETTINGS, &frame(now, used), || polling);
    }
    assert_eq!(moderator.class(), GuestClass::Polling);
    // It sleeps now, and one more frame comes, after which nothing does.
    now += 3_000;
    used = used.wrapping_add(1);
    if moderator
        .published(&SETTINGS, &frame(now, used), || asleep)
        .fires()
    {
        return;
    }
    let deadline = moderator.deadline().unwrap();
    assert!(deadline <= now + SAMPLE_NS);
    let action = moderator.expire(&SETTINGS, deadline, used, || asleep);
    assert!(action.fires());
    assert_eq!(moderator.class(), GuestClass::Interrupt);
}

#[test]
fn the_first_call_is_unconditional() {
    for policy in Policy::ALL {
        let settings = Settings::receive(policy);
        let mut moderator = Moderator::new(&settings);
        let first = Action::Fire {
            reason: Reason::First,
            held_ns: 0,
        };
        let suppressed = || GuestAsks::Flags { suppressed: true };
        assert_eq!(
            moderator.published(&settings, &frame(10, 1), suppressed),
            first
        );
        assert_eq!(
            moderator.published(&settings, &frame(20, 2), suppressed),
            Action::Nothing
        );
        moderator.reset(&settings);
        assert_eq!(
            moderator.published(&settings, &frame(30, 3), suppressed),
            first
        );
        moderator.failed();
        assert_eq!(
            moderator.published(&settings, &frame(40, 4), suppressed),
            first
        );
    }
}

#[test]
fn a_held_call_is_asked_for_again_and_not_cancelled_by_its_own_question() {
    let settings = Settings::receive(Policy::Static).with_usecs(Some(50));
    for start in [0u16, 30_000, 65_500, 65_535] {
        let mut moderator = Moderator::new(&settings);
        let _ = moderator.published(&settings, &frame(0, start), || GuestAsks::Event(start));
        let armed = || GuestAsks::Event(start);
        let mut used = start;
        for i in 1..=40 {
            used = used.wrapping_add(1);
            assert_eq!(
                moderator.published(&settings, &frame(i, used), armed),
                Action::Hold
            );
        }
        assert_eq!(moderator.deadline(), Some(50_001));
        let mut twin = moderator;
        let late = Action::Fire {
            reason: Reason::Deadline,
            held_ns: 50_000,
        };
        assert_eq!(moderator.expire(&settings, 50_001, used, armed), late);
        assert_eq!(
            moderator.expire(&settings, 50_002, used, armed),
            Action::Nothing
        );
        // The guest came to look by itself, and armed behind what it saw.
        assert_eq!(
            twin.expire(&settings, 50_001, used, || GuestAsks::Event(used)),
            Action::Cancelled
        );
    }
}

/// SplitMix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Linux: arms the event when it has drained the ring, and looks again.
    EventWhenDrained,
    /// Asks to hear of entries some way ahead, as Linux does of completions, unless nothing is outstanding.
    EventAhead,
    /// No event index: sets and clears a flag.
    Flag,
}

/// A guest that sleeps, polls and changes its mind.
struct Guest {
    habit: Habit,
    seen: u16,
    event: u16,
    suppressed: bool,
    /// It has looked after arming, found nothing, and waits for a call.
    asleep: bool,
}

impl Guest {
    fn asks(&self) -> GuestAsks {
        match self.habit {
            Habit::EventWhenDrained | Habit::EventAhead => GuestAsks::Event(self.event),
            Habit::Flag => GuestAsks::Flags {
                suppressed: self.suppressed,
            },
        }
    }

    fn look(&mut self, used: u16, sleep: bool, seed: &mut u64) {
        self.asleep = false;
        self.seen = used;
        self.suppressed = !sleep;
        if sleep {
            let ahead = match self.habit {
                Habit::EventAhead => (random(seed) % 5) as u16,
                Habit::EventWhenDrained | Habit::Flag => 0,
            };
            self.event = used.wrapping_add(ahead);
            self.asleep = true;
        }
    }

    /// When the entry it waits for is among the published ones.
    fn waits_for(&self, used: u16) -> bool {
        let waiting = used.wrapping_sub(self.seen);
        let ahead = match self.habit {
            Habit::Flag => 0,
            _ => self.event.wrapping_sub(self.seen),
        };
        self.asleep && waiting > ahead
    }
}

/// Bursts, looks, deadlines and flushes in any order. A guest that waits for a published entry is called, or there is a
/// deadline, and soon enough.
fn schedule(seed: &mut u64) {
    let policy = Policy::ALL[random(seed) as usize % Policy::ALL.len()];
    let cost = [2_000, 5_000, 20_000, 120_000][random(seed) as usize % 4];
    let settings = if random(seed) & 3 == 0 {
        Settings::transmit(policy)
    } else {
        Settings::receive(policy)
    };
    let settings = settings
        .with_usecs([None, Some(0), Some(30)][random(seed) as usize % 3])
        .with_frames([None, Some(16)][random(seed) as usize % 2])
        .with_cost_ns(cost);
    let bound = match policy {
        Policy::Adaptive if cost > 50_000 => EXPENSIVE_CAP_NS,
        Policy::Adaptive => CAP_NS,
        Policy::PerPacket | Policy::PerBurst => 0,
        Policy::Static | Policy::Vpp | Policy::Dim => 1_000_000,
        Policy::Spdk => 1_000_000_000,
    };
    let habit =
        [Habit::EventWhenDrained, Habit::EventAhead, Habit::Flag][random(seed) as usize % 3];
    let start = random(seed) as u16;
    let mut guest = Guest {
        habit,
        seen: start,
        event: start,
        suppressed: false,
        asleep: true,
    };
    let mut moderator = Moderator::new(&settings);
    let (mut now, mut used) = (random(seed) >> 20, start);
    let pace = [300, 5_000, 40_000, 400_000][random(seed) as usize % 4];
    let mut sleepy = random(seed) & 1 == 0;
    // When the guest began to wait for something published.
    let mut waits_since: Option<u64> = None;
    let steps = 20 + random(seed) % 600;
    for _ in 0..steps {
        let mut next = now + random(seed) % pace;
        if random(seed) & 255 == 0 {
            next += 1 << (random(seed) % 36);
        }
        // The worker is awake, and late by less than a microsecond.
        if let Some(deadline) = moderator.deadline().filter(|&at| at < next) {
            now = now.max(deadline) + random(seed) % 1_000;
            let action = moderator.expire(&settings, now, used, || guest.asks());
            assert_ne!(action, Action::Hold);
            assert_eq!(moderator.deadline(), None);
            if action.fires() {
                guest.asleep = false;
            }
        }
        now = now.max(next);
        let action = match random(seed) % 16 {
            0..10 => {
                let frames = 1 + (random(seed) % [1, 32][random(seed) as usize % 2]) as u16;
                used = used.wrapping_add(frames);
                let bits = random(seed);
                let burst = Burst {
                    // The clock as this worker has read it, some time ago.
                    now: now.saturating_sub(if bits & 512 == 0 { bits >> 50 } else { 0 }),
                    used,
                    frames,
                    bytes: u32::from(frames) * 1500,
                    room: (bits >> 8) as u16 % 256,
                    size: 256,
                    urgent: bits & 7 == 0,
                    drained: bits & 24 != 0,
                    transmitted: if bits & 96 == 0 { bits as u8 } else { 0 },
                    rtt_ns: if bits & 384 == 0 { 50_000 } else { 0 },
                };
                moderator.published(&settings, &burst, || guest.asks())
            }
            10..14 => {
                // Awake, or woken by something else.
                guest.look(used, sleepy, seed);
                Action::Nothing
            }
            14 => {
                sleepy = !sleepy;
                Action::Nothing
            }
            _ => {
                let action = moderator.flush(&settings, now, used, || guest.asks());
                assert_eq!(moderator.deadline(), None);
                assert!(
                    action.fires() || !guest.waits_for(used),
                    "slept on a waiting guest"
                );
                action
            }
        };
        if action.fires() {
            guest.asleep = false;
        }
        if !guest.waits_for(used) {
            waits_since = None;
            continue;
        }
        let since = *waits_since.get_or_insert(now);
        let deadline = moderator.deadline();
        assert!(
            deadline.is_some(),
            "{policy} forgot a guest that waits: {habit:?}, {moderator:?}"
        );
        let deadline = deadline.unwrap_or(now);
        assert!(
            deadline <= since + bound.max(SAMPLE_NS),
            "{policy} lets a guest wait for {} ns",
            deadline - since
        );
    }
}

#[test]
fn no_schedule_loses_a_call() {
    let schedules = std::env::var("VSWITCH_SCHEDULES")
        .ok()
        .and_then(|n| n.parse().ok());
    let full = std::env::var_os("VSWITCH_TEST_FULL").is_some_and(|v| v == "1");
    let schedules = schedules.unwrap_or(if full { 5_000_000 } else { 20_000u64 });
    for number in 0..schedules {
        let mut seed = number;
        let result = std::panic::catch_unwind(move || schedule(&mut seed));
        assert!(result.is_ok(), "schedule {number}");
    }
}

proptest! {
    /// Wherever the index stands, and however much was published: the same answers.
    #[test]
    fn the_index_going_round_changes_nothing(start: u16, bursts in prop::collection::vec((1u16..=256, 0u64..100_000, any::<bool>()), 1..200)) {
        let settings = Settings::receive(Policy::Adaptive);
        let mut rings = [(Moderator::new(&settings), 0u16, 0u16), (Moderator::new(&settings), start, start)];
        let mut now = 1 << 40;
        for (entries, after, wakes) in bursts {
            now += after;
            let actions = rings.each_mut().map(|(moderator, used, event)| {
                *used = used.wrapping_add(entries);
                let burst = Burst { frames: entries, ..frame(now, *used) };
                let action = moderator.published(&settings, &burst, || GuestAsks::Event(*event));
                if action.fires() || wakes {
                    *event = *used;
                }
                action
            });
            prop_assert_eq!(actions[0], actions[1]);
        }
    }
}
