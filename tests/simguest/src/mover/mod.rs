//! A device that trusts its guest: moves frames from one guest's transmit ring to another's receive ring.
//!
//! It is the peer for testing the driver without a switch, and the ceiling in benches: one copy, no switching, no
//! checks. It speaks both ring layouts with every option the driver has, in the same process, without a socket.
//! Not a model for the switch: it reads descriptors as often as it likes and believes everything.
//!
//! It polls, so it is to be run again and again: an interrupt that a guest asks for while frames come without pause may
//! wait until the first turn without.

mod direct;
mod end;
mod packed;
mod single;

use crate::driver::{RxQueue, TxQueue, header_len};
use crate::features::virtio;
use crate::memory::{Desc, Memory, View};
use direct::Jobs;
use end::End;

/// Moves frames in one direction.
#[derive(Debug)]
pub struct Mover {
    from: End,
    to: End,
    source: Vec<Desc>,
    sink: Vec<Desc>,
    jobs: Jobs,
    /// Frames moved if a ring is packed: the place of the next one in `jobs`.
    turn: u16,
}

impl Mover {
    /// From one guest's transmit queue (in `from`, with its features) to another's receive queue. A packed one must have
    /// taken back all that an earlier device used.
    pub fn new(from: (&Memory, &TxQueue, u64), to: (&Memory, &RxQueue, u64)) -> Self {
        let (memory, queue, features) = from;
        let source = End::new(memory, queue.ring(), queue.notifier(), features);
        let (memory, queue, features) = to;
        let sink = End::new(memory, queue.ring(), queue.notifier(), features);
        Self {
            from: source,
            to: sink,
            source: Vec::new(),
            sink: Vec::new(),
            jobs: Jobs::default(),
            turn: 0,
        }
    }

    /// Moves up to `max` frames; what finds no receive buffer is dropped. Returns how many were delivered.
    #[inline]
    pub fn run(&mut self, max: u16) -> u16 {
        let count = self
            .from
            .available(max.saturating_add(direct::AHEAD))
            .min(max);
        if count == 0 {
            self.from.settle();
            self.to.settle();
            return 0;
        }
        self.to.available(max.saturating_add(direct::AHEAD));
        let packed = self.from.is_packed() || self.to.is_packed();
        let (mut delivered, mut done) = (0, 0);
        while done < count {
            let moved = if packed {
                self.single(count - done)
            } else {
                self.direct(count - done)
            };
            (delivered, done) = (delivered + moved, done + moved);
            if done < count {
                self.jobs.forget();
                let head = self.from.chain(0, &mut self.source);
                delivered += u16::from(self.deliver());
                self.from.give_back(head, 0);
                done += 1;
            }
        }
        self.to.publish();
        self.from.publish();
        delivered
    }

    /// Copies the frame described by `self.source` into as many buffers as it takes.
    fn deliver(&mut self) -> bool {
        let skip = header_len(self.from.features) as usize;
        let header = header_len(self.to.features) as usize;
        let total: usize = self.source.iter().map(|d| d.len as usize).sum();
        let mut bytes = Bytes {
            chain: &self.source,
            end: &self.from,
            at: 0,
        };
        let mut head_bytes = [0; 12];
        bytes.copy_out(&mut head_bytes[..skip]);
        let mut rest = total.saturating_sub(skip) + header;
        let first = self.to.next;
        let mut taken: u16 = 0;
        let mut heads = [(0u16, 0u32); 64];
        // Where the two bytes of num_buffers went.
        let mut place = [None, None];
        let mut skip_header = header;
        while rest > 0 {
            let more = self.to.available(taken + 1) > taken && usize::from(taken) < heads.len();
            if !more || (taken > 0 && self.to.features & virtio::MRG_RXBUF == 0) {
                self.to.next = first;
                return false;
            }
            let head = self.to.chain(taken, &mut self.sink);
            let mut written = 0;
            for desc in &self.sink {
                let Some((view, at, len)) = self.to.resolve(*desc) else {
                    continue;
                };
                let hdr = skip_header.min(len);
                if hdr > 0 {
                    let done = header - skip_header;
                    view.copy_in(at, &head_bytes[done..done + hdr]);
                    for byte in (10..12).filter(|b| (done..done + hdr).contains(b)) {
                        place[byte - 10] = Some((view.clone(), at + byte - done));
                    }
                    skip_header -= hdr;
                }
                let count = (len - hdr).min(rest - hdr.min(rest));
                bytes.copy_to(view, at + hdr, count);
                rest -= hdr + count;
                written += (hdr + count) as u32;
                if rest == 0 {
                    break;
                }
            }
            heads[usize::from(taken)] = (head, written);
            taken += 1;
        }
        for (place, byte) in place.iter().zip(taken.to_le_bytes()) {
            if let Some((view, at)) = place {
                view.store(*at, byte);
            }
        }
        for &(head, written) in &heads[..usize::from(taken)] {
            self.to.give_back(head, written);
        }
        true
    }
}

/// Reads through a chain.
struct Bytes<'a> {
    chain: &'a [Desc],
    end: &'a End,
    at: usize,
}

impl Bytes<'_> {
    fn copy_out(&mut self, to: &mut [u8]) {
        let mut done = 0;
        while done < to.len() {
            let Some((view, at, len)) = self.here() else {
                return;
            };
            let count = len.min(to.len() - done);
            view.copy_out(at, &mut to[done..done + count]);
            self.advance(count);
            done += count;
        }
    }

    #[inline]
    fn copy_to(&mut self, to: &View<u8>, mut to_at: usize, mut rest: usize) {
        while rest > 0 {
            let Some((view, at, len)) = self.here() else {
                return;
            };
            let count = len.min(rest);
            to.copy_from(to_at, view, at, count);
            self.advance(count);
            to_at += count;
            rest -= count;
        }
    }

    #[inline]
    fn here(&mut self) -> Option<(&View<u8>, usize, usize)> {
        while self
            .chain
            .first()
            .is_some_and(|d| d.len as usize <= self.at)
        {
            self.chain = &self.chain[1..];
            self.at = 0;
        }
        let (view, offset, len) = self.end.resolve(*self.chain.first()?)?;
        Some((view, offset + self.at, len - self.at))
    }

    fn advance(&mut self, count: usize) {
        self.at += count;
    }
}
