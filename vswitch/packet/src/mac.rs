//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address, in wire order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group; broadcast included.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is `ff:ff:ff:ff:ff:ff`.
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        self.to_u64() == 0xffff_ffff_ffff
    }

    /// Whether it is all zero.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.to_u64() == 0
    }

    /// The address as a number, its first byte the most significant of 48 bits.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address of a number; bits above the 48th are ignored.
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A text that is no Ethernet address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{0}\" is not a MAC address: write six pairs of hex digits, as in 52:54:00:12:34:56")]
pub struct MacError(String);

impl FromStr for MacAddr {
    type Err = MacError;

    /// Six pairs of hex digits, all separated by `:` or all by `-`.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut pairs = text.split(separator);
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(error)?;
            // from_str_radix would also take a sign.
            if pair.len() != 2 || !pair.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        if pairs.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds() {
        let unicast = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let multicast = MacAddr([1, 0, 0x5e, 0, 0, 1]);
        assert!(!unicast.is_multicast() && !unicast.is_broadcast() && !unicast.is_zero());
        assert!(multicast.is_multicast() && !multicast.is_broadcast());
        assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
        assert!(MacAddr::default().is_zero());
        assert_eq!(unicast.to_u64(), 0x5254_0012_3456);
    }

    #[test]
    fn texts() {
        let address = MacAddr([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(address.to_string(), "52:54:00:ab:cd:ef");
        for good in [
            "52:54:00:ab:cd:ef",
            "52:54:00:AB:CD:EF",
            "52-54-00-ab-cd-ef",
        ] {
            assert_eq!(good.parse(), Ok(address), "{good}");
        }
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:01",
            "52:54:00:ab:cd:e",
            "52:54:00:ab:cd:+f",
            "52-54:00:ab:cd:ef",
            "525400abcdef",
            "52:54:00:ab:cd:eg",
            "52:54:00:ab:cd:é",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_and_number_round_trip(bytes: [u8; 6]) {
            let address = MacAddr(bytes);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(MacAddr::from_u64(address.to_u64()), address);
        }
    }
}
