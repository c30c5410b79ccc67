//! Open vSwitch on DPDK, as Debian ships it: one PMD thread, two vhost-user ports on a bridge.
//!
//! It runs privately: database, sockets and logs lie in a temporary folder, its network devices in a
//! namespace, which takes root; no service manager or kernel module takes part. Its ports are of type
//! `dpdkvhostuserclient`, so OVS connects and the guests listen. Two kinds are measured: the bridge as
//! it comes, which learns addresses (the action NORMAL), and OpenFlow rules from port to port, which
//! is the least work it can be given.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Contestant, Guests, JUMBO_MTU, Near, Setup, sockets};
use crate::cpu::Placement;
use crate::generator::Wire;
use crate::interference::threads_of;
use crate::process::Process;
use crate::{Error, Result, machine};

const PROGRAM: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const PACKAGE: &str = "openvswitch-switch-dpdk";
/// The database's programs and schema, of a package that the other depends on.
const DATABASE: &str = "ovsdb-server";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Memory of each, MiB, and the hugepages of 2 MiB that takes.
const MEMORY: u64 = 512;
pub(super) const HUGEPAGES: u64 = MEMORY / 2;
/// By the port numbers asked for in [`database_entries`].
const PORT_TO_PORT: &str = "in_port=1,actions=output:2\nin_port=2,actions=output:1\n";
/// How long a part of it may take until it answers.
const LIMIT: Duration = Duration::from_secs(20);

/// Hugepages of 2 MiB that it takes where it may take what it likes: 256 Ki buffers of 3 KiB, and a bit.
const HUGEPAGES_BY_DEFAULT: u64 = 400;

/// What may differ from its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether it takes no more than [`MEMORY`].
    pub little_memory: bool,
    /// Whether large segments may go from guest to guest (`userspace-tso-enable`), which is off by default.
    pub tso: bool,
    /// Whether its ports take packets of [`JUMBO_MTU`].
    pub jumbo: bool,
    /// What its first port is on.
    pub near: Near,
}

impl Settings {
    /// As it comes.
    pub const DEFAULT: Self = Self {
        little_memory: false,
        tso: false,
        jumbo: false,
        near: Near::Guest,
    };
    /// As it comes, but for its memory.
    pub const LITTLE: Self = Self {
        little_memory: true,
        tso: false,
        jumbo: false,
        near: Near::Guest,
    };
    /// With large segments, which it copies to memory beside its buffers.
    pub const TSO: Self = Self {
        little_memory: false,
        tso: true,
        jumbo: false,
        near: Near::Guest,
    };

    pub(super) fn name(self) -> &'static str {
        match (self.little_memory, self.tso) {
            (true, false) => "512 MiB of hugepages",
            (true, true) => "512 MiB of hugepages, userspace-tso-enable",
            (false, false) => "its default memory",
            (false, true) => "its default memory, userspace-tso-enable",
        }
    }

    fn hugepages(self) -> u64 {
        if self.little_memory {
            HUGEPAGES
        } else {
            HUGEPAGES_BY_DEFAULT
        }
    }
}

/// Starts switch and database, each in a process of its own, with a port for each socket, on which guests are to listen.
/// They keep their files in `dir`; the switch should be dropped first.
pub(super) fn processes(
    name: &'static str,
    dir: &Path,
    sockets: &[PathBuf],
    settings: Settings,
    placement: Placement,
) -> Result<(Process, Process)> {
    if !Path::new(PROGRAM).is_file() {
        return Err(missing(PROGRAM));
    }
    machine::need_hugepages(settings.hugepages())?;
    let database = start_database(dir)?;
    control(
        "ovs-vsctl",
        &database_entries(dir, sockets, settings, placement),
    )?;
    Ok((start(name, dir, PROGRAM, &[db(dir)])?, database))
}

/// What describes it: the version.
pub(super) fn version() -> String {
    let version = machine::package_version(PACKAGE).unwrap_or_else(|| "unknown".into());
    format!("OVS-DPDK of {PACKAGE} {version}, one PMD thread")
}

/// What the bridge does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Learns addresses and forwards by them.
    Learning,
    /// Forwards from port to port by OpenFlow rules, whatever the addresses are.
    PortToPort,
}

/// A running OVS.
pub struct Ovs {
    rules: Rules,
    // Dropped in this order: guests hang up, the switch ends, its database ends, their folder goes.
    guests: Guests,
    process: Process,
    _database: Process,
    _dir: TempDir,
}

