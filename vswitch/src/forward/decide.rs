//! What becomes of a frame, decided on the worker's copy of its head.

use vswitch_packet::HeadEdit;

use super::counters::InputDrop;
use super::fdb::CoarseSecond;
use super::snapshot::{Bridge, OutputIndex, Port, Snapshot};
use super::ways::HeadKey;
use super::{PortIndex, PortRef, Vid};

pub(super) const TPID_VLAN: u16 = 0x8100;
pub(super) const ETHERNET: usize = 14;
/// The bit of an address, as a number, that says it is a group's.
const GROUP: u64 = 1 << 40;
/// Frames to this address and the 15 after it are between neighbours on a link; bridges do not forward them (IEEE 802.1Q, 8.6.3).
const LINK_LOCAL: u64 = 0x0180_c200_0000;

/// The Ethernet header, as far as a bridge cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    /// Destination, as a number ([`MacAddr::to_u64`](vswitch_packet::MacAddr::to_u64)): an address of bytes would be put together in memory by small stores,
    /// and its first use as a whole wait for them.
    pub dst: u64,
    /// Source, as a number.
    pub src: u64,
    /// Tag control information of the outer 802.1Q tag.
    pub tci: Option<u16>,
    /// Behind that tag is another one.
    pub double_tagged: bool,
}

impl Ethernet {
    /// Reads the header; none if the frame is too short to have one.
    #[inline]
    pub fn read(head: &[u8]) -> Option<Self> {
        let (first, rest) = head.split_first_chunk::<8>()?;
        let next: &[u8; 6] = rest.first_chunk()?;
        let first = u64::from_be_bytes(*first);
        let [s2, s3, s4, s5, t0, t1] = *next;
        let last = u64::from(u32::from_be_bytes([s2, s3, s4, s5]));
        let (tci, double_tagged) = if u16::from_be_bytes([t0, t1]) == TPID_VLAN {
            let [c0, c1, n0, n1] = *head.get(ETHERNET..)?.first_chunk()?;
            let next = u16::from_be_bytes([n0, n1]);
            (Some(u16::from_be_bytes([c0, c1])), next == TPID_VLAN)
        } else {
            (None, false)
        };
        Some(Ethernet {
            dst: first >> 16,
            src: (first & 0xffff) << 32 | last,
            tci,
            double_tagged,
        })
    }

    /// Bytes in front of the layer 3 packet.
    pub fn header_len(&self) -> usize {
        if self.tci.is_some() {
            ETHERNET + 4
        } else {
            ETHERNET
        }
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// To one port.
    Port(PortIndex),
    /// To every other port that carries the VLAN.
    Flood,
    /// Back where it came from: nowhere. Its source is learned all the same.
    Reflected,
}

/// A decided frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Where it goes.
    pub to: Destination,
    /// The VLAN it belongs to.
    pub vid: Vid,
    /// The tag it came with.
    pub tci: Option<u16>,
    /// Its source address is new here: the table's writer wants to know.
    pub learn: bool,
    /// The longest frame with this header that the bridge's MTU allows.
    pub longest: u32,
}

/// Where the frame before went: the next of the same flow needs no other look at the tables.
///
/// Good for one burst: what changes meanwhile may as well have changed behind it. What it goes by are the bytes that [`decide`] looks at.
pub struct Memo {
    first: u64,
    second: u64,
    inner: u32,
    longest: u32,
    route: Route,
}

/// The one output that all frames of a verdict leave by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Which it is.
    pub output: OutputIndex,
    /// How heads change on the way.
    pub edit: HeadEdit,
}

impl Default for Memo {
    fn default() -> Self {
        Memo {
            first: 0,
            second: 0,
            inner: Self::NONE,
            longest: 0,
            route: Route {
                output: OutputIndex(0),
                edit: HeadEdit::None,
            },
        }
    }
}

impl Memo {
    /// No head has this behind its tag.
    const NONE: u32 = u32::MAX;

    /// The longest frame allowed, and the route, if this head has the same addresses and tags as the one they are of.
    #[inline(always)]
    pub fn recall(&self, head: &[u8]) -> Option<(u32, Route)> {
        let key = HeadKey::of(head)?;
        // Word by word: a comparison of structs would go through memory.
        let same = key.first == self.first && key.second == self.second && key.inner == self.inner;
        same.then_some((self.longest, self.route))
    }

