//! The burst: decide about each frame, group by output, write into the outputs.

use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_packet::{Accepts, HeadEdit, MacAddr, Offload, VirtioNetHdr, check_offload};
use vswitch_vhost::{Delivery, RxError, RxFeatures, RxRing, Sink, TxFrame};

use super::counters::{InputDrop, OutputDrop, PortCounters};
use super::decide::{Destination, Ethernet, Memo, Route, Verdict, decide};
use super::fdb::CoarseSecond;
use super::group::{Filed, Groups, List};
use super::learn::{LearnMailbox, Seen};
use super::snapshot::{Bridge, Output, Port, Snapshot};
use super::software::{Finisher, ToGuest};
use super::steer;
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
    /// Set if the source must be emptied but not forwarded.
    pub discard: Option<InputDrop>,
}

/// One worker's forwarding state. Nothing here grows while it forwards.
pub struct Forwarder {
    worker: usize,
    groups: Groups,
    /// What frames leave to offloads: of those that leave anything, and never anything else.
    offloads: [Offload; BURST],
    /// Which of the burst's frames leave anything, a bit each.
    laden: u32,
    memo: Memo,
    finisher: Finisher,
    learn: Arc<LearnMailbox>,
}

impl Forwarder {
    /// State for the worker with this index.
    pub fn new(worker: usize, learn: Arc<LearnMailbox>) -> Self {
        Forwarder {
            worker,
            groups: Groups::default(),
            offloads: std::array::from_fn(|_| Offload::default()),
            laden: 0,
            memo: Memo::default(),
            finisher: Finisher::default(),
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
    }

    /// Forwards one burst. When it returns every frame is in the receivers' buffers or counted as dropped.
    #[inline(always)]
    pub fn forward<F: Frames>(&mut self, ctx: Context<'_>, frames: &F) {
        self.forward_in_steps(ctx, frames, || ());
    }

    /// The same, calling `decided` when it is settled where each frame goes, and none has gone. Nothing is left of a
    /// closure that does nothing.
    #[inline(never)]
    pub fn forward_in_steps<F: Frames>(
        &mut self,
        ctx: Context<'_>,
        frames: &F,
        decided: impl FnOnce(),
    ) {
        let Some(counters) = ctx.ingress.counters.get(self.worker) else {
            return;
        };
        let (mut bytes, mut switched, mut copies) = (0, 0, 0);
        let len = frames.len().min(BURST);
        let bridge = admitted(ctx);
        self.laden = 0;
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
        counters.received.add(len as u64);
        counters.received_bytes.add(bytes);
        counters.switched.add(switched);
        counters.copies.add(copies);
        decided();
        while let Some(output) = self.groups.pop() {
            if let Some((port, queue)) = ctx.snapshot.output(output) {
                let list = self.groups.take(output);
                self.deliver(ctx, port, queue, &list, frames);
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
                    let filed = Filed {
                        frame: i as u8,
                        edit,
                    };
                    self.groups
                        .file(output, filed)
                        .then_some(1)
                        .ok_or(InputDrop::NoOutput)
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
        if let Some(slot) = self.offloads.get_mut(i) {
            *slot = Offload {
                data_valid: frames.valid(i),
                ..asked
            };
            self.laden |= 1 << i;
        }
        Ok(())
    }

    /// What frame `i` leaves to offloads.
    #[inline]
    fn offload(&self, i: usize) -> Offload {
        if self.laden >> i & 1 == 0 {
            return Offload::default();
        }
        self.offloads.get(i).copied().unwrap_or_default()
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
        let verdict = decide(ctx.snapshot, bridge, ctx.ingress, head, packet_len, ctx.now)?;
        if verdict.learn {
            self.learn(ctx, verdict.vid, head);
        } else if let Some(route) = self.route(ctx, verdict) {
            self.memo.keep(head, verdict.longest, route);
        }
        self.file(ctx, bridge, verdict, i, head, len)
    }

    /// The way of all frames of a verdict, if they have only one.
    #[inline]
    fn route(&self, ctx: Context<'_>, verdict: Verdict) -> Option<Route> {
        let Destination::Port(index) = verdict.to else {
            return None;
        };
        let port = ctx.snapshot.port(index)?;
        let queue = steer::only(&port.output, self.worker)?;
        Some(Route {
            output: port.first_output.queue(queue),
            edit: port.vlan.edit(verdict.vid, verdict.tci),
        })
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
                copies += self.file_one(port, verdict, i, head, len);
            }
            Destination::Flood => {
                let others = bridge.members.iter().filter(|p| p.at != ctx.ingress.at);
                for port in others.filter(|p| p.carries(verdict.vid)) {
                    copies += self.file_one(port, verdict, i, head, len);
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
    fn file_one(&mut self, port: &Port, verdict: Verdict, i: u8, head: &[u8], len: u32) -> u64 {
        let edit = port.vlan.edit(verdict.vid, verdict.tci);
        let len = len as usize;
        let queue = steer::queue(&port.output, self.worker, verdict.vid, head, len);
        let output = port.first_output.queue(queue);
        u64::from(self.groups.file(output, Filed { frame: i, edit }))
    }

    /// Writes one output's frames, under its lock, taken once.
    #[inline(never)]
    fn deliver<F: Frames>(
        &mut self,
        ctx: Context<'_>,
        port: &Port,
        queue: u16,
        list: &List,
        frames: &F,
    ) {
        let Some(counters) = port.counters.get(self.worker) else {
            return;
        };
        counters.offered.add(list.len() as u64);
        let nobody = Outcome::dropped(OutputDrop::NotConnected);
        let mut outcomes: Outcomes = list.iter().map(|_| nobody).collect();
        if !port.admin_up {
            outcomes.fill(Outcome::dropped(OutputDrop::AdminDown));
        } else {
            match &port.output {
                Output::Guest(queues) => {
                    if let Some(place) = queues.ring(queue)
                        && let Some(ring) = place.lock().as_mut()
                    {
                        let accepts = accepts(ring, port.offloads);
                        self.fill_guest(ring, accepts, counters, list, frames, &mut outcomes);
                    }
                }
                #[cfg(feature = "dpdk")]
                Output::Nic(nic) => {
                    let (offloads, laden) = (&self.offloads, self.laden);
                    nic.send(
                        queue,
                        list.iter().filter_map(|f| {
                            let i = usize::from(f.frame);
                            let frame = frames.get(i).ok()?;
                            let offload = offloads.get(i).filter(|_| laden >> i & 1 != 0);
                            Some((frame, f.edit, offload.copied().unwrap_or_default()))
                        }),
                        &mut self.finisher,
                        &mut outcomes,
                    );
                }
            }
        }
        let (mut delivered, mut packets, mut bytes) = (0, 0, 0);
        for outcome in &outcomes {
            match outcome.get() {
                Ok((p, b)) => {
                    delivered += 1;
                    packets += u64::from(p);
                    bytes += u64::from(b);
                }
                Err(reason) => counters.drop_output(reason, 1),
            }
        }
        counters.delivered.add(delivered);
        counters.delivered_packets.add(packets);
        counters.delivered_bytes.add(bytes);
        if let Some(taps) = &ctx.snapshot.capture {
            self.show_delivered(taps, port, list, frames, &outcomes);
        }
    }

    #[inline(never)]
    fn fill_guest<F: Frames>(
        &mut self,
        ring: &mut RxRing,
        accepts: Accepts,
        counters: &PortCounters,
        list: &List,
        frames: &F,
        outcomes: &mut Outcomes,
    ) {
        let fill = FillGuest {
            forwarder: self,
            list,
            frames,
            outcomes,
            accepts,
        };
        if ring.fill(list.len(), fill).is_err() {
            return outcomes.fill(Outcome::dropped(OutputDrop::RingBroken));
        }
        if ring.signal().unwrap_or(false) {
            counters.rx_calls.add(1);
        }
    }

    /// Writes a frame whose tag changes, or that leaves something to offloads.
    #[inline(never)]
    fn finish<F: Frames>(
        &mut self,
        sink: &mut impl Sink,
        frames: &F,
        filed: Filed,
        accepts: Accepts,
    ) -> Outcome {
        // Asked for again rather than passed along: so the common way has it in registers.
        let Ok(frame) = frames.get(usize::from(filed.frame)) else {
            return Outcome::dropped(OutputDrop::OffloadFailed);
        };
        // Before any work is put into the frame: software segmentation for a full ring would be for nothing.
        if sink.is_full() {
            return Outcome::dropped(OutputDrop::RingFull);
        }
        let offload = self.offload(usize::from(filed.frame));
        self.finisher
            .deliver_to(&frame, filed.edit, &offload, accepts, &mut ToGuest(sink))
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
        let offload = self.offload(i);
        let seen = capture::Seen {
            parts: [frame.head, &[], &[]],
            tail: frame.tail,
            offload: Some((&offload, 0)),
        };
        taps.show((ctx.ingress.at, &ctx.ingress.name), direction, reason, seen);
    }

    /// Shows those who capture what became of frames at an output.
    #[cold]
    fn show_delivered<F: Frames>(
        &self,
        taps: &Taps,
        port: &Port,
        list: &List,
        frames: &F,
        outcomes: &Outcomes,
    ) {
        for (filed, outcome) in list.iter().zip(outcomes) {
            let i = usize::from(filed.frame);
            let Ok(frame) = frames.get(i) else { continue };
            let (direction, reason) = match outcome.get() {
                Ok(_) => (Direction::Tx, None),
                Err(reason) => (Direction::Drop, Some(reason.name())),
            };
            let mut tag = [0; 4];
            let (parts, shift) = filed.edit.parts(frame.head, &mut tag);
            let offload = self.offload(i);
            let seen = capture::Seen {
                parts,
                tail: frame.tail,
                offload: Some((&offload, shift)),
            };
            taps.show((port.at, &port.name), direction, reason, seen);
        }
    }
}

/// Frames on their way into a guest's ring.
struct FillGuest<'a, F> {
    forwarder: &'a mut Forwarder,
    list: &'a List,
    frames: &'a F,
    outcomes: &'a mut Outcomes,
    accepts: Accepts,
}

impl<F: Frames> Delivery for FillGuest<'_, F> {
    /// Most frames are written as they came, with a header that says nothing, so that is what this loop is for.
    #[inline(always)]
    fn run<S: Sink>(self, sink: &mut S) {
        let laden = self.forwarder.laden;
        for (filed, outcome) in self.list.iter().zip(self.outcomes.iter_mut()) {
            let i = usize::from(filed.frame);
            if filed.edit == HeadEdit::None && laden >> i & 1 == 0 {
                let Ok(frame) = self.frames.get(i) else {
                    continue;
                };
                *outcome = match sink.put_plain(frame.head, frame.tail) {
                    Ok(()) => Outcome::sent(1, frame.len),
                    Err(error) => Outcome::dropped(error.into()),
                };
            } else {
                let finished = self
                    .forwarder
                    .finish(sink, self.frames, *filed, self.accepts);
                *outcome = finished;
            }
        }
    }
}

/// The header of a frame that leaves nothing to anybody.
pub const PLAIN: VirtioNetHdr = VirtioNetHdr {
    flags: 0,
    gso_type: VirtioNetHdr::GSO_NONE,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};

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

/// What became of one frame at one output: packets and bytes that left, or the reason why none did.
///
/// One word, so that it travels in a register and a list of them is four cache lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome(u64);

impl Outcome {
    const DROPPED: u64 = 1 << 63;

    /// It left, as this many packets (below 2^31: more than one if software cut it into segments) of this many bytes.
    #[inline]
    pub fn sent(packets: u32, bytes: u32) -> Self {
        Outcome(u64::from(packets) << 32 | u64::from(bytes))
    }

    /// It did not.
    #[inline]
    pub fn dropped(reason: OutputDrop) -> Self {
        Outcome(Self::DROPPED | reason as u64)
    }

    /// Packets and bytes, or the reason.
    #[inline]
    pub fn get(self) -> Result<(u32, u32), OutputDrop> {
        if self.0 & Self::DROPPED == 0 {
            return Ok(((self.0 >> 32) as u32, self.0 as u32));
        }
        let reason = OutputDrop::ALL.get(self.0 as u8 as usize);
        Err(reason.copied().unwrap_or(OutputDrop::OffloadFailed))
    }
}

/// What became of each frame of a list.
pub type Outcomes = ArrayVec<Outcome, BURST>;

impl From<RxError> for OutputDrop {
    fn from(error: RxError) -> Self {
        match error {
            RxError::Full => OutputDrop::RingFull,
            RxError::TooBig => OutputDrop::BufferTooSmall,
            RxError::Malformed(_) => OutputDrop::MalformedBuffer,
        }
    }
}

/// What the guest negotiated, as far as its port lets it have that.
/// What a guest takes: what it negotiated, as far as its port is switched to deliver it.
pub fn accepts(ring: &RxRing, offloads: Accepts) -> Accepts {
    let RxFeatures {
        csum,
        tso4,
        tso6,
        ecn,
        ..
    } = ring.accepts();
    Accepts {
        csum: csum && offloads.csum,
        tso4: tso4 && offloads.tso4,
        tso6: tso6 && offloads.tso6,
        ecn: ecn && offloads.ecn,
    }
}
