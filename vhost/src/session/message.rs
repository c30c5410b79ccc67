//! Messages on the socket: framing, and the descriptors that come beside them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg,
};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};
use vm_memory::ByteValued;

use super::handed::Handed;
use super::{Custody, SessionEnd};

const HEADER: usize = 12;
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// Descriptors that one read of a socket can bring: `SCM_MAX_FD` in the kernel. Those that do not fit the kernel closes while
/// we wait.
const SOCKET_FDS: usize = 253;

/// A request, complete.
pub(super) struct Message {
    /// As sent; the specification may have grown since.
    pub(super) code: u32,
    pub(super) need_reply: bool,
    pub(super) body: Vec<u8>,
    pub(super) fds: Handed,
}

/// What waiting for a message brought.
pub(super) enum Received {
    Message(Message),
    /// Nothing yet: the wait had another reason.
    Nothing,
}

impl Message {
    /// Receives a message if one has begun; then waits for all of it.
    pub(super) fn receive(stream: &UnixStream, custody: &Custody) -> Result<Received, SessionEnd> {
        let mut header = [0; HEADER];
        let mut fds = Handed::new(custody);
        let count = match receive_with_fds(stream, &mut header, RecvFlags::DONTWAIT, &mut fds) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Err(SessionEnd::Closed),
            Err(error) => return Err(SessionEnd::Socket(error.into())),
        };
        if count == 0 {
            return Err(SessionEnd::Closed);
        }
        let refuse = |what: String| Err(SessionEnd::NotVhostUser(what));
        if fds.len() > MAX_ATTACHED_FD_ENTRIES {
            return refuse(format!(
                "a message with {} descriptors of files; {MAX_ATTACHED_FD_ENTRIES} is the limit",
                fds.len()
            ));
        }
        fill(stream, &mut header[count..], custody)?;

        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (code, flags, size) = (word(0), word(4), word(8) as usize);
        if flags & VERSION_MASK != VERSION {
            return refuse(format!("a message of version {}", flags & VERSION_MASK));
        }
        if flags & REPLY != 0 {
            return refuse(format!("an answer to {}, which was not asked", name(code)));
        }
        if size > MAX_MSG_SIZE {
            return refuse(format!(
                "a message of {size} bytes; {MAX_MSG_SIZE} is the limit"
            ));
        }
        let mut body = vec![0; size];
        fill(stream, &mut body, custody)?;
        Ok(Received::Message(Self {
            code,
            need_reply: flags & NEED_REPLY != 0,
            body,
            fds,
        }))
    }

    /// The body as the one value that it should be.
    pub(super) fn payload<T: ByteValued + Default>(&self) -> Result<T, String> {
        self.split_payload::<T>().and_then(|(value, rest)| {
            if rest.is_empty() {
                Ok(value)
            } else {
                Err(wrong_size(self.body.len(), size_of::<T>()))
            }
        })
    }

    /// The value that the body begins with, and the rest.
    pub(super) fn split_payload<T: ByteValued + Default>(&self) -> Result<(T, &[u8]), String> {
        split::<T>(&self.body).ok_or_else(|| wrong_size(self.body.len(), size_of::<T>()))
    }
}

/// The value that `bytes` begin with, and the rest.
pub(super) fn split<T: ByteValued + Default>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (begin, rest) = bytes.split_at_checked(size_of::<T>())?;
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(begin);
    Some((value, rest))
}

fn wrong_size(is: usize, should: usize) -> String {
    format!("it has {is} bytes, not {should}")
}

/// A request's name in the specification.
pub(super) fn name(code: u32) -> String {
    FrontendReq::try_from(code).map_or_else(
        |_| format!("request {code}"),
        |request| format!("{request:?}"),
    )
}

/// An answer: header and payload.
pub(super) fn answer(code: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    // Payloads are a few words long.
    for word in [code, VERSION | REPLY, payload.len() as u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

pub(super) fn send(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(stream, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads what there is, and whatever descriptors come with it.
fn receive_with_fds(
    stream: &UnixStream,
    to: &mut [u8],
    flags: RecvFlags,
    fds: &mut Handed,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(to)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        tracing::debug!("descriptors on a message were lost; this process has no room for more");
    }
    Ok(received.bytes)
}

/// Waits for all of these bytes. Descriptors come beside a message's first byte; no front-end sends them later, and who did
/// could hand over any number within one message.
fn fill(stream: &UnixStream, mut to: &mut [u8], custody: &Custody) -> Result<(), SessionEnd> {
    let mut strays = Handed::new(custody);
    while !to.is_empty() {
        match receive_with_fds(stream, to, RecvFlags::empty(), &mut strays) {
            Ok(0) | Err(Errno::CONNRESET) => return Err(SessionEnd::Truncated),
            Ok(count) => to = &mut to[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(SessionEnd::Socket(error.into())),
        }
        if !strays.is_empty() {
            let what = "descriptors of files in the middle of a message".to_owned();
            return Err(SessionEnd::NotVhostUser(what));
        }
    }
    Ok(())
}
