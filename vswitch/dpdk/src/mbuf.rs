//! One frame in packet buffers: a chain of segments, owned.
//!
//! The fields of `struct rte_mbuf` are read in place, at the offsets that its C compiler gave,
//! because a call into DPDK would cost more than the read.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;
use std::slice;

use dpdk_sys::rte_mbuf;

use crate::mempool::Mempool;
use crate::stock::FrameError;

/// A frame, or room for one. Freed, all segments of it, when dropped.
#[repr(transparent)]
pub struct Mbuf {
    // Owned alone: this crate never makes clones or attaches one buffer to another's memory, and
    // drivers give received buffers away.
    raw: NonNull<rte_mbuf>,
}

// SAFETY: an Mbuf is the only owner of its segments, and the pool they return to takes them from
// any thread.
unsafe impl Send for Mbuf {}

/// What hardware found out about a checksum of a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// Not looked at.
    Unknown,
    /// Correct.
    Good,
    /// Wrong.
    Bad,
    /// The field is not filled in (virtual devices do that), but the data is known to be intact.
    Absent,
}

/// The network layer of an offload request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The transport layer of an offload request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Complete the TCP checksum.
    Tcp,
    /// Complete the UDP checksum.
    Udp,
    /// Cut the frame into TCP segments with this many bytes of payload each, and complete all
    /// checksums.
    TcpSegments {
        /// Payload per segment, at least 1.
        size: u16,
    },
}

/// What the device is asked to do to a frame as it leaves.
///
/// The transport checksum field must hold the checksum of the pseudo header, with the length for
/// [`Transport::Tcp`] and [`Transport::Udp`], and without it for [`Transport::TcpSegments`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxOffload {
    /// Ethernet header with VLAN tags, in bytes.
    pub l2_len: u16,
    /// IP header with options or extension headers, in bytes.
    pub l3_len: u16,
    /// TCP or UDP header with options, in bytes.
    pub l4_len: u16,
    /// Which IP.
    pub ip: IpVersion,
    /// Also fill in the IPv4 header checksum; implied by segmentation.
    pub ip_checksum: bool,
    /// What to do at the transport layer.
    pub transport: Transport,
}

/// Why an offload cannot be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OffloadError {
    /// A header is longer than DPDK can express.
    #[error("a header of this frame is too long for the device to be told about it")]
    HeaderLength,
    /// The headers are not all in the first segment.
    #[error("the headers of this frame are not within its first buffer")]
    Scattered,
    /// Segments of no bytes.
    #[error("a segment size of 0 would never end")]
    SegmentSize,
}

impl Mbuf {
    /// Takes ownership.
    ///
    /// # Safety
    ///
    /// `raw` is an allocated buffer, first of its chain, that nobody else owns, and whose data
    /// offset is within the buffer.
    pub(crate) unsafe fn from_raw(raw: NonNull<rte_mbuf>) -> Self {
        Self { raw }
    }

    pub(crate) fn into_raw(self) -> *mut rte_mbuf {
        let raw = self.raw.as_ptr();
        mem::forget(self);
        raw
    }

    /// Bytes of the frame, over all segments.
    #[expect(clippy::len_without_is_empty, reason = "a frame is not a collection")]
    pub fn len(&self) -> u32 {
        self.first().get(dpdk_sys::DPDK_MBUF_PKT_LEN)
    }

    /// Number of segments, at least 1.
    pub fn segment_count(&self) -> u16 {
        self.first().get(dpdk_sys::DPDK_MBUF_NB_SEGS)
    }

    /// The bytes of the first segment.
    pub fn data(&self) -> &[u8] {
        // SAFETY: the segment's data stays put and unchanged while `self` is borrowed.
        unsafe { slice::from_raw_parts(self.first().data(), self.first().data_len()) }
    }

