//! The redirection table of a device: which of its receive queues a hash goes to.
//!
//! The device hashes with [`SYMMETRIC_KEY`]: both directions of a flow have one hash, so that they meet on one worker if
//! two ports spread alike. Such a key repeats every 16 bits and is no secret: whoever chooses addresses can aim flows at
//! one bucket, and what he gets is that bucket's place in the table, which moves away from others by load. Guests' queues
//! are not steered by this hash.
//!
//! The table begins even and is the switch's from then on: [`Reta::set`] writes the device's and then its own. How many
//! frames each bucket had is counted by the queues' owners, in one of [`SAMPLE`] bursts, where the device hands on its hash.
//!
//! Limits: tables whose size is a power of two, which is what hash bits can name; others stay as the driver has made them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use vswitch_dpdk::{MbufBurst, PortError, RssKey};
use vswitch_flowtable::toeplitz::{SYMMETRIC_KEY, reta_index};
use vswitch_flowtable::{Indirection, Target};

/// One burst in so many is counted: no power of two, so that it is not always the same flows' turn.
const SAMPLE: u8 = 7;

/// What devices hash with.
pub(super) const KEY: RssKey = RssKey(SYMMETRIC_KEY);

/// A table that can be written.
pub(crate) trait Table: Send {
    /// Has entries name other queues; nothing changes if it fails.
    ///
    /// # Errors
    /// What the device says.
    fn write(&self, entries: &[(u16, u16)]) -> Result<(), PortError>;
}

impl Table for vswitch_dpdk::Reta {
    fn write(&self, entries: &[(u16, u16)]) -> Result<(), PortError> {
        self.write(entries)
    }
}

/// See the module's page.
pub struct Reta {
    /// `None` once the port is closed.
    device: Mutex<Option<Box<dyn Table>>>,
    table: Mutex<Indirection>,
    queues: u16,
    /// By queue, then by bucket; each queue's part has one writer.
    counts: Box<[AtomicU32]>,
    moves: AtomicU64,
    late: AtomicU64,
}

impl Reta {
    /// Takes a device's table over and makes it even. `None` if its size is none that a hash can name.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn start(
        device: impl Table + 'static,
        size: u16,
        queues: u16,
    ) -> Result<Option<Arc<Self>>, PortError> {
        let Some(mut table) = Indirection::of_size(size.into()) else {
            return Ok(None);
        };
        for queue in 0..queues {
            table.add(Target(queue));
        }
        device.write(&entries(&table))?;
        let counts = usize::from(size) * usize::from(queues);
        Ok(Some(Arc::new(Reta {
            device: Mutex::new(Some(Box::new(device))),
            table: Mutex::new(table),
            queues,
            counts: (0..counts).map(|_| AtomicU32::new(0)).collect(),
            moves: AtomicU64::new(0),
            late: AtomicU64::new(0),
        })))
    }

    /// Lets the device go.
    pub(super) fn close(&self) {
        *self.device.lock() = None;
    }

    /// The queue of each bucket.
    pub fn table(&self) -> Vec<u16> {
        let table = self.table.lock();
        entries(&table)
            .into_iter()
            .map(|(_, queue)| queue)
            .collect()
    }

    /// How many buckets each queue has.
    pub fn buckets(&self) -> Vec<u16> {
        let mut buckets = vec![0; self.queues.into()];
        for queue in self.table() {
            if let Some(count) = buckets.get_mut(usize::from(queue)) {
                *count += 1;
            }
        }
        buckets
    }

    /// Frames counted so far, by bucket, whatever queue they came to. It wraps.
    pub fn counted(&self) -> Vec<u32> {
        let size = self.table.lock().buckets();
        let mut sums = vec![0_u32; size];
        for queue in self.counts.chunks_exact(size.max(1)) {
            for (sum, count) in sums.iter_mut().zip(queue) {
                *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
            }
        }
        sums
    }

    /// Gives buckets to a queue: the device's first. False if it refuses or is closed; nothing has changed then.
    pub fn set(&self, buckets: &[u16], queue: u16) -> bool {
        let entries: Vec<_> = buckets.iter().map(|bucket| (*bucket, queue)).collect();
        let device = self.device.lock();
        let Some(device) = device.as_ref() else {
            return false;
        };
        if let Err(error) = device.write(&entries) {
            tracing::warn!(%error, "flows stay on the receive queues they are on");
            return false;
        }
        let mut table = self.table.lock();
        let moved = entries
            .iter()
            .filter_map(|(bucket, queue)| table.set(usize::from(*bucket), Target(*queue)));
        let moved = moved.count() as u64;
        self.moves.fetch_add(moved, Ordering::Relaxed);
        true
    }

    /// A queue was polled again before it was known to be time.
    pub fn was_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// Buckets moved so far, and how often a queue was polled again too soon.
    pub fn moves(&self) -> (u64, u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (get(&self.moves), get(&self.late))
    }

    fn count(&self, queue: u16, hashes: impl Iterator<Item = u32>) {
        let size = self.counts.len() / usize::from(self.queues.max(1));
        let from = size * usize::from(queue);
        let Some(counts) = self.counts.get(from..from + size) else {
            return;
        };
        for hash in hashes {
            if let Some(count) = counts.get(usize::from(reta_index(hash, size as u16))) {
                // One writer.
                count.store(
                    count.load(Ordering::Relaxed).wrapping_add(1),
                    Ordering::Relaxed,
                );
            }
        }
    }
}

