//! The Toeplitz hash of `vswitch-flowtable` against DPDK's own, which is what drivers without the hash in hardware use.

use vswitch_flowtable::toeplitz::{KEY_LEN, SYMMETRIC_KEY, Toeplitz};
use vswitch_flowtable::{Addresses, FlowKey};

/// What DPDK makes of these words.
fn softrss(words: &[u32], key: &[u8; KEY_LEN]) -> u32 {
    let count = words.len() as u32;
    // SAFETY: reads `count` words and the 40 bytes of a key, and keeps neither; the longest input, ten words, would read a
    // word beyond the key, and the longest here has nine.
    unsafe { dpdk_sys::dpdk_softrss(words.as_ptr(), count, key.as_ptr()) }
}

/// Numbers that repeat with the seed (SplitMix64).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn bytes<const N: usize>(seed: &mut u64) -> [u8; N] {
    std::array::from_fn(|_| random(seed) as u8)
}

fn words(address: &[u8]) -> impl Iterator<Item = u32> {
    let chunks = address.as_chunks::<4>().0.iter();
    chunks.map(|chunk| u32::from_be_bytes(*chunk))
}

#[test]
fn the_hash_is_dpdks() {
    let seed = &mut 1;
    for round in 0..2000 {
        let key = match round % 4 {
            0 => SYMMETRIC_KEY,
            _ => bytes(seed),
        };
        let (src, dst) = (bytes::<16>(seed), bytes::<16>(seed));
        let (src4, dst4) = (bytes::<4>(seed), bytes::<4>(seed));
        let ports = (round % 3 > 0).then(|| (random(seed) as u16, random(seed) as u16));
        let last = ports.map(|(src, dst)| u32::from(src) << 16 | u32::from(dst));
        let inputs = [
            (
                Addresses::V4 {
                    src: src4,
                    dst: dst4,
                },
                words(&src4)
                    .chain(words(&dst4))
                    .chain(last)
                    .collect::<Vec<_>>(),
            ),
            (
                Addresses::V6 { src, dst },
                words(&src).chain(words(&dst)).chain(last).collect(),
            ),
        ];
        for (addresses, words) in inputs {
            let flow = FlowKey {
                vlan: 0,
                addresses,
                protocol: 6,
                ports,
            };
            let ours = Toeplitz::new(key).flow(&flow);
            assert_eq!(ours, Some(softrss(&words, &key)), "{flow:?} under {key:?}");
        }
    }
}
