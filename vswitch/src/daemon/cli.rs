//! The daemon's command line.

use std::path::PathBuf;

/// A virtual switch for the guests of a KVM host.
///
/// Reads a YAML file that describes bridges and ports, and forwards frames between guests (vhost-user) and NICs (DPDK)
/// until SIGTERM or SIGINT. SIGHUP applies the file again. Without a file it starts with one bridge and no ports, to be
/// filled with `vswitchctl port add`.
#[derive(clap::Parser, Debug)]
#[command(name = "vswitchd", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file [env: VSWITCH_CONFIG] [default: /etc/vswitch/vswitch.yaml if there is one]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    pub check: bool,

    /// What to log: error, warn, info, debug, trace, or a filter such as `vswitch::worker=debug` [env: VSWITCH_LOG]
    /// [default: the file's `log: level`]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}
