//! Virtual RSS: which of a guest's queues a frame goes to.
//!
//! A guest with several queue pairs spreads its own work by flow, and virtio asks that packets of a flow which it sends on
//! one pair arrive on the same (1.2, section 5.1.6.5.6). So the switch learns: of what the guest sends, it notes on which
//! pair ([`Views::learn`]), and pins flows that its table would steer elsewhere. A flow that the guest has not sent anything
//! of goes where a keyed hash says, the same in both directions. Both, [`Steering`], is the port's and shared by workers;
//! where a flow's frames go at the moment is each worker's own [`View`], which follows the table and the pins only when the
//! guest has dealt with what the flow was given before.
//!
//! All frames of a burst are selected for before the first is in a ring; until then its flow does not move. While a guest
//! uses one pair its frames are not looked at, as those of a guest that has but one; when it takes more into use, all flows
//! are held to be on that one.
//!
//! A guest that polls may not say how far it is; then a flow moves when it has had no frame for 10 ms. Pairs that the guest
//! takes out of use are left at once.
//!
//! # Limits
//!
//! 4,096 pins for each guest. A port costs 68 KiB for them, and 36 KiB in each worker, if it has more than one pair; nothing
//! otherwise. In a full burst two frames are looked at, to learn from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use vswitch_flowtable::{
    Addresses, FlowHash, FlowHasher, FlowKey, Indirection, Micros, Moves, Pins, Position,
    Selection, Target, View, pins,
};
use vswitch_packet::{L3, parse};
use vswitch_vhost::PLAIN_HEAD_LEN;

use super::decide::Ethernet;
use super::group::List;
use super::patience::Patience;
use super::snapshot::{GuestQueues, Output, Port, Snapshot};
use super::{BURST, PortRef, Vid};

/// Frames of a burst that are all looked at, to learn from; of a longer one two are.
const FEW: usize = 4;

/// How the flows of one guest are steered: what its workers share.
pub struct Steering {
    hasher: FlowHasher,
    table: ArcSwap<Indirection>,
    /// Counts the tables there have been.
    version: AtomicU32,
    /// The last of them that had no more than one pair: then frames took that without being steered.
    alone: AtomicU32,
    /// None if there is but one pair.
    pins: Option<Pins>,
    pairs: u16,
    /// Flows are pinned to the pairs that the guest sends them on.
    learning: AtomicBool,
    moved: MoveCounters,
    patience: Patience,
}

/// [`Moves`] of all workers together.
#[derive(Default)]
struct MoveCounters {
    completed: AtomicU64,
    idle: AtomicU64,
    forced: AtomicU64,
    waited: AtomicU64,
}

/// What is to be told about how a guest's flows are steered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steered {
    /// Buckets of the table by queue pair.
    pub buckets: Vec<usize>,
    /// Flows pinned to the pair that the guest sends them on.
    pub pins: usize,
    /// Flows that could not be pinned: the table of pins was full where they belong.
    pub refused: u64,
    /// How flows moved from pair to pair.
    pub moves: Moves,
    /// Times that a sender's queue went to another worker before the guest had dealt with what that had sent.
    pub unsettled: u64,
}

impl Steering {
    pub(super) fn new(pairs: u16, key: [u8; 16]) -> Self {
        Steering {
            hasher: FlowHasher::new(key),
            table: ArcSwap::from_pointee(Indirection::new(pairs)),
            version: AtomicU32::new(0),
            alone: AtomicU32::new(0),
            pins: (pairs > 1).then(Pins::new),
            pairs,
            learning: AtomicBool::new(true),
            moved: MoveCounters::default(),
            patience: Patience::default(),
        }
    }

