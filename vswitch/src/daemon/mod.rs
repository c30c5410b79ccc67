//! The daemon: one main thread that keeps the switch, and everything it waits for.
//!
//! # Theory of operation
//!
//! The main thread sits in an event loop ([`Main`]): signals, a tick a second, the control socket and its clients,
//! ports' sockets, new addresses, news from workers and sessions. Every change to the switch happens here, one after
//! another, so nothing about ports or bridges needs a lock.
//!
//! - [`switch`]: bridges, ports, and every change to them; `apply` changes the whole configuration
//! - [`guest`], [`port`], [`bridge`]: the things it keeps
//! - [`control`], [`methods`], [`steer`], [`coalesce`]: the control socket
//! - [`watch`]: how descriptors find their way to whom they concern
//! - [`socket`], [`log`], [`cli`]: what a daemon needs

mod apply;
pub mod bridge;
pub mod cli;
pub mod coalesce;
pub mod control;
pub mod guest;
pub mod log;
mod methods;
pub mod port;
pub mod socket;
mod steer;
pub mod switch;
pub mod watch;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber};
use rustix::process::{Resource, Rlimit};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::fd::OwnedFd;
use vswitch_api::config::{self, Config, Environment, limits};

pub use guest::SessionId;

use cli::Cli;
use control::Clients;
use socket::Listener;
use switch::Switch;
use watch::{Token, Watch};

/// Read if it is there and no other file is named.
const DEFAULT_FILE: &str = "/etc/vswitch/vswitch.yaml";
/// How often a client-mode port tries to connect.
const RETRY: Duration = Duration::from_millis(100);

/// A secret for hashing, from the system.
pub(crate) fn secret() -> [u64; 2] {
    let mut bytes = [0u8; 16];
    // It fails only before the system has gathered randomness; a table of that moment is then merely less secret.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let word = |b: &[u8]| b.iter().fold(0u64, |w, b| w << 8 | u64::from(*b));
    let (a, b) = bytes.split_at(8);
    [word(a), word(b)]
}

/// A secret key for hashing flows.
pub(crate) fn secret_key() -> [u8; 16] {
    let [a, b] = secret();
    let mut key = [0; 16];
    for (place, byte) in key
        .iter_mut()
        .zip(a.to_ne_bytes().into_iter().chain(b.to_ne_bytes()))
    {
        *place = byte;
    }
    key
}

/// The cores that a process may use and workers can be pinned to, from its `/proc/PID/status`; `None` if it does not say.
/// Not from `sched_getaffinity(2)`, which fails where the kernel's sets are larger than the caller's.
fn allowed_cores(status: &str) -> Option<Vec<u32>> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = Vec::new();
    for run in list.trim().split(',').filter(|run| !run.is_empty()) {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        cores.extend(first..=last.min(*limits::CORE.end()));
    }
    Some(cores)
}

/// What the machine allows.
pub fn environment() -> Environment {
    let status = std::fs::read_to_string("/proc/self/status");
    let cores = status.ok().and_then(|status| allowed_cores(&status));
    let root = rustix::process::geteuid().is_root();
    let own = std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|_| !root)
        .map(PathBuf::from);
    Environment {
        allowed_cores: cores,
        runtime_dir: own,
    }
}

