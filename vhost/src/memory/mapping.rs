//! One range of a front-end's file, mapped.

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::fs::{StatFs, fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::Span;
use super::guard::{Guarded, MAX_MAPPINGS};
use super::numa;

/// `f_type` of a file on huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Why a range of a file cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing to map.
    #[error("a memory region of size 0 was announced; the front-end must name its size")]
    Empty,
    /// The range wraps around or does not fit this machine's addresses.
    #[error("a memory region of {size:#x} bytes at file offset {offset:#x} wraps around")]
    Wraps {
        /// Offset in the file.
        offset: u64,
        /// Bytes announced.
        size: u64,
    },
    /// The file is too short.
    #[error(
        "a memory region reaches to {end:#x} of its file, which has {file:#x} bytes; share the whole memory file"
    )]
    BeyondFile {
        /// Where the region ends in the file.
        end: u64,
        /// Length of the file.
        file: u64,
    },
    /// The process guards as many mappings as it can.
    #[error(
        "all {MAX_MAPPINGS} memory mappings of the switch are in use; detach guests or give them fewer regions"
    )]
    TooMany,
    /// The kernel refused.
    #[error(
        "mapping a memory region failed; it must be a shared, writable file (memfd or hugepages)"
    )]
    System(#[from] io::Error),
}

/// A shared, writable mapping of a file range, guarded against a shrinking file, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// What was mapped: whole pages of the file.
    start: NonNull<u8>,
    mapped: usize,
    /// Where in it the announced range lies.
    lead: usize,
    len: usize,
    /// What [`numa::tells_residence`] said of the file.
    tells_residence: bool,
    /// Left before unmapping, in `drop`.
    guarded: Option<Guarded>,
}

// SAFETY: the mapping belongs to nobody in particular: it is shared memory that is only touched through raw copies and
// atomics, and unmapped once, by the last holder.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(file: impl AsFd, offset: u64, size: u64) -> Result<Self, MapError> {
        if size == 0 {
            return Err(MapError::Empty);
        }
        let wraps = MapError::Wraps { offset, size };
        let Some(end) = offset
            .checked_add(size)
            .filter(|&end| end <= i64::MAX as u64)
        else {
            return Err(wraps);
        };
        let length = u64::try_from(fstat(&file).map_err(io::Error::from)?.st_size).unwrap_or(0);
        if end > length {
            return Err(MapError::BeyondFile { end, file: length });
        }
        // A front-end may cut a region anywhere, but a file is mapped in whole pages, huge ones on hugetlbfs.
        let system = fstatfs(&file).map_err(io::Error::from)?;
        let page = page_size(&system)?;
        let lead = offset % page;
        let (Ok(mapped), Ok(lead_len), Ok(len)) = (
            usize::try_from((lead + size).next_multiple_of(page)),
            usize::try_from(lead),
            usize::try_from(size),
        ) else {
            return Err(wraps);
        };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                offset - lead,
            )
        }
        .map_err(io::Error::from)?;
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(MapError::System(io::ErrorKind::AddrNotAvailable.into()));
        };
        let mut mapping = Self {
            start,
            mapped,
            lead: lead_len,
            len,
            tells_residence: numa::tells_residence(&file, &system),
            guarded: None,
        };
        // A core dump of the switch must not carry its guests' memory. Advice only: a kernel without it changes nothing.
        // SAFETY: the range was mapped just above, and this advice does not change its contents.
        let _ =
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), mapped, Advice::LinuxDontDump) };
        mapping.guarded =
            Some(Guarded::enter(start.as_ptr() as usize, mapped).ok_or(MapError::TooMany)?);
        Ok(mapping)
    }

    /// The announced range. Valid while the mapping is.
    #[inline]
    pub(super) fn span(&self) -> Span {
        // SAFETY: `lead + len` is at most `mapped` by construction, and the mapping is readable and writable.
        unsafe { Span::new(self.start.add(self.lead), self.len) }
    }

    /// Which of its pages are there can be asked, and those entered in our tables.
    pub(super) fn tells_residence(&self) -> bool {
        self.tells_residence
    }

    pub(super) fn poisoned(&self) -> bool {
        self.guarded.as_ref().is_some_and(Guarded::poisoned)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guarded = None;
        // SAFETY: this is our mapping, whole; every span and piece into it has ended with its holder.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok());
    }
}

fn page_size(system: &StatFs) -> io::Result<u64> {
    let page = if system.f_type as u64 == HUGETLBFS_MAGIC {
        system.f_bsize as u64
    } else {
        rustix::param::page_size() as u64
    };
    if page.is_power_of_two() {
        Ok(page)
    } else {
        Err(io::Error::other(
            "the memory file's page size is not a power of two",
        ))
    }
}
