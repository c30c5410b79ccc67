//! Calls that are held back, over both layouts, against a driver that counts what it sends.

use std::sync::Arc;

use vswitch_coalesce::{Action, Burst, GuestClass, Policy, Reason, Settings};

use crate::event::Event;
use crate::features::{RING_EVENT_IDX, RING_PACKED, VERSION_1, mask};
use crate::ring::{Base, MAX_BURST, Setup, TxRing, TxScratch};
use crate::testing::{Guest, PackedQueue, Queue, count, event, setup, setup_at};

const EVENT: u64 = mask(VERSION_1) | mask(RING_EVENT_IDX);
const RING: u64 = 0x1000;
const BUFFERS: u64 = 0x8_0000;
const HELD: u64 = 50_000;

enum Layout {
    Split(Queue),
    Packed(PackedQueue),
}

/// A guest that transmits, and its ring.
struct Rig {
    guest: Guest,
    layout: Layout,
    ring: TxRing,
    scratch: TxScratch,
    call: Arc<Event>,
    /// Frames ever sent.
    sent: u64,
    now: u64,
}

impl Rig {
    fn split() -> Self {
        let guest = Guest::new(0x10_0000);
        let queue = Queue::new(RING, 16);
        let started = setup(&guest.memory(&[]), &queue, EVENT);
        Self::with(guest, Layout::Split(queue), started)
    }

    fn packed() -> Self {
        let guest = Guest::new(0x10_0000);
        // No power of two, so that laps and indices go round at different times.
        let queue = PackedQueue::new(RING, 12);
        let features = EVENT | mask(RING_PACKED);
        let started = Setup {
            base: Base::Claimed(queue.base(0)),
            ..setup_at(&guest.memory(&[]), queue.addresses(), 12, features)
        };
        Self::with(guest, Layout::Packed(queue), started)
    }

    fn both() -> [Self; 2] {
        [Self::split(), Self::packed()]
    }

    /// Started, with its first, unconditional call behind it.
    fn with(guest: Guest, layout: Layout, started: Setup) -> Self {
        let ring = TxRing::start(started).unwrap();
        let call = ring.call_for_tests();
        let mut rig = Self {
            guest,
            layout,
            ring,
            scratch: TxScratch::new(),
            call,
            sent: 0,
            now: 1_000_000,
        };
        assert_eq!(rig.calls(), 1, "a ring that starts calls once");
        rig.send();
        let first = rig.report(&held());
        assert!(matches!(
            first,
            Action::Fire {
                reason: Reason::First,
                ..
            }
        ));
        rig
    }

    /// The guest wants to be called once the frame with this number, counted from 0, is dealt with.
    fn asks(&self, frame: u64) {
        match &self.layout {
            Layout::Split(queue) => queue.set_used_event(&self.guest, frame as u16),
            Layout::Packed(queue) => queue.ask(&self.guest, 2, frame),
        }
    }

    /// The guest wants no calls: it leaves an event behind it, or says so.
    fn polls(&self) {
        match &self.layout {
            Layout::Split(queue) => queue.set_used_event(&self.guest, 0),
            Layout::Packed(queue) => queue.ask(&self.guest, 1, 0),
        }
    }

    /// The guest sends a frame and the switch takes it and gives its buffer back.
    fn send(&mut self) {
        match &mut self.layout {
            Layout::Split(queue) => {
                queue.descriptor(&self.guest, 0, BUFFERS, 72, 0, 0);
                queue.offer(&self.guest, 0);
            }
            Layout::Packed(queue) => queue.offer(&self.guest, 0, &[(BUFFERS, 72, 0)]),
        }
        self.sent += 1;
        let taken = self.ring.take(&mut self.scratch, MAX_BURST).unwrap();
        assert_eq!(taken.len(), 1);
        assert!(taken.drained());
        assert!(self.ring.complete());
        match &mut self.layout {
            Layout::Split(queue) => assert_eq!(queue.take_used(&self.guest).len(), 1),
            Layout::Packed(queue) => assert_eq!(queue.take_used(&self.guest).len(), 1),
        }
    }

    fn report(&mut self, settings: &Settings) -> Action {
        let burst = Burst {
            now: self.now,
            frames: 1,
            ..Burst::default()
        };
        self.ring.report(settings, &burst)
    }

    fn calls(&self) -> u64 {
        count(&self.call)
    }
}

/// A policy that holds every call back.
fn held() -> Settings {
    Settings::transmit(Policy::Static).with_usecs(Some((HELD / 1000) as u32))
}

#[test]
fn a_held_call_is_made_when_it_is_due() {
    for mut rig in Rig::both() {
        rig.asks(rig.sent);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        assert_eq!(rig.ring.deadline(), Some(rig.now + HELD));
        assert_eq!(rig.ring.expire(rig.now + HELD - 1), Action::Hold);
        // Asking does not settle the question.
        for _ in 0..3 {
            rig.send();
            assert_eq!(rig.report(&held()), Action::Hold);
        }
        assert!(rig.ring.overdue(rig.now + HELD));
        let due = rig.ring.expire(rig.now + HELD);
        assert_eq!(
            due,
            Action::Fire {
                reason: Reason::Deadline,
                held_ns: HELD as u32
            }
        );
        assert!(rig.ring.make_call());
        assert_eq!((rig.calls(), rig.ring.deadline()), (1, None));
        assert_eq!(rig.ring.expire(u64::MAX), Action::Nothing, "once");
        assert_eq!(rig.ring.flush(u64::MAX), Action::Nothing);
    }
}

