//! What most tests start from: two guests on one bridge.

use std::time::Duration;

use vswitch_packet::MacAddr;
use vswitch_tests::{Guest, GuestSpec, Nic, Result, Role, RunDir, Switch, check};

/// Address of guest `n` on its first NIC.
pub(crate) const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// How long a port may take to come up once its guest has booted.
pub(crate) const UP_LIMIT: Duration = Duration::from_secs(60);

/// A switch that listens on `vm1.sock` and `vm2.sock`, one bridge, one worker.
pub(crate) const TWO_PORTS: &str = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock } }
";

/// A locally administered address, different for each `n`.
pub(crate) fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0x77, 0, n])
}

/// The NIC of guest `vmN` on `vmN.sock`, on which the switch listens.
pub(crate) fn nic(dir: &RunDir, n: u8) -> Nic {
    Nic::vhost_user(dir.join(format!("vm{n}.sock")), Role::Client, mac(n))
}

/// Guest `vmN` with one NIC that has the address `10.77.0.N`.
pub(crate) fn guest(n: u8, nic: Nic) -> GuestSpec {
    GuestSpec::new(format!("vm{n}")).nic(nic, &format!("10.77.0.{n}/24"))
}

/// A switch with two guests that can reach each other.
pub(crate) fn two_guests(dir: &RunDir) -> Result<(Switch<'_>, Guest, Guest)> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let [vm1, vm2] = Guest::boot_all(dir, [&guest(1, nic(dir, 1)), &guest(2, nic(dir, 2))])?;
    switch.wait_up("vm1", UP_LIMIT)?;
    switch.wait_up("vm2", UP_LIMIT)?;
    Ok((switch, vm1, vm2))
}

/// Sends `mib` of random bytes over TCP and compares their checksums.
pub(crate) fn send_random(
    from: &mut Guest,
    to: &mut Guest,
    to_address: &str,
    mib: u32,
) -> Result<()> {
    let limit = Duration::from_secs(60) + Duration::from_secs(2) * mib;
    from.run_for(
        &format!("dd if=/dev/urandom of=/tmp/sent bs=1M count={mib} 2>/dev/null"),
        limit,
    )?;
    // With `-e` the program has the connection itself, so neither side hangs up before everything is through.
    to.run("rm -f /tmp/got*; (nc -l -p 5001 -e sh -c 'cat >/tmp/got'; touch /tmp/got.end) >/dev/null 2>&1 &")?;
    to.wait_listening(5001)?;
    from.run_for(
        &format!("nc -w 30 {to_address} 5001 -e cat /tmp/sent"),
        limit,
    )?;
    to.run_for("until [ -e /tmp/got.end ]; do sleep 0.1; done", limit)?;
    let sent = from.run_for("sha256sum </tmp/sent", limit)?;
    let got = to.run_for("sha256sum </tmp/got", limit)?;
    let size = to.run("wc -c </tmp/got")?;
    from.run("rm /tmp/sent")?;
    to.run("rm /tmp/got*")?;
    vswitch_tests::check!(
        sent == got,
        "{mib} MiB arrived as {size} bytes that differ from those sent"
    );
    Ok(())
}

/// Whether the guests on both ports have negotiated packed rings as they should.
pub(crate) fn check_layouts(switch: &Switch<'_>, want: [bool; 2]) -> Result<()> {
    for (port, packed) in ["vm1", "vm2"].into_iter().zip(want) {
        let features = switch.port(port)?.vhost.map(|vhost| vhost.features);
        let features = features.unwrap_or_default();
        check!(
            features.iter().any(|feature| feature == "ring-packed") == packed,
            "{port} should have packed rings: {packed}; it has {features:?}"
        );
    }
    Ok(())
}
