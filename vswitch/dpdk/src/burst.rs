//! An array of packet buffers, the unit in which frames are received, sent and freed.

use std::fmt;
use std::mem::{self, MaybeUninit};
use std::ops::{Deref, DerefMut};

use crate::mbuf::Mbuf;

/// Frames per burst, at most.
pub const BURST: usize = 32;

/// Up to [`BURST`] packet buffers, in order. It derefs to `[Mbuf]`, and frees in bulk what is
/// still in it when dropped.
pub struct MbufBurst {
    // The first `len` are initialised, and owned by this burst.
    mbufs: [MaybeUninit<Mbuf>; BURST],
    len: u16,
}

impl MbufBurst {
    /// An empty burst.
    pub const fn new() -> Self {
        Self {
            mbufs: [const { MaybeUninit::uninit() }; BURST],
            len: 0,
        }
    }

    /// True if nothing more fits.
    pub fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more fit.
    pub fn room(&self) -> usize {
        BURST - usize::from(self.len)
    }

    /// Adds one at the end, or gives it back when the burst is full.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged.
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        match self.mbufs.get_mut(usize::from(self.len)) {
            Some(slot) => {
                slot.write(mbuf);
                self.len += 1;
                Ok(())
            }
            None => Err(mbuf),
        }
    }

    /// Takes the last one.
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: it was within the first `len`, and no longer is.
        Some(unsafe { self.mbufs[usize::from(self.len)].assume_init_read() })
    }

    /// Takes all of them, first to last.
    pub fn drain(&mut self) -> impl Iterator<Item = Mbuf> + '_ {
        // Reversed in place, so that what the iterator leaves is a burst like any other.
        self.reverse();
        std::iter::from_fn(|| self.pop())
    }

    /// Takes the one at `index`; those behind it move up. `None` if there is none.
    pub fn remove(&mut self, index: usize) -> Option<Mbuf> {
        self.get_mut(index..)
            .filter(|tail| !tail.is_empty())?
            .rotate_left(1);
        self.pop()
    }

    /// Frees all of them, in bulk.
    pub fn clear(&mut self) {
        let n = mem::take(&mut self.len);
        if n == 0 {
            return;
        }
        // SAFETY: the first `n` were owned by this burst, which has just forgotten them.
        unsafe { dpdk_sys::rte_pktmbuf_free_bulk(self.as_raw(), u32::from(n)) };
    }

    /// Appends what `fill` writes: it gets room for that many pointers and returns how many of
    /// them it wrote, each a buffer that it gives up.
    pub(crate) fn extend_raw(
        &mut self,
        fill: impl FnOnce(*mut *mut dpdk_sys::rte_mbuf, u16) -> u16,
    ) -> u16 {
        let room = self.room() as u16;
        // SAFETY: `len` is at most BURST, so the pointer is within the array or just past it.
        let spare = unsafe { self.as_raw().add(usize::from(self.len)) };
        let n = fill(spare, room).min(room);
        self.len += n;
        n
    }

    /// Hands the buffers to `send`, which returns how many of the first ones it took over.
    pub(crate) fn take_raw(
        &mut self,
        send: impl FnOnce(*mut *mut dpdk_sys::rte_mbuf, u16) -> u16,
    ) -> u16 {
        let sent = send(self.as_raw(), self.len).min(self.len);
        self.len -= sent;
        let raw = self.as_raw();
        // SAFETY: the rest, `len` pointers from `sent` on, lies within the array, which `copy` may
        // overlap; the first `sent` are no longer ours and may be overwritten.
        unsafe { std::ptr::copy(raw.add(usize::from(sent)), raw, usize::from(self.len)) };
        sent
    }

    /// `Mbuf` is a transparent non-null pointer, so an array of it is one of raw pointers.
    fn as_raw(&mut self) -> *mut *mut dpdk_sys::rte_mbuf {
        self.mbufs.as_mut_ptr().cast()
    }
}

impl Default for MbufBurst {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for MbufBurst {
    type Target = [Mbuf];

    fn deref(&self) -> &[Mbuf] {
        // SAFETY: the first `len` are initialised.
        unsafe { self.mbufs[..usize::from(self.len)].assume_init_ref() }
    }
}

impl DerefMut for MbufBurst {
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        // SAFETY: the first `len` are initialised.
        unsafe { self.mbufs[..usize::from(self.len)].assume_init_mut() }
    }
}

impl Drop for MbufBurst {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for MbufBurst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
