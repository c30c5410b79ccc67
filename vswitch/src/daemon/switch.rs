//! The switch as the main thread keeps it: bridges, ports, tables, and every change to them.
//!
//! A change is checked whole, prepared (sockets bound, devices opened) and only then made; what cannot be prepared
//! leaves everything as it was. Workers see the result as one new snapshot. Changes of the whole configuration are in
//! [`apply`](super::apply).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vswitch_api::config::{self, AdminLink, Config, Environment, Offload, PortKind};
use vswitch_api::rpc::{Origin, RpcError, code};

use super::bridge::Bridge;
use super::guest::GuestPort;
use super::port::{Attachment, Port};
use super::watch::{Token, Watch};
use crate::capture::{Tap, Taps};
use crate::forward::fdb::CoarseSecond;
use crate::forward::learn::{self, LearnMailbox};
use crate::forward::{MAX_BRIDGES, MAX_PORTS, PortIndex, PortRef, Snapshot};
use crate::mailbox::Mailbox;
use crate::worker::bell::Bell;
use crate::worker::registry::Wanted;
use crate::worker::steward::trace::Decision;
use crate::worker::steward::{Duties, Order, Steward};
use crate::worker::vitals::{Pulse, Vitals};
use crate::worker::{BusyPoll, Report, Shared, Workers};

/// Reports that may wait for the main thread. Every port may end two sessions before they are read, so that a session's
/// thread never waits for room while the main thread waits for it.
const REPORTS: usize = 4 * MAX_PORTS;

/// See the module's page.
pub struct Switch {
    /// What the machine allows.
    pub environment: Environment,
    /// Where the configuration came from.
    pub file: Option<PathBuf>,
    /// What the file said, last time it was applied.
    pub config: Config,
    /// What workers and sessions share.
    pub shared: Arc<Shared>,
    /// The threads that forward.
    pub workers: Arc<Workers>,
    /// Who moves queues between them.
    pub steward: Arc<Steward>,
    /// By name.
    pub bridges: BTreeMap<String, Bridge>,
    /// By name.
    pub ports: BTreeMap<String, Port>,
    /// When the daemon started.
    pub started: Instant,
    /// What each worker did in the last interval, by its number.
    pub shares: Vec<Shares>,
    sampled: Instant,
    /// Who holds each place, and how many have before. Twice as many as ports, so that all can be made anew at once.
    places: Vec<Place>,
    taps: Vec<Arc<Tap>>,
    /// Ports whose listener could not accept and is left alone until the next tick.
    resting: Vec<PortIndex>,
}

/// What a worker did in the last measuring interval.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// Share of the interval spent on frames.
    pub busy: f64,
    /// Share of it spent awake.
    pub awake: f64,
    /// Its figures at the end, and whose they are.
    before: Pulse,
    of: Weak<Vitals>,
}

#[derive(Clone, Default)]
struct Place {
    incarnation: u16,
    holder: Option<Arc<str>>,
}

