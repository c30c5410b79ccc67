//! The two directions over whichever layout was negotiated: decided once a burst, so that what runs per frame knows.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vswitch_coalesce::{Action, Burst as News, Settings};
use vswitch_packet::{Sum, VirtioNetHdr};

use super::calls::{Call, CallReport};
use super::core::Setup;
use super::lent::{Lending, Lent};
use super::packed::PackedRing;
use super::rx::{Filling, Receive, RxError, RxFeatures};
use super::split::SplitRing;
use super::tx::{Transmit, TxBurst, TxScratch};
use super::{QueuePair, RingError};
use crate::event::Event;
use crate::features;
use crate::memory::{GuestMemory, MemoryProbe, Pieces};

/// A transmit queue, started. Owned by exactly one worker at a time.
#[derive(Debug)]
pub struct TxRing(Tx);

#[derive(Debug)]
enum Tx {
    Split(Transmit<SplitRing>),
    Packed(Transmit<PackedRing>),
}

/// A receive queue, started and enabled.
#[derive(Debug)]
pub struct RxRing(Rx);

#[derive(Debug)]
enum Rx {
    Split(Receive<SplitRing>),
    Packed(Receive<PackedRing>),
}

/// Where frames are delivered, in a burst: what [`RxBurst`] can, with the layout known.
pub trait Sink {
    /// See [`RxBurst::put_plain`].
    ///
    /// # Errors
    ///
    /// As there.
    fn put_plain(&mut self, head: &[u8], tail: Pieces<'_>) -> Result<(), RxError>;

    /// See [`RxBurst::put`].
    ///
    /// # Errors
    ///
    /// As there.
    fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), RxError>;

    /// See [`RxBurst::put_summed`].
    ///
    /// # Errors
    ///
    /// As there.
    fn put_summed(
        &mut self,
        header: &VirtioNetHdr,
        head: &mut [u8],
        tail: Pieces<'_>,
        sum: Sum,
        finish: impl FnOnce(&mut [u8], Sum),
    ) -> Result<(), RxError>;

    /// See [`RxBurst::is_full`].
    fn is_full(&mut self) -> bool;
}

/// A burst to be delivered: a closure that is compiled for each layout by itself.
pub trait Delivery {
    /// Puts the frames.
    fn run<S: Sink>(self, sink: &mut S);
}

/// Frames delivered together.
pub struct RxBurst<'r>(Burst<'r>);

