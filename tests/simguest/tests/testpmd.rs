//! Two simulated guests through DPDK's vhost port driver: an independent back-end, in both socket roles. Skipped, with
//! the reason, where `dpdk-testpmd` is not installed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vswitch_simguest::driver::{Mode, RxOptions, Shape, TxOptions};
use vswitch_simguest::features::virtio::{
    self, EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, RING_PACKED, VERSION_1,
};
use vswitch_simguest::frames::{Eth, ethernet};
use vswitch_simguest::memory::Layout;
use vswitch_simguest::traffic::{Generator, Meter, Pattern};
use vswitch_simguest::{Builder, Quirks, Role, SimGuest, VirtioNetHdr};

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// testpmd forwarding between two vhost ports.
struct Forwarder {
    child: Child,
    dir: tempfile::TempDir,
    guests_listen: bool,
    queues: u16,
}

impl Forwarder {
    /// None, with a printed reason, if the machine cannot.
    fn start(name: &str, guests_listen: bool, queues: u16) -> Option<Self> {
        if Command::new("dpdk-testpmd").arg("--help").output().is_err() {
            println!("skipped: dpdk-testpmd is not installed (package dpdk-dev)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let child = Self::spawn(dir.path(), name, guests_listen, queues);
        Some(Self {
            child,
            dir,
            guests_listen,
            queues,
        })
    }

    fn spawn(dir: &Path, name: &str, guests_listen: bool, queues: u16) -> Child {
        let log = File::create(dir.join("log")).unwrap();
        let vdev = |n: u8| {
            let (socket, client) = (dir.join(format!("{n}.sock")), u8::from(guests_listen));
            format!(
                "net_vhost{n},iface={},queues={queues},client={client}",
                socket.display()
            )
        };
        Command::new("dpdk-testpmd")
            .args([
                "--no-huge",
                "--no-shconf",
                "--no-pci",
                "--no-telemetry",
                "--iova-mode=va",
            ])
            .args(["-m", "256", "--lcores", "0@(0,1),1@(0,1)"])
            .arg(format!("--file-prefix=simguest-{name}"))
            .args(["--vdev", &vdev(0), "--vdev", &vdev(1)])
            .args([
                "--",
                "-i",
                "--auto-start",
                "--forward-mode=io",
                "--no-mlockall",
            ])
            .args([
                "--total-num-mbufs=16384",
                &format!("--rxq={queues}"),
                &format!("--txq={queues}"),
            ])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn restart(&mut self, name: &str) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for n in 0..2 {
            if !self.guests_listen {
                let _ = std::fs::remove_file(self.socket(n));
            }
        }
        self.child = Self::spawn(self.dir.path(), name, self.guests_listen, self.queues);
    }

    fn socket(&self, n: u8) -> PathBuf {
        self.dir.path().join(format!("{n}.sock"))
    }

    fn guest(&self, n: u8) -> Builder {
        let path = self.socket(n);
        let role = if self.guests_listen {
            Role::Listen(path)
        } else {
            Role::Connect(path)
        };
        Builder::new(role)
            .mac(if n == 0 { A } else { B })
            .pairs(self.queues)
            .timeout(Duration::from_secs(30))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// More than anything here may take, on a machine with other things to do.
const LIMIT: Duration = Duration::from_secs(60);

fn frame(seed: usize, len: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..len).map(|i| (i * 31 + seed * 7) as u8).collect();
    ethernet(&Eth::new(B, A), 0x88b5, &body)
}

/// Sends until the path is up: a vhost port drops while its link comes up. Nothing is under way afterwards.
fn warm_up(from: &mut SimGuest, to: &mut SimGuest) {
    for number in 0..1000 {
        let trial = frame(number, 46 + number);
        from.send(&trial).unwrap();
        // The last one sent is the last one to come; if that takes longer, it is waited for longer.
        let wait = Duration::from_millis(30 + number as u64);
        while let Some(got) = to.recv(wait).unwrap() {
            if got.bytes == trial {
                return;
            }
        }
    }
    panic!("no frame came through");
}

fn check_frames(from: &mut SimGuest, to: &mut SimGuest, longest: usize, shapes: &[Shape]) {
    for (i, shape) in shapes.iter().cycle().take(100).enumerate() {
        let sent = frame(i, 46 + (i * 97) % (longest - 60));
        from.send_shaped(&VirtioNetHdr::default(), &sent, shape)
            .unwrap();
        let got = to.recv(LIMIT).unwrap().expect("frame arrives");
        assert_eq!(
            got.bytes,
            sent,
            "frame {i} of {} bytes, {shape:?}",
            sent.len()
        );
    }
    assert!(from.drain(LIMIT).unwrap(), "all transmit buffers come back");
}

#[test]
fn both_roles_every_ring_feature() {
    for guests_listen in [false, true] {
        let name = if guests_listen { "listen" } else { "connect" };
        let Some(testpmd) = Forwarder::start(name, guests_listen, 1) else {
            return;
        };
        let shapes = [
            Shape::joined(),
            Shape::separate(),
            Shape::cuts(&[12, 20]).then_every(200),
            Shape::cuts(&[12, 40, 100]).indirect(),
        ];
        let combinations = [
            (VERSION_1, Mode::Poll),
            (VERSION_1 | MRG_RXBUF, Mode::Interrupt),
            (VERSION_1 | MRG_RXBUF | INDIRECT_DESC, Mode::Poll),
            (VERSION_1 | EVENT_IDX, Mode::Interrupt),
            (
                VERSION_1 | MRG_RXBUF | INDIRECT_DESC | EVENT_IDX,
                Mode::Interrupt,
            ),
            (0, Mode::Poll),
        ];
        let packed = combinations.map(|(features, mode)| (features | RING_PACKED, mode));
        let modern = |(features, _): &(u64, Mode)| features & VERSION_1 != 0;
        for (features, mode) in combinations
            .into_iter()
            .chain(packed.into_iter().filter(modern))
        {
            println!("features {features:#x}, {mode:?}");
            let rx = RxOptions {
                mode,
                strict: false,
                ..RxOptions::default()
            };
            let tx = TxOptions {
                mode,
                ..TxOptions::default()
            };
            let guest = |n| {
                let guest = testpmd.guest(n).features(features);
                guest.tx_options(tx.clone()).rx_options(rx.clone())
            };
            let (mut a, mut b) = connect(guest(0), guest(1));
            let agreed = a.negotiated().virtio & !virtio::PROTOCOL_FEATURES;
            assert_eq!(agreed, features & a.negotiated().offer.virtio);
            warm_up(&mut a, &mut b);
            check_frames(&mut a, &mut b, 1514, &shapes);
            warm_up(&mut b, &mut a);
            check_frames(&mut b, &mut a, 1514, &shapes);
            assert_eq!(b.stats().rx.faults + a.stats().tx.faults, 0);
            a.disconnect().unwrap();
            b.disconnect().unwrap();
        }
    }
}

/// Both guests at once: a client-mode back-end connects its ports in any order.
fn connect(a: Builder, b: Builder) -> (SimGuest, SimGuest) {
    std::thread::scope(|scope| {
        let b = scope.spawn(|| b.start().unwrap());
        (a.start().unwrap(), b.join().unwrap())
    })
}

#[test]
fn memory_in_several_regions() {
    let Some(testpmd) = Forwarder::start("regions", false, 1) else {
        return;
    };
    for (layout, packed) in [
        (Layout::adjacent(4, 2 << 20), 0),
        (Layout::scattered(3, 4 << 20), 0),
        (Layout::adjacent(4, 2 << 20), RING_PACKED),
    ] {
        let guest = |n| testpmd.guest(n).with(packed).layout(layout.clone());
        let (mut a, mut b) = connect(guest(0), guest(1));
        warm_up(&mut a, &mut b);
        check_frames(&mut a, &mut b, 1514, &[Shape::joined(), Shape::separate()]);
        a.disconnect().unwrap();
        b.disconnect().unwrap();
    }
}

#[test]
fn several_queue_pairs() {
    let Some(testpmd) = Forwarder::start("queues", false, 4) else {
        return;
    };
    let (mut a, mut b) = connect(testpmd.guest(0), testpmd.guest(1));
    assert!(a.negotiated().virtio & virtio::MQ != 0);
    for pair in 0..4 {
        let mut seen = None;
        // Some of the pair before may still come.
        let sent = frame(pair.into(), 100);
        for _ in 0..1000 {
            a.queue(pair).unwrap().tx.send(&sent).unwrap();
            let got = b.recv(Duration::from_millis(30)).unwrap();
            seen = got.filter(|got| got.bytes == sent);
            if seen.is_some() {
                break;
            }
        }
        let seen = seen.expect("the pair carries frames");
        assert_eq!(seen.pair, pair, "io forwarding keeps the queue");
    }
}

#[test]
fn a_guest_reboots_and_the_forwarder_restarts() {
    for (guests_listen, packed) in [(false, 0), (true, 0), (true, RING_PACKED)] {
        let name = match (guests_listen, packed) {
            (false, _) => "restart-c",
            (true, 0) => "restart-l",
            (true, _) => "restart-p",
        };
        let Some(mut testpmd) = Forwarder::start(name, guests_listen, 1) else {
            return;
        };
        let guest = |n| testpmd.guest(n).with(packed);
        let (mut a, mut b) = connect(guest(0), guest(1));
        warm_up(&mut a, &mut b);
        b.reboot().unwrap();
        warm_up(&mut a, &mut b);
        for round in 0..2 {
            testpmd.restart(&format!("{name}{round}"));
            assert!(a.wait_closed(LIMIT));
            assert!(b.wait_closed(LIMIT));
            // The back-end does not find its place in a packed ring.
            let again = |guest: &mut SimGuest| match guest.is_packed() {
                true => guest.reconnect_reset().unwrap(),
                false => guest.reconnect().unwrap(),
            };
            std::thread::scope(|scope| {
                scope.spawn(|| again(&mut a));
                again(&mut b);
            });
            warm_up(&mut a, &mut b);
            check_frames(&mut a, &mut b, 1514, &[Shape::joined(), Shape::separate()]);
            check_frames(&mut b, &mut a, 1514, &[Shape::joined(), Shape::separate()]);
        }
    }
}

/// The order in which DPDK's own virtio-user enables rings, and rings the back-end has to poll.
#[test]
fn other_front_end_habits() {
    let Some(testpmd) = Forwarder::start("habits", false, 1) else {
        return;
    };
    let quirks = Quirks {
        early_enable: false,
        no_kick_fd: true,
        no_call_fd: true,
        ..Quirks::default()
    };
    let guest = |n| testpmd.guest(n).quirks(quirks).protocol(0);
    let (mut a, mut b) = connect(guest(0), guest(1));
    assert_eq!(a.negotiated().protocol, 0);
    warm_up(&mut a, &mut b);
    check_frames(&mut a, &mut b, 1514, &[Shape::joined()]);
}

/// Rings stopped and started again go on where they were, packed ones by their base alone.
#[test]
fn a_guest_pauses() {
    for packed in [0, RING_PACKED] {
        let Some(testpmd) = Forwarder::start("pause", false, 1) else {
            return;
        };
        let guest = |n| testpmd.guest(n).with(packed);
        let (mut a, mut b) = connect(guest(0), guest(1));
        assert_eq!(b.is_packed(), packed != 0);
        for _ in 0..3 {
            warm_up(&mut a, &mut b);
            check_frames(&mut a, &mut b, 1514, &[Shape::joined(), Shape::separate()]);
            b.stop().unwrap();
            b.resume().unwrap();
            a.stop().unwrap();
            a.resume().unwrap();
        }
    }
}

/// Load by bursts: whatever arrives is whole and in order per flow.
#[test]
fn stamped_load() {
    for packed in [0, RING_PACKED] {
        load(packed);
    }
}

fn load(packed: u64) {
    let Some(testpmd) = Forwarder::start("load", false, 1) else {
        return;
    };
    let guest = |n| testpmd.guest(n).with(packed).ring_size(1024);
    let (mut a, mut b) = connect(guest(0), guest(1));
    warm_up(&mut a, &mut b);
    let pattern = Pattern::new(B, A, 60).flows(100);
    let (mut a, mut b) = (a.take_queue(0).unwrap(), b.take_queue(0).unwrap());
    let mut generator = Generator::new(pattern.clone(), &mut a.tx).unwrap();
    let mut meter = Meter::new(&pattern);
    let until = std::time::Instant::now() + 2 * LIMIT;
    while meter.tally().frames < 200_000 && std::time::Instant::now() < until {
        generator.burst(&mut a.tx, 32).unwrap();
        if meter.burst(&mut b.rx, 64).unwrap() == 0 {
            std::thread::yield_now();
        }
    }
    let tally = meter.tally();
    assert!(tally.frames >= 200_000, "{tally:?} of {}", generator.sent());
    assert_eq!((tally.late, tally.alien), (0, 0));
    assert!(tally.frames + tally.missing <= generator.sent());
}
