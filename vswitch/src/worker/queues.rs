//! The queues a worker owns, and one round over them.

use std::sync::Arc;
#[cfg(feature = "dpdk")]
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use vswitch_coalesce::Policy;
use vswitch_vhost::{TxBurst, TxFrame, TxRing, TxScratch};

#[cfg(feature = "dpdk")]
use super::gate::Gate;
use super::idle::{Poller, TIMER};
use super::nap::Inflow;
use super::vitals::QueueVitals;
use super::{micros, nanos};
use crate::forward::counters::InputDrop;
use crate::forward::deliver::{Context, Frames};
use crate::forward::fdb::CoarseSecond;
use crate::forward::share::{Share, Sharing};
use crate::forward::{BURST, Forwarder, PortRef, Snapshot};

/// Names a queue: the port and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueKey {
    /// The port.
    pub port: PortRef,
    /// Queue pair of a guest, receive queue of a NIC.
    pub queue: u16,
}

/// What a worker takes frames from, on its way from one owner to another.
pub enum Input {
    /// A guest's transmit ring.
    Guest(Box<TxRing>),
    /// A NIC's receive queue.
    #[cfg(feature = "dpdk")]
    Nic(Box<crate::nic::NicInput>),
}

impl Input {
    /// Whether another worker can help with it.
    pub fn lends(&self) -> bool {
        match self {
            Input::Guest(ring) => ring.lends(),
            #[cfg(feature = "dpdk")]
            Input::Nic(_) => false,
        }
    }
}

/// A queue in a worker's hands.
struct Owned<Q> {
    key: QueueKey,
    queue: Q,
    vitals: Arc<QueueVitals>,
    /// When it was last seen empty, or held, or came.
    emptied: Instant,
    /// It cannot wake the worker.
    timed: bool,
    inflow: Inflow,
    #[cfg(feature = "dpdk")]
    gate: Gate,
}

impl<Q> Owned<Q> {
    fn new(key: QueueKey, queue: Q, vitals: Arc<QueueVitals>) -> Self {
        Owned {
            key,
            queue,
            vitals,
            emptied: Instant::now(),
            timed: true,
            inflow: Inflow::default(),
            #[cfg(feature = "dpdk")]
            gate: Gate::default(),
        }
    }

    /// After it was polled: `clock` is when that began, and moves on if there was anything. True then.
    #[inline(always)]
    fn polled(&mut self, frames: usize, clock: &mut Instant) -> bool {
        if frames < BURST {
            self.emptied = *clock;
        }
        if frames == 0 {
            return false;
        }
        let now = Instant::now();
        let ns = now.duration_since(*clock).as_nanos() as u64;
        self.vitals.burst(frames as u64, ns);
        self.inflow.came(frames);
        *clock = now;
        true
    }

    /// Whether it may be polled at this time. What waits in a queue that is held waits for others, and not for its owner.
    #[cfg(feature = "dpdk")]
    #[inline(always)]
    fn is_open(&mut self, clock: Instant) -> bool {
        let open = self.gate.is_open(clock);
        if !open {
            self.emptied = clock;
        }
        open
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
    let (taken, drained) = match ring.take(scratch, BURST) {
        Ok(burst) if !burst.is_empty() => {
            steps.taken();
            let drained = burst.drained();
            let context = Context { drained, ..context };
            forwarder.forward_in_steps(context, &burst, || steps.decided());
            steps.delivered();
            (burst.len(), drained)
        }
        // A ring that contradicts itself has told its session, which will take it away.
        Ok(_) | Err(_) => {
            context.sender(forwarder.worker()).waits(ring);
            return 0;
        }
    };
    if let Some(queues) = context.ingress.output.guest() {
        queues.transmits(drained);
    }
    if ring.complete() {
        context
            .sender(forwarder.worker())
            .repaid(ring, taken, drained);
    }
    steps.completed();
    taken
}

/// See the module's page.
pub(super) struct Queues {
    guests: Vec<Owned<TxRing>>,
    /// The one of them that another worker helps with.
    shared: Option<(QueueKey, Sharing)>,
    #[cfg(feature = "dpdk")]
    nics: Vec<Owned<crate::nic::NicInput>>,
    poller: Poller,
    /// Something has woken the worker, and there has been nothing to do since.
    #[cfg(feature = "dpdk")]
    in_vain: bool,
}

/// A tap's driver reads only after a signal, which some other thread has to take. It may want this worker's core.
#[cfg(feature = "dpdk")]
const SIGNAL: Duration = Duration::from_micros(20);

/// Entries that a NIC's queue counts for, of however many it has: its frames go to guests, whose rings have 256 if nobody
/// says otherwise.
#[cfg(feature = "dpdk")]
const NIC_ROOM: u16 = 512;

impl Queues {
    /// No queues yet.
    pub(super) fn new(poller: Poller) -> Self {
        Queues {
            guests: Vec::new(),
            shared: None,
            #[cfg(feature = "dpdk")]
            nics: Vec::new(),
            poller,
            #[cfg(feature = "dpdk")]
            in_vain: false,
        }
    }

