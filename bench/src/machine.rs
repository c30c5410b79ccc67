//! On what machine a figure was taken: the notes that go with every report.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::cpu::Placement;
use crate::{Error, Result};

/// Notes on the machine and on what ran on it.
#[derive(Clone, Debug, Serialize)]
pub struct Notes {
    /// Model of the CPUs.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// Whether this is a virtual machine.
    pub virtualised: bool,
    /// Kernel release.
    pub kernel: String,
    /// Frequency governor of the two CPUs, where they have one.
    pub governor: Option<String>,
    /// Free hugepages at the start.
    pub free_hugepages: u64,
    /// Load average at the start: how quiet the machine was.
    pub load: String,
    /// Time stolen from all CPUs since boot, in percent of all time.
    pub steal_percent: f64,
    /// Seconds since 1970 at the start.
    pub started: u64,
    /// The commit of the source, with `-dirty` if there were changes.
    pub commit: Option<String>,
    /// Which CPU did what.
    pub placement: Placement,
    /// Whether priority could be raised.
    pub favoured: bool,
}

impl Notes {
    /// Looks around.
    pub fn take(placement: Placement, favoured: bool) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = |key: &str| field(&cpuinfo, key).unwrap_or("unknown").to_owned();
        let governor = format!(
            "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor",
            placement.worker
        );
        let load: Vec<_> = read("/proc/loadavg")
            .split(' ')
            .take(3)
            .map(String::from)
            .collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            cpu: cpu("model name"),
            cpus: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            virtualised: cpu("flags").split(' ').any(|flag| flag == "hypervisor"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            governor: Some(read(&governor).trim().to_owned()).filter(|text| !text.is_empty()),
            free_hugepages: free_hugepages(),
            load: load.join(" "),
            steal_percent: steal_percent(&read("/proc/stat")),
            started: now.map_or(0, |now| now.as_secs()),
            commit: output(
                "git",
                &[
                    "-C",
                    env!("CARGO_MANIFEST_DIR"),
                    "describe",
                    "--always",
                    "--dirty",
                ],
            ),
            placement,
            favoured,
        }
    }
}

/// Whether the CPUs have what the kernel calls by this flag.
pub fn cpu_has(flag: &str) -> bool {
    let cpuinfo = read("/proc/cpuinfo");
    field(&cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|f| f == flag))
}

/// Free hugepages of the default size.
pub fn free_hugepages() -> u64 {
    field(&read("/proc/meminfo"), "HugePages_Free")
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// An error if fewer hugepages are free.
pub fn need_hugepages(wanted: u64) -> Result<()> {
    let free = free_hugepages();
    if free < wanted {
        return Err(Error::Hugepages { wanted, free });
    }
    Ok(())
}

/// Version of an installed Debian package.
pub fn package_version(package: &str) -> Option<String> {
    output("dpkg-query", &["-W", "-f", "${Version}", package])
}

/// Where a program is, if it is in the search path.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path);
    folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()))
}

/// What a command prints, if it succeeds.
pub(crate) fn output(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first line `key : value`.
fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

fn steal_percent(stat: &str) -> f64 {
    let all = stat.lines().next().unwrap_or_default();
    // Guest time, the last two, is part of user time already.
    let ticks: Vec<f64> = all
        .split_whitespace()
        .skip(1)
        .take(8)
        .flat_map(str::parse)
        .collect();
    match (ticks.get(7), ticks.iter().sum::<f64>()) {
        (Some(steal), total) if total > 0.0 => 100.0 * steal / total,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_steal() {
        let text = "processor\t: 0\nmodel name\t: A B\nHugePages_Free:       7\n";
        assert_eq!(field(text, "model name"), Some("A B"));
        assert_eq!(field(text, "HugePages_Free"), Some("7"));
        assert_eq!(steal_percent("cpu  10 0 10 60 0 0 0 20 5 0\n"), 20.0);
        assert_eq!(steal_percent(""), 0.0);
    }
}
