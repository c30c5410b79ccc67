//! How a guest is to be: the choices before it starts.

use std::time::Duration;

use crate::driver::{Mode, RxOptions, Shape, TxOptions};
use crate::endpoint::{Endpoint, Role};
use crate::features::{protocol, virtio};
use crate::guest::{GuestError, SimGuest};
use crate::memory::Layout;

/// Habits of front-ends that differ between implementations; the default is QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quirks {
    /// SET_VRING_ENABLE is sent before SET_FEATURES and not again; else after the rings are started.
    pub early_enable: bool,
    /// Rings are kicked once when they are started.
    pub kick_at_start: bool,
    /// Rings are given no kick descriptor: the switch must poll.
    pub no_kick_fd: bool,
    /// Rings are given no call descriptor.
    pub no_call_fd: bool,
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            early_enable: true,
            kick_at_start: false,
            no_kick_fd: false,
            no_call_fd: false,
        }
    }
}

/// How a guest is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) role: Role,
    pub(crate) mac: [u8; 6],
    pub(crate) pairs: u16,
    pub(crate) features: u64,
    pub(crate) protocol: u64,
    pub(crate) layout: Option<Layout>,
    pub(crate) tx: TxOptions,
    pub(crate) rx: RxOptions,
    pub(crate) quirks: Quirks,
    pub(crate) timeout: Duration,
}

impl Builder {
    /// A modern guest with one queue pair, merged buffers, event indices, indirect descriptors, no offloads, polling.
    pub fn new(role: Role) -> Self {
        let ring = virtio::MRG_RXBUF | virtio::INDIRECT_DESC | virtio::EVENT_IDX;
        Self {
            role,
            mac: [2, 0, 0, 0, 0, 1],
            pairs: 1,
            features: virtio::VERSION_1 | virtio::MQ | ring,
            protocol: protocol::ALL,
            layout: None,
            tx: TxOptions::default(),
            rx: RxOptions::default(),
            quirks: Quirks::default(),
            timeout: Duration::from_secs(60),
        }
    }

    /// Its address (what [`SimGuest::mac`] returns; the device itself has none).
    #[must_use]
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = mac;
        self
    }

    /// Queue pairs.
    #[must_use]
    pub fn pairs(mut self, pairs: u16) -> Self {
        self.pairs = pairs.clamp(1, 128);
        self
    }

    /// Entries of every ring.
    #[must_use]
    pub fn ring_size(mut self, size: u16) -> Self {
        self.tx.size = size;
        self.rx.size = size;
        self
    }

    /// Virtio features the guest takes if they are offered, replacing the default set.
    #[must_use]
    pub fn features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    /// More virtio features.
    #[must_use]
    pub fn with(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// Fewer virtio features.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    /// Protocol features the VMM takes if they are offered.
    #[must_use]
    pub fn protocol(mut self, features: u64) -> Self {
        self.protocol = features;
        self
    }

    /// How guest memory is cut; by default one region that is large enough.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = Some(layout);
        self
    }

    /// Bytes of each receive buffer, header included.
    #[must_use]
    pub fn rx_buffer(mut self, bytes: u32) -> Self {
        self.rx.buffer = Some(bytes);
        self
    }

    /// How receive buffers are cut.
    #[must_use]
    pub fn rx_shape(mut self, shape: Shape) -> Self {
        self.rx.shape = shape;
        self
    }

    /// Everything about transmit queues.
    #[must_use]
    pub fn tx_options(mut self, options: TxOptions) -> Self {
        self.tx = options;
        self
    }

    /// Everything about receive queues.
    #[must_use]
    pub fn rx_options(mut self, options: RxOptions) -> Self {
        self.rx = options;
        self
    }

    /// Polling or interrupts, on all queues.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.tx.mode = mode;
        self.rx.mode = mode;
        self
    }

    /// Habits of the front-end.
    #[must_use]
    pub fn quirks(mut self, quirks: Quirks) -> Self {
        self.quirks = quirks;
        self
    }

    /// Limit for connecting and for every answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects (or waits to be connected), negotiates, starts all rings, enables all queue pairs.
    pub fn start(self) -> Result<SimGuest, GuestError> {
        let endpoint = Endpoint::new(self.role.clone())?;
        SimGuest::boot(self, endpoint)
    }

    /// The same with a listening socket that is already there.
    pub fn start_at(self, endpoint: Endpoint) -> Result<SimGuest, GuestError> {
        SimGuest::boot(self, endpoint)
    }

    /// Memory that is enough for all queues.
    pub(crate) fn memory_needed(&self, features: u64) -> u64 {
        let ring = |size: u16, table: u16, buffer: u64| {
            let size = u64::from(size.clamp(1, 1 << 15).next_power_of_two());
            size * (16 + 2 + 8 + 16 * u64::from(table.max(1)) + buffer) + (128 << 10)
        };
        let tx = ring(
            self.tx.size,
            self.tx.table_len,
            u64::from(self.tx.buffer) + 192,
        ) + self.tx.large as u64 * (96 << 10);
        let rx = ring(
            self.rx.size,
            self.rx.table_len,
            u64::from(self.rx.storage(features)) + 192,
        );
        u64::from(self.pairs) * (tx + rx) + (1 << 20)
    }
}
