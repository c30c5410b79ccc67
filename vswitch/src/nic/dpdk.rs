//! DPDK as this process has it: started or refused, once; its threads and its pools.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vswitch_api::config;
use vswitch_dpdk::{
    Demand, DeviceArg, Eal, EalConfig, Mempool, MempoolConfig, MempoolError, ThreadGuard,
};

use super::NicError;

/// Buffers of a pool for which memory is short: enough for any one queue, and the memory of the default configuration has
/// room for three of them.
const BUFFERS: u32 = 8192;

/// Set once, and then read by workers without waiting for whoever opens a device.
static STARTED: OnceLock<Result<Eal, String>> = OnceLock::new();

/// Every pool there is; pools live as long as DPDK. Touched by the main thread only.
static POOLS: Mutex<Vec<Arc<Mempool>>> = Mutex::new(Vec::new());

thread_local! {
    /// Makes a thread known to DPDK, for as long as it lives; `None` inside if DPDK would not have it.
    static GUARD: RefCell<Option<Option<ThreadGuard>>> = const { RefCell::new(None) };
}

/// Starts DPDK, unless it runs, and says whether it serves this device.
///
/// # Errors
/// DPDK does not start, or did not when it was first asked, or runs without what the device needs.
pub(super) fn start(device: &DeviceArg, settings: &config::Dpdk) -> Result<Eal, NicError> {
    let started = STARTED.get_or_init(|| {
        let wanted = EalConfig::for_devices([device]);
        let config = EalConfig {
            memory_mb: settings.memory,
            hugepages: settings.hugepages || wanted.hugepages,
            extra_args: settings.extra_args.clone(),
            ..wanted
        };
        Eal::init(&config).map_err(|e| e.to_string())
    });
    match started {
        Ok(eal) if device.needs_pci() && !eal.has_pci() => {
            Err(NicError::NoPci(device.as_str().into()))
        }
        Ok(eal) => Ok(*eal),
        Err(why) => Err(NicError::Eal(why.clone())),
    }
}

/// Makes the calling thread known to DPDK, if DPDK runs and does not know it: only threads it knows have buffer caches of
/// their own. Cheap when there is nothing to do.
pub fn adopt_thread() {
    let Some(Ok(eal)) = STARTED.get() else { return };
    GUARD.with_borrow_mut(|guard| {
        guard.get_or_insert_with(|| {
            ThreadGuard::register(*eal)
                .inspect_err(
                    |error| tracing::warn!(%error, "DPDK ports will be slower than they could be"),
                )
                .ok()
        });
    });
}

/// A port's pool, given back when dropped: for the next port that needs one like it.
///
/// A pool for each port rather than one for all: a port that holds on to its buffers takes none of another's, and a device
/// that frees without looking has only buffers of one pool.
pub(super) struct PoolUse(Arc<Mempool>);

impl PoolUse {
    /// A pool of buffers with this much room, for a port of this demand.
    ///
    /// It has all that can be held at one time. If there is no memory for that, then for less, and at last it is another
    /// port's.
    ///
    /// # Errors
    /// There is no memory for a pool, and no other port has one like it to share.
    pub(super) fn take(eal: Eal, room: u16, demand: Demand) -> Result<Self, NicError> {
        let (whole, least) = sizes(room, demand);
        let mut pools = POOLS.lock();
        let taken =
            take_from(&mut pools, eal, whole).or_else(|_| take_from(&mut pools, eal, least));
        match taken {
            Ok(pool) => {
                let (buffers, needed) = (pool.config().count, whole.count);
                if buffers < needed {
                    let mib = whole.bytes() >> 20;
                    tracing::warn!(
                        buffers,
                        needed,
                        "DPDK's memory has no room for all packet buffers that a port can hold at one time, which take \
                         {mib} MiB; while they are held elsewhere it misses frames (dpdk.memory)"
                    );
                }
                Ok(PoolUse(pool))
            }
            Err(error) => {
                let fits = pools.iter().filter(|pool| pool.config().data_room == room);
                let shared = fits.min_by_key(|pool| Arc::strong_count(pool));
                let pool = shared.ok_or(error)?;
                tracing::warn!(
                    "DPDK's memory has no room for another pool of packet buffers; ports share one (dpdk.memory)"
                );
                Ok(PoolUse(Arc::clone(pool)))
            }
        }
    }

    /// The pool.
    pub(super) fn pool(&self) -> Mempool {
        *self.0
    }
}

/// A pool that nobody uses and that is large enough, or a new one.
fn take_from(
    pools: &mut Vec<Arc<Mempool>>,
    eal: Eal,
    wanted: MempoolConfig,
) -> Result<Arc<Mempool>, MempoolError> {
    let fits = |pool: &&Arc<Mempool>| {
        let has = pool.config();
        has.data_room == wanted.data_room && has.count >= wanted.count
    };
    // The list itself holds one reference.
    let unused = pools
        .iter()
        .filter(|pool| fits(pool) && Arc::strong_count(pool) == 1);
    if let Some(pool) = unused.min_by_key(|pool| pool.config().count) {
        return Ok(Arc::clone(pool));
    }
    let pool = Arc::new(Mempool::new(eal, wanted)?);
    pools.push(Arc::clone(&pool));
    Ok(pool)
}

/// What never runs dry, and what will do if there is no memory for that: no more than usual.
fn sizes(room: u16, demand: Demand) -> (MempoolConfig, MempoolConfig) {
    let whole = MempoolConfig {
        data_room: room,
        ..MempoolConfig::sized_for(demand)
    };
    // Larger buffers, fewer of them; but receive queues are filled once at the start.
    let factor = u32::from(room.div_ceil(MempoolConfig::DEFAULT_ROOM)).max(1);
    let filled = u32::from(demand.rx_queues) * u32::from(demand.descriptors);
    let usual = (BUFFERS / factor).max(filled + filled / 2);
    let least = MempoolConfig {
        count: usual.min(whole.count),
        ..whole
    };
    (whole, least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(room: u16, queues: (u16, u16), threads: u16) -> (u32, u32) {
        let demand = Demand {
            rx_queues: queues.0,
            tx_queues: queues.1,
            descriptors: 1024,
            threads,
        };
        let (whole, least) = sizes(room, demand);
        assert_eq!((whole.data_room, least.data_room), (room, room));
        (whole.count, least.count)
    }

    #[test]
    fn pools_by_queues_room_and_threads() {
        let (whole, least) = counts(2048, (1, 1), 3);
        assert_eq!((whole, least), (2080 + 3 * 448, whole));
        // With as many queues as that, what will do is what is usual, or what fills the receive queues.
        assert_eq!(counts(2048, (1, 16), 17).1, BUFFERS);
        assert_eq!(counts(2048, (16, 16), 17).1, 16 * 1024 * 3 / 2);
        assert_eq!(counts(9280, (1, 1), 3), (whole, BUFFERS / 5));
        assert_eq!(counts(16_384, (1, 1), 3), (whole, 1536));
    }

    /// Workers that are added later have their caches in pools of devices that are open.
    #[test]
    fn a_pool_has_buffers_for_workers_that_come() {
        for threads in 2..=65 {
            let (whole, _) = counts(2048, (1, 1), threads);
            let cache = MempoolConfig::sized_for(Demand {
                rx_queues: 1,
                tx_queues: 1,
                descriptors: 1024,
                threads,
            });
            let held = u32::from(threads) * (cache.cache * 3 / 2);
            assert!(whole - held >= 2048 + 32, "{threads}");
        }
    }
}
