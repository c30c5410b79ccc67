//! Every interleaving, and every order that memory may be seen in, of a switch that publishes and a driver that falls asleep.
//!
//! The switch stores its used index, fences, and asks what the driver wants; the driver stores what it wants, fences, and looks
//! at the used index once more. Either of them sees the other, so nobody sleeps on a published entry. Explored by loom with
//! the real [`Moderator`]; without the switch's fence the same model fails, which shows that it looks.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use loom::thread;
use vswitch_coalesce::{Burst, GuestAsks, Moderator, Policy, Settings};

const ENTRIES: u16 = 2;
const START: u16 = u16::MAX;

#[derive(Default)]
struct Shared {
    used: AtomicU16,
    event: AtomicU16,
    /// The eventfd.
    called: AtomicBool,
}

/// Publishes, one entry at a time, then flushes as a worker does before it sleeps.
fn switch(shared: &Shared, settings: &Settings, fenced: bool) {
    let asks = || {
        if fenced {
            fence(Ordering::SeqCst);
        }
        GuestAsks::Event(shared.event.load(Ordering::Acquire))
    };
    let mut moderator = Moderator::new(settings);
    // What came before is settled: the first call, which is unconditional, is not the matter here.
    let _ = moderator.published(settings, &burst(0, START), || GuestAsks::Event(START));
    let mut used = START;
    for i in 1..=ENTRIES {
        used = used.wrapping_add(1);
        shared.used.store(used, Ordering::Release);
        let action = moderator.published(settings, &burst(u64::from(i), used), asks);
        if action.fires() {
            shared.called.store(true, Ordering::Release);
        }
    }
    if moderator.flush(settings, 10, used, asks).fires() {
        shared.called.store(true, Ordering::Release);
    }
    assert_eq!(moderator.deadline(), None);
}

fn burst(now: u64, used: u16) -> Burst {
    Burst {
        now,
        used,
        frames: 1,
        room: 200,
        size: 256,
        ..Burst::default()
    }
}

/// Looks, arms, looks again. The index up to which it has seen, and whether it sleeps.
fn driver(shared: &Shared) -> (u16, bool) {
    let mut seen = START;
    for _ in 0..2 {
        seen = shared.used.load(Ordering::Acquire);
        shared.event.store(seen, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if shared.used.load(Ordering::Acquire) == seen {
            return (seen, true);
        }
    }
    (seen, false)
}

#[expect(
    clippy::expect_used,
    reason = "a test, which clippy does not see in a model's closure"
)]
fn model(settings: Settings, fenced: bool) {
    loom::model(move || {
        let shared = Arc::new(Shared {
            used: AtomicU16::new(START),
            // Awake: armed for what it has long seen.
            event: AtomicU16::new(START - 1),
            called: AtomicBool::new(false),
        });
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || driver(&shared)
        });
        switch(&shared, &settings, fenced);
        let (seen, asleep) = guest.join().expect("the driver does not panic");
        let published = START.wrapping_add(ENTRIES);
        assert!(
            !asleep || seen == published || shared.called.load(Ordering::Acquire),
            "asleep at {seen}, published {published}, not called"
        );
    });
}

#[test]
fn nobody_sleeps_on_a_published_entry() {
    model(Settings::receive(Policy::PerBurst), true);
}

#[test]
fn nor_on_one_that_is_held() {
    let held = Settings::receive(Policy::Static).with_usecs(Some(1_000));
    model(held, true);
}

#[test]
#[should_panic(expected = "not called")]
fn without_the_fence_somebody_does() {
    model(Settings::receive(Policy::PerBurst), false);
}
