//! Front-ends that do not behave. Each ends at worst its own session, which leaves nothing behind.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use proptest::prelude::*;
use vhost::vhost_user::message::FrontendReq as R;

use super::config;
use super::front::{Front, NOWHERE, addresses, hello, message, region, state, table};
use crate::features::{self, mask};
use crate::memory::{GuestAddr, MemoryFiles, RegionSpec, UserAddr};
use crate::session::{Custody, SessionConfig, SessionEnd, SessionEvent};
use crate::testing::event;

/// Every message there is, with a body that is right, or as right as it can be.
fn every_message(front: &Front) -> Vec<(u32, Vec<u8>)> {
    let number = |value: u64| value.to_ne_bytes().to_vec();
    (0..=60)
        .map(|code| {
            let body = match R::try_from(code) {
                Ok(R::SET_FEATURES) => number(front.features),
                Ok(R::SET_PROTOCOL_FEATURES) => number(front.protocol),
                Ok(R::SET_MEM_TABLE) => table(&[front.guest.spec(0, front.guest.size)]),
                Ok(R::ADD_MEM_REG | R::REM_MEM_REG) => {
                    region(&front.guest.spec(0, 0x1000), 1 << 33)
                }
                Ok(R::SET_VRING_NUM) => state(0, 256),
                Ok(R::SET_VRING_BASE | R::GET_VRING_BASE) => state(0, 0),
                Ok(R::SET_VRING_ENABLE) => state(0, 1),
                Ok(R::SET_VRING_ADDR) => addresses(0, &front.queues[0]),
                Ok(R::NET_SET_MTU) => number(1500),
                Ok(R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR | R::SEND_RARP) => {
                    number(0)
                }
                _ => Vec::new(),
            };
            (code, body)
        })
        .collect()
}

/// The end of a pipe tells whether any copy of the other end is still open.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

fn closed_everywhere(read: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(read, PollFlags::IN)];
    let timeout = Timespec::try_from(Duration::from_secs(10)).unwrap();
    poll(&mut fds, Some(&timeout)).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

#[test]
fn surplus_descriptors_on_any_message_are_closed() {
    for surplus in [1, 2, 8, 31, 40] {
        let mut front = Front::connect(config());
        hello(&mut front);
        for (code, body) in every_message(&front) {
            let (read, write) = pipe();
            {
                let fds: Vec<&dyn AsFd> = (0..surplus).map(|_| &write as &dyn AsFd).collect();
                if front.send_raw(&message(code, 9, &body), &fds).is_err() {
                    front = Front::connect(config());
                    hello(&mut front);
                    continue;
                }
            }
            drop(write);
            assert!(
                closed_everywhere(&read),
                "request {code} with {surplus} descriptors"
            );
            // Whether the session goes on is another matter; here each message gets a living one.
            let before = front;
            front = Front::connect(config());
            hello(&mut front);
            before.leave();
        }
    }
}

/// Else one message could bring 4,107 times 253 of them.
#[test]
fn descriptors_within_a_message_end_the_session() {
    let bytes = message(R::SET_VRING_NUM as u32, 9, &state(0, 256));
    for at in 1..bytes.len() {
        let mut front = Front::connect(config());
        hello(&mut front);
        let (read, write) = pipe();
        front.send_raw(&bytes[..at], &[]).unwrap();
        // Each byte is read by itself at best; the session may be over by any of them.
        for byte in &bytes[at..] {
            if front.send_raw(&[*byte], &[&write, &write]).is_err() {
                break;
            }
        }
        drop(write);
        let end = front.ended().end;
        assert!(
            matches!(&end, SessionEnd::NotVhostUser(what) if what.contains("in the middle")),
            "{at}: {end:?}"
        );
        assert!(closed_everywhere(&read), "{at}");
    }
}

#[test]
fn a_message_with_more_descriptors_than_any_has_ends_the_session() {
    let front = Front::connect(config());
    let (_, write) = pipe();
    front
        .send_raw(
            &message(R::SET_OWNER as u32, 1, &[]),
            &[&write as &dyn AsFd; 33],
        )
        .unwrap();
    let end = front.ended().end.to_string();
    assert!(end.contains("33 descriptors"), "{end}");
}

