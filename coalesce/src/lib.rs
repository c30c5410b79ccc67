//! vswitch-coalesce
