//! The keyed, symmetric flow hash.
//!
//! The two ends of a flow are put in an order that does not depend on the direction, so a frame and its answer hash alike.
//! What follows is two stages of universal hashing and a mixer, about ten multiplications at most:
//!
//! 1. NH, of UMAC (RFC 4418, section 5.2): 64-bit words plus key words, multiplied in pairs, summed modulo 2^128. Two
//!    different flows collide for at most one key in 2^64.
//! 2. A multilinear hash of its two 64-bit halves, the upper half of a 128-bit sum: strongly universal, and so is every part
//!    of it (Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic without
//!    primes").
//! 3. A fixed bijection of the lower 32 bits, which changes neither bound and breaks up the regular spacing that the sums
//!    give to consecutive ports and addresses.
//!
//! 32 bits choose a bucket. All 64 tell flows apart: among a million flows alive two share a [`FlowHash`] with a chance of
//! 2^-24, so what is remembered of a single flow is found by it and the key need not be stored and compared.
//!
//! So for any two flows chosen without knowledge of the key, the chance to share a bucket is that of random numbers: a
//! proven bound, at a third of the time of SipHash-1-3, which only expands the key here. The bound does not hold against
//! one who sees where its flows go and computes the key from it; a guest with several queues does see. So give each port
//! a key of its own: then a guest can learn how its own queues are chosen, which is no more than it could do with one flow.

use siphasher::sip::SipHasher13;

/// Who talks to whom, as far down as a flow is identified.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Source, in wire order.
        src: [u8; 4],
        /// Destination.
        dst: [u8; 4],
    },
    /// IPv6.
    V6 {
        /// Source, in wire order.
        src: [u8; 16],
        /// Destination.
        dst: [u8; 16],
    },
    /// Not IP.
    Mac {
        /// Source, in wire order.
        src: [u8; 6],
        /// Destination.
        dst: [u8; 6],
        /// What the frame carries.
        ethertype: u16,
    },
}

/// The identity of a flow. Order is promised per key: frames that must stay in order must have the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// VLAN number, 0 for none.
    pub vlan: u16,
    /// The two ends.
    pub addresses: Addresses,
    /// IP protocol; 0 if not IP.
    pub protocol: u8,
    /// Source and destination port of TCP, UDP or SCTP. `None` for other protocols, for every fragment, because later
    /// pieces have no ports, and behind IPv6 extension headers, which some frames of a flow have and others not.
    pub ports: Option<(u16, u16)>,
}

impl FlowKey {
    /// The key of the opposite direction.
    #[must_use]
    pub const fn reversed(mut self) -> Self {
        self.addresses = match self.addresses {
            Addresses::V4 { src, dst } => Addresses::V4 { src: dst, dst: src },
            Addresses::V6 { src, dst } => Addresses::V6 { src: dst, dst: src },
            Addresses::Mac {
                src,
                dst,
                ethertype,
            } => Addresses::Mac {
                src: dst,
                dst: src,
                ethertype,
            },
        };
        if let Some((src, dst)) = self.ports {
            self.ports = Some((dst, src));
        }
        self
    }
}

/// A flow's hash, the same for both directions: 64 bits that stand for the flow.
///
/// The low half is what [`FlowHasher::hash`] gives and chooses buckets; the high half is independent of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowHash(pub u64);

impl FlowHash {
    /// The half that chooses a bucket.
    #[inline]
    #[must_use]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// The half that tells apart what shares a bucket.
    #[inline]
    #[must_use]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Hashes flows under one secret key.
#[derive(Clone, Copy)]
pub struct FlowHasher {
    /// First stage: a word for each of the input's.
    words: [u64; 6],
    /// Second stage: a factor for each half, and what is added.
    halves: [u128; 2],
    offset: u128,
}

impl FlowHasher {
    /// With this key, which must be random, differ from port to port, and never leave the switch.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        let sip = SipHasher13::new_with_key(&key);
        let word = |number: usize| sip.hash(&number.to_le_bytes());
        let wide = |number| u128::from(word(number)) << 64 | u128::from(word(number + 1));
        Self {
            words: std::array::from_fn(word),
            halves: [wide(6), wide(8)],
            offset: wide(10),
        }
    }

