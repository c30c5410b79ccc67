//! One guest's queue served by two workers: what is hotter than its owner's core.
//!
//! # Theory of operation
//!
//! Most of a large frame's cost is its copy. So what is split is deliveries, by output: the owner takes a burst, decides
//! and groups as always, writes some outputs' groups itself, and gives the burst with the others to a helper. While that
//! writes them the owner takes the next burst. Up to [`BURSTS`] are on their way at once, each in a slot of its own
//! ([`Share`]), which is in one hand at a time: the lock on it is there for the compiler and never waited for. Senders get
//! their buffers back in order, when the helper is done.
//!
//! **Order.** Whose an output is ([`Parting`]) changes only while no burst is out, and a flow has one output. So a flow's
//! frames are all written by one of the two, in the order of bursts. What the owner has not seen yet is its own.
//!
//! **Balance.** The owner's part of taking and deciding is [`OWNERS_OWN`] of a delivery; outputs go to whichever of the two
//! has less, the busiest first, by frames of the last [`WINDOW`] bursts.
//!
//! # Limits
//!
//! Split rings ([`TxRing::lends`]). Outputs of NICs and of guests with several receive queues stay with the owner: which
//! NIC queue is used, and which queue a flow is pinned to, is the worker's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use vswitch_packet::Offload;
use vswitch_vhost::{Lent, TxFrame, TxRing, TxScratch};

use super::counters::{InputDrop, PortCounters};
use super::deliver::{Context, Frames};
use super::group::{Kept, List};
use super::snapshot::{Output, OutputIndex, Snapshot};
use super::{BURST, Forwarder};

/// Bursts on their way at most. Half of the smallest common ring, so that the guest has something to send meanwhile.
pub const BURSTS: usize = 4;
/// What taking and deciding cost, in thirds of a delivery.
const OWNERS_OWN: u64 = 1;
/// Bursts between looks at the balance.
const WINDOW: u32 = 4096;
/// Bursts before the first.
const FIRST_WINDOW: u32 = 64;
/// A split is changed if the new one's busier side has less than so many percent of the old one's.
const WORTH_IT: u64 = 85;

/// What owner and helper share. Counts run freely.
pub struct Share {
    slots: [Mutex<Slot>; BURSTS],
    /// Bursts given to the helper.
    given: Line<AtomicU32>,
    /// Bursts that the helper has written its part of.
    done: Line<AtomicU32>,
    /// Outputs that the helper has.
    helped: Line<AtomicU32>,
}

/// Alone in two cache lines, which processors fetch together.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

/// One burst.
struct Slot {
    lent: Lent,
    snapshot: Option<Arc<Snapshot>>,
    handed: Handed,
}

impl Frames for Lent {
    fn len(&self) -> usize {
        Lent::len(self)
    }
    #[inline(always)]
    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop> {
        Ok(self.frame(i)?)
    }
}

/// The helper's part of a burst.
pub struct Handed {
    groups: Vec<(OutputIndex, Kept)>,
    len: usize,
    laden: u32,
    offloads: [Offload; BURST],
}

impl Handed {
    fn new() -> Self {
        Handed {
            groups: Vec::new(),
            len: 0,
            laden: 0,
            offloads: std::array::from_fn(|_| Offload::default()),
        }
    }

    /// Room for groups of so many outputs.
    fn reserve(&mut self, outputs: usize) {
        if self.groups.len() < outputs {
            self.groups.resize(outputs, (OutputIndex(0), Kept::NONE));
        }
    }

    /// Another burst, and what its frames leave to offloads.
    #[inline]
    pub(super) fn begin(&mut self, (laden, offloads): (u32, &[Offload; BURST])) {
        (self.len, self.laden) = (0, laden);
        if laden != 0 {
            self.offloads = *offloads;
        }
    }

    /// Another group.
    #[inline]
    pub(super) fn put(&mut self, output: OutputIndex, list: List<'_>) {
        if let Some((at, kept)) = self.groups.get_mut(self.len) {
            *at = output;
            kept.set(list);
            self.len += 1;
        }
    }

    /// The groups.
    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = (OutputIndex, List<'_>)> {
        let groups = self.groups.iter().take(self.len);
        groups.map(|(output, kept)| (*output, kept.list()))
    }

    /// The frames of all groups, a bit each.
    #[inline]
    fn frames(&self) -> u32 {
        let groups = self.groups.iter().take(self.len);
        groups.fold(0, |all, (_, kept)| all | kept.frames())
    }

