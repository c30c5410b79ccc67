//! Captures: what the file has is what passed, and every dropped frame has its reason.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use vswitch_simguest::driver::Shape;
use vswitch_simguest::features::virtio::OFFLOADS;
use vswitch_simguest::frames::{Eth, Ip, Tcp, tcp_gso, tcp_partial};
use vswitch_tests::{Error, Process, Result, RunDir, cases, check, machine};

use crate::load::Load;
use crate::setup::{BROADCAST, Net, SOON, THREE, hex, mac, numbered, numbered_on};

cases!("capture":
    frames_seen_and_dropped,
    filters,
    frames_are_cut_and_counted,
    unfinished_frames_are_finished_or_marked,
    a_capture_costs_nobody_a_frame,
);

/// A frame of a capture file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Captured {
    port: String,
    /// 1 inbound, 2 outbound, as the lowest bits of pcapng's flags; 0 for frames that were dropped.
    direction: u32,
    comment: Option<String>,
    len: u32,
    bytes: Vec<u8>,
}

/// A running `vswitchctl capture -w FILE`.
struct Capture {
    process: Process,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(dir: &RunDir, net: &Net<'_>, name: &str, args: &[&str]) -> Result<Self> {
        let file = dir.join(format!("{name}.pcapng"));
        let (socket, path) = (
            net.switch.control_socket().display().to_string(),
            file.display().to_string(),
        );
        let mut all = vec!["--socket", &socket, "capture", "-w", &path];
        all.extend(args);
        let mut process = Process::start(
            dir,
            name,
            machine::built_programs()?.join("vswitchctl"),
            all,
        )?;
        let started = Instant::now();
        while !process.log().contains("capturing on") {
            check!(
                started.elapsed() < SOON && process.ended()?.is_none(),
                "vswitchctl capture does not start: {}",
                process.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { process, file })
    }

    /// Waits until it ends by itself (`--count`), and reads what it wrote.
    fn finish(mut self) -> Result<Vec<Captured>> {
        let status = self.process.wait(SOON)?;
        check!(
            status.success() && self.process.log().contains("0 lost"),
            "vswitchctl capture: {status}, {}",
            self.process.log()
        );
        read(&self.file)
    }

    /// Ends it with SIGINT when it has what it should have seen, and time for what it should not.
    fn interrupt(self, frames: usize) -> Result<Vec<Captured>> {
        let started = Instant::now();
        // What is half written cannot be read.
        while read(&self.file).map_or(0, |got| got.len()) < frames && started.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        self.process.signal(rustix::process::Signal::INT)?;
        self.finish()
    }
}

fn read(path: &Path) -> Result<Vec<Captured>> {
    let bad = |e: pcap_file::PcapError| {
        Error::Failed(format!("{} is no good pcapng: {e}", path.display()))
    };
    let file = File::open(path).map_err(Error::io("open the capture"))?;
    let mut reader = PcapNgReader::new(file).map_err(bad)?;
    let (mut names, mut frames) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block.map_err(bad)? {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|o| match o {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                names.push(name.unwrap_or_default());
            }
            Block::EnhancedPacket(packet) => {
                let mut frame = Captured {
                    port: names
                        .get(packet.interface_id as usize)
                        .cloned()
                        .unwrap_or_default(),
                    direction: 0,
                    comment: None,
                    len: packet.original_len,
                    bytes: packet.data.to_vec(),
                };
                for option in &packet.options {
                    match option {
                        EnhancedPacketOption::Flags(flags) => frame.direction = flags & 3,
                        EnhancedPacketOption::Comment(text) => {
                            frame.comment = Some(text.to_string());
                        }
                        _ => {}
                    }
                }
                frames.push(frame);
            }
            _ => {}
        }
    }
    Ok(frames)
}

fn seen(port: &str, direction: u32, bytes: &[u8]) -> Captured {
    Captured {
        port: port.into(),
        direction,
        comment: None,
        len: bytes.len() as u32,
        bytes: bytes.to_vec(),
    }
}

