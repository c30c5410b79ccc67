//! A guest with one queue pair, and the switch's ends of its rings.

use std::sync::Arc;

use vswitch_simguest::driver::{Notifier, Ring, RxQueue, TxQueue};
use vswitch_simguest::memory::Memory;
use vswitch_vhost::memory::{GuestAddr, GuestMemory, Region, RegionSpec, UserAddr};
use vswitch_vhost::{QueuePair, RxRing, Standalone, TxRing};

use crate::contestant::{Rings, guest_layout, queue_options};
use crate::generator::Ends;
use crate::{Error, Result};

/// See the module's page. The memory is mapped a second time, as the switch maps it when a session announces it.
#[derive(Debug)]
pub struct Guest {
    /// The driver's ends.
    pub ends: Ends,
    /// The switch's end of the ring in which the guest sends.
    pub transmit: TxRing,
    /// The switch's end of the ring in which it receives.
    pub receive: RxRing,
}

impl Guest {
    /// Lays the rings out and starts both ends.
    pub fn new(rings: Rings) -> Result<Self> {
        let features = rings.features();
        let memory = Memory::new(&guest_layout())?;
        let notifier = || Notifier::new().map_err(Error::io("make event descriptors"));
        let (tx, rx) = queue_options();
        let tx = TxQueue::new(&memory, notifier()?, features, &tx)?;
        let rx = RxQueue::new(&memory, notifier()?, features, &rx)?;
        let mapped = Arc::new(map(&memory)?);
        let ring = |ring: &Ring, notifier: &Notifier| -> Result<Standalone> {
            let at = ring.parts().addresses();
            let call = notifier.call_fd().try_clone_to_owned();
            Ok(Standalone {
                pair: QueuePair(0),
                memory: Arc::clone(&mapped),
                descriptors: UserAddr(at.desc),
                available: UserAddr(at.avail),
                used: UserAddr(at.used),
                size: ring.size(),
                features,
                call: Some(Arc::new(
                    call.map_err(Error::io("copy an event descriptor"))?,
                )),
            })
        };
        let transmit = TxRing::standalone(&ring(tx.ring(), tx.notifier())?)?;
        let receive = RxRing::standalone(&ring(rx.ring(), rx.notifier())?)?;
        Ok(Self {
            ends: Ends { tx, rx },
            transmit,
            receive,
        })
    }
}

/// The switch's view of a guest's memory.
fn map(memory: &Memory) -> Result<GuestMemory> {
    let mut table = GuestMemory::empty();
    for region in memory.regions() {
        let spec = RegionSpec {
            guest: GuestAddr(region.guest()),
            size: region.size(),
            user: UserAddr(region.user()),
            offset: region.file_offset(),
        };
        let region = Region::map(spec, region.fd())?;
        table = table.with(Arc::new(region))?;
    }
    Ok(table)
}
