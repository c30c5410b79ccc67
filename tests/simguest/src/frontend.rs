//! The front-end's half of vhost-user: what a VMM says to the switch.
//!
//! [`Frontend`] is one connection. Its typed calls (`get_features`, `set_vring_addr`, ...) behave like a VMM's: requests
//! that have an answer wait for it, and where REPLY_ACK was agreed and the VMM would wait, so does this. Below them
//! lie [`Frontend::send`] (any request, flags, payload, descriptors) and [`Frontend::send_raw`] (any bytes at all) for
//! tests of what a VMM would never do.
//!
//! Nothing here waits for ever: each read and write ends after the connection's timeout with [`FrontendError::Timeout`].

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::features::{protocol, virtio};
use crate::memory::{Memory, Region};
use crate::wire::{Header, NO_FD, Payload, TableEntry, flag, request};

/// Longest reply accepted; real ones have at most a few hundred bytes.
const MAX_REPLY: u32 = 4096;
/// Most descriptors one message may carry (the kernel allows 253).
pub const MAX_FDS: usize = 253;

/// What can go wrong on the socket.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The socket itself.
    #[error("vhost-user socket, while {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The back-end took too long.
    #[error("the back-end did not answer within {after:?}, while {doing}")]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The back-end closed the connection.
    #[error("the back-end closed the connection, while {doing}")]
    Closed {
        /// What was being done.
        doing: &'static str,
    },
    /// An answer that does not fit its request.
    #[error("the back-end answered request {request} with {got:?}")]
    BadReply {
        /// Request number.
        request: u32,
        /// Header received.
        got: Header,
    },
    /// An acknowledgement that says no.
    #[error("the back-end refused request {request} with code {code}")]
    Refused {
        /// Request number.
        request: u32,
        /// The non-zero code.
        code: u64,
    },
    /// After a reconnect the back-end lacks what was agreed before.
    #[error("the back-end no longer offers virtio features {missing:#x} which the guest uses")]
    FeaturesLost {
        /// The bits gone.
        missing: u64,
    },
    /// The back-end has too few queues.
    #[error("the back-end has {has} queue pairs, the guest wants {wants}")]
    TooFewQueues {
        /// Offered by the back-end.
        has: u64,
        /// Wanted by the guest.
        wants: u16,
    },
}

pub(crate) type Result<T> = std::result::Result<T, FrontendError>;

/// Waits until `fd` can be read; false if the time is up.
pub(crate) fn readable(fd: BorrowedFd<'_>, until: Instant, doing: &'static str) -> Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) if Instant::now() >= until => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => {
                return Err(FrontendError::Io {
                    doing,
                    source: e.into(),
                });
            }
        }
    }
}

pub(crate) fn timespec(d: Duration) -> Timespec {
    Timespec {
        tv_sec: d.as_secs().cast_signed(),
        tv_nsec: i64::from(d.subsec_nanos()),
    }
}

/// A message from the back-end.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The 64 bits at `offset` of the payload, 0 past its end.
    pub fn quad(&self, offset: usize) -> u64 {
        let mut b = [0; 8];
        if let Some(bytes) = self.payload.get(offset..offset + 8) {
            b.copy_from_slice(bytes);
        }
        u64::from_le_bytes(b)
    }
}

/// Where the parts of a ring are, as SET_VRING_ADDR says it: addresses of the front-end's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available (driver) ring.
    pub avail: u64,
    /// Used (device) ring.
    pub used: u64,
}

/// One connection to a back-end.
#[derive(Debug)]
pub struct Frontend {
    stream: UnixStream,
    timeout: Duration,
    protocol: u64,
}

