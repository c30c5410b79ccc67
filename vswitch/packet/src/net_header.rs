//! The header that virtio-net puts before each frame (virtio 1.2, section 5.1.6).

/// virtio-net header; in memory and on the ring little endian, as virtio 1.x has it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct VirtioNetHdr {
    /// `F_*` bits.
    pub flags: u8,
    /// One of `GSO_*`, with [`GSO_ECN`](Self::GSO_ECN) as a bit.
    pub gso_type: u8,
    /// Length of the frame's headers through layer 4: a hint, never trusted.
    pub hdr_len: u16,
    /// TCP payload bytes per segment.
    pub gso_size: u16,
    /// From the frame's start to where checksumming begins.
    pub csum_start: u16,
    /// From there to the checksum field.
    pub csum_offset: u16,
    /// How many receive buffers the frame was merged over; written by whoever fills them.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// Bytes of the full form.
    pub const LEN: usize = 12;
    /// Bytes of the form without `num_buffers`, for guests with neither `VERSION_1` nor `MRG_RXBUF`.
    pub const LEGACY_LEN: usize = 10;

    /// Flag: the checksum at `csum_start + csum_offset` is to be completed.
    pub const F_NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum was validated by whoever delivers the frame.
    pub const F_DATA_VALID: u8 = 2;

    /// Not a GSO frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// UDP fragmentation; obsolete, never offered.
    pub const GSO_UDP: u8 = 3;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP segmentation; never offered.
    pub const GSO_UDP_L4: u8 = 5;
    /// Bit beside the type: the TCP header carries CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the full form.
    #[must_use]
    pub const fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }

    /// Writes the full form; the legacy form is its first [`LEGACY_LEN`](Self::LEGACY_LEN) bytes.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            n0,
            n1,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tso_header_as_linux_writes_it() {
        let bytes = [1, 1, 66, 0, 0xa8, 0x05, 34, 0, 16, 0, 2, 1];
        let header = VirtioNetHdr {
            flags: VirtioNetHdr::F_NEEDS_CSUM,
            gso_type: VirtioNetHdr::GSO_TCPV4,
            hdr_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0x0102,
        };
        assert_eq!(VirtioNetHdr::from_bytes(&bytes), header);
        assert_eq!(header.to_bytes(), bytes);
    }

    proptest! {
        #[test]
        fn every_header_round_trips(bytes: [u8; 12]) {
            prop_assert_eq!(VirtioNetHdr::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
