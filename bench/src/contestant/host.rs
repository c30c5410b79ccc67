//! Contestants with any number of ports, for what is measured from outside: memory, idle time, TCP between real guests.
//!
//! A [`Host`] is the process and the sockets of its ports. Who sits there is the experiment's choice: simulated guests
//! that are [attached](Host::attach), or QEMU.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vswitch_simguest::frames::{Eth, ethernet};
use vswitch_simguest::{Endpoint, Role, SimGuest};

use super::moderated::{self, Rule};
use super::ovs::{self, Settings};
use super::{SESSION_LIMIT, testpmd};
use crate::cpu::Placement;
use crate::process::Process;
use crate::{Error, Peer, Result, machine};

/// How long a frame may take from one guest to another one.
const TALK_LIMIT: Duration = Duration::from_secs(10);
/// When a frame that did not arrive is sent again.
const AGAIN: Duration = Duration::from_millis(100);
/// Protocol of the frames that show who is there (IEEE 802, local experiments).
const HELLO: u16 = 0x88b5;

/// What the switch's worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Polls on for a while, then sleeps: the default.
    Adaptive,
    /// Polls on.
    Polls,
    /// Sleeps at once.
    Sleeps,
    /// As by default, and for 50 us where frames are few but steady.
    Naps,
    /// The same for 200 us.
    LongNaps,
}

/// Who is to be started.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A `vswitchd`: its name in tables, the program, what it does when idle.
    Switch(&'static str, PathBuf, Idle),
    /// A `vswitchd` that calls its guests by a rule: the program, the rule. It sleeps when idle, as by default.
    Moderated(PathBuf, Rule),
    /// DPDK's testpmd in io mode, with an even number of ports and the memory that it takes by default.
    Testpmd,
    /// Open vSwitch on DPDK, learning addresses.
    Ovs(Settings),
}

/// Who listens on the ports' sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The contestant; guests connect.
    Contestant,
    /// The guests; the contestant connects, and tries again until somebody is there.
    Guest,
}

/// A running contestant.
pub struct Host {
    about: String,
    sockets: Vec<PathBuf>,
    listener: Listener,
    // Dropped in this order: the contestant ends, then what it needs, its folder goes.
    process: Process,
    _helper: Option<Process>,
    _dir: TempDir,
}

impl Kind {
    /// Who it is on the command line; `None` for builds of the switch.
    pub fn peer(&self) -> Option<Peer> {
        match self {
            Self::Switch(..) | Self::Moderated(..) => None,
            Self::Testpmd => Some(Peer::Testpmd),
            Self::Ovs(_) => Some(Peer::Ovs),
        }
    }

    /// What tables call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Switch(name, ..) => name,
            Self::Moderated(_, rule) => rule.name,
            Self::Testpmd => "testpmd",
            Self::Ovs(_) => "ovs",
        }
    }

    /// Starts it with so many ports; its data thread, one, is on the worker's CPU.
    pub fn start(&self, ports: usize, placement: Placement) -> Result<Host> {
        let dir = TempDir::with_prefix("vswitch-bench").map_err(Error::io("make a folder"))?;
        let sockets: Vec<_> = (0..ports)
            .map(|port| dir.path().join(format!("{port}.sock")))
            .collect();
        let (path, mut helper, mut listener) = (dir.path(), None, Listener::Contestant);
        let process = match self {
            Self::Switch(name, program, idle) => {
                let text = configuration(path, &sockets, *idle, placement.worker, "");
                start_switch(name, path, program, &text)?
            }
            Self::Moderated(program, rule) => {
                let key = rule.key();
                let text = configuration(path, &sockets, Idle::Adaptive, placement.worker, &key);
                start_switch(rule.name, path, program, &text)?
            }
            Self::Testpmd => start_testpmd(path, &sockets, placement)?,
            Self::Ovs(settings) => {
                let name = self.name();
                let (switch, database) =
                    ovs::processes(name, path, &sockets, *settings, placement)?;
                (helper, listener) = (Some(database), Listener::Guest);
                switch
            }
        };
        Ok(Host {
            about: self.about(),
            sockets,
            listener,
            process,
            _helper: helper,
            _dir: dir,
        })
    }
}

impl Kind {
    /// What exactly it is.
    fn about(&self) -> String {
        match self {
            Self::Switch(_, program, idle) => {
                let version = machine::output(program, &["--version"]).unwrap_or_default();
                format!("{version}, one worker, {}", idle.name())
            }
            Self::Moderated(program, rule) => rule.about(program),
            Self::Testpmd => format!("{}, its default memory", testpmd::version()),
            Self::Ovs(settings) => format!("{}, {}", ovs::version(), settings.name()),
        }
    }
}

impl Idle {
    /// What tables call the switch that does so.
    pub fn switch(self) -> &'static str {
        match self {
            Self::Adaptive => "vswitch",
            Self::Polls => "vswitch-poll",
            Self::Sleeps => "vswitch-never",
            Self::Naps => "vswitch-nap50",
            Self::LongNaps => "vswitch-nap200",
        }
    }

    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "busy-poll adaptive (default)",
            Self::Polls => "busy-poll always",
            Self::Sleeps => "busy-poll never",
            Self::Naps => "busy-poll adaptive, max-sleep-usecs 50",
            Self::LongNaps => "busy-poll adaptive, max-sleep-usecs 200",
        }
    }

    /// As configurations have it.
    pub(super) fn value(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Polls => "always",
            Self::Sleeps => "never",
            Self::Naps => "adaptive, max-sleep-usecs: 50",
            Self::LongNaps => "adaptive, max-sleep-usecs: 200",
        }
    }
}