#[test]
fn a_guest_that_has_come_by_itself_is_not_called() {
    for mut rig in Rig::both() {
        rig.asks(rig.sent);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        // It has seen all there is, and wants to hear of what comes after the next.
        rig.asks(rig.sent + 1);
        assert_eq!(rig.ring.expire(rig.now + HELD), Action::Cancelled);
        rig.now += HELD;
        rig.send();
        assert_eq!(rig.report(&held()), Action::Nothing);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        assert!(rig.ring.expire(rig.now + HELD).fires());
        let counters = rig.ring.call_report().counters;
        assert_eq!((counters.cancelled(), counters.calls()), (1, 2));
    }
}

/// Through more than the range of the indices, with the frame asked for just published, or further on.
#[test]
fn held_calls_survive_indices_that_go_round() {
    for mut rig in Rig::both() {
        for round in 0..35_000 {
            let ahead = round % 3;
            rig.asks(rig.sent + ahead);
            for left in (0..=ahead).rev() {
                rig.send();
                let action = rig.report(&held());
                let wanted = if left == 0 {
                    Action::Hold
                } else {
                    Action::Nothing
                };
                assert_eq!(action, wanted, "frame {}", rig.sent);
            }
            rig.now += HELD;
            assert!(rig.ring.expire(rig.now).fires(), "frame {}", rig.sent);
        }
        assert!(rig.sent > u64::from(u16::MAX) + 1_000);
        assert_eq!(rig.ring.call_report().frames, rig.sent);
    }
}

#[test]
fn a_ring_that_leaves_takes_no_held_call_along() {
    for mut rig in Rig::both() {
        rig.asks(rig.sent);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        rig.ring.settle();
        assert_eq!((rig.calls(), rig.ring.deadline()), (1, None));
        rig.ring.settle();
        assert_eq!(rig.calls(), 0, "nothing is held any more");
        // A guest that came by itself is left alone here, too.
        rig.asks(rig.sent);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        rig.asks(rig.sent + 1);
        rig.ring.settle();
        assert_eq!((rig.calls(), rig.ring.deadline()), (0, None));
    }
}

#[test]
fn a_new_descriptor_is_called_and_the_next_burst_reported() {
    for mut rig in Rig::both() {
        rig.asks(rig.sent);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        let call = event();
        rig.ring.set_call(Some(Arc::clone(&call)));
        assert_eq!(count(&call), 1, "what was held is told here");
        assert_eq!(rig.ring.deadline(), None);
        rig.asks(rig.sent + 7);
        rig.send();
        assert!(rig.report(&held()).fires(), "unconditionally");
        assert!(rig.ring.make_call());
        assert_eq!(count(&call), 1);
    }
}

#[test]
fn a_call_that_fails_is_made_up_for() {
    let mut rig = Rig::split();
    rig.asks(rig.sent);
    rig.send();
    assert_eq!(rig.report(&held()), Action::Hold);
    assert!(rig.ring.expire(rig.now + HELD).fires());
    rig.ring.call_failed();
    rig.now += HELD;
    rig.send();
    assert!(rig.report(&held()).fires(), "whatever the guest asks for");
}

#[test]
fn nothing_published_is_nothing_to_report() {
    for mut rig in Rig::both() {
        rig.asks(rig.sent);
        assert_eq!(rig.report(&held()), Action::Nothing);
        // More than half way round without a report: what was settled last says nothing any more.
        rig.asks(rig.sent + 40_000);
        for _ in 0..33_000 {
            rig.send();
        }
        assert!(rig.report(&held()).fires());
    }
}

#[test]
fn settings_change_between_bursts() {
    for mut rig in Rig::both() {
        let burst = Settings::transmit(Policy::PerBurst);
        rig.asks(rig.sent);
        rig.send();
        assert_eq!(rig.report(&held()), Action::Hold);
        rig.send();
        assert!(rig.report(&burst).fires(), "by the new rule");
        assert_eq!(rig.ring.call_report().policy, Policy::PerBurst);
        assert_eq!(rig.ring.deadline(), None);
    }
}

#[test]
fn a_guest_that_polls_is_known_for_it() {
    for mut rig in Rig::both() {
        let adaptive = Settings::transmit(Policy::Adaptive);
        rig.polls();
        rig.calls();
        for _ in 0..1_000 {
            rig.now += 500;
            rig.send();
            assert!(!rig.report(&adaptive).fires());
        }
        assert_eq!(rig.ring.call_report().class, GuestClass::Polling);
        assert_eq!(rig.calls(), 0);
    }
}

#[test]
fn a_guest_is_seen_to_react() {
    for mut rig in Rig::both() {
        let adaptive = Settings::transmit(Policy::Adaptive);
        rig.now += 10_000_000;
        rig.asks(rig.sent);
        rig.send();
        assert!(rig.report(&adaptive).fires(), "after a silence");
        assert_eq!(rig.ring.has_reacted(), Some(false));
        rig.asks(rig.sent + 1);
        assert_eq!(rig.ring.has_reacted(), Some(true));
        let cost = |rig: &Rig| rig.ring.call_report().adaptive.unwrap().0;
        let before = cost(&rig);
        rig.ring.measured(100_000);
        assert!(cost(&rig) > before);
        assert_eq!(rig.ring.has_reacted(), None, "once");
    }
}
