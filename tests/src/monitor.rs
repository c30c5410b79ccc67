//! QEMU's monitor: pausing a machine and letting it run on. JSON, one object a line (QEMU Machine Protocol).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};

/// How long QEMU may think about a command. Stopping a NIC waits for the switch's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Gives one command without arguments to the QEMU that listens on `socket`, and waits until it is done.
pub(crate) fn command(socket: &Path, name: &str) -> Result<()> {
    let failed = |what: &str| Error::io(format!("{what} QEMU's monitor at {}", socket.display()));
    let stream = UnixStream::connect(socket).map_err(failed("connect to"))?;
    stream
        .set_read_timeout(Some(ANSWER_LIMIT))
        .map_err(failed("set up"))?;
    let mut stream = BufReader::new(stream);
    // It starts with a greeting, and takes commands once its capabilities were asked for.
    next(&mut stream, |message| message.get("QMP").is_some())?;
    for name in ["qmp_capabilities", name] {
        let line = format!("{{\"execute\": \"{name}\"}}\n");
        let sent = stream.get_mut().write_all(line.as_bytes());
        sent.map_err(failed("write to"))?;
        let done =
            |message: &Value| message.get("return").is_some() || message.get("error").is_some();
        let answer = next(&mut stream, done)?;
        if let Some(error) = answer.get("error") {
            return Err(Error::Failed(format!("QEMU refuses {name}: {error}")));
        }
    }
    Ok(())
}

/// The next message that is looked for; events may come in between.
fn next(stream: &mut impl BufRead, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    loop {
        let mut line = String::new();
        let read = stream.read_line(&mut line);
        if read.map_err(Error::io("read from QEMU's monitor"))? == 0 {
            return Err(Error::Failed("QEMU closed its monitor".into()));
        }
        let message: Value = serde_json::from_str(&line)
            .map_err(|e| Error::Failed(format!("QEMU's monitor says {line:?}: {e}")))?;
        if wanted(&message) {
            return Ok(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::RunDir;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// Plays QEMU: greets, agrees to capabilities, and gives the lines of `answers` to the command. Returns what it got.
    fn play(socket: &Path, answers: &'static str) -> thread::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            stream.get_mut().write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut got = Vec::new();
            for text in ["{\"return\": {}}\n", answers] {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                got.push(line);
                stream.get_mut().write_all(text.as_bytes()).unwrap();
            }
            got
        })
    }

    #[test]
    fn events_are_no_answers() {
        let dir = RunDir::new().unwrap();
        let socket = dir.join("qmp.sock");
        let qemu = play(&socket, "{\"event\": \"STOP\"}\n{\"return\": {}}\n");
        command(&socket, "stop").unwrap();
        let got = qemu.join().unwrap();
        assert!(got[0].contains("qmp_capabilities"));
        assert_eq!(got[1], "{\"execute\": \"stop\"}\n");
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let dir = RunDir::new().unwrap();
        for (number, answer) in ["{\"error\": {\"class\": \"X\"}}\n", "what?\n", ""]
            .iter()
            .enumerate()
        {
            let socket = dir.join(format!("{number}.sock"));
            let qemu = play(&socket, answer);
            assert!(command(&socket, "stop").is_err(), "{answer:?}");
            qemu.join().unwrap();
        }
        assert!(command(&dir.join("nobody.sock"), "stop").is_err());
    }
}
