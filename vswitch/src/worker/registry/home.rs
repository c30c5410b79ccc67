//! Where queues are at home: the NUMA node of a NIC, or the one that a guest's memory lies on.
//!
//! A guest is asked about when its first ring comes, by its session. What is not known then, because the guest has not
//! touched its memory yet, is asked for again when the steward balances or an operator looks; what is known, too, because
//! the kernel moves memory. So nobody asks while nothing happens, and workers never do.
//!
//! Asking again is an [`Errand`]: a thread that comes for it and goes, one at a time. Whoever occasions it goes on with what
//! is known so far, and nobody waits for its end. Should the kernel never answer about some memory, then nothing more is
//! learned about any, except by sessions about their own, and that is all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use vswitch_flowtable::balance::Node;
use vswitch_vhost::{MemoryNode, MemoryProbe};

use super::{Place, Table, Workers};
use crate::forward::PortRef;
use crate::worker::Input;

/// When to ask again for memory of which nothing is known.
const UNKNOWN: Duration = Duration::from_secs(2);
/// When to ask again for other memory.
const KNOWN: Duration = Duration::from_secs(30);
/// Guests that are asked about in one errand: each takes up to half a millisecond.
const AT_ONCE: usize = 16;

/// Where a queue is at home.
#[derive(Clone)]
pub(super) enum Home {
    /// Where its device is, if that is known.
    Device(Option<Node>),
    /// Where its guest's memory is.
    Memory {
        probe: MemoryProbe,
        found: MemoryNode,
        asked: Instant,
    },
}

impl Home {
    /// The node to be near to, if there is one.
    pub(super) fn node(&self) -> Option<Node> {
        match self {
            Home::Device(node) => *node,
            Home::Memory { found, .. } => match found {
                MemoryNode::One(node) => u8::try_from(*node).ok().map(Node),
                MemoryNode::Unknown | MemoryNode::Spread => None,
            },
        }
    }

    /// What is to be asked by now.
    fn due(&self, now: Instant) -> Option<&MemoryProbe> {
        let Home::Memory {
            probe,
            found,
            asked,
        } = self
        else {
            return None;
        };
        let after = match found {
            MemoryNode::Unknown => UNKNOWN,
            MemoryNode::One(_) | MemoryNode::Spread => KNOWN,
        };
        (now.saturating_duration_since(*asked) >= after).then_some(probe)
    }

    /// Takes an answer, if it is about this queue's memory.
    fn learn(&mut self, about: &MemoryProbe, answer: MemoryNode, now: Instant) {
        if let Home::Memory {
            probe,
            found,
            asked,
        } = self
            && probe.same_memory(about)
        {
            // A moment without an answer is no reason to forget.
            (*found, *asked) = match answer {
                MemoryNode::Unknown => (*found, now),
                other => (other, now),
            };
        }
    }
}

/// A worker that could get a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) index: usize,
    pub(super) resting: bool,
    pub(super) node: Node,
    pub(super) queues: usize,
}

/// The one with the fewest queues, among those in use if there are any, and then among those near.
pub(super) fn best(all: impl Iterator<Item = Candidate>, near: Option<Node>) -> Option<usize> {
    let far = |node| near.is_some_and(|near| node != near);
    let best = all.min_by_key(|c| (c.resting, far(c.node), c.queues));
    best.map(|chosen| chosen.index)
}

/// What a thread is sent for that may be long in coming back, or never does.
#[derive(Default)]
pub(super) struct Errand {
    under_way: Arc<AtomicBool>,
}

/// Ends an errand, however its thread does.
struct Back(Arc<AtomicBool>);