    /// Notes where frames with this head go. Not of those whose source is to be learned: the table's writer may not have
    /// heard.
    #[inline]
    pub fn keep(&mut self, key: HeadKey, longest: u32, route: Route) {
        self.first = key.first;
        self.second = key.second;
        self.inner = key.inner;
        self.longest = longest;
        self.route = route;
    }
}

/// Decides about one frame from `ingress`. `packet_len` is the size of its largest layer 3 packet once segmented, with
/// the Ethernet header; the bridge's MTU is held against it.
#[inline]
pub fn decide(
    snapshot: &Snapshot,
    bridge: &Bridge,
    ingress: &Port,
    head: &[u8],
    packet_len: usize,
    now: CoarseSecond,
) -> Result<Verdict, InputDrop> {
    let eth = Ethernet::read(head).ok_or(InputDrop::Runt)?;
    let longest = eth.header_len() as u32 + bridge.mtu;
    if packet_len > longest as usize {
        return Err(InputDrop::OverMtu);
    }
    if eth.src & GROUP != 0 || eth.src == 0 {
        return Err(InputDrop::InvalidSource);
    }
    if eth.dst & !0x0f == LINK_LOCAL {
        return Err(InputDrop::LinkLocal);
    }
    if eth.double_tagged && eth.tci.is_some_and(|t| t & 0xfff == 0) {
        // Taking the priority tag off would leave the sender in a VLAN of its own choice.
        return Err(InputDrop::VlanNotAllowed);
    }
    let vid = ingress
        .vlan
        .classify(eth.tci)
        .ok_or(InputDrop::VlanNotAllowed)?;
    let learn = ingress.learning && !bridge.fdb.seen_number(vid, eth.src, ingress.at, now);
    let to = match destination(snapshot, bridge, ingress, vid, eth.dst) {
        Some(port) if port.index == ingress.at.index => Destination::Reflected,
        Some(port) => Destination::Port(port.index),
        None => Destination::Flood,
    };
    Ok(Verdict {
        to,
        vid,
        tci: eth.tci,
        learn,
        longest,
    })
}

