//! Packed rings in the conversation: their sizes, their bases, and going on where they were left.

use super::*;
use crate::features::RING_PACKED;
use crate::testing::{Guest, PackedQueue};

const SIZE: u16 = 6;
const BUFFERS: u64 = 0x10_0000;

/// Where both sides of a ring begin.
const START: u32 = 0x8000_8000;

/// Receive and transmit queue of pair 0.
fn queues() -> [PackedQueue; 2] {
    [0x20_0000, 0x21_0000].map(|at| PackedQueue::new(at, SIZE))
}

/// A connection with packed rings and memory, its queues not started.
fn connect() -> Front {
    connect_with(None)
}

/// The same, with a guest that was there before.
fn connect_with(guest: Option<Guest>) -> Front {
    let mut front = Front::connect(config());
    if let Some(guest) = guest {
        front.guest = guest;
    }
    hello(&mut front);
    front.features |= mask(RING_PACKED);
    for queue in 0..2 {
        let error: [&dyn std::os::fd::AsFd; 1] = [&front.errors[queue as usize]];
        front.send(R::SET_VRING_ERR, &u64::from(queue).to_ne_bytes(), &error);
        assert_eq!(
            front.ask(R::SET_VRING_ENABLE, &front::state(queue, 1), &[]),
            0
        );
    }
    front.send(R::SET_FEATURES, &front.features.to_ne_bytes(), &[]);
    let spec = front.guest.spec(0, front.guest.size);
    let region = front::region(&spec, 0);
    assert_eq!(front.ask(R::ADD_MEM_REG, &region, &[&front.guest.file]), 0);
    front
}

fn start(front: &Front, queues: &[PackedQueue; 2], bases: [u32; 2]) {
    for (queue, base) in (0..2u32).zip(bases) {
        let at = &queues[queue as usize];
        front.send(R::SET_VRING_NUM, &front::state(queue, at.size.into()), &[]);
        front.send(R::SET_VRING_BASE, &front::state(queue, base), &[]);
        let places = front::places(queue, at.addresses());
        front.send(R::SET_VRING_ADDR, &places, &[]);
        let index = u64::from(queue).to_ne_bytes();
        front.send(R::SET_VRING_KICK, &index, &[&front.kicks[queue as usize]]);
        front.send(R::SET_VRING_CALL, &index, &[&front.calls[queue as usize]]);
    }
    front.sync();
}

/// The guest offers a frame in `pieces` slots, and a buffer.
fn offer(front: &Front, [rx, tx]: &mut [PackedQueue; 2], id: u16, pieces: usize) {
    let guest = &front.guest;
    guest.write(BUFFERS, &[0; 12]);
    guest.write(BUFFERS + 12, &[id as u8; 88]);
    let cuts = [(BUFFERS, 30, 0), (BUFFERS + 30, 70, 0)];
    let whole = [(BUFFERS, 100, 0)];
    tx.offer(guest, id, if pieces == 2 { &cuts } else { &whole });
    rx.offer(guest, id, &[(BUFFERS + 0x1000, 500, WRITE)]);
}

/// One frame each way.
fn exchange(front: &Front, queues: &mut [PackedQueue; 2], id: u16, pieces: usize) {
    offer(front, queues, id, pieces);
    serve(front, queues, id);
}

fn serve(front: &Front, [rx, tx]: &mut [PackedQueue; 2], id: u16) {
    front.switch.with_tx(0, |ring, scratch| {
        let burst = ring.take(scratch, 1).unwrap();
        assert_eq!(burst.len(), 1);
        assert_eq!(burst.frame(0).unwrap().head, [id as u8; 88]);
        ring.complete();
    });
    front.switch.with_rx(0, |ring| {
        let mut burst = ring.begin(1).unwrap();
        let frame = [!(id as u8); 90];
        let put = burst.put(&VirtioNetHdr::default(), &[&frame], Pieces::empty());
        assert_eq!((put, burst.finish()), (Ok(()), 1));
    });
    assert_eq!(tx.take_used(&front.guest), [(id, 0, 0)]);
    assert_eq!(rx.take_used(&front.guest), [(id, 102, WRITE)]);
    let read = front.guest.read(BUFFERS + 0x1000 + 12, 90);
    assert_eq!(read, [!(id as u8); 90]);
}

