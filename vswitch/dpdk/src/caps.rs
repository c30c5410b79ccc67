//! What a device can do, as it says itself.

use std::ffi::CStr;

use crate::device::DeviceArg;
use crate::mempool::{FRAME_OVERHEAD, MempoolConfig};
use crate::rss::HashTypes;

/// The driver over a packet socket, whose limits are not those it reports.
pub(crate) const AF_PACKET: &str = "net_af_packet";

/// The driver that makes a tap.
pub(crate) const TAP: &str = "net_tap";

/// Drivers whose peer spreads frames over as many receive queues as there are queues of either
/// direction, so that one without a reader would lose what lands there.
const PAIRED: [&str; 6] = [
    TAP,
    AF_PACKET,
    "net_af_xdp",
    "net_vhost",
    "net_virtio",
    "net_virtio_user",
];

/// What a device can do; of a started port, what of it is switched on, which follows from
/// [`PortConfig`](crate::PortConfig).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The driver, as in `net_tap`.
    pub driver: String,
    /// Receive queues, at most.
    pub max_rx_queues: u16,
    /// Transmit queues, at most.
    pub max_tx_queues: u16,
    /// Queues come in pairs: ask for as many of one direction as of the other.
    pub paired_queues: bool,
    /// Smallest MTU.
    pub min_mtu: u16,
    /// Largest MTU.
    pub max_mtu: u16,
    /// The NUMA node the device is attached to, where that means something.
    pub node: Option<u16>,
    /// Receive side.
    pub rx: RxCapabilities,
    /// Transmit side.
    pub tx: TxCapabilities,
}

/// Receive side of [`Capabilities`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxCapabilities {
    /// Checks IPv4 header checksums.
    pub ipv4_checksum: bool,
    /// Checks TCP checksums.
    pub tcp_checksum: bool,
    /// Checks UDP checksums.
    pub udp_checksum: bool,
    /// Spreads a frame over several buffers.
    pub scatter: bool,
    /// Spreads flows over receive queues by a hash.
    pub rss: bool,
    /// Hands on with each frame the hash that chose its queue.
    pub rss_hash: bool,
}

/// Transmit side of [`Capabilities`]. Checksums and segmentation are used by a frame
/// only on request: [`Mbuf::request_offload`](crate::Mbuf::request_offload).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxCapabilities {
    /// Fills in IPv4 header checksums.
    pub ipv4_checksum: bool,
    /// Completes TCP checksums.
    pub tcp_checksum: bool,
    /// Completes UDP checksums.
    pub udp_checksum: bool,
    /// Cuts large TCP frames into segments.
    pub tcp_segmentation: bool,
    /// Sends frames that are spread over several buffers. To a device without it, only frames in
    /// one buffer may be given.
    pub multi_segment: bool,
    /// Gives buffers back to their pool without a look at each. Excludes `multi_segment`: it is
    /// switched on where no frame needs more than one buffer, and then a queue refuses frames of
    /// several, and those of another pool than the port's.
    pub fast_free: bool,
    /// Buffers per frame to be segmented, at most.
    pub max_segments: u16,
    /// Buffers per other frame, at most.
    pub max_mtu_segments: u16,
}

/// Buffers that a frame is spread over, at most, where there is a choice: with more, one large
/// buffer is cheaper.
const SPREAD: u16 = 8;

/// Offloads that are switched on where there are any.
const RX_WANTED: u64 = dpdk_sys::DPDK_RX_OFFLOAD_IPV4_CKSUM
    | dpdk_sys::DPDK_RX_OFFLOAD_TCP_CKSUM
    | dpdk_sys::DPDK_RX_OFFLOAD_UDP_CKSUM;

/// Those that need a look at each frame before it is sent.
const TX_PREPARED: u64 = dpdk_sys::DPDK_TX_OFFLOAD_IPV4_CKSUM
    | dpdk_sys::DPDK_TX_OFFLOAD_TCP_CKSUM
    | dpdk_sys::DPDK_TX_OFFLOAD_UDP_CKSUM
    | dpdk_sys::DPDK_TX_OFFLOAD_TCP_TSO;

