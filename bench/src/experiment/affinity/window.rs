//! How far a target has come, if it may finish packets in another order than they came in.

use std::collections::VecDeque;

/// The packets that a target has begun, from the oldest that is not finished.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Whether it is finished, by how long after the oldest it came. The first never is.
    begun: VecDeque<bool>,
    /// Packets finished before those.
    done: u64,
}

impl Window {
    /// A packet comes in; returns how many came before.
    #[inline]
    pub(super) fn begin(&mut self) -> u64 {
        self.begun.push_back(false);
        self.done + self.begun.len() as u64 - 1
    }

    /// That packet is finished. Returns how many are, counted up to the first that is not.
    #[inline]
    pub(super) fn finish(&mut self, packet: u64) -> u64 {
        if let Some(finished) = self.begun.get_mut((packet - self.done) as usize) {
            *finished = true;
        }
        while self.begun.front() == Some(&true) {
            self.begun.pop_front();
            self.done += 1;
        }
        self.done
    }

    /// How many are finished, counted up to the first that is not.
    #[inline]
    pub(super) const fn done(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_holds_all_others_up() {
        let mut window = Window::default();
        let numbers: Vec<u64> = (0..4).map(|_| window.begin()).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(window.finish(1), 0);
        assert_eq!(window.finish(0), 2);
        assert_eq!((window.begin(), window.finish(3)), (4, 2));
        assert_eq!((window.finish(2), window.done()), (4, 4));
    }
}
