//! How long others wait for a guest: so much at once, and a share of the time.
//!
//! A sender's queue goes to another worker only when the guests that it sent to have dealt with that (see
//! [`steer`](super::steer)). A guest that never says that it has would hold up the queues of all others each time; so its
//! account runs empty, and from then on its own flows may be reordered when a queue moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswitch_flowtable::steer::IDLE_MICROS;

/// How long to wait at most, at once: as long as a flow without frames must have been so to move without more ado.
pub const AT_ONCE: Duration = Duration::from_micros(IDLE_MICROS);
/// One part in so many of the time comes back.
const PART: u32 = 20;

/// What is left of one guest's account.
#[derive(Default)]
pub struct Patience {
    account: Mutex<Option<Account>>,
    unsettled: AtomicU64,
}

#[derive(Clone, Copy)]
struct Account {
    left: Duration,
    at: Instant,
}

impl Patience {
    /// How long to wait for this guest, if it is begun now.
    pub fn left(&self, now: Instant) -> Duration {
        self.account.lock().map_or(AT_ONCE, |account| {
            let since = now.saturating_duration_since(account.at);
            AT_ONCE.min(account.left + since / PART)
        })
    }

    /// It was waited for until `now`, and had dealt with everything or had not.
    pub fn waited(&self, since: Instant, now: Instant, settled: bool) {
        let left = self.left(since);
        let left = left.saturating_sub(now.saturating_duration_since(since));
        *self.account.lock() = Some(Account { left, at: now });
        if !settled {
            self.unsettled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often waiting was in vain.
    pub fn unsettled(&self) -> u64 {
        self.unsettled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_never_ready_is_waited_for_a_twentieth_of_the_time() {
        let (patience, start) = (Patience::default(), Instant::now());
        let (mut now, mut waited) = (start, Duration::ZERO);
        for n in 0..1000 {
            let left = patience.left(now);
            assert!(left <= AT_ONCE);
            patience.waited(now, now + left, false);
            assert_eq!(patience.unsettled(), n + 1);
            waited += left;
            now += left + Duration::from_millis(1);
        }
        let most = AT_ONCE + (now - start) / PART;
        assert!(
            waited <= most && waited > most / 2,
            "{waited:?} of {most:?}"
        );
        assert_eq!(patience.left(now + Duration::from_secs(1)), AT_ONCE);
    }

    #[test]
    fn who_is_soon_ready_is_always_waited_for() {
        let (patience, mut now) = (Patience::default(), Instant::now());
        for _ in 0..1000 {
            assert!(patience.left(now) > AT_ONCE / 2);
            let ready = now + Duration::from_micros(50);
            patience.waited(now, ready, true);
            now = ready + Duration::from_millis(1);
        }
        assert_eq!(patience.unsettled(), 0);
    }
}
