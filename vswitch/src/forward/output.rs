//! One output: writes the frames filed under it, takes the lock once, and counts what became of each.

use arrayvec::ArrayVec;
use vswitch_coalesce::urgent::{Class, HEAD};
use vswitch_coalesce::{Action, Burst, Settings};
use vswitch_packet::{Accepts, HeadEdit, Offload, VirtioNetHdr};
use vswitch_vhost::{Delivery, RxError, RxFeatures, RxRing, Sink};

use super::BURST;
use super::counters::{OutputDrop, PortCounters};
use super::deliver::Frames;
use super::group::{Filed, List};
use super::pending::{Pending, Ring};
use super::snapshot::{GuestQueues, Output, Port, Snapshot};
use super::software::{Finisher, ToGuest};
use crate::capture::{self, Direction, Taps};

/// What a burst's deliveries go by.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The switch, as it was decided upon.
    pub snapshot: &'a Snapshot,
    /// Nanoseconds: the clock of calls.
    pub nanos: u64,
    /// The source had nothing more when the burst was taken.
    pub drained: bool,
}

/// What a worker writes with: the burst's offloads, and the means to do in software what a receiver cannot.
pub struct Outgoing {
    worker: usize,
    /// What frames leave to offloads: of those that leave anything, and never anything else.
    offloads: [Offload; BURST],
    /// Which of the burst's frames leave anything, a bit each.
    laden: u32,
    finisher: Finisher,
    pending: Pending,
}

impl Outgoing {
    /// For the worker with this index.
    pub fn new(worker: usize) -> Self {
        Outgoing {
            worker,
            offloads: std::array::from_fn(|_| Offload::default()),
            laden: 0,
            finisher: Finisher::default(),
            pending: Pending::new(worker),
        }
    }

    /// See [`Forwarder::tend`](super::Forwarder::tend).
    #[inline]
    pub fn tend(&mut self, snapshot: &Snapshot, now: u64) {
        self.pending.tend(snapshot, now);
    }

    /// See [`Forwarder::flush`](super::Forwarder::flush).
    pub fn flush(&mut self, snapshot: &Snapshot, now: u64) {
        self.pending.flush(snapshot, now);
    }

    /// See [`Forwarder::yield_calls`](super::Forwarder::yield_calls).
    pub fn yield_calls(&mut self, snapshot: &Snapshot, now: u64) {
        self.pending.yield_calls(snapshot, now);
    }

    /// See [`Forwarder::holds`](super::Forwarder::holds).
    #[inline]
    pub fn holds(&self) -> bool {
        self.pending.holds()
    }

    /// Another burst: nothing is known of its frames.
    #[inline]
    pub fn begin(&mut self) {
        self.laden = 0;
    }

    /// Notes what frame `i` leaves to offloads.
    #[inline]
    pub fn leave(&mut self, i: usize, offload: Offload) {
        if let Some(slot) = self.offloads.get_mut(i) {
            *slot = offload;
            self.laden |= 1 << i;
        }
    }

    /// What frame `i` leaves to offloads.
    #[inline]
    pub fn offload(&self, i: usize) -> Offload {
        if self.laden >> i & 1 == 0 {
            return Offload::default();
        }
        self.offloads.get(i).copied().unwrap_or_default()
    }

    /// Which frames leave anything to offloads, a bit each, and what those do.
    #[inline]
    pub fn offloads(&self) -> (u32, &[Offload; BURST]) {
        (self.laden, &self.offloads)
    }