/// The largest MTU that DPDK accepts for a device, by its own rule: the frame's limit less the
/// frame's overhead, which is what frame and MTU limits differ by, or 18 bytes.
pub(crate) fn ethdev_max_mtu(info: &dpdk_sys::rte_eth_dev_info) -> u32 {
    let (mtu, frame) = (u32::from(info.max_mtu), info.max_rx_pktlen);
    let overhead = if info.max_mtu != u16::MAX && frame > mtu {
        frame - mtu
    } else {
        18
    };
    mtu.min(frame.saturating_sub(overhead))
}

/// Bytes of a slot that a packet socket shares with the kernel.
fn af_packet_slot(device: &DeviceArg) -> u32 {
    device.value("framesz").map_or(2048, parse_c_number)
}

/// The largest frame in such a slot, which the kernel gives a header of 66 bytes; longer ones it
/// cuts short. The driver reports 1,518 bytes, whatever the slot.
fn af_packet_frame(device: &DeviceArg) -> u32 {
    af_packet_slot(device).saturating_sub(66)
}

/// Room that a buffer must have for the device, when it puts a frame into one whatever happens;
/// 0 for those that spread frames over buffers.
pub(crate) fn room_needed(caps: &Capabilities, device: &DeviceArg, mtu: u16) -> u32 {
    match caps.driver.as_str() {
        // Makes frames of any size that it is told, without a look at the buffer's.
        "net_null" => device.value("size").map_or(64, parse_c_number),
        // Wants room for a whole slot without its header.
        AF_PACKET => af_packet_slot(device).saturating_sub(32),
        // Spread frames without saying so, or hand on buffers as they are.
        "net_pcap" | "net_ring" | "net_vhost" => 0,
        _ if caps.rx.scatter => 0,
        _ => u32::from(mtu) + FRAME_OVERHEAD,
    }
}

/// Room that a buffer should have on this device: the usual one where larger frames can be spread
/// over several, both ways, else enough for a frame of this MTU.
pub(crate) fn room_wanted(caps: &Capabilities, device: &DeviceArg, mtu: u16) -> u16 {
    let usual = u32::from(MempoolConfig::DEFAULT_ROOM);
    let frame = u32::from(mtu) + FRAME_OVERHEAD;
    let spreads = caps.tx.multi_segment
        && frame.div_ceil(usual) <= u32::from(caps.tx.max_mtu_segments.min(SPREAD));
    let sent = if spreads { usual } else { frame };
    let room = sent.max(room_needed(caps, device, mtu)).max(usual);
    u16::try_from(room.next_multiple_of(64)).unwrap_or(u16::MAX)
}

/// A number as C's strtoul reads it; what it cannot read is too large for anything.
fn parse_c_number(text: &str) -> u32 {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(&text[1..], 8),
        None => text.parse(),
    };
    parsed.unwrap_or(u32::MAX)
}

/// The offload bits to switch on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Offloads {
    pub(crate) rx: u64,
    pub(crate) tx: u64,
}

impl Offloads {
    /// What the device has of what is wanted; spreading and hashing cost speed and are asked for
    /// only where needed.
    ///
    /// Freeing fast means that the driver does not look at how many buffers a frame has, so it is
    /// for ports whose frames are all of one: no segmentation, and none larger than a buffer.
    pub(crate) fn of(info: &dpdk_sys::rte_eth_dev_info, scatter: bool, rss: bool) -> Self {
        let mut rx = RX_WANTED;
        if scatter {
            rx |= dpdk_sys::DPDK_RX_OFFLOAD_SCATTER;
        }
        if rss {
            rx |= dpdk_sys::DPDK_RX_OFFLOAD_RSS_HASH;
        }
        let has = |bit| info.tx_offload_capa & bit != 0;
        let multi = has(dpdk_sys::DPDK_TX_OFFLOAD_MULTI_SEGS);
        let mut tx = TX_PREPARED;
        if !multi {
            // What is to be cut does not fit one buffer.
            tx &= !dpdk_sys::DPDK_TX_OFFLOAD_TCP_TSO;
        }
        let spread = multi && (scatter || has(dpdk_sys::DPDK_TX_OFFLOAD_TCP_TSO));
        if has(dpdk_sys::DPDK_TX_OFFLOAD_FAST_FREE) && !spread {
            tx |= dpdk_sys::DPDK_TX_OFFLOAD_FAST_FREE;
        } else {
            tx |= dpdk_sys::DPDK_TX_OFFLOAD_MULTI_SEGS;
        }
        Self {
            rx: rx & info.rx_offload_capa,
            tx: tx & info.tx_offload_capa,
        }
    }

