//! The usual case where a ring is packed: one descriptor on each side, the same header on both.

use crate::driver::header_len;
use crate::memory::Desc;

use super::Mover;
use super::direct::AHEAD;

impl Mover {
    /// Moves up to `count` frames for which there are buffers; stops before the first that is not the usual case.
    pub(super) fn single(&mut self, count: u16) -> u16 {
        let header = header_len(self.from.features);
        if header != header_len(self.to.features) {
            return 0;
        }
        let mut moved = 0;
        while moved < count {
            let known = self.from.known().min(self.to.known());
            while self.fetched <= AHEAD && self.fetched < known {
                self.from.fetch(self.fetched);
                self.to.fetch_write(self.fetched);
                self.fetched += 1;
            }
            if known == 0 || !self.one(header) {
                break;
            }
            self.fetched -= 1;
            moved += 1;
        }
        moved
    }

    /// Moves the next frame, which must be there with a buffer for it; false if it is not the usual case.
    #[inline(always)]
    fn one(&mut self, header: u32) -> bool {
        let many = Desc::NEXT | Desc::INDIRECT;
        let (from_head, from) = self.from.first(0);
        let (to_head, to) = self.to.first(0);
        if (from.flags | to.flags) & many != 0 || from.len > to.len || from.len < header {
            return false;
        }
        let (Some((source, source_at, len)), Some((sink, sink_at, _))) =
            (self.from.resolve(from), self.to.resolve(to))
        else {
            return false;
        };
        if !sink
            .window()
            .copy_from(sink_at, source.window(), source_at, len)
        {
            return false;
        }
        if header == 12 {
            // One buffer.
            sink.store_u16(sink_at + 10, 1);
        }
        self.to.give_back(to_head, from.len);
        self.from.give_back(from_head, 0);
        true
    }
}
