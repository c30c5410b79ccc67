//! Asking the cache for lines before they are needed.
//!
//! Lines of a guest's memory are in the cache of whatever CPU the guest runs on. Fetching one takes as long as forwarding
//! several frames does, but many can be on their way at once, so they are asked for a burst ahead. A line that is to be
//! written must be asked for as such: a store to a line that is merely shared waits a second time, and stores wait in line.

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Asks for the line at `at`, to be read.
#[inline]
pub(crate) fn prefetch_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint and accesses nothing, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the line at `at`, to be written.
#[inline]
pub(crate) fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint and accesses nothing, whatever the address. Processors without the instruction take it
    // for a no-op. Written out because for the baseline target the compiler's intrinsic asks for reading instead.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
