//! A queue in a ring buffer.

/// A FIFO that never grows.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    slots: Vec<T>,
    /// Free-running.
    head: usize,
    tail: usize,
}

impl<T: Copy> Fifo<T> {
    /// Room for `most`, filled with anything.
    pub(super) fn new(most: usize, anything: T) -> Self {
        Self {
            slots: vec![anything; most.next_power_of_two()],
            head: 0,
            tail: 0,
        }
    }

    #[inline(always)]
    pub(super) fn len(&self) -> u16 {
        self.tail.wrapping_sub(self.head) as u16
    }

    /// The oldest.
    #[inline(always)]
    pub(super) fn first(&self) -> Option<T> {
        let at = self.head & (self.slots.len() - 1);
        (self.head != self.tail).then(|| self.slots[at])
    }

    #[inline(always)]
    pub(super) fn push(&mut self, value: T) {
        let at = self.tail & (self.slots.len() - 1);
        self.slots[at] = value;
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<T> {
        let value = self.first()?;
        self.head = self.head.wrapping_add(1);
        Some(value)
    }

    /// The one that `ahead` others are older than.
    #[inline(always)]
    pub(super) fn get(&self, ahead: u16) -> Option<T> {
        let at = self.head.wrapping_add(usize::from(ahead)) & (self.slots.len() - 1);
        (ahead < self.len()).then(|| self.slots[at])
    }

    pub(super) fn clear(&mut self) {
        (self.head, self.tail) = (0, 0);
    }
}
