//! iperf3 between two guests.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::guest::Guest;

/// What a run of iperf3 has measured at the receiver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Iperf {
    /// Payload bits per second.
    pub bits_per_second: f64,
    /// Payload bytes.
    pub bytes: u64,
    /// Datagrams lost; 0 for TCP.
    pub lost: u64,
}

/// Runs iperf3 for `seconds` from `client` to `server`, which has `address`. `options` go to the client: `-u -b 10M`, `-R`.
pub fn iperf(
    client: &mut Guest,
    server: &mut Guest,
    address: &str,
    seconds: u32,
    options: &str,
) -> Result<Iperf> {
    // One server for one run; `-D` returns before it listens.
    server.run("iperf3 -s -1 -D")?;
    server.wait_listening(5201)?;
    let limit = Duration::from_secs(90) + Duration::from_secs(1) * seconds;
    // Warnings would stand in front of the JSON; errors are in it.
    let output = client.run_for(
        &format!("iperf3 -J -c {address} -t {seconds} {options} 2>/dev/null"),
        limit,
    )?;
    parse(&output)
}

fn parse(output: &str) -> Result<Iperf> {
    let nonsense = |what: &str| Error::Failed(format!("iperf3's answer has no {what}:\n{output}"));
    let report: Value = serde_json::from_str(output).map_err(|_| nonsense("JSON"))?;
    // UDP has one sum, of the receiver's view; TCP has one per side.
    let sum = ["sum_received", "sum"]
        .iter()
        .find_map(|&sum| report.get("end")?.get(sum))
        .ok_or_else(|| nonsense("sum"))?;
    Ok(Iperf {
        bits_per_second: sum["bits_per_second"]
            .as_f64()
            .ok_or_else(|| nonsense("rate"))?,
        bytes: sum["bytes"].as_u64().ok_or_else(|| nonsense("bytes"))?,
        lost: sum["lost_packets"].as_u64().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let tcp = r#"{"end":{"sum_sent":{"bytes":9,"bits_per_second":9.0},"sum_received":{"bytes":8,"bits_per_second":64.5}}}"#;
        assert_eq!(
            parse(tcp).unwrap(),
            Iperf {
                bits_per_second: 64.5,
                bytes: 8,
                lost: 0
            }
        );
        let udp = r#"{"end":{"sum":{"bytes":7,"bits_per_second":1.0,"lost_packets":3}}}"#;
        assert_eq!(parse(udp).unwrap().lost, 3);
        assert!(parse(r#"{"error":"no route"}"#).is_err());
        assert!(parse("iperf3: error").is_err());
    }
}
