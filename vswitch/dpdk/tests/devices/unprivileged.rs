//! Drivers and machinery that need no privilege.

use std::fs;
use std::sync::Barrier;
use std::thread;

use vswitch_dpdk::{
    BURST, Checksum, Demand, Device, Eal, EalConfig, EalError, FrameError, MbufBurst, Mempool,
    MempoolConfig, MempoolError, PortConfig, PortError, Stock, ThreadError, ThreadGuard, Wake,
};

use crate::{Outcome, build, bytes, frame, receive, setup, start};

pub(crate) fn eal_starts_once() -> Outcome {
    setup();
    let second = Eal::init(&EalConfig::default());
    assert!(
        matches!(second, Err(EalError::AlreadyStarted)),
        "{second:?}"
    );
    Ok(None)
}

pub(crate) fn threads_are_registered_once() -> Outcome {
    let eal = setup().eal;
    assert!(matches!(
        ThreadGuard::register(eal),
        Err(ThreadError::Known)
    ));
    // More than there are places, unless each guard gives its place back.
    for _ in 0..300 {
        let worker = thread::spawn(move || {
            let guard = ThreadGuard::register(eal).unwrap();
            assert!(matches!(
                ThreadGuard::register(eal),
                Err(ThreadError::Known)
            ));
            drop(guard);
            drop(ThreadGuard::register(eal).unwrap());
        });
        worker.join().unwrap();
    }
    Ok(None)
}

pub(crate) fn pool_hands_out_and_takes_back() -> Outcome {
    let pool = setup().pool;
    let all = pool.config().count;
    let mut bursts = Vec::new();
    loop {
        let mut burst = MbufBurst::new();
        if !pool.alloc_bulk(&mut burst) {
            assert!(burst.is_empty());
            break;
        }
        assert!(burst.is_full());
        bursts.push(burst);
    }
    assert!(bursts.len() * 32 > all as usize - 32);
    let rest: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!(bursts.len() * 32 + rest.len(), all as usize);
    assert_eq!(pool.available(), 0);
    assert_eq!(
        Stock::new(pool).frame(64, |_, room| room.len()).err(),
        Some(FrameError::NoBuffers)
    );
    Ok(None)
}

/// Threads that come after the pool was made fill their caches, and sleep. What remains has to fill a port's queues.
pub(crate) fn caches_leave_enough_for_queues() -> Outcome {
    const THREADS: u16 = 8;
    const DESCRIPTORS: u16 = 256;
    let eal = setup().eal;
    let left_of_pool_for = |threads| {
        let config = MempoolConfig::sized_for(Demand {
            rx_queues: 1,
            tx_queues: 1,
            descriptors: DESCRIPTORS,
            threads,
        });
        let pool = Mempool::new(eal, config).unwrap();
        let done = Barrier::new(usize::from(THREADS) + 1);
        let left = thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let _guard = ThreadGuard::register(eal).unwrap();
                    // As much as a cache takes, and not so much that all of it goes back.
                    let burst = || {
                        let mut burst = MbufBurst::new();
                        pool.alloc_bulk(&mut burst);
                        burst
                    };
                    let bursts: Vec<_> = (0..4).map(|_| burst()).collect();
                    drop(bursts);
                    done.wait();
                    done.wait();
                });
            }
            done.wait();
            let left: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
            let count = left.len();
            drop(left);
            done.wait();
            count
        });
        assert_eq!(pool.available(), config.count);
        left
    };
    let needed = 2 * usize::from(DESCRIPTORS) + BURST;
    let (few, enough) = (left_of_pool_for(1), left_of_pool_for(THREADS + 1));
    println!("{needed} needed; {few} left of a pool for one thread, {enough} of one for all");
    assert!(enough >= needed);
    assert!(few < needed, "the caches were not full");
    Ok(None)
}

pub(crate) fn pool_larger_than_memory() -> Outcome {
    let eal = setup().eal;
    let config = MempoolConfig {
        count: 1 << 20,
        ..MempoolConfig::default()
    };
    let error = Mempool::new(eal, config)
        .err()
        .ok_or("a pool of 2.4 GiB in 64 MiB")?;
    let text = error.to_string();
    assert!(
        text.contains("Cannot allocate memory") && text.contains("1048576"),
        "{text}"
    );

    let config = MempoolConfig {
        data_room: u16::MAX,
        ..MempoolConfig::default()
    };
    assert!(matches!(
        Mempool::new(eal, config),
        Err(MempoolError::Config { .. })
    ));
    let config = MempoolConfig {
        count: 1,
        ..MempoolConfig::default()
    };
    assert!(matches!(
        Mempool::new(eal, config),
        Err(MempoolError::Config { .. })
    ));
    Ok(None)
}

