//! What happens to one guest while another two exchange traffic: theirs must not lose a frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vswitch_simguest::driver::DeviceFault;
use vswitch_simguest::features::protocol;
use vswitch_simguest::memory::RegionSpec;
use vswitch_simguest::traffic::{Generator, Pattern};
use vswitch_tests::{Error, Result, RunDir, cases, check, machine};

use crate::load::Load;
use crate::setup::{Net, SOON, THREE, mac, numbered};

cases!("disturbance":
    memory_comes_and_goes_under_traffic,
    guests_come_and_go,
    queue_pairs_on_and_off_under_load,
    stops_and_reboots_of_the_other_end,
);

fn extra(guest: u64) -> RegionSpec {
    RegionSpec {
        guest,
        size: 4 << 20,
        shared_file: false,
        read_only: false,
    }
}

/// Guest 1 sends, guest 2 receives, and both get and lose memory all the time. What guest 1 sends waits for the change;
/// what comes for guest 2 meanwhile must wait, too, or be dropped by name.
fn memory_comes_and_goes_under_traffic(dir: &RunDir) -> Result<()> {
    for protocol in [
        protocol::ALL,
        protocol::ALL & !protocol::CONFIGURE_MEM_SLOTS,
    ] {
        for n in [1, 2] {
            let mut net = Net::with(dir, THREE, 2, |_, b| b.protocol(protocol))?;
            net.introduce()?;
            let load = Load::start(&mut net, 1, 2)?;
            for _ in 0..machine::rounds(10, 1000) {
                for slot in 1..4u64 {
                    net.vm(n).add_memory(extra(slot << 40))?;
                    load.wait_more(20)?;
                }
                for slot in 1..4u64 {
                    net.vm(n).remove_memory(slot << 40)?;
                    load.wait_more(20)?;
                }
            }
            let outcome = load.finish(&mut net)?;
            let missing = outcome.sent - outcome.tally.frames;
            let named = net.drops("vm2", "not-connected")?;
            check!(
                missing == named && (n == 2 || missing == 0),
                "while the memory of guest {n} changed {missing} frames of {} went missing, {named} by name",
                outcome.sent
            );
            net.close_books()?;
        }
    }
    Ok(())
}

fn guests_come_and_go(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let load = Load::start(&mut net, 2, 3)?;
    for n in 0..machine::rounds(50, 2000) {
        // Something is always on the way when it goes.
        for i in 0..20 {
            net.vm(1).send(&numbered(mac(1), mac(1), i))?;
        }
        match n % 3 {
            0 => net.vm(1).kill(),
            1 => net.vm(1).disconnect()?,
            _ => net.vm(1).reboot()?,
        }
        if n % 3 != 2 {
            net.vm(1).reconnect()?;
        }
        net.switch.wait_up("vm1", SOON)?;
        load.wait_more(20)?;
        net.drain(1)?;
    }
    load.finish_whole(&mut net)?;
    net.switch.accounted().map(drop)
}

/// Guest 4 sends many flows to guest 2, as fast as it can, while guest 2 switches its queue pairs on and off and sends on
/// all of them; guests 1 and 3 talk.
fn queue_pairs_on_and_off_under_load(dir: &RunDir) -> Result<()> {
    let config = format!("{THREE}  vm4: {{ vhost-user: {{ socket: $RUN/vm4.sock }} }}\n")
        .replace("vm2.sock", "vm2.sock, queue-pairs: 4");
    let mut net = Net::with(dir, &config, 4, |n, b| if n == 2 { b.pairs(4) } else { b })?;
    net.introduce()?;
    let bystanders = Load::start(&mut net, 1, 3)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut pair = net.vm(4).take_queue(0)?;
    let mut flood = Generator::new(Pattern::new(mac(2), mac(4), 60).flows(64), &mut pair.tx)?;
    let stopped = Arc::clone(&stop);
    let flooding = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            flood.burst(&mut pair.tx, 16)?;
            std::thread::yield_now();
        }
        pair.tx.drain(SOON)?;
        Ok::<_, DeviceFault>((pair, flood.sent()))
    });
    let until = Instant::now() + Duration::from_secs(u64::from(machine::rounds(3, 60)));
    let (mut used, mut disabled) = ([0u64; 4], 0);
    for round in 0u16..u16::MAX {
        // On a slow machine until all of them were used.
        let enough = used.iter().all(|frames| *frames > 0);
        if Instant::now() > until + if enough { Duration::ZERO } else { SOON } {
            break;
        }
        let enabled = 1 + round % 4 * 3 % 4;
        net.vm(2).enable_pairs(enabled)?;
        disabled += 4 - u64::from(enabled);
        for n in 0..4 {
            let frame = numbered(mac(4), mac(2), u32::from(n));
            net.vm(2).queue(n)?.tx.send(&frame)?;
        }
        net.drain(2)?;
        for frame in net.received(2)? {
            used[usize::from(frame.pair)] += 1;
        }
        bystanders.wait_more(5)?;
    }
    stop.store(true, Ordering::Relaxed);
    let Ok(flooded) = flooding.join() else {
        return Err(Error::Failed("the flooding thread panicked".into()));
    };
    let (pair, _) = flooded?;
    net.vm(4).give_queue(pair);
    bystanders.finish_whole(&mut net)?;
    check!(
        used.iter().all(|frames| *frames > 0),
        "the pairs of guest 2 got {used:?} frames"
    );
    let dropped = net.drops("vm2", "queue-disabled")?;
    check!(
        dropped == disabled,
        "{disabled} frames were sent on disabled pairs, {dropped} are counted"
    );
    net.close_books()
}

/// The receiver stops and starts under load: frames may be lost, by name, and none comes damaged, late or twice.
fn stops_and_reboots_of_the_other_end(dir: &RunDir) -> Result<()> {
    let mut net = Net::new(dir, THREE, 3)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    for n in 0..machine::rounds(20, 500) {
        load.wait_more(100)?;
        if n % 2 == 0 {
            net.vm(2).kill();
            net.vm(2).reconnect()?;
        } else {
            net.vm(1).kill();
            net.vm(1).reconnect()?;
        }
        net.switch.wait_up("vm1", SOON)?;
        net.switch.wait_up("vm2", SOON)?;
    }
    load.wait_more(100)?;
    let outcome = load.finish(&mut net)?;
    let counters = net.switch.accounted()?;
    let lost = counters.ports["vm2"].tx.drops["not-connected"];
    check!(
        outcome.sent - outcome.tally.frames == lost,
        "{} frames are missing, {lost} were dropped while nobody was connected",
        outcome.sent - outcome.tally.frames
    );
    Ok(())
}
