//! What workers know of the switch: ports, bridges, queues. Made by the main thread, never changed, swapped whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use parking_lot::Mutex;
use vswitch_coalesce::{Policy, Settings};
use vswitch_packet::Accepts;
use vswitch_vhost::{CallReport, RxRing};

use super::counters::PortCounters;
use super::fdb::Fdb;
use super::patience::Given;
use super::steer::Steering;
use super::vlan::VlanRule;
use super::{BridgeIndex, PortIndex, PortRef, Vid};
use crate::capture::Taps;

/// One place in the list of all outputs of a snapshot: a queue of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutputIndex(pub u32);

/// The forwarding configuration at one moment.
#[derive(Default)]
pub struct Snapshot {
    ports: Vec<Option<Arc<Port>>>,
    bridges: Vec<Option<Arc<Bridge>>>,
    /// Which port and queue each output is; the inverse of [`Port::output_of`].
    outputs: Vec<(PortIndex, u16)>,
    /// Where captured frames go, while somebody captures.
    pub capture: Option<Arc<Taps>>,
}

impl Snapshot {
    /// Puts ports and bridges in their places and numbers the outputs.
    pub fn new(
        ports: Vec<Option<PortSpec>>,
        bridges: Vec<Option<BridgeSpec>>,
        capture: Option<Arc<Taps>>,
    ) -> Self {
        let mut outputs = Vec::new();
        // Ports and queues are numbered in 16 bits, so 32 are enough for all outputs.
        let ports: Vec<_> = (0..=u16::MAX)
            .map(PortIndex)
            .zip(ports)
            .map(|(index, spec)| {
                spec.map(|spec| {
                    let first_output = OutputIndex(outputs.len() as u32);
                    let queues = spec.output.queues();
                    outputs.extend((0..queues).map(|queue| (index, queue)));
                    Arc::new(Port {
                        spec,
                        first_output,
                        queues,
                    })
                })
            })
            .collect();
        let bridges = bridges
            .into_iter()
            .enumerate()
            .map(|(index, spec)| {
                spec.map(|spec| {
                    let members = ports
                        .iter()
                        .flatten()
                        .filter(|p| p.bridge == BridgeIndex(index as u16))
                        .map(Arc::clone)
                        .collect();
                    Arc::new(Bridge { spec, members })
                })
            })
            .collect();
        Snapshot {
            ports,
            bridges,
            outputs,
            capture,
        }
    }

    /// The port in this place.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&Arc<Port>> {
        self.ports.get(usize::from(index.0))?.as_ref()
    }

    /// The port, if it is still the one that is meant.
    #[inline]
    pub fn live(&self, port: PortRef) -> Option<&Arc<Port>> {
        self.port(port.index).filter(|p| p.at == port)
    }

    /// The bridge in this place.
    #[inline]
    pub fn bridge(&self, index: BridgeIndex) -> Option<&Arc<Bridge>> {
        self.bridges.get(usize::from(index.0))?.as_ref()
    }

    /// Which port and queue an output is.
    #[inline]
    pub fn output(&self, output: OutputIndex) -> Option<(&Arc<Port>, u16)> {
        let (port, queue) = self.outputs.get(output.0 as usize)?;
        Some((self.port(*port)?, *queue))
    }

    /// How many places for ports there are.
    pub fn places(&self) -> usize {
        self.ports.len()
    }

    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The ports that are guests.
    pub fn guests(&self) -> impl Iterator<Item = &Arc<GuestQueues>> {
        let outputs = self.ports.iter().flatten().map(|port| &port.output);
        outputs.filter_map(Output::guest)
    }

    /// The ports that are NICs.
    #[cfg(feature = "dpdk")]
    pub fn nics(&self) -> impl Iterator<Item = &Arc<crate::nic::NicOutput>> {
        let outputs = self.ports.iter().flatten().map(|port| &port.output);
        outputs.filter_map(|output| match output {
            Output::Nic(nic) => Some(nic),
            Output::Guest(_) => None,
        })
    }
}

/// What a bridge is made of.
pub struct BridgeSpec {
    /// Largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// Which port a MAC address is behind.
    pub fdb: Arc<Fdb>,
}

/// A bridge and its ports.
pub struct Bridge {
    spec: BridgeSpec,
    /// Ports, in the order of their places.
    pub members: Vec<Arc<Port>>,
}

impl std::ops::Deref for Bridge {
    type Target = BridgeSpec;
    fn deref(&self) -> &BridgeSpec {
        &self.spec
    }
}

