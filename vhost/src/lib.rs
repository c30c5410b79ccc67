//! vswitch-vhost
