//! An attached device, and how everything done to it is undone.

use std::ffi::{CString, c_int};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::burst::{BURST, MbufBurst};
use crate::caps::correct;
use crate::device::DeviceArg;
use crate::error::{Errno, PortError};
use crate::log;

/// Numbers of the attached ports. Its lock serialises all control calls: DPDK's are not made to
/// run side by side.
static ATTACHED: Mutex<Vec<u16>> = Mutex::new(Vec::new());

pub(crate) fn control() -> MutexGuard<'static, Vec<u16>> {
    ATTACHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The attached device, shared by port and queues; undone when the last of them goes.
#[derive(Debug)]
pub(crate) struct Attachment {
    device: DeviceArg,
    port: u16,
    raw: *mut dpdk_sys::rte_device,
    state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    Attached,
    Configured,
    Started { rx_queues: u16 },
}

// SAFETY: `raw` is used once, when dropped, under the control lock, and DPDK binds no device to a
// thread.
unsafe impl Send for Attachment {}
// SAFETY: as above; through a shared reference nothing but plain values is read.
unsafe impl Sync for Attachment {}

impl Attachment {
    /// `raw` is the device behind `port`, just attached and in nobody else's care.
    pub(crate) fn new(device: DeviceArg, port: u16, raw: *mut dpdk_sys::rte_device) -> Self {
        Self {
            device,
            port,
            raw,
            state: State::Attached,
        }
    }

    /// How far the device has come, which is what dropping undoes.
    pub(crate) fn reached(&mut self, state: State) {
        self.state = state;
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn device(&self) -> &DeviceArg {
        &self.device
    }

    /// Takes out what has arrived and nobody will fetch: some drivers (rings) would lose it.
    fn drain(&self, rx_queues: u16) {
        const FRAMES: usize = 4096;
        let mut burst = MbufBurst::new();
        for queue in 0..rx_queues {
            for _ in 0..FRAMES / BURST {
                // SAFETY: the port is started, and its queues' owners are gone.
                let n = burst.extend_raw(|room, n| unsafe {
                    dpdk_sys::dpdk_rx_burst(self.port, queue, room, n)
                });
                burst.clear();
                if n == 0 {
                    break;
                }
            }
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut attached = control();
        let port = self.port;
        let report = |step: &str, result: c_int| {
            if result < 0 {
                let errno = Errno::from_return(result);
                tracing::warn!(target: "dpdk", "{}: {step} failed: {errno}", self.device);
            }
        };
        if let State::Started { rx_queues } = self.state {
            self.drain(rx_queues);
            // SAFETY: port and queues are gone, or they would share this attachment.
            report("stopping", unsafe { dpdk_sys::rte_eth_dev_stop(port) });
        }
        if !matches!(self.state, State::Attached) {
            // SAFETY: as above; the port is stopped.
            report("closing", unsafe { dpdk_sys::rte_eth_dev_close(port) });
        }
        // SAFETY: the device was attached by us, and once; nothing refers to it any more.
        report("detaching", unsafe { dpdk_sys::rte_dev_remove(self.raw) });
        attached.retain(|&other| other != port);
    }
}

/// Makes errors of DPDK's return values.
pub(crate) struct Steps {
    pub(crate) device: DeviceArg,
}

impl Steps {
    pub(crate) fn run<T>(
        &self,
        step: &'static str,
        action: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, PortError> {
        let (result, said) = log::listen(action);
        let device = self.device.clone();
        result.map_err(|errno| PortError::Step {
            device,
            step,
            errno,
            said,
        })
    }

    /// A call that returns 0, or a negative error number.
    pub(crate) fn call(
        &self,
        step: &'static str,
        action: impl FnOnce() -> c_int,
    ) -> Result<(), PortError> {
        self.run(step, || check(action()))
    }

    /// A call that the device need not know: false if it does not.
    pub(crate) fn optional(
        &self,
        step: &'static str,
        action: impl FnOnce() -> c_int,
    ) -> Result<bool, PortError> {
        self.run(step, || match action() {
            unknown if unknown == -libc::ENOTSUP || unknown == -libc::ENOSYS => Ok(false),
            result => check(result).map(|()| true),
        })
    }
}

pub(crate) fn check(result: c_int) -> Result<(), Errno> {
    if result < 0 {
        Err(Errno::from_return(result))
    } else {
        Ok(())
    }
}

/// The numbers of all Ethernet ports of a device.
pub(crate) fn ports_of(device: &CString) -> Vec<u16> {
    // SAFETY: pointers, all of which may be null before the iterator is initialised.
    let mut iterator: dpdk_sys::rte_dev_iterator = unsafe { mem::zeroed() };
    let mut ports = Vec::new();
    // SAFETY: `device` is a string and outlives the iterator, which cleans itself up at its end.
    unsafe {
        if dpdk_sys::rte_eth_iterator_init(&raw mut iterator, device.as_ptr()) != 0 {
            return ports;
        }
        loop {
            let port = dpdk_sys::rte_eth_iterator_next(&raw mut iterator);
            if u32::from(port) >= dpdk_sys::DPDK_MAX_ETHPORTS {
                return ports;
            }
            ports.push(port);
        }
    }
}

pub(crate) fn device_info(port: u16) -> Result<dpdk_sys::rte_eth_dev_info, Errno> {
    // SAFETY: numbers and pointers; the call fills them in.
    let mut info: dpdk_sys::rte_eth_dev_info = unsafe { mem::zeroed() };
    // SAFETY: `info` is writable; a port that does not exist is an error, not undefined.
    check(unsafe { dpdk_sys::rte_eth_dev_info_get(port, &raw mut info) })?;
    // SAFETY: just filled in, for a device that is attached.
    unsafe { correct(&mut info) };
    Ok(info)
}
