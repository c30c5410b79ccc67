//! The books: no frame disappears without a counter that names why.

use vswitch_api::rpc::Counters;

use crate::error::{Error, Result};

/// Checks the accounting of a switch at rest:
///
/// - per input, received = switched + dropped by name;
/// - per output, offered = delivered + dropped by name;
/// - over all ports, offered = copies made;
/// - a frame that was switched was copied at least once;
/// - the totals are the sum of the ports.
///
/// Ports that were removed take their counters along, so this holds only for switches that kept their ports.
pub fn account(counters: &Counters) -> Result<()> {
    let mut faults = Vec::new();
    let (mut offered, mut copies, mut received, mut delivered) = (0u64, 0u64, 0u64, 0u64);
    for (name, port) in &counters.ports {
        let input_drops: u64 = port.rx.drops.values().sum();
        let output_drops: u64 = port.tx.drops.values().sum();
        if port.rx.frames != port.rx.switched + input_drops {
            faults.push(format!(
                "{name}: received {} is not switched {} + dropped {input_drops}",
                port.rx.frames, port.rx.switched
            ));
        }
        if port.tx.offered != port.tx.delivered + output_drops {
            faults.push(format!(
                "{name}: offered {} is not delivered {} + dropped {output_drops}",
                port.tx.offered, port.tx.delivered
            ));
        }
        if port.rx.copies < port.rx.switched {
            faults.push(format!(
                "{name}: {} frames switched, but {} copies",
                port.rx.switched, port.rx.copies
            ));
        }
        offered += port.tx.offered;
        copies += port.rx.copies;
        received += port.rx.frames;
        delivered += port.tx.delivered;
    }
    if offered != copies {
        faults.push(format!(
            "offered {offered} over all ports is not the {copies} copies made"
        ));
    }
    let totals = &counters.totals;
    if (totals.rx.frames, totals.tx.delivered) != (received, delivered) {
        faults.push(format!(
            "totals say {} received and {} delivered, the ports {received} and {delivered}",
            totals.rx.frames, totals.tx.delivered
        ));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Failed(format!(
            "the books are off: {}",
            faults.join("; ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_api::rpc::{PortCounters, RxCounters, TxCounters};

    /// Two ports: `a` received 10, 3 too long, 7 sent on to `b`, whose ring was full once.
    fn sound() -> Counters {
        let a = PortCounters {
            rx: RxCounters {
                frames: 10,
                bytes: 1000,
                switched: 7,
                copies: 7,
                drops: [("over-mtu".into(), 3)].into(),
            },
            ..PortCounters::default()
        };
        let b = PortCounters {
            tx: TxCounters {
                offered: 7,
                delivered: 6,
                bytes: 600,
                drops: [("ring-full".into(), 1)].into(),
            },
            ..PortCounters::default()
        };
        let mut totals = a.clone();
        totals.add(&b);
        Counters {
            ports: [("a".into(), a), ("b".into(), b)].into(),
            totals,
        }
    }

    fn fault(change: impl FnOnce(&mut Counters)) -> String {
        let mut counters = sound();
        change(&mut counters);
        account(&counters).unwrap_err().to_string()
    }

    #[test]
    fn sound_books_pass() {
        account(&sound()).unwrap();
        account(&Counters::default()).unwrap();
    }

    #[test]
    fn every_way_to_lose_a_frame_is_found() {
        let lost_in = fault(|c| c.ports.get_mut("a").unwrap().rx.drops.clear());
        assert!(
            lost_in.contains("a: received 10 is not switched 7 + dropped 0"),
            "{lost_in}"
        );
        let lost_out = fault(|c| c.ports.get_mut("b").unwrap().tx.delivered = 5);
        assert!(
            lost_out.contains("b: offered 7 is not delivered 5 + dropped 1"),
            "{lost_out}"
        );
        let lost_between = fault(|c| c.ports.get_mut("a").unwrap().rx.copies = 8);
        assert!(
            lost_between.contains("offered 7 over all ports is not the 8 copies"),
            "{lost_between}"
        );
        let unsent = fault(|c| {
            c.ports.get_mut("a").unwrap().rx.copies = 6;
            c.ports.get_mut("b").unwrap().tx.offered = 6;
            c.ports.get_mut("b").unwrap().tx.delivered = 5;
        });
        assert!(
            unsent.contains("a: 7 frames switched, but 6 copies"),
            "{unsent}"
        );
        let totals = fault(|c| c.totals.rx.frames = 11);
        assert!(totals.contains("totals say 11 received"), "{totals}");
    }
}
