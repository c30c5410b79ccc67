//! How many workers are in use.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use vswitch_flowtable::balance::Node;
use vswitch_flowtable::scale::{self, Scaler};

use super::super::registry::{Seen, Workers};
use super::trace::What;
use super::{Brain, PRESSED, WORKERS};

/// Over how long a worker must have had little to do before it rests, and over how much longer each time that this was
/// too soon.
pub(super) const CALM_MIN: Duration = Duration::from_millis(20);
/// See [`CALM_MIN`].
const CALM_MAX: Duration = Duration::from_secs(5);

impl Brain {
    /// Puts a worker to use or takes one out of use; true if it did.
    pub(super) fn scale(
        &mut self,
        now: Instant,
        list: &[Seen],
        looks: &[scale::Look],
        workers: &Workers,
    ) -> bool {
        let at = now.duration_since(self.started);
        let decision = self.scaler.look(at, looks);
        let wall = SystemTime::now();
        match decision {
            scale::Decision::Stay => false,
            scale::Decision::Crowded { reason } => {
                self.trace.note(wall, What::Crowded, reason.to_string());
                false
            }
            scale::Decision::Grow { wake, reason } => {
                let Some(wake) = list.get(usize::from(wake.0)).map(|w| w.index) else {
                    return false;
                };
                // It was taken out of use too soon.
                let soon = self
                    .shrunk
                    .is_some_and(|t| now.duration_since(t) < self.calm * 8);
                self.calm = if soon {
                    (self.calm * 2).min(CALM_MAX)
                } else {
                    CALM_MIN
                };
                // It looks anew from here, over the time that is asked for now.
                self.scaler = scaler(self.calm);
                workers.rest(wake, false);
                self.trace.note(wall, What::Grow(wake), reason.to_string());
                self.balancer.hurry();
                true
            }
            scale::Decision::Shrink { park, reason } => {
                let Some(park) = list.get(usize::from(park.0)).map(|w| w.index) else {
                    return false;
                };
                let in_use = list.iter().filter(|w| !w.resting).count();
                // The last one stays: it sleeps by itself when there is nothing to do.
                if in_use < 2 {
                    return false;
                }
                self.shrunk = Some(now);
                workers.rest(park, true);
                self.trace
                    .note(wall, What::Shrink(park), reason.to_string());
                true
            }
        }
    }

    /// The workers as the scaler sees them, in the order of the list. What waits for a worker that has time is no reason
    /// for another: it was a short burst, or the worker was kept from its core.
    pub(super) fn looks(&self, now: Instant, list: &[Seen], workers: &Workers) -> Vec<scale::Look> {
        let elapsed = now.duration_since(self.scaled);
        let queues = workers.queues();
        let mut loaded: Vec<Vec<(Option<Node>, u64)>> = vec![Vec::new(); WORKERS];
        for (queue, load) in queues.iter().zip(self.loads(&queues)) {
            if let Some(loaded) = loaded
                .get_mut(queue.owner)
                .filter(|_| load > 0 && !queue.pinned)
            {
                loaded.push((queue.node, load));
            }
        }
        let helpers: Vec<usize> = queues
            .iter()
            .filter_map(|queue| Some(queue.helper?.worker))
            .collect();
        let look = |worker: &Seen| {
            let loaded = loaded.get(worker.index).map_or(&[][..], Vec::as_slice);
            let pulse = worker.vitals.read();
            let before = self.busy.get(worker.index).copied().unwrap_or_default();
            let busy = Duration::from_nanos(pulse.busy_ns.saturating_sub(before));
            let pressed = !pulse.asleep && busy >= elapsed.mul_f64(PRESSED);
            scale::Look {
                parked: worker.resting,
                delay: if pressed { pulse.delay } else { Duration::ZERO },
                standing: pressed && pulse.standing > 0,
                busy,
                divisible: loaded.len() > 1,
                // Who helps is in use, whatever its own queues do.
                stays: worker.pinned || helpers.contains(&worker.index),
                node: worker.node,
                help: help(worker.node, loaded.iter().copied()),
            }
        };
        list.iter().map(look).collect()
    }
}

/// Where a worker on this node is helped best, by the nodes and loads of the queues that it could give away: where most of
/// those are at home that are not here, if they are more than a quarter. Of fewer, more would have to leave home than come
/// there, until the two have half each.
pub(super) fn help(here: Node, queues: impl Iterator<Item = (Option<Node>, u64)>) -> Node {
    let mut away = BTreeMap::<Node, u64>::new();
    let mut all = 0;
    for (node, load) in queues {
        all += load;
        if let Some(node) = node.filter(|node| *node != here) {
            *away.entry(node).or_default() += load;
        }
    }
    let most = away.into_iter().max_by_key(|(_, load)| *load);
    most.filter(|(_, load)| load.saturating_mul(4) > all)
        .map_or(here, |(node, _)| node)
}

/// A scaler that takes a worker out of use after it had little to do for so long.
pub(super) fn scaler(window: Duration) -> Scaler {
    let settings = scale::Settings {
        window,
        // Whole queues do not spread as evenly as buckets.
        idle: 0.25,
        ..scale::Settings::default()
    };
    Scaler::new(WORKERS, settings)
}
