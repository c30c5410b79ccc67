//! Errors of the control side, one sentence each, with DPDK's own words where it has any.

use std::ffi::CStr;
use std::fmt;

use crate::device::DeviceArg;

/// A DPDK error number, which is an errno and displays as its text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(i32);

impl Errno {
    /// From a return value, where DPDK negates error numbers (and sometimes forgets to).
    pub(crate) fn from_return(value: i32) -> Self {
        Self(value.saturating_abs())
    }

    /// The calling thread's `rte_errno`.
    pub(crate) fn last() -> Self {
        // SAFETY: reads a thread-local integer.
        Self::from_return(unsafe { dpdk_sys::dpdk_errno() })
    }

    /// The number, positive.
    pub fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror returns, for every number, a string that this thread's next call
        // may overwrite; it is copied out before that.
        let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(self.0)) };
        write!(f, "{} (errno {})", text.to_string_lossy(), self.0)
    }
}

/// What DPDK logged while it failed; displays as nothing when it said nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said(pub(crate) Vec<String>);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; DPDK says: {}", self.0.join(" / "))
    }
}

/// Why DPDK did not start.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// A second start in one process, also after a failed first one.
    #[error(
        "DPDK can be started once per process and was already asked to; restart to change its \
         settings"
    )]
    AlreadyStarted,
    /// An argument that DPDK answers by ending the process, or that cannot be passed on.
    #[error("the DPDK argument '{argument}' cannot be used here: {why}")]
    Argument {
        /// The offending argument.
        argument: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The CPUs this process may use could not be read or set, or none is usable.
    #[error("the CPUs that this thread may run on could not be {what}: {source}")]
    Affinity {
        /// What was tried: read or restored.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// `rte_eal_init` failed.
    #[error("DPDK did not start with '{arguments}': {errno}{said}")]
    Init {
        /// All arguments, space-separated.
        arguments: String,
        /// DPDK's error number.
        errno: Errno,
        /// DPDK's log lines of level warning and above.
        said: Said,
    },
}

/// Why a thread could not be registered with DPDK.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// It started DPDK, or has a guard.
    #[error(
        "this thread is known to DPDK already; register it once, and not the one that started it"
    )]
    Known,
    /// No place left.
    #[error(
        "this thread could not be registered with DPDK, which takes 127 beside its own: {errno}"
    )]
    Full {
        /// DPDK's error number.
        errno: Errno,
    },
}

/// Why there is no packet-buffer pool.
#[derive(Debug, thiserror::Error)]
pub enum MempoolError {
    /// A number that DPDK cannot use.
    #[error("a pool of {count} packet buffers of {data_room} bytes is not possible: {why}")]
    Config {
        /// Requested buffers.
        count: u32,
        /// Requested bytes of a frame per buffer.
        data_room: u16,
        /// The limit that was crossed.
        why: &'static str,
    },
    /// `rte_pktmbuf_pool_create` failed, nearly always for lack of memory.
    #[error(
        "no pool of {count} packet buffers (about {mib} MiB): {errno}{said}; give DPDK more memory \
         or ask for fewer buffers"
    )]
    Create {
        /// Requested buffers.
        count: u32,
        /// What they need, about.
        mib: u64,
        /// DPDK's error number.
        errno: Errno,
        /// DPDK's log lines.
        said: Said,
    },
}

