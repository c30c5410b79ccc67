//! Offload requests that must be refused, features that differ in the small print, and frames that only look special.

use vswitch_api::rpc::{PortSetParams, code, methods};
use vswitch_simguest::driver::Shape;
use vswitch_simguest::features::virtio::{
    self, CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, OFFLOADS,
};
use vswitch_simguest::frames::{
    EXPERIMENTAL, Eth, Ip, Tcp, ethernet, tcp, tcp_gso, udp, verify, verify_train,
};
use vswitch_simguest::{Builder, VirtioNetHdr};
use vswitch_tests::{Error, Result, RunDir, cases, check};

use crate::setup::{Net, SOON, THREE, builder, dropped, hex, mac, numbered};

cases!("offloads":
    requests_that_contradict_the_frame_are_dropped,
    hdr_len_is_never_believed,
    a_train_with_congestion_marks,
    a_receiver_of_one_family_only,
    switched_off_means_not_offered,
    a_switch_counts_at_once_for_what_is_delivered,
    a_claim_of_validity_is_not_passed_on,
);

const ACK: u8 = Tcp::ACK;

fn all(_: u8, builder: Builder) -> Builder {
    builder.with(OFFLOADS)
}

fn v4() -> Ip {
    Ip::new([10, 0, 0, 1], [10, 0, 0, 2])
}

fn v6() -> Ip {
    let v6 = |n| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
    Ip::new(v6(1), v6(2))
}

fn eth() -> Eth {
    Eth::new(mac(2), mac(1))
}

fn train(ip: &Ip, flags: u8, len: usize) -> (VirtioNetHdr, Vec<u8>) {
    let header = Tcp {
        sport: 1,
        dport: 2,
        seq: 7,
        ack: 9,
        flags,
        options: Vec::new(),
    };
    let payload: Vec<u8> = (0..len).map(|i| (i * 13) as u8).collect();
    tcp_gso(&eth(), ip, &header, &payload, 1000)
}

fn requests_that_contradict_the_frame_are_dropped(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, all)?;
    net.introduce()?;
    let (good, frame) = train(&v4(), ACK, 3000);
    let (good6, frame6) = train(&v6(), ACK, 3000);
    let other = ethernet(&eth(), EXPERIMENTAL, &[0; 3000]);
    let datagram = udp(&eth(), &v4(), 1, 2, &[0; 1400]);
    let len = frame.len() as u16;
    let mut bad: Vec<(&str, VirtioNetHdr, &[u8])> = Vec::new();
    let csum = VirtioNetHdr {
        flags: VirtioNetHdr::F_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    let at = |csum_start, csum_offset| VirtioNetHdr {
        csum_start,
        csum_offset,
        ..csum
    };
    let end = datagram.len() as u16;
    for (what, hdr) in [
        ("csum_start at the end", at(end, 0)),
        ("csum_start beyond the end", at(end + 1, 0)),
        ("checksum half outside", at(end - 2, 1)),
        ("csum_offset beyond the end", at(34, end)),
        ("both at their largest", at(u16::MAX, u16::MAX)),
        ("a sum that wraps", at(u16::MAX, 1)),
        ("csum_start in the Ethernet header", at(13, 16)),
        ("csum_start 0", at(0, 16)),
    ] {
        bad.push((what, hdr, &datagram));
    }
    for (what, hdr) in [
        (
            "a segment size of 0",
            VirtioNetHdr {
                gso_size: 0,
                ..good
            },
        ),
        (
            "TCPV6 over IPv4",
            VirtioNetHdr {
                gso_type: VirtioNetHdr::GSO_TCPV6,
                ..good
            },
        ),
        (
            "UDP segmentation",
            VirtioNetHdr {
                gso_type: VirtioNetHdr::GSO_UDP,
                ..good
            },
        ),
        (
            "UDP_L4 segmentation",
            VirtioNetHdr {
                gso_type: 5,
                ..good
            },
        ),
        (
            "type 2",
            VirtioNetHdr {
                gso_type: 2,
                ..good
            },
        ),
        (
            "type 0x7f",
            VirtioNetHdr {
                gso_type: 0x7f,
                ..good
            },
        ),
        (
            "ECN alone",
            VirtioNetHdr {
                gso_type: VirtioNetHdr::GSO_ECN,
                ..good
            },
        ),
        (
            "a train without NEEDS_CSUM",
            VirtioNetHdr { flags: 0, ..good },
        ),
        (
            "a train with another csum_start",
            VirtioNetHdr {
                csum_start: 36,
                ..good
            },
        ),
        (
            "a train with another csum_offset",
            VirtioNetHdr {
                csum_offset: 6,
                ..good
            },
        ),
        (
            "a train with csum_start beyond",
            VirtioNetHdr {
                csum_start: len,
                ..good
            },
        ),
        (
            "segments of one byte, thousands of them",
            VirtioNetHdr {
                gso_size: 1,
                ..good
            },
        ),
    ] {
        bad.push((what, hdr, &frame));
    }
    let v4_type = VirtioNetHdr {
        gso_type: VirtioNetHdr::GSO_TCPV4,
        ..good6
    };
    bad.push(("TCPV4 over IPv6", v4_type, &frame6));
    bad.push(("TCPV4 over no IP", good, &other));
    bad.push(("TCPV4 over UDP", good, &datagram));
    let mut fragment = frame.clone();
    fragment[20..22].copy_from_slice(&[0x20, 0]);
    bad.push(("a fragment", good, &fragment));
    let mut header = frame.clone();
    header[46] = 0xf0;
    let cut = &header[..60];
    bad.push(("a TCP header beyond the frame", good, cut));

    for (n, (what, hdr, frame)) in bad.iter().enumerate() {
        net.vm(1).send_shaped(hdr, frame, &Shape::joined())?;
        net.drain(1)?;
        let (got, counted) = (net.received(2)?, net.drops("vm1", "bad-offload")?);
        check!(
            got.is_empty() && counted == n as u64 + 1,
            "{what}: {} frames came through, {counted} of {} requests are counted as bad-offload",
            got.len(),
            n + 1
        );
    }
    net.vm(1).send_shaped(&good, &frame, &Shape::joined())?;
    net.drain(1)?;
    check!(
        net.received(2)?.len() == 1,
        "a good train does not pass after the bad ones"
    );
    net.close_books()
}