impl Ovs {
    /// Starts database and switch and waits for the switch to connect to two guests.
    pub fn start(rules: Rules, setup: Setup) -> Result<Self> {
        let dir = TempDir::with_prefix("vswitch-bench").map_err(Error::io("make a folder"))?;
        let path = dir.path();
        let settings = Settings {
            jumbo: setup.jumbo,
            near: setup.near,
            ..Settings::LITTLE
        };
        let sockets = sockets(path);
        let (process, database) =
            processes(rules.name(), path, &sockets, settings, setup.placement)?;
        let failed = |error| process.explain(error);
        let introduce = rules == Rules::Learning;
        let guests = match setup.near {
            Near::Guest => Guests::listen(setup, &sockets, introduce),
            Near::Nic => Guests::nic(setup, &sockets, introduce),
        };
        let guests = guests.map_err(failed)?;
        if rules == Rules::PortToPort {
            replace_rules(path).map_err(failed)?;
        }
        process.favour();
        Ok(Self {
            rules,
            guests,
            process,
            _database: database,
            _dir: dir,
        })
    }
}

impl Rules {
    fn name(self) -> &'static str {
        match self {
            Self::Learning => "ovs",
            Self::PortToPort => "ovs-flows",
        }
    }
}

fn missing(program: &'static str) -> Error {
    Error::Missing {
        program,
        package: PACKAGE,
    }
}

fn db(dir: &Path) -> String {
    format!("unix:{}", dir.join("db.sock").display())
}

/// A daemon of OVS with its control socket in the folder, where it also puts its other sockets.
fn start(name: &'static str, dir: &Path, program: &str, args: &[String]) -> Result<Process> {
    // The name of the datapath's own network device is fixed, so each has a network of its own. Both
    // helpers become the program, so that the process id is the program's.
    let mut all = vec!["--net".into(), "env".into()];
    all.push(format!("OVS_RUNDIR={}", dir.display()));
    all.push(program.into());
    let control = dir.join(format!("{name}.ctl"));
    all.push(format!("--unixctl={}", control.display()));
    all.extend_from_slice(args);
    Process::start(name, dir, Path::new("unshare"), &all)
}

/// The database server, with an empty database, answering.
fn start_database(dir: &Path) -> Result<Process> {
    let [file, socket] = ["conf.db", "db.sock"].map(|name| dir.join(name));
    let create = ["create".into(), file.display().to_string(), SCHEMA.into()];
    control("ovsdb-tool", &create)?;
    let program = machine::find_program(DATABASE).ok_or_else(|| missing(DATABASE))?;
    let args = [
        file.display().to_string(),
        format!("--remote=punix:{}", socket.display()),
    ];
    let process = start(DATABASE, dir, &program.display().to_string(), &args)?;
    wait_for(&socket).map_err(|error| process.explain(error))?;
    Ok(process)
}

/// Everything that the switch is to find in the database when it starts.
fn database_entries(
    dir: &Path,
    sockets: &[PathBuf],
    settings: Settings,
    placement: Placement,
) -> Vec<String> {
    let set = |key: &str, value: &str| format!("other_config:{key}={value}");
    let mut args = vec![format!("--db={}", db(dir)), "--no-wait".into()];
    args.extend(["--", "init", "--", "set", "Open_vSwitch", "."].map(String::from));
    args.extend([
        set("dpdk-init", "true"),
        set("pmd-cpu-mask", &mask(placement.worker)),
        // All of its threads but the one that polls.
        set("dpdk-lcore-mask", &mask(placement.generator)),
        // Quotes are the database's. In memory: hugepages without a file system for them.
        set("dpdk-extra", "\"--no-pci --no-telemetry --in-memory\""),
    ]);
    if settings.little_memory {
        // The limit, too: else it takes more for its buffers, as much as there is, and other peers get none.
        let memory = MEMORY.to_string();
        args.extend(["dpdk-socket-mem", "dpdk-socket-limit"].map(|key| set(key, &memory)));
    }
    if settings.tso {
        args.push(set("userspace-tso-enable", "true"));
    }
    args.extend(["--", "add-br", "br0", "--", "set", "bridge", "br0"].map(String::from));
    args.push("datapath_type=netdev".into());
    for (port, socket) in (1..).zip(sockets) {
        let name = format!("p{port}");
        args.extend(["--", "add-port", "br0", &name].map(String::from));
        args.extend(["--", "set", "interface", &name].map(String::from));
        if port == 1 && settings.near == Near::Nic {
            args.push("type=dpdk".into());
            let device = Near::device(socket);
            // Else the database takes the comma for its own.
            args.push(format!("options:dpdk-devargs=\"{device}\""));
        } else {
            args.push("type=dpdkvhostuserclient".into());
            args.push(format!("options:vhost-server-path={}", socket.display()));
        }
        args.push(format!("ofport_request={port}"));
        if settings.jumbo {
            args.push(format!("mtu_request={JUMBO_MTU}"));
        }
    }
    args
}