#[test]
fn memory_that_nobody_vouches_for_is_refused_by_name() {
    let mut front = Front::connect(config());
    hello(&mut front);
    let spec = front.guest.spec(0, 0x1000);
    let proc = File::open("/proc/self/status").unwrap();
    let (pipe, _other) = pipe();
    let watch = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let (body, fd) = (region(&spec, 0), &front.guest.file);
    for bad in [&proc as &dyn AsFd, &pipe, &watch] {
        assert_eq!(front.ask(R::ADD_MEM_REG, &body, &[bad]), 1);
        let both = table(&[spec, front.guest.spec(0x1000, 0x1000)]);
        assert_eq!(front.ask(R::SET_MEM_TABLE, &both, &[fd, bad]), 1);
    }
    assert_eq!(front.ask(R::ADD_MEM_REG, &body, &[fd]), 0);
    // Who does not ask is told by the end.
    front.send(R::ADD_MEM_REG, &region(&spec, 0x10_0000), &[&proc]);
    let end = front.ended().end.to_string();
    assert!(end.contains("is on proc, whose pages"), "{end}");
    assert!(end.contains("`memory-files: any`"), "{end}");
}

#[test]
fn files_that_are_allowed_may_be_anything() {
    let mut front = Front::connect(SessionConfig {
        memory_files: MemoryFiles::Any,
        ..config()
    });
    hello(&mut front);
    let spec = front.guest.spec(0, 0x1000);
    let proc = File::open("/proc/self/status").unwrap();
    // Not refused for where it is, but for what the kernel says about it.
    front.send(R::ADD_MEM_REG, &region(&spec, 0), &[&proc]);
    let end = front.ended().end.to_string();
    assert!(end.contains("which has 0x0 bytes"), "{end}");
}

#[test]
fn a_port_with_too_much_that_cannot_be_closed_ends_its_sessions() {
    let custody = Custody::default();
    let mut front = Front::connect_to(config(), custody.clone());
    hello(&mut front);
    let (go, stuck) = std::sync::mpsc::channel::<()>();
    let asked = custody.ask(pipe().0, move |_| stuck.recv().is_ok());
    assert!(asked.is_none());
    let other = pipe().0;
    while !custody.is_full() {
        custody.close(other.try_clone().unwrap());
    }
    front.send(R::GET_FEATURES, &[], &[]);
    assert!(matches!(front.ended().end, SessionEnd::Stuck));
    drop(go);
    while custody.is_full() {
        std::thread::yield_now();
    }
    let mut next = Front::connect_to(config(), custody);
    hello(&mut next);
    next.leave();
}

#[test]
fn missing_descriptors_fail_the_request_and_not_the_session() {
    let mut front = Front::connect(config());
    hello(&mut front);
    let spec = front.guest.spec(0, 0x1000);
    for (request, body) in [
        (R::ADD_MEM_REG, region(&spec, 0)),
        (R::SET_MEM_TABLE, table(&[spec])),
        (R::SET_VRING_KICK, 0u64.to_ne_bytes().to_vec()),
        (R::SET_VRING_CALL, 0u64.to_ne_bytes().to_vec()),
        (R::SET_VRING_ERR, 0u64.to_ne_bytes().to_vec()),
    ] {
        assert_eq!(front.ask(request, &body, &[]), 1, "{request:?}");
    }
    let value = 0x100u64.to_ne_bytes();
    assert_eq!(front.ask(R::SET_VRING_CALL, &value, &[&front.calls[0]]), 1);
    front.sync();
}

#[test]
fn only_events_are_taken_for_kicks_and_calls() {
    let mut front = Front::connect(config());
    hello(&mut front);
    let (_read, write) = pipe();
    let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    // Of the same kind of file as an eventfd, to those who ask for kinds only.
    let watch = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let memory = &front.guest.file;
    let bad: [&dyn AsFd; 6] = [&write, &left, &file, &null, &watch, memory];
    for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
        for fd in bad {
            assert_eq!(front.ask(request, &0u64.to_ne_bytes(), &[fd]), 1);
        }
        assert_eq!(front.ask(request, &0u64.to_ne_bytes(), &[&event()]), 0);
    }
}

