use super::*;
use crate::pins::Learned;
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};

const START: Micros = Micros(5_000_000);

fn table(targets: impl IntoIterator<Item = u16>) -> Indirection {
    let mut table = Indirection::new(8);
    for target in targets {
        table.add(Target(target));
    }
    table
}

fn hash(bucket: u32) -> FlowHash {
    FlowHash(0x1234_5678 << 32 | u64::from(bucket))
}

/// A bucket that moves when target 4 comes to 0..4, and where it was before.
fn mover() -> (u32, Target) {
    let step = table(0..4).plan_add(Target(4))[0];
    (step.bucket as u32, step.from.unwrap())
}

#[test]
fn a_bucket_is_eight_bytes() {
    assert_eq!((size_of::<Bucket>(), size_of::<Pinned>()), (8, 8));
}

#[test]
fn no_target_is_nowhere_to_go() {
    let mut view = View::new(&table([]));
    assert_eq!(view.select(3, START, |_, _| true), None);
    assert_eq!(
        view.adopt(&table([1])),
        Ok(0),
        "nothing was sent, nothing is to move"
    );
    let selection = view
        .select(3, START, |_, _| panic!("nothing was sent"))
        .unwrap();
    assert_eq!(selection.target, Target(1));
    assert_eq!(view.moves(), Moves::default());
    assert_eq!(view.adopt(&Indirection::new(64)), Err(OtherSize));
}

#[test]
fn a_bucket_leaves_when_its_tail_is_completed() {
    let (bucket, from) = mover();
    let mut view = View::new(&table(0..4));
    let selection = view
        .select(bucket, START, |_, _| panic!("no move waits"))
        .unwrap();
    assert_eq!(selection.target, from);
    view.sent(selection, Position(77), START);
    assert_eq!(view.adopt(&table(0..5)), Ok(1));
    let mut asked = Vec::new();
    let mut ask = |answer, now| {
        let completed = |target, position| {
            asked.push((target, position));
            answer
        };
        view.select(bucket, now, completed).unwrap().target
    };
    assert_eq!(ask(false, START.after(1)), from);
    assert_eq!(ask(false, START.after(IDLE_MICROS - 1)), from);
    assert_eq!(ask(true, START.after(2)), Target(4));
    assert_eq!(asked, [(from, Position(77)); 3]);
    let moves = view.moves();
    assert_eq!(
        (moves.completed, moves.waited, moves.idle, view.pending()),
        (1, 2, 0, 0)
    );
}

#[test]
fn a_bucket_without_packets_leaves_anyway() {
    let (bucket, from) = mover();
    let mut view = View::new(&table(0..4));
    let selection = view.select(bucket, START, |_, _| false).unwrap();
    view.sent(selection, Position(0), START);
    view.adopt(&table(0..5)).unwrap();
    // A packet that keeps coming holds it, whatever time passes in all.
    let mut now = START;
    for _ in 0..10 {
        now = now.after(IDLE_MICROS - TICK);
        let selection = view.select(bucket, now, |_, _| false).unwrap();
        assert_eq!(selection.target, from);
        view.sent(selection, Position(1), now);
    }
    now = now.after(IDLE_MICROS + 2 * TICK);
    assert_eq!(
        view.select(bucket, now, |_, _| false).unwrap().target,
        Target(4)
    );
    assert_eq!((view.moves().idle, view.moves().completed), (1, 0));
}

#[test]
fn a_lost_target_is_left_at_once() {
    let mut view = View::new(&table(0..2));
    for bucket in 0..512 {
        let selection = view.select(bucket, START, |_, _| false).unwrap();
        view.sent(selection, Position(0), START);
    }
    assert_eq!(view.adopt(&table([0])), Ok(256));
    view.lost(Target(1));
    assert_eq!((view.pending(), view.moves().forced), (0, 256));
    for bucket in 0..512 {
        let selection = view.select(bucket, START, |_, _| false).unwrap();
        assert_eq!(selection.target, Target(0));
    }
}

