//! Finds network namespaces by the `ns/net` links of processes and the mounts below `/run/netns`
//! and `/run/docker/netns`, and runs code inside a namespace.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::snapshot::{NetnsId, escaped};

/// Directories of network namespace mounts, relative to the root: `ip netns`, and Docker.
const MOUNTS: [&str; 2] = ["run/netns", "run/docker/netns"];

/// Number of looks in which a new process is inspected again.
const YOUNG_LOOKS: u64 = 3;
/// Number of old processes that one look inspects.
const OLD_PER_LOOK: usize = 1_000;

/// Result of one discovery.
#[derive(Debug, Default)]
pub struct FoundNetns {
    /// The namespaces.
    pub namespaces: BTreeMap<NetnsId, Entrance>,
    /// Number of processes whose namespace is known.
    pub seen: usize,
    /// Number of processes whose namespace link could not be read.
    pub denied: usize,
}

/// A path into a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// File that refers to the namespace while its process or mount exists.
    pub path: PathBuf,
    /// Name of the namespace's mount.
    pub mount: Option<String>,
    /// Lowest pid of a process in the namespace.
    pub pid: Option<u32>,
}

// === impl FoundNetns ===

impl FoundNetns {
    /// Whether most processes of the machine could not be inspected.
    pub fn is_blind(&self) -> bool {
        self.denied > self.seen
    }
}

/// Returns the namespace of the calling process's main thread.
pub fn own(procfs: &Path) -> io::Result<NetnsId> {
    fs::metadata(procfs.join("self/ns/net")).map(|metadata| id(&metadata))
}

/// Whether `procfs` shows the processes of the whole machine.
///
/// The procfs of a nested pid namespace shows only its own processes. Kernel threads live outside
/// of nested pid namespaces, and `kthreadd` is always process 2 on the machine. The name of a
/// process is no evidence, because a process can choose its name.
pub fn shows_host(procfs: &Path) -> bool {
    fs::read_to_string(procfs.join("2/stat")).is_ok_and(|stat| is_kernel_thread(&stat))
}

/// Whether the flags in the `stat` file of a process contain `PF_KTHREAD`.
fn is_kernel_thread(stat: &str) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    const FLAGS_AFTER_NAME: usize = 6;
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(FLAGS_AFTER_NAME));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// Returns the user who created the user namespace of process `pid`, as seen from our user
/// namespace; `None` if that namespace is our own.
///
/// The kernel reports the owner of a user namespace through an `ioctl`, which requires unsafe code.
/// This function returns the user id that the namespace's root maps to instead: without a
/// set-user-id helper a user can map only its own id.
pub fn maker(procfs: &Path, pid: u32) -> Option<u32> {
    let directory = procfs.join(pid.to_string());
    let map = fs::read_to_string(directory.join("uid_map")).ok()?;
    if fs::read_to_string(procfs.join("self/uid_map")).is_ok_and(|own| own == map) {
        return None;
    }
    let mapped = map.split_ascii_whitespace().nth(1).and_then(|uid| uid.parse().ok());
    // Nothing is mapped yet: the process itself runs as the creator.
    mapped.or_else(|| {
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        ids.split_ascii_whitespace().nth(1)?.parse().ok()
    })
}

/// Processes whose namespace is known from earlier looks.
///
/// Inspecting one process takes 15 µs. A look therefore inspects new processes, young processes
/// again (a container runtime starts a process before the process enters its namespace), one
/// process of each namespace, and a part of the old processes in turn.
#[derive(Debug, Default)]
pub struct Processes {
    known: BTreeMap<u32, KnownProcess>,
    look: u64,
    /// The old process inspected last.
    last: u32,
}

#[derive(Clone, Copy, Debug)]
struct KnownProcess {
    /// Inode of its directory, which differs if the pid is used again.
    directory: u64,
    /// `None` if the process denies access.
    netns: Option<NetnsId>,
    first_seen: u64,
    listed: u64,
    inspected: u64,
}

// === impl Processes ===

impl Processes {
    /// Finds the namespaces of the processes of `procfs` and the mounts below `rootfs`.
    pub fn find(&mut self, procfs: &Path, rootfs: &Path) -> io::Result<FoundNetns> {
        let mut found = FoundNetns::default();
        for directory in MOUNTS {
            find_mounts(&rootfs.join(directory), &mut found)?;
        }
        self.list(procfs)?;
        self.inspect_due(procfs);
        self.collect(procfs, &mut found);
        Ok(found)
    }

    /// Lists the processes, and forgets those that have ended.
    fn list(&mut self, procfs: &Path) -> io::Result<()> {
        self.look += 1;
        let look = self.look;
        for entry in fs::read_dir(procfs)? {
            // An aborted listing is unusable: the namespaces not reached would seem to have ended.
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let directory = entry.ino();
            let new = KnownProcess {
                directory,
                netns: None,
                first_seen: look,
                listed: look,
                inspected: 0,
            };
            let known = self.known.entry(pid).or_insert(new);
            if known.directory != directory {
                *known = new;
            }
            known.listed = look;
        }
        self.known.retain(|_, known| known.listed == look);
        Ok(())
    }

