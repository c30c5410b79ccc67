//! The table of a guest's memory regions, and looking addresses up in it.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::Span;
use super::mapping::{MapError, Mapping};

/// Regions one guest may have: what QEMU can plug in at most.
pub const MAX_REGIONS: usize = 509;

/// Bytes one guest may share, over all regions, so that one front-end cannot use up the process's addresses.
pub const MAX_BYTES: u64 = 8 << 40;

/// An address as the guest sees it: what descriptors hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct GuestAddr(pub u64);

/// An address as the front-end sees it: what names the parts of a ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct UserAddr(pub u64);

/// A region as the front-end announces it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionSpec {
    /// First address, as the guest sees it.
    pub guest: GuestAddr,
    /// Bytes.
    pub size: u64,
    /// First address, as the front-end sees it.
    pub user: UserAddr,
    /// Where the region begins in its file.
    pub offset: u64,
}

/// Why a table of regions cannot be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file range cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Addresses wrap around.
    #[error(
        "a memory region of {:#x} bytes at guest address {:#x}, front-end address {:#x} wraps around",
        .0.size, .0.guest.0, .0.user.0
    )]
    Wraps(RegionSpec),
    /// Two regions claim the same guest addresses.
    #[error(
        "a memory region of {:#x} bytes at guest address {:#x} overlaps another; remove that one first",
        .0.size, .0.guest.0
    )]
    Overlaps(RegionSpec),
    /// The table is full.
    #[error("the guest already has {MAX_REGIONS} memory regions; remove one first")]
    TooMany,
    /// The table spans too much.
    #[error("the guest would share more than {MAX_BYTES:#x} bytes of memory, which is the limit")]
    TooMuch,
    /// There is no such region to remove.
    #[error(
        "there is no memory region of {:#x} bytes at guest address {:#x}, front-end address {:#x} to remove",
        .0.size, .0.guest.0, .0.user.0
    )]
    Unknown(RegionSpec),
}

/// A guest range that no region holds, or not all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unmapped;

/// One region, mapped.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    mapping: Mapping,
}

impl Region {
    /// Maps the file range that `spec` names. The file may be closed afterwards.
    ///
    /// Its file system is asked about it: a stranger's file is to be judged before ([`MemoryFiles`](super::MemoryFiles)).
    ///
    /// # Errors
    ///
    /// [`MemoryError::Wraps`] and [`MemoryError::Map`].
    pub fn map(spec: RegionSpec, file: impl AsFd) -> Result<Self, MemoryError> {
        if spec.guest.0.checked_add(spec.size).is_none()
            || spec.user.0.checked_add(spec.size).is_none()
        {
            return Err(MemoryError::Wraps(spec));
        }
        let mapping = Mapping::new(file, spec.offset, spec.size)?;
        Ok(Self { spec, mapping })
    }

    /// As it was announced.
    #[must_use]
    pub fn spec(&self) -> RegionSpec {
        self.spec
    }

    /// Whether the file was cut short under the mapping, and its bytes are gone.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }

    pub(super) fn span(&self) -> Span {
        self.mapping.span()
    }

    pub(super) fn tells_residence(&self) -> bool {
        self.mapping.tells_residence()
    }

    /// Guest addresses are below this.
    fn end(&self) -> u64 {
        // Checked in `map`.
        self.spec.guest.0.saturating_add(self.spec.size)
    }
}

/// A guest's memory: regions sorted by guest address, disjoint there. Immutable; changes make a new table that shares the
/// regions which stay.
///
/// Front-end addresses may overlap (one file may appear twice in a guest); the region with the lowest guest address then
/// stands for all.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

/// The region of the last lookup, remembered by whoever looks up: nearly every address of a guest is in the same one.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    guest: u64,
    span: Option<Span>,
}

impl Window {
    pub(crate) const fn new() -> Self {
        Self {
            guest: 0,
            span: None,
        }
    }

    /// The range, if it lies within the region remembered.
    #[inline]
    fn get(&self, addr: u64, len: usize) -> Option<Span> {
        let span = self.span?;
        let offset = usize::try_from(addr.wrapping_sub(self.guest)).ok()?;
        (offset < span.len() && len <= span.len() - offset).then(|| span.skip(offset).first(len))
    }
}

