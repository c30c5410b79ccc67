//! On which NUMA node a guest's memory lies.
//!
//! The kernel says so page by page (`move_pages(2)` without targets), but only of pages in our own page tables, and those
//! get there when we first touch them. Touching what the guest has not would take memory from the host. So a page that is
//! not there is looked for in its file (`mincore(2)`), and if it has it, entered in our tables (`MADV_POPULATE_READ`) and
//! asked for again.
//!
//! That is done with files that [tell](tells_residence) only. Others are a front-end's choice that may lie or never answer:
//! of them, and of huge pages, those are known that we have touched, which those of the rings always are.
//!
//! A sample is [`SAMPLES`] pages, evenly spread over the bytes of all regions, one more for each region, and those where
//! a ring begins. What the kernel does not let us ask is [`MemoryNode::Unknown`].
//!
//! The first look at a guest takes about half a millisecond, further ones some 20 µs. They are for threads that may wait,
//! never for a worker: the memory may end with one, and unmapping takes long.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::{Arc, Weak};

use rustix::fs::StatFs;
use rustix::mm::Advice;
use rustix::param::page_size;

use super::{GuestMemory, Region, UserAddr};

/// Pages looked at, besides one for each region and those of the ring.
const SAMPLES: u64 = 128;

/// `f_type` of memfds and of files in shared memory, unless they are on huge pages.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// On which NUMA node memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MemoryNode {
    /// The guest has not touched it yet, or the kernel does not say.
    #[default]
    Unknown,
    /// More than two thirds of it on this one.
    One(u16),
    /// On several.
    Spread,
}

impl MemoryNode {
    /// Judges a sample of pages, each by its node or by a negative error number.
    fn of_pages(pages: &[i32]) -> Self {
        let known = || pages.iter().filter_map(|page| u16::try_from(*page).ok());
        // The only one that can have a majority (Boyer and Moore's vote).
        let (mut candidate, mut lead) = (0, 0_usize);
        for node in known() {
            if lead == 0 {
                candidate = node;
            }
            lead = match node == candidate {
                true => lead + 1,
                false => lead - 1,
            };
        }
        let votes = known().filter(|node| *node == candidate).count();
        match known().count() {
            0 => Self::Unknown,
            all if votes * 3 > all * 2 => Self::One(candidate),
            _ => Self::Spread,
        }
    }
}

/// A ring's guest memory, to be asked again and again where it lies. Keeps none of it mapped. The default one has none.
#[derive(Clone, Debug, Default)]
pub struct MemoryProbe {
    memory: Weak<GuestMemory>,
    /// Where the ring's parts begin.
    ring: [UserAddr; 3],
}

impl MemoryProbe {
    pub(crate) fn new(memory: &Arc<GuestMemory>, ring: [UserAddr; 3]) -> Self {
        Self {
            memory: Arc::downgrade(memory),
            ring,
        }
    }

    /// Whether both are about the same table of memory.
    #[must_use]
    pub fn same_memory(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.memory, &other.memory)
    }

    /// Looks where the memory lies by now. Unknown once it has gone.
    #[must_use]
    pub fn ask(&self) -> MemoryNode {
        let Some(memory) = self.memory.upgrade() else {
            return MemoryNode::Unknown;
        };
        let mut pages = sample(&memory);
        let parts = self.ring.iter();
        pages.extend(parts.filter_map(|part| ring_page(&memory, *part)));
        let node = MemoryNode::of_pages(&nodes_of(&pages));
        // Until here, so that what was asked for was this guest's.
        drop(memory);
        node
    }
}

/// The start of the page that a byte is in, which a mapping has whole.
fn page_of(byte: *mut u8) -> *mut u8 {
    byte.map_addr(|addr| addr & !(page_size() - 1))
}