#[test]
fn queues_that_do_not_exist_are_refused() {
    let mut front = Front::started(config());
    for queue in [4u32, 5, 0xff, 0x100, 0xffff, 0x1_0000, u32::MAX] {
        assert_eq!(front.ask(R::SET_VRING_NUM, &state(queue, 256), &[]), 1);
        assert_eq!(front.ask(R::SET_VRING_BASE, &state(queue, 0), &[]), 1);
        assert_eq!(front.ask(R::SET_VRING_ENABLE, &state(queue, 1), &[]), 1);
        assert_eq!(
            front.ask(R::SET_VRING_ADDR, &addresses(queue, &front.queues[0]), &[]),
            1
        );
    }
    for value in [4u64, 0xff, 0x200, 0x1_0000, !0x1ff, !0x100] {
        for request in [R::SET_VRING_KICK, R::SET_VRING_CALL, R::SET_VRING_ERR] {
            assert_eq!(
                front.ask(request, &value.to_ne_bytes(), &[&event()]),
                1,
                "{value:#x}"
            );
        }
    }
    super::exchange(&mut front, 0);
    // This one's answer cannot say no.
    front.send(R::GET_VRING_BASE, &state(u32::MAX, 0), &[]);
    let happened = front.ended();
    assert!(matches!(happened.end, SessionEnd::Refused { .. }));
    assert_eq!(happened.attached, 0);
}

#[test]
fn values_out_of_range_are_refused() {
    let mut front = Front::connect(config());
    hello(&mut front);
    assert_eq!(front.ask(R::SET_VRING_BASE, &state(0, 65_536), &[]), 1);
    assert_eq!(front.ask(R::SET_VRING_ENABLE, &state(0, 2), &[]), 1);
    let unoffered = front.features | mask(features::VERSION_1 + 1);
    assert_eq!(front.ask(R::SET_FEATURES, &unoffered.to_ne_bytes(), &[]), 1);
    assert_eq!(
        front.ask(R::SET_PROTOCOL_FEATURES, &u64::MAX.to_ne_bytes(), &[]),
        1
    );
    let mut misaligned = addresses(0, &front.queues[0]);
    misaligned[8] |= 8;
    assert_eq!(front.ask(R::SET_VRING_ADDR, &misaligned, &[]), 1);
    for code in [
        R::SET_LOG_FD,
        R::SET_VRING_ENDIAN,
        R::SET_CONFIG,
        R::SET_STATUS,
        R::RESET_DEVICE,
    ] {
        assert_eq!(front.ask(code, &[0; 8], &[]), 1, "{code:?}");
    }
    front.sync();
}

#[test]
fn bodies_of_the_wrong_size_are_refused() {
    let front = Front::started(config());
    for (code, body) in every_message(&front) {
        let Ok(request) = R::try_from(code) else {
            continue;
        };
        if body.is_empty() || request == R::GET_VRING_BASE {
            continue;
        }
        for len in [0, 1, body.len() - 1, body.len() + 1, 4096] {
            let mut wrong = body.clone();
            wrong.resize(len, 0);
            let fds: [&dyn AsFd; 1] = [&front.guest.file];
            let fds = match request {
                R::SET_MEM_TABLE | R::ADD_MEM_REG => &fds[..],
                _ => &[],
            };
            assert_eq!(front.ask(request, &wrong, fds), 1, "{request:?} of {len}");
        }
    }
    front.sync();
}

