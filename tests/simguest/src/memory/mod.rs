//! Guest memory: memory files of our own, mapped shared, with an allocator and means to break things.
//!
//! A [`Memory`] is a list of regions, each a range of guest-physical addresses backed by (part of) a memfd. The region
//! list is what the vhost-user memory table is made of. The allocator only goes forward: rings and buffers are laid out
//! once at set-up. A driver gives back everything at once by allocating a new `Memory`.
//!
//! With several regions allocations rotate among them, so that rings and buffers of one queue lie in different slots.
//! Limits: 512 regions; an allocation never straddles regions (use [`Memory::write`] on guest addresses for tests that
//! want a straddling buffer: it crosses adjacent regions).
//!
//! Fault injection is safe code: any bytes can be written anywhere at any time from any thread, and a region's file can
//! be handed over read-only or truncated. After [`Memory::truncate`] *this* process must not touch the lost pages either:
//! the kernel would kill it with SIGBUS.

mod view;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use view::Mapping;
pub use view::{Desc, Plain, View, Window};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

/// What goes wrong when guest memory is set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A memory file could not be made or mapped.
    #[error("cannot make guest memory of {bytes} bytes: {source}")]
    Create {
        /// Size asked for.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nothing is left.
    #[error(
        "guest memory is used up: {bytes} bytes do not fit into any of {regions} regions, ask for a larger layout"
    )]
    Exhausted {
        /// Size asked for.
        bytes: usize,
        /// Number of regions looked at.
        regions: usize,
    },
    /// Two regions claim the same guest addresses.
    #[error("guest region at {guest:#x} overlaps another one")]
    Overlap {
        /// Guest-physical start of the new region.
        guest: u64,
    },
    /// No region starts there.
    #[error("no guest region starts at {guest:#x}")]
    NoRegion {
        /// The guest-physical address asked for.
        guest: u64,
    },
}

/// One region to be made.
#[derive(Clone, Copy, Debug)]
pub struct RegionSpec {
    /// Guest-physical start.
    pub guest: u64,
    /// Bytes, rounded up to pages.
    pub size: u64,
    /// Take it from the file shared by all such regions (then `mmap_offset` is not zero), else from one of its own.
    pub shared_file: bool,
    /// Hand the peer a descriptor that cannot be mapped writable.
    pub read_only: bool,
}

/// How guest memory is cut.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The regions, in order.
    pub regions: Vec<RegionSpec>,
    /// Back it with huge pages (fails if the machine has none free).
    pub huge: bool,
    /// Take ordinary pages if there are not enough huge ones.
    pub or_ordinary: bool,
}

impl Layout {
    /// One region at guest address 0 from one file.
    pub fn single(size: u64) -> Self {
        let spec = RegionSpec {
            guest: 0,
            size,
            shared_file: false,
            read_only: false,
        };
        Self {
            regions: vec![spec],
            huge: false,
            or_ordinary: false,
        }
    }

    /// `count` adjacent regions of `size` bytes each, cut from one file: non-zero file offsets, user addresses that are
    /// not adjacent although guest addresses are.
    pub fn adjacent(count: usize, size: u64) -> Self {
        let size = size.next_multiple_of(PAGE);
        let regions = (0..count as u64)
            .map(|i| RegionSpec {
                guest: i * size,
                size,
                shared_file: true,
                read_only: false,
            })
            .collect();
        Self {
            regions,
            huge: false,
            or_ordinary: false,
        }
    }

    /// `count` regions of `size` bytes each with a file each and holes of 1 GiB between them.
    pub fn scattered(count: usize, size: u64) -> Self {
        let step = (1u64 << 30) + size.next_multiple_of(PAGE);
        let regions = (0..count as u64)
            .map(|i| RegionSpec {
                guest: i * step,
                size,
                shared_file: false,
                read_only: false,
            })
            .collect();
        Self {
            regions,
            huge: false,
            or_ordinary: false,
        }
    }

    /// The same layout on huge pages.
    #[must_use]
    pub fn huge(mut self) -> Self {
        self.huge = true;
        self
    }

    /// The same layout on huge pages if enough are free, else on ordinary ones.
    #[must_use]
    pub fn huge_if_free(mut self) -> Self {
        self.or_ordinary = true;
        self.huge()
    }
}

