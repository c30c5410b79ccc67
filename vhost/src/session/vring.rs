//! One queue of a session: what the front-end said about it, and where it is.

use std::sync::Arc;

use crate::event::Event;
use crate::memory::GuestMemory;
use crate::ring::{Base, QueueIndex, RingAddresses, RingError, RxRing, Setup, Trouble, TxRing};

use super::{Rings, SessionEvent};

/// What all queues of a session have in common.
#[derive(Clone)]
pub(super) struct Device {
    pub(super) memory: Arc<GuestMemory>,
    /// Acknowledged virtio features, once they are.
    pub(super) features: Option<u64>,
    pub(super) trouble: Trouble,
}

/// How the guest kicks.
#[derive(Clone, Debug)]
pub(super) enum Kick {
    Event(Arc<Event>),
    /// Not at all: the ring must be polled.
    Polled,
}

/// A running ring that is not with the switch.
pub(super) enum Ring {
    Tx(TxRing),
    Rx(RxRing),
}

/// Where a queue is.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per queue, and most of them hold the ring sooner or later"
)]
enum State {
    /// Not running.
    Stopped,
    /// Running, in our hands: receive queues that are not enabled, and all while something under them changes.
    Parked(Ring),
    /// Running, with the switch.
    Attached,
    /// It cannot run as it is; until the front-end says something new about it, it is not tried again.
    Failed,
}

/// What a queue's state should be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    Stopped,
    Parked,
    Attached,
}

/// One queue.
pub(super) struct Vring {
    pub(super) queue: QueueIndex,
    pub(super) size: Option<u16>,
    pub(super) addresses: Option<RingAddresses>,
    /// Where it stands while it does not run.
    base: Option<Base>,
    kick: Option<Kick>,
    call: Option<Arc<Event>>,
    error: Option<Event>,
    /// What SET_VRING_ENABLE said, if it came.
    enabled: Option<bool>,
    state: State,
}

impl Vring {
    pub(super) fn new(queue: QueueIndex) -> Self {
        Self {
            queue,
            size: None,
            addresses: None,
            base: None,
            kick: None,
            call: None,
            error: None,
            enabled: None,
            state: State::Stopped,
        }
    }

    /// Whether its frames count: running and enabled.
    pub(super) fn usable(&self, device: &Device) -> bool {
        matches!(self.state, State::Attached) && self.is_enabled(device)
    }

    fn is_enabled(&self, device: &Device) -> bool {
        let negotiated = device.features.unwrap_or(0);
        let by_message = crate::features::has(negotiated, crate::features::VHOST_PROTOCOL_FEATURES);
        self.enabled.unwrap_or(!by_message)
    }

    fn goal(&self, device: &Device) -> Goal {
        let ready = self.size.is_some()
            && self.addresses.is_some()
            && self.base.is_some()
            && self.kick.is_some()
            && device.features.is_some()
            && !device.memory.regions().is_empty();
        match (ready, self.queue.is_transmit() || self.is_enabled(device)) {
            (false, _) => Goal::Stopped,
            (true, false) => Goal::Parked,
            (true, true) => Goal::Attached,
        }
    }

    /// Moves the queue to where it should be. The only place that moves a queue forward.
    pub(super) fn advance(&mut self, device: &Device, rings: &mut dyn Rings) {
        let goal = self.goal(device);
        let pair = self.queue.pair();
        self.state = match (std::mem::replace(&mut self.state, State::Stopped), goal) {
            (State::Stopped, Goal::Stopped) => State::Stopped,
            (State::Stopped, Goal::Parked | Goal::Attached) => match self.start(device) {
                Ok(ring) => {
                    self.state = State::Parked(ring);
                    return self.advance(device, rings);
                }
                Err(error) => self.fail(error, rings),
            },
            // Dropped here, on the session's thread, where unmapping may take its time.
            (State::Parked(mut ring), Goal::Stopped) => {
                self.base = Some(Base::Known(ring.settle()));
                State::Stopped
            }
            (State::Parked(ring), Goal::Parked) => State::Parked(ring),
            (State::Parked(Ring::Tx(mut ring)), Goal::Attached) => {
                ring.set_enabled(self.is_enabled(device));
                rings.attach_tx(pair, ring);
                State::Attached
            }
            (State::Parked(Ring::Rx(ring)), Goal::Attached) => {
                rings.attach_rx(pair, ring);
                State::Attached
            }
            (State::Attached, Goal::Attached) => State::Attached,
            (State::Attached, Goal::Stopped | Goal::Parked) => {
                self.state = State::Attached;
                self.park(rings);
                return self.advance(device, rings);
            }
            (State::Failed, _) => State::Failed,
        };
    }

    fn start(&self, device: &Device) -> Result<Ring, RingError> {
        let setup = Setup {
            pair: self.queue.pair(),
            memory: Arc::clone(&device.memory),
            addresses: self.addresses.unwrap_or_default(),
            size: self.size.unwrap_or(2),
            base: self.base.unwrap_or(Base::Claimed(0)),
            features: device.features.unwrap_or(0),
            kick: match &self.kick {
                Some(Kick::Event(kick)) => Some(Arc::clone(kick)),
                Some(Kick::Polled) | None => None,
            },
            call: self.call.clone(),
            enabled: self.is_enabled(device),
            trouble: device.trouble.clone(),
        };
        if self.queue.is_transmit() {
            TxRing::start(setup).map(Ring::Tx)
        } else {
            RxRing::start(setup).map(Ring::Rx)
        }
    }

