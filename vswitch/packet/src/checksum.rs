//! The internet checksum (RFC 1071), over pieces, with the pseudo headers of IPv4 and IPv6.
//!
//! The sum is kept in little-endian words and turned at the end, which the checksum's independence of byte order allows
//! (RFC 1071, section 2(B)); two 32-bit halves go into a 64-bit accumulator, so that no addition carries and the compiler
//! can use vectors.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::offload::PartialCsum;

/// A running one's complement sum over bytes that may come in pieces of any length, so that it can be taken while copying.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sum {
    /// Folded to 16 bits in little-endian order after each piece.
    words: u64,
    /// An odd number of bytes went in: the next one is the low half of its word.
    odd: bool,
}

impl Sum {
    /// Nothing summed.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            words: 0,
            odd: false,
        }
    }

    /// The sum that an unfinished checksum field holds.
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Self {
            words: field.swap_bytes() as u64,
            odd: false,
        }
    }

    /// The pseudo header of TCP or UDP over IPv4; `len` counts the transport header and what follows.
    #[must_use]
    pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Self {
        let mut sum = Self::new();
        sum.add(&src.octets());
        sum.add(&dst.octets());
        sum.add(&[0, protocol]);
        sum.add(&len.to_be_bytes());
        sum
    }

    /// The pseudo header over IPv6 (RFC 8200, section 8.1).
    #[must_use]
    pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Self {
        let mut sum = Self::new();
        sum.add(&src.octets());
        sum.add(&dst.octets());
        sum.add(&len.to_be_bytes());
        sum.add(&[0, 0, 0, protocol]);
        sum
    }

    /// Adds the next bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_words(raw_sum(bytes));
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds an even number of bytes that were added up elsewhere, as little-endian words of 16 or 32 bits.
    #[inline]
    pub fn add_words(&mut self, words: u64) {
        let piece = fold(words);
        let piece = if self.odd { piece.swap_bytes() } else { piece };
        self.words = u64::from(fold(self.words + u64::from(piece)));
    }

    /// The sum, not complemented: what the field of an unfinished checksum holds.
    #[inline]
    #[must_use]
    pub const fn to_field(self) -> u16 {
        fold(self.words).swap_bytes()
    }

    /// The checksum.
    #[inline]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.to_field()
    }

    /// The checksum, with 0 sent as 0xffff: for UDP zero means "none", for the others both are the same number.
    #[inline]
    #[must_use]
    pub const fn finish_nonzero(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[inline]
fn raw_sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = 0u64;
    for word in words {
        let word = u64::from_le_bytes(*word);
        sum += (word & 0xffff_ffff) + (word >> 32);
    }
    let mut last = [0; 8];
    if let Some(part) = last.get_mut(..rest.len()) {
        part.copy_from_slice(rest);
    }
    let last = u64::from_le_bytes(last);
    sum + (last & 0xffff_ffff) + (last >> 32)
}