/// The daemon's life. The exit code is 0 after a stop by signal, 1 if it could not start, 2 for a bad configuration.
pub fn run(cli: &Cli) -> ExitCode {
    let environment = environment();
    let named = std::env::var_os("VSWITCH_CONFIG")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let file = cli.config.clone().or(named).or_else(|| {
        let default = Path::new(DEFAULT_FILE);
        default.exists().then(|| default.into())
    });
    let config = match read_config(file.as_deref(), &environment) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("vswitchd: {error}");
            return ExitCode::from(2);
        }
    };
    let wanted = std::env::var("VSWITCH_LOG").ok().filter(|v| !v.is_empty());
    let wanted = cli.log.clone().or(wanted);
    if let Some(error) = wanted.as_deref().and_then(|w| log::check(w).err()) {
        eprintln!("vswitchd: {error}");
        return ExitCode::from(2);
    }
    if cli.check {
        let name = file.map_or("the default configuration".into(), |f| {
            f.display().to_string()
        });
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let bridges = count(config.bridges.len(), "bridge");
        println!(
            "{name} is fine: {bridges}, {}",
            count(config.ports.len(), "port")
        );
        return ExitCode::SUCCESS;
    }
    let log = log::start(wanted.as_deref(), config.log.level);
    match serve(config, environment, file, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn read_config(file: Option<&Path>, environment: &Environment) -> Result<Config, String> {
    let Some(file) = file else {
        return Ok(Config::default_config(environment));
    };
    let text = std::fs::read_to_string(file).map_err(|e| {
        format!(
            "cannot read {}: {e}; name another file with --config",
            file.display()
        )
    })?;
    config::load(&text, &file.display().to_string(), environment).map_err(|e| e.to_string())
}

fn serve(
    config: Config,
    environment: Environment,
    file: Option<PathBuf>,
    log: log::Level,
) -> Result<(), String> {
    vswitch_vhost::memory::install_sigbus_guard()
        .map_err(|e| format!("cannot guard against guests that truncate their memory: {e}"))?;
    allow_descriptors();
    let control = Listener::bind(
        &config.control.socket,
        config.control.owner.as_ref(),
        config.control.permissions,
    )
    .map_err(|e| e.to_string())?;
    let switch = Switch::start(&config, environment, file)
        .map_err(|e| format!("cannot start the workers: {e}"))?;
    let done = Arc::new(AtomicBool::new(false));
    let main = Main::new(switch, config, control, log, Arc::clone(&done))
        .map_err(|e| format!("cannot set up the main loop: {e}"))?;
    let outcome = Arc::clone(&main.failure);
    let mut manager =
        EventManager::new().map_err(|e| format!("cannot set up the main loop: {e:?}"))?;
    let _main = event_manager::SubscriberOps::add_subscriber(&mut manager, main);
    while !done.load(Ordering::Relaxed) {
        // An interrupted wait is nothing to speak of; anything else would come again at once.
        if let Err(error) = manager.run()
            && !matches!(&error, event_manager::Error::Epoll(e) if e.errno() == libc::EINTR)
        {
            return Err(format!("the main loop failed: {error:?}"));
        }
    }
    outcome.lock().take().map_or(Ok(()), Err)
}

/// The main thread's state, and the subscriber to all its events.
struct Main {
    switch: Switch,
    first: Option<Config>,
    clients: Clients,
    control: Listener,
    signals: UnixStream,
    hangup: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    tick: OwnedFd,
    retry: OwnedFd,
    log: log::Level,
    /// Control connections could not be accepted and are left alone until the next tick.
    control_rests: bool,
    done: Arc<AtomicBool>,
    /// Why it ended, if it could not start.
    failure: Arc<parking_lot::Mutex<Option<String>>>,
}

impl Main {
    fn new(
        switch: Switch,
        config: Config,
        control: Listener,
        log: log::Level,
        done: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (signals, wake) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        let (hangup, end) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        for (signal, flag) in [(SIGHUP, &hangup), (SIGTERM, &end), (SIGINT, &end)] {
            // The flag first, so that it is up when the pipe wakes the loop.
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        let timer = || {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            timerfd_create(TimerfdClockId::Monotonic, flags)
        };
        let (tick, retry) = (timer()?, timer()?);
        set_timer(&tick, Duration::from_secs(1), true);
        Ok(Main {
            switch,
            first: Some(config),
            clients: Clients::default(),
            control,
            signals,
            hangup,
            end,
            tick,
            retry,
            log,
            control_rests: false,
            done,
            failure: Arc::default(),
        })
    }

    /// Everything is there: tell who waits for it.
    fn ready(&self) {
        let ports = self.switch.ports.len();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            workers = self.switch.workers.list().len(),
            ports,
            control = %self.control.path().display(),
            "ready"
        );
        let status = format!("{ports} ports");
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    fn signal(&mut self, watch: &mut dyn Watch) {
        let mut sink = [0; 64];
        while self.signals.read(&mut sink).is_ok_and(|n| n > 0) {}
        if self.end.load(Ordering::Relaxed) {
            tracing::info!("stopping");
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
            self.stop(watch);
        } else if self.hangup.swap(false, Ordering::Relaxed) {
            self.reload(watch);
        }
    }

    fn stop(&mut self, watch: &mut dyn Watch) {
        self.switch.stop(watch);
        self.done.store(true, Ordering::Relaxed);
    }

    fn reload(&mut self, watch: &mut dyn Watch) {
        let Some(file) = self.switch.file.clone() else {
            tracing::warn!(
                "SIGHUP, but there is no configuration file: the daemon was started without one"
            );
            return;
        };
        let outcome = read_config(Some(&file), &self.switch.environment)
            .and_then(|new| self.switch.apply(new, watch).map_err(|e| e.message));
        match outcome {
            Ok(plan) => {
                tracing::info!(file = %file.display(), changes = plan.changes.len(), "configuration applied");
            }
            Err(error) => tracing::error!("the configuration stays as it is: {error}"),
        }
        self.applied();
    }

    /// After any change of the configuration.
    fn applied(&mut self) {
        self.log.set(self.switch.config.log.level);
        self.retry_if_needed();
    }

    fn retry_if_needed(&mut self) {
        let again = self.switch.retry();
        set_timer(
            &self.retry,
            if again { RETRY } else { Duration::ZERO },
            false,
        );
    }

    fn accept_control(&mut self, watch: &mut dyn Watch) {
        match self.control.accept() {
            Ok(Some(stream)) => self.clients.accept(stream, watch),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection; resting for a second");
                watch.unwatch(&self.control);
                self.control_rests = true;
            }
        }
    }

    /// Once a second.
    fn tick(&mut self, watch: &mut dyn Watch) {
        drain_timer(&self.tick);
        self.switch.tick();
        self.switch.wake_listeners(watch);
        if std::mem::take(&mut self.control_rests) {
            watch.watch(&self.control, Token::Control);
        }
    }
}

impl MutEventSubscriber for Main {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.watch(&self.signals, Token::Signal);
        ops.watch(&self.tick, Token::Tick);
        ops.watch(&self.retry, Token::Retry);
        ops.watch(&self.control, Token::Control);
        ops.watch(&*self.switch.shared.learn, Token::Learn);
        ops.watch(&self.switch.shared.reports, Token::Reports);
        let Some(config) = self.first.take() else {
            return;
        };
        match self.switch.apply(config, ops) {
            Ok(_) => {
                self.applied();
                self.ready();
            }
            Err(error) => {
                *self.failure.lock() = Some(error.message);
                self.stop(ops);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match Token::from_data(events.data()) {
            Some(Token::Signal) => self.signal(ops),
            Some(Token::Tick) => self.tick(ops),
            Some(Token::Retry) => {
                drain_timer(&self.retry);
                self.retry_if_needed();
            }
            Some(Token::Control) => self.accept_control(ops),
            Some(Token::Learn) => self.switch.learn(),
            Some(Token::Reports) => {
                for (order, made) in self.switch.reports() {
                    let clients = &mut self.clients;
                    clients.rebalanced(order, made, &mut self.switch, ops);
                }
                self.retry_if_needed();
            }
            Some(Token::Port(index)) => self.switch.accept(index, ops),
            Some(Token::Client(n)) => {
                self.clients.ready(n, &mut self.switch, ops);
                self.applied();
            }
            Some(Token::Capture(n)) => self.clients.captured(n, &mut self.switch, ops),
            None => {}
        }
    }
}

/// Takes all descriptors that the system allows: guests need several per queue and memory region.
fn allow_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn set_timer(timer: &OwnedFd, after: Duration, again: bool) {
    let time = Timespec {
        tv_sec: after.as_secs() as i64,
        tv_nsec: i64::from(after.subsec_nanos()),
    };
    let interval = if again { time } else { Timespec::default() };
    let spec = Itimerspec {
        it_interval: interval,
        it_value: time,
    };
    if let Err(error) = timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec) {
        tracing::error!(%error, "a timer could not be set");
    }
}

fn drain_timer(timer: &OwnedFd) {
    let _ = rustix::io::read(timer, &mut [0u8; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_however_many_there_are() {
        let of = |list: &str| {
            allowed_cores(&format!(
                "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\nMems_allowed_list:\t0\n"
            ))
        };
        assert_eq!(of("0"), Some(vec![0]));
        assert_eq!(of("1-3,8,10-11"), Some(vec![1, 2, 3, 8, 10, 11]));
        assert_eq!(
            of("1022-2047,4000"),
            Some(vec![1022, 1023]),
            "as far as workers go"
        );
        assert_eq!((of(""), of("x")), (Some(vec![]), None));
        assert_eq!(allowed_cores("Name:\tx\n"), None);
        let here = environment().allowed_cores.unwrap();
        let asked = rustix::thread::sched_getaffinity(Some(rustix::process::getpid())).unwrap();
        assert!(here.iter().all(|core| asked.is_set(*core as usize)));
        assert_eq!(here.len(), asked.count() as usize);
    }
}