    /// The hash of a flow that chooses its bucket; equal for both directions.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u32 {
        self.flow(key).low()
    }

    /// The hash of a flow that stands for it; equal for both directions.
    #[inline]
    #[must_use]
    pub fn flow(&self, key: &FlowKey) -> FlowHash {
        let hash = self.shorten(self.first(key));
        FlowHash(hash & !0xffff_ffff | u64::from(mix(hash as u32)))
    }

    /// The first stage, of both ends in an order that does not depend on the direction.
    #[inline]
    fn first(&self, key: &FlowKey) -> u128 {
        let (src_port, dst_port) = key.ports.unwrap_or((0, 0));
        match key.addresses {
            Addresses::V4 { src, dst } => {
                let end =
                    |address, port| u64::from(u32::from_be_bytes(address)) << 16 | u64::from(port);
                let (low, high) = sorted(end(src, src_port), end(dst, dst_port));
                let ends = (low >> 16) << 32 | high >> 16;
                self.sum([identity(key, Kind::V4, low as u16, high as u16), ends])
            }
            Addresses::V6 { src, dst } => {
                let end = |address, port| (u128::from_be_bytes(address), port);
                let (low, high) = sorted(end(src, src_port), end(dst, dst_port));
                let halves = |address: u128| [(address >> 64) as u64, address as u64];
                let ([a, b], [c, d]) = (halves(low.0), halves(high.0));
                self.sum([identity(key, Kind::V6, low.1, high.1), a, b, c, d, 0])
            }
            Addresses::Mac {
                src,
                dst,
                ethertype,
            } => {
                let end =
                    |[a, b, c, d, e, f]: [u8; 6]| u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
                let (low, high) = sorted(end(src), end(dst));
                self.sum([identity(key, Kind::Mac, ethertype, 0), low, high, 0])
            }
        }
    }

    /// NH. The word that tells the kinds apart is the first of every input, so that the bound also holds
    /// between inputs of different length.
    #[inline]
    fn sum<const N: usize>(&self, input: [u64; N]) -> u128 {
        let (inputs, keys) = (input.as_chunks::<2>().0, self.words.as_chunks::<2>().0);
        inputs.iter().zip(keys).fold(0, |sum, (input, key)| {
            let left = input[0].wrapping_add(key[0]);
            let right = input[1].wrapping_add(key[1]);
            sum.wrapping_add(u128::from(left) * u128::from(right))
        })
    }

    /// The second stage.
    #[inline]
    const fn shorten(&self, sum: u128) -> u64 {
        let [k0, k1] = self.halves;
        let (low, high) = (sum as u64 as u128, sum >> 64);
        let total = self
            .offset
            .wrapping_add(k0.wrapping_mul(low))
            .wrapping_add(k1.wrapping_mul(high));
        (total >> 64) as u64
    }
}

/// A bijection with little bias: xor-shifts and odd factors, each of which can be undone.
#[inline]
const fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x7feb_352d);
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0x846c_a68b);
    hash ^ hash >> 16
}

/// Never prints the key.
impl std::fmt::Debug for FlowHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FlowHasher")
    }
}

/// Tells inputs of different shape apart.
#[derive(Clone, Copy)]
enum Kind {
    V4,
    V6,
    Mac,
}

#[inline]
fn sorted<T: Ord>(a: T, b: T) -> (T, T) {
    if a <= b { (a, b) } else { (b, a) }
}

