//! Where the pages of a memory file come from, found out without asking whoever provides them.
//!
//! A page of a mapped file that is not there yet is a fault, and the thread that touched it stands still until somebody
//! provides the page. That is the kernel alone for files in memory and on local disks. It is a process for files on FUSE,
//! another machine for files on a network: a front-end that chooses such a file decides when a worker goes on, or whether.
//!
//! The questions may wait as well: `fstat`, `fstatfs` and `close` of a file on FUSE do, uninterruptibly at worst, and what
//! `/proc/self/fdinfo` says of an epoll or a tun takes locks that its owner may never give back. So one is asked by whoever
//! comes along ([`has_seals`]), and all others by a thread that may wait ([`is_local`]):
//!
//! 1. Seals (`F_GET_SEALS`) are kept by the kernel for files on tmpfs and hugetlbfs, memfds among them, and for no others.
//! 2. `statx` with `AT_STATX_DONT_SYNC`, which FUSE answers from what it knows, names the mount that a file was opened through,
//!    and `/proc/self/mountinfo` what is mounted there. The number of a mount is nobody else's while a file on it is open.
//!    Before Linux 5.8 `fdinfo` names it.
//! 3. A front-end in a mount namespace of its own, as libvirt's QEMU is, has mounts that are not in our list; nor has it if
//!    the switch is in one, as by its systemd unit. Then the device stands for the file system.
//! 4. Subvolumes of btrfs have devices that are in no list. The type of their file handles (`name_to_handle_at`, made up by the
//!    kernel) is one that few others use, and `fstatfs` names btrfs.
//!
//! What is not known after them is not accepted.
//!
//! The list is of what is accepted, because a file system that is missing there costs its user a line of configuration,
//! while one too many costs the host's other guests their network. It names no file system that is laid over others
//! (overlay, eCryptfs: any user may lay one over FUSE), and none whose locks go over a network (GFS2, OCFS2).

use std::ffi::{c_int, c_uint};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, fcntl_get_seals, fstat, fstatfs, statx};

/// Which files are accepted as a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MemoryFiles {
    /// Those whose pages the kernel alone provides: in memory (tmpfs, memfd, hugetlbfs) or on a local disk.
    #[default]
    Local,
    /// All, also those whose pages may never come: the front-end can stop whoever touches its memory or its descriptors.
    Any,
}

/// Why a file is not accepted as memory.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// It is on a file system that is not on the list.
    #[error(
        "a memory region's file is on {0}, whose pages a process or another machine may have to provide, and a worker would \
         wait for them; use a memfd, a file on tmpfs, hugetlbfs or a local disk, or set the port's `memory-files: any` if \
         its front-end may stop the switch"
    )]
    FileSystem(String),
    /// It is on none that can be named.
    #[error(
        "a memory region's file is on no file system that the switch sees mounted, so nobody knows who provides its pages; \
         use a memfd, a file on tmpfs, hugetlbfs or a local disk, or set the port's `memory-files: any` if its front-end \
         may stop the switch"
    )]
    Unknown,
    /// A device, or something else that provides pages by itself.
    #[error(
        "a memory region is no regular file but a device or the like; use a memfd, or a file on tmpfs, hugetlbfs or a local \
         disk"
    )]
    NotAFile,
    /// Who was asked does not answer.
    #[error(
        "the file system of a memory region's file does not answer; use a memfd, or a file on tmpfs, hugetlbfs or a local \
         disk"
    )]
    Silent,
    /// `/proc` or the kernel refused.
    #[error("where a memory region's pages come from could not be found out")]
    System(#[source] io::Error),
}

/// File systems whose pages come from memory or from a disk of this machine, as `mountinfo` calls them.
const LOCAL: [&str; 14] = [
    "tmpfs",
    "hugetlbfs",
    "ramfs",
    "devtmpfs",
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "f2fs",
    "bcachefs",
    "jfs",
    "nilfs2",
    "zfs",
];

/// `BTRFS_SUPER_MAGIC`.
const BTRFS: u32 = 0x9123_683e;

/// Types of file handles that btrfs makes: `FILEID_BTRFS_*` in `include/linux/exportfs.h`. Ceph makes some of these numbers
/// as well.
const BTRFS_HANDLES: std::ops::RangeInclusive<c_int> = 0x4d..=0x4f;

/// Whether the kernel alone provides a file's pages: steps 2 to 4. Whoever serves the file may be asked, and keep us waiting.
pub(crate) fn is_local(file: impl AsFd) -> Result<(), OriginError> {
    let place = Place::of(&file)?;
    match kind_of(&place)? {
        Some(kind) => judge(&kind, file),
        None if is_btrfs(&file) => judge("btrfs", file),
        None => Err(OriginError::Unknown),
    }
}

