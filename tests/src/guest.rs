//! Real Linux guests: QEMU, driven over the serial console.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vswitch_packet::MacAddr;

use crate::console::{Console, find_marked, marked};
use crate::error::{Error, Result};
use crate::process::{LOOK_AGAIN, Process, Streams};
use crate::run_dir::RunDir;
use crate::{kernel, machine, monitor};

/// How long a guest may take to boot. Under emulation, on a busy machine, with others booting beside it.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a console command may take that says nothing else.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);
/// Longest console command: the terminal's line discipline holds 4095 bytes of a line.
const COMMAND_MAX: usize = 4000;

/// QEMU's part on a vhost-user socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// QEMU listens: the port has `mode: client`.
    Server,
    /// QEMU connects, and again when the connection is lost: the port has `mode: server`.
    Client,
}

#[derive(Debug, Clone)]
enum Backend {
    VhostUser(PathBuf, Role),
    Tap(String),
}

/// A guest's NIC.
#[derive(Debug, Clone)]
pub struct Nic {
    backend: Backend,
    mac: MacAddr,
    queue_pairs: u16,
    options: Vec<String>,
}

impl Nic {
    /// A NIC on a vhost-user socket.
    pub fn vhost_user(socket: impl Into<PathBuf>, role: Role, mac: MacAddr) -> Self {
        Self {
            backend: Backend::VhostUser(socket.into(), role),
            mac,
            queue_pairs: 1,
            options: Vec::new(),
        }
    }

    /// A NIC on a tap device that exists.
    pub fn tap(name: impl Into<String>, mac: MacAddr) -> Self {
        Self {
            backend: Backend::Tap(name.into()),
            mac,
            queue_pairs: 1,
            options: Vec::new(),
        }
    }

    /// So many queue pairs.
    #[must_use]
    pub fn queue_pairs(mut self, pairs: u16) -> Self {
        self.queue_pairs = pairs;
        self
    }

    /// Switches properties of QEMU's device off, such as `csum`, `guest_tso4`, `mrg_rxbuf`, `event_idx`.
    #[must_use]
    pub fn without(mut self, properties: &[&str]) -> Self {
        self.options
            .extend(properties.iter().map(|property| format!("{property}=off")));
        self
    }

    /// Sets properties of QEMU's device, such as `host_mtu=9000` or `rx_queue_size=512`.
    #[must_use]
    pub fn with(mut self, properties: &[&str]) -> Self {
        self.options
            .extend(properties.iter().map(|&property| property.to_owned()));
        self
    }

    fn arguments(&self, index: usize) -> Vec<String> {
        let pairs = self.queue_pairs;
        let mut arguments = Vec::new();
        match &self.backend {
            Backend::VhostUser(path, role) => {
                let role = match role {
                    Role::Server => ",server=on,wait=off",
                    Role::Client => ",reconnect-ms=200",
                };
                arguments.push("-chardev".into());
                arguments.push(format!("socket,id=c{index},path={}{role}", path.display()));
                arguments.push("-netdev".into());
                arguments.push(format!(
                    "vhost-user,id=n{index},chardev=c{index},queues={pairs}"
                ));
            }
            Backend::Tap(name) => {
                arguments.push("-netdev".into());
                arguments.push(format!(
                    "tap,id=n{index},ifname={name},script=no,downscript=no"
                ));
            }
        }
        let mut device = format!("virtio-net-pci,netdev=n{index},mac={},romfile=", self.mac);
        if pairs > 1 {
            device.push_str(&format!(",mq=on,vectors={}", 2 * pairs + 2));
        }
        for option in &self.options {
            device.push(',');
            device.push_str(option);
        }
        arguments.extend(["-device".into(), device]);
        arguments
    }
}

/// What a guest is to be like.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    name: String,
    nics: Vec<Nic>,
    addresses: Vec<String>,
    cpus: u16,
    memory_mib: u32,
    mtu: Option<u16>,
}

