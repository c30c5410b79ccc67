//! `vswitchctl coalesce`.

use vswitch_api::config::Coalesce;
use vswitch_api::rpc::{CoalesceList, CoalescedPort, CoalescedRing, GuestClass, RingDirection};

use super::cli::CoalesceSetting;
use super::show::or_dash;
use super::text::{Paint, Table, grouped, scaled};

/// How guests are interrupted; with `all` how delays are distributed, too.
pub(super) fn show(list: &CoalesceList, all: bool, paint: Paint) -> String {
    if list.ports.is_empty() {
        return "there is no port for a guest\n".into();
    }
    let ports = list.ports.iter().map(|port| one(port, all, paint));
    ports.collect::<Vec<_>>().join("\n")
}

fn one(port: &CoalescedPort, all: bool, paint: Paint) -> String {
    let mut out = format!(
        "{}: {}\n  receive {}pps, {}interrupts/s; transmit {}pps, {}interrupts/s\n",
        paint.strong(&port.port),
        words(&port.coalesce),
        scaled(port.rx_pps),
        scaled(port.rx_calls_per_s),
        scaled(port.tx_pps),
        scaled(port.tx_calls_per_s),
    );
    if port.rings.is_empty() {
        return out + "  no ring is in use\n";
    }
    let mut table = Table::new(&[
        "RING",
        "POLICY",
        "GUEST",
        ">FRAMES",
        ">CALLS",
        ">CANCELLED",
        ">COST",
        ">GAP",
        ">DELAY P50",
        ">P99",
        "CALLS BY REASON",
    ]);
    for ring in &port.rings {
        let time = |ns: Option<u32>| ns.map_or_else(|| "-".into(), |ns| delay(ns.into()));
        let counted = ring.calls > 0;
        let below = |ns: u64| {
            if counted {
                format!("<{}", delay(ns))
            } else {
                "-".into()
            }
        };
        table.row([
            name(ring),
            ring.policy.name().into(),
            class(ring.class).into(),
            grouped(ring.frames),
            grouped(ring.calls),
            grouped(ring.cancelled),
            time(ring.cost_ns),
            time(ring.gap_ns),
            below(ring.delay_p50_ns),
            below(ring.delay_p99_ns),
            reasons(ring),
        ]);
    }
    out += &indented(&table.render(paint));
    if all {
        out.push('\n');
        out += &indented(&distribution(port, paint));
    }
    out
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Calls by the delay that they added, a column for each ring.
fn distribution(port: &CoalescedPort, paint: Paint) -> String {
    let names: Vec<String> = port.rings.iter().map(name).collect();
    let mut out = String::new();
    for (ring, name) in port.rings.iter().zip(names) {
        let mut table = Table::new(&["DELAY", ">CALLS"]);
        let used = ring.delays.iter().rposition(|&n| n > 0);
        let Some(last) = used else { continue };
        for (bucket, count) in ring.delays.iter().enumerate().take(last + 1) {
            let open = bucket + 1 == ring.delays.len();
            let bound = if open {
                format!(">={}", delay(512 << bucket))
            } else {
                format!("<{}", delay(1024 << bucket))
            };
            table.row([bound, grouped(*count)]);
        }
        out += &format!("{name}\n{}", table.render(paint));
    }
    out
}

/// `vm1 rx/0` as the guest sees it.
fn name(ring: &CoalescedRing) -> String {
    let direction = match ring.direction {
        RingDirection::Receive => "receive",
        RingDirection::Transmit => "transmit",
    };
    format!("{direction}/{}", ring.queue)
}

fn class(class: GuestClass) -> &'static str {
    match class {
        GuestClass::Unknown => "-",
        GuestClass::Interrupt => "interrupt",
        GuestClass::Polling => "polling",
    }
}

fn reasons(ring: &CoalescedRing) -> String {
    let mut reasons: Vec<_> = ring.reasons.iter().collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let words = reasons
        .into_iter()
        .map(|(reason, count)| format!("{reason} {}", grouped(*count)));
    or_dash(&words.collect::<Vec<_>>().join(", "))
}

/// Nanoseconds, to two digits.
fn delay(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..10_000 => format!("{:.1}us", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{}us", ns / 1_000),
        _ => format!("{:.1}ms", ns as f64 / 1e6),
    }
}

/// The settings as the command line takes them.
fn words(coalesce: &Coalesce) -> String {
    let values = coalesce
        .values()
        .map(|(key, value)| format!(" {key}={value}"));
    format!("{}{}", coalesce.policy.name(), values.collect::<String>())
}

/// What `set` has done.
pub(super) fn was_set(port: &CoalescedPort) -> String {
    format!(
        "port {}: {}; until vswitchd ends, or the configuration says something new",
        port.port,
        words(&port.coalesce)
    )
}

/// What is asked for, given what there was.
pub(super) fn change(
    before: Coalesce,
    policy: Option<&str>,
    settings: &[CoalesceSetting],
) -> Result<Coalesce, String> {
    let policy = policy.map(|policy| ("policy", Some(policy)));
    let settings = settings
        .iter()
        .map(|s| (s.key.as_str(), s.value.as_deref()));
    let mut settings: Vec<_> = policy.into_iter().chain(settings).collect();
    // First the policy: it begins without figures.
    settings.sort_by_key(|(key, _)| *key != "policy");
    settings
        .into_iter()
        .try_fold(before, |coalesce, (key, value)| set(coalesce, key, value))
}

