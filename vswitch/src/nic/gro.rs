//! Generic receive offload: consecutive TCP segments of one received burst become one frame for a guest that takes TSO.
//!
//! Only within a burst, so that nothing waits; only toward a guest that would take such a frame from another guest; and
//! only what segmentation would cut into the very same segments again, so whoever gets the train cannot tell it from the
//! sender's own. That means: same Ethernet, IP and TCP headers but for lengths, checksums, sequence number, PSH, and an
//! IPv4 identification that counts up; ACK and PSH only, so neither the ends of connections nor ECE and CWR; not marked CE;
//! data in each; checksums known to be good. A short segment or PSH ends a train, and so does any other frame between the
//! same two stations.

use arrayvec::ArrayVec;
use vswitch_dpdk::{Checksum, Mbuf, MbufBurst};
use vswitch_packet::{Accepts, Fragment, HEAD_LEN, L3, L4, Sum, Tcp, parse};

use crate::forward::BURST;
use crate::forward::decide::Ethernet;
use crate::forward::output::accepts;
use crate::forward::snapshot::{Output, Port, Snapshot};

/// ECN field: congestion experienced (RFC 3168, section 5).
const CE: u8 = 3;

/// Payload per segment of each frame of a burst; 0 for frames that are no trains.
pub(super) type Sizes = [u16; BURST];

/// A segment that can be part of a train.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    v6: bool,
    l3: usize,
    l4: usize,
    header: usize,
    payload: usize,
    sequence: u32,
    id: u16,
    push: bool,
}

/// A train that is being put together.
#[derive(Clone, Copy, Debug)]
struct Train {
    /// Place of its first segment, in the burst.
    first: usize,
    segment: Segment,
    last: Segment,
    /// Payload of all segments.
    payload: usize,
    count: usize,
    open: bool,
}

/// What the receiver of a frame with this head takes, if it is a single guest.
pub fn receiver(snapshot: &Snapshot, ingress: &Port, head: &[u8]) -> Accepts {
    let find = || {
        let eth = Ethernet::read(head)?;
        let vid = ingress.vlan.classify(eth.tci)?;
        let port = snapshot
            .bridge(ingress.bridge)?
            .fdb
            .lookup_number(vid, eth.dst)?;
        let port = snapshot.live(port)?;
        let Output::Guest(queues) = &port.output else {
            return None;
        };
        let ring = queues.ring(0)?.lock();
        Some(accepts(ring.as_ref()?, port.offloads))
    };
    find().unwrap_or_default()
}

/// Makes trains of a burst's segments where `takes` says so of a segment's head.
pub(super) fn merge(mbufs: &mut MbufBurst, takes: impl Fn(&[u8]) -> Accepts) -> Sizes {
    let mut sizes = [0; BURST];
    let mut trains: ArrayVec<Train, BURST> = ArrayVec::new();
    // Whose train a frame belongs to, as an index into the list.
    let mut member = [None; BURST];
    for (at, mbuf) in mbufs.iter().enumerate().take(BURST) {
        let first = |first| mbufs.get(first).map_or(&[][..], head_of);
        let part = file(&mut trains, at, segment(mbuf), head_of(mbuf), first);
        if let Some(place) = member.get_mut(at) {
            *place = part;
        }
    }
    for train in &mut trains {
        // Asked about last, because most of the time there is nothing to ask.
        let wanted = train.count > 1
            && mbufs.get(train.first).is_some_and(|mbuf| {
                let takes = takes(head_of(mbuf));
                takes.csum
                    && if train.segment.v6 {
                        takes.tso6
                    } else {
                        takes.tso4
                    }
            });
        if !wanted {
            train.count = 1;
        }
    }
    if trains.iter().all(|train| train.count < 2) {
        return sizes;
    }

    let mut merged: ArrayVec<Mbuf, BURST> = ArrayVec::new();
    let mut place = [0; BURST];
    for (at, mut mbuf) in mbufs.drain().enumerate() {
        let train = member.get(at).copied().flatten();
        let train = train.and_then(|index| Some((index, trains.get(index)?)));
        let Some((index, train)) = train.filter(|(_, train)| train.count > 1) else {
            let _ = merged.try_push(mbuf);
            continue;
        };
        let Some(place) = place.get_mut(index) else {
            continue;
        };
        if train.first == at {
            *place = merged.len();
            rewrite(mbuf.data_mut(), train);
            if let Some(size) = sizes.get_mut(merged.len()) {
                *size = train.segment.payload as u16;
            }
            let _ = merged.try_push(mbuf);
        } else if mbuf.trim_front(train.last.header as u16)
            && let Some(first) = merged.get_mut(*place)
        {
            // At most a burst of buffers and 64 KiB, far from what a chain can be.
            let _ = first.chain(mbuf);
        }
    }
    for mbuf in merged {
        let _ = mbufs.push(mbuf);
    }
    sizes
}

