//! What the guest asked for, and what it has been told so far.
//!
//! A guest says "call me" in one of two ways. With `VIRTIO_F_EVENT_IDX` it writes the index of the used entry after whose
//! publication it wants to hear (`used_event`), and every index the switch has published since the last settled question
//! must be compared with it. Without the feature it sets or clears one flag, which speaks about now and needs no history.
//!
//! The history is one number: `signalled`, the used index up to which the guest's wish has been settled. It moves only in
//! [`Signal::commit`], because a call that is wanted but held back must still be wanted at the next look: had the test
//! moved it, the second look would find nothing new, cancel the call, and the guest would sleep forever.

/// Whether going from `old` to `new` published the entry that `event` names (virtio 1.2, section 2.7.7.2, `vring_need_event`).
///
/// True exactly if `event` is one of `old, old + 1, …, new - 1`, modulo 65,536; never true for `old == new`.
#[inline]
#[must_use]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// How the guest says whether it wants a call, as loaded from its ring after the fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestAsks {
    /// `VIRTIO_F_EVENT_IDX` was negotiated: the guest's `used_event`.
    Event(u16),
    /// It was not: the guest's flag.
    Flags {
        /// `VRING_AVAIL_F_NO_INTERRUPT` is set: the guest polls.
        suppressed: bool,
    },
}

impl GuestAsks {
    /// What the driver of a packed ring asks for with `RING_EVENT_FLAGS_DESC` (virtio 1.2, section 2.8.10): `event` is its
    /// offset, 15 bits of slot and one of wrap counter, and `next` says in the same way where the ring of `size` entries
    /// stands with `published` entries used so far, counted freely. A slot further on in the same lap is yet to come; one
    /// in the other lap is taken for one of the lap before.
    #[inline]
    #[must_use]
    pub const fn packed(event: u16, next: u16, size: u16, published: u16) -> Self {
        const SLOT: u16 = 0x7fff;
        let lap = if (event ^ next) & !SLOT == 0 { 0 } else { size };
        let behind = (next & SLOT).wrapping_add(lap).wrapping_sub(event & SLOT);
        Self::Event(published.wrapping_sub(behind))
    }
}

/// What one ring's guest has been told: the used index that was settled last, and whether it can be relied on.
///
/// A fresh one relies on nothing, so the first question of a guest with an event index is answered yes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signal {
    signalled: u16,
    valid: bool,
}

