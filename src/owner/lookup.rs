//! Who is behind a socket: the cheapest source that answers. The cgroup of its creator says unit and container and
//! points at the processes to look at first; the process that holds it says the rest, and is believed where the
//! two differ: a socket made by systemd and passed on names systemd for ever.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::thread::{CapabilitySet, capabilities};

use crate::kernel::namespaces;
use crate::owner::cgroup::{Placement, telling_path};
use crate::owner::cgroup_id::CgroupTree;
use crate::owner::holders::{self, Holder, HolderMatch, Step, Walk};
use crate::owner::kubelet::Kubelet;
use crate::snapshot::owner::Owner;
use crate::snapshot::{Claims, Origin, printable};

/// How often every owner is looked up again.
pub const REFRESH: Duration = Duration::from_secs(60);
/// A walk over the descriptors of all processes goes so far at once.
const STEP: Duration = Duration::from_millis(2);

/// The places that tell owners, and what they said.
pub struct OwnerLookup {
    procfs: PathBuf,
    rootfs: PathBuf,
    tree: Option<CgroupTree>,
    kubelet: Option<io::Result<Kubelet>>,
    /// By inode, which process each socket was last found to be held by.
    held: FxHashMap<u32, KnownHolder>,
}

/// The process that holds a socket, and when it was looked for.
struct KnownHolder {
    pid: u32,
    start_time: u64,
    at: Instant,
}

/// What one search gave.
#[derive(Debug, Default)]
pub struct OwnerSearch {
    /// The owners found.
    pub claims: Claims,
    /// Whether the holders of every socket may be seen.
    pub sees_holders: bool,
    /// Whether the kubelet's directories can be read; `None` where there are none.
    pub has_kubelet: Option<bool>,
    /// Why the search came to nothing.
    pub failure: Option<io::Error>,
}

// === impl OwnerLookup ===

impl OwnerLookup {
    /// Nothing asked yet.
    pub fn new(procfs: &Path, rootfs: &Path) -> Self {
        Self {
            procfs: procfs.to_owned(),
            rootfs: rootfs.to_owned(),
            tree: CgroupTree::find(rootfs),
            kubelet: None,
            held: FxHashMap::default(),
        }
    }

    /// Whether cgroup v2 is mounted.
    pub fn has_cgroups(&self) -> bool {
        self.tree.is_some()
    }

    /// Sockets whose holder has ended since the last call: where they live on, somebody else holds them.
    pub fn orphans(&mut self) -> Vec<u32> {
        let (procfs, mut known) = (&self.procfs, FxHashMap::default());
        let mut orphans = Vec::new();
        self.held.retain(|inode, held| {
            let process = (held.pid, held.start_time);
            let runs = *known.entry(process).or_insert_with(|| holders::runs(procfs, process));
            if !runs {
                orphans.push(*inode);
            }
            // All sockets that live are looked for anew from time to time.
            runs && held.at.elapsed() < 2 * REFRESH
        });
        orphans
    }

    /// Forgets who holds all sockets but those with these inodes.
    pub fn keep_only(&mut self, inodes: &FxHashSet<u32>) {
        self.held.retain(|inode, _| inodes.contains(inode));
    }

    /// Looks for the owners of these sockets.
    pub fn search(&mut self, wanted: &[Origin]) -> OwnerSearch {
        // Pods come and go: their names are read anew. Whether they can be read is known before one is met.
        self.kubelet = Some(Kubelet::read(&self.rootfs));
        self.learn_cgroups(wanted);
        let (found, failure) = match self.walk(wanted) {
            Ok(found) => (found, None),
            Err(error) => (HolderMatch::default(), Some(error)),
        };
        self.keep(wanted, &found);
        let is_denied =
            failure.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        let shows_host = namespaces::shows_host(&self.procfs);
        let sees_all = found.denied == 0 && !is_denied && !hides_processes(&self.procfs);
        let sees_some = found.descriptors > 0 || found.denied == 0 && !is_denied;
        let claims = wanted.iter().filter_map(|origin| self.claim(origin, &found)).collect();
        OwnerSearch {
            claims,
            sees_holders: shows_host && (sees_all || sees_some && may_see_holders()),
            has_kubelet: self.has_kubelet(),
            failure,
        }
    }

    /// Who a namespace was made for: the cgroup of a process inside.
    pub fn of_process(&mut self, pid: u32) -> Owner {
        let path = self.procfs.join(pid.to_string()).join("cgroup");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let owner = telling_path(&text).map(|path| self.placed(&Placement::of(path)));
        // The processes of a namespace are many: none of them names it, nor does a unit.
        Owner { process: "".into(), unit: "".into(), ..owner.unwrap_or_default() }
    }

    fn learn_cgroups(&mut self, wanted: &[Origin]) {
        if let Some(tree) = &mut self.tree
            && wanted.iter().filter_map(|origin| origin.cgroup).any(|id| tree.path(id).is_none())
            && let Err(error) = tree.refresh()
        {
            tracing::debug!(%error, "the cgroup tree could not be read");
        }
    }

