//! Finds the distribution's libdpdk, compiles the shim and generates the bindings.
//!
//! The flags are pkg-config's own, unparsed: `-include rte_config.h` and `-march` decide struct
//! layouts, and parsers of pkg-config's output tend to keep only `-I` and `-D`.

use std::env;
use std::panic;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const PACKAGES: &str = "on Debian and Ubuntu: apt-get install libdpdk-dev pkg-config gcc clang \
                        libclang-dev\n(or build the switch without DPDK: --no-default-features)";

/// Functions that the safe layer calls; types follow from their signatures.
const FUNCTIONS: &[&str] = &[
    "dpdk_.*",
    "rte_dev_probe",
    "rte_dev_remove",
    "rte_eal_init",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_close",
    "rte_eth_dev_configure",
    "rte_eth_dev_info_get",
    "rte_eth_dev_rss_hash_conf_get",
    "rte_eth_dev_rss_hash_update",
    "rte_eth_dev_rss_reta_query",
    "rte_eth_dev_rss_reta_update",
    "rte_eth_dev_rx_intr_ctl_q_get_fd",
    "rte_eth_dev_rx_intr_disable",
    "rte_eth_dev_rx_intr_enable",
    "rte_eth_dev_set_link_down",
    "rte_eth_dev_set_link_up",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_iterator_cleanup",
    "rte_eth_iterator_init",
    "rte_eth_iterator_next",
    "rte_eth_promiscuous_enable",
    "rte_eth_rx_queue_setup",
    "rte_eth_stats_get",
    "rte_eth_tx_queue_setup",
    "rte_log_cur_msg_loglevel",
    "rte_mempool_avail_count",
    "rte_openlog_stream",
    "rte_pktmbuf_free_bulk",
    "rte_strerror",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_version",
];

/// What is linked, of some sixty libraries that pkg-config names: each one costs start-up time.
/// `rte_log` is part of `rte_eal` before 24.03.
const LIBRARIES: &[&str] = &[
    "rte_ethdev",
    "rte_mbuf",
    "rte_mempool",
    "rte_eal",
    "rte_log",
];

/// Pointed to, never looked into, so that no layout of theirs is part of the bindings.
const OPAQUE: &[&str] = &[
    "rte_mbuf",
    "rte_mempool",
    "rte_device",
    "rte_bus",
    "rte_class",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\ndpdk-sys: {message}\n{PACKAGES}\n");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for file in ["build.rs", "c/shim.h", "c/shim.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    for name in ["LIBCLANG_PATH", "LLVM_CONFIG_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    // Prints rerun-if-env-changed for pkg-config's own variables.
    let library = pkg_config::Config::new()
        .atleast_version("22.11")
        .cargo_metadata(false)
        .probe("libdpdk")
        .map_err(|e| format!("libdpdk 22.11 or later was not found with pkg-config.\n{e}"))?;
    let cflags = raw_cflags()?;

    cc::Build::new()
        .file("c/shim.c")
        .flags(&cflags)
        .define("_GNU_SOURCE", None)
        .define("ALLOW_EXPERIMENTAL_API", None)
        // The shim is the hot path's way into DPDK's inline functions, in every profile.
        .opt_level(3)
        // DPDK's headers warn; a call to something undeclared must still not compile.
        .warnings(false)
        .flag("-Werror=implicit-function-declaration")
        .try_compile("vswitch_dpdk_shim")
        .map_err(|e| format!("the C shim did not compile: {e}"))?;

    // After the shim, which needs them: linkers resolve from left to right.
    for path in &library.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for name in library
        .libs
        .iter()
        .filter(|name| LIBRARIES.contains(&name.as_str()))
    {
        println!("cargo::rustc-link-lib=dylib={name}");
    }

    generate(&cflags)
}

fn raw_cflags() -> Result<Vec<String>, String> {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(&program)
        .args(["--cflags", "libdpdk"])
        .output()
        .map_err(|e| format!("{} did not run: {e}", program.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect())
}

fn generate(cflags: &[String]) -> Result<(), String> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut builder = bindgen::Builder::default()
        .header("c/shim.h")
        .clang_args(cflags)
        .clang_args(["-D_GNU_SOURCE", "-DALLOW_EXPERIMENTAL_API"])
        .allowlist_var("DPDK_.*")
        .blocklist_type("FILE|_IO_.*|rte_(mbuf|mempool|memzone|device|bus|class)(_.*)?")
        .raw_line("use libc::FILE;")
        .prepend_enum_name(false)
        .generate_comments(false)
        .derive_debug(false)
        .layout_tests(true)
        .use_core();
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in OPAQUE {
        builder = builder.raw_line(format!(
            "#[repr(C)] pub struct {name} {{ _opaque: [u8; 0], _not_send: [*const u8; 0] }}"
        ));
    }

    // bindgen panics, rather than fails, when there is no libclang to load.
    panic::set_hook(Box::new(|_| {}));
    let generated = panic::catch_unwind(panic::AssertUnwindSafe(|| builder.generate()));
    let _ = panic::take_hook();
    generated
        .map_err(|cause| {
            let text = cause
                .downcast_ref::<String>()
                .map_or("no message", String::as_str);
            format!("bindgen could not load libclang: {text}")
        })?
        .map_err(|e| format!("bindgen could not read DPDK's headers: {e}"))?
        .write_to_file(out_dir.join("bindings.rs"))
        .map_err(|e| format!("the bindings could not be written: {e}"))
}