/// Whether the kernel tells which pages this file has, and enters them in our tables without asking anybody.
///
/// It does for files on tmpfs, memfds among them. Elsewhere a page may be a front-end's to give, and never come (FUSE); on
/// huge pages `mincore` knows those only that are in our tables already. And it tells only who owns the file or could open
/// it for writing (`can_do_mincore` in `mm/mincore.c`, since Linux 5.2): for anybody else all pages are there. The second
/// is asked of the kernel here, which knows about groups, lists and capabilities; those before 5.8 do not answer.
///
/// This is so when the file is mapped. A front-end that takes the permission away later can make us take memory for its
/// file, which it can as well by offering untouched pages as buffers.
pub(super) fn tells_residence(file: impl AsFd, system: &StatFs) -> bool {
    let may_write = || {
        // SAFETY: a question about an open descriptor, with an empty path that is terminated.
        let refused = unsafe {
            libc::syscall(
                libc::SYS_faccessat2,
                file.as_fd().as_raw_fd(),
                c"".as_ptr(),
                libc::W_OK,
                libc::AT_EMPTY_PATH | libc::AT_EACCESS,
            )
        };
        refused == 0
    };
    system.f_type as u64 == TMPFS_MAGIC && may_write()
}

/// A page to ask about.
#[derive(Clone, Copy)]
struct Page {
    start: *mut u8,
    /// Its file tells whether it has it.
    told: bool,
}

impl Page {
    fn new(byte: *mut u8, region: &Region) -> Self {
        Self {
            start: page_of(byte),
            told: region.tells_residence(),
        }
    }
}

/// Pages spread evenly over all regions, by their bytes.
fn sample(memory: &GuestMemory) -> Vec<Page> {
    let step = (memory.bytes() / SAMPLES).max(page_size() as u64) as usize;
    let mut pages = Vec::new();
    for region in memory.regions() {
        let span = region.span();
        let middle = step.min(span.len()) / 2;
        let places = (middle..span.len()).step_by(step);
        pages.extend(places.map(|at| Page::new(span.skip(at).as_ptr(), region)));
    }
    pages
}

/// Where a part of a ring begins.
fn ring_page(memory: &GuestMemory, part: UserAddr) -> Option<Page> {
    let byte = memory.resolve_user(part, 1)?.as_ptr();
    let holds = |region: &&Arc<Region>| {
        let span = region.span();
        byte.addr().wrapping_sub(span.as_ptr().addr()) < span.len()
    };
    let region = memory.regions().iter().find(holds)?;
    Some(Page::new(byte, region))
}

/// The node of each of these pages, or a negative error number, also if there is none at the address.
fn nodes_of(pages: &[Page]) -> Vec<i32> {
    let starts: Vec<_> = pages.iter().map(|page| page.start).collect();
    let refused = || vec![-libc::EPERM; starts.len()];
    let Some(nodes) = ask(&starts) else {
        return refused();
    };
    let absent = pages.iter().zip(&nodes).filter(|(_, node)| **node < 0);
    let told = absent.filter(|(page, _)| page.told);
    match told.filter(|(page, _)| enter(page.start)).count() {
        0 => nodes,
        _ => ask(&starts).unwrap_or_else(refused),
    }
}

/// Enters a page in our tables, if its file has it, which it must tell; true if that was tried.
fn enter(page: *mut u8) -> bool {
    let mut resident = 0_u8;
    // SAFETY: a question about one page, answered in one byte.
    let asked = unsafe { libc::mincore(page.cast(), page_size(), &raw mut resident) };
    let there = asked == 0 && resident & 1 == 1;
    if there {
        // Refused by kernels before 5.14, and if the page has just gone: then it stays unknown.
        // SAFETY: entering a page in the tables, to be read, changes no byte of it.
        let _ = unsafe { rustix::mm::madvise(page.cast(), page_size(), Advice::LinuxPopulateRead) };
    }
    there
}

/// What the kernel knows without looking further than our tables; `None` if it does not say.
fn ask(pages: &[*mut u8]) -> Option<Vec<i32>> {
    let mut nodes = vec![-libc::ENOENT; pages.len()];
    // SAFETY: of this process, `pages.len()` addresses are read and as many answers written; without targets nothing moves.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0_i32,
            pages.len(),
            pages.as_ptr(),
            ptr::null::<i32>(),
            nodes.as_mut_ptr(),
            0_i32,
        )
    };
    (asked == 0).then_some(nodes)
}

#[cfg(test)]
mod tests {
    use super::super::{GuestAddr, Region, RegionSpec};
    use super::*;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    use std::os::fd::OwnedFd;

    const USER: u64 = 0x7000_0000;

