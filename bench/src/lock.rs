//! One measurement at a time on a machine: who measures, and who would disturb, takes this lock.
//!
//! It is an exclusive `flock` on [`PATH`], the same that `tests/run` takes; the kernel drops it when
//! its holder ends, however it ends. The file itself stays.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Error, Result};

/// The file that is locked.
pub const PATH: &str = "/tmp/vswitch-measure.lock";

/// The lock, held until the drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; while somebody else has it, says so once and waits.
    pub fn take() -> Result<Self> {
        Self::take_at(Path::new(PATH), || {
            eprintln!("waiting for another test run or benchmark on this machine to end");
        })
    }

    fn take_at(path: &Path, on_wait: impl FnOnce()) -> Result<Self> {
        let refused = || format!("lock {}", path.display());
        // Another user's file can be locked as well, and need not be writable for that.
        let file = File::open(path)
            .or_else(|_| OpenOptions::new().create(true).append(true).open(path))
            .map_err(Error::io(refused()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                on_wait();
                flock(&file, FlockOperation::LockExclusive).map_err(Error::io(refused()))?;
            }
            other => other.map_err(Error::io(refused()))?,
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_second_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take_at(&path, || panic!("nobody has it")).unwrap();
        let (waiting, waits) = mpsc::channel();
        let second = std::thread::spawn(move || {
            Lock::take_at(&path, || waiting.send(()).unwrap()).map(|_| ())
        });
        waits.recv().unwrap();
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }
}
