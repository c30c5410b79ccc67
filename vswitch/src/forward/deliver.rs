//! The burst: decide about each frame, group by output, and have each output written.

use std::sync::Arc;

use vswitch_flowtable::Micros;
use vswitch_packet::{MacAddr, Offload, check_offload};
use vswitch_vhost::TxFrame;

use super::counters::InputDrop;
use super::decide::{Destination, Ethernet, Memo, Route, Verdict, decide};
use super::fdb::CoarseSecond;
use super::group::Groups;
use super::learn::{LearnMailbox, Seen};
use super::output::{Moment, Outgoing};
use super::share::{Handed, Parting};
use super::snapshot::{Bridge, Output, Port, Snapshot};
use super::steer::{self, Views};
use super::ways::{Epoch, HeadKey, Ways};
use super::{BURST, Vid};
use crate::capture::{self, Direction, Taps};

/// A burst of frames from one source. A frame that could not be taken is its drop reason.
#[expect(
    clippy::len_without_is_empty,
    reason = "sources do not show empty bursts"
)]
pub trait Frames {
    /// Frames in the burst, at most [`BURST`].
    fn len(&self) -> usize;
    /// One of them.
    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop>;
    /// True if the source itself has found the frame's transport checksum to be right. What a guest says about its own
    /// frames does not count.
    #[inline]
    fn valid(&self, _i: usize) -> bool {
        false
    }
}

/// What a burst is forwarded against.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The switch as it is now.
    pub snapshot: &'a Snapshot,
    /// Where the burst came from.
    pub ingress: &'a Port,
    /// The coarse clock.
    pub now: CoarseSecond,
    /// A finer one.
    pub micros: Micros,
    /// The finest, which calls go by: nanoseconds.
    pub nanos: u64,
    /// The source had nothing more when the burst was taken.
    pub drained: bool,
    /// The pair that a guest sent the burst on; its flows are learned from it.
    pub pair: Option<u16>,
    /// Set if the source must be emptied but not forwarded.
    pub discard: Option<InputDrop>,
}

impl<'a> Context<'a> {
    /// What delivering it takes.
    #[inline(always)]
    fn moment(&self) -> Moment<'a> {
        Moment {
            snapshot: self.snapshot,
            nanos: self.nanos,
            drained: self.drained,
        }
    }
}

/// One worker's forwarding state. Nothing here grows while it forwards.
pub struct Forwarder {
    worker: usize,
    groups: Groups,
    memo: Memo,
    ways: Ways,
    /// Which ways hold in this burst.
    epoch: Epoch,
    outgoing: Outgoing,
    views: Views,
    learn: Arc<LearnMailbox>,
}

impl Forwarder {
    /// State for the worker with this index.
    pub fn new(worker: usize, learn: Arc<LearnMailbox>) -> Self {
        Forwarder {
            worker,
            groups: Groups::default(),
            memo: Memo::default(),
            ways: Ways::default(),
            epoch: Epoch::NONE,
            outgoing: Outgoing::new(worker),
            views: Views::default(),
            learn,
        }
    }

