//! Waiting until guests have dealt with what they were given, before somebody else gives them more of the same flows.

use std::thread;
use std::time::{Duration, Instant};

use crate::forward::snapshot::GuestQueues;
use crate::forward::{PortRef, Snapshot};

/// How often to look.
const LOOK: Duration = Duration::from_micros(50);

/// A guest that has something left to deal with.
struct Waiting<'a> {
    guest: &'a GuestQueues,
    /// No longer than that.
    until: Instant,
    /// Pairs, and the position behind what they were given.
    pairs: Vec<(u16, u16)>,
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
    let guests = members.filter_map(|port| port.output.guest());
    let guests = guests.filter(|guest| guest.active() > 1);
    let mut waiting: Vec<Waiting<'_>> = guests
        .filter_map(|guest| {
            let pairs = (0..guest.active()).filter_map(|pair| Some((pair, guest.under_way(pair)?)));
            let pairs: Vec<_> = pairs.collect();
            let until = start + guest.steering().patience().left(start);
            let until = at_most.map_or(until, |at_most| until.min(at_most));
            (!pairs.is_empty()).then_some(Waiting {
                guest,
                until,
                pairs,
            })
        })
        .collect();
    loop {
        let now = Instant::now();
        waiting.retain_mut(|wait| {
            let guest = wait.guest;
            wait.pairs
                .retain(|(pair, position)| !guest.consumed(*pair, *position));
            let settled = wait.pairs.is_empty();
            let over = settled || now >= wait.until;
            all &= settled || !over;
            if over {
                guest.steering().patience().waited(start, now, settled);
            }
            !over
        });
        if waiting.is_empty() {
            return all;
        }
        thread::sleep(LOOK);
    }
}
