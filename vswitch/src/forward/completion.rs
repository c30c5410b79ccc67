//! The end of a burst for who sent it: its buffers are the guest's again, and it is called when its policy says so.

use vswitch_coalesce::{Action, Burst};
use vswitch_vhost::TxRing;

use super::deliver::Context;
use super::snapshot::Port;

/// Whose buffers are given back, by which worker, and when.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    port: &'a Port,
    /// Of the guest's pairs the one that it sent on.
    pair: Option<u16>,
    worker: usize,
    nanos: u64,
}

impl<'a> Context<'a> {
    /// Who sent the burst, as this worker calls it.
    #[inline(always)]
    pub fn sender(&self, worker: usize) -> Sender<'a> {
        Sender {
            port: self.ingress,
            pair: self.pair,
            worker,
            nanos: self.nanos,
        }
    }
}

impl Sender<'_> {
    /// Frames that were just given back are reported. The guest had nothing more on offer behind them if it is `drained`.
    #[inline(always)]
    pub fn repaid(self, ring: &mut TxRing, frames: usize, drained: bool) {
        let burst = Burst {
            now: self.nanos,
            frames: frames as u16,
            drained,
            ..Burst::default()
        };
        let action = ring.report(&self.port.coalesce.transmit, &burst);
        if !matches!(action, Action::Nothing | Action::Hold) {
            self.acted(ring, action);
        }
    }

    /// Nothing was given back: a call may have been held for long enough.
    #[inline(always)]
    pub fn waits(self, ring: &mut TxRing) {
        if ring.overdue(self.nanos) {
            let action = ring.expire(self.nanos);
            self.acted(ring, action);
        }
    }

    /// Calls the guest, if that is what is to be done, and tells about it.
    #[inline(never)]
    fn acted(self, ring: &mut TxRing, action: Action) {
        if action.fires()
            && ring.make_call()
            && let Some(counters) = self.port.counters.get(self.worker)
        {
            counters.tx_calls.add(1);
        }
        if let (Some(queues), Some(pair)) = (self.port.output.guest(), self.pair) {
            queues.tell_completions(pair, ring.call_report());
        }
    }
}