#[test]
fn regions_that_cannot_be_are_refused_and_the_old_memory_stays() {
    let mut front = Front::started(config());
    let size = front.guest.size;
    let spec = |guest, size, user, offset| RegionSpec {
        guest: GuestAddr(guest),
        size,
        user: UserAddr(user),
        offset,
    };
    for bad in [
        spec(1 << 40, 0, 1 << 40, 0),
        spec(1 << 40, size + 1, 1 << 40, 0),
        spec(1 << 40, 0x1000, 1 << 40, size),
        spec(1 << 40, 0x1000, 1 << 40, u64::MAX - 0xfff),
        spec(u64::MAX - 0xffe, 0x1000, 1 << 40, 0),
        spec(1 << 40, 0x1000, u64::MAX - 0xffe, 0),
        spec(1 << 40, u64::MAX, 1 << 40, 0),
        spec(0x1000, 0x1000, 1 << 40, 0),
    ] {
        assert_eq!(
            front.ask(R::ADD_MEM_REG, &region(&bad, 0), &[&front.guest.file]),
            1,
            "{bad:x?}"
        );
    }
    let bad = spec(1 << 40, 0, 1 << 40, 0);
    let two = table(&[front.guest.spec(0, size), bad]);
    assert_eq!(
        front.ask(
            R::SET_MEM_TABLE,
            &two,
            &[&front.guest.file, &front.guest.file]
        ),
        1
    );
    assert_eq!(
        front.ask(R::SET_MEM_TABLE, &state(u32::MAX, 0), &[&front.guest.file]),
        1
    );
    let unknown = region(&spec(1 << 40, 0x1000, 1 << 40, 0), 0);
    assert_eq!(front.ask(R::REM_MEM_REG, &unknown, &[]), 1);
    super::exchange(&mut front, 0);
}

#[test]
fn rings_that_are_nowhere_are_reported_once() {
    let mut front = Front::started(config());
    let mut lost = addresses(1, &front.queues[1]);
    lost[8..16].copy_from_slice(&NOWHERE.to_ne_bytes());
    assert_eq!(front.ask(R::SET_VRING_ADDR, &lost, &[]), 0);
    assert_eq!(front.ask(R::SET_VRING_ENABLE, &state(1, 0), &[]), 0);
    assert_eq!(front.ask(R::SET_VRING_ENABLE, &state(1, 1), &[]), 0);
    let errors = |events: Vec<SessionEvent>| {
        let is_error = |event: &&SessionEvent| matches!(event, SessionEvent::RingError { .. });
        events.iter().filter(is_error).count()
    };
    assert_eq!(errors(front.switch.events()), 1);
    let right = addresses(1, &front.queues[1]);
    assert_eq!(front.ask(R::SET_VRING_ADDR, &right, &[]), 0);
    super::exchange(&mut front, 0);
}

#[test]
fn rings_that_overlap_each_other_and_their_buffers_are_survived() {
    let mut front = Front::started(config());
    for queue in 0..4 {
        let same = addresses(queue, &front.queues[0]);
        assert_eq!(front.ask(R::SET_VRING_ADDR, &same, &[]), 0);
    }
    for round in 0..200u16 {
        let queue = &mut front.queues[0];
        queue.descriptor(&front.guest, round % 256, queue.at, 4096, round % 4, round);
        queue.offer(&front.guest, round % 256);
        front.switch.poll_tx(0);
        front.switch.poll_tx(1);
    }
    let happened = front.leave();
    assert!(matches!(happened.end, SessionEnd::Closed));
}

#[test]
fn a_failure_nobody_asked_about_ends_the_session_with_its_reason() {
    let mut front = Front::connect(config());
    hello(&mut front);
    front.send(R::SET_VRING_NUM, &state(0, 3), &[]);
    let end = front.ended().end.to_string();
    assert_eq!(
        end,
        "the front-end's SET_VRING_NUM failed, and it asked for no answer: a ring of 3 entries; a power of two up to 1024 is accepted"
    );
}

#[test]
fn what_is_no_vhost_user_ends_the_session() {
    for bytes in [
        message(1, 0, &[]),
        message(1, 2, &[]),
        message(1, 5, &[]),
        [1u32, 1, 4097]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect(),
        [1u32, 1, u32::MAX]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let front = Front::connect(config());
        front.send_raw(&bytes, &[]).unwrap();
        let happened = front.ended();
        assert!(
            matches!(happened.end, SessionEnd::NotVhostUser(_)),
            "{:?}",
            happened.end
        );
    }
}

/// Half a message, then silence, then the switch has enough.
#[test]
fn a_truncated_message_waits_and_can_be_ended() {
    let whole = message(R::SET_VRING_NUM as u32, 1, &state(0, 256));
    for cut in 1..whole.len() {
        let front = Front::started(config());
        front.send_raw(&whole[..cut], &[]).unwrap();
        if cut % 5 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        front.shutdown_of_switch();
        let happened = front.ended();
        let ended = matches!(happened.end, SessionEnd::Truncated | SessionEnd::Closed);
        assert!(ended, "{cut}: {:?}", happened.end);
        assert_eq!(happened.attached, 0);
    }
}

