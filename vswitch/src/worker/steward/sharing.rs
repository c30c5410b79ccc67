//! Which queue gets a helper, and when it is on its own again.
//!
//! Moving queues cannot help one that fills a worker by itself. A second worker can, where most of a frame's cost is its
//! copy and the frames go to several outputs (see [`crate::forward::share`]): so not for the smallest frames, and only while
//! the helper has outputs. Whether one does is measured ([`gain`](super::gain)). Everything else here is shares of a worker's
//! time since the last look.
//!
//! What a queue would take of its owner without a helper is what it takes of both. It gets one when that is [`HOT`], and
//! loses it below [`COOL`], which is some way down, or when nothing was gained; one that has lost its helper is left alone
//! for [`REST`].
//!
//! Of workers that have [about](ABOUT) equal room, the one that is [closest](Kin::distance) to the owner helps: what the two
//! hand each other goes through the cache that they share, or through memory.

use std::collections::BTreeMap;
use std::time::Duration;

use vswitch_flowtable::balance::Node;

use super::super::QueueKey;
use super::super::node::Kin;
use super::super::registry::Asked;
use super::gain::{End, Gains, Pair, Sample};

/// A queue that takes more of its worker is hot.
const HOT: f64 = 0.90;
/// One that takes less of both leaves its worker room alone.
const COOL: f64 = 0.70;
/// A worker whose own queues take less can help.
const ROOM: f64 = 0.40;
/// One whose own take more cannot any longer.
const NO_ROOM: f64 = 0.60;
/// Room differs if it differs by more.
pub(super) const ABOUT: f64 = 0.10;
/// Bytes of a frame on average from which on it is tried. At 64 bytes a second worker was never worth it: 0.82 to 1.09 of
/// what the owner does alone. Longer ones tell for themselves, and a try costs little.
const LARGE: u64 = 128;
/// Looks after which the helper must have outputs. They are [`EVERY`] apart at least.
const PATIENCE: u32 = 3;
/// Less than this between two looks says little.
pub(super) const EVERY: Duration = Duration::from_millis(10);
/// A queue that was shared is not for so long.
const REST: Duration = Duration::from_secs(5);

/// A queue, since the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) key: QueueKey,
    pub(super) owner: usize,
    pub(super) helper: Option<Helper>,
    /// What the operator said.
    pub(super) asked: Asked,
    /// Its bursts can be lent out.
    pub(super) lends: bool,
    /// Part of the owner's time.
    pub(super) load: f64,
    /// What its port received from it and its other queues at that worker.
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// Who helps with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Helper {
    pub(super) worker: usize,
    /// How many outputs are its.
    pub(super) outputs: u32,
    /// Part of its time that they took.
    pub(super) load: f64,
}

/// A worker, since the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) worker: usize,
    /// Part of its time that its own queues took.
    pub(super) load: f64,
    /// It sees a queue that is never empty.
    pub(super) standing: bool,
    /// It would have to be put to use.
    pub(super) resting: bool,
    pub(super) core: u32,
    pub(super) node: Node,
    pub(super) kin: Kin,
}

/// What is to be done, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    Share(QueueKey, usize, String),
    Alone(QueueKey, String),
}

/// What is remembered from look to look.
#[derive(Default, Debug)]
pub(super) struct Sharing {
    /// Looks at shared queues so far.
    looks: BTreeMap<QueueKey, u32>,
    /// Until when queues are not shared again.
    resting: BTreeMap<QueueKey, Duration>,
    gains: Gains,
    /// A queue that could have a helper is not known well enough yet.
    doubts: bool,
}

impl Sharing {
    /// Looks at all queues and workers; one change at most. `at` is the steward's clock, and `elapsed` what the shares are of.
    pub(super) fn look(
        &mut self,
        at: Duration,
        elapsed: Duration,
        queues: &[Queue],
        rooms: &[Room],
    ) -> Option<Wish> {
        self.resting.retain(|_, until| *until > at);
        let is_shared = |key: &QueueKey| queues.iter().any(|q| q.key == *key && q.helper.is_some());
        self.looks.retain(|key, _| is_shared(key));
        self.gains
            .forget(at, |key| !queues.iter().any(|queue| queue.key == *key));
        self.doubts = false;
        // All are measured, also if one is found that loses its helper.
        let mut ends = None;
        for queue in queues {
            let judge = ends.is_none();
            let end = self.end(at, elapsed, queue, rooms, judge);
            ends = ends.or(end.map(|end| (queue.key, end)));
        }
        if let Some((key, end)) = ends {
            let why = match end {
                End::Check(why) => why,
                End::Rest(why) => {
                    self.resting.insert(key, at + REST);
                    why
                }
            };
            return Some(Wish::Alone(key, why));
        }
        self.begin(at, queues, rooms)
    }

    /// Something is being measured that a look soon would tell.
    pub(super) fn is_measuring(&self) -> bool {
        self.doubts || self.gains.is_trying()
    }