    /// Which worker's it is.
    #[inline]
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Makes room for a snapshot's outputs; called when a new one is picked up, so that `forward` never allocates.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        self.groups.reserve(snapshot.outputs());
        self.ways.forget();
        self.views.adopt(snapshot);
    }

    /// Deals with calls that were held back until now, which is in nanoseconds.
    #[inline]
    pub fn tend(&mut self, snapshot: &Snapshot, now: u64) {
        self.outgoing.tend(snapshot, now);
    }

    /// Leaves no call held back: before the worker sleeps or ends.
    pub fn flush(&mut self, snapshot: &Snapshot, now: u64) {
        self.outgoing.flush(snapshot, now);
    }

    /// Leaves none held back by the adaptive rule: before the worker sleeps.
    pub fn yield_calls(&mut self, snapshot: &Snapshot, now: u64) {
        self.outgoing.yield_calls(snapshot, now);
    }

    /// Whether calls are held back.
    #[inline]
    pub fn holds(&self) -> bool {
        self.outgoing.holds()
    }

    /// Forwards one burst. When it returns every frame is in the receivers' buffers or counted as dropped.
    #[inline(always)]
    pub fn forward<F: Frames>(&mut self, ctx: Context<'_>, frames: &F) {
        self.forward_in_steps(ctx, frames, || ());
    }

    /// The same, calling `decided` when it is settled where each frame goes, and none has gone. Nothing is left of a
    /// closure that does nothing.
    #[inline]
    pub fn forward_in_steps<F: Frames>(
        &mut self,
        ctx: Context<'_>,
        frames: &F,
        decided: impl FnOnce(),
    ) {
        self.decide_all(ctx, frames);
        decided();
        self.deliver_all(ctx, frames);
    }

    /// Decides about each frame, and files it. One piece of code for bursts that are shared and those that are not.
    #[inline(never)]
    fn decide_all<F: Frames>(&mut self, ctx: Context<'_>, frames: &F) {
        let Some(counters) = ctx.ingress.counters.get(self.worker) else {
            return;
        };
        let (mut bytes, mut switched, mut copies) = (0, 0, 0);
        let len = frames.len().min(BURST);
        let bridge = admitted(ctx);
        if let Ok(bridge) = bridge {
            self.epoch = self.ways.epoch(ctx.ingress.bridge, &bridge.fdb, ctx.now);
        }
        self.outgoing.begin();
        self.views.begin();
        self.memo = Memo::default();
        for i in 0..len {
            match self.take(ctx, bridge, i, frames, &mut bytes) {
                Ok(n) => {
                    switched += 1;
                    copies += n;
                }
                Err(reason) => counters.drop_input(reason),
            }
        }
        if let (Some(pair), Ok(_)) = (ctx.pair, bridge) {
            let head = |i| frames.get(i).ok().map(|f| (f.head, f.len as usize));
            self.views.learn(ctx.ingress, pair, len, head, ctx.micros);
        }
        counters.received.add(len as u64);
        counters.received_bytes.add(bytes);
        counters.switched.add(switched);
        counters.copies.add(copies);
    }

    /// Has everything written that is filed.
    #[inline(never)]
    fn deliver_all<F: Frames>(&mut self, ctx: Context<'_>, frames: &F) {
        let moment = ctx.moment();
        while let Some((output, group)) = self.groups.pop() {
            if let Some((port, queue)) = ctx.snapshot.output(output) {
                let list = self.groups.list(output, group);
                let position = self.outgoing.deliver(moment, port, queue, list, frames);
                self.views.sent(port, list, position, ctx.micros);
            }
        }
    }

    /// The owner's half of a burst that is [shared](super::share): what is not handed over is delivered on return.
    #[inline(never)]
    pub(super) fn forward_share<F: Frames>(
        &mut self,
        ctx: Context<'_>,
        frames: &F,
        parting: &mut Parting,
        handed: &mut Handed,
    ) {
        self.decide_all(ctx, frames);
        parting.note(self.groups.held());
        handed.begin(self.outgoing.offloads(), ctx.drained);
        self.groups
            .take_those(|o| parting.is_helped(o), |o, list| handed.put(o, list));
        self.deliver_all(ctx, frames);
    }

    /// The helper's half.
    #[inline(never)]
    pub(super) fn forward_handed<F: Frames>(
        &mut self,
        moment: Moment<'_>,
        handed: &Handed,
        frames: &F,
    ) {
        self.outgoing.begin();
        for (i, offload) in handed.offloads() {
            self.outgoing.leave(i, offload);
        }
        for (output, list) in handed.iter() {
            if let Some((port, queue)) = moment.snapshot.output(output) {
                self.outgoing.deliver(moment, port, queue, list, frames);
            }
        }
    }

    /// Decides about one frame and files it; returns the number of its copies.
    #[inline(always)]
    fn take<F: Frames>(
        &mut self,
        ctx: Context<'_>,
        bridge: Result<&Bridge, InputDrop>,
        i: usize,
        frames: &F,
        bytes: &mut u64,
    ) -> Result<u64, InputDrop> {
        let frame = frames.get(i)?;
        *bytes += u64::from(frame.len);
        let mut packet_len = frame.len as usize;
        // First of all, so that a capture of a dropped frame does not see the offload of an earlier one.
        let mut asked = Ok(());
        if frame.header.flags | frame.header.gso_type != 0 || frames.valid(i) {
            asked = self.note_offload(i, frames, &mut packet_len);
        }
        let taken = bridge.and_then(|bridge| {
            asked?;
            match self.memo.recall(frame.head) {
                Some((longest, _)) if packet_len > longest as usize => Err(InputDrop::OverMtu),
                Some((_, Route { output, edit })) => {
                    let filed = self.groups.file(output, 1 << i, edit);
                    filed.then_some(1).ok_or(InputDrop::NoOutput)
                }
                None => self.decide(ctx, bridge, i as u8, frame.head, (frame.len, packet_len)),
            }
        });
        if let Some(taps) = &ctx.snapshot.capture {
            self.show_taken(ctx, taps, i, frames, taken.err());
        }
        taken
    }

    /// Keeps what a frame leaves to offloads, and says how long a packet it becomes on the wire.
    #[inline(never)]
    fn note_offload<F: Frames>(
        &mut self,
        i: usize,
        frames: &F,
        packet_len: &mut usize,
    ) -> Result<(), InputDrop> {
        let frame = frames.get(i)?;
        let asked = check_offload(&frame.header, frame.head, frame.len as usize)
            .map_err(|_| InputDrop::BadOffload)?;
        *packet_len = asked.wire_len(frame.len as usize);
        let data_valid = frames.valid(i);
        self.outgoing.leave(
            i,
            Offload {
                data_valid,
                ..asked
            },
        );
        Ok(())
    }

    /// Decides about a frame of `len` bytes that becomes packets of at most `packet_len`, and files it.
    #[inline(never)]
    fn decide(
        &mut self,
        ctx: Context<'_>,
        bridge: &Bridge,
        i: u8,
        head: &[u8],
        (len, packet_len): (u32, usize),
    ) -> Result<u64, InputDrop> {
        // None of a head that is but an Ethernet header: it goes the long way.
        let key = HeadKey::of(head);
        let from = ctx.ingress.at.index;
        if let Some(key) = key
            && let Some(route) = self.ways.find(key, from, self.epoch)
        {
            let longest = key.header_len() as u32 + bridge.mtu;
            if packet_len > longest as usize {
                return Err(InputDrop::OverMtu);
            }
            self.memo.keep(key, longest, route);
            let filed = self.groups.file(route.output, 1 << i, route.edit);
            return filed.then_some(1).ok_or(InputDrop::NoOutput);
        }
        let verdict = decide(ctx.snapshot, bridge, ctx.ingress, head, packet_len, ctx.now)?;
        if verdict.learn {
            self.learn(ctx, verdict.vid, head);
        } else if let (Some(key), Some((route, lasting))) = (key, self.route(ctx, verdict)) {
            self.memo.keep(key, verdict.longest, route);
            if lasting {
                self.ways.keep(key, from, self.epoch, route);
            }
        }
        self.file(ctx, bridge, verdict, i, head, len)
    }

    /// The way of all frames of a verdict, if they have only one, and whether that lasts longer than a burst: a guest takes
    /// queues into use without a new snapshot.
    #[inline]
    fn route(&self, ctx: Context<'_>, verdict: Verdict) -> Option<(Route, bool)> {
        let Destination::Port(index) = verdict.to else {
            return None;
        };
        let port = ctx.snapshot.port(index)?;
        let queue = steer::only(&port.output, self.worker)?;
        let route = Route {
            output: port.output_of(queue)?,
            edit: port.vlan.edit(verdict.vid, verdict.tci),
        };
        let lasting = port.output.guest().is_none_or(|guest| guest.pairs() < 2);
        Some((route, lasting))
    }

    #[cold]
    fn learn(&self, ctx: Context<'_>, vid: Vid, head: &[u8]) {
        let Some(eth) = Ethernet::read(head) else {
            return;
        };
        let seen = Seen {
            bridge: ctx.ingress.bridge,
            vid,
            mac: MacAddr::from_u64(eth.src),
            port: ctx.ingress.at,
        };
        // A full mailbox loses nothing: the address comes again with the next frame.
        let _ = self.learn.put(seen);
    }

    /// Files a decided frame under its outputs.
    #[inline]
    fn file(
        &mut self,
        ctx: Context<'_>,
        bridge: &Bridge,
        verdict: Verdict,
        i: u8,
        head: &[u8],
        len: u32,
    ) -> Result<u64, InputDrop> {
        let mut copies = 0;
        match verdict.to {
            Destination::Reflected => return Err(InputDrop::Reflection),
            Destination::Port(index) => {
                let port = ctx.snapshot.port(index).ok_or(InputDrop::NoOutput)?;
                copies += self.file_one(ctx, port, verdict, i, head, len);
            }
            Destination::Flood => {
                let others = bridge.members.iter().filter(|p| p.at != ctx.ingress.at);
                for port in others.filter(|p| p.carries(verdict.vid)) {
                    copies += self.file_one(ctx, port, verdict, i, head, len);
                }
            }
        }
        if copies == 0 {
            Err(InputDrop::NoOutput)
        } else {
            Ok(copies)
        }
    }

    #[inline]
    fn file_one(
        &mut self,
        ctx: Context<'_>,
        port: &Port,
        verdict: Verdict,
        i: u8,
        head: &[u8],
        len: u32,
    ) -> u64 {
        let edit = port.vlan.edit(verdict.vid, verdict.tci);
        let queue = match (steer::only(&port.output, self.worker), &port.output) {
            (Some(queue), _) => queue,
            (None, Output::Guest(queues)) => {
                let frame = (usize::from(i), verdict.vid, head, len as usize);
                self.views.select(port, queues, frame, ctx.micros)
            }
            #[cfg(feature = "dpdk")]
            (None, Output::Nic(_)) => 0,
        };
        let output = port.output_of(queue);
        u64::from(output.is_some_and(|output| self.groups.file(output, 1 << i, edit)))
    }

    /// Shows those who capture a frame that came in.
    #[cold]
    fn show_taken<F: Frames>(
        &self,
        ctx: Context<'_>,
        taps: &Taps,
        i: usize,
        frames: &F,
        dropped: Option<InputDrop>,
    ) {
        let Ok(frame) = frames.get(i) else { return };
        let (direction, reason) = match dropped {
            None => (Direction::Rx, None),
            Some(reason) => (Direction::Drop, Some(reason.name())),
        };
        let offload = self.outgoing.offload(i);
        let seen = capture::Seen {
            parts: [frame.head, &[], &[]],
            tail: frame.tail,
            offload: Some((&offload, 0)),
        };
        taps.show((ctx.ingress.at, &ctx.ingress.name), direction, reason, seen);
    }
}

/// The bridge that the burst's frames are on, or why none of them is let in.
fn admitted(ctx: Context<'_>) -> Result<&Bridge, InputDrop> {
    if let Some(reason) = ctx.discard {
        return Err(reason);
    }
    if !ctx.ingress.admin_up {
        return Err(InputDrop::PortDown);
    }
    let bridge = ctx.snapshot.bridge(ctx.ingress.bridge);
    bridge.map(|bridge| &**bridge).ok_or(InputDrop::NoOutput)
}
