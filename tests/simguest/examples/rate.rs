//! How fast the driver's load path is by itself: one thread generates and meters, one thread moves with a single copy
//! and no switching. Arguments: frame bytes, flows, seconds, 1 for packed rings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vswitch_simguest::driver::{DeviceFault, Notifier, RxOptions, RxQueue, TxOptions, TxQueue};
use vswitch_simguest::features::virtio::{MRG_RXBUF, RING_PACKED, VERSION_1};
use vswitch_simguest::memory::{Layout, Memory};
use vswitch_simguest::mover::Mover;
use vswitch_simguest::traffic::{Generator, Meter, Pattern};

/// Frames sent, moved or received at once.
const BURST: u16 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u32>());
    let mut next = |default| args.next().unwrap_or(Ok(default));
    let (len, flows, seconds) = (next(64)? as usize, next(1)?, next(3)?);
    let packed = if next(0)? == 0 { 0 } else { RING_PACKED };
    let features = VERSION_1 | MRG_RXBUF | packed;
    let memory = || Memory::new(&Layout::single(16 << 20).huge_if_free());
    let (a, b) = (memory()?, memory()?);
    let tx = TxOptions {
        size: 1024,
        ..TxOptions::default()
    };
    let rx = RxOptions {
        size: 1024,
        ..RxOptions::default()
    };
    let mut tx = TxQueue::new(&a, Notifier::new()?, features, &tx)?;
    let mut rx = RxQueue::new(&b, Notifier::new()?, features, &rx)?;
    let mut mover = Mover::new((&a, &tx, features), (&b, &rx, features));
    let pattern = Pattern::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], len).flows(flows);
    let mut generator = Generator::new(pattern.clone(), &mut tx)?;
    let mut meter = Meter::new(&pattern);

    // The driver alone: the device works on the same thread, outside the measured spans. The shortest round counts,
    // because other load on the machine can only lengthen one.
    let (mut send, mut receive, mut middle) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..2000 {
        let (mut sent, mut received) = (0u32, 0u32);
        let start = Instant::now();
        for _ in 0..15 {
            sent += u32::from(generator.burst(&mut tx, BURST)?);
        }
        send = send.min(start.elapsed().as_nanos() as f64 / f64::from(sent));
        let start = Instant::now();
        while mover.run(BURST) > 0 {}
        middle = middle.min(start.elapsed().as_nanos() as f64 / f64::from(sent));
        let start = Instant::now();
        while received < sent {
            received += u32::from(meter.burst(&mut rx, BURST)?);
        }
        receive = receive.min(start.elapsed().as_nanos() as f64 / f64::from(sent));
    }
    println!(
        "on one CPU: {send:.1} ns to send a frame, {middle:.1} to move it, {receive:.1} to receive it"
    );

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            pin(1);
            while !stop.load(Ordering::Relaxed) {
                if mover.run(BURST) == 0 {
                    std::hint::spin_loop();
                }
            }
        });
        pin(0);
        let (mut rates, mut result) = (Vec::new(), Ok(()));
        let (mut idle, mut turns) = (0u64, 0u64);
        for _ in 0..seconds * 500 {
            let (before, start) = (meter.tally().frames, Instant::now());
            while start.elapsed() < Duration::from_millis(2) && result.is_ok() {
                for _ in 0..16 {
                    result = turn(&mut generator, &mut meter, &mut tx, &mut rx).map(|moved| {
                        idle += u64::from(!moved);
                        turns += 1;
                    });
                }
            }
            let frames = (meter.tally().frames - before) as f64;
            rates.push(frames / start.elapsed().as_secs_f64() / 1e6);
        }
        stop.store(true, Ordering::Relaxed);
        let _ = mover.join();
        rates.sort_by(f64::total_cmp);
        if let (Some(median), Some(best)) = (
            rates.get(rates.len() / 2),
            rates.get(rates.len() * 95 / 100),
        ) {
            let tally = meter.tally();
            println!(
                "through the mover: {median:.1} Mpps median, {best:.1} at the 95th percentile of 2 ms slices, the driver idle in {:.0} % of its turns, {tally:?}",
                100.0 * idle as f64 / turns as f64
            );
        }
        result
    })?;
    Ok(())
}

/// Sends and receives a burst, if there is one; returns whether there was.
#[inline]
fn turn(
    generator: &mut Generator,
    meter: &mut Meter,
    tx: &mut TxQueue,
    rx: &mut RxQueue,
) -> Result<bool, DeviceFault> {
    rx.fetch()?;
    let sent = if tx.has_room(BURST)? {
        generator.burst(tx, BURST)?
    } else {
        0
    };
    Ok(sent + meter.burst(rx, BURST)? > 0)
}

/// Ties this thread to the `nth` CPU it may run on; left alone both threads may share one and take turns.
fn pin(nth: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    if let Some(cpu) = (0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .nth(nth)
    {
        let mut one = CpuSet::new();
        one.set(cpu);
        if let Err(e) = sched_setaffinity(None, &one) {
            eprintln!("cannot pin a thread to CPU {cpu}: {e}");
        }
    }
}
