//! The control socket's language: JSON-RPC 2.0, one object a line.
//!
//! A client connects to the control socket and writes one request a line ([`Request`]); the
//! daemon answers each with one line ([`Response`]), in order. The only lines without a request
//! are the notifications of a running capture ([`Notification`]). Batches are not taken. A line
//! has at most [`MAX_LINE`] bytes; a longer one is answered with an error and the connection is
//! closed. Who may connect may do everything: access is decided by the socket's permissions.
//!
//! Each method is a type ([`methods`]) that ties name, parameters and result together, so that
//! neither side can mix them up. Keys are in snake_case; the objects of the configuration inside
//! (ports, VLANs) are written as in the YAML file, in kebab-case. Clients ignore keys they do not
//! know; the daemon refuses parameters it does not know.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use capture::*;
pub use coalesce::*;
pub use counters::*;
pub use params::*;
pub use status::*;
pub use steer::*;

mod capture;
mod coalesce;
mod counters;
mod params;
mod status;
mod steer;

/// Bytes of a line at most, its newline included. A configuration of 1 MiB fits, escaped.
pub const MAX_LINE: usize = 4 << 20;

/// A method of the control socket.
pub trait Method {
    /// Its name on the wire.
    const NAME: &'static str;
    /// What it needs to know.
    type Params: Serialize + DeserializeOwned;
    /// What it answers.
    type Result: Serialize + DeserializeOwned;
}

/// The methods, by name.
pub mod methods {
    use super::*;

    macro_rules! methods {
        ($($(#[$doc:meta])+ $ty:ident = $name:literal: $params:ty => $result:ty;)+) => {
            $(
                $(#[$doc])+
                #[derive(Debug, Clone, Copy)]
                pub enum $ty {}
                impl Method for $ty {
                    const NAME: &'static str = $name;
                    type Params = $params;
                    type Result = $result;
                }
            )+
            /// Every name, for error messages and documentation.
            pub const NAMES: &[&str] = &[$($name),+];
        };
    }

    methods! {
        /// Which daemon this is.
        GetVersion = "version": NoParams => Version;
        /// Everything about the running switch, at a glance.
        Show = "show": NoParams => Status;
        /// Everything about one port.
        PortShow = "port.show": PortName => PortDetail;
        /// Adds a port until the daemon ends.
        PortAdd = "port.add": PortAddParams => PortAdded;
        /// Removes a port: a runtime one for good, one of the file until the next apply.
        PortRemove = "port.remove": PortName => Done;
        /// Takes a port up or down until the daemon ends.
        PortSet = "port.set": PortSetParams => PortStatus;
        /// The addresses that are known, one entry per address and VLAN.
        FdbShow = "fdb.show": FdbFilter => FdbList;
        /// Adds a static address, or makes a learnt one static.
        FdbAdd = "fdb.add": FdbAddParams => Done;
        /// Forgets one address, static or learnt.
        FdbDel = "fdb.del": FdbDelParams => Done;
        /// Forgets learnt addresses; static ones stay.
        FdbFlush = "fdb.flush": FdbFilter => FdbFlushed;
        /// What was received, switched, delivered and dropped, since the daemon started.
        GetCounters = "counters": CountersParams => Counters;
        /// Everything about the workers.
        Workers = "workers": NoParams => WorkerList;
        /// Which worker takes frames from which queue.
        SteerShow = "steer.show": NoParams => SteerStatus;
        /// Measures for 50 ms, moves queues if that evens out the load, and says what was decided.
        SteerRebalance = "steer.rebalance": NoParams => SteerDecisions;
        /// Moves a queue to a worker and keeps it there, or leaves it to the switch again.
        SteerSet = "steer.set": SteerSetParams => Done;
        /// Has a queue shared with a second worker, or not, or leaves that to the switch again.
        SteerShare = "steer.share": SteerShareParams => Done;
        /// What was decided lately about queues and workers, and why.
        SteerTrace = "steer.trace": NoParams => SteerDecisions;
        /// When guests are interrupted, and how that goes.
        CoalesceShow = "coalesce.show": CoalesceShowParams => CoalesceList;
        /// Changes when a guest is interrupted, until the daemon ends or the file says something new.
        CoalesceSet = "coalesce.set": CoalesceSetParams => CoalescedPort;
        /// The configuration that runs.
        ConfigShow = "config.show": NoParams => ConfigText;
        /// Reads a configuration and names every problem; changes nothing.
        ConfigCheck = "config.check": ConfigInput => ConfigChecked;
        /// What applying a configuration would change; changes nothing.
        ConfigDiff = "config.diff": ConfigInput => crate::config::Plan;
        /// Applies a configuration, whole or not at all.
        ConfigApply = "config.apply": ConfigInput => crate::config::Plan;
        /// Starts to copy frames to this connection, as [`CAPTURE_FRAMES`] notifications.
        CaptureStart = "capture.start": CaptureParams => CaptureStarted;
        /// Ends a capture of this connection.
        CaptureStop = "capture.stop": CaptureId => CaptureStopped;
    }
}

/// Marker of the protocol: always the string `"2.0"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// JSON-RPC 2.0.
    #[default]
    #[serde(rename = "2.0")]
    V2,
}

/// What ties an answer to its request; chosen by the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A string.
    Text(String),
    /// No id: a request that could not be read is answered with this.
    Null,
}

/// A request line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Always `"2.0"`.
    pub jsonrpc: Protocol,
    /// Comes back in the answer. A request without one is carried out and not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// One of [`methods::NAMES`].
    pub method: String,
    /// The method's parameters, by name; may be left out where all have defaults.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

impl Request {
    /// A request for method `M`.
    pub fn new<M: Method>(id: i64, params: &M::Params) -> serde_json::Result<Self> {
        Ok(Self {
            jsonrpc: Protocol::V2,
            id: Some(Id::Number(id)),
            method: M::NAME.into(),
            params: serde_json::to_value(params)?,
        })
    }

