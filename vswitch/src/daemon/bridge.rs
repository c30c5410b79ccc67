//! A bridge as the main thread keeps it: its place, its configuration and its table.

use vswitch_api::config;
use vswitch_packet::MacAddr;

use crate::forward::fdb::{CoarseSecond, FdbWriter, Learned};
use crate::forward::snapshot::BridgeSpec;
use crate::forward::{BridgeIndex, PortRef, Vid};

/// See the module's page.
pub struct Bridge {
    /// Its place in the snapshot.
    pub index: BridgeIndex,
    /// Its part of the configuration.
    pub config: config::Bridge,
    /// Which port an address is behind.
    pub fdb: FdbWriter,
}

impl Bridge {
    /// An empty bridge.
    pub fn new(index: BridgeIndex, config: config::Bridge) -> Self {
        let fdb = FdbWriter::new(config.mac_table_limit as usize, super::secret());
        Bridge { index, config, fdb }
    }

    /// What workers see of it.
    pub fn spec(&self) -> BridgeSpec {
        BridgeSpec {
            mtu: u32::from(self.config.mtu),
            fdb: self.fdb.table(),
        }
    }

    /// Takes up its configuration anew. Static addresses of the old one are forgotten, those of the new one are taken
    /// up with [`pin_static`](Self::pin_static). A table of another size starts empty, but for static entries.
    pub fn reconfigure(&mut self, config: config::Bridge) {
        for entry in &self.config.static_macs {
            let vid = Vid(entry.vlan.map_or(0, config::VlanId::get));
            self.fdb.remove(vid, MacAddr(entry.mac.0));
        }
        if config.mac_table_limit != self.config.mac_table_limit {
            let mut fdb = FdbWriter::new(config.mac_table_limit as usize, super::secret());
            for e in self.fdb.entries().into_iter().filter(|e| e.is_static) {
                fdb.insert(e.vid, e.mac, e.port, e.seen, true);
            }
            self.fdb = fdb;
        }
        self.config = config;
    }

    /// Static addresses of the configuration that are behind this port.
    pub fn pin_static(&mut self, port_name: &str, port: PortRef, now: CoarseSecond) {
        for entry in self
            .config
            .static_macs
            .iter()
            .filter(|m| m.port == port_name)
        {
            let vid = Vid(entry.vlan.map_or(0, config::VlanId::get));
            self.fdb.insert(vid, MacAddr(entry.mac.0), port, now, true);
        }
    }

    /// A worker saw an address.
    pub fn learn(&mut self, vid: Vid, mac: MacAddr, port: PortRef, now: CoarseSecond) -> Learned {
        self.fdb.insert(vid, mac, port, now, false)
    }

    /// Forgets what is old, and what is behind ports that are gone.
    pub fn age(&mut self, now: CoarseSecond, alive: impl Fn(PortRef) -> bool) {
        let ageing = match self.config.mac_ageing {
            0 => u32::MAX,
            seconds => seconds,
        };
        self.fdb.age(now, ageing, alive);
    }
}
