//! The sending half.

use crate::driver::{DeviceFault, Slot, TxError, TxQueue};

use super::{MAGIC, Pattern, STAMP};

/// Fills a transmit queue with the frames of a [`Pattern`].
#[derive(Debug)]
pub struct Generator {
    pattern: Pattern,
    plain: bool,
    /// What depends on a frame's length, by frame number; a power of two of them.
    lens: Vec<Length>,
    flow: u32,
    lap: u64,
}

/// A frame's length, and the fields in it that say so.
#[derive(Clone, Copy, Debug)]
struct Length {
    frame: u32,
    ip_len: u16,
    ip_check: u16,
    udp_len: u16,
}

impl Generator {
    /// Prepares `queue`; nothing else may be sent on it while the generator is used.
    pub fn new(pattern: Pattern, queue: &mut TxQueue) -> Result<Self, TxError> {
        let lens = pattern.lens();
        let longest = lens.iter().copied().max().unwrap_or_default();
        queue.prefill(&pattern.template(longest))?;
        let l3 = pattern.l3();
        let of_len = |len: usize| {
            let frame = pattern.template(len);
            let word = |at: usize| u16::from_le_bytes([frame[at], frame[at + 1]]);
            Length {
                frame: len as u32,
                ip_len: word(l3 + 2),
                ip_check: word(l3 + 10),
                udp_len: word(l3 + 24),
            }
        };
        Ok(Self {
            plain: pattern.is_plain(),
            lens: lens.into_iter().map(of_len).collect(),
            pattern,
            flow: 0,
            lap: 0,
        })
    }

    /// Sends up to `max` frames, as many as the ring has room for; returns how many. A flow's frames are numbered
    /// from 0 without gaps.
    #[inline]
    pub fn burst(&mut self, queue: &mut TxQueue, max: u16) -> Result<u16, DeviceFault> {
        if self.plain {
            self.send_plain(queue, max)
        } else {
            self.send_any(queue, max, 0)
        }
    }

    /// The same, with `time` in the frames if the pattern is [`Pattern::timed`].
    #[inline]
    pub fn burst_at(
        &mut self,
        queue: &mut TxQueue,
        max: u16,
        time: u32,
    ) -> Result<u16, DeviceFault> {
        if self.plain {
            self.send_plain(queue, max)
        } else {
            self.send_any(queue, max, time)
        }
    }

    #[inline]
    fn send_plain(&mut self, queue: &mut TxQueue, max: u16) -> Result<u16, DeviceFault> {
        let (ports, stamp) = (self.pattern.l3() + 20, self.pattern.stamp_offset());
        let (first, flows) = (self.pattern.first_flow, self.pattern.flows);
        let (mut flow, mut lap) = (self.flow, self.lap);
        let sent = queue.send_burst(max, |slot| {
            sign(slot, ports, stamp, first + flow, lap);
            flow += 1;
            if flow == flows {
                flow = 0;
                lap += 1;
            }
        });
        (self.flow, self.lap) = (flow, lap);
        sent
    }

    #[inline(never)]
    fn send_any(&mut self, queue: &mut TxQueue, max: u16, time: u32) -> Result<u16, DeviceFault> {
        let pattern = &self.pattern;
        let (l3, stamp, payload) = (
            pattern.l3(),
            pattern.stamp_offset(),
            pattern.payload_offset(),
        );
        let low = |mac: [u8; 6]| u16::from_be_bytes([mac[4], mac[5]]);
        let (dst, src) = (low(pattern.dst), low(pattern.src));
        let (lens, mixed) = (self.lens.as_slice(), self.lens.len() > 1);
        let (flow, lap) = (&mut self.flow, &mut self.lap);
        queue.send_burst(max, |slot| {
            let id = pattern.first_flow + *flow;
            if pattern.dsts > 1 {
                let dst = dst.wrapping_add((*flow % pattern.dsts) as u16);
                slot.store_u16(4, dst.to_be());
            }
            if pattern.srcs > 1 {
                let src = src.wrapping_add((*flow % pattern.srcs) as u16);
                slot.store_u16(10, src.to_be());
            }
            if mixed {
                let number = *lap * u64::from(pattern.flows) + u64::from(*flow);
                let len = lens[number as usize & (lens.len() - 1)];
                slot.set_frame_len(len.frame as usize);
                slot.store_u16(l3 + 2, len.ip_len);
                slot.store_u16(l3 + 10, len.ip_check);
                slot.store_u16(l3 + 24, len.udp_len);
            }
            sign(slot, l3 + 20, stamp, id, *lap);
            if pattern.timed {
                slot.store_u32(stamp + STAMP, time);
            }
            if pattern.touch {
                let rest = slot.frame_len() - payload;
                slot.write_words(payload, rest, Pattern::payload_key(id, *lap));
            }
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

/// Makes a frame one of its flow.
#[inline(always)]
fn sign(slot: &mut Slot<'_>, ports: usize, stamp: usize, id: u32, lap: u64) {
    // Source port: the low half of the number, destination port: 5001 and the high half.
    let pair = (id & 0xffff) << 16 | (5001 + (id >> 16)) & 0xffff;
    slot.store_u32(ports, pair.to_be());
    let mark = u64::from(MAGIC) << 32 | u64::from(id);
    slot.store_u128(stamp, u128::from(lap) << 64 | u128::from(mark));
}
