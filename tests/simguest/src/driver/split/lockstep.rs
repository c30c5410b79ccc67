//! A ring in lockstep: the short ways that hold while entry `i` always names descriptor `i`.

use crate::memory::{Desc, Window};

use super::{Piece, Private, Split, Used};

impl Split {
    /// Fills in what lockstep left out.
    #[cold]
    pub(super) fn leave_lockstep(&mut self) {
        let chains = self.chains();
        self.lockstep = false;
        self.chains = chains;
        for i in 0..chains {
            let id = self.last_used.wrapping_add(i) & self.mask;
            let desc = self.desc_written[usize::from(id)];
            let room = if desc.flags & Desc::WRITE != 0 {
                desc.len
            } else {
                0
            };
            self.private[usize::from(id)] = Private {
                room,
                descs: 1,
                next: 0,
            };
        }
        (self.free_at, self.free_count) = (0, 0);
        for i in 0..self.parts.size - chains {
            self.give_free(self.avail.wrapping_add(i) & self.mask);
        }
    }

    /// In lockstep: the next used entry if it is the one expected, `ahead` of what has been taken.
    #[inline(always)]
    pub(in crate::driver) fn expected(&self, ahead: u16) -> Option<Used> {
        let at = self.last_used.wrapping_add(ahead);
        let (id, len) = self.parts.used_entry(at);
        let head = at & self.mask;
        let desc = &self.desc_written[usize::from(head)];
        let room = if desc.flags & Desc::WRITE != 0 {
            desc.len
        } else {
            0
        };
        (self.lockstep && id == u32::from(head) && len <= room).then_some(Used { id: head, len })
    }

    /// In lockstep, where the device writes nothing: how many of the next `count` used entries are the ones expected.
    #[inline]
    pub(in crate::driver) fn expected_run(&self, count: u16) -> u16 {
        let entries = self.parts.used_window();
        let (mask, from) = (self.mask, self.last_used);
        let good = |at: u16| entries.load_u64(8 * usize::from(at & mask)) == u64::from(at & mask);
        let run = (0..count)
            .find(|n| !good(from.wrapping_add(*n)))
            .unwrap_or(count);
        if self.lockstep { run } else { 0 }
    }

    /// In lockstep: the used entry `ahead` if it is the one expected, for a ring whose buffers all have `room` bytes.
    #[inline(always)]
    pub(in crate::driver) fn expected_in(
        &self,
        entries: Window<'_, u8>,
        ahead: u16,
        room: u32,
    ) -> Option<Used> {
        let id = self.last_used.wrapping_add(ahead) & self.mask;
        let word = entries.load_u64(8 * usize::from(id));
        let len = (word >> 32) as u32;
        (word as u32 == u32::from(id) && len <= room).then_some(Used { id, len })
    }

    /// Adds `count` chains of one descriptor each for the device to read, which `fill` prepares. There must be room.
    #[inline(always)]
    pub(in crate::driver) fn add_run(&mut self, count: u16, mut fill: impl FnMut(u16) -> Piece) {
        debug_assert!(self.free() >= count, "a run needs room");
        let (shared, written) = (self.parts.desc.window(), self.desc_written.as_mut_slice());
        let (lockstep, mask, from) = (self.lockstep, self.mask, self.avail);
        for n in 0..count {
            let head = if lockstep {
                from.wrapping_add(n) & mask
            } else {
                self.free[usize::from(self.free_at.wrapping_add(n) & mask)]
            };
            let Piece { addr, len } = fill(head);
            let desc = Desc {
                addr,
                len,
                flags: 0,
                next: 0,
            };
            match written.get_mut(usize::from(head)) {
                Some(same) if *same == desc => {}
                Some(other) => {
                    *other = desc;
                    shared.store(usize::from(head), desc);
                }
                None => {}
            }
        }
        match (lockstep, self.lapped) {
            (true, true) => self.avail = from.wrapping_add(count),
            (true, false) => (0..count).for_each(|_| self.write_avail(self.avail & mask)),
            (false, _) => {
                for _ in 0..count {
                    let head = self.take_free();
                    self.offer(head, 1, 0);
                }
            }
        }
    }

    /// In lockstep: takes `count` entries that [`Split::expected`] has shown.
    #[inline(always)]
    pub(in crate::driver) fn advance(&mut self, count: u16) {
        debug_assert!(self.lockstep, "advance is for rings in lockstep");
        self.last_used = self.last_used.wrapping_add(count);
    }

    /// In lockstep: makes the buffers of the `count` entries just taken available once more as they are. Only right
    /// while no others are free, or these would overtake them; false if that is so.
    #[inline(always)]
    pub(in crate::driver) fn recycle(&mut self, count: u16) -> bool {
        let right = self.lockstep && self.lapped && self.free() == count;
        if right {
            self.avail = self.avail.wrapping_add(count);
        }
        right
    }

    /// Whether the ring runs in lockstep.
    #[inline]
    pub(in crate::driver) fn in_lockstep(&self) -> bool {
        self.lockstep
    }

    /// The descriptor that the used entry `ahead` will name if the ring stays in lockstep: worth fetching early.
    #[inline(always)]
    pub(in crate::driver) fn likely(&self, ahead: u16) -> u16 {
        self.last_used.wrapping_add(ahead) & self.mask
    }
}
