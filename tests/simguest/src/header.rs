//! The virtio-net header (virtio 1.2, 5.1.6), in this crate's own words.

/// Header before every frame. Little endian on the wire, 12 bytes, or 10 without `num_buffers` on legacy devices
/// without mergeable buffers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct VirtioNetHdr {
    /// [`Self::F_NEEDS_CSUM`], [`Self::F_DATA_VALID`].
    pub flags: u8,
    /// [`Self::GSO_NONE`], [`Self::GSO_TCPV4`], ... possibly with [`Self::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of headers before the payload (a hint).
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers this frame takes.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// Bytes with `num_buffers`.
    pub const LEN: usize = 12;
    /// Bytes without.
    pub const LEGACY_LEN: usize = 10;
    /// The checksum is partial: complete it from `csum_start` on.
    pub const F_NEEDS_CSUM: u8 = 1;
    /// The checksum has been validated.
    pub const F_DATA_VALID: u8 = 2;
    /// A single frame.
    pub const GSO_NONE: u8 = 0;
    /// A TCP over IPv4 train.
    pub const GSO_TCPV4: u8 = 1;
    /// A UDP train (fragmented; obsolete).
    pub const GSO_UDP: u8 = 3;
    /// A TCP over IPv6 train.
    pub const GSO_TCPV6: u8 = 4;
    /// The train has CWR in its first segment.
    pub const GSO_ECN: u8 = 0x80;

    /// From the wire.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// To the wire; a legacy header is the first ten bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        for (at, word) in [
            (2, self.hdr_len),
            (4, self.gso_size),
            (6, self.csum_start),
            (8, self.csum_offset),
            (10, self.num_buffers),
        ] {
            b[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_form() {
        let bytes = [1, 0x81, 54, 0, 0xb4, 5, 34, 0, 16, 0, 3, 0];
        let hdr = VirtioNetHdr::from_bytes(&bytes);
        assert_eq!(
            hdr.gso_type,
            VirtioNetHdr::GSO_TCPV4 | VirtioNetHdr::GSO_ECN
        );
        assert_eq!((hdr.hdr_len, hdr.gso_size), (54, 1460));
        assert_eq!(
            (hdr.csum_start, hdr.csum_offset, hdr.num_buffers),
            (34, 16, 3)
        );
        assert_eq!(hdr.to_bytes(), bytes);
    }
}
