//! Switch to guest.
//!
//! A frame first collects as many buffers as it needs, so that the header can say how many, and is then written once, front
//! to back. Whether the guest sees it at once or with the rest of its burst is decided by [`RxBurst::finish`].

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vswitch_packet::VirtioNetHdr;

use super::chain::{Direction, Spans, Walker};
use super::core::{Core, Setup};
use super::{ChainError, MAX_CHAIN, QueuePair, RingError};
use crate::features;
use crate::memory::{GuestMemory, Piece, Pieces, Span};

/// Receive chains that one frame may be merged from. It also ends with the chain that makes it [`MAX_CHAIN`] descriptors.
pub const MAX_CHAINS: usize = 256;

/// Pieces that the chains of one frame may have together.
const MAX_PIECES: usize = 4_096;

/// What the guest at the other end of a receive queue can take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxFeatures {
    /// A frame may lie in several buffers.
    pub mergeable: bool,
    /// A frame may lack its checksum.
    pub csum: bool,
    /// A frame may be a TCP over IPv4 segmentation request.
    pub tso4: bool,
    /// A frame may be a TCP over IPv6 segmentation request.
    pub tso6: bool,
    /// A segmentation request may carry CWR.
    pub ecn: bool,
}

impl RxFeatures {
    fn new(virtio: u64) -> Self {
        let has = |bit| features::has(virtio, bit);
        // Segments lack their checksums, so a guest that takes no such frame takes no segments (virtio 1.2, section 5.1.3.1).
        let csum = has(features::NET_GUEST_CSUM);
        Self {
            mergeable: has(features::NET_MRG_RXBUF),
            csum,
            tso4: csum && has(features::NET_GUEST_TSO4),
            tso6: csum && has(features::NET_GUEST_TSO6),
            ecn: csum && has(features::NET_GUEST_ECN),
        }
    }
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum RxError {
    /// Too few buffers on offer, also at a second look. Nothing was used up.
    #[error("the guest offers too few receive buffers")]
    Full,
    /// The guest's buffers cannot hold a frame of this length. Nothing was used up.
    #[error("the guest's receive buffers are too small for the frame")]
    TooBig,
    /// A buffer was malformed, or too short for the header; it went back with length 0.
    #[error("the guest offers a malformed receive buffer: {0}")]
    Malformed(ChainError),
}

/// A receive queue, started and enabled.
pub struct RxRing {
    core: Core,
    accepts: RxFeatures,
    spans: Spans,
    /// At most [`MAX_CHAINS`], which is reserved.
    chains: Vec<Chain>,
}

/// A collected chain and what it holds.
#[derive(Clone, Copy)]
struct Chain {
    head: u16,
    room: usize,
}

impl RxRing {
    pub(crate) fn start(setup: Setup) -> Result<Self, RingError> {
        let accepts = RxFeatures::new(setup.features);
        Ok(Self {
            core: Core::start(setup)?,
            accepts,
            spans: Spans::new(MAX_PIECES),
            chains: Vec::with_capacity(MAX_CHAINS),
        })
    }

    /// Begins to deliver.
    ///
    /// # Errors
    ///
    /// The ring has stopped, now or before. Its session is told and will come to fetch it.
    #[inline]
    pub fn begin(&mut self) -> Result<RxBurst<'_>, RingError> {
        self.core.check()?;
        let mut looked = false;
        if self.core.seen() == 0 {
            self.core.look()?;
            looked = true;
        }
        Ok(RxBurst { ring: self, looked })
    }

    /// Calls the guest if it wants to hear of what was delivered; true if it was called.
    ///
    /// # Errors
    ///
    /// The call could not be written; it is tried again after the next delivery.
    #[inline]
    pub fn signal(&mut self) -> io::Result<bool> {
        self.core.notify()
    }

    /// What the guest can take.
    #[inline]
    #[must_use]
    pub fn accepts(&self) -> RxFeatures {
        self.accepts
    }