/// Completes a partial checksum in a linear frame: the field holds the pseudo header's sum (virtio 1.2, section 5.1.6.2),
/// and everything from `start` to the frame's end is added to it.
///
/// A request that reaches beyond the frame changes nothing; [`check_offload`](crate::check_offload) refuses it before.
pub fn complete_checksum(frame: &mut [u8], csum: PartialCsum) {
    let Some(covered) = frame.get_mut(usize::from(csum.start)..) else {
        return;
    };
    let mut sum = Sum::new();
    sum.add(covered);
    if let Some(field) = covered
        .get_mut(usize::from(csum.offset)..)
        .and_then(|rest| rest.first_chunk_mut::<2>())
    {
        *field = sum.finish_nonzero().to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::naive_sum;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let mut sum = Sum::new();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.to_field(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    #[test]
    fn an_ipv4_header() {
        let header =
            b"\x45\x00\x00\x73\x00\x00\x40\x00\x40\x11\x00\x00\xc0\xa8\x00\x01\xc0\xa8\x00\xc7";
        let mut sum = Sum::new();
        sum.add(header);
        assert_eq!(sum.finish(), 0xb861);
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let ones = vec![0xff; 70_000];
        let mut sum = Sum::new();
        for _ in 0..100 {
            sum.add(&ones);
        }
        assert_eq!(sum.finish(), 0);
        assert_eq!(sum.finish_nonzero(), 0xffff);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        // Source, destination, length, checksum field chosen so that the sum is 0xffff.
        let mut udp = [0x12, 0x34, 0x00, 0x35, 0x00, 0x08, 0, 0];
        let missing = !naive_sum(&udp);
        udp[6..].copy_from_slice(&missing.to_be_bytes());
        let csum = PartialCsum {
            start: 0,
            offset: 6,
        };
        complete_checksum(&mut udp, csum);
        assert_eq!(udp[6..], [0xff, 0xff]);
    }

    #[test]
    fn a_request_beyond_the_frame_changes_nothing() {
        for (start, offset) in [
            (60, 0),
            (61, 0),
            (50, 9),
            (50, 10),
            (u16::MAX, u16::MAX),
            (0, 59),
        ] {
            let mut frame = [7; 60];
            complete_checksum(&mut frame, PartialCsum { start, offset });
            assert_eq!(frame, [7; 60], "start {start} offset {offset}");
        }
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut sum = Sum::new();
            sum.add(&bytes);
            prop_assert_eq!(sum.to_field(), naive_sum(&bytes));
        }

        #[test]
        fn pieces_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..600), cuts in prop::collection::vec(0usize..600, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = Sum::new();
            for cut in cuts.windows(2) {
                sum.add(&bytes[cut[0]..cut[1]]);
            }
            prop_assert_eq!(sum.to_field(), naive_sum(&bytes));
        }

        #[test]
        fn words_added_up_elsewhere_are_their_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), words in prop::collection::vec(any::<u32>(), 0..300)) {
            let mut sum = Sum::new();
            sum.add(&bytes);
            sum.add_words(words.iter().map(|word| u64::from(*word)).sum());
            let all = words.iter().fold(bytes, |mut all, word| {
                all.extend(word.to_le_bytes());
                all
            });
            prop_assert_eq!(sum.to_field(), naive_sum(&all));
        }

        #[test]
        fn pseudo_headers_are_their_bytes(src: [u8; 16], dst: [u8; 16], protocol: u8, len: u16) {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&src[..4]);
            bytes.extend_from_slice(&dst[..4]);
            bytes.extend([0, protocol]);
            bytes.extend(len.to_be_bytes());
            let v4 = |a: &[u8; 16]| Ipv4Addr::new(a[0], a[1], a[2], a[3]);
            prop_assert_eq!(Sum::pseudo_v4(v4(&src), v4(&dst), protocol, len).to_field(), naive_sum(&bytes));

            let mut bytes = Vec::new();
            bytes.extend_from_slice(&src);
            bytes.extend_from_slice(&dst);
            bytes.extend(u32::from(len).to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
            let v6 = Sum::pseudo_v6(src.into(), dst.into(), protocol, len.into());
            prop_assert_eq!(v6.to_field(), naive_sum(&bytes));
            prop_assert_eq!(Sum::from_field(v6.to_field()), v6);
        }

        #[test]
        fn completed_frames_verify(
            mut frame in prop::collection::vec(any::<u8>(), 20..2000),
            start: prop::sample::Index,
            word: prop::sample::Index,
        ) {
            // The field is a whole word of what is summed, as in every protocol.
            let start = start.index(frame.len() - 1);
            let offset = 2 * word.index((frame.len() - start) / 2);
            let field = start + offset;
            frame[field..field + 2].fill(0);
            let csum = PartialCsum { start: start as u16, offset: offset as u16 };
            complete_checksum(&mut frame, csum);
            prop_assert_eq!(naive_sum(&frame[start..]), 0xffff);
        }
    }
}
