//! The Ethernet header with its tags: all that plain bridging needs.

use crate::mac::MacAddr;
use crate::vlan::{TAG_LEN, TPID_CUSTOMER, TPID_SERVICE, Tag};

/// Bytes of an untagged Ethernet header.
pub const ETH_LEN: usize = 14;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Why a frame cannot be switched at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// Shorter than an Ethernet header.
    #[error("the frame ends inside its Ethernet header: the sender must send at least 14 bytes")]
    Runt,
    /// A tag protocol, and then the frame ends.
    #[error(
        "the frame ends inside a VLAN tag: the sender must send the whole tag and an EtherType"
    )]
    TagTruncated,
    /// The frame goes on, but the copied head does not.
    #[error(
        "the copied head ends inside the Ethernet header: copy at least 22 bytes of a longer frame"
    )]
    HeadTooShort,
}

impl ParseError {
    /// Every variant.
    pub const ALL: [Self; 3] = [Self::Runt, Self::TagTruncated, Self::HeadTooShort];

    /// The name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runt => "runt-frame",
            Self::TagTruncated => "vlan-tag-truncated",
            Self::HeadTooShort => "head-too-short",
        }
    }
}

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eth {
    /// Where to.
    pub dst: MacAddr,
    /// Where from.
    pub src: MacAddr,
    /// The outer tag.
    pub vlan: Option<Tag>,
    /// The tag behind it.
    pub inner_vlan: Option<Tag>,
    /// What follows the tags; a third tag's protocol if there is one, and a length if below 1,536.
    pub ethertype: u16,
    /// Where it starts.
    pub l3_offset: u16,
}

/// Reads the Ethernet header of a frame of `frame_len` bytes from its `head`.
///
/// # Errors
///
/// The frame, or the head of a longer one, ends before the EtherType behind its tags.
#[inline]
pub fn parse_eth(head: &[u8], frame_len: usize) -> Result<Eth, ParseError> {
    let head = head.get(..frame_len).unwrap_or(head);
    let Some((header, rest)) = head.split_first_chunk::<ETH_LEN>() else {
        return Err(ended(frame_len, ETH_LEN, ParseError::Runt));
    };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    let mut eth = Eth {
        dst: MacAddr([d0, d1, d2, d3, d4, d5]),
        src: MacAddr([s0, s1, s2, s3, s4, s5]),
        vlan: None,
        inner_vlan: None,
        ethertype: u16::from_be_bytes([t0, t1]),
        l3_offset: ETH_LEN as u16,
    };
    if !is_tag(eth.ethertype) {
        return Ok(eth);
    }
    let mut rest = rest;
    for slot in [&mut eth.vlan, &mut eth.inner_vlan] {
        if !is_tag(eth.ethertype) {
            break;
        }
        let Some(([c0, c1, t0, t1], behind)) = rest.split_first_chunk::<TAG_LEN>() else {
            let needed = usize::from(eth.l3_offset) + TAG_LEN;
            return Err(ended(frame_len, needed, ParseError::TagTruncated));
        };
        *slot = Some(Tag {
            tpid: eth.ethertype,
            tci: u16::from_be_bytes([*c0, *c1]),
        });
        eth.ethertype = u16::from_be_bytes([*t0, *t1]);
        eth.l3_offset += TAG_LEN as u16;
        rest = behind;
    }
    Ok(eth)
}

const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, TPID_CUSTOMER | TPID_SERVICE)
}

/// Which of the two ended before `needed` bytes: the frame, or only the head.
const fn ended(frame_len: usize, needed: usize, frame_error: ParseError) -> ParseError {
    if frame_len < needed {
        frame_error
    } else {
        ParseError::HeadTooShort
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DOUBLE: &[u8] =
        b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xa8\x00\x64\x81\x00\x60\x0a\x86\xdd";

    #[test]
    fn two_tags_outer_first() {
        let eth = parse_eth(DOUBLE, DOUBLE.len()).unwrap();
        assert_eq!(eth.dst, MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(eth.src, MacAddr([2, 0, 0, 0, 0, 2]));
        assert_eq!(
            eth.vlan,
            Some(Tag {
                tpid: TPID_SERVICE,
                tci: 100
            })
        );
        assert_eq!(
            eth.inner_vlan,
            Some(Tag {
                tpid: TPID_CUSTOMER,
                tci: 0x600a
            })
        );
        assert_eq!((eth.ethertype, eth.l3_offset), (ETHERTYPE_IPV6, 22));
    }

    #[test]
    fn untagged() {
        let eth = parse_eth(b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x02\x08\x06", 14).unwrap();
        assert!(eth.dst.is_broadcast());
        assert_eq!((eth.vlan, eth.inner_vlan), (None, None));
        assert_eq!((eth.ethertype, eth.l3_offset), (ETHERTYPE_ARP, 14));
    }

    #[test]
    fn a_third_tag_is_left_as_ethertype() {
        let mut triple = DOUBLE.to_vec();
        triple[20..22].copy_from_slice(&[0x81, 0]);
        triple.extend([0, 1, 8, 0]);
        assert_eq!(
            parse_eth(&triple, triple.len()).unwrap().ethertype,
            TPID_CUSTOMER
        );
    }

    #[test]
    fn truncated_at_every_byte() {
        for len in 0..DOUBLE.len() {
            let expected = if len < 14 {
                ParseError::Runt
            } else {
                ParseError::TagTruncated
            };
            assert_eq!(
                parse_eth(&DOUBLE[..len], len),
                Err(expected),
                "frame of {len}"
            );
            assert_eq!(
                parse_eth(DOUBLE, len),
                Err(expected),
                "head longer than frame of {len}"
            );
            assert_eq!(
                parse_eth(&DOUBLE[..len], DOUBLE.len()),
                Err(ParseError::HeadTooShort),
                "head of {len}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes(head in prop::collection::vec(any::<u8>(), 0..64), frame_len in 0usize..70_000) {
            if let Ok(eth) = parse_eth(&head, frame_len) {
                prop_assert!(usize::from(eth.l3_offset) <= head.len().min(frame_len));
                prop_assert!(eth.inner_vlan.is_none() || eth.vlan.is_some());
            }
        }
    }
}
