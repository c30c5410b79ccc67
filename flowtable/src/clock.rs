//! Time, which comes from outside.

/// Microseconds since any moment that stays the same. Must not go back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Micros(pub u64);

/// Microseconds in a tick, what stamps are kept in.
pub(crate) const TICK: u64 = 1 << 10;

impl Micros {
    /// The tick it falls in, about a millisecond; wraps where the stamp that keeps it does.
    #[inline]
    #[must_use]
    pub(crate) const fn tick(self) -> u64 {
        self.0 / TICK
    }

    /// Later by so many microseconds.
    #[must_use]
    pub const fn after(self, micros: u64) -> Self {
        Self(self.0 + micros)
    }
}