    /// Measures a queue, and says whether it is to lose its helper.
    fn end(
        &mut self,
        at: Duration,
        elapsed: Duration,
        queue: &Queue,
        rooms: &[Room],
        judge: bool,
    ) -> Option<End> {
        if queue.asked == Asked::On {
            self.gains.asked(queue.key);
            return None;
        }
        let owner = room(rooms, queue.owner);
        let mut sample = Sample {
            elapsed,
            frames: queue.frames,
            bytes: queue.bytes,
            stands: owner.is_some_and(|owner| owner.standing),
        };
        let Some(helper) = queue.helper else {
            self.gains.end(queue.key);
            sample.stands &= queue.load > HOT;
            if queue.may_be_shared() {
                self.gains.alone(queue.key, at, owner?.core, sample);
            }
            return None;
        };
        let looks = self.looks.entry(queue.key).or_default();
        *looks += 1;
        let looks = *looks;
        let helps = room(rooms, helper.worker);
        let pair = owner.zip(helps).map(|(owner, helps)| pair(owner, helps));
        let measured = pair.and_then(|pair| {
            let end = self.gains.shared(queue.key, at, pair, sample, judge);
            // The operator asked for it, and does not any longer.
            let is_new = looks > PATIENCE && sample.stands && !self.gains.knows(queue.key);
            let new = || End::Check("what a helper gains is measured".to_owned());
            let end = end.or_else(|| is_new.then(new));
            // Who is measured alone is to get that helper back.
            let comes_back = helps.is_some_and(|helps| helps.load < ROOM);
            end.filter(|end| comes_back || matches!(end, End::Rest(_)))
        });
        over(queue, helper, looks, rooms)
            .map(End::Rest)
            .or(measured)
    }

    /// Whether a queue that fills its worker, or is about to, would be given a helper.
    pub(super) fn has_hope(
        &self,
        at: Duration,
        queue: &Queue,
        queues: &[Queue],
        rooms: &[Room],
    ) -> bool {
        queue.load > COOL && self.helpers(at, queue, queues, rooms).is_some()
    }

    /// A queue's owner, and those that could help with it now.
    fn helpers<'a>(
        &'a self,
        at: Duration,
        queue: &'a Queue,
        queues: &'a [Queue],
        rooms: &'a [Room],
    ) -> Option<(&'a Room, impl Iterator<Item = &'a Room> + Clone)> {
        let engaged = |worker: usize| {
            let mut shared = queues.iter().filter(|queue| queue.helper.is_some());
            shared.any(|q| q.owner == worker || q.helper.is_some_and(|h| h.worker == worker))
        };
        let may = queue.may_be_shared()
            && !self.resting.contains_key(&queue.key)
            && !engaged(queue.owner);
        let owner = room(rooms, queue.owner).filter(|_| may)?;
        let others = rooms
            .iter()
            .filter(|room| room.worker != queue.owner && room.node == owner.node)
            .filter(move |room| room.load < ROOM && !engaged(room.worker))
            .filter(move |room| !self.gains.is_vain(queue.key, at, pair(owner, room)));
        others.clone().next().map(|_| (owner, others))
    }

    /// Finds a helper for a queue that needs one.
    fn begin(&mut self, at: Duration, queues: &[Queue], rooms: &[Room]) -> Option<Wish> {
        for queue in queues.iter().filter(|queue| queue.load > HOT) {
            let Some((owner, others)) = self.helpers(at, queue, queues, rooms) else {
                continue;
            };
            let was_vain = |room: &Room| self.gains.was_vain(queue.key, pair(owner, room));
            let helper = best(owner, others, was_vain).filter(|_| owner.standing);
            let Some((&owner, &helper)) = Some(owner).zip(helper) else {
                continue;
            };
            if self.gains.rate(queue.key).is_none() {
                self.doubts = true;
                continue;
            }
            self.gains.begin(queue.key, pair(&owner, &helper));
            let why = format!(
                "it alone takes {:.0} % of worker {}, with {} bytes a frame; worker {} is at {:.0} %{}",
                queue.load * 100.0,
                queue.owner,
                queue.frame_len(),
                helper.worker,
                helper.load * 100.0,
                if helper.resting { " and rested" } else { "" },
            );
            return Some(Wish::Share(queue.key, helper.worker, why));
        }
        None
    }
}

fn room(rooms: &[Room], worker: usize) -> Option<&Room> {
    rooms.iter().find(|room| room.worker == worker)
}

fn pair(owner: &Room, helper: &Room) -> Pair {
    Pair {
        owner: owner.core,
        helper: helper.core,
    }
}

/// The closest of those that have about as much room as the one with most; those that were in vain after others.
fn best<'a>(
    owner: &Room,
    others: impl Iterator<Item = &'a Room> + Clone,
    was_vain: impl Fn(&Room) -> bool,
) -> Option<&'a Room> {
    let least = others
        .clone()
        .map(|room| room.load)
        .min_by(f64::total_cmp)?;
    others
        .filter(|room| room.load <= least + ABOUT)
        .min_by(|a, b| {
            let choice = |room: &Room| (was_vain(room), owner.kin.distance(room.kin));
            let near = choice(a).cmp(&choice(b));
            let load = a.load.total_cmp(&b.load);
            near.then(load).then(a.resting.cmp(&b.resting))
        })
}

/// Why a queue is to lose its helper, if it is.
fn over(queue: &Queue, helper: Helper, looks: u32, rooms: &[Room]) -> Option<String> {
    let alone = queue.load + helper.load;
    let own = room(rooms, helper.worker).map_or(1.0, |room| room.load);
    if alone < COOL {
        Some(format!(
            "it would take {:.0} % of its worker alone",
            alone * 100.0
        ))
    } else if own > NO_ROOM {
        Some(format!(
            "its helper's own queues take {:.0} % of that",
            own * 100.0
        ))
    } else if helper.outputs == 0 && looks >= PATIENCE {
        Some("its frames go to one output, or to some that cannot be shared".into())
    } else if !queue.is_large() {
        Some(format!("its frames have {} bytes", queue.frame_len()))
    } else {
        None
    }
}

impl Queue {
    /// If the load asks for it.
    pub(super) fn may_be_shared(&self) -> bool {
        self.lends && self.asked == Asked::Auto && self.is_large()
    }

    fn is_large(&self) -> bool {
        self.frame_len() >= LARGE
    }

    /// On average.
    fn frame_len(&self) -> u64 {
        self.bytes / self.frames.max(1)
    }
}

#[cfg(test)]
mod tests;
