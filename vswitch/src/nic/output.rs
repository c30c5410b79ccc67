//! To the NIC: frames copied into packet buffers, with what is left to do asked of the device.

use std::time::Instant;

use arrayvec::ArrayVec;
use parking_lot::Mutex;
use vswitch_dpdk::{FrameError, MbufBurst, Mempool, Stock, TxCapabilities, TxQueue};
use vswitch_packet::{Accepts, HeadEdit, Offload};
use vswitch_vhost::{Pieces, TxFrame};

use super::request::{Request, request};
use crate::forward::BURST;
use crate::forward::counters::OutputDrop;
use crate::forward::output::{Outcome, Outcomes};
use crate::forward::software::Finisher;

/// What the device does, once it is asked: then software leaves everything to it.
const EVERYTHING: Accepts = Accepts {
    csum: true,
    tso4: true,
    tso6: true,
    ecn: true,
};

/// The transmit queues of a device. Where there is one for each worker, its lock is taken by nobody else but who moves a
/// queue from one worker to another. Workers beyond the number of queues share them.
pub struct NicOutput {
    queues: Box<[Mutex<Option<NicTx>>]>,
    device: TxCapabilities,
    /// Bytes of a packet buffer.
    room: u16,
}

struct NicTx {
    queue: TxQueue,
    stock: Stock,
    /// Buffers that a frame which is not to be cut may have.
    segments: u16,
    burst: MbufBurst,
    /// Which frame of the list each packet of the burst belongs to.
    owners: ArrayVec<u8, BURST>,
    failed: [Option<OutputDrop>; BURST],
}

impl NicOutput {
    /// The queues of a device that does `device`, with packet buffers from this pool.
    pub(super) fn new(device: TxCapabilities, queues: Vec<TxQueue>, pool: Mempool) -> Self {
        let segments = if device.multi_segment {
            device.max_mtu_segments
        } else {
            1
        };
        let queues = queues.into_iter();
        NicOutput {
            device,
            room: pool.config().data_room,
            queues: queues
                .map(|queue| Mutex::new(Some(NicTx::new(queue, pool, segments))))
                .collect(),
        }
    }

    /// How many there are.
    pub fn queues(&self) -> u16 {
        self.queues.len() as u16
    }

    /// Gives every queue up; what is sent from now on is not connected.
    pub(super) fn close(&self) {
        for queue in &self.queues {
            queue.lock().take();
        }
    }

    /// The queue that a worker sends by.
    #[inline]
    fn queue_of(&self, worker: usize) -> Option<&Mutex<Option<NicTx>>> {
        self.queues.get(worker % self.queues.len().max(1))
    }

    /// Waits until the device has sent what the first of two workers gave it, if the second sends by another queue. False
    /// if it had not by then, or cannot tell.
    pub fn settle(&self, from: usize, to: usize, until: Instant) -> bool {
        let queues = self.queues.len().max(1);
        if from % queues == to % queues {
            return true;
        }
        loop {
            // Between two looks the lock is free: the worker sends for its other inputs.
            let done = self.queue_of(from).is_none_or(|place| {
                let place = place.lock();
                place
                    .as_ref()
                    .is_none_or(|tx| tx.queue.is_drained() == Some(true))
            });
            if done || Instant::now() >= until {
                return done;
            }
            std::thread::yield_now();
        }
    }

    /// Sends a list of frames by one queue, and tells what became of each, in order; false if there is no such queue, and
    /// then nothing is told.
    pub fn send<'f>(
        &self,
        queue: u16,
        frames: impl Iterator<Item = (TxFrame<'f>, HeadEdit, Offload)>,
        finisher: &mut Finisher,
        mut tell: impl FnMut(Outcome),
    ) -> bool {
        let mut place = match self.queues.get(usize::from(queue)) {
            Some(place) => place.lock(),
            None => return false,
        };
        let Some(tx) = place.as_mut() else {
            return false;
        };
        tx.failed = [None; BURST];
        let mut outcomes = Outcomes::new();
        for (i, (frame, edit, offload)) in frames.enumerate() {
            let sent = self.send_one(tx, i as u8, &frame, edit, &offload, finisher);
            let _ = outcomes.try_push(sent);
        }
        tx.flush();
        for (outcome, failed) in outcomes.into_iter().zip(tx.failed) {
            tell(match (outcome.get(), failed) {
                (Ok(_), Some(reason)) => Outcome::dropped(reason),
                _ => outcome,
            });
        }
        true
    }

    #[inline]
    fn send_one(
        &self,
        tx: &mut NicTx,
        owner: u8,
        frame: &TxFrame<'_>,
        edit: HeadEdit,
        offload: &Offload,
        finisher: &mut Finisher,
    ) -> Outcome {
        let Some(csum) = offload.csum else {
            return finisher.deliver(
                frame,
                edit,
                offload,
                Accepts::default(),
                |_, parts, tail| tx.put(owner, None, parts, tail),
            );
        };
        let asked = request(
            &self.device,
            self.room,
            offload,
            frame.head,
            frame.len as usize,
        );
        let accepts = match asked {
            Some(_) => EVERYTHING,
            None => Accepts::default(),
        };
        finisher.deliver(frame, edit, offload, accepts, |header, parts, tail| {
            // A tag moves what is asked for, and the header has been moved already.
            let shift = header.csum_start.wrapping_sub(csum.start).cast_signed();
            let asked = asked.map(|asked| asked.moved(shift));
            tx.put(owner, asked, parts, tail)
        })
    }
}

