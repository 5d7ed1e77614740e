//! Finds the owner of a socket from the cheapest source that answers.
//!
//! The cgroup of the socket's creator gives the unit and container, and shows which processes to
//! check first. The process that holds the socket gives the remaining fields. If both sources
//! differ, the process wins: a socket that systemd created and passed on keeps the cgroup of
//! systemd forever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::thread::{CapabilitySet, capabilities};

use crate::kernel::namespaces;
use crate::owner::cgroup::{Placement, owner_path};
use crate::owner::cgroup_id::CgroupTree;
use crate::owner::holders::{self, Holder, HolderMatch, Step, Walk};
use crate::owner::kubelet::Kubelet;
use crate::snapshot::owner::Owner;
use crate::snapshot::{Origin, OwnersByInode, printable};

/// Interval between lookups of all owners.
pub const REFRESH: Duration = Duration::from_secs(60);
/// Maximum number of holders checked at a time for whether they still run.
const CHECKED_HOLDERS: usize = 1_000;
/// Duration of one step of a walk over the descriptors of all processes.
const STEP: Duration = Duration::from_millis(2);

/// The sources of owners, and their cached answers.
pub struct OwnerLookup {
    procfs: PathBuf,
    rootfs: PathBuf,
    tree: Option<CgroupTree>,
    kubelet: Option<io::Result<Kubelet>>,
    /// Last known holder of each socket, by inode.
    held: FxHashMap<u32, KnownHolder>,
    /// The process checked last for orphans.
    checked: (u32, u64),
}

/// The process that holds a socket, and the time of the search.
struct KnownHolder {
    holder: Arc<Holder>,
    at: Instant,
}

/// Result of one search.
#[derive(Debug, Default)]
pub struct OwnerSearch {
    /// Owners by socket.
    pub owners: OwnersByInode,
    /// Whether the holders of every socket are visible.
    pub sees_holders: bool,
    /// Whether the kubelet's directories can be read; `None` if they do not exist.
    pub has_kubelet: Option<bool>,
    /// Error that made the search fail.
    pub failure: Option<io::Error>,
    /// Sockets without a holder that only a deep search can find.
    pub deep: Vec<Origin>,
}

/// Returns the identity of a process: its pid and start time.
fn key(holder: &Holder) -> (u32, u64) {
    (holder.pid, holder.start_time)
}

// === impl OwnerLookup ===

impl OwnerLookup {
    /// Creates a lookup without cached answers.
    pub fn new(procfs: &Path, rootfs: &Path) -> Self {
        Self {
            procfs: procfs.to_owned(),
            rootfs: rootfs.to_owned(),
            tree: CgroupTree::find(rootfs),
            kubelet: None,
            held: FxHashMap::default(),
            checked: (0, 0),
        }
    }

    /// Whether cgroup v2 is mounted.
    pub fn has_cgroups(&self) -> bool {
        self.tree.is_some()
    }

    /// Returns sockets whose holder has ended since the last call, or runs another program. If a
    /// socket still exists after its holder has ended, it has another holder.
    ///
    /// Checks a part of the holders, in turn, if there are very many.
    pub fn orphans(&mut self) -> Vec<u32> {
        let known: BTreeMap<(u32, u64), &Arc<Holder>> =
            self.held.values().map(|held| (key(&held.holder), &held.holder)).collect();
        let after = known.range((Bound::Excluded(self.checked), Bound::Unbounded));
        let due = after.chain(known.range(..=self.checked)).map(|(_, holder)| *holder);
        let due: Vec<&Arc<Holder>> = due.take(CHECKED_HOLDERS).collect();
        self.checked = due.last().map(|holder| key(holder)).unwrap_or_default();
        let changed = due.iter().filter(|holder| !holders::is_unchanged(&self.procfs, holder));
        let changed: BTreeSet<(u32, u64)> = changed.map(|holder| key(holder)).collect();
        let mut orphans = Vec::new();
        self.held.retain(|inode, held| {
            let is_changed = changed.contains(&key(&held.holder));
            if is_changed {
                orphans.push(*inode);
            }
            // All open sockets are searched again from time to time.
            !is_changed && held.at.elapsed() < 2 * REFRESH
        });
        orphans
    }

    /// Drops the holders of all sockets except those with these inodes.
    pub fn keep_only(&mut self, inodes: &FxHashSet<u32>) {
        self.held.retain(|inode, _| inodes.contains(inode));
    }

