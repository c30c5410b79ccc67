//! The friendly front: a guest that can be started, stopped, rebooted and reconnected.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::builder::Builder;
use crate::driver::{
    Counters, DeviceFault, Mode, Notifier, Place, QueueStats, RingParts, RxQueue, Shape, TxError,
    TxQueue, wait_any,
};
use crate::endpoint::{Endpoint, Role};
use crate::features::{protocol, virtio};
use crate::frontend::{Frontend, FrontendError, Offer};
use crate::header::VirtioNetHdr;
use crate::memory::{Layout, Memory, MemoryError, RegionSpec};
use crate::wire::request;

/// What can go wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The conversation with the switch.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Event descriptors.
    #[error("cannot make event descriptors: {0}")]
    Events(#[from] std::io::Error),
    /// The device broke a rule.
    #[error(transparent)]
    Fault(#[from] DeviceFault),
    /// A frame could not be sent.
    #[error(transparent)]
    Tx(#[from] TxError),
    /// There is no connection.
    #[error("the guest is not connected, reconnect it first")]
    NotConnected,
    /// A pair is with another thread or does not exist.
    #[error(
        "queue pair {0} is not here: it was taken and not given back, or there are fewer pairs"
    )]
    PairAway(u16),
}

/// What guest and switch agreed on.
#[derive(Clone, Copy, Default, Debug)]
pub struct Negotiated {
    /// Virtio features, PROTOCOL_FEATURES bit included.
    pub virtio: u64,
    /// Protocol features.
    pub protocol: u64,
    /// What the switch offered.
    pub offer: Offer,
}

/// A frame received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The queue pair it came on.
    pub pair: u16,
    /// Its virtio-net header.
    pub header: VirtioNetHdr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The two queues of a pair; may be taken apart for two threads.
#[derive(Debug)]
pub struct QueuePair {
    /// Number of the pair.
    pub index: u16,
    /// Guest to switch.
    pub tx: TxQueue,
    /// Switch to guest.
    pub rx: RxQueue,
}

/// Counters summed over all queues.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct GuestStats {
    /// Guest to switch.
    pub tx: QueueStats,
    /// Switch to guest.
    pub rx: QueueStats,
}

/// What the VMM knows of a ring, wherever its driver is.
#[derive(Debug)]
struct RingHandle {
    parts: RingParts,
    notifier: Notifier,
    counters: Arc<Counters>,
    /// As SET_VRING_BASE says it.
    base: u32,
}

/// Where a ring begins, as SET_VRING_BASE says it. Of a packed one: bits 0-14 the next available slot, 15 its wrap
/// counter, 16-30 the next used slot, 31 its wrap counter.
fn first_base(features: u64) -> u32 {
    if features & virtio::RING_PACKED == 0 {
        0
    } else {
        u32::from(Place::START.bits()) * 0x1_0001
    }
}

/// A guest with one virtio-net device on a vhost-user socket.
#[derive(Debug)]
pub struct SimGuest {
    options: Builder,
    endpoint: Endpoint,
    frontend: Option<Frontend>,
    memory: Memory,
    negotiated: Negotiated,
    /// Receive of pair 0, transmit of pair 0, receive of pair 1, ...
    rings: Vec<RingHandle>,
    pairs: Vec<Option<QueuePair>>,
    enabled: u16,
    next_pair: usize,
    /// This connection has been told the memory.
    memory_told: bool,
}

impl SimGuest {
    /// A guest whose VMM connects to the switch's socket.
    pub fn connect_to(path: impl Into<PathBuf>) -> Builder {
        Builder::new(Role::Connect(path.into()))
    }

    /// A guest whose VMM listens, so that the switch connects.
    pub fn listen_on(path: impl Into<PathBuf>) -> Builder {
        Builder::new(Role::Listen(path.into()))
    }

