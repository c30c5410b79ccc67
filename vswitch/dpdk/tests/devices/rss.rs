//! Receive side scaling and receive interrupts, by what the virtual drivers have of them.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vswitch_dpdk::{MbufBurst, PortConfig, RssKey, RxQueue, StartedPort, Stock, Wake};
use vswitch_flowtable::toeplitz::{SYMMETRIC_KEY, Toeplitz, reta_index};
use vswitch_flowtable::{Addresses, FlowKey};

use crate::{Outcome, build, bytes, frame, receive, setup, start};

fn queues(n: u16) -> PortConfig {
    PortConfig {
        rx_queues: n,
        tx_queues: n,
        rss: Some(RssKey(SYMMETRIC_KEY)),
        ..PortConfig::default()
    }
}

/// The driver without a device takes key and table, and gives them back.
pub(crate) fn null_takes_key_and_table() -> Outcome {
    let started = start("net_null1", &queues(4))?;
    let rss = started.port.rss().ok_or("no spreading")?;
    let names: Vec<_> = rss.types.names().collect();
    println!("{} entries, {names:?}", rss.reta_size);
    assert!(rss.own_key && names.contains(&"ipv4-tcp") && names.contains(&"ipv6-udp"));
    assert!(started.port.capabilities().rx.rss);

    let reta = started.port.reta().ok_or("no table")?;
    assert_eq!((reta.size(), reta.queues()), (128, 4));
    let all: Vec<_> = (0..128).map(|entry| (entry, entry % 4)).collect();
    reta.write(&all)?;
    assert_eq!(
        reta.read()?,
        all.iter().map(|(_, q)| *q).collect::<Vec<_>>()
    );
    // Entries of either group, one twice; the others stay.
    reta.write(&[(0, 3), (63, 1), (64, 2), (127, 3), (127, 0)])?;
    let read = reta.read()?;
    let changed = (0..128_u16).filter(|&e| read[usize::from(e)] != e % 4);
    assert_eq!(changed.collect::<Vec<_>>(), [0, 63, 64, 127]);
    assert_eq!((read[0], read[63], read[64], read[127]), (3, 1, 2, 0));
    for outside in [(128, 0), (0, 4)] {
        let error = reta.write(&[outside]).err().ok_or("outside")?.to_string();
        assert!(error.contains("redirection table"), "{error}");
    }
    assert_eq!(reta.read()?, read);

    // Hash and table as read say where a flow goes, and its other direction goes there, too.
    let rss = Toeplitz::new(SYMMETRIC_KEY);
    let mut seen = [0; 4];
    for n in 0..1000_u16 {
        let [high, low] = n.to_be_bytes();
        let flow = FlowKey {
            vlan: 0,
            addresses: Addresses::V4 {
                src: [10, 0, high, low],
                dst: [192, 168, low, 1],
            },
            protocol: 6,
            ports: Some((1024 + n, 80)),
        };
        let queue = |flow: &FlowKey| {
            let entry = reta_index(rss.flow(flow).unwrap(), reta.size());
            read[usize::from(entry)]
        };
        assert_eq!(queue(&flow), queue(&flow.reversed()));
        seen[usize::from(queue(&flow))] += 1;
    }
    assert!(seen.iter().all(|n| *n > 150), "{seen:?}");

    // The table keeps the device, the port does not keep it from closing.
    drop(started);
    assert_eq!(reta.read()?, read);
    drop(reta);
    drop(start("net_null1", &PortConfig::default())?);
    Ok(None)
}

/// Drivers without hash or table start as before, and say that they have none.
pub(crate) fn drivers_without_it_start_all_the_same() -> Outcome {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("guest");
    for (device, n, spreads) in [
        ("net_ring7".to_owned(), 4, false),
        (
            format!("net_vhost7,iface={},queues=2", socket.display()),
            2,
            false,
        ),
        ("net_null1,no-rx=1".to_owned(), 1, false),
    ] {
        let started = start(&device, &queues(n))?;
        let port = &started.port;
        println!("{device}: {:?}, wakes {:?}", port.rss(), port.wakes());
        assert_eq!(port.rss().is_some(), spreads, "{device}");
        assert_eq!(port.reta().is_some(), spreads, "{device}");
        assert!(!port.capabilities().rx.rss);
        assert_eq!(port.wakes().len(), usize::from(n));
    }
    // A key is not asked for.
    let started = start(
        "net_null1",
        &PortConfig {
            rss: None,
            ..queues(4)
        },
    )?;
    assert!(started.port.rss().is_none() && started.port.reta().is_none());
    Ok(None)
}

/// More than anything here may take, on a machine with other things to do.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a queue to wake us; false if it does not within this time.
fn woken(rx: &RxQueue, within: Duration) -> bool {
    let Some(fd) = rx.wake_fd() else { return false };
    let within = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    // A signal for the driver is not what is waited for.
    loop {
        match poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&within),
        ) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|n| n > 0),
        }
    }
}

/// A virtio device of DPDK's whose other side is another device of the same process.
pub(crate) fn virtio_wakes_by_interrupt() -> Outcome {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("guest");
    let vhost = format!("net_vhost8,iface={},queues=2", socket.display());
    let mut host = start(&vhost, &queues(2))?;
    let guest = format!("net_virtio_user8,path={},queues=2", socket.display());
    let mut guest = match start(&guest, &queues(2)) {
        Ok(guest) => guest,
        Err(error) => return Ok(Some(error.to_string())),
    };
    println!("{:?}, wakes {:?}", guest.port.rss(), guest.port.wakes());
    let until = Instant::now() + LIMIT;
    while !host.port.link()?.up && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(guest.port.wakes(), [Wake::Interrupt; 2]);
    assert_eq!(host.port.wakes(), [Wake::None; 2]);
    exchange(&mut host, &mut guest);
    Ok(None)
}

fn exchange(host: &mut StartedPort, guest: &mut StartedPort) {
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    for queue in 0..2 {
        let rx = &mut guest.rx[queue];
        for seed in 0..3 {
            while rx.rx_burst(&mut burst) > 0 {
                burst.clear();
            }
            assert!(rx.arm());
            assert_eq!(rx.rx_burst(&mut burst), 0, "the second look");
            let wanted = frame(100, seed);
            burst.push(build(&mut stock, &wanted)).unwrap();
            // The link is up a moment before all queues are.
            let since = Instant::now();
            while host.tx[queue].tx_burst(&mut burst).sent == 0 {
                assert!(since.elapsed() < LIMIT, "queue {queue}");
                std::thread::sleep(Duration::from_millis(5));
                burst.clear();
                burst.push(build(&mut stock, &wanted)).unwrap();
            }
            assert!(woken(rx, LIMIT), "queue {queue} did not wake");
            rx.disarm();
            assert_eq!(receive(rx, &mut burst, 1), 1);
            assert!(bytes(&burst[0]) == wanted);
            burst.clear();
        }
    }
}
