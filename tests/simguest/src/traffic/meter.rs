//! The receiving half.

use crate::driver::{DeviceFault, RxFrame, RxQueue};

use super::{MAGIC, Pattern, STAMP};

/// What a meter has seen.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Frames with a good stamp.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sequence numbers jumped over.
    pub missing: u64,
    /// Frames whose number was not above all before: late or twice.
    pub late: u64,
    /// Frames without a stamp, of an unknown flow, of the wrong length, or with a wrong payload where that is checked.
    pub alien: u64,
}

/// Takes frames from receive queues and checks their stamps. One meter may serve several queues of one thread; flows
/// that are spread over meters must not be shared between them.
#[derive(Debug)]
pub struct Meter {
    next: Vec<u64>,
    first_flow: u32,
    stamp: usize,
    /// Lengths by frame number, a power of two of them.
    lens: Vec<usize>,
    /// Where the payload to be checked begins.
    payload: Option<usize>,
    timed: bool,
    tally: Tally,
}

impl Meter {
    /// For the frames of a pattern.
    pub fn new(pattern: &Pattern) -> Self {
        Self {
            next: vec![0; pattern.flows as usize],
            first_flow: pattern.first_flow,
            stamp: pattern.stamp_offset(),
            lens: pattern.lens(),
            payload: pattern.touch.then(|| pattern.payload_offset()),
            timed: pattern.timed,
            tally: Tally::default(),
        }
    }

    /// Takes up to `max` frames; returns how many there were.
    #[inline]
    pub fn burst(&mut self, queue: &mut RxQueue, max: u16) -> Result<u16, DeviceFault> {
        match (self.lens.as_slice(), self.payload) {
            (&[len], None) => self.take_plain(queue, max, len),
            _ => self.take_any(queue, max, |_| {}),
        }
    }

    /// The same, handing the time in each good frame to `each` if the pattern is [`Pattern::timed`].
    #[inline]
    pub fn burst_timed(
        &mut self,
        queue: &mut RxQueue,
        max: u16,
        each: impl FnMut(u32),
    ) -> Result<u16, DeviceFault> {
        self.take_any(queue, max, each)
    }

    #[inline]
    fn take_plain(
        &mut self,
        queue: &mut RxQueue,
        max: u16,
        len: usize,
    ) -> Result<u16, DeviceFault> {
        let (next, first_flow, stamp) = (self.next.as_mut_slice(), self.first_flow, self.stamp);
        let mut tally = Tally::default();
        let taken = queue.recv_burst(max, |frame| {
            let word = frame.load_u128(stamp);
            let (mark, seq) = (word as u64, (word >> 64) as u64);
            let flow = (mark as u32).wrapping_sub(first_flow);
            match next.get_mut(flow as usize) {
                Some(next) if mark >> 32 == u64::from(MAGIC) && frame.len() == len => {
                    tally.frames += 1;
                    note(next, seq, &mut tally);
                }
                _ => tally.alien += 1,
            }
        });
        tally.bytes = tally.frames * len as u64;
        self.tally.add(tally);
        taken
    }

    #[inline]
    fn take_any(
        &mut self,
        queue: &mut RxQueue,
        max: u16,
        mut each: impl FnMut(u32),
    ) -> Result<u16, DeviceFault> {
        let Self {
            next,
            first_flow,
            stamp,
            lens,
            payload,
            timed,
            tally,
        } = self;
        let flows = next.len() as u64;
        queue.recv_burst(max, |frame| {
            let word = frame.load_u128(*stamp);
            let (mark, seq) = (word as u64, (word >> 64) as u64);
            let flow = (mark as u32).wrapping_sub(*first_flow);
            let number = seq.wrapping_mul(flows).wrapping_add(u64::from(flow));
            let len = lens[number as usize & (lens.len() - 1)];
            let good = mark >> 32 == u64::from(MAGIC)
                && frame.len() == len
                && payload.is_none_or(|at| whole(frame, at, len, mark as u32, seq));
            match next.get_mut(flow as usize) {
                Some(next) if good => {
                    tally.frames += 1;
                    tally.bytes += len as u64;
                    note(next, seq, tally);
                    if *timed {
                        each(frame.load_u32(*stamp + STAMP));
                    }
                }
                _ => tally.alien += 1,
            }
        })
    }

    /// What was seen so far.
    #[inline]
    pub fn tally(&self) -> Tally {
        self.tally
    }
}

impl Tally {
    /// Adds what another has seen.
    #[inline]
    pub fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.missing += other.missing;
        self.late += other.late;
        self.alien += other.alien;
    }
}

/// Number `seq` of a flow has come, `next` was expected.
#[inline(always)]
fn note(next: &mut u64, seq: u64, tally: &mut Tally) {
    if seq >= *next {
        tally.missing += seq - *next;
        *next = seq + 1;
    } else {
        tally.late += 1;
    }
}

/// Whether all bytes from `at` on are those that were sent.
#[inline]
fn whole(frame: &RxFrame<'_>, at: usize, len: usize, id: u32, seq: u64) -> bool {
    frame.has_words(at, len - at, Pattern::payload_key(id, seq))
}
