//! NICs through DPDK: devices as ports, packet buffers as frames.
//!
//! DPDK starts with the first port that needs it, on the main thread, and stays. A device has as many queue pairs as its
//! configuration asks for. Each receive queue is owned by a worker; transmit queues are shared behind their locks, which
//! are never contended where there are as many as workers.
//!
//! Frames from a NIC are read where they lie; frames to a NIC are copied into packet buffers, which is their one copy.
//! Checksums and segmentation toward a NIC are done in software.
//!
//! Limits: [`SEGMENTS`] buffers a received frame; what `vswitch-dpdk` says of DPDK itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use arrayvec::ArrayVec;
use parking_lot::Mutex;
use vswitch_api::config::{self, AdminLink};
use vswitch_api::rpc;
use vswitch_dpdk::{
    Checksum, Device, DeviceArg, Eal, EalConfig, FrameError, Mbuf, MbufBurst, Mempool,
    MempoolConfig, PortConfig, RxQueue, Stock, ThreadGuard, TxQueue,
};
use vswitch_packet::{Accepts, HEAD_LEN, HeadEdit, L4, Offload, VirtioNetHdr, parse};
use vswitch_vhost::{Piece, Pieces, TxFrame};

use crate::forward::counters::{InputDrop, OutputDrop};
use crate::forward::deliver::{Frames, Outcome, Outcomes};
use crate::forward::software::Finisher;
use crate::forward::{BURST, PortRef};
use crate::worker::{QueueKey, Workers};

/// Buffers that a received frame may be spread over.
pub const SEGMENTS: usize = 8;
/// Descriptors of a queue.
const DESCRIPTORS: u16 = 1024;
/// Buffers of the first pool; pools for larger frames have fewer.
const BUFFERS: u32 = 8192;

/// Why a device cannot be a port.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The device argument is not one.
    #[error(transparent)]
    Argument(#[from] vswitch_dpdk::DeviceArgError),
    /// DPDK did not start.
    #[error("DPDK does not start: {0}")]
    Eal(String),
    /// DPDK runs without what the device needs.
    #[error(
        "{0} is a PCI device, and DPDK was started without the PCI bus for an earlier port; restart vswitchd"
    )]
    NoPci(String),
    /// No buffers.
    #[error(transparent)]
    Pool(#[from] vswitch_dpdk::MempoolError),
    /// The device said no.
    #[error(transparent)]
    Port(#[from] vswitch_dpdk::PortError),
}

/// DPDK as this process has it: started or refused, once; and its pools, by data room. Pools live as long as DPDK.
#[derive(Default)]
struct Dpdk {
    eal: Option<Result<Eal, String>>,
    pools: BTreeMap<u16, Mempool>,
}

static DPDK: LazyLock<Mutex<Dpdk>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Makes a worker's thread known to DPDK, for as long as the thread lives.
    static GUARD: RefCell<Option<ThreadGuard>> = const { RefCell::new(None) };
}

fn eal(dpdk: &mut Dpdk, device: &DeviceArg, settings: &config::Dpdk) -> Result<Eal, NicError> {
    let started = dpdk.eal.get_or_insert_with(|| {
        let wanted = EalConfig::for_devices([device]);
        let config = EalConfig {
            memory_mb: settings.memory,
            hugepages: settings.hugepages || wanted.hugepages,
            extra_args: settings.extra_args.clone(),
            ..wanted
        };
        Eal::init(&config).map_err(|e| e.to_string())
    });
    match started {
        Ok(eal) if device.needs_pci() && !eal.has_pci() => {
            Err(NicError::NoPci(device.as_str().into()))
        }
        Ok(eal) => Ok(*eal),
        Err(why) => Err(NicError::Eal(why.clone())),
    }
}

fn pool(dpdk: &mut Dpdk, eal: Eal, mtu: u16) -> Result<Mempool, NicError> {
    let wanted = MempoolConfig {
        count: BUFFERS,
        ..MempoolConfig::default()
    }
    .with_room_for_mtu(mtu);
    let factor = u32::from(wanted.data_room.div_ceil(MempoolConfig::DEFAULT_ROOM));
    let wanted = MempoolConfig {
        count: BUFFERS / factor.max(1),
        ..wanted
    };
    if let Some(pool) = dpdk.pools.get(&wanted.data_room) {
        return Ok(*pool);
    }
    let pool = Mempool::new(eal, wanted)?;
    dpdk.pools.insert(wanted.data_room, pool);
    Ok(pool)
}

