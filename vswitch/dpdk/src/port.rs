//! Devices and ports: attached, configured, started, and all of it undone.
//!
//! A device goes through three states, each a type: a [`DeviceArg`] names it, a [`Device`] is
//! attached and can be asked what it can do, a [`Port`] with its queues is started. Dropping
//! leads back: the last of a port and its queues drains the receive queues, stops, closes and
//! detaches the device.

use std::ffi::{CStr, CString};
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::attachment::{Attachment, State, Steps, check, control, device_info, ports_of};
use crate::caps::{
    AF_PACKET, Capabilities, Offloads, TAP, ethdev_max_mtu, room_needed, room_wanted,
};
use crate::device::DeviceArg;
use crate::eal::Eal;
use crate::error::{Errno, PortError};
use crate::log;
use crate::mempool::{FRAME_OVERHEAD, Mempool};
use crate::queue::{RxQueue, TxQueue};
use crate::rss::{Reta, RssKey, RssSetup, RssState};
use crate::wake::{self, Wake};

/// DPDK's number of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u16);

/// How a port is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Descriptors per receive queue; rounded to what the device takes.
    pub rx_descriptors: u16,
    /// Descriptors per transmit queue; rounded to what the device takes.
    pub tx_descriptors: u16,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Receive frames for every address, which a bridge needs.
    pub promiscuous: bool,
    /// The key by which flows are spread over several receive queues; `None` leaves it to the device what comes where.
    pub rss: Option<RssKey>,
}

impl Default for PortConfig {
    /// One queue pair of 1,024 descriptors each way, MTU 1,500, promiscuous, no key.
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: 1500,
            promiscuous: true,
            rss: None,
        }
    }
}

/// Link state, as the device last saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Frames pass.
    pub up: bool,
    /// Speed in Mb/s, if the device knows one.
    pub speed_mbps: Option<u32>,
    /// Both directions at once.
    pub full_duplex: bool,
}

/// The device's own counters, since it was attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames lost because a receive queue was full.
    pub rx_missed: u64,
    /// Frames received broken.
    pub rx_errors: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Frames lost because the pool was empty.
    pub rx_no_buffers: u64,
}

/// A device that is attached, not started. Dropping it detaches it.
#[derive(Debug)]
pub struct Device {
    attachment: Attachment,
    capabilities: Capabilities,
}

/// A started port: what the control side keeps.
#[derive(Debug)]
pub struct Port {
    attachment: Arc<Attachment>,
    capabilities: Capabilities,
    mac: [u8; 6],
    mtu: u16,
    rss: Option<RssState>,
    wakes: Vec<Wake>,
}

/// What [`Device::start`] gives. Queues are in order of their numbers.
#[derive(Debug)]
pub struct StartedPort {
    /// For the control side.
    pub port: Port,
    /// For the workers, each one moved to one of them.
    pub rx: Vec<RxQueue>,
    /// For the workers, each one moved to one of them.
    pub tx: Vec<TxQueue>,
}