impl Frontend {
    /// Over an existing stream (also one half of a socket pair).
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self> {
        let failed = |source| FrontendError::Io {
            doing: "setting up the socket",
            source,
        };
        stream.set_nonblocking(false).map_err(failed)?;
        let limit = Some(timeout.max(Duration::from_millis(1)));
        stream.set_read_timeout(limit).map_err(failed)?;
        stream.set_write_timeout(limit).map_err(failed)?;
        Ok(Self {
            stream,
            timeout,
            protocol: 0,
        })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Protocol features agreed so far; decides whether calls wait for acknowledgements.
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Whether the other side has hung up (what is still unread does not count).
    pub fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&timespec(Duration::ZERO))) {
            Ok(n) => {
                n > 0
                    && fds[0]
                        .revents()
                        .intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
            }
            Err(_) => true,
        }
    }

    /// Waits until the other side hangs up; false if it does not within `limit`. Discards what it still says.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while !self.is_closed() {
            match readable(self.stream.as_fd(), until, "waiting for the end") {
                Ok(true) if !self.is_closed() => {
                    let mut sink = [0u8; 512];
                    if matches!(rustix::io::read(&self.stream, &mut sink), Ok(0) | Err(_)) {
                        return true;
                    }
                }
                Ok(true) => return true,
                Ok(false) | Err(_) => return self.is_closed(),
            }
        }
        true
    }

    // --- raw level -------------------------------------------------------------------------------------------

    /// Sends any bytes with any descriptors (at most [`MAX_FDS`]), in one piece if the socket lets us.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let doing = "sending";
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors");
            return Err(FrontendError::Io { doing, source });
        }
        let mut done = 0;
        while done < bytes.len() {
            match sendmsg(
                &self.stream,
                &[IoSlice::new(&bytes[done..])],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(0) => return Err(FrontendError::Closed { doing }),
                Ok(n) => {
                    done += n;
                    control.clear();
                }
                Err(e) => self.retry(e, doing)?,
            }
        }
        Ok(())
    }

    /// Sends a message with the given extra flags (version 1 is added).
    pub fn send(&self, req: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut header = Header::new(req, payload.len());
        header.flags |= flags;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes, fds)
    }

    /// Takes the next message from the back-end.
    pub fn receive(&self) -> Result<Message> {
        let mut header = [0; Header::LEN];
        let mut fds = Vec::new();
        self.read_exact(&mut header, &mut fds)?;
        let header = Header::from_bytes(&header);
        if header.size > MAX_REPLY {
            return Err(FrontendError::BadReply {
                request: header.request,
                got: header,
            });
        }
        let mut payload = vec![0; header.size as usize];
        self.read_exact(&mut payload, &mut fds)?;
        Ok(Message {
            header,
            payload,
            fds,
        })
    }

    fn read_exact(&self, to: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
        let doing = "waiting for an answer";
        let mut done = 0;
        while done < to.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [IoSliceMut::new(&mut to[done..])];
            match recvmsg(
                &self.stream,
                &mut iov,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(message) => {
                    for part in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = part {
                            fds.extend(rights);
                        }
                    }
                    if message.bytes == 0 {
                        return Err(FrontendError::Closed { doing });
                    }
                    done += message.bytes;
                }
                Err(e) => self.retry(e, doing)?,
            }
        }
        Ok(())
    }

    fn retry(&self, e: rustix::io::Errno, doing: &'static str) -> Result<()> {
        use rustix::io::Errno;
        match e {
            Errno::INTR => Ok(()),
            Errno::AGAIN => Err(FrontendError::Timeout {
                doing,
                after: self.timeout,
            }),
            Errno::PIPE | Errno::CONNRESET => Err(FrontendError::Closed { doing }),
            e => Err(FrontendError::Io {
                doing,
                source: e.into(),
            }),
        }
    }

    // --- calls -----------------------------------------------------------------------------------------------

    /// A request that has an answer of its own.
    pub fn ask(&self, req: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message> {
        self.send(req, 0, payload, fds)?;
        let reply = self.receive()?;
        if reply.header.request != req || reply.header.flags & flag::REPLY == 0 {
            return Err(FrontendError::BadReply {
                request: req,
                got: reply.header,
            });
        }
        Ok(reply)
    }

    /// A request without an answer; with REPLY_ACK agreed, asks for the acknowledgement, waits for it and turns a
    /// non-zero one into [`FrontendError::Refused`].
    pub fn tell(&self, req: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if self.protocol & protocol::REPLY_ACK == 0 {
            return self.send(req, 0, payload, fds);
        }
        self.send(req, flag::NEED_REPLY, payload, fds)?;
        let reply = self.receive()?;
        if reply.header.request != req
            || reply.header.flags & flag::REPLY == 0
            || reply.payload.len() != 8
        {
            return Err(FrontendError::BadReply {
                request: req,
                got: reply.header,
            });
        }
        match reply.quad(0) {
            0 => Ok(()),
            code => Err(FrontendError::Refused { request: req, code }),
        }
    }

    fn ask_u64(&self, req: u32) -> Result<u64> {
        let reply = self.ask(req, &[], &[])?;
        if reply.payload.len() != 8 {
            return Err(FrontendError::BadReply {
                request: req,
                got: reply.header,
            });
        }
        Ok(reply.quad(0))
    }

    /// GET_FEATURES.
    pub fn get_features(&self) -> Result<u64> {
        self.ask_u64(request::GET_FEATURES)
    }

    /// SET_FEATURES; unacknowledged, like a VMM's.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.send(request::SET_FEATURES, 0, &features.to_le_bytes(), &[])
    }

    /// GET_PROTOCOL_FEATURES.
    pub fn get_protocol_features(&self) -> Result<u64> {
        self.ask_u64(request::GET_PROTOCOL_FEATURES)
    }

    /// SET_PROTOCOL_FEATURES; from here on they hold for this connection.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.send(
            request::SET_PROTOCOL_FEATURES,
            0,
            &features.to_le_bytes(),
            &[],
        )?;
        self.protocol = features;
        Ok(())
    }

    /// GET_QUEUE_NUM: queue pairs of a net device.
    pub fn get_queue_num(&self) -> Result<u64> {
        self.ask_u64(request::GET_QUEUE_NUM)
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn get_max_mem_slots(&self) -> Result<u64> {
        self.ask_u64(request::GET_MAX_MEM_SLOTS)
    }

    /// SET_OWNER.
    pub fn set_owner(&self) -> Result<()> {
        self.send(request::SET_OWNER, 0, &[], &[])
    }

    /// The whole memory, by ADD_MEM_REG per region if slots were agreed, else by SET_MEM_TABLE.
    pub fn set_memory(&self, memory: &Memory) -> Result<()> {
        let regions = memory.regions();
        if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            return regions.iter().try_for_each(|r| self.add_mem_reg(r));
        }
        self.set_mem_table(&regions)
    }

    /// SET_MEM_TABLE.
    pub fn set_mem_table(&self, regions: &[Region]) -> Result<()> {
        let mut payload = Payload::new().word(regions.len() as u32).word(0);
        for region in regions {
            payload = TableEntry::of(region).append(payload);
        }
        let fds: Vec<_> = regions.iter().map(Region::fd).collect();
        self.tell(request::SET_MEM_TABLE, &payload.0, &fds)
    }

    /// ADD_MEM_REG.
    pub fn add_mem_reg(&self, region: &Region) -> Result<()> {
        let payload = TableEntry::of(region).append(Payload::new().quad(0));
        self.tell(request::ADD_MEM_REG, &payload.0, &[region.fd()])
    }

    /// REM_MEM_REG, with a descriptor along as QEMU sends it.
    pub fn rem_mem_reg(&self, region: &Region) -> Result<()> {
        let payload = TableEntry::of(region).append(Payload::new().quad(0));
        self.tell(request::REM_MEM_REG, &payload.0, &[region.fd()])
    }

    fn vring_state(&self, req: u32, ring: u32, value: u32) -> Result<()> {
        self.send(req, 0, &Payload::new().word(ring).word(value).0, &[])
    }

    /// SET_VRING_NUM: the ring's size.
    pub fn set_vring_num(&self, ring: u32, size: u16) -> Result<()> {
        self.vring_state(request::SET_VRING_NUM, ring, u32::from(size))
    }

    /// SET_VRING_BASE: the next available index; of a packed ring bits 0-14 the next available slot, 15 its wrap counter,
    /// 16-30 the next used slot, 31 its wrap counter.
    pub fn set_vring_base(&self, ring: u32, base: u32) -> Result<()> {
        self.vring_state(request::SET_VRING_BASE, ring, base)
    }

    /// GET_VRING_BASE: stops the ring and returns where it stands, in the form of SET_VRING_BASE.
    pub fn get_vring_base(&self, ring: u32) -> Result<u32> {
        let reply = self.ask(
            request::GET_VRING_BASE,
            &Payload::new().word(ring).word(0).0,
            &[],
        )?;
        if reply.payload.len() != 8 || reply.quad(0) as u32 != ring {
            return Err(FrontendError::BadReply {
                request: request::GET_VRING_BASE,
                got: reply.header,
            });
        }
        Ok((reply.quad(0) >> 32) as u32)
    }

    /// SET_VRING_ADDR, without logging.
    pub fn set_vring_addr(&self, ring: u32, at: RingAddresses) -> Result<()> {
        let payload = Payload::new()
            .word(ring)
            .word(0)
            .quad(at.desc)
            .quad(at.used)
            .quad(at.avail)
            .quad(0);
        self.send(request::SET_VRING_ADDR, 0, &payload.0, &[])
    }

    /// SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR; without a descriptor the ring must be polled or never called.
    pub fn set_vring_fd(&self, req: u32, ring: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let index = u64::from(ring & 0xff);
        match fd {
            Some(fd) => self.send(req, 0, &index.to_le_bytes(), &[fd]),
            None => self.send(req, 0, &(index | NO_FD).to_le_bytes(), &[]),
        }
    }

    /// SET_VRING_ENABLE, acknowledged if possible: QEMU does not let the guest go on before the switch knows.
    pub fn set_vring_enable(&self, ring: u32, on: bool) -> Result<()> {
        let payload = Payload::new().word(ring).word(u32::from(on));
        self.tell(request::SET_VRING_ENABLE, &payload.0, &[])
    }

    /// The opening: features, protocol features, queue and slot counts, ownership, in QEMU's order. Returns the
    /// virtio features the back-end offers.
    pub fn open_session(&mut self, want_protocol: u64, pairs: u16) -> Result<Offer> {
        let offered = self.get_features()?;
        let mut offer = Offer {
            virtio: offered,
            ..Offer::default()
        };
        if offered & virtio::PROTOCOL_FEATURES != 0 {
            offer.protocol = self.get_protocol_features()?;
            self.set_protocol_features(offer.protocol & want_protocol)?;
            if self.protocol & protocol::MQ != 0 {
                offer.queue_pairs = Some(self.get_queue_num()?);
            }
            if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
                offer.mem_slots = Some(self.get_max_mem_slots()?);
            }
        }
        let has = offer.queue_pairs.unwrap_or(1);
        if u64::from(pairs) > has {
            return Err(FrontendError::TooFewQueues { has, wants: pairs });
        }
        self.set_owner()?;
        offer.virtio = self.get_features()?;
        Ok(offer)
    }
}

