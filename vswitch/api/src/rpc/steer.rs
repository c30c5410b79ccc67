//! Workers in detail, and who takes frames from which queue.

use serde::{Deserialize, Serialize};

use super::status::WorkerQueue;
use crate::config::{BusyPoll, Rebalance, ReceiveSteering, Scale, Share};

/// Result of `workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerList {
    /// The workers, by number.
    pub workers: Vec<WorkerDetail>,
}

/// Everything about a worker. Counts and times are those since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerDetail {
    /// Its number; a worker keeps it for life.
    pub index: u16,
    /// The core it was asked to run on.
    pub core: u32,
    /// The NUMA node of that core.
    pub node: u8,
    /// The lowest of the processors that share its last-level cache with that core; absent if the kernel does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<u32>,
    /// What it does when there is nothing to do.
    pub busy_poll: BusyPoll,
    /// How long such a sleep may be, nanoseconds; 0 if there are none.
    #[serde(default)]
    pub max_sleep_ns: u64,
    /// What it does now.
    pub state: WorkerState,
    /// The queues it takes frames from.
    pub queues: Vec<WorkerQueue>,
    /// Those of them that are on another node than it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub far: Vec<WorkerQueue>,
    /// The queue of another worker that it helps with: it delivers a part of what that takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helps: Option<WorkerQueue>,
    /// Share of the last measuring interval that it spent on frames, 0 to 1.
    pub busy_share: f64,
    /// Share of that interval that it was awake, 0 to 1.
    pub awake_share: f64,
    /// How long its slowest queue had not been empty, nanoseconds, when it last looked; it looks every 25 microseconds
    /// while it is busy.
    pub delay_ns: u64,
    /// What 99 of 100 such looks stayed below.
    pub delay_p99_ns: u64,
    /// The most that a look found.
    pub delay_max_ns: u64,
    /// Times it was woken.
    pub wakes: u64,
    /// Times it slept for a moment because frames were few but steady.
    #[serde(default)]
    pub naps: u64,
    /// Queues that came from other workers.
    pub moved_in: u64,
    /// Queues that went to other workers.
    pub moved_out: u64,
}

/// What a worker does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// It looks at its queues.
    Polling,
    /// It sleeps until one of its queues has something.
    Asleep,
    /// It has no queue, and sleeps.
    Parked,
}

/// Result of `steer.show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SteerStatus {
    /// Whether queues move by load.
    pub rebalance: Rebalance,
    /// How many workers are to be in use.
    pub scale: Scale,
    /// Whether queues that are more than their workers can do get help.
    #[serde(default)]
    pub share: Share,
    /// The numbers of the workers in use.
    pub in_use: Vec<u16>,
    /// Queues moved from worker to worker since the daemon started.
    pub moves: u64,
    /// How often a device had not sent what the last owner gave it when the wait for that ended.
    pub unsettled: u64,
    /// The queues that frames are taken from.
    pub queues: Vec<SteeredQueue>,
    /// The guests that may have several queue pairs, and how their flows are spread over them.
    #[serde(default)]
    pub guests: Vec<SteeredGuest>,
}

/// How the flows to a guest are spread over its queue pairs. Counts are those since the port was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteeredGuest {
    /// The port.
    pub port: String,
    /// Whether flows go to the pair that the guest sends them on.
    pub receive_steering: ReceiveSteering,
    /// Pairs it may have.
    pub max_queue_pairs: u16,
    /// Pairs it uses: 0 to one less than that.
    pub active: u16,
    /// For each of those, buckets of the table of hashes that lead there.
    pub buckets: Vec<u32>,
    /// Flows that go to the pair that the guest sends them on because they are pinned to it.
    pub pins: u32,
    /// Times that a flow was not pinned because the table of pins was full where it belongs.
    pub pins_refused: u64,
    /// Flows, or buckets of them, that changed their pair once the guest had dealt with what they were given before.
    pub moved_completed: u64,
    /// Those that changed it after 10 ms without a frame, the guest not telling how far it is.
    pub moved_idle: u64,
    /// Those that changed it because the guest took the pair out of use.
    pub moved_forced: u64,
    /// Frames that went to a flow's old pair because the guest had not dealt with those before.
    pub waited: u64,
    /// Times that a sender's queue went to another worker before this guest had dealt with what it had been given.
    pub unsettled: u64,
}

/// A queue that frames are taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteeredQueue {
    /// The port.
    pub port: String,
    /// Its queue pair, from 0.
    pub queue: u16,
    /// The worker that takes frames from it.
    pub worker: u16,
    /// The NUMA node of its device, or of its guest's memory; absent if nobody knows, or there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u8>,
    /// Its worker is on another node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub far: bool,
    /// The worker that delivers a part of them, if one helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<u16>,
    /// To how many outputs (ports, or queues of ports) the helper delivers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper_outputs: Option<u32>,
    /// What `steer.share` said of it.
    #[serde(default, skip_serializing_if = "ShareWish::is_auto")]
    pub share: ShareWish,
    /// It stays there, because `steer.set` said so.
    pub pinned: bool,
    /// Nanoseconds that workers spent on its frames.
    pub busy_ns: u64,
    /// Frames taken from it.
    pub frames: u64,
    /// Buckets of flows that a device sends there; absent if nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<u16>,
}

/// Parameters of `steer.set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteerSetParams {
    /// The port.
    pub port: String,
    /// Its queue pair. Default 0.
    #[serde(default)]
    pub queue: u16,
    /// The worker that it goes to and stays with. Default: whichever is best, from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u16>,
}

/// Parameters of `steer.share`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteerShareParams {
    /// The port.
    pub port: String,
    /// Its queue pair. Default 0.
    #[serde(default)]
    pub queue: u16,
    /// Whether it is to be shared.
    pub share: ShareWish,
}

/// Whether a queue is to be shared with a second worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareWish {
    /// When it is worth it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl ShareWish {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "that is how serde asks for it"
    )]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// Result of `steer.rebalance` and `steer.trace`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SteerDecisions {
    /// What was decided, the oldest first.
    pub decisions: Vec<SteerDecision>,
}

/// A decision about queues and workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteerDecision {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What kind of decision.
    pub action: SteerAction,
    /// The queue it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<WorkerQueue>,
    /// The worker that had the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u16>,
    /// The worker that got the queue, or that the decision is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u16>,
    /// How many buckets of flows it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<u16>,
    /// Why, in words.
    pub reason: String,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SteerAction {
    /// A queue moved.
    Move,
    /// A worker was put to use.
    Grow,
    /// A worker was taken out of use.
    Shrink,
    /// All workers are in use, and one more is wanted.
    Crowded,
    /// A queue fills its worker by itself.
    Filling,
    /// A device sends some of its flows to another of its receive queues.
    Buckets,
    /// A second worker helps with a queue.
    Share,
    /// A queue is its worker's alone again.
    Alone,
    /// The operator said where a queue stays.
    Pin,
    /// The operator left a queue to the switch again.
    Release,
    /// The operator asked for a look that changed nothing.
    Nothing,
}
