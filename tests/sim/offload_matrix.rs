//! Every sender's offloads against every receiver's: {none, checksums, checksums and TSO} by {merging, not merging}.
//!
//! Six senders and six receivers sit on one bridge, so that each run of the switch tries all 36 pairs, once without
//! VLANs, once with a tag to be pushed and once with a tag to be popped; and once with receivers that all negotiated
//! everything, and whose ports are switched while they are there. What must arrive is built anew with the receiver's tag
//! and compared: byte for byte with the header, where the receiver takes what the sender left undone, else complete
//! frames, or segments that make up the train.

use vswitch_api::rpc::{PortSetParams, methods};
use vswitch_simguest::driver::Shape;
use vswitch_simguest::features::virtio::{
    CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, HOST_ECN, HOST_TSO4, HOST_TSO6, MRG_RXBUF,
    OFFLOADS,
};
use vswitch_simguest::frames::{
    Eth, Ip, Tcp, tcp, tcp_gso, tcp_partial, udp, udp_partial, verify, verify_train,
};
use vswitch_simguest::{Builder, Frame, VirtioNetHdr};
use vswitch_tests::{Error, Result, RunDir, cases, check};

use crate::setup::{Net, hex, mac, numbered_on, port};

cases!("offload_matrix": without_vlans, pushing_a_tag, popping_a_tag, switched_while_connected);

pub(crate) const SENDERS: u8 = 6;
pub(crate) const ALL: u8 = 12;

/// Guest `n`'s offloads: 0 none, 1 checksums, 2 TSO as well; and whether it merges buffers.
pub(crate) fn kind(n: u8) -> (u8, bool) {
    let i = (n - 1) % SENDERS;
    (i / 2, i.is_multiple_of(2))
}

pub(crate) fn with_offloads(n: u8, builder: Builder) -> Builder {
    let (level, merges) = kind(n);
    let csum = CSUM | GUEST_CSUM;
    let tso = GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
    let builder = match level {
        0 => builder,
        1 => builder.with(csum),
        _ => builder.with(csum | tso),
    };
    if merges {
        builder
    } else {
        builder.without(MRG_RXBUF)
    }
}

/// Builds a frame as a sender with offloads would send it, with the header that says what is left to do.
pub(crate) type Unfinished = fn(&Eth, &Ip, &Tcp, &[u8], u16) -> (VirtioNetHdr, Vec<u8>);

/// A frame in the forms it can have, for a layer 2 of choice.
pub(crate) struct Sample {
    pub(crate) what: &'static str,
    /// Offloads a sender needs for it.
    pub(crate) level: u8,
    /// Payload of a segment.
    pub(crate) mss: u16,
    /// As sent: with the header that goes with it.
    pub(crate) left: Unfinished,
    /// With nothing left to do, if that is one frame.
    pub(crate) done: fn(&Eth, &Ip, &Tcp, &[u8]) -> Vec<u8>,
    pub(crate) sizes: &'static [usize],
}

const PLAIN: VirtioNetHdr = VirtioNetHdr {
    flags: 0,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};

pub(crate) const SAMPLES: &[Sample] = &[
    Sample {
        what: "complete TCP",
        level: 0,
        mss: 0,
        left: |e, i, t, p, _| (PLAIN, tcp(e, i, t, p)),
        done: tcp,
        sizes: &[0, 1, 100, 101, 1400],
    },
    Sample {
        what: "partial TCP",
        level: 1,
        mss: 0,
        left: |e, i, t, p, _| tcp_partial(e, i, t, p),
        done: tcp,
        sizes: &[0, 1, 100, 101, 1400],
    },
    Sample {
        what: "partial UDP",
        level: 1,
        mss: 0,
        left: |e, i, t, p, _| udp_partial(e, i, t.sport, t.dport, p),
        done: |e, i, t, p| udp(e, i, t.sport, t.dport, p),
        sizes: &[0, 1, 2, 1400, 1401],
    },
    Sample {
        what: "TCP train of 1400",
        level: 2,
        mss: 1400,
        left: tcp_gso,
        done: tcp,
        sizes: &[1401, 2800, 2801, 20_000, 65_000],
    },
    Sample {
        what: "TCP train of 536",
        level: 2,
        mss: 536,
        left: tcp_gso,
        done: tcp,
        sizes: &[600, 5_360, 30_001],
    },
    Sample {
        what: "TCP train of odd segments",
        level: 2,
        mss: 537,
        left: tcp_gso,
        done: tcp,
        sizes: &[538, 5_370, 20_003],
    },
    // The first segments are within the part of a frame that is copied out and looked at.
    Sample {
        what: "TCP train of 61",
        level: 2,
        mss: 61,
        left: tcp_gso,
        done: tcp,
        sizes: &[62, 125, 1_000],
    },
];