/// What is mounted there, if it is in our list of mounts.
fn kind_of(place: &Place) -> Result<Option<String>, OriginError> {
    let mounts = fs::read("/proc/self/mountinfo").map_err(OriginError::System)?;
    let mounts = || mounts.split(|byte| *byte == b'\n').filter_map(Mount::parse);
    let found = mounts()
        .find(|mount| Some(mount.id) == place.mount)
        .or_else(|| mounts().find(|mount| mount.device == place.device));
    Ok(found.map(|mount| mount.kind))
}

/// Where a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    mount: Option<u64>,
    device: (u32, u32),
}

impl Place {
    fn of(file: impl AsFd) -> Result<Self, OriginError> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let status = statx(&file, c"", flags, StatxFlags::MNT_ID).map_err(system)?;
        let Statx {
            stx_mask: mask,
            stx_mnt_id: mount,
            stx_dev_major: major,
            stx_dev_minor: minor,
            ..
        } = status;
        let named = StatxFlags::from_bits_retain(mask).contains(StatxFlags::MNT_ID);
        Ok(Self {
            mount: if named {
                Some(mount)
            } else {
                named_by_fdinfo(file)?
            },
            device: (major, minor),
        })
    }
}

fn named_by_fdinfo(file: impl AsFd) -> Result<Option<u64>, OriginError> {
    /// The kernel's lines come first; those of the file may be any number.
    const ENOUGH: u64 = 256;
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let mut info = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(ENOUGH).read_to_end(&mut info))
        .map_err(OriginError::System)?;
    Ok(mount_of(&info))
}

fn is_btrfs(file: impl AsFd) -> bool {
    // The handle first, which FUSE makes up without its server. The type of a file system is 32 bits, whatever its sign.
    handle_type(&file).is_some_and(|kind| BTRFS_HANDLES.contains(&kind))
        && fstatfs(file).is_ok_and(|status| status.f_type as u32 == BTRFS)
}

/// Whether a file is in memory: a memfd, or on tmpfs or hugetlbfs. Asks nobody, and closing such a file asks nobody either.
pub(crate) fn has_seals(file: impl AsFd) -> bool {
    fcntl_get_seals(file).is_ok()
}

fn judge(kind: &str, file: impl AsFd) -> Result<(), OriginError> {
    if !LOCAL.contains(&kind) {
        return Err(OriginError::FileSystem(kind.to_owned()));
    }
    // Now that it is the kernel who answers. A device's file is on the disk, its pages are not.
    let status = fstat(file).map_err(system)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(OriginError::NotAFile),
    }
}

fn system(error: rustix::io::Errno) -> OriginError {
    OriginError::System(error.into())
}

/// The mount in a descriptor's `fdinfo`. What the file itself has to say comes behind it.
fn mount_of(info: &[u8]) -> Option<u64> {
    let mut lines = info.split(|byte| *byte == b'\n');
    let id = lines.find_map(|line| line.strip_prefix(b"mnt_id:"))?;
    std::str::from_utf8(id).ok()?.trim().parse().ok()
}

/// A line of `mountinfo`, as far as it matters. See proc_pid_mountinfo(5).
#[derive(PartialEq, Eq, Debug)]
struct Mount {
    id: u64,
    device: (u32, u32),
    kind: String,
}

impl Mount {
    /// Fields are parted by blanks; the kernel writes a blank within one as `\040`, so that nobody can add a field by
    /// the name of a folder.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let text = |field: Option<&[u8]>| std::str::from_utf8(field?).ok().map(str::to_owned);
        let id = text(fields.next())?.parse().ok()?;
        let device = text(fields.nth(1))?;
        let (major, minor) = device.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        // Root, mount point, options; then as many optional fields as there are.
        let mut rest = fields.skip(3).skip_while(|field| *field != b"-");
        let kind = text(rest.nth(1))?;
        Some(Self { id, device, kind })
    }
}