    fn file(len: u64) -> OwnedFd {
        let fd = rustix::fs::memfd_create("numa", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        fd
    }

    /// Two regions, of four KiB and of the rest, with a hole between them.
    fn memory(fd: &OwnedFd, len: u64) -> Arc<GuestMemory> {
        let region = |offset: u64, size| {
            let spec = RegionSpec {
                guest: GuestAddr(offset * 2),
                size,
                user: UserAddr(USER + offset * 2),
                offset,
            };
            Arc::new(Region::map(spec, fd).unwrap())
        };
        let memory = GuestMemory::empty().with(region(0, 0x1000)).unwrap();
        Arc::new(memory.with(region(0x1000, len - 0x1000)).unwrap())
    }

    fn probe(memory: &Arc<GuestMemory>) -> MemoryProbe {
        MemoryProbe::new(memory, [UserAddr(USER); 3])
    }

    /// Bytes that the file holds, in blocks of the host.
    fn held(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_blocks as u64 * 512
    }

    #[test]
    fn more_than_two_thirds_are_a_home() {
        const GONE: i32 = -libc::ENOENT;
        let of = MemoryNode::of_pages;
        assert_eq!(of(&[]), MemoryNode::Unknown);
        assert_eq!(of(&[GONE, -libc::EFAULT]), MemoryNode::Unknown);
        assert_eq!(of(&[GONE, 3, GONE]), MemoryNode::One(3));
        assert_eq!(of(&[1, 0, 1, 1]), MemoryNode::One(1));
        assert_eq!(of(&[0, 1, 1, 0, 1, 1, 1]), MemoryNode::One(1));
        assert_eq!(
            of(&[0, 1, 1]),
            MemoryNode::Spread,
            "two thirds are not more"
        );
        assert_eq!(of(&[0, 1, 2, 3]), MemoryNode::Spread);
        assert_eq!(of(&[0, 0, 0, 1, 2, GONE, 2]), MemoryNode::Spread);
    }

    #[test]
    fn samples_are_spread_over_all_regions() {
        let fd = file(64 << 20);
        let memory = memory(&fd, 64 << 20);
        let pages = sample(&memory);
        assert!(
            (SAMPLES..SAMPLES + 3).contains(&(pages.len() as u64)),
            "{} pages",
            pages.len()
        );
        for region in memory.regions() {
            let start = region.span().as_ptr().addr();
            let within =
                |page: &&Page| (start..start + region.span().len()).contains(&page.start.addr());
            let share = region.spec().size * SAMPLES / memory.bytes();
            let count = pages.iter().filter(within).count() as u64;
            assert!(count >= share.max(1), "{count} of {share}");
        }
        let whole = |page: &Page| page.start.addr().is_multiple_of(page_size());
        assert!(pages.iter().all(whole));
        assert!(sample(&GuestMemory::empty()).is_empty());
    }

    /// Whatever a kernel answers, asking takes no memory from the host.
    #[test]
    fn untouched_memory_is_unknown_and_stays_untouched() {
        let fd = file(16 << 20);
        let memory = memory(&fd, 16 << 20);
        assert_eq!(probe(&memory).ask(), MemoryNode::Unknown);
        assert_eq!(held(&fd), 0);
    }

    /// Nodes that have a core for us, with that core; one where the kernel knows of none.
    fn nodes() -> Vec<(u16, usize)> {
        let allowed = sched_getaffinity(None).unwrap();
        let node_of = |core: usize| {
            let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?;
            let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.find_map(|name| name.strip_prefix("node")?.parse().ok())
        };
        let mut nodes = std::collections::BTreeMap::new();
        for core in (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)) {
            nodes.entry(node_of(core).unwrap_or(0)).or_insert(core);
        }
        nodes.into_iter().collect()
    }

