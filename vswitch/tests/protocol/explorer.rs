//! Runs small programs of several threads in every order, over memory in which a store may be seen late.
//!
//! Each thread has a buffer of its own stores. It reads them back at once; others see one when it leaves the buffer, at any
//! time, in any order but that of one variable, and a releasing one after all before it. A fence, an exchange and a system
//! call wait until the buffer is empty: what is told with one is told after what was stored before. That is what x86, and
//! what ARM promises for stores; loads are not reordered with each other, which nothing here depends on.
//!
//! Event descriptors and epoll sets are those of Linux, edge-triggered: a write to a descriptor leaves an edge in each set
//! that watches it, a wait takes edges, and forgets those of descriptors that are not readable any more.
//!
//! What is looked for is rest: a state in which no thread can go on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

pub(crate) const VARIABLES: usize = 12;
pub(crate) const DESCRIPTORS: usize = 3;
/// Workers, each with an epoll set and a box of letters of its own.
pub(crate) const WORKERS: usize = 2;
const THREADS: usize = 4;
const REGISTERS: usize = 4;
/// Stores that a thread may have in its buffer: with more it waits, as a processor does.
const BUFFER: usize = 3;
/// Letters in a box.
const LETTERS: usize = 3;
/// More than any of the programs has.
const STATES: usize = 4_000_000;

