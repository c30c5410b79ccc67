//! Pointers into shared memory that know their length.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use vswitch_packet::Sum;

use super::{LINE, copy_short, copy_summing, prefetch_read, prefetch_write};

/// Up to so many bytes are copied without a call.
const SHORT: usize = 256;

/// A checked range of mapped guest memory, without a lifetime: the form kept in preallocated lists.
///
/// Whoever makes one vouches that the range is mapped readable and writable, and whoever uses one that it still is.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a span is an address; every use of it is an unsafe operation whose caller vouches for the mapping, which is
// shared between threads and processes in any case.
unsafe impl Send for Span {}
// SAFETY: as above; a span has no interior state.
unsafe impl Sync for Span {}

impl Span {
    /// No bytes.
    pub(crate) const EMPTY: Self = Self {
        ptr: NonNull::dangling(),
        len: 0,
    };

    /// # Safety
    ///
    /// `len` bytes from `ptr` are mapped, readable and writable, for as long as the span is used.
    #[inline]
    pub(crate) const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len }
    }

    #[inline]
    pub(crate) const fn len(self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) const fn as_ptr(self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Asks the cache for the lines that header and head are in, to be read.
    #[inline]
    pub(crate) fn prefetch_read(self) {
        prefetch_read(self.ptr.as_ptr());
        if self.len > LINE {
            prefetch_read(self.ptr.as_ptr().wrapping_add(LINE));
        }
    }

    /// Asks the cache for the lines that header and head go to, to be written.
    #[inline]
    pub(crate) fn prefetch_write(self) {
        prefetch_write(self.ptr.as_ptr());
        if self.len > LINE {
            prefetch_write(self.ptr.as_ptr().wrapping_add(LINE));
        }
    }

    /// Without the first `count` bytes, or empty.
    #[inline]
    pub(crate) fn skip(self, count: usize) -> Self {
        let count = count.min(self.len);
        Self {
            // SAFETY: `count` is at most the length, so the pointer stays within the range or one past it.
            ptr: unsafe { self.ptr.add(count) },
            len: self.len - count,
        }
    }

    /// The first `len` bytes, or all.
    #[inline]
    pub(crate) fn first(self, len: usize) -> Self {
        Self {
            ptr: self.ptr,
            len: self.len.min(len),
        }
    }

    /// Copies out as much as both have; says how much that was.
    ///
    /// # Safety
    ///
    /// The range is still mapped.
    #[inline]
    pub(crate) unsafe fn read(self, to: &mut [u8]) -> usize {
        let count = self.len.min(to.len());
        // SAFETY: `count` bytes are mapped by the caller's word; `to` is memory of ours, which no span overlaps.
        unsafe { ptr::copy_nonoverlapping(self.ptr.as_ptr(), to.as_mut_ptr(), count) };
        count
    }

    /// Copies all of `from` in, which is short as a rule; says what is left behind it.
    ///
    /// # Safety
    ///
    /// The range is still mapped and at least as long.
    #[inline(always)]
    pub(crate) unsafe fn write_head(self, from: &[u8]) -> Self {
        debug_assert!(from.len() <= self.len);
        // SAFETY: so much is mapped by the caller's word; `from` is memory of ours, which no span overlaps.
        unsafe {
            if from.len() <= SHORT {
                copy_short(from.as_ptr(), self.ptr.as_ptr(), from.len());
            } else {
                ptr::copy_nonoverlapping(from.as_ptr(), self.ptr.as_ptr(), from.len());
            }
        }
        self.skip(from.len())
    }

    /// Copies in as much as both have; says how much that was.
    ///
    /// # Safety
    ///
    /// The range is still mapped.
    #[inline]
    pub(crate) unsafe fn write(self, from: &[u8]) -> usize {
        let count = self.len.min(from.len());
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.ptr.as_ptr(), count) };
        count
    }

    /// Copies from another piece of shared memory, possibly the same one, as much as both have.
    ///
    /// # Safety
    ///
    /// Both ranges are still mapped.
    #[inline]
    pub(crate) unsafe fn copy_from(self, from: Piece<'_>) -> usize {
        let count = self.len.min(from.len());
        // SAFETY: both ranges are mapped; `copy` allows that they overlap, which two guests' pieces never do but one
        // guest's may.
        unsafe { ptr::copy(from.span.as_ptr(), self.ptr.as_ptr(), count) };
        count
    }

    /// As [`copy_from`](Self::copy_from), and adds to `sum` what was written. Ranges that overlap get other bytes than a
    /// copy's, and still their sum.
    ///
    /// # Safety
    ///
    /// Both ranges are still mapped.
    #[inline]
    pub(crate) unsafe fn copy_summing(self, from: Piece<'_>, sum: &mut Sum) -> usize {
        let count = self.len.min(from.len());
        // SAFETY: both ranges are mapped, by the caller's word.
        unsafe { copy_summing(from.span.as_ptr(), self.ptr.as_ptr(), count, sum) };
        count
    }
}