    pub(crate) fn boot(options: Builder, endpoint: Endpoint) -> Result<Self, GuestError> {
        let mut frontend = endpoint.open(options.timeout)?;
        let offer = frontend.open_session(options.protocol, options.pairs)?;
        let wanted = options.features | virtio::PROTOCOL_FEATURES;
        let features = offer.virtio & wanted;
        let layout = match &options.layout {
            Some(layout) => layout.clone(),
            None => Layout::single(options.memory_needed(features)),
        };
        let memory = Memory::new(&layout)?;
        let (mut rings, mut pairs) = (Vec::new(), Vec::new());
        for index in 0..options.pairs {
            let rx = RxQueue::new(&memory, Notifier::new()?, features, &options.rx)?;
            let tx = TxQueue::new(&memory, Notifier::new()?, features, &options.tx)?;
            rings.push(RingHandle {
                parts: rx.ring().parts().clone(),
                notifier: rx.notifier().clone(),
                counters: Arc::clone(rx.counters()),
                base: first_base(features),
            });
            rings.push(RingHandle {
                parts: tx.ring().parts().clone(),
                notifier: tx.notifier().clone(),
                counters: Arc::clone(tx.counters()),
                base: first_base(features),
            });
            pairs.push(Some(QueuePair { index, tx, rx }));
        }
        let negotiated = Negotiated {
            virtio: features,
            protocol: frontend.protocol(),
            offer,
        };
        let enabled = 1;
        let next_pair = 0;
        let mut guest = Self {
            options,
            endpoint,
            frontend: None,
            memory,
            negotiated,
            rings,
            pairs,
            enabled,
            next_pair,
            memory_told: false,
        };
        guest.prepare(&mut frontend)?;
        guest.frontend = Some(frontend);
        guest.resume()?;
        guest.enable_pairs(guest.options.pairs)?;
        Ok(guest)
    }

    /// After the opening: what QEMU does at realize for every pair.
    fn prepare(&self, frontend: &mut Frontend) -> Result<(), GuestError> {
        for (ring, handle) in self.rings.iter().enumerate() {
            if ring > 0 && ring % 2 == 0 {
                // Every further pair is a vhost device of its own that asks again.
                frontend.get_features()?;
                if self.negotiated.virtio & virtio::PROTOCOL_FEATURES != 0 {
                    frontend.get_protocol_features()?;
                    frontend.set_protocol_features(self.negotiated.protocol)?;
                }
                frontend.get_features()?;
            }
            let masked = Some(handle.notifier.masked_fd());
            frontend.set_vring_fd(request::SET_VRING_CALL, ring as u32, masked)?;
            let err = Some(handle.notifier.err_fd());
            frontend.set_vring_fd(request::SET_VRING_ERR, ring as u32, err)?;
        }
        if self.options.quirks.early_enable {
            self.tell_enabled(frontend)?;
        }
        Ok(())
    }

    fn tell_enabled(&self, frontend: &Frontend) -> Result<(), FrontendError> {
        if self.negotiated.virtio & virtio::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        (0..self.rings.len() as u32).try_for_each(|ring| {
            frontend.set_vring_enable(ring, ring / 2 < u32::from(self.enabled))
        })
    }

    /// Starts the device on the open connection: features, memory, rings at their bases.
    pub fn resume(&mut self) -> Result<(), GuestError> {
        let frontend = self.frontend.as_ref().ok_or(GuestError::NotConnected)?;
        let quirks = self.options.quirks;
        frontend.set_features(self.negotiated.virtio)?;
        // Slots stay until they are removed; QEMU adds only what the connection does not know yet.
        if !self.memory_told || self.negotiated.protocol & protocol::CONFIGURE_MEM_SLOTS == 0 {
            frontend.set_memory(&self.memory)?;
            self.memory_told = true;
        }
        for (ring, handle) in self.rings.iter().enumerate() {
            if ring > 0 && ring % 2 == 0 {
                frontend.set_features(self.negotiated.virtio)?;
            }
            let ring = ring as u32;
            frontend.set_vring_num(ring, handle.parts.size)?;
            frontend.set_vring_base(ring, handle.base)?;
            frontend.set_vring_addr(ring, handle.parts.addresses())?;
            let kick = (!quirks.no_kick_fd).then(|| handle.notifier.kick_fd());
            frontend.set_vring_fd(request::SET_VRING_KICK, ring, kick)?;
            let call = (!quirks.no_call_fd).then(|| handle.notifier.call_fd());
            frontend.set_vring_fd(request::SET_VRING_CALL, ring, call)?;
            if quirks.kick_at_start {
                handle.notifier.kick();
            }
        }
        if !quirks.early_enable {
            self.tell_enabled(frontend)?;
        }
        Ok(())
    }

    /// Enables the first `count` queue pairs and disables the others (what the guest's MQ command makes QEMU do).
    pub fn enable_pairs(&mut self, count: u16) -> Result<(), GuestError> {
        let frontend = self.frontend.as_ref().ok_or(GuestError::NotConnected)?;
        let before = std::mem::replace(&mut self.enabled, count.clamp(1, self.options.pairs));
        if self.negotiated.virtio & virtio::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        for ring in 0..self.rings.len() as u32 {
            let (was, on) = (
                ring / 2 < u32::from(before),
                ring / 2 < u32::from(self.enabled),
            );
            if was != on {
                frontend.set_vring_enable(ring, on)?;
            }
        }
        Ok(())
    }

