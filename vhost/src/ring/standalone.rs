//! Rings without a session, for whoever has both ends of them: benches and tests that lay a guest's memory out themselves.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::core::{Setup, Trouble};
use super::layout::{Base, RingAddresses};
use super::{QueuePair, RingError, RxRing, TxRing, packed, split};
use crate::event::Event;
use crate::features;
use crate::memory::{GuestMemory, UserAddr};

/// A ring of whose driver nobody has taken or been given anything yet, and what a front-end would say about it.
#[derive(Clone, Debug)]
pub struct Standalone {
    /// Which pair of queues it belongs to.
    pub pair: QueuePair,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The descriptor table, or the packed ring itself.
    pub descriptors: UserAddr,
    /// The available ring, or the driver's event suppression.
    pub available: UserAddr,
    /// The used ring, or the device's event suppression.
    pub used: UserAddr,
    /// Entries: 2 to 32,768, a power of two unless packed.
    pub size: u16,
    /// Virtio features, as if the driver had acknowledged them.
    pub features: u64,
    /// What is written to when the guest wants to be called.
    pub call: Option<Arc<OwnedFd>>,
}

/// Why a ring cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// No ring has so many entries.
    #[error("a ring of {0} entries; it takes 2 to 32768, and a power of two unless it is packed")]
    Size(u16),
    /// Its parts are not where they are said to be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The system gave no descriptor.
    #[error("no event descriptor for a ring: {0}")]
    System(#[from] io::Error),
}

impl Standalone {
    fn setup(&self) -> Result<Setup, StandaloneError> {
        let is_packed = features::has(self.features, features::RING_PACKED);
        let most = if is_packed {
            packed::MAX_SIZE
        } else {
            split::MAX_SIZE
        };
        let fits = (2..=most).contains(&self.size) && (is_packed || self.size.is_power_of_two());
        if !fits {
            return Err(StandaloneError::Size(self.size));
        }
        let call = self.call.as_ref().map(|call| call.try_clone());
        let call = call.transpose()?;
        // Both wrap counters of a packed ring begin with 1 (virtio 1.2, section 2.8.1).
        let base = if is_packed { 0x8000_8000 } else { 0 };
        Ok(Setup {
            pair: self.pair,
            memory: Arc::clone(&self.memory),
            addresses: RingAddresses {
                descriptors: self.descriptors,
                available: self.available,
                used: self.used,
            },
            size: self.size,
            base: Base::Claimed(base),
            features: self.features,
            kick: None,
            call: call.map(|fd| Arc::new(Event::from(fd))),
            enabled: true,
            trouble: Trouble::new()?,
        })
    }
}

impl TxRing {
    /// Starts a transmit queue that no session stands behind; it is enabled, and has to be polled.
    ///
    /// # Errors
    ///
    /// See [`StandaloneError`].
    pub fn standalone(ring: &Standalone) -> Result<Self, StandaloneError> {
        Ok(Self::start(ring.setup()?)?)
    }
}

impl RxRing {
    /// Starts a receive queue that no session stands behind.
    ///
    /// # Errors
    ///
    /// See [`StandaloneError`].
    pub fn standalone(ring: &Standalone) -> Result<Self, StandaloneError> {
        Ok(Self::start(ring.setup()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Guest;

    #[test]
    fn a_size_that_no_ring_has_is_refused() {
        let guest = Guest::new(0x1_0000);
        let ring = |size, features| Standalone {
            pair: QueuePair(0),
            memory: guest.memory(&[]),
            descriptors: UserAddr(0),
            available: UserAddr(0),
            used: UserAddr(0),
            size,
            features,
            call: None,
        };
        let packed = 1 << features::RING_PACKED;
        for (size, features) in [
            (0, 0),
            (1, 0),
            (24, 0),
            (40_000, 0),
            (1, packed),
            (32_769, packed),
        ] {
            let started = TxRing::standalone(&ring(size, features));
            assert!(matches!(started, Err(StandaloneError::Size(s)) if s == size));
        }
        let nowhere = RxRing::standalone(&ring(64, 0));
        assert!(matches!(
            nowhere,
            Err(StandaloneError::Ring(RingError::Part(_)))
        ));
    }
}