    /// Searches the owners of these sockets. A deep search checks every descriptor of each process.
    pub fn search(&mut self, wanted: &[Origin], is_deep: bool) -> OwnerSearch {
        // Pods start and stop, so their names are read again. The first read shows whether names
        // can be read before listenq encounters a pod.
        self.kubelet = Some(Kubelet::read(&self.rootfs));
        self.refresh_cgroups(wanted);
        let (found, failure) = match self.walk(wanted, is_deep) {
            Ok(found) => (found, None),
            Err(error) => (HolderMatch::default(), Some(error)),
        };
        self.keep(wanted, &found);
        let is_denied =
            failure.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        let shows_host = namespaces::shows_host(&self.procfs);
        let sees_all = found.denied == 0 && !is_denied && !hides_processes(&self.procfs);
        let sees_some = found.descriptors > 0 || found.denied == 0 && !is_denied;
        let mut known = FxHashMap::default();
        let owners = wanted
            .iter()
            .filter_map(|origin| self.found_owner(origin, &found, &mut known))
            .collect();
        let is_held = |origin: &&Origin| found.holders.contains_key(&u64::from(origin.inode));
        let unheld = wanted.iter().filter(|origin| found.is_shallow && !is_held(origin));
        OwnerSearch {
            deep: unheld.copied().collect(),
            owners,
            sees_holders: shows_host && (sees_all || sees_some && may_see_holders()),
            has_kubelet: self.has_kubelet(),
            failure,
        }
    }

    /// Returns the owner of a namespace: the cgroup of a process inside it.
    pub fn of_process(&mut self, pid: u32) -> Owner {
        let path = self.procfs.join(pid.to_string()).join("cgroup");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let owner = owner_path(&text).map(|path| self.placed(&Placement::of(path)));
        // A namespace has many processes: neither a single process nor a unit identifies the
        // namespace.
        Owner { process: "".into(), unit: "".into(), ..owner.unwrap_or_default() }
    }

    fn refresh_cgroups(&mut self, wanted: &[Origin]) {
        if let Some(tree) = &mut self.tree
            && wanted.iter().filter_map(|origin| origin.cgroup).any(|id| tree.path(id).is_none())
            && let Err(error) = tree.refresh()
        {
            tracing::debug!(%error, "the cgroup tree could not be read");
        }
    }

    fn walk(&self, wanted: &[Origin], is_deep: bool) -> io::Result<HolderMatch> {
        let inodes = wanted.iter().map(|origin| u64::from(origin.inode));
        let mut walk =
            Walk::new(&self.procfs, inodes)?.looking_first_at(self.processes_of_creators(wanted));
        if is_deep {
            walk = walk.go_deep();
        }
        while walk.step(STEP)? == Step::More {
            // The holders in the creator's cgroup are sufficient, because they include the master.
            if walk.has_looked_at_first() && walk.has_found_all() {
                break;
            }
            std::thread::yield_now();
        }
        Ok(walk.finish())
    }

    /// Returns the processes in the cgroups of the creators.
    fn processes_of_creators(&self, wanted: &[Origin]) -> Vec<u32> {
        let Some(tree) = &self.tree else { return Vec::new() };
        let mut paths: Vec<&Arc<str>> = wanted
            .iter()
            .filter_map(|origin| tree.path(origin.cgroup?))
            .filter(|path| identifies_owner(path))
            .collect();
        paths.sort_unstable();
        paths.dedup();
        let processes = |path: &&Arc<str>| {
            let text = std::fs::read_to_string(tree.directory(path).join("cgroup.procs"));
            let pids: Vec<u32> =
                text.unwrap_or_default().lines().filter_map(|pid| pid.parse().ok()).collect();
            pids
        };
        paths.iter().flat_map(processes).collect()
    }

    fn keep(&mut self, wanted: &[Origin], found: &HolderMatch) {
        let at = Instant::now();
        self.held.extend(wanted.iter().filter_map(|origin| {
            let holder = Arc::clone(found.holders.get(&u64::from(origin.inode))?);
            Some((origin.inode, KnownHolder { holder, at }))
        }));
    }

    /// Returns the owner of a socket. The sockets of one process that were created in one cgroup
    /// share their owner, which `known` contains.
    fn found_owner(
        &mut self,
        origin: &Origin,
        found: &HolderMatch,
        known: &mut FxHashMap<(u32, Option<u64>), Arc<Owner>>,
    ) -> Option<(u32, Arc<Owner>)> {
        let holder = found.holders.get(&u64::from(origin.inode));
        let key = holder.map(|holder| (holder.pid, origin.cgroup));
        if let Some(owner) = key.and_then(|key| known.get(&key)) {
            return Some((origin.inode, Arc::clone(owner)));
        }
        let owner = Arc::new(self.owner_of(origin, holder.map(|holder| &**holder))?);
        known.extend(key.map(|key| (key, Arc::clone(&owner))));
        Some((origin.inode, owner))
    }

    fn owner_of(&mut self, origin: &Origin, holder: Option<&Holder>) -> Option<Owner> {
        let mut owner = match holder {
            Some(holder) => self.held_by(holder),
            // The known holder still runs and stays the owner until it ends: this walk failed, or
            // it can no longer see the holder.
            None if self.held.contains_key(&origin.inode) => return None,
            None => Owner::default(),
        };
        if owner.unit.is_empty() && owner.container_id.is_empty() {
            owner.fill_from(&self.created_in(origin.cgroup));
        }
        (!owner.is_unknown()).then_some(owner)
    }

    fn held_by(&mut self, holder: &Holder) -> Owner {
        let placement = owner_path(&holder.cgroup).map(Placement::of).unwrap_or_default();
        Owner {
            process: holder.comm.as_str().into(),
            pid: Some(holder.pid),
            start_time: holder.start_time,
            ..self.placed(&placement)
        }
    }