pub(crate) fn families() -> [Ip; 2] {
    let v6 = |n| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
    [Ip::new([10, 0, 0, 1], [10, 0, 0, 2]), Ip::new(v6(1), v6(2))]
}

fn without_vlans(dir: &RunDir) -> Result<()> {
    matrix(dir, "", "", None, None)
}

fn pushing_a_tag(dir: &RunDir) -> Result<()> {
    matrix(
        dir,
        "vlan: { access: 10 }, ",
        "vlan: { trunk: [10] }, ",
        None,
        Some(10),
    )
}

fn popping_a_tag(dir: &RunDir) -> Result<()> {
    matrix(
        dir,
        "vlan: { trunk: [10] }, ",
        "vlan: { access: 10 }, ",
        Some(0x600a),
        None,
    )
}

/// Receivers that negotiated everything get what their ports' switches let them have.
fn switched_while_connected(dir: &RunDir) -> Result<()> {
    let mut net = start(dir, "", "", |n, builder| match n {
        1..=SENDERS => with_offloads(n, builder),
        _ => with_offloads(n, builder).with(OFFLOADS),
    })?;
    for n in SENDERS + 1..=ALL {
        let (level, _) = kind(n);
        let params = PortSetParams {
            name: port(n),
            checksum: Some(level > 0),
            tso: Some(level > 1),
            ..PortSetParams::default()
        };
        net.switch.call::<methods::PortSet>(&params)?;
    }
    try_all(&mut net, None, None)
}

fn matrix(
    dir: &RunDir,
    senders: &str,
    receivers: &str,
    sent_tag: Option<u16>,
    got_tag: Option<u16>,
) -> Result<()> {
    let mut net = start(dir, senders, receivers, with_offloads)?;
    try_all(&mut net, sent_tag, got_tag)
}

fn start<'d>(
    dir: &'d RunDir,
    senders: &str,
    receivers: &str,
    build: impl Fn(u8, Builder) -> Builder,
) -> Result<Net<'d>> {
    let mut config = "bridges: { br0: { } }\nports:\n".to_owned();
    for n in 1..=ALL {
        let vlan = if n <= SENDERS { senders } else { receivers };
        config.push_str(&format!(
            "  vm{n}: {{ {vlan}vhost-user: {{ socket: $RUN/vm{n}.sock }} }}\n"
        ));
    }
    Net::with(dir, &config, ALL, build)
}

fn try_all(net: &mut Net<'_>, sent_tag: Option<u16>, got_tag: Option<u16>) -> Result<()> {
    for n in SENDERS + 1..=ALL {
        let eth = tagged(Eth::new([0xff; 6], mac(n)), got_tag);
        net.send(n, &numbered_on(&eth, 0))?;
        net.wait_known(mac(n), &port(n))?;
    }
    for n in 1..=ALL {
        net.received(n)?;
    }
    let mut tried = 0;
    for from in 1..=SENDERS {
        for to in SENDERS + 1..=ALL {
            let sent = tagged(Eth::new(mac(to), mac(from)), sent_tag);
            let got = tagged(Eth::new(mac(to), mac(from)), got_tag);
            for sample in SAMPLES.iter().filter(|s| s.level <= kind(from).0) {
                tried += exchange(net, (from, to), sample, &sent, &got)?;
            }
        }
    }
    check!(tried > 1000, "only {tried} frames were tried");
    net.switch.accounted().map(drop)
}

