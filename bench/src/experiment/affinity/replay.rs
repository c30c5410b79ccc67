//! Eight targets on a CPU each, on a virtual clock: what two CPUs cannot show.
//!
//! Packets come at random times at a given mean rate, whether or not earlier ones are done. A target serves one thing at a
//! time, messages before packets, each in the order they came; how long that takes is drawn from what real threads took
//! ([`Costs`]). The protocol is that of [`live`](super::live): a packet whose flow's state is elsewhere waits aside for it,
//! its target asks the owner, the owner gives it, and meanwhile both go on with other things. A queue has room for 1,024
//! packets.
//!
//! A shortcoming: no target's speed depends on what others do, as it would where they share memory and caches.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use vswitch_flowtable::{Position, Target};

use super::costs::Costs;
use super::flows::{Random, hash};
use super::policy::{Policy, Progress, TARGETS, passed};
use super::window::Window;
use super::{QUEUE, WORK_NS};
use crate::histogram::Histogram;

/// A flow's state is nowhere yet.
const NOWHERE: u8 = u8::MAX;

/// Where a flow's state is, and what it saw.
#[derive(Clone, Copy)]
struct Flow {
    /// Who has it, or will have it when it arrives.
    owner: u8,
    /// It is on its way to its owner.
    travels: bool,
    /// The number after that of its last packet.
    next: u64,
}

#[derive(Clone, Copy)]
struct Packet {
    flow: u32,
    due: u64,
    number: u64,
    /// In the target's window.
    place: u64,
}

#[derive(Clone, Copy)]
enum Message {
    Ask { flow: u32, from: u8 },
    Give { flow: u32 },
}

/// What a target is busy with.
#[derive(Clone, Copy)]
enum Job {
    Packet(Packet),
    /// A packet whose state was asked for here; `None` if it was asked for already.
    Asking(u32, Option<u8>),
    Message(Message),
}

#[derive(Default)]
struct Server {
    messages: VecDeque<Message>,
    packets: VecDeque<Packet>,
    /// Packets that wait for their flow's state.
    parked: Vec<Packet>,
    window: Window,
    queued: u64,
    job: Option<Job>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A target is done with its job.
    Done,
    Ask {
        flow: u32,
        from: u8,
    },
    Give {
        flow: u32,
    },
}

/// What waits at targets.
#[derive(Default)]
struct Servers([Server; TARGETS as usize]);

impl Progress for Servers {
    #[inline]
    fn completed(&self, target: Target, position: Position) -> bool {
        let server = self.0.get(usize::from(target.0));
        server.is_none_or(|server| passed(server.queued, server.window.done(), position))
    }
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// From arrival to the end of service, in ns.
    pub(super) latency: Histogram,
    pub(super) packets: u64,
    /// There was no room.
    pub(super) lost: u64,
    /// Done after a later packet of the same flow.
    pub(super) reordered: u64,
    /// Packets whose flow's state was at another target.
    pub(super) fetched: u64,
}

/// What steering a packet takes besides, in ns: a flow's first, and later ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Overhead {
    pub(super) first: f64,
    pub(super) later: f64,
}

/// A policy at work.
pub(super) struct Run<'c, P> {
    policy: P,
    servers: Servers,
    flows: Vec<Flow>,
    costs: &'c Costs,
    overhead: Overhead,
    /// Mean ns between packets.
    gap: f64,
    due: f64,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, u8, Event)>>,
    /// Events so far, so that those of the same time stay in order.
    scheduled: u64,
    outcome: Outcome,
    numbers: u64,
}

impl<'c, P: Policy> Run<'c, P> {
    /// Nothing has come yet; so many flows will, at `rate` packets a second.
    pub(super) fn new(
        policy: P,
        costs: &'c Costs,
        flows: u32,
        overhead: Overhead,
        rate: f64,
        seed: u64,
    ) -> Self {
        let flow = Flow {
            owner: NOWHERE,
            travels: false,
            next: 0,
        };
        Self {
            policy,
            servers: Servers::default(),
            flows: vec![flow; flows as usize],
            costs,
            overhead,
            gap: 1e9 / rate,
            due: 0.0,
            random: Random(seed),
            events: BinaryHeap::new(),
            scheduled: 0,
            outcome: Outcome::default(),
            numbers: 0,
        }
    }

    /// One packet of every flow, the first.
    pub(super) fn first_packets(&mut self) -> Outcome {
        (0..self.flows.len() as u32).for_each(|flow| self.packet(flow));
        self.rest()
    }

