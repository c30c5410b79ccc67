//! DPDK's log, turned into `tracing` events.
//!
//! DPDK writes each message to a stdio stream and flushes it. Ours is a stream whose flush is a
//! function here. DPDK's "info" is chatter of start-up, so it becomes debug; its notices become
//! info. While [`listen`] runs, lines of level warning and above, of the same thread, are also
//! kept: they are the only place where drivers say what really went wrong.

use std::cell::RefCell;
use std::ffi::c_void;

use crate::error::Said;

/// Lines kept for one error message; the first ones name the cause.
const KEEP: usize = 4;

/// Follows every failed probe and says nothing.
const NOISE: &str = "Failed to attach device on primary process";

// DPDK's levels, see rte_log.h: 1 is the most urgent.
const RTE_LOG_ERR: i32 = 4;
const RTE_LOG_WARNING: i32 = 5;
const RTE_LOG_NOTICE: i32 = 6;
const RTE_LOG_INFO: i32 = 7;

thread_local! {
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Sends DPDK's log here, for the rest of the process. False if there was no memory for a stream.
pub(crate) fn redirect() -> bool {
    // SAFETY: `write` has the signature of the callback and lives as long as the process; the
    // stream is never closed, because DPDK keeps it.
    unsafe {
        let stream = dpdk_sys::dpdk_log_stream(Some(write));
        !stream.is_null() && dpdk_sys::rte_openlog_stream(stream) == 0
    }
}

/// Runs `action` and returns with its result what DPDK complained about meanwhile.
pub(crate) fn listen<T>(action: impl FnOnce() -> T) -> (T, Said) {
    HEARD.set(Some(Vec::new()));
    let result = action();
    (result, Said(HEARD.take().unwrap_or_default()))
}

/// What stdio calls when DPDK flushes a message.
unsafe extern "C" fn write(_cookie: *mut c_void, text: *const libc::c_char, len: usize) -> isize {
    // SAFETY: stdio passes its own buffer of `len` bytes, which stays put during this call.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    // SAFETY: reads this thread's record of the message that is being written.
    let level = unsafe { dpdk_sys::rte_log_cur_msg_loglevel() };
    for line in String::from_utf8_lossy(bytes).lines() {
        emit(level, line.trim());
    }
    // Anything less than `len` counts as a write error and loses the rest.
    isize::try_from(len).unwrap_or(isize::MAX)
}

fn emit(level: i32, line: &str) {
    if line.is_empty() {
        return;
    }
    if level <= RTE_LOG_WARNING {
        HEARD.with_borrow_mut(|heard| {
            let lines = heard.as_mut().filter(|lines| lines.len() < KEEP);
            if let Some(lines) = lines.filter(|_| !line.contains(NOISE)) {
                lines.push(line.to_owned());
            }
        });
    }
    match level {
        ..=RTE_LOG_ERR => tracing::error!(target: "dpdk", "{line}"),
        RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{line}"),
        RTE_LOG_NOTICE => tracing::info!(target: "dpdk", "{line}"),
        RTE_LOG_INFO => tracing::debug!(target: "dpdk", "{line}"),
        _ => tracing::trace!(target: "dpdk", "{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_keeps_the_first_complaints_only() {
        emit(RTE_LOG_ERR, "before");
        let ((), said) = listen(|| {
            emit(RTE_LOG_INFO, "chatter");
            for i in 0..10 {
                emit(RTE_LOG_WARNING, &format!("complaint {i}"));
            }
        });
        assert_eq!(said.0.len(), KEEP);
        assert_eq!(said.0[0], "complaint 0");
        emit(RTE_LOG_ERR, "after");
        assert_eq!(listen(|| ()).1, Said::default());
    }
}
