//! UNIX sockets as a daemon needs them: stale files replaced, owner and permissions set before anybody can connect,
//! connecting without ever blocking.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vswitch_api::config::{Owner, Permissions};

/// Why a socket could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{0}: another process is listening on this socket; stop it, or choose another path")]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{0}: there is something that is no socket; remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The owner is not known here.
    #[error("{0}: there is no {1} \"{2}\" on this machine; create it, or change `owner`")]
    NoSuchOwner(PathBuf, &'static str, String),
    /// The system said no.
    #[error("{path}: cannot {what}: {source}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket, whose file goes with it.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// A socket under its temporary name, which goes in any case.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What tells a file from another one of the same name.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path)
        .ok()
        .map(|m| (m.dev(), m.ino()))
}

impl Listener {
    /// Listens on `path`. A file left by a process that is gone is replaced; its folder is made if it is missing.
    ///
    /// # Errors
    /// See [`SocketError`]; nothing is left behind.
    pub fn bind(
        path: &Path,
        owner: Option<&Owner>,
        permissions: Permissions,
    ) -> Result<Self, SocketError> {
        let fail = |what| {
            move |source: io::Error| SocketError::System {
                path: path.into(),
                what,
                source,
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).map_err(fail("make the socket's folder"))?;
        clear_stale(path)?;
        let (uid, gid) = owner.map_or(Ok((None, None)), |o| resolve(path, o))?;
        // Under a name of its own until it listens: whoever finds the real name can connect, with the right permissions.
        let draft = Draft(folder.join(format!(".vs{}", std::process::id())));
        let _ = std::fs::remove_file(&draft.0);
        let address = SocketAddrUnix::new(&draft.0).map_err(|e| fail("use this path")(e.into()))?;
        let fd = new_socket().map_err(fail("make a socket"))?;
        rustix::net::bind(&fd, &address).map_err(|e| fail("bind")(e.into()))?;
        rustix::fs::chmod(&draft.0, Mode::from_raw_mode(permissions.bits()))
            .map_err(|e| fail("set the permissions")(e.into()))?;
        if uid.is_some() || gid.is_some() {
            rustix::fs::chown(&draft.0, uid, gid).map_err(|e| fail("set the owner")(e.into()))?;
        }
        rustix::net::listen(&fd, 64).map_err(|e| fail("listen")(e.into()))?;
        // A link, not a rename: it fails if somebody else was quicker.
        std::fs::hard_link(&draft.0, path).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => SocketError::InUse(path.into()),
            _ => fail("make the socket")(e),
        })?;
        let identity = identity(path);
        Ok(Listener {
            listener: UnixListener::from(fd),
            path: path.into(),
            identity,
        })
    }

    /// The next connection, if one waits. It blocks when read.
    ///
    /// # Errors
    /// None could be accepted, and the listener stays readable: no descriptors are left, most likely. Whoever waits for
    /// it had better rest.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl std::os::fd::AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Not if the name is somebody else's by now.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Connects to whoever listens on `path`, without waiting.
///
/// # Errors
/// Nobody listens, may be reached, or has room for one more.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let fd = new_socket()?;
    rustix::net::connect(&fd, &address)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn clear_stale(path: &Path) -> Result<(), SocketError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.into()));
    }
    // Refused means that nobody listens any more. Anything else may be somebody who is busy, or not ours to judge.
    if connect(path)
        .err()
        .is_none_or(|e| e.kind() != ErrorKind::ConnectionRefused)
    {
        return Err(SocketError::InUse(path.into()));
    }
    std::fs::remove_file(path).map_err(|source| SocketError::System {
        path: path.into(),
        what: "remove the stale socket",
        source,
    })
}

/// Looks user and group up in the machine's files, or takes them as numbers.
fn resolve(path: &Path, owner: &Owner) -> Result<(Option<Uid>, Option<Gid>), SocketError> {
    let find =
        |file: &str, kind: &'static str, name: Option<&str>| -> Result<Option<u32>, SocketError> {
            let Some(name) = name else { return Ok(None) };
            if let Ok(id) = name.parse() {
                return Ok(Some(id));
            }
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let ids = text.lines().filter_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
            });
            let id: Option<u32> = { ids }.next();
            id.map(Some)
                .ok_or_else(|| SocketError::NoSuchOwner(path.into(), kind, name.into()))
        };
    let uid = find("/etc/passwd", "user", owner.user())?;
    let gid = find("/etc/group", "group", owner.group())?;
    Ok((uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_what_a_dead_process_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/on/demand.sock");
        let mode = "0640".parse().unwrap();
        let first = Listener::bind(&path, None, mode).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert!(matches!(
            Listener::bind(&path, None, mode),
            Err(SocketError::InUse(_))
        ));
        assert!(connect(&path).is_ok() && first.accept().unwrap().is_some());
        let stale = dir.path().join("stale.sock");
        drop(UnixListener::bind(&stale).unwrap());
        assert!(connect(&stale).is_err());
        Listener::bind(&stale, None, mode).unwrap();
        assert!(!stale.exists(), "a listener takes its file with it");
        std::fs::write(&stale, "no socket").unwrap();
        assert!(matches!(
            Listener::bind(&stale, None, mode),
            Err(SocketError::NotASocket(_))
        ));
    }

    #[test]
    fn a_busy_listener_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("busy");
        let busy = new_socket().unwrap();
        rustix::net::bind(&busy, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&busy, 0).unwrap();
        let _waiting: Vec<_> = (0..4).map(|_| connect(&path)).collect();
        let before = identity(&path);
        let outcome = Listener::bind(&path, None, "0600".parse().unwrap());
        assert!(matches!(outcome, Err(SocketError::InUse(_))));
        assert_eq!(identity(&path), before);
    }

    #[test]
    fn a_listener_leaves_a_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&path, None, "0600".parse().unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path, None, "0600".parse().unwrap()).unwrap();
        drop(first);
        assert!(connect(second.path()).is_ok());
    }

    #[test]
    fn an_unknown_owner_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let owner: Owner = "no-such-user:root".parse().unwrap();
        let error = Listener::bind(&path, Some(&owner), "0600".parse().unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("no user \"no-such-user\""),
            "{error}"
        );
        assert!(!path.exists());
    }
}