fn hdr_len_is_never_believed(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 3, |n, b| {
        if n == 2 { b.with(OFFLOADS) } else { all(n, b) }
    })?;
    net.introduce()?;
    for ip in [v4(), v6()] {
        let (good, frame) = train(&ip, ACK, 5000);
        for lie in [0, 1, 13, 54, 66, 1500, u16::MAX] {
            let hdr = VirtioNetHdr {
                hdr_len: lie,
                ..good
            };
            net.vm(1)
                .send_shaped(&hdr, &frame, &Shape::cuts(&[1, 11, 20]))?;
            net.drain(1)?;
            let got = net.received(2)?;
            check!(got.len() == 1, "{} frames came of one train", got.len());
            verify(&got[0].header, &got[0].bytes)
                .map_err(|e| Error::Failed(format!("hdr_len {lie}: {e}")))?;
            check!(got[0].bytes == frame, "hdr_len {lie} changed the frame");
        }
    }
    net.close_books()
}

fn a_train_with_congestion_marks(dir: &RunDir) -> Result<()> {
    // Guest 2 takes such trains, guest 3 takes trains but not these.
    let mut net = Net::with(dir, THREE, 3, |n, builder| match n {
        3 => builder.with(OFFLOADS & !GUEST_ECN),
        _ => builder.with(OFFLOADS),
    })?;
    net.introduce()?;
    for ip in [v4(), v6()] {
        for to in [2, 3] {
            let (hdr, mut frame) = train(&ip, ACK | Tcp::CWR | Tcp::PSH, 4500);
            frame[..6].copy_from_slice(&mac(to));
            net.vm(1).send_shaped(&hdr, &frame, &Shape::joined())?;
            net.drain(1)?;
            let got: Vec<_> = net
                .received(to)?
                .into_iter()
                .map(|f| (f.header, f.bytes))
                .collect();
            check!(
                got.len() == if to == 2 { 1 } else { 5 },
                "guest {to} got a train with CWR as {} frames",
                got.len()
            );
            verify_train(&frame, 1000, &got)
                .map_err(|e| Error::Failed(format!("guest {to}: {e}")))?;
            check!(
                to != 2 || got[0].0.gso_type & VirtioNetHdr::GSO_ECN != 0,
                "the ECN bit was lost on the way"
            );
        }
    }
    net.switch.accounted().map(drop)
}

