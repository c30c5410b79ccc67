//! The ring against a device played by hand.

use super::*;
use crate::driver::DeviceFault;
use crate::memory::{Layout, Memory};

const PIECE: Piece = Piece {
    addr: 0x1000,
    len: 100,
};

fn ring(size: u16, event_idx: bool, in_order: bool) -> Packed {
    let memory = Memory::new(&Layout::single(1 << 20)).unwrap();
    let parts = RingParts::packed(&memory, size, 8).unwrap();
    Packed::new(parts, event_idx, in_order)
}

fn desc(ring: &Packed, slot: usize) -> PackedDesc {
    let words = &ring.parts().desc_words;
    PackedDesc::from_words([words.load(2 * slot), words.load(2 * slot + 1)])
}

/// Plays the device: writes one used descriptor and goes on behind a chain of `descs`.
fn give(ring: &Packed, at: &mut Place, id: u16, len: u32, descs: u16) {
    let flags = at.used() | PackedDesc::WRITE;
    let used = PackedDesc {
        addr: 0,
        len,
        id,
        flags,
    };
    let word = 2 * usize::from(at.slot) + 1;
    ring.parts()
        .desc_words
        .store_release(word, used.to_words()[1]);
    *at = at.ahead(descs, ring.size());
}

#[test]
fn layout_on_the_wire() {
    let mut ring = ring(5, false, false);
    let second = Piece {
        addr: 0x2000,
        len: 7,
    };
    let id = ring.add(&[PIECE, second], true).unwrap();
    let indirect = ring.add_indirect(&[PIECE, second], false).unwrap();
    // Nothing is seen before the burst is published: the first slot comes last.
    assert_eq!(desc(&ring, 0).flags, 0);
    assert!(ring.publish());
    let lap = PackedDesc::AVAIL;
    let first = desc(&ring, 0);
    assert_eq!((first.addr, first.len), (0x1000, 100));
    assert_eq!(first.flags, lap | PackedDesc::WRITE | PackedDesc::NEXT);
    assert_eq!(
        desc(&ring, 1),
        PackedDesc {
            addr: 0x2000,
            len: 7,
            id,
            flags: lap | PackedDesc::WRITE
        }
    );
    let table = ring.parts().tables_guest + u64::from(indirect) * 8 * 16;
    assert_eq!(
        desc(&ring, 2),
        PackedDesc {
            addr: table,
            len: 32,
            id: indirect,
            flags: lap | PackedDesc::INDIRECT
        }
    );
    let bytes = 0x1000u64.to_le_bytes();
    assert_eq!(
        ring.parts().table_words.load(usize::from(indirect) * 16),
        u64::from_le_bytes(bytes)
    );
    // Slots 3 and 4, then 0 of the next lap.
    let mut device = Place::START;
    give(&ring, &mut device, id, 0, 2);
    assert_eq!(ring.pop().unwrap().unwrap().id, id);
    for _ in 0..3 {
        ring.add_one(PIECE, false).unwrap();
    }
    ring.publish();
    assert_eq!(desc(&ring, 4).flags, PackedDesc::AVAIL);
    assert_eq!(desc(&ring, 0).flags, PackedDesc::USED);
    assert_eq!(ring.parts().addresses().desc, ring.parts().desc.address());
    assert_eq!((ring.parts().avail.len(), ring.parts().used.len()), (2, 2));
}

#[test]
fn laps_of_any_size() {
    for size in [1, 2, 7, 8, 1000] {
        let mut ring = ring(size, true, false);
        let mut device = Place::START;
        for round in 0..5_000u32 {
            let count = (round % u32::from(size) + 1) as u16;
            let ids: Vec<_> = (0..count)
                .map(|_| ring.add_one(PIECE, true).unwrap())
                .collect();
            assert!(ring.publish());
            for id in &ids {
                give(&ring, &mut device, *id, 50, 1);
            }
            for id in ids {
                assert_eq!(ring.pop(), Ok(Some(Used { id, len: 50 })));
            }
            assert_eq!(ring.pop(), Ok(None));
            assert_eq!((ring.free(), ring.chains()), (size, 0));
        }
    }
}

#[test]
fn buffers_come_back_in_any_order() {
    let mut ring = ring(8, false, false);
    let long = ring.add(&[PIECE; 3], true).unwrap();
    let short = ring.add_one(PIECE, true).unwrap();
    ring.publish();
    let mut device = Place::START;
    give(&ring, &mut device, short, 1, 1);
    give(&ring, &mut device, long, 2, 3);
    assert_eq!(ring.pop(), Ok(Some(Used { id: short, len: 1 })));
    assert_eq!(ring.free(), 5);
    assert_eq!(ring.pop(), Ok(Some(Used { id: long, len: 2 })));
    assert_eq!(ring.free(), 8);
}

#[test]
fn a_batch_in_order_is_one_used_descriptor() {
    let mut ring = ring(8, false, true);
    let mut device = Place::START;
    for _ in 0..10 {
        let first = ring.add(&[PIECE; 2], true).unwrap();
        let second = ring.add_one(PIECE, true).unwrap();
        let third = ring.add_one(PIECE, true).unwrap();
        ring.publish();
        give(&ring, &mut device, second, 7, 3);
        let whole = Used {
            id: first,
            len: 200,
        };
        assert_eq!(ring.pop(), Ok(Some(whole)));
        assert_eq!(ring.pop(), Ok(Some(Used { id: second, len: 7 })));
        give(&ring, &mut device, third, 9, 1);
        assert_eq!(ring.pop(), Ok(Some(Used { id: third, len: 9 })));
        assert_eq!(ring.free(), 8);
    }
    let id = ring.add_one(PIECE, true).unwrap();
    ring.publish();
    give(&ring, &mut device, id ^ 1, 0, 1);
    assert!(matches!(ring.pop(), Err(DeviceFault::UsedId { .. })));
}

