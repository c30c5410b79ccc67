//! vswitch-tests
