//! From the NIC: received bursts as frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use vswitch_dpdk::{Checksum, Mbuf, MbufBurst, RxQueue};
use vswitch_packet::{HEAD_LEN, L4, VirtioNetHdr, parse};
use vswitch_vhost::{Piece, Pieces, TxFrame};

use super::dpdk::adopt_thread;
use crate::forward::BURST;
use crate::forward::counters::InputDrop;
use crate::forward::deliver::Frames;

/// Buffers that a received frame may be spread over.
pub const SEGMENTS: usize = 8;

/// A receive queue in a worker's hands.
pub struct NicInput {
    queue: RxQueue,
    mbufs: MbufBurst,
    bad_checksums: Arc<AtomicU64>,
}

impl NicInput {
    /// The queue's owner; frames with wrong checksums are counted in `bad_checksums`.
    pub(super) fn new(queue: RxQueue, bad_checksums: Arc<AtomicU64>) -> Self {
        NicInput {
            queue,
            mbufs: MbufBurst::new(),
            bad_checksums,
        }
    }

    /// Called on the worker's thread before the first poll.
    pub fn adopt(&mut self) {
        adopt_thread();
    }

    /// Takes a burst and shows it to `forward`. True if there was one.
    pub fn poll(&mut self, forward: impl FnOnce(&NicBurst<'_>)) -> bool {
        if self.queue.rx_burst(&mut self.mbufs) == 0 {
            return false;
        }
        {
            let burst = NicBurst::of(&self.mbufs);
            if burst.bad > 0 {
                // Shared by the queues of a port, but a wrong checksum is rare.
                self.bad_checksums
                    .fetch_add(u64::from(burst.bad), Ordering::Relaxed);
            }
            forward(&burst);
        }
        self.mbufs.clear();
        true
    }
}

/// A received burst as frames.
pub struct NicBurst<'a> {
    frames: ArrayVec<Result<NicFrame<'a>, InputDrop>, BURST>,
    /// Frames whose checksums are wrong. They are delivered as they are: whose they are decides.
    bad: u32,
}

struct NicFrame<'a> {
    header: VirtioNetHdr,
    valid: bool,
    head: &'a [u8],
    tail: ArrayVec<Piece<'a>, SEGMENTS>,
    len: u32,
}

impl<'a> NicBurst<'a> {
    fn of(mbufs: &'a MbufBurst) -> Self {
        let wrong = |mbuf: &&Mbuf| {
            mbuf.l4_checksum() == Checksum::Bad || mbuf.ip_checksum() == Checksum::Bad
        };
        NicBurst {
            frames: mbufs.iter().take(BURST).map(frame).collect(),
            bad: mbufs.iter().filter(wrong).count() as u32,
        }
    }
}

fn frame(mbuf: &Mbuf) -> Result<NicFrame<'_>, InputDrop> {
    let mut segments = mbuf.segments();
    let first = segments.next().ok_or(InputDrop::Runt)?;
    let (head, rest) = first.split_at(first.len().min(HEAD_LEN));
    let mut tail = ArrayVec::new();
    for part in std::iter::once(rest)
        .chain(segments)
        .filter(|part| !part.is_empty())
    {
        tail.try_push(Piece::from(part))
            .map_err(|_| InputDrop::OverMtu)?;
    }
    let len = mbuf.len();
    let checksum = mbuf.l4_checksum();
    let header = match checksum {
        // A virtual device left its sender's checksum undone; what follows must know.
        Checksum::Absent => partial(head, len as usize),
        _ => VirtioNetHdr::default(),
    };
    Ok(NicFrame {
        header,
        valid: checksum == Checksum::Good,
        head,
        tail,
        len,
    })
}

/// The request that stands for "the transport checksum is still to be done".
fn partial(head: &[u8], len: usize) -> VirtioNetHdr {
    let offset = |l4: L4| match l4 {
        L4::Tcp(_) => Some(16),
        L4::Udp(_) => Some(6),
        _ => None,
    };
    let parsed = parse(head, len).ok();
    let field = parsed.and_then(|p| Some((p.l4_offset?, offset(p.l4)?)));
    field.map_or(VirtioNetHdr::default(), |(csum_start, csum_offset)| {
        VirtioNetHdr {
            flags: VirtioNetHdr::F_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..VirtioNetHdr::default()
        }
    })
}

impl Frames for NicBurst<'_> {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn valid(&self, i: usize) -> bool {
        matches!(self.frames.get(i), Some(Ok(frame)) if frame.valid)
    }

    #[inline]
    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop> {
        let frame = self
            .frames
            .get(i)
            .ok_or(InputDrop::Runt)?
            .as_ref()
            .map_err(|e| *e)?;
        Ok(TxFrame {
            header: frame.header,
            head: frame.head,
            tail: Pieces::from_slice(&frame.tail),
            len: frame.len,
        })
    }
}
