//! Conversations over a socket pair: a front-end that speaks in QEMU's order, and ones that do not behave.

mod front;
mod hostile;
mod packed;

use std::sync::Arc;

use vhost::vhost_user::message::FrontendReq as R;
use vswitch_packet::VirtioNetHdr;

use self::front::{Front, Happened, hello};
use super::{Custody, SessionConfig, SessionEnd, SessionEvent};
use crate::features::{self, Switches, mask};
use crate::memory::{MemoryFiles, Pieces};
use crate::ring::{QueueIndex, QueuePair, RingError};
use crate::testing::{NEXT, WRITE, count};

pub(super) fn config() -> SessionConfig {
    SessionConfig {
        queue_pairs: 2,
        ring_size_max: 1024,
        features: features::offered(Switches {
            multiqueue: true,
            ..Switches::default()
        }),
        mtu: Some(9000),
        memory_files: MemoryFiles::Local,
    }
}

/// One frame each way through pair 0, with fresh descriptors at `slot`.
fn exchange(front: &mut Front, slot: u16) {
    let [rx, tx, ..] = &mut front.queues[..] else {
        panic!("a front-end has two queues at least");
    };
    let guest = &front.guest;
    let buffer = 0x10_0000 + u64::from(slot) * 0x1000;
    guest.write(buffer, &[0; 12]);
    guest.write(buffer + 0x800, &[slot as u8; 80]);
    tx.descriptor(guest, slot, buffer, 12, NEXT, slot + 1);
    tx.descriptor(guest, slot + 1, buffer + 0x800, 80, 0, 0);
    tx.offer(guest, slot);
    rx.descriptor(guest, slot, buffer + 0x400, 1000, WRITE, 0);
    rx.offer(guest, slot);

    front.switch.with_tx(0, |ring, scratch| {
        let burst = ring.take(scratch, 32).unwrap();
        assert_eq!(burst.len(), 1);
        assert_eq!(burst.frame(0).unwrap().head, [slot as u8; 80]);
        ring.complete();
        ring.signal().unwrap();
    });
    front.switch.with_rx(0, |ring| {
        let mut burst = ring.begin(1).unwrap();
        burst
            .put(
                &VirtioNetHdr::default(),
                &[&[!(slot as u8); 90]],
                Pieces::empty(),
            )
            .unwrap();
        assert_eq!(burst.finish(), 1);
        ring.signal().unwrap();
    });
    assert_eq!(tx.take_used(guest), [(u32::from(slot), 0)]);
    assert_eq!(rx.take_used(guest), [(u32::from(slot), 102)]);
    assert_eq!(guest.read(buffer + 0x400 + 12, 90), [!(slot as u8); 90]);
}

#[test]
fn qemu_starts_runs_stops_and_starts_again() {
    let mut front = Front::connect(config());
    hello(&mut front);
    // Before features: enabling is remembered, and answered.
    for queue in 0..4u32 {
        front.send(
            R::SET_VRING_CALL,
            &u64::from(queue).to_ne_bytes(),
            &[&front.calls[queue as usize]],
        );
        front.send(
            R::SET_VRING_ERR,
            &u64::from(queue).to_ne_bytes(),
            &[&front.errors[queue as usize]],
        );
    }
    for queue in 0..2 {
        assert_eq!(
            front.ask(R::SET_VRING_ENABLE, &front::state(queue, 1), &[]),
            0
        );
    }
    assert_eq!(front.switch.attached(), 0);

    front.start_device();
    assert_eq!(
        front.switch.attached(),
        3,
        "pair 1 is not enabled: only its transmit queue runs"
    );
    let acked = front.features;
    assert_eq!(
        front.switch.events(),
        [
            SessionEvent::Negotiated {
                virtio: acked,
                protocol: front.protocol
            },
            SessionEvent::MemoryTable {
                regions: 1,
                bytes: front.guest.size
            },
            SessionEvent::LinkUp,
        ]
    );
    for slot in [0, 2, 4] {
        exchange(&mut front, slot);
    }
    assert!(count(&front.calls[0]) > 0 && count(&front.calls[1]) > 0);

    // The guest reboots.
    for queue in 0..4u32 {
        let next = if queue < 2 { 3 } else { 0 };
        assert_eq!(front.get_base(queue), next, "queue {queue}");
    }
    assert_eq!(front.switch.attached(), 0);
    assert_eq!(front.switch.events(), [SessionEvent::LinkDown]);
    for queue in 0..2 {
        assert_eq!(
            front.ask(R::SET_VRING_ENABLE, &front::state(queue, 1), &[]),
            0
        );
    }
    front.reset_queues();
    front.send(R::SET_FEATURES, &acked.to_ne_bytes(), &[]);
    for queue in 0..4 {
        front.start_queue(queue, 0);
    }
    front.sync();
    assert_eq!(front.switch.events(), [SessionEvent::LinkUp]);
    exchange(&mut front, 6);

    let happened = front.leave();
    assert!(matches!(happened.end, SessionEnd::Closed));
    assert_eq!(happened.attached, 0);
    assert_eq!(happened.events, [SessionEvent::LinkDown]);
}

