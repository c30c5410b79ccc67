//! Where a packed ring stands, if nobody knows for certain.
//!
//! A split ring carries its position in the guest's memory. A packed one does not: a front-end keeps it from GET_VRING_BASE
//! to SET_VRING_BASE, and one whose back-end died without an answer repeats the last it heard, often that the ring is new.
//! Serving a ring from a wrong place would give buffers back twice and write into memory that the guest has reused, so what
//! a front-end says about a ring that this session has not stopped itself is compared with the ring.
//!
//! Seen from a place, the slots before it were passed in this lap and those behind it in the lap before. The driver offers
//! slots from the place on, without a gap, at most one turn. So each slot has one of four states:
//!
//! | lap flags, wrap counter `w` at the place | before it | from it on |
//! | --- | --- | --- |
//! | offered in this lap | left over in a chain | **offered** |
//! | used in this lap | **passed** | contradiction |
//! | offered in the other lap | **offered again**, all behind it offered | left over in a chain |
//! | used in the other lap | contradiction | **passed** |
//!
//! A used chain of several slots leaves all but its first as the driver wrote them, as if they were on offer. If no slot has
//! to be explained in that way, at most one place fits. With indirect descriptors negotiated drivers use one slot for every
//! buffer, and then that place is where the ring was left, whatever the front-end says. Else the ring alone cannot tell, and
//! what the front-end says counts if it does not contradict the ring; but that a ring is new counts only if it looks new. If
//! nothing fits, the ring stays stopped until the driver resets it.

use super::place::{F_AVAIL, F_USED, Place};
use crate::ring::RingError;
use crate::ring::layout::Base;

/// How well a place explains the ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Fit {
    /// Contradicted by it.
    None,
    /// Possible with chains of several slots.
    Chains,
    /// Every slot is as it should be.
    Exact,
}

/// The place to go on from. `indirect`: drivers use one slot for a buffer; `flags` loads the flags of a slot.
pub(super) fn locate(
    size: u16,
    base: Base,
    indirect: bool,
    flags: impl Fn(u16) -> u16,
) -> Result<Place, RingError> {
    let bits = base.bits();
    let claims = claims(bits);
    if matches!(base, Base::Known(_)) && claims[0].slot < size {
        return Ok(claims[0]);
    }
    // Copied out: judged several times, loaded once.
    let ring: Vec<u16> = (0..size).map(flags).collect();
    let claimed = |least: Fit| {
        let mut claims = claims.into_iter();
        claims.find(|place| place.slot < size && fit(&ring, *place) >= least)
    };
    if let Some(place) = claimed(Fit::Exact) {
        return Ok(place);
    }
    let place = match indirect.then(|| only_place(&ring)).flatten() {
        Some(place) => place,
        // That it is new is also said of a ring whose back-end died.
        None if claims[0] == Place::START => return Err(RingError::Place { base: bits }),
        None => claimed(Fit::Chains).ok_or(RingError::Place { base: bits })?,
    };
    if claims[0] != place {
        tracing::info!(
            slot = place.slot,
            wrap = place.wrap,
            "a packed ring does not stand at {bits:#x}, as the front-end says; it goes on where its descriptors show it was left"
        );
    }
    Ok(place)
}

/// What a front-end may mean. The upper half says how far buffers were given back, and whatever was taken beyond that is
/// taken anew; some leave it 0 and tell where buffers are taken only.
fn claims(bits: u32) -> [Place; 2] {
    let [taken, given] = [bits as u16, (bits >> 16) as u16].map(Place::from_bits);
    if bits >> 16 == 0 {
        [taken, given]
    } else {
        [given, taken]
    }
}

fn fit(ring: &[u16], place: Place) -> Fit {
    let lap = |flags: u16| flags & (F_AVAIL | F_USED);
    let other = Place {
        wrap: !place.wrap,
        ..place
    };
    let (before, behind) = ring.split_at(place.slot.into());
    let mut left_over = 0;
    let mut passed = 0;

    // From the place on: offered ones, then those of the lap before.
    let offered = behind
        .iter()
        .take_while(|flags| place.is_available(**flags))
        .count();
    for flags in &behind[offered..] {
        match lap(*flags) {
            state if state == other.used() => passed += 1,
            state if state == other.available() => left_over += 1,
            _ => return Fit::None,
        }
    }
    // Before it: those offered again, if all behind it are offered; then those of this lap.
    let again = before
        .iter()
        .take_while(|flags| other.is_available(**flags))
        .count();
    if again > 0 && offered < behind.len() {
        return Fit::None;
    }
    for flags in &before[again..] {
        match lap(*flags) {
            state if state == place.used() => passed += 1,
            state if state == place.available() => left_over += 1,
            _ => return Fit::None,
        }
    }
    match (left_over, passed + offered + again) {
        (0, _) => Fit::Exact,
        // One chain cannot have been all of the ring but its beginning.
        (_, 0) => Fit::None,
        _ => Fit::Chains,
    }
}

