//! What steering itself costs, in ns per packet: loops over many packets, the clock read once around them.

use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;
use vswitch_flowtable::{
    Addresses, FlowHash, FlowHasher, FlowKey, Indirection, Micros, Pins, Position, Target, View,
};

use super::flows::{Random, hash};
use super::policy::{AllDone, Calisto, Modulo, Policy};

/// Flows in the loops over few; their keys stay in the second-level cache.
const FEW: u32 = 4096;
const KEY: [u8; 16] = *b"for this process";

/// Every figure in ns per packet.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Steering {
    /// Hashing the key of a TCP flow over IPv4 to 32 bits.
    pub hash: f64,
    /// The same to 64 bits.
    pub hash64: f64,
    /// Selecting by a hash, and noting the tail.
    pub select: f64,
    /// The same in a port where flows are pinned, but not these.
    pub select_unpinned: f64,
    /// The same for flows that are pinned.
    pub select_pinned: f64,
    /// Hash (32 bits), selection and tail.
    pub whole: f64,
    /// Hash (64 bits), selection among pins, tail; one flow in eight is pinned.
    pub whole_pins: f64,
    /// Hash modulo number of targets.
    pub modulo: f64,
    /// Calisto's table, flows known.
    pub calisto: f64,
    /// Calisto's table, flows new.
    pub calisto_new: f64,
}

fn key(n: u32) -> FlowKey {
    let [a, b, c, d] = n.to_be_bytes();
    FlowKey {
        vlan: 0,
        addresses: Addresses::V4 {
            src: [10, a, b, 1],
            dst: [10, 0, c, 2],
        },
        protocol: 6,
        ports: Some((1024 + u16::from(d), 80)),
    }
}

/// The best of three, as everything that disturbs adds.
fn per_packet(packets: u64, mut work: impl FnMut()) -> f64 {
    let one = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_nanos() as f64 / packets as f64
    };
    (0..3).map(one).fold(f64::INFINITY, f64::min)
}

/// Measures; Calisto's table has so many flows in it.
pub(super) fn measure(flows: u32) -> Steering {
    let mut table = Indirection::new(8);
    for target in 0..5 {
        table.add(Target(target));
    }
    let hasher = FlowHasher::new(KEY);
    let keys: Vec<FlowKey> = (0..FEW).map(key).collect();
    let hashes: Vec<FlowHash> = keys.iter().map(|key| hasher.flow(key)).collect();
    let now = Micros(1_000_000);
    let turns = 200;
    let packets = u64::from(FEW) * turns;
    let over_keys = |work: &mut dyn FnMut(&[FlowKey], &[FlowHash])| {
        per_packet(packets, || {
            for _ in 0..turns {
                work(black_box(&keys), black_box(&hashes));
            }
        })
    };

    let mut view = View::with_pins(&table);
    let pins = Pins::new();
    let pinned_now = Pins::new();
    // A fourth of a set each, so that all have room.
    let stranger = hash(u32::MAX);
    pins.pin(stranger, Target(1), now);
    let (some, all) = (Pins::new(), &pinned_now);
    for (number, hash) in hashes.iter().enumerate() {
        let says = table.select(hash.low()).map_or(0, |target| target.0);
        let other = Target((says + 1) % 5);
        if number % 8 == 0 {
            some.pin(*hash, other, now);
            all.pin(*hash, other, now);
        }
    }
    let pinned: Vec<FlowHash> = hashes
        .iter()
        .copied()
        .filter(|hash| all.lookup(*hash, now).is_some())
        .collect();
    let pinned_turns = packets / pinned.len().max(1) as u64;

    let hash32 = over_keys(&mut |keys, _| {
        for key in keys {
            black_box(hasher.hash(key));
        }
    });
    let hash64 = over_keys(&mut |keys, _| {
        for key in keys {
            black_box(hasher.flow(key));
        }
    });
    let mut position = 0u16;
    let mut step = |view: &mut View, selection: Option<vswitch_flowtable::Selection>| {
        if let Some(selection) = selection {
            black_box(selection.target);
            position = position.wrapping_add(1);
            view.sent(selection, Position(position), now);
        }
    };
    let select = over_keys(&mut |_, hashes| {
        for hash in hashes {
            let selection = view.select(hash.low(), now, |_, _| true);
            step(&mut view, selection);
        }
    });
    let whole = over_keys(&mut |keys, _| {
        for key in keys {
            let selection = view.select(hasher.hash(key), now, |_, _| true);
            step(&mut view, selection);
        }
    });
    let select_unpinned = over_keys(&mut |_, hashes| {
        for hash in hashes {
            let selection = view.select_pinned(*hash, &pins, now, |_, _| true);
            step(&mut view, selection);
        }
    });
    // Pins of different ports have different places.
    let mut view = View::with_pins(&table);
    let select_pinned = per_packet(pinned_turns * pinned.len().max(1) as u64, || {
        for _ in 0..pinned_turns {
            for hash in black_box(&pinned) {
                let selection = view.select_pinned(*hash, all, now, |_, _| true);
                step(&mut view, selection);
            }
        }
    });
    let mut view = View::with_pins(&table);
    let whole_pins = over_keys(&mut |keys, _| {
        for key in keys {
            let selection = view.select_pinned(hasher.flow(key), &some, now, |_, _| true);
            step(&mut view, selection);
        }
    });
    let mut by_modulo = Modulo::new(5);
    let modulo = over_keys(&mut |_, hashes| {
        for hash in hashes {
            black_box(by_modulo.select(*hash, &AllDone));
        }
    });

    let (calisto, calisto_new) = calisto(flows);
    Steering {
        hash: hash32,
        hash64,
        select,
        select_unpinned,
        select_pinned,
        whole,
        whole_pins,
        modulo,
        calisto,
        calisto_new,
    }
}

/// Calisto's table with all flows alive in it: known ones, and new ones beforehand.
fn calisto(flows: u32) -> (f64, f64) {
    let start = Instant::now();
    let mut calisto = Calisto::new(5);
    for n in 0..flows {
        black_box(calisto.select(hash(n), &AllDone));
    }
    let new = start.elapsed().as_nanos() as f64 / calisto.len().max(1) as f64;
    let mut random = Random(1);
    let known = per_packet(u64::from(flows), || {
        for _ in 0..flows {
            let flow = hash(random.below(flows));
            black_box(calisto.select(flow, &AllDone));
        }
    });
    (known, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_cost() {
        let steering = measure(10_000);
        for ns in [
            steering.hash,
            steering.select,
            steering.select_pinned,
            steering.whole_pins,
            steering.calisto,
            steering.calisto_new,
        ] {
            assert!(ns > 0.0 && ns < 100_000.0, "{steering:?}");
        }
    }
}
