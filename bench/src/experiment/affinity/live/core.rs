//! What one CPU does: serves packets of its targets, answers the other CPU, and waits for nobody.
//!
//! A packet whose flow's state is elsewhere waits aside, and so do those of the same flow that come after it; all others go
//! on. Messages go before packets, as somebody waits for them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::*};

use super::calm::Diary;
use super::seat::Seat;
use super::{CPUS, Clock, NOWHERE, Packet, Shared};
use crate::experiment::affinity::WORK_NS;
use crate::experiment::affinity::costs::Costs;
use crate::experiment::affinity::policy::TARGETS;
use crate::experiment::affinity::ring::{Receiver, Sender};
use crate::experiment::affinity::store::{State, WORDS};

/// Words of a packet: when it was due, its number, its flow and target.
pub(super) const PACKET: usize = 3;
/// Words of a message: what, when it was sent, and a state.
pub(super) const MESSAGE: usize = 2 + WORDS;
/// Messages taken before the next packet.
const MESSAGES: usize = 8;

/// What one target says to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: Kind,
    flow: u32,
    from: u8,
    to: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Give me this flow's state.
    Ask,
    /// Here it is.
    Give,
    /// I do not have it: look again who does.
    Gone,
}

impl Header {
    fn word(self) -> u64 {
        u64::from(self.flow)
            | u64::from(self.from) << 32
            | u64::from(self.to) << 40
            | (self.kind as u64) << 48
    }

    fn read(word: u64) -> Self {
        Self {
            kind: match word >> 48 {
                0 => Kind::Ask,
                1 => Kind::Give,
                _ => Kind::Gone,
            },
            flow: word as u32,
            from: (word >> 32) as u8,
            to: (word >> 40) as u8,
        }
    }
}

/// What came out on one CPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) diary: Diary,
    /// Packets whose flow's state was at another target: on the other CPU, on this one.
    pub(super) fetched: [u64; 2],
    pub(super) reordered: u64,
    /// Answers that a state is not where it was asked for.
    pub(super) gone: u64,
    pub(super) costs: Costs,
}

/// How a packet's state came to be here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    New,
    FromNeighbour,
}

/// One CPU's targets. Target `t` is served by CPU `t % CPUS`.
#[derive(Debug)]
pub(super) struct Core {
    number: usize,
    seats: Vec<Seat>,
    packets: Receiver<PACKET>,
    inbox: Receiver<MESSAGE>,
    outbox: Sender<MESSAGE>,
    /// Messages that found no room in the outbox.
    unsent: VecDeque<(Header, State)>,
    /// Flows whose state was not where it was looked for.
    again: VecDeque<(u8, u32)>,
    clock: Clock,
    pub(super) tally: Tally,
}

impl Core {
    pub(super) fn new(
        number: usize,
        room: usize,
        packets: Receiver<PACKET>,
        messages: (Receiver<MESSAGE>, Sender<MESSAGE>),
        clock: Clock,
    ) -> Self {
        let seats = usize::from(TARGETS).div_ceil(CPUS);
        Self {
            number,
            seats: (0..seats).map(|_| Seat::with_room(room)).collect(),
            packets,
            inbox: messages.0,
            outbox: messages.1,
            unsent: VecDeque::new(),
            again: VecDeque::new(),
            clock,
            tally: Tally::default(),
        }
    }