/// When a guest is called: for what it receives, and for what it has its buffers back from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coalesce {
    /// Its receive rings'.
    pub receive: Settings,
    /// Its transmit rings'.
    pub transmit: Settings,
}

impl Default for Coalesce {
    fn default() -> Self {
        Coalesce {
            receive: Settings::receive(Policy::default()),
            transmit: Settings::transmit(Policy::default()),
        }
    }
}

/// What a port is made of.
#[derive(Clone)]
pub struct PortSpec {
    /// Its identity.
    pub at: PortRef,
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The bridge it is on.
    pub bridge: BridgeIndex,
    /// Which VLANs it takes and how they are tagged.
    pub vlan: VlanRule,
    /// Are source addresses learned here?
    pub learning: bool,
    /// Not switched off by the operator.
    pub admin_up: bool,
    /// What may be left to a guest here that can do it. No part of what it was offered: this changes while it is there.
    pub offloads: Accepts,
    /// When a guest here is called. This changes while it is there, too.
    pub coalesce: Coalesce,
    /// Where its frames go.
    pub output: Output,
    /// A block for each worker, by its number.
    pub counters: Arc<[Arc<PortCounters>]>,
}

/// A port in its place.
pub struct Port {
    spec: PortSpec,
    /// Its first queue in the list of all outputs; the others follow.
    first_output: OutputIndex,
    queues: u16,
}

impl std::ops::Deref for Port {
    type Target = PortSpec;
    fn deref(&self) -> &PortSpec {
        &self.spec
    }
}

impl Port {
    /// Where one of its queues is in the list of all outputs. `None` if it has none of this number: what follows its last
    /// one there is another port's.
    #[inline]
    pub fn output_of(&self, queue: u16) -> Option<OutputIndex> {
        let OutputIndex(first) = self.first_output;
        (queue < self.queues).then_some(OutputIndex(first + u32::from(queue)))
    }

    /// Does the port carry frames of this VLAN out?
    #[inline]
    pub fn carries(&self, vid: Vid) -> bool {
        self.vlan.carries(vid)
    }
}

/// Where a port's frames leave.
#[derive(Clone)]
pub enum Output {
    /// Into a guest's receive rings.
    Guest(Arc<GuestQueues>),
    /// Into a NIC's transmit queues.
    #[cfg(feature = "dpdk")]
    Nic(Arc<crate::nic::NicOutput>),
}

impl Output {
    /// The guest, if it is one.
    #[inline]
    pub fn guest(&self) -> Option<&Arc<GuestQueues>> {
        match self {
            Output::Guest(queues) => Some(queues),
            #[cfg(feature = "dpdk")]
            Output::Nic(_) => None,
        }
    }

    fn queues(&self) -> u16 {
        match self {
            Output::Guest(queues) => queues.rings.len() as u16,
            #[cfg(feature = "dpdk")]
            Output::Nic(nic) => nic.queues(),
        }
    }
}

/// The receive rings of one guest. They come and go with its session, under each one's lock; the place stays.
pub struct GuestQueues {
    rings: Box<[Mutex<Option<RxRing>>]>,
    /// Leading queue pairs that have a ring: the guest uses pairs `0..active`.
    active: AtomicU16,
    /// Which of them a flow goes to.
    steering: Steering,
    /// What was done about calls for each pair's transmit ring, told by its owner now and then.
    completions: Box<[Mutex<Option<CallReport>>]>,
    activity: Activity,
}

/// What the owners of a guest's transmit rings say about it to those who deliver to it: a count of bursts, times two, and
/// whether the last left nothing. A hint, so a store of one that overwrites another's does no harm.
#[derive(Default)]
#[repr(align(128))]
struct Activity(AtomicU32);

impl GuestQueues {
    /// Places for `pairs` queue pairs; flows are hashed with `key`.
    pub fn new(pairs: u16, key: [u8; 16]) -> Self {
        GuestQueues {
            rings: (0..pairs.max(1)).map(|_| Mutex::new(None)).collect(),
            active: AtomicU16::new(0),
            steering: Steering::new(pairs, key),
            completions: (0..pairs.max(1)).map(|_| Mutex::new(None)).collect(),
            activity: Activity::default(),
        }
    }

    /// The place of one pair's receive ring. Locked by one output of one burst at a time, never two at once.
    #[inline]
    pub fn ring(&self, pair: u16) -> Option<&Mutex<Option<RxRing>>> {
        self.rings.get(usize::from(pair))
    }

    /// Queue pairs there are places for.
    #[inline]
    pub fn pairs(&self) -> u16 {
        self.rings.len() as u16
    }

