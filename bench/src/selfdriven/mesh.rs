//! Guests that send to each other, driven by one worker or by several at once.
//!
//! A worker is a thread on a CPU of its own. It drives its guests, both sides of them, and forwards what they send: for
//! each turn a burst sent by each of its guests, switched, and what has come for them received. Which guests are whose is
//! all that differs between one worker and two.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use vswitch::forward::share::{Share, Sharing};
use vswitch_simguest::driver::{RxQueue, TxQueue};
use vswitch_simguest::mover::Mover;
use vswitch_simguest::traffic::{Generator, Meter, Pattern, Tally};
use vswitch_vhost::TxRing;

use super::shares::Share as Portion;
use super::{Clock, Fabric, Guest, Shares, Worker};
use crate::contestant::{Near, Rings, Setup, between_guests};
use crate::cpu::{Pinned, Placement};
use crate::generator::lane::{RECEIVE, SEND, checked};
use crate::generator::{Edge, Ends, Timing};
use crate::interference::this_thread;
use crate::{Error, Result};

/// Guests; a multiple of two times the workers there are at most.
const GUESTS: usize = 4;
/// Workers at most.
const WORKERS: usize = 2;
/// Flows that each guest sends.
pub const FLOWS: u32 = 192;
/// Bursts that a guest takes in a turn: more than it is sent on average, or it would never catch up.
const CATCH_UP: u16 = 4;

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Talk {
    /// Guests in pairs, both of a pair with the same worker: workers share the FDB, which they read, and nothing else.
    Disjoint,
    /// Each guest to all others, frame by frame: workers share every receive ring.
    All,
    /// One guest to all others, which send nothing: its queue has one owner.
    Hot,
}

/// How a hot queue is served, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hot {
    /// By its owner alone; a second worker only drives guests.
    Alone,
    /// By both workers.
    Shared,
}

/// What moves the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The switch.
    Switch,
    /// Bare movers, for guests in pairs: what the machine gives when nothing is shared.
    Mover,
}

/// One guest and the way out of it.
struct Node {
    port: usize,
    tx: TxQueue,
    rx: RxQueue,
    out: Out,
    generator: Generator,
    meter: Meter,
}

enum Out {
    Ring(Box<TxRing>),
    Mover(Box<Mover>),
}

/// See the module's page.
pub struct Mesh {
    path: Path,
    talk: Talk,
    nodes: Vec<Node>,
    fabric: Fabric,
    clock: Clock,
    began: Instant,
}

/// How a slice goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The workers run; these are the folders of their threads in `/proc`.
    Started(Vec<PathBuf>),
    /// The window opens, or is over.
    Window(Edge),
}

// What workers are told.
const WARM: u8 = 0;
const COUNT: u8 = 1;
const END: u8 = 2;

