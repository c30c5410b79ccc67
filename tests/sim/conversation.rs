//! Conversations that end too early: after every message, in the middle of every message, and with silence instead of
//! an end. Whoever comes next finds the port as new, and the neighbours' traffic does not notice.

use std::time::{Duration, Instant};

use vswitch_simguest::Endpoint;
use vswitch_simguest::Role;
use vswitch_simguest::driver::{Notifier, RingParts, RxOptions, RxQueue, TxOptions, TxQueue};
use vswitch_simguest::features::{protocol, virtio};
use vswitch_simguest::frontend::{Frontend, FrontendError};
use vswitch_simguest::memory::{Layout, Memory};
use vswitch_simguest::wire::request;
use vswitch_tests::{Result, RunDir, Switch, cases, check};

use crate::load::Load;
use crate::setup::{BROADCAST, Net, SOON, THREE, mac, numbered};

cases!("conversation":
    hung_up_after_every_message,
    cut_off_within_every_message,
    half_a_message_and_silence,
    silence_does_not_delay_the_stop,
);

/// A guest's side of a session, message by message.
struct Script {
    memory: Memory,
    rings: [(RingParts, Notifier); 2],
    // The queues own the buffers that the rings name.
    _queues: (RxQueue, TxQueue),
}

/// Where the scripts' frames go: into a drop, so that the neighbours do not see them.
const LINK_LOCAL: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
/// Messages of a whole conversation, from GET_FEATURES to running rings and back.
const MESSAGES: usize = 32;

impl Script {
    fn new() -> Result<Self> {
        let memory = Memory::new(&Layout::single(4 << 20))?;
        let features = virtio::VERSION_1 | virtio::MRG_RXBUF;
        let notifier =
            || Notifier::new().map_err(vswitch_tests::Error::io("make event descriptors"));
        let rx = RxQueue::new(&memory, notifier()?, features, &RxOptions::default())?;
        let mut tx = TxQueue::new(&memory, notifier()?, features, &TxOptions::default())?;
        // Frames wait in the ring before the session begins.
        for n in 0..100 {
            tx.send(&numbered(LINK_LOCAL, mac(3), n))?;
        }
        let of =
            |ring: &vswitch_simguest::driver::Ring, n: &Notifier| (ring.parts().clone(), n.clone());
        Ok(Self {
            memory,
            rings: [of(rx.ring(), rx.notifier()), of(tx.ring(), tx.notifier())],
            _queues: (rx, tx),
        })
    }

    /// Says message `n`.
    fn say(&self, n: usize, frontend: &mut Frontend) -> Result<(), FrontendError> {
        let region = &self.memory.regions()[0];
        match n {
            0 => frontend.get_features().map(drop),
            1 => frontend.get_protocol_features().map(drop),
            2 => frontend.set_protocol_features(protocol::ALL),
            3 => frontend.get_queue_num().map(drop),
            4 => frontend.get_max_mem_slots().map(drop),
            5 => frontend.set_owner(),
            6 => frontend.get_features().map(drop),
            7 => frontend
                .set_features(virtio::VERSION_1 | virtio::MRG_RXBUF | virtio::PROTOCOL_FEATURES),
            8 => frontend.add_mem_reg(region),
            9..=22 => {
                let (parts, notifier) = &self.rings[(n - 9) / 7];
                let ring = ((n - 9) / 7) as u32;
                match (n - 9) % 7 {
                    0 => frontend.set_vring_num(ring, parts.size),
                    1 => frontend.set_vring_base(ring, 0),
                    2 => frontend.set_vring_addr(ring, parts.addresses()),
                    3 => {
                        let fd = Some(notifier.err_fd());
                        frontend.set_vring_fd(request::SET_VRING_ERR, ring, fd)
                    }
                    4 => {
                        let fd = Some(notifier.call_fd());
                        frontend.set_vring_fd(request::SET_VRING_CALL, ring, fd)
                    }
                    5 => {
                        let fd = Some(notifier.kick_fd());
                        frontend.set_vring_fd(request::SET_VRING_KICK, ring, fd)
                    }
                    _ => frontend.set_vring_enable(ring, true),
                }
            }
            23 => frontend.set_vring_enable(0, false),
            24 => frontend.set_vring_enable(0, true),
            25 => frontend.set_vring_enable(1, false),
            26 => frontend.set_vring_enable(1, true),
            27 => frontend.get_vring_base(0).map(drop),
            28 => frontend.get_vring_base(1).map(drop),
            29 => frontend.rem_mem_reg(region),
            30 => frontend.add_mem_reg(region),
            _ => frontend.set_owner(),
        }
    }

