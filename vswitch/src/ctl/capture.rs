//! `vswitchctl capture`: frames from the control socket to a pcapng file or to lines of text.
//!
//! In the file each port is an interface. A frame's direction is in its flags, as the switch sees
//! it: inbound came in by the port. A dropped frame carries its reason as a comment, which
//! Wireshark shows and filters by (`frame.comment contains "ring-full"`). The file is complete
//! after every batch, so a capture can be read while it runs and survives being killed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, PcapError};
use serde::Deserialize as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use vswitch_api::rpc::{
    CAPTURE_FRAMES, CaptureFrames, CaptureParams, CapturedFrame, Direction, methods,
};

use super::cli::{CaptureOptions, Way};
use super::client::Client;
use super::text::{Paint, counted};
use super::{CtlError, file_error};

/// Where captured frames go.
trait Sink {
    fn frame(&mut self, frame: &CapturedFrame, data: &[u8]) -> io::Result<()>;
    /// A batch is complete.
    fn flush(&mut self) -> io::Result<()>;
}

/// Captures until `--count` is reached, the operator ends it, or the daemon does.
pub(super) fn run(
    client: &mut Client,
    options: &CaptureOptions,
    json: bool,
) -> Result<ExitCode, CtlError> {
    let to_stdout = options
        .write
        .as_deref()
        .is_none_or(|path| path == Path::new("-"));
    if to_stdout && options.write.is_some() && io::stdout().is_terminal() {
        return Err(CtlError::Usage(
            "pcapng would garble the terminal; pipe it on, or name a file after -w".into(),
        ));
    }
    let started = client.call::<methods::CaptureStart>(&params(options))?;
    let mut sink: Box<dyn Sink> = match &options.write {
        None if json => Box::new(JsonLines(io::stdout())),
        None => Box::new(TextLines(
            io::stdout(),
            Paint::new(io::stdout().is_terminal()),
        )),
        Some(_) if to_stdout => Box::new(PcapNg::new(io::stdout(), &started.interfaces)?),
        Some(path) => {
            let file = std::fs::File::create(path).map_err(|e| file_error("write", path, e))?;
            Box::new(PcapNg::new(file, &started.interfaces)?)
        }
    };
    if options.write.is_some() {
        eprintln!(
            "capturing on {}; end with Ctrl-C",
            started.interfaces.join(", ")
        );
    }
    end_on_signal(client)?;
    let (frames, lost) = follow(client, started.id, sink.as_mut())?;
    if options.write.is_some() {
        eprintln!(
            "{} captured, {lost} lost on the way",
            counted(frames, "frame", "frames")
        );
    } else if lost > 0 {
        eprintln!(
            "{} lost on the way: the output is too slow",
            counted(lost, "frame", "frames")
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn params(options: &CaptureOptions) -> CaptureParams {
    let way = |way: &Way| match way {
        Way::Rx => Direction::Rx,
        Way::Tx => Direction::Tx,
        Way::Drop => Direction::Drop,
    };
    CaptureParams {
        ports: options.port.clone(),
        directions: options.direction.iter().map(way).collect(),
        reasons: options.reason.clone(),
        snaplen: options.snaplen,
        count: options.count,
    }
}

/// SIGINT and SIGTERM close the connection, which ends the capture; what has come stays.
fn end_on_signal(client: &Client) -> io::Result<()> {
    let stream = client.handle()?;
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                // The reader sees the end of the stream; if the socket is gone already, too.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        })?;
    Ok(())
}

/// Takes notifications to the sink; how many frames came, and how many were lost.
fn follow(client: &mut Client, id: u64, sink: &mut dyn Sink) -> Result<(u64, u64), CtlError> {
    let (mut frames, mut lost) = (0, 0);
    while let Some(news) = client.notification()? {
        if news.method != CAPTURE_FRAMES {
            continue;
        }
        let batch = CaptureFrames::deserialize(news.params)
            .map_err(|e| CtlError::Lost(format!("a batch of frames cannot be read: {e}")))?;
        if batch.id != id {
            continue;
        }
        lost = batch.lost;
        for frame in &batch.frames {
            let data = base64::engine::general_purpose::STANDARD
                .decode(&frame.data)
                .map_err(|e| CtlError::Lost(format!("a frame cannot be read: {e}")))?;
            sink.frame(frame, &data)?;
            frames += 1;
        }
        sink.flush()?;
        if batch.end {
            break;
        }
    }
    Ok((frames, lost))
}

/// A pcapng file.
struct PcapNg<W: Write> {
    writer: PcapNgWriter<BufWriter<W>>,
    /// Interface numbers by port.
    interfaces: HashMap<String, u32>,
}

impl<W: Write> PcapNg<W> {
    fn new(out: W, ports: &[String]) -> io::Result<Self> {
        let program = concat!("vswitchctl ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(program))],
            ..Default::default()
        };
        let writer =
            PcapNgWriter::with_section_header(BufWriter::new(out), section).map_err(plain)?;
        let mut file = Self {
            writer,
            interfaces: HashMap::new(),
        };
        for port in ports {
            file.interface(port)?;
        }
        file.flush()?;
        Ok(file)
    }

    /// The port's interface; a port that is new gets one on its first frame.
    fn interface(&mut self, port: &str) -> io::Result<u32> {
        if let Some(&number) = self.interfaces.get(port) {
            return Ok(number);
        }
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: CaptureParams::MAX_SNAPLEN,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(port.to_owned())),
                // Timestamps count nanoseconds.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(plain)?;
        self.interfaces.insert(port.to_owned(), number);
        Ok(number)
    }
}

impl<W: Write> Sink for PcapNg<W> {
    fn frame(&mut self, frame: &CapturedFrame, data: &[u8]) -> io::Result<()> {
        let interface_id = self.interface(&frame.port)?;
        let mut options = Vec::new();
        // The two lowest bits: 1 inbound, 2 outbound, 0 not known.
        match frame.dir {
            Direction::Rx => options.push(EnhancedPacketOption::Flags(1)),
            Direction::Tx => options.push(EnhancedPacketOption::Flags(2)),
            Direction::Drop => {}
        }
        if let Some(reason) = &frame.reason {
            options.push(EnhancedPacketOption::Comment(Cow::Owned(format!(
                "dropped: {reason}"
            ))));
        }
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(frame.ts_ns),
            original_len: frame.orig_len,
            data: Cow::Borrowed(data),
            options,
        };
        self.writer.write_pcapng_block(block).map_err(plain)?;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }
}

fn plain(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// A line of JSON per frame, as the control socket gives it.
struct JsonLines<W: Write>(W);

impl<W: Write> Sink for JsonLines<W> {
    fn frame(&mut self, frame: &CapturedFrame, _: &[u8]) -> io::Result<()> {
        let mut line = serde_json::to_vec(frame).map_err(io::Error::other)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line for people per frame.
struct TextLines<W: Write>(W, Paint);

impl<W: Write> Sink for TextLines<W> {
    fn frame(&mut self, frame: &CapturedFrame, data: &[u8]) -> io::Result<()> {
        let way = match (frame.dir, &frame.reason) {
            (Direction::Rx, _) => "rx  ".into(),
            (Direction::Tx, _) => "tx  ".into(),
            (Direction::Drop, reason) => {
                let reason = reason.as_deref().unwrap_or("for no named reason");
                self.1.bad(&format!("drop {reason}"))
            }
        };
        let (seconds, nanos) = (frame.ts_ns / 1_000_000_000, frame.ts_ns % 1_000_000_000);
        let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        writeln!(
            self.0,
            "{h:02}:{m:02}:{s:02}.{:06} {} {way} {}, {} bytes",
            nanos / 1000,
            frame.port,
            summary(data),
            frame.orig_len
        )
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Addresses, VLAN and type of an Ethernet frame.
fn summary(data: &[u8]) -> String {
    let (Some(dst), Some(src), Some(mut ethertype)) = (mac(data, 0), mac(data, 6), word(data, 12))
    else {
        return "too short for Ethernet".into();
    };
    let mut vlan = String::new();
    if ethertype == 0x8100
        && let (Some(tag), Some(inner)) = (word(data, 14), word(data, 16))
    {
        vlan = format!(" VLAN {}", tag & 0xfff);
        ethertype = inner;
    }
    let kind = match ethertype {
        0x0800 => "IPv4".into(),
        0x86dd => "IPv6".into(),
        0x0806 => "ARP".into(),
        0x8100 => "two VLAN tags".into(),
        0x88cc => "LLDP".into(),
        length @ 0..0x600 => format!("802.3 of {length}"),
        other => format!("type {other:#06x}"),
    };
    format!("{src} > {dst}{vlan} {kind}")
}

fn mac(data: &[u8], at: usize) -> Option<vswitch_api::config::Mac> {
    let bytes: [u8; 6] = data.get(at..at + 6)?.try_into().ok()?;
    Some(vswitch_api::config::Mac(bytes))
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    fn frame(port: &str, dir: Direction, reason: Option<&str>) -> CapturedFrame {
        CapturedFrame {
            port: port.into(),
            dir,
            reason: reason.map(Into::into),
            ts_ns: 1_700_000_000_123_456_789,
            orig_len: 1514,
            data: String::new(),
        }
    }

    const BYTES: &[u8] = &[
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 0x81, 0, 0x20, 10, 8, 6, 0,
    ];

    #[test]
    fn a_file_says_port_direction_reason_and_time() {
        let mut out = Vec::new();
        let mut file = PcapNg::new(&mut out, &["vm1".into(), "vm2".into()]).unwrap();
        file.frame(&frame("vm2", Direction::Rx, None), BYTES)
            .unwrap();
        file.frame(&frame("vm1", Direction::Drop, Some("ring-full")), BYTES)
            .unwrap();
        file.frame(&frame("late", Direction::Tx, None), BYTES)
            .unwrap();
        file.flush().unwrap();
        drop(file);
        let mut reader = PcapNgReader::new(out.as_slice()).unwrap();
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::InterfaceDescription(block) => {
                    assert_eq!(block.linktype, DataLink::ETHERNET);
                    assert!(
                        block
                            .options
                            .contains(&InterfaceDescriptionOption::IfTsResol(9))
                    );
                    names.extend(block.options.into_iter().filter_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.into_owned()),
                        _ => None,
                    }));
                }
                Block::EnhancedPacket(block) => packets.push(block),
                _ => {}
            }
        }
        assert_eq!(names, ["vm1", "vm2", "late"]);
        let ids: Vec<u32> = packets.iter().map(|packet| packet.interface_id).collect();
        assert_eq!(ids, [1, 0, 2]);
        assert_eq!(packets[0].options, [EnhancedPacketOption::Flags(1)]);
        assert_eq!(
            packets[1].options,
            [EnhancedPacketOption::Comment("dropped: ring-full".into())]
        );
        assert_eq!(packets[2].options, [EnhancedPacketOption::Flags(2)]);
        for packet in &packets {
            assert_eq!(packet.timestamp.as_nanos(), 1_700_000_000_123_456_789);
            assert_eq!((packet.original_len, packet.data.as_ref()), (1514, BYTES));
        }
    }

    #[test]
    fn lines_for_people() {
        let mut out = Vec::new();
        let mut lines = TextLines(&mut out, Paint::plain());
        lines
            .frame(&frame("vm1", Direction::Rx, None), BYTES)
            .unwrap();
        lines
            .frame(&frame("vm1", Direction::Drop, Some("runt")), &BYTES[..5])
            .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "22:13:20.123456 vm1 rx   52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff VLAN 10 ARP, 1514 bytes\n\
             22:13:20.123456 vm1 drop runt too short for Ethernet, 1514 bytes\n"
        );
    }

    #[test]
    fn no_frame_is_too_odd_to_print() {
        for len in 0..BYTES.len() {
            assert!(!summary(&BYTES[..len]).is_empty());
        }
        assert!(summary(&[0; 64]).contains("802.3 of 0"));
    }
}
