//! A switch with simulated guests on it, and the few moves that tests are made of.
//!
//! Guest `n` (from 1) sits on port `vmN` at `$RUN/vmN.sock` and has the address [`mac`]`(n)`. The switch gives a
//! transmitted buffer back after the frame is in its receivers' rings, so once a sender's ring has drained, what a
//! receiver has not got does not come any more: nothing here waits to see that nothing happens.

use std::time::Duration;

use vswitch_api::rpc::{Counters, FdbEntry, FdbFilter, methods};
use vswitch_simguest::frames::{EXPERIMENTAL, Eth, ethernet};
use vswitch_simguest::{Builder, Frame, SimGuest};
use vswitch_tests::{Error, Result, RunDir, Switch, check};

/// More than anything here may take, on a slow machine with other things to do. Every such wait ends when what is waited
/// for is there, so only a failure takes so long.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Three untagged ports on a bridge.
pub(crate) const THREE: &str = "\
bridges: { br0: { } }
ports:
  vm1: { vhost-user: { socket: $RUN/vm1.sock } }
  vm2: { vhost-user: { socket: $RUN/vm2.sock } }
  vm3: { vhost-user: { socket: $RUN/vm3.sock } }
";

/// The address of guest `n`.
pub(crate) fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

/// An address nobody has.
pub(crate) const NOBODY: [u8; 6] = [0x52, 0x54, 0, 0xff, 0xff, 0xff];
/// Everybody.
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame of 60 bytes that no other number has.
pub(crate) fn numbered(dst: [u8; 6], src: [u8; 6], number: u32) -> Vec<u8> {
    numbered_on(&Eth::new(dst, src), number)
}

/// The same with tags.
pub(crate) fn numbered_on(eth: &Eth, number: u32) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(46, number as u8);
    ethernet(eth, EXPERIMENTAL, &body)
}

/// A switch and guests on its first ports.
#[derive(Debug)]
pub(crate) struct Net<'d> {
    pub(crate) switch: Switch<'d>,
    pub(crate) guests: Vec<SimGuest>,
    dir: &'d RunDir,
}

impl<'d> Net<'d> {
    /// With `guests` guests as they come.
    pub(crate) fn new(dir: &'d RunDir, config: &str, guests: u8) -> Result<Self> {
        Self::with(dir, config, guests, |_, builder| builder)
    }

    /// With guests as `build` makes them.
    pub(crate) fn with(
        dir: &'d RunDir,
        config: &str,
        guests: u8,
        build: impl Fn(u8, Builder) -> Builder,
    ) -> Result<Self> {
        let switch = Switch::start(dir, config)?;
        let mut net = Self {
            switch,
            guests: Vec::new(),
            dir,
        };
        for n in 1..=guests {
            let guest = build(n, builder(dir, n)).start()?;
            net.switch.wait_up(&port(n), SOON)?;
            net.guests.push(guest);
        }
        Ok(net)
    }

    /// Another guest, on the next port.
    pub(crate) fn add(&mut self, build: impl Fn(Builder) -> Builder) -> Result<u8> {
        let n = self.guests.len() as u8 + 1;
        self.guests.push(build(builder(self.dir, n)).start()?);
        self.switch.wait_up(&port(n), SOON)?;
        Ok(n)
    }

    /// Guest `n`.
    pub(crate) fn vm(&mut self, n: u8) -> &mut SimGuest {
        &mut self.guests[usize::from(n) - 1]
    }

    /// Sends a frame and waits until the switch is done with it.
    pub(crate) fn send(&mut self, from: u8, frame: &[u8]) -> Result<()> {
        self.vm(from).send(frame)?;
        self.drain(from)
    }

    /// Waits until the switch is done with everything the guest has sent.
    pub(crate) fn drain(&mut self, from: u8) -> Result<()> {
        let drained = self.vm(from).drain(SOON)?;
        check!(
            drained,
            "vm{from}: the switch has not given every buffer back after {SOON:?}"
        );
        Ok(())
    }

    /// Everything that lies in the guest's rings.
    pub(crate) fn received(&mut self, at: u8) -> Result<Vec<Frame>> {
        Ok(self.vm(at).recv_all(Duration::ZERO, usize::MAX)?)
    }

    /// Sends a frame; it must arrive at exactly these guests, once and unchanged.
    pub(crate) fn reaches(&mut self, from: u8, frame: &[u8], at: &[u8]) -> Result<()> {
        self.becomes(
            from,
            frame,
            &at.iter().map(|n| (*n, frame)).collect::<Vec<_>>(),
        )
    }

