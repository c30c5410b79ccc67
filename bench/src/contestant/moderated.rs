//! The switch with a rule for when it calls its guests, and two guests with event indices: one program, one
//! configuration for each rule.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use tempfile::TempDir;
use vswitch_simguest::SimGuest;
use vswitch_simguest::features::virtio::EVENT_IDX;
use vswitch_simguest::memory::Layout;

use super::host::Idle;
use super::{GUEST_MEMORY, options, sockets};
use crate::cpu::Placement;
use crate::generator::{Ends, FEATURES, MAC_A, MAC_B, Wire};
use crate::interference::threads_of;
use crate::process::Process;
use crate::{Error, Result, machine};

/// Entries of the guests' rings: QEMU's default.
const RING: u16 = 256;

/// A rule, as configurations have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// What tables call it.
    pub name: &'static str,
    /// The policy; nothing for the switch's default.
    pub policy: Option<&'static str>,
    /// Microseconds that a call is held back, and frames, if the policy has such.
    pub knobs: Option<(u32, u16)>,
}

impl Rule {
    /// What the switch does if nothing is said.
    pub const DEFAULT: Self = Self {
        name: "vswitch",
        policy: None,
        knobs: None,
    };

    /// A policy by its name.
    pub const fn of(policy: &'static str) -> Self {
        Self {
            name: policy,
            policy: Some(policy),
            knobs: None,
        }
    }

    /// A call so many microseconds or frames after the first frame; no frames: time alone.
    pub const fn fixed(name: &'static str, usecs: u32, frames: u16) -> Self {
        Self {
            name,
            policy: Some("static"),
            knobs: Some((usecs, frames)),
        }
    }

    /// Whether it is one of the static settings.
    pub fn is_static(&self) -> bool {
        self.knobs.is_some()
    }

    /// A program with this rule, in words.
    pub fn about(&self, program: &Path) -> String {
        let version = machine::output(program, &["--version"]).unwrap_or_default();
        let key = self.key();
        format!(
            "{version}, {}",
            key.strip_prefix(", ").unwrap_or("its default rule")
        )
    }

    /// As a further key of a guest's port.
    pub(super) fn key(&self) -> String {
        let Some(policy) = self.policy else {
            return String::new();
        };
        let knobs = self.knobs.map_or(String::new(), |(usecs, frames)| {
            let frames = match frames {
                0 => String::new(),
                frames => format!(", rx-frames: {frames}"),
            };
            format!(", rx-usecs: {usecs}{frames}")
        });
        format!(", coalesce: {{ policy: {policy}{knobs} }}")
    }
}

/// A running `vswitchd`; it stands still unless told otherwise.
pub struct Moderated {
    /// Its rule.
    pub rule: Rule,
    // Dropped in this order: guests hang up, the daemon ends, its folder goes.
    wire: Wire,
    _sessions: [SimGuest; 2],
    process: Process,
    _dir: TempDir,
}

impl Moderated {
    /// Starts `program` and connects two guests; an error if it does not know the rule.
    pub fn start(rule: Rule, program: &Path, idle: Idle, placement: Placement) -> Result<Self> {
        let dir = TempDir::with_prefix("vswitch-bench").map_err(Error::io("make a folder"))?;
        let config = dir.path().join("vswitch.yaml");
        let text = configuration(dir.path(), rule, idle, placement.worker);
        std::fs::write(&config, text).map_err(Error::io("write a configuration"))?;
        known(program, &config)?;
        let args = ["--config".to_owned(), config.display().to_string()];
        let process = Process::start(rule.name, dir.path(), program, &args)?;
        let [a, b] = sockets(dir.path());
        let connect = |socket: &PathBuf, mac| -> Result<_> {
            // Ordinary memory: there are more of them than hugepages.
            let builder = options(SimGuest::connect_to(socket))
                .layout(Layout::single(GUEST_MEMORY))
                .ring_size(RING)
                .features(FEATURES | EVENT_IDX)
                .mac(mac);
            let mut guest = builder.start()?;
            let pair = guest.take_queue(0)?;
            let (tx, rx) = (pair.tx, pair.rx);
            Ok((guest, Ends { tx, rx }))
        };
        let guests = connect(&a, MAC_A).and_then(|a| Ok((a, connect(&b, MAC_B)?)));
        let ((guest_a, a), (guest_b, b)) = guests.map_err(|error| process.explain(error))?;
        process.favour();
        let mut switch = Self {
            rule,
            wire: Wire {
                a,
                b,
                introduce: true,
            },
            _sessions: [guest_a, guest_b],
            process,
            _dir: dir,
        };
        switch.stop()?;
        Ok(switch)
    }