    /// Descriptors of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.core.ring.size()
    }

    /// Which queue this is.
    #[inline]
    #[must_use]
    pub fn queue_pair(&self) -> QueuePair {
        self.core.pair
    }

    pub(crate) fn set_call(&mut self, call: Option<Arc<OwnedFd>>) {
        self.core.set_call(call);
    }

    pub(crate) fn rebind(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        self.core.rebind(memory)
    }

    pub(crate) fn error(&self) -> Option<RingError> {
        self.core.error()
    }

    /// Publishes everything written and says where the ring stands.
    pub(crate) fn settle(&mut self) -> u16 {
        self.core.publish();
        self.core.next
    }

    /// Collects chains until they hold `needed` bytes.
    #[inline]
    fn collect(&mut self, needed: usize, looked: &mut bool) -> Result<(), RxError> {
        self.chains.clear();
        self.spans.truncate(0);
        let core = &mut self.core;
        let (mut room, mut walked) = (0, 0);
        loop {
            // At most MAX_CHAINS.
            let ahead = self.chains.len() as u16;
            if ahead == core.seen() {
                if *looked {
                    return Err(RxError::Full);
                }
                *looked = true;
                // A ring that breaks here is as good as full, and says so at the next burst.
                if core.look().map_err(|_| RxError::Full)? <= ahead {
                    return Err(RxError::Full);
                }
            }
            let head = match core.head(ahead) {
                Ok(head) => head,
                Err(error) => {
                    core.break_with(error);
                    return Err(RxError::Full);
                }
            };
            let mut walker = Walker {
                ring: &core.ring,
                memory: &core.memory,
                window: &mut core.window,
                direction: Direction::Receive,
                indirect: core.indirect,
                walked,
            };
            let chain = walker.walk(head, &mut self.spans).and_then(|room| {
                let least = if ahead == 0 { core.header_len + 1 } else { 1 };
                if room < least {
                    Err(ChainError::Short)
                } else {
                    Ok(room)
                }
            });
            walked = walker.walked;
            match chain {
                Ok(more) => {
                    room += more;
                    self.chains.push(Chain { head, room: more });
                }
                Err(ChainError::TooManyPieces) if ahead > 0 => return Err(RxError::TooBig),
                Err(error) => {
                    // In order, or the ring could not resume: what was collected before goes back too.
                    for chain in self.chains.drain(..) {
                        core.give_back(chain.head, 0);
                    }
                    core.give_back(head, 0);
                    return Err(RxError::Malformed(error));
                }
            }
            if room >= needed {
                return Ok(());
            }
            let spent = self.chains.len() == MAX_CHAINS || walked >= usize::from(MAX_CHAIN);
            if spent || !self.accepts.mergeable {
                return Err(RxError::TooBig);
            }
        }
    }
}

impl std::fmt::Debug for RxRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RxRing")
            .field("pair", &self.core.pair)
            .field("next", &self.core.next)
            .finish_non_exhaustive()
    }
}

/// Frames delivered together.
pub struct RxBurst<'r> {
    ring: &'r mut RxRing,
    /// The available index was looked at in this burst.
    looked: bool,
}

impl RxBurst<'_> {
    /// Delivers one frame: `header` (its `num_buffers` is filled in here), then `parts` in order, then `tail`.
    ///
    /// # Errors
    ///
    /// Why it was not delivered. The burst goes on.
    #[inline]
    pub fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), RxError> {
        let ring = &mut *self.ring;
        let len = parts.iter().map(|part| part.len()).sum::<usize>() + tail.len();
        let header_len = ring.core.header_len;
        let needed = header_len + len;
        ring.collect(needed, &mut self.looked)?;

        let header = VirtioNetHdr {
            // At most MAX_CHAINS.
            num_buffers: ring.chains.len() as u16,
            ..*header
        }
        .to_bytes();
        let mut writer = Writer {
            spans: ring.spans.as_slice().iter(),
            room: None,
        };
        // SAFETY: the spans were resolved just now, in the memory that the ring holds; `tail` is mapped for its lifetime.
        unsafe {
            writer.write(&header[..header_len]);
            for part in parts {
                writer.write(part);
            }
            for piece in tail.iter() {
                writer.copy(piece);
            }
        }
        let mut left = needed;
        for chain in &ring.chains {
            let used = left.min(chain.room);
            left -= used;
            // Frames are shorter than 4 GiB by far: parts and tail come from frames.
            ring.core.give_back(chain.head, used as u32);
        }
        Ok(())
    }

    /// Whether the guest has no buffer left: then nothing fits, however small, and preparing a frame is in vain.
    #[inline]
    #[must_use]
    pub fn is_full(&mut self) -> bool {
        let core = &mut self.ring.core;
        if core.seen() == 0 && !self.looked {
            self.looked = true;
            // A ring that turns out broken here says so at its next use.
            let _ = core.look();
        }
        core.seen() == 0
    }

    /// Shows the guest everything delivered; says how many buffers that took.
    #[inline]
    pub fn finish(self) -> u16 {
        self.ring.core.publish()
    }
}

/// Writes front to back over spans that are known to have room.
struct Writer<'a> {
    spans: std::slice::Iter<'a, Span>,
    room: Option<Span>,
}

impl Writer<'_> {
    #[inline]
    fn room(&mut self) -> Option<Span> {
        match self.room {
            Some(span) if span.len() > 0 => Some(span),
            _ => self.spans.next().copied(),
        }
    }

    /// # Safety
    ///
    /// The spans are mapped.
    #[inline]
    unsafe fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(span) = self.room() else { return };
            // SAFETY: mapped, by the caller's word.
            let count = unsafe { span.write(bytes) };
            bytes = &bytes[count..];
            self.room = Some(span.skip(count));
        }
    }

    /// # Safety
    ///
    /// The spans are mapped.
    #[inline]
    unsafe fn copy(&mut self, piece: Piece<'_>) {
        let mut done = 0;
        while done < piece.len() {
            let Some(span) = self.room() else { return };
            // SAFETY: mapped, by the caller's word, and the piece by its lifetime.
            let count = unsafe { span.copy_from(piece.tail(done)) };
            done += count;
            self.room = Some(span.skip(count));
        }
    }
}

#[cfg(test)]
mod tests;
