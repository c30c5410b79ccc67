//! The control socket: JSON-RPC 2.0, one object a line, any number of clients.
//!
//! Everything runs on the main thread, a request at a time; a client is never waited for, and gets
//! [`REQUESTS_A_TURN`] requests before the others have theirs. While more than [`BACKLOG`] bytes of answers wait to be
//! read no further request of that client is taken up, and a capture loses frames (and says so).
//!
//! What takes long is done elsewhere and answered later (`steer.rebalance`). Answers come in the order of requests, so that
//! client's next request waits, and nobody else.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use base64::Engine as _;
use vswitch_api::rpc::{
    self, CAPTURE_FRAMES, CaptureFrames, CaptureId, CaptureParams, CaptureStarted, CaptureStopped,
    CapturedFrame, Id, MAX_LINE, Method, Notification, Protocol, Request, Response, RpcError, code,
    methods,
};

use super::methods::call;
use super::steer;
use super::switch::Switch;
use super::watch::{Interest, Token, Watch};
use crate::capture::{self, Filter, Tap};
use crate::forward::counters::{InputDrop, OutputDrop};
use crate::worker::steward::Order;
use crate::worker::steward::trace::Decision;

/// Bytes that may wait for a client.
const BACKLOG: usize = 8 << 20;
/// Bytes of frames in one line of a capture: four thirds of it in base64 stay well below [`MAX_LINE`].
const CAPTURE_BATCH: usize = 1 << 20;
/// Requests of one client before the others get their turn.
const REQUESTS_A_TURN: usize = 16;
/// Clients at a time.
const CLIENTS: usize = 64;

/// A running capture.
struct Capture {
    id: u64,
    tap: Arc<Tap>,
    left: Option<u64>,
    sent: u64,
    lost: u64,
}

struct Client {
    stream: UnixStream,
    input: Lines,
    output: Vec<u8>,
    interest: Interest,
    /// It has said all it will say.
    ended: bool,
    capture: Option<Capture>,
    /// What it waits for. Until that is there its socket is not watched.
    awaited: Option<Awaited>,
}

/// A request that is answered later.
struct Awaited {
    order: Order,
    id: Option<Id>,
}

/// Bytes as they come in, and whole lines out of them, each byte looked at once.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins, and how far no end of it was found.
    start: usize,
    seen: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.seen -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Where the next line ends, if it is whole.
    fn end(&mut self) -> Option<usize> {
        let rest = self.bytes.get(self.seen..)?;
        match rest.iter().position(|b| *b == b'\n') {
            Some(at) => {
                self.seen += at;
                Some(self.seen)
            }
            None => {
                self.seen = self.bytes.len();
                None
            }
        }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let end = self.end()?;
        let line = self.bytes.get(self.start..end).map(<[u8]>::to_vec);
        (self.start, self.seen) = (end + 1, end + 1);
        line
    }
}

/// All clients.
#[derive(Default)]
pub struct Clients {
    clients: Vec<Option<Client>>,
    numbers: Numbers,
}

/// How many there were so far.
#[derive(Default)]
struct Numbers {
    captures: u64,
    orders: u64,
}

/// A result, or what is wrong.
type Outcome = Result<serde_json::Value, RpcError>;

/// What a turn of a client's came to.
enum Fate {
    Stays,
    Leaves,
}

