//! vswitch-flowtable
