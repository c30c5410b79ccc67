//! What a receiver cannot do for itself: checksums and segmentation in software.
//!
//! A frame whose sender left work to offloads goes out as it is if the receiver negotiated them, with a header built
//! anew. Otherwise software finishes it on its way, in the one copy there is: headers are built in a few bytes of the
//! worker's, payloads go straight from the source's buffers, and are added up as they are written if their checksum is
//! wanted. A receiver that takes frames without checksums gets segments without, and no payload is looked at.

use vswitch_packet::{
    Accepts, Checksums, HEAD_LEN, HeadEdit, MAX_FRAME_LEN, Offload, PartialCsum, Segmenter, Sum,
    VirtioNetHdr, complete_checksum, vlan::TAG_LEN,
};
use vswitch_vhost::{Pieces, Sink, TxFrame};

use super::counters::OutputDrop;
use super::output::{Outcome, PLAIN};

/// Where the type behind the first tag is, and what it is if a second one follows.
const SECOND_TAG: std::ops::Range<usize> = 16..18;
const TPID_VLAN: [u8; 2] = [0x81, 0x00];

/// A tag may come on top of the longest head.
const LONGEST_HEAD: usize = HEAD_LEN + TAG_LEN;

/// Where frames go: the slices and then the pieces are the frame, the header says what is left to the receiver.
pub trait Receiver {
    /// Takes a frame as it is.
    ///
    /// # Errors
    /// Why it did not.
    fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), OutputDrop>;

    /// Takes a frame and completes its checksum, whose field is in the head. `spare` is memory to put a frame together in.
    ///
    /// # Errors
    /// Why it did not.
    fn put_completed(
        &mut self,
        head: &mut [u8],
        tail: Pieces<'_>,
        csum: PartialCsum,
        spare: &mut Vec<u8>,
    ) -> Result<(), OutputDrop>;
}

/// A guest's receive ring, which sums while it copies.
pub struct ToGuest<'b, S>(pub &'b mut S);

impl<S: Sink> Receiver for ToGuest<'_, S> {
    #[inline]
    fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), OutputDrop> {
        self.0.put(header, parts, tail).map_err(OutputDrop::from)
    }

    fn put_completed(
        &mut self,
        head: &mut [u8],
        tail: Pieces<'_>,
        csum: PartialCsum,
        _: &mut Vec<u8>,
    ) -> Result<(), OutputDrop> {
        let mut sum = Sum::new();
        sum.add(head.get(usize::from(csum.start)..).unwrap_or_default());
        let put = self.0.put_summed(&PLAIN, head, tail, sum, |head, sum| {
            if let Some(field) = field_in(head, csum) {
                *field = sum.finish_nonzero().to_be_bytes();
            }
        });
        put.map_err(OutputDrop::from)
    }
}

/// Any other receiver: a frame is completed in memory of ours, which is as far as the nearest cache, and taken from there.
struct Anything<F>(F);

