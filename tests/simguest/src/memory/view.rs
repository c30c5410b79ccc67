//! The raw end of guest memory: one shared mapping, and typed windows into it.
//!
//! All `unsafe` of this crate is here. What makes it sound: a [`Mapping`] is private to this module, lives as long as
//! any window into it, and a window's bounds were checked when it was cut out. Every access checks its index, so safe
//! code cannot leave the window. The bytes may change at any moment (another process writes them), therefore no
//! reference into the mapping is ever made: words go through volatile or atomic accesses, blocks through raw copies.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// A split-ring descriptor as it lies in guest memory (virtio 1.2, 2.7.5); little endian hosts only.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Desc {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Bytes in the buffer.
    pub len: u32,
    /// [`Desc::NEXT`], [`Desc::WRITE`], [`Desc::INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor if [`Desc::NEXT`] is set.
    pub next: u16,
}

impl Desc {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Bytes of one descriptor.
    pub const SIZE: usize = 16;
}

mod sealed {
    pub trait Plain: Copy + 'static {}
    impl Plain for u8 {}
    impl Plain for u16 {}
    impl Plain for u32 {}
    impl Plain for u64 {}
    impl Plain for super::Desc {}
}

/// Types without padding or invalid bit patterns, so that any bytes of guest memory are a value of them.
pub trait Plain: sealed::Plain {}
impl<T: sealed::Plain> Plain for T {}

/// One shared mapping of (part of) a memory file; unmapped when the last window goes.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory, valid from any thread until dropped; all accesses go through windows,
// which use raw accesses only and never hand out references.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; concurrent access is expected, the other side is another process anyway.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset`, shared, readable and writable, and populated.
    pub(super) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Arc<Self>> {
        // SAFETY: a fresh mapping at an address of the kernel's choosing aliases nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                file,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Arc::new(Self { base, len }))
    }

    /// The address the mapping has in this process: what vhost-user calls the user address.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of a mapping made in `new`; this is the last owner, no window is left.
        // A failure would only leak address space.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// A bounded window into guest memory, seen as an array of `T`.
///
/// Cloning is cheap and aliases: both sides of a ring may hold windows to the same words. Access outside the window
/// panics, that is a mistake of the test and never the switch's doing.
pub struct View<T: Plain> {
    base: NonNull<T>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a view is a bounded pointer into a `Mapping`, which is Send and Sync, plus the Arc that keeps it.
unsafe impl<T: Plain> Send for View<T> {}
// SAFETY: as for Send; methods on &self use volatile, atomic or raw copies only.
unsafe impl<T: Plain> Sync for View<T> {}

impl<T: Plain> Clone for View<T> {
    fn clone(&self) -> Self {
        Self {
            base: self.base,
            len: self.len,
            mapping: Arc::clone(&self.mapping),
        }
    }
}

impl<T: Plain> fmt::Debug for View<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "View({:p}, {} x {} bytes)",
            self.base,
            self.len,
            size_of::<T>()
        )
    }
}

impl<T: Plain> View<T> {
    /// Cuts `len` elements at byte `offset` out of a mapping. None if out of bounds or misaligned.
    pub(super) fn new(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        if offset.checked_add(bytes)? > mapping.len {
            return None;
        }
        // SAFETY: offset is within the mapping (checked above), so the result stays inside one allocation.
        let base = unsafe { mapping.base.add(offset) }.cast::<T>();
        base.is_aligned().then(|| Self {
            base,
            len,
            mapping: Arc::clone(mapping),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first element in this process, which is the "user address" of vhost-user.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// A window into this window.
    ///
    /// # Panics
    /// If the range leaves the window.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Self {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "slice leaves the view"
        );
        // SAFETY: start <= self.len (checked above), so this stays inside the window or at its end.
        let base = unsafe { self.base.add(start) };
        Self {
            base,
            len,
            mapping: Arc::clone(&self.mapping),
        }
    }

    /// The same window as a plain value, for loops that want its bounds in registers.
    #[inline(always)]
    pub fn window(&self) -> Window<'_, T> {
        Window {
            base: self.base,
            len: self.len,
            view: PhantomData,
        }
    }

