//! Receive: switch to guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::features::virtio;
use crate::header::VirtioNetHdr;
use crate::memory::{Memory, MemoryError, Window};

use super::fill::Arena;
use super::notify::{Counters, Notifier, count};
use super::ring::{Ring, Span};
use super::split::{Piece, Used};
use super::{DeviceFault, Mode, Shape};

/// How a receive queue is set up.
#[derive(Clone, Debug)]
pub struct RxOptions {
    /// Ring entries.
    pub size: u16,
    /// Bytes of each buffer posted, header included. None: what a usual driver takes, 2048 or, where trains may come
    /// without merging, 65,562.
    pub buffer: Option<u32>,
    /// How each buffer is cut.
    pub shape: Shape,
    /// Descriptors in each indirect table.
    pub table_len: u16,
    /// Buffers kept posted; None: as many as the ring holds.
    pub posted: Option<u16>,
    /// Interrupt handling.
    pub mode: Mode,
    /// Insist on `num_buffers` being 1 where VERSION_1 but not merging was agreed (virtio 1.2, 5.1.6.4.1). DPDK 22.11
    /// leaves 0 there and Linux does not look.
    pub strict: bool,
}

impl Default for RxOptions {
    fn default() -> Self {
        Self {
            size: 256,
            buffer: None,
            shape: Shape::joined(),
            table_len: 64,
            posted: None,
            mode: Mode::Poll,
            strict: true,
        }
    }
}

impl RxOptions {
    /// Bytes of each buffer under the features negotiated.
    pub fn buffer_len(&self, features: u64) -> u32 {
        let trains = features & (virtio::GUEST_TSO4 | virtio::GUEST_TSO6) != 0;
        let usual = if trains && features & virtio::MRG_RXBUF == 0 {
            65_562
        } else {
            2048
        };
        self.buffer.unwrap_or(usual)
    }

    /// Memory that takes, gaps between pieces included.
    pub(crate) fn storage(&self, features: u64) -> u32 {
        self.shape
            .cut(0, self.buffer_len(features), &mut Vec::new())
    }
}

/// A receive queue; owned by one thread at a time.
#[derive(Debug)]
pub struct RxQueue {
    ring: Ring,
    arena: Arena,
    notifier: Notifier,
    counters: Arc<Counters>,
    mode: Mode,
    features: u64,
    strict: bool,
    indirect: bool,
    header_len: u32,
    buffer: u32,
    shape: Shape,
    /// The cut of a buffer at address 0.
    cut: Vec<Piece>,
    pieces: Vec<Piece>,
    posted: u16,
    /// Pieces of the frame at hand: offset in the arena, bytes.
    parts: Vec<(usize, u32)>,
    frozen: bool,
    /// Frames not yet taken whose first lines have been asked for.
    fetched: u16,
}

impl RxQueue {
    /// Lays ring and buffers out in guest memory and posts the buffers.
    pub fn new(
        memory: &Memory,
        notifier: Notifier,
        features: u64,
        options: &RxOptions,
    ) -> Result<Self, MemoryError> {
        let ring = Ring::new(memory, options.size, options.table_len, features)?;
        let buffer = options.buffer_len(features);
        let mut cut = Vec::new();
        let need = options.shape.cut(0, buffer, &mut cut);
        let header_len = super::header_len(features);
        let arena = Arena::new(memory, ring.size(), need, header_len, 0, 0)?;
        let mut queue = Self {
            posted: options.posted.unwrap_or(ring.size()),
            ring,
            arena,
            notifier,
            counters: Arc::default(),
            mode: options.mode,
            features,
            strict: options.strict,
            indirect: features & virtio::INDIRECT_DESC != 0 && options.shape.is_indirect(),
            header_len,
            buffer,
            shape: options.shape.clone(),
            pieces: Vec::with_capacity(cut.len()),
            cut,
            parts: Vec::with_capacity(64),
            frozen: false,
            fetched: 0,
        };
        queue.reset();
        Ok(queue)
    }

