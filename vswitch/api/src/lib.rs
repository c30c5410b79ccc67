//! vswitch-api
