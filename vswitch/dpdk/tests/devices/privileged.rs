//! Drivers that exchange frames with the host's kernel, in a network namespace of their own. They
//! need root, or CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW.

use vswitch_dpdk::{
    Device, IpVersion, MbufBurst, Mempool, MempoolConfig, PortConfig, PortError, RssKey,
    StartedPort, Stock, Transport, TxOffload, Wake,
};

use vswitch_flowtable::toeplitz::SYMMETRIC_KEY;

use crate::host::{Raw, ip, own_network};
use crate::{Outcome, Setup, build, bytes, frame, receive, setup, start};

/// A veth pair, gone when dropped.
struct Veth;

const INSIDE: &str = "vswdpdk0";
const OUTSIDE: &str = "vswdpdk1";

impl Veth {
    fn create(mtu: u16) -> Result<Self, String> {
        own_network()?;
        ip(&format!("link add {INSIDE} type veth peer name {OUTSIDE}"))?;
        let veth = Self;
        for name in [INSIDE, OUTSIDE] {
            ip(&format!("link set {name} mtu {mtu} addrgenmode none up"))?;
        }
        Ok(veth)
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {INSIDE}"));
    }
}

/// Sends frames both ways between the port and a socket of the kernel, and compares them.
fn exchange(started: &mut StartedPort, raw: &Raw, lengths: &[usize]) {
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    for (i, &len) in lengths.iter().enumerate() {
        let wanted = frame(len, i as u8);
        burst.push(build(&mut stock, &wanted)).unwrap();
        assert_eq!(started.tx[0].tx_burst(&mut burst).sent, 1);
        assert!(
            raw.receive(|got| got == wanted).is_some(),
            "{len} bytes did not get out"
        );

        let wanted = frame(len, 100 + i as u8);
        raw.send(&wanted);
        let mut seen = false;
        // The kernel may have something of its own to say in between.
        while !seen && receive(&mut started.rx[0], &mut burst, 1) > 0 {
            seen = burst.drain().any(|mbuf| bytes(&mbuf) == wanted);
        }
        assert!(seen, "{len} bytes did not get in");
    }
}

pub(crate) fn packet_socket_on_a_veth() -> Outcome {
    let veth = match Veth::create(9000) {
        Ok(veth) => veth,
        Err(reason) => return Ok(Some(reason)),
    };
    let raw = Raw::open(OUTSIDE)?;
    let device = format!("net_af_packet0,iface={INSIDE}");
    let mut started = start(&device, &PortConfig::default())?;
    println!("{:?}", started.port.capabilities());
    exchange(&mut started, &raw, &[60, 128, 1514]);
    assert!(started.port.link()?.up);
    let stats = started.port.stats()?;
    assert!(stats.tx_frames >= 3 && stats.rx_frames >= 3, "{stats:?}");
    drop(started);

    let jumbo = PortConfig {
        mtu: 9000,
        ..PortConfig::default()
    };
    let error = start(&device, &jumbo).err().ok_or("9,000 in 2 KiB")?;
    assert!(matches!(error, PortError::Mtu { max: 1960, .. }), "{error}");
    let large = format!("{device},framesz=16384,blocksz=16384");
    let error = start(&large, &jumbo)
        .err()
        .ok_or("16 KiB slots in 2 KiB buffers")?;
    assert!(
        matches!(error, PortError::DataRoom { needed: 16_352, .. }),
        "{error}"
    );

    let Setup { eal, .. } = *setup();
    let config = MempoolConfig {
        count: 512,
        data_room: 16_384,
        node: None,
        ..MempoolConfig::default()
    };
    let pool = Mempool::new(eal, config)?;
    let mut started = Device::probe(eal, &large.parse()?)?.start(&jumbo, pool)?;
    exchange(&mut started, &raw, &[60, 1514, 5000, 9014]);
    drop(started);
    assert_eq!(pool.available(), 512);

    ip(&format!("link set {INSIDE} mtu 1400"))?;
    let error = start(&device, &PortConfig::default()).err();
    let error = error.ok_or("1,500 through 1,400")?.to_string();
    assert!(
        error.contains(&format!("ip link set dev {INSIDE} mtu 1500")),
        "{error}"
    );
    drop(veth);
    Ok(None)
}

/// The tap's name as the kernel sees it.
const TAP: &str = "vswdpdktap";

fn tap(config: &PortConfig) -> Result<(StartedPort, Raw), Result<String, PortError>> {
    if let Err(error) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        return Err(Ok(format!("/dev/net/tun: {error}")));
    }
    own_network().map_err(Ok)?;
    let started = start(&format!("net_tap0,iface={TAP}"), config).map_err(Err)?;
    // Whatever the kernel wants to tell its neighbours is not part of the test.
    ip(&format!("link set {TAP} addrgenmode none up")).map_err(Ok)?;
    let raw = Raw::open(TAP).map_err(|error| Ok(error.to_string()))?;
    Ok((started, raw))
}