/// Replaces the bridge's one rule, which is to learn.
fn replace_rules(dir: &Path) -> Result<()> {
    let [bridge, file] = ["br0.mgmt", "rules"].map(|name| dir.join(name));
    wait_for(&bridge)?;
    fs::write(&file, PORT_TO_PORT).map_err(Error::io("write rules"))?;
    let bridge = format!("unix:{}", bridge.display());
    let args = ["replace-flows".into(), bridge, file.display().to_string()];
    control("ovs-ofctl", &args)
}

/// A mask with one CPU in it, of any length.
fn mask(cpu: usize) -> String {
    format!("0x{:x}{}", 1 << (cpu % 4), "0".repeat(cpu / 4))
}

/// Runs one of OVS's tools; an error tells what it had to say.
fn control(program: &'static str, args: &[String]) -> Result<()> {
    let path = machine::find_program(program).ok_or_else(|| missing(program))?;
    let output = Command::new(path)
        .args(args)
        .output()
        .map_err(Error::io(format!("run {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Contestant {
        whom: program.into(),
        what: format!("ended with {}", output.status),
        log: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn wait_for(socket: &Path) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while !socket.exists() {
        if Instant::now() > until {
            return Err(Error::Silent(LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether a thread, given as its folder in `/proc`, is one that polls.
fn polls(task: &Path) -> bool {
    fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("pmd-"))
}

impl Contestant for Ovs {
    fn name(&self) -> &'static str {
        self.rules.name()
    }

    fn describe(&self) -> String {
        let rules = match self.rules {
            Rules::Learning => "MAC learning (NORMAL)",
            Rules::PortToPort => "OpenFlow rules from port to port",
        };
        format!("{}, {rules}, hugepages", version())
    }

    fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    fn wire(&mut self) -> &mut Wire {
        &mut self.guests.wire
    }

    fn tasks(&self) -> Vec<PathBuf> {
        let mut tasks = threads_of(self.process.pid());
        tasks.retain(|task| polls(task));
        tasks
    }

    fn explain(&mut self, error: Error) -> Error {
        self.process.explain(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_name_one_cpu() {
        assert_eq!([0, 1, 3, 5].map(mask), ["0x1", "0x2", "0x8", "0x20"]);
        assert_eq!(mask(64), "0x10000000000000000");
    }

    #[test]
    fn the_database_names_cpus_and_sockets() {
        let placement = Placement {
            generator: 2,
            worker: 5,
        };
        let dir = Path::new("/d");
        let entries = |settings| database_entries(dir, &sockets(dir), settings, placement);
        let args = entries(Settings {
            jumbo: true,
            ..Settings::LITTLE
        });
        for wanted in [
            "other_config:pmd-cpu-mask=0x20",
            "other_config:dpdk-lcore-mask=0x4",
            "options:vhost-server-path=/d/b.sock",
            "ofport_request=2",
            "mtu_request=9000",
        ] {
            assert!(args.iter().any(|arg| arg == wanted), "{wanted}: {args:?}");
        }
        let keys = |settings| entries(settings).join(" ");
        let [default, little, tso] = [Settings::DEFAULT, Settings::LITTLE, Settings::TSO].map(keys);
        let (limit, large) = ("dpdk-socket-limit=512", "userspace-tso-enable=true");
        assert!(!default.contains(limit) && !default.contains(large));
        assert!(little.contains(limit) && !little.contains(large));
        assert!(!tso.contains(limit) && tso.contains(large));
        let nic = entries(Settings {
            near: Near::Nic,
            ..Settings::LITTLE
        });
        for wanted in [
            "options:dpdk-devargs=\"net_vhost0,iface=/d/a.sock\"",
            "options:vhost-server-path=/d/b.sock",
        ] {
            assert!(nic.iter().any(|arg| arg == wanted), "{wanted}: {nic:?}");
        }
    }
}
