//! Changing what runs: whole or not at all, and without a frame lost for those who are not concerned.

use vswitch_api::config::{Action, Effect, Subject};
use vswitch_api::rpc::{ConfigInput, NoParams, Origin, PortAddParams, PortName, code, methods};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine};

use crate::load::Load;
use crate::setup::{BROADCAST, Net, SOON, THREE, dropped, mac, numbered};

cases!("config":
    ports_come_go_and_change_under_traffic,
    bad_configurations_change_nothing,
    sighup_reads_the_file_again,
    the_diff_says_what_a_change_means,
    changes_that_need_a_restart_are_refused,
    a_runtime_port_survives_an_apply,
    clashes_with_runtime_ports_are_refused,
    a_renamed_port_keeps_its_socket,
    live_changes_are_live,
);

/// A configuration as it would be written for this run.
pub(crate) fn text(dir: &RunDir, config: &str) -> ConfigInput {
    let run = dir.path().display().to_string();
    ConfigInput {
        text: format!("control: {{ socket: $RUN/control.sock }}\n{config}").replace("$RUN", &run),
        file: "new.yaml".into(),
    }
}

pub(crate) fn apply(
    switch: &Switch<'_>,
    dir: &RunDir,
    config: &str,
) -> Result<Vec<vswitch_api::config::Change>> {
    Ok(switch
        .call::<methods::ConfigApply>(&text(dir, config))?
        .changes)
}

/// The error code and message with which a configuration is refused.
fn refusal(switch: &Switch<'_>, dir: &RunDir, config: &str) -> Result<(i64, String)> {
    match switch.call::<methods::ConfigApply>(&text(dir, config)) {
        Err(Error::Refused { error, .. }) => Ok((error.code, error.message)),
        Err(other) => Err(other),
        Ok(plan) => Err(Error::Failed(format!("it was applied: {plan:?}"))),
    }
}

fn four(extra: &str) -> String {
    format!("{THREE}  vm4: {{ {extra}vhost-user: {{ socket: $RUN/vm4.sock }} }}\n")
}

fn ports_come_go_and_change_under_traffic(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    let variants = [
        four(""),
        four("learning: false, "),
        four("vlan: { access: 10 }, "),
        four("vlan: { trunk: [10, 20] }, ").replace("vm4.sock", "vm4.sock, queue-pairs: 2"),
        four("").replace("vm4.sock", "other.sock"),
        four("link: down, "),
        four("").replace("vm4.sock", "vm4.sock, mode: client"),
        THREE.to_owned(),
        THREE.replace("  vm3: { vhost-user: { socket: $RUN/vm3.sock } }\n", ""),
        THREE.to_owned(),
    ];
    for _ in 0..machine::rounds(5, 100) {
        for config in &variants {
            apply(&net.switch, dir, config)?;
            load.wait_more(50)?;
            let ports = net.switch.show()?.ports.len();
            check!(
                ports == config.matches("vhost-user").count(),
                "there are {ports} ports after applying\n{config}"
            );
        }
    }
    load.finish_whole(&mut net)?;
    // Ports that went took their counters along, so only the books of each port are left to look at.
    let counters = net.switch.counters()?;
    for (name, port) in &counters.ports {
        check!(
            port.imbalance() == (0, 0),
            "the books of {name} are off by {:?}",
            port.imbalance()
        );
    }
    Ok(())
}

