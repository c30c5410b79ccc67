use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const START: Micros = Micros(1_000_000_000);

/// Flow `n` of those that fall into set `n % sets`.
fn flow(n: u64, sets: u64) -> FlowHash {
    FlowHash(
        (n / sets * SETS as u64 + n % sets) << 32 | (n.wrapping_mul(0x9e37_79b9) & 0xffff_ffff),
    )
}

fn target(pins: &Pins, hash: FlowHash, now: Micros) -> Option<u16> {
    pins.lookup(hash, now).map(|pin| pin.target().0)
}

#[test]
fn a_set_is_a_cache_line() {
    assert_eq!((size_of::<Set>(), align_of::<Set>()), (64, 64));
}

#[test]
fn the_second_packet_pins() {
    let pins = Pins::new();
    let hash = flow(7, 1);
    assert_eq!(
        pins.learn(hash, Target(3), Target(3), START),
        Learned::Agrees
    );
    assert_eq!(pins.learn(hash, Target(2), Target(3), START), Learned::Seen);
    assert!(pins.is_empty() && pins.lookup(hash, START).is_none());
    assert_eq!(
        pins.learn(hash, Target(2), Target(3), START),
        Learned::Pinned
    );
    assert_eq!(target(&pins, hash, START), Some(2));
    assert_eq!(
        pins.learn(hash, Target(2), Target(3), START),
        Learned::Agrees
    );
    // Back on the bucket's own: the pin says so, and the view takes it away when order allows it.
    assert_eq!(
        pins.learn(hash, Target(3), Target(3), START),
        Learned::Retargeted
    );
    let pin = pins.lookup(hash, START).unwrap();
    assert_eq!(pin.target(), Target(3));
    assert!(pins.remove(&pin) && !pins.remove(&pin));
    assert_eq!((pins.len(), pins.lookup(hash, START)), (0, None));
}

#[test]
fn scans_cost_nothing() {
    let pins = Pins::new();
    for n in 0..100_000 {
        assert_eq!(
            pins.learn(flow(n, 977), Target(1), Target(0), START),
            Learned::Seen
        );
    }
    assert!(pins.is_empty());
}

#[test]
fn a_full_set_refuses_until_one_is_idle() {
    let pins = Pins::new();
    for n in 0..4 {
        assert_eq!(
            pins.pin(flow(n, 1), Target(n as u16), START),
            Learned::Pinned
        );
    }
    let fifth = flow(4, 1);
    assert_eq!(
        pins.pin(fifth, Target(9), START.after(EXPIRY_MICROS - 1)),
        Learned::Refused
    );
    assert_eq!((pins.refused(), pins.len()), (1, 4));
    // Three of them are used, the third is not.
    let later = START.after(2_000_000);
    for n in [0, 1, 3] {
        assert_eq!(target(&pins, flow(n, 1), later), Some(n as u16));
    }
    let expired = START.after(EXPIRY_MICROS + 100_000);
    assert_eq!(pins.pin(fifth, Target(9), expired), Learned::Pinned);
    assert_eq!(target(&pins, flow(2, 1), expired), None);
    assert_eq!(target(&pins, fifth, expired), Some(9));
    assert_eq!(pins.len(), 4);
}

#[test]
fn an_idle_pin_that_nobody_took_comes_back() {
    let pins = Pins::new();
    pins.pin(flow(0, 1), Target(1), START);
    let late = START.after(2 * EXPIRY_MICROS);
    assert_eq!(target(&pins, flow(0, 1), late), Some(1));
    assert_eq!(
        pins.sweep(0..SETS, late.after(1000)),
        0,
        "it is in use again"
    );
    assert_eq!(pins.sweep(0..SETS, late.after(2 * EXPIRY_MICROS)), 1);
    assert!(pins.is_empty());
    assert_eq!(pins.sweep(7..SETS + 1, late), 0, "no such sets");
}

#[test]
fn another_clock_that_is_ahead_does_not_make_a_pin_old() {
    let pins = Pins::new();
    for n in 0..4 {
        pins.pin(flow(n, 1), Target(1), START.after(50_000));
    }
    assert_eq!(pins.pin(flow(4, 1), Target(1), START), Learned::Refused);
    assert_eq!(target(&pins, flow(0, 1), START), Some(1));
}

#[test]
fn a_lost_target_takes_its_pins_along() {
    let pins = Pins::new();
    for n in 0..100 {
        pins.pin(flow(n, 64), Target((n % 2) as u16), START);
    }
    assert_eq!((pins.forget(Target(1)), pins.len()), (50, 50));
    assert_eq!(target(&pins, flow(0, 64), START), Some(0));
    assert_eq!(target(&pins, flow(1, 64), START), None);
}

#[test]
fn generations_are_never_nought() {
    let word = Word::new(Target(1), u16::MAX, 5, State::Live);
    assert_eq!(word.next(), 1);
    assert_eq!(word.at(9).age(10), 1);
    assert_eq!(
        word.to(Target(7)),
        Word::new(Target(7), u16::MAX, 5, State::Live)
    );
}

