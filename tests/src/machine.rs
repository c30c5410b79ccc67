//! What this machine can do, and the reason to give when it cannot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::skip;

/// The top of the source tree.
pub fn source_root() -> PathBuf {
    // Not canonicalised: it only ever has things appended.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Whether long proofs are to run in full: `VSWITCH_TEST_FULL=1`.
pub fn full() -> bool {
    std::env::var_os("VSWITCH_TEST_FULL").is_some_and(|v| v == "1")
}

/// How often to repeat something: `full` times in full runs, else `short` times.
pub fn rounds(short: u32, full_rounds: u32) -> u32 {
    if full() { full_rounds } else { short }
}

/// Skips unless run by root.
pub fn need_root(what_for: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        skip!("{what_for} need root");
    }
    Ok(())
}

/// Skips unless `program` can be run.
pub fn need_program(program: &str, package: &str) -> Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/sbin".into()]);
    if !folders
        .into_iter()
        .any(|folder: PathBuf| folder.join(program).is_file())
    {
        skip!("no {program} here (Debian package {package})");
    }
    Ok(())
}

/// Skips unless `tests/guest/prepare` has made guests.
pub fn need_guests() -> Result<()> {
    let cache = std::env::var_os("VSWITCH_CACHE")
        .map_or_else(|| source_root().join("target/guests"), PathBuf::from);
    for file in ["qemu", "vmlinuz", "initramfs", "accel"] {
        if !cache.join(file).exists() {
            skip!("no guests are prepared: run tests/guest/prepare");
        }
    }
    Ok(())
}

/// Whether guests run on KVM; if not, they are emulated and everything about them is slower.
pub fn kvm() -> bool {
    let cache = std::env::var_os("VSWITCH_CACHE")
        .map_or_else(|| source_root().join("target/guests"), PathBuf::from);
    std::fs::read_to_string(cache.join("accel")).is_ok_and(|accel| accel.trim() == "kvm")
}

/// The folder with this build's `vswitchd` and `vswitchctl`, built now if they are older than their source.
/// `VSWITCH_BIN_DIR` names another folder, which is taken as it is.
pub fn built_programs() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(build_programs) {
        Ok(folder) => Ok(folder),
        Err(reason) => Err(Error::Failed(reason.clone())),
    }
}

fn build_programs() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("VSWITCH_BIN_DIR") {
        return Ok(folder.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "vswitch", "--bins"])
        .current_dir(source_root());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "the switch does not build:\n{}",
            crate::error::tail(&errors, 30)
        ));
    }
    // This program is in TARGET/PROFILE/deps, the others are in TARGET/PROFILE.
    let here =
        std::env::current_exe().map_err(|e| format!("cannot find this test program: {e}"))?;
    here.parent()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .ok_or_else(|| {
            format!(
                "{} is not in cargo's target folder: set VSWITCH_BIN_DIR",
                here.display()
            )
        })
}