#[test]
fn enabling_and_disabling_moves_receive_queues_and_marks_transmit_queues() {
    let mut front = Front::started(config());
    assert!(front.switch.has_rx(0));
    front.switch.with_tx(0, |ring, _| assert!(ring.enabled()));
    for on in [0, 1, 0, 1] {
        for queue in 0..2 {
            assert_eq!(
                front.ask(R::SET_VRING_ENABLE, &front::state(queue, on), &[]),
                0
            );
        }
        assert_eq!(front.switch.has_rx(0), on == 1);
        front
            .switch
            .with_tx(0, |ring, _| assert_eq!(ring.enabled(), on == 1));
        let link = if on == 1 {
            SessionEvent::LinkUp
        } else {
            SessionEvent::LinkDown
        };
        assert_eq!(front.switch.events(), [link]);
    }
    exchange(&mut front, 0);
}

#[test]
fn without_protocol_features_rings_are_enabled_at_once() {
    let mut front = Front::connect(config());
    let left_out = mask(features::VHOST_PROTOCOL_FEATURES) | mask(features::RING_PACKED);
    front.features = front.get(R::GET_FEATURES) & !left_out;
    front.start_device();
    assert_eq!(front.switch.attached(), 4);
    exchange(&mut front, 0);
}

#[test]
fn memory_comes_and_goes_under_traffic() {
    let mut front = Front::started(config());
    let extra = front::region(&front.guest.spec(0x30_0000, 0x31_0000), 1 << 32);
    // A worker polls the transmit queue all the while.
    let switch = front.switch.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let worker = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                switch.poll_tx(1);
            }
        }
    });
    for slot in 0..20 {
        assert_eq!(front.ask(R::ADD_MEM_REG, &extra, &[&front.guest.file]), 0);
        exchange(&mut front, slot * 2);
        // QEMU passes the descriptor along when it removes a region, too.
        assert_eq!(front.ask(R::REM_MEM_REG, &extra, &[&front.guest.file]), 0);
        exchange(&mut front, slot * 2 + 100);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    worker.join().unwrap();
    let links = front.switch.events();
    assert!(
        !links.contains(&SessionEvent::LinkDown),
        "a barrier is no loss of link"
    );
}

#[test]
fn a_ring_whose_memory_goes_is_stopped_and_starts_when_it_is_back() {
    let mut front = Front::started(config());
    exchange(&mut front, 0);
    let first = front::region(&front.guest.spec(0, front.guest.size), 0);
    // Another region stays, so this is not a guest without memory.
    let extra = front::region(&front.guest.spec(0x30_0000, 0x31_0000), 1 << 32);
    assert_eq!(front.ask(R::ADD_MEM_REG, &extra, &[&front.guest.file]), 0);
    assert_eq!(front.ask(R::REM_MEM_REG, &first, &[]), 0);
    assert_eq!(front.switch.attached(), 0);
    let events = front.switch.events();
    let broken = |queue| {
        events.iter().any(|event| {
            matches!(event, SessionEvent::RingError { queue: at, error: RingError::Part(_) } if *at == QueueIndex(queue))
        })
    };
    assert!((0..4).all(broken), "{events:?}");
    assert!(events.contains(&SessionEvent::LinkDown));
    assert_eq!(front.ask(R::ADD_MEM_REG, &first, &[&front.guest.file]), 0);
    exchange(&mut front, 2);

    // All memory gone is a device that stopped, without complaint.
    front.switch.events();
    assert_eq!(front.ask(R::REM_MEM_REG, &extra, &[]), 0);
    assert_eq!(front.ask(R::REM_MEM_REG, &first, &[]), 0);
    assert_eq!(front.switch.attached(), 0);
    assert!(
        !front
            .switch
            .events()
            .iter()
            .any(|event| matches!(event, SessionEvent::RingError { .. }))
    );
    assert_eq!(front.ask(R::ADD_MEM_REG, &first, &[&front.guest.file]), 0);
    exchange(&mut front, 4);
}