pub(crate) fn tap_exchanges_frames() -> Outcome {
    let config = PortConfig {
        mtu: 1504,
        rx_queues: 2,
        tx_queues: 2,
        rss: Some(RssKey(SYMMETRIC_KEY)),
        ..PortConfig::default()
    };
    let (mut started, raw) = match tap(&config) {
        Ok(tap) => tap,
        Err(Ok(reason)) => return Ok(Some(reason)),
        Err(Err(error)) => return Err(error.into()),
    };
    println!("{:?}", started.port.capabilities());
    assert_eq!(started.port.rss(), None, "the kernel spreads");
    assert_eq!(started.port.wakes(), [Wake::Readable; 2]);
    let unequal = PortConfig {
        rx_queues: 2,
        ..PortConfig::default()
    };
    let error = start("net_tap1", &unequal).err();
    assert!(
        matches!(error, Some(PortError::UnequalQueues { .. })),
        "{error:?}"
    );
    let shown = ip(&format!("-o link show dev {TAP}"))?;
    assert!(shown.contains(" mtu 1504 "), "{shown}");
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    for len in [60, 128, 1514, 1518] {
        let wanted = frame(len, len as u8);
        burst.push(build(&mut stock, &wanted)).unwrap();
        assert_eq!(started.tx[1].tx_burst(&mut burst).sent, 1);
        assert!(
            raw.receive(|got| got == wanted).is_some(),
            "{len} bytes did not get out"
        );
        raw.send(&wanted);
        let mut seen = false;
        for _ in 0..30_000 {
            for rx in &mut started.rx {
                rx.rx_burst(&mut burst);
                seen |= burst.drain().any(|mbuf| bytes(&mbuf) == wanted);
            }
            if seen {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(seen, "{len} bytes did not get in");
    }
    assert!(started.port.link()?.up);
    Ok(None)
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// An IPv4 packet over Ethernet whose transport checksum field, at `field`, has the sum of the
/// pseudo header only.
fn partial(protocol: u8, field: usize, header: &[u8], payload: usize) -> Vec<u8> {
    let mut frame = frame(14, 1);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let l4 = header.len() + payload;
    let mut ip = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    ip[2..4].copy_from_slice(&(20 + l4 as u16).to_be_bytes());
    let header_sum = !(sum(&ip) as u16);
    ip[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, protocol]);
    pseudo.extend((l4 as u16).to_be_bytes());
    frame.extend(ip);
    let at = frame.len();
    frame.extend(header);
    frame[at + field..at + field + 2].copy_from_slice(&(sum(&pseudo) as u16).to_be_bytes());
    frame.extend((0..payload).map(|i| i as u8));
    frame
}

/// True if the transport checksum of an IPv4 frame, of which nothing is left out, is right.
fn complete(frame: &[u8]) -> bool {
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let l4 = &frame[34..14 + total];
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, frame[23]]);
    pseudo.extend((l4.len() as u16).to_be_bytes());
    pseudo.extend(l4);
    sum(&pseudo) == 0xffff && sum(&frame[14..34]) == 0xffff
}

pub(crate) fn tap_completes_checksums() -> Outcome {
    let (mut started, raw) = match tap(&PortConfig::default()) {
        Ok(tap) => tap,
        Err(Ok(reason)) => return Ok(Some(reason)),
        Err(Err(error)) => return Err(error.into()),
    };
    let caps = started.port.capabilities().tx;
    assert!(caps.udp_checksum && caps.tcp_checksum && caps.multi_segment);
    // Claimed by the driver, and broken in one of its releases.
    assert!(!caps.tcp_segmentation);
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();

    let udp = [0x10, 0, 0x20, 0, 0x03, 0xf0, 0, 0];
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
    tcp[12] = 5 << 4;
    for (protocol, field, header, transport) in [
        (17, 6, &udp[..], Transport::Udp),
        (6, 16, &tcp[..], Transport::Tcp),
    ] {
        let wanted = partial(protocol, field, header, 1000);
        assert!(!complete(&wanted));
        let mut mbuf = build(&mut stock, &wanted);
        mbuf.request_offload(TxOffload {
            l2_len: 14,
            l3_len: 20,
            l4_len: header.len() as u16,
            ip: IpVersion::V4,
            ip_checksum: false,
            transport,
        })?;
        burst.push(mbuf).unwrap();
        assert_eq!(started.tx[0].tx_burst(&mut burst).sent, 1);
        let got = raw.receive(|got| got.len() == wanted.len() && got[23] == protocol);
        assert!(complete(&got.ok_or("no frame")?), "{transport:?}");
    }
    Ok(None)
}
