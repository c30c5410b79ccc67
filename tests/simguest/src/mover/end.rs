//! The device's end of one ring.

use std::sync::atomic::{Ordering, fence};

use crate::driver::{Notifier, RingParts};
use crate::features::virtio;
use crate::memory::{Desc, Memory, View};

/// The device's end of one ring.
#[derive(Debug)]
pub(super) struct End {
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
    pub(super) fn new(
        memory: &Memory,
        parts: &RingParts,
        notifier: &Notifier,
        features: u64,
    ) -> Self {
        // The device is polling: it wants no kicks.
        parts.set_used_flags(1);
        let at = parts.used_idx();
        Self {
            parts: parts.clone(),
            windows: memory.windows(),
            notifier: notifier.clone(),
            features,
            next: at,
            seen: at,
            used: at,
            published: at,
            signalled: at,
            quiet: features & virtio::EVENT_IDX == 0 && parts.avail_flags() & 1 != 0,
        }
    }

    /// Chains that are there and not yet used. The shared index is read only if fewer than `wanted` are known.
    #[inline]
    pub(super) fn available(&mut self, wanted: u16) -> u16 {
        if self.known() < wanted {
            self.seen = self.parts.avail_idx();
        }
        self.known()
    }

    /// Chains known to be there.
    #[inline(always)]
    pub(super) fn known(&self) -> u16 {
        self.seen.wrapping_sub(self.next)
    }

    /// So many more chains have been given back, in used entries that are written.
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

    /// The chain at the next available entry, as descriptors, and its head.
    #[inline]
    pub(super) fn chain(&self, ahead: u16, chain: &mut Vec<Desc>) -> u16 {
        chain.clear();
        let head = self.parts.avail_entry(self.next.wrapping_add(ahead));
        let mut desc = self.parts.desc.load(usize::from(head));
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
        self.parts.set_used_entry(self.used, u32::from(head), len);
        self.went(1);
    }

    /// Shows the guest what it got back, and interrupts it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.published == self.used {
            return;
        }
        self.published = self.used;
        self.parts.set_used_idx(self.used);
        // A guest that was polling may be about to sleep. To see that now takes a barrier, which waits for all stores
        // of this turn; it is seen in the first turn without work, before which it does no harm.
        if !self.quiet {
            self.settle();
        }
    }

    /// Decides whether the guest is to be interrupted for what has been published so far.
    pub(super) fn settle(&mut self) {
        if self.signalled == self.published {
            return;
        }
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.signalled, self.published);
        let wanted = if self.features & virtio::EVENT_IDX != 0 {
            crate::driver::passed(self.parts.used_event(), old, self.published)
        } else {
            self.quiet = self.parts.avail_flags() & 1 != 0;
            !self.quiet
        };
        if wanted {
            let _ = rustix::io::write(self.notifier.call_fd(), &1u64.to_ne_bytes());
        }
    }
}
