//! Where queues are at home: the NUMA node of a NIC, or the one that a guest's memory lies on.
//!
//! A guest is asked about when its first ring comes, by its session. What is not known then, because the guest has not
//! touched its memory yet, is asked for again when the steward balances or an operator looks; what is known, too, because
//! the kernel moves memory. So nobody asks while nothing happens, and workers never do.

use std::time::{Duration, Instant};

use vswitch_flowtable::balance::Node;
use vswitch_vhost::{MemoryNode, MemoryProbe};

use super::{Place, Workers};
use crate::forward::PortRef;
use crate::worker::Input;

/// When to ask again for memory of which nothing is known.
const UNKNOWN: Duration = Duration::from_secs(2);
/// When to ask again for other memory.
const KNOWN: Duration = Duration::from_secs(30);
/// Guests that are asked about at a time: each takes up to half a millisecond.
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

    /// Asks again where guests' memory lies, where it is time to.
    pub fn look_for_homes(&self, now: Instant) {
        let mut due: Vec<(PortRef, MemoryProbe)> = Vec::new();
        let table = self.table.lock();
        for (key, place) in &table.queues {
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
        drop(table);
        for (port, probe) in due {
            let answer = probe.ask();
            let mut table = self.table.lock();
            let places = table.queues.iter_mut().filter(|(key, _)| key.port == port);
            for (_, place) in places {
                place.home.learn(&probe, answer, now);
            }
        }
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