    /// The receive side, but for what is no bit.
    fn rx(self) -> RxCapabilities {
        let has = |bit| self.rx & bit != 0;
        RxCapabilities {
            ipv4_checksum: has(dpdk_sys::DPDK_RX_OFFLOAD_IPV4_CKSUM),
            tcp_checksum: has(dpdk_sys::DPDK_RX_OFFLOAD_TCP_CKSUM),
            udp_checksum: has(dpdk_sys::DPDK_RX_OFFLOAD_UDP_CKSUM),
            scatter: has(dpdk_sys::DPDK_RX_OFFLOAD_SCATTER),
            rss: false,
            rss_hash: has(dpdk_sys::DPDK_RX_OFFLOAD_RSS_HASH),
        }
    }

    /// The transmit side, but for what is no bit.
    fn tx(self) -> TxCapabilities {
        let has = |bit| self.tx & bit != 0;
        TxCapabilities {
            ipv4_checksum: has(dpdk_sys::DPDK_TX_OFFLOAD_IPV4_CKSUM),
            tcp_checksum: has(dpdk_sys::DPDK_TX_OFFLOAD_TCP_CKSUM),
            udp_checksum: has(dpdk_sys::DPDK_TX_OFFLOAD_UDP_CKSUM),
            tcp_segmentation: has(dpdk_sys::DPDK_TX_OFFLOAD_TCP_TSO),
            multi_segment: has(dpdk_sys::DPDK_TX_OFFLOAD_MULTI_SEGS),
            fast_free: has(dpdk_sys::DPDK_TX_OFFLOAD_FAST_FREE),
            max_segments: 0,
            max_mtu_segments: 0,
        }
    }

    /// True if the driver gives buffers back unseen.
    pub(crate) fn fast_free(self) -> bool {
        self.tx & dpdk_sys::DPDK_TX_OFFLOAD_FAST_FREE != 0
    }

    /// True if frames may ask for something that the driver wants to check first.
    pub(crate) fn prepare(self) -> bool {
        self.tx & TX_PREPARED != 0
    }
}

/// Takes away what a driver claims and does badly.
///
/// A tap's segmentation is software in the driver, no faster than ours, and the one of DPDK 24.11
/// sends nothing: it never makes the pools it takes segments from.
///
/// # Safety
///
/// As for [`Capabilities::new`].
pub(crate) unsafe fn correct(info: &mut dpdk_sys::rte_eth_dev_info) {
    // SAFETY: the caller upholds that this is null or the driver's name, a constant.
    let tap = !info.driver_name.is_null()
        && unsafe { CStr::from_ptr(info.driver_name) }.to_bytes() == TAP.as_bytes();
    if tap {
        info.tx_offload_capa &= !dpdk_sys::DPDK_TX_OFFLOAD_TCP_TSO;
    }
}

