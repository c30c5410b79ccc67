//! DPDK as this process has it: started or refused, once; its threads and its pools.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vswitch_api::config;
use vswitch_dpdk::{DeviceArg, Eal, EalConfig, Mempool, MempoolConfig, ThreadGuard};

use super::NicError;

/// Buffers of a pool that has none for every descriptor: enough for any one queue, and the memory of the default
/// configuration has room for three of them.
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
    /// A pool of buffers with this much room, for a port with these receive and transmit queues.
    ///
    /// # Errors
    /// There is no memory for a pool, and no other port has one like it to share.
    pub(super) fn take(
        eal: Eal,
        room: u16,
        queues: (u16, u16),
        descriptors: u16,
        workers: usize,
    ) -> Result<Self, NicError> {
        let wanted = size(room, queues, descriptors, workers);
        let mut pools = POOLS.lock();
        let fits = |pool: &&Arc<Mempool>| pool.config().data_room == room;
        // The list itself holds one reference.
        let idle = |pool: &&Arc<Mempool>| Arc::strong_count(pool) == 1;
        let unused = pools
            .iter()
            .filter(|pool| fits(pool) && idle(pool) && pool.config().count >= wanted.count)
            .min_by_key(|pool| pool.config().count);
        if let Some(pool) = unused {
            return Ok(PoolUse(Arc::clone(pool)));
        }
        match Mempool::new(eal, wanted) {
            Ok(pool) => {
                let pool = Arc::new(pool);
                pools.push(Arc::clone(&pool));
                Ok(PoolUse(pool))
            }
            Err(error) => {
                let shared = pools
                    .iter()
                    .filter(fits)
                    .min_by_key(|pool| Arc::strong_count(pool));
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

/// A buffer for every descriptor and every place in the hands of workers, if that is no more than usual.
fn size(room: u16, (rx, tx): (u16, u16), descriptors: u16, workers: usize) -> MempoolConfig {
    let workers = u16::try_from(workers).unwrap_or(u16::MAX);
    let all = MempoolConfig::sized_for(rx.max(tx), descriptors, workers).count;
    // Larger buffers, fewer of them; but receive queues are filled once at the start.
    let factor = u32::from(room.div_ceil(MempoolConfig::DEFAULT_ROOM)).max(1);
    let filled = u32::from(rx) * u32::from(descriptors);
    MempoolConfig {
        count: all.min((BUFFERS / factor).max(filled + filled / 2)),
        data_room: room,
        node: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_by_queues_and_room() {
        let count = |room, queues, workers| size(room, queues, 1024, workers).count;
        assert_eq!(count(2048, (1, 1), 1), 2048 + 2 * 512);
        // As many as usual, or what fills the receive queues.
        assert_eq!(count(2048, (1, 16), 16), BUFFERS);
        assert_eq!(count(2048, (16, 16), 16), 16 * 1024 * 3 / 2);
        assert_eq!(count(9280, (1, 1), 1), BUFFERS / 5);
        assert_eq!(count(16_384, (1, 1), 1), 1536);
    }
}