pub(crate) fn buffers_grow_shrink_and_chain() -> Outcome {
    let pool = setup().pool;
    let mut mbuf = pool.alloc().unwrap();
    assert_eq!(
        (mbuf.len(), mbuf.segment_count(), mbuf.data().len()),
        (0, 1, 0)
    );
    assert_eq!(
        (mbuf.l4_checksum(), mbuf.rss_hash()),
        (Checksum::Unknown, None)
    );
    mbuf.append(3).unwrap().copy_from_slice(b"def");
    mbuf.prepend(3).unwrap().copy_from_slice(b"abc");
    assert_eq!(mbuf.data(), b"abcdef");
    assert!(mbuf.trim_front(1));
    assert!(!mbuf.trim_front(6));
    mbuf.data_mut()[0] = b'B';
    assert_eq!(bytes(&mbuf), b"Bcdef");
    assert!(mbuf.append(2048).is_none());
    assert!(mbuf.prepend(127).is_none());
    assert_eq!(mbuf.prepend(126).map(|room| room.len()), Some(126));
    assert!(mbuf.trim_front(126));

    let mut tail = pool.alloc().unwrap();
    tail.append(2048).unwrap().fill(b'x');
    assert!(tail.append(1).is_none());
    mbuf.chain(tail).unwrap();
    mbuf.chain(pool.alloc().unwrap()).unwrap();
    mbuf.append(2).unwrap().copy_from_slice(b"yz");
    assert_eq!((mbuf.len(), mbuf.segment_count()), (5 + 2048 + 2, 3));
    let all = bytes(&mbuf);
    assert_eq!(all.len(), 2055);
    assert!(all.starts_with(b"Bcdefx") && all.ends_with(b"xyz"));
    Ok(None)
}

pub(crate) fn bursts_keep_order() -> Outcome {
    let pool = setup().pool;
    let mut burst = MbufBurst::new();
    let mut stock = Stock::new(pool);
    for i in 0..32 {
        burst.push(build(&mut stock, &[i])).unwrap();
    }
    assert!(burst.push(pool.alloc().unwrap()).is_err());
    let order = |burst: &MbufBurst| burst.iter().map(|m| m.data()[0]).collect::<Vec<u8>>();
    assert_eq!(order(&burst), (0..32).collect::<Vec<u8>>());
    assert_eq!(burst.remove(3).unwrap().data(), [3]);
    assert!(burst.remove(31).is_none());
    assert!(burst.remove(99).is_none());
    assert_eq!(burst.remove(30).unwrap().data(), [31]);
    assert_eq!(burst.pop().unwrap().data(), [30]);
    let mut drained: Vec<u8> = burst.drain().take(2).map(|m| m.data()[0]).collect();
    drained.extend(burst.drain().map(|m| m.data()[0]));
    drained.sort_unstable();
    assert_eq!(drained, (0..30).filter(|i| *i != 3).collect::<Vec<u8>>());
    assert!(burst.is_empty() && burst.pop().is_none());
    Ok(None)
}

pub(crate) fn stock_builds_frames() -> Outcome {
    let pool = setup().pool;
    let mut stock = Stock::new(pool);
    for len in [0, 1, 60, 2047, 2048, 2049, 4096, 9018, 65_553] {
        let wanted = frame(len, 7);
        let mbuf = build(&mut stock, &wanted);
        assert_eq!(mbuf.len() as usize, len);
        assert_eq!(usize::from(mbuf.segment_count()), len.div_ceil(2048).max(1));
        assert!(bytes(&mbuf) == wanted, "{len}");
    }
    let all = |_, room: &mut [u8]| room.len();
    assert_eq!(stock.frame(65_554, all).err(), Some(FrameError::TooLarge));
    let short = |at, room: &mut [u8]| if at == 0 { room.len() } else { room.len() - 1 };
    assert_eq!(stock.frame(5000, short).err(), Some(FrameError::Short));
    Ok(None)
}

