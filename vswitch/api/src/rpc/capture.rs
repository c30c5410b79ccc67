//! Captures: copies of frames as they pass the switch, dropped ones with the reason.
//!
//! `capture.start` answers with the ports; then [`CAPTURE_FRAMES`] notifications follow on the
//! same connection until `count` frames were sent, `capture.stop` comes or the connection ends.
//! A client that reads too slowly loses frames, never the switch: they are counted in
//! [`CaptureFrames::lost`].

use serde::{Deserialize, Serialize};

/// Method name of the notifications of a capture.
pub const CAPTURE_FRAMES: &str = "capture.frames";

/// Parameters of `capture.start`; what is empty or absent does not restrict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureParams {
    /// Only frames of these ports. Default: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Only frames on this way. Default: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub directions: Vec<Direction>,
    /// Only frames dropped for these reasons, as `counters` names them. Default: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Bytes of each frame at most, 14 to 65,535. Default 65,535: the whole frame.
    pub snaplen: u32,
    /// Frames after which the capture ends. Default: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl CaptureParams {
    /// Bytes that take every frame whole.
    pub const MAX_SNAPLEN: u32 = 65_535;
}

impl Default for CaptureParams {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            directions: Vec::new(),
            reasons: Vec::new(),
            snaplen: Self::MAX_SNAPLEN,
            count: None,
        }
    }
}

/// Where a frame was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// It came into the switch by the port.
    Rx,
    /// It left the switch by the port.
    Tx,
    /// It was dropped at the port, on its way in or out.
    Drop,
}

/// Names a capture of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureId {
    /// As `capture.start` answered.
    pub id: u64,
}

/// Result of `capture.start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStarted {
    /// Names the capture.
    pub id: u64,
    /// The ports it sees now. Ports made later are seen, too, if `ports` did not restrict.
    pub interfaces: Vec<String>,
}

/// Result of `capture.stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStopped {
    /// Frames sent.
    pub frames: u64,
    /// Frames that were to be sent and could not.
    pub lost: u64,
}

/// Parameters of a [`CAPTURE_FRAMES`] notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFrames {
    /// Which capture.
    pub id: u64,
    /// The frames, in the order in which they were seen on each port.
    pub frames: Vec<CapturedFrame>,
    /// Frames lost since the capture began, because the client or the switch was too slow.
    pub lost: u64,
    /// Whether this is the last notification: `count` was reached, or the daemon ends.
    #[serde(default)]
    pub end: bool,
}

/// A frame that was captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedFrame {
    /// The port it was seen at.
    pub port: String,
    /// On which way.
    pub dir: Direction,
    /// Why it was dropped; present with `dir: drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, nanoseconds since 1970.
    pub ts_ns: u64,
    /// Bytes of the whole frame.
    pub orig_len: u32,
    /// Its first bytes from the Ethernet header on, at most `snaplen`, in base64 (standard
    /// alphabet, padded).
    pub data: String,
}
