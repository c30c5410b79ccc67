//! Pools of packet buffers.
//!
//! A pool is made once and stays until the process ends: a buffer can be in a driver, a burst or
//! another thread's cache, and none of them is asked to count references per packet. Make one
//! per process, or per NUMA node, sized for the whole configuration.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::burst::{BURST, MbufBurst};
use crate::eal::Eal;
use crate::error::{Errno, MempoolError};
use crate::log;
use crate::mbuf::Mbuf;

/// What an Ethernet frame has beyond its MTU: header, one VLAN tag, and the checksum that some
/// devices store.
pub(crate) const FRAME_OVERHEAD: u32 = 14 + 4 + 4;

/// Buffers per thread that bypass the shared ring, where there are few threads.
const CACHE: u32 = 256;
/// What all threads' caches together keep from others, at most, unless there are so many that each has the least.
const CACHES: u32 = 4096;

/// The size of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MempoolConfig {
    /// Buffers.
    pub count: u32,
    /// Frame bytes per buffer; 128 more are kept in front, for headers to be added.
    pub data_room: u16,
    /// NUMA node whose memory is used; `None` for any.
    pub node: Option<u16>,
    /// Buffers that a thread known to DPDK keeps for itself. It has up to half as many more.
    pub cache: u32,
}

/// What one port and those who work with it hold in buffers, all at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Receive queues: each is always full of empty buffers.
    pub rx_queues: u16,
    /// Transmit queues: a driver may keep sent buffers in each until it needs the place, and has a
    /// [`Stock`](crate::Stock) of empty ones beside it.
    pub tx_queues: u16,
    /// Descriptors of a queue.
    pub descriptors: u16,
    /// The most threads known to DPDK that there will ever be at one time. What is in a thread's cache serves that thread
    /// only, and when it ends the next one that begins.
    pub threads: u16,
}

impl Default for MempoolConfig {
    /// 8,192 buffers of 2,048 bytes, about 19 MiB.
    fn default() -> Self {
        Self {
            count: 8192,
            data_room: Self::DEFAULT_ROOM,
            node: None,
            cache: CACHE,
        }
    }
}

impl MempoolConfig {
    /// Frame bytes per buffer unless asked otherwise. Larger frames are spread over several.
    pub const DEFAULT_ROOM: u16 = dpdk_sys::DPDK_MBUF_DEFAULT_DATAROOM as u16;

    /// Enough buffers that a port never finds the pool empty because of what others hold: one for every descriptor and
    /// stock, and for every thread a full cache and a burst each way. Frames in several buffers each may need more.
    ///
    /// The more threads the smaller their caches, down to a burst, so that many do not take the memory.
    pub fn sized_for(demand: Demand) -> Self {
        let Demand {
            rx_queues,
            tx_queues,
            descriptors,
            threads,
        } = demand;
        let threads = u32::from(threads).max(1);
        let cache = (CACHES * 2 / 3 / threads).clamp(BURST as u32, CACHE);
        let per_thread = u64::from(cache + cache / 2) + 2 * BURST as u64;
        let in_queues = (u64::from(rx_queues) + u64::from(tx_queues)) * u64::from(descriptors);
        let stocks = u64::from(tx_queues) * BURST as u64;
        let count = in_queues + stocks + u64::from(threads) * per_thread;
        Self {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            cache,
            ..Self::default()
        }
    }

    /// The same with a data room that takes a whole frame of this MTU, for devices that cannot
    /// spread one over several buffers.
    #[must_use]
    pub fn with_room_for_mtu(self, mtu: u16) -> Self {
        let frame = (u32::from(mtu) + FRAME_OVERHEAD).next_multiple_of(64);
        let room = u16::try_from(frame)
            .unwrap_or(u16::MAX)
            .max(Self::DEFAULT_ROOM);
        Self {
            data_room: room,
            ..self
        }
    }

    /// Memory that such a pool takes, about, in bytes.
    pub fn bytes(&self) -> u64 {
        let object = 64
            + u64::from(dpdk_sys::DPDK_MBUF_SIZE)
            + u64::from(self.data_room)
            + u64::from(dpdk_sys::DPDK_PKTMBUF_HEADROOM);
        // The shared ring has a pointer per buffer, rounded up to a power of two.
        u64::from(self.count) * (object.next_multiple_of(64) + 16)
    }
}

/// A pool of packet buffers, as a handle that can be copied to every thread.
#[derive(Clone, Copy, Debug)]
pub struct Mempool {
    raw: NonNull<dpdk_sys::rte_mempool>,
    config: MempoolConfig,
}

// SAFETY: DPDK's pools are made to be used from several threads at once; the handle is a pointer to
// memory that is never freed.
unsafe impl Send for Mempool {}
// SAFETY: as above.
unsafe impl Sync for Mempool {}

