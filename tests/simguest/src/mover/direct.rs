//! The usual case, made short: one descriptor on each side, the same header on both, one region of memory.
//!
//! What costs time is cache lines on their way from one processor to the other, so the lines of a frame are asked for
//! some frames before it is moved: the frame's for reading; the receive buffer's and those of the used rings for
//! writing, because stores become visible in order, and one that waits for its line holds all later ones up.

use crate::driver::header_len;
use crate::memory::{Desc, Window};

use super::Mover;
use super::end::End;

/// Frames looked at before the one that is moved.
pub(super) const AHEAD: u16 = 32;
/// Used entries whose line is asked for before they are written: two lines.
const USED_AHEAD: u16 = 16;
/// Room for frames looked at; a power of two.
const ROOM: u16 = 64;

/// A frame to be moved: where it is, where it goes, its bytes with header, the heads of both chains.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Job {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) len: u32,
    pub(super) heads: (u16, u16),
}

/// Frames looked at and not yet moved, by their place in the transmit ring.
#[derive(Debug)]
pub(super) struct Jobs {
    jobs: [Job; ROOM as usize],
    pub(super) count: u16,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            jobs: [Job::default(); ROOM as usize],
            count: 0,
        }
    }
}

impl Jobs {
    /// Adds one, if that at `turn` is the first.
    #[inline(always)]
    pub(super) fn add(&mut self, turn: u16, job: Job) {
        self.jobs[usize::from(turn.wrapping_add(self.count) % ROOM)] = job;
        self.count += 1;
    }

    #[inline(always)]
    pub(super) fn at(&self, turn: u16) -> Job {
        self.jobs[usize::from(turn % ROOM)]
    }

    /// The receive buffers are not those that were looked at.
    pub(super) fn forget(&mut self) {
        self.count = 0;
    }
}

/// An end as plain values.
struct Way<'a> {
    desc: Window<'a, Desc>,
    avail: Window<'a, u16>,
    used: Window<'a, u8>,
    bytes: Window<'a, u8>,
    base: u64,
    mask: u16,
}

impl<'a> Way<'a> {
    /// None if memory is not one region.
    #[inline(always)]
    fn of(end: &'a End) -> Option<Self> {
        let [(base, bytes)] = end.windows.as_slice() else {
            return None;
        };
        Some(Self {
            desc: end.parts.desc.window(),
            avail: end.parts.avail.window(),
            used: end.parts.used_window(),
            bytes: bytes.window(),
            base: *base,
            mask: end.parts.size - 1,
        })
    }

    #[inline(always)]
    fn chain(&self, index: u16) -> (u16, Desc) {
        let head = self.avail.load(2 + usize::from(index & self.mask));
        (head, self.desc.load(usize::from(head)))
    }

    #[inline(always)]
    fn give_back(&self, index: u16, head: u16, len: u32) {
        let at = |index: u16| 8 * usize::from(index & self.mask);
        let word = u64::from(len) << 32 | u64::from(head);
        self.used.store_u64(at(index), word);
        if index.is_multiple_of(8) {
            self.used.prefetch_write(at(index.wrapping_add(USED_AHEAD)));
        }
    }
}

impl Mover {
    /// Moves up to `count` frames for which there are buffers; stops before the first that is not the usual case.
    #[inline]
    pub(super) fn direct(&mut self, count: u16) -> u16 {
        let header = header_len(self.from.features);
        let (Some(from), Some(to)) = (Way::of(&self.from), Way::of(&self.to)) else {
            return 0;
        };
        if header != header_len(self.to.features) {
            return 0;
        }
        let (next, to_next) = (self.from.next, self.to.next);
        let (used, to_used) = (self.from.used, self.to.used);
        let mut known = self.from.known().min(self.to.known());
        let Jobs {
            jobs,
            count: looked,
        } = &mut self.jobs;
        let mut moved = 0;
        while moved < count {
            while *looked <= moved + AHEAD && *looked < known {
                let index = next.wrapping_add(*looked);
                let (from_head, source) = from.chain(index);
                let (to_head, sink) = to.chain(to_next.wrapping_add(*looked));
                let many = Desc::NEXT | Desc::INDIRECT;
                let simple = (source.flags | sink.flags) & many == 0
                    && source.len <= sink.len
                    && source.len >= header;
                if !simple {
                    known = *looked;
                    break;
                }
                let job = Job {
                    from: source.addr.wrapping_sub(from.base) as usize,
                    to: sink.addr.wrapping_sub(to.base) as usize,
                    len: source.len,
                    heads: (from_head, to_head),
                };
                from.bytes.prefetch(job.from);
                from.bytes.prefetch(job.from + 64);
                to.bytes.prefetch_write(job.to);
                to.bytes.prefetch_write(job.to + 64);
                jobs[usize::from(index % ROOM)] = job;
                *looked += 1;
            }
            if moved == *looked {
                break;
            }
            let job = jobs[usize::from(next.wrapping_add(moved) % ROOM)];
            if !to
                .bytes
                .copy_from(job.to, from.bytes, job.from, job.len as usize)
            {
                break;
            }
            if header == 12 {
                // One buffer.
                to.bytes.store_u16(job.to + 10, 1);
            }
            to.give_back(to_used.wrapping_add(moved), job.heads.1, job.len);
            from.give_back(used.wrapping_add(moved), job.heads.0, 0);
            moved += 1;
        }
        *looked -= moved;
        self.from.went(moved);
        self.to.went(moved);
        moved
    }
}
