//! Safe layer over DPDK: what a switch needs of it, and nothing more.
//!
//! # How it fits together
//!
//! [`Eal::init`] starts DPDK, once per process; the [`Eal`] it returns is the proof of that, which
//! everything else asks for. A [`Mempool`] holds packet buffers. [`Device::probe`] finds the NIC,
//! physical or virtual, behind a device argument and says what it can do; [`Device::start`]
//! makes a [`Port`] of it, with one [`RxQueue`] and [`TxQueue`] per queue. Queues are values: each
//! is moved to the worker that polls it and polled through `&mut`, so that two threads cannot
//! poll one queue. The device is stopped and detached when the port and the last of its queues
//! are dropped, on the thread that drops last: give queues back to the control side for that.
//!
//! Frames travel as [`MbufBurst`], at most [`BURST`] at a time. An [`Mbuf`] frees itself. To send
//! bytes that are not in packet buffers yet, a worker keeps a [`Stock`] and has it build frames.
//!
//! # Privileges and memory
//!
//! By default nothing is needed: no hugepages, no root, no NIC. A PCI device needs the PCI bus and
//! hugepages, which [`EalConfig::for_devices`] turns on; a tap or packet socket needs a capability.
//! Errors say so. DPDK's own messages go to `tracing`, target `dpdk`, and the last of them are part
//! of the errors here, because DPDK's error numbers seldom say enough.
//!
//! # Limits
//!
//! | what | limit |
//! | --- | --- |
//! | EAL | one per process, never stopped: DPDK cannot start twice |
//! | ports | 32 (Debian's build) |
//! | threads registered with [`ThreadGuard`] | 127, together with the one that started EAL |
//! | usable CPUs | numbers below 128 |
//! | frames per burst | 32 |
//! | frame built by a [`Stock`] | 65,535 + 18 bytes |
//! | pools | never freed before the process ends |
//!
//! # Soundness
//!
//! DPDK trusts its caller. What this crate adds: queues have one owner, buffers have one owner and
//! never outlive their pool (pools are not freed), control calls on ports are serialised by one
//! lock, and lengths that drivers report are clamped to the buffer before they become slices.

mod attachment;
mod burst;
mod caps;
mod device;
mod eal;
mod error;
mod log;
mod mbuf;
mod mempool;
mod port;
mod queue;
mod rss;
mod stock;
mod wake;

pub use burst::{BURST, MbufBurst};
pub use caps::{Capabilities, RxCapabilities, TxCapabilities};
pub use device::{Bus, DeviceArg, DeviceArgError, needs_pci};
pub use eal::{Eal, EalConfig, ThreadGuard};
pub use error::{EalError, Errno, MempoolError, PortError, Said, ThreadError};
pub use mbuf::{Checksum, IpVersion, Mbuf, OffloadError, Segments, Transport, TxOffload};
pub use mempool::{Demand, Mempool, MempoolConfig};
pub use port::{Device, Link, Port, PortConfig, PortId, PortStats, StartedPort};
pub use queue::{QueueId, RxQueue, TxOutcome, TxQueue};
pub use rss::{HashTypes, Reta, RssKey, RssState};
pub use stock::{FrameError, Stock};
pub use wake::Wake;
