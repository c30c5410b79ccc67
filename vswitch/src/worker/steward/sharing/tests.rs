use super::*;
use crate::forward::{PortIndex, PortRef};

const LOOK: Duration = Duration::from_millis(20);

fn key(port: u16) -> QueueKey {
    QueueKey {
        port: PortRef {
            index: PortIndex(port),
            incarnation: 0,
        },
        queue: 0,
    }
}

fn hot() -> Queue {
    Queue {
        key: key(0),
        owner: 0,
        helper: None,
        asked: Asked::Auto,
        lends: true,
        load: 0.98,
        frames: 1000,
        bytes: 1_500_000,
    }
}

fn helper(worker: usize, outputs: u32, load: f64) -> Option<Helper> {
    Some(Helper {
        worker,
        outputs,
        load,
    })
}

fn room(worker: usize, load: f64) -> Room {
    Room {
        worker,
        load,
        standing: worker == 0,
        resting: false,
        core: 10 + worker as u32,
        node: Node(0),
        kin: Kin::default(),
    }
}

/// Looks at the same until it is known what queues do alone.
fn looks(sharing: &mut Sharing, queues: &[Queue], rooms: &[Room]) -> Option<Wish> {
    for n in 1..3 {
        let wish = sharing.look(LOOK * n, LOOK, queues, rooms);
        assert_eq!(wish, None, "look {n}");
    }
    sharing.look(LOOK * 3, LOOK, queues, rooms)
}

fn begun(wish: &Option<Wish>) -> Option<(QueueKey, usize)> {
    match wish {
        Some(Wish::Share(key, helper, _)) => Some((*key, *helper)),
        None => None,
        Some(Wish::Alone(..)) => panic!("{wish:?}"),
    }
}

fn reason(wish: Option<Wish>) -> String {
    match wish {
        Some(Wish::Alone(at, why)) if at == key(0) => why,
        _ => panic!("{wish:?}"),
    }
}

#[test]
fn a_hot_queue_of_large_frames_gets_the_least_loaded_helper() {
    let rooms = [room(0, 0.98), room(1, 0.3), room(2, 0.1)];
    let look =
        |queue: Queue, rooms: &[Room]| begun(&looks(&mut Sharing::default(), &[queue], rooms));
    assert_eq!(look(hot(), &rooms), Some((key(0), 2)));
    // One that nobody can help does not stand in the way of another.
    let far = |worker, load| Room {
        node: Node(1),
        standing: true,
        ..room(worker, load)
    };
    let rooms_of_two = [room(0, 0.98), room(1, 0.5), far(2, 0.98), far(3, 0.1)];
    let other = Queue {
        key: key(1),
        owner: 2,
        ..hot()
    };
    let wish = looks(&mut Sharing::default(), &[hot(), other], &rooms_of_two);
    assert_eq!(begun(&wish), Some((key(1), 3)));
    let unfit = [
        Queue { load: 0.8, ..hot() },
        Queue {
            bytes: 64_000,
            ..hot()
        },
        Queue {
            lends: false,
            ..hot()
        },
        Queue {
            asked: Asked::Off,
            ..hot()
        },
        Queue { owner: 1, ..hot() },
        Queue { owner: 3, ..hot() },
    ];
    for queue in unfit {
        assert_eq!(look(queue, &rooms), None, "{queue:?}");
    }
    let far = Room {
        node: Node(1),
        ..room(1, 0.0)
    };
    for other in [room(1, 0.5), far] {
        assert_eq!(look(hot(), &[rooms[0], other]), None, "{other:?}");
    }
}

#[test]
fn who_rests_is_put_to_use_if_nobody_else_has_as_much_room() {
    let rested = Room {
        resting: true,
        ..room(1, 0.0)
    };
    for (others, wanted) in [
        ([rested, room(2, 0.0)], 2),
        ([rested, room(2, 0.1)], 1),
        ([rested, room(2, 0.9)], 1),
    ] {
        let rooms = [room(0, 0.98), others[0], others[1]];
        let wish = looks(&mut Sharing::default(), &[hot()], &rooms);
        assert_eq!(begun(&wish), Some((key(0), wanted)));
    }
    let wish = looks(&mut Sharing::default(), &[hot()], &[room(0, 0.98), rested]);
    let Some(Wish::Share(_, 1, why)) = wish else {
        panic!("{wish:?}");
    };
    assert_eq!(
        why,
        "it alone takes 98 % of worker 0, with 1500 bytes a frame; worker 1 is at 0 % and rested"
    );
}