/// Each flow's pins go to targets that only this flow has: whoever looks a flow up while others pin, sweep and replace
/// finds one of its own, or none.
#[test]
fn threads_never_see_another_flows_pin() {
    let pins = Pins::new();
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let pins = &pins;
            scope.spawn(move || {
                let mut random = seed + 1;
                for step in 0..20_000u64 {
                    random = random
                        .wrapping_mul(0x5851_f42d_4c95_7f2d)
                        .wrapping_add(seed);
                    let n = random >> 33 & 15;
                    // Time leaps, so that pins expire under everybody's hands.
                    let now = START.after(step * 1_000_000);
                    match random >> 60 {
                        0 => {
                            pins.sweep(0..2, now);
                        }
                        1..=6 => {
                            pins.pin(flow(n, 2), Target(n as u16 * 8 + seed as u16), now);
                        }
                        _ => {
                            if let Some(pin) = pins.lookup(flow(n, 2), now) {
                                assert_eq!(u64::from(pin.target().0 / 8), n);
                                if random >> 59 & 1 == 1 {
                                    pins.remove(&pin);
                                }
                            }
                        }
                    }
                }
            });
        }
    });
    let end = START.after(1 << 38);
    pins.sweep(0..SETS, end);
    assert!(pins.is_empty(), "{} are left", pins.len());
}

#[derive(Clone, Debug)]
enum Step {
    Pin(u64, u16),
    Lookup(u64),
    Remove(u64),
    Forget(u16),
    Sweep,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..14, 0u16..4).prop_map(|(n, target)| Step::Pin(n, target)),
        6 => (0u64..14).prop_map(Step::Lookup),
        1 => (0u64..14).prop_map(Step::Remove),
        1 => (0u16..4).prop_map(Step::Forget),
        1 => Just(Step::Sweep),
        3 => (0u64..4_000_000).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Against a map of all pins ever wanted: what is there is right, what is missing was removed, or idle, or refused; and
    /// a pin is refused only if four of its set are in use.
    #[test]
    fn as_a_map_from_which_only_the_idle_leave(steps in prop::collection::vec(steps(), 1..200)) {
        let (pins, mut now) = (Pins::new(), START);
        let mut model: HashMap<u64, (u16, Micros)> = HashMap::new();
        for step in steps {
            match step {
                Step::Pin(n, to) => match pins.pin(flow(n, 2), Target(to), now) {
                    Learned::Refused => {
                        let slack = (RENEW + 2) * TICK;
                        let in_use = model.iter().filter(|(other, (_, used))| {
                            *other % 2 == n % 2 && now.0 - used.0 < EXPIRY_MICROS + slack
                        });
                        prop_assert!(in_use.count() >= 4);
                        model.remove(&n);
                    }
                    Learned::Pinned => drop(model.insert(n, (to, now))),
                    Learned::Agrees => prop_assert_eq!(model[&n].0, to),
                    Learned::Retargeted => {
                        let old = model.get_mut(&n).unwrap();
                        prop_assert!(old.0 != to);
                        old.0 = to;
                    }
                    Learned::Seen => prop_assert!(false, "it is pinned at once"),
                },
                Step::Lookup(n) => match (target(&pins, flow(n, 2), now), model.get_mut(&n)) {
                    (Some(found), Some((wanted, used))) => {
                        prop_assert_eq!(found, *wanted);
                        *used = now;
                    }
                    (Some(_), None) => prop_assert!(false, "nobody pinned it"),
                    (None, Some((_, used))) => {
                        prop_assert!(now.0 - used.0 >= EXPIRY_MICROS);
                        model.remove(&n);
                    }
                    (None, None) => {}
                },
                Step::Remove(n) => {
                    if let Some(pin) = pins.lookup(flow(n, 2), now) {
                        prop_assert!(pins.remove(&pin));
                        prop_assert!(model.remove(&n).is_some());
                    }
                }
                Step::Forget(to) => {
                    pins.forget(Target(to));
                    model.retain(|_, (target, _)| *target != to);
                }
                Step::Sweep => {
                    pins.sweep(0..2, now);
                }
                Step::Pass(micros) => now = now.after(micros),
            }
            prop_assert!(pins.len() <= 8 && pins.len() <= model.len());
        }
    }
}

#[test]
fn flows_that_take_turns_are_pinned() {
    let pins = Pins::new();
    // Of one set, both of what was seen and of pins.
    let flow = |n: u64| FlowHash(n << 44 | 5);
    for round in 0..2 {
        for n in 1..=4 {
            let learned = pins.learn(flow(n), Target(1), Target(0), Micros(1));
            let expected = [Learned::Seen, Learned::Pinned][round];
            assert_eq!(learned, expected, "flow {n}");
        }
    }
    // What the table would do without them.
    assert_eq!(
        pins.release(|hash| (hash == flow(2)).then_some(Target(0))),
        1
    );
    assert_eq!(pins.release(|_| Some(Target(0))), 3);
    let target = |n| pins.lookup(flow(n), Micros(1)).map(|pin| pin.target());
    assert!((1..=4).all(|n| target(n) == Some(Target(0))));
}