impl Mesh {
    /// Guests, and what moves frames between them.
    pub fn new(
        path: Path,
        talk: Talk,
        frame_len: usize,
        placement: Placement,
        clock: &Clock,
    ) -> Result<Self> {
        let rings = Rings::Split;
        let (mut receive, mut ends) = (Vec::new(), Vec::new());
        match path {
            Path::Switch => {
                for _ in 0..GUESTS {
                    let guest = Guest::new(rings)?;
                    receive.push(guest.receive);
                    ends.push((guest.ends, Out::Ring(Box::new(guest.transmit))));
                }
            }
            Path::Mover => {
                let setup = Setup {
                    placement,
                    rings,
                    jumbo: true,
                    near: Near::Guest,
                };
                for _ in 0..GUESTS / 2 {
                    let (wire, [there, back]) = between_guests(setup)?;
                    ends.push((wire.a, Out::Mover(Box::new(there))));
                    ends.push((wire.b, Out::Mover(Box::new(back))));
                }
            }
        }
        let mut fabric = Fabric::new(receive, WORKERS)?;
        let mut nodes = Vec::with_capacity(GUESTS);
        for (port, (Ends { mut tx, rx }, out)) in ends.into_iter().enumerate() {
            let receivers = receivers(talk, port);
            if path == Path::Switch {
                fabric.know(own(port), port);
                for (nth, receiver) in receivers.iter().enumerate() {
                    fabric.know(theirs(port, nth), *receiver);
                }
            }
            let mut pattern = Pattern::new(theirs(port, 0), own(port), frame_len).flows(FLOWS);
            pattern.dsts = receivers.len().max(1) as u32;
            pattern.first_flow = port as u32 * FLOWS;
            // Frames of all flows are good for a meter that cannot be told which of a sender's are for its guest.
            let mut expected = pattern.clone();
            match talk {
                Talk::Disjoint => expected.first_flow = (port ^ 1) as u32 * FLOWS,
                Talk::All | Talk::Hot => {
                    expected.first_flow = 0;
                    expected = expected.flows(GUESTS as u32 * FLOWS);
                }
            }
            nodes.push(Node {
                port,
                generator: Generator::new(pattern, &mut tx)?,
                meter: Meter::new(&expected),
                tx,
                rx,
                out,
            });
        }
        Ok(Self {
            path,
            talk,
            nodes,
            fabric,
            clock: clock.clone(),
            began: Instant::now(),
        })
    }

    /// A slice with a worker on each of these CPUs, a hot queue served like this; `tell` hears how it goes.
    pub fn slice(
        &mut self,
        cpus: &[usize],
        hot: Hot,
        timing: Timing,
        mut tell: impl FnMut(Moment),
    ) -> Result<Shares> {
        let each = GUESTS.div_ceil(cpus.len().clamp(1, WORKERS));
        let told = AtomicU8::new(WARM);
        // A worker shares one ring, and elsewhere it has several.
        let is_shared = self.talk == Talk::Hot && hot == Hot::Shared && cpus.len() > 1;
        let share = is_shared.then(|| Arc::new(Share::new(|| ())));
        let is_drained = AtomicBool::new(share.is_none());
        let (fabric, clock, began) = (&self.fabric, &self.clock, self.began);
        let senders = self.talk.senders();
        let shares = std::thread::scope(|scope| {
            let (says, hears) = channel();
            let parts = self.nodes.chunks_mut(each).zip(cpus).enumerate();
            let threads: Vec<_> = parts
                .map(|(index, (nodes, cpu))| {
                    let (told, says) = (&told, says.clone());
                    let share = share.clone();
                    let is_drained = &is_drained;
                    let run = move || {
                        let role = match share {
                            None => Role::Own,
                            Some(share) if index == 0 => Role::Owner(Sharing::new(share)),
                            Some(share) => Role::Helper(share),
                        };
                        let part = Part {
                            nodes,
                            senders,
                            worker: fabric.worker(index),
                            role,
                            clock,
                            began,
                        };
                        part.run(*cpu, told, is_drained, &says)
                    };
                    scope.spawn(run)
                })
                .collect();
            drop(says);
            // Fewer than threads if one of them cannot begin, which says so itself.
            tell(Moment::Started(hears.iter().take(threads.len()).collect()));
            std::thread::sleep(Duration::from_millis(timing.warm_ms));
            tell(Moment::Window(Edge::Opens));
            told.store(COUNT, Relaxed);
            std::thread::sleep(Duration::from_millis(timing.window_ms));
            told.store(END, Relaxed);
            tell(Moment::Window(Edge::IsOver));
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(Error::Usage(
                        "a worker of the bench's own has failed".into(),
                    ))
                })
            });
            joined.collect::<Result<Vec<_>>>()
        })?;
        self.wind_down()?;
        Ok(Shares(shares))
    }

    /// Lets everything arrive that is on its way, then checks it.
    fn wind_down(&mut self) -> Result<()> {
        let mut part = Part {
            nodes: &mut self.nodes,
            senders: self.talk.senders(),
            role: Role::Own,
            worker: self.fabric.worker(0),
            clock: &self.clock,
            began: self.began,
        };
        let mut still = 0;
        while still < 2 {
            let moved = part.forward() + part.receive()?;
            still = if moved == 0 { still + 1 } else { 0 };
        }
        let mut sent = 0;
        let mut total = Tally::default();
        for node in &self.nodes {
            total.add(node.meter.tally());
            sent += node.generator.sent();
        }
        checked(&total)?;
        // Movers do not count what finds no buffer.
        let counts = self.path == Path::Switch;
        if counts && total.frames + self.fabric.dropped() != sent {
            return Err(Error::Content(total));
        }
        self.fabric.checked()
    }
}