    /// The bytes of the first segment, to be changed.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: nobody else reaches the segment's data while `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.first().data(), self.first().data_len()) }
    }

    /// The bytes of each segment, in order.
    pub fn segments(&self) -> Segments<'_> {
        Segments {
            next: Some(self.first()),
            left: self.segment_count(),
            _owner: PhantomData,
        }
    }

    /// Adds `len` bytes at the end of the last segment and returns them, to be written: they hold
    /// what an earlier frame left there. `None` if there is no room.
    pub fn append(&mut self, len: u16) -> Option<&mut [u8]> {
        let last = self.last();
        if usize::from(len) > last.tailroom() {
            return None;
        }
        let at = last.data_len();
        // Both sums fit: there was room for `len` in the buffer, and chains end at 65,535 segments
        // of 65,535 bytes.
        last.set(dpdk_sys::DPDK_MBUF_DATA_LEN, at as u16 + len);
        self.first().set(
            dpdk_sys::DPDK_MBUF_PKT_LEN,
            self.len().wrapping_add(u32::from(len)),
        );
        // SAFETY: `at + len` bytes of data are within the buffer, as tested, and `self` is borrowed
        // mutably meanwhile. The pool's memory was zeroed when mapped, so it is initialised.
        Some(unsafe { slice::from_raw_parts_mut(last.data().add(at), usize::from(len)) })
    }

    /// Adds `len` bytes in front and returns them, to be written. `None` if there is no room; an
    /// unchanged frame from a pool of this crate has 128 bytes of it.
    pub fn prepend(&mut self, len: u16) -> Option<&mut [u8]> {
        let first = self.first();
        let at = first.data_off().checked_sub(len)?;
        let total = u16::try_from(first.data_len()).ok()?.checked_add(len)?;
        first.set(dpdk_sys::DPDK_MBUF_DATA_OFF, at);
        first.set(dpdk_sys::DPDK_MBUF_DATA_LEN, total);
        first.set(
            dpdk_sys::DPDK_MBUF_PKT_LEN,
            self.len().wrapping_add(u32::from(len)),
        );
        Some(&mut self.data_mut()[..usize::from(len)])
    }

    /// Takes `len` bytes off the front; false, and nothing done, if the first segment has fewer.
    pub fn trim_front(&mut self, len: u16) -> bool {
        let first = self.first();
        let Some(rest) = first.data_len().checked_sub(usize::from(len)) else {
            return false;
        };
        first.set(dpdk_sys::DPDK_MBUF_DATA_OFF, first.data_off() + len);
        first.set(dpdk_sys::DPDK_MBUF_DATA_LEN, rest as u16);
        first.set(
            dpdk_sys::DPDK_MBUF_PKT_LEN,
            self.len().wrapping_sub(u32::from(len)),
        );
        true
    }

    /// Appends another frame's segments to this one.
    ///
    /// # Errors
    ///
    /// The other frame, unchanged, if the chain would be longer than 65,535 segments or 4 GiB.
    pub fn chain(&mut self, tail: Mbuf) -> Result<(), Mbuf> {
        let last = self.last();
        self.chain_after(last, tail).map(|_| ())
    }

    /// The same, knowing the last segment; returns the new last one.
    fn chain_after(&mut self, last: Segment, tail: Mbuf) -> Result<Segment, Mbuf> {
        let segments = self.segment_count().checked_add(tail.segment_count());
        let (Some(segments), Some(len)) = (segments, self.len().checked_add(tail.len())) else {
            return Err(tail);
        };
        let new_last = tail.last();
        last.set(dpdk_sys::DPDK_MBUF_NEXT, tail.into_raw());
        self.first().set(dpdk_sys::DPDK_MBUF_NB_SEGS, segments);
        self.first().set(dpdk_sys::DPDK_MBUF_PKT_LEN, len);
        Ok(new_last)
    }

    /// Asks the device to complete checksums or to segment. Only for devices that can: see
    /// [`TxCapabilities`](crate::TxCapabilities).
    ///
    /// # Errors
    ///
    /// See [`OffloadError`]; the frame is then unchanged.
    pub fn request_offload(&mut self, request: TxOffload) -> Result<(), OffloadError> {
        let (flags, lengths) = encode(&request, self.first().data_len())?;
        self.first().set(dpdk_sys::DPDK_MBUF_OL_FLAGS, flags);
        self.first().set(dpdk_sys::DPDK_MBUF_TX_OFFLOAD, lengths);
        Ok(())
    }

    /// Forgets what was received with the frame or asked for: to be sent as it is.
    pub fn clear_offload(&mut self) {
        self.first().set(dpdk_sys::DPDK_MBUF_OL_FLAGS, 0_u64);
        self.first().set(dpdk_sys::DPDK_MBUF_TX_OFFLOAD, 0_u64);
    }

    /// The TCP or UDP checksum of a received frame.
    pub fn l4_checksum(&self) -> Checksum {
        match self.flags() & dpdk_sys::DPDK_MBUF_RX_L4_CKSUM_MASK {
            dpdk_sys::DPDK_MBUF_RX_L4_CKSUM_GOOD => Checksum::Good,
            dpdk_sys::DPDK_MBUF_RX_L4_CKSUM_BAD => Checksum::Bad,
            dpdk_sys::DPDK_MBUF_RX_L4_CKSUM_NONE => Checksum::Absent,
            _ => Checksum::Unknown,
        }
    }

    /// The IPv4 header checksum of a received frame.
    pub fn ip_checksum(&self) -> Checksum {
        match self.flags() & dpdk_sys::DPDK_MBUF_RX_IP_CKSUM_MASK {
            dpdk_sys::DPDK_MBUF_RX_IP_CKSUM_GOOD => Checksum::Good,
            dpdk_sys::DPDK_MBUF_RX_IP_CKSUM_BAD => Checksum::Bad,
            dpdk_sys::DPDK_MBUF_RX_IP_CKSUM_NONE => Checksum::Absent,
            _ => Checksum::Unknown,
        }
    }

    /// The tag that the device took out of a received frame. Ports are configured not to, but a
    /// driver may do so all the same.
    pub fn stripped_vlan(&self) -> Option<u16> {
        (self.flags() & dpdk_sys::DPDK_MBUF_RX_VLAN_STRIPPED != 0)
            .then(|| self.first().get(dpdk_sys::DPDK_MBUF_VLAN_TCI))
    }

    /// The device's hash of a received frame's flow.
    pub fn rss_hash(&self) -> Option<u32> {
        (self.flags() & dpdk_sys::DPDK_MBUF_RX_RSS_HASH != 0)
            .then(|| self.first().get(dpdk_sys::DPDK_MBUF_RSS_HASH))
    }

    /// Fills this empty buffer with the bytes from `at` of a frame of `len`, and returns where the
    /// next buffer goes on.
    pub(crate) fn fill(
        &mut self,
        at: u32,
        len: u32,
        write: &mut impl FnMut(usize, &mut [u8]) -> usize,
    ) -> Result<u32, FrameError> {
        let room = self.first().tailroom().min(len.saturating_sub(at) as usize);
        let bytes = self.append(room as u16).ok_or(FrameError::NoBuffers)?;
        if write(at as usize, bytes) < room {
            return Err(FrameError::Short);
        }
        Ok(at + room as u32)
    }

    /// True if it asks for anything, or was received with a mark.
    pub(crate) fn has_flags(&self) -> bool {
        self.flags() != 0
    }

    /// True if it is one buffer of this pool, which a driver may give back without a look.
    pub(crate) fn is_whole_of(&self, pool: Mempool) -> bool {
        let owner: *mut dpdk_sys::rte_mempool = self.first().get(dpdk_sys::DPDK_MBUF_POOL);
        self.segment_count() == 1 && owner == pool.raw()
    }

    fn flags(&self) -> u64 {
        self.first().get(dpdk_sys::DPDK_MBUF_OL_FLAGS)
    }

    fn first(&self) -> Segment {
        Segment(self.raw)
    }

    fn last(&self) -> Segment {
        let mut last = self.first();
        for _ in 1..self.segment_count() {
            let Some(next) = last.next() else { break };
            last = next;
        }
        last
    }
}

