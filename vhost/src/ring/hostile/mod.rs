//! What hostile guests do to rings, by name: each way a vhost back-end is known to have been broken from inside a guest, and
//! what the look ahead adds to them, over both layouts and in both directions.
//!
//! Every test is written once, against a [`Driver`], and run over a [`Split`] and a [`Packed`] ring. Where a row speaks of
//! a race, a [`Racer`] rewrites guest memory from another thread meanwhile. `docs/threat-model.md` lists which test stands
//! for which advisory.

mod ahead;
mod chains;
mod driver;
mod mixes;
mod offload;
mod racer;
mod races;
mod rings;

use std::sync::Arc;

use vswitch_packet::VirtioNetHdr;

use self::driver::{Driver, Packed, Split};
use self::racer::Racer;
use super::{ChainError, MAX_BURST, RingError, RxError, RxRing, Setup, TxRing, TxScratch};
use crate::features::{NET_MRG_RXBUF, RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, mask};
use crate::memory::{GuestMemory, Pieces};
use crate::testing::{Guest, WRITE, setup_at};

/// Runs tests over both layouts.
macro_rules! both {
    ($($name:ident),+ $(,)?) => {
        mod split {
            $(#[test] fn $name() { super::$name::<super::Split>(); })+
        }
        mod packed {
            $(#[test] fn $name() { super::$name::<super::Packed>(); })+
        }
    };
}
use both;

const PLAIN: u64 = mask(VERSION_1) | mask(RING_INDIRECT_DESC);
const EVENT: u64 = PLAIN | mask(RING_EVENT_IDX);
const MERGED: u64 = PLAIN | mask(NET_MRG_RXBUF);

const MEMORY: u64 = 0x20_0000;
const RING: u64 = 0x1000;
const TABLES: u64 = 0x4_0000;
const BUFFERS: u64 = 0x8_0000;
/// Bytes of a virtio-net header here.
const HEADER: u32 = 12;

/// A descriptor: address, length, flags.
type Piece = (u64, u32, u16);

/// A guest with one ring.
struct Rig<D> {
    guest: Guest,
    memory: Arc<GuestMemory>,
    driver: D,
}

impl<D: Driver> Rig<D> {
    fn new(size: u16) -> Self {
        let guest = Guest::new(MEMORY);
        let memory = guest.memory(&[]);
        let driver = D::starting_at(&guest, RING, size, 0);
        Self {
            guest,
            memory,
            driver,
        }
    }

    fn setup(&self, features: u64) -> Setup {
        Setup {
            base: self.driver.base(),
            ..setup_at(
                &self.memory,
                self.driver.addresses(),
                self.driver.size(),
                features | D::FEATURES,
            )
        }
    }

    fn tx(&self, features: u64) -> Tx {
        Tx {
            ring: TxRing::start(self.setup(features)).unwrap(),
            scratch: TxScratch::new(),
        }
    }

    fn rx(&self, features: u64) -> RxRing {
        RxRing::start(self.setup(features)).unwrap()
    }

    /// Offers a chain; says where its first descriptor lies.
    fn offer(&mut self, id: u16, chain: &[Piece]) -> u64 {
        self.driver.offer(&self.guest, id, chain)
    }

    fn offer_table(&mut self, id: u16, table: u64, chain: &[Piece]) -> u64 {
        self.driver.offer_table(&self.guest, id, table, chain)
    }

    /// What came back since the last time, in order: ids and lengths.
    fn used(&mut self) -> Vec<(u16, u32)> {
        self.driver.take_used(&self.guest)
    }

    /// The same where a racer may have written over the lengths, which a packed ring has in its descriptors.
    fn used_ids(&mut self) -> Vec<u16> {
        self.used().into_iter().map(|(id, _)| id).collect()
    }

    /// A buffer of its own for everything that has a small number.
    fn buffer(number: u64) -> u64 {
        BUFFERS + 0x1000 * number
    }

    /// Offers header and frame in one piece, the frame's bytes all `byte`.
    fn send(&mut self, id: u16, buffer: u64, len: usize, byte: u8) -> u64 {
        self.guest.write(buffer, &[0; HEADER as usize]);
        self.guest
            .write(buffer + u64::from(HEADER), &vec![byte; len]);
        self.offer(id, &[(buffer, HEADER + len as u32, 0)])
    }
}

/// A transmit ring and where its bursts go.
struct Tx {
    ring: TxRing,
    scratch: TxScratch,
}

/// A frame as it was taken: header and bytes.
type Taken = Result<(VirtioNetHdr, Vec<u8>), ChainError>;

impl Tx {
    /// A burst, copied out and given back.
    fn take(&mut self, max: usize) -> Result<Vec<Taken>, RingError> {
        let burst = self.ring.take(&mut self.scratch, max)?;
        assert!(burst.len() <= max.min(MAX_BURST));
        let frames = burst
            .iter()
            .map(|frame| {
                frame.map(|frame| {
                    let mut bytes = frame.head.to_vec();
                    bytes.resize(frame.len as usize, 0);
                    let copied = frame.tail.copy_to(0, &mut bytes[frame.head.len()..]);
                    assert_eq!(frame.head.len() + copied, frame.len as usize);
                    (frame.header, bytes)
                })
            })
            .collect();
        self.ring.complete();
        Ok(frames)
    }

    /// Everything on offer.
    fn drain(&mut self) -> Vec<Taken> {
        let mut all = Vec::new();
        loop {
            let frames = self.take(MAX_BURST).unwrap();
            if frames.is_empty() {
                return all;
            }
            all.extend(frames);
        }
    }

    /// The same, bytes only.
    fn frames(&mut self) -> Vec<Result<Vec<u8>, ChainError>> {
        let frames = self.drain();
        frames
            .into_iter()
            .map(|frame| frame.map(|(_, bytes)| bytes))
            .collect()
    }
}

/// Delivers one frame in a burst of its own.
fn put(ring: &mut RxRing, frame: &[u8]) -> Result<(), RxError> {
    let Ok(mut burst) = ring.begin(1) else {
        return Err(RxError::Full);
    };
    let result = burst.put(&VirtioNetHdr::default(), &[frame], Pieces::empty());
    burst.finish();
    result
}

/// Bytes that tell where they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}