impl Device {
    /// Attaches the device behind an argument.
    ///
    /// # Errors
    ///
    /// When there is no such device or driver, a privilege is missing, or it is attached already.
    pub fn probe(eal: Eal, device: &DeviceArg) -> Result<Self, PortError> {
        if device.needs_pci() && !eal.has_pci() {
            return Err(PortError::NeedsPci {
                device: device.clone(),
            });
        }
        let text = CString::new(device.as_str()).unwrap_or_default();
        let mut attached = control();
        // SAFETY: EAL runs, `text` is a string, and the lock is held.
        let (result, said) = log::listen(|| unsafe { dpdk_sys::rte_dev_probe(text.as_ptr()) });
        if result < 0 {
            let (device, errno, hint) = (device.clone(), Errno::from_return(result), device.hint());
            return Err(PortError::Probe {
                device,
                errno,
                said,
                hint,
            });
        }
        let ports = ports_of(&text);
        // DPDK answers "done" for a device that is there already.
        if ports.iter().any(|port| attached.contains(port)) {
            return Err(PortError::Duplicate {
                device: device.clone(),
            });
        }
        let Some(&port) = ports.first() else {
            return Err(PortError::NotOnePort {
                device: device.clone(),
                found: 0,
            });
        };
        let info = device_info(port).map_err(|errno| PortError::Step {
            device: device.clone(),
            step: "reading the device's limits",
            errno,
            said: Default::default(),
        })?;
        attached.push(port);
        drop(attached);
        // From here on, dropping detaches.
        let attachment = Attachment::new(device.clone(), port, info.device);
        if ports.len() > 1 {
            return Err(PortError::NotOnePort {
                device: device.clone(),
                found: ports.len(),
            });
        }
        // SAFETY: the port exists.
        let node = unsafe { dpdk_sys::rte_eth_dev_socket_id(port) };
        // SAFETY: `info` is this device's, which is attached.
        let capabilities = unsafe { Capabilities::new(&info, device, u16::try_from(node).ok()) };
        Ok(Self {
            attachment,
            capabilities,
        })
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Frame bytes that a buffer of the port's pool should have, for this MTU. Devices that spread
    /// frames over several buffers do with the usual size, which is less memory and fewer cache
    /// misses; others get a buffer per frame.
    pub fn data_room(&self, mtu: u16) -> u16 {
        room_wanted(&self.capabilities, self.attachment.device(), mtu)
    }

    /// Configures the device and starts it. `pool` is where received frames go, and where frames to
    /// be sent come from.
    ///
    /// # Errors
    ///
    /// When the configuration is outside the device's limits or a step fails; the device is
    /// detached then.
    pub fn start(mut self, config: &PortConfig, pool: Mempool) -> Result<StartedPort, PortError> {
        self.check(config, pool)?;
        let port = self.attachment.port();
        // Released before `self` on every way out: detaching takes it again.
        let lock = control();
        let steps = Steps {
            device: self.attachment.device().clone(),
        };
        let info = steps.run("reading the device's limits", || device_info(port))?;

        let frame = u32::from(config.mtu) + FRAME_OVERHEAD;
        let key = config.rss.filter(|_| config.rx_queues > 1);
        let key = key.filter(|_| self.capabilities.rx.rss);
        let rss = key.map(|key| RssSetup::new(&info, key));
        let scatter = frame > u32::from(pool.config().data_room);
        let offloads = Offloads::of(&info, scatter, rss.is_some());
        self.attachment.reached(State::Configured);
        let mut attempts = Attempt::all(rss).into_iter();
        let mut rss = loop {
            let Some(mut attempt) = attempts.next() else {
                break None;
            };
            match self.set_up(&steps, config, &info, offloads, &mut attempt, pool) {
                Ok(()) => break attempt.rss,
                Err(PortError::Step { .. }) if attempts.len() > 0 => {}
                Err(error) => return Err(error),
            }
        };
        self.attachment.reached(State::Started {
            rx_queues: config.rx_queues,
        });
        if config.promiscuous {
            // SAFETY: the port is started.
            steps.optional("receiving for all addresses", || unsafe {
                dpdk_sys::rte_eth_promiscuous_enable(port)
            })?;
            // SAFETY: as above.
            steps.optional("receiving all multicast", || unsafe {
                dpdk_sys::rte_eth_allmulticast_enable(port)
            })?;
        }
        let mut mac = [0; 6];
        // SAFETY: the port is started, and `mac` takes the six bytes that are written.
        steps.call("reading the MAC address", || unsafe {
            dpdk_sys::dpdk_mac_get(port, mac.as_mut_ptr())
        })?;
        let rss = rss.as_mut().map(|rss| rss.settle(port, info.reta_size));
        drop(lock);

        let Self {
            attachment,
            mut capabilities,
        } = self;
        capabilities.narrow(offloads, rss.is_some_and(|rss| !rss.types.is_empty()));
        let attachment = Arc::new(attachment);
        let wakes = wake::find_all(&attachment, config.rx_queues, &capabilities.driver);
        let rx = (0..).zip(&wakes);
        let rx = rx.map(|(queue, wake)| RxQueue::new(attachment.clone(), queue, *wake));
        let only = offloads.fast_free().then_some(pool);
        let tx = (0..config.tx_queues)
            .map(|queue| TxQueue::new(attachment.clone(), queue, offloads.prepare(), only));
        let (rx, tx) = (rx.collect(), tx.collect());
        let mtu = config.mtu;
        let port = Port {
            attachment,
            capabilities,
            mac,
            mtu,
            rss,
            wakes: wakes.iter().map(|wake| wake.kind).collect(),
        };
        Ok(StartedPort { port, rx, tx })
    }

    /// Configures the device in one of the ways to do that, sets up its queues and starts it.
    fn set_up(
        &self,
        steps: &Steps,
        config: &PortConfig,
        info: &dpdk_sys::rte_eth_dev_info,
        offloads: Offloads,
        attempt: &mut Attempt,
        pool: Mempool,
    ) -> Result<(), PortError> {
        let port = self.attachment.port();
        let mut rx_descriptors = config.rx_descriptors;
        let mut tx_descriptors = config.tx_descriptors;
        steps.run("configuring", || {
            configure(port, config, info, offloads, attempt)
        })?;
        // SAFETY: the port exists, and both references are to numbers of this frame.
        steps.call("choosing queue sizes", || unsafe {
            dpdk_sys::rte_eth_dev_adjust_nb_rx_tx_desc(
                port,
                &raw mut rx_descriptors,
                &raw mut tx_descriptors,
            )
        })?;

        let node = self
            .capabilities
            .node
            .map_or(dpdk_sys::DPDK_SOCKET_ID_ANY, i32::from) as u32;
        let mut rx_config = info.default_rxconf;
        rx_config.offloads = offloads.rx;
        for queue in 0..config.rx_queues {
            // SAFETY: the port is configured with this queue; the pool is never freed.
            steps.call("setting up a receive queue", || unsafe {
                let config = &raw const rx_config;
                dpdk_sys::rte_eth_rx_queue_setup(
                    port,
                    queue,
                    rx_descriptors,
                    node,
                    config,
                    pool.raw(),
                )
            })?;
        }
        let mut tx_config = info.default_txconf;
        tx_config.offloads = offloads.tx;
        for queue in 0..config.tx_queues {
            // SAFETY: the port is configured with this queue.
            steps.call("setting up a transmit queue", || unsafe {
                let config = &raw const tx_config;
                dpdk_sys::rte_eth_tx_queue_setup(port, queue, tx_descriptors, node, config)
            })?;
        }
        self.apply_mtu(steps, config.mtu, info.if_index)?;
        // SAFETY: all queues of the port are set up.
        steps.call("starting", || unsafe { dpdk_sys::rte_eth_dev_start(port) })
    }

    /// Whether the configuration is within the device's limits.
    fn check(&self, config: &PortConfig, pool: Mempool) -> Result<(), PortError> {
        let device = || self.attachment.device().clone();
        let caps = &self.capabilities;
        for (direction, wanted, max) in [
            ("receive", config.rx_queues, caps.max_rx_queues),
            ("transmit", config.tx_queues, caps.max_tx_queues),
        ] {
            if wanted == 0 || wanted > max {
                return Err(PortError::Queues {
                    device: device(),
                    direction,
                    wanted,
                    max,
                });
            }
        }
        // A tap's queue is one descriptor for both directions.
        if caps.driver == TAP && config.rx_queues != config.tx_queues {
            let (rx, tx) = (config.rx_queues, config.tx_queues);
            return Err(PortError::UnequalQueues {
                device: device(),
                rx,
                tx,
            });
        }
        let (wanted, min, max) = (config.mtu, caps.min_mtu, caps.max_mtu);
        if !(min..=max).contains(&wanted) {
            let hint = match caps.driver.as_str() {
                AF_PACKET => "; give its argument a larger framesz= and blocksz=",
                _ => "",
            };
            return Err(PortError::Mtu {
                device: device(),
                wanted,
                min,
                max,
                hint,
            });
        }

        let room = pool.config().data_room;
        let needed = room_needed(caps, self.attachment.device(), config.mtu);
        if needed > u32::from(room) {
            return Err(PortError::DataRoom {
                device: device(),
                needed,
                room,
            });
        }
        Ok(())
    }

    /// Sets the MTU that the port is configured with. An interface of the host's that is only
    /// looked into is not ours to change, and has to be large enough.
    fn apply_mtu(&self, steps: &Steps, mtu: u16, if_index: u32) -> Result<(), PortError> {
        if self.capabilities.driver == AF_PACKET {
            return match host_mtu(if_index) {
                Some((interface, current)) if current < u32::from(mtu) => {
                    let device = self.attachment.device().clone();
                    Err(PortError::HostMtu {
                        device,
                        interface,
                        current,
                        wanted: mtu,
                    })
                }
                _ => Ok(()),
            };
        }
        let port = self.attachment.port();
        // SAFETY: the port is configured and not started.
        let set = || unsafe { dpdk_sys::rte_eth_dev_set_mtu(port, mtu) };
        steps.optional("setting the MTU", set).map(|_| ())
    }
}

impl Port {
    /// DPDK's number of it.
    pub fn id(&self) -> PortId {
        PortId(self.attachment.port())
    }

