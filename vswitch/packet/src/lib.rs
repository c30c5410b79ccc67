//! vswitch-packet
