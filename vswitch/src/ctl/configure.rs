//! `vswitchctl config`.

use vswitch_api::config::{self, Action, ConfigErrors, Effect, Plan};
use vswitch_api::rpc::{ConfigChecked, ConfigInput, ConfigText};

use super::text::{Paint, counted};

/// The configuration that runs.
pub(super) fn shown(config: &ConfigText) -> String {
    let mut out = config.text.clone();
    if !config.runtime_ports.is_empty() {
        out += &format!(
            "# added at run time, not part of this: {}\n",
            config.runtime_ports.join(", ")
        );
    }
    out
}

/// Checks without a daemon, against this machine.
pub(super) fn check_here(input: &ConfigInput) -> ConfigChecked {
    let environment = crate::daemon::environment();
    let problems = match config::load(&input.text, &input.file, &environment) {
        Ok(_) => ConfigErrors {
            file: input.file.clone(),
            problems: Vec::new(),
        },
        Err(problems) => problems,
    };
    ConfigChecked { problems }
}

/// What a configuration would change, or has changed.
pub(super) fn plan(plan: &Plan, file: &str, applied: bool, paint: Paint) -> String {
    if plan.is_empty() {
        return format!("{file} is what runs; nothing to change\n");
    }
    let mut out = String::new();
    for change in &plan.changes {
        let text = change.to_string();
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        out += &match change.action {
            Action::Add => paint.good(first),
            Action::Remove => paint.bad(first),
            Action::Change => paint.waiting(first),
        };
        out.push('\n');
        if !rest.is_empty() {
            out += rest;
            out.push('\n');
        }
    }
    let changes = counted(plan.changes.len() as u64, "change", "changes");
    out += &match (applied, plan.effect()) {
        (true, _) => format!("\n{changes} applied\n"),
        (false, Effect::Live) => {
            format!(
                "
{changes}, all live: no link is interrupted
"
            )
        }
        (false, Effect::Reconnect) => format!("\n{changes}, with links interrupted as listed\n"),
        (false, Effect::Restart) => format!(
            "\n{changes}, of which some need a restart of vswitchd; `config apply` would refuse this\n"
        ),
    };
    out
}