    /// The argument it was made from.
    pub fn device(&self) -> &DeviceArg {
        self.attachment.device()
    }

    /// What the device does: the offloads in it are switched on.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The device's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The MTU it was started with.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// How it spreads flows over its receive queues; `None` if it was not asked to, or cannot.
    pub fn rss(&self) -> Option<RssState> {
        self.rss
    }

    /// The table that says which receive queue a hash goes to, if there is one that can be written.
    pub fn reta(&self) -> Option<Reta> {
        let size = self.rss.map_or(0, |rss| rss.reta_size);
        let queues = self.wakes.len() as u16;
        (size > 0).then(|| Reta::new(self.attachment.clone(), size, queues))
    }

    /// How each receive queue wakes a worker that sleeps, by its number.
    pub fn wakes(&self) -> &[Wake] {
        &self.wakes
    }

    /// The link, without waiting for it to settle.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn link(&self) -> Result<Link, PortError> {
        let mut link = dpdk_sys::dpdk_link {
            speed_mbps: 0,
            up: 0,
            full_duplex: 0,
        };
        let _lock = control();
        // SAFETY: the port is started, and `link` is writable.
        self.steps().call("reading the link", || unsafe {
            dpdk_sys::dpdk_link_get(self.attachment.port(), &raw mut link)
        })?;
        let known = (1..u32::MAX).contains(&link.speed_mbps);
        Ok(Link {
            up: link.up != 0,
            speed_mbps: known.then_some(link.speed_mbps),
            full_duplex: link.full_duplex != 0,
        })
    }

