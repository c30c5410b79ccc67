//! The daemon as its operator meets it: starting, stopping, configurations good and bad, and doing nothing.

use std::time::Duration;

use vswitch_api::rpc::{ConfigInput, NoParams, methods};
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine};

use crate::setup::{ADDRESSES, TWO_PORTS, two_guests};

cases!("daemon":
    starts_and_stops,
    a_bad_configuration_is_refused_whole,
    nonsense_on_the_control_socket_is_answered,
    ports_come_and_go,
    idle_costs_nothing,
);

fn starts_and_stops(dir: &RunDir) -> Result<()> {
    let mut switch = Switch::start(dir, TWO_PORTS)?;
    for _ in 0..machine::rounds(3, 50) {
        switch.stop();
        // What a killed daemon leaves behind must not stop the next one.
        switch.start_again()?;
        switch.kill();
        switch.start_again()?;
        check!(switch.show()?.ports.len() == 2, "a port is missing");
    }
    Ok(())
}

fn a_bad_configuration_is_refused_whole(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let before = switch.call::<methods::ConfigShow>(&NoParams {})?.text;
    // The new port is fine, the VLAN is not: neither may be taken.
    let bad = format!(
        "{TWO_PORTS}  vm3: {{ vhost-user: {{ socket: $RUN/vm3.sock }} }}\n  vm4: {{ vlan: {{ access: 4095 }}, vhost-user: {{ socket: $RUN/vm4.sock }} }}\n"
    );
    let text = bad.replace("$RUN", &dir.path().display().to_string());
    let refused = switch.call::<methods::ConfigApply>(&ConfigInput {
        text,
        file: "bad.yaml".into(),
    });
    let Err(Error::Refused { error, .. }) = refused else {
        return Err(Error::Failed(format!("VLAN 4095 was taken: {refused:?}")));
    };
    check!(
        error.message.contains("4095"),
        "the message does not name what is wrong: {}",
        error.message
    );
    switch.write_config(&bad)?;
    switch.reload()?;
    std::thread::sleep(Duration::from_millis(500));
    let after = switch.call::<methods::ConfigShow>(&NoParams {})?.text;
    check!(
        before == after,
        "the running configuration has changed:\n{after}"
    );
    check!(
        !dir.join("vm3.sock").exists(),
        "a refused configuration made a socket"
    );

    let checked = std::process::Command::new(machine::built_programs()?.join("vswitchd"))
        .arg("--check")
        .arg("--config")
        .arg(dir.join("vswitch.yaml"))
        .output()
        .map_err(Error::io("run vswitchd --check"))?;
    let said = String::from_utf8_lossy(&checked.stderr);
    check!(
        !checked.status.success() && said.contains("4095"),
        "vswitchd --check takes VLAN 4095: {said}"
    );
    Ok(())
}

fn nonsense_on_the_control_socket_is_answered(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let mut control = switch.control()?;
    for nonsense in [
        "\u{1}\u{2}\n",
        "{}\n",
        "[]\n",
        "null\n",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"no.such\"}\n",
        "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"port.show\",\"params\":{\"name\":7}}\n",
        "{\"jsonrpc\":\"1.0\",\"id\":3,\"method\":\"show\"}\n",
    ] {
        let answer = control.exchange(nonsense.as_bytes())?;
        check!(
            answer.contains("\"error\""),
            "{nonsense:?} was answered with {answer}"
        );
    }
    // Bytes that are no text at all.
    let answer = control.exchange(b"\xff\xfe{\n")?;
    check!(
        answer.contains("\"error\""),
        "bytes that are no text were answered with {answer}"
    );
    control.call::<methods::GetVersion>(&NoParams {}).map(drop)
}

fn ports_come_and_go(dir: &RunDir) -> Result<()> {
    let switch = Switch::start(dir, TWO_PORTS)?;
    let run = dir.path().display().to_string();
    let with_three = format!("{TWO_PORTS}  vm3: {{ vhost-user: {{ socket: $RUN/vm3.sock }} }}\n")
        .replace("$RUN", &run);
    let control = format!("control: {{ socket: {run}/control.sock }}\n");
    for _ in 0..machine::rounds(5, 200) {
        for (text, ports) in [(&with_three, 3), (&TWO_PORTS.replace("$RUN", &run), 2)] {
            let text = format!("{control}{text}");
            switch.call::<methods::ConfigApply>(&ConfigInput {
                text,
                file: "new.yaml".into(),
            })?;
            check!(
                switch.show()?.ports.len() == ports,
                "there are not {ports} ports after the change"
            );
            check!(
                dir.join("vm3.sock").exists() == (ports == 3),
                "the socket does not follow the port"
            );
        }
    }
    Ok(())
}

fn idle_costs_nothing(dir: &RunDir) -> Result<()> {
    let (switch, mut vm1, _vm2) = two_guests(dir)?;
    vm1.wait_for_answer(ADDRESSES[1], Duration::from_secs(20))?;
    std::thread::sleep(Duration::from_secs(2));
    let watched = Duration::from_secs(u64::from(machine::rounds(5, 60)));
    let share = switch.process()?.rest(watched, 0.01)?;
    check!(
        share < 0.01,
        "the idle switch used {:.2} % of a core",
        share * 100.0
    );
    Ok(())
}