#[test]
fn a_whole_memory_table_replaces_the_old_one() {
    let mut front = Front::started(config());
    for slot in [0, 2, 4] {
        let (half, end) = (front.guest.size / 2, front.guest.size);
        let table = front::table(&[front.guest.spec(0, half), front.guest.spec(half, end)]);
        assert_eq!(
            front.ask(
                R::SET_MEM_TABLE,
                &table,
                &[&front.guest.file, &front.guest.file]
            ),
            0
        );
        exchange(&mut front, slot);
    }
    let events = front.switch.events();
    let last = SessionEvent::MemoryTable {
        regions: 2,
        bytes: front.guest.size,
    };
    assert_eq!(events.last(), Some(&last));
}

#[test]
fn descriptors_for_kicks_and_calls_may_be_replaced_at_any_time() {
    let mut front = Front::started(config());
    exchange(&mut front, 0);
    for slot in [2, 4] {
        for queue in 0..2usize {
            front.calls[queue] = crate::testing::event();
            front.kicks[queue] = crate::testing::event();
            let value = (queue as u64).to_ne_bytes();
            assert_eq!(
                front.ask(R::SET_VRING_CALL, &value, &[&front.calls[queue]]),
                0
            );
            assert_eq!(
                front.ask(R::SET_VRING_KICK, &value, &[&front.kicks[queue]]),
                0
            );
            assert_eq!(
                count(&front.calls[queue]),
                1,
                "the new one is tried at once"
            );
        }
        exchange(&mut front, slot);
        assert!(count(&front.calls[0]) > 0);
        rustix::io::write(&*front.kicks[1], &1u64.to_ne_bytes()).unwrap();
        front.switch.with_tx(0, |ring, _| {
            ring.drain_kick();
            assert!(ring.kick().is_some());
        });
        assert_eq!(count(&front.kicks[1]), 0, "the ring has the new one");
    }
    // No descriptor: never called, and to be polled.
    for queue in 0..2u64 {
        assert_eq!(
            front.ask(R::SET_VRING_CALL, &(queue | 0x100).to_ne_bytes(), &[]),
            0
        );
        assert_eq!(
            front.ask(R::SET_VRING_KICK, &(queue | 0x100).to_ne_bytes(), &[]),
            0
        );
    }
    exchange(&mut front, 6);
    assert_eq!(count(&front.calls[0]), 0);
    front
        .switch
        .with_tx(0, |ring, _| assert!(ring.kick().is_none()));
}

#[test]
fn a_ring_that_lies_is_reported_and_can_be_set_up_again() {
    let mut front = Front::started(config());
    exchange(&mut front, 0);
    let tx = &front.queues[1];
    front.guest.write_u16(tx.available() + 2, 40_000);
    front
        .switch
        .with_tx(0, |ring, scratch| assert!(ring.take(scratch, 32).is_err()));
    front.switch.wait_for(|event| {
        matches!(
            event,
            SessionEvent::RingError {
                queue: QueueIndex(1),
                error: RingError::AvailableIndex { .. }
            }
        )
    });
    front.sync();
    assert_eq!(count(&front.errors[1]), 1);
    assert!(!front.switch.has_tx(0));
    assert!(front.switch.has_rx(0), "the others go on");
    // The base of a ring that broke is where it stood.
    assert_eq!(front.get_base(1), 1);
    front.guest.write_u16(front.queues[1].available() + 2, 1);
    front.start_queue(1, 1);
    front.sync();
    exchange(&mut front, 2);
}