impl Capabilities {
    /// # Safety
    ///
    /// `info` was filled in by `rte_eth_dev_info_get`, for a device that is still attached.
    pub(crate) unsafe fn new(
        info: &dpdk_sys::rte_eth_dev_info,
        device: &DeviceArg,
        node: Option<u16>,
    ) -> Self {
        let driver = if info.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: the caller upholds that this is the driver's name, a constant.
            unsafe { CStr::from_ptr(info.driver_name) }
                .to_string_lossy()
                .into_owned()
        };
        let max_mtu = match driver.as_str() {
            AF_PACKET => af_packet_frame(device).saturating_sub(FRAME_OVERHEAD),
            _ => ethdev_max_mtu(info),
        };
        let offered = Offloads {
            rx: info.rx_offload_capa,
            tx: info.tx_offload_capa,
        };
        // 0 stands for no limit.
        let segments = |limit| if limit == 0 { u16::MAX } else { limit };
        let (rx, tx) = (offered.rx(), offered.tx());
        Self {
            paired_queues: PAIRED.contains(&driver.as_str()),
            driver,
            max_rx_queues: info.max_rx_queues,
            max_tx_queues: info.max_tx_queues,
            min_mtu: info.min_mtu,
            max_mtu: u16::try_from(max_mtu).unwrap_or(u16::MAX),
            node,
            rx: RxCapabilities {
                rss: !HashTypes::offered(info.flow_type_rss_offloads).is_empty(),
                ..rx
            },
            tx: TxCapabilities {
                max_segments: segments(info.tx_desc_lim.nb_seg_max),
                max_mtu_segments: segments(info.tx_desc_lim.nb_mtu_seg_max),
                ..tx
            },
        }
    }

    /// Leaves what has been switched on.
    pub(crate) fn narrow(&mut self, on: Offloads, rss: bool) {
        self.rx = RxCapabilities { rss, ..on.rx() };
        self.tx = TxCapabilities {
            max_segments: self.tx.max_segments,
            max_mtu_segments: self.tx.max_mtu_segments,
            ..on.tx()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_c_reads_them() {
        for (text, number) in [
            ("64", 64),
            ("0x10", 16),
            ("010", 8),
            ("0", 0),
            ("-1", u32::MAX),
        ] {
            assert_eq!(parse_c_number(text), number, "{text}");
        }
    }

    #[test]
    fn mtu_limits_as_dpdk_computes_them() {
        // SAFETY: numbers and pointers; all zeroes is a value of each.
        let mut info: dpdk_sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
        for (max_mtu, max_rx_pktlen, limit) in [
            (u16::MAX, 1522, 1504),
            (u16::MAX, u32::MAX, 65_535),
            (9702, 9728, 9702),
            (1500, 1518, 1500),
            (u16::MAX, 10, 0),
        ] {
            (info.max_mtu, info.max_rx_pktlen) = (max_mtu, max_rx_pktlen);
            assert_eq!(ethdev_max_mtu(&info), limit);
        }
    }

    fn tx_of(capa: u64, scatter: bool) -> u64 {
        // SAFETY: numbers and pointers; all zeroes is a value of each.
        let mut info: dpdk_sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
        info.tx_offload_capa = capa;
        Offloads::of(&info, scatter, false).tx
    }

    #[test]
    fn buffers_are_freed_unseen_only_where_every_frame_is_one() {
        let tso = dpdk_sys::DPDK_TX_OFFLOAD_TCP_TSO;
        let (multi, fast) = (
            dpdk_sys::DPDK_TX_OFFLOAD_MULTI_SEGS,
            dpdk_sys::DPDK_TX_OFFLOAD_FAST_FREE,
        );
        let csum = dpdk_sys::DPDK_TX_OFFLOAD_TCP_CKSUM;
        for (capa, scatter, on) in [
            (multi | fast, false, fast),
            (multi | fast, true, multi),
            (multi | fast | tso | csum, false, multi | tso | csum),
            (fast | tso | csum, false, fast | csum),
            (fast, true, fast),
            (multi, false, multi),
            (tso | csum, false, csum),
            (0, true, 0),
        ] {
            assert_eq!(tx_of(capa, scatter), on, "{capa:x} {scatter}");
        }
    }

    #[test]
    fn slots_of_a_packet_socket() {
        let frame = |text: &str| af_packet_frame(&text.parse().unwrap());
        assert_eq!(frame("net_af_packet0,iface=x"), 1982);
        assert_eq!(frame("net_af_packet0,iface=x,framesz=16384"), 16_318);
        assert_eq!(frame("net_af_packet0,iface=x,framesz=1"), 0);
    }
}
