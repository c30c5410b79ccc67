//! What the tests do to the host: packet sockets of the kernel, interfaces, numbers of /proc.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn status(key: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    line.trim_matches([':', ' ', '\t']).to_owned()
}

/// The CPUs that this thread may run on, as the kernel prints them.
pub(crate) fn allowed_cpus() -> String {
    status("Cpus_allowed_list")
}

pub(crate) fn resident_kib() -> u64 {
    status("VmRSS").trim_end_matches(" kB").parse().unwrap()
}

/// Moves this thread, and what it starts, into a network namespace of its own, once.
pub(crate) fn own_network() -> Result<(), String> {
    static MOVED: OnceLock<Result<(), String>> = OnceLock::new();
    let moved = MOVED.get_or_init(|| {
        // SAFETY: a system call without pointers.
        match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(format!(
                "a network namespace: {}",
                io::Error::last_os_error()
            )),
        }
    });
    moved.clone()
}

/// Runs `ip`; `Err` has what it said.
pub(crate) fn ip(arguments: &str) -> Result<String, String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|e| format!("the ip command does not run: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// The kernel's end of an interface: a raw packet socket.
pub(crate) struct Raw(OwnedFd);

impl Raw {
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: `name` is a string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system calls; the descriptor is owned once it is known to be one.
        unsafe {
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                i32::from(protocol),
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = index as i32;
            let size = size_of_val(&address) as u32;
            if libc::bind(fd, (&raw const address).cast(), size) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(socket))
        }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: `frame` is readable for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame that `wanted` accepts, within a minute.
    pub(crate) fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            // SAFETY: `buffer` is writable for its length.
            let n = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            match usize::try_from(n) {
                Ok(n) if wanted(&buffer[..n]) => return Some(buffer[..n].to_vec()),
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }
}