    /// Reads one element, once.
    ///
    /// # Panics
    /// If the index is out of bounds.
    #[inline(always)]
    pub fn load(&self, index: usize) -> T {
        self.window().load(index)
    }

    /// Writes one element, once.
    ///
    /// # Panics
    /// If the index is out of bounds.
    #[inline(always)]
    pub fn store(&self, index: usize, value: T) {
        self.window().store(index, value);
    }
}

/// A [`View`] borrowed as a plain value: the same bounded window, copied around freely.
#[derive(Clone, Copy)]
pub struct Window<'a, T: Plain> {
    base: NonNull<T>,
    len: usize,
    view: PhantomData<&'a View<T>>,
}

impl<T: Plain> fmt::Debug for Window<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Window({:p}, {} x {} bytes)",
            self.base,
            self.len,
            size_of::<T>()
        )
    }
}

impl<T: Plain> Window<'_, T> {
    /// Reads one element, once.
    ///
    /// # Panics
    /// If the index is out of bounds.
    #[inline(always)]
    pub fn load(&self, index: usize) -> T {
        assert!(index < self.len, "view index out of bounds");
        // SAFETY: index is in bounds, alignment was checked by `new`, the mapping is kept by the view
        // that 'a borrows; any bits are a T.
        unsafe { self.base.add(index).read_volatile() }
    }

    /// Writes one element, once.
    ///
    /// # Panics
    /// If the index is out of bounds.
    #[inline(always)]
    pub fn store(&self, index: usize, value: T) {
        assert!(index < self.len, "view index out of bounds");
        // SAFETY: as in `load`; the mapping is writable and nobody holds references into it.
        unsafe { self.base.add(index).write_volatile(value) }
    }

    /// Asks the cache for the line of an element; does nothing out of bounds or on machines without the instruction.
    #[inline(always)]
    pub fn prefetch(&self, index: usize) {
        #[cfg(target_arch = "x86_64")]
        if index < self.len {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch does not fault and the address is inside the mapping anyway.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.add(index).as_ptr().cast::<i8>()) };
        }
    }
}

impl<T: Plain> Window<'_, T> {
    /// Asks for the line of an element in order to write it, so that the store need not wait for it: takes it away
    /// from a cache of another processor. Does nothing out of bounds or on machines without the instruction.
    #[inline(always)]
    pub fn prefetch_write(&self, index: usize) {
        #[cfg(target_arch = "x86_64")]
        if index < self.len {
            // Without the instruction set the compiler would make this a fetch for reading; processors that do not
            // know it take it for a no-op.
            // SAFETY: a prefetch does not fault, changes nothing, and the address is inside the mapping anyway.
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) self.base.add(index).as_ptr(),
                    options(nostack, preserves_flags, readonly));
            }
        }
    }
}

macro_rules! scalar {
    ($load:ident, $store:ident, $type:ty) => {
        #[doc = concat!("Reads a little-endian `", stringify!($type), "` at any byte offset (unaligned allowed).")]
        ///
        /// # Panics
        /// If it leaves the window.
        #[inline(always)]
        pub fn $load(&self, offset: usize) -> $type {
            assert!(self.has(offset, size_of::<$type>()), "scalar leaves the view");
            // SAFETY: in bounds (checked), any bits are a valid integer, unaligned read.
            <$type>::from_le(unsafe {
                self.base.add(offset).cast::<$type>().as_ptr().read_unaligned()
            })
        }

        #[doc = concat!("Writes a little-endian `", stringify!($type), "` at any byte offset (unaligned allowed).")]
        ///
        /// # Panics
        /// If it leaves the window.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $type) {
            assert!(self.has(offset, size_of::<$type>()), "scalar leaves the view");
            // SAFETY: in bounds (checked), the mapping is writable, unaligned write.
            unsafe {
                self.base.add(offset).cast::<$type>().as_ptr().write_unaligned(value.to_le());
            }
        }
    };
}

