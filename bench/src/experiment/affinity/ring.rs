//! A ring from one thread to another, in safe code: every word is an atomic.
//!
//! A slot begins with the number of the message in it, so that the receiver finds message and notice in the same line; it
//! tells how far it has come in a line of its own, which the sender reads only when the ring seems full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::*};

/// A slot: the number of its message, from 1, and its words.
#[derive(Debug)]
#[repr(align(64))]
struct Slot<const W: usize> {
    number: AtomicU64,
    words: [AtomicU64; W],
}

/// Two lines, because CPUs fetch pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Line(pub(super) AtomicU64);

#[derive(Debug)]
struct Ring<const W: usize> {
    /// A power of two.
    slots: Box<[Slot<W>]>,
    taken: Line,
}

/// The end that sends.
#[derive(Debug)]
pub(super) struct Sender<const W: usize> {
    ring: Arc<Ring<W>>,
    sent: u64,
    /// Taken by the receiver when last looked.
    taken: u64,
}

/// The end that receives.
#[derive(Debug)]
pub(super) struct Receiver<const W: usize> {
    ring: Arc<Ring<W>>,
    taken: u64,
}

/// A ring with room for `size` messages (rounded up to a power of two) of `W` words.
pub(super) fn ring<const W: usize>(size: usize) -> (Sender<W>, Receiver<W>) {
    let slot = |_| Slot {
        number: AtomicU64::new(0),
        words: [const { AtomicU64::new(0) }; W],
    };
    let ring = Arc::new(Ring {
        slots: (0..size.next_power_of_two()).map(slot).collect(),
        taken: Line::default(),
    });
    let sender = Sender {
        ring: Arc::clone(&ring),
        sent: 0,
        taken: 0,
    };
    (sender, Receiver { ring, taken: 0 })
}

impl<const W: usize> Sender<W> {
    /// Whether there is room for a message.
    #[inline]
    pub(super) fn has_room(&mut self) -> bool {
        let size = self.ring.slots.len() as u64;
        if self.sent - self.taken >= size {
            self.taken = self.ring.taken.0.load(Acquire);
        }
        self.sent - self.taken < size
    }

    /// Sends what `write` puts into the words; false, and nothing is written, if there is no room.
    #[inline]
    pub(super) fn send(&mut self, write: impl FnOnce(&[AtomicU64; W])) -> bool {
        if !self.has_room() {
            return false;
        }
        let at = self.sent as usize & (self.ring.slots.len() - 1);
        let slot = &self.ring.slots[at];
        write(&slot.words);
        self.sent += 1;
        slot.number.store(self.sent, Release);
        true
    }
}

impl<const W: usize> Receiver<W> {
    /// What `read` makes of the next message, if there is one.
    #[inline]
    pub(super) fn receive<T>(&mut self, read: impl FnOnce(&[AtomicU64; W]) -> T) -> Option<T> {
        let at = self.taken as usize & (self.ring.slots.len() - 1);
        let slot = &self.ring.slots[at];
        if slot.number.load(Acquire) != self.taken + 1 {
            return None;
        }
        let value = read(&slot.words);
        self.taken += 1;
        self.ring.taken.0.store(self.taken, Release);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_arrives_once_whole_and_in_order() {
        const COUNT: u64 = 20_000;
        let (mut sender, mut receiver) = ring::<3>(8);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..COUNT {
                    let write = |words: &[AtomicU64; 3]| {
                        let values = words.iter().zip([n, n * 7, !n]);
                        values.for_each(|(word, value)| word.store(value, Relaxed));
                    };
                    while !sender.send(write) {
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < COUNT {
                let read = |words: &[AtomicU64; 3]| words.each_ref().map(|word| word.load(Relaxed));
                match receiver.receive(read) {
                    Some(words) => {
                        assert_eq!(words, [next, next * 7, !next]);
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }

    #[test]
    fn a_full_ring_takes_nothing() {
        let (mut sender, mut receiver) = ring::<1>(2);
        assert_eq!([0; 3].map(|_| sender.send(|_| ())), [true, true, false]);
        assert!(receiver.receive(|_| ()).is_some() && sender.send(|_| ()));
        assert!(!sender.has_room());
    }
}
