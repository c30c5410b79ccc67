//! The command line of `vswitchctl`, as clap reads it; also the source of man pages and
//! completions.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, ValueHint};
use vswitch_api::config::{Mac, Owner, Permissions, VlanId, VlanRange};
use vswitch_api::rpc::{CaptureParams, FdbFilter};

/// Look at a running vswitchd and change it.
#[derive(Debug, Parser)]
#[command(
    name = "vswitchctl",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Control socket of the switch [env: VSWITCH_SOCKET] [default: /run/vswitch/control.sock, or
    /// $XDG_RUNTIME_DIR/vswitch/control.sock]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,

    /// Print the result as JSON, as the control socket gave it
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The switch at a glance: workers, bridges, ports, guests and what they negotiated
    Show,
    /// Add, remove, inspect and change ports
    Port {
        /// What to do with ports.
        #[command(subcommand)]
        command: PortCommand,
    },
    /// The workers in detail: what they do, how long frames wait for them, which queues they have
    Workers,
    /// See and say which worker takes frames from which queue
    Steer {
        /// What to do with queues.
        #[command(subcommand)]
        command: SteerCommand,
    },
    /// See and say when guests are interrupted
    Coalesce {
        /// What to do with interrupts.
        #[command(subcommand)]
        command: CoalesceCommand,
    },
    /// Look at and change the addresses that bridges know
    Fdb {
        /// What to do with addresses.
        #[command(subcommand)]
        command: FdbCommand,
    },
    /// Where every frame went: received, switched, delivered, dropped and why
    Counters {
        /// Only this port
        port: Option<String>,
        /// Also drop reasons that never happened
        #[arg(long)]
        all: bool,
    },
    /// Watch frames pass, dropped ones with the reason
    ///
    /// Without -w, prints a line per frame. Ends with Ctrl-C, or after --count frames.
    Capture(CaptureOptions),
    /// Show, check, compare and apply configurations
    Config {
        /// What to do with configurations.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Versions of this tool and of the running switch
    Version,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
        /// The program to complete
        #[arg(long = "for", value_name = "PROGRAM", default_value = "vswitchctl")]
        program: Program,
    },
    /// Print the man page of vswitchctl, or write all man pages to a directory
    Man {
        /// Where to write vswitchd.8, vswitchctl.1 and a page per command
        #[arg(value_hint = ValueHint::DirPath)]
        directory: Option<PathBuf>,
    },
}

/// What to do with queues.
#[derive(Debug, Subcommand)]
pub enum SteerCommand {
    /// The queues and their workers
    Show,
    /// Measure for a moment and even out the load now, also where that is switched off
    Rebalance,
    /// Move a queue to a worker and keep it there, or leave it to the switch again
    Set {
        /// A queue, as `steer show` names it: PORT/PAIR, or PORT for its first pair
        queue: QueueName,
        /// The number of a worker, or auto
        worker: WorkerWish,
    },
    /// Have a second worker help with a queue, or not, or leave that to the switch again
    Share {
        /// A queue, as `steer show` names it: PORT/PAIR, or PORT for its first pair
        queue: QueueName,
        /// on, off or auto
        wish: SharingWish,
    },
    /// What was decided lately, and why
    Trace,
}

/// What to do with interrupts.
#[derive(Debug, Subcommand)]
pub enum CoalesceCommand {
    /// How guests are interrupted: by which policy, how often, why, and how much later than at once
    Show {
        /// Only this port
        port: Option<String>,
        /// Also how delays are distributed
        #[arg(long)]
        all: bool,
    },
    /// Change when a port's guest is interrupted, until vswitchd ends
    ///
    /// Keys are those of the configuration: policy, rx-usecs, rx-frames, tx-usecs, tx-frames, cpu-percent,
    /// max-delay-usecs. What is not named stays; another policy begins without figures.
    Set {
        /// Its name
        port: String,
        /// KEY=VALUE, or KEY=default
        #[arg(required_unless_present = "policy")]
        settings: Vec<CoalesceSetting>,
        /// The policy: adaptive, per-packet, per-burst, static, vpp, spdk or dim
        #[arg(long)]
        policy: Option<String>,
    },
}

/// `rx-usecs=50`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoalesceSetting {
    /// The key.
    pub key: String,
    /// Its value as it was written; `None` for the default.
    pub value: Option<String>,
}

impl FromStr for CoalesceSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .ok_or_else(|| format!("\"{text}\" sets nothing; write KEY=VALUE, like rx-usecs=50"))?;
        Ok(CoalesceSetting {
            key: key.into(),
            value: (value != "default").then(|| value.into()),
        })
    }
}

/// A queue by name: `vm1/0`, or `vm1` for its first pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueName {
    /// The port.
    pub port: String,
    /// Its queue pair.
    pub queue: u16,
}

