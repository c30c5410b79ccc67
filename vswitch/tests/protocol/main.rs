//! How workers sleep and are woken, as small programs that are run in every order: in each of them everybody comes to rest,
//! and then every frame has been taken, every letter read and every burst helped with. Without any one of the fences and
//! second looks that this rests on, the same search finds somebody asleep on what waits.
//!
//! The programs are the code's, step by step, by hand:
//!
//! | here | there |
//! | --- | --- |
//! | [`driver`] | a guest's driver (virtio 1.2, sections 2.7.7.1 and 2.7.10), with event index and without |
//! | [`worker`] | `worker/mod.rs` (`run`, `sleep`, `read_mail`), `worker/queues.rs`, `vhost/src/ring/core.rs` (`arm`, `disarm`) |
//! | [`put`], and `drain` within [`worker`] | `mailbox.rs` |
//! | [`mover`] | `worker/registry.rs` (`move_queue`, `recall`) |
//! | [`owner`], and what `helps` of [`worker`] | `forward/share.rs` (`give`, `help`, `may_sleep`, `awake`) |
//!
//! What is not here: NICs' interrupts, and calls that are held back (`coalesce/tests`).

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here fails the test"
)]

mod explorer;

use explorer::Op::{
    Await, Fence, If, Jump, Label, Load, Pop, Push, Read, Release, Set, Store, Swap, Unwatch, Wait,
    Watch, Write,
};
use explorer::Value::{In, Is};
use explorer::{Found, Op, Program, State, VARIABLES, explore};

/// Frames that the driver offers, and bursts that the owner gives to its helper.
const FRAMES: u8 = 2;

// Variables. What the driver has offered, and how it is asked for kicks.
const AVAILABLE: usize = 0;
const ASKED: usize = 1;
/// Where the queue's owner stands in the ring. It goes with the queue.
const NEXT: usize = 2;
/// The queue is on its way.
const RETURNED: usize = 3;
/// Bursts given to the helper, and done; the helper may be asleep.
const GIVEN: usize = 4;
const DONE: usize = 5;
const ASLEEP: usize = 6;
/// Of each worker: its box was rung.
const RUNG: usize = 8;

// Descriptors. Of each worker its box's bell, and the queue's kick.
const BELL: usize = 0;
const KICK: usize = 2;

const ATTACH: u8 = 1;
const DETACH: u8 = 2;
/// Any other.
const NEWS: u8 = 3;

/// What may be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// The driver's fence between offering and asking whether to kick.
    DriversFence,
    /// The worker's between asking for kicks and looking again.
    ArmsFence,
    /// That look.
    SecondLook,
    /// The taker's between taking its mark back and finding no letter: of sequential consistency are that store, and the
    /// queue's fence before it says that it is empty.
    DrainsFence,
    /// Its mark is taken back before, and not after.
    MarkFirst,
    /// The owner's between giving a burst and asking whether its helper is asleep.
    GiversFence,
    /// The helper's between saying that it sleeps and looking again.
    HelpersFence,
    /// That look.
    HelpersLook,
}

/// How a search is set up.
#[derive(Clone, Copy)]
struct Setup {
    event_index: bool,
    without: Option<Part>,
}

impl Setup {
    /// A step, unless it is to be left out.
    fn part(self, part: Part, op: Op) -> Option<Op> {
        (self.without != Some(part)).then_some(op)
    }

    /// What asks for a kick at the next frame, and what declines, with the owner's place in this register.
    fn asks(self, register: usize) -> [Op; 2] {
        if self.event_index {
            [
                Store(ASKED, In(register, 0)),
                Store(ASKED, In(register, u8::MAX)),
            ]
        } else {
            [Store(ASKED, Is(0)), Store(ASKED, Is(1))]
        }
    }
}

/// Offers frames one by one.
fn driver(setup: Setup) -> Program {
    let mut ops = vec![];
    let labels = ["kicked 1", "kicked 2"];
    for (n, [kick, kicked]) in (0..FRAMES).zip([["kick 1", labels[0]], ["kick 2", labels[1]]]) {
        ops.push(Release(AVAILABLE, Is(n + 1)));
        ops.extend(setup.part(Part::DriversFence, Fence));
        ops.push(Load(0, ASKED));
        let wanted = if setup.event_index { n } else { 0 };
        ops.extend([If(0, Is(wanted), kick), Jump(kicked)]);
        ops.extend([Label(kick), Write(KICK), Label(kicked)]);
    }
    Program {
        name: "driver",
        ops,
    }
}

