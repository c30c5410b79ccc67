//! What memory a process takes: its private pages and its hugepages, without its guests' memory.
//!
//! Read from `/proc/PID/smaps` (proc(5)). *Private* are the pages that nobody else maps; that leaves out libraries that
//! other programs have loaded too. *Huge* are the hugepages mapped, whoever else maps them. Guest memory is mapped by
//! the switch but is not the switch's: the guests live in this process, so every file that this process maps shared is
//! theirs. Kernel memory (page tables, socket buffers) is not counted.

use std::collections::HashSet;
use std::fs;

use serde::Serialize;

use crate::{Error, Result};

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Resident ordinary pages that only this process maps.
    pub private_kib: u64,
    /// Hugepages.
    pub huge_kib: u64,
    /// Resident guest memory, which is not counted in the others.
    pub guests_kib: u64,
}

/// A file as mappings name it: device and inode.
type File<'t> = (&'t str, &'t str);

impl Footprint {
    /// Of a running process whose guests live in this one.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |path: String| {
            fs::read_to_string(&path).map_err(Error::io(format!("read {path} (that takes root)")))
        };
        let ours = read("/proc/self/maps".into())?;
        Ok(sum(
            &read(format!("/proc/{pid}/smaps"))?,
            &shared_files(&ours),
        ))
    }

    /// What counts, KiB.
    pub fn total_kib(&self) -> u64 {
        self.private_kib + self.huge_kib
    }
}

/// A mapping's first line: where it is, and what of.
struct Mapping<'t> {
    shared: bool,
    file: File<'t>,
}

/// Reads `start-end perms offset device inode [path]`; `None` for any other line.
fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex(start) || !hex(end) {
        return None;
    }
    let shared = words.next()?.ends_with('s');
    let file = (words.nth(1)?, words.next()?);
    Some(Mapping { shared, file })
}

/// The files that are mapped shared.
fn shared_files(maps: &str) -> HashSet<File<'_>> {
    let shared = maps.lines().filter_map(mapping).filter(|m| m.shared);
    shared
        .map(|m| m.file)
        .filter(|(_, inode)| *inode != "0")
        .collect()
}

fn sum(smaps: &str, guests: &HashSet<File<'_>>) -> Footprint {
    let mut footprint = Footprint::default();
    let mut of_guest = false;
    for line in smaps.lines() {
        if let Some(mapping) = mapping(line) {
            of_guest = mapping.shared && guests.contains(&mapping.file);
        } else if let Some((key, kib)) = amount(line) {
            // Rss leaves hugepages out, so nothing is counted twice.
            match key {
                "Rss" | "Private_Hugetlb" | "Shared_Hugetlb" if of_guest => {
                    footprint.guests_kib += kib;
                }
                _ if of_guest => {}
                "Private_Clean" | "Private_Dirty" => footprint.private_kib += kib,
                "Private_Hugetlb" | "Shared_Hugetlb" => footprint.huge_kib += kib,
                _ => {}
            }
        }
    }
    footprint
}

/// A line like `Rss:   4 kB`.
fn amount(line: &str) -> Option<(&str, u64)> {
    let (key, rest) = line.split_once(':')?;
    Some((key, rest.trim().strip_suffix(" kB")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_simguest::memory::{Layout, Memory};

    /// A program's text, its heap, guest memory in ordinary pages and in hugepages, hugepages of its own.
    const SMAPS: &str = "\
55d0c0a00000-55d0c0b00000 r-xp 00001000 fe:00 1234                       /usr/sbin/vswitchd
Rss:                 600 kB
Shared_Clean:        200 kB
Private_Clean:       400 kB
Private_Dirty:         0 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0                          [heap]
Rss:                 100 kB
Private_Dirty:       100 kB
7f1000000000-7f1002000000 rw-s 00000000 00:01 77                         /memfd:guest (deleted)
Rss:                5000 kB
Private_Dirty:      3000 kB
Shared_Dirty:       2000 kB
7f2000000000-7f2002000000 rw-s 00000000 00:0f 78                         /memfd:huge guest (deleted)
Rss:                   0 kB
Shared_Hugetlb:     4096 kB
Private_Hugetlb:       0 kB
7f3000000000-7f3002000000 rw-p 00000000 00:0f 90                         /anon_hugepage (deleted)
Rss:                   0 kB
Private_Hugetlb:    8192 kB
VmFlags: rd wr mr mw me ht
";

    #[test]
    fn guest_memory_is_not_the_switchs() {
        let ours = "7e00-7e01 rw-s 00000000 00:01 77 /memfd:guest (deleted)\n\
             7e02-7e03 rw-s 00000000 00:0f 78 /memfd:huge guest (deleted)\n\
             7e04-7e05 r-xp 00000000 fe:00 1234 /usr/sbin/vswitchd\n\
             7e06-7e07 rw-p 00000000 00:00 0\n";
        assert_eq!(
            sum(SMAPS, &shared_files(ours)),
            Footprint {
                private_kib: 500,
                huge_kib: 8192,
                guests_kib: 9096
            }
        );
        let all = sum(SMAPS, &HashSet::new());
        assert_eq!((all.private_kib, all.huge_kib), (3500, 12288));
        assert_eq!(all.total_kib(), 15788);
    }

    #[test]
    fn only_first_lines_name_a_mapping() {
        assert!(mapping("VmFlags: rd wr mr mw me ht").is_none());
        assert!(mapping("Rss:                 600 kB").is_none());
        assert!(mapping("7e00-7e01 rw-s 00000000 00:01 77").is_some_and(|m| m.shared));
        assert_eq!(amount("VmFlags: rd wr"), None);
        assert_eq!(amount("Pss:  7 kB"), Some(("Pss", 7)));
    }

    #[test]
    fn our_own_pages_are_seen_and_shared_ones_are_guests() {
        const MIB: usize = 1 << 20;
        let before = Footprint::of(std::process::id()).unwrap();
        // Larger than what allocators keep, so it is mapped anew.
        let buffer = std::hint::black_box(vec![1u8; 64 * MIB]);
        let with_buffer = Footprint::of(std::process::id()).unwrap();
        assert!(with_buffer.private_kib >= before.private_kib + 60 * 1024);
        drop(buffer);
        let memory = Memory::new(&Layout::single(32 << 20)).unwrap();
        memory.write(0, &vec![1; 16 * MIB]);
        let with_guest = Footprint::of(std::process::id()).unwrap();
        assert!(with_guest.guests_kib >= before.guests_kib + 16 * 1024);
        assert!(with_guest.private_kib < with_buffer.private_kib);
        assert!(Footprint::of(u32::MAX).is_err());
    }
}
