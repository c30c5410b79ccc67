//! Slots of a packed ring: which one, in which lap, and what lies in it.

/// Values of an event suppression structure's flags (virtio 1.2, 2.8.14).
pub mod event {
    /// Notify.
    pub const ENABLE: u16 = 0;
    /// Do not notify.
    pub const DISABLE: u16 = 1;
    /// Notify when a certain slot is passed (with EVENT_IDX).
    pub const DESC: u16 = 2;
}

/// A packed descriptor (virtio 1.2, 2.8.1 and 2.8.7; the used form leaves `addr` as it was).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct PackedDesc {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Bytes of the buffer, or bytes written.
    pub len: u32,
    /// Names the chain; valid in its last descriptor, and in the used one.
    pub id: u16,
    /// [`PackedDesc::NEXT`] and the others.
    pub flags: u16,
}

impl PackedDesc {
    /// The chain goes on in the next slot.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer; in a used descriptor: the length counts.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// The driver's wrap counter; the inverse of the device's in an available descriptor.
    pub const AVAIL: u16 = 1 << 7;
    /// The inverse of the driver's wrap counter in an available descriptor, the same as AVAIL in a used one.
    pub const USED: u16 = 1 << 15;
    /// Bytes of one descriptor.
    pub const SIZE: usize = 16;

    /// As the two words of memory.
    #[inline(always)]
    #[must_use]
    pub fn to_words(self) -> [u64; 2] {
        let rest = u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48;
        [self.addr, rest]
    }

    /// From the two words of memory.
    #[inline(always)]
    #[must_use]
    pub fn from_words([addr, rest]: [u64; 2]) -> Self {
        Self {
            addr,
            len: rest as u32,
            id: (rest >> 32) as u16,
            flags: (rest >> 48) as u16,
        }
    }
}

/// A slot and the wrap counter that goes with it: where one side of a ring stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Number of the slot.
    pub slot: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Place {
    /// Where both sides begin.
    pub const START: Self = Self {
        slot: 0,
        wrap: true,
    };

    /// `count` slots further, at most one turn.
    #[inline(always)]
    #[must_use]
    pub fn ahead(self, count: u16, size: u16) -> Self {
        // At most twice 32,768 - 1.
        let slot = u32::from(self.slot) + u32::from(count);
        match slot.checked_sub(u32::from(size)) {
            Some(slot) => Self {
                slot: slot as u16,
                wrap: !self.wrap,
            },
            None => Self {
                slot: slot as u16,
                wrap: self.wrap,
            },
        }
    }

    /// Slots from here to `later`, 0 to `size`.
    #[inline(always)]
    #[must_use]
    pub fn distance(self, later: Self, size: u16) -> u16 {
        let turn = if self.wrap == later.wrap { 0 } else { size };
        (later.slot + turn).wrapping_sub(self.slot)
    }

    /// The slot's number relative to where somebody stands `now`: one turn less if it is of the turn before.
    #[inline(always)]
    #[must_use]
    pub fn against(self, now: Self, size: u16) -> u16 {
        if self.wrap == now.wrap {
            self.slot
        } else {
            self.slot.wrapping_sub(size)
        }
    }

    /// As 15 bits of slot and one of wrap counter, the form of event offsets and vhost-user's ring bases.
    #[inline]
    #[must_use]
    pub fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }

    /// Back from that form.
    #[inline]
    #[must_use]
    pub fn from_bits(bits: u16) -> Self {
        Self {
            slot: bits & 0x7fff,
            wrap: bits >> 15 == 1,
        }
    }

    /// The lap flags of a descriptor made available here.
    #[inline(always)]
    #[must_use]
    pub fn available(self) -> u16 {
        if self.wrap {
            PackedDesc::AVAIL
        } else {
            PackedDesc::USED
        }
    }

    /// The lap flags of a descriptor used here.
    #[inline(always)]
    #[must_use]
    pub fn used(self) -> u16 {
        if self.wrap {
            PackedDesc::AVAIL | PackedDesc::USED
        } else {
            0
        }
    }

    /// Whether a descriptor here has been used in this lap.
    #[inline(always)]
    #[must_use]
    pub fn is_used(self, flags: u16) -> bool {
        flags & (PackedDesc::AVAIL | PackedDesc::USED) == self.used()
    }

    /// Whether a descriptor here has been made available in this lap and not used.
    #[inline(always)]
    #[must_use]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (PackedDesc::AVAIL | PackedDesc::USED) == self.available()
    }
}
