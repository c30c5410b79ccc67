//! The device's end of one ring.

use std::sync::atomic::{Ordering, fence};

use crate::driver::{Notifier, Ring, RingParts};
use crate::features::virtio;
use crate::memory::{Desc, Memory, View};

use super::packed::PackedEnd;

/// The device's end of one ring.
#[derive(Debug)]
pub(super) struct End {
    /// Where it stands, if the ring is packed: the indices below are then not used.
    packed: Option<PackedEnd>,
    pub(super) parts: RingParts,
    pub(super) windows: Vec<(u64, View<u8>)>,
    notifier: Notifier,
    pub(super) features: u64,
    pub(super) next: u16,
    seen: u16,
    pub(super) used: u16,
    published: u16,
    signalled: u16,
    /// The guest wanted no interrupts when last looked at. Event indices say nothing of the kind.
    quiet: bool,
}

impl End {
    pub(super) fn new(memory: &Memory, ring: &Ring, notifier: &Notifier, features: u64) -> Self {
        let parts = ring.parts();
        let packed = ring.as_packed().map(|ring| PackedEnd::new(ring, features));
        let (mut at, mut quiet) = (0, false);
        if packed.is_none() {
            // The device is polling: it wants no kicks.
            parts.set_used_flags(1);
            at = parts.used_idx();
            quiet = features & virtio::EVENT_IDX == 0 && parts.avail_flags() & 1 != 0;
        }
        Self {
            packed,
            parts: parts.clone(),
            windows: memory.windows(),
            notifier: notifier.clone(),
            features,
            next: at,
            seen: at,
            used: at,
            published: at,
            signalled: at,
            quiet,
        }
    }

    pub(super) fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Chains that are there and not yet used. What the guest shows is looked at only if fewer than `wanted` are known.
    #[inline]
    pub(super) fn available(&mut self, wanted: u16) -> u16 {
        if let Some(packed) = &mut self.packed {
            return packed.available(wanted);
        }
        if self.known() < wanted {
            self.seen = self.parts.avail_idx();
        }
        self.known()
    }

    /// Chains known to be there.
    #[inline(always)]
    pub(super) fn known(&self) -> u16 {
        if let Some(packed) = &self.packed {
            return packed.known();
        }
        self.seen.wrapping_sub(self.next)
    }

    /// So many more chains of a split ring have been given back, in used entries that are written.
    #[inline(always)]
    pub(super) fn went(&mut self, count: u16) {
        self.used = self.used.wrapping_add(count);
        self.next = self.next.wrapping_add(count);
    }

    #[inline]
    pub(super) fn resolve(&self, desc: Desc) -> Option<(&View<u8>, usize, usize)> {
        self.windows.iter().find_map(|(guest, view)| {
            let offset = desc.addr.checked_sub(*guest)? as usize;
            (offset < view.len()).then_some((view, offset, desc.len as usize))
        })
    }

    /// The head (or buffer id) of the chain `ahead`, which must be known, and its first descriptor.
    #[inline(always)]
    pub(super) fn first(&self, ahead: u16) -> (u16, Desc) {
        if let Some(packed) = &self.packed {
            return packed.first(ahead);
        }
        let head = self.parts.avail_entry(self.next.wrapping_add(ahead));
        (head, self.parts.desc.load(usize::from(head)))
    }

    /// The chain `ahead`, which must be known, as descriptors, and its head (or buffer id).
    #[inline]
    pub(super) fn chain(&self, ahead: u16, chain: &mut Vec<Desc>) -> u16 {
        chain.clear();
        if let Some(packed) = &self.packed {
            return packed.chain(ahead, chain);
        }
        let (head, mut desc) = self.first(ahead);
        let table = if desc.flags & Desc::INDIRECT != 0 {
            let start = (desc.addr - self.parts.tables_guest) as usize / Desc::SIZE;
            let table = self
                .parts
                .tables
                .slice(start, desc.len as usize / Desc::SIZE);
            desc = table.load(0);
            Some(table)
        } else {
            None
        };
        loop {
            chain.push(desc);
            if desc.flags & Desc::NEXT == 0 {
                return head;
            }
            desc = table
                .as_ref()
                .unwrap_or(&self.parts.desc)
                .load(usize::from(desc.next));
        }
    }

    #[inline]
    pub(super) fn give_back(&mut self, head: u16, len: u32) {
        if let Some(packed) = &mut self.packed {
            return packed.give_back(len);
        }
        self.parts.set_used_entry(self.used, u32::from(head), len);
        self.went(1);
    }

    /// Shows the guest what it got back, and interrupts it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self) {
        match &mut self.packed {
            Some(packed) => packed.publish(),
            None if self.published == self.used => return,
            None => {
                self.published = self.used;
                self.parts.set_used_idx(self.used);
            }
        }
        // A guest that was polling may be about to sleep. To see that now takes a barrier, which waits for all stores
        // of this turn; it is seen in the first turn without work, before which it does no harm.
        if !self.quiet {
            self.settle();
        }
    }

    /// Decides whether the guest is to be interrupted for what has been published so far.
    pub(super) fn settle(&mut self) {
        if self.is_settled() {
            return;
        }
        fence(Ordering::SeqCst);
        let wanted = match &mut self.packed {
            Some(packed) => {
                let wish = packed.wish();
                self.quiet = wish.is_none();
                wish.unwrap_or(false)
            }
            None => self.wanted(),
        };
        if wanted {
            let _ = rustix::io::write(self.notifier.call_fd(), &1u64.to_ne_bytes());
        }
    }

    /// Whether nothing has been published since the guest's wish was last looked at.
    fn is_settled(&self) -> bool {
        match &self.packed {
            Some(packed) => packed.is_settled(),
            None => self.signalled == self.published,
        }
    }

    /// Whether the guest of a split ring wants to be interrupted.
    fn wanted(&mut self) -> bool {
        let old = std::mem::replace(&mut self.signalled, self.published);
        if self.features & virtio::EVENT_IDX != 0 {
            return crate::driver::passed(self.parts.used_event(), old, self.published);
        }
        self.quiet = self.parts.avail_flags() & 1 != 0;
        !self.quiet
    }
}
