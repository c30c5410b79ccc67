//! Front-ends that hand over files which keep whoever touches, asks or closes them waiting. Their port is theirs to lose;
//! two other guests talk on, and the daemon answers whoever asks it.
//!
//! The server of such files is dropped before them and before the switch, neither of which could end otherwise.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vswitch_api::rpc::{ConfigInput, methods};
use vswitch_simguest::features::protocol;
use vswitch_simguest::frontend::{Frontend, FrontendError};
use vswitch_simguest::wire::request;
use vswitch_simguest::{Endpoint, Role};
use vswitch_tests::fuse::{self, Fuse, Silence};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check};

use crate::load::Load;
use crate::setup::{BROADCAST, Net, SOON, THREE, mac, numbered};

cases!("strangers":
    memory_whose_server_does_not_answer,
    descriptors_whose_server_does_not_answer,
    a_port_that_holds_too_many_of_them_waits,
    files_in_connections_that_nobody_reads,
    calls_and_kicks_that_are_no_events,
);

/// What counts as held up. Answers take milliseconds, the end of a session that waits for a server at most two seconds.
const HELD_UP: Duration = Duration::from_secs(5);

/// A region of 1 MiB for ADD_MEM_REG, at an address of its own.
fn region() -> Vec<u8> {
    let words: [u64; 5] = [0, 1 << 40, 1 << 20, 1 << 40, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A table of it for SET_MEM_TABLE.
fn table() -> Vec<u8> {
    let mut table = region();
    table[..4].copy_from_slice(&1u32.to_le_bytes());
    table
}

fn connect(dir: &RunDir, port: u8) -> Result<Frontend> {
    connect_within(dir, port, SOON)
}

fn connect_within(dir: &RunDir, port: u8, limit: Duration) -> Result<Frontend> {
    let socket = dir.join(format!("vm{port}.sock"));
    let mut frontend = Endpoint::new(Role::Connect(socket))?.open(limit)?;
    frontend.open_session(protocol::ALL, 1)?;
    Ok(frontend)
}

fn is_refused(frontend: &Frontend, req: u32, body: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
    match frontend.tell(req, body, &[fd]) {
        Err(FrontendError::Refused { .. }) => Ok(()),
        other => Err(Error::Failed(format!(
            "request {req} was not refused: {other:?}"
        ))),
    }
}

/// What the daemon says of the end of vm3's last session.
fn how_it_ended(switch: &Switch<'_>) -> Result<String> {
    switch.until("the end of vm3's session", SOON, || {
        let reason = switch.port("vm3")?.link.reason.unwrap_or_default();
        check!(reason.contains("last session: "), "{reason:?}");
        Ok(reason)
    })
}

fn descriptors(switch: &Switch<'_>) -> Result<usize> {
    let folder = format!("/proc/{}/fd", switch.process()?.id());
    Ok(std::fs::read_dir(folder)?.count())
}

/// The daemon answers, which the main thread does.
fn answers(switch: &Switch<'_>) -> Result<()> {
    let asked = Instant::now();
    switch.show()?;
    check!(
        asked.elapsed() < HELD_UP,
        "`show` took {:?}",
        asked.elapsed()
    );
    Ok(())
}

/// The port is gone and comes back, for which the main thread waits for its session.
fn comes_and_goes(dir: &RunDir, switch: &Switch<'_>, port: &str) -> Result<()> {
    let asked = Instant::now();
    let line = |line: &&str| !line.contains(&format!("  {port}:"));
    let without: Vec<_> = THREE.lines().filter(line).collect();
    for config in [without.join("\n"), THREE.to_owned()] {
        let run = dir.path().display().to_string();
        let text = format!("control: {{ socket: $RUN/control.sock }}\n{config}\n");
        switch.call::<methods::ConfigApply>(&ConfigInput {
            text: text.replace("$RUN", &run),
            file: "new.yaml".into(),
        })?;
    }
    check!(asked.elapsed() < HELD_UP, "it took {:?}", asked.elapsed());
    Ok(())
}

fn memory_whose_server_does_not_answer(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let file;
    let fuse = Fuse::mount(dir, Silence::Everything)?;
    file = fuse.open()?;
    let load = Load::start(&mut net, 1, 2)?;

    // Who does not ask for an answer is told by the end.
    let vm3 = connect(dir, 3)?;
    vm3.send(request::ADD_MEM_REG, 0, &region(), &[file.as_fd()])?;
    check!(vm3.wait_closed(SOON), "the session goes on");
    let ended = how_it_ended(&net.switch)?;
    check!(
        ended.contains("is on fuse, whose pages") && ended.contains("`memory-files: any`"),
        "it ended with: {ended}"
    );
    answers(&net.switch)?;

    // While that one is not closed there is no answer about others.
    let vm3 = connect(dir, 3)?;
    is_refused(&vm3, request::ADD_MEM_REG, &region(), file.as_fd())?;
    is_refused(&vm3, request::SET_MEM_TABLE, &table(), file.as_fd())?;
    // The conversation goes on, and the neighbours'.
    vm3.get_features()?;
    load.wait_more(1_000)?;
    answers(&net.switch)?;
    drop(vm3);
    check!(!fuse.was_read(), "a page of the file was touched");
    check!(
        fuse::keeps_waiting(&file)? && fuse.is_asked_in(SOON),
        "nobody waits for this file, so nothing was shown"
    );

    // Whoever comes next finds the port as new, even while what was left there is not closed.
    load.finish_whole(&mut net)?;
    net.switch.accounted()?;
    comes_and_goes(dir, &net.switch, "vm3")?;
    net.add(|builder| builder)?;
    net.reaches(3, &numbered(BROADCAST, mac(3), 1), &[1, 2])
}

fn descriptors_whose_server_does_not_answer(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let file;
    let fuse = Fuse::mount(dir, Silence::Everything)?;
    file = fuse.open()?;
    let load = Load::start(&mut net, 1, 2)?;
    let vm3 = connect(dir, 3)?;
    for event in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        is_refused(&vm3, event, &0u64.to_le_bytes(), file.as_fd())?;
    }
    // Of no use to the message.
    vm3.send(request::SET_OWNER, 0, &[], &[file.as_fd(); 4])?;
    vm3.get_features()?;
    // Beside no message's first byte.
    let words: [u32; 3] = [request::SET_FEATURES, 1, 8];
    let head: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    vm3.send_raw(&head, &[])?;
    vm3.send_raw(&[0; 8], &[file.as_fd()])?;
    check!(vm3.wait_closed(SOON), "the session goes on");
    let ended = how_it_ended(&net.switch)?;
    check!(
        ended.contains("in the middle of a message"),
        "it ended with: {ended}"
    );
    load.wait_more(1_000)?;
    load.finish_whole(&mut net)?;
    net.switch.accounted()?;
    check!(fuse.is_asked_in(SOON), "nobody waits, so nothing was shown");
    comes_and_goes(dir, &net.switch, "vm3")
}

fn a_port_that_holds_too_many_of_them_waits(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let file;
    let fuse = Fuse::mount(dir, Silence::Everything)?;
    file = fuse.open()?;
    let load = Load::start(&mut net, 1, 2)?;
    let before = descriptors(&net.switch)?;
    let mut full = false;
    for _ in 0..40 {
        // Those that the port no longer takes are in nobody's way.
        let Ok(vm3) = connect_within(dir, 3, HELD_UP) else {
            full = true;
            break;
        };
        let _ = vm3.send(request::SET_OWNER, 0, &[], &[file.as_fd(); 30]);
        let _ = vm3.get_features();
    }
    check!(full, "the port took them all");
    let after = descriptors(&net.switch)?;
    check!(
        after < before + 512,
        "the switch had {before} descriptors open, now {after}"
    );
    answers(&net.switch)?;
    load.wait_more(1_000)?;
    load.finish_whole(&mut net)?;
    // When the server has gone the port is there again.
    drop(fuse);
    net.add(|builder| builder)?;
    net.reaches(3, &numbered(BROADCAST, mac(3), 1), &[1, 2])?;
    net.switch.accounted().map(drop)
}

/// Nobody receives such a file: the kernel lets go of it, in the thread that closes the connection.
fn files_in_connections_that_nobody_reads(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let other;
    let fuse = Fuse::mount(dir, Silence::Writes)?;
    let (outer, inner) = UnixStream::pair().map_err(Error::io("make sockets"))?;
    let carrier = Frontend::from_stream(outer, SOON)?;
    let file = fuse.open()?;
    carrier.send_raw(b"x", &[file.as_fd()])?;
    drop(file);
    // Only now there is something to be written when that one goes, and this stays open.
    other = fuse.open()?;
    std::os::unix::fs::FileExt::write_at(&other, &[7; 4096], 0)
        .map_err(Error::io("write to the file"))?;
    // The port has a guest, so nobody listens to this one. Sent while the daemon is held, so that it comes in time, and the
    // daemon's is the last hand that lets go.
    net.switch.process()?.signal(Signal::STOP)?;
    let turned_away = Frontend::from_stream(UnixStream::connect(dir.join("vm2.sock"))?, SOON)?;
    let sent = turned_away.send_raw(b"x", &[inner.as_fd()]);
    drop((inner, carrier));
    net.switch.process()?.signal(Signal::CONT)?;
    sent?;
    check!(turned_away.wait_closed(SOON), "it was not turned away");
    check!(fuse.is_asked_in(SOON), "nobody waits, so nothing was shown");
    let load = Load::start(&mut net, 1, 2)?;
    answers(&net.switch)?;
    load.wait_more(1_000)?;
    load.finish_whole(&mut net)?;
    net.switch.accounted()?;
    // This port's session ends, and the whole port.
    comes_and_goes(dir, &net.switch, "vm2")
}

fn calls_and_kicks_that_are_no_events(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    let vm3 = connect(dir, 3)?;
    let (read, write) = rustix::pipe::pipe().map_err(|e| Error::Failed(e.to_string()))?;
    let (socket, _peer) = UnixStream::pair()?;
    for fd in [read.as_fd(), write.as_fd(), socket.as_fd()] {
        for event in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
            is_refused(&vm3, event, &0u64.to_le_bytes(), fd)?;
        }
    }
    // Unasked for, the reason is the session's end.
    vm3.set_vring_fd(request::SET_VRING_CALL, 0, Some(write.as_fd()))?;
    check!(vm3.wait_closed(SOON), "the session goes on");
    let ended = how_it_ended(&net.switch)?;
    check!(
        ended.contains("is not an eventfd"),
        "it ended with: {ended}"
    );
    load.wait_more(1_000)?;
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}