    /// Reads one line. The error is the answer to send.
    pub fn parse(line: &[u8]) -> Result<Self, Box<Response>> {
        let value: Value = serde_json::from_slice(line).map_err(|e| {
            Response::error(
                Id::Null,
                RpcError::new(code::PARSE, format!("not JSON: {e}")),
            )
        })?;
        let id = value
            .get("id")
            .and_then(|id| Id::deserialize(id).ok())
            .unwrap_or(Id::Null);
        Self::deserialize(value).map_err(|e| {
            let message = format!("not a JSON-RPC 2.0 request: {e}");
            Box::new(Response::error(
                id,
                RpcError::new(code::INVALID_REQUEST, message),
            ))
        })
    }

    /// The parameters as method `M` takes them; left out counts as empty.
    pub fn params<M: Method>(&self) -> Result<M::Params, RpcError> {
        let empty = Value::Object(serde_json::Map::new());
        let params = if self.params.is_null() {
            &empty
        } else {
            &self.params
        };
        M::Params::deserialize(params).map_err(|e| {
            RpcError::new(
                code::INVALID_PARAMS,
                format!("parameters of {}: {e}", M::NAME),
            )
        })
    }
}

/// An answer line: a result or an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Always `"2.0"`.
    pub jsonrpc: Protocol,
    /// The request's.
    pub id: Id,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done; the method's result.
    Result(Value),
    /// It was not done, and nothing was changed.
    Error(RpcError),
}

impl Response {
    /// The answer of method `M`.
    pub fn result<M: Method>(id: Id, result: &M::Result) -> Self {
        let outcome = serde_json::to_value(result).map_or_else(
            |e| {
                Outcome::Error(RpcError::new(
                    code::INTERNAL,
                    format!("the result has no JSON form: {e}"),
                ))
            },
            Outcome::Result,
        );
        Self {
            jsonrpc: Protocol::V2,
            id,
            outcome,
        }
    }

    /// A refusal.
    pub fn error(id: Id, error: RpcError) -> Self {
        Self {
            jsonrpc: Protocol::V2,
            id,
            outcome: Outcome::Error(error),
        }
    }

    /// The line to send, newline included.
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

/// A line that answers nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// Always `"2.0"`.
    pub jsonrpc: Protocol,
    /// What is told: [`CAPTURE_FRAMES`].
    pub method: String,
    /// The news.
    pub params: Value,
}

