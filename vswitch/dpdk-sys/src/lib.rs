//! Bindings to the distribution's libdpdk, generated when this crate is built.
//!
//! Nothing here is safe to call without reading DPDK's documentation; `vswitch-dpdk` is the safe
//! layer, and the only intended user. The bindings are made from the headers that are installed,
//! so one source serves Debian 12 (DPDK 22.11) and Debian 13 (24.11). They cover what the safe
//! layer calls and no more: the list is in `build.rs`.
//!
//! DPDK has its hot functions inline in headers, keeps constants in function-like macros, and
//! moves fields between anonymous unions from release to release. `c/shim.h` and `c/shim.c` turn
//! these into plain functions, constants and offsets, all named `dpdk_*` and `DPDK_*`. A call
//! into the shim costs 3 to 4 ns, so per frame the fields of a packet buffer are read in place,
//! with the `DPDK_MBUF_*` offsets; `struct rte_mbuf` itself is opaque.
//!
//! Building needs `libdpdk-dev`, `pkg-config`, a C compiler, `clang` and `libclang-dev`, and takes
//! about twenty seconds the first time. Drivers are not linked: EAL loads them at run time from
//! the distribution's folder.

#[allow(
    missing_docs,
    unreachable_pub,
    non_camel_case_types,
    non_upper_case_globals
)]
#[allow(non_snake_case, rust_2018_idioms, clippy::all, clippy::pedantic)]
#[allow(clippy::undocumented_unsafe_blocks, unnecessary_transmutes)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn links_against_a_supported_release() {
        // SAFETY: rte_version returns a constant string and needs no initialised EAL.
        let version = unsafe { CStr::from_ptr(rte_version()) }.to_str().unwrap();
        let number = version.strip_prefix("DPDK ").unwrap();
        let mut parts = number.split('.').map(|p| p.parse::<u32>().unwrap_or(0));
        let release = (parts.next().unwrap(), parts.next().unwrap());
        assert!(release >= (22, 11), "{version}");
    }

    #[test]
    fn buffer_fields_are_aligned_and_distinct() {
        let fields = [
            (DPDK_MBUF_BUF_ADDR, 8),
            (DPDK_MBUF_DATA_OFF, 2),
            (DPDK_MBUF_NB_SEGS, 2),
            (DPDK_MBUF_OL_FLAGS, 8),
            (DPDK_MBUF_PKT_LEN, 4),
            (DPDK_MBUF_DATA_LEN, 2),
            (DPDK_MBUF_VLAN_TCI, 2),
            (DPDK_MBUF_RSS_HASH, 4),
            (DPDK_MBUF_BUF_LEN, 2),
            (DPDK_MBUF_NEXT, 8),
            (DPDK_MBUF_POOL, 8),
            (DPDK_MBUF_TX_OFFLOAD, 8),
        ];
        for (i, &(at, width)) in fields.iter().enumerate() {
            assert_eq!(at % width, 0);
            assert!(at + width <= DPDK_MBUF_SIZE);
            for &(other, other_width) in &fields[i + 1..] {
                assert!(at + width <= other || other + other_width <= at);
            }
        }
    }

    #[test]
    fn errno_without_eal_is_readable() {
        // SAFETY: rte_strerror returns a string for every number, valid until the next call.
        let text = unsafe { CStr::from_ptr(rte_strerror(libc::ENODEV)) };
        assert_eq!(text.to_str().unwrap(), "No such device");
    }
}
