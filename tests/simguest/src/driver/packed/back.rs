//! Device to driver: following what it used, and when to be told of more.

use std::sync::atomic::{Ordering, fence};

use crate::driver::DeviceFault;
use crate::driver::split::Used;

use super::{Packed, PackedDesc, Place, event};

/// Slots looked at at a time when somebody wants to know whether there is anything.
const HARVEST: u16 = 64;

impl Packed {
    /// Buffers that came back and were not taken yet. Follows the device only if fewer than `wanted` are known.
    #[inline]
    pub fn pending(&mut self, wanted: u16) -> Result<u16, DeviceFault> {
        let known = self.got.len();
        if known >= wanted {
            return Ok(known);
        }
        let result = self.harvest(wanted.max(HARVEST));
        let known = self.got.len();
        match result {
            // What was good comes first.
            Err(fault) if known < wanted => Err(fault),
            _ => Ok(known),
        }
    }

    /// Follows the device until `most` buffers are known.
    #[inline]
    fn harvest(&mut self, most: u16) -> Result<(), DeviceFault> {
        while self.got.len() < most {
            let at = 2 * usize::from(self.used.slot) + 1;
            let word = self.parts.desc_words.load_acquire(at);
            let desc = PackedDesc::from_words([0, word]);
            if !self.used.is_used(desc.flags) {
                break;
            }
            let len = if desc.flags & PackedDesc::WRITE == 0 {
                // The length is only there if something was written (virtio 1.2, 2.8.7).
                0
            } else {
                desc.len
            };
            self.accept(desc.id, len)?;
        }
        Ok(())
    }

    /// One used descriptor.
    #[inline(always)]
    fn accept(&mut self, id: u16, len: u32) -> Result<(), DeviceFault> {
        let at = self.used.slot;
        let out = self.chains - self.unpublished - self.got.len();
        let first = self.chain_at.get(usize::from(at)).copied();
        match self.private.get_mut(usize::from(id)) {
            Some(private) if private.out && len <= private.room && out > 0 => {
                if self.in_order && first != Some(id) {
                    return self.accept_batch(id, len);
                }
                private.out = false;
                self.used = self.used.ahead(private.descs, self.parts.size);
                self.got.push(Used { id, len });
                Ok(())
            }
            Some(private) if private.out && out > 0 => Err(DeviceFault::UsedLen {
                at,
                len,
                room: private.room,
            }),
            _ => Err(DeviceFault::UsedId {
                at,
                id: u32::from(id),
            }),
        }
    }

    /// With IN_ORDER one used descriptor may stand for a batch that ends with it. Those skipped were used entirely
    /// (virtio 1.2, 2.8.13).
    #[cold]
    fn accept_batch(&mut self, last: u16, len: u32) -> Result<(), DeviceFault> {
        let at = self.used.slot;
        let mut out = self.chains - self.unpublished - self.got.len();
        loop {
            let next = self.chain_at.get(usize::from(self.used.slot)).copied();
            let found = next.and_then(|id| Some((id, self.private.get_mut(usize::from(id))?)));
            match found {
                Some((id, private)) if private.out && out > 0 => {
                    private.out = false;
                    let len = if id == last { len } else { private.room };
                    self.used = self.used.ahead(private.descs, self.parts.size);
                    self.got.push(Used { id, len });
                    out -= 1;
                    if id == last {
                        return Ok(());
                    }
                }
                _ => {
                    let id = u32::from(last);
                    return Err(DeviceFault::UsedId { at, id });
                }
            }
        }
    }

    /// The buffer `ahead` of the next one that came back, as far as the device was followed.
    #[inline(always)]
    pub(in crate::driver) fn got(&self, ahead: u16) -> Option<Used> {
        self.got.get(ahead)
    }

    /// Looks at the buffer `ahead` of the next one, which [`Packed::pending`] must have counted.
    pub fn peek(&mut self, ahead: u16) -> Result<Used, DeviceFault> {
        self.pending(ahead.saturating_add(1))?;
        self.got(ahead).ok_or(DeviceFault::UsedIndex {
            used: self.used.slot,
            last: self.used.slot,
            out: self.chains,
        })
    }

    /// Takes the next buffer that came back and frees its slots.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>, DeviceFault> {
        if self.pending(1)? == 0 {
            return Ok(None);
        }
        Ok(self.take())
    }

    #[inline(always)]
    fn take(&mut self) -> Option<Used> {
        let used = self.got.pop()?;
        self.free += self.private.get(usize::from(used.id))?.descs;
        self.chains -= 1;
        self.ids.push(used.id);
        Some(used)
    }

    /// Takes `count` buffers that [`Packed::pending`] has counted.
    #[inline(always)]
    pub(in crate::driver) fn advance(&mut self, count: u16) {
        for _ in 0..count {
            self.take();
        }
    }

    /// Asks for an interrupt after `ahead` more buffers; returns true if more than that came back meanwhile, so that
    /// sleeping would be wrong.
    pub fn arm(&mut self, ahead: u16) -> Result<bool, DeviceFault> {
        let beyond = ahead.saturating_sub(self.got.len());
        let from = self.used;
        if self.event_idx {
            let wanted = self.after(beyond);
            self.parts.avail.store(0, wanted.bits());
            self.parts.avail.store_release(1, event::DESC);
            fence(Ordering::SeqCst);
            let pending = self.pending(u16::MAX)?;
            // What came back out of order may have passed the event with fewer buffers.
            let event = from.distance(wanted, self.parts.size);
            let now = from.distance(self.used, self.parts.size);
            return Ok(pending > ahead || now > event);
        }
        self.parts.avail.store_release(1, event::ENABLE);
        fence(Ordering::SeqCst);
        Ok(self.pending(u16::MAX)? > ahead)
    }

    /// Where the device writes after `count` more buffers, if it uses them in order.
    fn after(&self, count: u16) -> Place {
        let mut place = self.used;
        for _ in 0..count {
            let chain = self.chain_at.get(usize::from(place.slot));
            let private = chain.and_then(|id| self.private.get(usize::from(*id)));
            match private {
                Some(private) if private.out => {
                    place = place.ahead(private.descs, self.parts.size);
                }
                _ => break,
            }
        }
        place
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        self.parts.avail.store_release(1, event::DISABLE);
    }
}
