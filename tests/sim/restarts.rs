//! The switch restarted under running guests, again and again: they resume where they were.

use std::time::{Duration, Instant};

use vswitch_simguest::SimGuest;
use vswitch_simguest::features::virtio::RING_PACKED;
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, machine};

use crate::setup::{BROADCAST, SOON, mac, numbered};

cases!("restarts":
    guests_survive_restarts_of_the_switch,
    guests_with_packed_rings_survive_them_too,
);

/// One guest in each socket role.
const CONFIG: &str = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock, mode: client } }
";

/// Frames that are on the way when the switch goes.
const IN_FLIGHT: u32 = 50;

/// SIGKILL and SIGTERM by turns. Frames that were on the way may be lost, or come twice after a kill (the switch had not
/// said that it was done with them); none comes damaged, and after the restart all arrive, once and in order.
fn guests_survive_restarts_of_the_switch(dir: &RunDir) -> Result<()> {
    restart(dir, 0)
}

fn guests_with_packed_rings_survive_them_too(dir: &RunDir) -> Result<()> {
    restart(dir, RING_PACKED)
}

fn restart(dir: &RunDir, layout: u64) -> Result<()> {
    let rounds = machine::rounds(30, 1000);
    let mut switch = Switch::start(dir, CONFIG)?;
    let mut guests = [
        SimGuest::connect_to(dir.join("vm1.sock"))
            .mac(mac(1))
            .with(layout)
            .start()?,
        SimGuest::listen_on(dir.join("vm2.sock"))
            .mac(mac(2))
            .with(layout)
            .start()?,
    ];
    check!(
        guests
            .iter()
            .all(|guest| guest.is_packed() == (layout != 0)),
        "the guests have other rings than they should"
    );
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    for round in 0..rounds {
        for port in ["vm1", "vm2"] {
            switch.wait_up(port, SOON)?;
        }
        for (from, src) in [mac(1), mac(2)].into_iter().enumerate() {
            let first = round * 1000;
            // What was on the way when the switch went, sooner or later, and then the mark.
            guests[from].send(&numbered(BROADCAST, src, first))?;
            let mark = numbered(BROADCAST, src, first);
            loop {
                let Some(frame) = guests[1 - from].recv(SOON)? else {
                    return Err(Error::Failed(format!(
                        "after restart {round} nothing comes from vm{}",
                        from + 1
                    )));
                };
                if frame.bytes == mark {
                    break;
                }
                let number = frame
                    .bytes
                    .get(14..18)
                    .and_then(|b| b.first_chunk())
                    .map_or(0, |b| u32::from_be_bytes(*b));
                let old = first.saturating_sub(1000) + 100;
                check!(
                    (old..old + IN_FLIGHT).contains(&number)
                        && frame.bytes == numbered(BROADCAST, src, number),
                    "after restart {round} a damaged or old frame came: {}",
                    crate::setup::hex(&frame.bytes)
                );
            }
            for n in 1..50 {
                guests[from].send(&numbered(BROADCAST, src, first + n))?;
            }
            for n in 1..50 {
                let got = guests[1 - from].recv(SOON)?.map(|f| f.bytes);
                check!(
                    got == Some(numbered(BROADCAST, src, first + n)),
                    "after restart {round} frame {n} from vm{} did not come in its turn",
                    from + 1
                );
            }
            check!(
                guests[from].drain(SOON)?,
                "a buffer did not come back after restart {round}"
            );
        }
        switch.accounted()?;
        for guest in &mut guests {
            for n in 0..IN_FLIGHT {
                let frame = numbered(BROADCAST, guest.mac(), round * 1000 + 100 + n);
                guest.send(&frame)?;
            }
        }
        let gone = Instant::now();
        if round % 2 == 0 {
            switch.kill();
        } else {
            switch.stop();
        }
        switch.start_again()?;
        for guest in &mut guests {
            guest.reconnect()?;
        }
        slowest = slowest.max(gone.elapsed());
        if (round + 1) % 100 == 0 || round + 1 == rounds {
            eprintln!(
                "restarted {} times in {:.0} s, guests back after at most {slowest:.1?}",
                round + 1,
                started.elapsed().as_secs_f32()
            );
        }
    }
    for port in ["vm1", "vm2"] {
        switch.wait_up(port, SOON)?;
    }
    switch.accounted().map(drop)
}