    /// Owns a queue from now on.
    pub(super) fn attach(&mut self, key: QueueKey, input: Input, vitals: Arc<QueueVitals>) {
        match input {
            Input::Guest(ring) => {
                let mut queue = Owned::new(key, *ring, vitals);
                if let Some(kick) = queue.queue.kick() {
                    queue.timed = self.poller.add(kick).is_err();
                }
                self.guests.push(queue);
            }
            #[cfg(feature = "dpdk")]
            Input::Nic(mut nic) => {
                nic.adopt();
                let mut queue = Owned::new(key, *nic, vitals);
                if let Some((fd, stays)) = queue.queue.wake() {
                    let added = match stays {
                        true => self.poller.add_readable(fd),
                        false => self.poller.add(fd),
                    };
                    queue.timed = added.is_err();
                }
                self.nics.push(queue);
            }
        }
    }

    /// Has a helper for a queue from now on, until that is [alone](Self::alone) again or leaves. False if it cannot be
    /// helped with, or another is.
    pub(super) fn share(&mut self, key: QueueKey, share: Arc<Share>) -> bool {
        let mut guests = self.guests.iter();
        let fits = guests.any(|q| q.key == key && q.queue.lends()) && self.shared.is_none();
        if fits {
            self.shared = Some((key, Sharing::new(share)));
        }
        fits
    }

    /// Does without the helper, if it is for this queue: waits until that has done its part, and gives everything back.
    pub(super) fn alone(&mut self, key: QueueKey, snapshot: &Snapshot, worker: usize) {
        let now = Instant::now();
        let Some((_, mut sharing)) = self.shared.take_if(|(of, _)| *of == key) else {
            return;
        };
        if let Some(queue) = self.guests.iter_mut().find(|q| q.key == key) {
            let context = snapshot.live(key.port).map(|ingress| Context {
                snapshot,
                ingress,
                now: CoarseSecond(0),
                micros: micros(now),
                nanos: nanos(now),
                drained: true,
                pair: Some(key.queue),
                discard: None,
            });
            sharing.drain(
                &mut queue.queue,
                context.map(|context| context.sender(worker)),
            );
        }
    }

    /// Gives a queue up, which is [alone](Self::alone). All that was taken from it has been delivered and given back.
    pub(super) fn detach(&mut self, key: QueueKey) -> Option<Input> {
        if let Some(at) = self.guests.iter().position(|q| q.key == key) {
            let Owned {
                mut queue, timed, ..
            } = self.guests.swap_remove(at);
            if queue.flush(nanos(Instant::now())).fires() {
                queue.make_call();
            }
            if let Some(kick) = queue.kick().filter(|_| !timed) {
                self.poller.remove(kick);
            }
            return Some(Input::Guest(Box::new(queue)));
        }
        #[cfg(feature = "dpdk")]
        if let Some(at) = self.nics.iter().position(|q| q.key == key) {
            let Owned { queue, timed, .. } = self.nics.swap_remove(at);
            if let Some((fd, _)) = queue.wake().filter(|_| !timed) {
                self.poller.remove(fd);
            }
            return Some(Input::Nic(Box::new(queue)));
        }
        None
    }

    /// Leaves a NIC's queue alone for a while; says until when, if it is here.
    #[cfg(feature = "dpdk")]
    pub(super) fn hold(&mut self, key: QueueKey) -> Option<Instant> {
        let now = Instant::now();
        let nic = self.nics.iter_mut().find(|q| q.key == key)?;
        Some(nic.gate.hold(now))
    }

    /// Polls it again.
    #[cfg(feature = "dpdk")]
    pub(super) fn release(&mut self, key: QueueKey) {
        if let Some(nic) = self.nics.iter_mut().find(|q| q.key == key) {
            nic.gate.release();
        }
    }

