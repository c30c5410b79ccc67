//! vswitch-bench