#[test]
fn nobody_helps_two_and_no_helper_is_helped() {
    let rooms = [room(0, 0.98), room(1, 0.2), room(2, 0.98), room(3, 0.3)];
    let rooms = rooms.map(|room| Room {
        standing: true,
        ..room
    });
    let first = Queue {
        helper: helper(1, 2, 0.5),
        ..hot()
    };
    let second = Queue {
        key: key(2),
        owner: 2,
        ..hot()
    };
    let look =
        |queues: &[Queue], rooms: &[Room]| begun(&looks(&mut Sharing::default(), queues, rooms));
    assert_eq!(look(&[first, second], &rooms), Some((key(2), 3)));
    assert_eq!(look(&[first, second], &rooms[..3]), None);
    let helpers_own = Queue {
        key: key(1),
        owner: 1,
        ..hot()
    };
    assert_eq!(look(&[first, helpers_own], &rooms), None);
}

#[test]
fn it_ends_when_it_does_not_pay_and_rests() {
    let rooms = [room(0, 0.9), room(1, 0.2)];
    let shared = Queue {
        helper: helper(1, 2, 0.6),
        ..hot()
    };
    let mut sharing = Sharing::default();
    assert_eq!(sharing.look(LOOK, LOOK, &[shared], &rooms), None);
    let end =
        |queue: Queue, rooms: &[Room]| reason(Sharing::default().look(LOOK, LOOK, &[queue], rooms));
    let cool = |load, helpers| Queue {
        load,
        helper: helper(1, 2, helpers),
        ..hot()
    };
    assert!(end(cool(0.4, 0.2), &rooms).contains("60 % of its worker"));
    // As much as of a queue that is not hot enough to be shared, and yet not so little that it ends.
    assert_eq!(sharing.look(LOOK, LOOK, &[cool(0.5, 0.3)], &rooms), None);
    let small = Queue {
        bytes: 64_000,
        ..shared
    };
    assert!(end(small, &rooms).contains("64 bytes"));
    let busy = [rooms[0], room(1, 0.8)];
    assert!(end(shared, &busy).contains("80 %"));
    assert!(end(shared, &rooms[..1]).contains("100 %"));
    let asked = Queue {
        asked: Asked::On,
        ..small
    };
    assert_eq!(Sharing::default().look(LOOK, LOOK, &[asked], &busy), None);
    // Outputs are not known at once.
    let idle = Queue {
        helper: helper(1, 0, 0.0),
        ..shared
    };
    let mut sharing = Sharing::default();
    for _ in 1..PATIENCE {
        assert_eq!(sharing.look(LOOK, LOOK, &[idle], &rooms), None);
    }
    let why = reason(sharing.look(LOOK, LOOK, &[idle], &rooms));
    assert!(why.contains("one output"), "{why}");
    for n in 2..9 {
        assert_eq!(sharing.look(LOOK * n, LOOK, &[hot()], &rooms), None);
        assert!(!sharing.is_measuring(), "there is no hurry");
    }
    let again = sharing.look(LOOK * 2 + REST, LOOK, &[hot()], &rooms);
    assert_eq!(begun(&again), Some((key(0), 1)));
}

/// A queue that takes so many times what it does alone when it is shared, and always more than there is.
struct World {
    sharing: Sharing,
    at: Duration,
    queue: Queue,
    rooms: Vec<Room>,
    gains: fn(helper: usize) -> f64,
}

impl World {
    fn new(gains: fn(usize) -> f64) -> Self {
        World {
            sharing: Sharing::default(),
            at: Duration::ZERO,
            queue: hot(),
            rooms: vec![room(0, 0.98), room(1, 0.0)],
            gains,
        }
    }

    fn look(&mut self) -> Option<Wish> {
        self.at += LOOK;
        let helper = self.queue.helper.map(|helper| helper.worker);
        let more = helper.map_or(1.0, self.gains);
        let queue = Queue {
            frames: (self.queue.frames as f64 * more) as u64,
            bytes: (self.queue.bytes as f64 * more) as u64,
            ..self.queue
        };
        let wish = self.sharing.look(self.at, LOOK, &[queue], &self.rooms);
        match &wish {
            Some(Wish::Share(_, worker, _)) => self.queue.helper = helper_of(*worker),
            Some(Wish::Alone(..)) => self.queue.helper = None,
            None => {}
        }
        wish
    }

    /// What happens in so long a time, and when.
    fn run(&mut self, time: Duration) -> Vec<(Duration, Wish)> {
        let until = self.at + time;
        let mut all = Vec::new();
        while self.at < until {
            let wish = self.look();
            all.extend(wish.map(|wish| (self.at, wish)));
        }
        all
    }
}

fn helper_of(worker: usize) -> Option<Helper> {
    helper(worker, 2, 0.6)
}