impl Clients {
    /// A client connects.
    pub fn accept(&mut self, stream: UnixStream, watch: &mut dyn Watch) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let free = self
            .clients
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.clients.len());
        if free >= CLIENTS {
            let error = RpcError::new(
                code::LIMIT,
                format!("{CLIENTS} clients are connected, which is the limit; close one"),
            );
            let mut stream = stream;
            let _ = stream.write_all(Response::error(Id::Null, error).to_line().as_bytes());
            return;
        }
        if free == self.clients.len() {
            self.clients.push(None);
        }
        watch.watch(&stream, Token::Client(free as u16));
        if let Some(place) = self.clients.get_mut(free) {
            *place = Some(Client {
                stream,
                input: Lines::default(),
                output: Vec::new(),
                interest: Interest::READ,
                ended: false,
                capture: None,
                awaited: None,
            });
        }
    }

    /// A client can be read or written. It gets one turn: the loop comes back for the rest, after everybody else.
    pub fn ready(&mut self, n: u16, switch: &mut Switch, watch: &mut dyn Watch) {
        self.with_client(n, switch, watch, |client, numbers, switch, watch| {
            if client.awaited.is_some() {
                return Fate::Stays;
            }
            client.read();
            for _ in 0..REQUESTS_A_TURN {
                if client.output.len() > BACKLOG || client.awaited.is_some() {
                    break;
                }
                match client.line() {
                    Some(Ok(line)) => client.answer(n, &line, numbers, switch, watch),
                    Some(Err(refusal)) => {
                        client.send(&refusal.to_line());
                        client.flush(n, watch);
                        return Fate::Leaves;
                    }
                    None => break,
                }
            }
            // Room for what the tap kept while the client was slow.
            client.send_captured(switch, watch);
            client.flush(n, watch)
        });
    }

    /// A client's capture has frames.
    pub fn captured(&mut self, n: u16, switch: &mut Switch, watch: &mut dyn Watch) {
        self.with_client(n, switch, watch, |client, _, switch, watch| {
            client.send_captured(switch, watch);
            client.flush(n, watch)
        });
    }

    /// What some client waits for is done.
    pub fn rebalanced(
        &mut self,
        order: Order,
        made: Vec<Decision>,
        switch: &mut Switch,
        watch: &mut dyn Watch,
    ) {
        let waits = |client: &Client| client.awaited.as_ref().is_some_and(|a| a.order == order);
        let n = self
            .clients
            .iter()
            .position(|client| client.as_ref().is_some_and(waits));
        // It may have gone.
        let Some(n) = n else { return };
        let n = n as u16;
        self.with_client(n, switch, watch, |client, _, switch, watch| {
            let outcome = to_value(&steer::decisions(switch, made));
            client.resume(n, outcome, watch);
            client.flush(n, watch)
        });
    }

    fn with_client(
        &mut self,
        n: u16,
        switch: &mut Switch,
        watch: &mut dyn Watch,
        turn: impl FnOnce(&mut Client, &mut Numbers, &mut Switch, &mut dyn Watch) -> Fate,
    ) {
        let Some(Some(client)) = self.clients.get_mut(usize::from(n)) else {
            return;
        };
        if let Fate::Leaves = turn(client, &mut self.numbers, switch, watch) {
            client.end_capture(switch, watch);
            watch.unwatch(&client.stream);
            if let Some(place) = self.clients.get_mut(usize::from(n)) {
                *place = None;
            }
        }
    }
}

impl Client {
    /// Takes in some of what is there, unless enough is waiting.
    fn read(&mut self) {
        let mut chunk = [0; 64 * 1024];
        while !self.ended && self.output.len() <= BACKLOG && self.input.len() <= MAX_LINE {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.input.push(chunk.get(..n).unwrap_or_default());
                    // One line may be long; a flood of short ones need not be here all at once.
                    if self.input.end().is_some() {
                        return;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.ended = true,
            }
        }
    }

    /// The next whole line, or the refusal of one that is too long.
    fn line(&mut self) -> Option<Result<Vec<u8>, Box<Response>>> {
        if let Some(line) = self.input.next() {
            return Some(Ok(line));
        }
        (self.input.len() > MAX_LINE).then(|| {
            let message = format!("a line has at most {MAX_LINE} bytes; this one is longer");
            Err(Box::new(Response::error(
                Id::Null,
                RpcError::new(code::INVALID_REQUEST, message),
            )))
        })
    }

