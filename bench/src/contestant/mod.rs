//! Who is measured. All of them do the same job: take what guest A sends and give it to guest B, with
//! one data thread on the worker's CPU, polling.

use std::path::PathBuf;
use std::time::Duration;

use vswitch_simguest::driver::{RxOptions, TxOptions};
use vswitch_simguest::{Builder, SimGuest};

use crate::Result;
use crate::generator::{Ends, FEATURES, LONGEST, MAC_A, MAC_B, RING_SIZE, Wire};

pub use mover::Mover;
pub use ovs::{Ovs, Rules};
pub use switch::{Switch, built};
pub use testpmd::Testpmd;

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

mod mover;
mod ovs;
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

/// How long a contestant may take until it serves a guest's session.
const SESSION_LIMIT: Duration = Duration::from_secs(30);

/// Both guests, connected; their queues are taken out.
struct Guests {
    wire: Wire,
    // The sessions, which must live as long as the wire is used.
    _sessions: [SimGuest; 2],
}

impl Guests {
    /// Guests whose contestant listens.
    fn connect(sockets: &[PathBuf; 2], introduce: bool) -> Result<Self> {
        Self::boot(sockets.each_ref().map(SimGuest::connect_to), introduce)
    }

    /// Guests that listen, one after the other, until their contestant has connected.
    fn listen(sockets: &[PathBuf; 2], introduce: bool) -> Result<Self> {
        Self::boot(sockets.each_ref().map(SimGuest::listen_on), introduce)
    }

    /// A NIC listens whatever the contestant; at its other port the guest does.
    fn nic([a, b]: &[PathBuf; 2], introduce: bool) -> Result<Self> {
        Self::boot([SimGuest::connect_to(a), SimGuest::listen_on(b)], introduce)
    }

    fn boot([a, b]: [Builder; 2], introduce: bool) -> Result<Self> {
        let boot = |builder, mac| -> Result<_> {
            let mut guest = options(builder).mac(mac).start()?;
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
        .features(FEATURES)
        .tx_options(tx)
        .rx_options(rx)
        .timeout(SESSION_LIMIT)
}

fn queue_options() -> (TxOptions, RxOptions) {
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