/// `value` as one line of JSON, newline included. An empty line if it has no JSON form, which no
/// type of this module can be.
pub fn to_line<T: Serialize>(value: &T) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// Why a request was refused. Nothing was changed then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`code`].
    pub code: i64,
    /// A sentence: what is wrong and what to do.
    pub message: String,
    /// More, for programs. With [`code::CONFIG`], the [`crate::config::ConfigErrors`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// An error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// A configuration that was refused, with every problem in it.
    pub fn config(errors: &crate::config::ConfigErrors) -> Self {
        Self {
            code: code::CONFIG,
            message: errors.to_string(),
            data: serde_json::to_value(errors).ok(),
        }
    }
}

/// Error codes.
pub mod code {
    /// The line is not JSON.
    pub const PARSE: i64 = -32700;
    /// The line is JSON, but not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters do not fit the method.
    pub const INVALID_PARAMS: i64 = -32602;
    /// A fault of the daemon.
    pub const INTERNAL: i64 = -32603;
    /// A configuration, or a port to add, has problems; `data` lists them.
    pub const CONFIG: i64 = -32001;
    /// No port, bridge, address or capture of that name.
    pub const NOT_FOUND: i64 = -32002;
    /// The name, socket or device is taken.
    pub const EXISTS: i64 = -32003;
    /// The change needs a restart of the daemon; nothing was applied.
    pub const NEEDS_RESTART: i64 = -32004;
    /// The machine refused: a socket could not be made, a device not opened.
    pub const SYSTEM: i64 = -32005;
    /// A limit is reached: ports, addresses, captures.
    pub const LIMIT: i64 = -32006;
    /// This daemon was built without what is needed.
    pub const UNSUPPORTED: i64 = -32007;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back() {
        let params = PortName { name: "vm1".into() };
        let line = to_line(&Request::new::<methods::PortShow>(7, &params).unwrap());
        assert_eq!(
            line,
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"port.show\",\"params\":{\"name\":\"vm1\"}}\n"
        );
        let request = Request::parse(line.as_bytes()).unwrap();
        assert_eq!(request.params::<methods::PortShow>().unwrap(), params);
        assert_eq!(request.id, Some(Id::Number(7)));
    }

    #[test]
    fn parameters_may_be_left_out_where_all_have_defaults() {
        let line = br#"{"jsonrpc":"2.0","id":"a","method":"counters"}"#;
        let request = Request::parse(line).unwrap();
        assert!(
            request
                .params::<methods::GetCounters>()
                .unwrap()
                .port
                .is_none()
        );
        let error = request.params::<methods::PortShow>().unwrap_err();
        assert_eq!(error.code, code::INVALID_PARAMS);
        assert!(
            error.message.contains("port.show") && error.message.contains("name"),
            "{error}"
        );
    }

    #[test]
    fn bad_lines_are_answered() {
        let answer = |line: &str| Request::parse(line.as_bytes()).unwrap_err().to_line();
        assert!(answer("{").contains("-32700"));
        assert!(answer("[]").contains("-32600"));
        assert!(answer(r#"{"jsonrpc":"1.0","id":3,"method":"show"}"#).contains(r#""id":3,"#));
        assert!(answer(r#"{"jsonrpc":"2.0","id":3,"method":"show","x":1}"#).contains("-32600"));
        assert!(answer(r#"{"jsonrpc":"2.0","id":{},"method":"show"}"#).contains(r#""id":null"#));
    }

    #[test]
    fn answers_read_back() {
        let removed = FdbFlushed { removed: 3 };
        let ok = Response::result::<methods::FdbFlush>(Id::Text("x".into()), &removed);
        assert_eq!(
            ok.to_line(),
            "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"result\":{\"removed\":3}}\n"
        );
        let no = Response::error(Id::Null, RpcError::new(code::NOT_FOUND, "no port `vm9`"));
        for response in [ok, no] {
            let again: Response = serde_json::from_str(&response.to_line()).unwrap();
            assert_eq!(again, response);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names = methods::NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), methods::NAMES.len());
    }
}