pub(crate) fn null_receives_and_counts() -> Outcome {
    let mut started = start("net_null0,size=100", &PortConfig::default())?;
    let mut burst = MbufBurst::new();
    assert_eq!(started.rx[0].rx_burst(&mut burst), 32);
    assert!(
        burst
            .iter()
            .all(|m| m.len() == 100 && m.data().len() == 100)
    );
    assert_eq!(started.rx[0].rx_burst(&mut burst), 0);
    let outcome = started.tx[0].tx_burst(&mut burst);
    assert_eq!((outcome.sent, outcome.refused, burst.len()), (32, 0, 0));
    // Its driver sends at once; if it can tell, then so.
    assert_ne!(started.tx[0].is_drained(), Some(false));
    let stats = started.port.stats()?;
    assert_eq!((stats.rx_frames, stats.tx_frames), (32, 32));
    assert_eq!(started.port.capabilities().driver, "net_null");
    assert!(started.port.link()?.up);
    assert_eq!(started.port.wakes(), [Wake::None]);
    assert_eq!(started.port.rss(), None);
    Ok(None)
}

pub(crate) fn null_frames_larger_than_buffers() -> Outcome {
    for size in ["2049", "9000", "0xffff"] {
        let error = start(&format!("net_null0,size={size}"), &PortConfig::default());
        assert!(
            matches!(error, Err(PortError::DataRoom { .. })),
            "{error:?}"
        );
    }
    drop(start("net_null0,size=2048", &PortConfig::default())?);
    Ok(None)
}

pub(crate) fn ring_gives_frames_back() -> Outcome {
    let config = PortConfig {
        rx_queues: 4,
        tx_queues: 4,
        ..PortConfig::default()
    };
    let mut started = start("net_ring0", &config)?;
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    for queue in 0..4 {
        for len in [60, 1514, 9018] {
            burst.push(build(&mut stock, &frame(len, queue))).unwrap();
        }
        let tx = &mut started.tx[usize::from(queue)];
        assert_eq!(tx.tx_burst(&mut burst).sent, 3);
        assert_eq!(tx.id().0, u16::from(queue));
    }
    for queue in 0..4 {
        assert_eq!(started.rx[usize::from(queue)].rx_burst(&mut burst), 3);
        for (mbuf, len) in burst.iter().zip([60, 1514, 9018]) {
            assert!(bytes(mbuf) == frame(len, queue));
        }
        burst.clear();
    }
    Ok(None)
}

pub(crate) fn ring_queues_on_two_threads() -> Outcome {
    const FRAMES: u32 = 100_000;
    let eal = setup().eal;
    let mut started = start("net_ring1", &PortConfig::default())?;
    let (mut rx, mut tx) = (started.rx.remove(0), started.tx.remove(0));
    let sender = thread::spawn(move || {
        let _guard = ThreadGuard::register(eal).unwrap();
        let mut stock = Stock::new(setup().pool);
        let mut burst = MbufBurst::new();
        let mut number = 0_u32;
        while number < FRAMES || !burst.is_empty() {
            while number < FRAMES && !burst.is_full() {
                let write = |_, room: &mut [u8]| {
                    room.copy_from_slice(&number.to_be_bytes());
                    4
                };
                match stock.frame(4, write) {
                    Ok(mbuf) => burst.push(mbuf).unwrap(),
                    Err(_) => break,
                }
                number += 1;
            }
            tx.tx_burst(&mut burst);
        }
    });
    let receiver = thread::spawn(move || {
        let _guard = ThreadGuard::register(eal).unwrap();
        let mut burst = MbufBurst::new();
        let mut wanted = 0_u32;
        while wanted < FRAMES {
            rx.rx_burst(&mut burst);
            for mbuf in burst.drain() {
                assert_eq!(mbuf.data(), wanted.to_be_bytes());
                wanted += 1;
            }
        }
    });
    sender.join().map_err(|_| "the sender failed")?;
    receiver.join().map_err(|_| "the receiver failed")?;
    Ok(None)
}

pub(crate) fn ring_full_leaves_the_rest() -> Outcome {
    let mut started = start("net_ring2", &PortConfig::default())?;
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    let mut sent = 0_u32;
    loop {
        while !burst.is_full() {
            let number = sent + burst.len() as u32;
            burst
                .push(build(&mut stock, &number.to_be_bytes()))
                .unwrap();
        }
        let n = started.tx[0].tx_burst(&mut burst).sent;
        sent += n as u32;
        if n < 32 {
            break;
        }
    }
    assert!((1000..4096).contains(&sent), "{sent}");
    // What is left is in order, and goes out next.
    assert_eq!(burst[0].data(), sent.to_be_bytes());
    let (mut received, mut wanted) = (MbufBurst::new(), 0_u32);
    while started.rx[0].rx_burst(&mut received) > 0 {
        for mbuf in received.drain() {
            assert_eq!(mbuf.data(), wanted.to_be_bytes());
            wanted += 1;
        }
        started.tx[0].tx_burst(&mut burst);
    }
    assert!(burst.is_empty());
    assert!(wanted > sent);
    Ok(None)
}