/// A device as the main thread keeps it.
pub struct NicPort {
    config: config::DpdkPort,
    port: vswitch_dpdk::Port,
    waiting: Vec<RxQueue>,
    owners: Vec<Option<usize>>,
    output: Arc<NicOutput>,
    since: SystemTime,
}

impl NicPort {
    /// Opens a device and starts it.
    ///
    /// # Errors
    /// See [`NicError`]; nothing is left open.
    pub fn open(
        config: &config::DpdkPort,
        settings: &config::Dpdk,
        mtu: u16,
    ) -> Result<Self, NicError> {
        let argument: DeviceArg = config.device.parse()?;
        let mut dpdk = DPDK.lock();
        let eal = eal(&mut dpdk, &argument, settings)?;
        let pool = pool(&mut dpdk, eal, mtu)?;
        let device = Device::probe(eal, &argument)?;
        let capabilities = device.capabilities().clone();
        let started = device.start(
            &PortConfig {
                rx_queues: config.queues,
                tx_queues: config.queues,
                rx_descriptors: DESCRIPTORS,
                tx_descriptors: DESCRIPTORS,
                mtu,
                promiscuous: true,
            },
            pool,
        )?;
        let output = NicOutput {
            multi_segment: capabilities.tx.multi_segment,
            queues: started
                .tx
                .into_iter()
                .map(|queue| Mutex::new(Some(NicTx::new(queue, pool))))
                .collect(),
        };
        Ok(NicPort {
            config: config.clone(),
            port: started.port,
            owners: vec![None; started.rx.len()],
            waiting: started.rx,
            output: Arc::new(output),
            since: SystemTime::now(),
        })
    }

    /// Gives the receive queues to workers.
    pub fn start(&mut self, at: PortRef, workers: &Workers) {
        for (queue, rx) in self.waiting.drain(..).enumerate() {
            let key = QueueKey {
                port: at,
                queue: queue as u16,
            };
            if let Some(owner) = self.owners.get_mut(queue) {
                *owner = workers.attach_nic(key, NicInput::new(rx));
            }
        }
    }

    /// Takes every queue back; the device is closed with the port.
    pub fn stop(&mut self, at: PortRef, workers: &Workers) {
        for (queue, owner) in self.owners.iter_mut().enumerate() {
            if let Some(worker) = owner.take() {
                drop(workers.detach_nic(
                    worker,
                    QueueKey {
                        port: at,
                        queue: queue as u16,
                    },
                ));
            }
        }
        for queue in &self.output.queues {
            queue.lock().take();
        }
    }

    /// Where its frames leave.
    pub fn output(&self) -> Arc<NicOutput> {
        Arc::clone(&self.output)
    }

    /// The receive queues that this worker owns.
    pub fn queues_of(&self, worker: usize) -> Vec<usize> {
        let owners = self.owners.iter().enumerate();
        owners
            .filter(|(_, o)| **o == Some(worker))
            .map(|(queue, _)| queue)
            .collect()
    }

    /// Its link, for people.
    pub fn link(&self, admin: AdminLink) -> rpc::Link {
        let (state, reason) = match (admin, self.port.link()) {
            (AdminLink::Down, _) => (
                rpc::LinkState::Down,
                Some("taken down by the operator".to_owned()),
            ),
            (_, Ok(link)) if link.up => (rpc::LinkState::Up, None),
            (_, Ok(_)) => (
                rpc::LinkState::Down,
                Some("the device has no carrier".to_owned()),
            ),
            (_, Err(error)) => (rpc::LinkState::Failed, Some(error.to_string())),
        };
        let since = self
            .since
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        rpc::Link {
            state,
            since,
            reason,
        }
    }

    /// The device, for people.
    pub fn status(&self) -> rpc::DpdkStatus {
        rpc::DpdkStatus {
            device: self.config.device.clone(),
            driver: self.port.capabilities().driver.clone(),
            mac: Some(config::Mac(self.port.mac())),
            speed_mbps: self.port.link().ok().and_then(|l| l.speed_mbps),
            queues: self.owners.len() as u16,
        }
    }
}

// ---- from the NIC ---------------------------------------------------------------------------------------------------

/// A receive queue in a worker's hands.
pub struct NicInput {
    queue: RxQueue,
    mbufs: MbufBurst,
}

