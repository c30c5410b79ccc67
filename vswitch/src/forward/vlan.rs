//! Which VLAN a frame belongs to when it enters, and how it is tagged when it leaves.
//!
//! | port | takes | sends |
//! | --- | --- | --- |
//! | untagged (no `vlan:` in its config) | untagged frames, into a segment of their own | that segment |
//! | access V | untagged into V; tagged frames are dropped | V, untagged |
//! | trunk L | tagged in L; untagged only with a native VLAN | L tagged, the native VLAN untagged |
//!
//! A priority tag (VLAN 0) counts as untagged and is removed. Only TPID 0x8100 is a VLAN tag; 802.1ad frames pass
//! as they are, as untagged traffic.

use vswitch_packet::{HeadEdit, VlanId};

use super::Vid;

/// Membership in VLANs, a bit each.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl VlanSet {
    /// No VLAN.
    pub const fn none() -> Self {
        VlanSet([0; 64])
    }
    /// Adds one.
    pub fn insert(&mut self, vid: Vid) {
        if let Some(word) = self.0.get_mut(usize::from(vid.0 >> 6)) {
            *word |= 1 << (vid.0 & 63);
        }
    }
    /// Is it a member?
    #[inline]
    pub fn contains(&self, vid: Vid) -> bool {
        self.0
            .get(usize::from(vid.0 >> 6))
            .is_some_and(|word| word >> (vid.0 & 63) & 1 != 0)
    }
}

/// A port's VLAN rule.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanRule {
    /// Where untagged frames go, and which VLAN leaves untagged.
    untagged: Option<Vid>,
    /// What may enter tagged.
    tagged: VlanSet,
    /// What may leave, tagged or not.
    member: VlanSet,
}

impl VlanRule {
    /// The untagged segment and nothing else.
    pub fn untagged() -> Self {
        let mut member = VlanSet::none();
        member.insert(Vid(0));
        VlanRule {
            untagged: Some(Vid(0)),
            tagged: VlanSet::none(),
            member,
        }
    }

    /// One VLAN, untagged.
    pub fn access(vlan: VlanId) -> Self {
        let vid = Vid(vlan.get());
        let mut member = VlanSet::none();
        member.insert(vid);
        VlanRule {
            untagged: Some(vid),
            tagged: VlanSet::none(),
            member,
        }
    }

    /// Several VLANs, tagged, and perhaps one untagged.
    pub fn trunk(vlans: impl IntoIterator<Item = VlanId>, native: Option<VlanId>) -> Self {
        let mut tagged = VlanSet::none();
        for vlan in vlans {
            tagged.insert(Vid(vlan.get()));
        }
        let mut member = tagged.clone();
        let untagged = native.map(|v| Vid(v.get()));
        if let Some(vid) = untagged {
            member.insert(vid);
        }
        VlanRule {
            untagged,
            tagged,
            member,
        }
    }

    /// The VLAN of a frame that enters with this tag (the whole TCI), or none if the port does not take it.
    #[inline]
    pub fn classify(&self, tci: Option<u16>) -> Option<Vid> {
        match tci.map(|t| t & 0xfff) {
            None | Some(0) => self.untagged,
            Some(v) => self.tagged.contains(Vid(v)).then_some(Vid(v)),
        }
    }

    /// Does the port carry this VLAN?
    #[inline]
    pub fn carries(&self, vid: Vid) -> bool {
        self.member.contains(vid)
    }

    /// How a frame of `vid` that came with `tci` has to change to leave here. Priority bits survive.
    #[inline]
    pub fn edit(&self, vid: Vid, tci: Option<u16>) -> HeadEdit {
        let leaves_untagged = vid.0 == 0 || self.untagged == Some(vid);
        match (tci, leaves_untagged) {
            (None, true) => HeadEdit::None,
            (Some(_), true) => HeadEdit::Pop,
            (None, false) => HeadEdit::Push(vid.0),
            (Some(t), false) if t & 0xfff == vid.0 => HeadEdit::None,
            (Some(t), false) => HeadEdit::Rewrite(t & 0xf000 | vid.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(n: u16) -> VlanId {
        VlanId::new(n).unwrap()
    }

    #[test]
    fn access_ports_take_and_give_untagged_frames_only() {
        let p = VlanRule::access(v(10));
        assert_eq!(p.classify(None), Some(Vid(10)));
        assert_eq!(
            p.classify(Some(0xe000)),
            Some(Vid(10)),
            "a priority tag is no VLAN"
        );
        assert_eq!(p.classify(Some(10)), None);
        assert!(p.carries(Vid(10)) && !p.carries(Vid(0)) && !p.carries(Vid(20)));
        assert_eq!(p.edit(Vid(10), None), HeadEdit::None);
        assert_eq!(p.edit(Vid(10), Some(0xe00a)), HeadEdit::Pop);
    }

    #[test]
    fn trunks_carry_their_list_and_their_native_vlan() {
        let p = VlanRule::trunk([v(10), v(20)], Some(v(1)));
        assert_eq!(p.classify(Some(20)), Some(Vid(20)));
        assert_eq!(p.classify(Some(30)), None);
        assert_eq!(p.classify(None), Some(Vid(1)));
        assert_eq!(
            p.classify(Some(1)),
            None,
            "the native VLAN is untagged unless it is in the list"
        );
        assert_eq!(p.edit(Vid(10), None), HeadEdit::Push(10));
        assert_eq!(p.edit(Vid(10), Some(0x200a)), HeadEdit::None);
        assert_eq!(p.edit(Vid(1), Some(5)), HeadEdit::Pop);
        assert_eq!(VlanRule::trunk([v(10)], None).classify(None), None);
    }

    #[test]
    fn untagged_ports_are_a_segment_of_their_own() {
        let p = VlanRule::untagged();
        assert_eq!(p.classify(None), Some(Vid(0)));
        assert_eq!(
            p.classify(Some(0x6000)),
            Some(Vid(0)),
            "a priority tag is no VLAN"
        );
        assert_eq!(p.classify(Some(9)), None);
        assert!(p.carries(Vid(0)) && !p.carries(Vid(9)));
        assert_eq!(p.edit(Vid(0), None), HeadEdit::None);
        assert_eq!(p.edit(Vid(0), Some(0x6000)), HeadEdit::Pop);
    }
}