#[test]
fn a_helper_that_gains_nothing_goes_and_comes_back_later_and_later() {
    let mut world = World::new(|_| 1.01);
    let made = world.run(Duration::from_secs(36));
    let begun: Vec<_> = made.iter().step_by(2).map(|(at, _)| *at).collect();
    let ended: Vec<_> = made.iter().skip(1).step_by(2).collect();
    assert_eq!((begun.len(), ended.len()), (4, 4), "{made:?}");
    assert_eq!(begun[0], LOOK * 3);
    for (n, (at, wish)) in ended.iter().enumerate() {
        assert_eq!(*at, begun[n] + LOOK * 4);
        let why = "a second worker gains nothing: 50.00 kframes/s alone, 50.50 shared";
        assert_eq!(*wish, Wish::Alone(key(0), why.into()));
        if let Some(again) = begun.get(n + 1) {
            assert_eq!(*again, *at + REST * (1 << n));
        }
    }
    // Other frames, another chance.
    world.queue.bytes /= 3;
    let last = ended[3].0;
    let made = world.run(REST);
    let [(at, Wish::Share(..)), (_, Wish::Alone(..))] = made[..] else {
        panic!("{made:?}");
    };
    assert_eq!(at, last + REST);
}

#[test]
fn a_helper_that_gains_stays_but_for_a_moment_at_times() {
    let mut world = World::new(|_| 1.3);
    let made = world.run(Duration::from_secs(16));
    let [(_, Wish::Share(..)), rest @ ..] = &made[..] else {
        panic!("{made:?}");
    };
    assert_eq!(rest.len(), 4, "after 5 and 10 s: {rest:?}");
    for pair in rest.chunks(2) {
        let [(ended, Wish::Alone(_, why)), (begun, Wish::Share(..))] = pair else {
            panic!("{pair:?}");
        };
        assert!(why.contains("is measured again"), "{why}");
        assert_eq!(*begun, *ended + LOOK * 3);
    }
    assert_eq!(world.queue.helper.map(|h| h.worker), Some(1));
}

/// It is asked for no longer: it is measured like any other, and loses its helper.
fn is_judged(made: &[(Duration, Wish)]) {
    let [
        (_, Wish::Alone(_, check)),
        (_, Wish::Share(..)),
        (_, Wish::Alone(_, end)),
        ..,
    ] = made
    else {
        panic!("{made:?}");
    };
    assert!(
        check.contains("is measured") && end.contains("gains nothing"),
        "{made:?}"
    );
}

#[test]
fn who_is_asked_for_stays_whatever_is_gained() {
    let mut world = World::new(|_| 0.7);
    world.queue.asked = Asked::On;
    world.queue.helper = helper_of(1);
    assert_eq!(world.run(Duration::from_secs(20)), []);
    world.queue.asked = Asked::Auto;
    is_judged(&world.run(Duration::from_secs(4)));
    // It is asked for while it is being tried.
    let mut world = World::new(|_| 0.7);
    assert!(matches!(world.run(LOOK * 5)[..], [(_, Wish::Share(..))]));
    world.queue.asked = Asked::On;
    assert_eq!(world.run(Duration::from_secs(20)), []);
    world.queue.asked = Asked::Auto;
    is_judged(&world.run(Duration::from_secs(4)));
}

#[test]
fn who_helps_stays_while_it_could_not_come_back() {
    let mut world = World::new(|_| 1.3);
    assert!(matches!(world.run(LOOK * 5)[..], [(_, Wish::Share(..))]));
    world.rooms[1].load = 0.5;
    assert_eq!(world.run(Duration::from_secs(20)), []);
    world.rooms[1].load = 0.1;
    assert!(matches!(world.run(LOOK)[..], [(_, Wish::Alone(..))]));
}

#[test]
fn a_try_that_ends_early_is_no_reason_to_hurry() {
    for asked in [Asked::Auto, Asked::Off] {
        let mut world = World::new(|_| 1.3);
        assert!(matches!(world.run(LOOK * 4)[..], [(_, Wish::Share(..))]));
        assert!(world.sharing.is_measuring());
        // It is alone, and nothing that could be shared any longer.
        (world.queue.helper, world.queue.asked) = (None, asked);
        (world.queue.bytes, world.queue.load) = (world.queue.frames * 64, 0.5);
        world.run(LOOK);
        assert!(!world.sharing.is_measuring(), "{asked:?}");
    }
}

