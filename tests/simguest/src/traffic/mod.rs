//! Load: a generator and a meter for many millions of frames a second.
//!
//! Each frame is UDP over IPv4 and carries a stamp: flow number (u32), a magic word (u32) and the flow's sequence number
//! (u64), little endian, at [`Pattern::stamp_offset`]. The meter reads the stamp back and counts what arrived, what is
//! missing and what came in the wrong order, per flow. Flows are sent round robin, so the generator needs no table.
//!
//! A pattern may have lengths that vary from frame to frame ([`Pattern::mix`]), many addresses, a time in each frame
//! ([`Pattern::timed`]), and a payload that is written and checked to the last byte ([`Pattern::touch`]).
//!
//! Limits: frames of 60 bytes (4 more with a tag, 4 more with a time) to the transmit buffer's size less the header,
//! 2^24 flows.

mod generator;
mod meter;

pub use generator::Generator;
pub use meter::{Meter, Tally};

use crate::frames::{Eth, Ip, udp};

const MAGIC: u32 = 0x51f7_a11e;
/// Bytes of the stamp, and of the time behind it.
const STAMP: usize = 16;
const TIME: usize = 4;
/// Entries of the table of lengths, at least; a power of two, so that slots of a ring keep theirs from lap to lap.
const LENGTHS: usize = 1024;

/// What the frames of a load look like.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Destination address (of flow 0).
    pub dst: [u8; 6],
    /// Source address (of flow 0).
    pub src: [u8; 6],
    /// VLAN tag, if any.
    pub tag: Option<u16>,
    /// Bytes of a frame, without FCS; of the longest one in a mix.
    pub frame_len: usize,
    /// Number of flows; each has UDP ports of its own.
    pub flows: u32,
    /// Number of the first flow, where several generators feed one meter.
    pub first_flow: u32,
    /// Source addresses: the flows take them by turns, the lowest 16 bits are counted up from `src`.
    pub srcs: u32,
    /// Destination addresses, in the same way.
    pub dsts: u32,
    /// Every frame carries the low 32 bits of a time behind its stamp.
    pub timed: bool,
    /// All bytes behind stamp and time are written anew for every frame sent, and checked in every frame received.
    pub touch: bool,
    lens: Vec<usize>,
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
            srcs: 1,
            dsts: 1,
            timed: false,
            touch: false,
            lens: Vec::new(),
        }
    }

    /// With so many flows.
    #[must_use]
    pub fn flows(mut self, flows: u32) -> Self {
        self.flows = flows.clamp(1, 1 << 24);
        self
    }

    /// Frames of these lengths by turns: frame `n` of the whole load has the length `n` modulo 1,024 (or the next
    /// power of two), the list being repeated up to there. An empty list takes the mix away.
    #[must_use]
    pub fn mix(mut self, lens: &[usize]) -> Self {
        let count = match lens.len() {
            0 => 0,
            some => some.next_power_of_two().max(LENGTHS),
        };
        self.lens = lens.iter().copied().cycle().take(count).collect();
        if let Some(longest) = lens.iter().max() {
            self.frame_len = *longest;
        }
        self
    }

    /// With a time in each frame.
    #[must_use]
    pub fn timed(mut self) -> Self {
        self.timed = true;
        self
    }

    /// With a payload that is written and checked.
    #[must_use]
    pub fn touch(mut self) -> Self {
        self.touch = true;
        self
    }

    /// Where in a frame the stamp is.
    #[inline]
    pub fn stamp_offset(&self) -> usize {
        44 + self.l3() - 14
    }

    /// Where the bytes begin that [`Pattern::touch`] speaks of.
    fn payload_offset(&self) -> usize {
        self.stamp_offset() + STAMP + if self.timed { TIME } else { 0 }
    }

    /// Shortest frame that has room for the stamp, and the time if there is one.
    pub fn min_len(&self) -> usize {
        self.payload_offset()
    }

    #[inline]
    fn l3(&self) -> usize {
        if self.tag.is_some() { 18 } else { 14 }
    }

    /// Lengths by frame number, a power of two of them.
    fn lens(&self) -> Vec<usize> {
        let lens: &[usize] = match self.lens.as_slice() {
            [] => std::slice::from_ref(&self.frame_len),
            lens => lens,
        };
        lens.iter().map(|len| *len.max(&self.min_len())).collect()
    }

    /// Nothing changes from frame to frame but ports and stamp.
    fn is_plain(&self) -> bool {
        self.lens.is_empty() && self.srcs <= 1 && self.dsts <= 1 && !self.timed && !self.touch
    }

    /// A frame of `len` bytes before flow and stamp are filled in.
    fn template(&self, len: usize) -> Vec<u8> {
        let mut eth = Eth::new(self.dst, self.src);
        eth.tags.extend(self.tag);
        let payload: Vec<u8> = (0..len - self.l3() - 28).map(|i| i as u8).collect();
        let mut frame = udp(&eth, &Ip::new([10, 0, 0, 1], [10, 0, 0, 2]), 0, 0, &payload);
        // No UDP checksum: ports and stamp change from frame to frame.
        let check = self.l3() + 26;
        frame[check..check + 2].fill(0);
        frame
    }

    /// What the payload of a frame begins with; it counts on in words of eight bytes.
    fn payload_key(id: u32, seq: u64) -> u64 {
        (seq ^ u64::from(id) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}
