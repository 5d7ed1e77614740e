//! Finds the process that holds a socket by walking `/proc/<pid>/fd`, whose links contain
//! `socket:[<inode>]`.
//!
//! The oldest holder is the owner: the master of a prefork server creates the socket, and its
//! workers inherit the socket. A systemd (pid 1, a user's, a container's) creates sockets that
//! other processes serve, so it is the owner only if no other process holds the socket.
//!
//! A process may hold very many descriptors. At first the walk checks only the first descriptors of
//! a process: a server opens its listen sockets before its connections, so they have low numbers. A
//! user may have very many processes, so at first the walk checks only the descriptors of some of
//! them: a user with very many descriptors does not delay a search. The remaining descriptors are
//! checked in a separate search, if a wanted socket has no holder yet and the caller calls
//! [`Walk::go_deep`].
//!
//! The oldest holder is known only after all processes were checked, so the walk never stops early
//! by itself. Instead the walk runs in steps of a duration that the caller chooses.

use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;

use crate::snapshot::owner::user_of;

use super::candidate::OwnerCandidate;
use super::process::{Process, has_ended, is_denied};

pub use super::candidate::Holder;

/// Number of descriptors of a process that are checked at first.
const FIRST_DESCRIPTORS: usize = 1_000;

/// Number of descriptors of the processes of one user that are checked at first, and the number for
/// root. Beyond that number, processes are left out.
const OF_USER: usize = 8_000;
const OF_ROOT: usize = 50_000;
/// Number of descriptors above which the user of a process is read from `status` if its directory
/// belongs to root: the directory of a process that made itself undumpable belongs to root.
const FEW_DESCRIPTORS: usize = 32;

/// Whether the process still runs, with the same name: a process that receives the socket from a
/// supervisor gets its name with `execve(2)`. A zombie holds no descriptor and does not count.
pub fn is_unchanged(procfs: &Path, holder: &Holder) -> bool {
    let process =
        open_directory(CWD, procfs).and_then(|procfs| Process::open(procfs, holder.pid)).ok();
    let Some(process) = process else { return false };
    let is_named = process.name() == holder.comm;
    // Read after the name: the name is that of this process only if it still runs.
    let runs = |stat: procfs::process::Stat| {
        stat.starttime == holder.start_time && !matches!(stat.state, 'Z' | 'X')
    };
    process.stat().is_some_and(runs) && is_named
}

/// Whether a walk has more processes to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Some processes are unchecked.
    More,
    /// All processes were checked.
    Done,
}

/// Result of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderMatch {
    /// Holders by socket inode. A socket without an entry has no visible holder: the holder has
    /// ended, denies access or is in a pid namespace outside ours, or the kernel holds the socket.
    pub holders: FxHashMap<u64, Arc<Holder>>,
    /// Number of processes that denied access: `CAP_SYS_PTRACE` or `CAP_DAC_READ_SEARCH` is
    /// missing.
    pub denied: usize,
    /// Number of descriptors checked.
    pub descriptors: usize,
    /// Whether some processes hold more descriptors than were checked.
    pub is_shallow: bool,
}

/// A walk in progress. Between steps the walk holds at most four descriptors.
pub struct Walk {
    procfs: OwnedFd,
    /// Best candidate so far for each wanted inode.
    wanted: FxHashMap<u64, Option<OwnerCandidate>>,
    first: FxHashSet<u32>,
    /// Pids to check, in reverse order: the last pid is next.
    pids: Vec<u32>,
    listing: Option<OwnedFd>,
    has_begun_listing: bool,
    current: Option<Visit>,
    denied: usize,
    descriptors: usize,
    is_deep: bool,
    /// Number of descriptors checked, by user.
    of_users: FxHashMap<u32, usize>,
    /// Whether descriptors were left out.
    has_left_out: bool,
}

/// A process whose descriptors are being checked.
struct Visit {
    process: Process,
    fds: OwnedFd,
    /// Read when the process is first found to hold a wanted socket.
    candidate: Option<OwnerCandidate>,
    /// Number of descriptors checked.
    descriptors: usize,
    user: u32,
}

// === impl Walk ===

