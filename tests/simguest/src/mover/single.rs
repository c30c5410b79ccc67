//! The usual case where a ring is packed: one descriptor on each side, the same header on both, one region of memory.

use crate::driver::header_len;
use crate::memory::{Desc, View};

use super::Mover;
use super::direct::{AHEAD, Job};
use super::end::End;

/// An end's memory. None if it is not one region. A copy, because the end changes while frames are moved.
fn region(end: &End) -> Option<(u64, View<u8>)> {
    match end.windows.as_slice() {
        [(base, bytes)] => Some((*base, bytes.clone())),
        _ => None,
    }
}

impl Mover {
    /// Moves up to `count` frames for which there are buffers; stops before the first that is not the usual case.
    pub(super) fn single(&mut self, count: u16) -> u16 {
        let header = header_len(self.from.features);
        let (Some((from_base, from)), Some((to_base, to))) = (region(&self.from), region(&self.to))
        else {
            return 0;
        };
        if header != header_len(self.to.features) {
            return 0;
        }
        let (from, to) = (from.window(), to.window());
        let mut known = self.from.known().min(self.to.known());
        let mut moved = 0;
        while moved < count {
            // Both count from the frame that is moved next.
            while self.jobs.count <= AHEAD && self.jobs.count < known {
                let (from_head, source) = self.from.first(self.jobs.count);
                let (to_head, sink) = self.to.first(self.jobs.count);
                let many = Desc::NEXT | Desc::INDIRECT;
                let simple = (source.flags | sink.flags) & many == 0
                    && source.len <= sink.len
                    && source.len >= header;
                if !simple {
                    known = self.jobs.count;
                    break;
                }
                let job = Job {
                    from: source.addr.wrapping_sub(from_base) as usize,
                    to: sink.addr.wrapping_sub(to_base) as usize,
                    len: source.len,
                    heads: (from_head, to_head),
                };
                from.prefetch(job.from);
                from.prefetch(job.from + 64);
                to.prefetch_write(job.to);
                to.prefetch_write(job.to + 64);
                self.jobs.add(self.turn, job);
            }
            if self.jobs.count == 0 {
                break;
            }
            let job = self.jobs.at(self.turn);
            if !to.copy_from(job.to, from, job.from, job.len as usize) {
                break;
            }
            if header == 12 {
                // One buffer.
                to.store_u16(job.to + 10, 1);
            }
            self.to.give_back(job.heads.1, job.len);
            self.from.give_back(job.heads.0, 0);
            self.turn = self.turn.wrapping_add(1);
            (self.jobs.count, known, moved) = (self.jobs.count - 1, known - 1, moved + 1);
        }
        moved
    }
}