    fn created_in(&mut self, cgroup: Option<u64>) -> Owner {
        let path = cgroup
            .and_then(|id| self.tree.as_ref()?.path(id))
            .filter(|path| identifies_owner(path))
            .cloned();
        path.map(|path| self.placed(&Placement::of(&path))).unwrap_or_default()
    }

    fn placed(&mut self, placement: &Placement) -> Owner {
        let text = |part: &Option<String>| printable(part.as_deref().unwrap_or_default()).into();
        let mut owner = Owner {
            unit: text(&placement.unit),
            container_id: text(&placement.container_id),
            ..Owner::default()
        };
        if placement.pod_uid.is_some() || placement.container_id.is_some() {
            self.name_pod(placement, &mut owner);
        }
        owner
    }

    /// Sets the pod's name, or its uid if the name is unknown.
    fn name_pod(&mut self, placement: &Placement, owner: &mut Owner) {
        let rootfs = &self.rootfs;
        let kubelet = self.kubelet.get_or_insert_with(|| Kubelet::read(rootfs)).as_ref().ok();
        let container = kubelet
            .zip(placement.container_id.as_ref())
            .and_then(|(kubelet, id)| kubelet.container(id));
        if let Some(container) = container {
            owner.k8s_container = container.name.clone();
        }
        let by_uid =
            kubelet.zip(placement.pod_uid.as_ref()).and_then(|(kubelet, uid)| kubelet.pod(uid));
        match container.map(|container| &container.pod).or(by_uid) {
            Some(pod) => {
                (owner.k8s_namespace, owner.k8s_pod) = (pod.namespace.clone(), pod.name.clone())
            }
            None => owner.k8s_pod = placement.pod_uid.as_deref().unwrap_or_default().into(),
        }
    }

    fn has_kubelet(&self) -> Option<bool> {
        match self.kubelet.as_ref()? {
            Ok(_) => Some(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => Some(false),
        }
    }
}

/// Whether a creator's cgroup identifies an owner. systemd passes its sockets on, and any process
/// may have created a socket in the root cgroup.
fn identifies_owner(path: &str) -> bool {
    path != "/" && !path.ends_with("/init.scope") && !path.ends_with(".socket")
}

/// Whether procfs hides other processes (`hidepid`): every procfs contains process 1.
pub fn hides_processes(procfs: &Path) -> bool {
    std::fs::symlink_metadata(procfs.join("1")).is_err()
}

/// Whether this thread has the capabilities to read the `fd` links of other processes. Some
/// processes deny access even with these capabilities.
fn may_see_holders() -> bool {
    let needed = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::linux::fs::MetadataExt;

    use super::*;
    use crate::owner::fixture::Dir;

    fn listener() -> (TcpListener, Origin) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener));
        let inode = std::fs::metadata(path).unwrap().st_ino();
        (listener, Origin { inode: u32::try_from(inode).unwrap(), ..Origin::default() })
    }

    #[test]
    fn a_failed_walk_keeps_the_known_owners() {
        let dir = Dir::new("owners");
        dir.file("sys/fs/cgroup/cgroup.controllers", "");
        let nginx = dir.directory("sys/fs/cgroup/system.slice/nginx.service");
        let cgroup = Some(std::fs::metadata(nginx).unwrap().st_ino());
        let (_listener, origin) = listener();
        let [held, unheld] =
            [origin.inode, u32::MAX].map(|inode| Origin { inode, cgroup, uid: None });
        let mut owners = OwnerLookup::new(Path::new("/proc"), dir.path());
        assert!(!owners.search(&[held], false).owners[&held.inode].process.is_empty());
        owners.procfs = "/nowhere".into();
        let search = owners.search(&[held, unheld], false);
        // The creator's cgroup has lower priority.
        assert_eq!(&*search.owners[&unheld.inode].unit, "nginx.service");
        assert!(search.failure.is_some() && !search.owners.contains_key(&held.inode));
    }

    #[test]
    fn the_owner_of_a_socket_of_this_process_is_this_process() {
        let (_listener, origin) = listener();
        let mut owners = OwnerLookup::new(Path::new("/proc"), Path::new("/"));
        let search = owners.search(&[origin], false);
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(&*search.owners[&origin.inode].process, comm.trim_end());
        assert!(search.failure.is_none());
    }

    #[test]
    fn a_socket_without_a_holder_has_no_owner() {
        let mut owners = OwnerLookup::new(Path::new("/proc"), Path::new("/"));
        let search = owners.search(&[Origin { inode: u32::MAX, ..Origin::default() }], false);
        assert_eq!(search.owners, OwnersByInode::default());
    }

    #[test]
    fn the_cgroup_of_systemd_does_not_identify_an_owner() {
        assert!(
            !identifies_owner("/")
                && !identifies_owner("/init.scope")
                && !identifies_owner("/system.slice/a.socket")
        );
        assert!(identifies_owner("/system.slice/nginx.service"));
    }
}