/// The frame's flags and packed lengths for a request on a frame whose first segment has `room`
/// bytes.
fn encode(request: &TxOffload, room: usize) -> Result<(u64, u64), OffloadError> {
    let mut flags = match request.ip {
        IpVersion::V4 => dpdk_sys::DPDK_MBUF_TX_IPV4,
        IpVersion::V6 => dpdk_sys::DPDK_MBUF_TX_IPV6,
    };
    let segments = matches!(request.transport, Transport::TcpSegments { .. });
    if request.ip == IpVersion::V4 && (request.ip_checksum || segments) {
        flags |= dpdk_sys::DPDK_MBUF_TX_IP_CKSUM;
    }
    let mut segment_size = 0;
    flags |= match request.transport {
        Transport::Tcp => dpdk_sys::DPDK_MBUF_TX_TCP_CKSUM,
        Transport::Udp => dpdk_sys::DPDK_MBUF_TX_UDP_CKSUM,
        Transport::TcpSegments { size: 0 } => return Err(OffloadError::SegmentSize),
        Transport::TcpSegments { size } => {
            segment_size = size;
            dpdk_sys::DPDK_MBUF_TX_TCP_SEG | dpdk_sys::DPDK_MBUF_TX_TCP_CKSUM
        }
    };

    let headers = [request.l2_len, request.l3_len, request.l4_len].map(usize::from);
    if headers.iter().sum::<usize>() > room {
        return Err(OffloadError::Scattered);
    }
    let fields = [
        (request.l2_len, dpdk_sys::DPDK_TX_L2_LEN_BITS),
        (request.l3_len, dpdk_sys::DPDK_TX_L3_LEN_BITS),
        (request.l4_len, dpdk_sys::DPDK_TX_L4_LEN_BITS),
        (segment_size, dpdk_sys::DPDK_TX_TSO_SEGSZ_BITS),
    ];
    let (mut lengths, mut at) = (0, 0);
    for (value, bits) in fields {
        if u64::from(value) >> bits != 0 {
            return Err(OffloadError::HeaderLength);
        }
        lengths |= u64::from(value) << at;
        at += bits;
    }
    Ok((flags, lengths))
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: the only owner gives the chain up.
        unsafe { dpdk_sys::dpdk_mbuf_free(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.len())
            .field("segments", &self.segment_count())
            .finish()
    }
}

/// A frame under construction, which remembers where it ends.
pub(crate) struct Chain {
    frame: Mbuf,
    last: Segment,
}