impl Drop for Back {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Errand {
    fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// Sends a thread, unless one is under way or the system has none to give; true if it did.
    fn send(&self, work: impl FnOnce() + Send + 'static) -> bool {
        if self.under_way.swap(true, Ordering::AcqRel) {
            return false;
        }
        let back = Back(Arc::clone(&self.under_way));
        let thread = thread::Builder::new().name("homes".into());
        let sent = thread.spawn(move || {
            let _back = back;
            work();
        });
        sent.is_ok()
    }
}

impl Table {
    /// Guests whose memory is to be asked about by now.
    fn homes_due(&self, now: Instant) -> Vec<(PortRef, MemoryProbe)> {
        let mut due: Vec<(PortRef, MemoryProbe)> = Vec::new();
        for (key, place) in &self.queues {
            // Queues of a port have the same memory, and come one after another.
            if let Some(probe) = place.home.due(now)
                && due.last().is_none_or(|(port, _)| *port != key.port)
            {
                due.push((key.port, probe.clone()));
            }
            if due.len() >= AT_ONCE {
                break;
            }
        }
        due
    }

    fn learn(&mut self, port: PortRef, about: &MemoryProbe, answer: MemoryNode, now: Instant) {
        let places = self.queues.iter_mut().filter(|(key, _)| key.port == port);
        for (_, place) in places {
            place.home.learn(about, answer, now);
        }
    }
}

impl Workers {
    /// Where a queue is at home that comes now. Asks for a guest's memory, unless another of its queues is here already.
    pub(super) fn home_of(&self, port: PortRef, input: &Input, device: Option<Node>) -> Home {
        #[cfg_attr(
            not(feature = "dpdk"),
            expect(irrefutable_let_patterns, reason = "with DPDK there are others")
        )]
        let Input::Guest(ring) = input else {
            return Home::Device(device);
        };
        let probe = ring.memory_probe();
        let same = |place: &Place| match &place.home {
            Home::Memory { probe: other, .. } if other.same_memory(&probe) => {
                Some(place.home.clone())
            }
            _ => None,
        };
        let known = {
            let table = self.table.lock();
            let mut places = table.queues.iter().filter(|(key, _)| key.port == port);
            places.find_map(|(_, place)| same(place))
        };
        known.unwrap_or_else(|| Home::Memory {
            found: probe.ask(),
            probe,
            asked: Instant::now(),
        })
    }

    /// Has guests' memory asked about again, where it is time to. What is learned counts from the next look on.
    pub fn look_for_homes(&self, now: Instant) {
        if self.homes.is_under_way() {
            return;
        }
        let due = self.table.lock().homes_due(now);
        if due.is_empty() {
            return;
        }
        let workers = Weak::clone(&self.own);
        // Without a thread it is tried at the next occasion.
        self.homes.send(move || {
            for (port, probe) in due {
                let answer = probe.ask();
                let Some(workers) = workers.upgrade() else {
                    return;
                };
                workers.table.lock().learn(port, &probe, answer, now);
            }
        });
    }

    /// Where the memory of a port's guest lies, as far as it is known.
    pub fn memory_node(&self, port: PortRef) -> MemoryNode {
        let table = self.table.lock();
        let places = table.queues.iter().filter(|(key, _)| key.port == port);
        let mut found = places.filter_map(|(_, place)| match place.home {
            Home::Memory { found, .. } => Some(found),
            Home::Device(_) => None,
        });
        found.next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::PortIndex;
    use crate::worker::QueueKey;
    use std::sync::mpsc;

    /// Looks until it is so.
    fn soon(mut so: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if so() {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Workers with a guest's queue at each of these places, about which nothing is known since then.
    fn with_guests(places: u16, asked: Instant) -> (Arc<Workers>, Vec<QueueKey>) {
        let workers = Workers::start(&[], &super::super::tests::shared()).unwrap();
        let key = |place| QueueKey {
            port: PortRef {
                index: PortIndex(place),
                incarnation: 1,
            },
            queue: 0,
        };
        let keys: Vec<_> = (0..places).map(key).collect();
        for key in &keys {
            workers.pretend(*key, 0);
            let mut table = workers.table.lock();
            table.queues.get_mut(key).unwrap().home = Home::Memory {
                probe: MemoryProbe::default(),
                found: MemoryNode::Unknown,
                asked,
            };
        }
        (workers, keys)
    }

    fn asked(workers: &Workers, key: QueueKey) -> Instant {
        match workers.table.lock().queues[&key].home {
            Home::Memory { asked, .. } => asked,
            Home::Device(_) => unreachable!(),
        }
    }

    #[test]
    fn guests_are_asked_about_when_it_is_time_some_at_once() {
        let start = Instant::now();
        let (workers, keys) = with_guests(AT_ONCE as u16 + 1, start);
        workers.look_for_homes(start + UNKNOWN - Duration::from_nanos(1));
        assert!(!workers.homes.is_under_way(), "too early");
        let (first, second) = (start + UNKNOWN, start + UNKNOWN + Duration::from_nanos(1));
        workers.look_for_homes(first);
        let (last, others) = keys.split_last().unwrap();
        assert!(soon(|| others
            .iter()
            .all(|key| asked(&workers, *key) == first)));
        assert!(soon(|| !workers.homes.is_under_way()));
        assert_eq!(asked(&workers, *last), start, "more than at once");
        workers.look_for_homes(second);
        assert!(soon(|| asked(&workers, *last) == second));
        assert_eq!(asked(&workers, others[0]), first);
    }

    /// A question that is never answered holds up neither who looks nor who ends.
    #[test]
    fn nobody_waits_for_an_errand() {
        let start = Instant::now();
        let (workers, keys) = with_guests(1, start);
        let (answer, never) = mpsc::channel::<()>();
        let asks = move || assert!(never.recv().is_err());
        assert!(workers.homes.send(asks));
        assert!(!workers.homes.send(|| ()), "one at a time");
        workers.look_for_homes(start + UNKNOWN);
        assert_eq!(workers.memory_node(keys[0].port), MemoryNode::Unknown);
        workers.stop();
        assert!(workers.homes.is_under_way());
        drop(answer);
        assert!(soon(|| !workers.homes.is_under_way()));
        assert_eq!(asked(&workers, keys[0]), start);
        workers.look_for_homes(start + UNKNOWN);
        assert!(soon(|| asked(&workers, keys[0]) > start));
    }

    #[test]
    fn an_errand_that_fails_is_over() {
        let errand = Errand::default();
        assert!(errand.send(|| std::panic::resume_unwind(Box::new(()))));
        assert!(soon(|| !errand.is_under_way()));
        assert!(errand.send(|| ()));
    }

    fn candidate(index: usize, resting: bool, node: u8, queues: usize) -> Candidate {
        Candidate {
            index,
            resting,
            node: Node(node),
            queues,
        }
    }

    #[test]
    fn a_queue_goes_home_if_somebody_there_is_in_use() {
        let all = [
            candidate(0, false, 0, 1),
            candidate(1, false, 1, 5),
            candidate(2, false, 1, 4),
            candidate(3, true, 2, 0),
        ];
        let best = |near: Option<u8>| best(all.into_iter(), near.map(Node));
        assert_eq!(best(Some(0)), Some(0));
        assert_eq!(best(Some(1)), Some(2), "the one with fewer queues there");
        assert_eq!(best(Some(2)), Some(0), "who is there rests");
        assert_eq!(best(Some(7)), Some(0), "nobody is there");
        assert_eq!(best(None), Some(0));
        let resting = || all.into_iter().map(|c| Candidate { resting: true, ..c });
        assert_eq!(super::best(resting(), Some(Node(2))), Some(3));
        assert_eq!(super::best([].into_iter(), None), None);
    }

    #[test]
    fn only_one_node_is_a_home() {
        let of = |node| Home::Device(node).node();
        assert_eq!((of(Some(Node(3))), of(None)), (Some(Node(3)), None));
    }
}