fn a_receiver_of_one_family_only(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 3, |n, builder| match n {
        1 => builder.with(OFFLOADS),
        2 => builder.with(CSUM | GUEST_CSUM | GUEST_TSO4),
        _ => builder.with(CSUM | GUEST_CSUM | GUEST_TSO6),
    })?;
    net.introduce()?;
    for (ip, whole_at) in [(v4(), 2), (v6(), 3)] {
        for to in [2, 3] {
            let (hdr, mut frame) = train(&ip, ACK, 2500);
            frame[..6].copy_from_slice(&mac(to));
            net.vm(1).send_shaped(&hdr, &frame, &Shape::joined())?;
            net.drain(1)?;
            let got: Vec<_> = net
                .received(to)?
                .into_iter()
                .map(|f| (f.header, f.bytes))
                .collect();
            let want = if to == whole_at { 1 } else { 3 };
            check!(
                got.len() == want,
                "guest {to} got a train to {:?} as {} frames, not {want}",
                ip.dst,
                got.len()
            );
            verify_train(&frame, 1000, &got)
                .map_err(|e| Error::Failed(format!("guest {to}: {e}")))?;
        }
    }
    net.switch.accounted().map(drop)
}

fn switched_off_means_not_offered(dir: &RunDir) -> Result<()> {
    let config = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock, offload: { tso: false } } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock, offload: { checksum: false, tso: false } } }
  vm3: { vhost-user: { socket: $RUN/vm3.sock, mergeable: false, indirect: false, event-idx: false } }
";
    let mut net = Net::with(dir, config, 3, |_, builder| builder.features(virtio::ALL))?;
    let tso = GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | virtio::HOST_TSO4
        | virtio::HOST_TSO6
        | virtio::HOST_ECN;
    for (n, without) in [
        (1, tso),
        (2, OFFLOADS),
        (
            3,
            virtio::MRG_RXBUF | virtio::INDIRECT_DESC | virtio::EVENT_IDX,
        ),
    ] {
        let offer = net.vm(n).negotiated().offer.virtio;
        check!(
            offer & without == 0,
            "vm{n} is offered {:#x} although switched off",
            offer & without
        );
        let want = virtio::ALL & !without & !virtio::MQ;
        check!(
            offer & want == want,
            "vm{n} is not offered {:#x}",
            want & !offer
        );
    }
    net.introduce()?;
    net.reaches(1, &numbered(mac(3), mac(1), 1), &[3])?;
    net.reaches(3, &numbered(mac(2), mac(3), 2), &[2])?;
    net.close_books()
}

/// How guest 2 gets a train of 4500 bytes, segments of 1000: as how many frames, and whether they lack their checksums.
fn as_delivered(net: &mut Net<'_>) -> Result<(usize, bool)> {
    let (hdr, frame) = train(&v4(), ACK, 4500);
    net.vm(1).send_shaped(&hdr, &frame, &Shape::separate())?;
    net.drain(1)?;
    let got: Vec<_> = net.received(2)?;
    let got: Vec<_> = got.into_iter().map(|f| (f.header, f.bytes)).collect();
    verify_train(&frame, 1000, &got).map_err(|e| Error::Failed(e.to_string()))?;
    let partial = |h: &VirtioNetHdr| h.flags & VirtioNetHdr::F_NEEDS_CSUM != 0;
    let left = got.iter().filter(|(header, _)| partial(header)).count();
    check!(
        left == 0 || left == got.len(),
        "{left} of {} frames lack their checksums",
        got.len()
    );
    Ok((got.len(), left > 0))
}