/// One mapped region, as the memory table names it.
#[derive(Clone)]
pub struct Region {
    spec: RegionSpec,
    file_offset: u64,
    file: Arc<OwnedFd>,
    peer_file: Arc<OwnedFd>,
    mapping: Arc<Mapping>,
}

impl Region {
    /// Guest-physical start.
    pub fn guest(&self) -> u64 {
        self.spec.guest
    }
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.spec.size
    }
    /// Address in this process, which is what ring addresses and the memory table call "user".
    pub fn user(&self) -> u64 {
        self.mapping.address()
    }
    /// Where in the file the region starts.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }
    /// The descriptor to hand to the back-end.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.peer_file.as_fd()
    }
    fn end(&self) -> u64 {
        self.spec.guest + self.spec.size
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Region(guest {:#x}, {:#x} bytes)",
            self.guest(),
            self.size()
        )
    }
}

/// Bytes allocated in guest memory: where the guest sees them and a window to them.
#[derive(Clone, Debug)]
pub struct Block {
    /// Guest-physical address of the first byte.
    pub guest: u64,
    /// The bytes.
    pub view: View<u8>,
}

struct Slot {
    region: Region,
    used: u64,
}

struct Inner {
    slots: Vec<Slot>,
    turn: usize,
    huge: bool,
}

/// The memory of one guest. Cloning shares it.
#[derive(Clone)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Memory").field(&self.regions()).finish()
    }
}

impl Memory {
    /// Makes and maps the memory files.
    pub fn new(layout: &Layout) -> Result<Self, MemoryError> {
        match Self::map(layout) {
            Err(MemoryError::Create { .. }) if layout.huge && layout.or_ordinary => {
                Self::map(&Layout {
                    huge: false,
                    ..layout.clone()
                })
            }
            made => made,
        }
    }

    /// Whether it lies on huge pages.
    pub fn is_huge(&self) -> bool {
        self.lock().huge
    }

    fn map(layout: &Layout) -> Result<Self, MemoryError> {
        let inner = Inner {
            slots: Vec::new(),
            turn: 0,
            huge: layout.huge,
        };
        let memory = Self {
            inner: Arc::new(Mutex::new(inner)),
        };
        let shared_size: u64 = layout
            .regions
            .iter()
            .filter(|r| r.shared_file)
            .map(|r| round(r.size, layout.huge))
            .sum();
        let shared = if shared_size > 0 {
            Some(Arc::new(make_file(shared_size, layout.huge)?))
        } else {
            None
        };
        let mut offset = 0;
        for spec in &layout.regions {
            match &shared {
                Some(file) if spec.shared_file => {
                    memory.insert(*spec, Arc::clone(file), offset)?;
                    offset += round(spec.size, layout.huge);
                }
                _ => {
                    memory.add(*spec)?;
                }
            }
        }
        Ok(memory)
    }

    /// Adds a region with a file of its own (memory hot-plug). The back-end is told by the front-end, not here.
    pub fn add(&self, spec: RegionSpec) -> Result<Region, MemoryError> {
        let huge = self.lock().huge;
        let file = Arc::new(make_file(round(spec.size, huge), huge)?);
        self.insert(spec, file, 0)
    }

    /// Takes the region that starts at `guest` out of the list. Windows into it stay mapped as long as they live.
    pub fn remove(&self, guest: u64) -> Result<Region, MemoryError> {
        let mut inner = self.lock();
        let at = inner
            .slots
            .iter()
            .position(|s| s.region.guest() == guest)
            .ok_or(MemoryError::NoRegion { guest })?;
        Ok(inner.slots.remove(at).region)
    }

    /// The regions as they are now.
    pub fn regions(&self) -> Vec<Region> {
        self.lock().slots.iter().map(|s| s.region.clone()).collect()
    }

