//! Which queue gets a helper, and when it is on its own again.
//!
//! Moving queues cannot help one that fills a worker by itself. A second worker can, where most of a frame's cost is its
//! copy and the frames go to several outputs (see [`crate::forward::share`]): so only for large frames, and only while the
//! helper has outputs. Everything here is shares of a worker's time since the last look.

use std::collections::BTreeMap;
use std::time::Duration;

use vswitch_flowtable::balance::Node;

use super::super::QueueKey;

/// A queue that takes more of its worker is hot.
const HOT: f64 = 0.90;
/// A shared one that takes less of its owner would leave that worker room if it were alone: sharing saves a third at most.
const COOL: f64 = 0.45;
/// A worker whose own queues take less can help.
const ROOM: f64 = 0.50;
/// One whose own take more cannot any longer.
const NO_ROOM: f64 = 0.70;
/// Bytes of a frame on average from which on it pays: at 64 bytes it costs a little, at 1500 it gains a third and more.
const LARGE: u64 = 512;
/// Looks after which the helper must have outputs.
const PATIENCE: u32 = 2;
/// A queue that was shared is not for so long.
const REST: Duration = Duration::from_secs(5);

/// A queue, since the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) key: QueueKey,
    pub(super) owner: usize,
    /// Who helps, and how many outputs it has.
    pub(super) helper: Option<(usize, u32)>,
    /// Part of the owner's time.
    pub(super) load: f64,
    /// What its port received from it and its other queues at that worker.
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// A worker, since the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) worker: usize,
    /// Part of its time that its own queues took.
    pub(super) load: f64,
    /// It sees a queue that is never empty.
    pub(super) standing: bool,
    pub(super) node: Node,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    Share(QueueKey, usize),
    Alone(QueueKey, &'static str),
}

/// What is remembered from look to look.
#[derive(Default, Debug)]
pub(super) struct Sharing {
    /// Looks at shared queues so far.
    looks: BTreeMap<QueueKey, u32>,
    /// Until when queues are not shared again.
    resting: BTreeMap<QueueKey, Duration>,
}

impl Sharing {
    /// Looks at all queues and workers; one change at most. `at` is the steward's clock.
    pub(super) fn look(&mut self, at: Duration, queues: &[Queue], rooms: &[Room]) -> Option<Wish> {
        self.resting.retain(|_, until| *until > at);
        self.looks
            .retain(|key, _| queues.iter().any(|q| q.key == *key && q.helper.is_some()));
        let room = |worker: usize| rooms.iter().find(|room| room.worker == worker);
        for queue in queues {
            if let Some((helper, outputs)) = queue.helper {
                let looks = self.looks.entry(queue.key).or_default();
                *looks += 1;
                let why = if queue.load < COOL {
                    "its worker has room again"
                } else if room(helper).is_none_or(|room| room.load > NO_ROOM) {
                    "the helper has enough to do"
                } else if outputs == 0 && *looks > PATIENCE {
                    "its frames go to one output"
                } else if !queue.is_large() {
                    "its frames are small"
                } else {
                    continue;
                };
                self.resting.insert(queue.key, at + REST);
                return Some(Wish::Alone(queue.key, why));
            }
        }
        let engaged = |worker: usize| {
            let mut shared = queues.iter().filter(|queue| queue.helper.is_some());
            shared.any(|q| q.owner == worker || q.helper.is_some_and(|(h, _)| h == worker))
        };
        let hot = queues.iter().find(|queue| {
            queue.load > HOT
                && queue.is_large()
                && !self.resting.contains_key(&queue.key)
                && !engaged(queue.owner)
                && room(queue.owner).is_some_and(|room| room.standing)
        })?;
        let node = room(hot.owner)?.node;
        let helper = rooms
            .iter()
            .filter(|room| room.worker != hot.owner && room.node == node)
            .filter(|room| room.load < ROOM && !engaged(room.worker))
            .min_by(|a, b| a.load.total_cmp(&b.load))?;
        Some(Wish::Share(hot.key, helper.worker))
    }
}

