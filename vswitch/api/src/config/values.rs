//! The small values of a configuration, each of which can only hold what makes sense.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

/// A value that cannot be what it is meant to be; the text is a sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

impl ValueError {
    pub(super) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// An Ethernet address, six bytes in the order of the wire. Text form `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Addresses a group (broadcast included).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// All bytes zero: no station has this address.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!(
                "`{text}` is not a MAC address; write six pairs of hex digits, like 52:54:00:12:34:56"
            ))
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(if text.contains('-') { '-' } else { ':' });
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

/// A VLAN that a frame can belong to: 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u16")]
pub struct VlanId(u16);

impl VlanId {
    /// `None` for 0 (means "no VLAN" on the wire), 4095 (reserved) and beyond.
    pub fn new(id: u16) -> Option<Self> {
        (1..=4094).contains(&id).then_some(Self(id))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u64> for VlanId {
    type Error = ValueError;

    fn try_from(id: u64) -> Result<Self, ValueError> {
        u16::try_from(id).ok().and_then(Self::new).ok_or_else(|| {
            ValueError(match id {
                0 => "VLAN 0 means \"no VLAN\" on the wire; use 1 to 4094".into(),
                4095 => "VLAN 4095 is reserved by IEEE 802.1Q; use 1 to 4094".into(),
                _ => format!("VLAN {id} does not exist; use 1 to 4094"),
            })
        })
    }
}

impl From<VlanId> for u16 {
    fn from(id: VlanId) -> Self {
        id.0
    }
}

impl FromStr for VlanId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.trim().parse::<u64>().map_or_else(
            |_| Err(ValueError(format!("`{text}` is not a VLAN; use 1 to 4094"))),
            Self::try_from,
        )
    }
}

/// One VLAN or an unbroken run of them, both ends included. In YAML `10` or `"100-199"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanRange {
    first: VlanId,
    last: VlanId,
}

impl VlanRange {
    /// The run from `first` to `last`; `None` when it is the wrong way round.
    pub fn new(first: VlanId, last: VlanId) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Lowest VLAN of the run.
    pub fn first(self) -> VlanId {
        self.first
    }

    /// Highest VLAN of the run.
    pub fn last(self) -> VlanId {
        self.last
    }

    /// Is `id` in the run?
    pub fn contains(self, id: VlanId) -> bool {
        self.first <= id && id <= self.last
    }

    /// Every VLAN of the run, ascending.
    pub fn iter(self) -> impl Iterator<Item = VlanId> {
        (self.first.0..=self.last.0).map(VlanId)
    }
}

impl fmt::Display for VlanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for VlanRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (first.parse()?, last.parse()?),
            None => {
                let id: VlanId = text.parse()?;
                (id, id)
            }
        };
        Self::new(first, last).ok_or_else(|| {
            ValueError(format!(
                "the VLAN range {first}-{last} runs backwards; write {last}-{first}"
            ))
        })
    }
}

impl Serialize for VlanRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first.0)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for VlanRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = VlanRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a VLAN or a range like \"100-199\"")
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<VlanRange, E> {
                let id = VlanId::try_from(id).map_err(E::custom)?;
                Ok(VlanRange {
                    first: id,
                    last: id,
                })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<VlanRange, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// Access bits of a socket file, in YAML as an octal string: `"0660"`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permissions(u16);

impl Permissions {
    /// Owner and group read and write, others nothing.
    pub const DEFAULT: Self = Self(0o660);

    /// The bits, as `chmod(2)` takes them.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }
}

impl Default for Permissions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Permissions {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        u16::from_str_radix(digits, 8).ok().filter(|bits| octal && *bits <= 0o777).map(Self).ok_or_else(
            || {
                ValueError(format!(
                    "`{text}` are not permissions; write three octal digits, like \"0660\" (owner and group may connect)"
                ))
            },
        )
    }
}

/// Who a socket file belongs to: `user:group`, `user` or `:group`, names or numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner {
    user: Option<String>,
    group: Option<String>,
}

impl Owner {
    /// Name or number of the user, if it is to change.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Name or number of the group, if it is to change.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.user().unwrap_or_default())?;
        self.group().map_or(Ok(()), |group| write!(f, ":{group}"))
    }
}

impl FromStr for Owner {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let fits = |name: &str| {
            name.len() <= 64
                && !name
                    .chars()
                    .any(|c| c == ':' || c.is_whitespace() || c.is_control())
        };
        let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let owner = Self {
            user: some(user),
            group: group.and_then(some),
        };
        if (owner.user.is_none() && owner.group.is_none())
            || group == Some("")
            || !fits(user)
            || !group.is_none_or(fits)
        {
            return Err(ValueError(format!(
                "`{text}` is not an owner; write \"user:group\", \"user\" or \":group\""
            )));
        }
        Ok(owner)
    }
}

macro_rules! text_form {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = ValueError;
            fn try_from(text: String) -> Result<Self, ValueError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}
text_form!(Mac, Permissions, Owner);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_reads_and_writes() {
        let mac: Mac = "52:54:00:AB:cd:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
        assert_eq!("52-54-00-ab-cd-01".parse::<Mac>().unwrap(), mac);
        assert!(!mac.is_multicast() && !mac.is_zero());
        assert!("01:00:5e:00:00:01".parse::<Mac>().unwrap().is_multicast());
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "52:54:00:ab:cd:+1",
            "5254.00ab.cd01",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn vlan_borders() {
        assert!(VlanId::try_from(0).is_err());
        assert_eq!(VlanId::try_from(1).unwrap().get(), 1);
        assert_eq!(VlanId::try_from(4094).unwrap().get(), 4094);
        assert!(
            VlanId::try_from(4095)
                .unwrap_err()
                .to_string()
                .contains("reserved")
        );
        assert!(VlanId::try_from(65_536 + 5).is_err());
        let range: VlanRange = "100-102".parse().unwrap();
        assert_eq!(
            range.iter().map(VlanId::get).collect::<Vec<_>>(),
            [100, 101, 102]
        );
        assert_eq!("7".parse::<VlanRange>().unwrap().to_string(), "7");
        assert!(
            "102-100"
                .parse::<VlanRange>()
                .unwrap_err()
                .to_string()
                .contains("backwards")
        );
        assert!("1-4095".parse::<VlanRange>().is_err());
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!("0660".parse::<Permissions>().unwrap().bits(), 0o660);
        assert_eq!("0o600".parse::<Permissions>().unwrap().bits(), 0o600);
        assert_eq!("777".parse::<Permissions>().unwrap().to_string(), "0777");
        for bad in ["", "66", "0680", "1777", "rw-rw----", "+660"] {
            assert!(bad.parse::<Permissions>().is_err(), "{bad}");
        }
    }

    #[test]
    fn owner_forms() {
        let owner: Owner = "libvirt-qemu:kvm".parse().unwrap();
        assert_eq!(
            (owner.user(), owner.group()),
            (Some("libvirt-qemu"), Some("kvm"))
        );
        assert_eq!(owner.to_string(), "libvirt-qemu:kvm");
        assert_eq!(":kvm".parse::<Owner>().unwrap().to_string(), ":kvm");
        assert_eq!("64055".parse::<Owner>().unwrap().group(), None);
        for bad in ["", ":", "root:", "a:b:c", "a b"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