/// What a worker has to do with another's queue.
enum Role {
    /// Each has its own.
    Own,
    /// Another helps with its own.
    Owner(Sharing),
    /// It helps with the other's, and has none.
    Helper(Arc<Share>),
}

/// A worker with its guests.
struct Part<'a> {
    nodes: &'a mut [Node],
    /// Guests at ports below this one send.
    senders: usize,
    worker: Worker<'a>,
    role: Role,
    clock: &'a Clock,
    began: Instant,
}

impl Part<'_> {
    /// The thread's life.
    fn run(
        mut self,
        cpu: usize,
        told: &AtomicU8,
        is_drained: &AtomicBool,
        says: &Sender<PathBuf>,
    ) -> Result<Portion> {
        let _pinned = Pinned::to(cpu)?;
        // Who asks has gone only if everything has failed already.
        let _ = says.send(this_thread());
        while told.load(Relaxed) == WARM {
            self.turn()?;
        }
        let (before, opened) = (self.tally(), Instant::now());
        let wall = self.clock.against_the_wall();
        let mut share = Portion::default();
        while told.load(Relaxed) == COUNT {
            let (taken, cycles) = self.turn()?;
            share.taken += taken as u64;
            share.cycles += cycles;
        }
        share.ghz = wall.ghz();
        share.window_ns = opened.elapsed().as_nanos() as u64;
        let after = self.tally();
        share.arrived = after.frames - before.frames;
        share.lost = after.missing - before.missing;
        self.part_ways(is_drained)?;
        Ok(share)
    }

    /// Helps, or is helped, until nothing is on its way.
    fn part_ways(&mut self, is_drained: &AtomicBool) -> Result<()> {
        match &mut self.role {
            Role::Own => {}
            Role::Owner(sharing) => {
                for node in &mut *self.nodes {
                    if let (true, Out::Ring(ring)) = (node.port < self.senders, &mut node.out) {
                        self.worker.drain(node.port, ring, sharing);
                    }
                }
                is_drained.store(true, Release);
            }
            Role::Helper(_) => {
                while !is_drained.load(Acquire) {
                    self.forward();
                }
            }
        }
        Ok(())
    }

    /// Sends, forwards, receives; returns frames taken, and the cycles of forwarding them.
    #[inline]
    fn turn(&mut self) -> Result<(usize, u64)> {
        let senders = self.nodes.iter_mut().filter(|n| n.port < self.senders);
        for node in senders {
            if node.tx.has_room(SEND)? {
                node.generator.burst(&mut node.tx, SEND)?;
            }
        }
        let before = self.clock.now();
        let taken = self.forward();
        let cycles = self.clock.now().wrapping_sub(before);
        self.receive()?;
        if self.senders < GUESTS && taken == 0 {
            // Waiting for guests, or for the other, costs nothing that a busier queue would not have back.
            return Ok((0, 0));
        }
        let taken = match self.role {
            Role::Helper(_) => 0,
            _ => taken,
        };
        Ok((taken, cycles.saturating_sub(self.clock.cost())))
    }

    /// What its guests have sent.
    #[inline]
    fn forward(&mut self) -> usize {
        let second = self.began.elapsed().as_secs() as u32;
        let mut taken = 0;
        for _ in 0..2 {
            if let Role::Helper(share) = &self.role {
                taken += usize::from(self.worker.help(share));
                continue;
            }
            for node in self.nodes.iter_mut().filter(|n| n.port < self.senders) {
                taken += match (&mut node.out, &mut self.role) {
                    (Out::Ring(ring), Role::Owner(sharing)) => {
                        self.worker.serve_shared(node.port, ring, second, sharing)
                    }
                    (Out::Ring(ring), _) => self.worker.serve(node.port, ring, second, &mut ()),
                    (Out::Mover(mover), _) => usize::from(mover.run(SEND / 2)),
                };
            }
        }
        taken
    }

    /// What has come for its guests.
    #[inline]
    fn receive(&mut self) -> Result<usize> {
        let mut taken = 0;
        for node in &mut *self.nodes {
            for _ in 0..CATCH_UP {
                let some = node.meter.burst(&mut node.rx, RECEIVE)?;
                taken += usize::from(some);
                if some == 0 {
                    break;
                }
            }
        }
        Ok(taken)
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.nodes
            .iter()
            .for_each(|node| tally.add(node.meter.tally()));
        tally
    }
}

