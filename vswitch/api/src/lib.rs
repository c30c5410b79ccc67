//! Configuration and control of the virtual switch, as types.
//!
//! Two things are written down here once, for the daemon, for `vswitchctl` and for whoever else
//! speaks to the switch:
//!
//! - [`config`]: the YAML file: its shape, its defaults, reading it with every problem named and
//!   placed, writing it back, and the plan that leads from one configuration to another.
//! - [`rpc`]: the control socket: JSON-RPC 2.0, one object a line, every method with its
//!   parameters and its result.
//!
//! Text goes in and comes out; nothing here opens a file or a socket or asks the machine
//! anything. What depends on the machine (the cores a worker may use, where run-time files live)
//! is passed in as an [`config::Environment`].
//!
//! Limits: a configuration has at most 1 MiB of text, 64 levels of nesting, 1024 ports, 64
//! bridges and 64 workers; a line on the control socket has at most 4 MiB.

#![forbid(unsafe_code)]

pub mod config;
pub mod rpc;
