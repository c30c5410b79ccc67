//! DPDK ports at work: what a sender leaves undone is done by the device, or by software, with the same result.
//!
//! The device is virtio's, driven by DPDK (`net_virtio_user`) from one daemon and served by another: it completes
//! checksums and cuts trains as hardware does, and what it was asked for can be read from the headers on the far side.

use std::time::{Duration, Instant};

use vswitch_api::rpc::{FdbFilter, methods};
use vswitch_simguest::features::virtio::{CSUM, GUEST_CSUM};
use vswitch_simguest::frames::{Eth, tcp_gso, udp, verify_train};
use vswitch_simguest::{Builder, SimGuest, VirtioNetHdr};
use vswitch_tests::machine::{need_program, need_root};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check};

use crate::offload_matrix::{
    ALL, SAMPLES, SENDERS, Sample, families, header, judge, kind, payload, with_offloads,
};
use crate::setup::{BROADCAST, Net, SOON, builder, hex, mac, numbered, numbered_on, port};

cases!("nic":
    what_is_left_undone_reaches_the_far_side_as_software_would_have_sent_it,
    the_same_with_a_tag_on_the_wire,
    jumbo_frames_are_spread_over_buffers,
    dpdks_own_vhost_is_a_nic_like_any_other,
    a_checksum_that_the_device_has_checked_is_told,
    segments_of_a_burst_become_a_train_for_who_takes_one,
);

/// Two switches: guests 1 to 6 on the near one, whose NIC is served by a port of the far one, where guests 7 to 12 are.
struct Pair<'d> {
    near: Switch<'d>,
    far: Switch<'d>,
    guests: Vec<SimGuest>,
    /// Segments that software has made on the near side, beyond one a frame.
    cut: u64,
}

impl<'d> Pair<'d> {
    /// `guests` and `nics` are further keys of every guest's port and of the ports in between.
    fn new(
        near: &'d RunDir,
        far: &'d RunDir,
        bridge: &str,
        guests: &str,
        nics: &str,
    ) -> Result<Self> {
        let vm =
            |n: u8| format!("  vm{n}: {{ {guests}vhost-user: {{ socket: $RUN/vm{n}.sock }} }}\n");
        let config = |ports: String, nic: String| {
            format!("bridges: {{ br0: {{ {bridge} }} }}\nports:\n{ports}  nic: {{ {nics}{nic} }}\n")
        };
        let far_switch = Switch::start(
            far,
            &config(
                (SENDERS + 1..=ALL).map(vm).collect(),
                "vhost-user: { socket: $RUN/nic.sock }".into(),
            ),
        )?;
        let device = format!(
            "net_virtio_user0,path={},queue_size=1024,mrg_rxbuf=1",
            far.join("nic.sock").display()
        );
        let near_switch = Switch::start(
            near,
            &config(
                (1..=SENDERS).map(vm).collect(),
                format!("dpdk: {{ device: \"{device}\" }}"),
            ),
        )?;
        let mut pair = Pair {
            near: near_switch,
            far: far_switch,
            guests: Vec::new(),
            cut: 0,
        };
        pair.far.wait_up("nic", SOON)?;
        for n in 1..=ALL {
            let dir = if n <= SENDERS { near } else { far };
            pair.guests.push(with_offloads(n, builder(dir, n)).start()?);
            pair.side(n).wait_up(&port(n), SOON)?;
        }
        Ok(pair)
    }