#[test]
fn of_several_that_gain_nothing_each_is_judged_once() {
    let mut sharing = Sharing::default();
    let rooms = [0.98, 0.0, 0.98, 0.0];
    let rooms = [0, 1, 2, 3].map(|n| Room {
        standing: n % 2 == 0,
        ..room(n, rooms[n])
    });
    let mut queues = [0, 2].map(|owner| Queue {
        key: key(owner as u16),
        owner,
        ..hot()
    });
    let mut ended = Vec::new();
    for n in 1..60 {
        match sharing.look(LOOK * n, LOOK, &queues, &rooms) {
            Some(Wish::Share(key, helper, _)) => {
                let queue = queues.iter_mut().find(|queue| queue.key == key);
                queue.unwrap().helper = helper_of(helper);
            }
            Some(Wish::Alone(key, _)) => {
                let queue = queues.iter_mut().find(|queue| queue.key == key);
                queue.unwrap().helper = None;
                ended.push(LOOK * n);
            }
            None => {}
        }
    }
    let [_, last] = ended[..] else {
        panic!("{ended:?}");
    };
    for n in 60..400 {
        if sharing.look(LOOK * n, LOOK, &queues, &rooms).is_some() {
            assert!(LOOK * n <= last + REST + LOOK, "it was in vain once");
            return;
        }
    }
    panic!("nobody was tried again");
}

#[test]
fn only_what_fills_its_worker_tells_what_it_does_alone() {
    let mut world = World::new(|_| 1.4);
    world.queue.load = 0.8;
    assert_eq!(world.run(LOOK * 9), []);
    world.queue.load = 0.98;
    assert_eq!(world.run(LOOK * 2), []);
    assert_eq!(world.run(LOOK).len(), 1);
}

#[test]
fn another_worker_may_gain_what_one_does_not() {
    let mut world = World::new(|helper| if helper == 1 { 1.0 } else { 1.4 });
    world.rooms.push(room(2, 0.05));
    let made = world.run(Duration::from_secs(8));
    let [
        (_, Wish::Share(_, 1, _)),
        (_, Wish::Alone(..)),
        (_, Wish::Share(_, 2, _)),
    ] = made[..]
    else {
        panic!("{made:?}");
    };
    // Its core is what was tried, not its number.
    let mut world = World::new(|_| 1.0);
    assert_eq!(world.run(LOOK * 7).len(), 2);
    assert_eq!(world.run(REST).len(), 1);
    assert_eq!(world.run(LOOK * 4).len(), 1);
    assert_eq!(world.run(REST + LOOK).len(), 0, "in vain twice");
    world.rooms[1].core += 1;
    assert_eq!(world.run(LOOK).len(), 1);
}

#[test]
fn looks_come_soon_while_something_is_measured_and_not_longer() {
    let mut world = World::new(|_| 1.4);
    for look in 0..30 {
        world.look();
        assert_eq!(world.sharing.is_measuring(), look < 6, "look {look}");
    }
    // Nobody could help, or nothing asks for it.
    let mut world = World::new(|_| 1.4);
    world.rooms[1].load = 0.5;
    world.look();
    assert!(!world.sharing.is_measuring());
    let mut world = World::new(|_| 1.4);
    world.queue.load = 0.5;
    world.look();
    assert!(!world.sharing.is_measuring());
}

#[test]
fn who_shares_a_cache_helps_before_who_has_a_little_more_room() {
    let at = |worker, load, cache, threads| Room {
        kin: Kin {
            cache: Some(cache),
            threads: Some(threads),
        },
        ..room(worker, load)
    };
    let owner = at(0, 0.98, 0, 0);
    let (same, sibling, apart) = (
        |load| at(1, load, 0, 1),
        |load| at(2, load, 0, 0),
        |load| at(3, load, 8, 8),
    );
    let unknown = |load| room(4, load);
    for (others, wanted) in [
        ([apart(0.0), sibling(0.05), same(0.09)], 1),
        ([apart(0.0), sibling(0.05), same(0.3)], 2),
        ([apart(0.0), sibling(0.2), same(0.3)], 3),
        ([apart(0.2), sibling(0.0), same(0.3)], 2),
        ([unknown(0.0), apart(0.05), same(0.09)], 1),
        ([unknown(0.05), apart(0.0), same(0.2)], 3),
        ([unknown(0.0), apart(0.05), same(0.2)], 4),
    ] {
        let rooms: Vec<_> = std::iter::once(owner).chain(others).collect();
        let wish = looks(&mut Sharing::default(), &[hot()], &rooms);
        assert_eq!(begun(&wish), Some((key(0), wanted)), "{others:?}");
    }
    // Near is not as good as room: this one has none.
    let rooms = [owner, same(0.5), apart(0.35)];
    let wish = looks(&mut Sharing::default(), &[hot()], &rooms);
    assert_eq!(begun(&wish), Some((key(0), 3)));
}
