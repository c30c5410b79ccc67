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
//! **Calls.** Who writes an output calls its guest. What the helper holds back is [remembered](super::pending) by the helper,
//! which looks at it when it is due, as it does with what it forwards itself. The sender is called by the owner.
//!
//! **Sleep.** A helper with nothing to do may sleep: it says so ([`Share::may_sleep`]) and looks once more, and the owner wakes
//! it with the next burst. The owner does not sleep while a burst is out.
//!
//! # Limits
//!
//! Split rings ([`TxRing::lends`]): used entries of a packed ring are its descriptors, and go back in one stroke. Outputs of NICs and of guests with several receive queues stay with the owner: which
//! NIC queue is used, and which queue a flow is pinned to, is the worker's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use parking_lot::Mutex;
use vswitch_packet::Offload;
use vswitch_vhost::{Lent, TxFrame, TxRing, TxScratch};

use super::completion::Sender;
use super::counters::InputDrop;
use super::deliver::{Context, Frames};
use super::group::{Kept, List};
use super::output::Moment;
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
/// Looks at the helper before the owner, which waits for it, lets others run: it may be kept from its core.
const PATIENCE: u32 = 1000;

/// What owner and helper share. Counts run freely.
pub struct Share {
    slots: [Mutex<Slot>; BURSTS],
    /// Bursts given to the helper.
    given: Line<AtomicU32>,
    /// What the helper tells.
    helper: Line<Helper>,
    /// Outputs that the helper has.
    outputs: Line<AtomicU32>,
    /// Wakes the helper.
    wake: Box<dyn Fn() + Send + Sync>,
}

/// What the helper tells, and the owner reads for every burst.
#[derive(Default)]
struct Helper {
    /// Bursts that it has written its part of.
    done: AtomicU32,
    /// It may be asleep.
    asleep: AtomicBool,
    /// Nanoseconds that it took for them.
    ns: AtomicU64,
}

/// Alone in two cache lines, which processors fetch together.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

/// One burst.
struct Slot {
    lent: Lent,
    /// Chains of the burst.
    taken: usize,
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
    /// Which frames leave anything to offloads, a bit each.
    laden: u32,
    /// The sender had nothing more on offer.
    drained: bool,
    offloads: [Offload; BURST],
}