    /// Touches pages of the file, as a guest on this core does: not through our mapping.
    fn touch(fd: &OwnedFd, pages: std::ops::Range<u64>, core: usize) {
        let before = sched_getaffinity(None).unwrap();
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only).unwrap();
        for page in pages {
            rustix::io::pwrite(fd, b"x", page * page_size() as u64).unwrap();
        }
        sched_setaffinity(None, &before).unwrap();
    }

    #[test]
    fn memory_lies_where_it_was_touched_first() {
        let nodes = nodes();
        for (node, core) in &nodes {
            let fd = file(16 << 20);
            let memory = memory(&fd, 16 << 20);
            let probe = probe(&memory);
            touch(&fd, 0..2048, *core);
            let before = held(&fd);
            let expected = match refused() {
                // As containers may.
                true => MemoryNode::Unknown,
                false => MemoryNode::One(*node),
            };
            assert_eq!(probe.ask(), expected);
            assert_eq!(held(&fd), before, "asking took memory");
            assert!(probe.same_memory(&probe.clone()));
            drop(memory);
            assert_eq!(probe.ask(), MemoryNode::Unknown, "it has gone");
        }
        if let [(_, first), .., (_, last)] = nodes[..]
            && !refused()
        {
            let fd = file(16 << 20);
            let memory = memory(&fd, 16 << 20);
            touch(&fd, 0..2048, first);
            touch(&fd, 2048..4096, last);
            assert_eq!(probe(&memory).ask(), MemoryNode::Spread);
        }
    }

    /// Only a thread's own rights change: what libc does for all threads of a process is not used.
    fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let nobody = rustix::process::Uid::from_raw(65534);
        let keep = None::<rustix::process::Uid>;
        let renounce = move || rustix::thread::set_thread_res_uid(keep, nobody, keep);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                renounce().unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// To who may not know what a file has, the kernel says that it has everything.
    #[test]
    fn a_file_that_does_not_tell_is_not_entered() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can become somebody who may not know");
            return;
        }
        let (node, core) = nodes()[0];
        let of_mode = |mode| {
            let fd = file(16 << 20);
            rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
            fd
        };
        let (closed, open) = (of_mode(0o600), of_mode(0o666));
        // Known once it was asked for, and with older kernels only the process's owner may ask.
        let _ = rustix::param::page_size();
        as_nobody(|| {
            let hidden = memory(&closed, 16 << 20);
            let answer = probe(&hidden).ask();
            assert_eq!(held(&closed), 0, "asking took memory");
            assert_eq!(answer, MemoryNode::Unknown);
            assert!(!hidden.regions().iter().any(|r| r.tells_residence()));
            touch(&closed, 0..4096, core);
            assert_eq!(probe(&hidden).ask(), MemoryNode::Unknown);
            let first = hidden.regions()[0].span().as_ptr();
            // SAFETY: within the mapping.
            let _ = unsafe { first.read_volatile() };
            let told = memory(&open, 16 << 20);
            assert!(told.regions().iter().all(|r| r.tells_residence()));
            assert_eq!(probe(&told).ask(), MemoryNode::Unknown);
            assert_eq!(held(&open), 0, "asking took memory");
            touch(&open, 0..4096, core);
            if !refused() {
                let here = MemoryNode::One(node);
                assert_eq!(probe(&hidden).ask(), here, "the ring's page is in use");
                assert_eq!(probe(&told).ask(), here);
            }
        });
    }

    /// A file's pages may be somebody else's to give.
    #[test]
    fn a_file_that_is_not_in_memory_is_not_entered() {
        let path = std::env::current_exe().unwrap();
        let path = path.with_extension(format!("numa-{}", std::process::id()));
        let fd = OwnedFd::from(
            std::fs::File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .unwrap(),
        );
        std::fs::remove_file(path).unwrap();
        if rustix::fs::fstatfs(&fd).unwrap().f_type as u64 == TMPFS_MAGIC {
            println!("skipped: the build's folder is in memory");
            return;
        }
        rustix::fs::ftruncate(&fd, 1 << 20).unwrap();
        let memory = memory(&fd, 1 << 20);
        touch(&fd, 0..256, nodes()[0].1);
        assert_eq!(probe(&memory).ask(), MemoryNode::Unknown);
        let pages: Vec<_> = sample(&memory).iter().map(|page| page.start).collect();
        let there = ask(&pages).unwrap_or_default();
        assert!(there.iter().all(|node| *node < 0), "entered: {there:?}");
    }

    /// Whether the kernel does not even tell where this function's own stack lies.
    fn refused() -> bool {
        let mut here = 0_u8;
        let page = [page_of(&raw mut here)];
        ask(&page).is_none_or(|nodes| nodes.iter().all(|node| *node < 0))
    }
}