    /// Writes one output's frames, under its lock, taken once. Of a guest with several queues the answer is the position
    /// behind the frames in their ring.
    #[inline(never)]
    pub fn deliver<F: Frames>(
        &mut self,
        moment: Moment<'_>,
        port: &Port,
        queue: u16,
        list: List<'_>,
        frames: &F,
    ) -> Option<u16> {
        let counters = port.counters.get(self.worker)?;
        let mut position = None;
        counters.offered.add(list.len() as u64);
        let watched = moment.snapshot.capture.as_ref();
        let mut outcomes = Outcomes::new();
        let mut tally = Tally::new(counters, watched.is_some().then_some(&mut outcomes));
        if !port.admin_up {
            tally.all(list, OutputDrop::AdminDown);
        } else {
            match &port.output {
                Output::Guest(queues) => {
                    let mut place = queues.ring(queue).map(|place| place.lock());
                    match place.as_mut().and_then(|place| place.as_mut()) {
                        None => tally.all(list, OutputDrop::NotConnected),
                        Some(ring) => {
                            let news = News {
                                now: moment.nanos,
                                drained: moment.drained,
                                queues,
                                settings: &port.coalesce.receive,
                                accepts: accepts(ring, port.offloads),
                            };
                            let action = self.fill_guest(ring, news, list, frames, &mut tally);
                            position = (queues.pairs() > 1).then(|| ring.published());
                            let left = Ring::after(port.at, queue, action, ring);
                            // A call is a system call: nobody should have to wait for it.
                            drop(place);
                            self.pending.leave(left, queues, counters, moment.nanos);
                        }
                    }
                }
                #[cfg(feature = "dpdk")]
                Output::Nic(nic) => {
                    let (offloads, laden) = (&self.offloads, self.laden);
                    let frames = list.iter().filter_map(|f| {
                        let i = usize::from(f.frame);
                        let frame = frames.get(i).ok()?;
                        let offload = offloads.get(i).filter(|_| laden >> i & 1 != 0);
                        Some((frame, f.edit, offload.copied().unwrap_or_default()))
                    });
                    let sent = nic.send(queue, frames, &mut self.finisher, |outcome| {
                        tally.note(outcome);
                    });
                    if !sent {
                        tally.all(list, OutputDrop::NotConnected);
                    }
                }
            }
        }
        tally.count();
        if let Some(taps) = watched {
            self.show_delivered(taps, port, list, frames, &outcomes);
        }
        position
    }

    /// Writes the frames into a guest's ring and shows them to it; says whether to call it.
    #[inline]
    fn fill_guest<F: Frames>(
        &mut self,
        ring: &mut RxRing,
        news: News<'_>,
        list: List<'_>,
        frames: &F,
        tally: &mut Tally<'_>,
    ) -> Action {
        if !news.settings.policy().every_frame() {
            return self.fill_once(ring, news, list, frames, tally);
        }
        let mut last = Action::Nothing;
        for one in list.each() {
            if last.fires() && ring.make_call() {
                tally.counters.rx_calls.add(1);
            }
            last = self.fill_once(ring, news, one, frames, tally);
        }
        last
    }

