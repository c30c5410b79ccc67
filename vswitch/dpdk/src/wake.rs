//! How a receive queue wakes a worker that sleeps.

use std::os::fd::BorrowedFd;

use crate::attachment::{Attachment, control};
use crate::caps::TAP;

/// The virtual drivers whose descriptors stay the same while the port is started. Those of a vhost or memif port are its
/// peer's, and change with it.
const VIRTUAL: [&str; 2] = [TAP, "net_virtio_user"];

/// What a driver has for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// Nothing: the queue must be looked at from time to time.
    None,
    /// An interrupt, which is asked for before sleeping. Its descriptor has an edge for each and need not be read.
    Interrupt,
    /// The descriptor that frames are read from: it is readable for as long as there are any.
    Readable,
}

/// A queue's descriptor, as found when the port was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WakeFd {
    pub(crate) kind: Wake,
    fd: i32,
}

impl WakeFd {
    const NONE: Self = Self {
        kind: Wake::None,
        fd: -1,
    };

    /// What this queue of a started port has, and its interrupt switched off. With the control lock held.
    fn find(port: u16, queue: u16, driver: &str) -> Self {
        // The only way to ask is to use it; this direction changes nothing.
        // SAFETY: the port is started and has this queue.
        let switched = unsafe { dpdk_sys::rte_eth_dev_rx_intr_disable(port, queue) } == 0;
        let kind = match (switched, driver) {
            (true, _) => Wake::Interrupt,
            (false, TAP) => Wake::Readable,
            (false, _) => return Self::NONE,
        };
        // SAFETY: as above.
        match unsafe { dpdk_sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue) } {
            fd @ 0.. => Self { kind, fd },
            _ => Self::NONE,
        }
    }

    /// The descriptor.
    pub(crate) fn fd<'a>(&self, _started: &'a Attachment) -> Option<BorrowedFd<'a>> {
        // SAFETY: the driver opened it when the port was started and closes it when that is stopped, which is not while
        // the attachment lives.
        (self.kind != Wake::None).then(|| unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}

/// Switches a queue's interrupt; false if the driver did not.
pub(crate) fn switch(port: u16, queue: u16, on: bool) -> bool {
    // SAFETY: the port is started while its queue lives, and the caller has the only one of this number; what drivers
    // touch is that queue's.
    let result = unsafe {
        if on {
            dpdk_sys::rte_eth_dev_rx_intr_enable(port, queue)
        } else {
            dpdk_sys::rte_eth_dev_rx_intr_disable(port, queue)
        }
    };
    result == 0
}

/// Looks at every queue of a started port.
pub(crate) fn find_all(attachment: &Attachment, queues: u16, driver: &str) -> Vec<WakeFd> {
    let _lock = control();
    let lasting = attachment.device().needs_pci() || VIRTUAL.contains(&driver);
    let find = |queue| match lasting {
        true => WakeFd::find(attachment.port(), queue, driver),
        false => WakeFd::NONE,
    };
    (0..queues).map(find).collect()
}
