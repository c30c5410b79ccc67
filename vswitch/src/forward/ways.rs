//! The ways that frames of recent pairs of addresses took, so that the tables are not asked for every frame.
//!
//! A way is what [`decide`](super::decide) and the ports' VLAN rules make of the bytes of a head that they look at: the one
//! output, and how the head changes. It holds for one sender, one snapshot, one second of the coarse clock (addresses in
//! use have to be noted as such once a second) and one state of the bridge's address table ([`Fdb::version`]). A number,
//! the epoch, stands for the last three; a bridge gets a new one when any of them has changed, and what was kept before
//! is no longer found.
//!
//! # Limits
//!
//! [`SETS`] sets of two ways in one cache line each, 512 KiB for a worker, of which little is touched where few talk. A pair that finds its set taken throws another
//! out. Who sends with ever new addresses slows down others' lookups to what they would be without this, no further.

use vswitch_packet::HeadEdit;

use super::decide::{ETHERNET, Route, TPID_VLAN};
use super::fdb::{CoarseSecond, Fdb};
use super::snapshot::OutputIndex;
use super::{BridgeIndex, MAX_BRIDGES, PortIndex};

/// Cache lines.
pub const SETS: usize = 8192;

/// What of a head decides about its way: both addresses and what follows them up to a second tag's protocol; of an
/// untagged frame nothing behind its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadKey {
    /// The destination and the first two bytes of the source.
    pub first: u64,
    /// The rest of the source, and the tag or the type.
    pub second: u64,
    /// The protocol behind the tag, plus one; 0 without a tag.
    pub inner: u32,
}

impl HeadKey {
    /// Of a head that has a whole Ethernet header, and a whole tag if it has one.
    #[inline(always)]
    pub fn of(head: &[u8]) -> Option<Self> {
        let (first, rest) = head.split_first_chunk()?;
        let (second, rest) = rest.split_first_chunk()?;
        let (first, second) = (u64::from_be_bytes(*first), u64::from_be_bytes(*second));
        if (second >> 16) as u16 != TPID_VLAN {
            return Some(HeadKey {
                first,
                second: second >> 16,
                inner: 0,
            });
        }
        let inner: &[u8; 2] = rest.first_chunk()?;
        Some(HeadKey {
            first,
            second,
            inner: u32::from(u16::from_be_bytes(*inner)) + 1,
        })
    }

    /// Bytes in front of the layer 3 packet.
    #[inline]
    pub fn header_len(self) -> usize {
        if self.inner == 0 {
            ETHERNET
        } else {
            ETHERNET + 4
        }
    }
}

#[derive(Clone, Copy)]
struct Way {
    first: u64,
    second: u64,
    /// [`HeadKey::inner`], 17 bits, and the sender's place above.
    rest: u32,
    epoch: u32,
    output: OutputIndex,
    edit: HeadEdit,
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([Way; 2]);

const _: () = assert!(size_of::<Set>() == 64);

/// What a bridge's epoch stands for.
#[derive(Clone, Copy, Default)]
struct Known {
    epoch: u32,
    version: u32,
    second: u32,
}

/// See the module's page.
pub struct Ways {
    sets: Box<[Set]>,
    bridges: Box<[Known; MAX_BRIDGES]>,
    /// The last one that was given to a bridge. 0 is nobody's.
    last: u32,
}

impl Default for Ways {
    fn default() -> Self {
        Ways {
            sets: vec![Set([Way::NONE; 2]); SETS].into_boxed_slice(),
            bridges: Box::new([Known::default(); MAX_BRIDGES]),
            last: 0,
        }
    }
}

impl Way {
    const NONE: Self = Way {
        first: 0,
        second: 0,
        rest: 0,
        epoch: 0,
        output: OutputIndex(0),
        edit: HeadEdit::None,
    };
}

/// Says which ways hold at the moment: those kept since the tables last changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Epoch(u32);

impl Epoch {
    /// Nobody's: nothing is found.
    pub const NONE: Self = Epoch(0);
}

impl Ways {
    /// Forgets everything: the snapshot is another one.
    pub fn forget(&mut self) {
        self.bridges.fill(Known::default());
    }

    /// The epoch of a bridge. To be asked for before its tables are: what changes later is then noticed the next time.
    #[inline]
    pub fn epoch(&mut self, bridge: BridgeIndex, fdb: &Fdb, now: CoarseSecond) -> Epoch {
        let version = fdb.version();
        let Some(known) = self.bridges.get_mut(usize::from(bridge.0)) else {
            return Epoch(0);
        };
        if known.epoch == 0 || known.version != version || known.second != now.0 {
            self.last = self.last.wrapping_add(1);
            if self.last == 0 {
                // Once in four thousand million changes: what is kept might be taken for new.
                self.sets.fill(Set([Way::NONE; 2]));
                self.last = 1;
            }
            *known = Known {
                epoch: self.last,
                version,
                second: now.0,
            };
        }
        Epoch(known.epoch)
    }

    #[inline]
    fn rest(key: HeadKey, from: PortIndex) -> u32 {
        key.inner | u32::from(from.0) << 17
    }

    #[inline]
    fn set_of(key: HeadKey) -> usize {
        let mixed = key.first.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ key.second.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % SETS
    }