    /// Sends a frame; each of these guests must get what stands beside it, and the others nothing.
    pub(crate) fn becomes(&mut self, from: u8, frame: &[u8], got: &[(u8, &[u8])]) -> Result<()> {
        self.send(from, frame)?;
        for n in 1..=self.guests.len() as u8 {
            let frames: Vec<_> = self.received(n)?.into_iter().map(|f| f.bytes).collect();
            let want: Vec<_> = got
                .iter()
                .filter(|(at, _)| *at == n)
                .map(|(_, f)| f.to_vec())
                .collect();
            check!(
                frames == want,
                "vm{from} sent {}\nvm{n} got {}\ninstead of {}",
                hex(frame),
                list(&frames),
                list(&want)
            );
        }
        Ok(())
    }

    /// Has every guest say something, so that the switch knows where they are.
    pub(crate) fn introduce(&mut self) -> Result<()> {
        for n in 1..=self.guests.len() as u8 {
            let src = self.vm(n).mac();
            self.send(n, &numbered(BROADCAST, src, 0))?;
            self.wait_known(src, &port(n))?;
        }
        for n in 1..=self.guests.len() as u8 {
            self.received(n)?;
        }
        Ok(())
    }

    /// What the switch knows of an address.
    pub(crate) fn known(&self, mac: [u8; 6]) -> Result<Option<FdbEntry>> {
        let all = self
            .switch
            .call::<methods::FdbShow>(&FdbFilter::default())?
            .entries;
        Ok(all.into_iter().find(|entry| entry.mac.0 == mac))
    }

    /// Waits until the switch has the address behind the port.
    pub(crate) fn wait_known(&self, mac: [u8; 6], port: &str) -> Result<()> {
        self.switch.until("an address to be learnt", SOON, || {
            match self.known(mac)? {
                Some(entry) if entry.port == port => Ok(()),
                other => Err(Error::Failed(format!(
                    "{} should be behind {port}, the switch says {other:?}",
                    hex(&mac)
                ))),
            }
        })
    }

    /// Frames dropped at a port for a reason, in either direction.
    pub(crate) fn drops(&self, port: &str, reason: &str) -> Result<u64> {
        dropped(&self.switch.counters()?, port, reason)
    }

    /// Sends a frame that must be dropped at the sender's port, for this reason.
    pub(crate) fn is_dropped(&mut self, from: u8, frame: &[u8], reason: &str) -> Result<()> {
        let before = self.drops(&port(from), reason)?;
        self.reaches(from, frame, &[])?;
        let after = self.drops(&port(from), reason)?;
        check!(
            after == before + 1,
            "{} is not counted as {reason}: {:?}",
            hex(frame),
            self.switch.counters()?.ports[&port(from)].rx
        );
        Ok(())
    }

    /// The last thing in a test: the books balance, and the guests agree with them, frame by frame. Only for guests that
    /// were connected once and receive no segments of larger frames.
    pub(crate) fn close_books(mut self) -> Result<()> {
        for n in 1..=self.guests.len() as u8 {
            self.drain(n)?;
            self.received(n)?;
        }
        let counters = self.switch.accounted()?;
        for (i, guest) in self.guests.iter().enumerate() {
            let name = port(i as u8 + 1);
            let (stats, port) = (guest.stats(), &counters.ports[&name]);
            check!(
                (stats.tx.frames, stats.rx.frames) == (port.rx.frames, port.tx.delivered),
                "{name} sent {} and received {} frames, the switch counts {} and {}",
                stats.tx.frames,
                stats.rx.frames,
                port.rx.frames,
                port.tx.delivered
            );
        }
        Ok(())
    }
}

/// The name of guest `n`'s port.
pub(crate) fn port(n: u8) -> String {
    format!("vm{n}")
}

/// Guest `n` before it starts.
pub(crate) fn builder(dir: &RunDir, n: u8) -> Builder {
    SimGuest::connect_to(dir.join(format!("vm{n}.sock"))).mac(mac(n))
}

/// Frames dropped at a port for a reason, in either direction.
pub(crate) fn dropped(counters: &Counters, port: &str, reason: &str) -> Result<u64> {
    let port = &counters.ports[port];
    let found: Vec<u64> = [&port.rx.drops, &port.tx.drops]
        .iter()
        .filter_map(|drops| drops.get(reason).copied())
        .collect();
    check!(!found.is_empty(), "there is no drop reason {reason}");
    Ok(found.iter().sum())
}

/// Bytes for people.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let shown: Vec<String> = bytes.iter().take(64).map(|b| format!("{b:02x}")).collect();
    let more = if bytes.len() > 64 { " ..." } else { "" };
    format!("[{} bytes: {}{more}]", bytes.len(), shown.join(" "))
}

fn list(frames: &[Vec<u8>]) -> String {
    if frames.is_empty() {
        return "nothing".into();
    }
    let shown: Vec<_> = frames.iter().map(|f| hex(f)).collect();
    shown.join(", ")
}
