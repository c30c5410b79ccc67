//! How long others wait for a guest: so much at once, and a share of the time, and not again for the same.
//!
//! A sender's queue goes to another worker only when the guests that it sent to have dealt with that (see
//! [`steer`](super::steer)). A guest that never says that it has would hold up the queues of all others each time; so its
//! account runs empty, and from then on its own flows may be reordered when a queue moves. And it is not waited for again for
//! what it is known to have had for so long: a guest that does not read costs others one wait, however seldom queues move,
//! until it reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswitch_flowtable::steer::IDLE_MICROS;

/// How long to wait at most, at once: as long as a flow without frames must have been so to move without more ado.
pub const AT_ONCE: Duration = Duration::from_micros(IDLE_MICROS);
/// One part in so many of the time comes back.
const PART: u32 = 20;
/// Positions in rings have 16 bits; with fewer buffers used since, one means what it meant.
const MEANT: u64 = 1 << 15;
/// Bytes that a guest's buffers have, at least; with smaller ones a position may come round, and a guest that reads not be
/// waited for once.
const BUFFER: u64 = 256;

/// What a pair was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given {
    /// Which pair.
    pub pair: u16,
    /// The position behind it.
    pub position: u16,
    /// No later than that.
    pub since: Instant,
}

impl Given {
    /// The guest has had time enough.
    pub fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= AT_ONCE
    }
}

/// How many buffers a guest has used in its life for these frames, at most.
pub fn used(frames: u64, bytes: u64) -> u64 {
    frames + bytes / BUFFER
}

/// What is left of one guest's account.
#[derive(Default)]
pub struct Patience {
    account: Mutex<Option<Account>>,
    unsettled: AtomicU64,
}

#[derive(Clone)]
struct Account {
    left: Duration,
    at: Instant,
    vain: Vain,
}

/// What was waited for in vain the last time.
#[derive(Clone, Default)]
struct Vain {
    given: Vec<Given>,
    /// Buffers that the guest had [`used`] by then.
    used: u64,
}

impl Patience {
    /// How long to wait for this guest, if it is begun now.
    pub fn left(&self, now: Instant) -> Duration {
        self.account.lock().as_ref().map_or(AT_ONCE, |account| {
            let since = now.saturating_duration_since(account.at);
            AT_ONCE.min(account.left + since / PART)
        })
    }

    /// What was waited for in vain; the guest has [`used`] so many buffers by now.
    pub fn vain(&self, used: u64) -> Vec<Given> {
        let account = self.account.lock();
        let vain = account.as_ref().map(|account| &account.vain);
        let vain = vain.filter(|vain| used.wrapping_sub(vain.used) < MEANT);
        vain.map(|vain| vain.given.clone()).unwrap_or_default()
    }

    /// It was waited for until `now`, and had not dealt with `rest` by then, which is nothing if all went well.
    pub fn waited(&self, since: Instant, now: Instant, rest: Vec<Given>, used: u64) {
        let left = self.left(since);
        let left = left.saturating_sub(now.saturating_duration_since(since));
        if !rest.is_empty() {
            self.unsettled.fetch_add(1, Ordering::Relaxed);
        }
        let vain = Vain { given: rest, used };
        *self.account.lock() = Some(Account {
            left,
            at: now,
            vain,
        });
    }

    /// The guest's rings are others now.
    pub fn forgive(&self) {
        if let Some(account) = self.account.lock().as_mut() {
            account.vain = Vain::default();
        }
    }

    /// How often it had not dealt with everything when a sender's queue went on.
    pub fn unsettled(&self) -> u64 {
        self.unsettled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(since: Instant) -> Given {
        Given {
            pair: 1,
            position: 7,
            since,
        }
    }

    #[test]
    fn who_is_never_ready_is_waited_for_a_twentieth_of_the_time() {
        let (patience, start) = (Patience::default(), Instant::now());
        let (mut now, mut waited) = (start, Duration::ZERO);
        for n in 0..1000 {
            let left = patience.left(now);
            assert!(left <= AT_ONCE);
            patience.waited(now, now + left, vec![given(now)], 7);
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
            patience.waited(now, ready, Vec::new(), 7);
            now = ready + Duration::from_millis(1);
        }
        assert_eq!(patience.unsettled(), 0);
    }

    #[test]
    fn what_was_waited_for_in_vain_is_known_while_it_means_something() {
        let (patience, now) = (Patience::default(), Instant::now());
        assert!(patience.vain(0).is_empty());
        patience.waited(now, now, vec![given(now)], 1000);
        assert_eq!(patience.vain(1000), [given(now)]);
        assert_eq!(patience.vain(1000 + MEANT - 1), [given(now)]);
        assert!(patience.vain(1000 + MEANT).is_empty(), "another 7");
        assert!(!given(now).is_old(now) && given(now).is_old(now + AT_ONCE));
        patience.forgive();
        assert!(patience.vain(1000).is_empty());
        patience.waited(now, now, vec![given(now)], 1000);
        patience.waited(now, now, Vec::new(), 1000);
        assert!(patience.vain(1000).is_empty());
    }
}