impl Chain {
    pub(crate) fn new(frame: Mbuf) -> Self {
        let last = frame.last();
        Self { frame, last }
    }

    pub(crate) fn push(&mut self, tail: Mbuf) -> Result<(), Mbuf> {
        self.last = self.frame.chain_after(self.last, tail)?;
        Ok(())
    }

    pub(crate) fn into_frame(self) -> Mbuf {
        self.frame
    }
}

/// The segments of a frame, in order. See [`Mbuf::segments`].
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    next: Option<Segment>,
    left: u16,
    _owner: PhantomData<&'a Mbuf>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let segment = self.next.take()?;
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            self.next = segment.next();
        }
        // SAFETY: the frame is borrowed for 'a, so its segments' data stays put and unchanged.
        Some(unsafe { slice::from_raw_parts(segment.data(), segment.data_len()) })
    }
}

/// One segment of a chain that somebody owns.
#[derive(Clone, Copy, Debug)]
struct Segment(NonNull<rte_mbuf>);

impl Segment {
    /// A field, of the type that stands beside the offset in `dpdk-sys`.
    #[inline(always)]
    fn get<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the segment is allocated, and the offset is one of its fields, of this type: the
        // shim checks widths when it is compiled, and each use here names the type.
        unsafe { self.0.as_ptr().byte_add(offset as usize).cast::<T>().read() }
    }

    #[inline(always)]
    fn set<T: Copy>(self, offset: u32, value: T) {
        // SAFETY: as for `get`; callers hold the owner mutably.
        unsafe {
            self.0
                .as_ptr()
                .byte_add(offset as usize)
                .cast::<T>()
                .write(value);
        }
    }

    fn next(self) -> Option<Segment> {
        NonNull::new(self.get::<*mut rte_mbuf>(dpdk_sys::DPDK_MBUF_NEXT)).map(Segment)
    }

    fn data_off(self) -> u16 {
        self.get(dpdk_sys::DPDK_MBUF_DATA_OFF)
    }

    fn buf_len(self) -> u16 {
        self.get(dpdk_sys::DPDK_MBUF_BUF_LEN)
    }

    /// Bytes of data, at most what the buffer holds: some drivers report what they were told.
    fn data_len(self) -> usize {
        let len: u16 = self.get(dpdk_sys::DPDK_MBUF_DATA_LEN);
        usize::from(len.min(self.buf_len().saturating_sub(self.data_off())))
    }

    fn tailroom(self) -> usize {
        usize::from(self.buf_len().saturating_sub(self.data_off())) - self.data_len()
    }

    fn data(self) -> *mut u8 {
        let buffer: *mut u8 = self.get(dpdk_sys::DPDK_MBUF_BUF_ADDR);
        // SAFETY: the offset is clamped to the buffer's length, hence within the allocation.
        unsafe { buffer.add(usize::from(self.data_off().min(self.buf_len()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: TxOffload = TxOffload {
        l2_len: 18,
        l3_len: 20,
        l4_len: 32,
        ip: IpVersion::V4,
        ip_checksum: false,
        transport: Transport::TcpSegments { size: 1448 },
    };

    #[test]
    fn a_segmentation_request() {
        let (flags, lengths) = encode(&REQUEST, 70).unwrap();
        assert_ne!(flags & dpdk_sys::DPDK_MBUF_TX_TCP_SEG, 0);
        assert_ne!(flags & dpdk_sys::DPDK_MBUF_TX_IP_CKSUM, 0);
        assert_eq!(lengths, 18 | 20 << 7 | 32 << 16 | 1448 << 24);
    }

    #[test]
    fn a_checksum_request_leaves_the_ip_header_alone() {
        let request = TxOffload {
            transport: Transport::Udp,
            l4_len: 8,
            ..REQUEST
        };
        let (flags, lengths) = encode(&request, 46).unwrap();
        assert_eq!(
            flags,
            dpdk_sys::DPDK_MBUF_TX_IPV4 | dpdk_sys::DPDK_MBUF_TX_UDP_CKSUM
        );
        assert_eq!(lengths >> 24, 0);
    }

    #[test]
    fn requests_that_cannot_be_expressed() {
        let long = TxOffload {
            l2_len: 128,
            ..REQUEST
        };
        assert_eq!(encode(&long, 2048), Err(OffloadError::HeaderLength));
        let long = TxOffload {
            l3_len: 512,
            ..REQUEST
        };
        assert_eq!(encode(&long, 2048), Err(OffloadError::HeaderLength));
        assert_eq!(encode(&REQUEST, 69), Err(OffloadError::Scattered));
        let zero = TxOffload {
            transport: Transport::TcpSegments { size: 0 },
            ..REQUEST
        };
        assert_eq!(encode(&zero, 2048), Err(OffloadError::SegmentSize));
    }
}
