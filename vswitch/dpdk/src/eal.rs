//! Starting DPDK's environment layer (EAL), and telling it about our threads.

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::DeviceArg;
use crate::error::{EalError, Errno, ThreadError};
use crate::log;

static ASKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether DPDK knows this thread.
    static KNOWN: Cell<bool> = const { Cell::new(false) };
}

/// How DPDK is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EalConfig {
    /// Memory for packet buffers, rings and drivers, in MiB. A packet buffer takes about 2.4 KiB.
    pub memory_mb: u32,
    /// Memory from hugepages, which the host must have set aside. PCI devices need it.
    pub hugepages: bool,
    /// Look for PCI devices. None is touched unless it is probed.
    pub pci: bool,
    /// Further EAL arguments, as DPDK documents them.
    pub extra_args: Vec<String>,
}

impl Default for EalConfig {
    /// No hugepages, root or NIC; 64 MiB.
    fn default() -> Self {
        Self {
            memory_mb: 64,
            hugepages: false,
            pci: false,
            extra_args: Vec::new(),
        }
    }
}

impl EalConfig {
    /// What these devices need: the default, or PCI and hugepages if one of them is a PCI device.
    pub fn for_devices<'a>(devices: impl IntoIterator<Item = &'a DeviceArg>) -> Self {
        let pci = devices.into_iter().any(DeviceArg::needs_pci);
        Self {
            hugepages: pci,
            pci,
            ..Self::default()
        }
    }

    /// The arguments, without the program's name.
    fn arguments(&self, lcores: &str) -> Result<Vec<String>, EalError> {
        let mut args = vec![
            "--no-telemetry".into(),
            "--lcores".into(),
            lcores.to_owned(),
        ];
        args.extend(["-m".into(), self.memory_mb.to_string()]);
        if self.hugepages {
            // No files in hugetlbfs or the run-time folder: nothing to clean up after a crash.
            args.push("--in-memory".into());
        } else {
            // --in-memory would be refused beside --no-huge.
            args.extend(["--no-huge", "--no-shconf", "--iova-mode=va"].map(String::from));
        }
        if !self.pci {
            args.push("--no-pci".into());
        }
        for argument in &self.extra_args {
            check(argument)?;
            args.push(argument.clone());
        }
        Ok(args)
    }
}

/// Refuses the arguments on which EAL prints and ends the process; getopt takes short forms too.
fn check(argument: &str) -> Result<(), EalError> {
    let is = |long: &str| argument.len() > 2 && long.starts_with(argument);
    let why = if argument == "-h" || is("--help") {
        "it makes DPDK print a text and end the process"
    } else if argument == "--" {
        "it ends DPDK's arguments"
    } else if argument.contains('\0') {
        "it contains a zero byte"
    } else {
        return Ok(());
    };
    Err(EalError::Argument {
        argument: argument.escape_debug().to_string(),
        why,
    })
}

/// Proof that DPDK runs. It is never stopped: buffers and queues may be anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Eal {
    pci: bool,
    _private: (),
}

impl Eal {
    /// Starts DPDK, once per process. It loads every driver that is installed, which on Debian is
    /// all of them: about 0.2 s and 20 MiB. Pools come on top.
    ///
    /// The calling thread becomes DPDK's main thread, keeps its CPU affinity, and needs no
    /// [`ThreadGuard`]. Call it from the thread that does control work, before the workers start.
    ///
    /// # Errors
    ///
    /// See [`EalError`]. After an error from DPDK itself no second attempt is possible.
    pub fn init(config: &EalConfig) -> Result<Self, EalError> {
        let affinity = Affinity::current().map_err(|source| EalError::Affinity {
            what: "read",
            source,
        })?;
        // All allowed CPUs, or EAL would pin this thread, and every thread it starts, to one.
        let arguments = config.arguments(&format!("0@({})", affinity.list()))?;
        let argv = std::iter::once("vswitch").chain(arguments.iter().map(String::as_str));
        let argv: Result<Vec<CString>, _> = argv.map(CString::new).collect();
        let argv = argv.map_err(|_| EalError::Argument {
            argument: arguments.join(" "),
            why: "it contains a zero byte",
        })?;
        let count = i32::try_from(argv.len()).unwrap_or(i32::MAX);

        if ASKED.swap(true, Ordering::AcqRel) {
            return Err(EalError::AlreadyStarted);
        }
        let mut argv: Vec<*mut _> = argv.into_iter().map(CString::into_raw).collect();
        argv.push(std::ptr::null_mut());
        if !log::redirect() {
            tracing::warn!("DPDK's log could not be redirected and goes to stderr");
        }
        // SAFETY: `argv` has `count` writable strings and a null; EAL keeps pointers into it, so
        // the array and, through `into_raw`, the strings are leaked. `ASKED` makes it one call.
        let (result, said) =
            log::listen(|| unsafe { dpdk_sys::rte_eal_init(count, argv.leak().as_mut_ptr()) });
        let errno = Errno::last();
        affinity.apply().map_err(|source| EalError::Affinity {
            what: "restored",
            source,
        })?;
        if result < 0 {
            return Err(EalError::Init {
                arguments: arguments.join(" "),
                errno,
                said,
            });
        }
        KNOWN.set(true);
        Ok(Self {
            pci: config.pci,
            _private: (),
        })
    }