    fn inspect_due(&mut self, procfs: &Path) {
        let is_young = |known: &KnownProcess| self.look < known.first_seen + YOUNG_LOOKS;
        let young = self.known.iter().filter(|(_, known)| is_young(known)).map(|(pid, _)| *pid);
        let young: Vec<u32> = young.collect();
        let after = self.known.range(self.last.saturating_add(1)..);
        let before = self.known.range(..=self.last);
        let old = after.chain(before).filter(|(_, known)| !is_young(known)).map(|(pid, _)| *pid);
        let old: Vec<u32> = old.take(OLD_PER_LOOK).collect();
        self.last = old.last().copied().unwrap_or(0);
        young.into_iter().chain(old).for_each(|pid| _ = self.inspect(procfs, pid));
    }

    /// Reads the namespace of a process; `None` if it is unknown.
    fn inspect(&mut self, procfs: &Path, pid: u32) -> Option<NetnsId> {
        let known = self.known.get_mut(&pid)?;
        if known.inspected == self.look {
            return known.netns;
        }
        known.inspected = self.look;
        match fs::metadata(netns_of(procfs, pid)) {
            Ok(metadata) => known.netns = Some(id(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => known.netns = None,
            // The process ended in the meantime.
            Err(_) => {
                self.known.remove(&pid);
                return None;
            }
        }
        known.netns
    }

    /// Adds the namespaces of the processes to `found`. Each namespace is confirmed by a process
    /// that is inspected in this look: listenq must release a namespace that all processes have
    /// left.
    fn collect(&mut self, procfs: &Path, found: &mut FoundNetns) {
        let pids: Vec<u32> = self.known.keys().copied().collect();
        for pid in pids {
            let Some(known) = self.known.get(&pid) else { continue };
            let is_confirmed = |id| {
                found.namespaces.get(&id).is_some_and(|entrance: &Entrance| entrance.pid.is_some())
            };
            let netns = match known.netns {
                Some(id) if is_confirmed(id) => Some(id),
                Some(_) => self.inspect(procfs, pid),
                None => None,
            };
            match netns {
                Some(id) => {
                    found.seen += 1;
                    let path = netns_of(procfs, pid);
                    let entrance = || Entrance { path, mount: None, pid: None };
                    let known = found.namespaces.entry(id).or_insert_with(entrance);
                    known.pid.get_or_insert(pid);
                }
                None => found.denied += usize::from(self.known.contains_key(&pid)),
            }
        }
    }
}

fn netns_of(procfs: &Path, pid: u32) -> PathBuf {
    procfs.join(pid.to_string()).join("ns/net")
}

/// Runs `inside` on a separate thread that enters the namespace at `path`; the thread ends in that
/// namespace.
pub fn enter<T: Send>(
    path: &Path,
    expected: NetnsId,
    inside: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let file = File::open(path)?;
    // The process or mount may be gone, and its path may now refer to another namespace.
    if id(&file.metadata()?) != expected {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it is another namespace by now"));
    }
    let hop = || -> io::Result<T> {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(inside())
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".into()).stack_size(256 * 1024);
        let result = builder.spawn_scoped(scope, hop)?.join();
        result.unwrap_or_else(|_| Err(io::Error::other("the thread inside panicked")))
    })
}

fn id(metadata: &Metadata) -> NetnsId {
    NetnsId(metadata.ino())
}

fn find_mounts(directory: &Path, found: &mut FoundNetns) -> io::Result<()> {
    let Some(entries) = if_there(fs::read_dir(directory))? else { return Ok(()) };
    let own_device = if_there(fs::metadata(directory))?.map(|metadata| metadata.dev());
    for entry in entries {
        let entry = entry?;
        // A plain file is a leftover: a mounted namespace is on a separate device.
        let Some(metadata) = if_there(fs::metadata(entry.path()))? else { continue };
        if Some(metadata.dev()) == own_device {
            continue;
        }
        let mount = Some(escaped(entry.file_name().as_encoded_bytes()));
        let entrance = Entrance { path: entry.path(), mount, pid: None };
        let known = found.namespaces.entry(id(&metadata)).or_insert_with(|| entrance.clone());
        // If a namespace has two mounts, the alphabetically first mount gives the name.
        if entrance.mount < known.mount {
            *known = entrance;
        }
    }
    Ok(())
}

/// Returns `None` for a file that cannot be read, for example because the file does not exist or
/// denies access. A lack of memory or descriptors is an error, because it makes the discovery
/// unusable, as with processes.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Err(error),
            _ => Ok(None),
        },
        Ok(value) => Ok(Some(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::fixture::Dir;

    #[test]
    fn the_own_namespace_is_found_through_this_process() {
        let proc = Path::new("/proc");
        let found = Processes::default().find(proc, Path::new("/nowhere")).unwrap();
        let entrance = &found.namespaces[&own(proc).unwrap()];
        assert!(entrance.pid.is_some_and(|pid| pid <= std::process::id()));
        assert_eq!(entrance.mount, None);
    }

    /// A procfs with processes, whose namespaces are files.
    fn process(dir: &Dir, pid: u32, netns: &str) {
        let _ = fs::remove_dir_all(dir.path().join(format!("{pid}/ns")));
        dir.file(netns, "");
        dir.directory(&format!("{pid}/ns"));
        dir.link(&dir.path().join(netns).display().to_string(), &format!("{pid}/ns/net"));
    }

    /// Returns the lowest pid of each namespace.
    fn pids(processes: &mut Processes, dir: &Dir) -> Vec<u32> {
        let found = processes.find(dir.path(), Path::new("/nowhere")).unwrap();
        let mut pids: Vec<u32> = found.namespaces.values().filter_map(|one| one.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn a_namespace_ends_with_its_last_process() {
        let dir = Dir::new("processes");
        (10..15).for_each(|pid| process(&dir, pid, "a"));
        process(&dir, 20, "b");
        process(&dir, 21, "b");
        let mut processes = Processes::default();
        assert_eq!(pids(&mut processes, &dir), [10, 20]);
        dir.remove("20");
        assert_eq!(pids(&mut processes, &dir), [10, 21]);
        // Its last process moves to another namespace.
        (0..5).for_each(|_| _ = pids(&mut processes, &dir));
        process(&dir, 21, "c");
        assert_eq!(pids(&mut processes, &dir), [10, 21]);
        process(&dir, 21, "a");
        assert_eq!(pids(&mut processes, &dir), [10]);
    }

    #[test]
    fn of_very_many_old_processes_a_part_is_inspected_in_each_look() {
        let dir = Dir::new("many-processes");
        let count = u32::try_from(OLD_PER_LOOK).unwrap() + 500;
        (1..=count).for_each(|pid| process(&dir, pid, "a"));
        let mut processes = Processes::default();
        let mut inspected = || {
            pids(&mut processes, &dir);
            let look = processes.look;
            processes.known.values().filter(|known| known.inspected == look).count()
        };
        let young: Vec<usize> = (0..YOUNG_LOOKS).map(|_| inspected()).collect();
        assert_eq!(young, [count as usize; 3]);
        assert_eq!([inspected(), inspected()], [OLD_PER_LOOK; 2]);
        // A new namespace of a new process is found at once, that of an old one in turn.
        process(&dir, count + 1, "b");
        assert_eq!(pids(&mut processes, &dir), [1, count + 1]);
        process(&dir, 900, "c");
        let found = (0..3).any(|_| pids(&mut processes, &dir) == [1, 900, count + 1]);
        assert!(found);
    }

    #[test]
    fn a_kernel_thread_is_known_by_its_flags() {
        let stat = |name, flags| format!("2 ({name}) S 0 0 0 0 -1 {flags} 0 0 0\n");
        assert!(is_kernel_thread(&stat("kthreadd", 2_129_984)));
        assert!(!is_kernel_thread(&stat("kthreadd", 4_194_560)));
        assert!(is_kernel_thread(&stat("a) S 0 (b", 2_129_984)));
        assert!(!is_kernel_thread("2 (kthreadd) S 0\n") && !shows_host(Path::new("/nowhere")));
    }

    #[test]
    fn a_look_fails_only_without_memory_or_descriptors() {
        let failed = |errno: Errno| if_there(Err::<(), _>(errno.into()));
        assert_eq!(failed(Errno::NOENT).unwrap(), None);
        assert_eq!(failed(Errno::STALE).unwrap(), None);
        assert!(failed(Errno::MFILE).is_err() && failed(Errno::NOMEM).is_err());
    }

    #[test]
    fn a_namespace_was_made_by_the_user_that_its_root_maps_to() {
        let dir = Dir::new("maker");
        let ours = "         0          0 4294967295\n";
        dir.file("self/uid_map", ours);
        dir.file("1/uid_map", ours);
        dir.file(
            "2/uid_map",
            "         0       1000          1\n         1     100000      65536\n",
        );
        dir.file("3/uid_map", "");
        dir.file("3/status", "Name:\tsh\nUid:\t1001\t1001\t1001\t1001\n");
        let made_by = [1, 2, 3, 4].map(|pid| maker(dir.path(), pid));
        assert_eq!(made_by, [None, Some(1000), Some(1001), None]);
    }

    #[test]
    fn a_path_to_another_namespace_is_not_entered() {
        let error = enter(Path::new("/proc/self/ns/net"), NetnsId(1), || ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