impl Switch {
    /// An empty switch with its workers running.
    ///
    /// # Errors
    /// Threads or descriptors that the system did not give.
    pub fn start(
        config: &Config,
        environment: Environment,
        file: Option<PathBuf>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            snapshot: arc_swap::ArcSwap::default(),
            clock: AtomicU32::new(0),
            learn: Arc::new(LearnMailbox::new(learn::QUEUE)?),
            reports: Mailbox::new(REPORTS)?,
            bell: Bell::new()?,
        });
        let workers = Workers::start(&wanted_workers(config), &shared)?;
        let steward = Steward::start(&workers, &shared, duties(config))?;
        steward.configure(duties(config));
        Ok(Switch {
            environment,
            file,
            config: Config {
                bridges: BTreeMap::new(),
                ports: BTreeMap::new(),
                ..config.clone()
            },
            shared,
            shares: Vec::new(),
            workers,
            steward,
            bridges: BTreeMap::new(),
            ports: BTreeMap::new(),
            started: Instant::now(),
            sampled: Instant::now(),
            places: vec![Place::default(); 2 * MAX_PORTS],
            taps: Vec::new(),
            resting: Vec::new(),
        })
    }

    /// The coarse clock.
    pub fn now(&self) -> CoarseSecond {
        CoarseSecond(self.shared.clock.load(Ordering::Relaxed))
    }

    // ---- ports --------------------------------------------------------------------------------------------------

    /// Adds a port until the daemon ends.
    ///
    /// # Errors
    /// Nothing was changed: the port is not right, its name is taken, or its socket or device cannot be had.
    pub fn add_port(
        &mut self,
        name: &str,
        wanted: config::Port,
        watch: &mut dyn Watch,
    ) -> Result<(), RpcError> {
        if self.ports.contains_key(name) {
            return Err(RpcError::new(
                code::EXISTS,
                format!(
                    "there is a port \"{name}\" already; choose another name, or remove it first"
                ),
            ));
        }
        let mut all = self.config.clone();
        for port in self.ports.values() {
            all.ports.insert(port.name.to_string(), port.config.clone());
        }
        let all = config::add_port(&all, name, wanted, &self.environment)
            .map_err(|e| RpcError::config(&e))?;
        let Some(wanted) = all.ports.get(name).cloned() else {
            return Err(RpcError::new(
                code::INTERNAL,
                "the port is not in its own configuration",
            ));
        };
        let mtu = mtu_of(&self.config, &wanted);
        if self.ports.len() >= MAX_PORTS {
            return Err(RpcError::new(
                code::LIMIT,
                format!("the switch has {MAX_PORTS} ports, which is its limit; remove one first"),
            ));
        }
        let port = self.make_port(name, wanted, Origin::Runtime, mtu)?;
        self.put_in(port);
        self.publish();
        self.set_going([name], watch);
        self.pin_static_addresses();
        Ok(())
    }

    /// Removes a port, from the file or not.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_port(&mut self, name: &str, watch: &mut dyn Watch) -> Result<(), RpcError> {
        self.find_port(name)?;
        self.take_out(name, watch);
        self.config.ports.remove(name);
        self.publish();
        Ok(())
    }

    /// Takes a port up or down.
    ///
    /// # Errors
    /// There is none of that name, or its socket cannot be had again.
    pub fn set_link(
        &mut self,
        name: &str,
        link: AdminLink,
        watch: &mut dyn Watch,
    ) -> Result<(), RpcError> {
        self.find_port(name)?;
        let Some(port) = self.ports.get_mut(name) else {
            return Ok(());
        };
        let mut outcome = Ok(());
        if let Attachment::Guest(guest) = &mut port.attachment {
            match link {
                AdminLink::Down => close(guest, watch),
                AdminLink::Up => outcome = open(port.at.index, guest, watch),
            }
        }
        match &outcome {
            Ok(()) => (port.admin, port.failure) = (link, None),
            Err(error) => port.failure = Some(error.to_string()),
        }
        self.publish();
        outcome
    }

    /// Switches offloads of a guest's port, while frames pass. What is delivered changes at once, what is offered with the
    /// next connection.
    ///
    /// # Errors
    /// There is no port of that name, it is no guest's, or TSO would be on without checksums.
    pub fn set_offload(
        &mut self,
        name: &str,
        checksum: Option<bool>,
        tso: Option<bool>,
    ) -> Result<(), RpcError> {
        self.find_port(name)?;
        let Some(port) = self.ports.get_mut(name) else {
            return Ok(());
        };
        if checksum.is_none() && tso.is_none() {
            return Ok(());
        }
        let Some(guest) = port.guest_mut() else {
            return Err(RpcError::new(
                code::UNSUPPORTED,
                format!("port \"{name}\" is no guest's; only those have offloads to switch"),
            ));
        };
        let now = guest.config().offload;
        let wish = Offload {
            checksum: checksum.unwrap_or(now.checksum),
            tso: tso.unwrap_or(now.tso),
        };
        if wish.tso && !wish.checksum {
            return Err(RpcError::new(
                code::INVALID_PARAMS,
                "TSO rests on checksum offload: switch `tso` off before `checksum`, and on after it",
            ));
        }
        guest.set_offload(wish);
        self.publish();
        Ok(())
    }

    /// The port of this name.
    ///
    /// # Errors
    /// There is none; the message says which there are.
    pub fn find_port(&self, name: &str) -> Result<&Port, RpcError> {
        self.ports.get(name).ok_or_else(|| {
            let names: Vec<_> = self.ports.keys().map(String::as_str).take(12).collect();
            let known = if names.is_empty() {
                "there are none".into()
            } else {
                names.join(", ")
            };
            RpcError::new(
                code::NOT_FOUND,
                format!("there is no port \"{name}\"; ports: {known}"),
            )
        })
    }

    /// The port in a place, if it is still that one.
    pub fn port_at(&self, at: PortRef) -> Option<&Port> {
        let name = self.places.get(usize::from(at.index.0))?.holder.as_ref()?;
        self.ports.get(&**name).filter(|p| p.at == at)
    }

    fn port_in(&mut self, index: PortIndex) -> Option<&mut Port> {
        let name = self.places.get(usize::from(index.0))?.holder.as_ref()?;
        self.ports.get_mut(&**name).filter(|p| p.at.index == index)
    }

    pub(super) fn make_port(
        &mut self,
        name: &str,
        wanted: config::Port,
        origin: Origin,
        mtu: u16,
    ) -> Result<Port, RpcError> {
        let name: Arc<str> = name.into();
        let at = self.take_place(&name)?;
        let made = match &wanted.kind {
            PortKind::VhostUser(vhost) => {
                let mut guest = GuestPort::new(at, Arc::clone(&name), vhost.clone(), mtu);
                let opened = if wanted.link == AdminLink::Up {
                    guest.open()
                } else {
                    Ok(())
                };
                opened
                    .map(|()| Attachment::Guest(guest))
                    .map_err(|e| RpcError::new(code::SYSTEM, format!("port \"{name}\": {e}")))
            }
            #[cfg(feature = "dpdk")]
            PortKind::Dpdk(dpdk) => {
                let now = self.workers.places();
                let most = most_workers(&self.environment).max(now);
                let workers = crate::nic::Staff { now, most };
                crate::nic::NicPort::open(dpdk, &self.config.dpdk, mtu, workers)
                    .map(Attachment::Nic)
                    .map_err(|e| RpcError::new(code::SYSTEM, format!("port \"{name}\": {e}")))
            }
            #[cfg(not(feature = "dpdk"))]
            PortKind::Dpdk(_) => Err(RpcError::new(
                code::UNSUPPORTED,
                format!(
                    "port \"{name}\": this vswitchd was built without DPDK; build it with the feature `dpdk`"
                ),
            )),
        };
        match made {
            Ok(attachment) => {
                let workers = self.workers.places();
                Ok(Port::new(at, name, wanted, origin, attachment, workers))
            }
            Err(error) => {
                self.free_place(at);
                Err(error)
            }
        }
    }

    /// A port that was to be opened and could not: it is shown, with the reason, and tried again at the next apply.
    pub(super) fn make_failed_port(
        &mut self,
        name: &str,
        wanted: config::Port,
        mtu: u16,
        reason: &RpcError,
    ) -> Result<Port, RpcError> {
        let name: Arc<str> = name.into();
        let at = self.take_place(&name)?;
        let attachment = match &wanted.kind {
            PortKind::VhostUser(vhost) => {
                Attachment::Guest(GuestPort::new(at, Arc::clone(&name), vhost.clone(), mtu))
            }
            PortKind::Dpdk(_) => Attachment::absent(),
        };
        let workers = self.workers.places();
        let mut port = Port::new(at, name, wanted, Origin::File, attachment, workers);
        port.failure = Some(reason.message.clone());
        Ok(port)
    }

    /// A port that was made and never shown goes.
    pub(super) fn release(&mut self, port: &Port) {
        self.free_place(port.at);
    }

    /// Puts a port in its place. It does nothing before [`set_going`](Self::set_going).
    pub(super) fn put_in(&mut self, port: Port) {
        tracing::info!(port = %port.name, "port added");
        self.ports.insert(port.name.to_string(), port);
    }

    /// Lets ports that are in the snapshot take connections and frames: workers look a frame's port up there.
    pub(super) fn set_going<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n str>,
        watch: &mut dyn Watch,
    ) {
        for name in names {
            let Some(port) = self.ports.get_mut(name) else {
                continue;
            };
            match &mut port.attachment {
                Attachment::Guest(guest) => {
                    if let Some(listener) = guest.listener() {
                        watch.watch(listener, Token::Port(port.at.index));
                    }
                }
                Attachment::Absent(_) => {}
                #[cfg(feature = "dpdk")]
                Attachment::Nic(nic) => nic.start(port.at, &self.workers),
            }
        }
    }

    /// Ends a port. When this returns nothing of it is in use; its addresses are not believed any more, and leave the
    /// tables with the next tick.
    pub(super) fn take_out(&mut self, name: &str, watch: &mut dyn Watch) {
        let Some(mut port) = self.ports.remove(name) else {
            return;
        };
        match &mut port.attachment {
            Attachment::Guest(guest) => close(guest, watch),
            Attachment::Absent(_) => {}
            #[cfg(feature = "dpdk")]
            Attachment::Nic(nic) => nic.stop(port.at, &self.workers),
        }
        self.workers.forget(port.at);
        self.free_place(port.at);
        tracing::info!(port = name, "port removed");
    }

    fn take_place(&mut self, name: &Arc<str>) -> Result<PortRef, RpcError> {
        let mut places = self.places.iter_mut().enumerate();
        let Some((index, place)) = places.find(|(_, place)| place.holder.is_none()) else {
            return Err(RpcError::new(
                code::LIMIT,
                format!("the switch has {MAX_PORTS} ports, which is its limit; remove one first"),
            ));
        };
        place.holder = Some(Arc::clone(name));
        place.incarnation = (place.incarnation + 1) & 0x7fff;
        Ok(PortRef {
            index: PortIndex(index as u16),
            incarnation: place.incarnation,
        })
    }

    fn free_place(&mut self, at: PortRef) {
        if let Some(place) = self.places.get_mut(usize::from(at.index.0)) {
            place.holder = None;
        }
    }

    // ---- what workers see ---------------------------------------------------------------------------------------

    /// Gives workers the switch as it is now.
    pub fn publish(&self) {
        let mut bridges: Vec<_> = (0..MAX_BRIDGES).map(|_| None).collect();
        for bridge in self.bridges.values() {
            if let Some(place) = bridges.get_mut(usize::from(bridge.index.0)) {
                *place = Some(bridge.spec());
            }
        }
        let places = self
            .ports
            .values()
            .map(|p| usize::from(p.at.index.0) + 1)
            .max()
            .unwrap_or(0);
        let mut ports: Vec<_> = (0..places).map(|_| None).collect();
        for port in self.ports.values() {
            if let Some(bridge) = self.bridges.get(&port.config.bridge)
                && let Some(place) = ports.get_mut(usize::from(port.at.index.0))
            {
                *place = Some(port.spec(bridge.index));
            }
        }
        let capture = (!self.taps.is_empty()).then(|| Arc::new(Taps(self.taps.clone())));
        self.shared
            .snapshot
            .store(Arc::new(Snapshot::new(ports, bridges, capture)));
    }

    /// Starts to show frames to a capture.
    pub fn add_tap(&mut self, tap: Arc<Tap>) {
        self.taps.push(tap);
        self.publish();
    }

    /// Ends a capture.
    pub fn remove_tap(&mut self, tap: &Arc<Tap>) {
        self.taps.retain(|t| !Arc::ptr_eq(t, tap));
        self.publish();
    }

    // ---- tables and time ----------------------------------------------------------------------------------------

    pub(super) fn pin_static_addresses(&mut self) {
        let now = self.now();
        for port in self.ports.values() {
            if let Some(bridge) = self.bridges.get_mut(&port.config.bridge) {
                bridge.pin_static(&port.name, port.at, now);
            }
        }
    }

    /// Takes up the addresses that workers saw.
    pub fn learn(&mut self) {
        let now = self.now();
        for seen in self.shared.learn.drain() {
            // The port may be gone by now, or on another bridge.
            let Some(bridge) = self.port_at(seen.port).map(|p| p.config.bridge.clone()) else {
                continue;
            };
            if let Some(bridge) = self.bridges.get_mut(&bridge)
                && bridge.index == seen.bridge
            {
                bridge.learn(seen.vid, seen.mac, seen.port, now);
            }
        }
    }

    /// Once a second: moves the clock on, ages tables, measures rates.
    pub fn tick(&mut self) {
        let now = CoarseSecond(self.started.elapsed().as_secs() as u32);
        self.shared.clock.store(now.0, Ordering::Relaxed);
        let mut live = vec![None; self.places.len()];
        for port in self.ports.values() {
            if let Some(place) = live.get_mut(usize::from(port.at.index.0)) {
                *place = Some((port.at, port.config.bridge.as_str()));
            }
        }
        for (name, bridge) in &mut self.bridges {
            bridge.age(now, |at| {
                live.get(usize::from(at.index.0)) == Some(&Some((at, name.as_str())))
            });
        }
        let micros = crate::worker::micros(Instant::now());
        for guest in self.shared.snapshot.load().guests() {
            guest.steering().sweep(micros);
        }
        let elapsed = self.sampled.elapsed();
        self.sampled = Instant::now();
        for port in self.ports.values_mut() {
            port.sample(elapsed.as_secs_f64());
        }
        self.shares
            .resize_with(self.workers.places(), Shares::default);
        for worker in self.workers.list() {
            if let Some(shares) = self.shares.get_mut(worker.index) {
                shares.sample(&worker.vitals, elapsed);
            }
        }
    }

    // ---- sessions -----------------------------------------------------------------------------------------------

    /// Somebody connects to the port in this place.
    pub fn accept(&mut self, index: PortIndex, watch: &mut dyn Watch) {
        let (workers, shared) = (Arc::clone(&self.workers), Arc::clone(&self.shared));
        let port = self.port_in(index);
        if let Some(guest) = port.and_then(Port::guest_mut)
            && let Err(error) = guest.accept(&workers, &shared)
            && let Some(listener) = guest.listener()
        {
            tracing::warn!(socket = %listener.path().display(), %error, "cannot accept a connection; resting for a second");
            watch.unwatch(listener);
            self.resting.push(index);
        }
    }

    /// Listeners that could not accept are tried again.
    pub fn wake_listeners(&mut self, watch: &mut dyn Watch) {
        for index in std::mem::take(&mut self.resting) {
            let port = self.port_in(index);
            if let Some(listener) = port.and_then(Port::guest_mut).and_then(|g| g.listener()) {
                watch.unwatch(listener);
                watch.watch(listener, Token::Port(index));
            }
        }
    }

    /// Tries every port that waits for a front-end to listen. True if some still do.
    pub fn retry(&mut self) -> bool {
        let (workers, shared) = (Arc::clone(&self.workers), Arc::clone(&self.shared));
        let mut waiting = false;
        for guest in self.ports.values_mut().filter_map(Port::guest_mut) {
            guest.try_connect(&workers, &shared);
            waiting |= guest.wants_connection();
        }
        waiting
    }

    /// Takes up news from sessions; returns what the steward has done, for those who asked for it.
    pub fn reports(&mut self) -> Vec<(Order, Vec<Decision>)> {
        let shared = Arc::clone(&self.shared);
        let mut done = Vec::new();
        for report in shared.reports.drain() {
            match report {
                Report::SessionEnded(at, id, how) => {
                    let port = self.port_in(at.index).filter(|p| p.at == at);
                    if let Some(guest) = port.and_then(Port::guest_mut) {
                        guest.session_ended(id, &how);
                    }
                }
                Report::Rebalanced(order, made) => done.push((order, made)),
            }
        }
        done
    }

    /// Ends every session, then the workers. Guests see their link go down.
    pub fn stop(&mut self, watch: &mut dyn Watch) {
        let names: Vec<_> = self.ports.keys().cloned().collect();
        for name in names {
            self.take_out(&name, watch);
        }
        self.steward.stop();
        self.workers.stop();
    }
}