enum Burst<'r> {
    Split(Filling<'r, SplitRing>),
    Packed(Filling<'r, PackedRing>),
}

/// One expression for every layout.
macro_rules! each {
    ($kind:ident, $on:expr, $ring:ident => $do:expr) => {
        match $on {
            $kind::Split($ring) => $do,
            $kind::Packed($ring) => $do,
        }
    };
}

impl TxRing {
    pub(crate) fn start(setup: Setup) -> Result<Self, RingError> {
        let ring = if features::has(setup.features, features::RING_PACKED) {
            Tx::Packed(Transmit::start(setup)?)
        } else {
            Tx::Split(Transmit::start(setup)?)
        };
        Ok(Self(ring))
    }

    /// Takes up to `max` frames, at most [`MAX_BURST`](super::MAX_BURST); what was taken before is completed first.
    ///
    /// # Errors
    ///
    /// The ring has stopped, now or before. Its session is told and will come to fetch it; there is nothing to do here.
    #[inline]
    pub fn take<'r>(
        &'r mut self,
        scratch: &'r mut TxScratch,
        max: usize,
    ) -> Result<TxBurst<'r>, RingError> {
        each!(Tx, &mut self.0, ring => ring.take(scratch, max))
    }

    /// Gives all taken frames back to the guest; false if there were none.
    #[inline]
    pub fn complete(&mut self) -> bool {
        each!(Tx, &mut self.0, ring => ring.core.publish() > 0)
    }

    /// Takes up to `max` frames as [`take`](Self::take) does, but completes nothing. What `lent` is made to keep of them
    /// outlives the burst; the burst goes back with [`repay`](Self::repay), unless it is empty. More than one may be out at
    /// once. `take` and [`complete`](Self::complete) give those back, too, so all must have been given back before.
    ///
    /// # Errors
    ///
    /// As `take`; nothing was lent.
    #[inline]
    pub fn lend<'r>(
        &'r mut self,
        scratch: &'r mut TxScratch,
        lent: &'r mut Lent,
        max: usize,
    ) -> Result<Lending<'r>, RingError> {
        match &mut self.0 {
            Tx::Split(ring) => ring.lend(scratch, lent, max),
            Tx::Packed(ring) => ring.lend_none(scratch, lent),
        }
    }

    /// Gives the frames of the burst that has been out longest back to the guest; false, and nothing is given back, if this
    /// is not it.
    #[inline]
    pub fn repay(&mut self, lent: &mut Lent) -> bool {
        match &mut self.0 {
            Tx::Split(ring) => ring.repay(lent),
            Tx::Packed(_) => false,
        }
    }

    /// Whether its bursts can be [lent](Self::lend): those of split rings can.
    #[must_use]
    pub fn lends(&self) -> bool {
        matches!(self.0, Tx::Split(_))
    }

    /// Calls the guest if it wants to hear of what was completed; true if it was called. For who does not moderate calls:
    /// what [`report`](Self::report) holds is held until the next completion.
    ///
    /// # Errors
    ///
    /// The call could not be written; it is tried again at the next completion.
    #[inline]
    pub fn signal(&mut self) -> io::Result<bool> {
        each!(Tx, &mut self.0, ring => ring.core.notify())
    }

    /// Asks the guest for a kick at its next frame; true if one is waiting already, and then the ring is to be
    /// [disarmed](Self::disarm) and served.
    pub fn arm(&mut self) -> bool {
        each!(Tx, &mut self.0, ring => ring.core.arm())
    }

    /// Tells the guest that no kick is needed.
    pub fn disarm(&mut self) {
        each!(Tx, &mut self.0, ring => ring.core.disarm());
    }

    /// Whether a frame is waiting.
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        each!(Tx, &self.0, ring => ring.core.has_work())
    }

    /// What becomes readable at a kick; `None` if the guest sends none, and the ring must be polled.
    #[must_use]
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        each!(Tx, &self.0, ring => ring.core.kick())
    }

    /// Takes a kick back, so that the descriptor is readable only at the next. Never sleeps.
    pub fn drain_kick(&self) {
        each!(Tx, &self.0, ring => ring.core.drain_kick());
    }

    /// Whether the queue is enabled. Frames of one that is not are to be taken and discarded.
    #[inline]
    #[must_use]
    pub fn enabled(&self) -> bool {
        each!(Tx, &self.0, ring => ring.core.enabled)
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        each!(Tx, &mut self.0, ring => ring.core.enabled = enabled);
    }

    pub(crate) fn set_kick(&mut self, kick: Option<Arc<Event>>) {
        each!(Tx, &mut self.0, ring => ring.core.set_kick(kick));
    }
}

#[cfg(test)]
impl TxRing {
    pub(super) fn base_for_tests(&self) -> u32 {
        each!(Tx, &self.0, ring => ring.core.base_for_tests())
    }
}

impl RxRing {
    pub(crate) fn start(setup: Setup) -> Result<Self, RingError> {
        let ring = if features::has(setup.features, features::RING_PACKED) {
            Rx::Packed(Receive::start(setup)?)
        } else {
            Rx::Split(Receive::start(setup)?)
        };
        Ok(Self(ring))
    }

