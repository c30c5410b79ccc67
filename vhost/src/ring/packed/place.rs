//! A slot of a packed ring and the lap it is in.

/// `VIRTQ_DESC_F_AVAIL`: the driver's wrap counter when it wrote a descriptor.
pub(super) const F_AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`: the same bit when we write one, the inverse when the driver does.
pub(super) const F_USED: u16 = 1 << 15;

/// Where one side of a ring stands: the next slot, and the wrap counter, which begins as 1 and flips at the ring's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) slot: u16,
    pub(super) wrap: bool,
}

impl Place {
    /// Where both sides begin.
    pub(super) const START: Self = Self {
        slot: 0,
        wrap: true,
    };

    /// From 15 bits of slot and one of wrap counter.
    #[inline]
    pub(super) fn from_bits(bits: u16) -> Self {
        Self {
            slot: bits & 0x7fff,
            wrap: bits >> 15 != 0,
        }
    }

    #[inline]
    pub(super) fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }

    /// So many slots further in a ring of `size`.
    #[inline]
    pub(super) fn ahead(self, slots: u16, size: u16) -> Self {
        let (size, mut wrap) = (u32::from(size), self.wrap);
        let mut slot = u32::from(self.slot) + u32::from(slots);
        while slot >= size {
            slot -= size;
            wrap = !wrap;
        }
        Self {
            slot: slot as u16,
            wrap,
        }
    }

    /// The lap flags of a descriptor on offer here.
    #[inline]
    pub(super) fn available(self) -> u16 {
        if self.wrap { F_AVAIL } else { F_USED }
    }

    /// The lap flags of a descriptor used here.
    #[inline]
    pub(super) fn used(self) -> u16 {
        if self.wrap { F_AVAIL | F_USED } else { 0 }
    }

    #[inline]
    pub(super) fn is_available(self, flags: u16) -> bool {
        flags & (F_AVAIL | F_USED) == self.available()
    }
}
