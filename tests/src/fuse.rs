//! A file whose server does not answer: what a hostile front-end can make of FUSE.
//!
//! The server speaks as much of the protocol (`linux/fuse.h`, version 7.31) as it takes to mount a file system with one
//! file and to open that. Once it is open nothing about it is answered any more: neither its attributes nor its pages, nor
//! that it is closed. Whoever asks waits until the server is dropped, which ends the connection, and all waiting with it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Error, Result};
use crate::run_dir::RunDir;
use crate::skip;

/// Bytes of the file.
pub const SIZE: u64 = 4 << 20;

/// Requests of the protocol.
mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
}

/// Node of the file; the folder's is 1.
const FILE: u64 = 2;
/// `FUSE_WRITEBACK_CACHE`.
const WRITEBACK: u32 = 1 << 16;

/// What is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// Everything about the open file.
    Everything,
    /// What has been written to the file, which the kernel keeps for later. Closing one that is clean is answered.
    Writes,
}

/// A mounted file system with one file, and its server.
#[derive(Debug)]
pub struct Fuse {
    path: PathBuf,
    server: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    unanswered: Arc<Mutex<Vec<u32>>>,
}

impl Fuse {
    /// Mounts it, or skips the test where that is not possible.
    pub fn mount(dir: &RunDir, silence: Silence) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = match rustix::fs::open("/dev/fuse", flags, Mode::empty()) {
            Ok(device) => device,
            Err(error) => skip!("no FUSE here: /dev/fuse: {error}"),
        };
        let path = dir.join("fuse");
        std::fs::create_dir(&path).map_err(Error::io("make a folder to mount on"))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let data = CString::new(data).map_err(|e| Error::Failed(e.to_string()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        match rustix::mount::mount("silent", &path, "fuse", flags, data.as_c_str()) {
            Ok(()) => {}
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NODEV)) => {
                skip!("a FUSE file system cannot be mounted here: {error}")
            }
            Err(error) => return Err(Error::Failed(format!("mount a file system: {error}"))),
        }
        let stop = Arc::new(AtomicBool::new(false));
        let unanswered = Arc::default();
        let mut server = Server {
            device,
            silence,
            opened: false,
            unanswered: Arc::clone(&unanswered),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                server.turn();
            }
        });
        Ok(Self {
            path,
            server: Some((stop, thread)),
            unanswered,
        })
    }

    /// Opens the file. Close it only after the server.
    pub fn open(&self) -> Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path.join("memory"));
        file.map_err(Error::io("open a file on FUSE"))
    }

    /// Waits until somebody has asked what is not answered. False if nobody does.
    pub fn is_asked_in(&self, limit: Duration) -> bool {
        let began = Instant::now();
        loop {
            let unanswered = self.unanswered.lock();
            let none = unanswered
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty();
            if !none || began.elapsed() > limit {
                return !none;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether a page of the file was wanted.
    pub fn was_read(&self) -> bool {
        let unanswered = self.unanswered.lock();
        unanswered
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&op::READ)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.server.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

struct Server {
    device: OwnedFd,
    silence: Silence,
    opened: bool,
    unanswered: Arc<Mutex<Vec<u32>>>,
}

impl Server {
    /// Deals with a request, if one comes soon.
    fn turn(&mut self) {
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&soon));
        let mut request = vec![0; 1 << 17];
        let Ok(length) = rustix::io::read(&self.device, &mut request) else {
            return;
        };
        // Length, request, number, node; then who asks.
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap_or([0; 4]));
        let quad = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap_or([0; 8]));
        if length < 40 {
            return;
        }
        let (code, number, node) = (word(4), quad(8), quad(16));
        let all = self.silence == Silence::Everything;
        let silent = match code {
            op::GETATTR => all && self.opened && node == FILE,
            op::READ | op::STATFS | op::RELEASE | op::FLUSH => all,
            op::WRITE => true,
            _ => false,
        };
        if silent {
            let unanswered = self.unanswered.lock();
            unanswered
                .unwrap_or_else(PoisonError::into_inner)
                .push(code);
            return;
        }
        let answer = match code {
            op::FORGET | op::INTERRUPT => return,
            op::INIT => Ok(self.init()),
            // Node, generation, and for how long both are good: no time.
            op::LOOKUP => Ok([quads(&[FILE, 0, 0, 0, 0]), attributes(FILE)].concat()),
            op::GETATTR | op::SETATTR => Ok([quads(&[0, 0]), attributes(node)].concat()),
            op::OPEN => {
                self.opened = true;
                Ok(quads(&[7, 0]))
            }
            op::RELEASE => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        let head = [
            words(&[16 + body.len() as u32, error as u32]),
            quads(&[number]),
        ];
        // It may have been interrupted meanwhile.
        let _ = rustix::io::write(&self.device, &[head.concat(), body].concat());
    }

    /// `struct fuse_init_out`.
    fn init(&self) -> Vec<u8> {
        let flags = match self.silence {
            Silence::Everything => 0,
            Silence::Writes => WRITEBACK,
        };
        let (background, time_granularity, most) = (16 | 12 << 16, 1, 1 << 16);
        let begin = [7, 31, most, flags, background, most, time_granularity, 32];
        words(&[&begin[..], &[0; 8]].concat())
    }
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = match node {
        FILE => (0o100_666, SIZE),
        _ => (0o40_755, 0),
    };
    let (links, owner, block) = (1, 0, 4096);
    [
        quads(&[node, size, size / 512, 0, 0, 0]),
        words(&[0, 0, 0, mode, links, owner, owner, 0, block, 0]),
    ]
    .concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn quads(quads: &[u64]) -> Vec<u8> {
    quads.iter().flat_map(|quad| quad.to_ne_bytes()).collect()
}

/// So that a test can see that the file is what it is meant to be: asks for its attributes on a thread, and gives up.
pub fn keeps_waiting(file: &File) -> io::Result<bool> {
    let (file, limit) = (file.try_clone()?, Duration::from_millis(300));
    let (answers, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = answers.send(file.metadata().is_ok());
    });
    Ok(answer.recv_timeout(limit).is_err())
}