    /// Begins to deliver about `expected` frames, for which buffers are prepared. More or fewer may follow.
    ///
    /// # Errors
    ///
    /// The ring has stopped, now or before. Its session is told and will come to fetch it.
    #[inline]
    pub fn begin(&mut self, expected: usize) -> Result<RxBurst<'_>, RingError> {
        let burst = match &mut self.0 {
            Rx::Split(ring) => Burst::Split(ring.begin(0, expected)?),
            Rx::Packed(ring) => Burst::Packed(ring.begin(0, expected)?),
        };
        Ok(RxBurst(burst))
    }

    /// Delivers a burst of about `expected` frames and shows the guest all of it. What [`begin`](Self::begin) and
    /// [`finish`](RxBurst::finish) do, with the layout settled for the burst rather than for each frame.
    ///
    /// `by` says which worker that is. A ring that has several is prepared for each one's burst alone.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin); nothing was delivered.
    #[inline]
    pub fn fill(
        &mut self,
        by: u16,
        expected: usize,
        delivery: impl Delivery,
    ) -> Result<(), RingError> {
        each!(Rx, &mut self.0, ring => {
            let mut sink = ring.begin(by, expected)?;
            delivery.run(&mut sink);
            sink.finish();
        });
        Ok(())
    }

    /// Calls the guest if it wants to hear of what was delivered; true if it was called. For who does not moderate calls:
    /// what [`report`](Self::report) holds is held until the next delivery.
    ///
    /// # Errors
    ///
    /// The call could not be written; it is tried again after the next delivery.
    #[inline]
    pub fn signal(&mut self) -> io::Result<bool> {
        each!(Rx, &mut self.0, ring => ring.core.notify())
    }

    /// How many entries were ever published, modulo 2^16: the position behind the last delivered frame.
    #[inline]
    #[must_use]
    pub fn published(&self) -> u16 {
        each!(Rx, &self.0, ring => ring.core.published())
    }

    /// Whether the guest has dealt with everything up to this position, as far as it lets us know. A position from long ago
    /// counts as dealt with unless it is among the entries now under way.
    #[must_use]
    pub fn consumed(&self, position: u16) -> bool {
        each!(Rx, &self.0, ring => ring.core.consumed(position))
    }

    /// What the guest can take.
    #[inline]
    #[must_use]
    pub fn accepts(&self) -> RxFeatures {
        each!(Rx, &self.0, ring => ring.accepts)
    }
}

impl RxBurst<'_> {
    /// Delivers one frame: `header` (its `num_buffers` is filled in here), then `parts` in order, then `tail`.
    ///
    /// # Errors
    ///
    /// Why it was not delivered. The burst goes on.
    #[inline]
    pub fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), RxError> {
        each!(Burst, &mut self.0, burst => burst.put(header, parts, tail))
    }

    /// Delivers a frame as it came, with a header that says nothing: `head`, at most [`HEAD_LEN`](super::HEAD_LEN) bytes
    /// or it goes a longer way, then `tail`. What [`put`](Self::put) does, for the frames that most are.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    #[inline(always)]
    pub fn put_plain(&mut self, head: &[u8], tail: Pieces<'_>) -> Result<(), RxError> {
        each!(Burst, &mut self.0, burst => burst.put_plain(head, tail))
    }

    /// Delivers one frame, `head` and then `tail`, whose checksum is completed on the way: the bytes of the tail are added
    /// to `sum` as they are written, `finish` puts the sum into the head, and the head is written last. The tail is read
    /// once, so the sum is that of what the guest finds.
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    pub fn put_summed(
        &mut self,
        header: &VirtioNetHdr,
        head: &mut [u8],
        tail: Pieces<'_>,
        sum: Sum,
        finish: impl FnOnce(&mut [u8], Sum),
    ) -> Result<(), RxError> {
        each!(Burst, &mut self.0, burst => burst.put_summed(header, head, tail, sum, finish))
    }

    /// Whether the guest has no buffer left: then nothing fits, however small, and preparing a frame is in vain.
    #[inline]
    #[must_use]
    pub fn is_full(&mut self) -> bool {
        each!(Burst, &mut self.0, burst => burst.is_full())
    }

    /// Shows the guest everything delivered; says how many entries of the ring that took.
    #[inline]
    pub fn finish(self) -> u16 {
        each!(Burst, self.0, burst => burst.finish())
    }
}