/// What identifies a flow beside its addresses, in one word.
#[inline]
fn identity(key: &FlowKey, kind: Kind, low: u16, high: u16) -> u64 {
    let shape = kind as u8 | u8::from(key.ports.is_some()) << 7;
    u64::from(low) << 48
        | u64::from(high) << 32
        | u64::from(key.vlan) << 16
        | u64::from(key.protocol) << 8
        | u64::from(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn addresses() -> impl Strategy<Value = Addresses> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(src, dst)| Addresses::V4 { src, dst }),
            any::<([u8; 16], [u8; 16])>().prop_map(|(src, dst)| Addresses::V6 { src, dst }),
            any::<([u8; 6], [u8; 6], u16)>().prop_map(|(src, dst, ethertype)| Addresses::Mac {
                src,
                dst,
                ethertype
            }),
            // Both ends the same: only the ports tell them apart.
            any::<[u8; 4]>().prop_map(|src| Addresses::V4 { src, dst: src }),
            any::<[u8; 16]>().prop_map(|src| Addresses::V6 { src, dst: src }),
        ]
    }

    fn keys() -> impl Strategy<Value = FlowKey> {
        (
            0u16..4095,
            addresses(),
            any::<u8>(),
            any::<Option<(u16, u16)>>(),
        )
            .prop_map(|(vlan, addresses, protocol, ports)| FlowKey {
                vlan,
                addresses,
                protocol,
                ports,
            })
    }

    /// The IPv4 TCP flow number `n` of one guest, the way a guest makes many flows: consecutive ports and addresses.
    fn nth(n: u32) -> FlowKey {
        let [_, _, high, low] = n.to_be_bytes();
        FlowKey {
            vlan: 1,
            addresses: Addresses::V4 {
                src: [10, 0, 0, 1],
                dst: [10, 0, 1, high],
            },
            protocol: 6,
            ports: Some((40_000 + u16::from(low), 80)),
        }
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let v4 = |src, dst| Addresses::V4 { src, dst };
        let base = nth(0);
        let mac = Addresses::Mac {
            src: [10, 0, 0, 1, 0, 0],
            dst: [10, 0, 1, 0, 0, 0],
            ethertype: 0x0800,
        };
        let variants = [
            base,
            FlowKey { vlan: 2, ..base },
            FlowKey {
                protocol: 17,
                ..base
            },
            FlowKey {
                ports: None,
                ..base
            },
            FlowKey {
                ports: Some((0, 0)),
                ..base
            },
            FlowKey {
                ports: Some((40_000, 81)),
                ..base
            },
            // The same addresses and the same ports, but the other way round between them.
            FlowKey {
                ports: Some((80, 40_000)),
                ..base
            },
            FlowKey {
                addresses: v4([10, 0, 0, 1], [10, 0, 1, 1]),
                ..base
            },
            FlowKey {
                addresses: v4([10, 0, 0, 2], [10, 0, 1, 0]),
                ..base
            },
            FlowKey {
                addresses: mac,
                ..base
            },
            FlowKey {
                addresses: Addresses::Mac {
                    src: [10, 0, 0, 1, 0, 0],
                    dst: [10, 0, 1, 0, 0, 0],
                    ethertype: 0x0806,
                },
                ..base
            },
        ];
        let hasher = FlowHasher::new(KEY);
        let hashes: HashSet<u32> = variants.iter().map(|key| hasher.hash(key)).collect();
        assert_eq!(hashes.len(), variants.len());
    }

    /// Flows that share a bucket half do not share the other: of 65,536 flows those with equal low 10 bits have tags that
    /// are as different as random ones.
    #[test]
    fn the_halves_are_independent() {
        let hasher = FlowHasher::new(KEY);
        let same: Vec<FlowHash> = (0..65_536)
            .map(|n| hasher.flow(&nth(n)))
            .filter(|hash| hash.low() % 1024 == 5)
            .collect();
        assert!(same.len() > 32);
        let tags: HashSet<u32> = same.iter().map(|hash| hash.tag() % 1024).collect();
        assert!(
            tags.len() * 4 > same.len() * 3,
            "{} of {}",
            tags.len(),
            same.len()
        );
    }

    #[test]
    fn the_key_does_not_show() {
        let shown = format!("{:?}", FlowHasher::new(KEY));
        assert!(!shown.contains(|c: char| c.is_ascii_digit()), "{shown}");
    }

    proptest! {
        /// 65,536 flows over 512 buckets: 128 each on average, none further off than six standard deviations.
        #[test]
        fn consecutive_flows_spread_evenly(secret: [u8; 16]) {
            let hasher = FlowHasher::new(secret);
            let mut buckets = [0i32; 512];
            for n in 0..65_536 {
                buckets[hasher.hash(&nth(n)) as usize % 512] += 1;
            }
            let furthest = buckets.iter().map(|count| (count - 128).abs()).max();
            prop_assert!(furthest < Some(68), "{furthest:?}");
        }

        /// Few flows, as most guests have: 64 consecutive ones leave none of 4 queues with more than 36.
        #[test]
        fn few_flows_spread_too(secret: [u8; 16], first in 0u32..65_000) {
            let hasher = FlowHasher::new(secret);
            let mut queues = [0u32; 4];
            for n in first..first + 64 {
                queues[hasher.hash(&nth(n)) as usize % 4] += 1;
            }
            prop_assert!(queues.iter().all(|count| *count <= 36), "{queues:?}");
        }

        #[test]
        fn both_directions_are_equal(secret: [u8; 16], key in keys()) {
            let hasher = FlowHasher::new(secret);
            prop_assert_eq!(hasher.hash(&key), hasher.hash(&key.reversed()));
            prop_assert_eq!(hasher.flow(&key), hasher.flow(&key.reversed()));
            prop_assert_eq!(hasher.flow(&key).low(), hasher.hash(&key));
            prop_assert_eq!(key.reversed().reversed(), key);
        }

        /// Flows that collide under one key scatter under another: 64 chosen to share a bucket of 512 do not share one again.
        #[test]
        fn collisions_do_not_carry_over(a: [u8; 16], b: [u8; 16]) {
            prop_assume!(a != b);
            let (a, b) = (FlowHasher::new(a), FlowHasher::new(b));
            let chosen: Vec<FlowKey> =
                (0..65_536).map(nth).filter(|key| a.hash(key) % 512 == 0).take(64).collect();
            prop_assert!(chosen.len() == 64);
            let buckets: HashSet<u32> = chosen.iter().map(|key| b.hash(key) % 512).collect();
            prop_assert!(buckets.len() > 32, "only {} buckets", buckets.len());
        }
    }
}
