//! A client of the control socket: JSON-RPC 2.0, one object a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vswitch_api::rpc::{Method, Outcome, Request, Response, to_line};

use crate::error::{Error, Result};

/// How long the switch may think about a request.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to the control socket.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    last_id: i64,
}

impl Control {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .and_then(|stream| stream.set_read_timeout(Some(ANSWER_LIMIT)).map(|()| stream))
            .map_err(Error::io(format!("connect to {}", socket.display())))?;
        Ok(Self {
            stream: BufReader::new(stream),
            last_id: 0,
        })
    }

    /// Calls a method and waits for its result.
    pub fn call<M: Method>(&mut self, params: &M::Params) -> Result<M::Result> {
        let unreadable = |e: serde_json::Error| Error::Failed(format!("{}: {e}", M::NAME));
        self.last_id += 1;
        let request = Request::new::<M>(self.last_id, params).map_err(unreadable)?;
        let line = self.exchange(to_line(&request).as_bytes())?;
        let response: Response = serde_json::from_str(&line).map_err(unreadable)?;
        if Some(&response.id) != request.id.as_ref() {
            return Err(Error::Failed(format!(
                "{}: the answer is to another request: {line}",
                M::NAME
            )));
        }
        match response.outcome {
            Outcome::Result(value) => serde_json::from_value(value).map_err(unreadable),
            Outcome::Error(error) => Err(Error::Refused {
                method: M::NAME,
                error,
            }),
        }
    }

    /// Sends any bytes, valid or not (a newline should end them), and returns the line that comes back.
    pub fn exchange(&mut self, bytes: &[u8]) -> Result<String> {
        let mut line = String::new();
        self.stream
            .get_mut()
            .write_all(bytes)
            .and_then(|()| self.stream.read_line(&mut line))
            .map_err(Error::io("talk to the control socket"))?;
        if line.is_empty() {
            return Err(Error::Failed(
                "the switch closed the control connection".into(),
            ));
        }
        Ok(line)
    }
}
