//! What can be configured how often, and how big. The numbers are limits, both ends included.

use std::ops::RangeInclusive;

/// Bytes of configuration text.
pub const TEXT: usize = 1 << 20;
/// Ports.
pub const PORTS: usize = 1024;
/// Bridges.
pub const BRIDGES: usize = 64;
/// Workers.
pub const WORKERS: usize = 64;
/// Cores that a worker can be pinned to: as many as the C library's CPU sets have.
pub const CORE: RangeInclusive<u32> = 0..=1023;
/// Characters of a port's or bridge's name.
pub const NAME: RangeInclusive<usize> = 1..=32;
/// Bytes of a socket's path: `sun_path` has 108, the last one is zero.
pub const SOCKET_PATH: usize = 107;
/// Bytes of an Ethernet payload: IPv4's minimum to what jumbo frames reach.
pub const MTU: RangeInclusive<u16> = 68..=9216;
/// Seconds until an unused address is forgotten; 0 means never.
pub const MAC_AGEING: RangeInclusive<u32> = 10..=1_000_000;
/// Addresses a bridge remembers.
pub const MAC_TABLE: RangeInclusive<u32> = 16..=65_536;
/// Queue pairs of a vhost-user port.
pub const QUEUE_PAIRS: RangeInclusive<u16> = 1..=64;
/// Descriptors of a ring; a power of two.
pub const RING_SIZE: RangeInclusive<u16> = 16..=32_768;
/// Microseconds for which an interrupt is held back.
pub const COALESCE_USECS: RangeInclusive<u32> = 0..=10_000;
/// Frames after which there is an interrupt.
pub const COALESCE_FRAMES: RangeInclusive<u32> = 1..=1024;
/// Microseconds for which a worker sleeps between looks at rings that fill slowly; 0 means that it does not.
pub const MAX_SLEEP_USECS: RangeInclusive<u32> = 0..=1000;
/// Percent of a CPU.
pub const CPU_PERCENT: RangeInclusive<u32> = 1..=100;
/// Queues of a DPDK port.
pub const DPDK_QUEUES: RangeInclusive<u16> = 1..=64;
/// MiB of memory for DPDK.
pub const DPDK_MEMORY: RangeInclusive<u32> = 32..=1_048_576;

/// The limits of the number that a key holds, for a number that does not even fit its type.
pub(super) fn of(key: &str) -> Option<(i128, i128)> {
    fn both<T: Copy + Into<i128>>(range: &RangeInclusive<T>) -> (i128, i128) {
        ((*range.start()).into(), (*range.end()).into())
    }
    Some(match key {
        "core" => both(&CORE),
        "mtu" => both(&MTU),
        "mac-ageing" => both(&MAC_AGEING),
        "mac-table-limit" => both(&MAC_TABLE),
        "queue-pairs" => both(&QUEUE_PAIRS),
        "ring-size" => both(&RING_SIZE),
        "rx-usecs" | "tx-usecs" | "max-delay-usecs" => both(&COALESCE_USECS),
        "rx-frames" | "tx-frames" => both(&COALESCE_FRAMES),
        "max-sleep-usecs" => both(&MAX_SLEEP_USECS),
        "cpu-percent" => both(&CPU_PERCENT),
        "queues" => both(&DPDK_QUEUES),
        "memory" => both(&DPDK_MEMORY),
        "access" | "native" | "vlan" => (1, 4094),
        _ => return None,
    })
}
