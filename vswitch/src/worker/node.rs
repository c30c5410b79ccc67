//! Which NUMA node a core is on.

use std::path::Path;

use vswitch_flowtable::balance::Node;

/// The node of a core; 0 where the kernel knows of none.
pub fn of_core(core: u32) -> Node {
    node_below(Path::new("/sys/devices/system/cpu"), core).unwrap_or(Node(0))
}

/// A core's folder has a link that is named after its node.
fn node_below(cpus: &Path, core: u32) -> Option<Node> {
    let entries = std::fs::read_dir(cpus.join(format!("cpu{core}"))).ok()?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix("node")?.parse().ok().map(Node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_names_its_node() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu3/topology", "cpu3/node2", "cpu4/nodes"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        assert_eq!(node_below(dir.path(), 3), Some(Node(2)));
        assert_eq!(node_below(dir.path(), 4), None);
        assert_eq!(node_below(dir.path(), 5), None);
    }
}
