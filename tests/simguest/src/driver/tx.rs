//! Transmit: guest to switch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::features::virtio;
use crate::header::VirtioNetHdr;
use crate::memory::{Memory, MemoryError, View, Window};

use super::fill::{Arena, scatter};
use super::notify::{Counters, Notifier, count};
use super::ring::Ring;
use super::split::Piece;
use super::{DeviceFault, Mode, Shape};

/// How a transmit queue is set up.
#[derive(Clone, Debug)]
pub struct TxOptions {
    /// Ring entries.
    pub size: u16,
    /// Bytes of the buffer that belongs to each descriptor.
    pub buffer: u32,
    /// Large buffers (68 KiB and room for gaps) for frames that do not fit.
    pub large: usize,
    /// Descriptors in each indirect table.
    pub table_len: u16,
    /// Interrupt handling.
    pub mode: Mode,
}

impl Default for TxOptions {
    fn default() -> Self {
        Self {
            size: 256,
            buffer: 2048,
            large: 16,
            table_len: 64,
            mode: Mode::Poll,
        }
    }
}

/// Slots whose first line is asked for before they are written.
const AHEAD: u16 = 32;
const LARGE: u32 = 96 << 10;

/// Why a frame was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TxError {
    /// No descriptors or no large buffer free.
    #[error("the transmit ring is full: {free} descriptors are free, the frame takes {needed}")]
    Full {
        /// Free descriptors.
        free: u16,
        /// Descriptors needed.
        needed: usize,
    },
    /// Longer than any buffer, or cut into more pieces than the ring has.
    #[error(
        "a frame of {len} bytes in {pieces} pieces does not fit this queue at all, give it larger buffers or rings"
    )]
    TooBig {
        /// Bytes, header included.
        len: usize,
        /// Descriptors.
        pieces: usize,
    },
    /// The device broke a rule.
    #[error(transparent)]
    Fault(#[from] DeviceFault),
}

/// A transmit queue; owned by one thread at a time.
#[derive(Debug)]
pub struct TxQueue {
    ring: Ring,
    arena: Arena,
    notifier: Notifier,
    counters: Arc<Counters>,
    mode: Mode,
    indirect: bool,
    header_len: u32,
    pieces: Vec<Piece>,
    burst_len: u32,
}

impl TxQueue {
    /// Lays ring and buffers out in guest memory.
    pub fn new(
        memory: &Memory,
        notifier: Notifier,
        features: u64,
        options: &TxOptions,
    ) -> Result<Self, MemoryError> {
        let ring = Ring::new(memory, options.size, options.table_len, features)?;
        let header_len = super::header_len(features);
        let arena = Arena::new(
            memory,
            ring.size(),
            options.buffer,
            header_len,
            options.large,
            LARGE,
        )?;
        let mut queue = Self {
            ring,
            arena,
            notifier,
            counters: Arc::default(),
            mode: options.mode,
            indirect: features & virtio::INDIRECT_DESC != 0,
            header_len,
            pieces: Vec::with_capacity(64),
            burst_len: 0,
        };
        queue.reset();
        Ok(queue)
    }