    /// So many packets of any flows, with each of these numbers of targets in turn.
    pub(super) fn cycle(&mut self, phases: &[u16], packets: u64) -> Outcome {
        for active in phases {
            self.policy.activate(*active);
            for _ in 0..packets {
                let flow = self.random.below(self.flows.len() as u32);
                self.packet(flow);
            }
        }
        self.rest()
    }

    /// Nothing comes until all is done.
    fn rest(&mut self) -> Outcome {
        while let Some(Reverse((now, _, server, event))) = self.events.pop() {
            self.due = self.due.max(now as f64);
            self.handle(now, server, event);
        }
        std::mem::take(&mut self.outcome)
    }

    fn packet(&mut self, flow: u32) {
        self.due += self.random.gap(self.gap);
        let now = self.due as u64;
        while let Some(Reverse((at, ..))) = self.events.peek() {
            if *at > now {
                break;
            }
            if let Some(Reverse((at, _, server, event))) = self.events.pop() {
                self.handle(at, server, event);
            }
        }
        let number = self.numbers;
        self.numbers += 1;
        self.outcome.packets += 1;
        let (target, selection) = self.policy.select(hash(flow), &self.servers);
        let Some(server) = self.servers.0.get_mut(usize::from(target.0)) else {
            return;
        };
        if server.packets.len() >= QUEUE {
            self.outcome.lost += 1;
            return;
        }
        let position = Position(server.queued as u16);
        server.queued += 1;
        server.packets.push_back(Packet {
            flow,
            due: now,
            number,
            place: 0,
        });
        if let Some(selection) = selection {
            self.policy.sent(selection, position);
        }
        self.start(now, target.0 as u8);
    }

    fn schedule(&mut self, at: u64, server: u8, event: Event) {
        self.scheduled += 1;
        self.events
            .push(Reverse((at, self.scheduled, server, event)));
    }

    /// Sends a message to another target.
    fn send(&mut self, now: u64, to: u8, event: Event) {
        let wire = self.random.of(&self.costs.wire);
        self.schedule(now + wire, to, event);
    }

    fn handle(&mut self, now: u64, number: u8, event: Event) {
        let server = &mut self.servers.0[usize::from(number)];
        match event {
            Event::Done => {
                if let Some(job) = server.job.take() {
                    self.end(now, number, job);
                }
            }
            Event::Ask { flow, from } => server.messages.push_back(Message::Ask { flow, from }),
            Event::Give { flow } => server.messages.push_back(Message::Give { flow }),
        }
        self.start(now, number);
    }

    /// A target that is idle begins with what waits.
    fn start(&mut self, now: u64, number: u8) {
        let server = &mut self.servers.0[usize::from(number)];
        if server.job.is_some() {
            return;
        }
        let (job, ns) = if let Some(message) = server.messages.pop_front() {
            (Job::Message(message), self.message(number, message))
        } else if let Some(mut packet) = server.packets.pop_front() {
            packet.place = server.window.begin();
            self.begin(number, packet)
        } else {
            return;
        };
        self.servers.0[usize::from(number)].job = Some(job);
        self.schedule(now + ns, number, Event::Done);
    }

    /// A packet's turn has come: what that takes.
    fn begin(&mut self, number: u8, packet: Packet) -> (Job, u64) {
        let costs = self.costs;
        let flow = &mut self.flows[packet.flow as usize];
        let later = self.overhead.later.round() as u64;
        if flow.owner == NOWHERE {
            flow.owner = number;
            let first = self.overhead.first.round() as u64;
            let ns = WORK_NS + first + self.random.of(&costs.fresh);
            return (Job::Packet(packet), ns);
        }
        if flow.owner == number && !flow.travels {
            let ns = WORK_NS + later + self.random.of(&costs.hit);
            return (Job::Packet(packet), ns);
        }
        let (owner, parked) = (flow.owner, &mut self.servers.0[usize::from(number)].parked);
        let asked = parked.iter().any(|other| other.flow == packet.flow);
        parked.push(packet);
        let whom = (!asked && owner != number).then_some(owner);
        let ns = later + self.random.of(&costs.ask);
        (Job::Asking(packet.flow, whom), ns)
    }

