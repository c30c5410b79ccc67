//! A device that trusts its guest: moves frames from one guest's transmit ring to another's receive ring.
//!
//! It is the peer for testing the driver without a switch, and the ceiling in benches: one copy, no switching, no
//! checks. It speaks split rings with every option the driver has, in the same process, without a socket.
//! Not a model for the switch: it reads descriptors as often as it likes and believes everything.

use std::sync::atomic::{Ordering, fence};

use crate::driver::{Notifier, RingParts, RxQueue, TxQueue, header_len};
use crate::features::virtio;
use crate::memory::{Desc, Memory, View};

/// The device's end of one ring.
#[derive(Debug)]
struct End {
    parts: RingParts,
    windows: Vec<(u64, View<u8>)>,
    notifier: Notifier,
    features: u64,
    next: u16,
    seen: u16,
    used: u16,
    signalled: u16,
}

impl End {
    fn new(memory: &Memory, parts: &RingParts, notifier: &Notifier, features: u64) -> Self {
        // The device is polling: it wants no kicks.
        parts.set_used_flags(1);
        let at = parts.used_idx();
        Self {
            parts: parts.clone(),
            windows: memory.windows(),
            notifier: notifier.clone(),
            features,
            next: at,
            seen: at,
            used: at,
            signalled: at,
        }
    }

    /// Chains that are there and not yet used. The shared index is read only if fewer than `wanted` are known.
    #[inline]
    fn available(&mut self, wanted: u16) -> u16 {
        if self.seen.wrapping_sub(self.next) < wanted {
            self.seen = self.parts.avail_idx();
        }
        self.seen.wrapping_sub(self.next)
    }

    #[inline]
    fn resolve(&self, desc: Desc) -> Option<(&View<u8>, usize, usize)> {
        self.windows.iter().find_map(|(guest, view)| {
            let offset = desc.addr.checked_sub(*guest)? as usize;
            (offset < view.len()).then_some((view, offset, desc.len as usize))
        })
    }

    /// Has the first buffers of the next `count` chains on the way to the cache before they are used.
    #[inline]
    fn fetch(&self, count: u16) {
        for ahead in 0..count.min(self.seen.wrapping_sub(self.next)) {
            let head = self.parts.avail_entry(self.next.wrapping_add(ahead));
            let desc = self.parts.desc.load(usize::from(head));
            if let Some((view, at, _)) = self.resolve(desc) {
                view.window().prefetch(at);
                view.window().prefetch(at + 64);
            }
        }
    }

    /// The chain at the next available entry, as descriptors, and its head.
    #[inline]
    fn chain(&self, ahead: u16, chain: &mut Vec<Desc>) -> u16 {
        chain.clear();
        let head = self.parts.avail_entry(self.next.wrapping_add(ahead));
        let mut desc = self.parts.desc.load(usize::from(head));
        let table = if desc.flags & Desc::INDIRECT != 0 {
            let start = (desc.addr - self.parts.tables_guest) as usize / Desc::SIZE;
            let table = self
                .parts
                .tables
                .slice(start, desc.len as usize / Desc::SIZE);
            desc = table.load(0);
            Some(table)
        } else {
            None
        };
        loop {
            chain.push(desc);
            if desc.flags & Desc::NEXT == 0 {
                return head;
            }
            desc = table
                .as_ref()
                .unwrap_or(&self.parts.desc)
                .load(usize::from(desc.next));
        }
    }

    #[inline]
    fn give_back(&mut self, head: u16, len: u32) {
        self.parts.set_used_entry(self.used, u32::from(head), len);
        self.used = self.used.wrapping_add(1);
        self.next = self.next.wrapping_add(1);
    }

    fn publish(&mut self) {
        if self.parts.used_idx() == self.used {
            return;
        }
        self.parts.set_used_idx(self.used);
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.signalled, self.used);
        let wanted = if self.features & virtio::EVENT_IDX != 0 {
            crate::driver::passed(self.parts.used_event(), old, self.used)
        } else {
            self.parts.avail_flags() & 1 == 0
        };
        if wanted {
            let _ = rustix::io::write(self.notifier.call_fd(), &1u64.to_ne_bytes());
        }
    }
}

/// Moves frames in one direction.
#[derive(Debug)]
pub struct Mover {
    from: End,
    to: End,
    source: Vec<Desc>,
    sink: Vec<Desc>,
}

impl Mover {
    /// From one guest's transmit queue (in `from`, with its features) to another's receive queue.
    pub fn new(from: (&Memory, &TxQueue, u64), to: (&Memory, &RxQueue, u64)) -> Self {
        let (memory, queue, features) = from;
        let source = End::new(memory, queue.ring().parts(), queue.notifier(), features);
        let (memory, queue, features) = to;
        let sink = End::new(memory, queue.ring().parts(), queue.notifier(), features);
        Self {
            from: source,
            to: sink,
            source: Vec::new(),
            sink: Vec::new(),
        }
    }

    /// Moves up to `max` frames; what finds no receive buffer is dropped. Returns how many were delivered.
    #[inline]
    pub fn run(&mut self, max: u16) -> u16 {
        let count = self.from.available(1).min(max);
        let mut delivered = 0;
        self.from.fetch(count);
        if self.to.available(1) > 0 {
            self.to.fetch(count);
        }
        for _ in 0..count {
            if self.one_to_one() {
                delivered += 1;
                continue;
            }
            let head = self.from.chain(0, &mut self.source);
            delivered += u16::from(self.deliver());
            self.from.give_back(head, 0);
        }
        self.to.publish();
        self.from.publish();
        delivered
    }

    /// The usual case, made short: one descriptor on each side, the same header on both.
    #[inline(always)]
    fn one_to_one(&mut self) -> bool {
        let many = Desc::NEXT | Desc::INDIRECT;
        let header = header_len(self.from.features);
        if self.to.available(1) == 0 || header != header_len(self.to.features) {
            return false;
        }
        let from_head = self.from.parts.avail_entry(self.from.next);
        let to_head = self.to.parts.avail_entry(self.to.next);
        let from = self.from.parts.desc.load(usize::from(from_head));
        let to = self.to.parts.desc.load(usize::from(to_head));
        if (from.flags | to.flags) & many != 0 || from.len > to.len || from.len < header {
            return false;
        }
        let (Some((source, source_at, len)), Some((sink, sink_at, _))) =
            (self.from.resolve(from), self.to.resolve(to))
        else {
            return false;
        };
        sink.copy_from(sink_at, source, source_at, len);
        if header == 12 {
            sink.store_u16(sink_at + 10, 1);
        }
        self.to.give_back(to_head, from.len);
        self.from.give_back(from_head, 0);
        true
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
