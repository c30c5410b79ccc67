//! A second thread of the guest, which rewrites its memory while we look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::testing::Guest;

/// The guest's memory, mapped a second time: stores are as fast as those of a guest.
pub(super) struct Raw(GuestMemoryMmap);

impl Raw {
    fn new(guest: &Guest) -> Self {
        let file = FileOffset::new(guest.file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), guest.size as usize, Some(file))];
        Self(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap())
    }

    pub(super) fn store_u64(&self, at: u64, value: u64) {
        let stored = self.0.store(value, GuestAddress(at), Ordering::Relaxed);
        stored.unwrap();
    }

    pub(super) fn store_u32(&self, at: u64, value: u32) {
        let stored = self.0.store(value, GuestAddress(at), Ordering::Relaxed);
        stored.unwrap();
    }
}

/// Numbers that look random and are the same each time.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Rewrites memory until it is dropped.
pub(super) struct Racer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    /// Calls `rewrite` again and again in a thread of its own, once already when this returns.
    pub(super) fn start(
        guest: &Guest,
        mut rewrite: impl FnMut(&Raw, &mut Dice) + Send + 'static,
    ) -> Self {
        let (memory, mut dice) = (Raw::new(guest), Dice::new(0x9e37_79b9));
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                rewrite(&memory, &mut dice);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        while rounds.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        Self {
            stop,
            rounds,
            thread: Some(thread),
        }
    }

    /// How often memory was rewritten.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }
}
