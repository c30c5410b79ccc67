//! VLAN numbers, tags (IEEE 802.1Q), and edits of a frame's outer tag.
//!
//! An edit never moves the head: [`HeadEdit::parts`] describes the edited head as up to three slices, which whoever
//! copies the frame out writes one after the other.

use std::fmt;

use crate::net_header::VirtioNetHdr;

/// Tag protocol of a customer tag.
pub const TPID_CUSTOMER: u16 = 0x8100;
/// Tag protocol of a service tag (802.1ad).
pub const TPID_SERVICE: u16 = 0x88a8;

/// Bytes of a tag.
pub const TAG_LEN: usize = 4;
/// Where the outer tag stands: behind the two addresses.
const TAG_AT: usize = 12;

/// A VLAN number that names a VLAN: 1 to 4094.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// `None` for 0 (priority tag), 4095 (reserved) and more.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if matches!(number, 1..=4094) {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VlanId({})", self.0)
    }
}

/// A tag as it stands in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    /// [`TPID_CUSTOMER`] or [`TPID_SERVICE`].
    pub tpid: u16,
    /// Priority (3 bits), drop eligible (1), VLAN number (12).
    pub tci: u16,
}

impl Tag {
    /// The VLAN, or `None` for a priority tag (0) and the reserved number 4095, which [`number`](Self::number) tells apart.
    #[must_use]
    pub const fn vlan(self) -> Option<VlanId> {
        VlanId::new(self.number())
    }

    /// The 12-bit number as it stands there.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.tci & 0x0fff
    }

    /// Priority code point, 0 to 7.
    #[must_use]
    pub const fn priority(self) -> u8 {
        (self.tci >> 13) as u8
    }
}

/// What to do to the outer tag on the way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HeadEdit {
    /// Nothing.
    #[default]
    None,
    /// Take the outer tag off.
    Pop,
    /// Put a customer tag with this TCI before whatever follows the addresses.
    Push(u16),
    /// Give the outer tag this TCI; its tag protocol stays.
    Rewrite(u16),
}

impl HeadEdit {
    /// The edited head as slices to be written one after the other, and by how many bytes the frame grows.
    ///
    /// `tag` is where a new tag is built. [`Pop`](Self::Pop) and [`Rewrite`](Self::Rewrite) are for heads that
    /// [`parse_eth`](crate::parse_eth) found tagged; a head too short for its edit is passed as it is.
    #[inline]
    #[must_use]
    pub fn parts<'a>(self, head: &'a [u8], tag: &'a mut [u8; TAG_LEN]) -> ([&'a [u8]; 3], i8) {
        const NOTHING: &[u8] = &[];
        let unchanged = ([head, NOTHING, NOTHING], 0);
        let Some((addresses, rest)) = head.split_at_checked(TAG_AT) else {
            return unchanged;
        };
        match self {
            Self::None => unchanged,
            Self::Push(tci) => {
                *tag = tag_bytes(TPID_CUSTOMER, tci);
                ([addresses, tag, rest], TAG_LEN as i8)
            }
            Self::Pop => match rest.split_at_checked(TAG_LEN) {
                Some((_, rest)) => ([addresses, rest, NOTHING], -(TAG_LEN as i8)),
                None => unchanged,
            },
            Self::Rewrite(tci) => match rest.split_first_chunk::<TAG_LEN>() {
                Some((old, rest)) => {
                    *tag = tag_bytes(u16::from_be_bytes([old[0], old[1]]), tci);
                    ([addresses, tag, rest], 0)
                }
                None => unchanged,
            },
        }
    }

    /// By how many bytes the frame grows.
    #[must_use]
    pub const fn delta(self) -> i8 {
        match self {
            Self::None | Self::Rewrite(_) => 0,
            Self::Pop => -(TAG_LEN as i8),
            Self::Push(_) => TAG_LEN as i8,
        }
    }

    /// Moves what an outgoing header says about offsets along with the edit.
    #[inline]
    pub const fn adjust(self, header: &mut VirtioNetHdr) {
        let delta = self.delta() as i16;
        // Offsets of a checked request leave room for a tag on both sides; zero means "not given".
        if header.flags & VirtioNetHdr::F_NEEDS_CSUM != 0 {
            header.csum_start = header.csum_start.saturating_add_signed(delta);
        }
        if header.hdr_len != 0 {
            header.hdr_len = header.hdr_len.saturating_add_signed(delta);
        }
    }
}