impl Walk {
    /// Starts a search for the holders of these socket inodes among all processes of `procfs`.
    pub fn new(procfs: &Path, wanted: impl IntoIterator<Item = u64>) -> io::Result<Self> {
        let procfs = open_directory(CWD, procfs)?;
        Ok(Self {
            // Listing moves the file position, so the listing needs a separate descriptor.
            listing: Some(open_directory(&procfs, Path::new("."))?),
            has_begun_listing: false,
            procfs,
            wanted: wanted.into_iter().map(|inode| (inode, None)).collect(),
            first: FxHashSet::default(),
            pids: Vec::new(),
            current: None,
            denied: 0,
            descriptors: 0,
            is_deep: false,
            of_users: FxHashMap::default(),
            has_left_out: false,
        })
    }

    /// Checks these processes before all others, for example the processes of the cgroup that
    /// created a socket.
    #[must_use]
    pub fn looking_first_at(mut self, pids: impl IntoIterator<Item = u32>) -> Self {
        self.first = pids.into_iter().collect();
        self.pids = self.first.iter().copied().collect();
        self
    }

    /// Checks all descriptors of every process.
    #[must_use]
    pub fn go_deep(mut self) -> Self {
        self.is_deep = true;
        self
    }

    /// Whether [`Walk::step`] has checked exactly the processes given to be checked first. Before
    /// that point, a worker may have been found before its master.
    pub fn has_looked_at_first(&self) -> bool {
        !self.has_begun_listing
            && !self.first.is_empty()
            && self.pids.is_empty()
            && self.current.is_none()
    }

    /// Whether every wanted socket has a holder that does not merely pass the socket on. An older
    /// holder may still exist.
    pub fn has_found_all(&self) -> bool {
        self.wanted
            .values()
            .all(|candidate| candidate.is_some_and(|candidate| !candidate.passes_sockets_on))
    }

    /// Continues the walk for about `budget`, and at least for a directory's next 4 KiB, about 170
    /// descriptors. Stops once between the processes to check first and all other processes.
    pub fn step(&mut self, budget: Duration) -> io::Result<Step> {
        let begin = Instant::now();
        while self.turn()? {
            if begin.elapsed() >= budget || self.has_looked_at_first() {
                return Ok(Step::More);
            }
        }
        Ok(Step::Done)
    }

    /// Reads the details of the holders found so far. The walk may be incomplete.
    pub fn finish(self) -> HolderMatch {
        let Self { procfs, wanted, denied, descriptors, has_left_out, .. } = self;
        let mut holders = FxHashMap::default();
        let mut known: FxHashMap<u32, Option<Arc<Holder>>> = FxHashMap::default();
        for (inode, candidate) in wanted {
            let Some(candidate) = candidate else { continue };
            let holder =
                known.entry(candidate.pid).or_insert_with(|| candidate.read(&procfs).map(Arc::new));
            holders.extend(holder.clone().map(|holder| (inode, holder)));
        }
        HolderMatch { holders, denied, descriptors, is_shallow: has_left_out }
    }