    /// What frames leave to offloads, of those that leave anything.
    #[inline]
    pub(super) fn offloads(&self) -> impl Iterator<Item = (usize, Offload)> {
        let laden = self.laden;
        let all = self.offloads.iter().enumerate();
        all.take(if laden == 0 { 0 } else { BURST })
            .filter(move |(i, _)| laden >> i & 1 != 0)
            .map(|(i, offload)| (i, *offload))
    }
}

impl Share {
    /// Nothing is on its way.
    #[must_use]
    pub fn new() -> Self {
        let slot = || Slot {
            lent: Lent::new(),
            snapshot: None,
            handed: Handed::new(),
        };
        Share {
            slots: std::array::from_fn(|_| Mutex::new(slot())),
            given: Line::default(),
            done: Line::default(),
            helped: Line::default(),
        }
    }

    /// How many outputs the helper has.
    pub fn helped(&self) -> u32 {
        self.helped.0.load(Ordering::Relaxed)
    }

    fn slot(&self, burst: u32) -> &Mutex<Slot> {
        &self.slots[burst as usize % BURSTS]
    }

    /// The helper's turn: writes its part of the oldest burst that waits; false if none does. One thread at a time.
    #[inline]
    pub fn help(&self, forwarder: &mut Forwarder) -> bool {
        let done = self.done.0.load(Ordering::Relaxed);
        if self.given.0.load(Ordering::Acquire) == done {
            return false;
        }
        let slot = self.slot(done).lock();
        if let Some(snapshot) = &slot.snapshot {
            forwarder.forward_handed(snapshot, &slot.handed, &slot.lent);
        }
        drop(slot);
        self.done.0.store(done.wrapping_add(1), Ordering::Release);
        true
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new()
    }
}

/// The owner's side of a [`Share`].
pub struct Sharing {
    share: Arc<Share>,
    /// Bursts given to the helper, and those that the guest has back.
    given: u32,
    settled: u32,
    /// The one that outputs are numbered in.
    snapshot: Option<Arc<Snapshot>>,
    parting: Parting,
}

impl Sharing {
    /// Of one ring, which [lends](TxRing::lends), from now until it is [drained](Self::drain).
    #[must_use]
    pub fn new(share: Arc<Share>) -> Self {
        let given = share.given.0.load(Ordering::Relaxed);
        Sharing {
            share,
            given,
            settled: given,
            snapshot: None,
            parting: Parting::default(),
        }
    }

    /// One burst of the queue, of which the helper gets its part; says how many chains that were. None are taken while too
    /// many bursts are out.
    #[inline]
    pub fn serve(
        &mut self,
        ring: &mut TxRing,
        ctx: Context<'_>,
        snapshot: &Arc<Snapshot>,
        forwarder: &mut Forwarder,
        scratch: &mut TxScratch,
    ) -> usize {
        let counters = ctx.ingress.counters.get(forwarder.worker());
        self.settle(ring, counters.map(|c| &**c));
        let out = self.given.wrapping_sub(self.settled);
        let same = self
            .snapshot
            .as_ref()
            .is_some_and(|s| Arc::ptr_eq(s, snapshot));
        if !same || self.parting.is_due() {
            if out > 0 {
                return 0;
            }
            self.part_anew(snapshot, same);
        }
        if out as usize >= BURSTS {
            return 0;
        }
        let mut slot = self.share.slot(self.given).lock();
        let Slot { lent, handed, .. } = &mut *slot;
        let mut lending = match ring.lend(scratch, lent, BURST) {
            Ok(lending) if !lending.burst().is_empty() => lending,
            // A ring that contradicts itself has told its session, which will take it away.
            Ok(_) | Err(_) => return 0,
        };
        let taken = lending.burst().len();
        forwarder.forward_share(ctx, lending.burst(), &mut self.parting, handed);
        lending.keep(handed.frames());
        drop(slot);
        self.given = self.given.wrapping_add(1);
        self.share.given.0.store(self.given, Ordering::Release);
        taken
    }

    /// Gives the guest back what both are done with; calls it if it wants that, and counts the call.
    #[inline]
    fn settle(&mut self, ring: &mut TxRing, counters: Option<&PortCounters>) {
        let done = self.share.done.0.load(Ordering::Acquire);
        if self.settled == done {
            return;
        }
        while self.settled != done {
            ring.repay(&mut self.share.slot(self.settled).lock().lent);
            self.settled = self.settled.wrapping_add(1);
        }
        if ring.signal().unwrap_or(false)
            && let Some(counters) = counters
        {
            counters.tx_calls.add(1);
        }
    }

    /// Whether the helper has something of it.
    #[inline]
    pub fn is_out(&self) -> bool {
        self.settled != self.given
    }