    /// Pairs in use.
    #[inline]
    pub fn active(&self) -> u16 {
        self.active.load(Ordering::Acquire)
    }

    /// How the flows of a guest with several pairs are steered.
    #[inline]
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// The guest has transmitted a burst, and has nothing more on offer if it is `drained`.
    #[inline]
    pub fn transmits(&self, drained: bool) {
        let before = self.activity.0.load(Ordering::Relaxed);
        let now = (before | 1).wrapping_add(1) | u32::from(drained);
        self.activity.0.store(now, Ordering::Relaxed);
    }

    /// The low bits of how many bursts the guest has transmitted, and whether the last has left nothing on offer.
    #[inline]
    pub fn transmitted(&self) -> (u8, bool) {
        let seen = self.activity.0.load(Ordering::Relaxed);
        ((seen >> 1) as u8, seen & 1 != 0)
    }

    /// The owner of a pair's transmit ring tells about calls. If somebody is reading just now, it tells another time.
    pub fn tell_completions(&self, pair: u16, report: CallReport) {
        let place = self.completions.get(usize::from(pair));
        if let Some(mut place) = place.and_then(|place| place.try_lock()) {
            *place = Some(report);
        }
    }

    /// What was told about calls for a pair's transmit ring last.
    pub fn completions(&self, pair: u16) -> Option<CallReport> {
        *self.completions.get(usize::from(pair))?.lock()
    }

    /// Whether the guest has dealt with what was delivered to this pair up to a position, as far as it lets us know. A pair
    /// that is gone has nothing under way. Who is just delivering there is not waited for: that is a no.
    pub fn consumed(&self, pair: u16, position: u16) -> bool {
        let Some(place) = self.ring(pair) else {
            return true;
        };
        let ring = place.try_lock();
        ring.is_some_and(|ring| ring.as_ref().is_none_or(|ring| ring.consumed(position)))
    }

    /// The position behind everything delivered to this pair, if the guest has yet to deal with some of it.
    pub fn under_way(&self, pair: u16) -> Option<u16> {
        let place = self.ring(pair)?.lock();
        let ring = place.as_ref()?;
        let position = ring.published();
        (!ring.consumed(position)).then_some(position)
    }

    /// Whether a pair has yet to deal with what it was given; waits for who is just delivering there.
    pub fn is_stuck_at(&self, given: &Given) -> bool {
        let place = self.ring(given.pair).map(|place| place.lock());
        let ring = place.as_ref().and_then(|place| place.as_ref());
        ring.is_some_and(|ring| !ring.consumed(given.position))
    }

    /// Puts a ring in its place, or takes it away. When this returns no worker is writing to what was there.
    ///
    /// For the session's thread only.
    pub fn replace(&self, pair: u16, ring: Option<RxRing>) -> Option<RxRing> {
        if let (None, Some(told)) = (&ring, self.completions.get(usize::from(pair))) {
            *told.lock() = None;
        }
        let place = self.ring(pair)?;
        let old = std::mem::replace(&mut *place.lock(), ring);
        self.steering.patience().forgive();
        let active = self.rings.iter().take_while(|r| r.lock().is_some()).count() as u16;
        self.steering.set_targets(active);
        self.active.store(active, Ordering::Release);
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(n: u16, queues: u16) -> PortSpec {
        PortSpec {
            at: PortRef {
                index: PortIndex(n),
                incarnation: 1,
            },
            name: format!("port{n}").into(),
            bridge: BridgeIndex(0),
            vlan: VlanRule::untagged(),
            learning: true,
            admin_up: true,
            offloads: Accepts::default(),
            coalesce: Coalesce::default(),
            output: Output::Guest(Arc::new(GuestQueues::new(queues, [0; 16]))),
            counters: Arc::new([]),
        }
    }

    #[test]
    fn outputs_are_those_of_their_port_and_no_other() {
        let ports = vec![Some(spec(0, 3)), None, Some(spec(2, 1)), Some(spec(3, 64))];
        let snapshot = Snapshot::new(ports, Vec::new(), None);
        assert_eq!(snapshot.outputs(), 3 + 1 + 64);
        for (n, queues) in [(0, 3), (2, 1), (3, 64)] {
            let port = snapshot.port(PortIndex(n)).unwrap();
            for queue in 0..queues {
                let output = port.output_of(queue).unwrap();
                let (back, its) = snapshot.output(output).unwrap();
                assert_eq!((back.at, its), (port.at, queue));
            }
            for queue in [queues, queues + 1, u16::MAX] {
                assert_eq!(port.output_of(queue), None, "queue {queue} of port {n}");
            }
        }
    }
}