#[test]
fn a_message_in_single_bytes_is_a_message() {
    let front = Front::connect(config());
    for byte in message(R::GET_QUEUE_NUM as u32, 1, &[]) {
        front.send_raw(&[byte], &[]).unwrap();
    }
    assert_eq!(front.receive(R::GET_QUEUE_NUM), 2u64.to_ne_bytes());
}

/// The conversation of a start, closed after each message.
#[test]
fn closed_at_any_point_nothing_stays_attached() {
    for last in 0..30 {
        let mut front = Front::connect(config());
        hello(&mut front);
        let file: [&dyn AsFd; 1] = [&front.guest.file];
        let mut script: Vec<(R, Vec<u8>, Vec<&dyn AsFd>)> = vec![
            (
                R::SET_FEATURES,
                front.features.to_ne_bytes().to_vec(),
                vec![],
            ),
            (
                R::ADD_MEM_REG,
                region(&front.guest.spec(0, front.guest.size), 0),
                file.to_vec(),
            ),
        ];
        for queue in 0..4u32 {
            let value = u64::from(queue).to_ne_bytes().to_vec();
            let at = queue as usize;
            script.push((R::SET_VRING_ENABLE, state(queue, 1), vec![]));
            script.push((R::SET_VRING_NUM, state(queue, 256), vec![]));
            script.push((R::SET_VRING_BASE, state(queue, 0), vec![]));
            script.push((
                R::SET_VRING_ADDR,
                addresses(queue, &front.queues[at]),
                vec![],
            ));
            script.push((R::SET_VRING_KICK, value.clone(), vec![&front.kicks[at]]));
            script.push((R::SET_VRING_CALL, value, vec![&front.calls[at]]));
        }
        for (request, body, fds) in script.iter().take(last) {
            assert_eq!(front.ask(*request, body, fds), 0);
        }
        drop(script);
        let happened = front.leave();
        assert!(matches!(happened.end, SessionEnd::Closed));
        assert_eq!(happened.attached, 0, "after {last} messages");
    }
}

/// A message of a fuzzed conversation.
#[derive(Clone, Debug)]
struct Fuzzed {
    code: u32,
    flags: u32,
    words: Vec<u32>,
    cut: usize,
    fds: usize,
}

fn fuzzed() -> impl Strategy<Value = Fuzzed> {
    let word = prop_oneof![
        4 => 0u32..6,
        1 => prop::sample::select(vec![0x100, 256, 0xff, 0x1000, 0x7f00, u32::MAX, 1 << 31]),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![4 => Just(9u32), 2 => Just(1u32), 1 => 0u32..16];
    let code = prop_oneof![9 => 0u32..46, 1 => any::<u32>()];
    (
        code,
        flags,
        prop::collection::vec(word, 0..14),
        0usize..8,
        0usize..4,
    )
        .prop_map(|(code, flags, words, cut, fds)| Fuzzed {
            code,
            flags,
            words,
            cut,
            fds,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is said, in whatever order, the session ends, by an end that is named, with every ring back.
    #[test]
    fn any_conversation_ends_cleanly(
        started: bool,
        messages in prop::collection::vec(fuzzed(), 1..40),
    ) {
        let front = if started { Front::started(config()) } else { Front::connect(config()) };
        let events: Vec<_> = (0..4).map(|_| event()).collect();
        for message in messages {
            let mut body: Vec<u8> = message.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            body.truncate(body.len().saturating_sub(message.cut % 3));
            let fds: Vec<&dyn AsFd> = (0..message.fds)
                .map(|index| match index % 2 {
                    0 => &events[index] as &dyn AsFd,
                    _ => &front.guest.file as &dyn AsFd,
                })
                .collect();
            let bytes = super::front::message(message.code, message.flags, &body);
            if front.send_raw(&bytes, &fds).is_err() {
                break;
            }
            front.switch.poll_tx(0);
        }
        // It may be in the middle of anything, or over.
        front.shutdown_of_switch();
        let happened = front.ended();
        prop_assert_eq!(happened.attached, 0);
        prop_assert!(!happened.end.to_string().is_empty());
    }
}
