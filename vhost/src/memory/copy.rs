//! Copies of a length that is known to be short: heads and headers.
//!
//! A call of `memcpy` costs more than what it copies here. Chunks of 16 bytes are what the baseline target has registers
//! for; the last one overlaps the one before, so that no length needs a loop over bytes.

use std::ptr;

/// Copies `len` bytes, meant for a few hundred at most. Each byte is loaded at least once and stored at least once.
///
/// # Safety
///
/// `len` bytes are readable at `from` and writable at `to`, and the two ranges do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_short(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: every chunk is within the first `len` bytes of both ranges, by the comparisons in front of it.
    unsafe {
        if len >= 16 {
            let last = len - 16;
            let mut at = 0;
            while at < last {
                chunk::<16>(from.add(at), to.add(at));
                at += 16;
            }
            chunk::<16>(from.add(last), to.add(last));
        } else if len >= 8 {
            chunk::<8>(from, to);
            chunk::<8>(from.add(len - 8), to.add(len - 8));
        } else if len >= 4 {
            chunk::<4>(from, to);
            chunk::<4>(from.add(len - 4), to.add(len - 4));
        } else {
            for at in 0..len {
                chunk::<1>(from.add(at), to.add(at));
            }
        }
    }
}

/// # Safety
///
/// `N` bytes are readable at `from` and writable at `to`.
#[inline(always)]
unsafe fn chunk<const N: usize>(from: *const u8, to: *mut u8) {
    // SAFETY: by the caller's word; arrays of bytes are aligned anywhere.
    unsafe { ptr::write(to.cast::<[u8; N]>(), ptr::read(from.cast::<[u8; N]>())) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_copies_itself_and_nothing_else() {
        let from: Vec<u8> = (0..300).map(|i| i as u8 | 1).collect();
        for len in 0..=256 {
            let mut to = vec![0; 300];
            // SAFETY: both vectors have 300 bytes.
            unsafe { copy_short(from.as_ptr().add(3), to.as_mut_ptr().add(5), len) };
            assert_eq!(to[5..5 + len], from[3..3 + len]);
            assert!(to[..5].iter().chain(&to[5 + len..]).all(|byte| *byte == 0));
        }
    }
}