    /// Its guests' queues.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Folders in `/proc` of its threads.
    pub fn tasks(&self) -> Vec<PathBuf> {
        threads_of(self.process.pid())
    }

    /// Stops it; returns when it stands still.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()
    }

    /// Lets it run on.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// Says more about an error.
    pub fn explain(&self, error: Error) -> Error {
        self.process.explain(error)
    }
}

/// Whether the program takes this configuration; what it says if it does not.
pub(super) fn known(program: &Path, config: &Path) -> Result<()> {
    let output = Command::new(program)
        .arg("--check")
        .arg("--config")
        .arg(config)
        .output()
        .map_err(Error::io(format!("run {}", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or_default();
    Err(Error::Usage(format!("not known to it: {}", first.trim())))
}

fn configuration(dir: &Path, rule: Rule, idle: Idle, core: usize) -> String {
    let [a, b] = sockets(dir);
    let port = |socket: PathBuf| {
        format!(
            "{{ vhost-user: {{ socket: {}{} }} }}",
            socket.display(),
            rule.key()
        )
    };
    format!(
        "control: {{ socket: {}/control.sock }}\n\
         workers: [ {{ core: {core}, busy-poll: {} }} ]\n\
         bridges: {{ br0: {{ }} }}\nports:\n  a: {}\n  b: {}\n",
        dir.display(),
        idle.value(),
        port(a),
        port(b)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::napi::{Costs, Spans, Traffic};

    #[test]
    fn a_rule_is_a_key_of_both_ports() {
        let of = |rule| configuration(Path::new("/d"), rule, Idle::Adaptive, 1);
        let text = of(Rule::fixed("16us", 16, 32));
        let key = "coalesce: { policy: static, rx-usecs: 16, rx-frames: 32 } } }\n";
        assert_eq!(text.matches(key).count(), 2, "{text}");
        assert!(of(Rule::fixed("16us", 16, 0)).contains("{ policy: static, rx-usecs: 16 }"));
        assert!(of(Rule::of("vpp")).contains("coalesce: { policy: vpp }"));
        assert!(!of(Rule::DEFAULT).contains("coalesce"));
    }

    /// Slices in one of which a guest gets frames and is called.
    const TRIES: u32 = 100;

    /// The daemon beside this test, if it has been built.
    fn daemon() -> Option<PathBuf> {
        let test = std::env::current_exe().ok()?;
        let program = test.parent()?.parent()?.join("vswitchd");
        program.is_file().then_some(program)
    }

    #[test]
    fn a_daemon_calls_by_its_rule_and_refuses_one_it_does_not_know() {
        let (Some(program), Ok(placement)) = (daemon(), Placement::first_two()) else {
            return;
        };
        let costs = Costs {
            interrupt_ns: 5_000,
            frame_ns: 300,
        };
        let spans = Spans {
            warm_ms: 5,
            window_ms: 20,
            windows: 3,
        };
        for rule in [Rule::of("per-packet"), Rule::fixed("2ms", 2_000, 0)] {
            let mut switch = Moderated::start(rule, &program, Idle::Adaptive, placement).unwrap();
            switch.resume().unwrap();
            let load = Traffic::Poisson { rate: 2e4 };
            // A machine with much else to do may let nothing through in a slice: there is one in which it does.
            let seen = (0..TRIES).find_map(|_| {
                let seen = load
                    .slice(switch.wire(), costs, spans, 1, |_| true)
                    .unwrap();
                let called = seen.received > 0 && seen.interrupts > 0;
                // Two milliseconds of frames are one call.
                let held = seen.interrupts_per_frame() < 0.3;
                (called && (held || !rule.is_static())).then_some(seen)
            });
            switch.stop().unwrap();
            assert!(seen.is_some(), "{rule:?}");
        }
        let refused = Moderated::start(Rule::of("never"), &program, Idle::Adaptive, placement);
        assert!(refused.is_err_and(|error| error.to_string().contains("not known to it")));
    }
}
