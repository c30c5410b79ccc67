//! The same message again and again: open files, mappings and memory stay where they were.
//!
//! In a process of its own, because it counts what the whole process has open. `VSWITCH_REPEATS` sets how often each message
//! comes; the full proof is a million.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vswitch_vhost::features::{Switches, mask, offered};
use vswitch_vhost::{
    Custody, MemoryFiles, QueuePair, Rings, RxRing, SessionConfig, SessionEnd, SessionEvent, TxRing,
};

#[derive(Default)]
struct Hold {
    tx: [Option<TxRing>; 2],
    rx: [Option<RxRing>; 2],
}

impl Rings for Hold {
    fn attach_tx(&mut self, pair: QueuePair, ring: TxRing) {
        self.tx[usize::from(pair.0)] = Some(ring);
    }

    fn detach_tx(&mut self, pair: QueuePair) -> Option<TxRing> {
        self.tx[usize::from(pair.0)].take()
    }

    fn attach_rx(&mut self, pair: QueuePair, ring: RxRing) {
        self.rx[usize::from(pair.0)] = Some(ring);
    }

    fn detach_rx(&mut self, pair: QueuePair) -> Option<RxRing> {
        self.rx[usize::from(pair.0)].take()
    }

    fn event(&mut self, _event: SessionEvent) {}
}

const USER: u64 = 1 << 40;
const SIZE: u64 = 0x10_0000;

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Sends a request and reads its answer.
fn ask(stream: &UnixStream, code: u32, body: &[u8], fds: &[&OwnedFd]) -> Vec<u8> {
    let bytes = [&words32(&[code, 9, body.len() as u32])[..], body].concat();
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    sendmsg(
        stream,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
    let mut header = [0; 12];
    let mut stream = stream;
    stream.read_exact(&mut header).unwrap();
    let mut answer = vec![0; u32::from_ne_bytes(header[8..].try_into().unwrap()) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// Open files, mappings, resident kilobytes.
fn footprint() -> [usize; 3] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    [
        std::fs::read_dir("/proc/self/fd").unwrap().count(),
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count(),
        resident.trim().trim_end_matches(" kB").parse().unwrap(),
    ]
}

#[test]
fn repeated_messages_leave_nothing_behind() {
    let repeats: usize = std::env::var("VSWITCH_REPEATS")
        .ok()
        .and_then(|repeats| repeats.parse().ok())
        .unwrap_or(2_000);
    let features = offered(Switches::default());
    let config = SessionConfig {
        queue_pairs: 2,
        ring_size_max: 1024,
        features,
        mtu: Some(1500),
        memory_files: MemoryFiles::Local,
    };
    let (stream, theirs) = UnixStream::pair().unwrap();
    let session = std::thread::spawn(move || {
        let mut hold = Hold::default();
        let end = vswitch_vhost::serve(theirs, &config, &Custody::default(), &mut hold);
        assert!(hold.tx.iter().all(Option::is_none) && hold.rx.iter().all(Option::is_none));
        end
    });
    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, SIZE).unwrap();
    let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();

    let protocol = words64(&[mask(0) | mask(3) | mask(4) | mask(15)]);
    let table = [words32(&[1, 0]), words64(&[0, SIZE, USER, 0])].concat();
    let extra = words64(&[0, SIZE, SIZE, USER + SIZE, 0]);
    let place = |queue: u32| {
        let at = USER + u64::from(queue) * 0x8000;
        [
            words32(&[queue, 0]),
            words64(&[at, at + 0x6000, at + 0x4000, 0]),
        ]
        .concat()
    };
    let memfd: &[&OwnedFd] = &[&memory];
    let eventfd: &[&OwnedFd] = &[&event];
    let none: &[&OwnedFd] = &[];
    // The order makes rings run from the first round on, and start and stop in every one.
    let mut script: Vec<(u32, Vec<u8>, &[&OwnedFd])> = vec![
        (1, vec![], none),
        (15, vec![], none),
        (16, protocol, none),
        (2, words64(&[features | mask(30)]), none),
        (5, table, memfd),
        (37, extra.clone(), memfd),
    ];
    for queue in 0..4u32 {
        let value = words64(&[u64::from(queue)]);
        script.extend([
            (8, words32(&[queue, 256]), none),
            (10, words32(&[queue, 0]), none),
            (9, place(queue), none),
            (12, value.clone(), eventfd),
            (13, value.clone(), eventfd),
            (14, value, eventfd),
            (18, words32(&[queue, 1]), none),
            (18, words32(&[queue, 0]), none),
            (8, words32(&[queue, 3]), none),
        ]);
    }
    script.extend([
        (38, extra, memfd),
        (17, vec![], none),
        (19, vec![0; 8], none),
        (20, words64(&[1500]), none),
        (36, vec![], none),
        (11, words32(&[1, 0]), none),
        // Not offered, with and without descriptors: refused.
        (7, vec![], eventfd),
        (21, vec![], eventfd),
        (32, vec![0; 24], memfd),
        (200, vec![], memfd),
        // Missing, surplus and wrong ones.
        (12, words64(&[0]), none),
        (12, words64(&[0x100]), eventfd),
        (12, words64(&[0]), memfd),
        (5, words32(&[1, 0]), none),
    ]);
    let run = |times: usize| {
        for _ in 0..times {
            for (code, body, fds) in &script {
                // Every one is answered: by its own value, or by how it went.
                assert!(!ask(&stream, *code, body, fds).is_empty(), "request {code}");
            }
        }
    };
    // Without REPLY_ACK the first few have no answer: negotiate it first.
    let mut stream_ref = &stream;
    std::io::Write::write_all(
        &mut stream_ref,
        &[words32(&[16, 1, 8]), words64(&[mask(3)])].concat(),
    )
    .unwrap();
    run(100);
    let before = footprint();
    run(repeats);
    let after = footprint();
    drop(stream);
    assert!(matches!(session.join().unwrap(), SessionEnd::Closed));
    assert_eq!(after[0], before[0], "open files");
    assert!(after[1] <= before[1] + 4, "mappings: {before:?}, {after:?}");
    assert!(
        after[2] <= before[2] + 1024,
        "resident kilobytes: {before:?}, {after:?}"
    );
}