/// The table as pairs of entry and queue.
fn entries(table: &Indirection) -> Vec<(u16, u16)> {
    let queues = (0..table.buckets()).filter_map(|bucket| table.target(bucket));
    (0..).zip(queues.map(|target| target.0)).collect()
}

/// Counts what comes to one queue.
pub(super) struct Sampler {
    reta: Arc<Reta>,
    queue: u16,
    next: u8,
}

impl Sampler {
    pub(super) fn new(reta: Arc<Reta>, queue: u16) -> Self {
        Sampler {
            reta,
            queue,
            next: SAMPLE,
        }
    }

    /// A burst as it was received.
    #[inline]
    pub(super) fn see(&mut self, mbufs: &MbufBurst) {
        self.next -= 1;
        if self.next == 0 {
            self.next = SAMPLE;
            let hashes = mbufs.iter().filter_map(vswitch_dpdk::Mbuf::rss_hash);
            self.reta.count(self.queue, hashes);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vswitch_flowtable::toeplitz::Toeplitz;
    use vswitch_flowtable::{Addresses, FlowKey};

    /// A device's table in memory.
    #[derive(Clone, Default)]
    pub(crate) struct Soft(pub(crate) Arc<Mutex<Vec<u16>>>);

    impl Table for Soft {
        fn write(&self, entries: &[(u16, u16)]) -> Result<(), PortError> {
            let mut table = self.0.lock();
            for (entry, queue) in entries {
                if table.len() <= usize::from(*entry) {
                    table.resize(usize::from(*entry) + 1, 0);
                }
                table[usize::from(*entry)] = *queue;
            }
            Ok(())
        }
    }

    #[test]
    fn even_at_the_start_whatever_the_size() {
        for (size, queues, wanted) in [
            (128, 4, vec![32; 4]),
            (512, 3, vec![170, 171, 171]),
            (64, 1, vec![64]),
        ] {
            let device = Soft::default();
            let reta = Reta::start(device.clone(), size, queues).unwrap().unwrap();
            let mut buckets = reta.buckets();
            buckets.sort_unstable();
            assert_eq!(buckets, wanted);
            assert_eq!(*device.0.lock(), reta.table());
        }
        assert!(Reta::start(Soft::default(), 96, 2).unwrap().is_none());
    }

    #[test]
    fn device_and_table_change_together() {
        let device = Soft::default();
        let reta = Reta::start(device.clone(), 128, 2).unwrap().unwrap();
        let mine: Vec<u16> = (0..128)
            .filter(|b| reta.table()[usize::from(*b)] == 0)
            .collect();
        assert!(reta.set(&mine[..5], 1));
        assert_eq!(reta.buckets(), [59, 69]);
        assert_eq!(*device.0.lock(), reta.table());
        assert_eq!(reta.moves(), (5, 0));
        reta.close();
        assert!(!reta.set(&mine[5..], 1));
        assert_eq!(reta.buckets(), [59, 69]);
    }

    #[test]
    fn hash_and_table_predict_the_queue_of_both_directions() {
        let device = Soft::default();
        let reta = Reta::start(device.clone(), 128, 4).unwrap().unwrap();
        let rss = Toeplitz::new(KEY.0);
        let mut seen = [0_u32; 4];
        let mut hashes = Vec::new();
        for n in 0..4000_u16 {
            let [high, low] = n.to_be_bytes();
            let flow = FlowKey {
                vlan: 0,
                addresses: Addresses::V4 {
                    src: [10, 1, high, low],
                    dst: [10, 2, low, 7],
                },
                protocol: 17,
                ports: Some((40_000 + n, 53)),
            };
            let queue = |flow: &FlowKey| {
                let hash = rss.flow(flow).unwrap();
                device.0.lock()[usize::from(reta_index(hash, 128))]
            };
            assert_eq!(queue(&flow), queue(&flow.reversed()));
            seen[usize::from(queue(&flow))] += 1;
            hashes.push(rss.flow(&flow).unwrap());
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");

        // What is counted is what the table sends there.
        for (queue, wanted) in (0..4).zip(seen) {
            let of_queue = |hash: &&u32| reta.table()[(**hash & 127) as usize] == queue;
            reta.count(queue, hashes.iter().filter(of_queue).copied());
            let counted = reta.counted();
            let table = reta.table();
            let own = table.iter().zip(&counted).filter(|(q, _)| **q == queue);
            assert_eq!(own.map(|(_, n)| n).sum::<u32>(), wanted);
        }
        assert_eq!(reta.counted().iter().sum::<u32>(), 4000);
    }
}