/// The one port a destination is known to be behind, if that port is still there and carries the VLAN.
#[inline]
fn destination(
    snapshot: &Snapshot,
    bridge: &Bridge,
    ingress: &Port,
    vid: Vid,
    dst: u64,
) -> Option<PortRef> {
    if dst & GROUP != 0 {
        return None;
    }
    let port = bridge.fdb.lookup_number(vid, dst)?;
    // The bridge too: while a port moves to another one, its addresses may still be learned on the old.
    let port = snapshot.live(port)?;
    (port.bridge == ingress.bridge && port.carries(vid)).then_some(port.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::fdb::FdbWriter;
    use crate::forward::snapshot::{BridgeSpec, GuestQueues, Output, PortSpec};
    use crate::forward::vlan::VlanRule;
    use crate::forward::{BridgeIndex, PortIndex};
    use std::sync::Arc;
    use vswitch_packet::MacAddr;

    const NOW: CoarseSecond = CoarseSecond(5);

    fn port(n: u16, vlan: VlanRule) -> Option<PortSpec> {
        Some(PortSpec {
            at: PortRef {
                index: PortIndex(n),
                incarnation: 0,
            },
            name: format!("p{n}").into(),
            bridge: BridgeIndex(0),
            vlan,
            learning: true,
            admin_up: true,
            offloads: vswitch_packet::Accepts::default(),
            coalesce: crate::forward::snapshot::Coalesce::default(),
            output: Output::Guest(Arc::new(GuestQueues::new(1, [0; 16]))),
            counters: Arc::new([Arc::default()]),
        })
    }

    fn switch(fdb: &FdbWriter) -> Snapshot {
        let v = |n| vswitch_packet::VlanId::new(n).unwrap();
        let ports = vec![
            port(0, VlanRule::untagged()),
            port(1, VlanRule::untagged()),
            port(2, VlanRule::access(v(10))),
        ];
        let bridge = BridgeSpec {
            mtu: 1500,
            fdb: fdb.table(),
        };
        Snapshot::new(ports, vec![Some(bridge)], None)
    }

    fn frame(dst: [u8; 6], src: [u8; 6], tci: Option<u16>) -> Vec<u8> {
        let mut f = [dst, src].concat();
        if let Some(t) = tci {
            f.extend([0x81, 0]);
            f.extend(t.to_be_bytes());
        }
        f.extend([8, 0]);
        f.resize(64, 0);
        f
    }

    const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn ask(s: &Snapshot, from: u16, head: &[u8], len: usize) -> Result<Verdict, InputDrop> {
        let bridge = s.bridge(BridgeIndex(0)).unwrap();
        decide(s, bridge, s.port(PortIndex(from)).unwrap(), head, len, NOW)
    }

    #[test]
    fn floods_learns_and_finds() {
        let mut fdb = FdbWriter::new(16, [1, 1]);
        let s = switch(&fdb);
        let v = ask(&s, 0, &frame(B, A, None), 64).unwrap();
        assert_eq!((v.to, v.vid, v.learn), (Destination::Flood, Vid(0), true));
        let b_at = s.port(PortIndex(1)).unwrap().at;
        fdb.insert(Vid(0), MacAddr(B), b_at, NOW, false);
        let v = ask(&s, 0, &frame(B, A, None), 64).unwrap();
        assert_eq!(v.to, Destination::Port(PortIndex(1)));
        let v = ask(&s, 1, &frame(B, A, None), 64).unwrap();
        assert_eq!((v.to, v.learn), (Destination::Reflected, true));
    }

    #[test]
    fn an_entry_of_a_removed_port_is_not_believed() {
        let mut fdb = FdbWriter::new(16, [1, 1]);
        let s = switch(&fdb);
        let gone = PortRef {
            index: PortIndex(1),
            incarnation: 9,
        };
        fdb.insert(Vid(0), MacAddr(B), gone, NOW, false);
        assert_eq!(
            ask(&s, 0, &frame(B, A, None), 64).unwrap().to,
            Destination::Flood
        );
    }

    #[test]
    fn an_entry_of_a_port_on_another_bridge_is_not_believed() {
        let mut fdb = FdbWriter::new(16, [1, 1]);
        let mut moved = port(1, VlanRule::untagged());
        moved.as_mut().unwrap().bridge = BridgeIndex(1);
        let at = moved.as_ref().unwrap().at;
        let bridges = (0..2).map(|_| {
            Some(BridgeSpec {
                mtu: 1500,
                fdb: fdb.table(),
            })
        });
        let ports = vec![port(0, VlanRule::untagged()), moved];
        let s = Snapshot::new(ports, bridges.collect(), None);
        fdb.insert(Vid(0), MacAddr(B), at, NOW, false);
        let verdict = ask(&s, 0, &frame(B, A, None), 64).unwrap();
        assert_eq!(verdict.to, Destination::Flood);
    }

    #[test]
    fn a_priority_tag_does_not_hide_another_tag() {
        let fdb = FdbWriter::new(16, [1, 1]);
        let s = switch(&fdb);
        let mut hidden = frame(B, A, Some(0));
        hidden[16..20].copy_from_slice(&[0x81, 0x00, 0x00, 0x14]);
        for from in [0, 2] {
            assert_eq!(ask(&s, from, &hidden, 64), Err(InputDrop::VlanNotAllowed));
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let fdb = FdbWriter::new(16, [1, 1]);
        let s = switch(&fdb);
        let ok = frame(B, A, None);
        assert_eq!(ask(&s, 0, &ok[..13], 13), Err(InputDrop::Runt));
        assert_eq!(
            ask(&s, 0, &frame(B, A, Some(5))[..15], 15),
            Err(InputDrop::Runt)
        );
        assert_eq!(ask(&s, 0, &ok, 1515), Err(InputDrop::OverMtu));
        assert!(ask(&s, 0, &ok, 1514).is_ok());
        assert!(
            ask(&s, 0, &frame(B, A, Some(0)), 1518).is_ok(),
            "the tag is not part of the MTU"
        );
        assert_eq!(
            ask(&s, 0, &frame(B, [3, 0, 0, 0, 0, 1], None), 64),
            Err(InputDrop::InvalidSource)
        );
        assert_eq!(
            ask(&s, 0, &frame(B, [0; 6], None), 64),
            Err(InputDrop::InvalidSource)
        );
        let lldp = [1, 0x80, 0xc2, 0, 0, 0x0e];
        assert_eq!(
            ask(&s, 0, &frame(lldp, A, None), 64),
            Err(InputDrop::LinkLocal)
        );
        assert_eq!(
            ask(&s, 2, &frame(B, A, Some(10)), 64),
            Err(InputDrop::VlanNotAllowed)
        );
    }
}