/// A number: as it stands, or from a register, to which something is added. Both go round at 256.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Is(u8),
    In(usize, u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Load(usize, usize),
    Store(usize, Value),
    /// A store that is seen after all before it.
    Release(usize, Value),
    /// Of sequential consistency.
    Fence,
    /// Old value, variable, new value.
    Swap(usize, usize, u8),
    /// Letter, box.
    Push(u8, usize),
    /// 0 if there is none.
    Pop(usize, usize),
    Write(usize),
    Read(usize),
    /// Set, descriptor.
    Watch(usize, usize),
    Unwatch(usize, usize),
    /// Until there is an edge in this set.
    Wait(usize),
    /// Until a variable has a value.
    Await(usize, u8),
    Set(usize, Value),
    Jump(&'static str),
    /// If the register has this value.
    If(usize, Value, &'static str),
    Label(&'static str),
}

/// A thread's program. It ends behind the last step.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) ops: Vec<Op>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Stored {
    variable: u8,
    value: u8,
    releases: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Thread {
    at: u8,
    registers: [u8; REGISTERS],
    stored: u8,
    buffer: [Stored; BUFFER],
}

impl Thread {
    fn buffer(&self) -> &[Stored] {
        &self.buffer[..usize::from(self.stored)]
    }

    fn value(&self, value: Value) -> u8 {
        match value {
            Value::Is(value) => value,
            Value::In(register, more) => self.registers[register].wrapping_add(more),
        }
    }
}

/// Everything there is, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) memory: [u8; VARIABLES],
    /// Letters, oldest first; 0 is none.
    pub(crate) boxes: [[u8; LETTERS]; WORKERS],
    readable: [bool; DESCRIPTORS],
    watched: [[bool; DESCRIPTORS]; WORKERS],
    edges: [[bool; DESCRIPTORS]; WORKERS],
    threads: [Thread; THREADS],
}

impl State {
    /// With these values in memory, and a worker that watches each of these descriptors.
    pub(crate) fn new(memory: [u8; VARIABLES], watched: &[(usize, usize)]) -> Self {
        let mut state = State {
            memory,
            boxes: Default::default(),
            readable: Default::default(),
            watched: Default::default(),
            edges: Default::default(),
            threads: Default::default(),
        };
        for (set, descriptor) in watched {
            state.watched[*set][*descriptor] = true;
        }
        state
    }
}

/// What a thread did: a step, or nothing, while a store of its own to this variable was seen.
#[derive(Clone, Copy)]
enum Step {
    Op(Op),
    Seen(u8),
}

/// What a search found.
#[derive(Debug)]
pub(crate) enum Found {
    /// In every order it comes to rest as it should. So many states were seen.
    AllWell(usize),
    /// It comes to rest otherwise: how.
    Stuck(Vec<String>),
    /// Here it never comes to rest any more: how it came there.
    Restless(Vec<String>),
}

/// Runs the programs in every order. `is_well` judges where they come to rest.
pub(crate) fn explore(
    programs: &[Program],
    start: State,
    is_well: impl Fn(&State) -> bool,
) -> Found {
    let all = Explorer { programs };
    let mut start = start;
    (0..programs.len()).for_each(|thread| all.settle(&mut start, thread));
    let mut numbers = HashMap::from([(start, 0)]);
    let mut states = vec![start];
    // Of each state: one it was first reached from, and all of them.
    let mut first = vec![(0, 0, Step::Seen(0))];
    let mut before: Vec<Vec<u32>> = vec![Vec::new()];
    let mut rests = Vec::new();
    let mut at = 0;
    while let Some(state) = states.get(at).copied() {
        let next = all.next(&state);
        if next.is_empty() {
            if !is_well(&state) {
                return Found::Stuck(all.path(&first, at));
            }
            rests.push(at);
        }
        for (thread, step, state) in next {
            let number = match numbers.entry(state) {
                Entry::Occupied(seen) => *seen.get(),
                Entry::Vacant(new) => {
                    let number = states.len();
                    assert!(number < STATES, "too many states");
                    new.insert(number);
                    states.push(state);
                    first.push((at, thread, step));
                    before.push(Vec::new());
                    number
                }
            };
            before[number].push(at as u32);
        }
        at += 1;
    }
    let mut may_rest = vec![false; states.len()];
    while let Some(state) = rests.pop() {
        if !std::mem::replace(&mut may_rest[state], true) {
            rests.extend(before[state].iter().map(|state| *state as usize));
        }
    }
    match may_rest.iter().position(|may| !may) {
        Some(state) => Found::Restless(all.path(&first, state)),
        None => Found::AllWell(states.len()),
    }
}

struct Explorer<'p> {
    programs: &'p [Program],
}

impl Explorer<'_> {
    /// How a state was first reached.
    fn path(&self, first: &[(usize, usize, Step)], mut at: usize) -> Vec<String> {
        let mut steps = Vec::new();
        while at != 0 {
            let (from, thread, step) = first[at];
            let name = self.programs[thread].name;
            steps.push(match step {
                Step::Op(op) => format!("{name}: {op:?}"),
                Step::Seen(variable) => format!("{name}: its store to {variable} is seen"),
            });
            at = from;
        }
        steps.reverse();
        steps
    }

    /// What may happen next, and who does it.
    fn next(&self, state: &State) -> Vec<(usize, Step, State)> {
        let mut all = Vec::new();
        for (thread, program) in self.programs.iter().enumerate() {
            let own = &state.threads[thread];
            for (place, stored) in own.buffer().iter().enumerate() {
                let earlier = &own.buffer()[..place];
                let late = earlier.iter().any(|e| e.variable == stored.variable);
                let early = late || stored.releases && place > 0;
                if !early {
                    let mut next = *state;
                    next.memory[usize::from(stored.variable)] = stored.value;
                    let own = &mut next.threads[thread];
                    own.buffer.copy_within(place + 1.., place);
                    own.stored -= 1;
                    own.buffer[usize::from(own.stored)] = Stored::default();
                    all.push((thread, Step::Seen(stored.variable), next));
                }
            }
            let Some(op) = program.ops.get(usize::from(own.at)).copied() else {
                continue;
            };
            let mut next = *state;
            if Self::step(&mut next, thread, op) {
                next.threads[thread].at += 1;
                self.settle(&mut next, thread);
                all.push((thread, Step::Op(op), next));
            }
        }
        all
    }

    /// Does what concerns nobody else.
    fn settle(&self, state: &mut State, thread: usize) {
        let ops = &self.programs[thread].ops;
        let own = &mut state.threads[thread];
        let label = |name| {
            let found = ops
                .iter()
                .position(|op| matches!(op, Op::Label(l) if *l == name));
            found.expect("a label") as u8
        };
        loop {
            own.at = match ops.get(usize::from(own.at)).copied() {
                Some(Op::Set(register, value)) => {
                    own.registers[register] = own.value(value);
                    own.at + 1
                }
                Some(Op::If(register, value, name))
                    if own.registers[register] == own.value(value) =>
                {
                    label(name)
                }
                Some(Op::Label(_) | Op::If(..)) => own.at + 1,
                Some(Op::Jump(name)) => label(name),
                _ => return,
            };
        }
    }

    /// Takes a step; false if it cannot be taken now.
    fn step(state: &mut State, thread: usize, op: Op) -> bool {
        let own = &mut state.threads[thread];
        let waits_for_stores = match op {
            Op::Load(..) | Op::Store(..) | Op::Release(..) => false,
            // A look at an empty box is a load.
            Op::Pop(_, from) => state.boxes[from][0] != 0,
            Op::Await(variable, value) => return state.memory[variable] == value,
            _ => true,
        };
        if waits_for_stores && own.stored > 0 {
            return false;
        }
        match op {
            Op::Load(register, variable) => {
                let stored = own.buffer().iter().rev();
                let stored = { stored }.find(|s| usize::from(s.variable) == variable);
                own.registers[register] = stored.map_or(state.memory[variable], |s| s.value);
            }
            Op::Store(variable, value) | Op::Release(variable, value) => {
                let stored = Stored {
                    variable: variable as u8,
                    value: own.value(value),
                    releases: matches!(op, Op::Release(..)),
                };
                let place = usize::from(own.stored);
                let Some(free) = own.buffer.get_mut(place) else {
                    return false;
                };
                *free = stored;
                own.stored += 1;
            }
            Op::Swap(register, variable, value) => {
                own.registers[register] = std::mem::replace(&mut state.memory[variable], value);
            }
            Op::Push(letter, to) => {
                let free = state.boxes[to].iter_mut().find(|place| **place == 0);
                *free.expect("room for a letter") = letter;
            }
            Op::Pop(register, from) => {
                own.registers[register] = state.boxes[from][0];
                state.boxes[from].copy_within(1.., 0);
                state.boxes[from][LETTERS - 1] = 0;
            }
            Op::Write(descriptor) => {
                state.readable[descriptor] = true;
                for set in 0..WORKERS {
                    state.edges[set][descriptor] |= state.watched[set][descriptor];
                }
            }
            Op::Read(descriptor) => state.readable[descriptor] = false,
            Op::Watch(set, descriptor) => {
                state.watched[set][descriptor] = true;
                state.edges[set][descriptor] = state.readable[descriptor];
            }
            Op::Unwatch(set, descriptor) => {
                state.watched[set][descriptor] = false;
                state.edges[set][descriptor] = false;
            }
            Op::Wait(set) => {
                let mut woken = false;
                for (edge, readable) in state.edges[set].iter_mut().zip(state.readable) {
                    woken |= std::mem::take(edge) && readable;
                }
                return woken;
            }
            Op::Fence | Op::Await(..) => {}
            Op::Set(..) | Op::Jump(_) | Op::If(..) | Op::Label(_) => unreachable!("settled"),
        }
        true
    }
}
