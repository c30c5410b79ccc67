//! Which of a port's queues a frame leaves by.
//!
//! A flow takes the same queue for as long as the guest uses the same number of them: the queue follows from a keyed
//! hash of the flow, the same in both directions. The key is the port's own.

use vswitch_flowtable::{Addresses, FlowKey};
use vswitch_packet::{L3, parse};
use vswitch_vhost::PLAIN_HEAD_LEN;

use super::Vid;
use super::snapshot::{GuestQueues, Output};

/// The queue for a frame with this head. One queue costs nothing.
#[inline]
pub fn queue(output: &Output, worker: usize, vid: Vid, head: &[u8], len: usize) -> u16 {
    match (only(output, worker), output) {
        (Some(queue), _) => queue,
        (None, Output::Guest(queues)) => select(queues, vid, head, len),
        #[cfg(feature = "dpdk")]
        (None, Output::Nic(_)) => 0,
    }
}

/// The queue that every frame from this worker takes, if there is but one.
#[cfg_attr(
    not(feature = "dpdk"),
    expect(unused_variables, reason = "only a NIC's queue depends on the worker")
)]
#[inline]
pub fn only(output: &Output, worker: usize) -> Option<u16> {
    match output {
        Output::Guest(queues) => (queues.active() < 2).then_some(0),
        // A NIC's queues are for its senders, the workers: a flow stays on one while its worker does.
        #[cfg(feature = "dpdk")]
        Output::Nic(nic) => Some((worker % usize::from(nic.queues().max(1))) as u16),
    }
}

#[inline(never)]
fn select(queues: &GuestQueues, vid: Vid, head: &[u8], len: usize) -> u16 {
    flow_key(vid, head, len).map_or(0, |key| queues.select(&key))
}

/// What identifies the flow of a frame: addresses, and ports where every frame of the flow has them.
pub fn flow_key(vid: Vid, head: &[u8], len: usize) -> Option<FlowKey> {
    // So much there is of every frame, with offloads and without: more of some would tear their flows apart.
    let head = head.get(..PLAIN_HEAD_LEN).unwrap_or(head);
    let parsed = parse(head, len).ok()?;
    let addresses = match &parsed.l3 {
        L3::Ipv4(ip) => Addresses::V4 {
            src: ip.src.octets(),
            dst: ip.dst.octets(),
        },
        L3::Ipv6(ip) => Addresses::V6 {
            src: ip.src.octets(),
            dst: ip.dst.octets(),
        },
        _ => Addresses::Mac {
            src: parsed.src.0,
            dst: parsed.dst.0,
            ethertype: parsed.ethertype,
        },
    };
    Some(FlowKey {
        vlan: vid.0,
        addresses,
        protocol: parsed.protocol().unwrap_or(0),
        ports: parsed.steering_ports().map(|p| (p.src, p.dst)),
    })
}
