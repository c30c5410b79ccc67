//! The Toeplitz hash that NICs compute for receive side scaling, and the rule of their redirection table.
//!
//! A NIC hashes addresses and ports of what it receives and looks the hash's low bits up in its redirection table (RETA).
//! Software that mirrors the table, or works without hardware, must come to the same hash: source before destination,
//! network byte order, then the ports if the NIC was told to include them ("RSS Hashing Types" in Microsoft's Network
//! Driver Interface Specification).
//!
//! With [`SYMMETRIC_KEY`] both directions of a flow hash alike, because a key that repeats every 16 bits gives the same to
//! input words that change places (Woo and Park, "Scalable TCP Session Monitoring with Symmetric Receive-side Scaling").
//! Such a key is no secret, and neither are its collisions: for a guest's queues there is [`FlowHasher`](crate::FlowHasher).
//!
//! Hashing takes a step per bit, some 100 ns with ports over IPv4 and three times that over IPv6: for control, for tests,
//! and for NICs without the hash. A packet from a NIC brings its hash along.

use crate::hash::{Addresses, FlowKey};

/// Bytes of a key: four more than the longest input, two IPv6 addresses and two ports.
pub const KEY_LEN: usize = 40;

/// A key under which both directions of a flow hash alike.
pub const SYMMETRIC_KEY: [u8; KEY_LEN] = symmetric([0x6d, 0x5a]);

/// These two bytes over and over.
const fn symmetric(pair: [u8; 2]) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    let mut at = 0;
    while at < KEY_LEN {
        key[at] = pair[at % 2];
        at += 1;
    }
    key
}

/// Hashes like a NIC that was given this key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Toeplitz {
    key: [u8; KEY_LEN],
}

impl Toeplitz {
    /// With this key.
    #[must_use]
    pub const fn new(key: [u8; KEY_LEN]) -> Self {
        Self { key }
    }

    /// The hash of these bytes. Bytes beyond the 36 that the key has bits for do not count.
    ///
    /// For every bit of the input that is set, the 32 bits of the key that begin at its place.
    #[must_use]
    pub fn bytes(&self, input: &[u8]) -> u32 {
        let (head, rest) = self.key.split_at(4);
        let mut window = head.iter().fold(0, |key, byte| key << 8 | u64::from(*byte)) as u32;
        let mut hash = 0;
        for (byte, next) in input.iter().zip(rest) {
            for bit in (0..8).rev() {
                if byte >> bit & 1 == 1 {
                    hash ^= window;
                }
                window = window << 1 | u32::from(next >> bit & 1);
            }
        }
        hash
    }

    /// The hash of a flow: of its addresses, and of its ports if it has any. `None` if it is not IP, which NICs do not hash.
    #[must_use]
    pub fn flow(&self, key: &FlowKey) -> Option<u32> {
        let mut input = [0; KEY_LEN - 4];
        let len = match &key.addresses {
            Addresses::V4 { src, dst } => put(&mut input, &[src, dst]),
            Addresses::V6 { src, dst } => put(&mut input, &[src, dst]),
            Addresses::Mac { .. } => return None,
        };
        let ports = match key.ports {
            Some((src, dst)) => put(&mut input[len..], &[&src.to_be_bytes(), &dst.to_be_bytes()]),
            None => 0,
        };
        Some(self.bytes(&input[..len + ports]))
    }
}