    /// True if PCI devices can be probed.
    pub fn has_pci(self) -> bool {
        self.pci
    }

    /// The release in use, as in `DPDK 22.11.11`.
    pub fn version() -> String {
        // SAFETY: a constant string, there also before EAL runs.
        unsafe { std::ffi::CStr::from_ptr(dpdk_sys::rte_version()) }
            .to_string_lossy()
            .into_owned()
    }
}

/// Makes the thread it is created on known to DPDK, until dropped. A worker without one works, but
/// each of its buffer allocations goes past the pool's per-thread cache, which is several times
/// slower.
#[derive(Debug)]
pub struct ThreadGuard {
    _not_send: PhantomData<*const ()>,
}

impl ThreadGuard {
    /// Registers the calling thread.
    ///
    /// Pin the thread first: DPDK notes its CPUs now.
    ///
    /// # Errors
    ///
    /// When DPDK knows this thread already, or all 128 places are taken.
    pub fn register(_eal: Eal) -> Result<Self, ThreadError> {
        if KNOWN.get() {
            return Err(ThreadError::Known);
        }
        // SAFETY: EAL runs. The guard does not leave this thread, so its drop undoes this call.
        let result = unsafe { dpdk_sys::rte_thread_register() };
        if result < 0 {
            return Err(ThreadError::Full {
                errno: Errno::last(),
            });
        }
        KNOWN.set(true);
        Ok(Self {
            _not_send: PhantomData,
        })
    }
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        // SAFETY: the guard is not Send, so this is the thread that was registered.
        unsafe { dpdk_sys::rte_thread_unregister() };
        KNOWN.set(false);
    }
}

/// A thread's CPU set.
struct Affinity(libc::cpu_set_t);

impl Affinity {
    fn current() -> io::Result<Self> {
        // SAFETY: all zeroes is the empty set.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        // SAFETY: `set` is writable and of the size given; 0 is the calling thread.
        let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let affinity = Self(set);
        if affinity.usable().next().is_none() {
            return Err(io::Error::other(
                "none of them has a number below 128, DPDK's limit",
            ));
        }
        Ok(affinity)
    }

    fn apply(&self) -> io::Result<()> {
        // SAFETY: `self.0` is a CPU set of the size given; 0 is the calling thread.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &raw const self.0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The CPUs that EAL can be told about.
    fn usable(&self) -> impl Iterator<Item = usize> + '_ {
        // SAFETY: `cpu` is below CPU_SETSIZE, the set's number of bits.
        (0..dpdk_sys::DPDK_MAX_LCORE.min(libc::CPU_SETSIZE as u32) as usize)
            .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
    }

    fn list(&self) -> String {
        self.usable()
            .map(|cpu| cpu.to_string())
            .collect::<Vec<_>>()
            .join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unprivileged_by_default() {
        let args = EalConfig::default().arguments("0@(0,1)").unwrap().join(" ");
        assert_eq!(
            args,
            "--no-telemetry --lcores 0@(0,1) -m 64 --no-huge --no-shconf --iova-mode=va --no-pci"
        );
    }

    #[test]
    fn pci_devices_turn_hugepages_and_pci_on() {
        let devices: Vec<DeviceArg> = ["net_tap0", "0000:3b:00.0"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(EalConfig::for_devices(&devices[..1]), EalConfig::default());
        let config = EalConfig::for_devices(&devices);
        assert!(config.pci && config.hugepages);
        let args = config.arguments("0@(0)").unwrap();
        assert!(args.iter().any(|arg| arg == "--in-memory"));
        assert!(
            !args
                .iter()
                .any(|arg| arg == "--no-huge" || arg == "--no-pci")
        );
    }

    #[test]
    fn arguments_that_end_the_process_are_refused() {
        for bad in ["-h", "--h", "--help", "--", "a\0"] {
            let config = EalConfig {
                extra_args: vec![bad.into()],
                ..EalConfig::default()
            };
            assert!(
                matches!(config.arguments("0"), Err(EalError::Argument { .. })),
                "{bad}"
            );
        }
        for good in ["--huge-dir=/x", "--log-level=8", "-v"] {
            let config = EalConfig {
                extra_args: vec![good.into()],
                ..EalConfig::default()
            };
            assert!(config.arguments("0").is_ok(), "{good}");
        }
    }
}