    /// The way of frames with such a head from this port.
    #[inline]
    pub fn find(&self, key: HeadKey, from: PortIndex, epoch: Epoch) -> Option<Route> {
        let rest = Self::rest(key, from);
        let set = self.sets.get(Self::set_of(key))?;
        // Word by word: a comparison of structs would go through memory.
        let same = |way: &&Way| {
            way.first == key.first
                && way.second == key.second
                && way.rest == rest
                && way.epoch == epoch.0
                && epoch.0 != 0
        };
        let Way { output, edit, .. } = *set.0.iter().find(same)?;
        Some(Route { output, edit })
    }

    /// Notes a way. Not one whose sender is to be learned: the table's writer may not have heard.
    #[inline]
    pub fn keep(&mut self, key: HeadKey, from: PortIndex, epoch: Epoch, route: Route) {
        let Some(Set([one, other])) = self.sets.get_mut(Self::set_of(key)) else {
            return;
        };
        *other = *one;
        *one = Way {
            first: key.first,
            second: key.second,
            rest: Self::rest(key, from),
            epoch: epoch.0,
            output: route.output,
            edit: route.edit,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::fdb::FdbWriter;
    use crate::forward::{PortRef, Vid};
    use vswitch_packet::MacAddr;

    const FROM: PortIndex = PortIndex(2047);
    const BRIDGE: BridgeIndex = BridgeIndex(3);

    fn key(n: u64) -> HeadKey {
        HeadKey {
            first: n << 16 | 2,
            second: 0x0800,
            inner: 0,
        }
    }

    fn way(n: u32) -> Route {
        Route {
            output: OutputIndex(n),
            edit: HeadEdit::Push(9),
        }
    }

    #[test]
    fn finds_what_it_kept_for_the_same_head_and_sender() {
        let (mut ways, fdb) = (Ways::default(), FdbWriter::new(16, [1, 1]).table());
        let epoch = ways.epoch(BRIDGE, &fdb, CoarseSecond(1));
        for n in 0..500 {
            ways.keep(key(n), FROM, epoch, way(n as u32));
        }
        let found = (0..500).filter(|n| ways.find(key(*n), FROM, epoch) == Some(way(*n as u32)));
        assert!(found.count() > 480, "eight thousand sets hold five hundred");
        assert_eq!(ways.find(key(499), PortIndex(2046), epoch), None);
        let tagged = HeadKey {
            inner: 0x0801,
            ..key(499)
        };
        assert_eq!(ways.find(tagged, FROM, epoch), None);
    }

    #[test]
    fn nothing_is_found_after_a_change() {
        let mut writer = FdbWriter::new(16, [1, 1]);
        let (mut ways, fdb) = (Ways::default(), writer.table());
        let port = PortRef {
            index: FROM,
            incarnation: 1,
        };
        let (mac, mut second) = (MacAddr([2, 0, 0, 0, 0, 1]), 0);
        let learn = |writer: &mut FdbWriter, n: u8| {
            let mac = MacAddr([2, 0, 0, 0, 0, n]);
            writer.insert(Vid(0), mac, port, CoarseSecond(0), false);
        };
        learn(&mut writer, 1);
        type Change<'c> = &'c mut dyn FnMut(&mut FdbWriter, &mut Ways);
        let changes: [Change<'_>; 5] = [
            &mut |writer, _| learn(writer, 2),
            &mut |writer, _| assert!(writer.remove(Vid(0), mac)),
            &mut |writer, _| assert_eq!(writer.age(CoarseSecond(900), 300, |_| true), 1),
            &mut |_, ways| ways.forget(),
            &mut |_, _| second += 1,
        ];
        let mut now = 0;
        for (n, change) in changes.into_iter().enumerate() {
            let epoch = ways.epoch(BRIDGE, &fdb, CoarseSecond(now));
            ways.keep(key(1), FROM, epoch, way(1));
            assert_eq!(ways.epoch(BRIDGE, &fdb, CoarseSecond(now)), epoch);
            assert_eq!(ways.find(key(1), FROM, epoch), Some(way(1)));
            change(&mut writer, &mut ways);
            now += u32::from(n == 4);
            let epoch = ways.epoch(BRIDGE, &fdb, CoarseSecond(now));
            assert_eq!(ways.find(key(1), FROM, epoch), None, "change {n}");
        }
    }

    #[test]
    fn an_address_that_is_merely_seen_again_changes_nothing() {
        let mut writer = FdbWriter::new(16, [1, 1]);
        let fdb = writer.table();
        let port = PortRef {
            index: FROM,
            incarnation: 1,
        };
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        writer.insert(Vid(0), mac, port, CoarseSecond(0), false);
        let before = fdb.version();
        assert!(fdb.seen(Vid(0), mac, port, CoarseSecond(1)));
        writer.insert(Vid(0), mac, port, CoarseSecond(2), false);
        assert_eq!(fdb.version(), before);
        let other = PortRef {
            index: PortIndex(1),
            incarnation: 1,
        };
        writer.insert(Vid(0), mac, other, CoarseSecond(2), false);
        assert_ne!(fdb.version(), before);
    }
}
