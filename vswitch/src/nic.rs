//! NICs through DPDK: devices as ports, packet buffers as frames.
//!
//! DPDK starts with the first port that needs it, on the main thread, and stays. A device has as many receive queues as
//! its configuration asks for, each owned by a worker, and a transmit queue for each worker where it has so many. Transmit
//! queues are behind locks, which are contended only where workers share one.
//!
//! Frames from a NIC are read where they lie, trains of TCP segments as one frame where the receiver takes that ([`gro`]);
//! frames to a NIC are copied into packet buffers, which is their one copy.
//! Flows are spread over receive queues by the device; its table is the switch's to write ([`reta`]).
//! What a sender left to offloads the device does where it can ([`request`]), and software where not, with the same
//! result.
//!
//! Limits: [`SEGMENTS`] buffers a received frame; what `vswitch-dpdk` says of DPDK itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use vswitch_api::config::{self, AdminLink};
use vswitch_api::rpc;
use vswitch_dpdk::{Capabilities, Demand, Device, DeviceArg, PortConfig, RxQueue, Wake};
use vswitch_flowtable::balance::Node;

use self::dpdk::PoolUse;
use self::reta::Sampler;
use crate::forward::PortRef;
use crate::worker::{Input, QueueKey, Workers};

mod dpdk;
mod gro;
mod input;
#[cfg(test)]
mod order;
mod output;
mod request;
mod reta;

pub use dpdk::adopt_thread;
pub use gro::receiver;
pub use input::{NicBurst, NicInput, SEGMENTS};
pub use output::NicOutput;
pub use reta::Reta;

/// Descriptors of a queue.
pub(crate) const DESCRIPTORS: u16 = 1024;

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

/// Workers, for whom a device is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Staff {
    /// How many there are: each has a transmit queue if the device has so many. Those that come later share.
    pub now: usize,
    /// How many there will be at any time, at most: there are packet buffers for all.
    pub most: usize,
}

/// A device as the main thread keeps it.
pub struct NicPort {
    config: config::DpdkPort,
    port: vswitch_dpdk::Port,
    waiting: Vec<RxQueue>,
    rx_queues: u16,
    output: Arc<NicOutput>,
    reta: Option<Arc<Reta>>,
    bad_checksums: Arc<AtomicU64>,
    since: SystemTime,
    // After the device, which has its buffers.
    _pool: PoolUse,
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
        workers: Staff,
    ) -> Result<Self, NicError> {
        let argument: DeviceArg = config.device.parse()?;
        let eal = dpdk::start(&argument, settings)?;
        let device = Device::probe(eal, &argument)?;
        let tx_queues = tx_queues(device.capabilities(), config.queues, workers.now);
        let room = device.data_room(mtu);
        let demand = Demand {
            rx_queues: config.queues,
            tx_queues,
            descriptors: DESCRIPTORS,
            // And the main thread.
            threads: u16::try_from(workers.most + 1).unwrap_or(u16::MAX),
        };
        let pool = PoolUse::take(eal, room, demand)?;
        let started = device.start(
            &PortConfig {
                rx_queues: config.queues,
                tx_queues,
                rx_descriptors: DESCRIPTORS,
                tx_descriptors: DESCRIPTORS,
                mtu,
                promiscuous: true,
                rss: (config.rss == config::Rss::Auto).then_some(reta::KEY),
            },
            pool.pool(),
        )?;
        let output = NicOutput::new(started.port.capabilities().tx, started.tx, pool.pool());
        let reta = match started.port.reta() {
            Some(device) => {
                let (size, queues) = (device.size(), device.queues());
                Reta::start(device, size, queues)?
            }
            None => None,
        };
        Ok(NicPort {
            config: config.clone(),
            port: started.port,
            rx_queues: started.rx.len() as u16,
            waiting: started.rx,
            output: Arc::new(output),
            reta,
            bad_checksums: Arc::default(),
            since: SystemTime::now(),
            _pool: pool,
        })
    }

    /// Gives the receive queues to workers.
    pub fn start(&mut self, at: PortRef, workers: &Workers) {
        let node = self.port.capabilities().node;
        let node = node.and_then(|n| u8::try_from(n).ok()).map(Node);
        let hashes = self.port.capabilities().rx.rss_hash;
        let reta = self.reta.as_ref();
        for (queue, rx) in (0..).zip(self.waiting.drain(..)) {
            let counted = reta.filter(|_| hashes);
            let sampler = counted.map(|reta| Sampler::new(Arc::clone(reta), queue));
            let input = NicInput::new(rx, Arc::clone(&self.bad_checksums), sampler);
            let key = QueueKey { port: at, queue };
            workers.attach(key, Input::Nic(Box::new(input)), node);
        }
        if let Some(reta) = reta {
            workers.add_reta(at, Arc::clone(reta));
        }
    }

    /// Takes every queue back; the device is closed with the port.
    pub fn stop(&mut self, at: PortRef, workers: &Workers) {
        workers.remove_reta(at);
        if let Some(reta) = &self.reta {
            reta.close();
        }
        for queue in 0..self.rx_queues {
            drop(workers.detach(QueueKey { port: at, queue }));
        }
        self.output.close();
    }

    /// Where its frames leave.
    pub fn output(&self) -> Arc<NicOutput> {
        Arc::clone(&self.output)
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
        let stats = self.port.stats().unwrap_or_default();
        rpc::DpdkStatus {
            device: self.config.device.clone(),
            driver: self.port.capabilities().driver.clone(),
            mac: Some(config::Mac(self.port.mac())),
            speed_mbps: self.port.link().ok().and_then(|l| l.speed_mbps),
            queues: self.rx_queues,
            tx_queues: self.output.queues(),
            rss: self.rss(),
            wakes: self.port.wakes().iter().map(wake).collect(),
            offloads: offloads(self.port.capabilities()),
            bad_checksums: self.bad_checksums.load(Ordering::Relaxed),
            missed: stats.rx_missed + stats.rx_no_buffers,
            errors: stats.rx_errors + stats.tx_errors,
        }
    }
}