/// What a back-end offers at the opening of a session.
#[derive(Clone, Copy, Default, Debug)]
pub struct Offer {
    /// Virtio feature bits.
    pub virtio: u64,
    /// Protocol feature bits.
    pub protocol: u64,
    /// Queue pairs, if it speaks MQ.
    pub queue_pairs: Option<u64>,
    /// Memory slots, if it speaks CONFIGURE_MEM_SLOTS.
    pub mem_slots: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pair() -> (Frontend, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (
            Frontend::from_stream(a, Duration::from_millis(50)).unwrap(),
            b,
        )
    }

    #[test]
    fn a_silent_peer_is_a_timeout_and_a_gone_one_is_closed() {
        let (front, peer) = pair();
        assert!(matches!(
            front.get_features(),
            Err(FrontendError::Timeout { .. })
        ));
        assert!(!front.is_closed());
        drop(peer);
        assert!(front.is_closed());
        assert!(matches!(
            front.get_features(),
            Err(FrontendError::Closed { .. })
        ));
    }

    #[test]
    fn acknowledgements_are_waited_for_and_judged() {
        use std::io::{Read, Write};
        let (mut front, mut peer) = pair();
        front.protocol = protocol::REPLY_ACK;
        let answer = thread::spawn(move || {
            for code in [0u64, 7] {
                let mut message = [0; 20];
                peer.read_exact(&mut message).unwrap();
                assert_eq!(message[..12], [18, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0]);
                message[4] = 5;
                message[12..].copy_from_slice(&code.to_le_bytes());
                peer.write_all(&message).unwrap();
            }
        });
        front.set_vring_enable(3, true).unwrap();
        let refused = front.set_vring_enable(3, true);
        assert!(matches!(
            refused,
            Err(FrontendError::Refused {
                request: 18,
                code: 7
            })
        ));
        answer.join().unwrap();
    }

    #[test]
    fn an_answer_to_another_question_is_an_error() {
        use std::io::Write;
        let (front, mut peer) = pair();
        let mut reply = Header {
            request: 2,
            flags: 5,
            size: 8,
        }
        .to_bytes()
        .to_vec();
        reply.extend_from_slice(&[0; 8]);
        peer.write_all(&reply).unwrap();
        assert!(matches!(
            front.get_features(),
            Err(FrontendError::BadReply { request: 1, .. })
        ));
    }

    #[test]
    fn descriptors_travel() {
        let (front, peer) = pair();
        let back = Frontend::from_stream(peer, Duration::from_millis(50)).unwrap();
        let memory = Memory::new(&crate::memory::Layout::adjacent(3, 4096)).unwrap();
        front.set_memory(&memory).unwrap();
        let message = back.receive().unwrap();
        assert_eq!(
            message.header,
            Header::new(request::SET_MEM_TABLE, 8 + 3 * 32)
        );
        assert_eq!(message.fds.len(), 3);
        assert_eq!(message.quad(8 + 32), 4096);
        assert_eq!(message.quad(8 + 32 + 24), 4096);
    }
}