/// The only place that explains every slot as one of its own.
fn only_place(ring: &[u16]) -> Option<Place> {
    // It changes from slot to slot at few places only: where it stands and how far the driver is.
    let lap = |slot: usize| ring.get(slot).map(|flags| flags & (F_AVAIL | F_USED));
    let turns = (0..ring.len()).filter(|slot| *slot == 0 || lap(*slot) != lap(slot - 1));
    let mut found = None;
    for slot in turns.take(4) {
        for wrap in [true, false] {
            let slot = slot as u16;
            let place = Place { slot, wrap };
            if fit(ring, place) == Fit::Exact {
                if found.is_some() {
                    return None;
                }
                found = Some(place);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEXT: u16 = 1;

    /// A ring and the true places of its two sides, as counts of slots; chains go through it in order.
    struct Model {
        ring: Vec<u16>,
        /// Lengths of the chains on offer.
        out: std::collections::VecDeque<usize>,
        offered: usize,
        passed: usize,
    }

    impl Model {
        fn new(size: u16) -> Self {
            Self {
                ring: vec![0; size.into()],
                out: std::collections::VecDeque::new(),
                offered: 0,
                passed: 0,
            }
        }

        fn place(&self, count: usize) -> Place {
            Place {
                slot: (count % self.ring.len()) as u16,
                wrap: (count / self.ring.len()).is_multiple_of(2),
            }
        }

        fn offer(&mut self, chain: usize) {
            if self.offered + chain - self.passed > self.ring.len() {
                return;
            }
            for left in (0..chain).rev() {
                let place = self.place(self.offered);
                let next = if left > 0 { NEXT } else { 0 };
                self.ring[usize::from(place.slot)] = place.available() | next;
                self.offered += 1;
            }
            self.out.push_back(chain);
        }

        fn pass(&mut self) {
            if let Some(chain) = self.out.pop_front() {
                let place = self.place(self.passed);
                self.ring[usize::from(place.slot)] = place.used();
                self.passed += chain;
            }
        }

        fn base(&self, count: usize) -> u32 {
            u32::from(self.place(count).bits()) * 0x1_0001
        }

        fn find(&self, base: Base, indirect: bool) -> Result<Place, RingError> {
            let size = self.ring.len() as u16;
            locate(size, base, indirect, |slot| self.ring[usize::from(slot)])
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// One slot for each buffer: the ring is right whatever was said, and it was there at any time before.
        #[test]
        fn single_slots_show_where_they_were_left(
            size in 2u16..40,
            steps in prop::collection::vec((0usize..30, 0usize..30), 0..20),
            said in any::<prop::sample::Index>(),
        ) {
            let mut model = Model::new(size);
            let mut stood = vec![0];
            for (offers, passes) in steps {
                (0..offers).for_each(|_| model.offer(1));
                (0..passes).for_each(|_| model.pass());
                stood.push(model.passed);
            }
            let truth = model.place(model.passed);
            for base in [model.base(0), 0x8000, 0, model.base(*said.get(&stood)), model.base(model.passed)] {
                prop_assert_eq!(model.find(Base::Claimed(base), true), Ok(truth), "said {:#x}", base);
            }
        }

        /// Chains of several slots: who repeats what it was told is believed.
        #[test]
        fn chains_are_where_they_are_said_to_be(
            size in 4u16..40,
            steps in prop::collection::vec((prop::collection::vec(1usize..5, 0..8), 0usize..8), 1..20),
        ) {
            let mut model = Model::new(size);
            for (offers, passes) in steps {
                offers.into_iter().for_each(|chain| model.offer(chain));
                (0..passes).for_each(|_| model.pass());
            }
            let truth = model.place(model.passed);
            let base = model.base(model.passed);
            prop_assert_eq!(model.find(Base::Known(base), false), Ok(truth));
            let claimed = model.find(Base::Claimed(base), false);
            // Only that a ring is new is not taken from somebody who may just not know better.
            prop_assert!(claimed == Ok(truth) || truth == Place::START && claimed.is_err());
        }
    }

    #[test]
    fn a_new_ring_with_chains_is_new() {
        let mut model = Model::new(8);
        model.offer(3);
        model.offer(2);
        for indirect in [true, false] {
            let found = model.find(Base::Claimed(0x8000_8000), indirect);
            assert_eq!(found, Ok(Place::START));
            // As DPDK's driver says it.
            assert_eq!(
                model.find(Base::Claimed(0x8000), indirect),
                Ok(Place::START)
            );
        }
    }

    #[test]
    fn buffers_that_somebody_took_and_did_not_give_back_are_taken_anew() {
        let mut model = Model::new(8);
        (0..6).for_each(|_| model.offer(1));
        (0..2).for_each(|_| model.pass());
        let base = model.place(2).bits();
        let taken = u32::from(model.place(5).bits());
        let found = model.find(Base::Claimed(taken | u32::from(base) << 16), false);
        assert_eq!(found, Ok(model.place(2)));
    }

    #[test]
    fn a_ring_that_shows_nothing_is_not_served() {
        let mut model = Model::new(8);
        (0..2).for_each(|_| model.offer(3));
        model.pass();
        let stale = Base::Claimed(0x8000_8000);
        let refused = Err(RingError::Place { base: 0x8000_8000 });
        assert_eq!(model.find(stale, false), refused);
        // A slot that the ring does not have.
        let base = 0x0009_0009;
        let refused = Err(RingError::Place { base });
        assert_eq!(model.find(Base::Claimed(base), false), refused);
        assert_eq!(model.find(Base::Known(base), false), refused);
    }
}