fn bad_configurations_change_nothing(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let running = net.switch.call::<methods::ConfigShow>(&NoParams {})?.text;
    let load = Load::start(&mut net, 1, 2)?;
    for (what, config, place, says) in [
        (
            "VLAN 4095",
            four("vlan: { access: 4095 }, "),
            "new.yaml:7:",
            "4095",
        ),
        (
            "an unknown bridge",
            four("bridge: br9, "),
            "new.yaml:7:",
            "br9",
        ),
        (
            "a socket used twice",
            four("").replace("vm4.sock", "vm1.sock"),
            "new.yaml:7:",
            "vm1.sock",
        ),
        (
            "the control socket as a port's",
            four("").replace("vm4.sock", "control.sock"),
            "new.yaml:7:",
            "control.sock",
        ),
        (
            "an unknown key",
            four("vlna: { access: 1 }, "),
            "new.yaml:7:",
            "vlna",
        ),
        (
            "a core that does not exist",
            format!("workers: [{{ core: 4000 }}]\n{THREE}"),
            "new.yaml:2:",
            "4000",
        ),
        (
            "an MTU out of range",
            THREE.replace("br0: { }", "br0: { mtu: 9999 }"),
            "new.yaml:2:",
            "9999",
        ),
        (
            "a ring size that is no power of two",
            THREE.replace("vm3.sock", "vm3.sock, ring-size: 1000"),
            "new.yaml:6:",
            "1000",
        ),
        (
            "TSO without checksums",
            THREE.replace("vm3.sock", "vm3.sock, offload: { checksum: false }"),
            "new.yaml:6:",
            "checksum",
        ),
        (
            "a static address on a port of another bridge",
            THREE
                .replace(
                    "br0: { }",
                    "br0: { }, br1: { static-macs: [{ mac: \"52:54:00:00:00:99\", port: vm1 }] }",
                )
                .replace("{ vhost-user", "{ bridge: br0, vhost-user"),
            "new.yaml:2:",
            "vm1",
        ),
        (
            "no YAML at all",
            "ports: { vm1: [".to_owned(),
            "new.yaml:",
            "",
        ),
        (
            "a key twice",
            format!("{THREE}ports: {{ }}\n"),
            "new.yaml:7:",
            "ports",
        ),
        (
            "a relative socket path",
            four("").replace("$RUN/vm4.sock", "vm4.sock"),
            "new.yaml:7:",
            "vm4.sock",
        ),
    ] {
        let (error, message) = refusal(&net.switch, dir, &config)
            .map_err(|e| Error::Failed(format!("{what}: {e}")))?;
        check!(
            error == code::CONFIG && message.contains(place) && message.contains(says),
            "{what}: refused with {error} and\n{message}\nwhich does not name {place} and {says}"
        );
        net.switch.write_config(&config)?;
        net.switch.reload()?;
        load.wait_more(50)?;
        let still = net.switch.call::<methods::ConfigShow>(&NoParams {})?.text;
        check!(still == running, "{what}: what runs has changed:\n{still}");
    }
    check!(
        !dir.join("vm4.sock").exists(),
        "a refused port has a socket"
    );
    load.finish_whole(&mut net)?;
    net.close_books()
}

fn sighup_reads_the_file_again(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    for _ in 0..5 {
        for (config, ports) in [(four(""), 4), (THREE.to_owned(), 3)] {
            net.switch.write_config(&config)?;
            net.switch.reload()?;
            net.switch.until("the file to be applied", SOON, || {
                let now = net.switch.show()?.ports.len();
                check!(now == ports, "there are {now} ports");
                Ok(())
            })?;
            load.wait_more(20)?;
        }
    }
    load.finish_whole(&mut net)?;
    net.close_books()
}

fn the_diff_says_what_a_change_means(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, THREE)?;
    let config = four("")
        .replace("br0: { }", "br0: { mtu: 4000 }")
        .replace("vm1.sock", "vm1.sock, queue-pairs: 2")
        .replace("vm2: {", "vm2: { learning: false,")
        .replace("  vm3: { vhost-user: { socket: $RUN/vm3.sock } }\n", "");
    let diff = switch
        .call::<methods::ConfigDiff>(&text(dir, &config))?
        .changes;
    let port = |name: &str| Subject::Port(name.into());
    for (subject, action, effect) in [
        (Subject::Bridge("br0".into()), Action::Change, Effect::Live),
        (port("vm1"), Action::Change, Effect::Reconnect),
        (port("vm2"), Action::Change, Effect::Live),
        (port("vm3"), Action::Remove, Effect::Reconnect),
        (port("vm4"), Action::Add, Effect::Live),
    ] {
        let found = diff.iter().find(|c| c.subject == subject);
        check!(
            found.is_some_and(|c| c.action == action && c.effect == effect && !c.fields.is_empty()),
            "{subject:?} should be {action:?} with effect {effect:?}, the diff says {found:?}"
        );
    }
    check!(
        diff.len() == 5,
        "the diff has {} changes instead of 5",
        diff.len()
    );
    check!(
        switch.show()?.ports.len() == 3,
        "asking for a diff changed something"
    );
    let applied = apply(&switch, dir, &config)?;
    check!(
        applied == diff,
        "applied was {applied:?}, announced was {diff:?}"
    );
    let none = switch
        .call::<methods::ConfigDiff>(&text(dir, &config))?
        .changes;
    check!(
        none.is_empty(),
        "what runs differs from what was applied: {none:?}"
    );
    // What `config show` prints is a configuration that changes nothing.
    let shown = switch.call::<methods::ConfigShow>(&NoParams {})?.text;
    let input = ConfigInput {
        text: shown,
        file: "shown".into(),
    };
    let none = switch.call::<methods::ConfigDiff>(&input)?.changes;
    check!(
        none.is_empty(),
        "the configuration shown differs from what runs: {none:?}"
    );
    Ok(())
}

fn changes_that_need_a_restart_are_refused(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, THREE)?;
    let config = format!("dpdk: {{ memory: 128 }}\n{}", four(""));
    let (error, message) = refusal(&switch, dir, &config)?;
    check!(
        error == code::NEEDS_RESTART && message.contains("restart"),
        "other memory for DPDK was refused with {error}: {message}"
    );
    check!(
        switch.show()?.ports.len() == 3,
        "half of a refused configuration was applied"
    );
    Ok(())
}