impl Signal {
    /// The state of a ring that was just attached.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            signalled: 0,
            valid: false,
        }
    }

    /// Whether the guest wants to be called, its used index standing at `new`. Changes nothing: ask as often as needed.
    ///
    /// With [`GuestAsks::Flags`] the answer is the flag alone, so ask only after something was published.
    #[inline]
    #[must_use]
    pub const fn wanted(&self, new: u16, ask: GuestAsks) -> bool {
        match ask {
            GuestAsks::Event(event) => !self.valid || need_event(event, new, self.signalled),
            GuestAsks::Flags { suppressed } => !suppressed,
        }
    }

    /// The question is settled up to `new`: the answer was no, or the call has been written.
    ///
    /// Not to be called while a wanted call is held back.
    #[inline]
    pub const fn commit(&mut self, new: u16) {
        self.signalled = new;
        self.valid = true;
    }

    /// The history cannot be relied on: the ring was reset or reattached, its call descriptor was replaced, or entries were
    /// published without a test. The next question of a guest with an event index is answered yes; drivers accept a
    /// spurious call, none survives a missing one.
    #[inline]
    pub const fn invalidate(&mut self) {
        self.valid = false;
    }

    /// Used entries published since the guest's wish was last settled; 0 if the history cannot be relied on.
    #[inline]
    #[must_use]
    pub const fn distance(&self, new: u16) -> u16 {
        if self.valid {
            new.wrapping_sub(self.signalled)
        } else {
            0
        }
    }

    /// The used index settled last, or `None` if the history cannot be relied on.
    #[must_use]
    pub const fn settled(&self) -> Option<u16> {
        if self.valid {
            Some(self.signalled)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, by walking: was `event` among the entries published from `old` to `new`?
    fn crossed(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    fn settled_at(old: u16) -> Signal {
        let mut signal = Signal::new();
        signal.commit(old);
        signal
    }

    #[test]
    fn every_event_against_telling_distances_and_wraps() {
        const DISTANCES: [u16; 9] = [0, 1, 2, 255, 256, 32_767, 32_768, 65_534, 65_535];
        const OLDS: [u16; 6] = [0, 1, 32_767, 32_768, 65_534, 65_535];
        for old in OLDS {
            for distance in DISTANCES {
                let new = old.wrapping_add(distance);
                for event in 0..=u16::MAX {
                    let within = event.wrapping_sub(old) < distance;
                    assert_eq!(
                        need_event(event, new, old),
                        within,
                        "event {event} new {new} old {old}"
                    );
                }
            }
        }
    }

    /// Where a packed ring stands after so many entries.
    fn place(size: u16, entries: u32) -> u16 {
        let lap = entries / u32::from(size);
        let slot = (entries % u32::from(size)) as u16;
        slot | u16::from(lap.is_multiple_of(2)) << 15
    }

    #[test]
    fn a_packed_event_fires_exactly_when_its_slot_is_used() {
        for size in [1u16, 2, 3, 5, 8, 31] {
            let (size_, laps) = (u32::from(size), 5);
            for old in 0..laps * size_ {
                for used in 0..=size_ {
                    // A driver arms at the next entry it expects, or somewhere ahead, but never a whole lap.
                    for event in old..old + size_ {
                        let new = old + used;
                        // The free-running count goes round at 65,536: here, in the middle.
                        let count = |entries: u32| (65_500 + entries) as u16;
                        let ask = GuestAsks::packed(
                            place(size, event),
                            place(size, new),
                            size,
                            count(new),
                        );
                        let wanted = settled_at(count(old)).wanted(count(new), ask);
                        assert_eq!(
                            wanted,
                            event < new,
                            "size {size} old {old} used {used} event {event}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn packed_offsets_of_the_largest_ring_over_their_whole_range() {
        let size = 32_768;
        for new in [0u32, 1, 32_767, 32_768, 40_000, 65_535] {
            for behind in 0..=32_768u32.min(new) {
                let event = place(size, new - behind);
                let ask = GuestAsks::packed(event, place(size, new), size, new as u16);
                assert_eq!(
                    ask,
                    GuestAsks::Event((new - behind) as u16),
                    "{new} {behind}"
                );
            }
        }
    }

    #[test]
    fn stale_zero_event_fires_on_the_first_entry_and_once_per_round() {
        let mut signal = settled_at(0);
        let mut calls = Vec::new();
        for published in 1..=(2 * 65_536u32 + 1) {
            let new = published as u16;
            if signal.wanted(new, GuestAsks::Event(0)) {
                calls.push(published);
            }
            signal.commit(new);
        }
        assert_eq!(calls, [1, 65_537, 131_073]);
    }

    #[test]
    fn first_question_after_attach_is_answered_yes_whatever_the_event() {
        for event in 0..=u16::MAX {
            assert!(Signal::new().wanted(0, GuestAsks::Event(event)));
        }
        assert_eq!(Signal::default(), Signal::new());
    }

    #[test]
    fn a_held_call_stays_wanted_until_committed() {
        let mut signal = settled_at(65_530);
        let ask = GuestAsks::Event(65_533);
        assert!(!signal.wanted(65_533, ask));
        for new in [65_534, 65_535, 0, 1, 40] {
            assert!(
                signal.wanted(new, ask),
                "held call lost at used index {new}"
            );
        }
        signal.commit(40);
        assert!(!signal.wanted(40, ask));
        assert!(!signal.wanted(41, ask));
    }

    #[test]
    fn a_flag_needs_no_history() {
        let mut signal = Signal::new();
        for _ in 0..2 {
            assert!(signal.wanted(7, GuestAsks::Flags { suppressed: false }));
            assert!(!signal.wanted(7, GuestAsks::Flags { suppressed: true }));
            signal.commit(7);
        }
    }

    proptest! {
        #[test]
        fn need_event_is_the_definition(event: u16, new: u16, old: u16) {
            prop_assert_eq!(need_event(event, new, old), crossed(event, new, old));
        }

        #[test]
        fn testing_does_not_commit(old: u16, news in prop::collection::vec(any::<u16>(), 1..20), event: u16) {
            let signal = settled_at(old);
            for new in news {
                prop_assert_eq!(signal.wanted(new, GuestAsks::Event(event)), crossed(event, new, old));
                prop_assert_eq!(signal.settled(), Some(old));
            }
        }

        #[test]
        fn a_skipped_test_makes_the_next_answer_yes(old: u16, new: u16, event: u16) {
            let mut signal = settled_at(old);
            signal.invalidate();
            prop_assert_eq!(signal.settled(), None);
            prop_assert!(signal.wanted(new, GuestAsks::Event(event)));
            signal.commit(new);
            prop_assert_eq!(signal.settled(), Some(new));
            prop_assert!(!signal.wanted(new, GuestAsks::Event(event)));
        }

        /// A driver that re-arms and looks again never sleeps on published entries, however the tests fall:
        /// each burst is settled at once, held to a later test, or published untested.
        #[test]
        fn a_sleeping_driver_is_always_woken(
            start: u16,
            steps in prop::collection::vec((1u16..300, 0u8..3), 1..200),
        ) {
            let mut signal = settled_at(start);
            let mut used = start;
            // The driver has consumed everything and armed for the very next entry.
            let mut event = start;
            for (published, behaviour) in steps {
                used = used.wrapping_add(published);
                match behaviour {
                    0 => signal.invalidate(),
                    1 => prop_assert!(signal.wanted(used, GuestAsks::Event(event))),
                    _ => {
                        prop_assert!(signal.wanted(used, GuestAsks::Event(event)));
                        signal.commit(used);
                        event = used;
                    }
                }
            }
            if event != used {
                prop_assert!(signal.wanted(used, GuestAsks::Event(event)));
            }
        }
    }
}
