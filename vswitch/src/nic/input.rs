//! From the NIC: received bursts as frames.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use vswitch_dpdk::{Checksum, Mbuf, MbufBurst, RxQueue, Wake};
use vswitch_packet::{Accepts, HEAD_LEN, L3, L4, VirtioNetHdr, parse};
use vswitch_vhost::{Piece, Pieces, TxFrame};

use super::dpdk::adopt_thread;
use super::gro::{self, Sizes};
use super::reta::Sampler;
use crate::forward::BURST;
use crate::forward::counters::InputDrop;
use crate::forward::deliver::Frames;

/// Buffers that received frames may be spread over, on average over a burst.
pub const SEGMENTS: usize = 8;
const PIECES: usize = BURST * SEGMENTS;

/// A receive queue in a worker's hands.
pub struct NicInput {
    queue: RxQueue,
    mbufs: MbufBurst,
    bad_checksums: Arc<AtomicU64>,
    sampler: Option<Sampler>,
}

impl NicInput {
    /// The queue's owner; frames with wrong checksums are counted in `bad_checksums`, frames by their hash by `sampler`.
    pub(super) fn new(
        queue: RxQueue,
        bad_checksums: Arc<AtomicU64>,
        sampler: Option<Sampler>,
    ) -> Self {
        NicInput {
            queue,
            mbufs: MbufBurst::new(),
            bad_checksums,
            sampler,
        }
    }

    /// What a worker that sleeps waits on, and whether that is readable for as long as there are frames, rather than once
    /// for each interrupt. `None` if the queue wakes nobody.
    pub fn wake(&self) -> Option<(BorrowedFd<'_>, bool)> {
        let fd = self.queue.wake_fd()?;
        Some((fd, self.queue.wake() == Wake::Readable))
    }

    /// Asks to be woken by the next frame; true if it will be. What has come before does not wake.
    pub fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    /// Asks no longer.
    pub fn disarm(&mut self) {
        self.queue.disarm();
    }

    /// Called on the worker's thread before the first poll.
    pub fn adopt(&mut self) {
        adopt_thread();
    }

    /// Takes a burst and shows it to `forward`; says how many packets were taken. `takes` says what the receiver of a frame with
    /// this head takes, if there is only one.
    pub fn poll(
        &mut self,
        takes: impl Fn(&[u8]) -> Accepts,
        forward: impl FnOnce(&NicBurst<'_>),
    ) -> usize {
        let taken = self.queue.rx_burst(&mut self.mbufs);
        if taken == 0 {
            return 0;
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.see(&self.mbufs);
        }
        let trains = if self.mbufs.len() > 1 {
            gro::merge(&mut self.mbufs, takes)
        } else {
            Sizes::default()
        };
        {
            let burst = NicBurst::of(&self.mbufs, &trains);
            if burst.bad > 0 {
                // Shared by the queues of a port, but a wrong checksum is rare.
                self.bad_checksums
                    .fetch_add(u64::from(burst.bad), Ordering::Relaxed);
            }
            forward(&burst);
        }
        self.mbufs.clear();
        taken
    }
}

/// A received burst as frames.
pub struct NicBurst<'a> {
    frames: ArrayVec<NicFrame<'a>, BURST>,
    /// What is behind the frames' heads, one after the other.
    pieces: ArrayVec<Piece<'a>, PIECES>,
    /// Frames whose checksums are wrong. They are delivered as they are: whose they are decides.
    bad: u32,
}

struct NicFrame<'a> {
    header: VirtioNetHdr,
    valid: bool,
    head: &'a [u8],
    /// Which pieces; `None` if there are too many.
    tail: Option<Range<u16>>,
    len: u32,
}

impl<'a> NicBurst<'a> {
    fn of(mbufs: &'a MbufBurst, trains: &Sizes) -> Self {
        let mut burst = NicBurst {
            frames: ArrayVec::new(),
            pieces: ArrayVec::new(),
            bad: 0,
        };
        for (mbuf, size) in mbufs.iter().zip(trains) {
            burst.add(mbuf, *size);
        }
        burst
    }

    #[inline]
    fn add(&mut self, mbuf: &'a Mbuf, train: u16) {
        let data = mbuf.data();
        let (head, rest) = data.split_at(data.len().min(HEAD_LEN));
        let len = mbuf.len();
        let checksum = mbuf.l4_checksum();
        let header = match (train, checksum) {
            (1.., _) => {
                let parsed = parse(head, len as usize).ok();
                let v6 = parsed.is_some_and(|p| matches!(p.l3, L3::Ipv6(_)));
                VirtioNetHdr {
                    gso_size: train,
                    gso_type: if v6 {
                        VirtioNetHdr::GSO_TCPV6
                    } else {
                        VirtioNetHdr::GSO_TCPV4
                    },
                    ..partial(head, len as usize)
                }
            }
            // A virtual device left its sender's checksum undone; what follows must know.
            (0, Checksum::Absent) => partial(head, len as usize),
            _ => VirtioNetHdr::default(),
        };
        self.bad += u32::from(checksum == Checksum::Bad || mbuf.ip_checksum() == Checksum::Bad);
        let tail = self.tail(mbuf, rest);
        let _ = self.frames.try_push(NicFrame {
            header,
            valid: checksum == Checksum::Good,
            head,
            tail,
            len,
        });
    }

    /// Files what is behind a frame's head.
    #[inline]
    fn tail(&mut self, mbuf: &'a Mbuf, rest: &'a [u8]) -> Option<Range<u16>> {
        let from = self.pieces.len();
        if !rest.is_empty() {
            self.pieces.try_push(Piece::from(rest)).ok()?;
        }
        if mbuf.segment_count() > 1 {
            for part in mbuf.segments().skip(1).filter(|part| !part.is_empty()) {
                self.pieces.try_push(Piece::from(part)).ok()?;
            }
        }
        Some(from as u16..self.pieces.len() as u16)
    }
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
        self.frames.get(i).is_some_and(|frame| frame.valid)
    }

    #[inline]
    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop> {
        let frame = self.frames.get(i).ok_or(InputDrop::Runt)?;
        let tail = frame.tail.as_ref().ok_or(InputDrop::OverMtu)?;
        let pieces = self.pieces.get(tail.start.into()..tail.end.into());
        Ok(TxFrame {
            header: frame.header,
            head: frame.head,
            tail: Pieces::from_slice(pieces.unwrap_or_default()),
            len: frame.len,
        })
    }
}