    /// Tells when what is in a NIC's queue now has been forwarded. Drops `told` if the queue is not here.
    #[cfg(feature = "dpdk")]
    pub(super) fn drain(&mut self, key: QueueKey, told: SyncSender<()>) {
        if let Some(nic) = self.nics.iter_mut().find(|q| q.key == key) {
            nic.gate.drain(crate::nic::DESCRIPTORS.into(), told);
        }
    }

    /// There are none.
    pub(super) fn is_empty(&self) -> bool {
        #[cfg(feature = "dpdk")]
        let nics = self.nics.is_empty();
        #[cfg(not(feature = "dpdk"))]
        let nics = true;
        self.guests.is_empty() && nics
    }

    /// One burst from every queue. True if there was anything; then `clock`, the time at the start, is that at the end.
    pub(super) fn poll(
        &mut self,
        snapshot: &Arc<Snapshot>,
        now: CoarseSecond,
        forwarder: &mut Forwarder,
        scratch: &mut TxScratch,
        clock: &mut Instant,
    ) -> bool {
        let mut worked = false;
        for queue in &mut self.guests {
            // A port that is gone from the snapshot keeps its ring until the session takes it back.
            let Some(ingress) = snapshot.live(queue.key.port) else {
                continue;
            };
            let ring = &mut queue.queue;
            let discard = (!ring.enabled()).then_some(InputDrop::QueueDisabled);
            let context = Context {
                snapshot,
                ingress,
                now,
                micros: micros(*clock),
                nanos: nanos(*clock),
                drained: false,
                pair: Some(queue.key.queue),
                discard,
            };
            let frames = match &mut self.shared {
                Some((key, sharing)) if *key == queue.key => {
                    let frames = sharing.serve(ring, context, snapshot, forwarder, scratch);
                    if frames == 0 && sharing.is_out() {
                        // Not seen empty, and not to sleep on. Waiting is no load of the queue's.
                        worked = true;
                        *clock = Instant::now();
                        continue;
                    }
                    frames
                }
                _ => serve(ring, context, forwarder, scratch, &mut ()),
            };
            worked |= queue.polled(frames, clock);
        }
        #[cfg(feature = "dpdk")]
        for nic in &mut self.nics {
            if !nic.is_open(*clock) {
                continue;
            }
            if let Some(ingress) = snapshot.live(nic.key.port) {
                let context = Context {
                    snapshot,
                    ingress,
                    now,
                    micros: micros(*clock),
                    nanos: nanos(*clock),
                    drained: false,
                    pair: None,
                    discard: None,
                };
                let takes = |head: &[u8]| crate::nic::receiver(snapshot, ingress, head);
                let frames = nic.queue.poll(takes, |burst| {
                    let drained = burst.len() < BURST;
                    forwarder.forward(Context { drained, ..context }, burst);
                });
                worked |= nic.polled(frames, clock);
                nic.gate.polled(frames);
            }
        }
        forwarder.tend(snapshot, nanos(*clock));
        #[cfg(feature = "dpdk")]
        {
            self.in_vain &= !worked;
        }
        worked
    }

    /// Whether a sender waits for a call that is held back.
    pub(super) fn holds(&self) -> bool {
        self.guests.iter().any(|q| q.queue.deadline().is_some())
    }

    /// Leaves no call held back.
    pub(super) fn flush(&mut self, now: u64) {
        self.flush_where(now, |_| true);
    }

    /// Leaves none held back by the adaptive rule.
    pub(super) fn yield_calls(&mut self, now: u64) {
        self.flush_where(now, |ring| ring.call_report().policy == Policy::Adaptive);
    }

    fn flush_where(&mut self, now: u64, which: impl Fn(&TxRing) -> bool) {
        let rings = self.guests.iter_mut().map(|owned| &mut owned.queue);
        for ring in rings.filter(|ring| ring.deadline().is_some() && which(ring)) {
            if ring.flush(now).fires() {
                ring.make_call();
            }
        }
    }

    /// When the queue that has waited longest was last seen empty, or was last held.
    pub(super) fn emptied(&self) -> Option<Instant> {
        let guests = self.guests.iter().map(|q| q.emptied);
        #[cfg(feature = "dpdk")]
        let guests = guests.chain(self.nics.iter().map(|q| q.emptied));
        guests.min()
    }

    /// All were empty just now: the worker has slept.
    pub(super) fn refresh(&mut self, now: Instant) {
        self.guests.iter_mut().for_each(|q| q.emptied = now);
        #[cfg(feature = "dpdk")]
        self.nics.iter_mut().for_each(|q| q.emptied = now);
    }