    fn answer(
        &mut self,
        n: u16,
        line: &[u8],
        numbers: &mut Numbers,
        switch: &mut Switch,
        watch: &mut dyn Watch,
    ) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let request = match Request::parse(line) {
            Ok(request) => request,
            Err(refusal) => return self.send(&refusal.to_line()),
        };
        tracing::debug!(method = request.method, "control request");
        let outcome = match request.method.as_str() {
            methods::CaptureStart::NAME => {
                self.start_capture(n, &request, &mut numbers.captures, switch, watch)
            }
            methods::CaptureStop::NAME => self.stop_capture(&request, switch, watch),
            methods::SteerRebalance::NAME => match request.params::<methods::SteerRebalance>() {
                Ok(_) => {
                    numbers.orders += 1;
                    let order = Order(numbers.orders);
                    switch.steward.rebalance(order);
                    return self.wait(order, request.id, watch);
                }
                Err(error) => Err(error),
            },
            _ => call(&request, switch, watch),
        };
        self.conclude(request.id, outcome);
    }

    /// Takes up nothing more until this is done.
    fn wait(&mut self, order: Order, id: Option<Id>, watch: &mut dyn Watch) {
        self.awaited = Some(Awaited { order, id });
        // Also a client that has gone would be reported, over and over again.
        watch.unwatch(&self.stream);
    }

    /// What it waited for is done.
    fn resume(&mut self, n: u16, outcome: Outcome, watch: &mut dyn Watch) {
        if let Some(Awaited { id, .. }) = self.awaited.take() {
            self.conclude(id, outcome);
            watch.watch(&self.stream, Token::Client(n));
            self.interest = Interest::READ;
        }
    }

    /// Answers, if an answer is wanted.
    fn conclude(&mut self, id: Option<Id>, outcome: Outcome) {
        let Some(id) = id else { return };
        let outcome = outcome.map_or_else(rpc::Outcome::Error, rpc::Outcome::Result);
        self.send(
            &Response {
                jsonrpc: Protocol::V2,
                id,
                outcome,
            }
            .to_line(),
        );
    }

    fn send(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
    }

    fn flush(&mut self, n: u16, watch: &mut dyn Watch) -> Fate {
        let mut sent = 0;
        while let Some(rest) = self.output.get(sent..).filter(|r| !r.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Fate::Leaves,
            }
        }
        self.output.drain(..sent);
        if self.awaited.is_some() {
            return Fate::Stays;
        }
        let waiting = self.input.end().is_some();
        if self.output.len() > 2 * BACKLOG || (self.ended && self.output.is_empty() && !waiting) {
            return Fate::Leaves;
        }
        // Writable also stands for "come back": there are lines left for another turn.
        let interest = Interest {
            read: !self.ended && self.output.len() <= BACKLOG,
            write: !self.output.is_empty() || waiting,
        };
        if interest != self.interest {
            self.interest = interest;
            watch.rewatch(&self.stream, Token::Client(n), interest);
        }
        Fate::Stays
    }

    // ---- captures -----------------------------------------------------------------------------------------------

    fn start_capture(
        &mut self,
        n: u16,
        request: &Request,
        captures: &mut u64,
        switch: &mut Switch,
        watch: &mut dyn Watch,
    ) -> Result<serde_json::Value, RpcError> {
        let params = request.params::<methods::CaptureStart>()?;
        if self.capture.is_some() {
            return Err(RpcError::new(
                code::LIMIT,
                "this connection captures already; stop that capture first, or use another connection",
            ));
        }
        if params.count == Some(0) {
            let message =
                "a capture of 0 frames shows nothing; leave `count` out, or make it at least 1";
            return Err(RpcError::new(code::INVALID_PARAMS, message));
        }
        let filter = filter(&params, switch)?;
        let tap = Tap::new(filter).map(Arc::new).map_err(|e| {
            RpcError::new(
                code::SYSTEM,
                format!("the capture could not be set up: {e}"),
            )
        })?;
        *captures += 1;
        watch.watch(&*tap, Token::Capture(n));
        switch.add_tap(Arc::clone(&tap));
        self.capture = Some(Capture {
            id: *captures,
            tap,
            left: params.count,
            sent: 0,
            lost: 0,
        });
        let all = switch.ports.keys().cloned().collect();
        let interfaces = if params.ports.is_empty() {
            all
        } else {
            params.ports
        };
        to_value(&CaptureStarted {
            id: *captures,
            interfaces,
        })
    }

    fn stop_capture(
        &mut self,
        request: &Request,
        switch: &mut Switch,
        watch: &mut dyn Watch,
    ) -> Result<serde_json::Value, RpcError> {
        let CaptureId { id } = request.params::<methods::CaptureStop>()?;
        if self.capture.as_ref().is_none_or(|c| c.id != id) {
            return Err(RpcError::new(
                code::NOT_FOUND,
                format!("this connection has no capture {id}"),
            ));
        }
        self.send_captured(switch, watch);
        let (frames, lost) = self.capture.as_ref().map_or((0, 0), |c| (c.sent, c.lost));
        self.end_capture(switch, watch);
        to_value(&CaptureStopped { frames, lost })
    }

    /// Sends what has been captured, as far as the client keeps up; the rest waits in the tap, whose room is bounded.
    fn send_captured(&mut self, switch: &mut Switch, watch: &mut dyn Watch) {
        let room = BACKLOG.saturating_sub(self.output.len());
        let Some(capture) = &mut self.capture else {
            return;
        };
        // In base64 and JSON a frame takes less than twice its length; an empty one still takes a line.
        let (mut frames, lost) = capture.tap.take(room / 2);
        capture.lost += lost;
        if frames.is_empty() && lost == 0 {
            return;
        }
        if let Some(left) = &mut capture.left {
            frames.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= frames.len() as u64;
        }
        capture.sent += frames.len() as u64;
        let end = capture.left == Some(0);
        let (id, lost) = (capture.id, capture.lost);
        let mut frames = frames.into_iter().peekable();
        // At least one line: it may be the last one, or carry only what was lost.
        loop {
            let mut bytes = 0;
            let fits = |f: &capture::Captured| {
                bytes += f.data.len();
                bytes <= CAPTURE_BATCH
            };
            let batch: Vec<_> = take_while(&mut frames, fits).map(|f| frame(&f)).collect();
            let last = frames.peek().is_none();
            let news = CaptureFrames {
                id,
                frames: batch,
                lost,
                end: end && last,
            };
            if let Ok(params) = serde_json::to_value(news) {
                let method = CAPTURE_FRAMES.into();
                self.send(&rpc::to_line(&Notification {
                    jsonrpc: Protocol::V2,
                    method,
                    params,
                }));
            }
            if last {
                break;
            }
        }
        if end {
            self.end_capture(switch, watch);
        }
    }

    fn end_capture(&mut self, switch: &mut Switch, watch: &mut dyn Watch) {
        if let Some(capture) = self.capture.take() {
            watch.unwatch(&*capture.tap);
            switch.remove_tap(&capture.tap);
        }
    }
}

