//! Load: a generator and a meter for many millions of frames a second.
//!
//! Each frame is UDP over IPv4 and carries a stamp: flow number (u32), a magic word (u32) and the flow's sequence number
//! (u64), little endian, at [`Pattern::stamp_offset`]. The meter reads the stamp back and counts what arrived, what is
//! missing and what came in the wrong order, per flow. Flows are sent round robin, so the generator needs no table.
//!
//! Limits: frames of 60 bytes (64 with a tag) to the transmit buffer's size less the header, 2^24 flows.

use crate::driver::{DeviceFault, RxQueue, TxError, TxQueue};
use crate::frames::{Eth, Ip, udp};

const MAGIC: u32 = 0x51f7_a11e;

/// What the frames of a load look like.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Destination address (of flow 0).
    pub dst: [u8; 6],
    /// Source address (of flow 0).
    pub src: [u8; 6],
    /// VLAN tag, if any.
    pub tag: Option<u16>,
    /// Bytes of a frame, without FCS.
    pub frame_len: usize,
    /// Number of flows; each has UDP ports of its own.
    pub flows: u32,
    /// Number of the first flow, where several generators feed one meter.
    pub first_flow: u32,
    /// Each flow has a source address of its own (lowest 16 bits counted up).
    pub many_src: bool,
    /// Each flow has a destination address of its own (lowest 16 bits counted up).
    pub many_dst: bool,
}

impl Pattern {
    /// One flow, untagged.
    pub fn new(dst: [u8; 6], src: [u8; 6], frame_len: usize) -> Self {
        Self {
            dst,
            src,
            tag: None,
            frame_len,
            flows: 1,
            first_flow: 0,
            many_src: false,
            many_dst: false,
        }
    }

    /// With so many flows.
    #[must_use]
    pub fn flows(mut self, flows: u32) -> Self {
        self.flows = flows.clamp(1, 1 << 24);
        self
    }

    /// Where in a frame the stamp is.
    pub fn stamp_offset(&self) -> usize {
        44 + self.l3() - 14
    }

    /// Shortest frame that has room for the stamp.
    pub fn min_len(&self) -> usize {
        self.stamp_offset() + 16
    }

    fn l3(&self) -> usize {
        if self.tag.is_some() { 18 } else { 14 }
    }

    /// The frame before flow and stamp are filled in.
    fn template(&self) -> Vec<u8> {
        let mut eth = Eth::new(self.dst, self.src);
        eth.tags.extend(self.tag);
        let len = self.frame_len.max(self.min_len());
        let payload: Vec<u8> = (0..len - self.l3() - 28).map(|i| i as u8).collect();
        let mut frame = udp(&eth, &Ip::new([10, 0, 0, 1], [10, 0, 0, 2]), 0, 0, &payload);
        // No UDP checksum: ports and stamp change from frame to frame.
        let check = self.l3() + 26;
        frame[check..check + 2].fill(0);
        frame
    }
}

/// Fills a transmit queue with the frames of a [`Pattern`].
#[derive(Debug)]
pub struct Generator {
    pattern: Pattern,
    flow: u32,
    lap: u64,
}

impl Generator {
    /// Prepares `queue`; nothing else may be sent on it while the generator is used.
    pub fn new(pattern: Pattern, queue: &mut TxQueue) -> Result<Self, TxError> {
        queue.prefill(&pattern.template())?;
        Ok(Self {
            pattern,
            flow: 0,
            lap: 0,
        })
    }

    /// Sends up to `max` frames, as many as the ring has room for; returns how many. A flow's frames are numbered
    /// from 0 without gaps.
    #[inline]
    pub fn burst(&mut self, queue: &mut TxQueue, max: u16) -> Result<u16, DeviceFault> {
        let pattern = &self.pattern;
        let (ports, stamp) = (pattern.l3() + 20, pattern.stamp_offset());
        let dst = u16::from_be_bytes([pattern.dst[4], pattern.dst[5]]);
        let src = u16::from_be_bytes([pattern.src[4], pattern.src[5]]);
        let (flow, lap) = (&mut self.flow, &mut self.lap);
        queue.send_burst(max, |slot| {
            let id = pattern.first_flow + *flow;
            if pattern.many_dst {
                slot.store_u16(4, dst.wrapping_add(*flow as u16).to_be());
            }
            if pattern.many_src {
                slot.store_u16(10, src.wrapping_add(*flow as u16).to_be());
            }
            // Source port: the low half of the number, destination port: 5001 and the high half.
            let pair = (id & 0xffff) << 16 | (5001 + (id >> 16)) & 0xffff;
            slot.store_u32(ports, pair.to_be());
            let mark = u64::from(MAGIC) << 32 | u64::from(id);
            slot.store_u128(stamp, u128::from(*lap) << 64 | u128::from(mark));
            *flow += 1;
            if *flow == pattern.flows {
                *flow = 0;
                *lap += 1;
            }
        })
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.lap * u64::from(self.pattern.flows) + u64::from(self.flow)
    }
}

/// What a meter has seen.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Frames with a good stamp.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sequence numbers jumped over.
    pub missing: u64,
    /// Frames whose number was not above all before: late or twice.
    pub late: u64,
    /// Frames without a stamp, of an unknown flow, or of the wrong length.
    pub alien: u64,
}

/// Takes frames from receive queues and checks their stamps. One meter may serve several queues of one thread; flows
/// that are spread over meters must not be shared between them.
#[derive(Debug)]
pub struct Meter {
    next: Vec<u64>,
    first_flow: u32,
    stamp: usize,
    len: usize,
    tally: Tally,
}

impl Meter {
    /// For the frames of a pattern.
    pub fn new(pattern: &Pattern) -> Self {
        Self {
            next: vec![0; pattern.flows as usize],
            first_flow: pattern.first_flow,
            stamp: pattern.stamp_offset(),
            len: pattern.frame_len.max(pattern.min_len()),
            tally: Tally::default(),
        }
    }

    /// Takes up to `max` frames; returns how many there were.
    #[inline]
    pub fn burst(&mut self, queue: &mut RxQueue, max: u16) -> Result<u16, DeviceFault> {
        let Self {
            next,
            first_flow,
            stamp,
            len,
            tally,
        } = self;
        queue.recv_burst(max, |frame| {
            let word = frame.load_u128(*stamp);
            let (mark, seq) = (word as u64, (word >> 64) as u64);
            let flow = (mark as u32).wrapping_sub(*first_flow);
            let expected = match next.get_mut(flow as usize) {
                Some(next) if mark >> 32 == u64::from(MAGIC) && frame.len() == *len => next,
                _ => {
                    tally.alien += 1;
                    return;
                }
            };
            tally.frames += 1;
            tally.bytes += *len as u64;
            if seq >= *expected {
                tally.missing += seq - *expected;
                *expected = seq + 1;
            } else {
                tally.late += 1;
            }
        })
    }

    /// What was seen so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }
}
