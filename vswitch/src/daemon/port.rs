//! A port as the main thread keeps it.

use std::sync::Arc;
use std::time::SystemTime;

use vswitch_api::config::{self, AdminLink, Vlan};
use vswitch_api::rpc::{Origin, Rates};
use vswitch_packet::{Accepts, VlanId};

use super::coalesce;
use super::guest::GuestPort;
use crate::forward::counters::{PortCounters, Totals};
use crate::forward::snapshot::{Coalesce, GuestQueues, Output, PortSpec};
use crate::forward::vlan::VlanRule;
use crate::forward::{BridgeIndex, PortRef};

/// What a port is attached to.
#[cfg_attr(
    not(feature = "dpdk"),
    expect(clippy::large_enum_variant, reason = "there is one for each port")
)]
pub enum Attachment {
    /// A guest.
    Guest(GuestPort),
    /// Nothing: the device could not be opened. What is sent there is dropped.
    Absent(Arc<GuestQueues>),
    /// A DPDK device.
    #[cfg(feature = "dpdk")]
    Nic(crate::nic::NicPort),
}

impl Attachment {
    /// Nothing.
    pub fn absent() -> Self {
        Attachment::Absent(Arc::new(GuestQueues::new(1, [0; 16])))
    }
}

/// See the module's page.
pub struct Port {
    /// Its identity.
    pub at: PortRef,
    /// Its name.
    pub name: Arc<str>,
    /// Its part of the configuration.
    pub config: config::Port,
    /// From the file, or from `port add`.
    pub origin: Origin,
    /// What the operator wants now; the configuration says what it was at the start.
    pub admin: AdminLink,
    /// What is on the other side.
    pub attachment: Attachment,
    /// A block for each worker, by its number.
    pub counters: Arc<[Arc<PortCounters>]>,
    /// Why it does not work, if it was to be opened again and could not.
    pub failure: Option<String>,
    /// When it was made.
    pub made: SystemTime,
    /// What it does a second.
    pub rates: Rates,
    /// Calls a second, for frames delivered and for buffers given back.
    pub call_rates: (f64, f64),
    last: Totals,
}

impl Port {
    /// A port that is not open yet.
    pub fn new(
        at: PortRef,
        name: Arc<str>,
        config: config::Port,
        origin: Origin,
        attachment: Attachment,
        workers: usize,
    ) -> Self {
        Port {
            at,
            name,
            admin: config.link,
            config,
            origin,
            attachment,
            counters: (0..workers).map(|_| Arc::default()).collect(),
            failure: None,
            made: SystemTime::now(),
            rates: Rates::default(),
            call_rates: (0.0, 0.0),
            last: Totals::default(),
        }
    }

    /// What workers see of it.
    pub fn spec(&self, bridge: BridgeIndex) -> PortSpec {
        PortSpec {
            at: self.at,
            name: Arc::clone(&self.name),
            bridge,
            vlan: vlan_rule(&self.config.vlan),
            learning: self.config.learning,
            admin_up: self.admin == AdminLink::Up,
            offloads: match &self.attachment {
                Attachment::Guest(guest) => guest.may_leave(),
                _ => Accepts::default(),
            },
            coalesce: match &self.attachment {
                Attachment::Guest(guest) => coalesce::settings(&guest.config().coalesce),
                _ => Coalesce::default(),
            },
            output: match &self.attachment {
                Attachment::Guest(guest) => Output::Guest(Arc::clone(&guest.queues)),
                Attachment::Absent(nowhere) => Output::Guest(Arc::clone(nowhere)),
                #[cfg(feature = "dpdk")]
                Attachment::Nic(nic) => Output::Nic(nic.output()),
            },
            counters: Arc::clone(&self.counters),
        }
    }

    /// Makes room for the counters of more workers, from the next snapshot on. What was counted stays.
    pub fn grow_counters(&mut self, workers: usize) {
        if workers > self.counters.len() {
            let new = (self.counters.len()..workers).map(|_| Arc::default());
            self.counters = self.counters.iter().cloned().chain(new).collect();
        }
    }

    /// Its counters, added up.
    pub fn totals(&self) -> Totals {
        Totals::of(self.counters.iter())
    }

    /// Measures rates since the last time.
    pub fn sample(&mut self, seconds: f64) {
        let now = self.totals();
        let rate = |new: u64, old: u64| new.wrapping_sub(old) as f64 / seconds;
        self.rates = Rates {
            rx_pps: rate(now.received, self.last.received),
            rx_bps: rate(now.received_bytes, self.last.received_bytes) * 8.0,
            tx_pps: rate(now.delivered, self.last.delivered),
            tx_bps: rate(now.delivered_bytes, self.last.delivered_bytes) * 8.0,
        };
        self.call_rates = (
            rate(now.rx_calls, self.last.rx_calls),
            rate(now.tx_calls, self.last.tx_calls),
        );
        self.last = now;
    }

    /// The guest's side, if it has one.
    pub fn guest_mut(&mut self) -> Option<&mut GuestPort> {
        match &mut self.attachment {
            Attachment::Guest(guest) => Some(guest),
            _ => None,
        }
    }
}

/// The rule for a port's `vlan`.
pub fn vlan_rule(vlan: &Vlan) -> VlanRule {
    // Both types hold 1 to 4094, so nothing is lost on the way; if it were, the port would carry less, not more.
    let id = |v: config::VlanId| VlanId::new(v.get());
    match vlan {
        Vlan::Untagged => VlanRule::untagged(),
        Vlan::Access(v) => id(*v).map_or_else(|| VlanRule::trunk([], None), VlanRule::access),
        Vlan::Trunk { allowed, native } => {
            let vlans = allowed.iter().flat_map(|range| range.iter()).filter_map(id);
            VlanRule::trunk(vlans, native.and_then(id))
        }
    }
}
