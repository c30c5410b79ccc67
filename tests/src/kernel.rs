//! The host kernel's network as a peer: bridges with tap devices, namespaces with veth pairs. All of it needs root, and
//! is removed at the drop.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::machine;
use crate::process::LOOK_AGAIN;

/// Interface names have at most 15 characters: "vs", the process, a letter and a number.
fn unique(kind: char) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "vs{}{kind}{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// How long a program may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(60);

/// Whether somebody listens on a TCP port, by the kernel's tables of sockets (`/proc/net/tcp` and `tcp6`).
pub(crate) fn listens(table: &str, port: u16) -> bool {
    /// TCP_LISTEN.
    const LISTENING: &str = "0A";
    let end = format!(":{port:04X}");
    table.lines().any(|line| {
        // Slot, local address, remote address, state.
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some(LISTENING)
    })
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(Error::io(format!("run {program}")))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        return Err(Error::Command {
            whom: "host".into(),
            command: format!("{program} {}", args.join(" ")),
            status: output.status.code().unwrap_or(-1),
            output: text,
        });
    }
    Ok(text)
}

/// A kernel bridge, with tap devices for guests.
#[derive(Debug)]
pub struct KernelBridge {
    name: String,
    taps: Vec<String>,
}

impl KernelBridge {
    /// A bridge that is up, without ports.
    pub fn new() -> Result<Self> {
        machine::need_root("kernel bridges")?;
        let name = unique('b');
        run("ip", &["link", "add", &name, "type", "bridge"])?;
        let bridge = Self {
            name,
            taps: Vec::new(),
        };
        run("ip", &["link", "set", &bridge.name, "up"])?;
        Ok(bridge)
    }

    /// One more tap device in the bridge; returns its name.
    pub fn tap(&mut self) -> Result<String> {
        let tap = unique('t');
        run("ip", &["tuntap", "add", &tap, "mode", "tap", "vnet_hdr"])?;
        self.taps.push(tap.clone());
        run("ip", &["link", "set", &tap, "master", &self.name, "up"])?;
        Ok(tap)
    }
}

impl Drop for KernelBridge {
    fn drop(&mut self) {
        for device in self.taps.iter().chain([&self.name]) {
            // Nothing to do about one that cannot be removed.
            let _ = run("ip", &["link", "delete", device]);
        }
    }
}

/// A network namespace, with an end of a veth pair inside.
#[derive(Debug)]
pub struct Netns {
    name: String,
    outside: String,
}

impl Netns {
    /// A namespace whose `eth0` has the given address, like `10.0.0.9/24`; the other end of the pair is
    /// [`Netns::outside`]. Both are up, and leave checksums to nobody: what comes through them is complete.
    pub fn new(address: &str) -> Result<Self> {
        machine::need_root("network namespaces")?;
        let name = unique('n');
        run("ip", &["netns", "add", &name])?;
        let netns = Self {
            outside: unique('v'),
            name,
        };
        let outside = netns.outside.as_str();
        run(
            "ip",
            &[
                "link",
                "add",
                outside,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                &netns.name,
            ],
        )?;
        // The host's own IPv6 chatter would spoil exact counts.
        let quiet = format!("/proc/sys/net/ipv6/conf/{outside}/disable_ipv6");
        std::fs::write(&quiet, "1").map_err(Error::io(format!("write {quiet}")))?;
        run("ip", &["link", "set", outside, "up"])?;
        netns.run(&[
            "sh",
            "-c",
            "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
        ])?;
        netns.run(&["ip", "link", "set", "lo", "up"])?;
        netns.run(&["ip", "address", "add", address, "dev", "eth0"])?;
        netns.run(&["ip", "link", "set", "eth0", "up"])?;
        netns.run(&[
            "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off",
        ])?;
        Ok(netns)
    }

    /// The end of the pair that is outside.
    pub fn outside(&self) -> &str {
        &self.outside
    }

    /// Runs a command inside and returns what it prints.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let mut args = vec!["netns", "exec", &self.name];
        args.extend(command);
        run("ip", &args)
    }

    /// Waits until a program inside listens on a TCP port.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        let started = Instant::now();
        while !listens(&self.run(&["sh", "-c", "cat /proc/net/tcp*"])?, port) {
            crate::check!(
                started.elapsed() < LISTEN_LIMIT,
                "nobody listens on port {port} in {}",
                self.name
            );
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// What starts a program inside: the arguments that go before it.
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The inner end goes with the namespace only when nobody is left in it; the outer end takes it along at once.
        let _ = run("ip", &["link", "delete", &self.outside]);
        let _ = run("ip", &["netns", "delete", &self.name]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_listens_is_in_the_table() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = || std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(listens(&table(), port));
        drop(listener);
        assert!(!listens(&table(), port));
    }
}