impl Mempool {
    /// Makes a pool.
    ///
    /// # Errors
    ///
    /// When DPDK's memory does not suffice, or the numbers are out of range.
    pub fn new(_eal: Eal, config: MempoolConfig) -> Result<Self, MempoolError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let MempoolConfig {
            count,
            data_room,
            node,
            cache,
        } = config;
        let refuse = |why| {
            Err(MempoolError::Config {
                count,
                data_room,
                why,
            })
        };
        let headroom = dpdk_sys::DPDK_PKTMBUF_HEADROOM as u16;
        let Some(room) = data_room.checked_add(headroom) else {
            return refuse("a buffer has at most 65,407 bytes");
        };
        if data_room < 256 {
            return refuse("a buffer has at least 256 bytes");
        }
        if count < BURST as u32 {
            return refuse("at least 32 are needed");
        }

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("vswitch{number}")).unwrap_or_default();
        // DPDK refuses caches of more than two thirds of the pool.
        let cache = cache
            .min(dpdk_sys::DPDK_MEMPOOL_CACHE_MAX_SIZE)
            .min(count / 2);
        let node = node.map_or(dpdk_sys::DPDK_SOCKET_ID_ANY, i32::from);
        // SAFETY: EAL runs, `name` is a string; all numbers are checked by DPDK.
        let (raw, said) = log::listen(|| unsafe {
            dpdk_sys::dpdk_pool_create(name.as_ptr(), count, cache, room, node)
        });
        let Some(raw) = NonNull::new(raw) else {
            let mib = config.bytes() >> 20;
            return Err(MempoolError::Create {
                count,
                mib,
                errno: Errno::last(),
                said,
            });
        };
        Ok(Self { raw, config })
    }

    /// The size it was made with.
    pub fn config(&self) -> MempoolConfig {
        self.config
    }

    /// Buffers not in use, including those in threads' caches. Exact only while nobody allocates
    /// or frees, and slow: for `show` and for tests.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is never freed.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// One empty buffer; `None` when the pool is empty.
    pub fn alloc(&self) -> Option<Mbuf> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pool is never freed; `raw` has room for one pointer.
        let result = unsafe { dpdk_sys::dpdk_mbuf_alloc_bulk(self.raw(), &raw mut raw, 1) };
        if result != 0 {
            return None;
        }
        // SAFETY: a freshly allocated buffer has no other owner.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// Fills the burst up with empty buffers. False, and nothing added, when the pool has not
    /// enough of them.
    pub fn alloc_bulk(&self, burst: &mut MbufBurst) -> bool {
        burst.extend_raw(|room, n| {
            // SAFETY: the pool is never freed; `room` takes `n` pointers, and on success all of
            // them are freshly allocated buffers.
            match unsafe { dpdk_sys::dpdk_mbuf_alloc_bulk(self.raw(), room, u32::from(n)) } {
                0 => n,
                _ => 0,
            }
        });
        burst.is_full()
    }

    pub(crate) fn raw(&self) -> *mut dpdk_sys::rte_mempool {
        self.raw.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_for_mtus() {
        let config = MempoolConfig::default();
        assert_eq!(config.with_room_for_mtu(1500).data_room, 2048);
        assert_eq!(config.with_room_for_mtu(9216).data_room, 9280);
        assert_eq!(config.with_room_for_mtu(u16::MAX).data_room, u16::MAX);
    }

    fn demand(queues: (u16, u16), threads: u16) -> Demand {
        Demand {
            rx_queues: queues.0,
            tx_queues: queues.1,
            descriptors: 1024,
            threads,
        }
    }

    #[test]
    fn sizes_follow_queues_and_threads() {
        let config = MempoolConfig::sized_for(demand((2, 1), 3));
        assert_eq!((config.count, config.cache), (3072 + 32 + 3 * 448, 256));
        let most = Demand {
            descriptors: u16::MAX,
            ..demand((u16::MAX, u16::MAX), u16::MAX)
        };
        assert!(MempoolConfig::sized_for(most).count > 1 << 31);
        let mib = MempoolConfig::default().bytes() >> 20;
        assert!((18..=21).contains(&mib), "{mib}");
    }

    #[test]
    fn many_threads_have_small_caches_and_room_for_them() {
        for threads in 0..=127 {
            let config = MempoolConfig::sized_for(demand((1, 1), threads));
            let cached = u32::from(threads) * (config.cache + config.cache / 2);
            let in_hand = u32::from(threads) * 2 * BURST as u32;
            assert!(config.count >= 2048 + BURST as u32 + cached + in_hand);
            assert!((32..=256).contains(&config.cache));
            assert!(cached <= CACHES.max(u32::from(threads) * 48), "{threads}");
        }
    }
}