    fn side(&self, n: u8) -> &Switch<'d> {
        if n <= SENDERS { &self.near } else { &self.far }
    }

    fn vm(&mut self, n: u8) -> &mut SimGuest {
        &mut self.guests[usize::from(n) - 1]
    }

    /// Everybody is known on both sides, and nothing is under way.
    fn introduce(&mut self, tag: Option<u16>) -> Result<()> {
        for n in 1..=ALL {
            let eth = tagged(Eth::new(BROADCAST, mac(n)), tag);
            self.vm(n).send(&numbered_on(&eth, u32::from(n)))?;
        }
        for n in 1..=ALL {
            let seen = self.vm(n);
            let got = until(ALL as usize - 1, || {
                Ok(seen.recv_all(Duration::ZERO, usize::MAX)?)
            })?;
            check!(
                got.len() == ALL as usize - 1,
                "vm{n} saw {} of the others",
                got.len()
            );
        }
        for side in [&self.near, &self.far] {
            side.until("all addresses to be learnt", SOON, || {
                let known = side
                    .call::<methods::FdbShow>(&FdbFilter::default())?
                    .entries;
                let missing = (1..=ALL).find(|n| known.iter().all(|e| e.mac.0 != mac(*n)));
                check!(missing.is_none(), "nobody knows where vm{missing:?} is");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Every frame is accounted for on both sides, and both saw the same of the wire.
    fn close(self) -> Result<()> {
        let cut = self.cut;
        let (near, far) = (self.near.accounted()?, self.far.accounted()?);
        let (near, far) = (&near.ports["nic"], &far.ports["nic"]);
        // Whole trains left: software cut none but those of segments too short for devices.
        check!(
            near.tx.delivered + cut == far.rx.frames,
            "{} frames left by the NIC and {cut} more as segments, {} arrived",
            near.tx.delivered,
            far.rx.frames
        );
        let dropped: u64 = near.tx.drops.values().chain(near.rx.drops.values()).sum();
        check!(dropped == 0, "the NIC dropped {dropped} frames: {near:?}");
        Ok(())
    }
}

/// Collects until there are `n`, or no more come; never fewer than one look.
fn until<T>(n: usize, mut more: impl FnMut() -> Result<Vec<T>>) -> Result<Vec<T>> {
    let end = Instant::now() + SOON;
    let mut all = more()?;
    while all.len() < n && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(200));
        all.extend(more()?);
    }
    Ok(all)
}

fn tagged(eth: Eth, tag: Option<u16>) -> Eth {
    match tag {
        Some(tci) => eth.tag(tci),
        None => eth,
    }
}

fn what_is_left_undone_reaches_the_far_side_as_software_would_have_sent_it(
    dir: &RunDir,
) -> Result<()> {
    matrix(dir, "", "")
}

fn the_same_with_a_tag_on_the_wire(dir: &RunDir) -> Result<()> {
    matrix(dir, "vlan: { access: 10 }, ", "vlan: { trunk: [10] }, ")
}

fn matrix(dir: &RunDir, guests: &str, nics: &str) -> Result<()> {
    let far = RunDir::new()?;
    let mut pair = Pair::new(dir, &far, "", guests, nics)?;
    pair.introduce(None)?;
    let on = pair.near.port("nic")?.dpdk.map(|dpdk| dpdk.offloads);
    let on = on.unwrap_or_default();
    for wanted in [
        "tx-tcp-checksum",
        "tx-udp-checksum",
        "tx-tso",
        "tx-multi-segment",
    ] {
        check!(
            on.iter().any(|o| o == wanted),
            "the device does not do {wanted}: {on:?}"
        );
    }
    let mut tried = 0;
    let (near, remote) = (1..=SENDERS, SENDERS + 1..=ALL);
    let there = near
        .clone()
        .flat_map(|n| remote.clone().map(move |f| (n, f)));
    let back = remote
        .clone()
        .flat_map(|f| near.clone().map(move |n| (f, n)));
    for (from, to) in there.chain(back) {
        for sample in SAMPLES.iter().filter(|s| s.level <= kind(from).0) {
            tried += exchange(&mut pair, (from, to), sample)?;
        }
    }
    check!(tried > 2000, "only {tried} frames were tried");
    for n in 1..=ALL {
        let more = pair.vm(n).recv_all(Duration::ZERO, usize::MAX)?;
        check!(
            more.is_empty(),
            "vm{n} has {} frames that nobody sent",
            more.len()
        );
    }
    pair.close()?;
    complaints(&far)
}

fn complaints(far: &RunDir) -> Result<()> {
    let complaints = far.take_complaints();
    check!(complaints.is_empty(), "the far side: {complaints:?}");
    Ok(())
}

/// Segments shorter than this are made in software.
const SMALLEST_SEGMENT: u16 = 256;

/// All sizes of a sample in both families; returns how many frames that were.
fn exchange(pair: &mut Pair<'_>, (from, to): (u8, u8), sample: &Sample) -> Result<u32> {
    let eth = Eth::new(mac(to), mac(from));
    // The device hands whole trains on, and takes none: its driver is not asked to. Nor is it asked for segments so short.
    let short = (1..SMALLEST_SEGMENT).contains(&sample.mss);
    let able = match kind(to) {
        (2, merges) if from > SENDERS || short => (1, merges),
        able => able,
    };
    let mut tried = 0;
    for ip in families() {
        for (i, size) in sample.sizes.iter().enumerate() {
            let payload = payload(*size);
            let header = header(from, to, i % 2 == 1);
            let (hdr, frame) = (sample.left)(&eth, &ip, &header, &payload, sample.mss);
            pair.vm(from)
                .send_shaped(&hdr, &frame, &vswitch_simguest::driver::Shape::joined())?;
            let parts = if sample.level == 2 && able.0 < 2 {
                size.div_ceil(usize::from(sample.mss))
            } else {
                1
            };
            if short && from <= SENDERS {
                pair.cut += parts as u64 - 1;
            }
            let guest = pair.vm(to);
            let frames = until(parts, || Ok(guest.recv_all(Duration::ZERO, usize::MAX)?))?;
            let done = (sample.done)(&eth, &ip, &header, &payload);
            judge(able, sample, (hdr, frame), &done, &frames).map_err(|error| {
                Error::Failed(format!(
                    "{} of {size} bytes over {:?} from vm{from} {:?} to vm{to} {:?}: {error}; {} frames came, the first {:?} {}",
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

fn jumbo_frames_are_spread_over_buffers(dir: &RunDir) -> Result<()> {
    let far = RunDir::new()?;
    let mut pair = Pair::new(dir, &far, "mtu: 9000", "", "")?;
    pair.introduce(None)?;
    let on = pair.near.port("nic")?.dpdk.map(|dpdk| dpdk.offloads);
    let on = on.unwrap_or_default();
    for wanted in ["rx-scatter", "tx-multi-segment"] {
        check!(
            on.iter().any(|o| o == wanted),
            "the device does not do {wanted}: {on:?}"
        );
    }
    // Around the ends of one buffer and of two, and the largest.
    for len in [60, 1514, 2047, 2048, 2049, 4096, 4097, 9014] {
        for (from, to) in [(1, SENDERS + 1), (SENDERS + 1, 1)] {
            let mut frame = numbered(mac(to), mac(from), len as u32);
            let bytes = payload(len);
            frame.extend(&bytes[frame.len()..]);
            pair.vm(from).send(&frame)?;
            let guest = pair.vm(to);
            let got = until(1, || Ok(guest.recv_all(Duration::ZERO, usize::MAX)?))?;
            check!(
                got.len() == 1 && got[0].bytes == frame,
                "{len} bytes from vm{from} came as {:?}",
                got.iter().map(|f| hex(&f.bytes)).collect::<Vec<_>>()
            );
        }
    }
    pair.close()?;
    complaints(&far)
}

fn dpdks_own_vhost_is_a_nic_like_any_other(dir: &RunDir) -> Result<()> {
    let config = "bridges: { br0: { mtu: 9000 } }\nports:\n  \
         vm1: { dpdk: { device: \"net_vhost0,iface=$RUN/vm1.sock\" } }\n  \
         vm2: { vhost-user: { socket: $RUN/vm2.sock } }\n";
    let mut net = Net::new(dir, config, 2)?;
    for n in [1, 2] {
        net.send(n, &numbered(BROADCAST, mac(n), 0))?;
        net.wait_known(mac(n), &port(n))?;
    }
    for n in [1, 2] {
        let hello = net.vm(n);
        until(1, || Ok(hello.recv_all(Duration::ZERO, usize::MAX)?))?;
    }
    for len in [60, 1514, 2048, 2049, 9014] {
        for (from, to) in [(1, 2), (2, 1)] {
            let mut frame = numbered(mac(to), mac(from), len as u32);
            let bytes = payload(len);
            frame.extend(&bytes[frame.len()..]);
            net.send(from, &frame)?;
            let guest = net.vm(to);
            let got = until(1, || Ok(guest.recv_all(Duration::ZERO, usize::MAX)?))?;
            check!(
                got.len() == 1 && got[0].bytes == frame,
                "{len} bytes from vm{from} came as {:?}",
                got.iter().map(|f| hex(&f.bytes)).collect::<Vec<_>>()
            );
        }
    }
    net.switch.accounted().map(drop)
}

/// vm1 on a bridge with a packet socket, which looks into the kernel's end of a tap; vm2 and vm3 on another bridge, with
/// the tap, whose driver checks checksums.
fn by_a_tap(dir: &RunDir, build: impl Fn(u8, Builder) -> Builder) -> Result<Net<'_>> {
    need_root("tap devices of DPDK")?;
    need_program("ip", "iproute2")?;
    let tap = format!("vsn{}", std::process::id());
    let first = format!(
        "bridges: {{ br0: {{ }}, br1: {{ }} }}\nports:\n  \
         vm1: {{ bridge: br0, vhost-user: {{ socket: $RUN/vm1.sock }} }}\n  \
         vm2: {{ bridge: br1, vhost-user: {{ socket: $RUN/vm2.sock }} }}\n  \
         vm3: {{ bridge: br1, vhost-user: {{ socket: $RUN/vm3.sock }} }}\n  \
         tap: {{ bridge: br1, dpdk: {{ device: \"net_tap0,iface={tap}\" }} }}\n"
    );
    let net = Net::with(dir, &first, 3, build)?;
    let up = std::process::Command::new("ip")
        .args(["link", "set", &tap, "addrgenmode", "none", "up"])
        .status();
    check!(
        up.is_ok_and(|status| status.success()),
        "{tap} does not come up"
    );
    net.switch.write_config(&format!(
        "{first}  socket: {{ bridge: br0, dpdk: {{ device: \"net_af_packet0,iface={tap}\" }} }}\n"
    ))?;
    net.switch.reload()?;
    net.switch.wait_up("socket", SOON)?;
    Ok(net)
}

/// What a guest sends goes by a packet socket to the kernel's end of a tap, and out of the tap, whose driver checks
/// checksums, to another guest.
fn a_checksum_that_the_device_has_checked_is_told(dir: &RunDir) -> Result<()> {
    // vm2 takes partial checksums, and with them word of checked ones; vm3 does not.
    let mut net = by_a_tap(dir, |n, builder| match n {
        2 => builder.with(CSUM | GUEST_CSUM),
        _ => builder.without(CSUM | GUEST_CSUM),
    })?;

    let [ip, _] = families();
    for (to, valid) in [(2, VirtioNetHdr::F_DATA_VALID), (3, 0)] {
        let good = udp(&Eth::new(mac(to), mac(1)), &ip, 1, 2, &payload(100));
        let mut bad = good.clone();
        bad[60] ^= 1;
        for (frame, flags) in [(good, valid), (bad, 0)] {
            net.send(1, &frame)?;
            let guest = net.vm(to);
            // Whatever else the kernel has to say on the tap is not part of the test.
            let got = until(1, || {
                let mut got = guest.recv_all(Duration::ZERO, usize::MAX)?;
                got.retain(|f| f.bytes == frame);
                Ok(got)
            })?;
            check!(
                got.len() == 1 && got[0].header.flags == flags,
                "vm{to} should have got {} with flags {flags}: {:?}",
                hex(&frame),
                got.iter().map(|f| f.header).collect::<Vec<_>>()
            );
        }
    }
    let dpdk = net.switch.port("tap")?.dpdk;
    let bad = dpdk.map(|dpdk| dpdk.bad_checksums);
    check!(
        bad == Some(2),
        "two wrong checksums were counted as {bad:?}"
    );
    net.switch.accounted().map(drop)
}

fn segments_of_a_burst_become_a_train_for_who_takes_one(dir: &RunDir) -> Result<()> {
    // Kinds by number: 2 takes trains, 3 takes partial checksums only.
    let mut net = by_a_tap(dir, |n, builder| {
        with_offloads([5, 5, 3][usize::from(n) - 1], builder)
    })?;
    for n in [2, 3] {
        net.send(n, &numbered(BROADCAST, mac(n), 0))?;
        // The packet socket hears it too, so the other bridge learns it as well.
        net.switch.until("an address to be learnt", SOON, || {
            let all = net
                .switch
                .call::<methods::FdbShow>(&FdbFilter::default())?
                .entries;
            let known = all.iter().any(|e| e.mac.0 == mac(n) && e.port == port(n));
            check!(known, "nobody knows vm{n}");
            Ok(())
        })?;
    }
    for (to, takes) in [(2, true), (3, false)] {
        net.received(to)?;
        for ip in families() {
            // The last one is full, short, and one byte long.
            for size in [14_000, 14_700, 28_001] {
                let eth = Eth::new(mac(to), mac(1));
                let header = header(1, to, size == 14_700);
                let (hdr, train) = tcp_gso(&eth, &ip, &header, &payload(size), 1400);
                net.vm(1)
                    .send_shaped(&hdr, &train, &vswitch_simguest::driver::Shape::joined())?;
                let segments = size.div_ceil(1400);
                let guest = net.vm(to);
                let mut bytes = 0;
                let frames = until_enough(|| {
                    let mut got = guest.recv_all(Duration::ZERO, usize::MAX)?;
                    got.retain(|f| f.bytes.starts_with(&train[..14]));
                    bytes += got
                        .iter()
                        .map(|f| f.bytes.len() - (train.len() - size))
                        .sum::<usize>();
                    Ok((got, bytes >= size))
                })?;
                let parts: Vec<_> = frames.into_iter().map(|f| (f.header, f.bytes)).collect();
                verify_train(&train, 1400, &parts)
                    .map_err(|e| Error::Failed(format!("{size} bytes to vm{to}: {e}")))?;
                // The driver may have had a part of them only when it was asked.
                let want = if takes {
                    parts.len() < segments
                } else {
                    parts.len() == segments
                };
                check!(
                    want,
                    "{segments} segments came to vm{to} as {} frames",
                    parts.len()
                );
            }
        }
    }
    net.switch.accounted().map(drop)
}

/// Collects until `more` has enough, or no more come.
fn until_enough<T>(mut more: impl FnMut() -> Result<(Vec<T>, bool)>) -> Result<Vec<T>> {
    let end = Instant::now() + SOON;
    let mut all = Vec::new();
    loop {
        let (got, enough) = more()?;
        all.extend(got);
        if enough || Instant::now() > end {
            return Ok(all);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
