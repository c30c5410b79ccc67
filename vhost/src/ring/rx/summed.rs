//! Frames whose checksum is taken while they are copied.

use vswitch_packet::{Sum, VirtioNetHdr};

use super::{Filling, RxError, Writer, with_buffers};
use crate::memory::Pieces;
use crate::ring::layout::Layout;

impl<L: Layout> Filling<'_, L> {
    /// See [`RxBurst::put_summed`](crate::ring::RxBurst::put_summed).
    pub(super) fn sum_and_put(
        &mut self,
        header: &VirtioNetHdr,
        head: &mut [u8],
        tail: Pieces<'_>,
        mut sum: Sum,
        finish: impl FnOnce(&mut [u8], Sum),
    ) -> Result<(), RxError> {
        self.pass();
        let header_len = self.ring.core.header_len;
        let needed = header_len + head.len() + tail.len();
        self.ring.collect(needed, &mut self.effort)?;
        // At most MAX_CHAINS.
        let header = with_buffers(header, self.ring.chains.len() as u16);
        let mut behind = Writer::new(self.ring.spans.as_slice());
        behind.skip(header_len + head.len());
        // SAFETY: the spans were resolved in the memory that the ring holds; `tail` is mapped for its lifetime.
        unsafe {
            for piece in tail.iter() {
                behind.copy_summing(piece, &mut sum);
            }
        }
        finish(head, sum);
        let mut front = Writer::new(self.ring.spans.as_slice());
        // SAFETY: as above.
        unsafe {
            front.write(&header[..header_len]);
            front.write(head);
        }
        self.ring.return_collected(needed);
        Ok(())
    }
}
