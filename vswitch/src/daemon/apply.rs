//! Changing the whole configuration: checked, prepared, and only then made.
//!
//! A port is *made anew* if it is new, if its change cannot be made while somebody is attached, or if it could not be
//! opened the last time. Sockets and devices of ports made anew are opened before anything is touched, so a refusal
//! leaves everything as it was. The exception are sockets and devices that a port of the old configuration still holds:
//! they can be opened only when that port is gone. If that fails the port stays, marked as failed, and the answer says so.

use vswitch_api::config::{self, Config, Effect, Plan, Subject};
use vswitch_api::rpc::{Origin, RpcError, code};

use super::bridge::Bridge;
use super::port::Port;
use super::switch::{Switch, duties, mtu_of, resource, wanted_workers};
use super::watch::Watch;
use crate::forward::{BridgeIndex, MAX_BRIDGES};
use crate::worker::registry::Change;

impl Switch {
    /// Makes the ports and bridges of the file what `new` says. Ports of `port add` stay.
    ///
    /// # Errors
    /// The new configuration clashes with a port of `port add`, needs a restart, or asks for a socket or device that
    /// cannot be had: nothing was changed. Or it was applied, and a port that re-uses another's socket or device could
    /// not be opened.
    pub fn apply(&mut self, new: Config, watch: &mut dyn Watch) -> Result<Plan, RpcError> {
        self.check_against_runtime_ports(&new)?;
        let plan = config::plan(&self.config, &new);
        if let Some(change) = plan.changes.iter().find(|c| c.effect == Effect::Restart) {
            return Err(RpcError::new(
                code::NEEDS_RESTART,
                format!(
                    "a change to {} takes effect only when the daemon starts; restart it, or take the change back. \
                     Nothing was applied",
                    change.subject
                ),
            ));
        }
        let anew = self.made_anew(&new, &plan);
        let workers = self.prepare_workers(&new)?;
        let (made, waiting) = match self.prepare(&new, &anew) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.workers.abandon(workers);
                return Err(error);
            }
        };

        // From here on there is no way back.
        let gone = self
            .config
            .ports
            .keys()
            .filter(|name| !new.ports.contains_key(*name));
        let gone: Vec<_> = gone.chain(&anew).cloned().collect();
        for name in gone {
            self.take_out(&name, watch);
        }
        self.apply_bridges(&new);
        for port in made {
            self.put_in(port);
        }
        for name in new.ports.keys().filter(|name| !anew.contains(name)) {
            self.change_port(name, &new, watch);
        }
        let failures: Vec<_> = waiting
            .iter()
            .filter_map(|name| self.open_freed(name, &new).err())
            .collect();
        self.config = new;
        let places = self.workers.places();
        for port in self.ports.values_mut() {
            port.grow_counters(places);
        }
        self.publish();
        // After the snapshot: what a new worker forwards it counts there.
        self.workers.commit(workers);
        self.steward.configure(duties(&self.config));
        self.set_going(anew.iter().map(String::as_str), watch);
        self.pin_static_addresses();
        if failures.is_empty() {
            return Ok(plan);
        }
        let reasons: Vec<_> = failures.into_iter().map(|e| e.message).collect();
        Err(RpcError::new(
            code::SYSTEM,
            format!(
                "the configuration was applied, but {}; the port is shown as failed and tried again at the next apply",
                reasons.join("; ")
            ),
        ))
    }

    /// Starts the workers that are new; they have nothing to do yet.
    fn prepare_workers(&self, new: &Config) -> Result<Change, RpcError> {
        let prepared = self.workers.prepare(&wanted_workers(new));
        prepared.map_err(|error| {
            RpcError::new(
                code::SYSTEM,
                format!("no more workers can be started: {error}. Nothing was applied"),
            )
        })
    }

    fn check_against_runtime_ports(&self, new: &Config) -> Result<(), RpcError> {
        let runtime = self.ports.values().filter(|p| p.origin == Origin::Runtime);
        let mut all = new.clone();
        for port in runtime {
            if new.ports.contains_key(&*port.name) {
                return Err(RpcError::new(
                    code::EXISTS,
                    format!(
                        "the file has a port \"{0}\", and `port add` made one of that name; remove that one first \
                         (vswitchctl port remove {0}), or rename the file's. Nothing was applied",
                        port.name
                    ),
                ));
            }
            all = config::add_port(&all, &port.name, port.config.clone(), &self.environment)
                .map_err(|e| RpcError::config(&e))?;
        }
        Ok(())
    }

    /// The ports that have to be made, or made again.
    fn made_anew(&self, new: &Config, plan: &Plan) -> Vec<String> {
        let reconnects = |name: &str| {
            let subject = Subject::Port(name.into());
            plan.changes
                .iter()
                .any(|c| c.subject == subject && c.effect == Effect::Reconnect)
        };
        let anew = new.ports.keys().filter(|name| match self.ports.get(*name) {
            None => true,
            Some(port) => {
                port.failure.is_some()
                    || reconnects(name)
                    || self.is_opened_for_another_mtu(port, new)
            }
        });
        anew.cloned().collect()
    }

    /// A device is opened for one size of frames; a session takes up a new one when it begins.
    fn is_opened_for_another_mtu(&self, port: &Port, new: &Config) -> bool {
        let wanted = new.ports.get(&*port.name);
        port.config.dpdk().is_some()
            && wanted.is_some_and(|w| mtu_of(new, w) != mtu_of(&self.config, &port.config))
    }

    /// Makes and opens these ports without showing them to anybody. Those that want a socket or device that is still
    /// held have to wait for it, and are returned by name.
    fn prepare(
        &mut self,
        new: &Config,
        anew: &[String],
    ) -> Result<(Vec<Port>, Vec<String>), RpcError> {
        let leaving = self
            .config
            .ports
            .iter()
            .filter(|(name, _)| anew.contains(name) || !new.ports.contains_key(*name));
        let held: Vec<_> = leaving.map(|(_, old)| resource(old).to_owned()).collect();
        let (mut made, mut waiting) = (Vec::new(), Vec::new());
        for (name, wanted) in new.ports.iter().filter(|(name, _)| anew.contains(name)) {
            if held.iter().any(|r| *r == resource(wanted)) {
                waiting.push(name.clone());
                continue;
            }
            match self.make_port(name, wanted.clone(), Origin::File, mtu_of(new, wanted)) {
                Ok(port) => made.push(port),
                Err(mut error) => {
                    for port in made {
                        self.release(&port);
                    }
                    error.message.push_str(". Nothing was applied");
                    return Err(error);
                }
            }
        }
        Ok((made, waiting))
    }

    /// Makes a port on a socket or device that has just been freed. If that cannot be, it is there as a failed one.
    fn open_freed(&mut self, name: &str, new: &Config) -> Result<(), RpcError> {
        let Some(wanted) = new.ports.get(name) else {
            return Ok(());
        };
        let mtu = mtu_of(new, wanted);
        match self.make_port(name, wanted.clone(), Origin::File, mtu) {
            Ok(port) => {
                self.put_in(port);
                Ok(())
            }
            Err(error) => {
                tracing::error!(port = name, %error, "the port could not be opened");
                let port = self.make_failed_port(name, wanted.clone(), mtu, &error)?;
                self.put_in(port);
                Err(error)
            }
        }
    }

    /// Changes a port that stays, while frames pass.
    fn change_port(&mut self, name: &str, new: &Config, watch: &mut dyn Watch) {
        let (Some(port), Some(wanted)) = (self.ports.get_mut(name), new.ports.get(name)) else {
            return;
        };
        let (at, relink) = (port.at, wanted.link != port.config.link);
        if wanted.bridge != port.config.bridge {
            for bridge in self.bridges.values_mut() {
                bridge.fdb.retain(|e| e.port != at);
            }
        }
        let offload = wanted.kind.offload();
        let switched = offload.filter(|_| offload != port.config.kind.offload());
        let coalesce = wanted.kind.coalesce();
        let moderated = coalesce.filter(|_| coalesce != port.config.kind.coalesce());
        port.config = wanted.clone();
        if let Some(guest) = port.guest_mut() {
            guest.set_mtu(mtu_of(new, wanted));
            // As with the link: what `port set` did stays until the file says something new.
            if let Some(offload) = switched {
                guest.set_offload(offload);
            }
            if let Some(coalesce) = moderated {
                guest.set_coalesce(coalesce);
            }
        }
        if relink && let Err(error) = self.set_link(name, wanted.link, watch) {
            tracing::error!(port = name, %error, "the port could not be opened again");
        }
    }

    fn apply_bridges(&mut self, new: &Config) {
        self.bridges
            .retain(|name, _| new.bridges.contains_key(name));
        for (name, wanted) in &new.bridges {
            if let Some(bridge) = self.bridges.get_mut(name) {
                if bridge.config != *wanted {
                    bridge.reconfigure(wanted.clone());
                }
            } else if let Some(index) = self.free_bridge() {
                self.bridges
                    .insert(name.clone(), Bridge::new(index, wanted.clone()));
            }
        }
    }

    fn free_bridge(&self) -> Option<BridgeIndex> {
        let taken = |index| self.bridges.values().any(|b| b.index == index);
        (0..MAX_BRIDGES as u16)
            .map(BridgeIndex)
            .find(|index| !taken(*index))
    }
}
