//! The virtual switch: everything between a guest's ring and the ring its frames go to, and the daemon around it.
//!
//! - [`forward`]: what happens to a frame; the data path
//! - [`worker`]: the threads that run it
//! - [`capture`]: copies of frames for people
//! - [`daemon`]: configuration, ports, sessions, the control socket (`vswitchd`)
//! - [`ctl`]: the command line tool (`vswitchctl`)
//!
//! Rings and sessions are `vswitch-vhost`'s, wire formats `vswitch-packet`'s, configuration and control types
//! `vswitch-api`'s. See `docs/architecture.md` for the whole.

#![forbid(unsafe_code)]

pub mod capture;
pub mod ctl;
pub mod daemon;
pub mod forward;
pub mod mailbox;
#[cfg(feature = "dpdk")]
pub mod nic;
pub mod worker;