/// The next letters that `fits` takes, and the first in any case.
fn take_while<T>(
    letters: &mut std::iter::Peekable<impl Iterator<Item = T>>,
    mut fits: impl FnMut(&T) -> bool,
) -> impl Iterator<Item = T> {
    let mut first = true;
    std::iter::from_fn(move || {
        let fitting = letters.peek().is_some_and(&mut fits);
        if std::mem::take(&mut first) || fitting {
            letters.next()
        } else {
            None
        }
    })
}

fn filter(params: &CaptureParams, switch: &Switch) -> Result<Filter, RpcError> {
    let ports = params
        .ports
        .iter()
        .map(|name| Ok(switch.find_port(name)?.at));
    let reasons = params.reasons.iter().map(|name| {
        let all = InputDrop::ALL.iter().map(|r| r.name());
        let mut all = all.chain(OutputDrop::ALL.iter().map(|r| r.name()));
        all.find(|known| known == name).ok_or_else(|| {
            let message = format!(
                "there is no drop reason \"{name}\"; `vswitchctl counters --all` lists them"
            );
            RpcError::new(code::INVALID_PARAMS, message)
        })
    });
    Ok(Filter {
        ports: ports.collect::<Result<_, RpcError>>()?,
        directions: params.directions.iter().map(|d| direction(*d)).collect(),
        reasons: reasons.collect::<Result<_, RpcError>>()?,
        snaplen: params.snaplen.clamp(14, CaptureParams::MAX_SNAPLEN) as usize,
    })
}

fn direction(direction: rpc::Direction) -> capture::Direction {
    match direction {
        rpc::Direction::Rx => capture::Direction::Rx,
        rpc::Direction::Tx => capture::Direction::Tx,
        rpc::Direction::Drop => capture::Direction::Drop,
    }
}

fn frame(captured: &capture::Captured) -> CapturedFrame {
    CapturedFrame {
        port: captured.port.to_string(),
        dir: match captured.direction {
            capture::Direction::Rx => rpc::Direction::Rx,
            capture::Direction::Tx => rpc::Direction::Tx,
            capture::Direction::Drop => rpc::Direction::Drop,
        },
        reason: captured.reason.map(Into::into),
        ts_ns: captured.ns,
        orig_len: captured.len,
        data: base64::engine::general_purpose::STANDARD.encode(&captured.data),
    }
}

/// A result as JSON.
pub(super) fn to_value<T: serde::Serialize>(result: &T) -> Result<serde_json::Value, RpcError> {
    serde_json::to_value(result)
        .map_err(|e| RpcError::new(code::INTERNAL, format!("the result has no JSON form: {e}")))
}

#[cfg(test)]
mod tests;
