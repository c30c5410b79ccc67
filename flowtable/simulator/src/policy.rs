//! Who decides which worker has which bucket, and how many workers are awake.

use std::time::Duration;

use vswitch_flowtable::balance::{self, Balancer, ItemLoad, Node, Worker, WorkerRoom};
use vswitch_flowtable::scale::{self, Decision, Scaler};

mod oracle;

pub use oracle::Oracle;

/// What a policy sees when it looks at the loads.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The time, in ns.
    pub now: u64,
    /// For how long loads were counted, in ns.
    pub elapsed: u64,
    /// Work offered by bucket, in ns.
    pub loads: &'a [u64],
    /// Who has each bucket, or is about to get it.
    pub owners: &'a [u16],
    /// Work done by worker since the last scheduled look, in ns; of an overloaded one less than was offered.
    pub busy: &'a [u64],
    /// Whether it is a look because the set of workers has changed, between two scheduled ones.
    pub extra: bool,
}

/// A bucket and its new worker.
pub type Change = (usize, u16);

/// A policy. All methods but the name have a default that does nothing.
pub trait Policy {
    /// What reports call it.
    fn name(&self) -> &'static str;

    /// Entries of its table, if not those of the switch's.
    fn entries(&self) -> Option<usize> {
        None
    }

    /// When it wants to look at the loads, in ns.
    fn due(&self) -> Option<u64> {
        None
    }

    /// Whether it is told the true rates instead of what was counted.
    fn knows(&self) -> bool {
        false
    }

    /// Looks at the loads. Says which buckets move, and may park and wake workers; of one that parks all buckets must
    /// move, unless all park.
    fn plan(&mut self, _view: &View<'_>, _parked: &mut [bool], _changes: &mut Vec<Change>) {}

    /// After a look at the queues: whether loads are to be counted from now on.
    fn counts_anew(&mut self) -> bool {
        false
    }

    /// How often it looks at the queues, if it does.
    fn look_every(&self) -> Option<Duration> {
        None
    }

    /// Looks at the queues.
    fn look(&mut self, _now: u64, _looks: &[scale::Look]) -> Decision {
        Decision::Stay
    }
}

/// The table as it is made, for ever: receive side scaling.
#[derive(Clone, Copy, Debug)]
pub struct Static;

impl Policy for Static {
    fn name(&self) -> &'static str {
        "static"
    }
}

/// The rebalancer, and with `scaler` the scaler.
#[derive(Debug)]
pub struct Ours {
    balancer: Balancer,
    scaler: Option<Scaler>,
    last: u64,
    anew: bool,
    items: Vec<ItemLoad>,
    rooms: Vec<WorkerRoom>,
}

/// A delay at which the balancer does not wait for its next look.
const TOO_LATE: Duration = Duration::from_micros(200);

impl Ours {
    /// For so many workers, all of them awake at all times.
    #[must_use]
    pub fn balancing(workers: u16) -> Self {
        Self::with(workers, balance::Settings::default())
    }

    /// The same with other constants.
    #[must_use]
    pub fn with(workers: u16, settings: balance::Settings) -> Self {
        let workers = usize::from(workers);
        Self {
            balancer: Balancer::new(balance::MAX_ITEMS, workers, settings),
            scaler: None,
            last: 0,
            anew: false,
            items: Vec::new(),
            rooms: Vec::new(),
        }
    }

    /// For up to so many workers, as many awake as the scaler says.
    #[must_use]
    pub fn scaling(workers: u16, settings: scale::Settings) -> Self {
        Self {
            scaler: Some(Scaler::new(usize::from(workers), settings)),
            ..Self::balancing(workers)
        }
    }
}

impl Policy for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn due(&self) -> Option<u64> {
        Some(self.last + self.balancer.period().as_nanos() as u64)
    }

    fn plan(&mut self, view: &View<'_>, parked: &mut [bool], changes: &mut Vec<Change>) {
        let both = view.loads.iter().zip(view.owners);
        self.items.clear();
        self.items.extend(both.map(|(load, worker)| ItemLoad {
            worker: Worker(*worker),
            load: *load,
            node: None,
        }));
        self.rooms.clear();
        self.rooms.extend(parked.iter().map(|parked| WorkerRoom {
            capacity: view.elapsed,
            takes: !parked,
            node: Node(0),
        }));
        let plan = self.balancer.plan(&self.items, &self.rooms);
        let moves = plan.moves.iter();
        changes.extend(moves.map(|made| (usize::from(made.item.0), made.to.0)));
        if !view.extra {
            self.last = view.now;
        }
    }

    fn counts_anew(&mut self) -> bool {
        std::mem::take(&mut self.anew)
    }

    fn look_every(&self) -> Option<Duration> {
        Some(scale::Settings::default().every)
    }

    fn look(&mut self, now: u64, looks: &[scale::Look]) -> Decision {
        let decision = match &mut self.scaler {
            Some(scaler) => scaler.look(Duration::from_nanos(now), looks),
            None => Decision::Stay,
        };
        let late = |look: &scale::Look| look.divisible && !look.parked && look.delay >= TOO_LATE;
        if looks.iter().any(late) && self.balancer.press() {
            self.last = now;
            self.anew = true;
        }
        decision
    }
}