#[test]
fn rings_stop_and_go_on_by_their_bases() {
    let front = connect();
    let mut queues = queues();
    let mut bases = [START; 2];
    for round in 0..20 {
        start(&front, &queues, bases);
        assert_eq!(front.switch.attached(), 2);
        for id in 0..round % 4 {
            exchange(
                &front,
                &mut queues,
                10 * round + id,
                1 + usize::from(id) % 2,
            );
        }
        bases = [0, 1].map(|queue| front.get_base(queue));
        assert_eq!(
            bases,
            [0, 1].map(|at: usize| queues[at].base(queues[at].seen))
        );
    }
    assert!(
        front
            .leave()
            .events
            .iter()
            .all(|event| !matches!(event, SessionEvent::RingError { .. }))
    );
}

/// The front-end has heard nothing of where its rings stood: they are new, it says.
#[test]
fn a_new_session_finds_its_place() {
    let mut queues = queues();
    let first = connect();
    start(&first, &queues, [START; 2]);
    for id in 0..8 {
        exchange(&first, &mut queues, id, 1);
    }
    // One more is on the way in each direction, which the first session never takes.
    offer(&first, &mut queues, 99, 1);
    let guest = Guest {
        file: first.guest.file.try_clone().unwrap(),
        size: first.guest.size,
    };
    first.leave();
    let second = connect_with(Some(guest));
    start(&second, &queues, [START; 2]);
    serve(&second, &mut queues, 99);
    for id in 0..8 {
        exchange(&second, &mut queues, id, 1);
    }
}

#[test]
fn a_place_that_cannot_be_known_stops_the_ring() {
    let mut front = connect();
    front.features &= !mask(features::RING_INDIRECT_DESC);
    front.send(R::SET_FEATURES, &front.features.to_ne_bytes(), &[]);
    let mut queues = queues();
    start(&front, &queues, [START; 2]);
    exchange(&front, &mut queues, 1, 2);
    front.get_base(1);
    front.switch.events();
    // Not what it was told.
    start(&front, &queues, [queues[0].base(queues[0].seen), START]);
    let event = SessionEvent::RingError {
        queue: QueueIndex(1),
        error: RingError::Place { base: START },
    };
    assert!(front.switch.events().contains(&event));
    assert!(!front.switch.has_tx(0) && front.switch.has_rx(0));
    assert_eq!(count(&front.errors[1]), 1);
    // The driver resets it.
    queues[1] = PackedQueue::new(0x22_0000, SIZE);
    start(&front, &queues, [queues[0].base(queues[0].seen), START]);
    exchange(&front, &mut queues, 2, 2);
}

#[test]
fn a_size_need_be_no_power_of_two_as_long_as_rings_are_packed() {
    let front = connect();
    let ask = |size| front.ask(R::SET_VRING_NUM, &front::state(0, size), &[]);
    assert_eq!(
        [0, 1, 2, 6, 1000, 1024, 1025].map(ask),
        [1, 1, 0, 0, 0, 0, 1]
    );
    let queues = queues();
    start(&front, &queues, [START; 2]);
    assert_eq!(front.switch.attached(), 2);
    // A size of six is none for split rings: they wait for another, and for a base.
    let split = front.features & !mask(RING_PACKED);
    front.send(R::SET_FEATURES, &split.to_ne_bytes(), &[]);
    front.sync();
    assert_eq!(front.switch.attached(), 0);
    assert_eq!([6, 8].map(ask), [1, 0]);
    // Where the packed ring stood means nothing now.
    assert!(!front.switch.has_rx(0));
    front.send(R::SET_VRING_BASE, &front::state(0, 0), &[]);
    front.sync();
    assert!(front.switch.has_rx(0));
}