#[test]
fn gathered_flows_leave_when_what_went_there_is_done() {
    let (pins, mut view) = (Pins::new(), View::with_pins(&table(0..4)));
    let one = |table: &Indirection| (0..512).find(|h| table.select(*h) == Some(Target(2)));
    let bucket = one(&table(0..4)).unwrap();
    let flow = hash(bucket);
    pins.pin(flow, Target(3), START);
    for done in [true, false] {
        let selection = view.select_pinned(flow, &pins, START, |_, _| done).unwrap();
        assert_eq!(selection.target, Target(3));
        view.sent(selection, Position(9), START);
    }
    view.gather(Some((Target(0), Position(5))), START);
    let asked = std::cell::Cell::new(None);
    let go = |view: &mut View, hash, now, done| {
        let completed = |target, position| {
            asked.set(Some((target, position)));
            done
        };
        view.select_pinned(hash, &pins, now, completed)
            .unwrap()
            .target
    };
    let unseen = FlowHash(77 << 32 | u64::from(bucket));
    assert_eq!(go(&mut view, flow, START, false), Target(0));
    assert_eq!(go(&mut view, unseen, START, false), Target(0));
    assert_eq!(go(&mut view, flow, START, true), Target(3));
    assert_eq!(go(&mut view, unseen, START.after(20_000), false), Target(2));
    assert_eq!(asked.get(), Some((Target(0), Position(5))));
    assert_eq!((view.moves().completed, view.moves().idle), (1, 1));
    view.gather(None, START);
    assert_eq!(go(&mut view, flow, START, false), Target(3));
    assert_eq!(go(&mut view, unseen, START, false), Target(2));
    assert_eq!(view.moves().completed, 1, "nothing was anywhere");
}

#[test]
fn a_packet_counts_from_when_it_is_selected_for() {
    let (bucket, from) = mover();
    let mut view = View::new(&table(0..4));
    let selection = view.select(bucket, START, |_, _| false).unwrap();
    view.sent(selection, Position(1), START);
    let now = START.after(50_000);
    assert_eq!(view.select(bucket, now, |_, _| false).unwrap().target, from);
    view.adopt(&table(0..5)).unwrap();
    // What was selected for just now is not queued yet.
    assert_eq!(view.select(bucket, now, |_, _| false).unwrap().target, from);
}

#[test]
fn a_pinned_flow_moves_alone_and_comes_back() {
    let (pins, mut view) = (Pins::new(), View::with_pins(&table(0..4)));
    let from = table(0..4).select(9).unwrap();
    let to = Target((from.0 + 1) % 4);
    let (flow, neighbour) = (hash(9), FlowHash(99 << 32 | 9));
    let mut send = |flow, position, done: bool| {
        let selection = view.select_pinned(flow, &pins, START, |_, _| done).unwrap();
        view.sent(selection, Position(position), START);
        selection.target
    };
    assert_eq!(send(flow, 1, false), from);
    pins.pin(flow, to, START);
    // The old queue still has the packet.
    assert_eq!(send(flow, 2, false), from);
    assert_eq!(send(neighbour, 3, false), from);
    assert_eq!(send(flow, 4, true), to);
    assert_eq!(send(flow, 5, false), to);
    assert_eq!(send(neighbour, 6, false), from);
    // The guest moves the flow to where the bucket is: the pin follows in order, then goes.
    pins.pin(flow, from, START);
    assert_eq!(send(flow, 7, false), to);
    assert_eq!(send(flow, 8, true), from);
    assert_eq!(send(flow, 9, false), from);
    assert_eq!(
        pins.len(),
        1,
        "its last packet is under way, and only the pin knows where"
    );
    assert_eq!(send(flow, 10, true), from);
    assert!(pins.is_empty());
    assert_eq!(view.moves().completed, 2);
}

#[test]
fn a_pin_to_a_target_that_is_gone_does_not_hold() {
    let (pins, mut view) = (Pins::new(), View::with_pins(&table(0..3)));
    let flow = (0..512)
        .map(hash)
        .find(|h| table(0..3).select(h.low()) == Some(Target(0)))
        .unwrap();
    pins.pin(flow, Target(2), START);
    let selection = view.select_pinned(flow, &pins, START, |_, _| true).unwrap();
    assert_eq!(selection.target, Target(2));
    view.sent(selection, Position(4), START);
    view.adopt(&table(0..2)).unwrap();
    // It still completes what it has.
    let selection = view
        .select_pinned(flow, &pins, START, |_, _| false)
        .unwrap();
    assert_eq!(selection.target, Target(2));
    view.lost(Target(2));
    let selection = view
        .select_pinned(flow, &pins, START, |_, _| false)
        .unwrap();
    assert_eq!(selection.target, Target(0));
    // A pin to what never was there.
    pins.pin(flow, Target(500), START);
    let selection = view.select_pinned(flow, &pins, START, |_, _| true).unwrap();
    assert_eq!(selection.target, Target(0));
}