    /// Takes the ring back from the switch, if it is there. One that broke there becomes failed.
    pub(super) fn park(&mut self, rings: &mut dyn Rings) {
        if !matches!(self.state, State::Attached) {
            return;
        }
        let pair = self.queue.pair();
        let ring = if self.queue.is_transmit() {
            rings.detach_tx(pair).map(Ring::Tx)
        } else {
            rings.detach_rx(pair).map(Ring::Rx)
        };
        self.state = match ring {
            None => State::Stopped,
            Some(mut ring) => {
                let next = ring.settle();
                match ring.error() {
                    None => State::Parked(ring),
                    Some(error) => {
                        self.base = Some(Base::Known(next));
                        self.fail(error, rings)
                    }
                }
            }
        };
    }

    /// A queue that cannot run: says so to the switch, and to the guest, if it listens.
    fn fail(&self, error: RingError, rings: &mut dyn Rings) -> State {
        if let Some(fd) = &self.error {
            // For information only; nobody may be listening.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
        let queue = self.queue;
        rings.event(SessionEvent::RingError { queue, error });
        State::Failed
    }

    /// The front-end says something that a ring cannot take up while it runs: it starts over, where it stands.
    pub(super) fn restart(&mut self, rings: &mut dyn Rings) {
        self.park(rings);
        if let State::Parked(ring) = &mut self.state {
            self.base = Some(Base::Known(ring.settle()));
        }
        self.state = State::Stopped;
    }

    /// The ring is to be one of the other layout, where its size may be none and its base means nothing: it waits for both.
    pub(super) fn forget_layout(&mut self) {
        (self.size, self.base) = (None, None);
    }

    /// The front-end says where the ring stands. That is certain only if it repeats what it was told.
    pub(super) fn set_base(&mut self, bits: u32, rings: &mut dyn Rings) {
        self.restart(rings);
        if self.base != Some(Base::Known(bits)) {
            self.base = Some(Base::Claimed(bits));
        }
    }

    /// Stops the queue until it is kicked off anew, and says where it stands.
    pub(super) fn stop(&mut self, rings: &mut dyn Rings) -> u32 {
        self.park(rings);
        if let State::Parked(ring) = &mut self.state {
            self.base = Some(Base::Known(ring.settle()));
        }
        self.state = State::Stopped;
        self.kick = None;
        self.base.map_or(0, Base::bits)
    }

    /// Follows the memory to another table. To be parked before.
    pub(super) fn rebind(&mut self, device: &Device, rings: &mut dyn Rings) {
        match &mut self.state {
            State::Parked(ring) if !device.memory.regions().is_empty() => {
                if let Err(error) = ring.rebind(&device.memory) {
                    self.base = Some(Base::Known(ring.settle()));
                    self.state = self.fail(error, rings);
                }
            }
            State::Parked(ring) => {
                self.base = Some(Base::Known(ring.settle()));
                self.state = State::Stopped;
            }
            // What it missed may be there now.
            State::Failed => self.state = State::Stopped,
            State::Stopped | State::Attached => {}
        }
    }

    pub(super) fn set_kick(&mut self, kick: Kick, rings: &mut dyn Rings) {
        self.park(rings);
        match (&mut self.state, &kick) {
            (State::Parked(Ring::Tx(ring)), Kick::Event(fd)) => ring.set_kick(Some(Arc::clone(fd))),
            (State::Parked(Ring::Tx(ring)), Kick::Polled) => ring.set_kick(None),
            (State::Failed, _) => self.state = State::Stopped,
            _ => {}
        }
        self.kick = Some(kick);
    }

    pub(super) fn set_call(&mut self, call: Option<Event>, rings: &mut dyn Rings) {
        self.park(rings);
        self.call = call.map(Arc::new);
        match &mut self.state {
            State::Parked(Ring::Tx(ring)) => ring.set_call(self.call.clone()),
            State::Parked(Ring::Rx(ring)) => ring.set_call(self.call.clone()),
            State::Stopped | State::Attached | State::Failed => {}
        }
    }

    pub(super) fn set_error(&mut self, error: Option<Event>) {
        self.error = error;
    }

    pub(super) fn set_enabled(&mut self, enabled: bool, rings: &mut dyn Rings) {
        if self.enabled != Some(enabled) {
            self.park(rings);
            self.enabled = Some(enabled);
        }
    }
}

impl Ring {
    fn settle(&mut self) -> u32 {
        match self {
            Self::Tx(ring) => ring.settle(),
            Self::Rx(ring) => ring.settle(),
        }
    }

    fn error(&self) -> Option<RingError> {
        match self {
            Self::Tx(ring) => ring.error(),
            Self::Rx(ring) => ring.error(),
        }
    }

    fn rebind(&mut self, memory: &Arc<GuestMemory>) -> Result<(), RingError> {
        match self {
            Self::Tx(ring) => ring.rebind(memory),
            Self::Rx(ring) => ring.rebind(memory),
        }
    }
}