/// A contiguous range of bytes that may change under us: guest memory, or a slice of ours where a piece is asked for.
///
/// It can be copied out of, never looked at in place. The lifetime ties it to what keeps the memory mapped.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Piece<'a> {
    span: Span,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> Piece<'a> {
    /// Length in bytes.
    #[inline]
    #[must_use]
    pub const fn len(self) -> usize {
        self.span.len
    }

    /// Whether there are no bytes in it.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.span.len == 0
    }

    /// Copies from `offset` on into `to`, as much as both have; says how much that was.
    #[inline]
    pub fn copy_to(self, offset: usize, to: &mut [u8]) -> usize {
        // SAFETY: a piece's range stays mapped for its lifetime, by the word of whoever made it.
        unsafe { self.span.skip(offset).read(to) }
    }

    /// The piece from `offset` on.
    #[inline]
    pub(crate) fn tail(self, offset: usize) -> Self {
        self.trim(offset, usize::MAX)
    }

    #[inline]
    fn trim(self, skip: usize, len: usize) -> Self {
        Self {
            span: self.span.skip(skip).first(len),
            _memory: PhantomData,
        }
    }

    /// Views spans as pieces.
    ///
    /// # Safety
    ///
    /// Every range stays mapped for `'a`.
    #[inline]
    pub(crate) const unsafe fn from_spans(spans: &'a [Span]) -> &'a [Self] {
        // SAFETY: `Piece` is a transparent wrapper of `Span`; the mapping is the caller's word.
        unsafe { std::slice::from_raw_parts(spans.as_ptr().cast(), spans.len()) }
    }
}

impl<'a> From<&'a [u8]> for Piece<'a> {
    /// A slice of ours as a piece, which is only ever read.
    #[inline]
    fn from(bytes: &'a [u8]) -> Self {
        Self {
            span: Span {
                ptr: NonNull::from(bytes).cast(),
                len: bytes.len(),
            },
            _memory: PhantomData,
        }
    }
}

impl std::fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({} bytes)", self.len())
    }
}

/// A run of bytes cut into pieces, in order; or a part of such a run.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    list: &'a [Piece<'a>],
    skip: usize,
    len: usize,
}

impl<'a> Pieces<'a> {
    /// No bytes.
    #[inline]
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            list: &[],
            skip: 0,
            len: 0,
        }
    }

    /// All bytes of `list`.
    #[inline]
    #[must_use]
    pub fn from_slice(list: &'a [Piece<'a>]) -> Self {
        Self {
            list,
            skip: 0,
            len: list.iter().map(|piece| piece.len()).sum(),
        }
    }

    /// Bytes of `list` known to sum up to `len`.
    #[inline]
    pub(crate) const fn with_len(list: &'a [Piece<'a>], len: usize) -> Self {
        Self { list, skip: 0, len }
    }

    /// Length in bytes, over all pieces.
    #[inline]
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes from `offset` on, cut off at the end. One segment's payload, for example.
    #[inline]
    #[must_use]
    pub fn part(self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self {
            list: self.list,
            skip: self.skip + offset,
            len: len.min(self.len - offset),
        }
    }

    /// The pieces in order, none empty.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Piece<'a>> {
        let (mut skip, mut left) = (self.skip, self.len);
        let list = if left == 0 { &[] } else { self.list };
        list.iter().filter_map(move |piece| {
            let trimmed = piece.trim(skip, left);
            skip = skip.saturating_sub(piece.len());
            left -= trimmed.len();
            (!trimmed.is_empty()).then_some(trimmed)
        })
    }

    /// Copies from `offset` on into `to`, as much as both have; says how much that was.
    pub fn copy_to(self, offset: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.part(offset, to.len()).iter() {
            done += piece.copy_to(0, &mut to[done..]);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_nothing() {
        assert!(Pieces::empty().is_empty());
        assert_eq!(Pieces::empty().copy_to(0, &mut [0; 4]), 0);
        let list = [Piece::from(&b""[..]), Piece::from(&b""[..])];
        let pieces = Pieces::from_slice(&list);
        assert_eq!(pieces.len(), 0);
        assert_eq!(pieces.iter().count(), 0);
        assert_eq!(pieces.part(5, 5).copy_to(7, &mut [0; 4]), 0);
    }

    proptest! {
        #[test]
        fn any_cut_reads_like_the_whole(
            cuts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            first in (0usize..40, 0usize..40),
            second in (0usize..40, 0usize..40),
        ) {
            let whole: Vec<u8> = cuts.concat();
            let list: Vec<Piece<'_>> = cuts.iter().map(|cut| Piece::from(&cut[..])).collect();
            let part = |bytes: &[u8], (offset, len): (usize, usize)| -> Vec<u8> {
                bytes.iter().copied().skip(offset).take(len).collect()
            };
            let expected = part(&part(&whole, first), second);

            let pieces = Pieces::from_slice(&list).part(first.0, first.1);
            let mut read = vec![0; second.1];
            let count = pieces.copy_to(second.0, &mut read);
            prop_assert_eq!(&read[..count], &expected[..]);

            let nested = pieces.part(second.0, second.1);
            prop_assert_eq!(nested.len(), expected.len());
            prop_assert_eq!(nested.iter().map(Piece::len).sum::<usize>(), expected.len());
        }
    }
}
