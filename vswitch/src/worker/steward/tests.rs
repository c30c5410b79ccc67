use super::*;
use crate::forward::learn::LearnMailbox;
use crate::mailbox::Mailbox;
use crate::worker::BusyPoll;
use crate::worker::bell::Bell;
use crate::worker::registry::Wanted;

pub(super) const ALL: Duties = Duties {
    rebalance: true,
    scale: true,
    share: true,
};
const NONE: Duties = Duties {
    rebalance: false,
    scale: false,
    share: false,
};

/// Workers on cores that do not exist: the threads run unpinned, which is all the same here.
pub(in crate::worker) fn workers(count: u32) -> Arc<Workers> {
    let shared = Arc::new(Shared {
        snapshot: arc_swap::ArcSwap::default(),
        clock: 0.into(),
        learn: Arc::new(LearnMailbox::new(1).unwrap()),
        reports: Mailbox::new(1).unwrap(),
        bell: Bell::new().unwrap(),
    });
    let on = |core| Wanted {
        core,
        busy_poll: BusyPoll::Adaptive,
        max_sleep: Duration::ZERO,
    };
    let wanted: Vec<_> = (1000..1000 + count).map(on).collect();
    Workers::start(&wanted, &shared).unwrap()
}

#[test]
fn help_comes_to_where_it_is_asked_for() {
    let of = |queues: &[(Option<u8>, u64)]| {
        let queues = queues.iter().map(|(node, load)| (node.map(Node), *load));
        help(Node(1), queues).0
    };
    assert_eq!(of(&[]), 1);
    assert_eq!(of(&[(None, 90), (Some(1), 10)]), 1);
    assert_eq!(of(&[(Some(0), 30), (Some(1), 70)]), 0);
    assert_eq!(
        of(&[(Some(0), 20), (Some(2), 20), (Some(2), 10), (None, 50)]),
        2
    );
    assert_eq!(of(&[(Some(0), 25), (Some(1), 75)]), 1, "too little for it");
}

/// Between putting a worker to use and dealing queues out to it the operator says that queues are to stay.
#[test]
fn who_may_do_nothing_does_not_look() {
    let workers = workers(2);
    let mut brain = Brain::new(ALL);
    brain.changed = true;
    let next = brain.look(brain.balanced, false, &workers);
    assert_eq!(next.within, Some(MEASURED), "there is dealing out to do");
    brain.duties = NONE;
    brain.changed = true;
    let next = brain.look(Instant::now(), false, &workers);
    assert_eq!(next, Next::NEVER);
    workers.stop();
}
