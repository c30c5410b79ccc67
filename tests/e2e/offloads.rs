//! Guests that negotiated different offloads, and frames of all sizes between them.

use std::time::Duration;

use vswitch_tests::{Guest, Result, RunDir, Switch, cases, check, iperf, machine};

use crate::setup::{ADDRESSES, TWO_PORTS, check_layouts, guest, nic, send_random};

cases!("offloads":
    everything_meets_nothing,
    large_segments_meet_small_buffers,
    jumbo_frames_pass_and_no_larger_ones,
    a_port_can_offer_less,
    packed_rings_meet_split_ones,
    packed_rings_with_chains,
);

const SOON: Duration = Duration::from_secs(60);
const RECEIVE: [&str; 5] = [
    "guest_csum",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
];
const SEND: [&str; 5] = ["csum", "host_tso4", "host_tso6", "host_ecn", "host_ufo"];

/// Sends both ways; the receiver's TCP discards what has a wrong checksum, so a fault shows as a stall.
fn talk(switch: &Switch<'_>, vm1: &mut Guest, vm2: &mut Guest) -> Result<()> {
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    let mib = machine::rounds(8, 100);
    send_random(vm1, vm2, ADDRESSES[1], mib)?;
    send_random(vm2, vm1, ADDRESSES[0], mib)?;
    // UDP leaves its checksum to the NIC too.
    let udp = iperf(vm1, vm2, ADDRESSES[1], 2, "-u -b 2M -l 3000")?;
    check!(
        udp.bytes > 100_000 && udp.lost == 0,
        "UDP: {} bytes, {} datagrams lost",
        udp.bytes,
        udp.lost
    );
    for vm in [vm1, vm2] {
        let errors = vm.run("grep -A1 '^Tcp:' /proc/net/snmp | awk 'NR==1 {for (i=1;i<=NF;i++) if ($i==\"InCsumErrors\") c=i} NR==2 {print $c}'")?;
        check!(
            errors.trim() == "0",
            "{errors} TCP segments came with a wrong checksum"
        );
    }
    switch.accounted().map(drop)
}

fn everything_meets_nothing(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let none = nic(dir, 2)
        .without(&RECEIVE)
        .without(&SEND)
        .without(&["mrg_rxbuf"]);
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&guest(1, nic(dir, 1)), &guest(2, none)])?;
    talk(&switch, &mut vm1, &mut vm2)
}

fn large_segments_meet_small_buffers(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    // Without merging, Linux posts buffers of 64 KB each as long chains.
    let chains = nic(dir, 2).without(&["mrg_rxbuf", "indirect_desc", "event_idx"]);
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&guest(1, nic(dir, 1)), &guest(2, chains)])?;
    talk(&switch, &mut vm1, &mut vm2)
}

fn jumbo_frames_pass_and_no_larger_ones(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, &TWO_PORTS.replace("br0: { }", "br0: { mtu: 9000 }"))?;
    let specs = [1, 2].map(|n| guest(n, nic(dir, n).with(&["host_mtu=9000"])).mtu(9000));
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&specs[0], &specs[1]])?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    // 8972 and 28 bytes of headers are 9000. Busybox's ping lets the kernel fragment, so a lost size would show as well
    // as a lost fragment; the guest's own count of sent fragments tells them apart.
    vm1.run(&format!("ping -s 8972 -c 5 {}", ADDRESSES[1]))?;
    let fragments = vm1.run("grep '^Ip:' /proc/net/snmp | awk 'NR==1 {for (i=1;i<=NF;i++) if ($i==\"FragCreates\") c=i} NR==2 {print $c}'")?;
    check!(
        fragments.trim() == "0",
        "{fragments} fragments were made: the MTU did not reach the guest"
    );
    talk(&switch, &mut vm1, &mut vm2)
}

fn a_port_can_offer_less(dir: &RunDir) -> Result<()> {
    let config = TWO_PORTS.replace(
        "vm1.sock }",
        "vm1.sock, mergeable: false, offload: { checksum: false, tso: false } }",
    );
    let switch = Switch::start(dir, &config)?;
    let [mut vm1, mut vm2] =
        Guest::boot_all(dir, [&guest(1, nic(dir, 1)), &guest(2, nic(dir, 2))])?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    let features = switch
        .port("vm1")?
        .vhost
        .map(|vhost| vhost.features)
        .unwrap_or_default()
        .join(" ")
        .to_lowercase();
    for absent in ["tso", "mrg"] {
        check!(
            !features.contains(absent),
            "{absent} was negotiated though the port does not offer it: {features}"
        );
    }
    talk(&switch, &mut vm1, &mut vm2)
}

fn packed_rings_meet_split_ones(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let packed = nic(dir, 2).with(&["packed=on"]);
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&guest(1, nic(dir, 1)), &guest(2, packed)])?;
    talk(&switch, &mut vm1, &mut vm2)?;
    check_layouts(&switch, [false, true])
}

/// Descriptors strung together in the ring itself, and no event indices.
fn packed_rings_with_chains(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let packed = |n| {
        nic(dir, n)
            .with(&["packed=on"])
            .without(&["indirect_desc", "event_idx"])
    };
    // Buffers of 64 KB, each a chain: with 256 descriptors a guest would have a dozen, too few for one that is slow.
    let small = packed(2)
        .without(&["mrg_rxbuf"])
        .with(&["rx_queue_size=1024"]);
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&guest(1, packed(1)), &guest(2, small)])?;
    talk(&switch, &mut vm1, &mut vm2)?;
    check_layouts(&switch, [true, true])
}