/// As many workers as a configuration can ask for here: each has a core of its own.
#[cfg(feature = "dpdk")]
fn most_workers(environment: &Environment) -> usize {
    let limit = config::limits::WORKERS;
    let cores = environment.allowed_cores.as_ref();
    cores.map_or(limit, |cores| cores.len().min(limit))
}

/// What only one port can have: its socket or its device.
pub(super) fn resource(port: &config::Port) -> &std::ffi::OsStr {
    match &port.kind {
        PortKind::VhostUser(vhost) => vhost.socket.as_os_str(),
        PortKind::Dpdk(dpdk) => dpdk.device.as_ref(),
    }
}

pub(super) fn mtu_of(config: &Config, port: &config::Port) -> u16 {
    config
        .bridges
        .get(&port.bridge)
        .map_or_else(|| config::Bridge::default().mtu, |b| b.mtu)
}

fn open(index: PortIndex, guest: &mut GuestPort, watch: &mut dyn Watch) -> Result<(), RpcError> {
    if guest.closed() {
        guest
            .open()
            .map_err(|e| RpcError::new(code::SYSTEM, e.to_string()))?;
        if let Some(listener) = guest.listener() {
            watch.watch(listener, Token::Port(index));
        }
    }
    Ok(())
}

fn close(guest: &mut GuestPort, watch: &mut dyn Watch) {
    if let Some(listener) = guest.listener() {
        watch.unwatch(listener);
    }
    guest.close();
}