impl Window<'_, u8> {
    /// Copies out; returns how many bytes there were (fewer than asked at the window's end).
    #[inline]
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        let count = to.len().min(self.len.saturating_sub(offset));
        if count > 0 {
            // SAFETY: offset + count <= len (computed above); `to` is private memory, so the ranges cannot overlap.
            unsafe {
                ptr::copy_nonoverlapping(self.base.add(offset).as_ptr(), to.as_mut_ptr(), count);
            }
        }
        count
    }

    /// Copies from another window, where both have all `len` bytes; returns false and copies nothing if not. Made for
    /// frames: short ones take no call.
    #[inline(always)]
    pub fn copy_from(
        &self,
        offset: usize,
        from: Window<'_, u8>,
        from_offset: usize,
        len: usize,
    ) -> bool {
        if !self.has(offset, len) || !from.has(from_offset, len) {
            return false;
        }
        // SAFETY: both ranges are in bounds (checked).
        let (to, from) = unsafe {
            (
                self.base.add(offset).as_ptr(),
                from.base.add(from_offset).as_ptr(),
            )
        };
        #[cfg(target_arch = "x86_64")]
        if (64..=128).contains(&len) {
            use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
            // The first and the last 64 bytes meet or overlap in the middle. All are read before the first is written,
            // so that the ranges may overlap.
            // SAFETY: every block of 16 lies within len bytes from either start, which are in bounds.
            unsafe {
                let load = |at| _mm_loadu_si128(from.add(at).cast::<__m128i>());
                let store = |at, block| _mm_storeu_si128(to.add(at).cast::<__m128i>(), block);
                let end = len - 64;
                let (a, b, c, d) = (load(0), load(16), load(32), load(48));
                let (e, f, g, h) = (load(end), load(end + 16), load(end + 32), load(end + 48));
                store(0, a);
                store(16, b);
                store(32, c);
                store(48, d);
                store(end, e);
                store(end + 16, f);
                store(end + 32, g);
                store(end + 48, h);
            }
            return true;
        }
        // SAFETY: both ranges are in bounds (checked); `copy` allows overlap.
        unsafe { ptr::copy(from, to, len) }
        true
    }

    /// Writes `len` bytes that count up from `key` in little-endian words of eight, the last one cut short.
    ///
    /// # Panics
    /// If they leave the window.
    #[inline]
    pub fn write_words(&self, offset: usize, len: usize, key: u64) {
        assert!(self.has(offset, len), "words leave the view");
        let words = len / 8;
        for n in 0..words {
            let word = key.wrapping_add(n as u64).to_le();
            // SAFETY: 8 * words <= len bytes from offset are in bounds (checked), the mapping is writable.
            unsafe {
                self.base
                    .add(offset + 8 * n)
                    .cast::<u64>()
                    .as_ptr()
                    .write_unaligned(word);
            };
        }
        let last = key.wrapping_add(words as u64).to_le_bytes();
        for (at, byte) in (offset + 8 * words..offset + len).zip(last) {
            self.store(at, byte);
        }
    }

    /// Whether `len` bytes count up from `key` as [`Window::write_words`] writes them. All of them are read.
    ///
    /// # Panics
    /// If they leave the window.
    #[inline]
    pub fn has_words(&self, offset: usize, len: usize, key: u64) -> bool {
        assert!(self.has(offset, len), "words leave the view");
        let words = len / 8;
        let mut wrong = 0;
        for n in 0..words {
            // SAFETY: 8 * words <= len bytes from offset are in bounds (checked), any bits are a valid integer.
            let word = unsafe {
                self.base
                    .add(offset + 8 * n)
                    .cast::<u64>()
                    .as_ptr()
                    .read_unaligned()
            };
            wrong |= u64::from_le(word) ^ key.wrapping_add(n as u64);
        }
        let last = key.wrapping_add(words as u64).to_le_bytes();
        let rest = offset + 8 * words..offset + len;
        wrong == 0 && rest.zip(last).all(|(at, byte)| self.load(at) == byte)
    }

    #[inline(always)]
    fn has(&self, offset: usize, size: usize) -> bool {
        offset.checked_add(size).is_some_and(|end| end <= self.len)
    }

    scalar!(load_u16, store_u16, u16);
    scalar!(load_u32, store_u32, u32);
    scalar!(load_u64, store_u64, u64);
    scalar!(load_u128, store_u128, u128);
}

