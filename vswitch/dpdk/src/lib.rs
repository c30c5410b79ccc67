//! vswitch-dpdk
