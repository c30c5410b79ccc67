//! `vswitchctl counters`.

use std::collections::BTreeMap;

use vswitch_api::rpc::{Counters, PortCounters};

use super::text::{Paint, Table, counted, grouped};

/// What happened to frames, port by port; with `all`, also what never happened.
pub(super) fn render(counters: &Counters, all: bool, paint: Paint) -> String {
    if counters.ports.is_empty() {
        return "no ports, so nothing to count\n".into();
    }
    let mut parts = Vec::new();
    let mut table = Table::new(&[
        "PORT",
        ">RX",
        ">SWITCHED",
        ">RX-DROPS",
        ">TX-OFFERED",
        ">DELIVERED",
        ">TX-DROPS",
        ">INTERRUPTS",
    ]);
    let mut line = |name: &str, counts: &PortCounters| {
        let drops = |drops: &BTreeMap<String, u64>| match drops.values().sum() {
            0 => "0".into(),
            n => paint.waiting(&grouped(n)),
        };
        table.row([
            name.into(),
            grouped(counts.rx.frames),
            grouped(counts.rx.switched),
            drops(&counts.rx.drops),
            grouped(counts.tx.offered),
            grouped(counts.tx.delivered),
            drops(&counts.tx.drops),
            grouped(counts.interrupts),
        ]);
    };
    for (name, counts) in &counters.ports {
        line(name, counts);
    }
    if counters.ports.len() > 1 {
        line("total", &counters.totals);
    }
    parts.push(table.render(paint));

    let mut drops = Table::new(&["PORT", "WAY", "DROPPED BECAUSE", ">FRAMES"]);
    let mut hidden = 0;
    let mut shown = 0;
    for (name, counts) in &counters.ports {
        for (way, reasons) in [("rx", &counts.rx.drops), ("tx", &counts.tx.drops)] {
            for (reason, &n) in reasons {
                if n == 0 && !all {
                    hidden += 1;
                    continue;
                }
                shown += 1;
                drops.row([name.clone(), way.into(), reason.clone(), grouped(n)]);
            }
        }
    }
    if shown > 0 {
        parts.push(drops.render(paint));
    }
    if hidden > 0 {
        let zeros = counted(
            hidden,
            "drop counter that is 0 is",
            "drop counters that are 0 are",
        );
        parts.push(paint.faint(&format!("{zeros} not shown; see them with --all")) + "\n");
    }
    parts.join("\n")
}
