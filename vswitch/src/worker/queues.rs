//! The queues a worker owns, and one round over them.

use std::time::Duration;

use vswitch_vhost::{TxBurst, TxFrame, TxRing, TxScratch};

use super::idle::{Poller, TIMER};
use crate::forward::counters::InputDrop;
use crate::forward::deliver::{Context, Frames};
use crate::forward::fdb::CoarseSecond;
use crate::forward::{BURST, Forwarder, PortRef, Snapshot};

/// Names a queue: the port and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct QueueKey {
    /// The port.
    pub port: PortRef,
    /// Queue pair of a guest, receive queue of a NIC.
    pub queue: u16,
}

/// A guest's transmit ring in a worker's hands.
pub(super) struct GuestQueue {
    key: QueueKey,
    ring: TxRing,
    /// It cannot wake the worker.
    timed: bool,
}

impl GuestQueue {
    /// A ring that was just handed over.
    pub(super) fn new(key: QueueKey, ring: TxRing) -> Self {
        GuestQueue {
            key,
            ring,
            timed: false,
        }
    }
}

impl Frames for TxBurst<'_> {
    fn len(&self) -> usize {
        TxBurst::len(self)
    }
    #[inline(always)]
    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop> {
        Ok(self.frame(i)?)
    }
}

/// Told of the steps of a burst as they are done. `()` does not listen, and then nothing is left of the telling.
pub trait Steps {
    /// The burst is taken out of the ring.
    fn taken(&mut self) {}
    /// It is settled where each frame goes.
    fn decided(&mut self) {}
    /// All frames are in their receivers' buffers, or counted as dropped.
    fn delivered(&mut self) {}
    /// The sender has its buffers back, and was called if it wanted to be.
    fn completed(&mut self) {}
}

impl Steps for () {}

/// One burst of a guest's queue, from its ring to where its frames go; says how many chains that were.
#[inline(always)]
pub fn serve(
    ring: &mut TxRing,
    context: Context<'_>,
    forwarder: &mut Forwarder,
    scratch: &mut TxScratch,
    steps: &mut impl Steps,
) -> usize {
    let taken = match ring.take(scratch, BURST) {
        Ok(burst) if !burst.is_empty() => {
            steps.taken();
            forwarder.forward_in_steps(context, &burst, || steps.decided());
            steps.delivered();
            burst.len()
        }
        // A ring that contradicts itself has told its session, which will take it away.
        Ok(_) | Err(_) => return 0,
    };
    if ring.complete()
        && ring.signal().unwrap_or(false)
        && let Some(counters) = context.ingress.counters.get(forwarder.worker())
    {
        counters.tx_calls.add(1);
    }
    steps.completed();
    taken
}

/// See the module's page.
pub(super) struct Queues {
    guests: Vec<GuestQueue>,
    #[cfg(feature = "dpdk")]
    nics: Vec<(QueueKey, crate::nic::NicInput)>,
    poller: Poller,
}

impl Queues {
    /// No queues yet.
    pub(super) fn new(poller: Poller) -> Self {
        Queues {
            guests: Vec::new(),
            #[cfg(feature = "dpdk")]
            nics: Vec::new(),
            poller,
        }
    }

    /// Owns a ring from now on.
    pub(super) fn attach(&mut self, mut queue: GuestQueue) {
        queue.timed = match queue.ring.kick() {
            Some(kick) => self.poller.add(kick).is_err(),
            None => true,
        };
        self.guests.push(queue);
    }

    /// Gives a ring up.
    pub(super) fn detach(&mut self, key: QueueKey) -> Option<TxRing> {
        let at = self.guests.iter().position(|q| q.key == key)?;
        let queue = self.guests.swap_remove(at);
        if let Some(kick) = queue.ring.kick().filter(|_| !queue.timed) {
            self.poller.remove(kick);
        }
        Some(queue.ring)
    }

    /// One burst from every queue. True if there was anything.
    pub(super) fn poll(
        &mut self,
        snapshot: &Snapshot,
        now: CoarseSecond,
        forwarder: &mut Forwarder,
        scratch: &mut TxScratch,
    ) -> bool {
        let mut worked = false;
        for queue in &mut self.guests {
            // A port that is gone from the snapshot keeps its ring until the session takes it back.
            let Some(ingress) = snapshot.live(queue.key.port) else {
                continue;
            };
            let discard = (!queue.ring.enabled()).then_some(InputDrop::QueueDisabled);
            let context = Context {
                snapshot,
                ingress,
                now,
                discard,
            };
            let taken = serve(&mut queue.ring, context, forwarder, scratch, &mut ());
            worked |= taken > 0;
        }
        #[cfg(feature = "dpdk")]
        for (key, nic) in &mut self.nics {
            if let Some(ingress) = snapshot.live(key.port) {
                let context = Context {
                    snapshot,
                    ingress,
                    now,
                    discard: None,
                };
                let takes = |head: &[u8]| crate::nic::receiver(snapshot, ingress, head);
                worked |= nic.poll(takes, |burst| forwarder.forward(context, burst));
            }
        }
        worked
    }

    /// Asks every ring for a kick. False if one has work after all.
    pub(super) fn arm(&mut self) -> bool {
        // Every ring, also after one has work: disarming is for all of them.
        let busy = self
            .guests
            .iter_mut()
            .filter_map(|q| q.ring.arm().then_some(()));
        busy.count() == 0
    }

    /// Asks for no more kicks.
    pub(super) fn disarm(&mut self) {
        self.guests.iter_mut().for_each(|q| q.ring.disarm());
    }

    /// Sleeps until a kick, a letter, or the time to look at queues that cannot wake anybody.
    pub(super) fn wait(&mut self) {
        self.poller.wait(self.timer());
    }

    fn timer(&self) -> Option<Duration> {
        #[cfg(feature = "dpdk")]
        let polled = !self.nics.is_empty();
        #[cfg(not(feature = "dpdk"))]
        let polled = false;
        (polled || self.guests.iter().any(|q| q.timed)).then_some(TIMER)
    }
}

#[cfg(feature = "dpdk")]
impl Queues {
    /// Owns a NIC queue from now on.
    pub(super) fn attach_nic(&mut self, key: QueueKey, mut queue: crate::nic::NicInput) {
        queue.adopt();
        self.nics.push((key, queue));
    }

    /// Gives a NIC queue up.
    pub(super) fn detach_nic(&mut self, key: QueueKey) -> Option<crate::nic::NicInput> {
        let at = self.nics.iter().position(|(k, _)| *k == key)?;
        Some(self.nics.swap_remove(at).1)
    }
}