/// A view without pins of its own does not follow those of others, and does not lose its way.
#[test]
fn without_places_pins_are_not_followed() {
    let (pins, mut view) = (Pins::new(), View::new(&table(0..2)));
    let flow = (0..512)
        .map(hash)
        .find(|h| table(0..2).select(h.low()) == Some(Target(0)))
        .unwrap();
    pins.pin(flow, Target(1), START);
    let selection = view.select_pinned(flow, &pins, START, |_, _| true).unwrap();
    assert_eq!(selection.target, Target(0));
}

/// Targets as queues that serve when told to: what they have completed in which order.
#[derive(Default)]
struct Queues {
    /// Packets under way: flow and number.
    waiting: HashMap<Target, VecDeque<(usize, u32)>>,
    /// Position of the next.
    next: HashMap<Target, u16>,
    /// Last number completed, by flow.
    done: HashMap<usize, u32>,
}

impl Queues {
    fn completed(&self, target: Target, position: Position) -> bool {
        let waiting = self.waiting.get(&target).map_or(0, VecDeque::len);
        let next = self.next.get(&target).copied().unwrap_or(u16::MAX - 5);
        usize::from(next.wrapping_sub(position.0)) > waiting
    }

    fn put(&mut self, target: Target, packet: (usize, u32)) -> Position {
        self.waiting.entry(target).or_default().push_back(packet);
        // Begins shortly before it wraps.
        let next = self.next.entry(target).or_insert(u16::MAX - 5);
        let position = Position(*next);
        *next = next.wrapping_add(1);
        position
    }