/// Writes a letter, if there is one, and rings.
fn put(letter: Option<u8>, to: usize, rung: &'static str) -> impl Iterator<Item = Op> {
    let letter = letter.map(|letter| Push(letter, to));
    letter.into_iter().chain([
        Swap(3, RUNG + to, 1),
        If(3, Is(1), rung),
        Write(BELL + to),
        Label(rung),
    ])
}

/// Owns the queue at times, or helps another.
fn worker(number: usize, setup: Setup, owns: bool, helps: bool) -> Program {
    let [ask, decline] = setup.asks(1);
    // Registers: whether it owns the queue, where it stands there or in what it helps with, and two for all purposes.
    let mut ops = vec![
        Set(0, Is(u8::from(owns))),
        Label("turn"),
        Load(2, RUNG + number),
        If(2, Is(0), "poll"),
    ];
    // Mailbox::drain.
    let mark = Release(RUNG + number, Is(0));
    ops.push(Read(BELL + number));
    ops.extend(setup.part(Part::MarkFirst, mark));
    ops.extend(setup.part(Part::DrainsFence, Fence));
    ops.extend([
        Label("letter"),
        Pop(2, number),
        If(2, Is(NEWS), "letter"),
        If(2, Is(ATTACH), "attach"),
        If(2, Is(DETACH), "detach"),
    ]);
    if setup.without == Some(Part::MarkFirst) {
        ops.push(mark);
    }
    ops.extend([
        Jump("poll"),
        Label("attach"),
        Set(0, Is(1)),
        Watch(number, KICK),
        Jump("letter"),
        Label("detach"),
        Set(0, Is(0)),
        Unwatch(number, KICK),
        Release(RETURNED, Is(1)),
        Jump("letter"),
        Label("poll"),
    ]);
    if helps {
        // Share::help.
        ops.extend([
            Load(1, DONE),
            Load(2, GIVEN),
            If(2, In(1, 0), "nothing to help with"),
            Release(DONE, In(1, 1)),
            Jump("turn"),
            Label("nothing to help with"),
            Store(ASLEEP, Is(1)),
        ]);
        ops.extend(setup.part(Part::HelpersFence, Fence));
        let look = [Load(2, GIVEN), If(2, In(1, 0), "may sleep"), Jump("awake")];
        for step in look {
            ops.extend(setup.part(Part::HelpersLook, step));
        }
        ops.push(Label("may sleep"));
    } else {
        ops.extend([
            If(0, Is(0), "armed"),
            Load(1, NEXT),
            Load(2, AVAILABLE),
            If(2, In(1, 0), "empty"),
            // All there is.
            Store(NEXT, In(2, 0)),
            Jump("turn"),
            Label("empty"),
            ask,
        ]);
        ops.extend(setup.part(Part::ArmsFence, Fence));
        let look = [Load(2, AVAILABLE), If(2, In(1, 0), "armed"), Jump("awake")];
        for step in look {
            ops.extend(setup.part(Part::SecondLook, step));
        }
        ops.push(Label("armed"));
    }
    ops.extend([
        Load(2, RUNG + number),
        If(2, Is(1), "awake"),
        Wait(number),
        Label("awake"),
    ]);
    if helps {
        ops.push(Store(ASLEEP, Is(0)));
    } else {
        ops.extend([If(0, Is(0), "turn"), decline]);
    }
    ops.push(Jump("turn"));
    Program {
        name: ["worker 0", "worker 1"][number],
        ops,
    }
}

/// Moves the queue from one worker to the other.
fn mover() -> Program {
    let mut ops = Vec::from_iter(put(Some(DETACH), 0, "asked for"));
    ops.push(Await(RETURNED, 1));
    ops.extend(put(Some(ATTACH), 1, "brought"));
    Program { name: "mover", ops }
}