    /// How long others wait for this guest.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Pairs `0..active` are in use from now on. Called by one thread at a time.
    pub(super) fn set_targets(&self, active: u16) {
        let before = self.table.load().shares().len() as u16;
        if active == 0 || active == before {
            return;
        }
        // Pair after pair, so that the table for n + 1 differs from that for n in the new pair's share alone.
        let mut table = Indirection::new(self.pairs);
        for target in 0..active {
            table.add(Target(target));
        }
        self.table.store(Arc::new(table));
        let version = self.version.load(Ordering::Relaxed).wrapping_add(1);
        if active < 2 {
            self.alone.store(version, Ordering::Relaxed);
        }
        self.version.store(version, Ordering::Release);
        if let Some(pins) = &self.pins {
            for target in active..before {
                pins.forget(Target(target));
            }
        }
    }

    /// Says whether flows are to go to the pair that the guest sends them on. If not, those that do go where their hash
    /// says, in order.
    pub fn set_learning(&self, learning: bool) {
        self.learning.store(learning, Ordering::Relaxed);
        if let Some(pins) = self.pins.as_ref().filter(|_| !learning) {
            let table = self.table.load();
            pins.release(|hash| table.select(hash.low()));
        }
    }

    /// Lets go of pins that nobody has used for seconds.
    pub fn sweep(&self, now: Micros) {
        if let Some(pins) = self.pins.as_ref().filter(|pins| !pins.is_empty()) {
            if !self.learning.load(Ordering::Relaxed) {
                // What a worker was just learning, or the table has changed for.
                self.set_learning(false);
            }
            pins.sweep(0..pins::SETS, now);
        }
    }

    /// How things stand.
    pub fn steered(&self) -> Steered {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        let shares = self.table.load();
        Steered {
            buckets: shares.shares().map(|(_, buckets)| buckets).collect(),
            pins: self.pins.as_ref().map_or(0, Pins::len),
            refused: self.pins.as_ref().map_or(0, Pins::refused),
            moves: Moves {
                completed: get(&self.moved.completed),
                idle: get(&self.moved.idle),
                forced: get(&self.moved.forced),
                waited: get(&self.moved.waited),
            },
            unsettled: self.patience.unsettled(),
        }
    }
}

impl MoveCounters {
    #[cold]
    fn add(&self, before: Moves, now: Moves) {
        let add = |to: &AtomicU64, n: u64| to.fetch_add(n, Ordering::Relaxed);
        add(&self.completed, now.completed - before.completed);
        add(&self.idle, now.idle - before.idle);
        add(&self.forced, now.forced - before.forced);
        add(&self.waited, now.waited - before.waited);
    }
}

/// The queue that every frame from this worker takes, if there is but one.
#[cfg_attr(
    not(feature = "dpdk"),
    expect(unused_variables, reason = "only a NIC's queue depends on the worker")
)]
#[inline]
pub fn only(output: &Output, worker: usize) -> Option<u16> {
    match output {
        Output::Guest(queues) => (queues.active() < 2).then_some(0),
        // A NIC's queues are for its senders, the workers: a flow stays on one while its worker does.
        #[cfg(feature = "dpdk")]
        Output::Nic(nic) => Some((worker % usize::from(nic.queues().max(1))) as u16),
    }
}

/// What one worker knows of the steering of all ports.
#[derive(Default)]
pub struct Views {
    /// By place. None where there is nothing to steer.
    ports: Vec<Option<Box<PortView>>>,
    /// Counts bursts.
    burst: u32,
}

/// What one worker knows of one port.
struct PortView {
    at: PortRef,
    /// Of the table it follows.
    version: u32,
    targets: u16,
    /// The burst in which frames were found to have gone to the first pair alone, unsteered.
    gathering: Option<u32>,
    view: View,
    /// The frames of the burst, until they are with the guest or dropped.
    selected: [Option<Filed>; BURST],
    /// As they were counted last.
    moves: Moves,
}

/// Where a frame of the burst goes.
#[derive(Clone, Copy)]
struct Filed {
    selection: Selection,
    hash: FlowHash,
    /// By its bucket, not by a pin.
    bare: bool,
}

