//! The two halves of a queue pair, polled through `&mut` by the worker that has them.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::attachment::Attachment;
use crate::burst::{BURST, MbufBurst};
use crate::mbuf::Mbuf;
use crate::mempool::Mempool;
use crate::port::PortId;
use crate::wake::{self, Wake, WakeFd};

/// A queue's number within its port and direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(pub u16);

/// What became of a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxOutcome {
    /// Frames taken over by the device.
    pub sent: usize,
    /// Frames that the driver refused, because of their offload request or how they are built, as
    /// a bit for each place in the burst that was given; they are freed.
    pub refused: u32,
}

const _: () = assert!(
    BURST <= u32::BITS as usize,
    "a bit for each frame of a burst"
);

/// What both directions share.
struct Queue {
    // Keeps the device started. One owner, who may change threads: Send, not Sync.
    attachment: Arc<Attachment>,
    port: u16,
    queue: u16,
    _not_sync: PhantomData<Cell<()>>,
}

/// A receive queue. Exactly one exists per queue of a port.
pub struct RxQueue {
    queue: Queue,
    wake: WakeFd,
}

/// A transmit queue. Exactly one exists per queue of a port.
pub struct TxQueue {
    queue: Queue,
    prepare: bool,
    /// Set if the driver gives buffers back unseen: then all are whole frames of this pool.
    only: Option<Mempool>,
}

impl RxQueue {
    pub(crate) fn new(attachment: Arc<Attachment>, queue: u16, wake: WakeFd) -> Self {
        Self {
            queue: Queue::new(attachment, queue),
            wake,
        }
    }

    /// Adds the frames that have arrived to the burst, as many as there is room for, and returns
    /// how many. Drivers do best with an empty burst; some give nothing into the last few places.
    #[inline]
    pub fn rx_burst(&mut self, burst: &mut MbufBurst) -> usize {
        let Queue { port, queue, .. } = self.queue;
        // SAFETY: the port is started while `attachment` lives, this is its only receiver on this
        // queue, and `room` takes `n` pointers. What the driver writes there it gives away.
        let n =
            burst.extend_raw(|room, n| unsafe { dpdk_sys::dpdk_rx_burst(port, queue, room, n) });
        usize::from(n)
    }

    /// The port it belongs to.
    pub fn port(&self) -> PortId {
        PortId(self.queue.port)
    }

    /// Its number.
    pub fn id(&self) -> QueueId {
        QueueId(self.queue.queue)
    }

    /// How it wakes a worker that sleeps.
    pub fn wake(&self) -> Wake {
        self.wake.kind
    }

    /// What such a worker waits on; `None` for [`Wake::None`].
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wake.fd(&self.queue.attachment)
    }

    /// Asks to be woken by the next frame; true if it will be. Frames that have arrived before do not wake: look once more
    /// before going to sleep.
    pub fn arm(&mut self) -> bool {
        match self.wake.kind {
            Wake::None => false,
            Wake::Readable => true,
            Wake::Interrupt => wake::switch(self.queue.port, self.queue.queue, true),
        }
    }

    /// Asks no longer.
    pub fn disarm(&mut self) {
        if self.wake.kind == Wake::Interrupt {
            wake::switch(self.queue.port, self.queue.queue, false);
        }
    }
}

impl TxQueue {
    pub(crate) fn new(
        attachment: Arc<Attachment>,
        queue: u16,
        prepare: bool,
        only: Option<Mempool>,
    ) -> Self {
        Self {
            queue: Queue::new(attachment, queue),
            prepare,
            only,
        }
    }

    /// Sends the burst, from its start. What the device has no room for stays in the burst, in
    /// order: try again, or clear it and count the drops.
    #[inline]
    pub fn tx_burst(&mut self, burst: &mut MbufBurst) -> TxOutcome {
        let mut refused = self
            .only
            .map_or(0, |pool| refuse(burst, |mbuf| mbuf.is_whole_of(pool)));
        // A burst that asks for nothing needs no look.
        if self.prepare && burst.iter().any(Mbuf::has_flags) {
            refused = among(refused, self.prepare(burst));
        }
        let Queue { port, queue, .. } = self.queue;
        // SAFETY: the port is started while `attachment` lives, and this is its only sender on this
        // queue. The buffers are ours to give; the driver frees those it took.
        let sent =
            burst.take_raw(|mbufs, n| unsafe { dpdk_sys::dpdk_tx_burst(port, queue, mbufs, n) });
        TxOutcome {
            sent: usize::from(sent),
            refused,
        }
    }