/// Appends the frame at `at` to a train or begins one with it; which, unless it cannot be part of any. A frame that does
/// not go on with what came before it on its connection ends that, so that nothing overtakes.
fn file<'a>(
    trains: &mut ArrayVec<Train, BURST>,
    at: usize,
    segment: Option<Segment>,
    own: &[u8],
    head: impl Fn(usize) -> &'a [u8],
) -> Option<usize> {
    let Some(segment) = segment else {
        for train in trains.iter_mut() {
            train.open &= own.get(..12) != head(train.first).get(..12);
        }
        return None;
    };
    let of_connection =
        |train: &Train| connection(&train.segment, head(train.first), &segment, own);
    if let Some(index) = trains.iter().rposition(of_connection)
        && let Some(train) = trains.get_mut(index)
    {
        if train.open && goes_on(train, &segment) && alike(head(train.first), own, &segment) {
            train.payload += segment.payload;
            train.count += 1;
            train.last = segment;
            train.open = segment.payload == train.segment.payload && !segment.push;
            return Some(index);
        }
        train.open = false;
    }
    let _ = trains.try_push(Train {
        first: at,
        segment,
        last: segment,
        payload: segment.payload,
        count: 1,
        open: !segment.push,
    });
    Some(trains.len() - 1)
}

fn head_of(mbuf: &Mbuf) -> &[u8] {
    let data = mbuf.data();
    data.get(..HEAD_LEN).unwrap_or(data)
}

/// The frame as a segment of a train.
fn segment(mbuf: &Mbuf) -> Option<Segment> {
    if mbuf.l4_checksum() != Checksum::Good || mbuf.segment_count() != 1 {
        return None;
    }
    parse_segment(head_of(mbuf), mbuf.len() as usize)
}

fn parse_segment(head: &[u8], len: usize) -> Option<Segment> {
    let parsed = parse(head, len).ok()?;
    let L4::Tcp(tcp) = parsed.l4 else { return None };
    let (l3, l4) = (
        usize::from(parsed.l3_offset),
        usize::from(parsed.l4_offset?),
    );
    let ip = head.get(l3..l4)?;
    let (v6, header, packet, tos, id) = match parsed.l3 {
        L3::Ipv4(v4) => {
            // Not every device that checks TCP checks this too.
            let mut sum = Sum::new();
            sum.add(ip);
            if sum.to_field() != 0xffff {
                return None;
            }
            let id = u16::from_be_bytes(*ip.get(4..)?.first_chunk()?);
            (false, 20, usize::from(v4.total_len), v4.tos, id)
        }
        L3::Ipv6(v6) => (
            true,
            40,
            40 + usize::from(v6.payload_len),
            v6.traffic_class,
            0,
        ),
        _ => return None,
    };
    let fits = ip.len() == header && l3 + packet == len && parsed.fragment() == Fragment::No;
    let plain = tcp.flags & !Tcp::PSH == Tcp::ACK && tos & CE != CE;
    let header = l4 + usize::from(tcp.header_len);
    let payload = len.checked_sub(header).filter(|payload| *payload > 0)?;
    if !fits || !plain || header > head.len() {
        return None;
    }
    Some(Segment {
        v6,
        l3,
        l4,
        header,
        payload,
        sequence: u32::from_be_bytes(*head.get(l4 + 4..)?.first_chunk()?),
        id,
        push: tcp.flags & Tcp::PSH != 0,
    })
}