impl Views {
    /// Makes room for the ports of a snapshot; steering does not allocate then.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        self.ports.resize_with(snapshot.places(), || None);
        for (place, view) in self.ports.iter_mut().enumerate() {
            let port = snapshot.port(super::PortIndex(place as u16));
            let steered = port.and_then(|port| match &port.output {
                Output::Guest(queues) if queues.pairs() > 1 => Some((port.at, queues)),
                _ => None,
            });
            match steered {
                None => *view = None,
                Some((at, _)) if view.as_ref().is_some_and(|view| view.at == at) => {}
                Some((at, queues)) => *view = Some(Box::new(PortView::new(at, queues))),
            }
        }
    }

    #[inline]
    fn of(&mut self, port: &Port) -> Option<&mut PortView> {
        let view = self.ports.get_mut(usize::from(port.at.index.0))?;
        view.as_deref_mut().filter(|view| view.at == port.at)
    }

    /// The pair for frame `i` of the burst, with this head.
    #[inline(never)]
    pub fn select(
        &mut self,
        port: &Port,
        queues: &GuestQueues,
        frame: (usize, Vid, &[u8], usize),
        now: Micros,
    ) -> u16 {
        let (i, vid, head, len) = frame;
        let steering = queues.steering();
        let Some(key) = flow_key(vid, head, len) else {
            return 0;
        };
        let hash = steering.hasher.flow(&key);
        let burst = self.burst;
        let (Some(view), Some(pins)) = (self.of(port), &steering.pins) else {
            let target = steering.table.load().select(hash.low());
            return target.map_or(0, |target| target.0);
        };
        if !view.follow(queues, burst, now) {
            return 0;
        }
        let pin = pins.lookup(hash, now);
        let bare = pin.is_none();
        let buckets = view.view.buckets();
        let PortView { view, selected, .. } = view;
        let earlier = selected.iter().take(i).flatten();
        let done = |target: Target, position: Position| {
            // Frames of this burst are not with the guest before all have been selected for.
            let unsent = |filed: &Filed| {
                let bits = filed.hash.low() ^ hash.low();
                filed.hash == hash || bare && filed.bare && bits as usize & (buckets - 1) == 0
            };
            !earlier.into_iter().any(unsent) && queues.consumed(target.0, position.0)
        };
        let selection = view.select_by(hash, pin, pins, now, done);
        if let Some(slot) = selected.get_mut(i) {
            *slot = selection.map(|selection| Filed {
                selection,
                hash,
                bare,
            });
        }
        selection.map_or(0, |selection| selection.target.0)
    }

    /// What was in a list is with the guest, and the position behind it in the ring; or all was dropped, and there is none.
    #[inline]
    pub fn sent(&mut self, port: &Port, list: List<'_>, position: Option<u16>, now: Micros) {
        let Some(queues) = port.output.guest() else {
            return;
        };
        if queues.pairs() < 2 {
            return;
        }
        let Some(view) = self.of(port) else { return };
        for filed in list.iter() {
            let selected = view.selected.get_mut(usize::from(filed.frame));
            if let (Some(filed), Some(position)) = (selected.and_then(Option::take), position) {
                view.view.sent(filed.selection, Position(position), now);
            }
        }
        let moves = view.view.moves();
        if moves != view.moves {
            queues.steering().moved.add(view.moves, moves);
            view.moves = moves;
        }
    }

    /// A burst begins.
    #[inline]
    pub fn begin(&mut self) {
        self.burst = self.burst.wrapping_add(1);
    }

    /// A guest sent a burst of `count` frames on this pair: what it tells about its flows.
    #[inline]
    pub fn learn<'f>(
        &mut self,
        port: &Port,
        pair: u16,
        count: usize,
        head: impl Fn(usize) -> Option<(&'f [u8], usize)>,
        now: Micros,
    ) {
        let Some(queues) = port.output.guest() else {
            return;
        };
        // A pair that gets nothing is none to steer to.
        let steering = queues.steering();
        if queues.active() < 2 || pair >= queues.active() || count == 0 {
            return;
        }
        if !steering.learning.load(Ordering::Relaxed) {
            return;
        }
        // Not always the same.
        let one = self.burst as usize % count;
        for i in (0..count).filter(|i| count <= FEW || *i == 0 || *i == one) {
            if let Some((head, len)) = head(i) {
                learn_one(port, steering, pair, head, len, now);
            }
        }
    }
}

