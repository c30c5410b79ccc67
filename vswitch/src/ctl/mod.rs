//! `vswitchctl`: the operator's view of a running switch.
//!
//! Each command is one request on the control socket ([`client`]) and one way to show its result:
//! as text for people, aligned and with sparse colour on a terminal, or with `--json` exactly as
//! the daemon sent it, for programs. Rendering is apart from asking: it takes a result and gives
//! a text, so every output is tested without a daemon.
//!
//! Exit codes: 0 done, 1 refused or failed (a sentence on stderr says what and what to do), 2
//! wrong usage. A reader that closes the pipe early ends the command in silence.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use vswitch_api::config::{self, ConfigErrors};
use vswitch_api::rpc::{self, Method, methods};

use cli::{Cli, CoalesceCommand, Command, ConfigCommand, FdbCommand, PortCommand, SteerCommand};
use client::Client;
use text::Paint;

pub mod cli;
pub mod pages;

mod capture;
mod client;
mod coalesce;
mod configure;
mod counters;
mod fdb;
mod guest;
mod port;
mod show;
mod steer;
mod text;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    /// Nobody listens on the control socket.
    #[error(
        "no switch answers at {0}; start it with `vswitchd --config FILE`, or name its control socket with --socket"
    )]
    NotRunning(String),
    /// The socket's permissions keep us out.
    #[error(
        "no permission for the control socket {0}; become root or a member of its group (`control: owner` and `permissions` in the configuration)"
    )]
    NotAllowed(String),
    /// Something else is wrong with the socket.
    #[error("cannot connect to {path}: {error}; name the control socket with --socket")]
    Connect { path: String, error: io::Error },
    /// The daemon went away, or hung up.
    #[error("the switch ended the conversation ({0}); see the log of vswitchd for the reason")]
    Lost(String),
    /// What came is not JSON-RPC.
    #[error(
        "{path} gives an answer that means nothing ({error}); is it the socket of a vswitchd of this version?"
    )]
    Nonsense { path: String, error: String },
    /// The daemon said no.
    #[error("{0}")]
    Refused(rpc::RpcError),
    /// A configuration has problems.
    #[error("{0}")]
    Config(ConfigErrors),
    /// A file of the operator's.
    #[error("cannot {verb} {path}: {error}")]
    File {
        verb: &'static str,
        path: String,
        error: io::Error,
    },
    /// Wrong usage that clap does not see.
    #[error("{0}")]
    Usage(String),
    /// Writing to stdout.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command line; the exit code is the process's.