/// Why a device is not a working port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// PCI device, but DPDK was started without the PCI bus.
    #[error(
        "{device} is a PCI device, but DPDK was started without PCI; restart with the device in \
         the configuration"
    )]
    NeedsPci {
        /// The device argument.
        device: DeviceArg,
    },
    /// The device did not come up.
    #[error("{device} could not be attached: {}{said}; {hint}", probe_reason(*.errno))]
    Probe {
        /// The device argument.
        device: DeviceArg,
        /// DPDK's error number.
        errno: Errno,
        /// DPDK's log lines.
        said: Said,
        /// What to try.
        hint: &'static str,
    },
    /// The same device twice.
    #[error("{device} is already attached; give a second virtual device another number")]
    Duplicate {
        /// The device argument.
        device: DeviceArg,
    },
    /// The device exists but is no Ethernet port, or is several.
    #[error("{device} has {found} Ethernet ports; exactly one is needed")]
    NotOnePort {
        /// The device argument.
        device: DeviceArg,
        /// How many it has.
        found: usize,
    },
    /// More or fewer queues than the device takes.
    #[error(
        "{device} takes 1 to {max} {direction} queues, not {wanted}; set the port's queues to at \
         most {max}"
    )]
    Queues {
        /// The device argument.
        device: DeviceArg,
        /// `receive` or `transmit`.
        direction: &'static str,
        /// Requested.
        wanted: u16,
        /// The device's limit.
        max: u16,
    },
    /// A device whose queues come in pairs.
    #[error("{device} needs as many transmit as receive queues, not {tx} and {rx}")]
    UnequalQueues {
        /// The device argument.
        device: DeviceArg,
        /// Requested receive queues.
        rx: u16,
        /// Requested transmit queues.
        tx: u16,
    },
    /// The MTU is outside what the device takes.
    #[error("{device} takes an MTU of {min} to {max}, not {wanted}{hint}")]
    Mtu {
        /// The device argument.
        device: DeviceArg,
        /// Requested.
        wanted: u16,
        /// The device's lower limit.
        min: u16,
        /// The device's upper limit.
        max: u16,
        /// What to do about it, for drivers whose limit is a setting.
        hint: &'static str,
    },
    /// The host's interface behind the device passes less than the port is to pass.
    #[error(
        "{device}: the interface {interface} has an MTU of {current}, less than {wanted}; raise it \
         (ip link set dev {interface} mtu {wanted}) or lower the bridge's"
    )]
    HostMtu {
        /// The device argument.
        device: DeviceArg,
        /// The host's interface.
        interface: String,
        /// Its MTU.
        current: u32,
        /// Requested.
        wanted: u16,
    },
    /// Received frames would not fit one buffer, and the device cannot spread them.
    #[error(
        "{device} cannot spread a frame over several buffers, and {needed} bytes do not fit in the \
         pool's {room}; use a larger data room or a smaller MTU"
    )]
    DataRoom {
        /// The device argument.
        device: DeviceArg,
        /// Bytes of the largest frame.
        needed: u32,
        /// Bytes of one buffer.
        room: u16,
    },
    /// A step of bringing the port up, or an operation on it, failed.
    #[error("{device}: {step} failed: {errno}{said}")]
    Step {
        /// The device argument.
        device: DeviceArg,
        /// What was tried.
        step: &'static str,
        /// DPDK's error number.
        errno: Errno,
        /// DPDK's log lines.
        said: Said,
    },
}

/// Drivers return a bare -1 for whatever goes wrong, which reads as a missing permission.
fn probe_reason(errno: Errno) -> String {
    match errno.get() {
        1 => "its driver refused".into(),
        _ => errno.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_sentences() {
        let error = PortError::Queues {
            device: "net_tap0".parse().unwrap(),
            direction: "receive",
            wanted: 40,
            max: 16,
        };
        assert_eq!(
            error.to_string(),
            "net_tap0 takes 1 to 16 receive queues, not 40; set the port's queues to at most 16"
        );
        let error = PortError::Step {
            device: "net_tap0".parse().unwrap(),
            step: "starting",
            errno: Errno::from_return(-libc::ENODEV),
            said: Said(vec!["one".into(), "two".into()]),
        };
        assert_eq!(
            error.to_string(),
            "net_tap0: starting failed: No such device (errno 19); DPDK says: one / two"
        );
    }

    #[test]
    fn no_return_value_overflows() {
        assert_eq!(Errno::from_return(i32::MIN).get(), i32::MAX);
        assert_eq!(Errno::from_return(5).get(), 5);
    }
}