fn start_switch(
    name: &'static str,
    dir: &Path,
    program: &Path,
    configuration: &str,
) -> Result<Process> {
    let config = dir.join("vswitch.yaml");
    std::fs::write(&config, configuration).map_err(Error::io("write a configuration"))?;
    moderated::known(program, &config)?;
    let args = ["--config".to_owned(), config.display().to_string()];
    Process::start(name, dir, program, &args)
}

/// With `more` behind the socket of every port.
fn configuration(dir: &Path, sockets: &[PathBuf], idle: Idle, core: usize, more: &str) -> String {
    let mut text = format!(
        "control: {{ socket: {}/control.sock }}\n\
         workers: [ {{ core: {core}, busy-poll: {} }} ]\n\
         bridges: {{ br0: {{ }} }}\nports:\n",
        dir.display(),
        idle.value()
    );
    for (port, socket) in sockets.iter().enumerate() {
        let socket = socket.display();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  p{port}: {{ vhost-user: {{ socket: {socket}{more} }} }}"
        );
    }
    text
}

fn start_testpmd(dir: &Path, sockets: &[PathBuf], placement: Placement) -> Result<Process> {
    let program = testpmd::program()?;
    let mut args: Vec<String> = ["--in-memory", "--no-pci", "--no-telemetry", "--lcores"]
        .map(String::from)
        .into();
    args.push(format!("0@{},1@{}", placement.generator, placement.worker));
    args.extend(testpmd::ports(sockets));
    args.extend(
        [
            "--",
            "-i",
            "--auto-start",
            "--forward-mode=io",
            "--no-mlockall",
        ]
        .map(String::from),
    );
    Process::start("testpmd", dir, &program, &args)
}

impl Host {
    /// What exactly it is.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The ports' sockets.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Who is to listen on them.
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops it where it is; returns when it stands still.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// Lets it run on.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// Says more about an error: what its log has to tell.
    pub fn explain(&self, error: &Error) -> Error {
        self.process.complain(&error.to_string())
    }

    /// A simulated guest for each port, and each of them has been heard by another one.
    pub fn attach(&self) -> Result<Vec<SimGuest>> {
        let attached = self.connect().and_then(|mut guests| {
            talk(&mut guests)?;
            Ok(guests)
        });
        attached.map_err(|error| self.explain(&error))
    }

    fn connect(&self) -> Result<Vec<SimGuest>> {
        let role = |socket: &PathBuf| match self.listener {
            Listener::Contestant => Role::Connect(socket.clone()),
            Listener::Guest => Role::Listen(socket.clone()),
        };
        // All listen before the first one waits for its session.
        let endpoints = self.sockets.iter().map(|socket| {
            let endpoint =
                Endpoint::new(role(socket)).map_err(vswitch_simguest::GuestError::from)?;
            Ok((vswitch_simguest::Builder::new(role(socket)), endpoint))
        });
        let endpoints = endpoints.collect::<Result<Vec<_>>>()?;
        let guests = endpoints
            .into_iter()
            .zip(0..)
            .map(|((builder, endpoint), n)| {
                let builder = builder.mac(mac(n)).timeout(SESSION_LIMIT);
                Ok(builder.start_at(endpoint)?)
            });
        guests.collect()
    }
}

/// The address of a host's guest.
pub fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, n]
}

/// Each guest in turn sends to all until another one hears it. Then all of them throw away what they got.
fn talk(guests: &mut [SimGuest]) -> Result<()> {
    for sender in 0..guests.len() {
        let source = guests[sender].mac();
        let hello = ethernet(&Eth::new([0xff; 6], source), HELLO, &[0; 46]);
        let until = Instant::now() + TALK_LIMIT;
        guests[sender].send(&hello)?;
        let mut sent = Instant::now();
        while !heard(guests, source)? {
            if Instant::now() > until {
                return Err(Error::Silent(TALK_LIMIT.as_secs()));
            }
            if sent.elapsed() > AGAIN {
                guests[sender].send(&hello)?;
                sent = Instant::now();
            }
        }
    }
    for guest in guests {
        guest.recv_all(Duration::from_millis(1), usize::MAX)?;
    }
    Ok(())
}

/// Whether anybody has a frame from this source.
fn heard(guests: &mut [SimGuest], source: [u8; 6]) -> Result<bool> {
    let mut heard = false;
    for guest in guests {
        while let Some(frame) = guest.recv(Duration::ZERO)? {
            heard |= frame.bytes.get(6..12) == Some(&source[..]);
        }
    }
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_every_port() {
        let sockets: Vec<_> = (0..3)
            .map(|n| PathBuf::from(format!("/d/{n}.sock")))
            .collect();
        let text = configuration(Path::new("/d"), &sockets, Idle::Polls, 7, "");
        assert!(text.contains("core: 7, busy-poll: always"));
        assert!(text.ends_with("  p2: { vhost-user: { socket: /d/2.sock } }\n"));
        assert_eq!(text.matches("vhost-user").count(), 3);
    }
}
