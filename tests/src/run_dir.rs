//! A test's own directory: sockets, configurations, logs. Removed when the test passed, kept when it failed.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{Error, Result, tail};

/// A test's own directory.
#[derive(Debug)]
pub struct RunDir {
    dir: TempDir,
    complaints: RefCell<Vec<String>>,
}

/// Lines of each log that a failure shows.
const SHOWN_LINES: usize = 15;

impl RunDir {
    /// A new one. Always below `/tmp`, whatever `TMPDIR` says: socket paths must stay short.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("vswitch-test-")
            .tempdir_in("/tmp")
            .map_err(Error::io("make a directory in /tmp"))?;
        Ok(Self {
            dir,
            complaints: RefCell::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fails the test, from where nothing can be returned.
    pub(crate) fn complain(&self, complaint: String) {
        self.complaints.borrow_mut().push(complaint);
    }

    /// What was complained about since the last call.
    pub fn take_complaints(&self) -> Vec<String> {
        self.complaints.take()
    }

    /// Leaves the directory where it is; returns the ends of the logs in it, each under its name.
    pub fn keep(self) -> String {
        let path = self.dir.keep();
        let mut report = format!("logs are kept in {}\n", path.display());
        let mut logs: Vec<PathBuf> = std::fs::read_dir(&path)
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        logs.retain(|log| log.extension().is_some_and(|e| e == "log"));
        logs.sort();
        for log in logs {
            let text =
                String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            let name = log.file_name().unwrap_or_default().display().to_string();
            report.push_str(&format!("--- {name}\n{}\n", tail(&text, SHOWN_LINES)));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_directories_show_the_ends_of_their_logs() {
        let dir = RunDir::new().unwrap();
        let text: String = (1..=40).map(|n| format!("line {n}\n")).collect();
        std::fs::write(dir.join("vm1.log"), text).unwrap();
        std::fs::write(dir.join("other.yaml"), "quiet").unwrap();
        let path = dir.path().to_owned();
        let report = dir.keep();
        assert!(
            report.contains("--- vm1.log\nline 26\n") && report.contains("line 40\n"),
            "{report}"
        );
        assert!(!report.contains("quiet"));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn directories_vanish_unless_kept() {
        let dir = RunDir::new().unwrap();
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