    /// Allocates zeroed bytes aligned to `align` (a power of two), in the regions by turns. The first page of guest
    /// memory is never handed out, so that address 0 is always a mistake.
    pub fn alloc(&self, bytes: usize, align: u64) -> Result<Block, MemoryError> {
        let mut inner = self.lock();
        let count = inner.slots.len();
        for i in 0..count {
            let at = (inner.turn + i) % count;
            let slot = &mut inner.slots[at];
            let floor = if slot.region.guest() == 0 { PAGE } else { 0 };
            let start = slot.used.max(floor).next_multiple_of(align.max(1));
            let end = start + bytes as u64;
            if end > slot.region.size() || slot.region.spec.read_only {
                continue;
            }
            let Some(view) = View::new(&slot.region.mapping, start as usize, bytes) else {
                continue;
            };
            slot.used = end;
            let guest = slot.region.guest() + start;
            inner.turn = at + 1;
            return Ok(Block { guest, view });
        }
        Err(MemoryError::Exhausted {
            bytes,
            regions: count,
        })
    }

    /// Writes bytes at a guest-physical address, across adjacent regions; returns how many lay in mapped memory.
    pub fn write(&self, guest: u64, bytes: &[u8]) -> usize {
        self.walk(guest, bytes.len(), |view, done, count| {
            view.copy_in(0, &bytes[done..done + count]);
        })
    }

    /// Reads bytes at a guest-physical address, across adjacent regions; returns how many lay in mapped memory.
    pub fn read(&self, guest: u64, to: &mut [u8]) -> usize {
        let len = to.len();
        self.walk(guest, len, |view, done, count| {
            view.copy_out(0, &mut to[done..done + count]);
        })
    }

    /// A window to bytes at a guest-physical address; None if they are not in one region.
    pub fn view(&self, guest: u64, len: usize) -> Option<View<u8>> {
        let inner = self.lock();
        let slot = inner
            .slots
            .iter()
            .find(|s| (s.region.guest()..s.region.end()).contains(&guest))?;
        View::new(
            &slot.region.mapping,
            (guest - slot.region.guest()) as usize,
            len,
        )
    }

    /// Shrinks the file behind the region at `guest` to `bytes` from the file's start, under everybody's mapping.
    /// Touching the lost pages afterwards kills whoever does it, this process included.
    pub fn truncate(&self, guest: u64, bytes: u64) -> Result<(), MemoryError> {
        let inner = self.lock();
        let slot = inner
            .slots
            .iter()
            .find(|s| s.region.guest() == guest)
            .ok_or(MemoryError::NoRegion { guest })?;
        ftruncate(&*slot.region.file, bytes).map_err(|e| MemoryError::Create {
            bytes,
            source: e.into(),
        })
    }

    /// Every region as guest address and window, for resolving addresses without the lock.
    pub fn windows(&self) -> Vec<(u64, View<u8>)> {
        self.lock()
            .slots
            .iter()
            .filter_map(|s| {
                let view = View::new(&s.region.mapping, 0, s.region.size() as usize)?;
                Some((s.region.guest(), view))
            })
            .collect()
    }

    fn walk(&self, guest: u64, len: usize, mut each: impl FnMut(&View<u8>, usize, usize)) -> usize {
        let inner = self.lock();
        let mut done = 0;
        while done < len {
            let Some(at) = guest.checked_add(done as u64) else {
                break;
            };
            let Some(slot) = inner
                .slots
                .iter()
                .find(|s| (s.region.guest()..s.region.end()).contains(&at))
            else {
                break;
            };
            let count = (len - done).min((slot.region.end() - at) as usize);
            let offset = (at - slot.region.guest()) as usize;
            let Some(view) = View::new(&slot.region.mapping, offset, count) else {
                break;
            };
            each(&view, done, count);
            done += count;
        }
        done
    }