    /// No flow is known any more.
    pub(super) fn clear(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.store.clear());
    }

    /// A new count of so many packets at most begins; returns the old one.
    pub(super) fn count(&mut self, packets: u64) -> Tally {
        let tally = Tally {
            diary: Diary::with_room(packets as usize),
            costs: Costs::new(self.clock.cost_ns),
            ..Tally::default()
        };
        std::mem::replace(&mut self.tally, tally)
    }

    #[inline]
    fn seat(&mut self, target: u8) -> &mut Seat {
        &mut self.seats[usize::from(target) / CPUS]
    }

    #[inline]
    fn is_here(&self, target: u8) -> bool {
        usize::from(target) % CPUS == self.number
    }

    /// One turn: messages, then a packet.
    pub(super) fn turn(&mut self, shared: &Shared) {
        self.tally.diary.turn(self.clock.now());
        while let Some((header, state)) = self.unsent.pop_front() {
            if !self.post(header, &state) {
                self.unsent.push_front((header, state));
                break;
            }
        }
        for _ in 0..MESSAGES {
            if !self.message(shared) {
                break;
            }
        }
        for _ in 0..self.again.len() {
            if let Some((target, flow)) = self.again.pop_front() {
                self.look_again(target, flow, shared);
            }
        }
        let packet = self.packets.receive(|words| {
            let [due, number, place] = words.each_ref().map(|word| word.load(Relaxed));
            let packet = Packet {
                due,
                number,
                flow: place as u32,
            };
            ((place >> 32) as u8, packet)
        });
        if let Some((target, packet)) = packet {
            self.packet(target, packet, shared);
        }
    }

    fn packet(&mut self, target: u8, packet: Packet, shared: &Shared) {
        let start = self.clock.now();
        let seat = self.seat(target);
        let place = seat.window.begin();
        if let Some(late) = seat.store.touch(packet.flow, packet.number) {
            let found = self.clock.now();
            self.tally.costs.count(found - start, |of| &mut of.hit);
            self.serve(target, place, &packet, found, late, shared);
            return;
        }
        if seat.awaits(packet.flow) {
            seat.park(place, packet, start);
            return;
        }
        match self.seek(target, packet.flow, shared) {
            Some(came) => {
                let touched = self.seat(target).store.touch(packet.flow, packet.number);
                let found = self.clock.now();
                self.tally.costs.count(found - start, |of| match came {
                    Came::New => &mut of.fresh,
                    Came::FromNeighbour => &mut of.local,
                });
                self.tally.fetched[1] += u64::from(came == Came::FromNeighbour);
                self.serve(target, place, &packet, found, touched == Some(true), shared);
            }
            None => {
                let asked = self.clock.now();
                self.tally.costs.count(asked - start, |of| &mut of.ask);
                self.seat(target).park(place, packet, asked);
            }
        }
    }

    /// The packet's own work, and its end.
    #[inline]
    fn serve(
        &mut self,
        target: u8,
        place: u64,
        packet: &Packet,
        from: u64,
        late: bool,
        shared: &Shared,
    ) {
        let mut now = from;
        while now < from + WORK_NS {
            now = self.clock.now();
        }
        self.tally.diary.done(packet.due, now);
        self.tally.reordered += u64::from(late);
        self.seat(target).finish(target, place, shared);
    }

    /// Brings a flow's state here, if that can be done without the other CPU; else asks for it.
    fn seek(&mut self, target: u8, flow: u32, shared: &Shared) -> Option<Came> {
        let owner = shared.owner(flow);
        match owner.load(Acquire) {
            NOWHERE => {
                let claim = owner.compare_exchange(NOWHERE, target, AcqRel, Acquire);
                if claim.is_err() {
                    self.again.push_back((target, flow));
                    return None;
                }
                self.seat(target).store.enter(flow, &State::NEW);
                Some(Came::New)
            }
            // On its way: somebody here waits for it already.
            at if at == target => None,
            at if self.is_here(at) => {
                let state = self.seat(at).store.leave(flow).copied();
                let Some(state) = state else {
                    self.again.push_back((target, flow));
                    return None;
                };
                owner.store(target, Release);
                self.seat(target).store.enter(flow, &state);
                Some(Came::FromNeighbour)
            }
            at => {
                let header = Header {
                    kind: Kind::Ask,
                    flow,
                    from: target,
                    to: at,
                };
                self.say(header, &State::NEW);
                None
            }
        }
    }

    fn look_again(&mut self, target: u8, flow: u32, shared: &Shared) {
        if !self.seat(target).awaits(flow) {
            return;
        }
        if let Some(came) = self.seek(target, flow, shared) {
            self.tally.fetched[1] += u64::from(came == Came::FromNeighbour);
            self.resume(target, flow, shared);
        }
    }

    /// The packets that waited for a state, which is here now.
    fn resume(&mut self, target: u8, flow: u32, shared: &Shared) {
        let Some(parked) = self.seat(target).unpark(flow) else {
            return;
        };
        for (place, packet) in &parked.packets {
            let late = self.seat(target).store.touch(flow, packet.number);
            let now = self.clock.now();
            self.serve(target, *place, packet, now, late == Some(true), shared);
        }
    }

    fn say(&mut self, header: Header, state: &State) {
        if !self.unsent.is_empty() || !self.post(header, state) {
            self.unsent.push_back((header, *state));
        }
    }

    fn post(&mut self, header: Header, state: &State) -> bool {
        let now = self.clock.now();
        self.outbox.send(|[what, when, words @ ..]| {
            what.store(header.word(), Relaxed);
            when.store(now, Relaxed);
            if header.kind == Kind::Give {
                let pairs = words.iter().zip(state.0);
                pairs.for_each(|(word, value)| word.store(value, Relaxed));
            }
        })
    }

    /// Handles a message, if there is one.
    fn message(&mut self, shared: &Shared) -> bool {
        let clock = self.clock;
        let received = self.inbox.receive(|[what, when, words @ ..]| {
            let now = clock.now();
            let header = Header::read(what.load(Relaxed));
            let state = match header.kind {
                Kind::Give => state(words),
                _ => State::NEW,
            };
            (header, now, now.saturating_sub(when.load(Relaxed)), state)
        });
        let Some((header, start, wire, state)) = received else {
            return false;
        };
        if header.kind != Kind::Give {
            // What a state adds is timed as part of giving and taking.
            self.tally.costs.count(wire, |of| &mut of.wire);
        }
        match header.kind {
            Kind::Ask => self.give(header, start, shared),
            Kind::Give => self.take(header, start, &state, shared),
            Kind::Gone => {
                self.tally.gone += 1;
                self.again.push_back((header.to, header.flow));
            }
        }
        true
    }

    fn give(&mut self, asked: Header, start: u64, shared: &Shared) {
        let state = self.seat(asked.to).store.leave(asked.flow).copied();
        let kind = match state {
            Some(_) => Kind::Give,
            None => Kind::Gone,
        };
        if state.is_some() {
            shared.owner(asked.flow).store(asked.from, Release);
        }
        let answer = Header {
            kind,
            flow: asked.flow,
            from: asked.to,
            to: asked.from,
        };
        self.say(answer, &state.unwrap_or(State::NEW));
        let over = self.clock.now();
        if kind == Kind::Give {
            self.tally.costs.count(over - start, |of| &mut of.give);
        }
    }

    fn take(&mut self, given: Header, start: u64, state: &State, shared: &Shared) {
        let seat = self.seat(given.to);
        seat.store.enter(given.flow, state);
        let Some(parked) = seat.unpark(given.flow) else {
            return;
        };
        let trip = start.saturating_sub(parked.since);
        self.tally.costs.count(trip, |of| &mut of.trip);
        self.tally.fetched[0] += 1;
        for (nth, (place, packet)) in parked.packets.iter().enumerate() {
            let late = self.seat(given.to).store.touch(given.flow, packet.number);
            let now = self.clock.now();
            if nth == 0 {
                self.tally.costs.count(now - start, |of| &mut of.take);
            }
            self.serve(given.to, *place, packet, now, late == Some(true), shared);
        }
    }
}

fn state(words: &[AtomicU64; WORDS]) -> State {
    State(words.each_ref().map(|word| word.load(Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_ring() {
        for kind in [Kind::Ask, Kind::Give, Kind::Gone] {
            let header = Header {
                kind,
                flow: 699_999,
                from: 7,
                to: 3,
            };
            assert_eq!(Header::read(header.word()), header);
        }
    }
}