#[test]
fn memory_cut_short_ends_the_session() {
    crate::memory::install_sigbus_guard().unwrap();
    let mut front = Front::started(config());
    exchange(&mut front, 0);
    front.guest.file.set_len(0).unwrap();
    front.switch.poll_tx(0);
    front.switch.poll_tx(0);
    let happened = front.ended();
    assert!(
        matches!(happened.end, SessionEnd::MemoryLost),
        "{:?}",
        happened.end
    );
    assert_eq!(happened.attached, 0);
}

#[test]
fn features_may_change_while_rings_run() {
    let mut front = Front::started(config());
    exchange(&mut front, 0);
    let less = front.features & !mask(features::NET_MRG_RXBUF);
    front.send(R::SET_FEATURES, &less.to_ne_bytes(), &[]);
    front.sync();
    front
        .switch
        .with_rx(0, |ring| assert!(!ring.accepts().mergeable));
    exchange(&mut front, 2);
}

#[test]
fn values_asked_for_are_what_the_port_offers() {
    let front = Front::connect(config());
    assert_eq!(
        front.get(R::GET_FEATURES),
        config().features | mask(features::VHOST_PROTOCOL_FEATURES)
    );
    let protocol = features::protocol_names(front.get(R::GET_PROTOCOL_FEATURES));
    assert_eq!(
        protocol,
        ["mq", "reply-ack", "net-mtu", "configure-mem-slots"]
    );
    assert_eq!(front.get(R::GET_QUEUE_NUM), 2);
    assert_eq!(front.get(R::GET_MAX_MEM_SLOTS), 509);

    let without = Front::connect(SessionConfig {
        mtu: None,
        ..config()
    });
    let protocol = features::protocol_names(without.get(R::GET_PROTOCOL_FEATURES));
    assert_eq!(protocol, ["mq", "reply-ack", "configure-mem-slots"]);
}

#[test]
fn an_mtu_is_checked() {
    let mut front = Front::connect(config());
    hello(&mut front);
    for (mtu, good) in [
        (67u64, false),
        (68, true),
        (1500, true),
        (9000, true),
        (9001, false),
        (u64::MAX, false),
    ] {
        assert_eq!(
            front.ask(R::NET_SET_MTU, &mtu.to_ne_bytes(), &[]) == 0,
            good,
            "{mtu}"
        );
    }
}

#[test]
fn a_port_that_cannot_be_served_says_so() {
    for (queue_pairs, ring_size_max) in [(0, 1024), (1, 0), (1, 1), (1, 1000)] {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let config = SessionConfig {
            queue_pairs,
            ring_size_max,
            ..config()
        };
        let end = super::serve(
            ours,
            &config,
            &Custody::default(),
            &mut front::Switch::default(),
        );
        assert!(matches!(end, SessionEnd::Setup(_)));
    }
}

#[test]
fn every_ring_size_a_split_ring_may_have_is_accepted_up_to_the_limit() {
    let mut front = Front::connect(config());
    hello(&mut front);
    for (size, good) in [
        (0u32, false),
        (1, false),
        (2, true),
        (3, false),
        (256, true),
        (1000, false),
        (1024, true),
        (2048, false),
        (65_536, false),
        (65_536 + 256, false),
    ] {
        assert_eq!(
            front.ask(R::SET_VRING_NUM, &front::state(0, size), &[]) == 0,
            good,
            "{size}"
        );
    }
}

#[test]
fn shutting_the_socket_down_from_elsewhere_ends_it() {
    let front = Front::started(config());
    front.shutdown_of_switch();
    let Happened { end, attached, .. } = front.ended();
    assert!(matches!(end, SessionEnd::Closed), "{end:?}");
    assert_eq!(attached, 0);
}

#[test]
fn queues_and_pairs_count_as_the_specification_says() {
    assert_eq!(QueuePair(3).receive(), QueueIndex(6));
    assert_eq!(QueuePair(3).transmit(), QueueIndex(7));
    assert_eq!(QueueIndex(7).pair(), QueuePair(3));
    assert_eq!(QueueIndex(7).to_string(), "transmit queue 3");
}
