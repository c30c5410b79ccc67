//! A port: where frames come in and go out.

use serde::{Deserialize, Serialize};

use super::{Coalesce, DpdkPort, Offload, ValueError, VhostUser, Vlan};

/// A port: where frames come in and go out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortShape", into = "PortShape")]
pub struct Port {
    /// The bridge it belongs to. Default: the only bridge, when there is exactly one.
    pub bridge: String,
    /// What it is attached to.
    pub kind: PortKind,
    /// How it treats VLANs. Default [`Vlan::Untagged`].
    pub vlan: Vlan,
    /// Learn the addresses of the stations behind it. Default yes.
    pub learning: bool,
    /// Whether it takes part at all. Default up.
    pub link: AdminLink,
}

impl Port {
    /// A port of this kind with everything else at its default.
    pub fn new(kind: PortKind) -> Self {
        Self {
            bridge: String::new(),
            kind,
            vlan: Vlan::default(),
            learning: true,
            link: AdminLink::Up,
        }
    }

    /// The guest's side, if that is what the port is for.
    pub fn vhost_user(&self) -> Option<&VhostUser> {
        match &self.kind {
            PortKind::VhostUser(vhost_user) => Some(vhost_user),
            PortKind::Dpdk(_) => None,
        }
    }

    /// The DPDK device, if that is what the port is for.
    pub fn dpdk(&self) -> Option<&DpdkPort> {
        match &self.kind {
            PortKind::Dpdk(dpdk) => Some(dpdk),
            PortKind::VhostUser(_) => None,
        }
    }
}

/// What a port is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A guest, over a vhost-user socket.
    VhostUser(VhostUser),
    /// A device of DPDK.
    Dpdk(DpdkPort),
}

impl PortKind {
    /// When the guest of a guest's port is interrupted.
    pub fn coalesce(&self) -> Option<Coalesce> {
        match self {
            Self::VhostUser(vhost_user) => Some(vhost_user.coalesce),
            Self::Dpdk(_) => None,
        }
    }

    /// The offloads of a guest's port.
    pub fn offload(&self) -> Option<Offload> {
        match self {
            Self::VhostUser(vhost_user) => Some(vhost_user.offload),
            Self::Dpdk(_) => None,
        }
    }
}

/// A port as the file writes it; [`Port`] is the same without the combinations that mean nothing.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, rename = "port")]
struct PortShape {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    bridge: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vhost_user: Option<VhostUser>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dpdk: Option<DpdkPort>,
    #[serde(default, skip_serializing_if = "Vlan::is_untagged")]
    vlan: Vlan,
    #[serde(default = "yes")]
    learning: bool,
    #[serde(default)]
    link: AdminLink,
}

/// The default of what is on unless the file says otherwise.
pub(super) fn yes() -> bool {
    true
}

impl TryFrom<PortShape> for Port {
    type Error = ValueError;

    fn try_from(shape: PortShape) -> Result<Self, ValueError> {
        let kind = match (shape.vhost_user, shape.dpdk) {
            (Some(vhost_user), None) => PortKind::VhostUser(vhost_user),
            (None, Some(dpdk)) => PortKind::Dpdk(dpdk),
            (None, None) => {
                return Err(ValueError::new(
                    "the port is attached to nothing; add `vhost-user: { socket: /path }` or `dpdk: { device: \"…\" }`",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(ValueError::new(
                    "a port is either `vhost-user` or `dpdk`; make it two ports of the same bridge",
                ));
            }
        };
        Ok(Self {
            bridge: shape.bridge,
            kind,
            vlan: shape.vlan,
            learning: shape.learning,
            link: shape.link,
        })
    }
}

impl From<Port> for PortShape {
    fn from(port: Port) -> Self {
        let (vhost_user, dpdk) = match port.kind {
            PortKind::VhostUser(vhost_user) => (Some(vhost_user), None),
            PortKind::Dpdk(dpdk) => (None, Some(dpdk)),
        };
        Self {
            bridge: port.bridge,
            vhost_user,
            dpdk,
            vlan: port.vlan,
            learning: port.learning,
            link: port.link,
        }
    }
}

/// Whether the operator wants the port to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminLink {
    /// It forwards, if there is somebody on the other side.
    #[default]
    Up,
    /// It drops what comes in and sends nothing.
    Down,
}
