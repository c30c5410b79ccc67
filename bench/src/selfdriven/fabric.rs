//! A bridge with guests on it, and the workers that serve them.

use std::sync::Arc;

use vswitch::forward::counters::Totals;
use vswitch::forward::deliver::Context;
use vswitch::forward::fdb::{CoarseSecond, FdbWriter};
use vswitch::forward::learn::{self, LearnMailbox};
use vswitch::forward::share::{Share, Sharing};
use vswitch::forward::snapshot::{BridgeSpec, Coalesce, GuestQueues, Output, PortSpec};
use vswitch::forward::vlan::VlanRule;
use vswitch::forward::{BridgeIndex, Forwarder, Port, PortIndex, PortRef, Snapshot, Vid};
use vswitch::worker::{self, serve};
use vswitch_flowtable::Micros;
use vswitch_packet::{Accepts, MacAddr};
use vswitch_vhost::{RxRing, TxRing, TxScratch};

use crate::{Error, Result};

/// Largest layer 3 packet of the bridge.
const MTU: u32 = 1500;
/// Addresses that the bridge has room for.
const ADDRESSES: usize = 16 << 10;
/// Keys of the FDB's hash and of a flow's queue, which there is but one of.
const SEED: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

/// One bridge that learns, all ports untagged on it, nobody capturing.
pub struct Fabric {
    snapshot: Arc<Snapshot>,
    fdb: FdbWriter,
    learn: Arc<LearnMailbox>,
}

impl Fabric {
    /// With a port for each of these receive rings, in their order, for so many workers.
    pub fn new(receive: Vec<RxRing>, workers: usize) -> Result<Self> {
        let fdb = FdbWriter::new(ADDRESSES, SEED);
        let port = |(index, ring): (usize, RxRing)| {
            let queues = GuestQueues::new(1, [7; 16]);
            queues.replace(0, Some(ring));
            Some(PortSpec {
                at: place(index),
                name: format!("guest{index}").into(),
                bridge: BridgeIndex(0),
                vlan: VlanRule::untagged(),
                learning: true,
                admin_up: true,
                offloads: Accepts::default(),
                coalesce: Coalesce::default(),
                output: Output::Guest(Arc::new(queues)),
                counters: (0..workers).map(|_| Arc::default()).collect(),
            })
        };
        let ports = receive.into_iter().enumerate().map(port).collect();
        let bridge = BridgeSpec {
            mtu: MTU,
            fdb: fdb.table(),
        };
        let learn = LearnMailbox::new(learn::QUEUE).map_err(Error::io("make a mailbox"))?;
        Ok(Self {
            snapshot: Arc::new(Snapshot::new(ports, vec![Some(bridge)], None)),
            fdb,
            learn: Arc::new(learn),
        })
    }

    /// From now on this address is known to be behind that port, as if the port had sent from it.
    pub fn know(&mut self, mac: [u8; 6], port: usize) {
        let now = CoarseSecond(0);
        self.fdb
            .insert(Vid(0), MacAddr(mac), place(port), now, false);
    }

    /// The state of a worker, which counts in the place of its own that it has at every port.
    pub fn worker(&self, index: usize) -> Worker<'_> {
        let mut forwarder = Forwarder::new(index, Arc::clone(&self.learn));
        forwarder.adopt(&self.snapshot);
        Worker {
            fabric: self,
            forwarder,
            scratch: TxScratch::new(),
        }
    }

    /// Whether the switch did what is to be measured, whatever became of frames in full rings: every frame was let in
    /// and went to one port, because its addresses were known.
    pub fn checked(&self) -> Result<()> {
        let mut totals = Totals::default();
        for port in self.ports() {
            let of_port = Totals::of(port.counters.iter());
            totals.received += of_port.received;
            totals.copies += of_port.copies;
            totals.switched += of_port.switched;
        }
        let Totals {
            received,
            copies,
            switched,
            ..
        } = totals;
        if received != switched || copies != switched || self.learn.has_mail() {
            return Err(Error::Astray {
                received,
                switched,
                copies,
            });
        }
        Ok(())
    }

    /// Frames let in that found their way out closed, which a full ring is.
    pub fn dropped(&self) -> u64 {
        let totals = self.ports().map(|port| Totals::of(port.counters.iter()));
        totals.flat_map(|totals| totals.output_drops).sum()
    }

    fn ports(&self) -> impl Iterator<Item = &Arc<Port>> {
        let bridge = self.snapshot.bridge(BridgeIndex(0));
        bridge.into_iter().flat_map(|bridge| &bridge.members)
    }
}

fn place(index: usize) -> PortRef {
    PortRef {
        // Guests are few.
        index: PortIndex(index as u16),
        incarnation: 0,
    }
}

/// What a worker of the daemon has, for one thread.
pub struct Worker<'f> {
    fabric: &'f Fabric,
    forwarder: Forwarder,
    scratch: TxScratch,
}

impl<'f> Worker<'f> {
    /// Serves a burst out of the ring of this port's guest; says how many frames that were.
    #[inline(never)]
    pub fn serve(
        &mut self,
        port: usize,
        ring: &mut TxRing,
        second: u32,
        steps: &mut impl worker::Steps,
    ) -> usize {
        let Some(context) = self.context(port, second) else {
            return 0;
        };
        serve(ring, context, &mut self.forwarder, &mut self.scratch, steps)
    }

    /// The same of a ring that another worker helps with. After the last of it the ring is to be [drained](Self::drain).
    #[inline(never)]
    pub fn serve_shared(
        &mut self,
        port: usize,
        ring: &mut TxRing,
        second: u32,
        sharing: &mut Sharing,
    ) -> usize {
        let context = self.context(port, second);
        context.map_or(0, |context| {
            sharing.serve(
                ring,
                context,
                &self.fabric.snapshot,
                &mut self.forwarder,
                &mut self.scratch,
            )
        })
    }

    /// Writes its part of what another worker has taken; false if nothing waits.
    #[inline(never)]
    pub fn help(&mut self, share: &Share) -> bool {
        share.help(&mut self.forwarder, 0)
    }

    /// Waits for the helper, which must go on until then.
    pub fn drain(&mut self, port: usize, ring: &mut TxRing, sharing: &mut Sharing) {
        let sender = self.context(port, 0);
        let sender = sender.map(|context| context.sender(self.forwarder.worker()));
        sharing.drain(ring, sender);
    }

    fn context(&self, port: usize, second: u32) -> Option<Context<'f>> {
        let snapshot: &'f Snapshot = &self.fabric.snapshot;
        Some(Context {
            snapshot,
            ingress: snapshot.live(place(port))?,
            now: CoarseSecond(second),
            micros: Micros(0),
            nanos: 0,
            drained: false,
            pair: Some(0),
            discard: None,
        })
    }
}