    #[inline(never)]
    fn fill_once<F: Frames>(
        &mut self,
        ring: &mut RxRing,
        news: News<'_>,
        list: List<'_>,
        frames: &F,
        tally: &mut Tally<'_>,
    ) -> Action {
        let (packets, bytes) = (tally.packets, tally.bytes);
        let by = self.worker as u16;
        let fill = FillGuest {
            outgoing: self,
            list,
            frames,
            tally,
            accepts: news.accepts,
        };
        if ring.fill(by, list.len(), fill).is_err() {
            tally.all(list, OutputDrop::RingBroken);
            return Action::Nothing;
        }
        let (transmitted, drained) = news.queues.transmitted();
        let burst = Burst {
            now: news.now,
            frames: (tally.packets - packets).min(u16::MAX.into()) as u16,
            bytes: (tally.bytes - bytes) as u32,
            urgent: ring.heeds_urgency() && any_urgent(list, frames, drained),
            drained: news.drained,
            transmitted,
            ..Burst::default()
        };
        ring.report(news.settings, &burst)
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

    /// Shows those who capture what became of frames at an output.
    #[cold]
    fn show_delivered<F: Frames>(
        &self,
        taps: &Taps,
        port: &Port,
        list: List<'_>,
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

/// What is to be known about a guest and a burst for it.
#[derive(Clone, Copy)]
struct News<'a> {
    /// Nanoseconds.
    now: u64,
    /// Nothing is about to follow from the same source.
    drained: bool,
    queues: &'a GuestQueues,
    settings: &'a Settings,
    accepts: Accepts,
}

/// Whether any of these frames should not wait. Asked only while that makes a difference.
#[inline(never)]
fn any_urgent<F: Frames>(list: List<'_>, frames: &F, transmit_ring_empty: bool) -> bool {
    list.iter().any(|filed| {
        frames.get(usize::from(filed.frame)).is_ok_and(|frame| {
            let head = frame.head.get(..HEAD).unwrap_or(frame.head);
            Class::of(head, frame.len as usize).is_urgent(transmit_ring_empty)
        })
    })
}

/// Frames on their way into a guest's ring.
struct FillGuest<'a, 'c, F> {
    outgoing: &'a mut Outgoing,
    list: List<'a>,
    frames: &'a F,
    tally: &'a mut Tally<'c>,
    accepts: Accepts,
}

impl<F: Frames> Delivery for FillGuest<'_, '_, F> {
    /// Most frames are written as they came, with a header that says nothing, so that is what this loop is for.
    #[inline(always)]
    fn run<S: Sink>(self, sink: &mut S) {
        let laden = self.outgoing.laden;
        let (mut sent, mut bytes) = (0, 0);
        for filed in self.list.iter() {
            let i = usize::from(filed.frame);
            if filed.edit == HeadEdit::None && laden >> i & 1 == 0 {
                let Ok(frame) = self.frames.get(i) else {
                    continue;
                };
                match sink.put_plain(frame.head, frame.tail) {
                    Ok(()) if self.tally.outcomes.is_none() => {
                        sent += 1;
                        bytes += u64::from(frame.len);
                    }
                    Ok(()) => self.tally.note(Outcome::sent(1, frame.len)),
                    Err(error) => self.tally.note(Outcome::dropped(error.into())),
                }
            } else {
                let outcome = self.outgoing.finish(sink, self.frames, filed, self.accepts);
                self.tally.note(outcome);
            }
        }
        self.tally.sent(sent, bytes);
    }
}

/// What became of a list of frames, added up, and kept one by one only for those who capture.
struct Tally<'a> {
    counters: &'a PortCounters,
    delivered: u64,
    packets: u64,
    bytes: u64,
    outcomes: Option<&'a mut Outcomes>,
}

impl<'a> Tally<'a> {
    fn new(counters: &'a PortCounters, outcomes: Option<&'a mut Outcomes>) -> Self {
        Tally {
            counters,
            delivered: 0,
            packets: 0,
            bytes: 0,
            outcomes,
        }
    }

    /// What became of the next frame.
    #[inline(never)]
    fn note(&mut self, outcome: Outcome) {
        match outcome.get() {
            Ok((packets, bytes)) => {
                self.delivered += 1;
                self.packets += u64::from(packets);
                self.bytes += u64::from(bytes);
            }
            Err(reason) => self.counters.drop_output(reason, 1),
        }
        if let Some(outcomes) = &mut self.outcomes {
            let _ = outcomes.try_push(outcome);
        }
    }

    /// So many frames left as they came, and nobody wants to know which.
    #[inline]
    fn sent(&mut self, frames: u64, bytes: u64) {
        self.delivered += frames;
        self.packets += frames;
        self.bytes += bytes;
    }

    /// None of them left.
    #[cold]
    fn all(&mut self, list: List<'_>, reason: OutputDrop) {
        list.iter()
            .for_each(|_| self.note(Outcome::dropped(reason)));
    }

    /// Adds it to the port's counters.
    #[inline]
    fn count(self) {
        self.counters.delivered.add(self.delivered);
        self.counters.delivered_packets.add(self.packets);
        self.counters.delivered_bytes.add(self.bytes);
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