impl PortView {
    fn new(at: PortRef, queues: &GuestQueues) -> Self {
        let steering = queues.steering();
        let version = steering.version.load(Ordering::Acquire);
        let table = steering.table.load();
        PortView {
            at,
            version,
            targets: table.shares().len() as u16,
            gathering: None,
            view: View::with_pins(&table),
            selected: [None; BURST],
            moves: Moves::default(),
        }
    }

    /// Follows the newest table; false if the frame is to go to the first pair without more ado.
    #[inline]
    fn follow(&mut self, queues: &GuestQueues, burst: u32, now: Micros) -> bool {
        let version = queues.steering().version.load(Ordering::Acquire);
        version == self.version || self.follow_new(version, queues, burst, now)
    }

    #[cold]
    fn follow_new(&mut self, version: u32, queues: &GuestQueues, burst: u32, now: Micros) -> bool {
        let steering = queues.steering();
        // No newer table has been followed than one since which there was a time with one pair.
        let alone = steering.alone.load(Ordering::Relaxed);
        let unsteered = alone.wrapping_sub(self.version) as i32 >= 0;
        if unsteered && self.gathering.is_none_or(|since| since == burst) {
            // Of this burst, too, frames may have been filed for that pair; where they lie is known after the burst.
            self.gathering = Some(burst);
            return false;
        }
        self.gathering = None;
        self.version = version;
        let table = steering.table.load();
        let targets = table.shares().len() as u16;
        // All tables of a port have the same number of buckets.
        let _ = self.view.adopt(&table);
        if unsteered {
            let under_way = queues.under_way(0);
            self.view
                .gather(under_way.map(|at| (Target(0), Position(at))), now);
        }
        for gone in targets..self.targets {
            self.view.lost(Target(gone));
        }
        self.targets = targets;
        true
    }
}

#[inline(never)]
fn learn_one(port: &Port, steering: &Steering, pair: u16, head: &[u8], len: usize, now: Micros) {
    let vid = Ethernet::read(head).and_then(|eth| port.vlan.classify(eth.tci));
    let (Some(vid), Some(pins)) = (vid, &steering.pins) else {
        return;
    };
    let Some(key) = flow_key(vid, head, len) else {
        return;
    };
    let hash: FlowHash = steering.hasher.flow(&key);
    let says = steering.table.load().select(hash.low());
    if let Some(says) = says {
        pins.learn(hash, Target(pair), says, now);
    }
}

/// What identifies the flow of a frame: addresses, and ports where every frame of the flow has them.
pub fn flow_key(vid: Vid, head: &[u8], len: usize) -> Option<FlowKey> {
    // So much there is of every frame, with offloads and without: more of some would tear their flows apart.
    let head = head.get(..PLAIN_HEAD_LEN).unwrap_or(head);
    let parsed = parse(head, len).ok()?;
    let addresses = match &parsed.l3 {
        L3::Ipv4(ip) => Addresses::V4 {
            src: ip.src.octets(),
            dst: ip.dst.octets(),
        },
        L3::Ipv6(ip) => Addresses::V6 {
            src: ip.src.octets(),
            dst: ip.dst.octets(),
        },
        _ => Addresses::Mac {
            src: parsed.src.0,
            dst: parsed.dst.0,
            ethertype: parsed.ethertype,
        },
    };
    Some(FlowKey {
        vlan: vid.0,
        addresses,
        protocol: parsed.protocol().unwrap_or(0),
        ports: parsed.steering_ports().map(|p| (p.src, p.dst)),
    })
}