    /// Serves up to so many; false if a flow's packets come out of order.
    fn serve(&mut self, target: Target, count: usize) -> bool {
        let waiting = self.waiting.entry(target).or_default();
        let count = count.min(waiting.len());
        waiting.drain(..count).all(|(flow, number)| {
            let last = self.done.insert(flow, number);
            last.is_none_or(|last| last < number)
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Packet(usize),
    /// Packets that are selected for before the first is queued; meanwhile a target serves some, and a flow is learned.
    Burst(Vec<usize>, (u16, usize), (usize, u16)),
    Serve(u16, usize),
    Add(u16),
    Remove(u16),
    Set(usize, u16),
    Learn(usize, u16),
    Pass,
}

fn steps() -> impl Strategy<Value = Step> {
    let flows = prop::collection::vec(0usize..24, 1..32);
    let burst = (flows, (0u16..6, 1usize..40), (0usize..24, 0u16..6))
        .prop_map(|(flows, serve, learn)| Step::Burst(flows, serve, learn));
    prop_oneof![
        12 => (0usize..24).prop_map(Step::Packet),
        4 => burst,
        8 => (0u16..6, 1usize..6).prop_map(|(target, count)| Step::Serve(target, count)),
        1 => (0u16..6).prop_map(Step::Add),
        1 => (1u16..6).prop_map(Step::Remove),
        1 => (0usize..8, 0u16..6).prop_map(|(bucket, target)| Step::Set(bucket, target)),
        3 => (0usize..24, 0u16..6).prop_map(|(flow, queue)| Step::Learn(flow, queue)),
        1 => Just(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes, goes, is pinned and served when: no flow's packets are completed out of order, and every packet has
    /// somewhere to go. Time passes so slowly that no move is made by idleness.
    #[test]
    fn flows_keep_their_order(steps in prop::collection::vec(steps(), 1..600)) {
        let mut table = table([0]);
        let (pins, mut view) = (Pins::new(), View::with_pins(&table));
        let mut queues = Queues::default();
        let (mut numbers, mut now) = ([0u32; 24], START);
        // Three flows to a bucket.
        let flow_hash = |flow: usize| FlowHash((flow as u64) << 32 | (flow % 8) as u64);
        for step in steps {
            match step {
                Step::Packet(flow) => {
                    let done = |target, position| queues.completed(target, position);
                    let selection = view.select_pinned(flow_hash(flow), &pins, now, done);
                    prop_assert!(selection.is_some());
                    let selection = selection.unwrap();
                    numbers[flow] += 1;
                    let position = queues.put(selection.target, (flow, numbers[flow]));
                    view.sent(selection, position, now);
                }
                Step::Burst(flows, (target, count), (learned, queue)) => {
                    let mut filed: Vec<(usize, bool, Selection)> = Vec::new();
                    for (i, flow) in flows.iter().copied().enumerate() {
                        if i == flows.len() / 2 {
                            prop_assert!(queues.serve(Target(target), count));
                            pins.pin(flow_hash(learned), Target(queue), now);
                        }
                        let pin = pins.lookup(flow_hash(flow), now);
                        let bare = pin.is_none();
                        let unsent = filed.iter().any(|(other, other_bare, _)| {
                            *other == flow || bare && *other_bare && other % 8 == flow % 8
                        });
                        let done = |target, position| !unsent && queues.completed(target, position);
                        let selection = view.select_by(flow_hash(flow), pin, &pins, now, done);
                        prop_assert!(selection.is_some());
                        filed.push((flow, bare, selection.unwrap()));
                    }
                    // Target by target, as bursts are delivered.
                    filed.sort_by_key(|(.., selection)| selection.target);
                    for (flow, _, selection) in filed {
                        numbers[flow] += 1;
                        let position = queues.put(selection.target, (flow, numbers[flow]));
                        view.sent(selection, position, now);
                    }
                }
                Step::Serve(target, count) => prop_assert!(queues.serve(Target(target), count)),
                Step::Add(target) => {
                    table.add(Target(target));
                    prop_assert!(view.adopt(&table).is_ok());
                }
                Step::Remove(target) => {
                    table.remove(Target(target));
                    prop_assert!(view.adopt(&table).is_ok());
                }
                Step::Set(bucket, target) => {
                    table.set(bucket, Target(target));
                    prop_assert!(view.adopt(&table).is_ok());
                }
                Step::Learn(flow, queue) => {
                    let hash = flow_hash(flow);
                    let says = table.select(hash.low()).unwrap();
                    pins.learn(hash, Target(queue), says, now);
                }
                Step::Pass => now = now.after(7),
            }
            if table.shares().len() == 0 {
                table.add(Target(0));
                prop_assert!(view.adopt(&table).is_ok());
            }
        }
        prop_assert_eq!(view.moves().idle, 0);
        for target in 0..6 {
            prop_assert!(queues.serve(Target(target), usize::MAX));
        }
        // Nothing is left under way: one packet for each bucket, and all are where they belong.
        for bucket in 0..8 {
            view.select(bucket, now, |_, _| true);
        }
        prop_assert_eq!(view.pending(), 0);
    }
}

/// Ten thousand flows come for each that is alive: nothing grows, nothing fails, none is sent anywhere but where its bucket
/// or its pin says, and the pins that the living want are there.
#[test]
fn flows_without_end() {
    let table = table(0..4);
    let (pins, mut view) = (Pins::new(), View::with_pins(&table));
    let places = (view.buckets.len(), view.pinned.len());
    for n in 0..400_000u64 {
        let now = START.after(n * 10);
        // Odd, so that different numbers give different hashes.
        let flow = FlowHash(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let says = table.select(flow.low()).unwrap();
        // One in fifty goes on after its first packet, on another queue than the table's.
        let other = Target((says.0 + 1) % 4);
        pins.learn(flow, other, says, now);
        if n % 50 == 0 {
            let learned = pins.learn(flow, other, says, now);
            let refused = pins.refused();
            assert!(learned == Learned::Pinned || refused > 0);
            let selection = view.select_pinned(flow, &pins, now, |_, _| true).unwrap();
            let pinned = learned == Learned::Pinned;
            assert_eq!(selection.target, if pinned { other } else { says });
        } else {
            let selection = view.select_pinned(flow, &pins, now, |_, _| true).unwrap();
            assert_eq!(selection.target, says);
        }
    }
    assert!(pins.len() <= pins::CAPACITY);
    // 6,000 flows in three seconds are more than there is room for.
    assert!(pins.refused() > 0 && pins.len() > pins::CAPACITY / 2);
    assert_eq!((view.buckets.len(), view.pinned.len()), places);
}
