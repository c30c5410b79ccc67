//! When guests are interrupted, and how that goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Coalesce, CoalescePolicy};

/// Parameters of `coalesce.show`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoalesceShowParams {
    /// Only this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// Parameters of `coalesce.set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoalesceSetParams {
    /// The port, a guest's.
    pub port: String,
    /// What is to hold for it, whole, as in the configuration file.
    pub coalesce: Coalesce,
}

/// Result of `coalesce.show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoalesceList {
    /// The ports of guests, by name.
    pub ports: Vec<CoalescedPort>,
}

/// How a port's guest is interrupted. Directions are the guest's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoalescedPort {
    /// The port.
    pub port: String,
    /// What holds for it now.
    pub coalesce: Coalesce,
    /// Frames delivered to the guest a second, in the last measuring interval.
    pub rx_pps: f64,
    /// Interrupts a second for them.
    pub rx_calls_per_s: f64,
    /// Frames taken from the guest a second.
    pub tx_pps: f64,
    /// Interrupts a second for buffers it has back.
    pub tx_calls_per_s: f64,
    /// The rings in use. A transmit ring that nothing was ever sent by is not among them.
    pub rings: Vec<CoalescedRing>,
}

/// Which way the frames of a ring go, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingDirection {
    /// To the guest.
    Receive,
    /// From the guest.
    Transmit,
}

/// What a guest does between bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestClass {
    /// Not known yet.
    Unknown,
    /// It waits for interrupts.
    Interrupt,
    /// It looks by itself, and wants none.
    Polling,
}

/// How a ring's guest is interrupted. Counts are those since the ring came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoalescedRing {
    /// Its queue pair, from 0.
    pub queue: u16,
    /// Which of the pair's rings.
    pub direction: RingDirection,
    /// The rule at work.
    pub policy: CoalescePolicy,
    /// What the guest does between bursts.
    pub class: GuestClass,
    /// Bursts shown to the guest.
    pub bursts: u64,
    /// Frames of them.
    pub frames: u64,
    /// Interrupts.
    pub calls: u64,
    /// The same by reason; a reason that never was is left out.
    pub reasons: BTreeMap<String, u64>,
    /// Interrupts held back until the guest came to look by itself.
    pub cancelled: u64,
    /// With `adaptive`: what an interrupt costs switch and guest together, nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ns: Option<u32>,
    /// With `adaptive`: for how long one may be held back at present, nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_ns: Option<u32>,
    /// Interrupts by the delay they added to the first frame they tell of: the first entry below 1,024 ns, each further one
    /// below twice the one before, the last without end.
    pub delays: Vec<u64>,
    /// What half of the delays stayed below, nanoseconds; 0 without interrupts.
    pub delay_p50_ns: u64,
    /// What 99 of 100 stayed below.
    pub delay_p99_ns: u64,
}
