//! Messages on the socket: framing, and the descriptors that come beside them.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg,
};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};
use vm_memory::ByteValued;

use super::SessionEnd;

const HEADER: usize = 12;
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// A request, complete.
pub(super) struct Message {
    /// As sent; the specification may have grown since.
    pub(super) code: u32,
    pub(super) need_reply: bool,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// What waiting for a message brought.
pub(super) enum Received {
    Message(Message),
    /// Nothing yet: the wait had another reason.
    Nothing,
}

impl Message {
    /// Receives a message if one has begun; then waits for all of it.
    pub(super) fn receive(stream: &UnixStream) -> Result<Received, SessionEnd> {
        let mut header = [0; HEADER];
        let mut fds = Vec::new();
        let count = match receive_with_fds(stream, &mut header, &mut fds) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Err(SessionEnd::Closed),
            Err(error) => return Err(SessionEnd::Socket(error.into())),
        };
        if count == 0 {
            return Err(SessionEnd::Closed);
        }
        // A plain read: descriptors beside anything but a message's first byte are discarded by the kernel.
        fill(stream, &mut header[count..])?;

        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (code, flags, size) = (word(0), word(4), word(8) as usize);
        let refuse = |what: String| Err(SessionEnd::NotVhostUser(what));
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
        fill(stream, &mut body)?;
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

/// Reads what there is, without waiting, and whatever descriptors come with it.
fn receive_with_fds(
    stream: &UnixStream,
    to: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Errno> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(to)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        tracing::debug!(
            "more than {MAX_ATTACHED_FD_ENTRIES} descriptors on one message; the rest was dropped"
        );
    }
    Ok(received.bytes)
}

fn fill(mut stream: &UnixStream, to: &mut [u8]) -> Result<(), SessionEnd> {
    stream.read_exact(to).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => SessionEnd::Truncated,
        _ => SessionEnd::Socket(error),
    })
}