#[test]
fn a_device_that_lies_is_caught() {
    let mut ring = ring(8, false, false);
    let id = ring.add_one(PIECE, true).unwrap();
    let other = ring.add_one(PIECE, false).unwrap();
    ring.publish();
    let lie = |id, len| give(&ring, &mut Place::START.clone(), id, len, 1);
    lie(5, 0);
    let mut results = vec![ring.pop()];
    give(&ring, &mut Place::START.clone(), 70, 0, 1);
    results.push(ring.pop());
    give(&ring, &mut Place::START.clone(), id, 101, 1);
    results.push(ring.pop());
    give(&ring, &mut Place::START.clone(), other, 1, 1);
    results.push(ring.pop());
    assert_eq!(
        results,
        [
            Err(DeviceFault::UsedId { at: 0, id: 5 }),
            Err(DeviceFault::UsedId { at: 0, id: 70 }),
            Err(DeviceFault::UsedLen {
                at: 0,
                len: 101,
                room: 100
            }),
            Err(DeviceFault::UsedLen {
                at: 0,
                len: 1,
                room: 0
            }),
        ]
    );
    let mut device = Place::START;
    give(&ring, &mut device, id, 100, 1);
    // Twice the same: the good one counts.
    give(&ring, &mut device, id, 100, 1);
    assert_eq!(ring.pop(), Ok(Some(Used { id, len: 100 })));
    let at = 1;
    let id = u32::from(id);
    assert_eq!(ring.pop(), Err(DeviceFault::UsedId { at, id }));
}

#[test]
fn more_than_was_offered_is_caught() {
    let mut ring = ring(4, false, false);
    let mut device = Place::START;
    let id = ring.add_one(PIECE, true).unwrap();
    give(&ring, &mut device, id, 1, 1);
    assert!(matches!(ring.pop(), Err(DeviceFault::UsedId { at: 0, .. })));
}

#[test]
fn a_length_without_the_write_flag_is_none() {
    let mut ring = ring(4, false, false);
    let id = ring.add_one(PIECE, true).unwrap();
    ring.publish();
    let used = PackedDesc {
        addr: 0,
        len: 60,
        id,
        flags: Place::START.used(),
    };
    ring.parts().desc_words.store_release(1, used.to_words()[1]);
    assert_eq!(ring.pop(), Ok(Some(Used { id, len: 0 })));
}

#[test]
fn kicks_as_the_device_asks() {
    let mut flags = ring(8, false, false);
    for (flag, wanted) in [
        (event::ENABLE, true),
        (event::DISABLE, false),
        (event::DESC, true),
    ] {
        flags.parts().used.store(1, flag);
        flags.add_one(PIECE, false).unwrap();
        flags.publish();
        assert_eq!(flags.wants_kick(), wanted);
    }

    // One kick a turn: at the slot asked for in the lap asked for.
    let mut ring = ring(4, true, false);
    let mut device = Place::START;
    ring.parts().used.store(1, event::DESC);
    let asked = Place {
        slot: 1,
        wrap: false,
    };
    ring.parts().used.store(0, asked.bits());
    let kicks: Vec<_> = (0..12)
        .map(|_| {
            let id = ring.add_one(PIECE, false).unwrap();
            ring.publish();
            let kick = ring.wants_kick();
            give(&ring, &mut device, id, 0, 1);
            ring.pop().unwrap();
            kick
        })
        .collect();
    let wanted: Vec<_> = (0..12).map(|n| n == 5).collect();
    assert_eq!(kicks, wanted);
}

#[test]
fn arming_looks_again() {
    for event_idx in [false, true] {
        let mut ring = ring(3, event_idx, false);
        let mut device = Place::START;
        for _ in 0..7 {
            let ids = [(); 2].map(|()| ring.add_one(PIECE, false).unwrap());
            ring.publish();
            assert!(!ring.arm(0).unwrap());
            give(&ring, &mut device, ids[0], 0, 1);
            assert!(ring.arm(0).unwrap());
            assert!(!ring.arm(1).unwrap());
            give(&ring, &mut device, ids[1], 0, 1);
            assert!(ring.arm(1).unwrap());
            ring.disarm();
            assert_eq!(ring.parts().avail.load(1), event::DISABLE);
            assert!(ring.pop().unwrap().is_some() && ring.pop().unwrap().is_some());
        }
    }
}

#[test]
fn an_event_is_the_slot_behind_the_chains_waited_for() {
    let mut ring = ring(8, true, false);
    ring.add(&[PIECE; 3], false).unwrap();
    ring.add(&[PIECE; 2], false).unwrap();
    ring.add_one(PIECE, false).unwrap();
    ring.publish();
    for (ahead, slot) in [(0, 0), (1, 3), (2, 5)] {
        ring.arm(ahead).unwrap();
        let bits = ring.parts().avail.load(0);
        assert_eq!(Place::from_bits(bits), Place { slot, wrap: true });
        assert_eq!(ring.parts().avail.load(1), event::DESC);
    }
}

#[test]
fn a_full_ring_takes_no_more() {
    let mut ring = ring(2, false, false);
    assert_eq!(ring.add(&[PIECE; 3], false), None);
    assert!(ring.add_indirect(&[PIECE; 3], false).is_some());
    assert!(ring.add_one(PIECE, false).is_some());
    assert_eq!((ring.free(), ring.next_head()), (0, None));
    assert_eq!(ring.add_one(PIECE, false), None);
    assert_eq!(ring.add_indirect(&[PIECE], false), None);
}