impl Queue {
    fn is_large(&self) -> bool {
        self.bytes >= self.frames.max(1) * LARGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::{PortIndex, PortRef};

    const LOOK: Duration = Duration::from_millis(20);

    fn key(port: u16) -> QueueKey {
        QueueKey {
            port: PortRef {
                index: PortIndex(port),
                incarnation: 0,
            },
            queue: 0,
        }
    }

    fn hot() -> Queue {
        Queue {
            key: key(0),
            owner: 0,
            helper: None,
            load: 0.98,
            frames: 1000,
            bytes: 1_500_000,
        }
    }

    fn room(worker: usize, load: f64) -> Room {
        Room {
            worker,
            load,
            standing: worker == 0,
            node: Node(0),
        }
    }

    #[test]
    fn a_hot_queue_of_large_frames_gets_the_least_loaded_helper() {
        let rooms = [room(0, 0.98), room(1, 0.3), room(2, 0.1)];
        let look = |queue: Queue, rooms: &[Room]| Sharing::default().look(LOOK, &[queue], rooms);
        assert_eq!(look(hot(), &rooms), Some(Wish::Share(key(0), 2)));
        let unfit = [
            Queue { load: 0.8, ..hot() },
            Queue {
                bytes: 64_000,
                ..hot()
            },
            Queue { owner: 1, ..hot() },
            Queue { owner: 3, ..hot() },
        ];
        for queue in unfit {
            assert_eq!(look(queue, &rooms), None, "{queue:?}");
        }
        let far = Room {
            node: Node(1),
            ..room(1, 0.0)
        };
        for other in [room(1, 0.6), far] {
            assert_eq!(look(hot(), &[rooms[0], other]), None, "{other:?}");
        }
    }

    #[test]
    fn nobody_helps_two_and_no_helper_is_helped() {
        let rooms = [room(0, 0.98), room(1, 0.2), room(2, 0.98), room(3, 0.3)];
        let rooms = rooms.map(|room| Room {
            standing: true,
            ..room
        });
        let first = Queue {
            helper: Some((1, 2)),
            ..hot()
        };
        let second = Queue {
            key: key(2),
            owner: 2,
            ..hot()
        };
        let look = |queues: &[Queue], rooms: &[Room]| Sharing::default().look(LOOK, queues, rooms);
        assert_eq!(look(&[first, second], &rooms), Some(Wish::Share(key(2), 3)));
        assert_eq!(look(&[first, second], &rooms[..3]), None);
        let helpers_own = Queue {
            key: key(1),
            owner: 1,
            ..hot()
        };
        assert_eq!(look(&[first, helpers_own], &rooms), None);
    }

    #[test]
    fn it_ends_when_it_does_not_pay_and_rests() {
        let rooms = [room(0, 0.9), room(1, 0.2)];
        let shared = Queue {
            helper: Some((1, 2)),
            ..hot()
        };
        let mut sharing = Sharing::default();
        assert_eq!(sharing.look(LOOK, &[shared], &rooms), None);
        let ends = |queue: Queue, rooms: &[Room]| {
            matches!(
                Sharing::default().look(LOOK, &[queue], rooms),
                Some(Wish::Alone(..))
            )
        };
        assert!(ends(
            Queue {
                load: 0.4,
                ..shared
            },
            &rooms
        ));
        assert!(ends(Queue { bytes: 0, ..shared }, &rooms));
        assert!(ends(shared, &[rooms[0], room(1, 0.8)]));
        assert!(ends(shared, &rooms[..1]));
        // Outputs are not known at once.
        let idle = Queue {
            helper: Some((1, 0)),
            ..shared
        };
        assert_eq!(sharing.look(LOOK, &[idle], &rooms), None);
        let end = sharing.look(LOOK, &[idle], &rooms);
        assert_eq!(
            end,
            Some(Wish::Alone(key(0), "its frames go to one output"))
        );
        assert_eq!(sharing.look(LOOK * 2, &[hot()], &rooms), None);
        let again = sharing.look(LOOK * 2 + REST, &[hot()], &rooms);
        assert_eq!(again, Some(Wish::Share(key(0), 1)));
    }
}