    /// Takes the link up or down, for devices that can: false for others.
    ///
    /// # Errors
    ///
    /// When the device can and did not.
    pub fn set_link(&self, up: bool) -> Result<bool, PortError> {
        let port = self.attachment.port();
        let _lock = control();
        // SAFETY: the port is started.
        self.steps().optional("setting the link", || unsafe {
            if up {
                dpdk_sys::rte_eth_dev_set_link_up(port)
            } else {
                dpdk_sys::rte_eth_dev_set_link_down(port)
            }
        })
    }

    /// The device's counters.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn stats(&self) -> Result<PortStats, PortError> {
        // SAFETY: numbers, all of which may be zero.
        let mut raw: dpdk_sys::rte_eth_stats = unsafe { mem::zeroed() };
        let _lock = control();
        // SAFETY: the port is started, and `raw` is writable.
        self.steps().call("reading the counters", || unsafe {
            dpdk_sys::rte_eth_stats_get(self.attachment.port(), &raw mut raw)
        })?;
        Ok(PortStats {
            rx_frames: raw.ipackets,
            tx_frames: raw.opackets,
            rx_bytes: raw.ibytes,
            tx_bytes: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            tx_errors: raw.oerrors,
            rx_no_buffers: raw.rx_nombuf,
        })
    }

    fn steps(&self) -> Steps {
        Steps {
            device: self.attachment.device().clone(),
        }
    }
}

/// A way to set a device up. Drivers refuse some of what DPDK lets them be asked for, and say so only then.
#[derive(Clone)]
struct Attempt {
    /// With an interrupt for each receive queue.
    interrupts: bool,
    rss: Option<RssSetup>,
}

impl Attempt {
    /// The best first.
    fn all(rss: Option<RssSetup>) -> Vec<Self> {
        let best = Attempt {
            interrupts: true,
            rss,
        };
        let quiet = Attempt {
            interrupts: false,
            ..best.clone()
        };
        let mut all = vec![best, quiet];
        if let Some(rss) = all.first().and_then(|best| best.rss.clone()) {
            // With the driver's own key.
            all.push(Attempt {
                interrupts: false,
                rss: Some(RssSetup { key: None, ..rss }),
            });
        }
        all
    }
}

fn configure(
    port: u16,
    config: &PortConfig,
    info: &dpdk_sys::rte_eth_dev_info,
    offloads: Offloads,
    attempt: &mut Attempt,
) -> Result<(), Errno> {
    // SAFETY: all zeroes is DPDK's default configuration.
    let mut raw: dpdk_sys::rte_eth_conf = unsafe { mem::zeroed() };
    // A packet socket takes more than its driver admits; see `Capabilities::max_mtu`.
    raw.rxmode.mtu = u32::from(config.mtu).min(ethdev_max_mtu(info));
    raw.rxmode.offloads = offloads.rx;
    raw.txmode.offloads = offloads.tx;
    if let Some(rss) = &mut attempt.rss {
        rss.fill(&mut raw);
    }
    // SAFETY: `raw` is a configuration of this frame.
    unsafe { dpdk_sys::dpdk_conf_rx_interrupts(&raw mut raw, attempt.interrupts.into()) };
    // SAFETY: the port is attached and not started; `raw` is copied, and so is the key, which outlives the call.
    check(unsafe {
        let (rx, tx) = (config.rx_queues, config.tx_queues);
        dpdk_sys::rte_eth_dev_configure(port, rx, tx, &raw const raw)
    })
}

/// Name and MTU of a network interface of the host, in this thread's network namespace.
fn host_mtu(if_index: u32) -> Option<(String, u32)> {
    // SAFETY: all zeroes is a request with an empty name.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: the name in the request has the size that the call may write.
    if unsafe { libc::if_indextoname(if_index, request.ifr_name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // Any socket will do to ask; closed when dropped.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // SAFETY: the request names an interface and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call wrote this field.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    // SAFETY: if_indextoname ended the name with a zero.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Some((
        name.to_string_lossy().into_owned(),
        u32::try_from(mtu).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_of_a_host_interface() {
        // SAFETY: a constant string.
        let lo = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
        assert!(host_mtu(lo).is_some_and(|(name, mtu)| name == "lo" && mtu >= 1500));
        assert_eq!(host_mtu(u32::MAX), None);
    }
}
