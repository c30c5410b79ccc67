//! Bugs that were found once, each as a test of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vswitch_api::rpc::{ConfigInput, FdbFilter, LinkState, methods};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check};

use crate::setup::{Net, SOON, THREE, mac, numbered};

cases!("regressions":
    a_front_end_that_asks_and_never_reads_holds_nobody_up,
    a_peer_that_hangs_up_at_once_is_asked_less_and_less,
    an_apply_that_cannot_be_made_changes_nothing,
    a_port_that_changes_bridges_takes_no_addresses_along,
    a_flood_on_the_control_socket_leaves_others_their_turn,
    a_half_closed_client_gets_its_whole_answer,
);

/// A front-end is waited for no longer than that, so that whoever waits as long has waited for it.
const HELD_UP: Duration = Duration::from_secs(5);

/// GET_FEATURES, as on the wire: request, version, size.
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// Its session waited in a send, and the main thread for the session when the next front-end came.
fn a_front_end_that_asks_and_never_reads_holds_nobody_up(dir: &RunDir) -> Result<()> {
    let mut switch = Switch::start(dir, THREE)?;
    let mut deaf = UnixStream::connect(dir.join("vm1.sock"))?;
    deaf.set_nonblocking(true)?;
    let start = Instant::now();
    // Until neither side takes more: the session cannot send, so it does not read.
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) && start.elapsed() < HELD_UP {
        match deaf.write(&GET_FEATURES) {
            Ok(_) => quiet = Instant::now(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error.into()),
        }
    }
    deaf.shutdown(Shutdown::Write)?;
    let _next = UnixStream::connect(dir.join("vm1.sock"))?;
    let asked = Instant::now();
    switch.show()?;
    check!(
        asked.elapsed() < HELD_UP,
        "`show` took {:?}",
        asked.elapsed()
    );
    switch.stop();
    Ok(())
}

/// The switch connected again as soon as it was thrown out: thousands of sessions a second, each of them logged.
fn a_peer_that_hangs_up_at_once_is_asked_less_and_less(dir: &RunDir) -> Result<()> {
    let config = THREE.replace("vm1.sock }", "vm1.sock, mode: client }");
    let listener = UnixListener::bind(dir.join("vm1.sock"))?;
    listener.set_nonblocking(true)?;
    let switch = Switch::start(dir, &config)?;
    let (done, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let thread = {
        let (done, count) = (Arc::clone(&done), Arc::clone(&count));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if listener.accept().is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    std::thread::sleep(Duration::from_secs(3));
    done.store(true, Ordering::Relaxed);
    let _ = thread.join();
    let count = count.load(Ordering::Relaxed);
    check!((2..=10).contains(&count), "connected {count} times in 3 s");
    // The last connection may just have been made.
    switch.until("it to go on trying", SOON, || {
        let state = switch.port("vm1")?.link.state;
        check!(state == LinkState::Connecting, "it has given up: {state:?}");
        Ok(())
    })
}

fn input(dir: &RunDir, config: &str) -> ConfigInput {
    let run = dir.path().display().to_string();
    let config = format!("control: {{ socket: $RUN/control.sock }}\n{config}");
    ConfigInput {
        text: config.replace("$RUN", &run),
        file: "new.yaml".into(),
    }
}

/// The old port was gone, the new one could not be made, and the answer was that all is well.
fn an_apply_that_cannot_be_made_changes_nothing(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let before = net.switch.show()?.ports.len();
    std::fs::write(dir.join("in-the-way"), "no socket")?;
    let changed = THREE.replace("vm1.sock", "in-the-way");
    match net
        .switch
        .call::<methods::ConfigApply>(&input(dir, &changed))
    {
        Err(Error::Refused { .. }) => {}
        other => return Err(Error::Failed(format!("it was not refused: {other:?}"))),
    }
    let ports = net.switch.show()?.ports;
    check!(ports.len() == before, "there are {} ports", ports.len());
    net.reaches(1, &numbered(mac(2), mac(1), 7), &[2])?;
    // With the obstacle gone the same configuration can be had.
    std::fs::remove_file(dir.join("in-the-way"))?;
    net.switch
        .call::<methods::ConfigApply>(&input(dir, &changed))?;
    check!(
        net.switch.port("vm1")?.link.state == LinkState::Listening,
        "vm1 does not listen on its new socket"
    );
    Ok(())
}

/// What workers saw on the old bridge was learned after the port had moved, and frames crossed over.
fn a_port_that_changes_bridges_takes_no_addresses_along(dir: &RunDir) -> Result<()> {
    let here = THREE
        .replace("br0: { } ", "br0: { }, br1: { } ")
        .replace("{ vhost", "{ bridge: br0, vhost");
    let there = here.replace("vm1: { bridge: br0", "vm1: { bridge: br1");
    let mut net = Net::new(dir, &here, 2)?;
    net.introduce()?;
    for round in 0..10u8 {
        for n in 0..=255 {
            let address = [0x02, 0, 0, 0, round, n];
            net.guests[0].send(&numbered(mac(2), address, u32::from(n)))?;
        }
        net.switch
            .call::<methods::ConfigApply>(&input(dir, &there))?;
        // Nothing of this is left to be learned late, or when the port goes back.
        net.drain(1)?;
        std::thread::sleep(Duration::from_millis(20));
        let filter = FdbFilter {
            bridge: Some("br0".into()),
            port: Some("vm1".into()),
            vlan: None,
        };
        let left = net.switch.call::<methods::FdbShow>(&filter)?.entries;
        check!(left.is_empty(), "bridge br0 still knows {left:?}");
        net.received(2)?;
        net.send(2, &numbered([0x02, 0, 0, 0, round, 255], mac(2), 99))?;
        let strays = net.received(1)?;
        check!(strays.is_empty(), "a frame crossed from br0 to br1");
        net.switch
            .call::<methods::ConfigApply>(&input(dir, &here))?;
    }
    Ok(())
}

/// Every line of one client was carried out before anybody else was looked at.
fn a_flood_on_the_control_socket_leaves_others_their_turn(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, THREE)?;
    let mut flood = UnixStream::connect(switch.control_socket())?;
    flood.set_nonblocking(true)?;
    let show = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"show\"}\n".repeat(20_000);
    for text in [vec![b'\n'; 4 << 20], show] {
        let mut rest = text.as_slice();
        let start = Instant::now();
        while !rest.is_empty() && start.elapsed() < Duration::from_secs(2) {
            match flood.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error.into()),
            }
            let asked = Instant::now();
            switch.show()?;
            check!(
                asked.elapsed() < HELD_UP,
                "`show` took {:?}",
                asked.elapsed()
            );
        }
    }
    Ok(())
}

/// The end of what it says was taken for the end of what it wants to hear.
fn a_half_closed_client_gets_its_whole_answer(dir: &RunDir) -> Result<()> {
    let ports: String = (4..200)
        .map(|n| format!("  vm{n}: {{ vhost-user: {{ socket: $RUN/vm{n}.sock }} }}\n"))
        .collect();
    let switch = Switch::start(dir, &format!("{THREE}{ports}"))?;
    let mut client = UnixStream::connect(switch.control_socket())?;
    client.set_read_timeout(Some(SOON))?;
    client.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"show\"}\n")?;
    client.shutdown(Shutdown::Write)?;
    std::thread::sleep(Duration::from_millis(100));
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    check!(
        answer.len() > 50_000 && answer.ends_with("}\n"),
        "{} bytes, cut off",
        answer.len()
    );
    Ok(())
}
