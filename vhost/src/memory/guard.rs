//! Surviving a memory file that shrinks under its mapping.
//!
//! Every mapping of guest memory is entered in a fixed table that a signal handler can read without a lock. When a thread
//! touches a page that the file no longer has, the kernel raises `SIGBUS`; the handler finds the mapping, lays zero pages
//! over all of it, marks it poisoned, and the thread goes on, reading zeros and writing to nobody. A fault anywhere else is
//! not ours: the default action comes back and the process ends as it would have.
//!
//! Noticing is cheap: every poisoning advances [`poison_epoch`], one word that is otherwise never written.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

/// Mappings that can be guarded at the same time, over all guests of the process.
pub const MAX_MAPPINGS: usize = 16_384;

/// One guarded mapping. `seq` is odd while the slot is being written, 0 if it was never used.
struct Slot {
    seq: AtomicU32,
    taken: AtomicBool,
    poisoned: AtomicBool,
    start: AtomicUsize,
    len: AtomicUsize,
}

static SLOTS: [Slot; MAX_MAPPINGS] = [const {
    Slot {
        seq: AtomicU32::new(0),
        taken: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; MAX_MAPPINGS];

static EPOCH: AtomicU32 = AtomicU32::new(0);

/// How many times guest memory has been lost in this process. While it stays, every mapping is as good as it was.
#[inline]
#[must_use]
pub fn poison_epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Entry of a mapping in the table; leaving the table when dropped, which must be before the range is unmapped.
#[derive(Debug)]
pub(super) struct Guarded(usize);

impl Guarded {
    /// Enters a range, or says that the table is full.
    pub(super) fn enter(start: usize, len: usize) -> Option<Self> {
        let index = SLOTS.iter().position(|slot| {
            !slot.taken.load(Ordering::Relaxed)
                && slot
                    .taken
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        })?;
        let slot = &SLOTS[index];
        slot.write(start, len);
        Some(Self(index))
    }

    /// Whether the file was cut short and zeros were laid over the mapping.
    pub(super) fn poisoned(&self) -> bool {
        SLOTS[self.0].poisoned.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let slot = &SLOTS[self.0];
        slot.write(0, 0);
        slot.taken.store(false, Ordering::Release);
    }
}

impl Slot {
    /// Only the slot's holder writes; the handler may read at any moment.
    fn write(&self, start: usize, len: usize) {
        self.seq.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        self.seq.fetch_add(1, Ordering::Release);
    }

    /// The range, unless it is being changed, in which case it is not the one somebody is faulting in.
    fn read(&self) -> Option<(usize, usize)> {
        let before = self.seq.load(Ordering::Acquire);
        let range = (
            self.start.load(Ordering::Relaxed),
            self.len.load(Ordering::Relaxed),
        );
        fence(Ordering::Acquire);
        let same = self.seq.load(Ordering::Relaxed) == before;
        (same && before.is_multiple_of(2)).then_some(range)
    }
}

/// Installs the handler for the whole process. Call it once, before the first session.
///
/// # Errors
///
/// What `sigaction` says.
pub fn install_sigbus_guard() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value of the plain C struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is a valid sigaction naming a handler of the right signature, which uses only async-signal-safe
    // operations.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs on the faulting thread. Atomics, `mmap`, `sigaction`: no lock, no allocation, errno kept.
extern "C" fn handle(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, whose address field SIGBUS fills in.
    let fault = unsafe { (*info).si_addr() } as usize;
    // SAFETY: errno's address is valid for the calling thread.
    let errno = unsafe { *libc::__errno_location() };
    if !cover(fault) {
        // SAFETY: an all-zero sigaction is valid and means the default action. Returning raises the fault again.
        unsafe {
            let action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Lays zero pages over the guarded mapping that holds `fault`; false if there is none.
fn cover(fault: usize) -> bool {
    for slot in &SLOTS {
        if slot.seq.load(Ordering::Relaxed) == 0 {
            // Slots are taken from the front: nothing was ever entered from here on.
            return false;
        }
        let Some((start, len)) = slot.read() else {
            continue;
        };
        if fault.wrapping_sub(start) >= len {
            continue;
        }
        // SAFETY: the range is a live mapping of guest memory that its holder cannot unmap while a thread is faulting in
        // it; replacing its pages keeps every pointer into it valid.
        let mapped = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.poisoned.store(true, Ordering::Relaxed);
        EPOCH.fetch_add(1, Ordering::Release);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::{GuestAddr, GuestMemory, Region, RegionSpec, UserAddr};
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::Arc;

    fn file(len: u64) -> OwnedFd {
        let fd = rustix::fs::memfd_create("guard", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        fd
    }

    fn region(fd: &OwnedFd) -> Arc<Region> {
        let spec = RegionSpec {
            guest: GuestAddr(0x10_0000),
            size: 0x4000,
            user: UserAddr(0x7000_0000),
            offset: 0,
        };
        Region::map(spec, fd).map(Arc::new).unwrap()
    }

    #[test]
    fn a_shrunk_file_reads_as_zeros_and_poisons_only_its_region() {
        install_sigbus_guard().unwrap();
        let fd = file(0x4000);
        rustix::io::pwrite(&fd, b"guest data", 0x2000).unwrap();
        let other = region(&file(0x4000));
        let region = region(&fd);
        let memory = GuestMemory::empty().with(Arc::clone(&region)).unwrap();

        let mut bytes = [0; 10];
        memory.read(GuestAddr(0x10_2000), &mut bytes).unwrap();
        assert_eq!(&bytes, b"guest data");
        assert!(!region.poisoned());

        let epoch = poison_epoch();
        rustix::fs::ftruncate(&fd, 0).unwrap();
        memory.read(GuestAddr(0x10_2000), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 10]);
        assert!(region.poisoned());
        assert!(memory.poisoned());
        assert!(!other.poisoned());
        assert_ne!(poison_epoch(), epoch);
    }

    #[test]
    fn a_slot_is_clean_when_it_is_used_again() {
        install_sigbus_guard().unwrap();
        for _ in 0..3 {
            let fd = file(0x4000);
            let region = region(&fd);
            assert!(!region.poisoned());
            rustix::fs::ftruncate(&fd, 0).unwrap();
            let memory = GuestMemory::empty().with(Arc::clone(&region)).unwrap();
            memory.read(GuestAddr(0x10_0000), &mut [0; 1]).unwrap();
            assert!(region.poisoned());
        }
    }

    const CHILD: &str = "VSWITCH_TEST_FAULT_OUTSIDE";

    #[test]
    fn a_fault_elsewhere_still_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            install_sigbus_guard().unwrap();
            let fd = file(0x1000);
            // SAFETY: a fresh shared mapping of one page; touching it after the file shrank is the point.
            unsafe {
                let page = rustix::mm::mmap(
                    ptr::null_mut(),
                    0x1000,
                    rustix::mm::ProtFlags::READ,
                    rustix::mm::MapFlags::SHARED,
                    &fd,
                    0,
                )
                .unwrap();
                rustix::fs::ftruncate(&fd, 0).unwrap();
                page.cast::<u8>().read_volatile();
            }
            std::process::exit(0);
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "memory::guard::tests::a_fault_elsewhere_still_ends_the_process",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}
