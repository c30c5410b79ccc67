//! Waiting for others on a machine that has other things to do, too.
//!
//! Who waits for a frame wants to know that nobody is going to bring it, not that nobody was let run: a thread can be kept
//! from its processor for seconds, by whatever has a better priority. So patience wears out only with time that every thread
//! of this process was free to use: one that sleeps has all of it, one that wants to run has what it ran. What is lost for
//! good leaves everybody asleep, or running to no avail, and either is noticed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Between looks at the threads. Longer than that between two looks, and it was the looker who did not run.
const LOOK: Duration = Duration::from_millis(50);
/// Time that everybody had.
const LIMIT: Duration = Duration::from_secs(5);
/// Time in all.
const END: Duration = Duration::from_secs(300);

/// A thread, as the kernel says it.
#[derive(Clone)]
struct Thread {
    name: String,
    /// `S` if it sleeps, `R` if it runs or would like to.
    state: char,
    /// Time on a processor, and time it was kept from one.
    ran: Duration,
    kept: Duration,
}

/// All threads of this process by number.
fn threads() -> BTreeMap<String, Thread> {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let thread = |task: std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(task.path().join(file)).ok();
        let times = read("schedstat")?;
        let mut times = times
            .split(' ')
            .map(|ns| ns.parse().map(Duration::from_nanos).unwrap_or_default());
        let thread = Thread {
            name: read("comm")?.trim().to_owned(),
            // The name before it is in brackets and may hold anything.
            state: read("stat")?.rsplit_once(") ")?.1.chars().next()?,
            ran: times.next()?,
            kept: times.next()?,
        };
        Some((task.file_name().to_string_lossy().into_owned(), thread))
    };
    tasks.filter_map(thread).collect()
}

/// What everybody had of the time between two looks.
fn had(
    before: &BTreeMap<String, Thread>,
    now: &BTreeMap<String, Thread>,
    elapsed: Duration,
) -> Duration {
    let each = now.iter().map(|(number, thread)| {
        let before = before.get(number).filter(|_| thread.state != 'S');
        before.map_or(elapsed, |before| thread.ran.saturating_sub(before.ran))
    });
    each.fold(elapsed, Duration::min)
}

/// See the module's page.
pub(crate) struct Patience {
    since: Instant,
    last: Instant,
    at_first: Option<BTreeMap<String, Thread>>,
    threads: BTreeMap<String, Thread>,
    worn: Duration,
}

impl Patience {
    /// Fresh. Costs next to nothing.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Patience {
            since: now,
            last: now,
            at_first: None,
            threads: BTreeMap::new(),
            worn: Duration::ZERO,
        }
    }

    /// What was waited for has come, or a part of it.
    pub(crate) fn renew(&mut self) {
        *self = Self::new();
    }

    /// To be asked again and again while nothing comes.
    pub(crate) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        let elapsed = now.duration_since(self.last);
        if elapsed < LOOK {
            return false;
        }
        self.last = now;
        let before = std::mem::replace(&mut self.threads, threads());
        if self.at_first.is_none() {
            self.at_first = Some(self.threads.clone());
            return false;
        }
        self.worn += had(&before, &self.threads, elapsed.min(2 * LOOK));
        self.worn > LIMIT || now.duration_since(self.since) > END
    }

    /// What the threads did meanwhile.
    pub(crate) fn report(&self) -> String {
        let mut report = format!(
            "waited {:.1?}, of which everybody had {:.1?}; thread, state, ran, kept from running:\n",
            self.since.elapsed(),
            self.worn
        );
        let at_first = self.at_first.as_ref();
        for (number, thread) in &self.threads {
            let before = at_first.and_then(|threads| threads.get(number));
            let since = |now: Duration, before: Option<Duration>| {
                now.saturating_sub(before.unwrap_or_default())
            };
            let ran = since(thread.ran, before.map(|before| before.ran));
            let kept = since(thread.kept, before.map(|before| before.kept));
            let Thread { name, state, .. } = thread;
            let _ = writeln!(report, "  {name:15} {state} {ran:10.1?} {kept:10.1?}");
        }
        report
    }
}

#[test]
fn who_is_kept_from_his_processor_has_no_time() {
    let ms = Duration::from_millis;
    let all = |threads: &[(&str, char, u64)]| {
        let thread = |(number, state, ran): &(&str, char, u64)| {
            let thread = Thread {
                name: "any".into(),
                state: *state,
                ran: ms(*ran),
                kept: Duration::ZERO,
            };
            ((*number).to_owned(), thread)
        };
        threads.iter().map(thread).collect::<BTreeMap<_, _>>()
    };
    let before = all(&[("1", 'S', 5), ("2", 'R', 5)]);
    let had = |now: &[(&str, char, u64)]| had(&before, &all(now), ms(60));
    assert_eq!(had(&[("1", 'S', 5), ("2", 'S', 9)]), ms(60), "all sleep");
    assert_eq!(had(&[("1", 'S', 5), ("2", 'R', 45)]), ms(40), "it has run");
    assert_eq!(had(&[("1", 'R', 5), ("2", 'S', 45)]), ms(0), "it wants to");
    assert_eq!(had(&[("3", 'R', 5)]), ms(60), "not known before");
    assert!(threads().values().any(|thread| !thread.ran.is_zero()));
    let mut patience = Patience::new();
    while patience.worn.is_zero() {
        assert!(!patience.is_over(), "{}", patience.report());
        std::thread::sleep(LOOK / 10);
    }
    patience.renew();
    assert!(patience.worn.is_zero());
}