impl Talk {
    /// Guests at ports below this one send.
    fn senders(self) -> usize {
        match self {
            Talk::Disjoint | Talk::All => GUESTS,
            Talk::Hot => 1,
        }
    }
}

/// To whom the guest at this port sends.
fn receivers(talk: Talk, port: usize) -> Vec<usize> {
    match talk {
        Talk::Disjoint => vec![port ^ 1],
        Talk::Hot if port != 0 => Vec::new(),
        Talk::All | Talk::Hot => (0..GUESTS).filter(|other| *other != port).collect(),
    }
}

/// The address that a guest sends from.
fn own(port: usize) -> [u8; 6] {
    [2, 0, 0, 1, 0, port as u8]
}

/// The address by which the guest at a port knows the `nth` of those it sends to: flows take addresses by turns that
/// follow one another, and its own must not be among them.
fn theirs(port: usize, nth: usize) -> [u8; 6] {
    [2, 0, 0, 2, port as u8, nth as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        warm_ms: 2,
        window_ms: 100,
    };

    #[test]
    fn one_worker_and_two_move_frames_in_order() {
        let Ok(placement) = Placement::first_two() else {
            // Two workers take two CPUs.
            return;
        };
        let clock = Clock::new().unwrap();
        for (path, talk) in [
            (Path::Switch, Talk::Disjoint),
            (Path::Switch, Talk::All),
            (Path::Switch, Talk::Hot),
            (Path::Mover, Talk::Disjoint),
        ] {
            let mut mesh = Mesh::new(path, talk, 64, placement, &clock).unwrap();
            for cpus in [
                &[placement.worker][..],
                &[placement.worker, placement.generator],
            ] {
                let (mut threads, mut edges) = (0, Vec::new());
                let tell = |moment| match moment {
                    Moment::Started(tasks) => threads = tasks.len(),
                    Moment::Window(edge) => edges.push(edge),
                };
                let shares = mesh.slice(cpus, Hot::Shared, TIMING, tell).unwrap();
                assert_eq!((shares.0.len(), threads), (cpus.len(), cpus.len()));
                assert_eq!(edges, [Edge::Opens, Edge::IsOver]);
                assert!(shares.0.iter().all(|share| share.arrived > 0), "{shares:?}");
                assert!(shares.mpps() > 0.0 && shares.forwarding_mpps() > shares.mpps() / 2.0);
            }
            let arrives = |node: &Node| node.meter.tally().frames > 0;
            let receivers = match talk {
                Talk::Hot => &mesh.nodes[1..],
                _ => &mesh.nodes,
            };
            assert!(receivers.iter().all(arrives));
        }
    }
}
