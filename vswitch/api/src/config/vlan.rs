//! How a port treats VLANs.

use serde::{Deserialize, Serialize};

use super::{ValueError, VlanId, VlanRange};

/// How a port treats VLANs.
///
/// Frames without a tag on ports without a `vlan` are a segment of their own, beside the VLANs 1
/// to 4094; no VLAN reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "VlanShape", into = "VlanShape")]
pub enum Vlan {
    /// Takes part in the untagged segment. Tagged frames are dropped (`vlan-not-allowed`).
    #[default]
    Untagged,
    /// Takes part in one VLAN without knowing: frames get the tag on their way in and lose it on
    /// their way out. Tagged frames are dropped (`vlan-not-allowed`).
    Access(VlanId),
    /// Takes part in several VLANs, tagged.
    Trunk {
        /// The VLANs that pass; others are dropped (`vlan-not-allowed`).
        allowed: Vec<VlanRange>,
        /// The VLAN that frames without a tag belong to, both ways; it need not be in `allowed`.
        /// Without it, frames without a tag are dropped (`vlan-not-allowed`).
        native: Option<VlanId>,
    },
}

impl Vlan {
    /// Is it the default?
    pub fn is_untagged(&self) -> bool {
        *self == Self::Untagged
    }
}

/// `vlan` as the file writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, rename = "vlan")]
struct VlanShape {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<VlanId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trunk: Option<Vec<VlanRange>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    native: Option<VlanId>,
}

impl TryFrom<VlanShape> for Vlan {
    type Error = ValueError;

    fn try_from(shape: VlanShape) -> Result<Self, ValueError> {
        match (shape.access, shape.trunk, shape.native) {
            (None, None, None) => Ok(Self::Untagged),
            (Some(id), None, None) => Ok(Self::Access(id)),
            (None, Some(allowed), native) => Ok(Self::Trunk { allowed, native }),
            (Some(_), Some(_), _) => Err(ValueError::new(
                "`access` and `trunk` exclude each other; keep `trunk`, and name the untagged VLAN with `native`",
            )),
            (access, None, Some(native)) => Err(ValueError::new(match access {
                Some(_) => "`native` is for trunks; an access port has no other VLAN than `access`, remove `native`".into(),
                None => format!("`native` alone says nothing; write `access: {native}`, or add a `trunk` list"),
            })),
        }
    }
}

impl From<Vlan> for VlanShape {
    fn from(vlan: Vlan) -> Self {
        let (access, trunk, native) = match vlan {
            Vlan::Untagged => (None, None, None),
            Vlan::Access(id) => (Some(id), None, None),
            Vlan::Trunk { allowed, native } => (None, Some(allowed), native),
        };
        Self {
            access,
            trunk,
            native,
        }
    }
}
