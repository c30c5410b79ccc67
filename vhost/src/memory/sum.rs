//! Copies that take the internet checksum on the way.
//!
//! What is copied may change meanwhile, so every byte is loaded once, and what was loaded is both stored and added up: the
//! sum is that of the bytes that were written, whatever the source holds by then. Ordinary loads do not ensure that. A
//! compiler may read memory twice that nobody is said to change, and does where it makes a call of `memcpy` out of the
//! copying half of such a loop.

use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use vswitch_packet::Sum;

/// Bytes that pass through a buffer of ours at a time, where they do not pass through registers.
const CHUNK: usize = 128;

/// Copies `len` bytes and adds them to `sum`.
///
/// # Safety
///
/// `len` bytes are readable at `from` and writable at `to`.
#[inline]
pub(crate) unsafe fn copy_summing(from: *const u8, to: *mut u8, len: usize, sum: &mut Sum) {
    // SAFETY: by the caller's word; the second call gets what the first one left.
    unsafe {
        let done = by_registers(from, to, len, sum);
        by_buffer(from.add(done), to.add(done), len - done, sum);
    }
}

/// Copies and adds as many of `len` bytes as fill whole steps; says how many these were, an even number.
///
/// # Safety
///
/// As for [`copy_summing`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn by_registers(from: *const u8, to: *mut u8, len: usize, sum: &mut Sum) -> usize {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi64, _mm_and_si128, _mm_cvtsi128_si64, _mm_set1_epi64x,
        _mm_setzero_si128, _mm_srli_epi64, _mm_storeu_si128, _mm_unpackhi_epi64,
    };
    /// Two registers of 16 bytes, so that one need not wait for the other's additions.
    const STEP: usize = 32;

    /// # Safety
    ///
    /// 16 bytes are readable at `from`.
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m128i {
        let value;
        // SAFETY: reads 16 bytes, which are there by the caller's word, and has no other effect. An assembler block that is
        // not `pure` runs exactly as often as it stands there.
        unsafe {
            std::arch::asm!("movdqu {}, [{}]", out(xmm_reg) value, in(reg) from, options(nostack, preserves_flags, readonly));
        }
        value
    }

    // SAFETY: every step is within `len` bytes of both; every x86-64 has SSE2.
    unsafe {
        let low = _mm_set1_epi64x(0xffff_ffff);
        // Each lane adds words of 32 bits into 64, of which no length in memory makes too many.
        let halves = |v| _mm_add_epi64(_mm_and_si128(v, low), _mm_srli_epi64::<32>(v));
        let (mut one, mut two) = (_mm_setzero_si128(), _mm_setzero_si128());
        let mut done = 0;
        while len - done >= STEP {
            let (a, b) = (load(from.add(done)), load(from.add(done + 16)));
            _mm_storeu_si128(to.add(done).cast(), a);
            _mm_storeu_si128(to.add(done + 16).cast(), b);
            one = _mm_add_epi64(one, halves(a));
            two = _mm_add_epi64(two, halves(b));
            done += STEP;
        }
        let both = _mm_add_epi64(one, two);
        let all = _mm_add_epi64(both, _mm_unpackhi_epi64(both, both));
        sum.add_words(_mm_cvtsi128_si64(all).cast_unsigned());
        done
    }
}

/// As above, where nobody has written it yet: the buffer does it all.
///
/// # Safety
///
/// None.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
unsafe fn by_registers(_: *const u8, _: *mut u8, _: usize, _: &mut Sum) -> usize {
    0
}

/// Copies and adds any number of bytes.
///
/// # Safety
///
/// As for [`copy_summing`].
#[inline]
unsafe fn by_buffer(from: *const u8, to: *mut u8, len: usize, sum: &mut Sum) {
    let mut buffer = [0; CHUNK];
    let mut done = 0;
    while done < len {
        let bytes = &mut buffer[..CHUNK.min(len - done)];
        // SAFETY: within `len` bytes, by the caller's word; the buffer is ours and overlaps nothing.
        unsafe { ptr::copy_nonoverlapping(from.add(done), bytes.as_mut_ptr(), bytes.len()) };
        // The source may have changed from here on, so the compiler cannot take it for the buffer's equal.
        compiler_fence(Ordering::SeqCst);
        sum.add(bytes);
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(done), bytes.len()) };
        done += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    fn summed(bytes: &[u8]) -> Sum {
        let mut sum = Sum::new();
        sum.add(bytes);
        sum
    }

    #[test]
    fn every_length_is_copied_and_summed() {
        let from: Vec<u8> = (0..700).map(|i| (i * 37 + i / 256) as u8 | 1).collect();
        for len in 0..=600 {
            let mut to = vec![0; 700];
            let mut sum = Sum::new();
            // SAFETY: both vectors have 700 bytes.
            unsafe { copy_summing(from.as_ptr().add(3), to.as_mut_ptr().add(5), len, &mut sum) };
            assert_eq!(to[5..5 + len], from[3..3 + len]);
            assert!(to[..5].iter().chain(&to[5 + len..]).all(|byte| *byte == 0));
            assert_eq!(
                sum.to_field(),
                summed(&from[3..3 + len]).to_field(),
                "{len} bytes"
            );
        }
    }

    /// The sum is that of the bytes that arrived, not of those that were there before or after.
    #[test]
    fn a_source_that_changes_is_read_once() {
        let source: Vec<AtomicU64> = (0..256).map(|_| AtomicU64::new(0)).collect();
        let stop = AtomicBool::new(false);
        let differed = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                    source
                        .iter()
                        .for_each(|word| word.store(value, Ordering::Relaxed));
                }
            });
            let mut to = vec![0u8; 2048];
            let (mut last, mut differed) = (0, 0);
            for round in 0..20_000 {
                let len = 2048 - round % 70;
                let mut sum = Sum::new();
                // SAFETY: both have 2048 bytes.
                unsafe { copy_summing(source.as_ptr().cast(), to.as_mut_ptr(), len, &mut sum) };
                if sum.to_field() != summed(&to[..len]).to_field() {
                    stop.store(true, Ordering::Relaxed);
                    panic!("round {round}: the sum is not that of the copy");
                }
                differed += u32::from(sum.to_field() != last);
                last = sum.to_field();
            }
            stop.store(true, Ordering::Relaxed);
            differed
        });
        assert!(differed > 10, "the source hardly changed: {differed}");
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_add_up(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..12)) {
            let mut to = vec![0; 200];
            let mut sum = Sum::new();
            for piece in &pieces {
                // SAFETY: a piece has at most 200 bytes, and so has `to`.
                unsafe { copy_summing(piece.as_ptr(), to.as_mut_ptr(), piece.len(), &mut sum) };
                prop_assert_eq!(&to[..piece.len()], &piece[..]);
            }
            prop_assert_eq!(sum.to_field(), summed(&pieces.concat()).to_field());
        }
    }
}
