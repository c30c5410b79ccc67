//! Waiting until guests have dealt with what they were given, before somebody else gives them more of the same flows.

use std::thread;
use std::time::{Duration, Instant};

use crate::forward::patience::{self, Given};
use crate::forward::snapshot::{GuestQueues, Port};
use crate::forward::{PortRef, Snapshot};

/// How often to look.
const LOOK: Duration = Duration::from_micros(50);

/// A guest that has something left to deal with.
struct Waiting<'a> {
    guest: &'a GuestQueues,
    /// No longer than that.
    until: Instant,
    /// What it is waited for.
    pairs: Vec<Given>,
    /// What it had not dealt with before.
    earlier: Vec<Given>,
    /// Buffers that it has used.
    used: u64,
}

impl<'a> Waiting<'a> {
    /// `None` for who has nothing left, or is no guest with several queues.
    fn new(port: &'a Port, now: Instant, at_most: Option<Instant>) -> Option<Self> {
        let guest = port.output.guest().filter(|guest| guest.active() > 1)?;
        let given = |pair| {
            let position = guest.under_way(pair)?;
            Some(Given {
                pair,
                position,
                since: now,
            })
        };
        let mut pairs: Vec<_> = (0..guest.active()).filter_map(given).collect();
        if pairs.is_empty() {
            return None;
        }
        let patience = guest.steering().patience();
        let counts = port.counters.iter();
        let used = counts.map(|of| patience::used(of.delivered.get(), of.delivered_bytes.get()));
        let used = used.sum();
        let mut earlier = patience.vain(used);
        earlier.retain(|given| guest.is_stuck_at(given));
        // Who does not serve a pair for so long has to be taken as he is.
        let old = earlier.iter().filter(|given| given.is_old(now));
        let old: Vec<_> = old.map(|given| given.pair).collect();
        pairs.retain(|given| !old.contains(&given.pair));
        let until = now + patience.left(now);
        Some(Waiting {
            guest,
            until: at_most.map_or(until, |at_most| until.min(at_most)),
            pairs,
            earlier,
            used,
        })
    }

    /// Whether that is the end of it, and whether it has dealt with everything.
    fn look(&mut self, start: Instant, now: Instant) -> (bool, bool) {
        let guest = self.guest;
        self.pairs
            .retain(|given| !guest.consumed(given.pair, given.position));
        if !self.pairs.is_empty() && now < self.until {
            return (false, false);
        }
        let mut rest = std::mem::take(&mut self.earlier);
        rest.retain(|given| guest.is_stuck_at(given));
        let new = std::mem::take(&mut self.pairs).into_iter();
        let new = new.filter(|new| rest.iter().all(|given| given.pair != new.pair));
        let new: Vec<_> = new.collect();
        rest.extend(new);
        let settled = rest.is_empty();
        let patience = guest.steering().patience();
        patience.waited(start, now, rest, self.used);
        (true, settled)
    }
}

/// Waits until guests with several queues have dealt with what they were given: workers know for themselves which of the
/// queues a flow is on, and the next owner of a queue of `sender` may know another. Only guests on its bridge, to whom its
/// frames go; others may be as slow as they please. Each is waited for as long as its
/// [patience](crate::forward::patience) allows, and no longer than `at_most`. False if some had not by then.
pub(super) fn settle_guests(
    snapshot: &Snapshot,
    sender: PortRef,
    at_most: Option<Instant>,
) -> bool {
    let start = Instant::now();
    let mut all = true;
    // Without a port or bridge its frames go nowhere.
    let bridge = snapshot
        .live(sender)
        .and_then(|port| snapshot.bridge(port.bridge));
    let members = bridge.iter().flat_map(|bridge| &bridge.members);
    let mut waiting: Vec<_> = members
        .filter_map(|port| Waiting::new(port, start, at_most))
        .collect();
    loop {
        let now = Instant::now();
        waiting.retain_mut(|wait| {
            let (over, settled) = wait.look(start, now);
            all &= settled || !over;
            !over
        });
        if waiting.is_empty() {
            return all;
        }
        thread::sleep(LOOK);
    }
}