impl GuestSpec {
    /// A guest with one processor, 256 MiB and no NIC.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            nics: Vec::new(),
            addresses: Vec::new(),
            cpus: 1,
            memory_mib: 256,
            mtu: None,
        }
    }

    /// One more NIC: `eth0`, then `eth1`, … With an address like `10.0.0.1/24` it is brought up, with an empty one not.
    #[must_use]
    pub fn nic(mut self, nic: Nic, address: &str) -> Self {
        self.nics.push(nic);
        self.addresses.push(address.to_owned());
        self
    }

    /// So many processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u16) -> Self {
        self.cpus = cpus;
        self
    }

    /// The MTU of all NICs. QEMU must allow it: `Nic::with(&["host_mtu=9000"])`.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = vec![
            "--name".into(),
            self.name.clone(),
            "--cpus".into(),
            self.cpus.to_string(),
            "--memory".into(),
            self.memory_mib.to_string(),
            "--ip".into(),
            self.addresses.join(","),
        ];
        if let Some(mtu) = self.mtu {
            arguments.extend(["--mtu".into(), mtu.to_string()]);
        }
        arguments.push("--".into());
        for (index, nic) in self.nics.iter().enumerate() {
            arguments.extend(nic.arguments(index));
        }
        arguments
    }
}

/// A running guest. Killed at the drop.
pub struct Guest {
    process: Process,
    console: Console,
    monitor: PathBuf,
    commands: u64,
}

impl Guest {
    /// Boots a guest.
    pub fn boot(dir: &RunDir, spec: &GuestSpec) -> Result<Self> {
        let mut guest = Self::start(dir, spec)?;
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Boots several guests at the same time.
    pub fn boot_all<const N: usize>(dir: &RunDir, specs: [&GuestSpec; N]) -> Result<[Self; N]> {
        let mut guests = Vec::with_capacity(N);
        for spec in specs {
            guests.push(Self::start(dir, spec)?);
        }
        for guest in &mut guests {
            guest.wait_ready()?;
        }
        guests
            .try_into()
            .map_err(|_| Error::Failed("as many guests as specs were to be booted".into()))
    }

    /// Starts a guest without waiting; [`Guest::wait_ready`] must come before the first command.
    pub fn start(dir: &RunDir, spec: &GuestSpec) -> Result<Self> {
        machine::need_guests()?;
        let boot = machine::source_root().join("tests/guest/boot");
        let monitor = dir.join(format!("{}-qmp.sock", spec.name));
        let mut arguments = spec.arguments();
        arguments.extend([
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", monitor.display()),
        ]);
        let mut process = Process::start_with(dir, &spec.name, boot, arguments, Streams::Driven)?;
        let pipes = process
            .take_pipes()
            .ok_or_else(|| Error::Failed("a guest without a console".into()))?;
        let log = dir.join(format!("{}-console.log", spec.name));
        let console = Console::new(&spec.name, pipes, &log)?;
        Ok(Self {
            process,
            console,
            monitor,
            commands: 0,
        })
    }

    /// Waits until the guest has booted and its NICs with addresses are up.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.console.wait_for_text("guest ready: ", BOOT_LIMIT)?;
        // The shell behind the line starts a moment later; the terminal keeps what comes before.
        self.run("true").map(drop)
    }