    /// Back to the state after a device reset: all buffers posted anew.
    pub fn reset(&mut self) {
        self.fetched = 0;
        self.ring.reset();
        self.ring.disarm();
        self.post();
        self.ring.publish();
    }

    /// The ring under it.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
    /// The ring under it, to drive it by hand.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }
    /// Its event descriptors.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }
    /// Its live counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
    /// Interrupt handling.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A frozen queue still hands out what arrived, but posts no buffers again: the slow guest.
    pub fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
        if !frozen {
            self.repost();
        }
    }

    /// Adds buffers up to the number to be kept posted; the caller publishes.
    fn post(&mut self) {
        if self.frozen {
            return;
        }
        while self.ring.chains() < self.posted {
            let Some(head) = self.ring.next_head() else {
                break;
            };
            let base = self.arena.slot_guest(head);
            let added = if self.shape.is_single() && !self.indirect {
                self.ring.add_one(
                    Piece {
                        addr: base,
                        len: self.buffer,
                    },
                    true,
                )
            } else {
                self.pieces.clear();
                let cut = self.cut.iter().map(|p| Piece {
                    addr: p.addr + base,
                    len: p.len,
                });
                self.pieces.extend(cut);
                if self.indirect {
                    self.ring.add_indirect(&self.pieces, true)
                } else {
                    self.ring.add(&self.pieces, true)
                }
            };
            if added.is_none() {
                break;
            }
        }
    }

    fn repost(&mut self) {
        self.post();
        if self.ring.publish() {
            if self.ring.wants_kick() {
                self.notifier.kick();
                count(&self.counters.kicks, 1);
            } else {
                count(&self.counters.kicks_saved, 1);
            }
        }
    }

    /// Has the first lines of what has arrived on their way to the cache, so that a later [`RxQueue::recv_burst`] need
    /// not wait for them.
    #[inline]
    pub fn fetch(&mut self) -> Result<(), DeviceFault> {
        let pending = self.ring.pending(1)?.min(LOOK_AHEAD);
        let slots = self.arena.slots().window();
        while self.fetched < pending {
            let at = self.arena.slot_offset(self.ring.likely(self.fetched));
            slots.prefetch(at);
            slots.prefetch(at + 64);
            self.fetched += 1;
        }
        Ok(())
    }

    /// Hands up to `max` frames to `each`, posts the buffers again, publishes once. Returns how many there were. A
    /// frame whose last buffers are not there yet is left for the next call.
    #[inline]
    pub fn recv_burst(
        &mut self,
        max: u16,
        mut each: impl FnMut(&RxFrame<'_>),
    ) -> Result<u16, DeviceFault> {
        let result = self.take(max, &mut each);
        match result {
            Ok(0) => {}
            Ok(_) => self.repost(),
            Err(_) => count(&self.counters.faults, 1),
        }
        result
    }

    #[inline(always)]
    fn take(&mut self, max: u16, each: &mut impl FnMut(&RxFrame<'_>)) -> Result<u16, DeviceFault> {
        let mut tally = Taken::default();
        // The shared index is looked at once per burst, not once per frame: only when nothing is known to be there.
        let mut pending = self.ring.pending(1)?;
        let mut simple = self.cut.len() == 1 && self.ring.is_plain();
        while tally.frames < max && pending > 0 {
            let want = pending.min(max - tally.frames);
            let run = if simple {
                self.take_run(want, pending, &mut tally, each)
            } else {
                0
            };
            pending -= run;
            if run == want {
                continue;
            }
            let Some(buffers) = self.take_any(pending, &mut tally, each)? else {
                break;
            };
            (simple, self.fetched) = (false, 0);
            pending = pending.saturating_sub(buffers);
        }
        if simple && !self.frozen && self.posted == self.ring.size() {
            self.ring.recycle(tally.frames);
        }
        if tally.frames > 0 {
            count(&self.counters.frames, u64::from(tally.frames));
            count(&self.counters.bytes, tally.bytes);
            count(&self.counters.buffers, tally.buffers);
        }
        Ok(tally.frames)
    }

    /// The usual case: frames in one buffer of one piece each, on a plain ring. Stops at the first other one; anything
    /// worth a second look is looked at where there is time.
    #[inline(always)]
    fn take_run(
        &mut self,
        count: u16,
        pending: u16,
        tally: &mut Taken,
        each: &mut impl FnMut(&RxFrame<'_>),
    ) -> u16 {
        let slots = self.arena.slots().window();
        let (places, header_len) = (self.arena.places(), self.header_len);
        let fetch = |head: u16| {
            let at = places.at(head);
            slots.prefetch(at);
            slots.prefetch(at + 64);
        };
        let mut bytes = 0;
        let take = |used: Used| {
            let start = places.at(used.id);
            let header = RawHeader::load(slots, start, header_len);
            if used.len < header_len || header.is_special() {
                return false;
            }
            let len = used.len - header_len;
            let first = (start + header_len as usize, len);
            each(&RxFrame {
                header,
                slots,
                first,
                rest: &[],
                len,
            });
            bytes += u64::from(len);
            true
        };
        let run = self.ring.take_run(
            Span {
                count,
                known: pending,
                ahead: LOOK_AHEAD,
            },
            &mut self.fetched,
            self.buffer,
            fetch,
            take,
        );
        tally.bytes += bytes;
        tally.frames += run;
        tally.buffers += u64::from(run);
        run
    }

    /// One frame of any kind out of `pending` buffers; returns how many it took, None if its last are not there.
    #[inline(never)]
    fn take_any(
        &mut self,
        pending: u16,
        tally: &mut Taken,
        each: &mut dyn FnMut(&RxFrame<'_>),
    ) -> Result<Option<u16>, DeviceFault> {
        let used = self.look(0)?;
        if used.len < self.header_len {
            return Err(DeviceFault::Runt { len: used.len });
        }
        let header = self.gather_header(self.arena.slot_offset(used.id));
        if header.0 as u16 != 0 {
            self.check_offload(&header.parse())?;
        }
        self.check_count(&header)?;
        let merged = self.features & virtio::MRG_RXBUF != 0;
        let buffers = if merged { header.num_buffers() } else { 1 };
        if buffers > pending && buffers > self.ring.pending(buffers)? {
            return Ok(None);
        }
        let len = self.gather(buffers)?;
        let (first, rest) = match self.parts.split_first() {
            Some((first, rest)) => (*first, rest),
            None => ((0, 0), [].as_slice()),
        };
        each(&RxFrame {
            header,
            slots: self.arena.slots().window(),
            first,
            rest,
            len,
        });
        for _ in 0..buffers {
            self.ring.pop()?;
        }
        tally.frames += 1;
        tally.buffers += u64::from(buffers);
        tally.bytes += u64::from(len);
        Ok(Some(buffers))
    }

    /// The used entry `ahead`, checked, whether the ring is in lockstep or not.
    fn look(&mut self, ahead: u16) -> Result<Used, DeviceFault> {
        match self.ring.expected(ahead) {
            Some(used) => Ok(used),
            None => self.ring.peek(ahead),
        }
    }

    /// The header of a buffer in any pieces.
    fn gather_header(&self, start: usize) -> RawHeader {
        let mut bytes = [0; VirtioNetHdr::LEN];
        let (mut done, len) = (0, self.header_len as usize);
        for piece in &self.cut {
            let count = (len - done).min(piece.len as usize);
            let at = start + piece.addr as usize;
            self.arena
                .slots()
                .copy_out(at, &mut bytes[done..done + count]);
            done += count;
        }
        if len < VirtioNetHdr::LEN {
            bytes[10..].copy_from_slice(&[1, 0]);
        }
        let (low, high) = bytes.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        RawHeader(word(low), word(high) as u32)
    }

    fn check_count(&self, header: &RawHeader) -> Result<(), DeviceFault> {
        let got = header.num_buffers();
        let good = if self.features & virtio::MRG_RXBUF != 0 {
            got != 0 && got <= self.ring.size()
        } else {
            !self.strict || got == 1
        };
        if good {
            Ok(())
        } else {
            Err(DeviceFault::NumBuffers { got })
        }
    }

    #[cold]
    fn check_offload(&self, header: &VirtioNetHdr) -> Result<(), DeviceFault> {
        let has = |feature: u64| self.features & feature != 0;
        let known = VirtioNetHdr::F_NEEDS_CSUM | VirtioNetHdr::F_DATA_VALID;
        let flags = header.flags == 0 || (has(virtio::GUEST_CSUM) && header.flags & !known == 0);
        let gso = match header.gso_type & !VirtioNetHdr::GSO_ECN {
            VirtioNetHdr::GSO_NONE => header.gso_type == 0,
            VirtioNetHdr::GSO_TCPV4 => has(virtio::GUEST_TSO4),
            VirtioNetHdr::GSO_TCPV6 => has(virtio::GUEST_TSO6),
            _ => false,
        };
        let ecn = header.gso_type & VirtioNetHdr::GSO_ECN == 0 || has(virtio::GUEST_ECN);
        if flags && gso && ecn {
            Ok(())
        } else {
            Err(DeviceFault::Offload {
                flags: header.flags,
                gso_type: header.gso_type,
            })
        }
    }

    /// Lists the pieces of the frame in the next `count` used buffers; returns its length.
    #[inline(always)]
    fn gather(&mut self, count: u16) -> Result<u32, DeviceFault> {
        self.parts.clear();
        let mut total = 0;
        let mut skip = self.header_len;
        for ahead in 0..count {
            let used = self.look(ahead)?;
            let start = self.arena.slot_offset(used.id);
            let mut rest = used.len;
            for piece in &self.cut {
                let written = piece.len.min(rest);
                rest -= written;
                let head = skip.min(written);
                skip -= head;
                if written > head {
                    let at = start + piece.addr as usize + head as usize;
                    self.parts.push((at, written - head));
                    total += written - head;
                }
                if rest == 0 {
                    break;
                }
            }
        }
        Ok(total)
    }

    /// Whether something has arrived.
    pub fn has_work(&mut self) -> Result<bool, DeviceFault> {
        Ok(self.ring.pending(1)? > 0)
    }

    /// Asks for an interrupt on the next buffer; true if there is work already, then do not sleep.
    pub fn arm(&mut self) -> Result<bool, DeviceFault> {
        self.ring.arm(0)
    }

    /// Takes pending calls and turns interrupts off again.
    pub fn disarm(&mut self) {
        count(&self.counters.calls, self.notifier.take_calls());
        self.ring.disarm();
    }

    /// Waits until something has arrived, polling or sleeping as the mode says; false if the time is up.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, DeviceFault> {
        let until = Instant::now() + timeout;
        loop {
            if self.has_work()? {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if self.mode == Mode::Poll {
                std::thread::yield_now();
                continue;
            }
            if !self.arm()? {
                self.notifier.wait_call(left);
            }
            self.disarm();
        }
    }

    /// The next frame, copied out; None if there is none within `timeout`.
    pub fn recv(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<(VirtioNetHdr, Vec<u8>)>, DeviceFault> {
        let until = Instant::now() + timeout;
        loop {
            let mut got = None;
            self.recv_burst(1, |frame| got = Some((frame.header(), frame.to_vec())))?;
            let left = until.saturating_duration_since(Instant::now());
            if got.is_some() || left.is_zero() {
                return Ok(got);
            }
            self.wait(left)?;
        }
    }
}

/// Frames fetched into the cache before the one that is handled.
const LOOK_AHEAD: u16 = 32;

/// What a burst came to.
#[derive(Default)]
struct Taken {
    frames: u16,
    bytes: u64,
    buffers: u64,
}

/// The header as two words, taken apart only when somebody asks.
#[derive(Clone, Copy, Debug)]
struct RawHeader(u64, u32);

impl RawHeader {
    /// The header at the start of a buffer that is one piece.
    #[inline(always)]
    fn load(slots: Window<'_, u8>, start: usize, header_len: u32) -> Self {
        // Four bytes more than the header has; slots are at least 64 bytes long.
        let word = slots.load_u128(start);
        // Without num_buffers what follows is frame already.
        let high = (word >> 64) as u32;
        let high = if header_len == 12 {
            high
        } else {
            high & 0xffff | 1 << 16
        };
        Self(word as u64, high)
    }

    /// Offloads, or not exactly one buffer.
    #[inline(always)]
    fn is_special(self) -> bool {
        self.0 as u16 != 0 || self.num_buffers() != 1
    }

    #[inline(always)]
    fn num_buffers(self) -> u16 {
        (self.1 >> 16) as u16
    }

    fn parse(self) -> VirtioNetHdr {
        let mut bytes = [0; VirtioNetHdr::LEN];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.1.to_le_bytes());
        VirtioNetHdr::from_bytes(&bytes)
    }
}

/// A frame still in its receive buffers. Offsets count from the frame's first byte.
#[derive(Debug)]
pub struct RxFrame<'a> {
    header: RawHeader,
    slots: Window<'a, u8>,
    first: (usize, u32),
    rest: &'a [(usize, u32)],
    len: u32,
}

impl RxFrame<'_> {
    /// Its virtio-net header; `num_buffers` is 1 where the device has none.
    pub fn header(&self) -> VirtioNetHdr {
        self.header.parse()
    }

    /// Bytes of the frame.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether only a header came.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Descriptors it lies in.
    pub fn pieces(&self) -> usize {
        usize::from(self.len > 0) + self.rest.len()
    }

    /// Four bytes at `offset`, little endian; 0 if the frame ends before.
    #[inline(always)]
    pub fn load_u32(&self, offset: usize) -> u32 {
        if offset.saturating_add(4) <= self.first.1 as usize {
            return self.slots.load_u32(self.first.0 + offset);
        }
        u32::from_le_bytes(self.scattered(offset))
    }

    /// Whether the `len` bytes from `offset` on count up from `key` as [`super::Slot::write_words`] writes them.
    #[inline]
    pub fn has_words(&self, offset: usize, len: usize, key: u64) -> bool {
        if offset.saturating_add(len) <= self.first.1 as usize {
            return self.slots.has_words(self.first.0 + offset, len, key);
        }
        self.has_scattered_words(offset, len, key)
    }

    #[cold]
    fn has_scattered_words(&self, offset: usize, len: usize, key: u64) -> bool {
        let mut bytes = [0; 512];
        (0..len).step_by(bytes.len()).all(|at| {
            let count = bytes.len().min(len - at);
            let part = &mut bytes[..count];
            let words = (at as u64 / 8..).map(|n| key.wrapping_add(n).to_le_bytes());
            self.copy_out(offset + at, part) == count
                && part.chunks(8).zip(words).all(|(a, b)| *a == b[..a.len()])
        })
    }

    /// Eight bytes at `offset`, little endian; 0 if the frame ends before.
    #[inline(always)]
    pub fn load_u64(&self, offset: usize) -> u64 {
        if offset.saturating_add(8) <= self.first.1 as usize {
            return self.slots.load_u64(self.first.0 + offset);
        }
        u64::from_le_bytes(self.scattered(offset))
    }

    /// Sixteen bytes at `offset`, little endian; 0 if the frame ends before.
    #[inline(always)]
    pub fn load_u128(&self, offset: usize) -> u128 {
        if offset.saturating_add(16) <= self.first.1 as usize {
            return self.slots.load_u128(self.first.0 + offset);
        }
        u128::from_le_bytes(self.scattered(offset))
    }

    #[cold]
    fn scattered<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        if self.copy_out(offset, &mut bytes) < N {
            [0; N]
        } else {
            bytes
        }
    }

    /// Copies bytes from `offset` on; returns how many there were.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for &(at, len) in std::iter::once(&self.first).chain(self.rest) {
            let len = len as usize;
            if skip >= len {
                skip -= len;
                continue;
            }
            let count = (len - skip).min(to.len() - done);
            self.slots.copy_out(at + skip, &mut to[done..done + count]);
            done += count;
            skip = 0;
        }
        done
    }

    /// All of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_out(0, &mut bytes);
        bytes
    }
}