impl Handed {
    fn new() -> Self {
        Handed {
            groups: Vec::new(),
            len: 0,
            laden: 0,
            drained: true,
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
    pub(super) fn begin(&mut self, (laden, offloads): (u32, &[Offload; BURST]), drained: bool) {
        (self.len, self.laden, self.drained) = (0, laden, drained);
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

    /// There are none.
    #[inline]
    fn is_empty(&self) -> bool {
        self.len == 0
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
    /// Nothing is on its way. `wake` is called when the helper may be asleep and has something to do.
    #[must_use]
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        let slot = || Slot {
            lent: Lent::new(),
            taken: 0,
            snapshot: None,
            handed: Handed::new(),
        };
        Share {
            slots: std::array::from_fn(|_| Mutex::new(slot())),
            given: Line::default(),
            helper: Line::default(),
            outputs: Line::default(),
            wake: Box::new(wake),
        }
    }

    /// How many outputs the helper has.
    pub fn outputs(&self) -> u32 {
        self.outputs.0.load(Ordering::Relaxed)
    }

    /// Nanoseconds that the helper took for its parts, as it [says](Self::took).
    pub fn helper_ns(&self) -> u64 {
        self.helper.0.ns.load(Ordering::Relaxed)
    }

    fn slot(&self, burst: u32) -> &Mutex<Slot> {
        &self.slots[burst as usize % BURSTS]
    }

    /// The helper's turn: writes its part of the oldest burst that waits; false if none does. One thread at a time. `nanos`
    /// is the clock of calls.
    #[inline]
    pub fn help(&self, forwarder: &mut Forwarder, nanos: u64) -> bool {
        let done = self.helper.0.done.load(Ordering::Relaxed);
        if self.given.0.load(Ordering::Acquire) == done {
            return false;
        }
        let slot = self.slot(done).lock();
        if let Some(snapshot) = &slot.snapshot {
            let moment = Moment {
                snapshot,
                nanos,
                drained: slot.handed.drained,
            };
            forwarder.forward_handed(moment, &slot.handed, &slot.lent);
        }
        drop(slot);
        let done = done.wrapping_add(1);
        self.helper.0.done.store(done, Ordering::Release);
        true
    }

    /// The helper took so long for what it has just done.
    #[inline]
    pub fn took(&self, ns: u64) {
        let all = &self.helper.0.ns;
        all.store(
            all.load(Ordering::Relaxed).wrapping_add(ns),
            Ordering::Relaxed,
        );
    }

    /// The helper is about to sleep: it will be woken from now on, until it is [awake](Self::awake). False if something
    /// waits for it already.
    pub fn may_sleep(&self) -> bool {
        self.helper.0.asleep.store(true, Ordering::Relaxed);
        // Its word must be out before it looks, as a burst is before the owner looks for that: one of the two sees the other.
        fence(Ordering::SeqCst);
        let waits =
            self.given.0.load(Ordering::Relaxed) != self.helper.0.done.load(Ordering::Relaxed);
        if waits {
            self.awake();
        }
        !waits
    }

    /// The helper looks by itself again.
    pub fn awake(&self) {
        self.helper.0.asleep.store(false, Ordering::Relaxed);
    }

    /// One burst more is given to the helper.
    #[inline]
    fn give(&self, given: u32) {
        self.given.0.store(given, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.helper.0.asleep.load(Ordering::Relaxed) {
            (self.wake)();
        }
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share")
            .field("given", &self.given.0)
            .field("done", &self.helper.0.done)
            .finish_non_exhaustive()
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
    #[inline(never)]
    pub fn serve(
        &mut self,
        ring: &mut TxRing,
        ctx: Context<'_>,
        snapshot: &Arc<Snapshot>,
        forwarder: &mut Forwarder,
        scratch: &mut TxScratch,
    ) -> usize {
        let sender = ctx.sender(forwarder.worker());
        if !self.settle(ring, Some(sender)) {
            sender.waits(ring);
        }
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
        let Slot {
            lent,
            handed,
            taken,
            ..
        } = &mut *slot;
        let mut lending = match ring.lend(scratch, lent, BURST) {
            Ok(lending) if !lending.burst().is_empty() => lending,
            // A ring that contradicts itself has told its session, which will take it away.
            Ok(_) | Err(_) => return 0,
        };
        let (frames, drained) = (lending.burst().len(), lending.burst().drained());
        let ctx = Context { drained, ..ctx };
        forwarder.forward_share(ctx, lending.burst(), &mut self.parting, handed);
        if let Some(queues) = ctx.ingress.output.guest() {
            queues.transmits(drained);
        }
        if handed.is_empty() && out == 0 {
            ring.repay(lent);
            sender.repaid(ring, frames, drained);
            return frames;
        }
        lending.keep(handed.frames());
        *taken = frames;
        drop(slot);
        self.given = self.given.wrapping_add(1);
        self.share.give(self.given);
        frames
    }

    /// Gives the guest back what both are done with, and calls it if that is what its policy says; true if there was
    /// anything.
    #[inline]
    fn settle(&mut self, ring: &mut TxRing, sender: Option<Sender<'_>>) -> bool {
        let done = self.share.helper.0.done.load(Ordering::Acquire);
        if self.settled == done {
            return false;
        }
        let (mut frames, mut drained) = (0, false);
        while self.settled != done {
            let mut slot = self.share.slot(self.settled).lock();
            ring.repay(&mut slot.lent);
            frames += slot.taken;
            drained = slot.handed.drained;
            self.settled = self.settled.wrapping_add(1);
        }
        match sender {
            Some(sender) => sender.repaid(ring, frames, drained),
            // Its port is gone, and its counters with it.
            None => drop(ring.signal()),
        }
        true
    }

    /// Whether the helper has something of it.
    #[inline]
    pub fn is_out(&self) -> bool {
        self.settled != self.given
    }

    /// Waits for the helper, and gives everything back: the ring is as if nothing had been lent. The helper must be running,
    /// and not be waiting for this worker. There is no sender if its port has gone.
    pub fn drain(&mut self, ring: &mut TxRing, sender: Option<Sender<'_>>) {
        let mut looks = 0u32;
        while self.is_out() {
            if !self.settle(ring, sender) {
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(PATIENCE) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
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
        self.share.outputs.0.store(helped, Ordering::Relaxed);
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