impl GuestMemory {
    /// A guest that has shared nothing yet.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// This table and one more region.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Overlaps`], [`MemoryError::TooMany`] and [`MemoryError::TooMuch`].
    pub fn with(&self, region: Arc<Region>) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        if self.bytes().saturating_add(region.spec.size) > MAX_BYTES {
            return Err(MemoryError::TooMuch);
        }
        let at = self
            .regions
            .partition_point(|other| other.spec.guest < region.spec.guest);
        let below = at.checked_sub(1).and_then(|at| self.regions.get(at));
        if below.is_some_and(|other| other.end() > region.spec.guest.0)
            || self
                .regions
                .get(at)
                .is_some_and(|other| other.spec.guest.0 < region.end())
        {
            return Err(MemoryError::Overlaps(region.spec));
        }
        let mut regions = Vec::with_capacity(self.regions.len() + 1);
        regions.extend_from_slice(&self.regions[..at]);
        regions.push(region);
        regions.extend_from_slice(&self.regions[at..]);
        Ok(Self { regions })
    }

    /// This table without the region of these addresses and this size; its file offset is not compared.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Unknown`].
    pub fn without(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let same = |region: &Arc<Region>| {
            region.spec
                == RegionSpec {
                    offset: region.spec.offset,
                    ..spec
                }
        };
        let at = self.regions.iter().position(same);
        let Some(at) = at else {
            return Err(MemoryError::Unknown(spec));
        };
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self { regions })
    }

    /// The regions, by rising guest address.
    #[must_use]
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Bytes shared, over all regions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions
            .iter()
            .fold(0, |sum, region| sum.saturating_add(region.spec.size))
    }

    /// Whether any region's bytes are gone.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.poisoned())
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Unknown`] if some of the range is not shared; nothing useful is in `to` then.
    pub fn read(&self, from: GuestAddr, to: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.resolve_each(from, to.len(), |span| {
            // SAFETY: `self` keeps its regions mapped.
            done += unsafe { span.read(&mut to[done..]) };
            Ok(())
        })
        .map_err(|Unmapped| {
            MemoryError::Unknown(RegionSpec {
                guest: from,
                size: to.len() as u64,
                ..RegionSpec::default()
            })
        })
    }

    /// The range as one piece, if one region holds all of it.
    #[inline]
    pub(crate) fn resolve(&self, window: &mut Window, addr: GuestAddr, len: usize) -> Option<Span> {
        if let Some(span) = window.get(addr.0, len) {
            return Some(span);
        }
        let region = self.region_of(addr)?;
        *window = Window {
            guest: region.spec.guest.0,
            span: Some(region.mapping.span()),
        };
        window.get(addr.0, len)
    }

    /// The range as pieces, one per region it touches, in order. Empty ranges have none.
    ///
    /// # Errors
    ///
    /// [`Unmapped`] as its own error type's value, or what `each` says.
    pub(crate) fn resolve_each<E: From<Unmapped>>(
        &self,
        addr: GuestAddr,
        len: usize,
        mut each: impl FnMut(Span) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut left) = (addr.0, len);
        while left > 0 {
            let region = self.region_of(GuestAddr(at)).ok_or(Unmapped)?;
            let offset = usize::try_from(at - region.spec.guest.0).map_err(|_| Unmapped)?;
            let span = region.mapping.span().skip(offset).first(left);
            each(span)?;
            left -= span.len();
            // A region's end does not wrap (checked in `map`), so neither does an address within it or just past it.
            at += span.len() as u64;
        }
        Ok(())
    }

    /// The range that the front-end calls `addr`, if one region holds all of it.
    pub(crate) fn resolve_user(&self, addr: UserAddr, len: usize) -> Option<Span> {
        self.regions.iter().find_map(|region| {
            let offset = usize::try_from(addr.0.checked_sub(region.spec.user.0)?).ok()?;
            let span = region.mapping.span();
            (offset < span.len() && len <= span.len() - offset)
                .then(|| span.skip(offset).first(len))
        })
    }

    #[inline]
    fn region_of(&self, addr: GuestAddr) -> Option<&Region> {
        let above = self
            .regions
            .partition_point(|region| region.spec.guest <= addr);
        let region = self.regions.get(above.checked_sub(1)?)?;
        (addr.0 < region.end()).then_some(region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn file(len: u64) -> OwnedFd {
        let fd = rustix::fs::memfd_create("table", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        fd
    }

    fn spec(guest: u64, size: u64, user: u64, offset: u64) -> RegionSpec {
        RegionSpec {
            guest: GuestAddr(guest),
            size,
            user: UserAddr(user),
            offset,
        }
    }

    fn map(spec: RegionSpec) -> Arc<Region> {
        Arc::new(Region::map(spec, file(0x10_0000)).unwrap())
    }

    /// Two adjacent regions, a hole of one page, a third.
    fn memory() -> GuestMemory {
        GuestMemory::empty()
            .with(map(spec(0x3000, 0x1000, 0x9000, 0)))
            .and_then(|memory| memory.with(map(spec(0x0000, 0x1000, 0x5000, 0))))
            .and_then(|memory| memory.with(map(spec(0x1000, 0x1000, 0x7000, 0))))
            .unwrap()
    }

    fn cuts(memory: &GuestMemory, addr: u64, len: usize) -> Result<Vec<usize>, Unmapped> {
        let mut cuts = Vec::new();
        memory.resolve_each(GuestAddr(addr), len, |span| {
            cuts.push(span.len());
            Ok(())
        })?;
        Ok(cuts)
    }

    #[test]
    fn ranges_are_cut_where_regions_meet_and_refused_where_they_end() {
        let memory = memory();
        assert_eq!(cuts(&memory, 0x10, 0x20), Ok(vec![0x20]));
        assert_eq!(cuts(&memory, 0xff0, 0x20), Ok(vec![0x10, 0x10]));
        assert_eq!(cuts(&memory, 0x0, 0x2000), Ok(vec![0x1000, 0x1000]));
        assert_eq!(cuts(&memory, 0x0, 0x2001), Err(Unmapped), "into the hole");
        assert_eq!(cuts(&memory, 0x2000, 1), Err(Unmapped), "in the hole");
        assert_eq!(cuts(&memory, 0x3fff, 1), Ok(vec![1]));
        assert_eq!(cuts(&memory, 0x3fff, 2), Err(Unmapped), "past the end");
        assert_eq!(cuts(&memory, u64::MAX, 2), Err(Unmapped), "wrapping");
        assert_eq!(cuts(&memory, 0x3000, usize::MAX), Err(Unmapped));
        assert_eq!(cuts(&memory, u64::MAX, 0), Ok(vec![]), "empty is nowhere");
    }

    #[test]
    fn one_piece_or_none_whatever_was_looked_up_before() {
        let memory = memory();
        let mut window = Window::new();
        for addr in [0u64, 0x1000, 0x3000, 0x10] {
            let span = memory.resolve(&mut window, GuestAddr(addr), 0x10).unwrap();
            assert_eq!(span.len(), 0x10);
            for (addr, len) in [
                (0xff0, 0x11),
                (0x2000, 1),
                (0x4000, 0),
                (u64::MAX, 1),
                (0x3000, usize::MAX),
            ] {
                assert!(memory.resolve(&mut window, GuestAddr(addr), len).is_none());
            }
        }
    }

    #[test]
    fn front_end_addresses_lead_to_the_same_bytes() {
        let memory = memory();
        let mut window = Window::new();
        let by_guest = memory.resolve(&mut window, GuestAddr(0x1010), 4).unwrap();
        let by_user = memory.resolve_user(UserAddr(0x7010), 4).unwrap();
        assert_eq!(by_guest.as_ptr(), by_user.as_ptr());
        assert!(memory.resolve_user(UserAddr(0x7ffd), 4).is_none());
        assert!(memory.resolve_user(UserAddr(0x8000), 1).is_none());
        assert!(memory.resolve_user(UserAddr(0), 1).is_none());
        assert!(memory.resolve_user(UserAddr(u64::MAX), 1).is_none());
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let fd = file(0x4000);
        let refuse = |spec| Region::map(spec, &fd).unwrap_err();
        use MapError as M;
        use MemoryError as E;
        assert!(matches!(refuse(spec(0, 0, 0, 0)), E::Map(M::Empty)));
        assert!(matches!(
            refuse(spec(0, 0x4001, 0, 0)),
            E::Map(M::BeyondFile { .. })
        ));
        assert!(matches!(
            refuse(spec(0, 0x1000, 0, 0x3001)),
            E::Map(M::BeyondFile { .. })
        ));
        assert!(matches!(
            refuse(spec(0, 0x1000, 0, u64::MAX)),
            E::Map(M::Wraps { .. })
        ));
        assert!(matches!(
            refuse(spec(0, 0x1000, 0, 1 << 63)),
            E::Map(M::Wraps { .. })
        ));
        assert!(matches!(
            refuse(spec(0, u64::MAX, 0, 0)),
            E::Map(M::Wraps { .. })
        ));
        assert!(matches!(refuse(spec(u64::MAX, 0x1000, 0, 0)), E::Wraps(_)));
        assert!(matches!(refuse(spec(0, 0x1000, u64::MAX, 0)), E::Wraps(_)));
    }

    #[test]
    fn a_read_only_file_is_refused() {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(0x1000).unwrap();
        let read_only = std::fs::File::open(path.path()).unwrap();
        let error = Region::map(spec(0, 0x1000, 0, 0), &read_only).unwrap_err();
        assert!(matches!(error, MemoryError::Map(MapError::System(_))));
    }

    #[test]
    fn an_offset_within_a_page_is_kept() {
        let fd = file(0x4000);
        rustix::io::pwrite(&fd, b"marked", 0x1234).unwrap();
        let region = Region::map(spec(0x8000, 0x100, 0, 0x1230), &fd).unwrap();
        let memory = GuestMemory::empty().with(Arc::new(region)).unwrap();
        let mut read = [0; 6];
        memory.read(GuestAddr(0x8004), &mut read).unwrap();
        assert_eq!(&read, b"marked");
        assert!(memory.read(GuestAddr(0x80fb), &mut read).is_err());
    }

    #[test]
    fn overlapping_regions_are_refused_and_removed_ones_leave_room() {
        let memory = memory();
        for (guest, size) in [
            (0, 1),
            (0xfff, 2),
            (0x1fff, 0x1000),
            (0x2000, 0x1001),
            (0x2000, 0x8000),
        ] {
            let error = memory.with(map(spec(guest, size, 0, 0))).unwrap_err();
            assert!(matches!(error, MemoryError::Overlaps(_)), "{guest:#x}");
        }
        assert_eq!(memory.bytes(), 0x3000);
        assert!(memory.without(spec(0x1000, 0x1000, 0x7001, 0)).is_err());
        assert!(memory.without(spec(0x1000, 0xfff, 0x7000, 0)).is_err());
        let less = memory.without(spec(0x1000, 0x1000, 0x7000, 99)).unwrap();
        assert_eq!(less.regions().len(), 2);
        assert_eq!(cuts(&less, 0x1000, 1), Err(Unmapped));
        assert_eq!(
            cuts(&memory, 0x1000, 1),
            Ok(vec![1]),
            "the old table still holds it"
        );
        assert_eq!(
            less.with(map(spec(0x1000, 0x2000, 0, 0)))
                .unwrap()
                .regions()
                .len(),
            3
        );
    }

    #[test]
    fn the_table_holds_as_many_regions_as_it_says() {
        let fd = file(0x1000);
        let mut memory = GuestMemory::empty();
        for index in 0..MAX_REGIONS as u64 {
            let region = Region::map(spec(index << 12, 0x1000, index << 12, 0), &fd).unwrap();
            memory = memory.with(Arc::new(region)).unwrap();
        }
        let region = Region::map(spec(1 << 40, 0x1000, 1 << 40, 0), &fd).unwrap();
        let error = memory.with(Arc::new(region)).unwrap_err();
        assert!(matches!(error, MemoryError::TooMany));
    }

    #[test]
    fn a_guest_may_not_use_up_the_address_space() {
        let fd = file(MAX_BYTES);
        let half = MAX_BYTES / 2;
        let map = |at: u64| {
            Region::map(spec(at, half, at, 0), &fd)
                .map(Arc::new)
                .unwrap()
        };
        let memory = GuestMemory::empty()
            .with(map(0))
            .unwrap()
            .with(map(half))
            .unwrap();
        let error = memory.with(map(2 * half)).unwrap_err();
        assert!(matches!(error, MemoryError::TooMuch));
    }
}