/// Checks that a capture has exactly these frames, those of each port in this order; a reason is part of a comment.
fn same(got: &[Captured], want: &[(Captured, Option<&str>)]) -> Result<()> {
    let sorted = |frames: &mut Vec<(Captured, Option<String>)>| {
        frames.sort_by(|a, b| a.0.port.cmp(&b.0.port));
    };
    let mut got: Vec<_> = got.iter().map(|f| (f.clone(), f.comment.clone())).collect();
    let mut want: Vec<_> = want
        .iter()
        .map(|(f, r)| (f.clone(), r.map(str::to_owned)))
        .collect();
    sorted(&mut got);
    sorted(&mut want);
    let describe = |list: &[(Captured, Option<String>)]| {
        let lines: Vec<_> = list
            .iter()
            .map(|(f, r)| format!("{} {} {r:?} {}", f.port, f.direction, hex(&f.bytes)))
            .collect();
        lines.join("\n")
    };
    let alike = got.len() == want.len()
        && got.iter().zip(&want).all(|((g, comment), (w, reason))| {
            (&g.port, g.direction, g.len, &g.bytes) == (&w.port, w.direction, w.len, &w.bytes)
                && match (comment, reason) {
                    (None, None) => true,
                    (Some(comment), Some(reason)) => comment.contains(reason.as_str()),
                    _ => false,
                }
        });
    check!(
        alike,
        "captured\n{}\ninstead of\n{}",
        describe(&got),
        describe(&want)
    );
    Ok(())
}

const IN: u32 = 1;
const OUT: u32 = 2;
const DROPPED: u32 = 0;

fn frames_seen_and_dropped(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let capture = Capture::start(dir, &net, "capture", &["--count", "9"])?;
    let good = numbered(mac(2), mac(1), 1);
    let own = numbered(mac(1), mac(1), 2);
    let mut long = numbered(mac(2), mac(1), 3);
    long.resize(2000, 3);
    let all = numbered(BROADCAST, mac(2), 4);
    net.reaches(1, &good, &[2])?;
    net.reaches(1, &own, &[])?;
    net.reaches(1, &long, &[])?;
    net.reaches(1, &good[..10], &[])?;
    net.reaches(2, &all, &[1])?;
    net.vm(1).reboot()?;
    net.reaches(1, &good, &[2])?;
    let got = capture.finish()?;
    same(
        &got,
        &[
            (seen("vm1", IN, &good), None),
            (seen("vm1", DROPPED, &own), Some("reflection")),
            (seen("vm1", DROPPED, &long), Some("over-mtu")),
            (seen("vm1", DROPPED, &good[..10]), Some("runt")),
            (seen("vm1", OUT, &all), None),
            (seen("vm1", IN, &good), None),
            (seen("vm2", OUT, &good), None),
            (seen("vm2", IN, &all), None),
            (seen("vm3", DROPPED, &all), Some("not-connected")),
        ],
    )?;
    net.close_books()
}

fn filters(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let good = numbered(mac(2), mac(1), 1);
    let own = numbered(mac(1), mac(1), 2);
    let all = numbered(BROADCAST, mac(2), 4);
    let mut captures = HashMap::new();
    for (name, args) in [
        ("port", vec!["--port", "vm1"]),
        ("rx", vec!["--direction", "rx"]),
        ("tx", vec!["--direction", "tx", "--port", "vm2"]),
        ("drops", vec!["--direction", "drop"]),
        ("reason", vec!["--reason", "reflection"]),
        (
            "reasons",
            vec![
                "--reason",
                "reflection",
                "--reason",
                "runt",
                "--port",
                "vm1",
            ],
        ),
    ] {
        captures.insert(name, Capture::start(dir, &net, name, &args)?);
    }
    net.reaches(1, &good, &[2])?;
    net.reaches(1, &own, &[])?;
    net.reaches(2, &all, &[1])?;
    net.reaches(1, &good[..10], &[])?;
    let all_of_it = [
        (seen("vm1", IN, &good), None),
        (seen("vm1", DROPPED, &own), Some("reflection")),
        (seen("vm1", OUT, &all), None),
        (seen("vm1", DROPPED, &good[..10]), Some("runt")),
        (seen("vm2", OUT, &good), None),
        (seen("vm2", IN, &all), None),
        (seen("vm3", DROPPED, &all), Some("not-connected")),
    ];
    for (name, capture) in captures {
        let of_port = |f: &Captured, port: &str| f.port == port;
        let want: Vec<_> = all_of_it
            .iter()
            .filter(|(frame, reason)| match name {
                "port" => of_port(frame, "vm1"),
                "rx" => frame.direction == IN,
                "tx" => frame.direction == OUT && of_port(frame, "vm2"),
                "drops" => reason.is_some(),
                "reason" => *reason == Some("reflection"),
                _ => reason.is_some() && of_port(frame, "vm1"),
            })
            .cloned()
            .collect();
        let got = capture.interrupt(want.len())?;
        same(&got, &want).map_err(|e| Error::Failed(format!("filter `{name}`: {e}")))?;
    }
    for args in [["--port", "vm9"], ["--reason", "no-such"]] {
        let socket = net.switch.control_socket().display().to_string();
        let mut all = vec!["--socket", &socket, "capture", "--count", "1"];
        all.extend(args);
        let mut process = Process::start(
            dir,
            "wrong",
            machine::built_programs()?.join("vswitchctl"),
            all,
        )?;
        let status = process.wait(SOON)?;
        check!(
            !status.success() && process.log().contains(args[1]),
            "a capture of {} is not refused: {}",
            args[1],
            process.log()
        );
    }
    net.close_books()
}

