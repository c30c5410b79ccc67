//! Where connections come from, in both socket roles.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use crate::frontend::{Frontend, FrontendError, Result, readable};

/// Which side of the socket the guest's VMM is.
#[derive(Clone, Debug)]
pub enum Role {
    /// Connects to a socket on which the switch listens; tries again until the timeout.
    Connect(PathBuf),
    /// Listens on a path (replacing a stale socket) and takes the switch's connection.
    Listen(PathBuf),
}

/// The place a front-end gets its connections from, kept over reconnects.
#[derive(Debug)]
pub struct Endpoint {
    role: Role,
    listener: Option<UnixListener>,
}

impl Endpoint {
    /// Binds at once if the role is to listen, so that the switch can connect before we accept.
    pub fn new(role: Role) -> Result<Self> {
        let listener = match &role {
            Role::Connect(_) => None,
            Role::Listen(path) => Some(bind(path)?),
        };
        Ok(Self { role, listener })
    }

    /// The next connection, within `timeout`; the same limit then holds for every read and write on it.
    pub fn open(&self, timeout: Duration) -> Result<Frontend> {
        let until = Instant::now() + timeout;
        let stream = match (&self.role, &self.listener) {
            (Role::Listen(_), Some(listener)) => accept(listener, until, timeout)?,
            (Role::Connect(path) | Role::Listen(path), _) => connect(path, until, timeout)?,
        };
        Frontend::from_stream(stream, timeout)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let (Role::Listen(path), Some(_)) = (&self.role, &self.listener) {
            let _ = fs::remove_file(path);
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    let failed = |source| FrontendError::Io {
        doing: "listening",
        source,
    };
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, until: Instant, timeout: Duration) -> Result<UnixStream> {
    let doing = "waiting for the switch to connect";
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(source) => return Err(FrontendError::Io { doing, source }),
        }
        if !readable(listener.as_fd(), until, doing)? {
            return Err(FrontendError::Timeout {
                doing,
                after: timeout,
            });
        }
    }
}

fn connect(path: &Path, until: Instant, timeout: Duration) -> Result<UnixStream> {
    let doing = "connecting";
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                if Instant::now() >= until {
                    return Err(FrontendError::Timeout {
                        doing,
                        after: timeout,
                    });
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err(source) => return Err(FrontendError::Io { doing, source }),
        }
    }
}