    /// Connects as guest 3 and says the first `count` messages.
    fn until(&self, dir: &RunDir, count: usize) -> Result<Frontend> {
        let mut frontend = Endpoint::new(Role::Connect(dir.join("vm3.sock")))?.open(SOON)?;
        for n in 0..count {
            self.say(n, &mut frontend).map_err(|error| {
                vswitch_tests::Error::Failed(format!("message {n} of the conversation: {error}"))
            })?;
        }
        Ok(frontend)
    }
}

/// Two neighbours under traffic; the third port is for the scripts.
fn neighbours(dir: &RunDir) -> Result<(Net<'_>, Load)> {
    let mut net = Net::new(dir, THREE, 2)?;
    net.introduce()?;
    let load = Load::start(&mut net, 1, 2)?;
    Ok((net, load))
}

fn hung_up_after_every_message(dir: &RunDir) -> Result<()> {
    let (mut net, load) = neighbours(dir)?;
    for count in 0..=MESSAGES {
        drop(Script::new()?.until(dir, count)?);
        load.wait_more(50)?;
    }
    whole_again(&mut net, load)
}

fn whole_again(net: &mut Net<'_>, load: Load) -> Result<()> {
    load.finish_whole(net)?;
    net.add(|builder| builder)?;
    net.reaches(3, &numbered(mac(1), mac(3), 1), &[1])?;
    net.reaches(1, &numbered(BROADCAST, mac(1), 2), &[2, 3])?;
    net.switch.accounted().map(drop)
}

fn cut_off_within_every_message(dir: &RunDir) -> Result<()> {
    let (mut net, load) = neighbours(dir)?;
    for count in 0..=MESSAGES {
        for bytes in [1, 11, 12, 15] {
            let frontend = Script::new()?.until(dir, count)?;
            let message = half_message();
            frontend.send_raw(&message[..bytes], &[])?;
        }
        load.wait_more(50)?;
    }
    whole_again(&mut net, load)
}

/// SET_VRING_NUM: twelve bytes of header, eight of payload.
fn half_message() -> Vec<u8> {
    let mut message = vswitch_simguest::wire::Header::new(request::SET_VRING_NUM, 8)
        .to_bytes()
        .to_vec();
    message.extend_from_slice(&[0; 8]);
    message
}

fn half_a_message_and_silence(dir: &RunDir) -> Result<()> {
    let (mut net, load) = neighbours(dir)?;
    for count in [0, 7, 20, 23] {
        let frontend = Script::new()?.until(dir, count)?;
        frontend.send_raw(&half_message()[..13], &[])?;
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(500) {
            load.wait_more(100)?;
        }
        check!(
            net.switch.show()?.ports.len() == 3,
            "the switch does not answer while a front-end is silent"
        );
        drop(frontend);
    }
    whole_again(&mut net, load)
}

fn silence_does_not_delay_the_stop(dir: &RunDir) -> Result<()> {
    for count in [0, 8, 23] {
        let mut switch = Switch::start(dir, THREE)?;
        let frontend = Script::new()?.until(dir, count)?;
        frontend.send_raw(&half_message()[..5], &[])?;
        let started = Instant::now();
        switch.stop();
        let took = started.elapsed();
        check!(
            took < Duration::from_secs(4),
            "the switch took {took:?} to stop while a front-end was silent"
        );
        check!(
            frontend.wait_closed(SOON),
            "the stopped switch left a connection open"
        );
    }
    Ok(())
}
