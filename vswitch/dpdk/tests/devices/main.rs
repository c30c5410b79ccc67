//! The safe layer against real drivers: those that need no privilege, and, as root, a packet
//! socket on a veth pair and a tap.
//!
//! EAL starts once per process and one thread is its main thread, so the tests run one after the
//! other on the main thread. What this machine or user cannot do is reported as ignored, with the
//! reason. Every test ends with all packet buffers back in the pool.

// clippy.toml allows these in #[test] functions, which this harness has none of.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod host;
mod privileged;
mod rss;
mod unprivileged;

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vswitch_dpdk::{
    BURST, Device, Eal, EalConfig, MbufBurst, Mempool, MempoolConfig, PortConfig, PortError,
    RxQueue, StartedPort,
};

/// `Err` is a failure; `Ok(Some(reason))` says why the machine cannot run the test.
pub(crate) type Outcome = Result<Option<String>, Failed>;

pub(crate) struct Setup {
    pub(crate) eal: Eal,
    pub(crate) pool: Mempool,
}

/// EAL and one pool for all tests.
pub(crate) fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| {
        let (before, rss) = (Instant::now(), host::resident_kib());
        let cpus = host::allowed_cpus();
        let eal = Eal::init(&EalConfig::default()).unwrap();
        let (took, grown) = (before.elapsed(), host::resident_kib() - rss);
        println!(
            "{}: started in {took:?}, {grown} KiB more resident",
            Eal::version()
        );
        assert_eq!(
            host::allowed_cpus(),
            cpus,
            "the calling thread keeps its CPUs"
        );

        let rss = host::resident_kib();
        let pool = Mempool::new(eal, MempoolConfig::default()).unwrap();
        println!(
            "pool of 8192: {} KiB more resident",
            host::resident_kib() - rss
        );
        Setup { eal, pool }
    })
}

/// Attaches and starts a device.
pub(crate) fn start(device: &str, config: &PortConfig) -> Result<StartedPort, PortError> {
    let Setup { eal, pool } = setup();
    Device::probe(*eal, &device.parse().unwrap())?.start(config, *pool)
}

/// Receives until `n` frames are there or two seconds have passed.
pub(crate) fn receive(rx: &mut RxQueue, burst: &mut MbufBurst, n: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut got = 0;
    while got < n && !burst.is_full() && Instant::now() < deadline {
        got += rx.rx_burst(burst);
    }
    got
}

/// The bytes of a frame, joined.
pub(crate) fn bytes(mbuf: &vswitch_dpdk::Mbuf) -> Vec<u8> {
    mbuf.segments().flatten().copied().collect()
}

/// A frame of `len` bytes, with a broadcast destination, ethertype 0x88b5 (for experiments) and a
/// payload that depends on `seed`.
pub(crate) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, seed, 0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
    frame.truncate(len);
    frame
}

/// Copies bytes into packet buffers.
pub(crate) fn build(stock: &mut vswitch_dpdk::Stock, frame: &[u8]) -> vswitch_dpdk::Mbuf {
    let copy = |at: usize, room: &mut [u8]| {
        room.copy_from_slice(&frame[at..at + room.len()]);
        room.len()
    };
    stock.frame(frame.len() as u32, copy).unwrap()
}

fn trial(name: &'static str, test: fn() -> Outcome) -> Trial {
    Trial::ignorable_test(name, move || {
        let pool = setup().pool;
        let result = test()?;
        let (available, all) = (pool.available(), pool.config().count);
        if available != all {
            return Err(format!("{} of {all} buffers are lost", all - available).into());
        }
        Ok(match result {
            None => Completion::Completed,
            Some(reason) => {
                println!("{name}: skipped, {reason}");
                Completion::ignored_with(reason)
            }
        })
    })
}

fn main() -> ExitCode {
    const { assert!(BURST >= 32) };
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let trials = vec![
        trial("eal_starts_once", unprivileged::eal_starts_once),
        trial(
            "threads_are_registered_once",
            unprivileged::threads_are_registered_once,
        ),
        trial(
            "pool_hands_out_and_takes_back",
            unprivileged::pool_hands_out_and_takes_back,
        ),
        trial(
            "caches_leave_enough_for_queues",
            unprivileged::caches_leave_enough_for_queues,
        ),
        trial(
            "pool_larger_than_memory_is_refused",
            unprivileged::pool_larger_than_memory,
        ),
        trial(
            "buffers_grow_shrink_and_chain",
            unprivileged::buffers_grow_shrink_and_chain,
        ),
        trial("bursts_keep_order", unprivileged::bursts_keep_order),
        trial("stock_builds_frames", unprivileged::stock_builds_frames),
        trial(
            "null_receives_and_counts",
            unprivileged::null_receives_and_counts,
        ),
        trial(
            "null_frames_larger_than_buffers",
            unprivileged::null_frames_larger_than_buffers,
        ),
        trial(
            "ring_gives_frames_back",
            unprivileged::ring_gives_frames_back,
        ),
        trial(
            "ring_queues_work_on_two_threads",
            unprivileged::ring_queues_on_two_threads,
        ),
        trial(
            "ring_full_leaves_the_rest",
            unprivileged::ring_full_leaves_the_rest,
        ),
        trial(
            "ring_frames_left_behind_are_freed",
            unprivileged::ring_frames_left_behind,
        ),
        trial(
            "pcap_writes_and_reads_files",
            unprivileged::pcap_writes_and_reads_files,
        ),
        trial(
            "attach_and_detach_a_hundred_times",
            unprivileged::attach_and_detach,
        ),
        trial("limits_are_named", unprivileged::limits_are_named),
        trial(
            "unknown_devices_are_explained",
            unprivileged::unknown_devices_are_explained,
        ),
        trial("null_takes_key_and_table", rss::null_takes_key_and_table),
        trial(
            "drivers_without_rss_start_all_the_same",
            rss::drivers_without_it_start_all_the_same,
        ),
        trial("virtio_wakes_by_interrupt", rss::virtio_wakes_by_interrupt),
        trial(
            "packet_socket_on_a_veth",
            privileged::packet_socket_on_a_veth,
        ),
        trial("tap_exchanges_frames", privileged::tap_exchanges_frames),
        trial(
            "tap_completes_checksums",
            privileged::tap_completes_checksums,
        ),
    ];
    libtest_mimic::run(&args, trials).exit_code()
}