/// Lays parts one after the other; returns how long they are.
fn put(to: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut at = 0;
    for part in parts {
        to[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at
}

/// Which entry of a redirection table of `size` entries, a power of two, a hash belongs to: its low bits.
#[inline]
#[must_use]
pub const fn reta_index(hash: u32, size: u16) -> u16 {
    debug_assert!(size.is_power_of_two());
    hash as u16 & size.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The key of the specification's "Verifying the RSS Hash Calculation".
    const PUBLISHED: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn flow(addresses: Addresses, ports: Option<(u16, u16)>) -> FlowKey {
        FlowKey {
            vlan: 0,
            addresses,
            protocol: 6,
            ports,
        }
    }

    fn v4(src: &str, dst: &str) -> Addresses {
        let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        Addresses::V4 {
            src: octets(src),
            dst: octets(dst),
        }
    }

    fn v6(src: &str, dst: &str) -> Addresses {
        let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        Addresses::V6 {
            src: octets(src),
            dst: octets(dst),
        }
    }

    #[test]
    fn the_published_vectors() {
        let rows = [
            (
                v4("66.9.149.187", "161.142.100.80"),
                (2794, 1766),
                0x323e_8fc2,
                0x51cc_c178,
            ),
            (
                v4("199.92.111.2", "65.69.140.83"),
                (14230, 4739),
                0xd718_262a,
                0xc626_b0ea,
            ),
            (
                v4("24.19.198.95", "12.22.207.184"),
                (12898, 38024),
                0xd2d0_a5de,
                0x5c2b_394a,
            ),
            (
                v4("38.27.205.30", "209.142.163.6"),
                (48228, 2217),
                0x8298_9176,
                0xafc7_327f,
            ),
            (
                v4("153.39.163.191", "202.188.127.2"),
                (44251, 1303),
                0x5d18_09c5,
                0x10e8_28a2,
            ),
            (
                v6("3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1"),
                (2794, 1766),
                0x2cc1_8cd5,
                0x4020_7d3d,
            ),
            (
                v6("3ffe:501:8::260:97ff:fe40:efab", "ff02::1"),
                (14230, 4739),
                0x0f0c_461c,
                0xdde5_1bbf,
            ),
            (
                v6(
                    "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                    "fe80::200:f8ff:fe21:67cf",
                ),
                (44251, 38024),
                0x4b61_e985,
                0x02d1_feef,
            ),
        ];
        let rss = Toeplitz::new(PUBLISHED);
        for (addresses, ports, alone, with_ports) in rows {
            assert_eq!(
                rss.flow(&flow(addresses, None)),
                Some(alone),
                "{addresses:?}"
            );
            assert_eq!(
                rss.flow(&flow(addresses, Some(ports))),
                Some(with_ports),
                "{addresses:?}"
            );
        }
    }

    #[test]
    fn what_is_not_ip_is_not_hashed() {
        let addresses = Addresses::Mac {
            src: [1; 6],
            dst: [2; 6],
            ethertype: 0x0806,
        };
        assert_eq!(Toeplitz::new(PUBLISHED).flow(&flow(addresses, None)), None);
    }

    #[test]
    fn the_low_bits_name_the_entry() {
        assert_eq!(reta_index(0xabcd_ef81, 128), 1);
        assert_eq!(reta_index(0xabcd_ef81, 512), 0x181);
        assert_eq!(reta_index(u32::MAX, 1), 0);
    }

    proptest! {
        #[test]
        fn the_symmetric_key_is_symmetric(src: [u8; 16], dst: [u8; 16], ports: Option<(u16, u16)>) {
            let rss = Toeplitz::new(SYMMETRIC_KEY);
            let short = |address: [u8; 16]| [address[0], address[1], address[2], address[3]];
            let v4 = Addresses::V4 { src: short(src), dst: short(dst) };
            for addresses in [v4, Addresses::V6 { src, dst }] {
                let key = flow(addresses, ports);
                prop_assert_eq!(rss.flow(&key), rss.flow(&key.reversed()));
            }
        }

        /// It is linear: the hash of a sum of inputs is the sum of their hashes, bit by bit.
        #[test]
        fn it_is_linear(a: [u8; 32], b: [u8; 32]) {
            let rss = Toeplitz::new(PUBLISHED);
            let sum: Vec<u8> = a.iter().zip(b).map(|(a, b)| a ^ b).collect();
            prop_assert_eq!(rss.bytes(&sum), rss.bytes(&a) ^ rss.bytes(&b));
        }
    }
}