fn a_switch_counts_at_once_for_what_is_delivered(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, all)?;
    net.introduce()?;
    let set = |net: &Net<'_>, checksum, tso| {
        net.switch.call::<methods::PortSet>(&PortSetParams {
            name: "vm2".into(),
            checksum,
            tso,
            ..PortSetParams::default()
        })
    };
    // Delivered as, and shown as delivered, offered and connected.
    let expect = |net: &mut Net<'_>, what: &str, delivered, names: &[&str], tso, connections| {
        let seen = as_delivered(net)?;
        check!(seen == delivered, "{what}: delivered as {seen:?}");
        let vhost = net.switch.port("vm2")?.vhost;
        let vhost = vhost.ok_or_else(|| Error::Failed("vm2 is no guest's".into()))?;
        check!(
            vhost.delivered_offloads == names,
            "{what}: shown as delivered: {:?}",
            vhost.delivered_offloads
        );
        let offered = vhost.offered.iter().any(|name| name == "guest-tso4");
        check!(offered == tso, "{what}: offered are {:?}", vhost.offered);
        check!(
            vhost.connections == connections,
            "{what}: connected {} times",
            vhost.connections
        );
        Ok(())
    };
    let everything = ["checksum", "tso4", "tso6", "ecn"];
    expect(&mut net, "at first", (1, true), &everything, true, 1)?;
    set(&net, None, Some(false))?;
    expect(&mut net, "no TSO", (5, true), &["checksum"], true, 1)?;
    set(&net, Some(false), None)?;
    expect(&mut net, "no checksums", (5, false), &[], true, 1)?;
    let refused = set(&net, None, Some(true));
    check!(
        matches!(&refused, Err(Error::Refused { error, .. }) if error.code == code::INVALID_PARAMS),
        "TSO without checksums: {refused:?}"
    );
    expect(&mut net, "refused", (5, false), &[], true, 1)?;
    set(&net, Some(true), Some(true))?;
    expect(&mut net, "on again", (1, true), &everything, true, 1)?;

    // The same by the file. What it does not change stays as `port.set` left it.
    let without = THREE.replace("vm2.sock", "vm2.sock, offload: { tso: false }");
    let reload = |net: &Net<'_>, config: &str, count: usize| {
        net.switch.write_config(config)?;
        net.switch.reload()?;
        net.switch.until("the file to be applied", SOON, || {
            let vhost = net.switch.port("vm2")?.vhost;
            let now = vhost.map_or(0, |v| v.delivered_offloads.len());
            check!(now == count, "{now} offloads are delivered");
            Ok(())
        })
    };
    reload(&net, &without, 1)?;
    expect(
        &mut net,
        "off in the file",
        (5, true),
        &["checksum"],
        true,
        1,
    )?;

    // Connecting again, a guest that uses what is no longer offered is refused by its front-end. The next time it is
    // offered all again, and what is delivered is still what the file says.
    let lost = net.vm(2).reconnect();
    check!(
        lost.is_err(),
        "guest 2 was offered what its port has switched off"
    );
    net.vm(2).reconnect()?;
    net.switch.wait_up("vm2", SOON)?;
    expect(
        &mut net,
        "connected again",
        (5, true),
        &["checksum"],
        true,
        3,
    )?;

    // A new guest is offered what the file says, and keeps that.
    net.vm(2).disconnect()?;
    net.guests[1] = all(2, builder(dir, 2)).start()?;
    net.switch.wait_up("vm2", SOON)?;
    expect(&mut net, "a new guest", (5, true), &["checksum"], false, 4)?;
    reload(&net, THREE, 1)?;
    expect(
        &mut net,
        "on in the file",
        (5, true),
        &["checksum"],
        false,
        4,
    )?;
    net.vm(2).disconnect()?;
    net.guests[1] = all(2, builder(dir, 2)).start()?;
    net.switch.wait_up("vm2", SOON)?;
    expect(&mut net, "and a new guest", (1, true), &everything, true, 5)?;
    net.switch.accounted().map(drop)
}

fn a_claim_of_validity_is_not_passed_on(dir: &RunDir) -> Result<()> {
    let mut net = Net::with(dir, THREE, 2, all)?;
    net.introduce()?;
    let header = Tcp {
        flags: ACK,
        ..Tcp::default()
    };
    let mut wrong = tcp(&eth(), &v4(), &header, &[7; 100]);
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    let claim = VirtioNetHdr {
        flags: VirtioNetHdr::F_DATA_VALID,
        ..VirtioNetHdr::default()
    };
    net.vm(1).send_shaped(&claim, &wrong, &Shape::joined())?;
    net.drain(1)?;
    let got = net.received(2)?;
    check!(
        got.len() == 1 && got[0].bytes == wrong && got[0].header.flags == 0,
        "a frame whose sender calls it valid came as {:?}",
        got.iter()
            .map(|f| (f.header, hex(&f.bytes)))
            .collect::<Vec<_>>()
    );
    let counters = net.switch.counters()?;
    check!(
        dropped(&counters, "vm1", "bad-offload")? == 0,
        "a claim of validity was refused"
    );
    net.close_books()
}
