//! Capture: copies of frames, with the reason where one was dropped, for whoever asks on the control socket.
//!
//! While nobody captures, a worker's cost is one comparison a burst. While somebody does, workers put copies of what
//! the filter takes into a bounded queue; when it is full the copy is lost and counted, and forwarding goes on.
//!
//! Frames are shown as they are on the wire: a checksum that the sender left to offload is completed where the whole
//! frame was copied. A segmentation-offload frame is shown whole, as its sender gave it.
//!
//! Limits: at most [`QUEUE`] frames wait for a reader, and at most [`QUEUE_BYTES`] bytes of them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use vswitch_packet::{Offload, complete_checksum};
use vswitch_vhost::Pieces;

use crate::forward::PortRef;
use crate::forward::software::moved;
use crate::mailbox::Mailbox;

/// Copies that may wait for the reader.
pub const QUEUE: usize = 4096;
/// Bytes of copies that may wait for the reader.
pub const QUEUE_BYTES: usize = 16 << 20;

/// Where a frame was seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// Taken into the switch from the port.
    Rx,
    /// Delivered to the port.
    Tx,
    /// Dropped at the port.
    Drop,
}

/// Which frames are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Ports; empty for all.
    pub ports: Vec<PortRef>,
    /// Directions; empty for all.
    pub directions: Vec<Direction>,
    /// Drop reasons; empty for all.
    pub reasons: Vec<&'static str>,
    /// Bytes of each frame to keep.
    pub snaplen: usize,
}

impl Filter {
    fn takes(&self, port: PortRef, direction: Direction, reason: Option<&str>) -> bool {
        (self.ports.is_empty() || self.ports.contains(&port))
            && (self.directions.is_empty() || self.directions.contains(&direction))
            && (self.reasons.is_empty() || reason.is_some_and(|r| self.reasons.contains(&r)))
    }
}

/// A captured frame.
#[derive(Debug)]
pub struct Captured {
    /// Name of the port.
    pub port: Arc<str>,
    /// Which way it was going.
    pub direction: Direction,
    /// Why it was dropped.
    pub reason: Option<&'static str>,
    /// When, since the epoch.
    pub ns: u64,
    /// Its length on the wire.
    pub len: u32,
    /// Its first bytes.
    pub data: Vec<u8>,
}

/// A frame as a worker shows it: the head it decided on, the rest where it lies.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Parts of the head, in order.
    pub parts: [&'a [u8]; 3],
    /// What follows them.
    pub tail: Pieces<'a>,
    /// What its sender left to offloads, if that is known, and by how much an edit moved it.
    pub offload: Option<(&'a Offload, i8)>,
}

/// One reader's queue.
pub struct Tap {
    filter: Filter,
    queue: Mailbox<Captured>,
    bytes: AtomicUsize,
    lost: AtomicU64,
}

impl Tap {
    /// An empty queue.
    pub fn new(filter: Filter) -> io::Result<Self> {
        Ok(Tap {
            filter,
            queue: Mailbox::new(QUEUE)?,
            bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        })
    }

    /// What waits, up to about `limit` bytes, and how many were lost since the last time. What is left after some was taken
    /// makes it readable again; who takes nothing comes back by himself.
    pub fn take(&self, limit: usize) -> (Vec<Captured>, u64) {
        let mut taken = 0;
        let mut letters = self.queue.drain();
        let frames: Vec<_> = std::iter::from_fn(|| {
            let frame = (taken < limit).then(|| letters.next())??;
            taken += frame.data.len();
            Some(frame)
        })
        .collect();
        if limit > 0 && taken >= limit {
            self.queue.ring();
        }
        self.bytes.fetch_sub(taken, Ordering::Relaxed);
        (frames, self.lost.swap(0, Ordering::Relaxed))
    }

    fn put(&self, frame: Captured) {
        let len = frame.data.len();
        let room = self.bytes.fetch_add(len, Ordering::Relaxed) + len <= QUEUE_BYTES;
        if !room || self.queue.put(frame).is_err() {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
}

/// All captures under way.
#[derive(Default, Clone)]
pub struct Taps(pub Vec<Arc<Tap>>);

impl Taps {
    /// Shows a frame to every capture that wants it.
    pub fn show(
        &self,
        port: (PortRef, &Arc<str>),
        direction: Direction,
        reason: Option<&'static str>,
        frame: Seen<'_>,
    ) {
        let wanted = |t: &&Arc<Tap>| t.filter.takes(port.0, direction, reason);
        for tap in self.0.iter().filter(wanted) {
            let head: usize = frame.parts.iter().map(|p| p.len()).sum();
            let len = head + frame.tail.len();
            let keep = len.min(tap.filter.snaplen);
            let mut data = frame.parts.concat();
            let tail_at = data.len();
            data.resize(len.min(keep.max(tail_at)), 0);
            if let Some(rest) = data.get_mut(tail_at..) {
                frame.tail.copy_to(0, rest);
            }
            if data.len() == len
                && let Some((offload, shift)) = frame.offload
                && offload.gso.is_none()
                && let Some(csum) = moved(*offload, shift).csum
            {
                complete_checksum(&mut data, csum);
            }
            data.truncate(keep);
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let captured = Captured {
                port: Arc::clone(port.1),
                direction,
                reason,
                ns: since.as_nanos() as u64,
                len: len as u32,
                data,
            };
            tap.put(captured);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec};

    fn is_readable(tap: &Tap) -> bool {
        let mut fds = [PollFd::new(&tap.queue, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    /// Nothing more may be captured, and then nobody else says so.
    #[test]
    fn what_is_left_is_not_forgotten() {
        let tap = Tap::new(Filter::default()).unwrap();
        for n in 0..5 {
            tap.put(Captured {
                port: "a".into(),
                direction: Direction::Rx,
                reason: None,
                ns: n,
                len: 100,
                data: vec![0; 100],
            });
        }
        let taken = |limit| {
            let (frames, lost) = tap.take(limit);
            assert_eq!(lost, 0);
            frames.iter().map(|frame| frame.ns).collect::<Vec<_>>()
        };
        assert!(is_readable(&tap));
        assert_eq!(taken(150), [0, 1]);
        assert!(is_readable(&tap), "three are left");
        assert!(
            taken(0).is_empty(),
            "a slow reader comes back when it has room"
        );
        assert!(!is_readable(&tap), "and is not woken until then");
        assert_eq!(taken(1000), [2, 3, 4]);
        assert!(!is_readable(&tap));
    }
}