const fn tag_bytes(tpid: u16, tci: u16) -> [u8; TAG_LEN] {
    let ([t0, t1], [c0, c1]) = (tpid.to_be_bytes(), tci.to_be_bytes());
    [t0, t1, c0, c1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eth::parse_eth;
    use proptest::prelude::*;

    const UNTAGGED: &[u8] = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x00payload";
    const TAGGED: &[u8] = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x81\x00\x20\x0a\x08\x00payload";

    fn edited(edit: HeadEdit, head: &[u8]) -> Vec<u8> {
        let mut tag = [0; 4];
        let (parts, delta) = edit.parts(head, &mut tag);
        let bytes = parts.concat();
        assert_eq!(bytes.len() as i64 - head.len() as i64, i64::from(delta));
        bytes
    }

    #[test]
    fn numbers() {
        for number in 0..=u16::MAX {
            let expected = (1..=4094).contains(&number);
            assert_eq!(
                VlanId::new(number).map(VlanId::get),
                expected.then_some(number)
            );
        }
        let tag = Tag {
            tpid: TPID_CUSTOMER,
            tci: 0xe00a,
        };
        assert_eq!((tag.vlan(), tag.priority()), (VlanId::new(10), 7));
    }

    #[test]
    fn push_pop_rewrite_are_the_bytes() {
        assert_eq!(edited(HeadEdit::Push(0x200a), UNTAGGED), TAGGED);
        assert_eq!(edited(HeadEdit::Pop, TAGGED), UNTAGGED);
        assert_eq!(edited(HeadEdit::None, TAGGED), TAGGED);
        let rewritten = edited(HeadEdit::Rewrite(0x0014), TAGGED);
        let eth = parse_eth(&rewritten, rewritten.len()).unwrap();
        assert_eq!(
            eth.vlan,
            Some(Tag {
                tpid: TPID_CUSTOMER,
                tci: 20
            })
        );
        assert_eq!(&rewritten[16..], &TAGGED[16..]);
    }

    #[test]
    fn rewrite_keeps_a_service_tag_one() {
        let mut service = TAGGED.to_vec();
        service[12..14].copy_from_slice(&TPID_SERVICE.to_be_bytes());
        let rewritten = edited(HeadEdit::Rewrite(5), &service);
        assert_eq!(rewritten[12..16], [0x88, 0xa8, 0, 5]);
    }

    #[test]
    fn offsets_move_with_the_tag() {
        let asked = VirtioNetHdr {
            flags: VirtioNetHdr::F_NEEDS_CSUM,
            hdr_len: 54,
            csum_start: 34,
            csum_offset: 16,
            ..VirtioNetHdr::default()
        };
        for (edit, start, hdr_len) in [
            (HeadEdit::None, 34, 54),
            (HeadEdit::Rewrite(1), 34, 54),
            (HeadEdit::Push(1), 38, 58),
            (HeadEdit::Pop, 30, 50),
        ] {
            let mut header = asked;
            edit.adjust(&mut header);
            assert_eq!((header.csum_start, header.hdr_len), (start, hdr_len));
            assert_eq!(header.csum_offset, 16);
        }
        let mut plain = VirtioNetHdr::default();
        HeadEdit::Push(1).adjust(&mut plain);
        assert_eq!(plain, VirtioNetHdr::default());
    }

    proptest! {
        #[test]
        fn edits_survive_any_head(head in prop::collection::vec(any::<u8>(), 0..40), tci: u16) {
            for edit in [HeadEdit::None, HeadEdit::Pop, HeadEdit::Push(tci), HeadEdit::Rewrite(tci)] {
                let bytes = edited(edit, &head);
                if head.len() >= 16 {
                    prop_assert_eq!(bytes.len() as i64 - head.len() as i64, i64::from(edit.delta()));
                }
            }
            if head.len() >= 12 {
                prop_assert_eq!(edited(HeadEdit::Pop, &edited(HeadEdit::Push(tci), &head)), head);
            }
        }
    }
}