    /// Stops every ring; the switch says where each stands. Returns those bases.
    pub fn stop(&mut self) -> Result<Vec<u32>, GuestError> {
        let frontend = self.frontend.as_ref().ok_or(GuestError::NotConnected)?;
        for (ring, handle) in self.rings.iter_mut().enumerate() {
            handle.base = frontend.get_vring_base(ring as u32)?;
        }
        Ok(self.rings.iter().map(|r| r.base).collect())
    }

    /// Stops the rings, then hangs up.
    pub fn disconnect(&mut self) -> Result<(), GuestError> {
        let stopped = self.stop();
        self.kill();
        stopped.map(|_| ())
    }

    /// Hangs up in mid-air, as a killed VMM does.
    pub fn kill(&mut self) {
        self.frontend = None;
        self.memory_told = false;
    }

    /// Connects again with the same memory and rings, like a running guest whose switch was restarted: rings resume
    /// where the used index says, features stay as they were. Packed rings have no such index: like QEMU's they are said
    /// to stand where they last were known to, which is where they began unless they were stopped since.
    pub fn reconnect(&mut self) -> Result<(), GuestError> {
        self.kill();
        let mut frontend = self.endpoint.open(self.options.timeout)?;
        let offer = frontend.open_session(self.negotiated.protocol, self.options.pairs)?;
        let missing = self.negotiated.virtio & !offer.virtio;
        if missing != 0 {
            return Err(FrontendError::FeaturesLost { missing }.into());
        }
        self.negotiated.offer = offer;
        self.negotiated.protocol = frontend.protocol();
        if !self.is_packed() {
            for handle in &mut self.rings {
                handle.base = u32::from(handle.parts.used_idx());
            }
        }
        self.prepare(&mut frontend)?;
        self.frontend = Some(frontend);
        self.resume()
    }

    /// Connects again with all rings reset, as DPDK's driver does where they are packed: nobody knows where they stood.
    pub fn reconnect_reset(&mut self) -> Result<(), GuestError> {
        self.kill();
        self.reset_rings()?;
        self.reconnect()
    }

    fn all_here(&self) -> Result<(), GuestError> {
        let away = self.pairs.iter().position(Option::is_none);
        away.map_or(Ok(()), |away| Err(GuestError::PairAway(away as u16)))
    }

    fn reset_rings(&mut self) -> Result<(), GuestError> {
        self.all_here()?;
        for pair in self.pairs.iter_mut().flatten() {
            pair.tx.reset();
            pair.rx.reset();
        }
        let first = first_base(self.negotiated.virtio);
        self.rings.iter_mut().for_each(|r| r.base = first);
        Ok(())
    }

    /// Reboots the guest: rings stopped, forgotten and set up anew on the same connection.
    pub fn reboot(&mut self) -> Result<(), GuestError> {
        if let Some(away) = self.pairs.iter().position(Option::is_none) {
            return Err(GuestError::PairAway(away as u16));
        }
        self.all_here()?;
        self.stop()?;
        self.reset_rings()?;
        self.enabled = 1;
        if let (true, Some(frontend)) = (self.options.quirks.early_enable, &self.frontend) {
            self.tell_enabled(frontend)?;
        }
        self.resume()?;
        self.enable_pairs(self.options.pairs)
    }

