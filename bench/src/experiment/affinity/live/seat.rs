//! A target on its CPU: its flows, and the packets that wait for a state to come.

use super::{Packet, Shared};
use crate::experiment::affinity::store::Store;
use crate::experiment::affinity::window::Window;

/// Packets of one flow that wait for its state.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) flow: u32,
    pub(super) since: u64,
    /// With their places in the window, in the order they came.
    pub(super) packets: Vec<(u64, Packet)>,
}

/// One target.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) store: Store,
    pub(super) window: Window,
    parked: Vec<Parked>,
}

impl Seat {
    pub(super) fn with_room(flows: usize) -> Self {
        Self {
            store: Store::with_room(flows),
            window: Window::default(),
            parked: Vec::new(),
        }
    }

    /// A packet waits; tells whether another of its flow does already, so that its state has been asked for.
    pub(super) fn park(&mut self, place: u64, packet: Packet, now: u64) -> bool {
        if let Some(parked) = self.parked.iter_mut().find(|p| p.flow == packet.flow) {
            parked.packets.push((place, packet));
            return true;
        }
        self.parked.push(Parked {
            flow: packet.flow,
            since: now,
            packets: vec![(place, packet)],
        });
        false
    }

    /// Whether packets of this flow wait.
    pub(super) fn awaits(&self, flow: u32) -> bool {
        self.parked.iter().any(|parked| parked.flow == flow)
    }

    /// The packets that waited for this flow's state.
    pub(super) fn unpark(&mut self, flow: u32) -> Option<Parked> {
        let at = self.parked.iter().position(|parked| parked.flow == flow)?;
        Some(self.parked.swap_remove(at))
    }

    /// A packet is finished: whoever steers may see it.
    #[inline]
    pub(super) fn finish(&mut self, target: u8, place: u64, shared: &Shared) {
        let before = self.window.done();
        let done = self.window.finish(place);
        if done != before {
            shared.finished(target, done);
        }
    }
}