    fn walk(&self, wanted: &[Origin]) -> io::Result<HolderMatch> {
        let inodes = wanted.iter().map(|origin| u64::from(origin.inode));
        let mut walk = Walk::new(&self.procfs, inodes)?.looking_first_at(self.first_looks(wanted));
        while walk.step(STEP)? == Step::More {
            // The holders in the creator's own cgroup are enough: its master is among them.
            if walk.has_looked_at_first() && walk.has_found_all() {
                break;
            }
            std::thread::yield_now();
        }
        Ok(walk.finish())
    }

    /// The processes in the cgroups of the creators.
    fn first_looks(&self, wanted: &[Origin]) -> Vec<u32> {
        let Some(tree) = &self.tree else { return Vec::new() };
        let mut paths: Vec<&Arc<str>> = wanted
            .iter()
            .filter_map(|origin| tree.path(origin.cgroup?))
            .filter(|path| tells(path))
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
            let holder = found.holders.get(&u64::from(origin.inode))?;
            Some((origin.inode, KnownHolder { pid: holder.pid, start_time: holder.start_time, at }))
        }));
    }

    fn claim(&mut self, origin: &Origin, found: &HolderMatch) -> Option<(u32, Arc<Owner>)> {
        let mut owner = match found.holders.get(&u64::from(origin.inode)) {
            Some(holder) => self.held_by(holder),
            // The process that was found before still runs, and is believed until it does not: this walk failed, or may not
            // see it any more.
            None if self.held.contains_key(&origin.inode) => return None,
            None => Owner::default(),
        };
        if owner.unit.is_empty() && owner.container_id.is_empty() {
            owner.fill_from(&self.created_in(origin.cgroup));
        }
        (!owner.is_unknown()).then(|| (origin.inode, Arc::new(owner)))
    }

    fn held_by(&mut self, holder: &Holder) -> Owner {
        let placement = telling_path(&holder.cgroup).map(Placement::of).unwrap_or_default();
        Owner {
            process: holder.comm.as_str().into(),
            pid: Some(holder.pid),
            start_time: holder.start_time,
            ..self.placed(&placement)
        }
    }

    fn created_in(&mut self, cgroup: Option<u64>) -> Owner {
        let path =
            cgroup.and_then(|id| self.tree.as_ref()?.path(id)).filter(|path| tells(path)).cloned();
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

    /// The pod's name, or its uid where its name cannot be told.
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

/// A socket made by systemd is passed on, and one made in the root cgroup may be anybody's: these tell nothing.
fn tells(path: &str) -> bool {
    path != "/" && !path.ends_with("/init.scope") && !path.ends_with(".socket")
}

/// Whether processes are there and not even listed (`hidepid`): every procfs has a first one.
pub fn hides_processes(procfs: &Path) -> bool {
    std::fs::symlink_metadata(procfs.join("1")).is_err()
}

/// Whether this thread has the capabilities for the `fd` links of others. Some processes deny even those who have.
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
    fn a_walk_that_fails_takes_no_name_away() {
        let dir = Dir::new("owners");
        dir.file("sys/fs/cgroup/cgroup.controllers", "");
        let nginx = dir.directory("sys/fs/cgroup/system.slice/nginx.service");
        let cgroup = Some(std::fs::metadata(nginx).unwrap().st_ino());
        let (_listener, origin) = listener();
        let [held, unheld] =
            [origin.inode, u32::MAX].map(|inode| Origin { inode, cgroup, uid: None });
        let mut owners = OwnerLookup::new(Path::new("/proc"), dir.path());
        assert!(!owners.search(&[held]).claims[&held.inode].process.is_empty());
        owners.procfs = "/nowhere".into();
        let search = owners.search(&[held, unheld]);
        // What the creator's cgroup says is less.
        assert_eq!(&*search.claims[&unheld.inode].unit, "nginx.service");
        assert!(search.failure.is_some() && !search.claims.contains_key(&held.inode));
    }

    #[test]
    fn a_socket_of_this_process_is_its_own() {
        let (_listener, origin) = listener();
        let mut owners = OwnerLookup::new(Path::new("/proc"), Path::new("/"));
        let search = owners.search(&[origin]);
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(&*search.claims[&origin.inode].process, comm.trim_end());
        assert!(search.failure.is_none());
    }

    #[test]
    fn a_socket_that_nobody_holds_has_no_owner() {
        let mut owners = OwnerLookup::new(Path::new("/proc"), Path::new("/"));
        let search = owners.search(&[Origin { inode: u32::MAX, ..Origin::default() }]);
        assert_eq!(search.claims, Claims::default());
    }

    #[test]
    fn what_systemd_made_tells_nothing() {
        assert!(!tells("/") && !tells("/init.scope") && !tells("/system.slice/a.socket"));
        assert!(tells("/system.slice/nginx.service"));
    }
}