    /// Asks every ring for a kick, and every NIC that can for an interrupt. False if a ring has work after all; NICs do not
    /// say, and have to be polled once more.
    pub(super) fn arm(&mut self) -> bool {
        #[cfg(feature = "dpdk")]
        for nic in self.nics.iter_mut().filter(|nic| !nic.timed) {
            // A driver that once refuses is not asked again.
            if !nic.queue.arm() {
                nic.timed = true;
                if let Some((fd, _)) = nic.queue.wake() {
                    self.poller.remove(fd);
                }
            }
        }

        // Every ring, also after one has work: disarming is for all of them.
        let busy = self
            .guests
            .iter_mut()
            .filter_map(|q| q.queue.arm().then_some(()));
        busy.count() == 0
    }

    /// What each has brought.
    pub(super) fn inflows(&mut self) -> impl Iterator<Item = &mut Inflow> {
        let inflows = self.guests.iter_mut().map(|q| &mut q.inflow);
        #[cfg(feature = "dpdk")]
        let inflows = inflows.chain(self.nics.iter_mut().map(|q| &mut q.inflow));
        inflows
    }

    /// What part of the smallest ring would be full of all that has come since this was last asked: all of it may be for
    /// one receiver, whose rings are taken to be no smaller than those of senders.
    pub(super) fn filled(&mut self) -> f64 {
        let sizes = self.guests.iter().map(|q| q.queue.size());
        #[cfg(feature = "dpdk")]
        let sizes = sizes.chain(self.nics.iter().map(|_| NIC_ROOM));
        let room = sizes.min().unwrap_or(1);
        let came: u64 = self.inflows().map(Inflow::mark).sum();
        came as f64 / f64::from(room.max(1))
    }

    /// Whether nobody waits for a queue to be looked at soon: no other worker, and no helper.
    pub(super) fn may_nap(&self) -> bool {
        #[cfg(feature = "dpdk")]
        let awaited = self.nics.iter().any(|q| q.gate.is_pending());
        #[cfg(not(feature = "dpdk"))]
        let awaited = false;
        !awaited && self.shared.is_none()
    }

    /// Sleeps for so long, or until there is a letter. No queue has been asked to wake.
    pub(super) fn nap(&mut self, length: Duration) {
        self.poller.wait(Some(length));
    }

    /// Whether some NIC has been asked for an interrupt.
    pub(super) fn needs_last_look(&self) -> bool {
        #[cfg(feature = "dpdk")]
        let any = self.nics.iter().any(|nic| !nic.timed);
        #[cfg(not(feature = "dpdk"))]
        let any = false;
        any
    }

    /// Asks for no more kicks.
    pub(super) fn disarm(&mut self) {
        self.guests.iter_mut().for_each(|q| q.queue.disarm());
        #[cfg(feature = "dpdk")]
        for nic in self.nics.iter_mut().filter(|nic| !nic.timed) {
            nic.queue.disarm();
        }
    }

    /// Sleeps until a kick, a letter, or the time to look at queues that cannot wake anybody. Without queues there is no
    /// such time.
    pub(super) fn wait(&mut self) {
        let timed = self.guests.iter().any(|q| q.timed);
        #[cfg(feature = "dpdk")]
        if self.in_vain && self.nics.iter().any(|q| q.queue.stays_readable()) {
            std::thread::sleep(SIGNAL);
        }
        #[cfg(feature = "dpdk")]
        let timed = timed || self.nics.iter().any(|q| q.timed || q.gate.is_pending());
        let woken = self.poller.wait(timed.then_some(TIMER));
        #[cfg(feature = "dpdk")]
        {
            self.in_vain = woken;
        }
        #[cfg(not(feature = "dpdk"))]
        let _ = woken;
    }
}

#[cfg(all(test, feature = "dpdk"))]
mod tests {
    use super::super::gate::HOLD;
    use super::*;
    use crate::forward::PortIndex;

    #[test]
    fn a_queue_that_is_held_is_no_delay() {
        let port = PortRef {
            index: PortIndex(0),
            incarnation: 0,
        };
        let mut queue = Owned::new(QueueKey { port, queue: 0 }, (), Arc::default());
        let t = queue.emptied;
        assert!(queue.is_open(t + HOLD) && queue.emptied == t);
        queue.gate.hold(t);
        assert!(!queue.is_open(t + HOLD / 2));
        assert_eq!(queue.emptied, t + HOLD / 2);
        queue.gate.release();
        assert!(queue.is_open(t + HOLD));
        assert_eq!(
            queue.emptied,
            t + HOLD / 2,
            "it is its owner's from then on"
        );
    }
}