fn set(mut coalesce: Coalesce, key: &str, value: Option<&str>) -> Result<Coalesce, String> {
    fn number<T: std::str::FromStr>(key: &str, value: Option<&str>) -> Result<Option<T>, String> {
        let parsed = value.map(|value| {
            value.parse().map_err(|_| {
                format!("\"{value}\" is no number for {key}; write a whole one, or default")
            })
        });
        parsed.transpose()
    }
    match key {
        "policy" => {
            let wanted = match value {
                None => Default::default(),
                Some(name) => serde_json::from_value(name.into()).map_err(|_| {
                    let names = vswitch_api::config::CoalescePolicy::ALL.map(|p| p.name());
                    format!(
                        "there is no policy \"{name}\"; policies: {}",
                        names.join(", ")
                    )
                })?,
            };
            if wanted != coalesce.policy {
                coalesce = Coalesce {
                    policy: wanted,
                    ..Coalesce::default()
                };
            }
        }
        "rx-usecs" => coalesce.rx_usecs = number(key, value)?,
        "rx-frames" => coalesce.rx_frames = number(key, value)?,
        "tx-usecs" => coalesce.tx_usecs = number(key, value)?,
        "tx-frames" => coalesce.tx_frames = number(key, value)?,
        "cpu-percent" => coalesce.cpu_percent = number(key, value)?,
        "max-delay-usecs" => coalesce.max_delay_usecs = number(key, value)?,
        _ => {
            return Err(format!(
                "there is no key \"{key}\"; keys: policy, {}",
                Coalesce::KEYS.join(", ")
            ));
        }
    }
    Ok(coalesce)
}

#[cfg(test)]
mod tests {
    use super::super::expect;
    use super::*;
    use vswitch_api::config::CoalescePolicy;

    fn settings(words: &str) -> Vec<CoalesceSetting> {
        words.split(' ').map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn settings_change_what_they_name() {
        let before = Coalesce {
            rx_usecs: Some(10),
            cpu_percent: Some(5),
            ..Coalesce::default()
        };
        let after = change(before, None, &settings("rx-usecs=default tx-frames=7")).unwrap();
        assert_eq!(words(&after), "adaptive tx-frames=7 cpu-percent=5");
        let after = change(before, Some("adaptive"), &[]).unwrap();
        assert_eq!(after, before, "the same policy keeps its figures");
        let after = change(before, None, &settings("rx-frames=7 policy=static")).unwrap();
        assert_eq!(words(&after), "static rx-frames=7");
        assert_eq!(after.policy, CoalescePolicy::Static);
        for (bad, says) in [
            ("rx-usec=7", "keys: policy, rx-usecs"),
            ("rx-usecs=x", "no number for rx-usecs"),
            ("rx-frames=70000", "no number"),
            ("policy=fast", "policies: adaptive, per-packet"),
        ] {
            let error = change(before, None, &settings(bad)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!("rx-usecs".parse::<CoalesceSetting>().is_err());
        assert!("=7".parse::<CoalesceSetting>().is_err());
    }

    fn example() -> CoalesceList {
        let receive = CoalescedRing {
            queue: 0,
            direction: RingDirection::Receive,
            policy: CoalescePolicy::Adaptive,
            class: GuestClass::Interrupt,
            bursts: 71_204,
            frames: 812_345,
            calls: 20_000,
            reasons: [
                ("deadline", 15_000),
                ("urgent", 4_000),
                ("drained", 999),
                ("first", 1),
            ]
            .map(|(reason, count)| (reason.into(), count))
            .into(),
            cancelled: 1_203,
            cost_ns: Some(6_204),
            gap_ns: Some(64_000),
            delays: vec![5_000, 0, 1_000, 2_000, 3_000, 4_000, 4_900, 100, 0, 0, 0, 0],
            delay_p50_ns: 16_384,
            delay_p99_ns: 65_536,
        };
        let transmit = CoalescedRing {
            direction: RingDirection::Transmit,
            policy: CoalescePolicy::PerBurst,
            class: GuestClass::Polling,
            calls: 0,
            reasons: Default::default(),
            cancelled: 0,
            cost_ns: None,
            gap_ns: None,
            delays: vec![0; 12],
            delay_p50_ns: 0,
            delay_p99_ns: 0,
            ..receive.clone()
        };
        let port = CoalescedPort {
            port: "vm1".into(),
            coalesce: Coalesce {
                rx_usecs: Some(100),
                ..Coalesce::default()
            },
            rx_pps: 203_118.0,
            rx_calls_per_s: 5_320.4,
            tx_pps: 0.0,
            tx_calls_per_s: 0.0,
            rings: vec![receive, transmit],
        };
        let idle = CoalescedPort {
            port: "vm2".into(),
            rings: Vec::new(),
            ..port.clone()
        };
        CoalesceList {
            ports: vec![port, idle],
        }
    }

    #[test]
    fn looks_as_expected() {
        expect("coalesce.txt", &show(&example(), false, Paint::plain()));
        expect("coalesce-all.txt", &show(&example(), true, Paint::plain()));
    }
}