    /// Waits for the helper, and gives everything back: the ring is as if nothing had been lent. The helper must be running,
    /// and not be waiting for this worker.
    pub fn drain(&mut self, ring: &mut TxRing, counters: Option<&PortCounters>) {
        while self.is_out() {
            std::hint::spin_loop();
            self.settle(ring, counters);
        }
        // What it was numbered in may go.
        for slot in &self.share.slots {
            slot.lock().snapshot = None;
        }
    }

    /// Parts the outputs by what came for each; those of another snapshot are the owner's at first.
    #[cold]
    fn part_anew(&mut self, snapshot: &Arc<Snapshot>, same: bool) {
        if !same {
            self.parting.forget(snapshot);
            for slot in &self.share.slots {
                let mut slot = slot.lock();
                slot.handed.reserve(snapshot.outputs());
                slot.snapshot = Some(Arc::clone(snapshot));
            }
            self.snapshot = Some(Arc::clone(snapshot));
        } else {
            self.parting.balance();
        }
        let helped = self.parting.outputs.iter().filter(|part| part.helped);
        let helped = helped.count() as u32;
        self.share.helped.0.store(helped, Ordering::Relaxed);
    }
}

/// Whose each output is.
#[derive(Default)]
pub struct Parting {
    outputs: Vec<Part>,
    order: Vec<u32>,
    /// Bursts until the next look.
    left: u32,
}

#[derive(Clone, Copy, Default)]
struct Part {
    /// Frames since the last look.
    frames: u64,
    /// It can be the helper's.
    may: bool,
    helped: bool,
    /// It will be.
    wanted: bool,
}

impl Parting {
    /// Another burst, which holds so many frames for these outputs.
    #[inline]
    pub(super) fn note(&mut self, held: impl Iterator<Item = (OutputIndex, usize)>) {
        for (output, frames) in held {
            if let Some(part) = self.outputs.get_mut(output.0 as usize) {
                part.frames += frames as u64;
            }
        }
        self.left = self.left.saturating_sub(1);
    }

    #[inline]
    pub(super) fn is_helped(&self, output: OutputIndex) -> bool {
        let part = self.outputs.get(output.0 as usize);
        part.is_some_and(|part| part.helped)
    }

    #[inline]
    fn is_due(&self) -> bool {
        self.left == 0
    }

    fn forget(&mut self, snapshot: &Snapshot) {
        let may = |index: usize| {
            let output = snapshot.output(OutputIndex(index as u32));
            output.is_some_and(|(port, _)| match &port.output {
                Output::Guest(queues) => queues.pairs() == 1,
                #[cfg(feature = "dpdk")]
                Output::Nic(_) => false,
            })
        };
        self.outputs.clear();
        self.outputs
            .extend((0..snapshot.outputs()).map(|index| Part {
                may: may(index),
                ..Part::default()
            }));
        self.order.clear();
        self.order.reserve(self.outputs.len());
        self.left = FIRST_WINDOW;
    }

    /// Parts anew, if it is worth it.
    fn balance(&mut self) {
        let all: u64 = self.outputs.iter().map(|part| part.frames).sum();
        let own = all * OWNERS_OWN;
        let sides = |outputs: &[Part], helped: fn(&Part) -> bool| {
            let theirs = outputs.iter().filter(|part| helped(part));
            let helpers: u64 = 3 * theirs.map(|part| part.frames).sum::<u64>();
            helpers.max(own + 3 * all - helpers)
        };
        self.order.clear();
        let used = self
            .outputs
            .iter()
            .enumerate()
            .filter(|(_, p)| p.frames > 0);
        self.order.extend(used.map(|(at, _)| at as u32));
        let outputs = &mut self.outputs;
        self.order.sort_unstable_by_key(|at| {
            std::cmp::Reverse(outputs.get(*at as usize).map_or(0, |part| part.frames))
        });
        let (mut owners, mut helpers) = (own, 0);
        for at in &self.order {
            if let Some(part) = outputs.get_mut(*at as usize) {
                part.wanted = part.may && helpers <= owners;
                *(if part.wanted {
                    &mut helpers
                } else {
                    &mut owners
                }) += 3 * part.frames;
            }
        }
        let (before, after) = (sides(outputs, |p| p.helped), sides(outputs, |p| p.wanted));
        let take = after * 100 < before * WORTH_IT;
        for part in outputs.iter_mut() {
            if take && part.frames > 0 {
                part.helped = part.wanted;
            }
            part.frames = 0;
        }
        self.left = WINDOW;
    }
}
