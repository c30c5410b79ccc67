//! What leads from one configuration to another.
//!
//! Two configurations are compared key by key in their written form, so a new key of the file is
//! part of every plan without being named here; only its [`Effect`] has to be. The order of the
//! changes is the order in which they can be made one by one: ports go, bridges change and come,
//! ports change and come, bridges go.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Config;

/// The changes that lead from one configuration to another, in the order in which they are made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The changes. Empty when both configurations say the same.
    pub changes: Vec<Change>,
}

/// A change to one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What is changed.
    pub subject: Subject,
    /// What happens to it.
    pub action: Action,
    /// What that means for guests.
    pub effect: Effect,
    /// The keys that differ; all of them when the subject comes or goes.
    pub fields: Vec<FieldChange>,
}

/// What a change is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The control socket.
    Control,
    /// The list of workers.
    Workers,
    /// Which worker handles what.
    Steering,
    /// Logging.
    Log,
    /// How DPDK is started.
    Dpdk,
    /// The bridge of this name.
    Bridge(String),
    /// The port of this name.
    Port(String),
}

/// What happens to the subject of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is new.
    Add,
    /// It goes.
    Remove,
    /// It stays, with other values.
    Change,
}

/// What a change means for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nobody notices: it is done while frames pass.
    Live,
    /// The port's guest is disconnected and connects again, or its device is opened again.
    Reconnect,
    /// It takes a restart of the daemon; applying a plan with such a change is refused whole.
    Restart,
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The key, below the subject, with dots: `vhost-user.queue-pairs`.
    pub key: String,
    /// Its value before, as YAML; absent when it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// Its value after, as YAML; absent when it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl Plan {
    /// Both configurations say the same.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The gravest effect of all; [`Effect::Live`] for an empty plan.
    pub fn effect(&self) -> Effect {
        self.changes
            .iter()
            .map(|change| change.effect)
            .max()
            .unwrap_or(Effect::Live)
    }
}

/// The changes from `old` to `new`, both complete as [`super::load`] makes them.
pub fn plan(old: &Config, new: &Config) -> Plan {
    let mut sections = Vec::new();
    for (subject, old, new) in [
        (Subject::Control, json(&old.control), json(&new.control)),
        (Subject::Log, json(&old.log), json(&new.log)),
        (Subject::Dpdk, json(&old.dpdk), json(&new.dpdk)),
        (Subject::Workers, json(&old.workers), json(&new.workers)),
        (Subject::Steering, json(&old.steering), json(&new.steering)),
    ] {
        sections.extend(change(subject, Some(&old), Some(&new)));
    }
    let bridges = each(&old.bridges, &new.bridges, Subject::Bridge);
    let ports = each(&old.ports, &new.ports, Subject::Port);
    let is = |action: Action| move |change: &&Change| change.action == action;
    let mut changes = sections;
    changes.extend(ports.iter().filter(is(Action::Remove)).cloned());
    // A port may take over the socket of one that goes, and needs its bridge.
    for action in [Action::Change, Action::Add] {
        changes.extend(bridges.iter().filter(is(action)).cloned());
    }
    for action in [Action::Change, Action::Add] {
        changes.extend(ports.iter().filter(is(action)).cloned());
    }
    changes.extend(bridges.iter().filter(is(Action::Remove)).cloned());
    Plan { changes }
}

fn json<T: Serialize>(value: &T) -> Value {
    // A configuration is plain data; its JSON form always exists.
    serde_json::to_value(value).unwrap_or(Value::Null)
}

fn each<T: Serialize>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    subject: fn(String) -> Subject,
) -> Vec<Change> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let side = |map: &BTreeMap<String, T>, name: &String| map.get(name).map(json);
    names
        .into_iter()
        .filter_map(|name| {
            change(
                subject(name.clone()),
                side(old, name).as_ref(),
                side(new, name).as_ref(),
            )
        })
        .collect()
}

fn change(subject: Subject, old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    let action = match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => Action::Add,
        (Some(_), None) => Action::Remove,
        (Some(_), Some(_)) => Action::Change,
    };
    let (old, new) = (leaves(old), leaves(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut effect = Effect::Live;
    let mut fields = Vec::new();
    for key in keys {
        let (before, after) = (old.get(key), new.get(key));
        if before != after {
            effect = effect.max(effect_of(&subject, action, key));
            let (old, new) = (before.cloned(), after.cloned());
            fields.push(FieldChange {
                key: key.clone(),
                old,
                new,
            });
        }
    }
    // A bridge with defaults only still comes and goes; a section without differences does not.
    (action != Action::Change || !fields.is_empty()).then_some(Change {
        subject,
        action,
        effect,
        fields,
    })
}

/// What changing a key means. A key that is not named here is assumed to disturb the guest.
fn effect_of(subject: &Subject, action: Action, key: &str) -> Effect {
    match (subject, action) {
        (Subject::Control | Subject::Dpdk, _) => Effect::Restart,
        (Subject::Workers | Subject::Steering | Subject::Log | Subject::Bridge(_), _) => {
            Effect::Live
        }
        (Subject::Port(_), Action::Add) => Effect::Live,
        (Subject::Port(_), Action::Remove) => Effect::Reconnect,
        (Subject::Port(_), Action::Change) => match key.split('.').next() {
            Some("bridge" | "vlan" | "learning" | "link") => Effect::Live,
            _ if key == "vhost-user.mac"
                || key.starts_with("vhost-user.offload.")
                || key.starts_with("vhost-user.coalesce.") =>
            {
                Effect::Live
            }
            _ => Effect::Reconnect,
        },
    }
}

/// The values of a block by dotted key; a list of plain values is one value.
fn leaves(value: Option<&Value>) -> BTreeMap<String, String> {
    fn walk(key: &str, value: &Value, out: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let dot = if key.is_empty() { "" } else { "." };
                    walk(&format!("{key}{dot}{name}"), value, out);
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (index, item) in items.iter().enumerate() {
                    walk(&format!("{key}[{index}]"), item, out);
                }
            }
            Value::String(text) => {
                out.insert(key.to_owned(), text.clone());
            }
            Value::Array(items) => {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| {
                        item.as_str()
                            .map_or_else(|| item.to_string(), str::to_owned)
                    })
                    .collect();
                out.insert(key.to_owned(), format!("[{}]", items.join(", ")));
            }
            Value::Null => {}
            plain => {
                out.insert(key.to_owned(), plain.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    if let Some(value) = value {
        walk("", value, &mut out);
    }
    out
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control socket"),
            Self::Workers => f.write_str("workers"),
            Self::Steering => f.write_str("steering"),
            Self::Log => f.write_str("log"),
            Self::Dpdk => f.write_str("dpdk"),
            Self::Bridge(name) => write!(f, "bridge {name}"),
            Self::Port(name) => write!(f, "port {name}"),
        }
    }
}