/// The type of the file's handle, if its file system has handles. Which one it is is of no interest.
fn handle_type(file: impl AsFd) -> Option<c_int> {
    /// `MAX_HANDLE_SZ`.
    const LARGEST: usize = 128;
    /// `struct file_handle` with the largest handle.
    #[repr(C)]
    struct Handle {
        bytes: c_uint,
        kind: c_int,
        handle: [u8; LARGEST],
    }
    let mut handle = Handle {
        bytes: LARGEST as c_uint,
        kind: 0,
        handle: [0; LARGEST],
    };
    let mut mount: c_int = 0;
    // SAFETY: an empty path that is terminated, and room for a handle of the size it names and for a mount's number.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    (named == 0).then_some(handle.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn memfd() -> OwnedFd {
        rustix::fs::memfd_create("origin", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn memfds_are_memory_whatever_may_be_done_to_them() {
        use rustix::fs::{MemfdFlags, memfd_create};
        assert!(has_seals(memfd()));
        let sealable = memfd_create("sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        assert!(has_seals(sealable.unwrap()));
    }

    #[test]
    fn files_on_disk_are_known_by_mount_and_by_device() {
        let file = tempfile::tempfile().unwrap();
        let place = Place::of(&file).unwrap();
        let by_mount = kind_of(&place).unwrap();
        let no_mount = Place {
            mount: None,
            ..place
        };
        let by_device = kind_of(&no_mount).unwrap();
        let Some(kind) = by_mount else {
            // Not on our list of mounts: then nothing is known by device either.
            return;
        };
        // A subvolume's device is on no list.
        assert!(by_device.is_none_or(|by_device| by_device == kind));
        let local = LOCAL.contains(&kind.as_str());
        assert_eq!(is_local(&file).is_ok(), local, "{kind}");
    }

    #[test]
    fn both_ways_name_the_same_mount() {
        let file = fs::File::open("/proc/self/status").unwrap();
        let place = Place::of(&file).unwrap();
        let by_fdinfo = named_by_fdinfo(&file).unwrap();
        assert!(by_fdinfo.is_some());
        assert_eq!(place.mount, by_fdinfo);
        assert_eq!(kind_of(&place).unwrap().as_deref(), Some("proc"));
    }

    #[test]
    fn what_is_no_file_of_a_known_file_system_is_refused() {
        let proc = fs::File::open("/proc/self/status").unwrap();
        assert!(matches!(is_local(&proc), Err(OriginError::FileSystem(kind)) if kind == "proc"));
        // Pipes are mounted nowhere, and so are epolls.
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let flags = rustix::event::epoll::CreateFlags::CLOEXEC;
        let watch = rustix::event::epoll::create(flags).unwrap();
        for fd in [pipe, watch] {
            assert!(!has_seals(&fd) && !is_btrfs(&fd));
            assert!(matches!(is_local(&fd), Err(OriginError::Unknown)));
        }
    }

    #[test]
    fn devices_are_refused_where_their_file_is_accepted() {
        let null = fs::File::open("/dev/null").unwrap();
        let refused = is_local(&null).unwrap_err();
        // In containers it may be on something else again.
        assert!(
            matches!(refused, OriginError::NotAFile | OriginError::FileSystem(_)),
            "{refused:?}"
        );
        assert!(matches!(
            judge("devtmpfs", &null),
            Err(OriginError::NotAFile)
        ));
    }

    #[test]
    fn only_listed_names_are_accepted() {
        let file = memfd();
        for kind in ["ext4", "xfs", "btrfs", "tmpfs", "hugetlbfs"] {
            assert!(judge(kind, &file).is_ok(), "{kind}");
        }
        for kind in [
            "fuse",
            "fuseblk",
            "fuse.sshfs",
            "virtiofs",
            "nfs4",
            "9p",
            "cifs",
            "ceph",
            "overlay",
            "ext4x",
            "",
        ] {
            let refused = judge(kind, &file).unwrap_err();
            assert!(matches!(refused, OriginError::FileSystem(name) if name == kind));
        }
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let parse = |line: &str| Mount::parse(line.as_bytes());
        let mount = |id, device, kind: &str| {
            Some(Mount {
                id,
                device,
                kind: kind.to_owned(),
            })
        };
        assert_eq!(
            parse(
                "43 27 0:39 / /mnt/a\\040b\\040-\\040ext4 rw,relatime shared:7 master:1 - fuse.x a\\040b rw,user_id=0"
            ),
            mount(43, (0, 39), "fuse.x")
        );
        assert_eq!(
            parse("27 1 254:1 / / rw,relatime - ext4 /dev/vda rw"),
            mount(27, (254, 1), "ext4")
        );
        // A folder's name need not be text.
        let line = b"9 1 8:2 / /mnt/\xff rw - xfs /dev/sdb rw";
        assert_eq!(Mount::parse(line), mount(9, (8, 2), "xfs"));
        for broken in [
            "",
            "43",
            "43 27 0-39 / / rw - ext4 x rw",
            "43 27 0:39 / / rw ext4",
            "x 27 0:39 / / rw - ext4 x rw",
        ] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn the_kernels_line_about_the_mount_comes_first() {
        let info = b"pos:\t0\nflags:\t02100002\nmnt_id:\t43\nino:\t2\nname:\tx\nmnt_id:\t1\n";
        assert_eq!(mount_of(info), Some(43));
        assert_eq!(mount_of(b"pos:\t0\n"), None);
    }
}