    /// Back to the state after a device reset.
    pub fn reset(&mut self) {
        self.ring.reset();
        self.arena.reset();
        self.burst_len = self.header_len;
        self.ring.disarm();
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
    /// Bytes of the virtio-net header on this device.
    pub fn header_len(&self) -> u32 {
        self.header_len
    }

    /// Puts a frame into the ring without telling the device: see [`TxQueue::flush`].
    pub fn queue(
        &mut self,
        header: &VirtioNetHdr,
        frame: &[u8],
        shape: &Shape,
    ) -> Result<(), TxError> {
        let header = header.to_bytes();
        let header = &header[..self.header_len as usize];
        let len = header.len() + frame.len();
        let need = shape.cut(0, len as u32, &mut self.pieces);
        let indirect = self.indirect && shape.is_indirect();
        let descs = if indirect { 1 } else { self.pieces.len() };
        let most = if indirect {
            self.ring.parts().table_len
        } else {
            self.ring.size()
        };
        if need as usize > self.arena.capacity() || self.pieces.len() > usize::from(most) {
            return Err(TxError::TooBig {
                len,
                pieces: self.pieces.len(),
            });
        }
        let place = match self.place(descs, need) {
            None => {
                self.reclaim()?;
                self.place(descs, need)
            }
            place => place,
        };
        let full = TxError::Full {
            free: self.ring.free(),
            needed: descs,
        };
        let Some((base, storage)) = place else {
            count(&self.counters.full, 1);
            return Err(full);
        };
        for piece in &mut self.pieces {
            piece.addr += base;
        }
        scatter(&storage, base, &self.pieces, &[header, frame]);
        let added = match self.pieces.as_slice() {
            [one] if !indirect => self.ring.add_one(*one, false),
            pieces if indirect => self.ring.add_indirect(pieces, false),
            pieces => self.ring.add(pieces, false),
        };
        if added.is_none() {
            return Err(full);
        }
        count(&self.counters.frames, 1);
        count(&self.counters.bytes, frame.len() as u64);
        Ok(())
    }

    /// Storage for a chain of `descs` descriptors, if ring and buffers have room.
    fn place(&mut self, descs: usize, need: u32) -> Option<(u64, View<u8>)> {
        let head = self.ring.next_head()?;
        (descs <= usize::from(self.ring.free())).then(|| self.arena.take(head, need))?
    }

    /// Publishes what was queued and kicks if the device wants it. Returns whether it kicked.
    #[inline]
    pub fn flush(&mut self) -> bool {
        if !self.ring.publish() {
            return false;
        }
        if self.ring.wants_kick() {
            self.notifier.kick();
            count(&self.counters.kicks, 1);
            true
        } else {
            count(&self.counters.kicks_saved, 1);
            false
        }
    }

    /// Sends one plain frame in one descriptor, at once.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), TxError> {
        self.send_shaped(&VirtioNetHdr::default(), frame, &Shape::joined())
    }

    /// Sends one frame with a header of choice, cut as told, at once.
    pub fn send_shaped(
        &mut self,
        header: &VirtioNetHdr,
        frame: &[u8],
        shape: &Shape,
    ) -> Result<(), TxError> {
        self.queue(header, frame, shape)?;
        self.flush();
        Ok(())
    }

    /// Takes back all buffers the device is done with; returns how many.
    pub fn reclaim(&mut self) -> Result<u16, DeviceFault> {
        let result = self.try_reclaim();
        if result.is_err() {
            count(&self.counters.faults, 1);
        }
        result
    }

    #[inline]
    fn try_reclaim(&mut self) -> Result<u16, DeviceFault> {
        let done = self.ring.pending(u16::MAX)?;
        let mut simple = 0;
        if !self.arena.any_borrowed() {
            simple = self.ring.expected_run(done);
            if simple > 0 {
                self.ring.advance(simple);
            }
        }
        for _ in simple..done {
            if let Some(used) = self.ring.pop()? {
                self.arena.give_back(used.id);
            }
        }
        if done > 0 {
            count(&self.counters.buffers, u64::from(done));
        }
        Ok(done)
    }

