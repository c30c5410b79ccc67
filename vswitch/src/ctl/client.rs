//! A conversation on the control socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;
use vswitch_api::rpc::{
    self, Id, MAX_LINE, Method, Notification, Outcome, Request, Response, code,
};

use super::CtlError;

/// Bytes of an answer at most: 1024 ports with all their counters are far below it.
const MAX_ANSWER: u64 = 256 << 20;

/// A connection to the daemon.
pub(super) struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    next_id: i64,
}

impl Client {
    /// Connects to a socket that the operator named.
    pub(super) fn connect(path: &Path) -> Result<Self, CtlError> {
        let shown = path.display().to_string();
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                CtlError::NotRunning(shown)
            }
            io::ErrorKind::PermissionDenied => CtlError::NotAllowed(shown),
            _ => CtlError::Connect { path: shown, error },
        })?;
        Ok(Self {
            path: path.into(),
            stream: BufReader::new(stream),
            next_id: 1,
        })
    }

    /// Connects to the first of these sockets that somebody listens on.
    pub(super) fn connect_default(paths: &[PathBuf]) -> Result<Self, CtlError> {
        for path in paths {
            match Self::connect(path) {
                Err(CtlError::NotRunning(_)) => {}
                done => return done,
            }
        }
        let shown: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Err(CtlError::NotRunning(shown.join(" or ")))
    }

    /// One request and its answer.
    pub(super) fn call<M: Method>(&mut self, params: &M::Params) -> Result<M::Result, CtlError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request::new::<M>(id, params).map_err(|e| self.nonsense(&e))?;
        let line = rpc::to_line(&request);
        if line.len() > MAX_LINE {
            return Err(CtlError::Usage(format!(
                "the request has {} bytes, the switch takes {MAX_LINE}; send a shorter file",
                line.len()
            )));
        }
        // A daemon that refuses the connection says why and closes; its answer is still there.
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        loop {
            let answer = match (self.line(), &sent) {
                (Ok(Some(line)), _) => line,
                (_, Err(e)) => return Err(CtlError::Lost(e.to_string())),
                (Ok(None), _) => return Err(CtlError::Lost("it closed the connection".into())),
                (Err(e), _) => return Err(e),
            };
            let answer: Value = serde_json::from_str(&answer).map_err(|e| self.nonsense(&e))?;
            // A notification of a capture may stand before the answer.
            if answer.get("method").is_some() {
                continue;
            }
            let answer = Response::deserialize(answer).map_err(|e| self.nonsense(&e))?;
            return match answer.outcome {
                Outcome::Error(error) => Err(refused(error)),
                Outcome::Result(_) if answer.id != Id::Number(id) => {
                    Err(self.nonsense(&"it answers another request"))
                }
                Outcome::Result(result) => {
                    M::Result::deserialize(result).map_err(|e| self.nonsense(&e))
                }
            };
        }
    }

    /// The next notification; `None` when the daemon has hung up.
    pub(super) fn notification(&mut self) -> Result<Option<Notification>, CtlError> {
        let Some(line) = self.line()? else {
            return Ok(None);
        };
        serde_json::from_str(&line)
            .map(Some)
            .map_err(|e| self.nonsense(&e))
    }

    /// A second handle to the socket, to shut it down from another thread.
    pub(super) fn handle(&self) -> io::Result<UnixStream> {
        self.stream.get_ref().try_clone()
    }

    fn line(&mut self) -> Result<Option<String>, CtlError> {
        let mut line = String::new();
        let mut limited = self.stream.by_ref().take(MAX_ANSWER);
        match limited.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) if line.ends_with('\n') => Ok(Some(line)),
            Ok(_) => Err(CtlError::Lost("its last line is cut off".into())),
            Err(e) => Err(CtlError::Lost(e.to_string())),
        }
    }

    fn nonsense(&self, error: &impl ToString) -> CtlError {
        CtlError::Nonsense {
            path: self.path.display().to_string(),
            error: error.to_string(),
        }
    }
}

/// A refusal; a configuration's problems come as what they are.
fn refused(mut error: rpc::RpcError) -> CtlError {
    if error.code == code::CONFIG
        && let Some(data) = error.data.take()
        && let Ok(problems) = serde_json::from_value(data)
    {
        return CtlError::Config(problems);
    }
    CtlError::Refused(error)
}