impl NicPort {
    /// How it spreads flows, for people.
    fn rss(&self) -> Option<rpc::RssStatus> {
        let rss = self.port.rss()?;
        let reta = self.reta.as_ref();
        let (moves, late) = reta.map_or((0, 0), |reta| reta.moves());
        Some(rpc::RssStatus {
            hash: rss.types.names().map(str::to_owned).collect(),
            symmetric: rss.own_key,
            buckets: reta.map_or_else(Vec::new, |reta| reta.buckets()),
            moves,
            late,
        })
    }
}

fn wake(of: &Wake) -> rpc::QueueWake {
    match of {
        Wake::None => rpc::QueueWake::Timer,
        Wake::Interrupt | Wake::Readable => rpc::QueueWake::Interrupt,
    }
}

/// A transmit queue for each worker, as far as the device has them.
fn tx_queues(device: &Capabilities, rx_queues: u16, workers: usize) -> u16 {
    if device.paired_queues {
        return rx_queues;
    }
    let workers = u16::try_from(workers).unwrap_or(u16::MAX);
    workers.min(device.max_tx_queues).max(1)
}

/// What the device does of a frame's work, by name.
fn offloads(on: &Capabilities) -> Vec<String> {
    let all = [
        (on.rx.ipv4_checksum, "rx-ipv4-checksum"),
        (on.rx.tcp_checksum, "rx-tcp-checksum"),
        (on.rx.udp_checksum, "rx-udp-checksum"),
        (on.rx.scatter, "rx-scatter"),
        (on.rx.rss, "rx-rss"),
        (on.tx.tcp_checksum, "tx-tcp-checksum"),
        (on.tx.udp_checksum, "tx-udp-checksum"),
        (on.tx.tcp_segmentation, "tx-tso"),
        (on.tx.multi_segment, "tx-multi-segment"),
        (on.tx.fast_free, "tx-fast-free"),
    ];
    let names = all.iter().filter(|(on, _)| *on);
    names.map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(max_tx_queues: u16, paired_queues: bool) -> Capabilities {
        Capabilities {
            driver: "net_test".into(),
            max_rx_queues: 64,
            max_tx_queues,
            paired_queues,
            min_mtu: 68,
            max_mtu: 9216,
            node: None,
            rx: vswitch_dpdk::RxCapabilities::default(),
            tx: vswitch_dpdk::TxCapabilities::default(),
        }
    }

    #[test]
    fn a_transmit_queue_for_each_worker_where_there_are_as_many() {
        for (max, paired, rx, workers, wanted) in [
            (64, false, 1, 4, 4),
            (64, false, 4, 1, 1),
            (2, false, 1, 4, 2),
            (16, true, 1, 4, 1),
            (16, true, 3, 1, 3),
            (16, false, 1, 0, 1),
        ] {
            assert_eq!(tx_queues(&device(max, paired), rx, workers), wanted);
        }
    }

    #[test]
    fn offloads_by_name() {
        let mut on = device(1, false);
        assert!(offloads(&on).is_empty());
        on.tx.tcp_segmentation = true;
        on.rx.rss = true;
        assert_eq!(offloads(&on), ["rx-rss", "tx-tso"]);
    }
}