impl NicInput {
    fn new(queue: RxQueue) -> Self {
        NicInput {
            queue,
            mbufs: MbufBurst::new(),
        }
    }

    /// Called on the worker's thread before the first poll: a thread that DPDK knows has fast buffer caches.
    pub fn adopt(&mut self) {
        let eal = DPDK.lock().eal.clone();
        GUARD.with_borrow_mut(|guard| {
            if let (None, Some(Ok(eal))) = (&guard, eal) {
                *guard = ThreadGuard::register(eal)
                    .inspect_err(|error| tracing::warn!(%error, "DPDK ports will be slower than they could be"))
                    .ok();
            }
        });
    }

    /// Takes a burst and shows it to `forward`. True if there was one.
    pub fn poll(&mut self, forward: impl FnOnce(&NicBurst<'_>)) -> bool {
        if self.queue.rx_burst(&mut self.mbufs) == 0 {
            return false;
        }
        forward(&NicBurst::of(&self.mbufs));
        self.mbufs.clear();
        true
    }
}

/// A received burst as frames.
pub struct NicBurst<'a> {
    frames: ArrayVec<Result<NicFrame<'a>, InputDrop>, BURST>,
}

struct NicFrame<'a> {
    header: VirtioNetHdr,
    head: &'a [u8],
    tail: ArrayVec<Piece<'a>, SEGMENTS>,
    len: u32,
}

impl<'a> NicBurst<'a> {
    fn of(mbufs: &'a MbufBurst) -> Self {
        NicBurst {
            frames: mbufs.iter().take(BURST).map(frame).collect(),
        }
    }
}

fn frame(mbuf: &Mbuf) -> Result<NicFrame<'_>, InputDrop> {
    let mut segments = mbuf.segments();
    let first = segments.next().ok_or(InputDrop::Runt)?;
    let (head, rest) = first.split_at(first.len().min(HEAD_LEN));
    let mut tail = ArrayVec::new();
    for part in std::iter::once(rest)
        .chain(segments)
        .filter(|part| !part.is_empty())
    {
        tail.try_push(Piece::from(part))
            .map_err(|_| InputDrop::OverMtu)?;
    }
    let len = mbuf.len();
    let header = match mbuf.l4_checksum() {
        // A virtual device left its sender's checksum undone; what follows must know.
        Checksum::Absent => partial(head, len as usize),
        _ => VirtioNetHdr::default(),
    };
    Ok(NicFrame {
        header,
        head,
        tail,
        len,
    })
}

/// The request that stands for "the transport checksum is still to be done".
fn partial(head: &[u8], len: usize) -> VirtioNetHdr {
    let offset = |l4: L4| match l4 {
        L4::Tcp(_) => Some(16),
        L4::Udp(_) => Some(6),
        _ => None,
    };
    let parsed = parse(head, len).ok();
    let field = parsed.and_then(|p| Some((p.l4_offset?, offset(p.l4)?)));
    field.map_or(VirtioNetHdr::default(), |(csum_start, csum_offset)| {
        VirtioNetHdr {
            flags: VirtioNetHdr::F_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..VirtioNetHdr::default()
        }
    })
}

impl Frames for NicBurst<'_> {
    fn len(&self) -> usize {
        self.frames.len()
    }

    #[inline]
    fn get(&self, i: usize) -> Result<TxFrame<'_>, InputDrop> {
        let frame = self
            .frames
            .get(i)
            .ok_or(InputDrop::Runt)?
            .as_ref()
            .map_err(|e| *e)?;
        Ok(TxFrame {
            header: frame.header,
            head: frame.head,
            tail: Pieces::from_slice(&frame.tail),
            len: frame.len,
        })
    }
}

// ---- to the NIC -----------------------------------------------------------------------------------------------------

/// The transmit queues of a device.
pub struct NicOutput {
    queues: Box<[Mutex<Option<NicTx>>]>,
    multi_segment: bool,
}

struct NicTx {
    queue: TxQueue,
    stock: Stock,
    burst: MbufBurst,
    /// Which frame of the list each packet of the burst belongs to.
    owners: ArrayVec<u8, BURST>,
    failed: [Option<OutputDrop>; BURST],
}

impl NicOutput {
    /// How many there are.
    pub fn queues(&self) -> u16 {
        self.queues.len() as u16
    }