impl Shares {
    fn sample(&mut self, vitals: &Arc<Vitals>, elapsed: Duration) {
        // A number that was given anew begins anew.
        let same = std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(vitals));
        let before = if same { self.before } else { Pulse::default() };
        let now = vitals.read();
        let share = |now: u64, before: u64| (now - before) as f64 / elapsed.as_nanos() as f64;
        *self = Shares {
            busy: share(now.busy_ns, before.busy_ns),
            awake: share(now.awake_ns, before.awake_ns),
            before: now,
            of: Arc::downgrade(vitals),
        };
    }
}

/// What the steward may do by a configuration.
pub(super) fn duties(config: &Config) -> Duties {
    Duties {
        rebalance: config.steering.rebalance == config::Rebalance::Auto,
        scale: config.steering.scale == config::Scale::Auto,
        share: config.steering.share == config::Share::Auto,
    }
}

/// The workers of a configuration.
pub(super) fn wanted_workers(config: &Config) -> Vec<Wanted> {
    let workers = config.workers.iter();
    workers
        .map(|w| Wanted {
            core: w.core,
            busy_poll: busy_poll(w.busy_poll),
            max_sleep: Duration::from_micros(w.max_sleep_usecs.into()),
        })
        .collect()
}

fn busy_poll(mode: config::BusyPoll) -> BusyPoll {
    match mode {
        config::BusyPoll::Always => BusyPoll::Always,
        config::BusyPoll::Adaptive => BusyPoll::Adaptive,
        config::BusyPoll::Never => BusyPoll::Never,
    }
}