impl FromStr for QueueName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, queue) = text.split_once('/').unwrap_or((text, "0"));
        let queue = queue
            .parse()
            .map_err(|_| format!("\"{queue}\" is no queue pair; write PORT/PAIR, like vm1/0"))?;
        if port.is_empty() {
            return Err("the port is missing; write PORT/PAIR, like vm1/0".into());
        }
        Ok(QueueName {
            port: port.into(),
            queue,
        })
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.queue)
    }
}

/// Where a queue is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerWish {
    /// With this worker.
    Number(u16),
    /// Where it is best.
    Auto,
}

impl FromStr for WorkerWish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(WorkerWish::Auto),
            number => number
                .parse()
                .map(WorkerWish::Number)
                .map_err(|_| "write the number of a worker, or auto".into()),
        }
    }
}

/// Whether a queue is to be shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SharingWish {
    /// Always.
    On,
    /// Never.
    Off,
    /// When it is worth it.
    Auto,
}

/// What to do with ports.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Add a port until vswitchd ends; what is to last belongs in the configuration file
    Add(Box<PortAddOptions>),
    /// Remove a port; one of the configuration file comes back with the next `config apply`
    Remove {
        /// Its name
        name: String,
    },
    /// Show everything about a port, or how to attach a guest to it
    Show {
        /// Its name
        name: String,
        /// Print the QEMU command line that attaches a guest
        #[arg(long, conflicts_with_all = ["libvirt", "json"])]
        qemu: bool,
        /// Print the libvirt XML that attaches a guest
        #[arg(long, conflicts_with = "json")]
        libvirt: bool,
    },
    /// Change a port until vswitchd ends
    Set {
        /// Its name
        name: String,
        /// What to change.
        #[command(subcommand)]
        what: SetWhat,
    },
}

/// What can be changed about a port.
#[derive(Debug, Subcommand)]
pub enum SetWhat {
    /// Take the link up or down
    Link {
        /// up or down
        wish: LinkWish,
    },
    /// Deliver frames without their checksums to a guest that takes them, or do not
    Checksum {
        /// on or off
        wish: Switch,
    },
    /// Deliver large TCP frames to a guest that takes them, or cut them
    Tso {
        /// on or off
        wish: Switch,
    },
}

/// What a link is to be.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LinkWish {
    /// Frames pass, if somebody is on the other side
    Up,
    /// Nothing passes
    Down,
}

/// What a switch is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it
    On,
    /// Leave it
    Off,
}

/// A new port.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("kind").required(true))]
pub struct PortAddOptions {
    /// Name of the port
    pub name: String,
    /// Attach a guest over this vhost-user socket
    #[arg(long, value_name = "SOCKET", group = "kind", value_hint = ValueHint::FilePath)]
    pub vhost_user: Option<PathBuf>,
    /// Attach a device of DPDK, with its arguments
    #[arg(long, value_name = "DEVICE", group = "kind")]
    pub dpdk: Option<String>,
    /// Read the port from a file, written as in the configuration; - for stdin
    #[arg(long, value_name = "FILE", group = "kind", value_hint = ValueHint::FilePath)]
    pub yaml: Option<PathBuf>,
    /// Its bridge [default: the only one]
    #[arg(long)]
    pub bridge: Option<String>,
    /// The switch's part on the socket [default: server]
    #[arg(long, value_name = "PART", conflicts_with_all = ["dpdk", "yaml"])]
    pub mode: Option<Part>,
    /// Queue pairs offered to the guest [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["dpdk", "yaml"])]
    pub queue_pairs: Option<u16>,
    /// Descriptors of a ring at most [default: 1024]
    #[arg(long, value_name = "N", conflicts_with_all = ["dpdk", "yaml"])]
    pub ring_size: Option<u16>,
    /// The guest's address, for `port show --qemu`
    #[arg(long, conflicts_with_all = ["dpdk", "yaml"])]
    pub mac: Option<Mac>,
    /// Owner of the socket, user:group
    #[arg(long, conflicts_with_all = ["dpdk", "yaml"])]
    pub owner: Option<Owner>,
    /// Access bits of the socket [default: 0660]
    #[arg(long, value_name = "OCTAL", conflicts_with_all = ["dpdk", "yaml"])]
    pub permissions: Option<Permissions>,
    /// Do not pass large TCP frames
    #[arg(long, conflicts_with_all = ["dpdk", "yaml"])]
    pub no_tso: bool,
    /// Queue pairs of the device [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["vhost_user", "yaml"])]
    pub queues: Option<u16>,
    /// Make it an access port of this VLAN
    #[arg(long, value_name = "VLAN", conflicts_with_all = ["trunk", "native"])]
    pub access: Option<VlanId>,
    /// Make it a trunk of these VLANs, like 10,20,100-199
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub trunk: Vec<VlanRange>,
    /// The VLAN of a trunk's frames without a tag
    #[arg(long, value_name = "VLAN", requires = "trunk")]
    pub native: Option<VlanId>,
    /// Do not learn addresses
    #[arg(long)]
    pub no_learning: bool,
    /// Start with the link down
    #[arg(long)]
    pub down: bool,
}

