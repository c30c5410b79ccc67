//! Guest memory: what the front-end shares, mapped here, and the only ways to touch it.
//!
//! A front-end describes its guest's memory as regions, each a range of a file that it passes along. A region has three
//! addresses: where the guest sees it ([`GuestAddr`], used in descriptors), where the front-end sees it ([`UserAddr`], used
//! for the rings themselves), and where we have mapped it. [`GuestMemory`] is an immutable, sorted table of regions;
//! adding or removing one makes a new table that shares the others, so nothing is mapped twice and whoever still holds
//! the old table may go on reading through it.
//!
//! Bytes in there change while we look. They are therefore never a `&[u8]`: an address range is looked up once and becomes
//! a [`Piece`], a pointer that travels with its checked length and the lifetime of what keeps the mapping alive, and can
//! only be copied out of or, inside this crate, into.
//!
//! A front-end can shrink the file under a mapping, and touching what is gone raises `SIGBUS`.
//! [`install_sigbus_guard`] turns that into zero bytes and a poisoned region; rings notice and stop, and the session ends.
//!
//! Which files it may be in is judged before anything else is asked of them: [`MemoryFiles`].
//!
//! On which NUMA node it lies is asked through a [`MemoryProbe`], which keeps nothing mapped.
//!
//! Limits: [`MAX_REGIONS`] regions and [`MAX_BYTES`] bytes in a table; [`MAX_MAPPINGS`] mappings in the process.

mod copy;
mod guard;
mod hint;
mod mapping;
mod numa;
mod origin;
mod piece;
mod sum;
mod table;

pub use guard::{MAX_MAPPINGS, install_sigbus_guard, poison_epoch};
pub use mapping::MapError;
pub use numa::{MemoryNode, MemoryProbe};
pub use origin::{MemoryFiles, OriginError};
pub use piece::{Piece, Pieces};
pub use table::{
    GuestAddr, GuestMemory, MAX_BYTES, MAX_REGIONS, MemoryError, Region, RegionSpec, UserAddr,
};

pub(crate) use copy::copy_short;
pub(crate) use hint::{LINE, prefetch_read, prefetch_write};
pub(crate) use origin::{has_seals, is_local};
pub(crate) use piece::Span;
pub(crate) use sum::copy_summing;
pub(crate) use table::{Unmapped, Window};