/// Gives bursts to worker 1, as many at once as there are.
fn owner(setup: Setup) -> Program {
    let mut ops = vec![];
    for (n, [given, rung]) in (1..=FRAMES).zip([["given 1", "rung 1"], ["given 2", "rung 2"]]) {
        ops.push(Release(GIVEN, Is(n)));
        ops.extend(setup.part(Part::GiversFence, Fence));
        ops.extend([Load(0, ASLEEP), If(0, Is(0), given)]);
        ops.extend(put(None, 1, rung));
        ops.push(Label(given));
    }
    Program { name: "owner", ops }
}

/// Writes letters that have nothing to do with it.
fn stranger(to: usize) -> Program {
    let letters = [put(Some(NEWS), to, "one"), put(Some(NEWS), to, "two")];
    let ops = letters.into_iter().flatten().collect();
    Program {
        name: "stranger",
        ops,
    }
}

/// A queue that moves while its guest offers frames.
fn moving(setup: Setup) -> Found {
    let mut memory = [0; VARIABLES];
    // Not armed.
    memory[ASKED] = if setup.event_index { u8::MAX } else { 1 };
    let programs = [
        driver(setup),
        worker(0, setup, true, false),
        worker(1, setup, false, false),
        mover(),
    ];
    let start = State::new(memory, &[(0, BELL), (1, BELL + 1), (0, KICK)]);
    explore(&programs, start, |state| {
        state.memory[NEXT] == FRAMES && state.boxes.iter().flatten().all(|letter| *letter == 0)
    })
}

/// A queue that stays, and letters for its owner meanwhile.
fn staying(setup: Setup) -> Found {
    let mut memory = [0; VARIABLES];
    memory[ASKED] = if setup.event_index { u8::MAX } else { 1 };
    let programs = [driver(setup), worker(0, setup, true, false), stranger(0)];
    let start = State::new(memory, &[(0, BELL), (0, KICK)]);
    explore(&programs, start, |state| {
        state.memory[NEXT] == FRAMES && state.boxes[0][0] == 0
    })
}

/// A helper that sleeps whenever it may.
fn helping(setup: Setup) -> Found {
    let programs = [owner(setup), worker(1, setup, false, true), stranger(1)];
    let start = State::new([0; VARIABLES], &[(1, BELL + 1)]);
    explore(&programs, start, |state| {
        state.memory[DONE] == FRAMES && state.boxes[1][0] == 0
    })
}

/// Both ways in which drivers are asked for kicks.
fn setups(without: Option<Part>) -> [Setup; 2] {
    [true, false].map(|event_index| Setup {
        event_index,
        without,
    })
}

fn is_well(found: &Found, what: &str) {
    let states = match found {
        Found::AllWell(states) => states,
        Found::Stuck(path) => panic!("{what}: somebody sleeps on what waits, after {path:#?}"),
        Found::Restless(path) => panic!("{what}: nobody comes to rest, after {path:#?}"),
    };
    println!("{what}: {states} states");
    assert!(*states > 1000, "{what}: nothing to speak of happens");
}

#[test]
fn nobody_sleeps_on_what_waits() {
    for setup in setups(None) {
        let how = if setup.event_index {
            "event index"
        } else {
            "flags"
        };
        is_well(&staying(setup), &format!("a queue that stays, {how}"));
        is_well(&moving(setup), &format!("a queue that moves, {how}"));
    }
    is_well(&helping(setups(None)[0]), "a helper");
}

#[test]
fn without_any_part_of_it_somebody_does() {
    for part in [
        Part::DriversFence,
        Part::ArmsFence,
        Part::SecondLook,
        Part::MarkFirst,
    ] {
        for setup in setups(Some(part)) {
            let found = staying(setup);
            assert!(matches!(found, Found::Stuck(_)), "{part:?}: {found:?}");
        }
    }
    // Taking a letter out is a fence, too; a box that is rung without one shows what the other is for.
    for part in [
        Part::DrainsFence,
        Part::GiversFence,
        Part::HelpersFence,
        Part::HelpersLook,
    ] {
        let found = helping(setups(Some(part))[0]);
        assert!(matches!(found, Found::Stuck(_)), "{part:?}: {found:?}");
    }
}
