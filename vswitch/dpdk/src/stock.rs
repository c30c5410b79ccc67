//! A worker's stock of empty buffers, and the frames it builds from them.

use crate::burst::MbufBurst;
use crate::mbuf::{Chain, Mbuf};
use crate::mempool::Mempool;

/// The largest frame that a stock builds: 64 KiB of IP, an Ethernet header and a VLAN tag.
const FRAME_MAX: u32 = 65_535 + 18;

/// Empty buffers, refilled from the pool 32 at a time. One per worker.
#[derive(Debug)]
pub struct Stock {
    pool: Mempool,
    empty: MbufBurst,
}

/// Why a frame was not built. Nothing is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The pool has no buffer left.
    #[error("no packet buffer is free; give DPDK ports more of them")]
    NoBuffers,
    /// Larger than any frame.
    #[error("the frame is larger than 65,553 bytes")]
    TooLarge,
    /// The writer wrote less than it was given room for.
    #[error("fewer bytes were written than the frame has")]
    Short,
}

impl Stock {
    /// An empty stock on a pool.
    pub fn new(pool: Mempool) -> Self {
        Self {
            pool,
            empty: MbufBurst::new(),
        }
    }

    /// The pool behind it.
    pub fn pool(&self) -> Mempool {
        self.pool
    }

    /// One empty buffer.
    pub fn take(&mut self) -> Option<Mbuf> {
        if self.empty.is_empty() && !self.pool.alloc_bulk(&mut self.empty) {
            return self.pool.alloc();
        }
        self.empty.pop()
    }

    /// Builds a frame of `len` bytes, over as many buffers as it takes. `write` is called once per
    /// buffer, in order, with the offset in the frame and the bytes to be written, and returns
    /// how many it wrote. What it leaves unwritten would be an earlier frame's, so that a short
    /// write is an error.
    ///
    /// # Errors
    ///
    /// See [`FrameError`]; all buffers are back in the pool then.
    pub fn frame(
        &mut self,
        len: u32,
        mut write: impl FnMut(usize, &mut [u8]) -> usize,
    ) -> Result<Mbuf, FrameError> {
        if len > FRAME_MAX {
            return Err(FrameError::TooLarge);
        }
        let mut first = self.take().ok_or(FrameError::NoBuffers)?;
        let mut at = first.fill(0, len, &mut write)?;
        if at == len {
            return Ok(first);
        }
        let mut chain = Chain::new(first);
        while at < len {
            let mut next = self.take().ok_or(FrameError::NoBuffers)?;
            at = next.fill(at, len, &mut write)?;
            chain.push(next).map_err(|_| FrameError::TooLarge)?;
        }
        Ok(chain.into_frame())
    }
}