impl Change {
    /// What it means for guests, in words; empty when there is nothing to say.
    fn consequence(&self) -> &'static str {
        match (&self.subject, self.action, self.effect) {
            (_, _, Effect::Restart) => "needs a restart of vswitchd",
            (Subject::Port(_), Action::Remove, _) => "its link ends",
            (Subject::Port(_), _, Effect::Reconnect) => "its link is interrupted",
            (_, Action::Change, _) => "live",
            _ => "",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Add => '+',
            Action::Remove => '-',
            Action::Change => '~',
        };
        write!(f, "{sign} {}", self.subject)?;
        match self.consequence() {
            "" => {}
            words => write!(f, "  ({words})")?,
        }
        // What goes is known to who reads; what comes is shown, and what changes, both ways.
        if self.action == Action::Remove {
            return Ok(());
        }
        let width = self
            .fields
            .iter()
            .map(|field| field.key.len())
            .max()
            .unwrap_or(0);
        for FieldChange { key, old, new } in &self.fields {
            write!(f, "\n    {key:width$}  ")?;
            match (old, new) {
                (None, Some(new)) => f.write_str(new)?,
                (Some(old), None) => write!(f, "{old} -> removed")?,
                (old, new) => {
                    let text = |side: &Option<String>| side.clone().unwrap_or_default();
                    write!(f, "{} -> {}", text(old), text(new))?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    /// One block per change, as an operator reads it; ends with a newline unless empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes
            .iter()
            .try_for_each(|change| writeln!(f, "{change}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Port, PortKind, load};

    const OLD: &str = "
bridges: { br0: {}, br1: {} }
workers: [{ core: 1 }]
ports:
  vm1: { bridge: br0, vhost-user: { socket: /run/a.sock }, vlan: { access: 10 } }
  vm2: { bridge: br0, vhost-user: { socket: /run/b.sock } }
  vm3: { bridge: br0, vhost-user: { socket: /run/c.sock } }
";

    fn config(text: &str) -> Config {
        load(text, "test.yaml", &Environment::default()).unwrap()
    }

    #[test]
    fn the_same_needs_no_change() {
        let config = config(OLD);
        assert!(plan(&config, &config).is_empty());
        assert_eq!(plan(&config, &config).effect(), Effect::Live);
    }

    #[test]
    fn reads_like_a_diff() {
        let new = "
bridges: { br0: { mtu: 9000 }, br2: {} }
workers: [{ core: 1 }, { core: 2, busy-poll: never }]
steering: { rebalance: off, scale: all }
log: { level: debug }
ports:
  vm1: { bridge: br0, vhost-user: { socket: /run/a.sock }, vlan: { trunk: [10, 20-29], native: 1 } }
  vm3: { bridge: br2, vhost-user: { socket: /run/c.sock, queue-pairs: 2 } }
  nic: { bridge: br2, dpdk: { device: net_null0 } }
";
        let plan = plan(&config(OLD), &config(new));
        assert_eq!(plan.effect(), Effect::Reconnect);
        insta::assert_snapshot!(plan.to_string());
    }

    #[test]
    fn effects_are_no_graver_than_needed() {
        let old = config(OLD);
        let mut new = old.clone();
        let port: &mut Port = new.ports.get_mut("vm1").unwrap();
        port.learning = false;
        port.bridge = "br1".into();
        assert_eq!(plan(&old, &new).effect(), Effect::Live);
        let PortKind::VhostUser(vhost_user) = &mut new.ports.get_mut("vm1").unwrap().kind else {
            unreachable!()
        };
        vhost_user.offload.tso = false;
        vhost_user.offload.checksum = false;
        vhost_user.coalesce.policy = super::super::CoalescePolicy::PerBurst;
        vhost_user.coalesce.rx_usecs = Some(7);
        assert_eq!(plan(&old, &new).effect(), Effect::Live);
        new.workers.clear();
        new.steering.rebalance = super::super::Rebalance::Off;
        assert_eq!(plan(&old, &new).effect(), Effect::Live);
        new.ports.remove("vm2");
        assert_eq!(plan(&old, &new).effect(), Effect::Reconnect);
        let text = serde_json::to_string(&plan(&old, &new)).unwrap();
        assert_eq!(
            serde_json::from_str::<Plan>(&text).unwrap(),
            plan(&old, &new)
        );
    }
}
