//! Which queue gets a helper, and when it is on its own again.
//!
//! Moving queues cannot help one that fills a worker by itself. A second worker can, where most of a frame's cost is its
//! copy and the frames go to several outputs (see [`crate::forward::share`]): so only for large frames, and only while the
//! helper has outputs. Everything here is shares of a worker's time since the last look.
//!
//! What a queue would take of its owner without a helper is what it takes of both. It gets one when that is [`HOT`], and
//! loses it below [`COOL`], which is some way down; one that has lost its helper is left alone for [`REST`].

use std::collections::BTreeMap;
use std::time::Duration;

use vswitch_flowtable::balance::Node;

use super::super::QueueKey;
use super::super::registry::Asked;

/// A queue that takes more of its worker is hot.
const HOT: f64 = 0.90;
/// One that takes less of both leaves its worker room alone.
const COOL: f64 = 0.70;
/// A worker whose own queues take less can help.
const ROOM: f64 = 0.40;
/// One whose own take more cannot any longer.
const NO_ROOM: f64 = 0.60;
/// Bytes of a frame on average from which on it pays: at 64 bytes it costs a little.
const LARGE: u64 = 512;
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
    pub(super) node: Node,
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
}

impl Sharing {
    /// Looks at all queues and workers; one change at most. `at` is the steward's clock.
    pub(super) fn look(&mut self, at: Duration, queues: &[Queue], rooms: &[Room]) -> Option<Wish> {
        self.resting.retain(|_, until| *until > at);
        let is_shared = |key: &QueueKey| queues.iter().any(|q| q.key == *key && q.helper.is_some());
        self.looks.retain(|key, _| is_shared(key));
        for queue in queues.iter().filter(|queue| queue.asked != Asked::On) {
            if let Some(helper) = queue.helper {
                let looks = self.looks.entry(queue.key).or_default();
                *looks += 1;
                if let Some(why) = over(queue, helper, *looks, rooms) {
                    self.resting.insert(queue.key, at + REST);
                    return Some(Wish::Alone(queue.key, why));
                }
            }
        }
        let room = |worker: usize| rooms.iter().find(|room| room.worker == worker);
        let engaged = |worker: usize| {
            let mut shared = queues.iter().filter(|queue| queue.helper.is_some());
            shared.any(|q| q.owner == worker || q.helper.is_some_and(|h| h.worker == worker))
        };
        let mut hot = queues.iter().filter(|queue| {
            queue.load > HOT
                && queue.lends
                && queue.asked == Asked::Auto
                && queue.is_large()
                && !self.resting.contains_key(&queue.key)
                && !engaged(queue.owner)
                && room(queue.owner).is_some_and(|room| room.standing)
        });
        let (hot, helper) = hot.find_map(|queue| {
            let node = room(queue.owner)?.node;
            let others = rooms
                .iter()
                .filter(|room| room.worker != queue.owner && room.node == node)
                .filter(|room| room.load < ROOM && !engaged(room.worker));
            let helper = others.min_by(|a, b| {
                let load = a.load.total_cmp(&b.load);
                load.then(a.resting.cmp(&b.resting))
            });
            Some((queue, helper?))
        })?;
        let why = format!(
            "it alone takes {:.0} % of worker {}, with {} bytes a frame; worker {} is at {:.0} %{}",
            hot.load * 100.0,
            hot.owner,
            hot.frame_len(),
            helper.worker,
            helper.load * 100.0,
            if helper.resting { " and rested" } else { "" },
        );
        Some(Wish::Share(hot.key, helper.worker, why))
    }
}