    fn insert(
        &self,
        mut spec: RegionSpec,
        file: Arc<OwnedFd>,
        file_offset: u64,
    ) -> Result<Region, MemoryError> {
        let mut inner = self.lock();
        spec.size = round(spec.size, inner.huge);
        let end = spec.guest.checked_add(spec.size);
        let overlaps =
            |s: &Slot| end.is_none_or(|end| spec.guest < s.region.end() && s.region.guest() < end);
        if end.is_none() || inner.slots.iter().any(overlaps) {
            return Err(MemoryError::Overlap { guest: spec.guest });
        }
        let failed = |source| MemoryError::Create {
            bytes: spec.size,
            source,
        };
        let mapping =
            Mapping::new(file.as_fd(), file_offset, spec.size as usize).map_err(failed)?;
        let peer_file = if spec.read_only {
            Arc::new(reopen_read_only(&file).map_err(failed)?)
        } else {
            Arc::clone(&file)
        };
        let region = Region {
            spec,
            file_offset,
            file,
            peer_file,
            mapping,
        };
        inner.slots.push(Slot {
            region: region.clone(),
            used: 0,
        });
        Ok(region)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn round(size: u64, huge: bool) -> u64 {
    size.max(1).next_multiple_of(if huge { HUGE } else { PAGE })
}

fn make_file(bytes: u64, huge: bool) -> Result<OwnedFd, MemoryError> {
    let flags = MemfdFlags::CLOEXEC
        | if huge {
            MemfdFlags::HUGETLB
        } else {
            MemfdFlags::empty()
        };
    let failed = |e: rustix::io::Errno| MemoryError::Create {
        bytes,
        source: e.into(),
    };
    let file = memfd_create("simguest", flags).map_err(failed)?;
    ftruncate(&file, bytes).map_err(failed)?;
    Ok(file)
}

fn reopen_read_only(file: &OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_disjoint_aligned_and_rotate() {
        let memory = Memory::new(&Layout::adjacent(3, 64 << 10)).unwrap();
        let blocks: Vec<_> = (0..9).map(|_| memory.alloc(1000, 256).unwrap()).collect();
        for (i, a) in blocks.iter().enumerate() {
            assert_eq!(a.guest % 256, 0);
            assert!(a.guest >= PAGE);
            for b in &blocks[i + 1..] {
                assert!(a.guest + 1000 <= b.guest || b.guest + 1000 <= a.guest);
            }
        }
        assert_ne!(blocks[0].guest / (64 << 10), blocks[1].guest / (64 << 10));
        assert!(matches!(
            memory.alloc(64 << 10, 1),
            Err(MemoryError::Exhausted { .. })
        ));
    }

    #[test]
    fn raw_writes_cross_adjacent_regions_and_stop_at_the_end() {
        let memory = Memory::new(&Layout::adjacent(2, 8192)).unwrap();
        let bytes: Vec<u8> = (0..100).collect();
        assert_eq!(memory.write(8192 - 50, &bytes), 100);
        let mut back = [0; 100];
        assert_eq!(memory.read(8192 - 50, &mut back), 100);
        assert_eq!(&back[..], &bytes[..]);
        assert_eq!(memory.write(16384 - 10, &bytes), 10);
        assert_eq!(memory.write(u64::MAX - 1, &bytes), 0);
        assert!(memory.view(8192 - 50, 100).is_none());
    }

    #[test]
    fn regions_come_and_go() {
        let memory = Memory::new(&Layout::single(8192)).unwrap();
        let spec = RegionSpec {
            guest: 4096,
            size: 4096,
            shared_file: false,
            read_only: false,
        };
        assert!(matches!(memory.add(spec), Err(MemoryError::Overlap { .. })));
        let spec = RegionSpec {
            guest: 1 << 32,
            ..spec
        };
        memory.add(spec).unwrap();
        assert_eq!(memory.write((1 << 32) + 10, b"x"), 1);
        memory.remove(1 << 32).unwrap();
        assert_eq!(memory.write((1 << 32) + 10, b"x"), 0);
        assert!(matches!(
            memory.remove(1 << 32),
            Err(MemoryError::NoRegion { .. })
        ));
    }

    #[test]
    fn a_read_only_region_cannot_be_mapped_writable_by_the_peer() {
        let memory = Memory::new(&Layout::single(8192)).unwrap();
        let spec = RegionSpec {
            guest: 1 << 32,
            size: 4096,
            shared_file: false,
            read_only: true,
        };
        let region = memory.add(spec).unwrap();
        assert!(Mapping::new(region.fd(), 0, 4096).is_err());
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn a_view_does_not_reach_outside() {
        let memory = Memory::new(&Layout::single(8192)).unwrap();
        let block = memory.alloc(16, 16).unwrap();
        let words: View<u16> = block.view.cast(0, 8).unwrap();
        words.load(8);
    }
}
