//! Which CPU does what, and at what priority.

use rustix::process::{getpid, getsid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Error, Result};

/// The two CPUs of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Placement {
    /// Where the simulated guests run.
    pub generator: usize,
    /// Where the contestants' one data thread runs.
    pub worker: usize,
}

impl Placement {
    /// The first two CPUs that this process may use.
    pub fn first_two() -> Result<Self> {
        let allowed = sched_getaffinity(None).map_err(Error::io("ask for the allowed CPUs"))?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        match (cpus.next(), cpus.next()) {
            (Some(generator), Some(worker)) => Ok(Self { generator, worker }),
            _ => Err(Error::Usage(
                "measuring takes two CPUs: one for the guests, one for the switch".into(),
            )),
        }
    }

    /// Two given CPUs.
    pub fn new(generator: usize, worker: usize) -> Result<Self> {
        let allowed = sched_getaffinity(None).map_err(Error::io("ask for the allowed CPUs"))?;
        let usable = |cpu: usize| cpu < CpuSet::MAX_CPU && allowed.is_set(cpu);
        if generator == worker || !usable(generator) || !usable(worker) {
            return Err(Error::Usage(format!(
                "--cpus {generator},{worker}: name two different CPUs that this process may use"
            )));
        }
        Ok(Self { generator, worker })
    }
}

/// Ties the calling thread to a CPU until the drop. Children started meanwhile inherit that.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Ties the calling thread to `cpu`.
    pub fn to(cpu: usize) -> Result<Self> {
        let before = sched_getaffinity(None).map_err(Error::io("ask for the allowed CPUs"))?;
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).map_err(Error::io(format!("pin a thread to CPU {cpu}")))?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before; if it no longer is, the thread stays where it is.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Raises the priority of this thread and of all that it starts from now on, as far as allowed; tells
/// whether it was.
///
/// With the scheduler's autogroups a nice value counts only within a session, so sessions have one of
/// their own: contestants get a session each ([`favour_session`]). Ours is changed only if it is ours
/// alone, because it would stay changed.
pub fn favour_self() -> bool {
    let nice = rustix::process::nice(-20).is_ok();
    if getsid(None).is_ok_and(|session| session == getpid()) {
        favour_session(getpid().as_raw_nonzero().get().unsigned_abs());
    }
    nice
}

/// Raises the priority of the session that process `pid` leads, where there are autogroups and we may.
pub fn favour_session(pid: u32) {
    let _ = std::fs::write(format!("/proc/{pid}/autogroup"), "-20");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_cpu_twice_is_refused() {
        assert!(Placement::new(0, 0).is_err());
        assert!(Placement::new(0, 1 << 20).is_err());
    }

    #[test]
    fn pinning_ends() {
        let before = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU)
            .find(|cpu| before.is_set(*cpu))
            .unwrap();
        let pinned = Pinned::to(cpu).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