/// Why a queue is to lose its helper, if it is.
fn over(queue: &Queue, helper: Helper, looks: u32, rooms: &[Room]) -> Option<String> {
    let alone = queue.load + helper.load;
    let room = rooms.iter().find(|room| room.worker == helper.worker);
    let own = room.map_or(1.0, |room| room.load);
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
    fn is_large(&self) -> bool {
        self.frame_len() >= LARGE
    }

    /// On average.
    fn frame_len(&self) -> u64 {
        self.bytes / self.frames.max(1)
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
            asked: Asked::Auto,
            lends: true,
            load: 0.98,
            frames: 1000,
            bytes: 1_500_000,
        }
    }

    fn helper(worker: usize, outputs: u32, load: f64) -> Option<Helper> {
        Some(Helper {
            worker,
            outputs,
            load,
        })
    }

    fn room(worker: usize, load: f64) -> Room {
        Room {
            worker,
            load,
            standing: worker == 0,
            resting: false,
            node: Node(0),
        }
    }

    fn begun(wish: &Option<Wish>) -> Option<(QueueKey, usize)> {
        match wish {
            Some(Wish::Share(key, helper, _)) => Some((*key, *helper)),
            None => None,
            Some(Wish::Alone(..)) => panic!("{wish:?}"),
        }
    }

    fn reason(wish: Option<Wish>) -> String {
        match wish {
            Some(Wish::Alone(at, why)) if at == key(0) => why,
            _ => panic!("{wish:?}"),
        }
    }

    #[test]
    fn a_hot_queue_of_large_frames_gets_the_least_loaded_helper() {
        let rooms = [room(0, 0.98), room(1, 0.3), room(2, 0.1)];
        let look =
            |queue: Queue, rooms: &[Room]| begun(&Sharing::default().look(LOOK, &[queue], rooms));
        assert_eq!(look(hot(), &rooms), Some((key(0), 2)));
        // One that nobody can help does not stand in the way of another.
        let far = |worker, load| Room {
            node: Node(1),
            standing: true,
            ..room(worker, load)
        };
        let rooms_of_two = [room(0, 0.98), room(1, 0.5), far(2, 0.98), far(3, 0.1)];
        let other = Queue {
            key: key(1),
            owner: 2,
            ..hot()
        };
        let wish = Sharing::default().look(LOOK, &[hot(), other], &rooms_of_two);
        assert_eq!(begun(&wish), Some((key(1), 3)));
        let unfit = [
            Queue { load: 0.8, ..hot() },
            Queue {
                bytes: 64_000,
                ..hot()
            },
            Queue {
                lends: false,
                ..hot()
            },
            Queue {
                asked: Asked::Off,
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
        for other in [room(1, 0.5), far] {
            assert_eq!(look(hot(), &[rooms[0], other]), None, "{other:?}");
        }
    }

    #[test]
    fn who_rests_is_put_to_use_if_nobody_else_has_as_much_room() {
        let rested = Room {
            resting: true,
            ..room(1, 0.0)
        };
        for (others, wanted) in [
            ([rested, room(2, 0.0)], 2),
            ([rested, room(2, 0.1)], 1),
            ([rested, room(2, 0.9)], 1),
        ] {
            let rooms = [room(0, 0.98), others[0], others[1]];
            let wish = Sharing::default().look(LOOK, &[hot()], &rooms);
            assert_eq!(begun(&wish), Some((key(0), wanted)));
        }
        let wish = Sharing::default().look(LOOK, &[hot()], &[room(0, 0.98), rested]);
        let Some(Wish::Share(_, 1, why)) = wish else {
            panic!("{wish:?}");
        };
        assert_eq!(
            why,
            "it alone takes 98 % of worker 0, with 1500 bytes a frame; worker 1 is at 0 % and rested"
        );
    }

    #[test]
    fn nobody_helps_two_and_no_helper_is_helped() {
        let rooms = [room(0, 0.98), room(1, 0.2), room(2, 0.98), room(3, 0.3)];
        let rooms = rooms.map(|room| Room {
            standing: true,
            ..room
        });
        let first = Queue {
            helper: helper(1, 2, 0.5),
            ..hot()
        };
        let second = Queue {
            key: key(2),
            owner: 2,
            ..hot()
        };
        let look =
            |queues: &[Queue], rooms: &[Room]| begun(&Sharing::default().look(LOOK, queues, rooms));
        assert_eq!(look(&[first, second], &rooms), Some((key(2), 3)));
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
            helper: helper(1, 2, 0.6),
            ..hot()
        };
        let mut sharing = Sharing::default();
        assert_eq!(sharing.look(LOOK, &[shared], &rooms), None);
        let end =
            |queue: Queue, rooms: &[Room]| reason(Sharing::default().look(LOOK, &[queue], rooms));
        let cool = |load, helpers| Queue {
            load,
            helper: helper(1, 2, helpers),
            ..hot()
        };
        assert!(end(cool(0.4, 0.2), &rooms).contains("60 % of its worker"));
        // As much as of a queue that is not hot enough to be shared, and yet not so little that it ends.
        assert_eq!(sharing.look(LOOK, &[cool(0.5, 0.3)], &rooms), None);
        let small = Queue {
            bytes: 64_000,
            ..shared
        };
        assert!(end(small, &rooms).contains("64 bytes"));
        let busy = [rooms[0], room(1, 0.8)];
        assert!(end(shared, &busy).contains("80 %"));
        assert!(end(shared, &rooms[..1]).contains("100 %"));
        let asked = Queue {
            asked: Asked::On,
            ..small
        };
        assert_eq!(Sharing::default().look(LOOK, &[asked], &busy), None);
        // Outputs are not known at once.
        let idle = Queue {
            helper: helper(1, 0, 0.0),
            ..shared
        };
        let mut sharing = Sharing::default();
        for _ in 1..PATIENCE {
            assert_eq!(sharing.look(LOOK, &[idle], &rooms), None);
        }
        let why = reason(sharing.look(LOOK, &[idle], &rooms));
        assert!(why.contains("one output"), "{why}");
        assert_eq!(sharing.look(LOOK * 2, &[hot()], &rooms), None);
        let again = sharing.look(LOOK * 2 + REST, &[hot()], &rooms);
        assert_eq!(begun(&again), Some((key(0), 1)));
    }
}
