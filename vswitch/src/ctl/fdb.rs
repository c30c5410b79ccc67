//! `vswitchctl fdb show`.

use vswitch_api::rpc::FdbList;

use super::text::{Paint, Table, duration};

/// The addresses that bridges know.
pub(super) fn render(list: &FdbList, paint: Paint) -> String {
    if list.entries.is_empty() {
        return "no addresses are known\n".into();
    }
    let mut table = Table::new(&["BRIDGE", ">VLAN", "ADDRESS", "PORT", "LAST SEEN"]);
    for entry in &list.entries {
        let seen = match (entry.is_static, entry.idle_s) {
            (true, _) => paint.faint("static"),
            (false, Some(0)) => "now".into(),
            (false, Some(idle)) => format!("{} ago", duration(idle)),
            (false, None) => "-".into(),
        };
        table.row([
            entry.bridge.clone(),
            entry
                .vlan
                .map_or_else(|| "-".into(), |vlan| vlan.to_string()),
            entry.mac.to_string(),
            entry.port.clone(),
            seen,
        ]);
    }
    table.render(paint)
}
