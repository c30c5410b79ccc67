//! What a receiver cannot do for itself: checksums and segmentation in software.
//!
//! A frame whose sender left work to offloads goes out as it is if the receiver negotiated them, with a header built
//! anew. Otherwise it is copied once into a buffer of the worker's, finished there, and written from there: the slow
//! path, for guests without offloads.

use vswitch_packet::{
    Accepts, Checksums, HEAD_LEN, HeadEdit, MAX_FRAME_LEN, Offload, Segmenter, VirtioNetHdr,
    complete_checksum,
};
use vswitch_vhost::{Piece, Pieces, TxFrame};

use super::counters::OutputDrop;
use super::deliver::Outcome;

/// Where the type behind the first tag is, and what it is if a second one follows.
const SECOND_TAG: std::ops::Range<usize> = 16..18;
const TPID_VLAN: [u8; 2] = [0x81, 0x00];

/// A tag may come on top of the largest frame.
const LARGEST: usize = MAX_FRAME_LEN + 4;

/// A worker's buffer for frames that software has to finish.
pub struct Finisher {
    frame: Vec<u8>,
    segment_head: [u8; HEAD_LEN],
}

impl Default for Finisher {
    fn default() -> Self {
        Finisher {
            frame: Vec::with_capacity(LARGEST),
            segment_head: [0; HEAD_LEN],
        }
    }
}

impl Finisher {
    /// Gives one frame to `put`, as the receiver can take it: once as it is, or once per segment. The header says what
    /// is left to the receiver, the slices and the pieces are the frame.
    #[inline]
    pub fn deliver(
        &mut self,
        frame: &TxFrame<'_>,
        edit: HeadEdit,
        offload: &Offload,
        accepts: Accepts,
        mut put: impl FnMut(&VirtioNetHdr, &[&[u8]], Pieces<'_>) -> Result<(), OutputDrop>,
    ) -> Outcome {
        if edit == HeadEdit::Pop && frame.head.get(SECOND_TAG) == Some(&TPID_VLAN[..]) {
            return Outcome::dropped(OutputDrop::DoubleTagged);
        }
        let mut tag = [0; 4];
        let (parts, shift) = edit.parts(frame.head, &mut tag);
        let Some(mut header) = offload.header_for(accepts) else {
            let finished = self.finish(&parts, frame.tail, &moved(*offload, shift), put);
            return finished.unwrap_or_else(Outcome::dropped);
        };
        edit.adjust(&mut header);
        match put(&header, &parts, frame.tail) {
            Ok(()) => Outcome::sent(1, frame.len.saturating_add_signed(i32::from(shift))),
            Err(reason) => Outcome::dropped(reason),
        }
    }

    /// The slow path.
    #[cold]
    fn finish(
        &mut self,
        parts: &[&[u8]; 3],
        tail: Pieces<'_>,
        offload: &Offload,
        mut put: impl FnMut(&VirtioNetHdr, &[&[u8]], Pieces<'_>) -> Result<(), OutputDrop>,
    ) -> Result<Outcome, OutputDrop> {
        let head: usize = parts.iter().map(|p| p.len()).sum();
        let len = head + tail.len();
        if len > LARGEST {
            return Err(OutputDrop::OffloadFailed);
        }
        self.frame.clear();
        parts.iter().for_each(|p| self.frame.extend_from_slice(p));
        self.frame.resize(len, 0);
        if let Some(rest) = self.frame.get_mut(head..) {
            tail.copy_to(0, rest);
        }
        let plain = VirtioNetHdr::default();
        if offload.gso.is_none() {
            if let Some(csum) = offload.csum {
                complete_checksum(&mut self.frame, csum);
            }
            put(&plain, &[&self.frame], Pieces::empty())?;
            return Ok(Outcome::sent(1, len as u32));
        }
        let checksums = Checksums::Complete { frame: &self.frame };
        let mut segments = self
            .frame
            .get(..len.min(HEAD_LEN))
            .and_then(|head| Segmenter::new(head, offload, checksums))
            .ok_or(OutputDrop::OffloadFailed)?;
        let (mut packets, mut sent) = (0, 0);
        while let Some(segment) = segments.next_segment(&mut self.segment_head) {
            let (Some(header), Some(payload)) = (
                self.segment_head.get(..segment.header_len),
                self.frame.get(segment.payload),
            ) else {
                return Err(OutputDrop::OffloadFailed);
            };
            let bytes = payload.len();
            let payload = [Piece::from(payload)];
            put(&plain, &[header], Pieces::from_slice(&payload))?;
            packets += 1;
            sent += (header.len() + bytes) as u32;
        }
        Ok(Outcome::sent(packets, sent))
    }
}

/// The request for a frame that has grown by `shift` bytes in front of its network header.
pub fn moved(mut offload: Offload, shift: i8) -> Offload {
    let shift = i16::from(shift);
    if let Some(csum) = &mut offload.csum {
        csum.start = csum.start.saturating_add_signed(shift);
    }
    if let Some(gso) = &mut offload.gso {
        gso.l3_offset = gso.l3_offset.saturating_add_signed(shift);
        gso.header_len = gso.header_len.saturating_add_signed(shift);
    }
    offload
}
