//! The harness itself, without the switch: guests on a kernel bridge. If these fail, nothing below means anything.

use std::time::Duration;

use vswitch_tests::{Error, Guest, KernelBridge, Netns, Nic, Result, RunDir, cases, check, iperf};

use crate::setup::{ADDRESSES, guest, mac, send_random};

cases!("harness": two_guests_talk_over_a_kernel_bridge, a_guest_survives_what_a_console_must, a_paused_guest_stands_still, namespaces_are_apart);

fn two_guests_talk_over_a_kernel_bridge(dir: &RunDir) -> Result<()> {
    let mut bridge = KernelBridge::new()?;
    let nics = [
        Nic::tap(bridge.tap()?, mac(1)),
        Nic::tap(bridge.tap()?, mac(2)),
    ];
    let [one, two] = [guest(1, nics[0].clone()), guest(2, nics[1].clone())];
    let [mut vm1, mut vm2] = Guest::boot_all(dir, [&one, &two])?;
    vm1.wait_for_answer(ADDRESSES[1], Duration::from_secs(60))?;
    check!(
        vm2.ping(ADDRESSES[0], 10)? == 10,
        "pings were lost between two guests on a kernel bridge"
    );
    let tcp = iperf(&mut vm1, &mut vm2, ADDRESSES[1], 2, "")?;
    check!(
        tcp.bytes > 1_000_000,
        "TCP carried {} bytes in 2 s",
        tcp.bytes
    );
    send_random(&mut vm1, &mut vm2, ADDRESSES[1], 4)
}

fn a_guest_survives_what_a_console_must(dir: &RunDir) -> Result<()> {
    let mut vm = Guest::boot(dir, &vswitch_tests::GuestSpec::new("vm"))?;
    let (status, output) =
        vm.try_run("echo one; echo two >&2; (exit 9)", Duration::from_secs(60))?;
    check!(
        (status, output.as_str()) == (9, "one\ntwo"),
        "got status {status} and {output:?}"
    );
    let listing = vm.run("seq 1 3000")?;
    check!(
        listing.lines().count() == 3000,
        "{} of 3000 lines came over the console",
        listing.lines().count()
    );
    let stuck = vm.try_run("sleep 1000", Duration::from_millis(300));
    check!(
        matches!(stuck, Err(Error::Timeout { .. })),
        "a command without end ended: {stuck:?}"
    );
    check!(
        vm.run("echo on we go")? == "on we go",
        "the console is out of step after a timeout"
    );
    vm.run("echo lost on reboot >/tmp/mark")?;
    vm.reboot()?;
    check!(
        vm.try_run("cat /tmp/mark", Duration::from_secs(60))?.0 != 0,
        "the guest did not really reboot"
    );
    Ok(())
}

fn a_paused_guest_stands_still(dir: &RunDir) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(2);
    let mut vm = Guest::boot(dir, &vswitch_tests::GuestSpec::new("vm"))?;
    let uptime = |vm: &mut Guest| -> Result<f64> {
        let text = vm.run("cut -d ' ' -f 1 /proc/uptime")?;
        text.parse()
            .map_err(|_| Error::Failed(format!("{text:?} is no uptime")))
    };
    let before = uptime(&mut vm)?;
    let started = std::time::Instant::now();
    vm.pause()?;
    let used = vm.process().cpu_time()?;
    std::thread::sleep(PAUSE);
    let used = vm.process().cpu_time()? - used;
    check!(used < PAUSE / 10, "a paused guest ran for {used:?}");
    vm.resume()?;
    let passed = uptime(&mut vm)? - before;
    let there = started.elapsed().as_secs_f64();
    check!(
        passed < there - PAUSE.as_secs_f64() * 0.9,
        "the guest's clock went on by {passed} s in {there} s, though it was paused for {PAUSE:?}"
    );
    Ok(())
}

fn namespaces_are_apart(_dir: &RunDir) -> Result<()> {
    let netns = Netns::new("10.78.0.1/24")?;
    let links = netns.run(&["ip", "-o", "link"])?;
    check!(
        links.lines().count() == 2,
        "a new namespace has other links than lo and eth0:\n{links}"
    );
    check!(
        std::path::Path::new("/sys/class/net")
            .join(netns.outside())
            .exists(),
        "the outer end of the pair is not in the host"
    );
    let outside = netns.outside().to_owned();
    drop(netns);
    check!(
        !std::path::Path::new("/sys/class/net")
            .join(outside)
            .exists(),
        "a dropped namespace left its veth behind"
    );
    Ok(())
}
