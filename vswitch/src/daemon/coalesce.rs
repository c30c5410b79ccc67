//! When guests are called: from the configuration to what rings go by, and what came of it.

use vswitch_api::config::{Coalesce, CoalescePolicy};
use vswitch_api::rpc::{
    CoalesceList, CoalesceSetParams, CoalesceShowParams, CoalescedPort, CoalescedRing, GuestClass,
    RingDirection, RpcError, code,
};
use vswitch_coalesce::{Counters, DELAY_BUCKETS, Policy, Reason, Settings};
use vswitch_vhost::CallReport;

use super::port::{Attachment, Port};
use super::switch::Switch;
use crate::forward::snapshot;

/// What rings go by.
pub(super) fn settings(coalesce: &Coalesce) -> snapshot::Coalesce {
    let policy = policy(coalesce.policy);
    let with = |settings: Settings, usecs: Option<u32>, frames: Option<u16>| {
        // The lower of the two, if both are there.
        let usecs = match (usecs, coalesce.max_delay_usecs) {
            (Some(usecs), Some(most)) => Some(usecs.min(most)),
            (usecs, most) => usecs.or(most),
        };
        let settings = settings.with_usecs(usecs).with_frames(frames);
        match coalesce.cpu_percent {
            Some(percent) => settings.with_share(percent.saturating_mul(10)),
            None => settings,
        }
    };
    snapshot::Coalesce {
        receive: with(
            Settings::receive(policy),
            coalesce.rx_usecs,
            coalesce.rx_frames,
        ),
        transmit: with(
            Settings::transmit(policy),
            coalesce.tx_usecs,
            coalesce.tx_frames,
        ),
    }
}

fn policy(policy: CoalescePolicy) -> Policy {
    match policy {
        CoalescePolicy::Adaptive => Policy::Adaptive,
        CoalescePolicy::PerPacket => Policy::PerPacket,
        CoalescePolicy::PerBurst => Policy::PerBurst,
        CoalescePolicy::Static => Policy::Static,
        CoalescePolicy::Vpp => Policy::Vpp,
        CoalescePolicy::Spdk => Policy::Spdk,
        CoalescePolicy::Dim => Policy::Dim,
    }
}

fn named(policy: Policy) -> CoalescePolicy {
    match policy {
        Policy::Adaptive => CoalescePolicy::Adaptive,
        Policy::PerPacket => CoalescePolicy::PerPacket,
        Policy::PerBurst => CoalescePolicy::PerBurst,
        Policy::Static => CoalescePolicy::Static,
        Policy::Vpp => CoalescePolicy::Vpp,
        Policy::Spdk => CoalescePolicy::Spdk,
        Policy::Dim => CoalescePolicy::Dim,
    }
}

/// `coalesce.show`
pub(super) fn show(switch: &Switch, p: &CoalesceShowParams) -> Result<CoalesceList, RpcError> {
    let ports = match &p.port {
        Some(name) => {
            let port = switch.find_port(name)?;
            vec![shown(port).ok_or_else(|| no_guest(name))?]
        }
        None => switch.ports.values().filter_map(shown).collect(),
    };
    Ok(CoalesceList { ports })
}

/// `coalesce.set`
pub(super) fn set(switch: &mut Switch, p: &CoalesceSetParams) -> Result<CoalescedPort, RpcError> {
    switch.find_port(&p.port)?;
    if let Some(problem) = p.coalesce.problems().into_iter().next() {
        return Err(RpcError::new(
            code::INVALID_PARAMS,
            format!("{}; {}", problem.message, problem.help),
        ));
    }
    let Some(guest) = switch.ports.get_mut(&p.port).and_then(Port::guest_mut) else {
        return Err(no_guest(&p.port));
    };
    guest.set_coalesce(p.coalesce);
    switch.publish();
    shown(switch.find_port(&p.port)?).ok_or_else(|| no_guest(&p.port))
}

fn no_guest(name: &str) -> RpcError {
    RpcError::new(
        code::UNSUPPORTED,
        format!("port \"{name}\" is no guest's; only guests are interrupted"),
    )
}

