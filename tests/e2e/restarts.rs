//! The switch goes away under running guests and comes back: they notice a pause.

use std::time::Duration;

use vswitch_tests::{Guest, Nic, Result, Role, RunDir, Switch, cases, check, machine};

use crate::setup::{ADDRESSES, TWO_PORTS, UP_LIMIT, check_layouts, guest, mac, nic};

cases!("restarts":
    a_tcp_connection_survives_when_the_switch_listens,
    a_tcp_connection_survives_when_qemu_listens,
    a_tcp_connection_survives_over_packed_rings,
);

const SOON: Duration = Duration::from_secs(60);

/// Kills the switch, and stops it the polite way, again and again under one TCP connection at full speed.
fn under_traffic(dir: &RunDir, config: &str, nics: [Nic; 2], packed: bool) -> Result<()> {
    let mut switch = Switch::start(dir, config)?;
    let [nic1, nic2] = nics;
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&guest(1, nic1), &guest(2, nic2)])?;
    vm1.wait_for_answer(ADDRESSES[1], SOON)?;
    check_layouts(&switch, [packed; 2])?;

    let rounds = machine::rounds(4, 20);
    // Long enough for every round at its slowest; ended by hand when the rounds are through.
    vm2.run("nc -l -p 5003 -e sh -c 'wc -c >/tmp/received' >/dev/null 2>&1 &")?;
    vm2.wait_listening(5003)?;
    vm1.run(&format!(
        "(nc {} 5003 -e sh -c 'while [ ! -e /tmp/enough ]; do dd if=/dev/zero bs=64k count=16 2>/dev/null || exit; echo x >>/tmp/sent; done'; echo $? >/tmp/status) >/dev/null 2>&1 &",
        ADDRESSES[1]
    ))?;
    let sent = |vm1: &mut Guest| -> Result<u64> {
        let lines = vm1.run("cat /tmp/sent 2>/dev/null | wc -l")?;
        lines
            .trim()
            .parse()
            .map_err(|_| vswitch_tests::Error::Failed(format!("no number: {lines}")))
    };
    for round in 0..rounds {
        let before = sent(&mut vm1)?;
        if round % 2 == 0 {
            switch.kill();
        } else {
            switch.stop();
        }
        switch.start_again()?;
        switch.wait_up("vm1", UP_LIMIT)?;
        switch.wait_up("vm2", UP_LIMIT)?;
        // TCP waits with its next try up to twice as long as the pause was.
        let mut after = before;
        for _ in 0..240 {
            std::thread::sleep(Duration::from_millis(250));
            after = sent(&mut vm1)?;
            if after > before + 1 {
                break;
            }
        }
        check!(
            after > before + 1,
            "round {round}: the connection did not go on after the switch came back"
        );
        switch.accounted()?;
    }
    vm1.run("touch /tmp/enough; until [ -e /tmp/status ]; do sleep 0.1; done")?;
    vm2.run("until [ -s /tmp/received ]; do sleep 0.1; done")?;
    let total = sent(&mut vm1)? << 20;
    let received: u64 = vm2.run("cat /tmp/received")?.trim().parse().unwrap_or(0);
    check!(
        received == total,
        "{total} bytes were sent and {received} received over the connection"
    );
    Ok(())
}

fn a_tcp_connection_survives_when_the_switch_listens(dir: &RunDir) -> Result<()> {
    under_traffic(dir, TWO_PORTS, [nic(dir, 1), nic(dir, 2)], false)
}

fn a_tcp_connection_survives_when_qemu_listens(dir: &RunDir) -> Result<()> {
    let config = TWO_PORTS.replace(".sock }", ".sock, mode: client }");
    let listening = |n: u8| Nic::vhost_user(dir.join(format!("vm{n}.sock")), Role::Server, mac(n));
    under_traffic(dir, &config, [listening(1), listening(2)], false)
}

/// QEMU does not know where the rings stood and says that they are new; the switch looks.
fn a_tcp_connection_survives_over_packed_rings(dir: &RunDir) -> Result<()> {
    let packed = |n| nic(dir, n).with(&["packed=on"]);
    under_traffic(dir, TWO_PORTS, [packed(1), packed(2)], true)
}