/// `port add` for guest `n`.
fn add(switch: &Switch<'_>, dir: &RunDir, n: u8) -> Result<()> {
    let port = serde_json::from_value(serde_json::json!({
        "bridge": "br0",
        "vhost-user": { "socket": dir.join(format!("vm{n}.sock")) },
    }))
    .map_err(|e| Error::Failed(format!("a port in JSON: {e}")))?;
    let name = format!("vm{n}");
    let added = switch.call::<methods::PortAdd>(&PortAddParams { name, port })?;
    check!(
        !added.survives_restart && added.port.origin == Origin::Runtime,
        "a runtime port is shown as {added:?}"
    );
    Ok(())
}

fn a_runtime_port_survives_an_apply(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    add(&net.switch, dir, 4)?;
    net.add(|b| b)?;
    net.introduce()?;
    let load = Load::start(&mut net, 4, 1)?;
    let changed = THREE.replace("vm3: {", "vm3: { learning: false,");
    for config in [THREE, &changed, THREE] {
        apply(&net.switch, dir, config)?;
        load.wait_more(100)?;
        let shown = net.switch.call::<methods::ConfigShow>(&NoParams {})?;
        check!(
            shown.runtime_ports == ["vm4"] && !shown.text.contains("vm4"),
            "the runtime port is shown as {:?}",
            shown.runtime_ports
        );
    }
    load.finish_whole(&mut net)?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 1), &[2, 3, 4])?;
    net.close_books()
}

fn clashes_with_runtime_ports_are_refused(dir: &RunDir) -> Result<()> {
    let mut switch = Switch::start(dir, THREE)?;
    check!(
        add(&switch, dir, 1).is_err(),
        "a port was added under a name that is taken"
    );
    add(&switch, dir, 4)?;
    check!(add(&switch, dir, 4).is_err(), "a port was added twice");
    let (error, message) = refusal(&switch, dir, &four(""))?;
    check!(
        message.contains("vm4") && [code::CONFIG, code::EXISTS].contains(&error),
        "a file with the name of a runtime port was refused with {error}: {message}"
    );
    let same_socket = four("").replace("vm4:", "web:");
    let (error, message) = refusal(&switch, dir, &same_socket)?;
    check!(
        message.contains("vm4") && [code::CONFIG, code::EXISTS].contains(&error),
        "a file with the socket of a runtime port was refused with {error}: {message}"
    );
    check!(
        switch.show()?.ports.len() == 4,
        "a refused configuration changed the ports"
    );
    let name = "vm4".to_owned();
    switch.call::<methods::PortRemove>(&PortName { name })?;
    apply(&switch, dir, &same_socket)?;
    check!(
        dir.join("vm4.sock").exists(),
        "the new owner of the socket does not listen"
    );
    // Runtime ports end with the daemon.
    add(&switch, dir, 5)?;
    switch.stop();
    switch.start_again()?;
    let ports = switch.show()?.ports.len();
    check!(ports == 3, "after a restart there are {ports} ports");
    Ok(())
}

fn a_renamed_port_keeps_its_socket(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    let renamed = THREE.replace("vm3:", "web:");
    for (config, name) in [
        (renamed.as_str(), "web"),
        (THREE, "vm3"),
        (&renamed, "web"),
        (THREE, "vm3"),
    ] {
        apply(&net.switch, dir, config)?;
        check!(
            dir.join("vm3.sock").exists(),
            "the socket went with the old name of its port"
        );
        net.vm(3).reconnect()?;
        net.switch.wait_up(name, SOON)?;
        // To nobody in particular, and to none of the two that are being measured.
        net.send(3, &numbered([0x01, 0x80, 0xc2, 0, 0, 1], mac(3), 1))?;
        load.wait_more(20)?;
    }
    load.finish_whole(&mut net)?;
    net.reaches(3, &numbered(BROADCAST, mac(3), 2), &[1, 2])?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 3), &[2, 3])?;
    net.switch.accounted().map(drop)
}

fn live_changes_are_live(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let mut long = numbered(mac(2), mac(1), 1);
    long.resize(14 + 1800, 1);
    net.is_dropped(1, &long, "over-mtu")?;
    apply(
        &net.switch,
        dir,
        &THREE.replace("br0: { }", "br0: { mtu: 1800 }"),
    )?;
    net.reaches(1, &long, &[2])?;
    // VLANs: port 3 leaves the segment and comes back.
    apply(
        &net.switch,
        dir,
        &THREE.replace("vm3: {", "vm3: { vlan: { access: 7 },"),
    )?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 2), &[2])?;
    net.is_dropped(3, &numbered(BROADCAST, mac(3), 3), "no-output")?;
    apply(&net.switch, dir, THREE)?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 4), &[2, 3])?;
    net.is_dropped(1, &long, "over-mtu")?;
    for n in 1..=3 {
        check!(
            net.vm(n).is_connected(),
            "a live change disconnected guest {n}"
        );
    }
    check!(
        dropped(&net.switch.counters()?, "vm1", "over-mtu")? == 2,
        "a drop was not counted"
    );
    net.close_books()
}