/// What decides when the guest is called, for both directions.
macro_rules! of_the_caller {
    ($ring:ident, $kind:ident) => {
        impl $ring {
            /// Tells of the burst that was just shown to the guest, and says whether to call it. `used`, `room` and `size`
            /// are filled in here. If nothing was shown since the last time, there is nothing to do.
            ///
            /// A call that is due is written with [`make_call`](Self::make_call), or, outside a lock that guards the ring,
            /// by way of [`call`](Self::call).
            #[inline]
            pub fn report(&mut self, settings: &Settings, burst: &News) -> Action {
                each!($kind, &mut self.0, ring => ring.core.report(settings, burst))
            }

            /// When the call that is held is due, in nanoseconds of the clock that [`report`](Self::report) is given.
            #[inline]
            #[must_use]
            pub fn deadline(&self) -> Option<u64> {
                each!($kind, &self.0, ring => ring.core.deadline())
            }

            /// Whether a call is held that should not be any longer.
            #[inline]
            #[must_use]
            pub fn overdue(&self, now: u64) -> bool {
                each!($kind, &self.0, ring => ring.core.overdue(now))
            }

            /// Asks the guest again if a call is [overdue](Self::overdue).
            pub fn expire(&mut self, now: u64) -> Action {
                each!($kind, &mut self.0, ring => ring.core.expire(now))
            }

            /// Leaves no call held.
            pub fn flush(&mut self, now: u64) -> Action {
                each!($kind, &mut self.0, ring => ring.core.flush(now))
            }

            /// Writes a call that is due; true if there is somebody to call.
            pub fn make_call(&mut self) -> bool {
                each!($kind, &mut self.0, ring => ring.core.make_call())
            }

            /// What a call is written to, to do that elsewhere; `None` if the guest is not to be called.
            #[must_use]
            pub fn call(&self) -> Option<Call> {
                each!($kind, &self.0, ring => ring.core.call())
            }

            /// A call that was due could not be written: it is made at the next report.
            pub fn call_failed(&mut self) {
                each!($kind, &mut self.0, ring => ring.core.call_failed());
            }

            /// Whether it makes a difference at present if a frame is urgent.
            #[inline]
            #[must_use]
            pub fn heeds_urgency(&self) -> bool {
                each!($kind, &self.0, ring => ring.core.heeds_urgency())
            }

            /// Whether the guest has moved since it was called; `None` if that cannot be told, or would say nothing about
            /// the call.
            #[must_use]
            pub fn has_reacted(&self) -> Option<bool> {
                each!($kind, &self.0, ring => ring.core.has_reacted())
            }

            /// A call was seen to cost switch and guest so much together, in nanoseconds.
            pub fn measured(&mut self, cost_ns: u32) {
                each!($kind, &mut self.0, ring => ring.core.measured(cost_ns));
            }

            /// What was done about calls so far.
            #[must_use]
            pub fn call_report(&self) -> CallReport {
                each!($kind, &self.0, ring => ring.core.call_report())
            }
        }
    };
}

of_the_caller!(TxRing, Tx);
of_the_caller!(RxRing, Rx);

/// What both directions are asked by their session.
macro_rules! of_the_session {
    ($ring:ident, $kind:ident) => {
        impl $ring {
            /// Descriptors of the ring.
            #[must_use]
            pub fn size(&self) -> u16 {
                each!($kind, &self.0, ring => ring.core.size())
            }

            /// Which queue this is.
            #[inline]
            #[must_use]
            pub fn queue_pair(&self) -> QueuePair {
                each!($kind, &self.0, ring => ring.core.pair)
            }

            /// What tells on which NUMA node the memory lies that this ring is in.
            #[must_use]
            pub fn memory_probe(&self) -> MemoryProbe {
                each!($kind, &self.0, ring => ring.core.memory_probe())
            }

            pub(crate) fn set_call(&mut self, call: Option<Arc<Event>>) {
                each!($kind, &mut self.0, ring => ring.core.set_call(call));
            }

            pub(crate) fn rebind(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
                each!($kind, &mut self.0, ring => ring.core.rebind(memory))
            }

            pub(crate) fn error(&self) -> Option<RingError> {
                each!($kind, &self.0, ring => ring.core.error())
            }

            /// Publishes everything written and says where the ring stands, as the front-end is told.
            pub(crate) fn settle(&mut self) -> u32 {
                each!($kind, &mut self.0, ring => ring.core.settle())
            }

            #[cfg(test)]
            pub(crate) fn call_for_tests(&self) -> Arc<Event> {
                each!($kind, &self.0, ring => ring.core.call_for_tests())
            }
        }
    };
}

of_the_session!(TxRing, Tx);
of_the_session!(RxRing, Rx);