    /// What a message takes; states change hands here.
    fn message(&mut self, number: u8, message: Message) -> u64 {
        match message {
            Message::Ask { flow, from } => {
                let flow = &mut self.flows[flow as usize];
                if flow.owner == number && !flow.travels {
                    flow.owner = from;
                    flow.travels = true;
                }
                self.random.of(&self.costs.give)
            }
            Message::Give { flow } => {
                let waiting = self.servers.0[usize::from(number)].parked.iter();
                let waiting = waiting.filter(|packet| packet.flow == flow).count() as u64;
                self.random.of(&self.costs.take) + waiting * WORK_NS
            }
        }
    }

    fn end(&mut self, now: u64, number: u8, job: Job) {
        match job {
            Job::Packet(packet) => self.finish(now, number, packet),
            Job::Asking(flow, Some(owner)) => {
                let event = Event::Ask { flow, from: number };
                self.send(now, owner, event);
            }
            Job::Asking(_, None) => {}
            Job::Message(Message::Ask { flow, from }) => {
                let (owner, travels) = {
                    let flow = &self.flows[flow as usize];
                    (flow.owner, flow.travels)
                };
                if owner == from && travels {
                    self.send(now, from, Event::Give { flow });
                } else {
                    // It went elsewhere meanwhile: whoever has it now is asked.
                    self.send(now, owner, Event::Ask { flow, from });
                }
            }
            Job::Message(Message::Give { flow }) => {
                self.outcome.fetched += 1;
                self.flows[flow as usize].travels = false;
                let parked = &mut self.servers.0[usize::from(number)].parked;
                let come: Vec<Packet> = parked
                    .extract_if(.., |packet| packet.flow == flow)
                    .collect();
                for packet in come {
                    self.finish(now, number, packet);
                }
            }
        }
    }

    fn finish(&mut self, now: u64, number: u8, packet: Packet) {
        let flow = &mut self.flows[packet.flow as usize];
        self.outcome.reordered += u64::from(packet.number < flow.next);
        flow.next = flow.next.max(packet.number + 1);
        self.outcome.latency.record(now - packet.due);
        let server = &mut self.servers.0[usize::from(number)];
        server.window.finish(packet.place);
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{Modulo, Ours};
    use super::*;

    fn costs() -> Costs {
        Costs {
            hit: vec![100],
            fresh: vec![200],
            ask: vec![60],
            give: vec![80],
            take: vec![150],
            wire: vec![40],
            ..Costs::default()
        }
    }

    const STEERING: Overhead = Overhead {
        first: 7.0,
        later: 5.0,
    };

    #[test]
    fn an_empty_system_takes_what_its_steps_take() {
        let costs = costs();
        let mut run = Run::new(Modulo::new(4), &costs, 1000, STEERING, 1000.0, 1);
        let cold = run.first_packets();
        assert_eq!((cold.packets, cold.lost, cold.fetched), (1000, 0, 0));
        assert_eq!(cold.latency.min(), WORK_NS + 207);
        let warm = run.cycle(&[4], 1000);
        assert_eq!(
            (warm.latency.min(), warm.latency.max()),
            (WORK_NS + 105, WORK_NS + 105)
        );
        let moved = run.cycle(&[5], 1000);
        let fetched = WORK_NS + 5 + 60 + 40 + 80 + 40 + 150;
        assert!(
            moved.fetched > 400 && moved.latency.max() == fetched,
            "{moved:?}"
        );
    }

    /// Under a load where queues are long, modulo reorders when targets change, which shows that the replay can tell; ours
    /// does not.
    #[test]
    fn order_is_told_and_kept() {
        let costs = costs();
        let rate = 0.9 * 4.0 * 1e9 / (WORK_NS + 105) as f64;
        let phases = [4, 5, 8, 5, 4].repeat(20);
        let mut modulo = Run::new(Modulo::new(4), &costs, 50, STEERING, rate, 1);
        assert!(modulo.cycle(&phases, 2000).reordered > 0);
        let mut ours = Run::new(Ours::new(4), &costs, 50, STEERING, rate, 1);
        let outcome = ours.cycle(&phases, 2000);
        assert!(outcome.fetched > 0, "{outcome:?}");
        assert_eq!(outcome.reordered, 0);
        assert_eq!(outcome.latency.count() + outcome.lost, outcome.packets);
    }

    #[test]
    fn what_finds_no_room_is_lost() {
        let costs = costs();
        let mut run = Run::new(Modulo::new(4), &costs, 100, STEERING, 1e9, 1);
        let outcome = run.cycle(&[4], 20_000);
        assert!(outcome.lost > 10_000);
        assert_eq!(outcome.latency.count() + outcome.lost, outcome.packets);
    }
}