    /// Waits until every frame sent has come back; false if some have not when the time is up.
    pub fn drain(&mut self, timeout: Duration) -> Result<bool, DeviceFault> {
        let until = Instant::now() + timeout;
        loop {
            self.reclaim()?;
            if self.ring.chains() == 0 {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.wait_space(left)?;
        }
    }

    /// Waits until a buffer came back. In interrupt mode it sleeps the way Linux does: the interrupt is asked for after
    /// three quarters of what is outstanding, so some may have come back long before.
    pub fn wait_space(&mut self, timeout: Duration) -> Result<bool, DeviceFault> {
        let until = Instant::now() + timeout;
        loop {
            if self.reclaim()? > 0 {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.ring.chains() == 0 {
                return Ok(false);
            }
            if self.mode == Mode::Poll {
                std::thread::yield_now();
                continue;
            }
            let ahead = (u32::from(self.ring.chains() - 1) * 3 / 4) as u16;
            if !self.ring.arm(ahead)? {
                self.notifier.wait_call(left);
                count(&self.counters.calls, self.notifier.take_calls());
            }
            self.ring.disarm();
        }
    }

    // --- load ------------------------------------------------------------------------------------------------

    /// Writes a zero header and `template` into the slot of every descriptor, for [`TxQueue::send_burst`]. Frames sent
    /// by the other calls overwrite slots, so that this must be called again after them.
    pub fn prefill(&mut self, template: &[u8]) -> Result<(), TxError> {
        let len = self.header_len as usize + template.len();
        if len > self.arena.room() as usize {
            return Err(TxError::TooBig { len, pieces: 1 });
        }
        let header = [0; VirtioNetHdr::LEN];
        for head in 0..self.ring.size() {
            let at = self.arena.slot_offset(head);
            self.arena
                .slots()
                .copy_in(at, &header[..self.header_len as usize]);
            self.arena
                .slots()
                .copy_in(at + self.header_len as usize, template);
        }
        self.burst_len = len as u32;
        Ok(())
    }

    /// Whether a burst of `max` frames can be sent, and some more beyond it: their lines can then be asked for in time.
    /// Takes back what is done if that takes looking.
    #[inline]
    pub fn has_room(&mut self, max: u16) -> Result<bool, DeviceFault> {
        let wanted = max.saturating_add(AHEAD).min(self.ring.size());
        if self.ring.free() < wanted {
            self.reclaim()?;
        }
        Ok(self.ring.free() >= wanted)
    }

    /// Takes back what is done, then sends up to `max` prefilled frames, each touched up by `edit`; publishes once.
    /// Returns how many went out. No allocation, no system call but a kick the device asked for.
    #[inline]
    pub fn send_burst(
        &mut self,
        max: u16,
        mut edit: impl FnMut(&mut Slot<'_>),
    ) -> Result<u16, DeviceFault> {
        if self.ring.free() < max {
            self.reclaim()?;
        }
        let burst = max.min(self.ring.free());
        let (slots, places) = (self.arena.slots().window(), self.arena.places());
        let base = self.arena.guest();
        let header = self.header_len;
        let (room, len) = (self.arena.room() - header, self.burst_len - header);
        let mut bytes = 0;
        let mut beyond = self.ring.free();
        self.ring.add_run(burst, |head| {
            let offset = places.at(head);
            if beyond > AHEAD {
                let ahead = places.at(head.wrapping_add(AHEAD));
                slots.prefetch_write(ahead + header as usize);
            }
            beyond -= 1;
            let mut slot = Slot {
                slots,
                start: offset + header as usize,
                room,
                len,
            };
            edit(&mut slot);
            bytes += u64::from(slot.len);
            Piece {
                addr: base + offset as u64,
                len: slot.len + header,
            }
        });
        if burst > 0 {
            self.flush();
            count(&self.counters.frames, u64::from(burst));
            count(&self.counters.bytes, bytes);
        }
        Ok(burst)
    }
}

/// One prefilled frame about to be sent. Offsets count from the frame's first byte.
#[derive(Debug)]
pub struct Slot<'a> {
    slots: Window<'a, u8>,
    start: usize,
    room: u32,
    len: u32,
}

impl Slot<'_> {
    /// Bytes of the frame.
    pub fn frame_len(&self) -> usize {
        self.len as usize
    }

    /// Sends fewer or more bytes of the slot than were prefilled, up to the slot's end.
    pub fn set_frame_len(&mut self, len: usize) {
        self.len = (len as u64).min(u64::from(self.room)) as u32;
    }

    /// Overwrites two bytes, as they are (`u16::to_be` for network order).
    #[inline(always)]
    pub fn store_u16(&mut self, offset: usize, value: u16) {
        self.slots.store_u16(self.start + offset, value);
    }

    /// Overwrites four bytes.
    #[inline(always)]
    pub fn store_u32(&mut self, offset: usize, value: u32) {
        self.slots.store_u32(self.start + offset, value);
    }

    /// Overwrites eight bytes.
    #[inline(always)]
    pub fn store_u64(&mut self, offset: usize, value: u64) {
        self.slots.store_u64(self.start + offset, value);
    }

    /// Overwrites sixteen bytes.
    #[inline(always)]
    pub fn store_u128(&mut self, offset: usize, value: u128) {
        self.slots.store_u128(self.start + offset, value);
    }

    /// Writes `len` bytes that count up from `key` in little-endian words of eight, the last one cut short; not beyond
    /// the slot's end.
    #[inline]
    pub fn write_words(&mut self, offset: usize, len: usize, key: u64) {
        let len = len.min((self.room as usize).saturating_sub(offset));
        self.slots.write_words(self.start + offset, len, key);
    }

    /// Overwrites any bytes; those beyond the slot's end are left out.
    #[inline]
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in bytes
            .iter()
            .enumerate()
            .take((self.room as usize).saturating_sub(offset))
        {
            self.slots.store(self.start + offset + at, *byte);
        }
    }
}