macro_rules! delegate {
    ($load:ident, $store:ident, $type:ty) => {
        #[doc = concat!("Reads a little-endian `", stringify!($type), "` at any byte offset.")]
        ///
        /// # Panics
        /// If it leaves the window.
        #[inline(always)]
        pub fn $load(&self, offset: usize) -> $type {
            self.window().$load(offset)
        }

        #[doc = concat!("Writes a little-endian `", stringify!($type), "` at any byte offset.")]
        ///
        /// # Panics
        /// If it leaves the window.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $type) {
            self.window().$store(offset, value);
        }
    };
}

impl View<u16> {
    #[inline(always)]
    fn atomic(&self, index: usize) -> &AtomicU16 {
        assert!(index < self.len, "view index out of bounds");
        // SAFETY: in bounds, aligned (checked by `new`), mapped for the life of &self. An atomic may be shared with
        // other processes; all other accesses of ours to it are volatile.
        unsafe { AtomicU16::from_ptr(self.base.add(index).as_ptr()) }
    }

    /// Reads with acquire ordering: what the other side wrote before publishing this index is visible afterwards.
    #[inline(always)]
    pub fn load_acquire(&self, index: usize) -> u16 {
        self.atomic(index).load(Ordering::Acquire)
    }

    /// Publishes with release ordering.
    #[inline(always)]
    pub fn store_release(&self, index: usize, value: u16) {
        self.atomic(index).store(value, Ordering::Release);
    }
}

impl View<u64> {
    #[inline(always)]
    fn atomic(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len, "view index out of bounds");
        // SAFETY: as for 16 bits: in bounds, aligned (checked by `new` and `cast`), mapped for the life of &self, and
        // all other accesses of ours are volatile.
        unsafe { AtomicU64::from_ptr(self.base.add(index).as_ptr()) }
    }

    /// Reads with acquire ordering: what the other side wrote before this word is visible afterwards.
    #[inline(always)]
    pub fn load_acquire(&self, index: usize) -> u64 {
        self.atomic(index).load(Ordering::Acquire)
    }

    /// Publishes with release ordering.
    #[inline(always)]
    pub fn store_release(&self, index: usize, value: u64) {
        self.atomic(index).store(value, Ordering::Release);
    }
}

impl View<u8> {
    delegate!(load_u16, store_u16, u16);
    delegate!(load_u32, store_u32, u32);
    delegate!(load_u64, store_u64, u64);

    /// Copies out; returns how many bytes there were (fewer than asked at the window's end).
    #[inline]
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        self.window().copy_out(offset, to)
    }

    /// Copies in; returns how many bytes fitted before the window's end.
    #[inline]
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> usize {
        let count = from.len().min(self.len.saturating_sub(offset));
        if count > 0 {
            // SAFETY: offset + count <= len (computed above); `from` is private memory, so the ranges cannot overlap.
            unsafe {
                ptr::copy_nonoverlapping(from.as_ptr(), self.base.add(offset).as_ptr(), count);
            }
        }
        count
    }

    /// Copies from another window; returns how many bytes both had.
    #[inline]
    pub fn copy_from(&self, offset: usize, from: &Self, from_offset: usize, len: usize) -> usize {
        let count = len
            .min(self.len.saturating_sub(offset))
            .min(from.len.saturating_sub(from_offset));
        if count > 0 {
            // SAFETY: both ranges are in bounds (computed above); `copy` allows overlap.
            unsafe {
                ptr::copy(
                    from.base.add(from_offset).as_ptr(),
                    self.base.add(offset).as_ptr(),
                    count,
                );
            }
        }
        count
    }

    /// Sets every byte.
    pub fn fill(&self, value: u8) {
        // SAFETY: the whole window is in bounds and writable.
        unsafe { ptr::write_bytes(self.base.as_ptr(), value, self.len) }
    }

    /// The same bytes seen as elements of `U`, from a byte offset. None if out of bounds or misaligned.
    pub fn cast<U: Plain>(&self, offset: usize, len: usize) -> Option<View<U>> {
        let bytes = len.checked_mul(size_of::<U>())?;
        if offset.checked_add(bytes)? > self.len {
            return None;
        }
        // SAFETY: offset is within the window (checked above).
        let base = unsafe { self.base.add(offset) }.cast::<U>();
        base.is_aligned().then(|| View {
            base,
            len,
            mapping: Arc::clone(&self.mapping),
        })
    }
}