    /// Runs one portion of work; returns `false` if there was none.
    fn turn(&mut self) -> io::Result<bool> {
        if let Some(visit) = self.current.take() {
            self.go_on(visit)?;
        } else if let Some(pid) = self.pids.pop() {
            self.visit(pid)?;
        } else if let Some(listing) = self.listing.take() {
            self.has_begun_listing = true;
            let (pids, first) = (&mut self.pids, &self.first);
            let more = portion(&listing, |name| {
                pids.extend(number(name).filter(|pid| !first.contains(pid)))
            })?;
            // The oldest processes first: of very many processes of a user, masters come before
            // workers.
            pids.reverse();
            self.listing = more.then_some(listing);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn visit(&mut self, pid: u32) -> io::Result<()> {
        let opened = Process::open(&self.procfs, pid)
            .and_then(|process| Ok((process.descriptors()?, process)));
        let Some((fds, process)) = self.allowed(opened)? else { return Ok(()) };
        let user = process.user().map_or(0, user_of);
        if !self.has_checked_enough(user) || self.first.contains(&pid) {
            self.go_on(Visit { process, fds, candidate: None, descriptors: 0, user })?;
        } else {
            self.has_left_out = true;
        }
        Ok(())
    }

    /// Whether the descriptors of this user that were checked are enough for a walk that is not
    /// deep.
    fn has_checked_enough(&self, user: u32) -> bool {
        let limit = if user == 0 { OF_ROOT } else { OF_USER };
        !self.is_deep && self.of_users.get(&user).is_some_and(|checked| *checked >= limit)
    }

    fn go_on(&mut self, mut visit: Visit) -> io::Result<()> {
        let (wanted, descriptors) = (&mut self.wanted, &mut visit.descriptors);
        let before = *descriptors;
        let mut denied = Ok(());
        let more = portion(&visit.fds, |name| {
            if denied.is_err() || name.to_bytes().starts_with(b".") {
                return;
            }
            *descriptors += 1;
            match socket_inode(&visit.fds, name) {
                Ok(Some(inode)) => consider(wanted, inode, &visit.process, &mut visit.candidate),
                Err(error) if is_denied(error) => denied = Err(error),
                // The descriptor is no socket, or was closed in the meantime.
                Ok(None) | Err(_) => {}
            }
        });
        self.descriptors += visit.descriptors - before;
        self.count(&mut visit, before);
        let more = self.allowed(denied.and(more))?.unwrap_or(false);
        let is_first = self.first.contains(&visit.process.pid);
        let is_enough = !self.is_deep && visit.descriptors >= FIRST_DESCRIPTORS
            || !is_first && self.has_checked_enough(visit.user);
        self.has_left_out |= more && is_enough;
        self.current = (more && !is_enough).then_some(visit);
        Ok(())
    }

    /// Adds the descriptors checked since `before` to those of the user.
    fn count(&mut self, visit: &mut Visit, before: usize) {
        if visit.user == 0 && before == 0 && visit.descriptors > FEW_DESCRIPTORS {
            visit.user = visit.process.effective_user().map_or(0, user_of);
        }
        *self.of_users.entry(visit.user).or_default() += visit.descriptors - before;
    }

    /// Ignores a process that has ended and counts a process that denies access.
    fn allowed<T>(&mut self, result: Result<T, Errno>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if has_ended(error) => Ok(None),
            Err(error) if is_denied(error) => {
                self.denied += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Records the process as the holder of `inode` if the inode is wanted and no better holder is
/// known.
fn consider(
    wanted: &mut FxHashMap<u64, Option<OwnerCandidate>>,
    inode: u64,
    process: &Process,
    candidate: &mut Option<OwnerCandidate>,
) {
    let Entry::Occupied(mut best) = wanted.entry(inode) else { return };
    if candidate.is_none() {
        *candidate = OwnerCandidate::of(process);
    }
    let Some(candidate) = *candidate else { return };
    if best.get().is_none_or(|best| candidate.beats(&best)) {
        best.insert(Some(candidate));
    }
}

/// Reads a directory's next portion; returns `false` after the last portion.
fn portion(directory: &OwnedFd, mut each: impl FnMut(&CStr)) -> rustix::io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        each(entry?.file_name());
        if entries.is_buffer_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the inode of the socket behind a descriptor.
fn socket_inode(fds: &OwnedFd, name: &CStr) -> rustix::io::Result<Option<u64>> {
    let mut target = [0; 40];
    let length = readlinkat_raw(fds, name, &mut target)?;
    let inode = target[..length].strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
    Ok(inode.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
}

fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.parse().ok()
}

fn open_directory(at: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::fixture::Dir;

    /// A procfs for one test.
    struct Procfs(Dir);

    impl Procfs {
        fn process(&self, pid: u32, parent: u32, start_time: u64, comm: &str, links: &[&str]) {
            let stat = format!(
                "{pid} ({comm}) S {parent}{} {start_time}{}\n",
                " 0".repeat(17),
                " 0".repeat(30)
            );
            self.0.file(&format!("{pid}/stat"), stat);
            self.0.file(&format!("{pid}/comm"), format!("{comm}\n"));
            self.0.file(&format!("{pid}/cgroup"), format!("0::/{comm}\n"));
            self.0.directory(&format!("{pid}/fd"));
            for (fd, target) in links.iter().enumerate() {
                self.0.link(target, &format!("{pid}/fd/{fd}"));
            }
        }

        fn walk(&self, wanted: &[u64]) -> Walk {
            Walk::new(self.0.path(), wanted.iter().copied()).unwrap()
        }

        /// Returns the holder of socket 42.
        fn holder(&self) -> Option<u32> {
            let mut walk = self.walk(&[42]);
            assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
            walk.finish().holders.get(&42).map(|holder| holder.pid)
        }
    }

    fn procfs() -> Procfs {
        let dir = Dir::new("proc");
        dir.file("version", "Linux");
        dir.directory("net");
        Procfs(dir)
    }

    #[test]
    fn the_oldest_holder_is_found_and_read() {
        let procfs = procfs();
        procfs.process(30, 20, 500, "worker", &["/dev/null", "socket:[42]"]);
        procfs.process(20, 1, 400, "nginx", &["pipe:[42]", "socket:[42]", "socket:[43]"]);
        procfs.process(40, 20, 500, "worker", &["socket:[42]", "socket:[430]"]);
        let mut walk = procfs.walk(&[42, 43, 44]);
        assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
        assert!(!walk.has_found_all());
        let (comm, cgroup) = ("nginx".to_owned(), "0::/nginx\n".to_owned());
        let nginx = Arc::new(Holder { pid: 20, start_time: 400, comm, cgroup });
        let holders = FxHashMap::from_iter([(42, Arc::clone(&nginx)), (43, nginx)]);
        assert_eq!(
            walk.finish(),
            HolderMatch { holders, denied: 0, descriptors: 7, is_shallow: false }
        );
    }

    #[test]
    fn systemd_is_the_holder_only_of_sockets_without_another_holder() {
        let procfs = procfs();
        procfs.process(1, 0, 1, "init", &["socket:[42]"]);
        assert_eq!(procfs.holder(), Some(1));
        procfs.process(50, 1, 20, "systemd", &["socket:[42]"]);
        assert_eq!(procfs.holder(), Some(1));
        procfs.process(60, 1, 300, "sshd", &["socket:[42]"]);
        assert_eq!(procfs.holder(), Some(60));
    }

    #[test]
    fn a_parent_is_older_than_its_child_of_the_same_tick() {
        let procfs = procfs();
        procfs.process(7, 30_000, 500, "worker", &["socket:[42]"]);
        procfs.process(30_000, 1, 500, "master", &["socket:[42]"]);
        assert_eq!(procfs.holder(), Some(30_000));
        procfs.process(6, 1, 500, "stranger", &["socket:[42]"]);
        procfs.process(8, 6, 500, "child", &["socket:[42]"]);
        assert_ne!(procfs.holder(), Some(8));
    }

    #[test]
    fn a_walk_continues_where_it_stopped() {
        let procfs = procfs();
        let many = vec!["/dev/null"; 500];
        procfs.process(10, 1, 100, "many", &many);
        procfs.process(11, 1, 100, "server", &["socket:[42]"]);
        let mut walk = procfs.walk(&[42]);
        let mut steps = 0;
        while walk.step(Duration::ZERO).unwrap() == Step::More {
            steps += 1;
        }
        assert!(steps >= 4, "{steps}");
        let found = walk.finish();
        assert_eq!((found.holders.len(), found.descriptors), (1, 501));
    }

    #[test]
    fn processes_to_check_first_are_checked_only_once() {
        let procfs = procfs();
        procfs.process(10, 1, 100, "other", &["socket:[41]"]);
        procfs.process(11, 1, 100, "server", &["socket:[42]"]);
        let mut walk = procfs.walk(&[42]).looking_first_at([11, 12]);
        while !walk.has_looked_at_first() {
            assert_eq!(walk.step(Duration::ZERO).unwrap(), Step::More);
        }
        assert!(walk.has_found_all());
        assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
        assert!(!walk.has_looked_at_first());
        let found = walk.finish();
        assert_eq!((found.holders[&42].pid, found.descriptors), (11, 2));
    }

    #[test]
    fn the_rest_of_very_many_descriptors_is_checked_only_by_a_deep_walk() {
        let procfs = procfs();
        let mut links = vec!["/dev/null"; 2 * FIRST_DESCRIPTORS];
        links.push("socket:[42]");
        procfs.process(10, 1, 100, "hoarder", &links);
        procfs.process(11, 1, 200, "server", &["socket:[43]"]);
        for is_deep in [false, true] {
            let walk = procfs.walk(&[42, 43]);
            let mut walk = if is_deep { walk.go_deep() } else { walk };
            assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
            let found = walk.finish();
            assert!(found.holders.contains_key(&43));
            assert!(found.holders.contains_key(&42) || !is_deep);
            let checked = found.descriptors >= 2 * FIRST_DESCRIPTORS + 2;
            assert_eq!((found.is_shallow, checked), (!is_deep, is_deep));
        }
    }

    #[test]
    fn a_user_with_very_many_descriptors_does_not_hide_the_holders_of_another_user() {
        let procfs = procfs();
        let links = vec!["/dev/null"; FIRST_DESCRIPTORS];
        let hoarders = 10..10 + 2 * u32::try_from(OF_USER / FIRST_DESCRIPTORS).unwrap();
        let owned_by = |pid: u32, user| {
            let directory = procfs.0.path().join(pid.to_string());
            std::os::unix::fs::chown(directory, Some(user), None).is_ok()
        };
        let mut is_root = true;
        for pid in hoarders.clone() {
            procfs.process(pid, 1, 100, "hoarder", &links);
            is_root &= owned_by(pid, 4242);
        }
        procfs.process(5000, 1, 100, "server", &["socket:[42]"]);
        is_root &= owned_by(5000, 4243);
        for is_deep in [false, true] {
            let walk = procfs.walk(&[42]);
            let mut walk = if is_deep { walk.go_deep() } else { walk };
            assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
            let found = walk.finish();
            // Without root's privileges both belong to one user, and only a deep walk finds the
            // server.
            assert_eq!(found.holders.contains_key(&42), is_root || is_deep);
            let of_hoarder = found.descriptors - found.holders.len();
            let expected = if is_deep { hoarders.len() * FIRST_DESCRIPTORS } else { OF_USER };
            assert_eq!((found.is_shallow, of_hoarder), (!is_deep, expected));
        }
    }

    #[test]
    fn the_user_of_an_undumpable_process_is_read_from_its_status() {
        let procfs = procfs();
        procfs.process(10, 1, 100, "server", &vec!["/dev/null"; 2 * FEW_DESCRIPTORS]);
        procfs.0.file("10/status", "Name:\tserver\nUid:\t1000\t1001\t1000\t1000\n");
        let mut walk = procfs.walk(&[42]);
        assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
        let user = if rustix::process::getuid().is_root() {
            1001
        } else {
            rustix::process::getuid().as_raw()
        };
        assert_eq!(walk.of_users, FxHashMap::from_iter([(user, 2 * FEW_DESCRIPTORS)]));
    }

    #[test]
    fn a_process_that_ended_is_no_holder() {
        let procfs = procfs();
        procfs.process(20, 1, 400, "nginx", &["socket:[42]"]);
        let mut walk = procfs.walk(&[42]);
        assert_eq!(walk.step(Duration::MAX).unwrap(), Step::Done);
        procfs.process(21, 1, 500, "later", &[]);
        procfs.0.remove("20");
        assert_eq!(walk.finish().holders, FxHashMap::default());
        procfs.0.directory("22");
        assert_eq!(procfs.holder(), None);
    }

    #[test]
    fn a_name_of_any_bytes_is_read() {
        let procfs = procfs();
        procfs.process(20, 1, 400, "a) S (b", &["socket:[42]"]);
        procfs.0.file("20/comm", b"a\nb\xff)\n");
        let mut walk = procfs.walk(&[42]);
        walk.step(Duration::MAX).unwrap();
        assert_eq!(walk.finish().holders[&42].comm, "a\\x0Ab\\xFF)");
    }
}