    /// Adds a region of memory to the running guest.
    pub fn add_memory(&mut self, spec: RegionSpec) -> Result<(), GuestError> {
        let region = self.memory.add(spec)?;
        let frontend = self.frontend.as_ref().ok_or(GuestError::NotConnected)?;
        if self.negotiated.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            frontend.add_mem_reg(&region)?;
        } else {
            frontend.set_memory(&self.memory)?;
        }
        Ok(())
    }

    /// Takes the region at guest address `guest` away from the running guest. Nothing of the queues may lie in it, or
    /// this is a hostile guest.
    pub fn remove_memory(&mut self, guest: u64) -> Result<(), GuestError> {
        let region = self.memory.remove(guest)?;
        let frontend = self.frontend.as_ref().ok_or(GuestError::NotConnected)?;
        if self.negotiated.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            frontend.rem_mem_reg(&region)?;
        } else {
            frontend.set_memory(&self.memory)?;
        }
        Ok(())
    }

    // --- frames ----------------------------------------------------------------------------------------------

    /// Sends a plain frame on pair 0, in one descriptor.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), GuestError> {
        Ok(self.queue(0)?.tx.send(frame)?)
    }

    /// Sends a frame on pair 0 with a header of choice, cut as told.
    pub fn send_shaped(
        &mut self,
        header: &VirtioNetHdr,
        frame: &[u8],
        shape: &Shape,
    ) -> Result<(), GuestError> {
        Ok(self.queue(0)?.tx.send_shaped(header, frame, shape)?)
    }

    /// The next frame of any pair that is here, by turns; None if there is none within `timeout`.
    pub fn recv(&mut self, timeout: Duration) -> Result<Option<Frame>, GuestError> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(frame) = self.poll_once()? {
                return Ok(Some(frame));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.sleep(left)?;
        }
    }

    /// Everything that arrives until nothing has for `quiet`, at most `limit` frames.
    pub fn recv_all(&mut self, quiet: Duration, limit: usize) -> Result<Vec<Frame>, GuestError> {
        let mut frames = Vec::new();
        while frames.len() < limit {
            match self.recv(quiet)? {
                Some(frame) => frames.push(frame),
                None => break,
            }
        }
        Ok(frames)
    }

    fn poll_once(&mut self) -> Result<Option<Frame>, GuestError> {
        let count = self.pairs.len();
        for i in 0..count {
            let at = (self.next_pair + i) % count;
            let Some(pair) = &mut self.pairs[at] else {
                continue;
            };
            let mut got = None;
            pair.rx.recv_burst(1, |frame| {
                let (header, bytes) = (frame.header(), frame.to_vec());
                got = Some(Frame {
                    pair: at as u16,
                    header,
                    bytes,
                });
            })?;
            if got.is_some() {
                self.next_pair = at + 1;
                return Ok(got);
            }
        }
        Ok(None)
    }

    fn sleep(&mut self, left: Duration) -> Result<(), GuestError> {
        if self.options.rx.mode == Mode::Poll {
            std::thread::yield_now();
            return Ok(());
        }
        let mut work = false;
        for pair in self.pairs.iter_mut().flatten() {
            work |= pair.rx.arm()?;
        }
        if !work {
            let fds: Vec<_> = self
                .pairs
                .iter()
                .flatten()
                .map(|p| p.rx.notifier().call_fd())
                .collect();
            wait_any(&fds, left);
        }
        self.pairs.iter_mut().flatten().for_each(|p| p.rx.disarm());
        Ok(())
    }

    /// A queue pair.
    pub fn queue(&mut self, index: u16) -> Result<&mut QueuePair, GuestError> {
        let pair = self
            .pairs
            .get_mut(usize::from(index))
            .and_then(Option::as_mut);
        pair.ok_or(GuestError::PairAway(index))
    }

    /// Takes a queue pair out, for another thread.
    pub fn take_queue(&mut self, index: u16) -> Result<QueuePair, GuestError> {
        let pair = self
            .pairs
            .get_mut(usize::from(index))
            .and_then(Option::take);
        pair.ok_or(GuestError::PairAway(index))
    }

    /// Gives a queue pair back.
    pub fn give_queue(&mut self, pair: QueuePair) {
        let index = usize::from(pair.index);
        if let Some(place) = self.pairs.get_mut(index) {
            *place = Some(pair);
        }
    }

    /// Waits until every frame sent on the pairs that are here came back from the switch.
    pub fn drain(&mut self, timeout: Duration) -> Result<bool, GuestError> {
        let until = Instant::now() + timeout;
        for pair in self.pairs.iter_mut().flatten() {
            if !pair
                .tx
                .drain(until.saturating_duration_since(Instant::now()))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    // --- what it is ------------------------------------------------------------------------------------------

    /// Whether its rings are packed.
    pub fn is_packed(&self) -> bool {
        self.negotiated.virtio & virtio::RING_PACKED != 0
    }
    /// Its address.
    pub fn mac(&self) -> [u8; 6] {
        self.options.mac
    }
    /// What was agreed.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }
    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
    /// The connection, for raw messages; None while there is none.
    pub fn frontend(&self) -> Option<&Frontend> {
        self.frontend.as_ref()
    }
    /// Whether there is a connection and the switch has not hung up.
    pub fn is_connected(&self) -> bool {
        self.frontend.as_ref().is_some_and(|f| !f.is_closed())
    }
    /// Waits until the switch has hung up.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        self.frontend.as_ref().is_none_or(|f| f.wait_closed(limit))
    }
    /// A ring's place in memory: receive of pair 0 is 0, transmit of pair 0 is 1, and so on.
    pub fn ring(&self, index: usize) -> Option<&RingParts> {
        self.rings.get(index).map(|r| &r.parts)
    }
    /// A ring's event descriptors.
    pub fn notifier(&self, index: usize) -> Option<&Notifier> {
        self.rings.get(index).map(|r| &r.notifier)
    }

    /// Counters of all queues, wherever they are.
    pub fn stats(&self) -> GuestStats {
        let mut stats = GuestStats::default();
        for (ring, handle) in self.rings.iter().enumerate() {
            let side = if ring % 2 == 0 {
                &mut stats.rx
            } else {
                &mut stats.tx
            };
            *side += handle.counters.read();
        }
        stats
    }
}