    /// Runs a shell command that takes less than 30 seconds, and returns what it prints. Any status but 0 is an error.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.run_for(command, COMMAND_LIMIT)
    }

    /// Runs a shell command, and returns what it prints. Any status but 0 is an error.
    pub fn run_for(&mut self, command: &str, limit: Duration) -> Result<String> {
        match self.try_run(command, limit)? {
            (0, output) => Ok(output),
            (status, output) => Err(Error::Command {
                whom: self.process.name().to_owned(),
                command: command.to_owned(),
                status,
                output,
            }),
        }
    }

    /// Runs a shell command, and returns its status and what it prints.
    pub fn try_run(&mut self, command: &str, limit: Duration) -> Result<(i32, String)> {
        self.begin(command)?;
        self.finish(limit)
    }

    /// Starts a shell command; [`Guest::finish`] must come before the next one.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        if command.len() > COMMAND_MAX {
            return Err(Error::Failed(format!(
                "a console command of {} characters is too long",
                command.len()
            )));
        }
        self.commands += 1;
        self.console.write(&marked(command, self.commands))
    }

    /// Waits for the command that was begun; returns its status and what it prints. One that takes too long is
    /// interrupted, and the guest can be used on.
    pub fn finish(&mut self, limit: Duration) -> Result<(i32, String)> {
        let mark = self.commands;
        let ended = self
            .console
            .wait_for("the end of a command", limit, |text| {
                find_marked(text, mark)
            });
        if matches!(ended, Err(Error::Timeout { .. })) {
            self.interrupt()?;
        }
        ended.map(|ended| (ended.status, ended.output))
    }

    /// Ends the command that runs. That ends the shell, too, and the terminal loses what is sent until there is a new one:
    /// so ask until somebody answers.
    fn interrupt(&mut self) -> Result<()> {
        self.console.write("\x03")?;
        let mut answer = Ok(());
        for _ in 0..20 {
            self.begin("true")?;
            let mark = self.commands;
            let wait = Duration::from_millis(500);
            answer = self
                .console
                .wait_for("a new shell", wait, |text| find_marked(text, mark))
                .map(drop);
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    /// Sends `count` pings to an address and returns how many were answered, however long that took.
    pub fn ping(&mut self, address: &str, count: u32) -> Result<u32> {
        self.ping_within(address, count, 20)
    }

    /// The same; no more than so many seconds after the last one.
    pub fn ping_within(&mut self, address: &str, count: u32, seconds: u32) -> Result<u32> {
        let (_, output) = self.try_run(
            &format!("ping -i 0.1 -W {seconds} -c {count} {address}"),
            COMMAND_LIMIT + Duration::from_secs(2) * count,
        )?;
        answered(&output).ok_or_else(|| Error::Failed(format!("ping makes no sense: {output}")))
    }

    /// Waits until a program here listens on a TCP port.
    pub fn wait_listening(&mut self, port: u16) -> Result<()> {
        let started = Instant::now();
        while !kernel::listens(&self.run("cat /proc/net/tcp*")?, port) {
            crate::check!(
                started.elapsed() < COMMAND_LIMIT,
                "{}: nobody listens on port {port}",
                self.process.name()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Waits until an address answers a ping.
    pub fn wait_for_answer(&mut self, address: &str, limit: Duration) -> Result<()> {
        let tries = limit.as_secs().max(1);
        self.run_for(
            &format!("for i in $(seq {tries}); do ping -c 1 -W 1 {address} && exit_now=1 && break; done; [ \"$exit_now\" ]"),
            limit * 2 + COMMAND_LIMIT,
        )
        .map(drop)
    }

    /// Restarts the machine from inside, as hard as `reboot -f`, and waits until it is back.
    pub fn reboot(&mut self) -> Result<()> {
        self.console.write("reboot -f\n")?;
        self.wait_ready()
    }

    /// Stops the machine where it is, its clock included. QEMU takes its rings back from the switch, which must answer.
    pub fn pause(&self) -> Result<()> {
        monitor::command(&self.monitor, "stop")
    }

    /// Lets a paused machine run on.
    pub fn resume(&self) -> Result<()> {
        monitor::command(&self.monitor, "cont")
    }

    /// Kills QEMU without a warning.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// QEMU.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// How many pings were answered, from what `ping` prints at its end.
fn answered(output: &str) -> Option<u32> {
    let (before, _) = output.split_once(" packets received")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    #[test]
    fn nics_become_qemu_arguments() {
        let nic = Nic::vhost_user("/run/x.sock", Role::Server, MAC)
            .queue_pairs(2)
            .without(&["csum"]);
        assert_eq!(
            nic.arguments(1),
            [
                "-chardev",
                "socket,id=c1,path=/run/x.sock,server=on,wait=off",
                "-netdev",
                "vhost-user,id=n1,chardev=c1,queues=2",
                "-device",
                "virtio-net-pci,netdev=n1,mac=52:54:00:00:00:01,romfile=,mq=on,vectors=6,csum=off",
            ]
        );
    }

    #[test]
    fn addresses_are_listed_by_place() {
        let nic = Nic::tap("tap0", MAC);
        let spec = GuestSpec::new("vm1")
            .nic(nic.clone(), "")
            .nic(nic, "10.0.0.1/24");
        let arguments = spec.arguments().join(" ");
        assert!(
            arguments.contains("--ip ,10.0.0.1/24 -- -netdev tap,id=n0,ifname=tap0"),
            "{arguments}"
        );
    }

    #[test]
    fn pings_are_counted() {
        let output = "PING x\n\n--- x ping statistics ---\n5 packets transmitted, 4 packets received, 20% packet loss";
        assert_eq!(answered(output), Some(4));
        assert_eq!(answered("ping: bad address"), None);
    }
}
