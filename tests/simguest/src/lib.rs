//! vswitch-simguest