    /// Sends a list of frames by one queue. `outcomes` has a place for each, filled with `NotConnected`.
    pub fn send<'f>(
        &self,
        queue: u16,
        frames: impl Iterator<Item = (TxFrame<'f>, HeadEdit, Offload)>,
        finisher: &mut Finisher,
        outcomes: &mut Outcomes,
    ) {
        let Some(place) = self.queues.get(usize::from(queue)) else {
            return;
        };
        let mut place = place.lock();
        let Some(tx) = place.as_mut() else {
            return;
        };
        tx.failed = [None; BURST];
        for (i, (frame, edit, offload)) in frames.enumerate() {
            let sent = finisher.deliver(
                &frame,
                edit,
                &offload,
                Accepts::default(),
                |_, parts, tail| tx.put(i as u8, self.multi_segment, parts, tail),
            );
            if let Some(outcome) = outcomes.get_mut(i) {
                *outcome = sent;
            }
        }
        tx.flush();
        for (outcome, failed) in outcomes.iter_mut().zip(&tx.failed) {
            if let (Ok(_), Some(reason)) = (outcome.get(), failed) {
                *outcome = Outcome::dropped(*reason);
            }
        }
    }
}

impl NicTx {
    fn new(queue: TxQueue, pool: Mempool) -> Self {
        NicTx {
            queue,
            stock: Stock::new(pool),
            burst: MbufBurst::new(),
            owners: ArrayVec::new(),
            failed: [None; BURST],
        }
    }

    fn put(
        &mut self,
        owner: u8,
        multi_segment: bool,
        parts: &[&[u8]],
        tail: Pieces<'_>,
    ) -> Result<(), OutputDrop> {
        if self.burst.is_full() {
            self.flush();
        }
        let head: usize = parts.iter().map(|p| p.len()).sum();
        let len = (head + tail.len()) as u32;
        let mbuf = self
            .stock
            .frame(len, |offset, room| copy_at(parts, head, tail, offset, room))
            .map_err(|error| match error {
                FrameError::NoBuffers => OutputDrop::NoMbuf,
                FrameError::TooLarge | FrameError::Short => OutputDrop::FrameTooLarge,
            })?;
        if mbuf.segment_count() > 1 && !multi_segment {
            return Err(OutputDrop::FrameTooLarge);
        }
        if self.burst.push(mbuf).is_ok() {
            let _ = self.owners.try_push(owner);
        }
        Ok(())
    }

    /// Sends what is there. What the device does not take is dropped: a slow receiver never holds its source back.
    fn flush(&mut self) {
        if self.burst.is_empty() {
            return;
        }
        self.queue.tx_burst(&mut self.burst);
        let kept = self.burst.len().min(self.owners.len());
        for owner in self.owners.iter().skip(self.owners.len() - kept) {
            if let Some(failed) = self.failed.get_mut(usize::from(*owner)) {
                *failed = Some(OutputDrop::NicQueueFull);
            }
        }
        self.burst.clear();
        self.owners.clear();
    }
}

/// Copies a stretch of a frame, which is its head's parts and then its tail; returns how much it copied.
fn copy_at(
    parts: &[&[u8]],
    head: usize,
    tail: Pieces<'_>,
    offset: usize,
    room: &mut [u8],
) -> usize {
    let (mut done, mut at) = (0, 0);
    for part in parts {
        let from = (offset + done).saturating_sub(at);
        if let (Some(source), true) = (part.get(from..), offset + done >= at)
            && let Some(target) = room.get_mut(done..)
        {
            let n = source.len().min(target.len());
            if let (Some(t), Some(s)) = (target.get_mut(..n), source.get(..n)) {
                t.copy_from_slice(s);
                done += n;
            }
        }
        at += part.len();
    }
    match room.get_mut(done..) {
        Some(rest) if !rest.is_empty() && offset + done >= head => {
            done + tail.copy_to(offset + done - head, rest)
        }
        _ => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_any_stretch_of_a_frame() {
        let (a, b, c) = ([1u8, 2, 3], [4u8], [5u8, 6, 7, 8]);
        let rest = [9u8, 10, 11];
        let pieces = [Piece::from(&rest[..])];
        let whole: Vec<u8> = (1..=11).collect();
        for offset in 0..=11 {
            for len in 0..=11 - offset {
                let mut room = vec![0; len];
                let n = copy_at(
                    &[&a, &b, &c],
                    8,
                    Pieces::from_slice(&pieces),
                    offset,
                    &mut room,
                );
                assert_eq!((n, &room[..]), (len, &whole[offset..offset + len]));
            }
        }
    }
}