impl NicTx {
    fn new(queue: TxQueue, pool: Mempool, segments: u16) -> Self {
        NicTx {
            queue,
            stock: Stock::new(pool),
            segments,
            burst: MbufBurst::new(),
            owners: ArrayVec::new(),
            failed: [None; BURST],
        }
    }

    #[inline]
    fn put(
        &mut self,
        owner: u8,
        asked: Option<Request>,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), OutputDrop> {
        if self.burst.is_full() {
            self.flush();
        }
        let head: usize = parts.iter().map(|p| p.len()).sum();
        let len = (head + tail.len()) as u32;
        let mut mbuf = self
            .stock
            .frame(len, |offset, room| copy_at(parts, head, tail, offset, room))
            .map_err(|error| match error {
                FrameError::NoBuffers => OutputDrop::NoMbuf,
                FrameError::TooLarge | FrameError::Short => OutputDrop::FrameTooLarge,
            })?;
        match asked {
            None if mbuf.segment_count() > self.segments => return Err(OutputDrop::FrameTooLarge),
            None => {}
            Some(Request { ask, field }) => {
                let place = field.and_then(|(at, value)| {
                    let place = mbuf.data_mut().get_mut(usize::from(at)..)?;
                    Some((place.first_chunk_mut::<2>()?, value))
                });
                if let Some((place, value)) = place {
                    *place = value;
                }
                mbuf.request_offload(ask)
                    .map_err(|_| OutputDrop::OffloadFailed)?;
            }
        }
        if self.burst.push(mbuf).is_ok() {
            let _ = self.owners.try_push(owner);
        }
        Ok(())
    }

    /// Sends what is there. What the device does not take is dropped: a slow receiver never holds its source back.
    fn flush(&mut self) {
        if self.burst.is_empty() {
            return;
        }
        let refused = self.queue.tx_burst(&mut self.burst).refused;
        if refused != 0 || !self.burst.is_empty() {
            self.settle(refused);
        }
        self.owners.clear();
    }

    /// Notes what became of frames that were not sent: bits of `refused` are places in the burst as it was given, and what
    /// is still in the burst are the last of the others.
    #[cold]
    fn settle(&mut self, refused: u32) {
        let mut kept = self.burst.len();
        for (place, owner) in self.owners.iter().enumerate().rev() {
            let reason = if refused & 1 << place != 0 {
                OutputDrop::OffloadFailed
            } else if kept > 0 {
                kept -= 1;
                OutputDrop::NicQueueFull
            } else {
                continue;
            };
            if let Some(failed) = self.failed.get_mut(usize::from(*owner)) {
                *failed = Some(reason);
            }
        }
        self.burst.clear();
    }
}

/// Copies a stretch of a frame, which is its head's parts and then its tail; returns how much it copied.
fn copy_at(
    parts: &[&[u8]],
    head: usize,
    tail: Pieces<'_>,
    offset: usize,
    room: &mut [u8],
) -> usize {
    if offset == 0 && room.len() >= head {
        // Nearly always: all of the frame's head goes into one buffer.
        let mut done = 0;
        for part in parts {
            if let Some(target) = room.get_mut(done..done + part.len()) {
                target.copy_from_slice(part);
                done += part.len();
            }
        }
        let rest = room.get_mut(done..).unwrap_or_default();
        return done + tail.copy_to(0, rest);
    }
    let (mut done, mut at) = (0, 0);
    for part in parts {
        let from = (offset + done).saturating_sub(at);
        if let (Some(source), true) = (part.get(from..), offset + done >= at)
            && let Some(target) = room.get_mut(done..)
        {
            let n = source.len().min(target.len());
            if let (Some(t), Some(s)) = (target.get_mut(..n), source.get(..n)) {
                t.copy_from_slice(s);
                done += n;
            }
        }
        at += part.len();
    }
    match room.get_mut(done..) {
        Some(rest) if !rest.is_empty() && offset + done >= head => {
            done + tail.copy_to(offset + done - head, rest)
        }
        _ => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_vhost::Piece;

    #[test]
    fn copies_any_stretch_of_a_frame() {
        let (a, b, c) = ([1u8, 2, 3], [4u8], [5u8, 6, 7, 8]);
        let rest = [9u8, 10, 11];
        let pieces = [Piece::from(&rest[..])];
        let whole: Vec<u8> = (1..=11).collect();
        for offset in 0..=11 {
            for len in 0..=11 - offset {
                let mut room = vec![0; len];
                let n = copy_at(
                    &[&a, &b, &c],
                    8,
                    Pieces::from_slice(&pieces),
                    offset,
                    &mut room,
                );
                assert_eq!((n, &room[..]), (len, &whole[offset..offset + len]));
            }
        }
    }
}