/// Whether two segments are of one connection, and their headers in the same places.
fn connection(a: &Segment, a_head: &[u8], b: &Segment, b_head: &[u8]) -> bool {
    let addresses = if a.v6 {
        a.l3 + 8..a.l3 + 40
    } else {
        a.l3 + 12..a.l3 + 20
    };
    (a.v6, a.l3, a.l4) == (b.v6, b.l3, b.l4)
        && a_head.get(..a.l3) == b_head.get(..b.l3)
        && a_head.get(addresses.clone()) == b_head.get(addresses)
        && a_head.get(a.l4..a.l4 + 4) == b_head.get(b.l4..b.l4 + 4)
}

/// Whether a segment is the next one, by its numbers.
fn goes_on(train: &Train, next: &Segment) -> bool {
    let Train { segment, last, .. } = train;
    next.sequence == last.sequence.wrapping_add(last.payload as u32)
        && (next.v6 || next.id == last.id.wrapping_add(1))
        && next.header == segment.header
        && next.payload <= segment.payload
        && segment.header - segment.l3 + train.payload + next.payload <= usize::from(u16::MAX)
}

/// Whether two headers are the same but for what differs from segment to segment.
fn alike(a: &[u8], b: &[u8], at: &Segment) -> bool {
    let same = |from: usize, to: usize| a.get(from..to) == b.get(from..to);
    let ip = if at.v6 {
        same(at.l3, at.l3 + 4) && same(at.l3 + 6, at.l3 + 8)
    } else {
        same(at.l3, at.l3 + 2) && same(at.l3 + 6, at.l3 + 10)
    };
    // Acknowledgement and header length; window; urgent pointer and options. Flags have been looked at.
    ip && same(at.l4 + 8, at.l4 + 13) && same(at.l4 + 14, at.l4 + 16) && same(at.l4 + 18, at.header)
}

/// Makes the first segment's headers those of the whole train: lengths, PSH, IPv4's checksum, and the pseudo header's sum
/// in TCP's.
fn rewrite(head: &mut [u8], train: &Train) -> Option<()> {
    let Segment {
        v6, l3, l4, header, ..
    } = train.segment;
    let tcp_len = header - l4 + train.payload;
    let ip = head.get_mut(l3..l4)?;
    let length = if v6 { tcp_len } else { tcp_len + ip.len() } as u16;
    let at = if v6 { 4 } else { 2 };
    *ip.get_mut(at..)?.first_chunk_mut()? = length.to_be_bytes();
    if !v6 {
        *ip.get_mut(10..)?.first_chunk_mut()? = [0; 2];
        let mut sum = Sum::new();
        sum.add(ip);
        *ip.get_mut(10..)?.first_chunk_mut()? = sum.finish().to_be_bytes();
    }
    // The addresses, wherever they are, the protocol and the length: the same words for both (RFC 8200, section 8.1).
    let mut pseudo = Sum::new();
    pseudo.add(ip.get(if v6 { 8 } else { 12 }..)?);
    pseudo.add(&[0, vswitch_packet::headers::protocol::TCP]);
    pseudo.add(&(tcp_len as u32).to_be_bytes());
    let tcp = head.get_mut(l4..header)?;
    if train.last.push {
        *tcp.get_mut(13)? |= Tcp::PSH;
    }
    *tcp.get_mut(16..)?.first_chunk_mut()? = pseudo.to_field().to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests;