impl<F> Receiver for Anything<F>
where
    F: FnMut(&VirtioNetHdr, &[&[u8]], Pieces<'_>) -> Result<(), OutputDrop>,
{
    #[inline]
    fn put(
        &mut self,
        header: &VirtioNetHdr,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), OutputDrop> {
        (self.0)(header, parts, tail)
    }

    fn put_completed(
        &mut self,
        head: &mut [u8],
        tail: Pieces<'_>,
        csum: PartialCsum,
        spare: &mut Vec<u8>,
    ) -> Result<(), OutputDrop> {
        put_together(spare, head, tail);
        complete_checksum(spare, csum);
        (self.0)(&PLAIN, &[spare], Pieces::empty())
    }
}

/// What one worker finishes frames with.
pub struct Finisher {
    /// The head of the frame, with its tag as the receiver gets it.
    head: [u8; LONGEST_HEAD],
    /// The headers of a segment, and what of its payload is in the head.
    segment: [u8; LONGEST_HEAD],
    /// For what cannot be finished on the way.
    spare: Vec<u8>,
}

impl Default for Finisher {
    fn default() -> Self {
        Finisher {
            head: [0; LONGEST_HEAD],
            segment: [0; LONGEST_HEAD],
            spare: Vec::with_capacity(MAX_FRAME_LEN + TAG_LEN),
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
        put: impl FnMut(&VirtioNetHdr, &[&[u8]], Pieces<'_>) -> Result<(), OutputDrop>,
    ) -> Outcome {
        self.deliver_to(frame, edit, offload, accepts, &mut Anything(put))
    }

    /// The same to a receiver that may have a way of its own to complete checksums.
    #[inline]
    pub fn deliver_to(
        &mut self,
        frame: &TxFrame<'_>,
        edit: HeadEdit,
        offload: &Offload,
        accepts: Accepts,
        to: &mut impl Receiver,
    ) -> Outcome {
        if edit == HeadEdit::Pop && frame.head.get(SECOND_TAG) == Some(&TPID_VLAN[..]) {
            return Outcome::dropped(OutputDrop::DoubleTagged);
        }
        let mut tag = [0; TAG_LEN];
        let (parts, shift) = edit.parts(frame.head, &mut tag);
        let Some(mut header) = offload.header_for(accepts) else {
            let finished = self.finish(&parts, frame.tail, &moved(*offload, shift), accepts, to);
            return finished.unwrap_or_else(Outcome::dropped);
        };
        edit.adjust(&mut header);
        match to.put(&header, &parts, frame.tail) {
            Ok(()) => Outcome::sent(1, frame.len.saturating_add_signed(i32::from(shift))),
            Err(reason) => Outcome::dropped(reason),
        }
    }

    /// For receivers without offloads.
    #[cold]
    fn finish(
        &mut self,
        parts: &[&[u8]; 3],
        tail: Pieces<'_>,
        offload: &Offload,
        accepts: Accepts,
        to: &mut impl Receiver,
    ) -> Result<Outcome, OutputDrop> {
        let mut head_len = 0;
        for part in parts {
            let place = self.head.get_mut(head_len..head_len + part.len());
            place
                .ok_or(OutputDrop::OffloadFailed)?
                .copy_from_slice(part);
            head_len += part.len();
        }
        match offload {
            Offload { gso: Some(_), .. } => self.segment(head_len, tail, offload, accepts, to),
            Offload {
                csum: Some(csum), ..
            } => self.complete(head_len, tail, *csum, to),
            // Whoever asks for nothing is never refused.
            _ => Err(OutputDrop::OffloadFailed),
        }
    }

    fn complete(
        &mut self,
        head_len: usize,
        tail: Pieces<'_>,
        csum: PartialCsum,
        to: &mut impl Receiver,
    ) -> Result<Outcome, OutputDrop> {
        let head = self.head.get_mut(..head_len).unwrap_or_default();
        let len = head.len() + tail.len();
        if field_in(head, csum).is_some() {
            to.put_completed(head, tail, csum, &mut self.spare)?;
        } else {
            // No protocol has its checksum that far behind, but a guest may ask for it.
            put_together(&mut self.spare, head, tail);
            complete_checksum(&mut self.spare, csum);
            to.put(&PLAIN, &[&self.spare], Pieces::empty())?;
        }
        Ok(Outcome::sent(1, len as u32))
    }

    fn segment(
        &mut self,
        head_len: usize,
        tail: Pieces<'_>,
        offload: &Offload,
        accepts: Accepts,
        to: &mut impl Receiver,
    ) -> Result<Outcome, OutputDrop> {
        let failed = OutputDrop::OffloadFailed;
        let head = self.head.get(..head_len).ok_or(failed)?;
        let mut segments = Segmenter::new(head, offload, Checksums::Partial).ok_or(failed)?;
        let (mut packets, mut sent) = (0, 0);
        while let Some(segment) =
            segments.next_segment(self.segment.first_chunk_mut().ok_or(failed)?)
        {
            // Some of the payload may be in the head, the rest is behind it.
            let (start, end) = (segment.payload.start, segment.payload.end);
            let first = head
                .get(start.min(head_len)..end.min(head_len))
                .unwrap_or_default();
            let (skip, until) = (start.saturating_sub(head_len), end.saturating_sub(head_len));
            let rest = tail.part(skip, until - skip);
            if first.len() + rest.len() != segment.payload.len() {
                return Err(failed);
            }
            let (headers, behind) = self
                .segment
                .split_at_mut_checked(segment.header_len)
                .ok_or(failed)?;
            if let Some(header) = segment.offload().header_for(accepts) {
                to.put(&header, &[headers, first], rest)?;
            } else {
                let csum = segment.csum.ok_or(failed)?;
                behind
                    .get_mut(..first.len())
                    .ok_or(failed)?
                    .copy_from_slice(first);
                let whole = self.segment.get_mut(..segment.header_len + first.len());
                to.put_completed(whole.ok_or(failed)?, rest, csum, &mut self.spare)?;
            }
            packets += 1;
            sent += (segment.header_len + segment.payload.len()) as u32;
        }
        Ok(Outcome::sent(packets, sent))
    }
}

/// The place of a checksum, if it is in `head`.
fn field_in(head: &mut [u8], csum: PartialCsum) -> Option<&mut [u8; 2]> {
    let at = usize::from(csum.start) + usize::from(csum.offset);
    head.get_mut(at..)?.first_chunk_mut()
}

/// Copies a frame into one piece of memory.
fn put_together(spare: &mut Vec<u8>, head: &[u8], tail: Pieces<'_>) {
    spare.clear();
    spare.extend_from_slice(head);
    spare.resize(head.len() + tail.len(), 0);
    if let Some(rest) = spare.get_mut(head.len()..) {
        tail.copy_to(0, rest);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vswitch_packet::check_offload;
    use vswitch_vhost::Piece;

    const NEEDS_CSUM: VirtioNetHdr = VirtioNetHdr {
        flags: VirtioNetHdr::F_NEEDS_CSUM,
        ..PLAIN
    };

    /// TCP over IPv4 with a tag or without, and with `payload`.
    fn frame(tagged: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(if tagged { &[0x81, 0, 0, 7][..] } else { &[] });
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 9, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x50, 0x18, 1, 0]);
        frame.extend([0xab, 0xcd, 0, 0]);
        frame.extend(payload);
        frame
    }

    /// What the receiver has to get, made the long way: the frame in one piece, its checksums from the finished bytes.
    fn reference(frame: &[u8], edit: HeadEdit, offload: &Offload) -> Vec<Vec<u8>> {
        let mut tag = [0; TAG_LEN];
        let (parts, shift) = edit.parts(frame, &mut tag);
        let mut whole = parts.concat();
        let offload = moved(*offload, shift);
        if offload.gso.is_none() {
            complete_checksum(&mut whole, offload.csum.unwrap());
            return vec![whole];
        }
        let checksums = Checksums::Complete { frame: &whole };
        let mut segments = Segmenter::new(&whole, &offload, checksums).unwrap();
        let mut headers = [0; HEAD_LEN];
        std::iter::from_fn(|| segments.next_segment(&mut headers).map(|s| (headers, s)))
            .map(|(headers, s)| [&headers[..s.header_len], &whole[s.payload]].concat())
            .collect()
    }

    /// What a receiver gets, with what was left to it completed; and the most bytes of a frame that were not in pieces.
    fn delivered(
        bytes: &[u8],
        cuts: &[usize],
        edit: HeadEdit,
        offload: &Offload,
        accepts: Accepts,
    ) -> (Outcome, Vec<Vec<u8>>, usize) {
        let (head, mut rest) = bytes.split_at(bytes.len().min(HEAD_LEN));
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            pieces.push(Piece::from(piece));
            rest = behind;
        }
        pieces.push(Piece::from(rest));
        let frame = TxFrame {
            header: PLAIN,
            head,
            tail: Pieces::from_slice(&pieces),
            len: bytes.len() as u32,
        };
        let (mut got, mut touched) = (Vec::new(), 0);
        let put = |header: &VirtioNetHdr, parts: &[&[u8]], tail: Pieces<'_>| {
            let mut frame = parts.concat();
            touched = touched.max(frame.len());
            let len = frame.len();
            frame.resize(len + tail.len(), 0);
            tail.copy_to(0, &mut frame[len..]);
            assert_eq!(header.flags != 0, accepts.csum);
            if header.flags != 0 {
                let (start, offset) = (header.csum_start, header.csum_offset);
                complete_checksum(&mut frame, PartialCsum { start, offset });
            }
            got.push(frame);
            Ok(())
        };
        let outcome = Finisher::default().deliver(&frame, edit, offload, accepts, put);
        (outcome, got, touched)
    }

    fn accepts(csum: bool) -> Accepts {
        Accepts {
            csum,
            ..Accepts::default()
        }
    }

    #[test]
    fn a_checksum_far_behind_the_head_is_completed_too() {
        let bytes = frame(false, &[7; 1000]);
        for (start, offset) in [(34, 900), (34, 157), (34, 158), (800, 16)] {
            let asked = VirtioNetHdr {
                csum_start: start,
                csum_offset: offset,
                ..NEEDS_CSUM
            };
            let offload = check_offload(&asked, &bytes[..HEAD_LEN], bytes.len()).unwrap();
            let want = reference(&bytes, HeadEdit::Push(7), &offload);
            let (_, got, _) =
                delivered(&bytes, &[500], HeadEdit::Push(7), &offload, accepts(false));
            assert_eq!(got, want, "from {start}, field at {offset}");
        }
    }

    #[test]
    fn a_receiver_that_refuses_ends_the_frame() {
        let bytes = frame(false, &[7; 1000]);
        let asked = VirtioNetHdr {
            gso_type: VirtioNetHdr::GSO_TCPV4,
            gso_size: 100,
            csum_start: 34,
            csum_offset: 16,
            ..NEEDS_CSUM
        };
        let offload = check_offload(&asked, &bytes, bytes.len()).unwrap();
        let tail = [Piece::from(&bytes[HEAD_LEN..])];
        let frame = TxFrame {
            header: PLAIN,
            head: &bytes[..HEAD_LEN],
            tail: Pieces::from_slice(&tail),
            len: bytes.len() as u32,
        };
        let mut asked = 0;
        let outcome = Finisher::default().deliver(
            &frame,
            HeadEdit::None,
            &offload,
            accepts(true),
            |_, _, _| {
                asked += 1;
                if asked < 3 {
                    Ok(())
                } else {
                    Err(OutputDrop::RingFull)
                }
            },
        );
        assert_eq!((outcome.get(), asked), (Err(OutputDrop::RingFull), 3));
    }

    proptest! {
        #[test]
        fn whatever_the_receiver_takes_it_gets_the_same_frames(
            payload in prop::collection::vec(any::<u8>(), 0..4000),
            cuts in prop::collection::vec(0usize..900, 0..6),
            mss in 8u16..1500,
            gso: bool,
            csum: bool,
            (tagged, edit) in prop_oneof![
                Just((false, HeadEdit::None)),
                Just((true, HeadEdit::None)),
                Just((false, HeadEdit::Push(0x6005))),
                Just((true, HeadEdit::Pop)),
                Just((true, HeadEdit::Rewrite(3))),
            ],
        ) {
            let bytes = frame(tagged, &payload);
            let mut asked = VirtioNetHdr {
                csum_start: if tagged { 38 } else { 34 },
                csum_offset: 16,
                ..NEEDS_CSUM
            };
            if gso {
                (asked.gso_type, asked.gso_size) = (VirtioNetHdr::GSO_TCPV4, mss);
            }
            let head = &bytes[..bytes.len().min(HEAD_LEN)];
            let offload = check_offload(&asked, head, bytes.len()).unwrap();
            let want = reference(&bytes, edit, &offload);
            let (outcome, got, touched) = delivered(&bytes, &cuts, edit, &offload, accepts(csum));
            prop_assert_eq!(&got, &want);
            let len: usize = want.iter().map(Vec::len).sum();
            prop_assert_eq!(outcome, Outcome::sent(want.len() as u32, len as u32));
            // Who takes partial checksums costs no look at the payload.
            prop_assert!(!csum || touched <= LONGEST_HEAD);
        }
    }
}