fn frames_are_cut_and_counted(dir: &RunDir) -> Result<()> {
    let config = THREE
        .replace("vm1: {", "vm1: { vlan: { access: 5 },")
        .replace("vm2: {", "vm2: { vlan: { trunk: [5] },")
        .replace("vm3: {", "vm3: { vlan: { access: 5 },");
    let mut net = Net::new(dir, &config, 2)?;
    let capture = Capture::start(
        dir,
        &net,
        "cut",
        &[
            "--snaplen",
            "64",
            "--count",
            "3",
            "--port",
            "vm1",
            "--port",
            "vm2",
        ],
    )?;
    let mut long = numbered(BROADCAST, mac(1), 1);
    long.resize(1000, 9);
    let mut out = numbered_on(&Eth::new(BROADCAST, mac(1)).tag(5), 1);
    out.resize(1004, 9);
    net.becomes(1, &long, &[(2, &out)])?;
    net.is_dropped(1, &long[..13], "runt")?;
    let got = capture.finish()?;
    let cut = |port, direction, frame: &[u8]| Captured {
        bytes: frame[..frame.len().min(64)].to_vec(),
        ..seen(port, direction, frame)
    };
    // Toward port 2 it is captured as it left: with its tag.
    same(
        &got,
        &[
            (cut("vm1", IN, &long), None),
            (cut("vm1", DROPPED, &long[..13]), Some("runt")),
            (cut("vm2", OUT, &out), None),
        ],
    )?;
    net.close_books()
}

/// What a guest leaves to offloads is done in the capture, so that Wireshark sees no wrong checksums; a train is one frame.
fn unfinished_frames_are_finished_or_marked(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, |_, b| b.with(OFFLOADS))?;
    net.introduce()?;
    let eth = Eth::new(mac(2), mac(1));
    let ip = Ip::new([10, 0, 0, 1], [10, 0, 0, 2]);
    let capture = Capture::start(dir, &net, "offloads", &["--count", "4"])?;
    let (header, partial) = tcp_partial(&eth, &ip, &Tcp::default(), &[3; 700]);
    let (gso, train) = tcp_gso(&eth, &ip, &Tcp::default(), &[4; 30_000], 1448);
    for (header, frame) in [(header, &partial), (gso, &train)] {
        net.vm(1).send_shaped(&header, frame, &Shape::joined())?;
        net.drain(1)?;
        check!(net.received(2)?.len() == 1, "a frame did not arrive");
    }
    let complete = vswitch_simguest::frames::tcp(&eth, &ip, &Tcp::default(), &[3; 700]);
    let got = capture.finish()?;
    check!(got.len() == 4, "{} frames were captured", got.len());
    for frame in &got {
        if frame.bytes.len() < 1000 {
            check!(
                frame.bytes == complete,
                "captured at {} was {}, complete it is {}",
                frame.port,
                hex(&frame.bytes),
                hex(&complete)
            );
        } else {
            check!(
                frame.bytes.len() == train.len() && frame.bytes[66..] == train[66..],
                "captured at {} was {} instead of {}",
                frame.port,
                hex(&frame.bytes),
                hex(&train)
            );
        }
    }
    net.close_books()
}

/// A client that does not read loses frames of its capture; the guests lose none.
fn a_capture_costs_nobody_a_frame(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let mut control = net.switch.control()?;
    control.call::<vswitch_api::rpc::methods::CaptureStart>(&Default::default())?;
    let load = Load::start(&mut net, 1, 2)?;
    for _ in 0..20 {
        load.wait_more(2000)?;
        net.switch.show()?;
    }
    drop(control);
    load.wait_more(2000)?;
    load.finish_whole(&mut net)?;
    net.close_books()
}