fn shown(port: &Port) -> Option<CoalescedPort> {
    let Attachment::Guest(guest) = &port.attachment else {
        return None;
    };
    let queues = &guest.queues;
    let mut rings = Vec::new();
    for pair in 0..queues.pairs() {
        let receive = queues.ring(pair);
        let receive = receive.and_then(|place| Some(place.lock().as_ref()?.call_report()));
        let transmit = queues.completions(pair).filter(|_| receive.is_some());
        let both = [
            (RingDirection::Receive, receive),
            (RingDirection::Transmit, transmit),
        ];
        rings.extend(
            both.into_iter()
                .filter_map(|(direction, report)| Some(ring(pair, direction, &report?))),
        );
    }
    let (rx_calls_per_s, tx_calls_per_s) = port.call_rates;
    Some(CoalescedPort {
        port: port.name.to_string(),
        coalesce: guest.config().coalesce,
        rx_pps: port.rates.tx_pps,
        rx_calls_per_s,
        tx_pps: port.rates.rx_pps,
        tx_calls_per_s,
        rings,
    })
}

fn ring(queue: u16, direction: RingDirection, report: &CallReport) -> CoalescedRing {
    let counters = &report.counters;
    let reasons = Reason::ALL.into_iter().filter_map(|reason| {
        let count = counters.calls_for(reason);
        (count > 0).then(|| (reason.name().to_owned(), count))
    });
    CoalescedRing {
        queue,
        direction,
        policy: named(report.policy),
        class: match report.class {
            vswitch_coalesce::GuestClass::Unknown => GuestClass::Unknown,
            vswitch_coalesce::GuestClass::Interrupt => GuestClass::Interrupt,
            vswitch_coalesce::GuestClass::Polling => GuestClass::Polling,
        },
        bursts: report.bursts,
        frames: report.frames,
        calls: counters.calls(),
        reasons: reasons.collect(),
        cancelled: counters.cancelled(),
        cost_ns: report.adaptive.map(|(cost, _)| cost),
        gap_ns: report.adaptive.map(|(_, gap)| gap),
        delays: counters.delays().to_vec(),
        delay_p50_ns: below(counters, 50),
        delay_p99_ns: below(counters, 99),
    }
}

/// What so many of a hundred delays stayed below, in nanoseconds: the end of their bucket.
fn below(counters: &Counters, percent: u64) -> u64 {
    let all = counters.calls();
    let mut seen = 0;
    for (bucket, count) in counters.delays().iter().enumerate() {
        seen += count;
        if all > 0 && seen * 100 >= all * percent {
            return 1024 << bucket.min(DELAY_BUCKETS - 1);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_coalesce::Action;

    #[test]
    fn policies_keep_their_names() {
        for wanted in CoalescePolicy::ALL {
            assert_eq!(wanted.name(), policy(wanted).name());
            assert_eq!(named(policy(wanted)), wanted);
        }
    }

    #[test]
    fn the_lower_limit_holds() {
        let coalesce = Coalesce {
            rx_usecs: Some(50),
            max_delay_usecs: Some(20),
            ..Coalesce::default()
        };
        let of = |usecs| Settings::receive(Policy::Adaptive).with_usecs(Some(usecs));
        assert_eq!(settings(&coalesce).receive, of(20));
        let coalesce = Coalesce {
            max_delay_usecs: Some(70),
            ..coalesce
        };
        assert_eq!(settings(&coalesce).receive, of(50));
        let transmit = Settings::transmit(Policy::Adaptive).with_usecs(Some(70));
        assert_eq!(settings(&coalesce).transmit, transmit);
    }

    #[test]
    fn quantiles_are_the_ends_of_buckets() {
        let mut counters = Counters::default();
        assert_eq!((below(&counters, 50), below(&counters, 99)), (0, 0));
        let mut add = |held_ns, times| {
            for _ in 0..times {
                let reason = Reason::Deadline;
                counters.count(Action::Fire { reason, held_ns });
            }
        };
        add(100, 60);
        add(5_000, 39);
        add(60_000, 1);
        assert_eq!((below(&counters, 50), below(&counters, 99)), (1024, 8192));
        assert_eq!(below(&counters, 100), 65_536);
    }
}
