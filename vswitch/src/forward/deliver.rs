//! The burst: decide about each frame, group by output, write into the outputs.

use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_packet::{Accepts, Offload, check_offload};
use vswitch_vhost::{RxError, RxFeatures, RxRing, TxFrame};

use super::BURST;
use super::counters::{InputDrop, OutputDrop, PortCounters};
use super::decide::{Destination, Verdict, decide};
use super::fdb::CoarseSecond;
use super::group::{Filed, Groups, List};
use super::learn::{LearnMailbox, Seen};
use super::snapshot::{Bridge, Output, Port, Snapshot};
use super::software::Finisher;
use super::steer;
use crate::capture::{self, Direction};

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
    offloads: [Offload; BURST],
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
            finisher: Finisher::default(),
            learn,
        }
    }

    /// Makes room for a snapshot's outputs; called when a new one is picked up, so that `forward` never allocates.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        self.groups.reserve(snapshot.outputs());
    }

    /// Forwards one burst. When it returns every frame is in the receivers' buffers or counted as dropped.
    pub fn forward<F: Frames>(&mut self, ctx: Context<'_>, frames: &F) {
        let Some(counters) = ctx.ingress.counters.get(self.worker) else {
            return;
        };
        let (mut bytes, mut switched, mut copies) = (0, 0, 0);
        let len = frames.len().min(BURST);
        for i in 0..len {
            let outcome = frames.get(i).and_then(|frame| {
                bytes += u64::from(frame.len);
                self.take(ctx, i as u8, &frame, frames.valid(i))
            });
            match outcome {
                Ok(n) => {
                    switched += 1;
                    copies += n;
                }
                Err(reason) => counters.drop_input(reason),
            }
            if let Some(taps) = &ctx.snapshot.capture
                && let Ok(frame) = frames.get(i)
            {
                let (direction, reason) = match outcome {
                    Ok(_) => (Direction::Rx, None),
                    Err(reason) => (Direction::Drop, Some(reason.name())),
                };
                let seen = self.seen(i, &frame, [frame.head, &[], &[]], 0);
                taps.show((ctx.ingress.at, &ctx.ingress.name), direction, reason, seen);
            }
        }
        counters.received.add(len as u64);
        counters.received_bytes.add(bytes);
        counters.switched.add(switched);
        counters.copies.add(copies);
        while let Some((output, list)) = self.groups.pop() {
            if let Some((port, queue)) = ctx.snapshot.output(output) {
                self.deliver(ctx, port, queue, &list, frames);
            }
        }
    }

    /// Decides about one frame and files it; returns the number of its copies.
    #[inline]
    fn take(
        &mut self,
        ctx: Context<'_>,
        i: u8,
        frame: &TxFrame<'_>,
        data_valid: bool,
    ) -> Result<u64, InputDrop> {
        // First of all, so that a capture of a dropped frame does not see the offload of an earlier one.
        let offload = requested(frame).map(|asked| Offload {
            data_valid,
            ..asked
        });
        if let Some(slot) = self.offloads.get_mut(usize::from(i)) {
            *slot = offload.unwrap_or_default();
        }
        if let Some(reason) = ctx.discard {
            return Err(reason);
        }
        if !ctx.ingress.admin_up {
            return Err(InputDrop::PortDown);
        }
        let bridge = ctx
            .snapshot
            .bridge(ctx.ingress.bridge)
            .ok_or(InputDrop::NoOutput)?;
        let packet_len = offload?.wire_len(frame.len as usize);
        let verdict = decide(
            ctx.snapshot,
            bridge,
            ctx.ingress,
            frame.head,
            packet_len,
            ctx.now,
        )?;
        if let Some(mac) = verdict.learn {
            let seen = Seen {
                bridge: ctx.ingress.bridge,
                vid: verdict.vid,
                mac,
                port: ctx.ingress.at,
            };
            // A full mailbox loses nothing: the address comes again with the next frame.
            let _ = self.learn.put(seen);
        }
        self.file(ctx, bridge, verdict, i, frame)
    }

    /// Files a decided frame under its outputs.
    #[inline]
    fn file(
        &mut self,
        ctx: Context<'_>,
        bridge: &Bridge,
        verdict: Verdict,
        i: u8,
        frame: &TxFrame<'_>,
    ) -> Result<u64, InputDrop> {
        let mut copies = 0;
        match verdict.to {
            Destination::Reflected => return Err(InputDrop::Reflection),
            Destination::Port(index) => {
                let port = ctx.snapshot.port(index).ok_or(InputDrop::NoOutput)?;
                copies += self.file_one(port, &verdict, i, frame);
            }
            Destination::Flood => {
                let others = bridge.members.iter().filter(|p| p.at != ctx.ingress.at);
                for port in others.filter(|p| p.carries(verdict.vid)) {
                    copies += self.file_one(port, &verdict, i, frame);
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
    fn file_one(&mut self, port: &Port, verdict: &Verdict, i: u8, frame: &TxFrame<'_>) -> u64 {
        let edit = port.vlan.edit(verdict.vid, verdict.tci);
        let len = frame.len as usize;
        let queue = steer::queue(&port.output, self.worker, verdict.vid, frame.head, len);
        let output = port.first_output.queue(queue);
        u64::from(self.groups.file(output, Filed { frame: i, edit }))
    }

    /// Writes one output's frames, under its lock, taken once.
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
                        self.fill_guest(ring, counters, list, frames, &mut outcomes);
                    }
                }
                #[cfg(feature = "dpdk")]
                Output::Nic(nic) => {
                    nic.send(
                        queue,
                        list.iter().filter_map(|f| {
                            let frame = frames.get(usize::from(f.frame)).ok()?;
                            let offload = self.offloads.get(usize::from(f.frame))?;
                            Some((frame, f.edit, *offload))
                        }),
                        &mut self.finisher,
                        &mut outcomes,
                    );
                }
            }
        }
        let (mut delivered, mut packets, mut bytes) = (0, 0, 0);
        for (filed, outcome) in list.iter().zip(&outcomes) {
            let outcome = outcome.get();
            match outcome {
                Ok((p, b)) => {
                    delivered += 1;
                    packets += u64::from(p);
                    bytes += u64::from(b);
                }
                Err(reason) => counters.drop_output(reason, 1),
            }
            if let Some(taps) = &ctx.snapshot.capture
                && let Ok(frame) = frames.get(usize::from(filed.frame))
            {
                let (direction, reason) = match outcome {
                    Ok(_) => (Direction::Tx, None),
                    Err(reason) => (Direction::Drop, Some(reason.name())),
                };
                let mut tag = [0; 4];
                let (parts, shift) = filed.edit.parts(frame.head, &mut tag);
                let seen = self.seen(usize::from(filed.frame), &frame, parts, shift);
                taps.show((port.at, &port.name), direction, reason, seen);
            }
        }
        counters.delivered.add(delivered);
        counters.delivered_packets.add(packets);
        counters.delivered_bytes.add(bytes);
    }

    fn fill_guest<F: Frames>(
        &mut self,
        ring: &mut RxRing,
        counters: &PortCounters,
        list: &List,
        frames: &F,
        outcomes: &mut Outcomes,
    ) {
        let accepts = accepts(ring);
        let mut burst = match ring.begin() {
            Ok(burst) => burst,
            Err(_) => return outcomes.fill(Outcome::dropped(OutputDrop::RingBroken)),
        };
        for (filed, outcome) in list.iter().zip(outcomes.iter_mut()) {
            let i = usize::from(filed.frame);
            let (Ok(frame), Some(offload)) = (frames.get(i), self.offloads.get(i)) else {
                continue;
            };
            // Before any work is put into the frame: software segmentation for a full ring would be for nothing.
            if burst.is_full() {
                *outcome = Outcome::dropped(OutputDrop::RingFull);
                continue;
            }
            *outcome =
                self.finisher
                    .deliver(&frame, filed.edit, offload, accepts, |h, parts, tail| {
                        burst.put(h, parts, tail).map_err(|e| match e {
                            RxError::Full => OutputDrop::RingFull,
                            RxError::TooBig => OutputDrop::BufferTooSmall,
                            RxError::Malformed(_) => OutputDrop::MalformedBuffer,
                        })
                    });
        }
        burst.finish();
        if ring.signal().unwrap_or(false) {
            counters.rx_calls.add(1);
        }
    }

    fn seen<'a>(
        &'a self,
        i: usize,
        frame: &TxFrame<'a>,
        parts: [&'a [u8]; 3],
        shift: i8,
    ) -> capture::Seen<'a> {
        let offload = self.offloads.get(i).map(|o| (o, shift));
        capture::Seen {
            parts,
            tail: frame.tail,
            offload,
        }
    }
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

/// What the sender left to offloads, checked against the frame.
#[inline]
fn requested(frame: &TxFrame<'_>) -> Result<Offload, InputDrop> {
    if frame.header.flags | frame.header.gso_type == 0 {
        return Ok(Offload::default());
    }
    check_offload(&frame.header, frame.head, frame.len as usize).map_err(|_| InputDrop::BadOffload)
}

fn accepts(ring: &RxRing) -> Accepts {
    let RxFeatures {
        csum,
        tso4,
        tso6,
        ecn,
        ..
    } = ring.accepts();
    Accepts {
        csum,
        tso4,
        tso6,
        ecn,
    }
}
