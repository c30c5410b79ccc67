//! Where a core is: on which NUMA node, and which cores are close to it.

use std::path::Path;

use vswitch_flowtable::balance::Node;

const CPUS: &str = "/sys/devices/system/cpu";

/// The node of a core; 0 where the kernel knows of none.
pub fn of_core(core: u32) -> Node {
    node_below(Path::new(CPUS), core).unwrap_or(Node(0))
}

/// A core's folder has a link that is named after its node.
fn node_below(cpus: &Path, core: u32) -> Option<Node> {
    let entries = std::fs::read_dir(cpus.join(format!("cpu{core}"))).ok()?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix("node")?.parse().ok().map(Node))
}

/// The groups that a core is in, each named by the lowest of its CPUs; `None` where the kernel does not tell, as in virtual
/// machines that are not told either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kin {
    /// Those that share its last-level cache.
    pub cache: Option<u32>,
    /// Those that are threads of the same core of the processor.
    pub threads: Option<u32>,
}

/// How far two cores are from each other; less is closer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Distance {
    /// They share no cache, or nobody knows.
    other_cache: bool,
    /// They are one core's threads, and share its time as well.
    same_core: bool,
}

impl Kin {
    /// That of a core.
    pub fn of_core(core: u32) -> Self {
        Self::below(Path::new(CPUS), core)
    }

    fn below(cpus: &Path, core: u32) -> Self {
        let cpu = cpus.join(format!("cpu{core}"));
        Kin {
            cache: last_level(&cpu.join("cache")),
            threads: group(&cpu.join("topology/thread_siblings_list")),
        }
    }

    /// How far it is from here to another core.
    pub fn distance(self, other: Self) -> Distance {
        let same = |a: Option<u32>, b: Option<u32>| a.is_some() && a == b;
        Distance {
            other_cache: !same(self.cache, other.cache),
            same_core: same(self.threads, other.threads),
        }
    }
}

/// Who shares the data or unified cache of the highest level.
fn last_level(caches: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(caches).ok()?;
    let caches = entries.filter_map(|entry| {
        let cache = entry.ok()?.path();
        let read = |name: &str| std::fs::read_to_string(cache.join(name)).ok();
        let level: u32 = read("level")?.trim().parse().ok()?;
        let holds_data = read("type")?.trim() != "Instruction";
        holds_data.then(|| group(&cache.join("shared_cpu_list")).map(|group| (level, group)))?
    });
    caches.max().map(|(_, group)| group)
}

/// What a group in a file is called.
fn group(file: &Path) -> Option<u32> {
    lowest(&std::fs::read_to_string(file).ok()?)
}

/// The lowest CPU of a list as the kernel writes it: numbers and ranges, `0-3,8,10-11`.
fn lowest(list: &str) -> Option<u32> {
    let mut least = None;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let first = (first <= last).then_some(first)?;
        least = Some(least.map_or(first, |least: u32| least.min(first)));
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, file: &str, text: &str) {
        let file = dir.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

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

    #[test]
    fn a_list_of_cpus_is_named_by_its_lowest() {
        for (list, wanted) in [
            ("0\n", 0),
            ("4-7\n", 4),
            ("10-11,3,8-9", 3),
            ("0-3,64-67\n", 0),
        ] {
            assert_eq!(lowest(list), Some(wanted), "{list}");
        }
        for list in [
            "",
            "\n",
            "a",
            "1-",
            "-1",
            "3-1",
            "1,,2",
            "1,x",
            "0x1",
            "4294967296",
        ] {
            assert_eq!(lowest(list), None, "{list}");
        }
    }

    #[test]
    fn the_last_level_is_the_highest_that_holds_data() {
        let dir = tempfile::tempdir().unwrap();
        let cache = |core: u32, index: u32, [level, of, cpus]: [&str; 3]| {
            let at = format!("cpu{core}/cache/index{index}");
            for (name, text) in [("level", level), ("type", of), ("shared_cpu_list", cpus)] {
                write(dir.path(), &format!("{at}/{name}"), &format!("{text}\n"));
            }
        };
        // Levels in no order, one of instructions above the last, one that cannot be read.
        cache(5, 0, ["3", "Unified", "4-7,12-15"]);
        cache(5, 1, ["1", "Data", "5,13"]);
        cache(5, 2, ["4", "Instruction", "5"]);
        cache(5, 3, ["5", "Unified", "?"]);
        cache(9, 0, ["2", "Unified", "9"]);
        write(dir.path(), "cpu5/cache/uevent", "");
        let threads = |core| format!("cpu{core}/topology/thread_siblings_list");
        write(dir.path(), &threads(5), "5,13\n");
        let kin = |cache, threads| Kin { cache, threads };
        assert_eq!(Kin::below(dir.path(), 5), kin(Some(4), Some(5)));
        assert_eq!(Kin::below(dir.path(), 9), kin(Some(9), None));
        assert_eq!(Kin::below(dir.path(), 1), Kin::default());
    }

    #[test]
    fn a_shared_cache_is_closer_than_none_and_another_core_than_the_same() {
        let kin = |cache, threads| Kin {
            cache: Some(cache),
            threads: Some(threads),
        };
        let here = kin(0, 1);
        let by_distance = [kin(0, 2), kin(0, 1), kin(4, 4)];
        assert!(by_distance.is_sorted_by(|a, b| here.distance(*a) < here.distance(*b)));
        // Nothing is known: nobody is closer than others.
        let unknown = Kin::default();
        assert_eq!(unknown.distance(unknown), unknown.distance(here));
        assert_eq!(here.distance(unknown), here.distance(kin(4, 4)));
    }
}