fn tagged(eth: Eth, tag: Option<u16>) -> Eth {
    match tag {
        Some(tci) => eth.tag(tci),
        None => eth,
    }
}

/// All sizes of a sample in both families; returns how many frames that were.
fn exchange(
    net: &mut Net<'_>,
    (from, to): (u8, u8),
    sample: &Sample,
    sent: &Eth,
    got: &Eth,
) -> Result<u32> {
    let shapes = [
        Shape::joined(),
        Shape::separate(),
        Shape::cuts(&[3, 9, 54]).then_every(4096),
        Shape::cuts(&[101, 333]).then_every(777),
    ];
    let mut tried = 0;
    for ip in families() {
        for (i, size) in sample.sizes.iter().enumerate() {
            let payload = payload(*size);
            let header = header(from, to, i % 2 == 1);
            let (hdr, frame) = (sample.left)(sent, &ip, &header, &payload, sample.mss);
            net.vm(from)
                .send_shaped(&hdr, &frame, &shapes[(i + tried as usize) % 4])?;
            net.drain(from)?;
            let frames = net.received(to)?;
            let left = (sample.left)(got, &ip, &header, &payload, sample.mss);
            let done = (sample.done)(got, &ip, &header, &payload);
            judge(kind(to), sample, left, &done, &frames).map_err(|error| {
                Error::Failed(format!(
                    "{} of {size} bytes over {:?} from {:?} to {:?}: {error}; {} frames came, the first {:?} {}",
                    sample.what,
                    ip.dst,
                    kind(from),
                    kind(to),
                    frames.len(),
                    frames.first().map(|f| f.header),
                    frames.first().map(|f| hex(&f.bytes)).unwrap_or_default(),
                ))
            })?;
            tried += 1;
        }
    }
    Ok(tried)
}

/// Bytes of which no two stretches are alike.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|b| (b * 31 + b / 251) as u8).collect()
}

/// A segment in the middle of a connection, whose sequence number is about to wrap.
pub(crate) fn header(from: u8, to: u8, options: bool) -> Tcp {
    Tcp {
        sport: 1000 + u16::from(from),
        dport: 2000 + u16::from(to),
        seq: 0xffff_f000,
        ack: 77,
        flags: Tcp::ACK | Tcp::PSH,
        options: if options {
            vec![1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7]
        } else {
            Vec::new()
        },
    }
}

/// Whether `frames` are what a receiver of this kind should have got. `left` and `done` are the frame as it was sent and
/// complete, with the receiver's tag.
pub(crate) fn judge(
    (level, _): (u8, bool),
    sample: &Sample,
    (mut hdr, left): (VirtioNetHdr, Vec<u8>),
    done: &[u8],
    frames: &[Frame],
) -> Result<()> {
    let fault = |e: vswitch_simguest::frames::FrameFault| Error::Failed(e.to_string());
    for frame in frames {
        verify(&frame.header, &frame.bytes).map_err(fault)?;
    }
    if sample.level > level && sample.level == 2 {
        let segments: Vec<_> = frames.iter().map(|f| (f.header, f.bytes.clone())).collect();
        check!(
            segments.len() > 1,
            "a train came as {} frames to a receiver that takes none",
            segments.len()
        );
        return verify_train(&left, sample.mss, &segments).map_err(fault);
    }
    check!(frames.len() == 1, "one frame was expected");
    let (mut header, bytes) = (frames[0].header, &frames[0].bytes);
    (header.num_buffers, hdr.num_buffers) = (0, 0);
    let as_sent = sample.level <= level;
    let (want_header, want) = if as_sent {
        (hdr, left.as_slice())
    } else {
        (PLAIN, done)
    };
    check!(
        header == want_header,
        "its header should be {want_header:?}"
    );
    check!(bytes == want, "it should be {}", hex(want));
    Ok(())
}
