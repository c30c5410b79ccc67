use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vswitch_api::config::{Config, Environment};

use super::*;

/// What is waited for, by descriptor.
#[derive(Default)]
struct Watched(BTreeMap<RawFd, (Token, Interest)>);

impl Watch for Watched {
    fn watch(&mut self, fd: &dyn AsRawFd, token: Token) {
        let before = self.0.insert(fd.as_raw_fd(), (token, Interest::READ));
        assert_eq!(before, None);
    }
    fn rewatch(&mut self, fd: &dyn AsRawFd, token: Token, interest: Interest) {
        let before = self.0.insert(fd.as_raw_fd(), (token, interest));
        assert!(before.is_some());
    }
    fn unwatch(&mut self, fd: &dyn AsRawFd) {
        self.0.remove(&fd.as_raw_fd());
    }
}

impl Watched {
    fn interest(&self, token: Token) -> Option<Interest> {
        let found = self.0.values().find(|(of, _)| *of == token);
        found.map(|(_, interest)| *interest)
    }
}

/// A switch, its clients, and their ends of the sockets.
struct World {
    switch: Switch,
    clients: Clients,
    watch: Watched,
    ends: Vec<UnixStream>,
}

impl World {
    fn new(ends: usize) -> Self {
        let environment = Environment {
            allowed_cores: Some(vec![0]),
            runtime_dir: None,
        };
        let config = Config::default_config(&environment);
        let mut world = World {
            switch: Switch::start(&config, environment, None).unwrap(),
            clients: Clients::default(),
            watch: Watched::default(),
            ends: Vec::new(),
        };
        for _ in 0..ends {
            let (end, stream) = UnixStream::pair().unwrap();
            end.set_nonblocking(true).unwrap();
            world.clients.accept(stream, &mut world.watch);
            world.ends.push(end);
        }
        world
    }

    /// A client asks, under these numbers, and gets its turn.
    fn ask(&mut self, client: u16, requests: &[(u32, &str)]) {
        for (id, method) in requests {
            let line = format!(r#"{{"jsonrpc": "2.0", "id": {id}, "method": "{method}"}}"#);
            let end = &mut self.ends[usize::from(client)];
            end.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        self.turn(client);
    }

    fn turn(&mut self, client: u16) {
        self.clients
            .ready(client, &mut self.switch, &mut self.watch);
    }

    /// The numbers of the answers that are there.
    fn answers(&mut self, client: u16) -> Vec<u64> {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = self.ends[usize::from(client)].read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..n]);
        }
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let answers = lines.map(|line| {
            let answer: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert!(answer["result"].is_object(), "{answer}");
            answer["id"].as_u64().unwrap()
        });
        answers.collect()
    }

    /// Takes reports up until somebody was told.
    fn hear(&mut self) {
        let began = Instant::now();
        loop {
            let done = self.switch.reports();
            let any = !done.is_empty();
            for (order, made) in done {
                let (clients, switch) = (&mut self.clients, &mut self.switch);
                clients.rebalanced(order, made, switch, &mut self.watch);
            }
            if any {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "no report");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.switch.stop(&mut self.watch);
    }
}

const LONG: &str = methods::SteerRebalance::NAME;
const SHORT: &str = methods::GetVersion::NAME;

#[test]
fn nobody_else_waits_for_what_takes_long() {
    let mut world = World::new(2);
    world.ask(0, &[(1, LONG), (2, SHORT)]);
    world.ask(1, &[(3, methods::SteerTrace::NAME), (4, SHORT)]);
    assert_eq!(world.answers(1), [3, 4]);
    assert!(world.answers(0).is_empty(), "it is not done");
    assert_eq!(world.watch.interest(Token::Client(0)), None);
    world.hear();
    assert_eq!(world.answers(0), [1]);
    let back = world.watch.interest(Token::Client(0));
    assert!(back.is_some_and(|interest| interest.write), "there is more");
    world.turn(0);
    assert_eq!(world.answers(0), [2]);
    world.ask(0, &[(5, LONG)]);
    world.hear();
    assert_eq!(world.answers(0), [5]);
}

#[test]
fn all_who_ask_are_answered() {
    let mut world = World::new(3);
    for client in 0..3 {
        world.ask(client, &[(client.into(), LONG)]);
    }
    // Those who ask during a measurement have one of their own.
    let mut answered = Vec::new();
    while answered.len() < 3 {
        world.hear();
        answered.extend((0..3).flat_map(|client| world.answers(client)));
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2]);
}

#[test]
fn who_leaves_while_waiting_is_let_go() {
    let mut world = World::new(1);
    world.ask(0, &[(1, LONG), (2, SHORT)]);
    world.ends.clear();
    // The loop may have known before that there is something to read.
    world.turn(0);
    assert_eq!(world.watch.interest(Token::Client(0)), None);
    world.hear();
    assert!(world.clients.clients.iter().all(Option::is_none));
    assert_eq!(world.watch.interest(Token::Client(0)), None);
}

#[test]
fn lines_come_out_as_they_went_in_however_they_are_cut() {
    let text: Vec<u8> = (0..200u8)
        .flat_map(|n| [vec![b'a'; usize::from(n % 7)], vec![b'\n']].concat())
        .collect();
    for cut in 1..20 {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in text.chunks(cut) {
            lines.push(chunk);
            while let Some(line) = lines.next() {
                out.extend(line);
                out.push(b'\n');
            }
        }
        assert_eq!((out, lines.len()), (text.clone(), 0));
    }
}