pub(crate) fn ring_frames_left_behind() -> Outcome {
    let config = PortConfig {
        rx_queues: 2,
        tx_queues: 2,
        ..PortConfig::default()
    };
    let mut started = start("net_ring3", &config)?;
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    for _ in 0..20 {
        for tx in &mut started.tx {
            while burst.push(build(&mut stock, b"frame")).is_ok() {}
            tx.tx_burst(&mut burst);
        }
    }
    // Kept longer than the port: the device stays for as long as a queue does.
    let mut rx = started.rx.pop().unwrap();
    drop(started);
    burst.clear();
    assert_eq!(rx.rx_burst(&mut burst), 32);
    Ok(None)
}

pub(crate) fn pcap_writes_and_reads_files() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("frames.pcap");
    let mut stock = Stock::new(setup().pool);
    let mut burst = MbufBurst::new();
    let lengths = [60, 128, 1514, 9018];
    for (i, &len) in lengths.iter().enumerate() {
        burst.push(build(&mut stock, &frame(len, i as u8))).unwrap();
    }
    let mut writer = start(
        &format!("net_pcap0,tx_pcap={}", file.display()),
        &PortConfig::default(),
    )?;
    assert_eq!(writer.tx[0].tx_burst(&mut burst).sent, lengths.len());
    drop(writer);
    // File header, and 16 bytes in front of each frame.
    let size = 24 + lengths.iter().map(|len| 16 + len).sum::<usize>();
    assert_eq!(fs::metadata(&file)?.len(), size as u64);

    let config = PortConfig {
        mtu: 9000,
        ..PortConfig::default()
    };
    let mut reader = start(&format!("net_pcap0,rx_pcap={}", file.display()), &config)?;
    assert_eq!(
        receive(&mut reader.rx[0], &mut burst, lengths.len()),
        lengths.len()
    );
    for (i, (mbuf, len)) in burst.iter().zip(lengths).enumerate() {
        assert!(bytes(mbuf) == frame(len, i as u8), "frame {i}");
    }
    assert_eq!(burst[3].segment_count(), 5);
    assert_eq!(reader.port.stats()?.rx_frames, 4);
    Ok(None)
}

pub(crate) fn attach_and_detach() -> Outcome {
    for _ in 0..100 {
        let mut started = start("net_ring4", &PortConfig::default())?;
        let mut burst = MbufBurst::new();
        setup().pool.alloc_bulk(&mut burst);
        started.tx[0].tx_burst(&mut burst);
    }
    Ok(None)
}

pub(crate) fn limits_are_named() -> Outcome {
    let config = PortConfig {
        rx_queues: 17,
        tx_queues: 1,
        ..PortConfig::default()
    };
    let error = start("net_ring5", &config).err().ok_or("17 queues of 16")?;
    assert_eq!(
        error.to_string(),
        "net_ring5 takes 1 to 16 receive queues, not 17; set the port's queues to at most 16"
    );
    let config = PortConfig {
        tx_queues: 0,
        ..PortConfig::default()
    };
    assert!(matches!(
        start("net_ring5", &config),
        Err(PortError::Queues { .. })
    ));

    let first = start("net_ring5", &PortConfig::default())?;
    let second = start("net_ring5", &PortConfig::default());
    assert!(
        matches!(second, Err(PortError::Duplicate { .. })),
        "{second:?}"
    );
    let other = start("net_ring6", &PortConfig::default())?;
    assert_ne!(first.port.id(), other.port.id());

    let pci = Device::probe(setup().eal, &"0000:00:1f.0".parse().unwrap());
    assert!(matches!(pci, Err(PortError::NeedsPci { .. })), "{pci:?}");
    Ok(None)
}

pub(crate) fn unknown_devices_are_explained() -> Outcome {
    for (device, word) in [
        ("net_nothing0", "check the name"),
        ("eth17", "known are PCI addresses"),
        ("net_pcap0,rx_pcap=/nonexistent/file", "/nonexistent/file"),
        ("net_null0,colour=green", "check the name"),
        ("net_af_packet0,iface=nonexistent9", "CAP_NET_RAW"),
    ] {
        let error = start(device, &PortConfig::default()).err().ok_or(device)?;
        let text = error.to_string();
        println!("{text}");
        assert!(text.starts_with(device) && text.contains(word), "{text}");
    }
    // Nothing half-attached is in the way of the right argument.
    drop(start("net_null0", &PortConfig::default())?);
    Ok(None)
}