    /// True if the device has sent everything that it took, false if not; `None` if its driver cannot tell. Drivers that
    /// hear of sent frames by the group say `false` until a group is full.
    pub fn is_drained(&self) -> Option<bool> {
        let Queue { port, queue, .. } = self.queue;
        // SAFETY: the port is started while `attachment` lives, and this is its only sender on this queue, so the
        // driver's state of it stands still.
        match unsafe { dpdk_sys::dpdk_tx_pending(port, queue) } {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        }
    }

    /// Has the driver look at offload requests, and drops the frames it refuses.
    fn prepare(&mut self, burst: &mut MbufBurst) -> u32 {
        let Queue { port, queue, .. } = self.queue;
        let (mut ready, mut refused) = (0, 0_u32);
        while ready < burst.len() {
            let rest = &mut burst[ready..];
            let n = rest.len() as u16;
            // SAFETY: as for sending; `Mbuf` is a transparent pointer, and the driver changes
            // what the pointers lead to, not the pointers.
            ready += usize::from(unsafe {
                dpdk_sys::dpdk_tx_prepare(port, queue, rest.as_mut_ptr().cast(), n)
            });
            // It stopped at a frame that it cannot send, or at the end.
            if burst.remove(ready).is_some() {
                refused |= 1 << (ready + refused.count_ones() as usize);
            }
        }
        refused
    }

    /// The port it belongs to.
    pub fn port(&self) -> PortId {
        PortId(self.queue.port)
    }

    /// Its number.
    pub fn id(&self) -> QueueId {
        QueueId(self.queue.queue)
    }
}

/// Drops what is not `good`; a bit for each.
fn refuse(burst: &mut MbufBurst, good: impl Fn(&Mbuf) -> bool) -> u32 {
    let bad = burst.iter().enumerate().filter(|(_, mbuf)| !good(mbuf));
    let bad = bad.fold(0_u32, |bits, (at, _)| bits | 1 << at);
    for at in (0..BURST).rev().filter(|at| bad & 1 << at != 0) {
        drop(burst.remove(at));
    }
    bad
}

/// Bits for places among what `gone` has left, and those of `gone`, as bits for places in the whole.
fn among(gone: u32, rest: u32) -> u32 {
    if gone == 0 {
        return rest;
    }
    let left = (0..u32::BITS).filter(|at| gone & 1 << at == 0);
    let places = left.enumerate().filter(|(i, _)| rest & 1 << i != 0);
    places.fold(gone, |bits, (_, at)| bits | 1 << at)
}

impl Queue {
    fn new(attachment: Arc<Attachment>, queue: u16) -> Self {
        let port = attachment.port();
        Self {
            attachment,
            port,
            queue,
            _not_sync: PhantomData,
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} queue {}", self.attachment.device(), self.queue)
    }
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RxQueue").field(&self.queue).finish()
    }
}

impl fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TxQueue").field(&self.queue).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Eal, EalConfig, MempoolConfig, Stock};

    // The only test of this program that starts DPDK. No driver that frees unseen runs without hardware, so the
    // queue's part is tested here.
    #[test]
    fn whole_frames_of_one_pool_pass() {
        let eal = Eal::init(&EalConfig::default()).unwrap();
        let config = MempoolConfig {
            count: 128,
            ..MempoolConfig::default()
        };
        let (own, other) = (
            Mempool::new(eal, config).unwrap(),
            Mempool::new(eal, config).unwrap(),
        );
        let mut burst = MbufBurst::new();
        let sizes = [60, 3000, 60, 2048, 3000, 61];
        for (pool, len) in [own, own, other, own, other, own].into_iter().zip(sizes) {
            let mbuf = Stock::new(pool).frame(len, |_, room| room.len()).unwrap();
            burst.push(mbuf).unwrap();
        }
        assert_eq!(refuse(&mut burst, |m| m.is_whole_of(own)), 0b01_0110);
        let left: Vec<u32> = burst.iter().map(Mbuf::len).collect();
        assert_eq!(left, [60, 2048, 61]);
        drop(burst);
        assert_eq!((own.available(), other.available()), (128, 128));
    }

    #[test]
    fn places_of_what_was_refused_twice() {
        // Of 0 to 5, 1 and 2 go first; of 0, 3, 4, 5 the second and the last.
        assert_eq!(among(0b0110, 0b1010), 0b10_1110);
        assert_eq!(among(0, 0b1010), 0b1010);
        assert_eq!(among(u32::MAX, 0), u32::MAX);
        assert_eq!(among(1, 1 << 30), 1 | 1 << 31);
    }
}
