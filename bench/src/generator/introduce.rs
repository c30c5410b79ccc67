//! Showing addresses to a contestant that learns them.

use std::time::{Duration, Instant};

use vswitch_simguest::driver::{RxQueue, TxQueue};
use vswitch_simguest::frames::{Eth, ethernet};

use super::lane::settle;
use super::{Load, MAC_A, MAC_B, SILENCE, Wire};
use crate::{Error, Result};

/// Protocol of the frames that only show an address (IEEE 802, local experiments).
const HELLO: u16 = 0x88b5;
/// Frames on their way at once: few enough for whatever notes new addresses to keep up.
const AT_ONCE: usize = 32;
/// How long a frame may take before it is sent again.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often each of many addresses is shown: a switch learns a new one later than it forwards the
/// frame, and may miss one in a crowd.
const PASSES: u32 = 3;

/// Shows what has to be known before the load starts: B's address, which A's frames go to; with several
/// addresses or both directions those of both.
pub(super) fn all(wire: &mut Wire, load: &Load) -> Result<()> {
    let passes = if load.macs > 1 { PASSES } else { 1 };
    for _ in 0..passes {
        show(&mut wire.b.tx, &mut wire.a.rx, MAC_B, MAC_A, load.macs)?;
        if load.macs > 1 || load.both {
            show(&mut wire.a.tx, &mut wire.b.rx, MAC_A, MAC_B, load.macs)?;
        }
        settle(wire)?;
    }
    Ok(())
}

/// Sends from each address counted up from `own`, until the other side has seen all of them.
fn show(tx: &mut TxQueue, rx: &mut RxQueue, own: [u8; 6], peer: [u8; 6], count: u16) -> Result<()> {
    let until = Instant::now() + SILENCE;
    let mut missing: Vec<u16> = (0..count).collect();
    while !missing.is_empty() {
        if Instant::now() > until {
            return Err(Error::Silent(SILENCE.as_secs()));
        }
        let group = missing.len().min(AT_ONCE);
        for number in &missing[..group] {
            let src = nth(own, *number);
            tx.send(&ethernet(&Eth::new(peer, src), HELLO, &[0; 46]))?;
        }
        let (sent, mut left) = (Instant::now(), group);
        while left > 0 && sent.elapsed() < PATIENCE {
            rx.recv_burst(64, |frame| {
                let mut src = [0; 6];
                frame.copy_out(6, &mut src);
                let number = u16::from_be_bytes([src[4], src[5]]);
                if src[..4] != own[..4] {
                    return;
                }
                if let Some(at) = missing.iter().take(group).position(|m| *m == number) {
                    missing.remove(at);
                    left -= 1;
                }
            })?;
            tx.reclaim()?;
        }
    }
    Ok(())
}

/// The address `number` places after `first`.
pub(crate) fn nth(mut first: [u8; 6], number: u16) -> [u8; 6] {
    let low = u16::from_be_bytes([first[4], first[5]]).wrapping_add(number);
    first[4..].copy_from_slice(&low.to_be_bytes());
    first
}
