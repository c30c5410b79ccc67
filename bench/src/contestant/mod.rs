//! Who is measured. All of them do the same job: take what guest A sends and give it to guest B, with
//! one data thread on the worker's CPU, polling.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Serialize;
use vswitch_simguest::driver::{RxOptions, TxOptions};
use vswitch_simguest::features::virtio::RING_PACKED;
use vswitch_simguest::memory::Layout;
use vswitch_simguest::{Builder, SimGuest};

use crate::cpu::Placement;
use crate::generator::{Ends, FEATURES, LONGEST, MAC_A, MAC_B, RING_SIZE, Wire};
use crate::{Error, Result, machine};

pub use mover::{Mover, between_guests};
pub use ovs::{Ovs, Rules};
pub use switch::{Switch, built};
pub use testpmd::Testpmd;

pub mod host;
pub mod moderated;
mod mover;
pub mod ovs;
pub mod pair;
mod switch;
mod testpmd;

/// One that can be measured.
///
/// It is started once and then stands still except in its slices. The drop ends it, whatever state it
/// is in.
pub trait Contestant {
    /// What tables call it.
    fn name(&self) -> &'static str;
    /// What exactly it is: version, options.
    fn describe(&self) -> String;
    /// Stops it where it is; returns when it stands still.
    fn stop(&mut self) -> Result<()>;
    /// Lets it run on.
    fn resume(&mut self) -> Result<()>;
    /// Its guests' queues.
    fn wire(&mut self) -> &mut Wire;
    /// Folders in `/proc` of the threads that must not be disturbed.
    fn tasks(&self) -> Vec<PathBuf>;
    /// Says more about an error: what the contestant's own log has to tell.
    fn explain(&mut self, error: crate::Error) -> crate::Error {
        error
    }
}

/// What contestants and their guests are started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Which CPUs are used.
    pub placement: Placement,
    /// Layout of the guests' rings.
    pub rings: Rings,
    /// Frames are longer than [`PLAIN`]; peers give that away for speed unless they are asked for it.
    pub jumbo: bool,
    /// What guest A's side is.
    pub near: Near,
}

/// What guest A's side of a contestant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// A vhost-user port of the contestant's own.
    Guest,
    /// A port on a device of DPDK, as a NIC would be: its vhost driver, `net_vhost`, which runs in the
    /// contestant. What guest A does is then what a wire does.
    Nic,
}

impl Near {
    /// The device argument of a NIC that listens on this socket.
    fn device(socket: &std::path::Path) -> String {
        format!("net_vhost0,iface={}", socket.display())
    }
}

/// Layout of a guest's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rings {
    /// Split virtqueues (virtio 1.2, section 2.7).
    Split,
    /// Packed virtqueues (section 2.8).
    Packed,
}

impl Rings {
    /// What guests with such rings negotiate.
    pub fn features(self) -> u64 {
        match self {
            Rings::Split => FEATURES,
            Rings::Packed => FEATURES | RING_PACKED,
        }
    }
}

/// Longest frame that everybody takes without being asked to, bytes.
pub const PLAIN: usize = 1518;
/// Largest packet in a jumbo frame, bytes.
const JUMBO_MTU: usize = 9000;

/// Bytes of memory of each guest.
const GUEST_MEMORY: u64 = 32 << 20;
/// Free huge pages that are enough: two guests for each of six contestants, and those of testpmd and two
/// of OVS.
const ENOUGH: u64 = 2 * 6 * (GUEST_MEMORY >> 21) + testpmd::HUGEPAGES + 2 * ovs::HUGEPAGES;

/// How long a contestant may take until it serves a guest's session.
const SESSION_LIMIT: Duration = Duration::from_secs(30);

/// Both guests, connected; their queues are taken out.
struct Guests {
    wire: Wire,
    // The sessions, which must live as long as the wire is used.
    _sessions: [SimGuest; 2],
}

impl Setup {
    /// What the guests negotiate.
    fn features(&self) -> u64 {
        self.rings.features()
    }
}

impl Guests {
    /// Guests whose contestant listens.
    fn connect(setup: Setup, sockets: &[PathBuf; 2], introduce: bool) -> Result<Self> {
        let builders = sockets.each_ref().map(SimGuest::connect_to);
        Self::boot(setup, builders, introduce)
    }

    /// Guests that listen, one after the other, until their contestant has connected.
    fn listen(setup: Setup, sockets: &[PathBuf; 2], introduce: bool) -> Result<Self> {
        let builders = sockets.each_ref().map(SimGuest::listen_on);
        Self::boot(setup, builders, introduce)
    }

    /// A NIC listens whatever the contestant; at its other port the guest does.
    fn nic(setup: Setup, [a, b]: &[PathBuf; 2], introduce: bool) -> Result<Self> {
        let builders = [SimGuest::connect_to(a), SimGuest::listen_on(b)];
        Self::boot(setup, builders, introduce)
    }

    fn boot(setup: Setup, [a, b]: [Builder; 2], introduce: bool) -> Result<Self> {
        let boot = |builder: Builder, mac| -> Result<_> {
            let builder = options(builder).features(setup.features()).mac(mac);
            let mut guest = builder.start()?;
            if setup.rings == Rings::Packed && guest.negotiated().virtio & RING_PACKED == 0 {
                return Err(Error::SplitOnly);
            }
            let pair = guest.take_queue(0)?;
            Ok((
                guest,
                Ends {
                    tx: pair.tx,
                    rx: pair.rx,
                },
            ))
        };
        let (guest_a, a) = boot(a, MAC_A)?;
        let (guest_b, b) = boot(b, MAC_B)?;
        Ok(Self {
            wire: Wire { a, b, introduce },
            _sessions: [guest_a, guest_b],
        })
    }
}

fn options(builder: Builder) -> Builder {
    let (tx, rx) = queue_options();
    builder
        .layout(guest_layout())
        .tx_options(tx)
        .rx_options(rx)
        .timeout(SESSION_LIMIT)
}

/// Guest memory, for all contestants alike: on huge pages if there are enough for all of them and for what peers take
/// themselves, which is decided once.
pub(crate) fn guest_layout() -> Layout {
    static HUGE: OnceLock<bool> = OnceLock::new();
    let layout = Layout::single(GUEST_MEMORY);
    if *HUGE.get_or_init(|| machine::free_hugepages() >= ENOUGH) {
        layout.huge()
    } else {
        layout
    }
}

/// Whether guests lie on huge pages, in words.
pub fn guest_pages() -> &'static str {
    if guest_layout().huge {
        "huge pages of 2 MiB"
    } else {
        "ordinary pages"
    }
}

pub(crate) fn queue_options() -> (TxOptions, RxOptions) {
    let tx = TxOptions {
        size: RING_SIZE,
        // Room for the longest frame and the header before it.
        buffer: LONGEST.next_multiple_of(64) as u32 + 64,
        ..TxOptions::default()
    };
    let rx = RxOptions {
        size: RING_SIZE,
        ..RxOptions::default()
    };
    (tx, rx)
}

fn sockets(dir: &std::path::Path) -> [PathBuf; 2] {
    ["a.sock", "b.sock"].map(|name| dir.join(name))
}