pub fn run(cli: &Cli) -> ExitCode {
    match execute(cli) {
        Ok(code) => code,
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let paint = Paint::new(io::stderr().is_terminal());
            // Nothing can be done about a stderr that is closed.
            let _ = writeln!(io::stderr(), "{} {error}", paint.bad("vswitchctl:"));
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: &Cli) -> Result<ExitCode, CtlError> {
    let asker = Asker {
        cli,
        paint: Paint::new(io::stdout().is_terminal() && !cli.json),
    };
    match &cli.command {
        Command::Show => asker.ask::<methods::Show>(&rpc::NoParams {}, |status| {
            show::status(status, now(), asker.paint)
        }),
        Command::Version => asker.version(),
        Command::Counters { port, all } => {
            let params = rpc::CountersParams { port: port.clone() };
            asker.ask::<methods::GetCounters>(&params, |counters| {
                counters::render(counters, *all, asker.paint)
            })
        }
        Command::Workers => asker
            .ask::<methods::Workers>(&rpc::NoParams {}, |list| steer::workers(list, asker.paint)),
        Command::Steer { command } => asker.steer(command),
        Command::Port { command } => asker.port(command),
        Command::Coalesce { command } => asker.coalesce(command),
        Command::Fdb { command } => asker.fdb(command),
        Command::Capture(options) => capture::run(&mut asker.connect()?, options, cli.json),
        Command::Config { command } => asker.config(command),
        Command::Completions { shell, program } => {
            print(pages::completions(*shell, program.command())).map(|()| ExitCode::SUCCESS)
        }
        Command::Man { directory: None } => {
            print(pages::page(&cli::Program::Vswitchctl.command(), "1")?)
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Man {
            directory: Some(directory),
        } => {
            let written = pages::write_all(directory)
                .map_err(|e| file_error("write man pages to", directory, e))?;
            print(written.join("\n")).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// What all commands need: where the daemon is and how to show what it says.
struct Asker<'c> {
    cli: &'c Cli,
    paint: Paint,
}

impl Asker<'_> {
    fn connect(&self) -> Result<Client, CtlError> {
        let named = std::env::var_os("VSWITCH_SOCKET").filter(|v| !v.is_empty());
        match self.cli.socket.clone().or(named.map(Into::into)) {
            Some(path) => Client::connect(&path),
            None => Client::connect_default(&default_sockets()),
        }
    }

    /// One request, shown as JSON or by `render`.
    fn ask<M: Method>(
        &self,
        params: &M::Params,
        render: impl FnOnce(&M::Result) -> String,
    ) -> Result<ExitCode, CtlError> {
        let result = self.connect()?.call::<M>(params)?;
        self.tell(&result, || render(&result))
    }

    fn tell<T: Serialize>(
        &self,
        result: &T,
        render: impl FnOnce() -> String,
    ) -> Result<ExitCode, CtlError> {
        if self.cli.json {
            let text =
                serde_json::to_string_pretty(result).map_err(|e| CtlError::Lost(e.to_string()))?;
            print(text)?;
        } else {
            print(render())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn version(&self) -> Result<ExitCode, CtlError> {
        let own = env!("CARGO_PKG_VERSION");
        if self.cli.json {
            return self.ask::<methods::GetVersion>(&rpc::NoParams {}, |_| String::new());
        }
        print(format!("vswitchctl {own}"))?;
        // Its own version is of use without a daemon, too.
        let daemon = match self.connect() {
            Ok(mut client) => client.call::<methods::GetVersion>(&rpc::NoParams {})?,
            Err(CtlError::NotRunning(_)) => {
                return print("vswitchd does not run").map(|()| ExitCode::SUCCESS);
            }
            Err(error) => return Err(error),
        };
        let dpdk = daemon
            .dpdk
            .map_or("without DPDK".into(), |dpdk| format!("with {dpdk}"));
        print(format!("vswitchd {} {dpdk}", daemon.version))?;
        Ok(ExitCode::SUCCESS)
    }

    fn port(&self, command: &PortCommand) -> Result<ExitCode, CtlError> {
        match command {
            PortCommand::Add(options) => {
                let params = port::to_add(options)?;
                self.ask::<methods::PortAdd>(&params, port::added)
            }
            PortCommand::Remove { name } => {
                let params = rpc::PortName { name: name.clone() };
                self.ask::<methods::PortRemove>(&params, |_| format!("port {name} is gone"))
            }
            PortCommand::Set { name, what } => {
                let params = port::to_set(name, what);
                self.ask::<methods::PortSet>(&params, |port| {
                    port::was_set(port, what, now(), self.paint)
                })
            }
            PortCommand::Show {
                name,
                qemu,
                libvirt,
            } => {
                let params = rpc::PortName { name: name.clone() };
                let detail = self.connect()?.call::<methods::PortShow>(&params)?;
                if *qemu {
                    return print(guest::qemu(&detail)?).map(|()| ExitCode::SUCCESS);
                }
                if *libvirt {
                    return print(guest::libvirt(&detail)?).map(|()| ExitCode::SUCCESS);
                }
                self.tell(&detail, || port::detail(&detail, now(), self.paint))
            }
        }
    }

    fn steer(&self, command: &SteerCommand) -> Result<ExitCode, CtlError> {
        let decisions = |list: &rpc::SteerDecisions| steer::decisions(list, now_ms(), self.paint);
        match command {
            SteerCommand::Show => self.ask::<methods::SteerShow>(&rpc::NoParams {}, |status| {
                steer::show(status, self.paint)
            }),
            SteerCommand::Rebalance => {
                self.ask::<methods::SteerRebalance>(&rpc::NoParams {}, decisions)
            }
            SteerCommand::Set { queue, worker } => {
                let params = steer::to_set(queue, *worker);
                self.ask::<methods::SteerSet>(&params, |_| steer::was_set(queue, *worker))
            }
            SteerCommand::Share { queue, wish } => {
                let params = steer::to_share(queue, *wish);
                self.ask::<methods::SteerShare>(&params, |_| steer::was_shared(queue, *wish))
            }
            SteerCommand::Trace => self.ask::<methods::SteerTrace>(&rpc::NoParams {}, decisions),
        }
    }

    fn coalesce(&self, command: &CoalesceCommand) -> Result<ExitCode, CtlError> {
        match command {
            CoalesceCommand::Show { port, all } => {
                let params = rpc::CoalesceShowParams { port: port.clone() };
                self.ask::<methods::CoalesceShow>(&params, |list| {
                    coalesce::show(list, *all, self.paint)
                })
            }
            CoalesceCommand::Set {
                port,
                settings,
                policy,
            } => {
                let mut client = self.connect()?;
                let params = rpc::CoalesceShowParams {
                    port: Some(port.clone()),
                };
                let before = client.call::<methods::CoalesceShow>(&params)?;
                let before = before.ports.first().map(|p| p.coalesce);
                let coalesce =
                    coalesce::change(before.unwrap_or_default(), policy.as_deref(), settings)
                        .map_err(CtlError::Usage)?;
                let params = rpc::CoalesceSetParams {
                    port: port.clone(),
                    coalesce,
                };
                let set = client.call::<methods::CoalesceSet>(&params)?;
                self.tell(&set, || coalesce::was_set(&set))
            }
        }
    }

    fn fdb(&self, command: &FdbCommand) -> Result<ExitCode, CtlError> {
        match command {
            FdbCommand::Show(filter) => self
                .ask::<methods::FdbShow>(&filter.to_params(), |list| fdb::render(list, self.paint)),
            FdbCommand::Add { mac, port, vlan } => {
                let params = rpc::FdbAddParams {
                    mac: *mac,
                    vlan: *vlan,
                    port: port.clone(),
                };
                self.ask::<methods::FdbAdd>(&params, |_| {
                    format!("{mac} is behind {port} until vswitchd ends")
                })
            }
            FdbCommand::Del { mac, vlan, bridge } => {
                let params = rpc::FdbDelParams {
                    bridge: bridge.clone(),
                    mac: *mac,
                    vlan: *vlan,
                };
                self.ask::<methods::FdbDel>(&params, |_| format!("{mac} is forgotten"))
            }
            FdbCommand::Flush(filter) => {
                self.ask::<methods::FdbFlush>(&filter.to_params(), |flushed| {
                    format!(
                        "{} forgotten",
                        text::counted(flushed.removed, "address", "addresses")
                    )
                })
            }
        }
    }

    fn config(&self, command: &ConfigCommand) -> Result<ExitCode, CtlError> {
        match command {
            ConfigCommand::Show => {
                self.ask::<methods::ConfigShow>(&rpc::NoParams {}, configure::shown)
            }
            ConfigCommand::Check { file } => {
                let input = input(file)?;
                let checked = match self.connect() {
                    Ok(mut client) => client.call::<methods::ConfigCheck>(&input)?,
                    Err(_) => configure::check_here(&input),
                };
                let fine = checked.problems.is_empty();
                if self.cli.json {
                    self.tell(&checked, String::new)?;
                    return Ok(if fine {
                        ExitCode::SUCCESS
                    } else {
                        ExitCode::FAILURE
                    });
                }
                if !fine {
                    return Err(CtlError::Config(checked.problems));
                }
                print(format!("{} is fine", input.file)).map(|()| ExitCode::SUCCESS)
            }
            ConfigCommand::Diff { file } => {
                let input = input(file)?;
                self.ask::<methods::ConfigDiff>(&input, |plan| {
                    configure::plan(plan, &input.file, false, self.paint)
                })
            }
            ConfigCommand::Apply { file } => {
                let input = input(file)?;
                self.ask::<methods::ConfigApply>(&input, |plan| {
                    configure::plan(plan, &input.file, true, self.paint)
                })
            }
        }
    }
}

/// Where a daemon's socket may be: our own, then the system's, which a member of the socket's
/// group may use, too.
fn default_sockets() -> Vec<PathBuf> {
    let own = crate::daemon::environment().control_socket();
    let system = config::Environment::default().control_socket();
    if own == system {
        vec![own]
    } else {
        vec![own, system]
    }
}

/// A configuration from a file, `-` for stdin. More than the limit is not read: the daemon
/// refuses it anyway.
fn input(file: &Path) -> Result<rpc::ConfigInput, CtlError> {
    let limit = config::limits::TEXT as u64 + 1;
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|e| file_error("read", file, e))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| file_error("read", file, io::Error::new(io::ErrorKind::InvalidData, e)))?;
    Ok(rpc::ConfigInput {
        text,
        file: file.display().to_string(),
    })
}

fn file_error(verb: &'static str, path: &Path, error: io::Error) -> CtlError {
    CtlError::File {
        verb,
        path: path.display().to_string(),
        error,
    }
}

/// To stdout, with a newline at the end.
fn print(text: impl AsRef<[u8]>) -> Result<(), CtlError> {
    let text = text.as_ref();
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    if !text.is_empty() && !text.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

/// Compares with `expected/NAME.txt`; with `UPDATE_EXPECTED=1` in the environment, writes it.
#[cfg(test)]
fn expect(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/ctl/expected")
        .join(name);
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let diff = similar::TextDiff::from_lines(expected.as_str(), actual);
    assert!(expected == actual, "{name}:\n{}", diff.unified_diff());
}

#[cfg(test)]
mod tests;