/// The switch's part on a socket.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Part {
    /// The switch listens, QEMU connects
    Server,
    /// QEMU listens, the switch connects
    Client,
}

/// What to do with addresses.
#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// List addresses
    Show(FdbOptions),
    /// Tell the bridge where an address is, until vswitchd ends
    Add {
        /// The address
        mac: Mac,
        /// The port it is behind
        port: String,
        /// Its VLAN [default: none]
        #[arg(long)]
        vlan: Option<VlanId>,
    },
    /// Forget an address
    Del {
        /// The address
        mac: Mac,
        /// Its VLAN [default: none]
        #[arg(long)]
        vlan: Option<VlanId>,
        /// The bridge [default: the only one]
        #[arg(long)]
        bridge: Option<String>,
    },
    /// Forget learnt addresses; static ones stay
    Flush(FdbOptions),
}

/// Which addresses.
#[derive(Debug, Args)]
pub struct FdbOptions {
    /// Only of this bridge
    #[arg(long)]
    pub bridge: Option<String>,
    /// Only behind this port
    #[arg(long)]
    pub port: Option<String>,
    /// Only of this VLAN; 0 for those without
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=4094))]
    pub vlan: Option<u16>,
}

impl FdbOptions {
    pub(super) fn to_params(&self) -> FdbFilter {
        FdbFilter {
            bridge: self.bridge.clone(),
            port: self.port.clone(),
            vlan: self.vlan,
        }
    }
}

/// Which frames to capture, and where to.
#[derive(Debug, Args)]
pub struct CaptureOptions {
    /// Only frames of this port; may be given several times
    #[arg(long, short)]
    pub port: Vec<String>,
    /// Only frames on this way; may be given several times
    #[arg(long, short)]
    pub direction: Vec<Way>,
    /// Only frames dropped for this reason, as `counters --all` lists them; may be given several
    /// times
    #[arg(long, short)]
    pub reason: Vec<String>,
    /// Write pcapng to this file; - for stdout
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub write: Option<PathBuf>,
    /// Bytes of each frame to keep
    #[arg(long, short, value_name = "BYTES", default_value_t = CaptureParams::MAX_SNAPLEN,
        value_parser = clap::value_parser!(u32).range(14..=65_535))]
    pub snaplen: u32,
    /// End after this many frames
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// The way of a frame.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Way {
    /// Into the switch
    Rx,
    /// Out of the switch
    Tx,
    /// Dropped
    Drop,
}

/// What to do with configurations.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration that runs, every default written out
    Show,
    /// Check a file and name every problem; needs no running switch
    Check {
        /// The file; - for stdin
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Show what applying a file would change
    Diff {
        /// The file; - for stdin
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Apply a file, whole or not at all; ports made by `port add` stay
    Apply {
        /// The file; - for stdin
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// The programs that there are pages and completions for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Program {
    /// This tool
    Vswitchctl,
    /// The daemon
    Vswitchd,
}

impl Program {
    /// Its command line.
    pub fn command(self) -> clap::Command {
        match self {
            Self::Vswitchctl => Cli::command(),
            Self::Vswitchd => crate::daemon::cli::Cli::command(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ports_to_add() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for good in [
            "vswitchctl port add vm1 --vhost-user /run/1.sock --mode client --queue-pairs 2",
            "vswitchctl port add vm1 --vhost-user /run/1.sock --trunk 10,20-30 --native 1",
            "vswitchctl port add nic --dpdk net_null0 --queues 2 --access 10 --down",
            "vswitchctl port add nic --yaml -",
            "vswitchctl --socket /x --json show",
            "vswitchctl show --json",
            "vswitchctl fdb flush --vlan 0",
        ] {
            assert!(parse(good).is_ok(), "{good}: {}", parse(good).unwrap_err());
        }
        for bad in [
            "vswitchctl port add vm1",
            "vswitchctl port add vm1 --vhost-user /run/1.sock --dpdk net_null0",
            "vswitchctl port add nic --dpdk net_null0 --queue-pairs 2",
            "vswitchctl port add nic --dpdk net_null0 --access 4095",
            "vswitchctl port add nic --dpdk net_null0 --native 5",
            "vswitchctl port show vm1 --qemu --libvirt",
            "vswitchctl capture --snaplen 2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
