//! The documentation says what is so: its examples are read, its lists are complete.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use serde_json::Value;
use vswitch_api::config::{Environment, load};
use vswitch_api::rpc::{
    self, CAPTURE_FRAMES, CaptureFrames, Method, Notification, Request, code, methods,
};

fn page(name: &str) -> String {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The blocks of a language in a text.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn configurations_load() {
    let page = page("configuration.md");
    let examples = blocks(&page, "yaml");
    assert_eq!(examples.len(), 2);
    for text in examples {
        let config = load(text, "docs", &Environment::default()).unwrap_or_else(|e| panic!("{e}"));
        assert!(!config.ports.is_empty());
    }
}

/// Every key that a configuration can have is on the page.
#[test]
fn every_key_is_documented() {
    let page = page("configuration.md");
    let full = "
control: { owner: root }
workers: [{ core: 0 }]
dpdk: { extra-args: [x] }
bridges: { br0: { static-macs: [{ mac: 52:54:00:00:00:01, vlan: 10, port: a }] } }
ports:
  a: { vhost-user: { socket: /run/a, mac: 52:54:00:00:00:01, owner: root,
    coalesce: { rx-usecs: 1, rx-frames: 1, tx-usecs: 1, tx-frames: 1, cpu-percent: 1, max-delay-usecs: 1 } }, vlan: { trunk: [10], native: 1 } }
  b: { dpdk: { device: d } }
  c: { dpdk: { device: e }, vlan: { access: 10 } }
";
    let config = load(full, "full", &Environment::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut keys = Vec::new();
    collect(&serde_json::to_value(config).unwrap(), &mut keys);
    for key in keys
        .iter()
        .filter(|key| !["a", "b", "c", "br0"].contains(&key.as_str()))
    {
        let found = [
            format!("`{key}`"),
            format!(": {key}`"),
            format!("{{ {key}:"),
            format!(", {key}:"),
        ];
        assert!(
            found.iter().any(|form| page.contains(form)),
            "`{key}` is not documented"
        );
    }
}

fn collect(value: &Value, keys: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            keys.push(key.clone());
            collect(value, keys);
        }),
        Value::Array(items) => items.iter().for_each(|item| collect(item, keys)),
        _ => {}
    }
}

/// Parameters of the section's request and its result are what the method takes and gives.
fn example<M: Method>(page: &str) {
    let heading = format!("\n## `{}`\n", M::NAME);
    let section = page
        .split(&heading)
        .nth(1)
        .unwrap_or_else(|| panic!("no section {}", M::NAME));
    let section = section.split("\n## ").next().unwrap();
    let examples = blocks(section, "json");
    let request = Request::parse(examples[0].replace('\n', " ").as_bytes()).unwrap();
    assert_eq!(request.method, M::NAME);
    request.params::<M>().unwrap_or_else(|e| panic!("{e}"));
    if let Some(result) = examples.get(1) {
        let value: Value = serde_json::from_str(result).unwrap_or_else(|e| panic!("{result}: {e}"));
        let known: M::Result = serde_json::from_value(value.clone())
            .unwrap_or_else(|e| panic!("result of {}: {e}", M::NAME));
        // Nothing in the example is made up, and nothing is missing.
        assert_eq!(serde_json::to_value(known).unwrap(), value, "{}", M::NAME);
    }
}

#[test]
fn every_method_has_an_example_that_is_right() {
    let page = page("control.md");
    macro_rules! all {
        ($($method:ident)*) => {{
            $(example::<methods::$method>(&page);)*
            assert_eq!(methods::NAMES.len(), [$(methods::$method::NAME),*].len());
        }};
    }
    all!(GetVersion Show PortShow PortAdd PortRemove PortSet FdbShow FdbAdd FdbDel FdbFlush
        GetCounters Workers SteerShow SteerRebalance SteerSet SteerShare SteerTrace CoalesceShow CoalesceSet ConfigShow ConfigCheck ConfigDiff ConfigApply CaptureStart CaptureStop);
    let news = blocks(&page, "json")
        .into_iter()
        .find(|block| block.contains(CAPTURE_FRAMES));
    let news: Notification = serde_json::from_str(news.unwrap()).unwrap();
    let frames: CaptureFrames = serde_json::from_value(news.params).unwrap();
    assert_eq!(frames.frames.len(), 1);
}

#[test]
fn the_example_of_a_check_is_what_a_check_says() {
    let page = page("control.md");
    let block = blocks(&page, "json")
        .into_iter()
        .find(|b| b.contains("out of range"))
        .unwrap();
    let shown: rpc::ConfigChecked = serde_json::from_str(block).unwrap();
    let text = "bridges: { br0: { mtu: 9 } }";
    let found = load(text, "new.yaml", &Environment::default()).unwrap_err();
    assert_eq!(shown.problems, found);
}

#[test]
fn every_error_code_is_listed() {
    let page = page("control.md");
    for number in [
        code::PARSE,
        code::INVALID_REQUEST,
        code::METHOD_NOT_FOUND,
        code::INVALID_PARAMS,
        code::INTERNAL,
        code::CONFIG,
        code::NOT_FOUND,
        code::EXISTS,
        code::NEEDS_RESTART,
        code::SYSTEM,
        code::LIMIT,
        code::UNSUPPORTED,
    ] {
        assert!(page.contains(&format!("| {number} |")), "{number}");
    }
}