/// What RSS++ (CoNEXT 2019) does, with its constants, as read from the paper: every 100 ms, buckets of the most loaded
/// cores go to the least loaded as long as that lowers the squared imbalance; cores within 2 % of the mean are left
/// alone; a core comes or goes so that the others stay at 80 %. Moves keep order by the same rule as ours, so what is
/// compared is the policy.
#[derive(Debug)]
pub struct RssPlusPlus {
    last: u64,
    scaling: bool,
}

impl RssPlusPlus {
    const ENTRIES: usize = 128;
    const PERIOD: u64 = 100_000_000;
    const TARGET: f64 = 0.8;
    const THRESHOLD: f64 = 0.02;

    /// With or without a number of cores that changes.
    #[must_use]
    pub const fn new(scaling: bool) -> Self {
        Self { last: 0, scaling }
    }

    /// A core more if those awake are above the target, one less if the others would stay under it.
    fn scale(cores: &[f64], parked: &mut [bool]) {
        let awake = parked.iter().filter(|parked| !**parked).count();
        let all: f64 = cores.iter().sum();
        if all / awake as f64 > Self::TARGET {
            if let Some(one) = parked.iter().position(|parked| *parked) {
                parked[one] = false;
            }
        } else if awake > 1
            && all / ((awake - 1) as f64) < Self::TARGET
            && let Some(one) = parked.iter().rposition(|parked| !parked)
        {
            parked[one] = true;
        }
    }
}

impl Policy for RssPlusPlus {
    fn name(&self) -> &'static str {
        "rss++"
    }

    fn entries(&self) -> Option<usize> {
        Some(Self::ENTRIES)
    }

    fn due(&self) -> Option<u64> {
        Some(self.last + Self::PERIOD)
    }

    fn plan(&mut self, view: &View<'_>, parked: &mut [bool], changes: &mut Vec<Change>) {
        self.last = view.now;
        // It knows how busy a core was, and divides that by what the buckets got.
        let busy = |core: usize| view.busy[core] as f64 / view.elapsed as f64;
        let mut cores: Vec<f64> = (0..parked.len()).map(busy).collect();
        let mut given = vec![0; cores.len()];
        for (load, owner) in view.loads.iter().zip(view.owners) {
            given[usize::from(*owner)] += *load;
        }
        let part = |bucket: usize, cores: &[f64]| {
            let owner = usize::from(view.owners[bucket]);
            cores[owner] * view.loads[bucket] as f64 / given[owner].max(1) as f64
        };
        let parts: Vec<f64> = (0..view.loads.len()).map(|one| part(one, &cores)).collect();
        if self.scaling {
            Self::scale(&cores, parked);
        }
        let least = |cores: &[f64], parked: &[bool]| {
            let awake = (0..cores.len()).filter(|core| !parked[*core]);
            awake.min_by(|one, other| cores[*one].total_cmp(&cores[*other]))
        };
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by(|one, other| parts[*other].total_cmp(&parts[*one]));
        let awake = parked.iter().filter(|parked| !**parked).count();
        let mean = cores.iter().sum::<f64>() / awake as f64;
        for bucket in order {
            let from = usize::from(view.owners[bucket]);
            let Some(to) = least(&cores, parked).filter(|to| *to != from) else {
                continue;
            };
            let fits = cores[from] > mean + Self::THRESHOLD
                && cores[to] < mean - Self::THRESHOLD
                && parts[bucket] > 0.0
                && cores[to] + parts[bucket] < cores[from];
            if fits || parked[from] {
                cores[from] -= parts[bucket];
                cores[to] += parts[bucket];
                changes.push((bucket, to as u16));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(busy: &[u64], loads: &[u64], owners: &[u16], parked: &mut [bool]) -> Vec<Change> {
        let mut changes = Vec::new();
        let view = View {
            now: RssPlusPlus::PERIOD,
            elapsed: 1000,
            loads,
            owners,
            busy,
            extra: false,
        };
        RssPlusPlus::new(true).plan(&view, parked, &mut changes);
        changes
    }

    #[test]
    fn rss_plus_plus_moves_from_the_busy_to_the_idle() {
        let mut parked = [false, false];
        let changes = plan(
            &[900, 500],
            &[600, 200, 100, 500],
            &[0, 0, 0, 1],
            &mut parked,
        );
        assert_eq!(changes, [(1, 1)]);
        assert_eq!(parked, [false, false]);
    }

    #[test]
    fn rss_plus_plus_comes_and_goes() {
        let mut parked = [false, true];
        let changes = plan(&[900, 0], &[500, 400], &[0, 0], &mut parked);
        assert_eq!((changes, parked), (vec![(0, 1)], [false, false]));
        let mut parked = [false, false];
        let changes = plan(&[300, 300], &[300, 300], &[0, 1], &mut parked);
        assert_eq!((changes, parked), (vec![(1, 0)], [false, true]));
    }
}
