//! Frames with a kind, a number and the time they were sent.

use vswitch_simguest::driver::{DeviceFault, RxFrame, TxQueue};
use vswitch_simguest::frames::{Eth, Ip, udp};

use crate::Result;

/// Marks a frame of ours; the lowest bit is its kind.
const MAGIC: u32 = 0x4e41_5048;
/// Where mark, number (four bytes each) and time (eight bytes, nanoseconds) lie in a frame.
const MARK: usize = 44;
const NUMBER: usize = 48;
const TIME: usize = 52;
/// Of the IPv4 header and what follows it.
const IP: usize = 14;
const UDP: usize = 34;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A full-size UDP datagram, which nobody waits for.
    Bulk,
    /// A small UDP datagram that is answered by one of the same kind.
    Request,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bulk, Self::Request];

    /// Bytes, without FCS.
    const fn len(self) -> usize {
        match self {
            Self::Bulk => 1514,
            Self::Request => 128,
        }
    }

    const fn ports(self) -> (u16, u16) {
        match self {
            Self::Bulk => (4000, 5001),
            Self::Request => (4001, 5002),
        }
    }
}

/// A frame that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// What it is.
    pub(super) kind: Kind,
    /// Its place among those of its kind, modulo 2^32.
    pub(super) number: u32,
    /// When it (or the request it answers) was sent, nanoseconds of the run's clock.
    pub(super) sent: u64,
}

impl Stamp {
    /// What a frame says; nothing if it is none of ours.
    #[inline]
    pub(super) fn of(frame: &RxFrame<'_>) -> Option<Self> {
        let mark = frame.load_u32(MARK);
        let kind = Kind::ALL[(mark & 1) as usize];
        let ours = mark & !1 == MAGIC && frame.len() == kind.len();
        ours.then(|| Self {
            kind,
            number: frame.load_u32(NUMBER),
            sent: frame.load_u64(TIME),
        })
    }
}

/// What of a frame depends on its kind: words as they lie in memory.
#[derive(Clone, Copy, Debug)]
struct Header {
    len: usize,
    ip_len: u16,
    ip_check: u16,
    ports: u32,
    udp_len: u16,
}

/// Sends frames of both kinds on one queue.
#[derive(Debug)]
pub(super) struct Sender {
    headers: [Header; 2],
    next: [u32; 2],
}

impl Sender {
    /// Prepares `queue`; nothing else may be sent on it while the sender is used.
    pub(super) fn new(queue: &mut TxQueue, dst: [u8; 6], src: [u8; 6]) -> Result<Self> {
        let template = |kind: Kind| {
            let (eth, ip) = (Eth::new(dst, src), Ip::new([10, 0, 0, 1], [10, 0, 0, 2]));
            let (sport, dport) = kind.ports();
            let mut frame = udp(&eth, &ip, sport, dport, &vec![0; kind.len() - UDP - 8]);
            // No checksum: the stamp changes from frame to frame.
            frame[UDP + 6..UDP + 8].fill(0);
            frame
        };
        queue.prefill(&template(Kind::Bulk))?;
        let headers = Kind::ALL.map(|kind| {
            let frame = template(kind);
            let word = |at: usize| u16::from_le_bytes([frame[at], frame[at + 1]]);
            Header {
                len: frame.len(),
                ip_len: word(IP + 2),
                ip_check: word(IP + 10),
                ports: u32::from(word(UDP + 2)) << 16 | u32::from(word(UDP)),
                udp_len: word(UDP + 4),
            }
        });
        Ok(Self {
            headers,
            next: [0; 2],
        })
    }

    /// Sends one with this time in it; false if there is no room.
    #[inline]
    pub(super) fn send(
        &mut self,
        queue: &mut TxQueue,
        kind: Kind,
        time: u64,
    ) -> Result<bool, DeviceFault> {
        let (header, number) = (self.headers[kind as usize], self.next[kind as usize]);
        let sent = queue.send_burst(1, |slot| {
            slot.set_frame_len(header.len);
            slot.store_u16(IP + 2, header.ip_len);
            slot.store_u16(IP + 10, header.ip_check);
            slot.store_u32(UDP, header.ports);
            slot.store_u16(UDP + 4, header.udp_len);
            slot.store_u32(MARK, MAGIC | kind as u32);
            slot.store_u32(NUMBER, number);
            slot.store_u64(TIME, time);
        })?;
        self.next[kind as usize] = number.wrapping_add(sent.into());
        Ok(sent == 1)
    }
}

/// Whether frames arrive in order, each kind by itself.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Order {
    next: [u32; 2],
    /// Frames of ours.
    pub(super) frames: u64,
    /// Numbers jumped over.
    pub(super) missing: u64,
    /// Frames late or twice.
    pub(super) late: u64,
    /// Frames of somebody else's.
    pub(super) alien: u64,
}

impl Order {
    /// A frame has come.
    #[inline]
    pub(super) fn note(&mut self, stamp: Option<Stamp>) {
        let Some(stamp) = stamp else {
            self.alien += 1;
            return;
        };
        self.frames += 1;
        let next = &mut self.next[stamp.kind as usize];
        let jump = stamp.number.wrapping_sub(*next);
        if jump < 1 << 31 {
            self.missing += u64::from(jump);
            *next = stamp.number.wrapping_add(1);
        } else {
            self.late += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_each_kind() {
        let mut order = Order::default();
        let of = |kind, number| {
            Some(Stamp {
                kind,
                number,
                sent: 0,
            })
        };
        for stamp in [
            of(Kind::Bulk, 0),
            of(Kind::Request, 0),
            of(Kind::Bulk, 3),
            of(Kind::Bulk, 2),
            None,
        ] {
            order.note(stamp);
        }
        assert_eq!((order.frames, order.missing), (4, 2));
        assert_eq!((order.late, order.alien), (1, 1));
    }
}
